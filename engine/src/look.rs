//! What a worker knows of the source's shape, and how far it has looked.

use std::collections::VecDeque;
use std::time::Duration;

use lastgood_proto::key::ShapeKey;
use lastgood_proto::manifest::{ShapeFile, Version1};
use lastgood_proto::{Lsn, Xid};
use tokio::time::Instant;

use crate::ddl::Ddl;
use crate::marks::Mark;
use crate::placing::Placing;
use crate::shape::{Fingerprints, Shape};

/// A segment is cut only when somebody has looked past its end.
pub(crate) struct Look {
    /// As this worker saw it last.
    shape: Option<Shape>,
    /// Of what was seen last; survives a restart as the newest shape file.
    fingerprints: Option<Fingerprints>,
    /// Up to here that shape, and no other, was seen; survives a restart as the start of the last
    /// segment, which may have been cut blind.
    pub(crate) holds_to: Lsn,
    /// The position of the newest look.
    pub(crate) newest: Lsn,
    /// Seen and not on record yet.
    pub(crate) changes: Vec<ShapeFile>,
    pub(crate) placing: Placing,
    /// Of definitions alone.
    notes: Notes,
    /// Transactions with DDL that have come and that no look has seen, and whether they have told of it.
    unseen: Vec<(Xid, bool)>,
    /// Where the last change was seen.
    last_change: Lsn,
    /// A cut is due and waits for a look.
    pub(crate) waited_for: Option<Instant>,
    /// The newest look failed.
    pub(crate) failed: bool,
}

impl Look {
    pub(crate) fn new(
        fingerprints: Option<Fingerprints>,
        placing: Placing,
        holds_to: Lsn,
        durable: Lsn,
    ) -> Self {
        Self {
            shape: None,
            fingerprints,
            placing,
            notes: Notes::default(),
            unseen: Vec::new(),
            last_change: Lsn::INVALID,
            holds_to,
            newest: durable,
            changes: Vec::new(),
            waited_for: None,
            failed: false,
        }
    }

    /// A transaction with DDL has come.
    pub(crate) fn committed(&mut self, ddl: Ddl) {
        self.unseen.push((ddl.xid, ddl.what.told));
        if ddl.what.untold {
            self.placing.untold(ddl.lsn);
        }
        if ddl.what.told {
            self.placing.committed(ddl);
        }
    }

    /// Whether somebody has looked past `end`, which is as far as anything has come, and at all of that.
    pub(crate) fn has_seen(&self, end: Lsn) -> bool {
        self.newest >= end && !self.is_behind()
    }

    /// Whether something that has come shows to no look yet.
    pub(crate) fn is_behind(&self) -> bool {
        !self.unseen.is_empty()
    }

    /// Takes a look in. Another shape than before has to be on record before the segment it may
    /// fall into; its fingerprints are returned.
    pub(crate) fn take(&mut self, mark: &Mark) -> Option<Fingerprints> {
        let fingerprints = mark.shape.fingerprints();
        let changed = match &self.fingerprints {
            Some(before) if before.shape == fingerprints.shape => {
                before.is_redefined(&fingerprints) && self.notes.may()
            }
            Some(_) | None => true,
        };
        self.placing.looked(mark.ddl_trigger.as_ref(), mark.seen_by);
        let is_hidden = |told| told && !mark.is_whole;
        self.unseen
            .retain(|(xid, told)| mark.running.has(*xid) || is_hidden(*told));
        if changed {
            let detail = match (&self.shape, &self.fingerprints) {
                (Some(before), _) => mark.shape.difference(before),
                (None, Some(_)) => "something changed while nobody looked".to_owned(),
                (None, None) => "first seen".to_owned(),
            };
            tracing::info!(detail, lsn = %mark.seen_by, "the shape of the source is another");
            // A commit that is in the WAL already shows a moment later: two looks at one position may see two changes.
            let next = self.last_change.behind();
            let (from, to) = (self.holds_to, mark.seen_by.max(next));
            self.last_change = to;
            self.changes.push(ShapeFile {
                v: Version1,
                from,
                to,
                fingerprint: fingerprints.shape.clone(),
                definitions: fingerprints.definitions.clone(),
                ddl_trigger: mark.ddl_trigger.clone(),
                detail,
                time: mark.seen_at,
            });
            if let Some(before) = &self.shape {
                let differing = mark.shape.differing(before);
                self.placing.changed(ShapeKey { from, to }, differing);
            }
            self.fingerprints = Some(fingerprints.clone());
        }
        if changed || self.shape.is_none() {
            self.shape = Some(mark.shape.clone());
        }
        self.newest = self.newest.max(mark.lsn);
        self.failed = false;
        changed.then_some(fingerprints)
    }
}

/// Changes that rows do not depend on are put on record, but not without end: there are jobs that repeat their
/// GRANTs every few seconds.
#[derive(Default)]
struct Notes {
    at: VecDeque<Instant>,
}

impl Notes {
    /// So many in a row, and then one after another.
    const BURST: usize = 10;
    const BETWEEN: Duration = Duration::from_secs(60);
    const AFTER: Duration = Duration::from_secs(600);

    fn may(&mut self) -> bool {
        let now = Instant::now();
        while self
            .at
            .pop_front_if(|at| now - *at >= Self::AFTER)
            .is_some()
        {}
        let is_due = self.at.back().is_none_or(|at| now - *at >= Self::BETWEEN);
        let may = self.at.len() < Self::BURST || is_due;
        if may {
            self.at.push_back(now);
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::marks::Running;
    use lastgood_proto::PgTimestamp;

    #[test]
    fn two_changes_at_one_position_are_two() {
        let at = Lsn::new(20);
        let mark = |shape: &str| Mark {
            lsn: at,
            clock: PgTimestamp::from_micros(0),
            until: PgTimestamp::from_micros(0),
            sequences: Vec::new(),
            shape: Shape::named(shape),
            seen_by: at,
            seen_at: PgTimestamp::from_micros(0),
            is_whole: true,
            running: Running::default(),
            ddl_trigger: None,
        };
        let mut look = Look::new(None, Placing::default(), Lsn::new(10), Lsn::new(10));
        for shape in ["a", "b", "b"] {
            look.take(&mark(shape));
        }
        let ends: Vec<u64> = look
            .changes
            .iter()
            .map(|change| change.to.as_u64())
            .collect();
        assert_eq!(ends, [20, 21]);
    }
}
