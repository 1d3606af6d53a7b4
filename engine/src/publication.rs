//! The publication of a source: made before the slot, kept in step before every base.
//!
//! Only tables with a usable replica identity are added, and one that loses it later is taken out
//! again ([`reconcile`]): the source's own UPDATEs must not fail because of us. Every lock has a
//! timeout: the source's traffic must not queue up behind us. Where the settings ask for `REPLICA IDENTITY FULL`, what the
//! identity was before is remembered in the publication's comment, so that [`crate::remove`] can
//! give it back without knowing anything else.

use std::collections::{BTreeMap, BTreeSet};

use lastgood_pg::Session;
use lastgood_proto::manifest::Protection;
use lastgood_proto::{Oid, SourceId};
use serde::{Deserialize, Serialize};
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;

use crate::error::Error;
use crate::events::{Uncovered, Why};
use crate::settings::SourceSettings;
use crate::tables::{self, Identity, Table, published};

/// The publication of a source.
#[must_use]
pub(crate) fn name(source: SourceId) -> String {
    format!("lastgood_{source}")
}

/// A publication that is in step with the settings, as far as locks allowed.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) oid: Oid,
    /// Could not be added because somebody held a lock; the next base tries again.
    pub(crate) busy: Vec<String>,
}

/// What the comment on the publication holds.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remembered {
    /// `relreplident` before it was set to FULL, by table OID.
    pub(crate) replica_identity_before_full: BTreeMap<u32, char>,
}

const LOCK_TIMEOUT: &str = "SET LOCAL lock_timeout = '5s'";

/// Makes the publication, or brings the one there is into step; it keeps its OID.
///
/// # Errors
/// [`Error::TablesLocked`] if something has to be taken out and somebody holds it.
pub(crate) async fn ensure(
    session: &Session,
    source: SourceId,
    settings: &SourceSettings,
) -> Result<Published, Error> {
    let client = session.client();
    let name = name(source);
    let tables = tables::list(client, session.server_version()).await?;
    let wanted = published(&tables, settings);
    let oid = match lastgood_pg::publication::oid(session, &name).await? {
        Some(oid) => oid,
        None => create(session, &name).await?,
    };
    if wanted.iter().any(|table| table.needs_generated) && !publishes_generated(client, oid).await?
    {
        insist(client, &publish_generated(&name)).await?;
    }
    widen(client, &name, oid).await?;
    let mut members = members(client, oid).await?;
    let narrowed = narrowed(client, oid).await?;
    let unwanted: Vec<&str> = tables
        .iter()
        .filter(|table| members.contains(&table.oid))
        .filter(|table| {
            narrowed.contains(&table.oid) || !wanted.iter().any(|wanted| wanted.oid == table.oid)
        })
        .map(|table| table.quoted.as_str())
        .collect();
    if !unwanted.is_empty() {
        let list = unwanted.join(", ONLY ");
        insist(
            client,
            &format!("ALTER PUBLICATION {name} DROP TABLE ONLY {list}"),
        )
        .await?;
    }
    members.retain(|member| !narrowed.contains(member));
    let missing: Vec<&Table> = wanted
        .into_iter()
        .filter(|table| !members.contains(&table.oid))
        .collect();
    let busy = add(session, &name, oid, &missing, settings).await?;
    Ok(Published { oid, busy })
}

/// Everything is published, from wherever it was written: somebody may have set it otherwise.
async fn widen(client: &Client, name: &str, oid: Oid) -> Result<(), Error> {
    let intact = "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate AND NOT pubviaroot \
                  FROM pg_publication WHERE oid = $1";
    let row = client
        .query_one(intact, &[&oid.get()])
        .await
        .map_err(Error::sql("reading the publication"))?;
    if row.get(0) {
        return Ok(());
    }
    let sql = format!("ALTER PUBLICATION {name} SET ({PUBLISHED})");
    insist(client, &sql).await
}

/// Without it, UPDATEs of a table that needs it fail on the source once it is published.
fn publish_generated(name: &str) -> String {
    format!("ALTER PUBLICATION {name} SET (publish_generated_columns = stored)")
}

/// Of 18 and later. Altered only if need be: that the publication is as it was is told by its catalog row.
async fn publishes_generated(client: &Client, oid: Oid) -> Result<bool, Error> {
    let stored = "SELECT coalesce(to_jsonb(p)->>'pubgencols' = 's', false) FROM pg_publication p WHERE p.oid = $1";
    let row = client.query_one(stored, &[&oid.get()]).await;
    Ok(row.map_err(Error::sql("reading the publication"))?.get(0))
}

/// Tables of which somebody publishes only some rows or columns (15 and later).
async fn narrowed(client: &Client, oid: Oid) -> Result<BTreeSet<Oid>, Error> {
    let narrowed = "SELECT prrelid FROM pg_publication_rel r WHERE prpubid = $1 \
                    AND (to_jsonb(r)->>'prqual' IS NOT NULL OR to_jsonb(r)->>'prattrs' IS NOT NULL)";
    let rows = client
        .query(narrowed, &[&oid.get()])
        .await
        .map_err(Error::sql("reading the publication"))?;
    Ok(rows.iter().map(|row| Oid::new(row.get(0))).collect())
}

const PUBLISHED: &str =
    "publish = 'insert, update, delete, truncate', publish_via_partition_root = false";

async fn create(session: &Session, name: &str) -> Result<Oid, Error> {
    let sql = format!("CREATE PUBLICATION {name} WITH ({PUBLISHED})");
    insist(session.client(), &sql).await?;
    lastgood_pg::publication::oid(session, name)
        .await?
        .ok_or_else(|| {
            Error::Unfit(format!(
                "publication \"{name}\" is gone as soon as it is made"
            ))
        })
}

/// What a look at a running lineage's publication found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Coverage {
    /// Whose changes are in no segment.
    pub(crate) uncovered: Vec<Uncovered>,
    /// Was taken out, now or since the last look: its UPDATEs would have failed.
    pub(crate) removed: Vec<(String, String)>,
    /// Patterns of the settings that no table is called by.
    pub(crate) unmatched: Vec<String>,
    /// What is published now.
    pub(crate) members: BTreeSet<Oid>,
}

/// Takes out tables that have lost their replica identity, publishes generated columns once they are part of one, and
/// names tables that are not captured. `before`: what the
/// last look found published. A base that begins takes such tables out as well, and tells nobody.
pub(crate) async fn reconcile(
    session: &Session,
    oid: Oid,
    source: SourceId,
    settings: &SourceSettings,
    before: &BTreeSet<Oid>,
) -> Result<Coverage, Error> {
    let client = session.client();
    let tables = tables::list(client, session.server_version()).await?;
    let mut members = members(client, oid).await?;
    let name_of = |table: &&Table| (table.schema.clone(), table.name.clone());
    let is_harmful = |table: &&Table| match table.kind {
        'r' => matches!(table.identity, Identity::None | Identity::Impossible),
        'p' => true,
        _ => false,
    };
    // A root that somebody put in publishes its partitions as well: while it stays, taking out a
    // partition alone leaves its UPDATEs failing. All in one command.
    let harmful: Vec<&Table> = tables
        .iter()
        .filter(|table| members.contains(&table.oid))
        .filter(is_harmful)
        .collect();
    let publication = name(source);
    let needs_generated = |table: &Table| {
        table.needs_generated && members.contains(&table.oid) && !is_harmful(&table)
    };
    if tables.iter().any(needs_generated) && !publishes_generated(client, oid).await? {
        // If somebody holds a lock, the next look tries again.
        attempt(client, &publish_generated(&publication)).await?;
    }
    let mut coverage = Coverage::default();
    let gone = tables
        .iter()
        .filter(|table| before.contains(&table.oid) && !members.contains(&table.oid))
        .filter(is_harmful);
    coverage.removed = gone.map(|table| name_of(&table)).collect();
    if !harmful.is_empty() {
        let list: Vec<&str> = harmful.iter().map(|table| table.quoted.as_str()).collect();
        let sql = format!(
            "ALTER PUBLICATION {publication} DROP TABLE ONLY {}",
            list.join(", ONLY ")
        );
        if attempt(client, &sql).await? {
            coverage.removed.extend(harmful.iter().map(name_of));
            members.retain(|member| !harmful.iter().any(|table| table.oid == *member));
        }
    }
    let why = |table: &Table| match table.protection(settings) {
        Protection::Full => (!members.contains(&table.oid)).then_some(Why::NextBase),
        Protection::NoIdentity => Some(Why::NoIdentity),
        Protection::Unlogged => Some(Why::Unlogged),
        Protection::NotOwned => Some(Why::NotOwned),
        // Left out on purpose, not the database's own, or without rows of its own.
        Protection::Excluded
        | Protection::Extension
        | Protection::Foreign
        | Protection::Derived => None,
    };
    let uncovered = tables.iter().filter_map(|table| {
        Some(Uncovered {
            schema: table.schema.clone(),
            table: table.name.clone(),
            why: why(table)?,
        })
    });
    coverage.uncovered = uncovered.collect();
    let names = tables.iter();
    let names = names.map(|table| (table.schema.as_str(), table.name.as_str()));
    coverage.unmatched = settings.unmatched(names);
    coverage.members = members;
    Ok(coverage)
}

/// OIDs of the tables that were put into the publication by name.
pub(crate) async fn members(client: &Client, oid: Oid) -> Result<BTreeSet<Oid>, Error> {
    let rows = client
        .query(
            "SELECT prrelid FROM pg_publication_rel WHERE prpubid = $1",
            &[&oid.get()],
        )
        .await
        .map_err(Error::sql("listing published tables"))?;
    Ok(rows.iter().map(|row| Oid::new(row.get(0))).collect())
}

async fn add(
    session: &Session,
    name: &str,
    oid: Oid,
    missing: &[&Table],
    settings: &SourceSettings,
) -> Result<Vec<String>, Error> {
    let client = session.client();
    let plain: Vec<&str> = missing
        .iter()
        .filter(|table| !table.needs_full(settings))
        .map(|table| table.quoted.as_str())
        .collect();
    // All at once; one by one only if one of them is in somebody's hands.
    if !plain.is_empty() && attempt(client, &add_sql(name, &plain.join(", ONLY "))).await? {
        return add_full(client, name, oid, missing, settings, Vec::new()).await;
    }
    let mut busy = Vec::new();
    for table in plain {
        if !attempt(client, &add_sql(name, table)).await? {
            busy.push(table.to_owned());
        }
    }
    add_full(client, name, oid, missing, settings, busy).await
}

async fn add_full(
    client: &Client,
    name: &str,
    oid: Oid,
    missing: &[&Table],
    settings: &SourceSettings,
    mut busy: Vec<String>,
) -> Result<Vec<String>, Error> {
    for table in missing.iter().filter(|table| table.needs_full(settings)) {
        let mut remembered = remembered(client, oid).await?;
        remembered
            .replica_identity_before_full
            .entry(table.oid.get())
            .or_insert(table.replica_identity);
        let comment = serde_json::to_string(&remembered).unwrap_or_default();
        let quoted = &table.quoted;
        let sql = format!(
            "COMMENT ON PUBLICATION {name} IS '{comment}'; \
             ALTER TABLE ONLY {quoted} REPLICA IDENTITY FULL; {}",
            add_sql(name, quoted)
        );
        if !attempt(client, &sql).await? {
            busy.push(quoted.clone());
        }
    }
    Ok(busy)
}

fn add_sql(name: &str, tables: &str) -> String {
    format!("ALTER PUBLICATION {name} ADD TABLE ONLY {tables}")
}

/// Runs `sql` in a transaction; false if a lock was not to be had.
async fn attempt(client: &Client, sql: &str) -> Result<bool, Error> {
    let outcome = client
        .batch_execute(&format!("BEGIN; {LOCK_TIMEOUT}; {sql}; COMMIT"))
        .await;
    let Err(error) = outcome else {
        return Ok(true);
    };
    client
        .batch_execute("ROLLBACK")
        .await
        .map_err(Error::sql("publishing tables"))?;
    match error.code() {
        Some(code) if *code == SqlState::LOCK_NOT_AVAILABLE => Ok(false),
        _ => Err(Error::sql("publishing tables")(error)),
    }
}

/// As `attempt`, where there is no going on without it.
async fn insist(client: &Client, sql: &str) -> Result<(), Error> {
    match attempt(client, sql).await? {
        true => Ok(()),
        false => Err(Error::TablesLocked),
    }
}

/// What the comment remembers; nothing if somebody wrote another one.
pub(crate) async fn remembered(client: &Client, oid: Oid) -> Result<Remembered, Error> {
    let row = client
        .query_one(
            "SELECT obj_description($1, 'pg_publication')",
            &[&oid.get()],
        )
        .await
        .map_err(Error::sql("reading the publication's comment"))?;
    let comment: Option<String> = row.get(0);
    Ok(comment
        .and_then(|comment| serde_json::from_str(&comment).ok())
        .unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use lastgood_integration::TestDatabase;
    use lastgood_pg::Purpose;

    /// All that can be, with the settings of a new source.
    async fn published(database: &TestDatabase) -> (Session, SourceId, SourceSettings, Oid) {
        let connection = database.url().parse().unwrap();
        let session = Session::connect(&connection, Purpose::Base).await.unwrap();
        let (source, settings) = (SourceId::from_bytes([9; 8]), SourceSettings::default());
        let published = ensure(&session, source, &settings).await.unwrap();
        (session, source, settings, published.oid)
    }

    /// Whoever takes it out, a base that begins or the look itself.
    #[tokio::test]
    async fn a_table_that_lost_its_identity_is_told_of_once() {
        for by_a_base in [false, true] {
            let database = TestDatabase::new(18).await.unwrap();
            let tables = "CREATE TABLE a(id int PRIMARY KEY); CREATE TABLE b(id int PRIMARY KEY)";
            database.execute(tables).await.unwrap();
            let (session, source, settings, oid) = published(&database).await;
            let mut before = BTreeSet::new();
            let mut removed = async || {
                let found = reconcile(&session, oid, source, &settings, &before);
                let found = found.await.unwrap();
                before = found.members;
                found.removed
            };
            assert_eq!(removed().await, []);
            let lost = "ALTER TABLE a DROP CONSTRAINT a_pkey";
            database.execute(lost).await.unwrap();
            if by_a_base {
                ensure(&session, source, &settings).await.unwrap();
            }
            assert_eq!(removed().await, [("public".to_owned(), "a".to_owned())]);
            assert_eq!(removed().await, []);
        }
    }

    /// Without a base, as while a source is paused: its UPDATEs would fail until there is one.
    #[tokio::test]
    async fn a_generated_column_that_joins_an_identity_is_published() {
        let database = TestDatabase::new(18).await.unwrap();
        let table = "CREATE TABLE f(a int, b text); ALTER TABLE f REPLICA IDENTITY FULL; INSERT INTO f VALUES (1, 'x')";
        database.execute(table).await.unwrap();
        let (session, source, settings, oid) = published(&database).await;
        let generated = "ALTER TABLE f ADD g int GENERATED ALWAYS AS (a * 2) STORED";
        database.execute(generated).await.unwrap();
        let update = "UPDATE f SET b = 'y'";
        database.execute(update).await.unwrap_err();
        let before = BTreeSet::new();
        let found = reconcile(&session, oid, source, &settings, &before).await;
        let found = found.unwrap();
        assert_eq!((found.removed.len(), found.members.len()), (0, 1));
        database.execute(update).await.unwrap();
    }
}
