//! Kept changes → batches: in what portions they are applied.
//!
//! A portion ends with a source transaction where it can, and then it is one target transaction. A
//! source transaction that is larger than a portion goes in several, and only the last commits. So
//! the target never shows part of a source transaction, and memory does not grow with one.

use std::collections::BTreeMap;
use std::sync::Arc;

use lastgood_proto::Oid;
use lastgood_proto::segment::{Record, RowBuffer, RowPlace};

use crate::Error;
use crate::apply::{Batch, Mark, Replayed, Truncate};
use crate::changes::{At, Change, Changes, Reached, Step};
use crate::rows::Rows;

/// A portion ends with the transaction in which it gets this many changes ...
const ROWS: u64 = 50_000;
/// ... or this much COPY text.
const BYTES: usize = 16 << 20;
/// Within a transaction it ends at this many times as much.
const WITHIN: usize = 2;

pub(crate) struct Batcher {
    changes: Changes,
    /// Of the segment being read.
    encoding: Arc<str>,
    portion: Portion,
    /// What was brought in, as it was last sent.
    sent: Replayed,
}

/// Changes that wait to be sent.
#[derive(Default)]
struct Portion {
    pending: BTreeMap<Oid, Rows>,
    index: Vec<Mark>,
    /// Of the next change, within the whole replay.
    number: u64,
    rows: u64,
    bytes: usize,
}

impl Batcher {
    pub(crate) fn new(changes: Changes) -> Self {
        Self {
            sent: changes.replayed(),
            changes,
            encoding: Arc::from("UTF8"),
            portion: Portion::default(),
        }
    }

    /// The last transaction of the range that was read.
    pub(crate) const fn reached(&self) -> Option<Reached> {
        self.changes.reached()
    }

    /// A segment begins whose values are in this encoding; gives a batch if something in another
    /// one is pending.
    pub(crate) fn segment(&mut self, encoding: &str) -> Option<Batch> {
        let changed = *self.encoding != *encoding;
        let batch = (changed && !self.portion.pending.is_empty()).then(|| self.take());
        if changed {
            self.encoding = Arc::from(encoding);
        }
        batch
    }

    /// Takes a record; gives a batch when a portion is full.
    ///
    /// # Errors
    /// If a change fits no table, or cannot be a change.
    pub(crate) fn feed(
        &mut self,
        record: &Record<RowPlace>,
        rows: &RowBuffer,
    ) -> Result<Option<Batch>, Error> {
        match self.changes.step(record, rows)? {
            Step::Nothing | Step::Over => Ok(None),
            // What is pending was read by the old description.
            Step::Described(rel) => {
                let is_pending = self.portion.pending.contains_key(&rel);
                Ok(is_pending.then(|| self.take()))
            }
            Step::Rearranged => {
                let is_pending = !self.portion.pending.is_empty();
                Ok(is_pending.then(|| self.take()))
            }
            Step::Row(at, binding, change) => {
                let pending = &mut self.portion.pending;
                let rows = pending
                    .entry(binding.rel)
                    .or_insert_with(|| Rows::new(Arc::clone(binding)));
                let (number, before) = (self.portion.number, rows.bytes());
                let added = match change {
                    Change::Insert { new } => rows.insert(number, new),
                    Change::Update { old, new } => rows.update(number, old, new),
                    Change::Delete { old } => rows.delete(number, old),
                };
                added.map_err(|why| at.unusable(&rows.binding, why))?;
                self.portion.bytes += rows.bytes() - before;
                self.portion.mark(at);
                self.portion.number += 1;
                self.portion.rows += 1;
                Ok(self.portion.is_full(WITHIN).then(|| self.take()))
            }
            Step::Truncate {
                at,
                tables,
                restart_identity,
            } => {
                self.portion.mark(at);
                let mut batch = self.take();
                batch.truncate = Some(Truncate {
                    tables,
                    restart_identity,
                });
                Ok(Some(batch))
            }
            Step::Commit(_) if self.portion.is_full(1) => Ok(self.finish()),
            Step::Commit(_) => Ok(None),
        }
    }

    /// What is left; none if nothing is.
    pub(crate) fn finish(&mut self) -> Option<Batch> {
        let replayed = self.changes.replayed();
        (replayed != self.sent).then(|| {
            let mut batch = self.take();
            batch.commit = Some(replayed);
            self.sent = replayed;
            batch
        })
    }

    fn take(&mut self) -> Batch {
        let number = self.portion.number;
        let portion = std::mem::take(&mut self.portion);
        self.portion.number = number;
        Batch {
            tables: portion.pending.into_values().collect(),
            encoding: Arc::clone(&self.encoding),
            index: portion.index,
            truncate: None,
            commit: None,
        }
    }
}

impl Portion {
    const fn is_full(&self, times: usize) -> bool {
        self.rows >= ROWS * times as u64 || self.bytes >= BYTES * times
    }

    /// What comes next is part of this transaction.
    fn mark(&mut self, at: At) {
        if self.index.last().map(|mark| mark.commit_lsn) != Some(at.commit_lsn) {
            self.index.push(Mark {
                first_number: self.number,
                xid: at.xid,
                commit_lsn: at.commit_lsn,
            });
        }
    }
}
