//! The moment a base is of: sessions that are ready before the slot is made, so that next to no time
//! passes between its snapshot and the locks that keep the tables as the snapshot has them.
//!
//! A table that is truncated in between would be dumped as empty (TRUNCATE and rewriting commands do
//! not heed older snapshots) and its earlier changes would come in the stream all the same. The
//! locks are taken in the command that takes the snapshot over, in the very sessions that the tools
//! are lent afterwards; those of tables that were being made when the others were listed, right after.
//! They are those that `pg_dump` takes anyway, and are held as long.
//!
//! What is not to be had at once is not insisted on, neither these locks nor anything else that
//! somebody holds: he may be waiting for us, and the server cannot see that our sessions belong
//! together. It is the base that gives up.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use lastgood_pg::dump::PgTools;
use lastgood_pg::{ConnectionConfig, CreatedSlot, Purpose, Session, ToolError};
use lastgood_proto::{Oid, PgTimestamp};
use tokio_postgres::error::SqlState;

use super::{catalog, rows};
use crate::error::Error;
use crate::marks::clock;
use crate::source::Source;
use crate::tables;

/// Shorter than the server's usual `deadlock_timeout`, so that no transaction of the source is the
/// one to be ended.
pub(super) const LOCK_PATIENCE_MS: u64 = 500;

pub(super) const LOCKING: &str = "locking the tables for a base";

/// Sessions that wait for a slot to be made.
pub(crate) struct Prepared {
    keeper: Session,
    /// For the big tables' rows, as many as are read at a time.
    hands: Vec<Session>,
    fresh: Session,
    tools: Result<PgTools, ToolError>,
    /// All tables whose rows or definitions `pg_dump` locks, with their names for SQL.
    tables: BTreeMap<Oid, String>,
    sizes: BTreeMap<Oid, u64>,
    big: BTreeSet<Oid>,
}

/// A slot's snapshot, and the tables as it has them.
pub(crate) struct Snapshot {
    /// Everything is locked in it: for the catalog, then for the main archive.
    pub(super) keeper: Session,
    /// The big tables are locked in each.
    pub(super) hands: Vec<Session>,
    /// Sees the present.
    pub(super) fresh: Session,
    pub(super) tools: Result<PgTools, ToolError>,
    pub(super) locked: BTreeSet<Oid>,
    pub(super) sizes: BTreeMap<Oid, u64>,
    pub(super) big: BTreeSet<Oid>,
    pub(super) consistent_point: lastgood_proto::Lsn,
    pub(super) taken: PgTimestamp,
}

impl Prepared {
    /// # Errors
    /// [`Error::TablesLocked`] if a table cannot even be measured; whatever keeps a session from
    /// being opened.
    pub(crate) async fn new(source: &Source, server_version: u32) -> Result<Self, Error> {
        let tools = PgTools::for_dump(&PgTools::discover().await, server_version);
        let connection = &source.connection;
        let (keeper, fresh) = (open(connection, "").await?, open(connection, "").await?);
        let listed = tables::list(fresh.client(), server_version).await?;
        let with_rows = listed.iter().filter(|table| table.kind == 'r');
        let sizes = catalog::sizes(fresh.client(), with_rows.map(|table| table.oid)).await?;
        let tables: BTreeMap<Oid, String> = listed
            .into_iter()
            .filter(|table| catalog::is_locked(table.kind, table.extension))
            .map(|table| (table.oid, table.quoted))
            .collect();
        let jobs = source.settings.base_jobs;
        let mut big: Vec<(Oid, u64)> = sizes.iter().map(|(oid, bytes)| (*oid, *bytes)).collect();
        big.retain(|(oid, bytes)| {
            *bytes > source.settings.big_table_bytes && tables.contains_key(oid)
        });
        big.sort_by_key(|(_, bytes)| std::cmp::Reverse(*bytes));
        big.truncate(rows::tables_max(fresh.client(), jobs).await?);
        let big: BTreeSet<Oid> = big.into_iter().map(|(oid, _)| oid).collect();
        let mut hands = Vec::new();
        if !big.is_empty() {
            for _ in 0..jobs {
                hands.push(open(connection, rows::PLANNER).await?);
            }
        }
        Ok(Self {
            keeper,
            hands,
            fresh,
            tools,
            tables,
            sizes,
            big,
        })
    }

    /// Takes over the snapshot that a slot exported. Once this returns, the slot's connection may do
    /// anything.
    ///
    /// # Errors
    /// [`Error::CatalogMoved`] if a table is gone, [`Error::TablesLocked`] if one cannot be had.
    pub(crate) async fn hold(mut self, slot: &CreatedSlot) -> Result<Snapshot, Error> {
        // The server's own name, hexadecimal digits and dashes: safe inside quotes.
        let import = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'; ",
            slot.snapshot
        );
        let everything = format!("{import}{}", lock(self.tables.values()));
        let big = self.big.iter().filter_map(|oid| self.tables.get(oid));
        let big = format!("{import}{}", lock(big));
        let sessions = std::iter::once((&self.keeper, &everything))
            .chain(self.hands.iter().map(|hand| (hand, &big)));
        let taken = sessions.map(|(session, sql)| session.client().batch_execute(sql));
        futures::future::try_join_all(taken)
            .await
            .map_err(refused(LOCKING))?;
        let taken = clock(self.keeper.client()).await?;
        self.hold_late().await?;
        Ok(Snapshot {
            keeper: self.keeper,
            hands: self.hands,
            fresh: self.fresh,
            tools: self.tools,
            locked: self.tables.into_keys().collect(),
            sizes: self.sizes,
            big: self.big,
            consistent_point: slot.consistent_point,
            taken,
        })
    }

    /// Locks what the snapshot has and the list has not: whoever was making a table when ours were
    /// listed was waited for by the slot.
    async fn hold_late(&mut self) -> Result<(), Error> {
        let listed = tables::list(self.keeper.client(), self.keeper.server_version()).await?;
        let mut late: BTreeMap<Oid, String> = listed
            .into_iter()
            .filter(|table| catalog::is_locked(table.kind, table.extension))
            .filter(|table| !self.tables.contains_key(&table.oid))
            .map(|table| (table.oid, table.quoted))
            .collect();
        if late.is_empty() {
            return Ok(());
        }
        let everything = lock(late.values());
        let locked = self.keeper.client().batch_execute(&everything).await;
        locked.map_err(refused(LOCKING))?;
        let sizes = catalog::sizes(self.fresh.client(), late.keys().copied()).await?;
        self.sizes.extend(sizes);
        self.tables.append(&mut late);
        Ok(())
    }
}

/// No session of a base waits for a lock for long. Warnings are not wanted: every tool begins a
/// transaction, and is told that there is one. `more`: what else to set.
async fn open(connection: &ConnectionConfig, more: &str) -> Result<Session, Error> {
    let session = Session::connect(connection, Purpose::Base).await?;
    let settings =
        format!("SET lock_timeout = {LOCK_PATIENCE_MS}; SET client_min_messages = error; {more}");
    session
        .client()
        .batch_execute(&settings)
        .await
        .map_err(Error::sql("preparing a session"))?;
    Ok(session)
}

/// One command for all, as `pg_dump` does it; without the partitions of each, which are listed too.
fn lock<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<String> = names.map(|name| format!("ONLY {name}")).collect();
    match names.is_empty() {
        true => String::new(),
        false => format!("LOCK TABLE {} IN ACCESS SHARE MODE", names.join(", ")),
    }
}

/// As [`Error::sql`], where a lock may have been refused.
pub(super) fn refused(
    doing: impl Into<Cow<'static, str>>,
) -> impl FnOnce(tokio_postgres::Error) -> Error {
    move |error| match error.code() {
        Some(&SqlState::LOCK_NOT_AVAILABLE | &SqlState::T_R_DEADLOCK_DETECTED) => {
            Error::TablesLocked
        }
        Some(
            &SqlState::UNDEFINED_TABLE
            | &SqlState::INVALID_SCHEMA_NAME
            | &SqlState::WRONG_OBJECT_TYPE,
        ) => Error::CatalogMoved,
        _ => Error::sql(doing)(error),
    }
}
