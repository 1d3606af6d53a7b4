//! What is known of a source at this moment; in memory only.

use lastgood_engine::{Event, SourceState, SourceStatus, Uncovered, Why};
use lastgood_proto::{LineageId, Lsn, PgTimestamp};
use serde::Serialize;
use utoipa::ToSchema;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = SourceStatus)]
pub(crate) enum State {
    /// Connecting, or catching up with the repository.
    Starting,
    /// Streaming while the first base is dumped: nothing can be restored yet.
    BaseBackup,
    /// All is well.
    Streaming,
    /// Stopped by an operator.
    Paused,
    /// Something is wrong that may pass, or that needs attention soon; see `reason`.
    Degraded,
    /// Not captured until somebody does something; see `reason`.
    Failed,
}

impl State {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            State::Starting => "starting",
            State::BaseBackup => "base_backup",
            State::Streaming => "streaming",
            State::Paused => "paused",
            State::Degraded => "degraded",
            State::Failed => "failed",
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) state: State,
    pub(crate) reason: Option<String>,
    /// What keeps a base from beginning.
    pub(crate) base_waits: Option<String>,
    pub(crate) lineage: Option<LineageId>,
    pub(crate) durable_lsn: Option<Lsn>,
    pub(crate) observed_through: Option<PgTimestamp>,
    pub(crate) lag_bytes: Option<u64>,
    pub(crate) lag_seconds: Option<u64>,
    pub(crate) retained_wal_bytes: Option<u64>,
    /// The slot holds back more than half of the WAL budget, or it cannot be told.
    pub(crate) is_slot_heavy: bool,
    /// Tables whose changes are in no segment.
    pub(crate) uncovered: Vec<Uncovered>,
}

impl Snapshot {
    pub(super) const fn new(state: State) -> Self {
        Self {
            state,
            reason: None,
            base_waits: None,
            lineage: None,
            durable_lsn: None,
            observed_through: None,
            lag_bytes: None,
            lag_seconds: None,
            retained_wal_bytes: None,
            is_slot_heavy: false,
            uncovered: Vec::new(),
        }
    }

    /// A base waits, or does not any more.
    pub(super) fn note_base(&mut self, event: &Event) -> bool {
        let waits = match event {
            Event::BaseWaits { reason } => Some(reason.clone()),
            Event::BaseStarted { .. } | Event::BaseFailed { .. } => None,
            _ => return false,
        };
        self.base_waits = waits;
        true
    }

    /// How many tables wait for a base, and how many are only ever in bases.
    pub(crate) fn uncovered_counts(&self) -> (usize, usize) {
        let waiting = self
            .uncovered
            .iter()
            .filter(|table| table.why == Why::NextBase);
        let waiting = waiting.count();
        (waiting, self.uncovered.len() - waiting)
    }

    /// The attempt ended: positions stay true, lags are no longer known.
    pub(super) fn stop(&mut self, state: State, reason: Option<String>) {
        self.state = state;
        self.reason = reason;
        self.lag_bytes = None;
        self.lag_seconds = None;
        self.retained_wal_bytes = None;
        self.is_slot_heavy = false;
    }

    /// So much of this lineage is durable. A status may be older than the last segment that was told.
    pub(super) fn reach(
        &mut self,
        lineage: LineageId,
        durable: Option<Lsn>,
        observed_through: Option<PgTimestamp>,
    ) {
        if self.lineage != Some(lineage) {
            self.lineage = Some(lineage);
            (self.durable_lsn, self.observed_through) = (None, None);
        }
        self.durable_lsn = self.durable_lsn.max(durable);
        self.observed_through = self.observed_through.max(observed_through);
    }

    pub(super) fn take(&mut self, status: SourceStatus) {
        self.state = match status.state {
            SourceState::Starting => State::Starting,
            SourceState::BaseBackup => State::BaseBackup,
            SourceState::Streaming => State::Streaming,
            SourceState::Degraded => State::Degraded,
            SourceState::Paused => State::Paused,
        };
        // The watch over a paused source finds nothing else to say.
        self.is_slot_heavy = self.state == State::Paused && status.reason.is_some();
        self.reason = status.reason;
        if let Some(lineage) = status.lineage {
            self.reach(lineage, status.durable_lsn, status.observed_through);
        }
        self.lag_bytes = Some(status.lag_bytes);
        self.lag_seconds = Some(status.lag_seconds);
        self.retained_wal_bytes = Some(status.retained_wal_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position(snapshot: &Snapshot) -> (Option<Lsn>, Option<PgTimestamp>) {
        (snapshot.durable_lsn, snapshot.observed_through)
    }

    /// A status is put together while segments are stored, and told after them.
    #[test]
    fn what_is_durable_does_not_go_back_within_a_lineage() {
        let (first, second) = (LineageId::new(1, 1), LineageId::new(2, 1));
        let (lsn, time) = (
            |at| Some(Lsn::new(at)),
            |at| Some(PgTimestamp::from_micros(at)),
        );
        let mut snapshot = Snapshot::new(State::Streaming);
        snapshot.reach(first, lsn(20), time(2));
        snapshot.reach(first, lsn(10), None);
        assert_eq!(position(&snapshot), (lsn(20), time(2)));
        snapshot.reach(first, lsn(30), time(1));
        assert_eq!(position(&snapshot), (lsn(30), time(2)));
        snapshot.reach(second, lsn(5), None);
        assert_eq!(position(&snapshot), (lsn(5), None));
    }
}
