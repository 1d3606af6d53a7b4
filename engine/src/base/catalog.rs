//! What the snapshot holds: tables, sequences, large objects; and whether that still holds.

use std::collections::{BTreeMap, BTreeSet};

use lastgood_proto::Oid;
use lastgood_proto::manifest::{Protection, SequenceEntry, TableEntry};
use tokio_postgres::Client;

use super::mark::{self, Mark};
use super::snapshot::{LOCKING, refused};
use crate::error::Error;
use crate::publication;
use crate::settings::SourceSettings;
use crate::tables;

/// The database as the snapshot has it.
pub(super) struct Contents {
    pub(super) tables: Vec<TableEntry>,
    pub(super) sequences: Vec<SequenceEntry>,
    pub(super) large_objects: u64,
    pub(super) snapshot_xmin: u64,
    pub(super) marks: BTreeMap<Oid, Mark>,
    /// Of the tables that are locked, by OID.
    fingerprints: BTreeMap<u32, String>,
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
const FINGERPRINTS: &str = r"
SELECT c.oid, md5(
    concat_ws(' ', c.relfilenode, c.relname, c.relnamespace, c.relkind, c.relreplident,
              (SELECT string_agg(concat_ws(':', a.attnum, a.attname, a.atttypid, a.atttypmod,
                                           a.attnotnull, a.attisdropped), ',' ORDER BY a.attnum)
               FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0)))
FROM pg_class c WHERE c.oid = ANY ($1)";

/// Whether `pg_dump` locks such a table.
pub(super) fn is_locked(kind: char, extension: bool) -> bool {
    matches!(kind, 'r' | 'p') && !extension
}

/// Reads under the keeper's snapshot, which holds the tables of `locked`.
///
/// # Errors
/// [`Error::CatalogMoved`] if a table that should be captured is not in the publication at the
/// consistent point: it was made a moment before, and the next attempt covers it.
pub(super) async fn read(
    client: &Client,
    fresh: &Client,
    server_version: u32,
    settings: &SourceSettings,
    publication: Oid,
    locked: &BTreeSet<Oid>,
) -> Result<Contents, Error> {
    let members = publication::members(client, publication).await?;
    let listed = tables::list(client, server_version).await?;
    let marks = mark::marks(client, publication).await?;
    let mut entries = Vec::with_capacity(listed.len());
    for table in listed {
        let protection = match table.protection(settings) {
            Protection::Full if !members.contains(&table.oid) => {
                if !table.needs_full(settings) {
                    return Err(Error::CatalogMoved);
                }
                // Somebody held it when its identity was to be changed.
                Protection::NoIdentity
            }
            protection => protection,
        };
        let mark = marks
            .get(&table.oid)
            .filter(|_| protection == Protection::Full);
        let entry = TableEntry {
            oid: table.oid,
            schema: table.schema,
            name: table.name,
            kind: table.kind,
            protection,
            identity_index: table.identity_index,
            rows_estimate: table.rows_estimate,
            bytes: 0,
            unaltered: mark.map(|mark| mark.unaltered.clone()),
            checks: mark.and_then(|mark| mark.checks.clone()),
            attributes: mark.map(|mark| mark.attributes),
            columns: mark.map_or_else(Vec::new, |mark| mark.columns.clone()),
        };
        entries.push(entry);
    }
    let row = client
        .query_one("SELECT count(*) FROM pg_largeobject_metadata", &[])
        .await
        .map_err(Error::sql("counting large objects"))?;
    let large_objects: i64 = row.get(0);
    let xmin = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text";
    let xmin = client.query_one(xmin, &[]).await;
    let xmin: String = xmin.map_err(Error::sql("reading the snapshot"))?.get(0);
    let held: Vec<u32> = locked.iter().copied().map(Oid::get).collect();
    Ok(Contents {
        tables: entries,
        sequences: sequences(client, fresh).await?,
        large_objects: u64::try_from(large_objects).unwrap_or(0),
        snapshot_xmin: xmin.parse().unwrap_or(0),
        marks,
        fingerprints: fingerprints(client, &held).await?,
    })
}

/// The values are those of the present, on a session of its own, which sees them. It waits for nobody
/// for long: who holds a sequence may be waiting for us.
async fn sequences(keeper: &Client, fresh: &Client) -> Result<Vec<SequenceEntry>, Error> {
    let samples = match crate::marks::sequences(fresh).await {
        Err(Error::Sql { source, .. }) if source.sqlstate() == Some("55P03") => {
            return Err(Error::TablesLocked);
        }
        samples => samples?,
    };
    let rows = keeper
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

/// What the database sets for all roles, which no archive has.
pub(super) async fn settings(client: &Client) -> Result<Vec<String>, Error> {
    let sql = "SELECT unnest(s.setconfig) FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase
                WHERE d.datname = current_database() AND s.setrole = 0";
    let rows = client.query(sql, &[]).await;
    let rows = rows.map_err(Error::sql("reading the database's settings"))?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// How large tables are; nothing of those that are gone.
///
/// # Errors
/// [`Error::TablesLocked`] if somebody holds one exclusively.
pub(super) async fn sizes(
    client: &Client,
    tables: impl Iterator<Item = Oid>,
) -> Result<BTreeMap<Oid, u64>, Error> {
    let oids: Vec<u32> = tables.map(Oid::get).collect();
    let sql = "SELECT oid, pg_table_size(oid) FROM unnest($1::oid[]) AS oid";
    let rows = client
        .query(sql, &[&oids])
        .await
        .map_err(refused(LOCKING))?;
    let size = |row: &tokio_postgres::Row| -> Option<(Oid, u64)> {
        let bytes: i64 = row.get::<_, Option<i64>>(1)?;
        Some((Oid::new(row.get(0)), u64::try_from(bytes).unwrap_or(0)))
    };
    Ok(rows.iter().filter_map(size).collect())
}

/// Compares the tables with what they were under the snapshot. Says something only while they are
/// locked. Those that are only as fresh as the base count as well: one that was rewritten since would
/// be dumped as empty, which it never was.
///
/// # Errors
/// [`Error::CatalogMoved`] if one has changed.
pub(super) async fn unchanged(fresh: &Client, contents: &Contents) -> Result<(), Error> {
    let oids: Vec<u32> = contents.fingerprints.keys().copied().collect();
    match fingerprints(fresh, &oids).await? == contents.fingerprints {
        true => Ok(()),
        false => Err(Error::CatalogMoved),
    }
}

async fn fingerprints(client: &Client, oids: &Vec<u32>) -> Result<BTreeMap<u32, String>, Error> {
    let rows = client
        .query(FINGERPRINTS, &[oids])
        .await
        .map_err(Error::sql("comparing the catalog"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lastgood_integration::TestDatabase;

    /// Between the snapshot and the dump's locks `change` is run. Only `t` is captured.
    async fn dumped_after(change: &str) -> Result<(), Error> {
        let database = TestDatabase::new(18).await.unwrap();
        let other = database.connect().await.unwrap();
        other
            .batch_execute(
                "CREATE TABLE t(id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t;
                 CREATE TABLE n(a int); INSERT INTO n VALUES (1)",
            )
            .await
            .unwrap();
        let keeper = database.connect().await.unwrap();
        let oid = "SELECT oid FROM pg_publication";
        keeper
            .batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
            .await
            .unwrap();
        let oid = Oid::new(keeper.query_one(oid, &[]).await.unwrap().get(0));
        let tables = crate::tables::list(&other, 180_000).await.unwrap();
        let locked = tables.iter().map(|table| table.oid).collect();
        other.batch_execute(change).await.unwrap();
        let settings = SourceSettings::default();
        let contents = read(&keeper, &other, 180_000, &settings, oid, &locked).await?;
        assert_eq!(contents.tables.len(), 2);
        unchanged(&other, &contents).await
    }

    #[tokio::test]
    async fn a_base_is_given_up_if_its_tables_changed_before_they_were_locked() {
        dumped_after("INSERT INTO t VALUES (1); CREATE TABLE later(id int)")
            .await
            .unwrap();
        for change in [
            "TRUNCATE t",
            "DROP TABLE t",
            "ALTER TABLE t RENAME TO u; CREATE TABLE t(id int PRIMARY KEY)",
            "ALTER TABLE t ADD COLUMN v text",
            "ALTER TABLE t ALTER COLUMN id TYPE bigint",
            "ALTER TABLE n ALTER COLUMN a TYPE bigint",
            "BEGIN; TRUNCATE n; INSERT INTO n VALUES (2); COMMIT",
            "ALTER TABLE n RENAME TO m; CREATE TABLE n(a int)",
        ] {
            let outcome = dumped_after(change).await;
            assert!(
                matches!(outcome, Err(Error::CatalogMoved)),
                "{change}: {outcome:?}"
            );
        }
    }
}
