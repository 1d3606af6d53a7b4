//! What the changes of a window come to, row by row: nobody sees the states between, so a row that was
//! updated a hundred times needs its last image only, and one that came and went nothing at all.
//!
//! Rows are told apart by the text of their replica identity, a table without one by whole rows, and
//! nothing is compared otherwise: the server sends the old key whenever a new one differs in a single
//! byte, so the text that the stream names a row by is the text that the row has.
//! The base's rows come with the same settings in the same encoding.
//!
//! Memory is bounded: what does not fit is left to ordered replay, from a transaction's end on.

mod keyed;
mod pool;
mod whole;

use std::collections::hash_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use foldhash::fast::RandomState;
use lastgood_proto::pgoutput::Value;
use lastgood_proto::segment::{Old, Record, Row, RowBuffer, RowPlace};
use lastgood_proto::{Lsn, Oid};

pub(crate) use self::keyed::{Keyed, Met, fill};
pub(crate) use self::whole::Whole;
use crate::Error;
use crate::apply::Replayed;
use crate::binding::{Binding, Bound, Find};
use crate::changes::{Change, Changes, Reached, Step};
use crate::copy_text::field;
use crate::relations::Name;
use crate::replay::Flow;
use crate::rows::Unusable;

/// Stands in an image for a value that was not sent: no text has this byte.
pub(crate) const HOLE: &[u8; 1] = b"\0";

/// What a text that is written anew for each change keeps at most.
const TEXT_BYTES: usize = 1 << 20;

/// What one entry takes beside its texts, by and large.
const ENTRY_BYTES: usize = 144;

/// Entries are counted in 32 bits, and each takes more than this many bytes.
const BYTES_MAX: usize = (u32::MAX as usize).saturating_mul(32);

/// The net effect of a run of transactions.
#[derive(Default)]
pub(crate) struct Net {
    pub(crate) tables: HashMap<Name, NetTable>,
    pub(crate) replayed: Replayed,
    /// Tables whose sequences a TRUNCATE has set back, as it names them.
    pub(crate) restarted: BTreeSet<String>,
}

/// The net effect on one table.
pub(crate) struct NetTable {
    pub(crate) binding: Arc<Binding>,
    /// No row of the base is left.
    pub(crate) truncated: bool,
    pub(crate) rows: NetRows,
    bytes: usize,
}

pub(crate) enum NetRows {
    Keyed(Keyed),
    Whole(Whole),
}

impl NetTable {
    fn new(binding: Arc<Binding>) -> Self {
        Self {
            truncated: false,
            rows: NetRows::of(&binding),
            bytes: 0,
            binding,
        }
    }

    /// Whether changes that are bound so go on where those before ended.
    fn goes_on(&self, binding: &Arc<Binding>) -> bool {
        let own = &self.binding;
        Arc::ptr_eq(own, binding) || own.written == binding.written && own.find == binding.find
    }

    /// Answers how many more bytes it takes now, at the most.
    fn change(&mut self, change: Change<'_>, texts: &mut Texts) -> Result<usize, Unusable> {
        let Self {
            binding,
            truncated,
            rows,
            bytes,
        } = self;
        let added = match rows {
            NetRows::Keyed(rows) => keyed_change(binding, rows, *truncated, change, texts)?,
            NetRows::Whole(rows) => whole_change(binding, rows, *truncated, change, texts)?,
        };
        *bytes += added;
        Ok(added)
    }
}

impl NetRows {
    fn of(binding: &Binding) -> Self {
        match &binding.find {
            Find::Key(columns) if !columns.is_empty() => NetRows::Keyed(Keyed::default()),
            // Without an identity there are new rows only.
            Find::Key(_) | Find::Row(_) => NetRows::Whole(Whole::default()),
        }
    }
}

/// What a change is written into: used again for the next one, for most say a row anew that is held already.
#[derive(Default)]
struct Texts {
    key: Vec<u8>,
    old_key: Vec<u8>,
    image: Image,
}

fn keyed_change(
    binding: &Binding,
    rows: &mut Keyed,
    truncated: bool,
    change: Change<'_>,
    texts: &mut Texts,
) -> Result<usize, Unusable> {
    let columns = binding.find.columns();
    let Texts {
        key,
        old_key,
        image,
    } = texts;
    // Of the key that it had.
    let mut other_bytes = 0;
    let image_bytes = match change {
        Change::Insert { new } => {
            text(columns, new, None, key)?;
            image.write(binding, new, None)?;
            if image.has_holes {
                return Err(Unusable("a new row lacks a value"));
            }
            rows.insert(key, &image.text)?;
            image.text.len()
        }
        Change::Update { old, new } => {
            let old = match old {
                Old::None => None,
                Old::Key(old) | Old::Full(old) => Some(old),
            };
            image.write(binding, new, old)?;
            text(columns, new, old, key)?;
            let mut renamed = false;
            if let Some(old) = old {
                text(columns, old, None, old_key)?;
                renamed = old_key != key;
            }
            match renamed {
                true => {
                    other_bytes = 2 * old_key.len() + ENTRY_BYTES;
                    rows.rename(old_key, key, image, truncated)?
                }
                false => rows.update(key, image, truncated)?,
            }
        }
        Change::Delete { old } => {
            let (Old::Key(old) | Old::Full(old)) = old else {
                return Err(Unusable("a DELETE names no row"));
            };
            text(columns, old, None, key)?;
            rows.delete(key, truncated)?;
            return Ok(key.len() + ENTRY_BYTES);
        }
    };
    Ok(2 * key.len() + image_bytes + ENTRY_BYTES + other_bytes)
}

fn whole_change(
    binding: &Binding,
    rows: &mut Whole,
    truncated: bool,
    change: Change<'_>,
    texts: &mut Texts,
) -> Result<usize, Unusable> {
    let by_key = matches!(binding.find, Find::Key(_));
    let (old, new) = match change {
        Change::Insert { new } => (None, Some((new, None))),
        _ if by_key => {
            return Err(Unusable(
                "an UPDATE or DELETE in a table without replica identity",
            ));
        }
        Change::Update {
            old: Old::Full(old),
            new,
        } => (Some((old, None)), Some((new, Some(old)))),
        Change::Delete {
            old: Old::Full(old),
        } => (Some((old, None)), None),
        Change::Update { .. } | Change::Delete { .. } => {
            return Err(Unusable("a value of the replica identity was not sent"));
        }
    };
    let mut taken = 0;
    let image = &mut texts.image;
    for (row, count) in [(old, -1), (new, 1)] {
        if let Some((row, before)) = row {
            image.write(binding, row, before)?;
            if image.has_holes {
                return Err(Unusable("a new row lacks a value"));
            }
            taken += image.text.len() + ENTRY_BYTES;
            rows.count(&image.text, count, truncated)?;
        }
    }
    Ok(taken)
}

/// A row as COPY text, perhaps with holes.
#[derive(Default)]
pub(crate) struct Image {
    pub(crate) text: Vec<u8>,
    pub(crate) has_holes: bool,
}

impl Image {
    /// The written columns of a row; what was not sent is what it was, if the old values are at hand.
    fn write(
        &mut self,
        binding: &Binding,
        new: Row<'_>,
        old: Option<Row<'_>>,
    ) -> Result<(), Unusable> {
        let Self { text, has_holes } = self;
        empty(text);
        *has_holes = false;
        for (at, bound) in binding.written.iter().enumerate() {
            if at > 0 {
                text.push(b'\t');
            }
            match new.get(bound.sent) {
                None => return Err(Unusable("a row is too short")),
                Some(Value::Unchanged) if !binding.column(*bound).toastable => {
                    return Err(Unusable(
                        "a value that is never stored out of line was not sent",
                    ));
                }
                Some(Value::Unchanged) => match known(binding, *bound, old) {
                    Some(value) => field(value, text),
                    None => {
                        text.extend_from_slice(HOLE);
                        *has_holes = true;
                    }
                },
                Some(value) => field(value, text),
            }
        }
        Ok(())
    }
}

/// For the next text; what a very long one took is given back.
fn empty(text: &mut Vec<u8>) {
    text.clear();
    text.shrink_to(TEXT_BYTES);
}

/// The old value of a column, if it was sent.
fn known<'r>(binding: &Binding, bound: Bound, old: Option<Row<'r>>) -> Option<Value<'r>> {
    let is_sent = binding.find.columns().contains(&bound);
    old.filter(|_| is_sent)?.get(bound.sent)
}

/// Key columns as COPY text: of the new row, or of the old one where that has no value.
fn text(
    columns: &[Bound],
    row: Row<'_>,
    old: Option<Row<'_>>,
    text: &mut Vec<u8>,
) -> Result<(), Unusable> {
    empty(text);
    for (at, bound) in columns.iter().enumerate() {
        if at > 0 {
            text.push(b'\t');
        }
        let value = match row.get(bound.sent) {
            Some(Value::Unchanged) => old.and_then(|old| old.get(bound.sent)),
            value => value,
        };
        match value {
            None | Some(Value::Null | Value::Unchanged) => {
                return Err(Unusable("a value of the replica identity was not sent"));
            }
            Some(value) => field(value, text),
        }
    }
    Ok(())
}

/// A generated column that is part of the key (18) is in the stream and in no base.
fn is_found_by_generated(binding: &Binding) -> bool {
    match &binding.find {
        Find::Key(columns) => columns.iter().any(|key| binding.column(*key).generated),
        Find::Row(_) => false,
    }
}

/// Why gathering ended before everything was read, inside a transaction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Halted {
    /// Commit LSN of the last transaction that is in it whole.
    pub(crate) last_whole: Option<Lsn>,
}

/// Makes a [`Net`] of records.
pub(crate) struct Gatherer {
    changes: Changes,
    /// Of the base: only text in the same encoding can be compared.
    encoding: String,
    bytes_max: usize,
    /// Commit LSN of the transaction that is the last one to be gathered, if not the range's.
    stop_after: Option<Lsn>,
    bytes: usize,
    tables: HashMap<Oid, NetTable, RandomState>,
    texts: Texts,
    restarted: BTreeSet<String>,
    last_whole: Option<Lsn>,
    /// The current transaction has changed something.
    within: bool,
    halted: Option<Halted>,
    complete: bool,
}

impl Gatherer {
    pub(crate) fn new(
        changes: Changes,
        encoding: String,
        bytes_max: usize,
        stop_after: Option<Lsn>,
    ) -> Self {
        Self {
            changes,
            encoding,
            bytes_max: bytes_max.min(BYTES_MAX),
            stop_after,
            bytes: 0,
            tables: HashMap::default(),
            texts: Texts::default(),
            restarted: BTreeSet::new(),
            last_whole: None,
            within: false,
            halted: None,
            complete: true,
        }
    }

    /// A segment begins whose values are in this encoding.
    pub(crate) fn segment(&mut self, encoding: &str) -> Flow {
        match self.encoding == encoding {
            true => Flow::GoOn,
            false => self.end(),
        }
    }

    /// # Errors
    /// If a change fits no table, or cannot be a change.
    pub(crate) fn feed(
        &mut self,
        record: &Record<RowPlace>,
        rows: &RowBuffer,
    ) -> Result<Flow, Error> {
        match self.changes.step(record, rows)? {
            Step::Nothing | Step::Described(_) | Step::Rearranged => Ok(Flow::GoOn),
            Step::Over => Ok(Flow::Enough),
            Step::Truncate { tables, .. }
                if tables.iter().any(|binding| is_found_by_generated(binding)) =>
            {
                Ok(self.end())
            }
            Step::Row(at, binding, change) => {
                let table = match self.tables.entry(binding.rel) {
                    Entry::Occupied(known) if known.get().goes_on(binding) => known.into_mut(),
                    Entry::Vacant(place) if !is_found_by_generated(binding) => {
                        place.insert(NetTable::new(Arc::clone(binding)))
                    }
                    Entry::Occupied(_) | Entry::Vacant(_) => return Ok(self.end()),
                };
                let added = table.change(change, &mut self.texts);
                self.bytes += added.map_err(|why| at.unusable(binding, why))?;
                self.within = true;
                Ok(match self.bytes > self.bytes_max {
                    true => self.make_room(),
                    false => Flow::GoOn,
                })
            }
            Step::Truncate {
                tables,
                restart_identity,
                ..
            } => {
                self.within = true;
                for binding in tables {
                    if restart_identity {
                        self.restarted.insert(binding.table.sql_for_truncate());
                    }
                    // A partitioned table has no rows of its own; its partitions are named as well.
                    if binding.table.kind == 'p' {
                        continue;
                    }
                    let rel = binding.rel;
                    let emptied = NetTable {
                        truncated: true,
                        ..NetTable::new(binding)
                    };
                    if let Some(before) = self.tables.insert(rel, emptied) {
                        self.bytes -= before.bytes.min(self.bytes);
                    }
                }
                Ok(Flow::GoOn)
            }
            Step::Commit(at) => {
                self.last_whole = Some(at.commit_lsn);
                self.within = false;
                Ok(match self.stop_after == Some(at.commit_lsn) {
                    true => self.end(),
                    false => Flow::GoOn,
                })
            }
        }
    }

    /// How far it is.
    pub(crate) const fn replayed(&self) -> Replayed {
        self.changes.replayed()
    }

    /// The last transaction of the range that was read.
    pub(crate) const fn reached(&self) -> Option<Reached> {
        self.changes.reached()
    }

    pub(crate) const fn halted(&self) -> Option<Halted> {
        self.halted
    }

    /// Whether nothing was left out.
    pub(crate) const fn is_complete(&self) -> bool {
        self.complete
    }

    pub(crate) fn finish(self) -> Net {
        let tables = self.tables.into_values().map(|table| {
            let own = &table.binding.table;
            ((own.schema.clone(), own.name.clone()), table)
        });
        Net {
            tables: tables.collect(),
            replayed: self.changes.replayed(),
            restarted: self.restarted,
        }
    }

    /// Counts anew what is really held: rows that were changed again have been counted each time.
    fn make_room(&mut self) -> Flow {
        self.bytes = 0;
        for table in self.tables.values_mut() {
            table.bytes = match &mut table.rows {
                NetRows::Keyed(rows) => {
                    rows.compact();
                    rows.bytes()
                }
                NetRows::Whole(rows) => rows.bytes(ENTRY_BYTES),
            };
            self.bytes += table.bytes;
        }
        // With so little room left, it would soon be counted again.
        match self.bytes > self.bytes_max / 4 * 3 {
            true => self.end(),
            false => Flow::GoOn,
        }
    }

    /// No further: if that is inside a transaction, what came of it before is too much.
    fn end(&mut self) -> Flow {
        self.complete = false;
        if self.within {
            self.halted = Some(Halted {
                last_whole: self.last_whole,
            });
        }
        Flow::Enough
    }
}
