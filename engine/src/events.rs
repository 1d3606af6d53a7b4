//! What a running source tells: an index of what is in the repository, never a part of it. A
//! consumer that is slow or gone loses events and nothing else.

use lastgood_proto::key::SegmentKey;
use lastgood_proto::manifest::{BaseManifest, EndReason};
use lastgood_proto::{BaseId, LineageId, Lsn, PgTimestamp};
use tokio::sync::mpsc;

/// Something happened.
#[derive(Debug, Clone)]
pub enum Event {
    Status(SourceStatus),
    LineageStarted {
        lineage: LineageId,
        start: Lsn,
    },
    LineageEnded {
        lineage: LineageId,
        end: Lsn,
        reason: EndReason,
        detail: String,
    },
    /// Durable.
    Segment {
        lineage: LineageId,
        key: SegmentKey,
        transactions: u64,
        ndjson_bytes: u64,
        stored_bytes: u64,
    },
    /// One cannot begin yet, told every few seconds.
    BaseWaits {
        reason: String,
    },
    BaseStarted {
        lineage: LineageId,
        base: BaseId,
        /// The schema was altered since the one before.
        follows_change: bool,
    },
    BaseProgress {
        base: BaseId,
        dumped_bytes: u64,
        /// Sum of the table sizes on the source: what a dump is roughly as large as.
        expected_bytes: u64,
    },
    BaseFinished {
        lineage: LineageId,
        manifest: Box<BaseManifest>,
    },
    BaseFailed {
        error: String,
    },
    /// A source that is not captured was looked at.
    Idle {
        /// WAL the server keeps for its slots; none if it cannot be seen.
        retained_bytes: Option<u64>,
        /// What the operator has to know of it.
        trouble: Option<String>,
    },
    /// The slot holds back more than half of the WAL budget.
    WalBudgetHalf {
        retained_bytes: u64,
        budget_bytes: u64,
    },
    /// Tables that should be protected and whose changes are in no segment. Sent at the first look
    /// of a run and when the set changes; empty when all are covered.
    Uncovered {
        tables: Vec<Uncovered>,
    },
}

/// A table whose changes are in no segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uncovered {
    pub schema: String,
    pub table: String,
    pub why: Why,
}

/// Why a table's changes are in no segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It is new or was taken out; the next base takes it in.
    NextBase,
    /// Its UPDATE and DELETE could not say which row they hit. Only in bases.
    NoIdentity,
    /// The server writes no WAL for it. Only in bases.
    Unlogged,
    /// Only its owner may publish it. Only in bases.
    NotOwned,
}

/// The state of a source, about once a second.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceStatus {
    pub state: SourceState,
    /// Why it is degraded.
    pub reason: Option<String>,
    pub lineage: Option<LineageId>,
    pub durable_lsn: Option<Lsn>,
    pub observed_through: Option<PgTimestamp>,
    /// WAL between what is durable and the server's flushed end of WAL.
    pub lag_bytes: u64,
    /// Age of `observed_through` by the server's clock; zero if nothing is missing.
    pub lag_seconds: u64,
    /// WAL the server keeps for the slot.
    pub retained_wal_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceState {
    Starting,
    /// Streaming, and the first base is being dumped: nothing can be restored yet.
    BaseBackup,
    Streaming,
    /// Streaming, but something needs attention: storage refuses, the WAL budget is half used.
    Degraded,
    /// Nothing is read; the slot is watched.
    Paused,
}

/// Where events go. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events(mpsc::Sender<Event>);

impl Events {
    #[must_use]
    pub fn new(sender: mpsc::Sender<Event>) -> Self {
        Self(sender)
    }

    /// Never waits: capture must not stall because somebody reads slowly.
    pub(crate) fn send(&self, event: Event) {
        if self.0.try_send(event).is_err() {
            tracing::debug!("event dropped: its consumer is slow or gone");
        }
    }
}
