//! Records → the changes that a restore keeps: which transactions count, of which tables, and how each
//! relation of the stream is bound to its table in the target.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use foldhash::fast::RandomState;
use lastgood_proto::manifest::BaseManifest;
use lastgood_proto::segment::{Old, Record, RelationRecord, Row, RowBuffer, RowPlace};
use lastgood_proto::{Lsn, Oid, Xid};

use crate::Error;
use crate::apply::Replayed;
use crate::binding::{Binding, Mismatch};
use crate::catalog::Tables;
use crate::columns::{Arrangement, Columns};
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
    /// The only ones that count, if not all.
    pub(crate) only: Option<Only>,
    /// What the base calls each: another OID of the same name is another table.
    pub(crate) oids: HashMap<(String, String), Oid>,
    /// Those whose rows it borrows.
    pub(crate) borrowed: HashMap<Oid, BorrowedTable, RandomState>,
    /// Where the oldest of the rows are from.
    pub(crate) rows_from: Lsn,
}

/// A table is chosen by its name in the base. While it had another one, which no look at the source may have seen, it
/// was still that table.
#[derive(Debug)]
pub(crate) struct Only {
    names: HashSet<(String, String)>,
    oids: HashSet<Oid>,
}

#[derive(Debug)]
pub(crate) struct BorrowedTable {
    /// Consistent point of the base that has the rows.
    pub(crate) from: Lsn,
    /// In the base; before it may have had another one.
    pub(crate) name: (String, String),
    /// If they were altered in between.
    pub(crate) columns: Option<Columns>,
}

impl BaseTables {
    /// All of a base, or `only` some of them.
    pub(crate) fn of(manifest: &BaseManifest, only: Option<HashSet<(String, String)>>) -> Self {
        let mut tables = Self {
            rows_from: manifest.rows_from(),
            ..Self::default()
        };
        for table in &manifest.tables {
            let name = (table.schema.clone(), table.name.clone());
            if let Some(lender) = manifest.lender(table.oid) {
                let from = lender.consistent_point();
                let borrowed = BorrowedTable {
                    from,
                    name: name.clone(),
                    columns: Columns::of(manifest, table),
                };
                tables.borrowed.insert(table.oid, borrowed);
            }
            tables.oids.insert(name, table.oid);
        }
        tables.only = only.map(|names| {
            let oids = names.iter().filter_map(|name| tables.oids.get(name));
            let oids = oids.copied().collect();
            Only { names, oids }
        });
        tables
    }

    /// Whether the table of a description counts.
    pub(crate) fn is_chosen(&self, record: &RelationRecord) -> bool {
        self.only.as_ref().is_none_or(|only| {
            only.oids.contains(&record.rel) || only.names.contains(&self.name(record))
        })
    }

    /// What the base calls the table of a description.
    fn name(&self, record: &RelationRecord) -> (String, String) {
        match self.borrowed.get(&record.rel) {
            Some(borrowed) => borrowed.name.clone(),
            None => (record.schema.clone(), record.table.clone()),
        }
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
#[derive(Debug, Clone, Copy)]
pub(crate) enum Change<'a> {
    Insert { new: Row<'a> },
    Update { old: Old<Row<'a>>, new: Row<'a> },
    Delete { old: Old<Row<'a>> },
}

/// What a record is to a restore.
pub(crate) enum Step<'a> {
    Nothing,
    /// Nothing, and neither is any that comes.
    Over,
    /// A relation is described, and not as before.
    Described(Oid),
    /// A base has seen other columns: what was described before may say something else.
    Rearranged,
    Row(At, &'a Arc<Binding>, Change<'a>),
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
    relations: HashMap<Oid, Described, RandomState>,
    /// Relations of tables that do not count.
    skipped: HashSet<Oid, RandomState>,
    replayed: Replayed,
    current: Current,
    /// Of the newest transaction, whether it counts or not.
    position: Lsn,
    /// Where descriptions of borrowed tables begin to say something else, the next one last.
    boundaries: Vec<Lsn>,
    reached: Option<Reached>,
    /// Rows of the change last arranged.
    arranged: RowBuffer,
}

struct Described {
    record: RelationRecord,
    binding: Result<Arc<Binding>, Mismatch>,
    /// From before the table's columns were altered.
    arrangement: Option<Arrangement>,
}

impl<'a> Change<'a> {
    /// As it would have been with the columns that the table has now.
    fn arranged(self, arrangement: &Arrangement, rows: &'a mut RowBuffer) -> Self {
        rows.clear();
        match self {
            Self::Insert { new } => {
                let new = arrangement.row(new, rows);
                let new = rows.row(&new);
                Self::Insert { new }
            }
            Self::Update { old, new } => {
                let new = arrangement.row(new, rows);
                let old = arrangement.old(old, rows);
                Self::Update {
                    old: old.map(|place| rows.row(&place)),
                    new: rows.row(&new),
                }
            }
            Self::Delete { old } => {
                let old = arrangement.old(old, rows);
                let old = old.map(|place| rows.row(&place));
                Self::Delete { old }
            }
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
    pub(crate) fn new(range: Range, tables: Arc<Tables>, base: Arc<BaseTables>) -> Self {
        let borrowed = base.borrowed.values();
        let columns = borrowed.filter_map(|borrowed| borrowed.columns.as_ref());
        let mut boundaries: Vec<Lsn> = columns.flat_map(Columns::boundaries).collect();
        boundaries.sort_unstable_by(|one, other| other.cmp(one));
        Self {
            range,
            tables,
            base,
            boundaries,
            relations: HashMap::default(),
            skipped: HashSet::default(),
            replayed: range.replayed,
            current: Current::None,
            position: range.rows_from,
            reached: None,
            arranged: RowBuffer::default(),
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
    pub(crate) fn step<'a>(
        &'a mut self,
        record: &Record<RowPlace>,
        rows: &'a RowBuffer,
    ) -> Result<Step<'a>, Error> {
        let row = |place| rows.row(place);
        let (rel, mut change) = match record {
            Record::Begin { xid, lsn, .. } => {
                return Ok(self.begin(*xid, *lsn));
            }
            Record::Commit { end, .. } => return Ok(self.commit(*end)),
            Record::Relation(relation) => return Ok(self.relation(relation)),
            Record::Truncate {
                rels,
                restart_identity,
                ..
            } => return self.truncate(rels, *restart_identity),
            // Sequences are set at the end, messages change no row.
            Record::Sequences { .. } | Record::Message(_) => return Ok(Step::Nothing),
            Record::Insert { rel, new } => (*rel, Change::Insert { new: row(new) }),
            Record::Update { rel, old, new } => {
                let (old, new) = (old.as_ref().map(row), row(new));
                (*rel, Change::Update { old, new })
            }
            Record::Delete { rel, old } => {
                let old = old.as_ref().map(row);
                (*rel, Change::Delete { old })
            }
        };
        let Current::Kept(at) = self.current else {
            return Ok(Step::Nothing);
        };
        if self.skipped.contains(&rel) || self.is_in_base(at, rel) {
            return Ok(Step::Nothing);
        }
        let (binding, arrangement) = bound(&self.relations, at, rel)?;
        if let Some(arrangement) = arrangement {
            change = change.arranged(arrangement, &mut self.arranged);
        }
        self.replayed.rows += 1;
        Ok(Step::Row(at, binding, change))
    }

    fn begin(&mut self, xid: Xid, commit_lsn: Lsn) -> Step<'_> {
        let is_before = commit_lsn < self.range.from;
        let kept = self.range.last_kept.is_some_and(|last| commit_lsn <= last);
        self.current = Current::Skipped;
        self.position = commit_lsn;
        if is_before && commit_lsn >= self.range.rows_from || kept && !is_before {
            if !is_before {
                self.reached = Some(Reached { xid, commit_lsn });
            }
            if commit_lsn >= self.range.replayed.through {
                self.current = Current::Kept(At { xid, commit_lsn });
            }
        }
        match is_before || kept {
            true => self.rearrange(),
            // Commit LSNs rise.
            false => Step::Over,
        }
    }

    /// A column that is dropped and one that is made in its likeness are described alike, and of two equal descriptions
    /// a merged segment has one: so what a description says depends on where it is used.
    fn rearrange(&mut self) -> Step<'_> {
        let left = self.boundaries.len();
        while let Some(next) = self.boundaries.last()
            && *next <= self.position
        {
            self.boundaries.pop();
        }
        if self.boundaries.len() == left {
            return Step::Nothing;
        }
        let is_altered = |rel: &Oid| {
            let borrowed = self.base.borrowed.get(rel);
            borrowed.is_some_and(|borrowed| borrowed.columns.is_some())
        };
        let altered = self.relations.iter();
        let altered = altered.filter(|(rel, _)| is_altered(rel));
        let altered: Vec<RelationRecord> = altered.map(|(_, it)| it.record.clone()).collect();
        for record in &altered {
            self.relation(record);
        }
        Step::Rearranged
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
    fn relation(&mut self, record: &RelationRecord) -> Step<'_> {
        let rel = record.rel;
        if !self.base.is_chosen(record) {
            self.skipped.insert(rel);
            return Step::Nothing;
        }
        self.skipped.remove(&rel);
        let arrangement = self.arrangement(record);
        let known = self.relations.get(&rel);
        if let (Some(known), Ok(arrangement)) = (known, &arrangement)
            && known.record == *record
            && known.arrangement == *arrangement
        {
            return Step::Nothing;
        }
        let bound = arrangement.and_then(|arrangement| {
            let binding = self.bind(record, arrangement.as_ref())?;
            Ok((Arc::new(binding), arrangement))
        });
        let (binding, arrangement) = match bound {
            Ok((binding, arrangement)) => (Ok(binding), arrangement),
            Err(mismatch) => (Err(mismatch), None),
        };
        let described = Described {
            record: record.clone(),
            binding,
            arrangement,
        };
        self.relations.insert(rel, described);
        Step::Described(rel)
    }

    /// How rows become such as the table has now; none if they are.
    fn arrangement(&self, record: &RelationRecord) -> Result<Option<Arrangement>, Mismatch> {
        let borrowed = self.base.borrowed.get(&record.rel);
        match borrowed.and_then(|borrowed| borrowed.columns.as_ref()) {
            Some(columns) => columns.sent(record, self.position),
            None => Ok(None),
        }
    }

    fn bind(
        &self,
        record: &RelationRecord,
        arrangement: Option<&Arrangement>,
    ) -> Result<Binding, Mismatch> {
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
        let columns = borrowed.and_then(|borrowed| borrowed.columns.as_ref());
        match (columns, arrangement) {
            (Some(columns), Some(arrangement)) => {
                let record = columns.described(record, table, arrangement)?;
                Binding::new(&record, table)
            }
            _ => Binding::new(record, table),
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

fn bound(
    relations: &HashMap<Oid, Described, RandomState>,
    at: At,
    rel: Oid,
) -> Result<(&Arc<Binding>, Option<&Arrangement>), Error> {
    let described = relations.get(&rel).ok_or(Error::UnexpectedRecord)?;
    match &described.binding {
        Ok(binding) if binding.table.is_scattered => Err(Error::Scattered {
            table: binding.table.sql(),
            xid: at.xid,
            commit_lsn: at.commit_lsn,
        }),
        Ok(binding) => Ok((binding, described.arrangement.as_ref())),
        Err(Mismatch(why)) => Err(Error::SchemaChanged {
            table: crate::sql::qualified(&described.record.schema, &described.record.table),
            xid: at.xid,
            commit_lsn: at.commit_lsn,
            why: why.clone(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lastgood_proto::pgoutput::ReplicaIdentity;

    #[test]
    fn a_table_is_chosen_whatever_it_is_called_meanwhile() {
        let name = |table: &str| ("public".to_owned(), table.to_owned());
        let oids = [("t", 5), ("u", 6), ("lent", 7), ("other", 8)];
        let oids = oids.map(|(table, oid)| (name(table), Oid::new(oid)));
        let borrowed = [("lent", 7), ("other", 8)].map(|(table, oid)| {
            let borrowed = BorrowedTable {
                from: Lsn::INVALID,
                name: name(table),
                columns: None,
            };
            (Oid::new(oid), borrowed)
        });
        let base = BaseTables {
            only: Some(Only {
                names: [name("t"), name("lent")].into(),
                oids: [Oid::new(5), Oid::new(7)].into(),
            }),
            oids: oids.into(),
            borrowed: borrowed.into_iter().collect(),
            rows_from: Lsn::INVALID,
        };
        let chosen = |oid: u32, table: &str| {
            base.is_chosen(&RelationRecord {
                rel: Oid::new(oid),
                schema: "public".to_owned(),
                table: table.to_owned(),
                identity: ReplicaIdentity::Default,
                columns: Vec::new(),
            })
        };
        assert!(chosen(5, "t") && chosen(5, "renamed") && chosen(7, "lent") && chosen(7, "before"));
        assert!(!chosen(6, "u") && !chosen(8, "other") && !chosen(8, "lent"));
        // Dropped and made anew: whoever binds it says so.
        assert!(chosen(9, "t"));
    }
}
