//! Replication slots, as an ordinary session sees them. They are made by
//! [`ReplicationConnection::create_slot`](crate::ReplicationConnection::create_slot), because only
//! a walsender exports the snapshot.

use lastgood_proto::Lsn;
use tokio_postgres::Row;

use crate::{Error, Session};

/// What becomes of a slot's WAL (`pg_replication_slots.wal_status`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalStatus {
    /// Within `max_wal_size`.
    Reserved,
    /// Beyond it, and still kept.
    Extended,
    /// To be removed at the next checkpoint.
    Unreserved,
    /// Removed: the slot can never be read again.
    Lost,
    /// A word that this version does not know.
    Unknown,
}

/// One line of `pg_replication_slots`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlotInfo {
    pub name: String,
    /// `None` for a physical slot.
    pub plugin: Option<String>,
    pub database: Option<String>,
    pub temporary: bool,
    /// The walsender that reads from it.
    pub active_pid: Option<i32>,
    /// From here on the server keeps WAL for the slot.
    pub restart_lsn: Option<Lsn>,
    /// What we confirmed last; the stream goes on behind it.
    pub confirmed_flush_lsn: Option<Lsn>,
    pub wal_status: Option<WalStatus>,
    /// What may still be written before the slot is in danger; `None` without
    /// `max_slot_wal_keep_size`.
    pub safe_wal_size: Option<i64>,
    /// WAL kept for this slot.
    pub retained_bytes: u64,
    /// Why it can never be read again, in PostgreSQL's word (16: only for conflicts; 17: always).
    pub invalidation_reason: Option<String>,
}

impl SlotInfo {
    /// Whether the slot can never be read again.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.wal_status == Some(WalStatus::Lost) || self.invalidation_reason.is_some()
    }
}

/// The slot of that name, if there is one.
pub async fn slot_info(session: &Session, name: &str) -> Result<Option<SlotInfo>, Error> {
    let sql = format!("{} WHERE s.slot_name = $1", select(session));
    let row = session.client().query_opt(&sql, &[&name]).await?;
    row.as_ref().map(slot).transpose()
}

/// Every slot whose name begins so, on the whole server, in the order of their names.
pub async fn slots_with_prefix(session: &Session, prefix: &str) -> Result<Vec<SlotInfo>, Error> {
    let sql = format!(
        "{} WHERE pg_catalog.starts_with(s.slot_name::text, $1) ORDER BY s.slot_name",
        select(session)
    );
    let rows = session.client().query(&sql, &[&prefix]).await?;
    rows.iter().map(slot).collect()
}

/// Drops the slot; `false` if there is none. A slot that is read from is refused with
/// [`Condition::SlotActive`](crate::Condition::SlotActive).
pub async fn drop_slot(session: &Session, name: &str) -> Result<bool, Error> {
    let row = session
        .client()
        .query_opt(
            "SELECT pg_catalog.pg_drop_replication_slot(slot_name) \
             FROM pg_catalog.pg_replication_slots WHERE slot_name = $1",
            &[&name],
        )
        .await?;
    Ok(row.is_some())
}

/// Ends the walsender that reads from the slot, typically one of ours whose connection is dead and
/// whose server has not noticed; `false` if nobody reads from it. Needs the same role, or
/// `pg_signal_backend`.
pub async fn terminate_reader(session: &Session, name: &str) -> Result<bool, Error> {
    let row = session
        .client()
        .query_opt(
            "SELECT pg_catalog.pg_terminate_backend(active_pid) \
             FROM pg_catalog.pg_replication_slots \
             WHERE slot_name = $1 AND active_pid IS NOT NULL",
            &[&name],
        )
        .await?;
    Ok(row.is_some())
}

fn select(session: &Session) -> String {
    let reason = match session.server_version() / 10_000 {
        ..16 => "NULL::text",
        16 => "CASE WHEN s.conflicting THEN 'conflicting' END",
        17.. => "s.invalidation_reason",
    };
    format!(
        "SELECT s.slot_name::text, s.plugin::text, s.database::text, s.temporary, s.active_pid, \
         s.restart_lsn::text, s.confirmed_flush_lsn::text, s.wal_status::text, s.safe_wal_size, \
         coalesce(greatest(pg_catalog.pg_wal_lsn_diff(\
           CASE WHEN pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
           ELSE pg_catalog.pg_current_wal_lsn() END, s.restart_lsn), 0), 0)::int8, {reason} \
         FROM pg_catalog.pg_replication_slots s"
    )
}

fn slot(row: &Row) -> Result<SlotInfo, Error> {
    let lsn = |column: usize| -> Result<Option<Lsn>, Error> {
        row.try_get::<_, Option<&str>>(column)?
            .map(|text| {
                text.parse()
                    .map_err(|error| Error::Protocol(format!("{error}")))
            })
            .transpose()
    };
    Ok(SlotInfo {
        name: row.try_get(0)?,
        plugin: row.try_get(1)?,
        database: row.try_get(2)?,
        temporary: row.try_get(3)?,
        active_pid: row.try_get(4)?,
        restart_lsn: lsn(5)?,
        confirmed_flush_lsn: lsn(6)?,
        wal_status: row.try_get::<_, Option<&str>>(7)?.map(|word| match word {
            "reserved" => WalStatus::Reserved,
            "extended" => WalStatus::Extended,
            "unreserved" => WalStatus::Unreserved,
            "lost" => WalStatus::Lost,
            _ => WalStatus::Unknown,
        }),
        safe_wal_size: row.try_get(8)?,
        retained_bytes: u64::try_from(row.try_get::<_, i64>(9)?).unwrap_or(0),
        invalidation_reason: row.try_get(10)?,
    })
}
