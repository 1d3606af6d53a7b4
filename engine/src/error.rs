//! What can go wrong between PostgreSQL and the objects, one variant for each thing a caller or an
//! operator does differently.

use std::borrow::Cow;

use lastgood_pg::Condition;
use lastgood_proto::manifest::EndReason;
use lastgood_proto::segment::ReadError;
use lastgood_proto::{Class, LineageId, Lsn, PgTimestamp};

use crate::settings::SettingsError;

/// An error of the engine. Row values never stand in one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Pg(#[from] lastgood_pg::Error),
    #[error(transparent)]
    Store(#[from] lastgood_store::Error),
    #[error("an SQL command on the source failed while {doing}")]
    Sql {
        doing: Cow<'static, str>,
        #[source]
        source: lastgood_pg::Error,
    },
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The walsender sent what the protocol does not allow.
    #[error("the replication stream is not understood: {0}")]
    Stream(String),
    #[error("the spool in {folder} cannot be written")]
    Spool {
        folder: String,
        #[source]
        source: std::io::Error,
    },
    /// A keepalive asked for a confirmation and it could not be given in time. A server that shuts
    /// down waits for it, so the connection is closed; the slot keeps the WAL.
    #[error(
        "the server asked for confirmation past {durable} and storage did not take the segment in \
         time; the connection was closed so that the server need not wait"
    )]
    NotConfirmed { durable: Lsn },
    /// The repository holds what was not there when it was listed: another service was at work.
    #[error("lineage {lineage} grew past {listed} after it was listed: another writer was at work")]
    Overtaken { lineage: LineageId, listed: Lsn },
    /// Another service is the writer now; see [`crate::Writer`].
    #[error(
        "another lastgood, on host {host}, took this source over at {time} (writer {number}): here \
         nothing is captured and nothing is deleted any more. If it was not meant to, stop it there, \
         then resume the source here, which takes it back"
    )]
    TakenOver {
        number: u32,
        host: String,
        time: PgTimestamp,
    },
    #[error("what this service remembers of its own writing cannot be read or written: {0}")]
    Memory(String),
    /// Never a gap: whoever reads may be healthy.
    #[error(
        "slot {slot} is being read by process {pid}: another lastgood captures this source, or the \
         server has not noticed that an earlier one is gone; stop the other one, or wait"
    )]
    Busy { slot: String, pid: i32 },
    /// Something was missed; the lineage ends at the next start.
    #[error("the lineage cannot go on: {detail}")]
    Gap { reason: EndReason, detail: String },
    /// What the server sends below the durable LSN is not what is stored.
    #[error(
        "the source's storage was set back: {detail}; its history and the stored one agree up to \
         {agreed}, {durable} is durable"
    )]
    SetBack {
        agreed: Lsn,
        durable: Lsn,
        detail: String,
    },
    #[error("the segment {path} cannot be read")]
    Segment {
        path: String,
        #[source]
        source: ReadError,
    },
    /// The lineage ended and a new one waits to be asked for.
    #[error("the lineage ended ({reason:?}: {detail}); resume the source to begin a new one")]
    Ended { reason: EndReason, detail: String },
    /// The slot stands before a row that this server can never send; so does every later attempt.
    #[error(
        "the server cannot send a changed row, most likely because its values as text are longer than \
         1 GB (a bytea doubles in length; REPLICA IDENTITY FULL sends the old row as well). Damaged \
         data and bugs of old minor releases end in the same error, so first upgrade the server to \
         its newest minor release: capture tries again by itself. If it stays so, make the value \
         smaller in its table, then pause the source without its slot (--slot drop) and resume it, \
         which begins a new lineage; what was committed in between is not captured"
    )]
    RowTooLong(#[source] lastgood_pg::Error),
    /// The walsender ended and the connection did not: whatever is between swallowed the farewell.
    #[error(
        "the server reads slot {slot} for nobody any more, and the connection to it is silent: it is \
         given up"
    )]
    Deserted { slot: String },
    /// The server closed the stream without an error.
    #[error("the server ended the replication stream")]
    StreamEnded,
    /// The tables changed between the base's snapshot and the locks that hold them still.
    #[error("tables were altered or truncated while the base was starting")]
    CatalogMoved,
    /// A dump gives up early, so that no transaction of the source has to.
    #[error("a table is locked by somebody else, so a base cannot begin")]
    TablesLocked,
    /// A slot being made holds WAL back, and so long as somebody writes it is not finished.
    #[error(
        "no slot could be made: {held}, while {waited_for}; end that transaction, then try again"
    )]
    SlotWait { held: String, waited_for: String },
    #[error("the source cannot be protected as it is: {0}")]
    Unfit(String),
    #[error("\"{0}\" is no name of a restore point: 1 to 64 of A-Z a-z 0-9 . _ -")]
    PointName(String),
    #[error("the source is not being captured: it has no open lineage; resume it to begin one")]
    NoLineage,
    /// A task of ours, or a pipe between us and a tool.
    #[error("internal: {0}")]
    Task(String),
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    pub(crate) fn sql(
        doing: impl Into<Cow<'static, str>>,
    ) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |error| Self::Sql {
            doing: doing.into(),
            source: error.into(),
        }
    }

    /// What the server meant, if it is the server that refused.
    #[must_use]
    pub fn condition(&self) -> Condition {
        match self {
            Self::Pg(error) | Self::RowTooLong(error) | Self::Sql { source: error, .. } => {
                error.condition()
            }
            _ => Condition::Other,
        }
    }

    /// What it asks for.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Pg(error) => error.class(),
            Self::Store(error) => error.class(),
            Self::Sql { source, .. } => source.class(),
            Self::Segment { source, .. } => source.class(),
            Self::Stream(_) => Class::Corrupt,
            Self::Settings(_)
            | Self::Ended { .. }
            | Self::Unfit(_)
            | Self::RowTooLong(_)
            | Self::TakenOver { .. }
            | Self::SlotWait { .. }
            | Self::PointName(_)
            | Self::NoLineage => Class::NeedsOperator,
            Self::Spool { source, .. } => match source.kind() {
                std::io::ErrorKind::Interrupted => Class::Transient,
                _ => Class::NeedsOperator,
            },
            Self::NotConfirmed { .. }
            | Self::Overtaken { .. }
            | Self::Memory(_)
            | Self::Busy { .. }
            | Self::Gap { .. }
            | Self::SetBack { .. }
            | Self::Task(_)
            | Self::StreamEnded
            | Self::Deserted { .. }
            | Self::CatalogMoved
            | Self::TablesLocked
            | Self::Cancelled => Class::Transient,
        }
    }
}

/// An error and its causes in one line, for events and answers.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let more = inner.to_string();
        // Some errors repeat their cause.
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = inner.source();
    }
    text
}
