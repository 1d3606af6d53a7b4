//! Records → batches: which transactions are replayed, and in what portions.
//!
//! A portion ends with a source transaction where it can, and then it is one target transaction. A
//! source transaction that is larger than a portion goes in several, and only the last commits. So
//! the target never shows part of a source transaction, and memory does not grow with one.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use lastgood_proto::segment::{Record, RelationRecord};
use lastgood_proto::{Lsn, Oid, Xid};

use crate::Error;
use crate::apply::{Batch, Mark, Replayed, Truncate};
use crate::binding::{Binding, Mismatch};
use crate::catalog::Tables;
use crate::rows::{Rows, Unusable};

/// A portion ends with the transaction in which it gets this many changes ...
const ROWS: u64 = 50_000;
/// ... or this much COPY text.
const BYTES: usize = 16 << 20;
/// Within a transaction it ends at this many times as much.
const WITHIN: usize = 2;

/// Which transactions count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    /// The base's consistent point: what committed below is in the base.
    pub(crate) from: Lsn,
    /// Commit LSN of the last transaction kept; none keeps nothing.
    pub(crate) last_kept: Option<Lsn>,
    /// What an earlier attempt has brought in already.
    pub(crate) replayed: Replayed,
}

/// The last transaction within the range, replayed now or before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) xid: Xid,
    pub(crate) commit_lsn: Lsn,
}

pub(crate) struct Batcher {
    range: Range,
    tables: Arc<Tables>,
    /// What the base calls each table: another OID of the same name is another table.
    base: Arc<HashMap<(String, String), Oid>>,
    /// The only tables to be replayed, if not all.
    only: Option<HashSet<(String, String)>>,
    /// Of the segment being read.
    encoding: Arc<str>,
    relations: HashMap<Oid, Described>,
    /// Relations of tables that are not replayed.
    skipped: HashSet<Oid>,
    pending: BTreeMap<Oid, Rows>,
    index: Vec<Mark>,
    number: u64,
    rows: u64,
    bytes: usize,
    replayed: Replayed,
    /// `replayed` as it was last sent.
    sent: Replayed,
    current: Current,
    reached: Option<Reached>,
}

struct Described {
    record: RelationRecord,
    binding: Result<Arc<Binding>, Mismatch>,
}

/// The transaction being read.
#[derive(Debug, Clone, Copy)]
enum Current {
    None,
    Skipped,
    Replayed { xid: Xid, commit_lsn: Lsn },
}

impl Batcher {
    pub(crate) fn new(
        range: Range,
        tables: Arc<Tables>,
        base: Arc<HashMap<(String, String), Oid>>,
        only: Option<HashSet<(String, String)>>,
    ) -> Self {
        Self {
            range,
            tables,
            base,
            only,
            encoding: Arc::from("UTF8"),
            relations: HashMap::new(),
            skipped: HashSet::new(),
            pending: BTreeMap::new(),
            index: Vec::new(),
            number: 0,
            rows: 0,
            bytes: 0,
            replayed: range.replayed,
            sent: range.replayed,
            current: Current::None,
            reached: None,
        }
    }

    /// The last transaction of the range that was read.
    pub(crate) const fn reached(&self) -> Option<Reached> {
        self.reached
    }

    /// A segment begins whose values are in this encoding; gives a batch if something in another
    /// one is pending.
    pub(crate) fn segment(&mut self, encoding: &str) -> Option<Batch> {
        let changed = *self.encoding != *encoding;
        let batch = (changed && !self.pending.is_empty()).then(|| self.take());
        if changed {
            self.encoding = Arc::from(encoding);
        }
        batch
    }

    /// Takes a record; gives a batch when a portion is full.
    ///
    /// # Errors
    /// If a change fits no table, or cannot be a change.
    pub(crate) fn feed(&mut self, record: Record) -> Result<Option<Batch>, Error> {
        match record {
            Record::Begin { xid, lsn, .. } => self.begin(xid, lsn),
            Record::Commit { end, .. } => return Ok(self.commit(end)),
            Record::Relation(relation) => return Ok(self.relation(relation)),
            Record::Insert { rel, new } => {
                return self.change(rel, |number, rows| rows.insert(number, &new));
            }
            Record::Update { rel, old, new } => {
                return self.change(rel, |number, rows| rows.update(number, &old, &new));
            }
            Record::Delete { rel, old } => {
                return self.change(rel, |number, rows| rows.delete(number, &old));
            }
            Record::Truncate {
                rels,
                restart_identity,
                ..
            } => return self.truncate(&rels, restart_identity),
            // Sequences are set at the end, messages change no row.
            Record::Sequences { .. } | Record::Message(_) => {}
        }
        Ok(None)
    }

    /// What is left; none if nothing is.
    pub(crate) fn finish(&mut self) -> Option<Batch> {
        (self.replayed != self.sent).then(|| {
            let mut batch = self.take();
            batch.commit = Some(self.replayed);
            self.sent = self.replayed;
            batch
        })
    }

    fn begin(&mut self, xid: Xid, commit_lsn: Lsn) {
        let kept = self.range.last_kept.is_some_and(|last| commit_lsn <= last);
        self.current = Current::Skipped;
        if kept && commit_lsn >= self.range.from {
            self.reached = Some(Reached { xid, commit_lsn });
            if commit_lsn >= self.range.replayed.through {
                self.current = Current::Replayed { xid, commit_lsn };
            }
        }
    }

    fn commit(&mut self, end: Lsn) -> Option<Batch> {
        let current = std::mem::replace(&mut self.current, Current::None);
        if matches!(current, Current::Replayed { .. }) {
            self.replayed.through = end;
            self.replayed.transactions += 1;
            if self.is_full(1) {
                return self.finish();
            }
        }
        None
    }

    /// A relation that comes again as it was keeps its binding, and so its staging table.
    fn relation(&mut self, record: RelationRecord) -> Option<Batch> {
        if let Some(only) = &self.only {
            if !only.contains(&(record.schema.clone(), record.table.clone())) {
                self.skipped.insert(record.rel);
                return None;
            }
            self.skipped.remove(&record.rel);
        }
        let known = self.relations.get(&record.rel);
        if known.is_some_and(|known| known.record == record) {
            return None;
        }
        let binding = self.bind(&record).map(Arc::new);
        // What is pending was read by the old description.
        let batch = self.pending.contains_key(&record.rel).then(|| self.take());
        self.relations
            .insert(record.rel, Described { record, binding });
        batch
    }

    fn bind(&self, record: &RelationRecord) -> Result<Binding, Mismatch> {
        let name = (record.schema.clone(), record.table.clone());
        match self.base.get(&name) {
            Some(oid) if *oid == record.rel => {}
            Some(_) => {
                return Err(Mismatch("it was dropped and made anew".to_owned()));
            }
            None => return Err(Mismatch("it is not in the base".to_owned())),
        }
        match self.tables.get(&name) {
            Some(table) => Binding::new(record, table),
            None => Err(Mismatch("it is not in the target".to_owned())),
        }
    }

    fn bound(&self, rel: Oid) -> Result<Arc<Binding>, Error> {
        let Current::Replayed { xid, commit_lsn } = self.current else {
            return Err(Error::UnexpectedRecord);
        };
        let described = self.relations.get(&rel).ok_or(Error::UnexpectedRecord)?;
        match &described.binding {
            Ok(binding) => Ok(Arc::clone(binding)),
            Err(Mismatch(why)) => Err(Error::SchemaChanged {
                table: crate::sql::qualified(&described.record.schema, &described.record.table),
                xid,
                commit_lsn,
                why: why.clone(),
            }),
        }
    }

    fn change(
        &mut self,
        rel: Oid,
        add: impl FnOnce(u64, &mut Rows) -> Result<(), Unusable>,
    ) -> Result<Option<Batch>, Error> {
        let Current::Replayed { xid, commit_lsn } = self.current else {
            return Ok(None);
        };
        if self.skipped.contains(&rel) {
            return Ok(None);
        }
        if !self.pending.contains_key(&rel) {
            let binding = self.bound(rel)?;
            self.pending.insert(rel, Rows::new(binding));
        }
        let Some(rows) = self.pending.get_mut(&rel) else {
            return Err(Error::UnexpectedRecord);
        };
        let number = self.number;
        if self.index.last().map(|mark| mark.commit_lsn) != Some(commit_lsn) {
            self.index.push(Mark {
                first_number: number,
                xid,
                commit_lsn,
            });
        }
        let before = rows.bytes();
        let added = add(number, rows);
        added.map_err(|Unusable(why)| Error::UnusableChange {
            table: rows.binding.table.sql(),
            xid,
            commit_lsn,
            why,
        })?;
        self.bytes += rows.bytes() - before;
        self.number += 1;
        self.rows += 1;
        self.replayed.rows += 1;
        Ok(self.is_full(WITHIN).then(|| self.take()))
    }

    fn truncate(&mut self, rels: &[Oid], restart_identity: bool) -> Result<Option<Batch>, Error> {
        let Current::Replayed { xid, commit_lsn } = self.current else {
            return Ok(None);
        };
        // All that were emptied together are named, whatever CASCADE found: each stands for itself.
        let rels = rels.iter().filter(|rel| !self.skipped.contains(rel));
        let tables: Result<Vec<_>, Error> = rels.map(|rel| self.bound(*rel)).collect();
        let tables = tables?;
        if tables.is_empty() {
            return Ok(None);
        }
        self.index.push(Mark {
            first_number: self.number,
            xid,
            commit_lsn,
        });
        let mut batch = self.take();
        batch.truncate = Some(Truncate {
            tables,
            restart_identity,
        });
        Ok(Some(batch))
    }

    const fn is_full(&self, times: usize) -> bool {
        self.rows >= ROWS * times as u64 || self.bytes >= BYTES * times
    }

    fn take(&mut self) -> Batch {
        (self.rows, self.bytes) = (0, 0);
        Batch {
            tables: std::mem::take(&mut self.pending).into_values().collect(),
            encoding: Arc::clone(&self.encoding),
            index: std::mem::take(&mut self.index),
            truncate: None,
            commit: None,
        }
    }
}
