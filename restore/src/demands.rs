//! What a table demands of its rows by NOT NULL and CHECK, and did not demand when the rows that it borrows were
//! dumped: it is left out while they are loaded and changed in order, and is made again afterwards.
//! What it is made of is kept in our schema until then.

use lastgood_proto::manifest::BaseManifest;
use tokio_postgres::Client;

use crate::Error;
use crate::sql::qualified;

/// A table with rows that may not satisfy it yet.
pub(crate) struct Looser {
    schema: String,
    name: String,
    /// Names of columns that may have nulls.
    nullable: Vec<String>,
    unchecked: bool,
}

/// Of the tables that a base borrows.
pub(crate) fn looser(manifest: &BaseManifest) -> Vec<Looser> {
    let altered = manifest.tables.iter().filter_map(|table| {
        let altered = manifest.altered(table.oid)?;
        let nullable = table.columns.iter();
        let nullable = nullable.filter(|column| altered.nullable.contains(&column.number));
        Some(Looser {
            schema: table.schema.clone(),
            name: table.name.clone(),
            nullable: nullable.map(|column| column.name.clone()).collect(),
            unchecked: altered.unchecked,
        })
    });
    altered
        .filter(|table| table.unchecked || !table.nullable.is_empty())
        .collect()
}

/// What takes away, and what makes again: checks, and NOT NULL as a constraint, which it is from 18 on, or as a
/// property of the column.
const DEMANDS: &str = r"
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', $1::text, o.conname),
       format('ALTER TABLE %s ADD CONSTRAINT %I %s', $1::text, o.conname, pg_get_constraintdef(o.oid))
       || coalesce(format('; COMMENT ON CONSTRAINT %I ON %s IS %L', o.conname, $1::text, obj_description(o.oid, 'pg_constraint')), '')
FROM pg_constraint o
WHERE o.conrelid = to_regclass($1)
  AND (o.contype = 'c' AND $3
       OR o.contype = 'n' AND EXISTS (
           SELECT FROM pg_attribute a
            WHERE a.attrelid = o.conrelid AND a.attnum = o.conkey[1] AND a.attname = ANY ($2)))
UNION ALL
SELECT format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', $1::text, a.attname),
       format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', $1::text, a.attname)
FROM pg_attribute a
WHERE a.attrelid = to_regclass($1) AND a.attname = ANY ($2) AND a.attnotnull AND NOT EXISTS (
    SELECT FROM pg_constraint o WHERE o.conrelid = a.attrelid AND o.contype = 'n' AND o.conkey[1] = a.attnum)";

/// Repeatable: a second call finds nothing new.
pub(crate) async fn relax(client: &Client, tables: &[Looser]) -> Result<(), Error> {
    let make = "BEGIN; CREATE TABLE IF NOT EXISTS lastgood_restore.demands (command text)";
    client.batch_execute(make).await?;
    for table in tables {
        let name = qualified(&table.schema, &table.name);
        let rows = client
            .query(DEMANDS, &[&name, &table.nullable, &table.unchecked])
            .await?;
        for row in rows {
            let (drop, again): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            client.batch_execute(&drop).await?;
            let keep = "INSERT INTO lastgood_restore.demands VALUES ($1)";
            client.execute(keep, &[&again]).await?;
        }
    }
    client.batch_execute("COMMIT").await?;
    Ok(())
}

/// Fails if a row does not satisfy it: then it is not what was there.
pub(crate) async fn set_back(client: &Client) -> Result<(), Error> {
    let kept = "DELETE FROM lastgood_restore.demands RETURNING command";
    client.batch_execute("BEGIN").await?;
    for row in client.query(kept, &[]).await? {
        let command: String = row.try_get(0)?;
        client.batch_execute(&command).await?;
    }
    client.batch_execute("COMMIT").await?;
    Ok(())
}
