//! How far a restore is, and what came of it, as they are answered.

use lastgood_restore::{Progress, Report};
use serde::Serialize;
use utoipa::ToSchema;

use super::plan::{NotCoveredView, PartialView, TransactionView};

/// How far a restore is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RestoreProgress)]
pub(crate) struct ProgressView {
    /// `prepare`, `schema`, `changes`, `data`, `keys`, `replay`, `constraints`, `finish`; under a schema of an
    /// existing database, `transfer`.
    pub(crate) phase: &'static str,
    /// Bytes of archives in `data`, of WAL in `changes` and `replay`, of rows in `transfer`.
    done: u64,
    /// As much as `done` will be; 0 if the phase cannot tell.
    total: u64,
    /// Replayed so far.
    transactions: u64,
    rows: u64,
    /// End LSN of the last transaction that was replayed.
    through: Option<String>,
}

/// What came of a restore.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = RestoreReport)]
pub(crate) struct ReportView {
    source: String,
    lineage: String,
    base: String,
    /// The database that was restored into.
    database: String,
    /// The last transaction that is in it; null if the base was all.
    reached: Option<TransactionView>,
    /// As in the plan.
    not_before: Option<String>,
    /// Replayed on top of the base.
    transactions: u64,
    rows: u64,
    /// Sequences that were set from a sample.
    sequences: u64,
    /// Whether it went on with an earlier attempt.
    resumed: bool,
    phases: Vec<PhaseTimeView>,
    /// What is not as it was and does not touch the data.
    notes: Vec<String>,
    not_covered: Vec<NotCoveredView>,
    /// Which tables came back; null if all.
    partial: Option<PartialView>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = PhaseTime)]
struct PhaseTimeView {
    phase: &'static str,
    milliseconds: u64,
}

impl From<Progress> for ProgressView {
    fn from(progress: Progress) -> Self {
        Self {
            phase: progress.phase.as_str(),
            done: progress.done,
            total: progress.total,
            transactions: progress.transactions,
            rows: progress.rows,
            through: progress.through.map(|lsn| lsn.to_string()),
        }
    }
}

impl From<&Report> for ReportView {
    fn from(report: &Report) -> Self {
        let phases = report.phases.iter().map(|time| PhaseTimeView {
            phase: time.phase.as_str(),
            milliseconds: time.milliseconds,
        });
        Self {
            source: report.source.to_string(),
            lineage: report.lineage.to_string(),
            base: report.base.to_string(),
            database: report.database.clone(),
            reached: report.reached.as_ref().map(Into::into),
            not_before: report.not_before.map(|time| time.to_string()),
            transactions: report.transactions,
            rows: report.rows,
            sequences: report.sequences,
            resumed: report.resumed,
            phases: phases.collect(),
            notes: report.notes.clone(),
            not_covered: report.not_covered.iter().map(Into::into).collect(),
            partial: report.partial.as_ref().map(Into::into),
        }
    }
}
