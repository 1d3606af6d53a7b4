//! Records → the changes that a restore keeps: which transactions count, of which tables, and how each
//! relation of the stream is bound to its table in the target.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lastgood_proto::manifest::BaseManifest;
use lastgood_proto::segment::{Cell, ColumnRecord, Old, Record, RelationRecord};
use lastgood_proto::{Lsn, Oid, Xid};

use crate::Error;
use crate::apply::Replayed;
use crate::binding::{Binding, Mismatch};
use crate::catalog::{Tables, TargetTable};
use crate::rows::Unusable;

/// Which transactions count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    /// The base's consistent point: what committed below is in the base, but for rows that it borrows.
    pub(crate) from: Lsn,
    /// What committed below is in all rows.
    pub(crate) rows_from: Lsn,
    /// Commit LSN of the last transaction kept; none keeps nothing that is not below `from`.
    pub(crate) last_kept: Option<Lsn>,
    /// What was brought in already.
    pub(crate) replayed: Replayed,
}

/// The tables of a base.
#[derive(Debug, Default)]
pub(crate) struct BaseTables {
    /// What the base calls each: another OID of the same name is another table.
    pub(crate) oids: HashMap<(String, String), Oid>,
    /// Those whose rows it borrows.
    pub(crate) borrowed: HashMap<Oid, BorrowedTable>,
    /// Where the oldest of the rows are from.
    pub(crate) rows_from: Lsn,
}

#[derive(Debug)]
pub(crate) struct BorrowedTable {
    /// Consistent point of the base that has the rows.
    pub(crate) from: Lsn,
    /// In both bases; in between it may have had another one.
    pub(crate) name: (String, String),
    /// What rows have in the last columns, which the table got in between.
    pub(crate) added: Vec<Cell>,
}

impl BaseTables {
    pub(crate) fn of(manifest: &BaseManifest) -> Self {
        let mut tables = Self {
            rows_from: manifest.rows_from(),
            ..Self::default()
        };
        for table in &manifest.tables {
            let name = (table.schema.clone(), table.name.clone());
            if let Some(lender) = manifest.lender(table.oid) {
                let from = lender.consistent_point();
                let added = manifest.added(table.oid).iter().map(cell);
                let borrowed = BorrowedTable {
                    from,
                    name: name.clone(),
                    added: added.collect(),
                };
                tables.borrowed.insert(table.oid, borrowed);
            }
            tables.oids.insert(name, table.oid);
        }
        tables
    }

    /// What the base calls the table of a description.
    fn name(&self, record: &RelationRecord) -> (String, String) {
        match self.borrowed.get(&record.rel) {
            Some(borrowed) => borrowed.name.clone(),
            None => (record.schema.clone(), record.table.clone()),
        }
    }
}

fn cell(value: &Option<String>) -> Cell {
    match value {
        Some(text) => Cell::Text(text.as_str().into()),
        None => Cell::Null,
    }
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
    base: Arc<BaseTables>,
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
    /// Values of the columns that the table did not have yet.
    lacking: Vec<Cell>,
}

impl Change {
    /// As it would have been with more columns. Of a key they are no part.
    fn widen(&mut self, lacking: &[Cell]) {
        let widen_old = |old: &mut Old| match old {
            Old::None => {}
            Old::Key(old) => old.extend(lacking.iter().map(|_| Cell::Null)),
            Old::Full(old) => old.extend_from_slice(lacking),
        };
        match self {
            Self::Insert { new } => new.extend_from_slice(lacking),
            Self::Update { old, new } => {
                new.extend_from_slice(lacking);
                widen_old(old);
            }
            Self::Delete { old } => widen_old(old),
        }
    }
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
        base: Arc<BaseTables>,
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
        let (rel, mut change) = match record {
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
        if self.skipped.contains(&rel) || self.is_in_base(at, rel) {
            return Ok(Step::Nothing);
        }
        let replayed = &mut self.replayed;
        let (binding, lacking) = bound(&self.relations, at, rel)?;
        change.widen(lacking);
        replayed.rows += 1;
        Ok(Step::Row(at, binding, change))
    }

    fn begin(&mut self, xid: Xid, commit_lsn: Lsn) {
        let is_before = commit_lsn < self.range.from;
        let kept = self.range.last_kept.is_some_and(|last| commit_lsn <= last);
        self.current = Current::Skipped;
        if is_before && commit_lsn >= self.range.rows_from || kept && !is_before {
            if !is_before {
                self.reached = Some(Reached { xid, commit_lsn });
            }
            if commit_lsn >= self.range.replayed.through {
                self.current = Current::Kept(At { xid, commit_lsn });
            }
        }
    }

    /// Whether the base's rows of a table have a transaction's changes in them.
    fn is_in_base(&self, at: At, rel: Oid) -> bool {
        let borrowed = self.base.borrowed.get(&rel);
        at.commit_lsn < borrowed.map_or(self.range.from, |borrowed| borrowed.from)
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
            if !only.contains(&self.base.name(&record)) {
                self.skipped.insert(rel);
                return Step::Nothing;
            }
            self.skipped.remove(&rel);
        }
        let known = self.relations.get(&rel);
        if known.is_some_and(|known| known.record == record) {
            return Step::Nothing;
        }
        let (binding, lacking) = match self.bind(&record) {
            Ok((binding, lacking)) => (Ok(Arc::new(binding)), lacking),
            Err(mismatch) => (Err(mismatch), Vec::new()),
        };
        let described = Described {
            record,
            binding,
            lacking,
        };
        self.relations.insert(rel, described);
        Step::Described(rel)
    }

    /// The binding, and values of columns that are not in the stream yet.
    fn bind(&self, record: &RelationRecord) -> Result<(Binding, Vec<Cell>), Mismatch> {
        let name = self.base.name(record);
        match self.base.oids.get(&name) {
            Some(oid) if *oid == record.rel => {}
            Some(_) => {
                return Err(Mismatch("it was dropped and made anew".to_owned()));
            }
            None => return Err(Mismatch("it is not in the base".to_owned())),
        }
        let Some(table) = self.tables.get(&name) else {
            return Err(Mismatch("it is not in the target".to_owned()));
        };
        let borrowed = self.base.borrowed.get(&record.rel);
        match borrowed.map(|borrowed| borrowed.added.as_slice()) {
            None | Some([]) => Ok((Binding::new(record, table)?, Vec::new())),
            Some(added) => {
                let (record, lacking) = widened(record, table, added)?;
                Ok((Binding::new(&record, table)?, lacking))
            }
        }
    }

    fn truncate(&mut self, rels: &[Oid], restart_identity: bool) -> Result<Step<'_>, Error> {
        let Current::Kept(at) = self.current else {
            return Ok(Step::Nothing);
        };
        let is_wanted = |rel: &&Oid| !self.skipped.contains(rel) && !self.is_in_base(at, **rel);
        let rels = rels.iter().filter(is_wanted);
        let tables = rels.map(|rel| {
            let (binding, _) = bound(&self.relations, at, *rel)?;
            Ok(Arc::clone(binding))
        });
        let tables: Vec<_> = tables.collect::<Result<_, Error>>()?;
        Ok(match tables.is_empty() {
            true => Step::Nothing,
            false => Step::Truncate {
                at,
                tables,
                // The sequences are the base's own, also where it borrows the rows.
                restart_identity: restart_identity && at.commit_lsn >= self.range.from,
            },
        })
    }
}

/// A description of a table from a time when it had not all of its last columns, and what its rows have in
/// these. Columns are told by their places: no old one was altered, no new one is gone, and a new one may have
/// been renamed.
fn widened(
    record: &RelationRecord,
    table: &TargetTable,
    added: &[Cell],
) -> Result<(RelationRecord, Vec<Cell>), Mismatch> {
    let (sent, all) = (record.columns.len(), table.columns.len());
    let lacking = all.checked_sub(sent).filter(|count| *count <= added.len());
    let (Some(lacking), Some(old)) = (lacking, all.checked_sub(added.len())) else {
        return Err(Mismatch(format!(
            "it has {sent} columns in the stream and {all} in the base, of which {} are new",
            added.len()
        )));
    };
    let mut record = record.clone();
    for (at, own) in table.columns.iter().enumerate() {
        let is_new = at >= old;
        match record.columns.get_mut(at) {
            None => record.columns.push(ColumnRecord {
                name: own.name.clone(),
                type_name: own.staged_type.clone(),
                type_oid: own.type_oid,
                type_modifier: own.type_modifier,
                key: false,
            }),
            // It may have got another name and room since; another type prints its values otherwise.
            Some(column) if is_new => {
                column.name.clone_from(&own.name);
                column.type_modifier = own.type_modifier;
                if is_text(column.type_oid) && is_text(own.type_oid) {
                    column.type_oid = own.type_oid;
                }
            }
            Some(_) => {}
        }
    }
    Ok((
        record,
        added
            .get(added.len() - lacking..)
            .unwrap_or_default()
            .to_vec(),
    ))
}

/// `text` and `varchar`, which become each other without a row being written.
fn is_text(oid: Oid) -> bool {
    matches!(oid.get(), 25 | 1043)
}

fn bound(
    relations: &HashMap<Oid, Described>,
    at: At,
    rel: Oid,
) -> Result<(&Arc<Binding>, &[Cell]), Error> {
    let described = relations.get(&rel).ok_or(Error::UnexpectedRecord)?;
    match &described.binding {
        Ok(binding) => Ok((binding, &described.lacking)),
        Err(Mismatch(why)) => Err(Error::SchemaChanged {
            table: crate::sql::qualified(&described.record.schema, &described.record.table),
            xid: at.xid,
            commit_lsn: at.commit_lsn,
            why: why.clone(),
        }),
    }
}
