//! Records → the changes that a restore keeps: which transactions count, of which tables, and how each
//! relation of the stream is bound to its table in the target.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lastgood_proto::segment::{Cell, Old, Record, RelationRecord};
use lastgood_proto::{Lsn, Oid, Xid};

use crate::Error;
use crate::apply::Replayed;
use crate::binding::{Binding, Mismatch};
use crate::catalog::Tables;
use crate::rows::Unusable;

/// Which transactions count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    /// The base's consistent point: what committed below is in the base.
    pub(crate) from: Lsn,
    /// Commit LSN of the last transaction kept; none keeps nothing.
    pub(crate) last_kept: Option<Lsn>,
    /// What was brought in already.
    pub(crate) replayed: Replayed,
}

/// The last transaction within the range, brought in now or before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reached {
    pub(crate) xid: Xid,
    pub(crate) commit_lsn: Lsn,
}

/// The transaction that a change is part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct At {
    pub(crate) xid: Xid,
    pub(crate) commit_lsn: Lsn,
}

impl At {
    /// The error of a change that cannot be one.
    pub(crate) fn unusable(self, binding: &Binding, Unusable(why): Unusable) -> Error {
        Error::UnusableChange {
            table: binding.table.sql(),
            xid: self.xid,
            commit_lsn: self.commit_lsn,
            why,
        }
    }
}

/// What became of one row.
#[derive(Debug)]
pub(crate) enum Change {
    Insert { new: Vec<Cell> },
    Update { old: Old, new: Vec<Cell> },
    Delete { old: Old },
}

/// What a record is to a restore.
pub(crate) enum Step<'a> {
    Nothing,
    /// A relation is described, and not as before.
    Described(Oid),
    Row(At, &'a Arc<Binding>, Change),
    /// Emptied together: all that are named, whatever CASCADE found, each stands for itself.
    Truncate {
        at: At,
        tables: Vec<Arc<Binding>>,
        restart_identity: bool,
    },
    /// A transaction is whole; [`Changes::replayed`] has it.
    Commit(At),
}

pub(crate) struct Changes {
    range: Range,
    tables: Arc<Tables>,
    /// What the base calls each table: another OID of the same name is another table.
    base: Arc<HashMap<(String, String), Oid>>,
    /// The only tables that count, if not all.
    only: Option<HashSet<(String, String)>>,
    relations: HashMap<Oid, Described>,
    /// Relations of tables that do not count.
    skipped: HashSet<Oid>,
    replayed: Replayed,
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
    Kept(At),
}

impl Changes {
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
            relations: HashMap::new(),
            skipped: HashSet::new(),
            replayed: range.replayed,
            current: Current::None,
            reached: None,
        }
    }

    /// The last transaction of the range that was read.
    pub(crate) const fn reached(&self) -> Option<Reached> {
        self.reached
    }

    /// All that was brought in, with the whole transactions read so far.
    pub(crate) const fn replayed(&self) -> Replayed {
        self.replayed
    }

    /// # Errors
    /// If a change fits no table.
    pub(crate) fn step(&mut self, record: Record) -> Result<Step<'_>, Error> {
        let (rel, change) = match record {
            Record::Begin { xid, lsn, .. } => {
                self.begin(xid, lsn);
                return Ok(Step::Nothing);
            }
            Record::Commit { end, .. } => return Ok(self.commit(end)),
            Record::Relation(relation) => return Ok(self.relation(relation)),
            Record::Truncate {
                rels,
                restart_identity,
                ..
            } => return self.truncate(&rels, restart_identity),
            // Sequences are set at the end, messages change no row.
            Record::Sequences { .. } | Record::Message(_) => return Ok(Step::Nothing),
            Record::Insert { rel, new } => (rel, Change::Insert { new }),
            Record::Update { rel, old, new } => (rel, Change::Update { old, new }),
            Record::Delete { rel, old } => (rel, Change::Delete { old }),
        };
        let Current::Kept(at) = self.current else {
            return Ok(Step::Nothing);
        };
        if self.skipped.contains(&rel) {
            return Ok(Step::Nothing);
        }
        let replayed = &mut self.replayed;
        let binding = bound(&self.relations, at, rel)?;
        replayed.rows += 1;
        Ok(Step::Row(at, binding, change))
    }

    fn begin(&mut self, xid: Xid, commit_lsn: Lsn) {
        let kept = self.range.last_kept.is_some_and(|last| commit_lsn <= last);
        self.current = Current::Skipped;
        if kept && commit_lsn >= self.range.from {
            self.reached = Some(Reached { xid, commit_lsn });
            if commit_lsn >= self.range.replayed.through {
                self.current = Current::Kept(At { xid, commit_lsn });
            }
        }
    }

    fn commit(&mut self, end: Lsn) -> Step<'_> {
        let current = std::mem::replace(&mut self.current, Current::None);
        let Current::Kept(at) = current else {
            return Step::Nothing;
        };
        self.replayed.through = end;
        self.replayed.transactions += 1;
        Step::Commit(at)
    }

    /// A relation that comes again as it was keeps its binding.
    fn relation(&mut self, record: RelationRecord) -> Step<'_> {
        let rel = record.rel;
        if let Some(only) = &self.only {
            if !only.contains(&(record.schema.clone(), record.table.clone())) {
                self.skipped.insert(rel);
                return Step::Nothing;
            }
            self.skipped.remove(&rel);
        }
        let known = self.relations.get(&rel);
        if known.is_some_and(|known| known.record == record) {
            return Step::Nothing;
        }
        let binding = self.bind(&record).map(Arc::new);
        self.relations.insert(rel, Described { record, binding });
        Step::Described(rel)
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

    fn truncate(&mut self, rels: &[Oid], restart_identity: bool) -> Result<Step<'_>, Error> {
        let Current::Kept(at) = self.current else {
            return Ok(Step::Nothing);
        };
        let rels = rels.iter().filter(|rel| !self.skipped.contains(rel));
        let tables = rels.map(|rel| bound(&self.relations, at, *rel).map(Arc::clone));
        let tables: Vec<_> = tables.collect::<Result<_, Error>>()?;
        Ok(match tables.is_empty() {
            true => Step::Nothing,
            false => Step::Truncate {
                at,
                tables,
                restart_identity,
            },
        })
    }
}

fn bound(relations: &HashMap<Oid, Described>, at: At, rel: Oid) -> Result<&Arc<Binding>, Error> {
    let described = relations.get(&rel).ok_or(Error::UnexpectedRecord)?;
    match &described.binding {
        Ok(binding) => Ok(binding),
        Err(Mismatch(why)) => Err(Error::SchemaChanged {
            table: crate::sql::qualified(&described.record.schema, &described.record.table),
            xid: at.xid,
            commit_lsn: at.commit_lsn,
            why: why.clone(),
        }),
    }
}
