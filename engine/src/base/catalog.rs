//! What the snapshot holds: tables, sequences, large objects; and the locks that keep it so.

use std::collections::BTreeMap;

use lastgood_proto::Oid;
use lastgood_proto::manifest::{Protection, SequenceEntry, TableEntry};
use tokio_postgres::Client;

use crate::error::Error;
use crate::publication;
use crate::settings::SourceSettings;
use crate::tables::{self, Table};

/// The database as the snapshot has it.
pub(super) struct Contents {
    /// With the name quoted for SQL.
    pub(super) tables: Vec<(TableEntry, String)>,
    pub(super) sequences: Vec<SequenceEntry>,
    pub(super) large_objects: u64,
}

const SEQUENCES: &str = r"
SELECT n.nspname, c.relname, s.seqincrement, o.nspname, o.relname, o.attname
FROM pg_class c
JOIN pg_namespace n ON n.oid = c.relnamespace
JOIN pg_sequence s ON s.seqrelid = c.oid
LEFT JOIN LATERAL (
    SELECT tn.nspname, t.relname, a.attname
    FROM pg_depend d
    JOIN pg_class t ON t.oid = d.refobjid
    JOIN pg_namespace tn ON tn.oid = t.relnamespace
    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = d.refobjsubid
    WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid
      AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
    LIMIT 1) o ON true
WHERE c.relkind = 'S' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
  AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                  AND d.objid = c.oid AND d.deptype = 'e')
ORDER BY 1, 2";

/// Everything that a rewriting or renaming command changes: storage, name, columns.
const FINGERPRINT: &str = r"
SELECT coalesce(md5(string_agg(
    concat_ws(' ', c.oid, c.relfilenode, c.relname, c.relnamespace, c.relkind, c.relreplident,
              (SELECT string_agg(concat_ws(':', a.attnum, a.attname, a.atttypid, a.atttypmod,
                                           a.attnotnull, a.attisdropped), ',' ORDER BY a.attnum)
               FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0)),
    '|' ORDER BY c.oid)), '')
FROM pg_class c WHERE c.oid = ANY ($1)";

/// Reads under the keeper's snapshot.
///
/// # Errors
/// [`Error::CatalogMoved`] if a table that should be captured is not in the publication at the
/// consistent point: it was made between the two, and the next attempt covers it.
pub(super) async fn read(
    client: &Client,
    server_version: u32,
    settings: &SourceSettings,
    publication: Oid,
) -> Result<Contents, Error> {
    let members = publication::members(client, publication).await?;
    let listed = tables::list(client, server_version).await?;
    let published = |table: &Table| {
        let root = table.root.is_some_and(|root| members.contains(&root));
        root || members.contains(&table.oid)
    };
    let mut entries = Vec::with_capacity(listed.len());
    for table in listed {
        let protection = match table.protection(settings) {
            Protection::Full if !published(&table) => {
                if !table.needs_full(settings) {
                    return Err(Error::CatalogMoved);
                }
                // Somebody held it when its identity was to be changed.
                Protection::NoIdentity
            }
            protection => protection,
        };
        let entry = TableEntry {
            oid: table.oid,
            schema: table.schema,
            name: table.name,
            kind: table.kind,
            protection,
            identity_index: table.identity_index,
            rows_estimate: table.rows_estimate,
            bytes: 0,
        };
        entries.push((entry, table.quoted));
    }
    let row = client
        .query_one("SELECT count(*) FROM pg_largeobject_metadata", &[])
        .await
        .map_err(Error::sql("counting large objects"))?;
    let large_objects: i64 = row.get(0);
    Ok(Contents {
        tables: entries,
        sequences: sequences(client).await?,
        large_objects: u64::try_from(large_objects).unwrap_or(0),
    })
}

async fn sequences(client: &Client) -> Result<Vec<SequenceEntry>, Error> {
    let samples = crate::marks::sequences(client).await?;
    let rows = client
        .query(SEQUENCES, &[])
        .await
        .map_err(Error::sql("listing sequences"))?;
    Ok(rows
        .iter()
        .map(|row| {
            let (schema, name): (String, String) = (row.get(0), row.get(1));
            let sample = samples
                .iter()
                .find(|sample| sample.schema == schema && sample.name == name);
            let owner: Option<String> = row.get(3);
            SequenceEntry {
                last_value: sample.map(|sample| sample.last_value.clone()),
                is_called: sample.is_some_and(|sample| sample.is_called),
                increment: row.get(2),
                owner: owner.map(|schema| (schema, row.get(4), row.get(5))),
                schema,
                name,
            }
        })
        .collect())
}

/// Fills in how large the tables are. They must be locked, or this may wait.
pub(super) async fn measure(client: &Client, contents: &mut Contents) -> Result<(), Error> {
    let oids: Vec<u32> = contents
        .tables
        .iter()
        .filter(|(entry, _)| entry.kind == 'r')
        .map(|(entry, _)| entry.oid.get())
        .collect();
    let rows = client
        .query(
            "SELECT oid, coalesce(pg_table_size(oid), 0) FROM unnest($1::oid[]) AS oid",
            &[&oids],
        )
        .await
        .map_err(Error::sql("measuring tables"))?;
    let sizes: BTreeMap<u32, i64> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for (entry, _) in &mut contents.tables {
        let size = sizes.get(&entry.oid.get()).copied().unwrap_or(0);
        entry.bytes = u64::try_from(size).unwrap_or(0);
    }
    Ok(())
}

/// Locks every table as `pg_dump` does, then makes sure that none has changed since the snapshot.
///
/// # Errors
/// [`Error::CatalogMoved`] if one has.
pub(super) async fn lock(
    keeper: &Client,
    fresh: &Client,
    contents: &Contents,
) -> Result<(), Error> {
    let locked: Vec<&(TableEntry, String)> = contents
        .tables
        .iter()
        .filter(|(entry, _)| matches!(entry.kind, 'r' | 'p'))
        .collect();
    if locked.is_empty() {
        return Ok(());
    }
    for chunk in locked.chunks(500) {
        let names: Vec<&str> = chunk.iter().map(|(_, quoted)| quoted.as_str()).collect();
        let sql = format!(
            "LOCK TABLE ONLY {} IN ACCESS SHARE MODE",
            names.join(", ONLY ")
        );
        if let Err(error) = keeper.batch_execute(&sql).await {
            // Dropped or renamed since: no such table, no such schema.
            return Err(match error.code().map(|code| code.code()) {
                Some("42P01" | "3F000") => Error::CatalogMoved,
                _ => Error::sql("locking the tables of a base")(error),
            });
        }
    }
    let oids: Vec<u32> = locked.iter().map(|(entry, _)| entry.oid.get()).collect();
    match fingerprint(keeper, &oids).await? == fingerprint(fresh, &oids).await? {
        true => Ok(()),
        false => Err(Error::CatalogMoved),
    }
}

async fn fingerprint(client: &Client, oids: &Vec<u32>) -> Result<String, Error> {
    let row = client
        .query_one(FINGERPRINT, &[oids])
        .await
        .map_err(Error::sql("comparing the catalog"))?;
    Ok(row.get(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lastgood_integration::TestDatabase;

    /// Between the keeper's snapshot and its locks `change` is run.
    async fn locked_after(change: &str) -> Result<(), Error> {
        let database = TestDatabase::new(18).await.unwrap();
        let other = database.connect().await.unwrap();
        other
            .batch_execute("CREATE TABLE t(id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
            .await
            .unwrap();
        let keeper = database.connect().await.unwrap();
        let oid = "SELECT oid FROM pg_publication";
        keeper
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
            .unwrap();
        let oid = Oid::new(keeper.query_one(oid, &[]).await.unwrap().get(0));
        other.batch_execute(change).await.unwrap();
        let mut contents = read(&keeper, 180_000, &SourceSettings::default(), oid).await?;
        assert_eq!(contents.tables.len(), 1);
        lock(&keeper, &other, &contents).await?;
        measure(&other, &mut contents).await
    }

    #[tokio::test]
    async fn a_base_is_given_up_if_its_tables_changed_before_they_were_locked() {
        locked_after("INSERT INTO t VALUES (1); CREATE TABLE later(id int)")
            .await
            .unwrap();
        for change in [
            "TRUNCATE t",
            "DROP TABLE t",
            "ALTER TABLE t RENAME TO u; CREATE TABLE t(id int PRIMARY KEY)",
            "ALTER TABLE t ADD COLUMN v text",
            "ALTER TABLE t ALTER COLUMN id TYPE bigint",
        ] {
            let outcome = locked_after(change).await;
            assert!(
                matches!(outcome, Err(Error::CatalogMoved)),
                "{change}: {outcome:?}"
            );
        }
    }
}
