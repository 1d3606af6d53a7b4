//! What a restore tells while it runs and when it is done.

use std::time::Duration;

use lastgood_proto::{BaseId, LineageId, Lsn, PgTimestamp, SourceId};
use serde::{Deserialize, Serialize};

use crate::boundary::Transaction;
use crate::partial::Partial;
use crate::plan::NotCovered;

/// What is being done. In the order of execution.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Checking the target, creating the database.
    Prepare,
    /// Tables, types, functions.
    Schema,
    /// Reading the captured changes, to merge them in with the rows.
    Changes,
    /// The base's rows, with changes merged in.
    Data,
    /// The indexes that replay finds rows by.
    Keys,
    /// The captured transactions.
    Replay,
    /// Other indexes, constraints, triggers, materialized views.
    Constraints,
    /// Sequences, owners, privileges.
    Finish,
    /// From the scratch database into a schema of the existing one.
    Transfer,
}

impl Phase {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Phase::Prepare => "prepare",
            Phase::Schema => "schema",
            Phase::Changes => "changes",
            Phase::Data => "data",
            Phase::Keys => "keys",
            Phase::Replay => "replay",
            Phase::Constraints => "constraints",
            Phase::Finish => "finish",
            Phase::Transfer => "transfer",
        }
    }
}

/// How often it is looked how far something is.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A snapshot of the work, sent whenever something moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub phase: Phase,
    /// Bytes of archives in `data`, of WAL in `changes` and `replay`, of rows in `transfer`; else zero.
    pub done: u64,
    /// As much as `done` will be; zero if the phase cannot tell.
    pub total: u64,
    /// Replayed so far.
    pub transactions: u64,
    pub rows: u64,
    /// End LSN of the last transaction replayed.
    pub through: Option<Lsn>,
}

/// A restore that succeeded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub source: SourceId,
    pub lineage: LineageId,
    pub base: BaseId,
    /// The database that was restored into.
    pub database: String,
    /// The last transaction that is in it; none if the base was all.
    pub reached: Option<Transaction>,
    /// As in the plan: see [`crate::Stop`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<PgTimestamp>,
    /// Replayed on top of the base, in all attempts together.
    pub transactions: u64,
    pub rows: u64,
    /// Sequences that were set from a sample.
    pub sequences: u64,
    pub resumed: bool,
    pub phases: Vec<PhaseTime>,
    /// What is not as it was and does not touch the data: an owner that does not exist here, a
    /// privilege that could not be given.
    pub notes: Vec<String>,
    pub not_covered: Vec<NotCovered>,
    /// Of a partial restore: what came back, and what did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<Partial>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    pub phase: Phase,
    pub milliseconds: u64,
}

impl PhaseTime {
    pub(crate) fn new(phase: Phase, time: Duration) -> Self {
        Self {
            phase,
            milliseconds: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
        }
    }
}
