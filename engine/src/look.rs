//! What a worker knows of the source's shape, and how far it has looked.

use lastgood_proto::Lsn;
use lastgood_proto::manifest::{ShapeFile, Version1};
use tokio::time::Instant;

use crate::marks::Mark;
use crate::shape::Shape;

/// A segment is cut only when somebody has looked past its end.
pub(crate) struct Look {
    /// As this worker saw it last.
    shape: Option<Shape>,
    /// Of the shape that was seen last; survives a restart as the newest shape file.
    fingerprint: Option<String>,
    /// Up to here that shape, and no other, was seen; survives a restart as the start of the last
    /// segment, which may have been cut blind.
    pub(crate) holds_to: Lsn,
    /// The position of the newest look.
    pub(crate) newest: Lsn,
    /// Seen and not on record yet.
    pub(crate) changes: Vec<ShapeFile>,
    /// A cut is due and waits for a look.
    pub(crate) waited_for: Option<Instant>,
    /// The newest look failed.
    pub(crate) failed: bool,
}

impl Look {
    pub(crate) fn new(fingerprint: Option<String>, holds_to: Lsn, durable: Lsn) -> Self {
        Self {
            shape: None,
            fingerprint,
            holds_to,
            newest: durable,
            changes: Vec::new(),
            waited_for: None,
            failed: false,
        }
    }

    /// Takes a look in. Another shape than before has to be on record before the segment it may
    /// fall into; its fingerprint is returned.
    pub(crate) fn take(&mut self, mark: &Mark) -> Option<String> {
        let fingerprint = mark.shape.fingerprint();
        let changed = self.fingerprint.as_ref() != Some(&fingerprint);
        if changed {
            let detail = match (&self.shape, &self.fingerprint) {
                (Some(before), _) => mark.shape.difference(before),
                (None, Some(_)) => "something changed while nobody looked".to_owned(),
                (None, None) => "first seen".to_owned(),
            };
            tracing::info!(detail, lsn = %mark.lsn, "the shape of the source is another");
            self.changes.push(ShapeFile {
                v: Version1,
                from: self.holds_to,
                to: mark.lsn,
                fingerprint: fingerprint.clone(),
                detail,
                time: mark.clock,
            });
            self.fingerprint = Some(fingerprint.clone());
        }
        self.shape = Some(mark.shape.clone());
        self.newest = self.newest.max(mark.lsn);
        self.failed = false;
        changed.then_some(fingerprint)
    }
}
