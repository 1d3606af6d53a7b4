//! What a table demands of its rows by NOT NULL and CHECK, and did not demand when the rows that it borrows were
//! dumped: it is left out while they are loaded and changed in order, and is made again afterwards.
//! What it is made of is kept in our schema until then.

use lastgood_proto::manifest::BaseManifest;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

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

/// A table's ancestors, the topmost ones first, and itself: what is inherited is taken away where it comes from.
const FAMILY: &str = "
WITH RECURSIVE up(rel, depth) AS (
    SELECT to_regclass($1)::oid, 0
    UNION SELECT i.inhparent, up.depth + 1 FROM up JOIN pg_inherits i ON i.inhrelid = up.rel)
SELECT format('%I.%I', n.nspname, c.relname), max(up.depth)
FROM up JOIN pg_class c ON c.oid = up.rel JOIN pg_namespace n ON n.oid = c.relnamespace
GROUP BY 1 ORDER BY 2 DESC";

/// What takes away, and what makes again: checks, and NOT NULL as a constraint, which it is from 18 on, or as a
/// property of the column. That is inherited by partitions only.
const DEMANDS: &str = r"
SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', $1::text, o.conname),
       format('ALTER TABLE %s ADD CONSTRAINT %I %s', $1::text, o.conname, pg_get_constraintdef(o.oid))
       || coalesce(format('; COMMENT ON CONSTRAINT %I ON %s IS %L', o.conname, $1::text, obj_description(o.oid, 'pg_constraint')), '')
FROM pg_constraint o
WHERE o.conrelid = to_regclass($1) AND o.coninhcount = 0
  AND (o.contype = 'c' AND $3
       OR o.contype = 'n' AND EXISTS (
           SELECT FROM pg_attribute a
            WHERE a.attrelid = o.conrelid AND a.attnum = o.conkey[1] AND a.attname = ANY ($2)))
UNION ALL
SELECT format('ALTER TABLE %s ALTER COLUMN %I DROP NOT NULL', tree, a.attname),
       format('ALTER TABLE %s ALTER COLUMN %I SET NOT NULL', tree, a.attname)
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
CROSS JOIN LATERAL (SELECT CASE c.relkind WHEN 'p' THEN $1::text ELSE 'ONLY ' || $1::text END) the(tree)
WHERE a.attrelid = to_regclass($1) AND a.attname = ANY ($2) AND a.attnotnull
  AND (c.relkind = 'p' OR $4)
  AND NOT EXISTS (
    SELECT FROM pg_constraint o WHERE o.conrelid = a.attrelid AND o.contype = 'n' AND o.conkey[1] = a.attnum)";

/// Repeatable: a second call finds nothing new.
pub(crate) async fn relax(client: &Client, tables: &[Looser]) -> Result<(), Error> {
    if tables.is_empty() {
        return Ok(());
    }
    let make =
        "BEGIN; CREATE TABLE IF NOT EXISTS lastgood_restore.demands (place serial, command text)";
    client.batch_execute(make).await?;
    for table in tables {
        let own = qualified(&table.schema, &table.name);
        let mut family: Vec<String> = Vec::new();
        for row in client.query(FAMILY, &[&own]).await? {
            family.push(row.try_get(0)?);
        }
        for (at, name) in family.iter().enumerate() {
            let is_own = at + 1 == family.len();
            let of = [
                &name as &(dyn ToSql + Sync),
                &table.nullable,
                &table.unchecked,
                &is_own,
            ];
            for row in client.query(DEMANDS, &of).await? {
                let (drop, again): (String, String) = (row.try_get(0)?, row.try_get(1)?);
                client.batch_execute(&drop).await?;
                let keep = "INSERT INTO lastgood_restore.demands (command) VALUES ($1)";
                client.execute(keep, &[&again]).await?;
            }
        }
    }
    client.batch_execute("COMMIT").await?;
    Ok(())
}

/// Fails if a row does not satisfy it: then it is not what was there.
pub(crate) async fn set_back(client: &Client) -> Result<(), Error> {
    let any = "SELECT to_regclass('lastgood_restore.demands') IS NOT NULL";
    if !client.query_one(any, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(());
    }
    // A child's own before what it inherits, which joins it.
    let kept = "SELECT command FROM lastgood_restore.demands ORDER BY place DESC";
    client.batch_execute("BEGIN").await?;
    for row in client.query(kept, &[]).await? {
        let command: String = row.try_get(0)?;
        client.batch_execute(&command).await?;
    }
    let done = "DELETE FROM lastgood_restore.demands; COMMIT";
    client.batch_execute(done).await?;
    Ok(())
}
