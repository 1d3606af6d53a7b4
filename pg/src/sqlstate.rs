//! SQLSTATEs: what one means here, and what has to be done about it.
//!
//! Messages are translated by the server and differ between versions; so errors are told apart by
//! SQLSTATE, by what was being done, and where that is not enough by the reporting C function.

use lastgood_proto::Class;

use crate::error::{Operation, ServerError};

/// The conditions that a caller treats in a way of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Somebody else reads from the slot (55006).
    SlotActive,
    /// There is no slot of that name (42704 at START_REPLICATION).
    SlotMissing,
    /// The slot exists and can never be read again: its WAL is gone or it was invalidated.
    SlotLost,
    /// A slot of that name exists already (42710 at CREATE_REPLICATION_SLOT).
    SlotExists,
    /// All of `max_replication_slots` are taken (53400).
    NoFreeSlot,
    /// All connections or all of `max_wal_senders` are taken (53300).
    NoFreeConnection,
    /// `wal_level` is below `logical`.
    WalLevel,
    /// The publication was dropped while the slot still needs it.
    PublicationMissing,
    /// A right is missing (42501), REPLICATION included.
    NoRight,
    /// The password is wrong, the user unknown, or `pg_hba.conf` has no line for us.
    Refused,
    /// There is no such database.
    DatabaseMissing,
    /// The server is shutting down, starting up, or somebody ended our session.
    Restarting,
    /// Bytes that the client's encoding cannot hold (22021): a SQL_ASCII database.
    Encoding,
    /// The walsender does not know an option of ours: it is older than we took it for.
    OptionUnknown,
    /// Most likely a row whose values as text are longer than a server's buffer can be (1 GB), so that
    /// it can be stored and never sent.
    RowTooLong,
    /// An exported snapshot is gone, or lives on another server.
    SnapshotMissing,
    /// Nothing special.
    Other,
}

/// What the server says when a single value is too long; an internal message, never translated. Damaged
/// data and bugs of the server can end in it as well.
const TOO_LONG: &str = "invalid memory alloc request size";

/// The functions that check `wal_level` before a slot is made or read (`logical.c`, `slot.c`).
const WAL_LEVEL_ROUTINES: &[&str] = &["CheckLogicalDecodingRequirements", "CheckSlotRequirements"];

pub(crate) fn condition(during: Operation, error: &ServerError) -> Condition {
    let code = error.code.as_str();
    let routine = error.routine.as_deref().unwrap_or_default();
    match (code, during) {
        ("55006", _) if during != Operation::Query || routine.contains("Slot") => {
            Condition::SlotActive
        }
        ("42704", Operation::StartReplication) => Condition::SlotMissing,
        ("42704", Operation::Stream) => Condition::PublicationMissing,
        ("42704" | "22023", Operation::Query)
            if routine == "ImportSnapshot" || routine == "SnapBuildExportSnapshot" =>
        {
            Condition::SnapshotMissing
        }
        ("42704", Operation::Query) if routine.starts_with("ReplicationSlot") => {
            Condition::SlotMissing
        }
        ("42710", Operation::CreateSlot) => Condition::SlotExists,
        ("55000", _) if WAL_LEVEL_ROUTINES.contains(&routine) => Condition::WalLevel,
        ("55000", Operation::StartReplication | Operation::Stream) => Condition::SlotLost,
        ("58P01", Operation::StartReplication | Operation::Stream) => Condition::SlotLost,
        ("53400", Operation::CreateSlot | Operation::Query) => Condition::NoFreeSlot,
        ("53300", _) => Condition::NoFreeConnection,
        ("42501", _) => Condition::NoRight,
        ("28P01" | "28000", _) => Condition::Refused,
        ("3D000", _) => Condition::DatabaseMissing,
        ("57P01" | "57P02" | "57P03", _) => Condition::Restarting,
        ("22021" | "22P05", _) => Condition::Encoding,
        ("54000", Operation::Stream) => Condition::RowTooLong,
        ("XX000", Operation::Stream) if error.message.starts_with(TOO_LONG) => {
            Condition::RowTooLong
        }
        // "unrecognized pgoutput option" has no SQLSTATE of its own.
        ("XX000" | "22023", Operation::StartReplication | Operation::Stream)
            if routine == "parse_output_parameters" =>
        {
            Condition::OptionUnknown
        }
        _ => Condition::Other,
    }
}

pub(crate) fn class(during: Operation, error: &ServerError) -> Class {
    match condition(during, error) {
        Condition::SlotActive | Condition::NoFreeConnection | Condition::Restarting => {
            Class::Transient
        }
        Condition::SlotMissing
        | Condition::SlotLost
        | Condition::SlotExists
        | Condition::NoFreeSlot
        | Condition::WalLevel
        | Condition::PublicationMissing
        | Condition::NoRight
        | Condition::Refused
        | Condition::DatabaseMissing
        | Condition::Encoding
        | Condition::OptionUnknown
        | Condition::RowTooLong
        | Condition::SnapshotMissing => Class::NeedsOperator,
        Condition::Other => class_of(&error.code),
    }
}

/// By SQLSTATE class (`errcodes.txt`): what may pass by itself. Anything unknown needs a look.
#[must_use]
pub fn class_of(code: &str) -> Class {
    match code.get(..2) {
        // A protocol violation: the other side is no server, or not one that speaks as we do.
        Some("08") if code == "08P01" => Class::NeedsOperator,
        // connection exception, transaction rollback, insufficient resources,
        // lock not available and object in use, operator intervention, I/O error
        Some("08" | "40" | "53" | "57" | "58") => Class::Transient,
        Some("55") if matches!(code, "55P03" | "55006") => Class::Transient,
        Some("25") if matches!(code, "25P03" | "25P04") => Class::Transient,
        // data corrupted, index corrupted
        Some("XX") if matches!(code, "XX001" | "XX002") => Class::Corrupt,
        _ => Class::NeedsOperator,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(during: Operation, code: &str, routine: &str, expect: (Condition, Class)) {
        let error = ServerError {
            severity: "ERROR".into(),
            code: code.into(),
            message: "in some language".into(),
            detail: None,
            hint: None,
            routine: Some(routine.into()),
        };
        assert_eq!(
            (condition(during, &error), class(during, &error)),
            expect,
            "{code} during {during:?}"
        );
    }

    #[test]
    fn one_code_several_meanings() {
        use Class::{Corrupt, NeedsOperator, Transient};
        use Operation::{Connect, CreateSlot, Query, StartReplication, Stream};
        check(
            StartReplication,
            "55006",
            "ReplicationSlotAcquire",
            (Condition::SlotActive, Transient),
        );
        check(
            StartReplication,
            "42704",
            "ReplicationSlotAcquire",
            (Condition::SlotMissing, NeedsOperator),
        );
        check(
            Stream,
            "42704",
            "get_publication_oid",
            (Condition::PublicationMissing, NeedsOperator),
        );
        check(
            StartReplication,
            "55000",
            "CreateDecodingContext",
            (Condition::SlotLost, NeedsOperator),
        );
        check(
            CreateSlot,
            "55000",
            "CheckLogicalDecodingRequirements",
            (Condition::WalLevel, NeedsOperator),
        );
        check(
            StartReplication,
            "55000",
            "CheckSlotRequirements",
            (Condition::WalLevel, NeedsOperator),
        );
        check(
            Stream,
            "58P01",
            "XLogReadDetermineTimeline",
            (Condition::SlotLost, NeedsOperator),
        );
        check(Query, "58P01", "", (Condition::Other, Transient));
        check(
            CreateSlot,
            "53400",
            "ReplicationSlotCreate",
            (Condition::NoFreeSlot, NeedsOperator),
        );
        check(
            Connect,
            "53300",
            "InitWalSnd",
            (Condition::NoFreeConnection, Transient),
        );
        check(
            Connect,
            "28P01",
            "auth_failed",
            (Condition::Refused, NeedsOperator),
        );
        check(Stream, "57P01", "", (Condition::Restarting, Transient));
        check(
            Stream,
            "XX000",
            "parse_output_parameters",
            (Condition::OptionUnknown, NeedsOperator),
        );
        check(
            Stream,
            "54000",
            "enlargeStringInfo",
            (Condition::RowTooLong, NeedsOperator),
        );
        check(Stream, "XX001", "", (Condition::Other, Corrupt));
        check(Query, "40P01", "", (Condition::Other, Transient));
        check(Query, "42601", "", (Condition::Other, NeedsOperator));
        check(Query, "", "", (Condition::Other, NeedsOperator));
        check(
            Query,
            "42704",
            "ReplicationSlotAcquire",
            (Condition::SlotMissing, NeedsOperator),
        );
    }
}
