//! Records on their way from the thread that reads them to the one that takes them: many at once, in a few pieces
//! of memory. Each row in memory of its own costs more than to decode it, for what one thread frees another has
//! allocated, and both wait for the same lock.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::mpsc::SyncSender;

use lastgood_proto::Oid;
use lastgood_proto::segment::{Cell, Old, Record, Row};

use crate::Error;
use crate::replay::Flow;

/// Bytes of values and records before they are handed on.
const HANDED_BYTES: usize = 256 << 10;

/// What a reader comes upon.
pub(crate) enum Item<'a> {
    /// A segment with values in this encoding.
    Segment(&'a str),
    Record(Record<'a>),
    /// All needed segments were read.
    End,
}

/// Items in order.
#[derive(Default)]
pub(crate) struct Batch {
    items: Vec<Kept>,
    values: Vec<Value>,
    text: String,
    bytes: Vec<u8>,
}

/// An item; a row is its place among the values.
enum Kept {
    Segment(String),
    Insert {
        rel: Oid,
        new: Range<usize>,
    },
    Update {
        rel: Oid,
        old: Old<Range<usize>>,
        new: Range<usize>,
    },
    Delete {
        rel: Oid,
        old: Old<Range<usize>>,
    },
    Other(Record<'static>),
    End,
}

/// A cell; its place in the text, or among the bytes that are none.
enum Value {
    Null,
    Unchanged,
    Text(Range<usize>),
    Bytes(Range<usize>),
}

impl Batch {
    fn record(&mut self, record: Record<'_>) {
        let kept = match record {
            Record::Insert { rel, new } => {
                let new = self.row(&new);
                Kept::Insert { rel, new }
            }
            Record::Update { rel, old, new } => {
                let old = old.map(|old| self.row(&old));
                let new = self.row(&new);
                Kept::Update { rel, old, new }
            }
            Record::Delete { rel, old } => {
                let old = old.map(|old| self.row(&old));
                Kept::Delete { rel, old }
            }
            other => Kept::Other(other.into_owned()),
        };
        self.items.push(kept);
    }

    fn row(&mut self, row: &[Cell<'_>]) -> Range<usize> {
        let start = self.values.len();
        self.values.extend(row.iter().map(|cell| match cell {
            Cell::Null => Value::Null,
            Cell::Unchanged => Value::Unchanged,
            Cell::Text(text) => {
                let start = self.text.len();
                self.text.push_str(text);
                Value::Text(start..self.text.len())
            }
            Cell::Bytes(bytes) => {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(bytes);
                Value::Bytes(start..self.bytes.len())
            }
        }));
        start..self.values.len()
    }

    fn is_full(&self) -> bool {
        let items = self.items.len() * size_of::<Kept>() + self.values.len() * size_of::<Value>();
        items + self.text.len() + self.bytes.len() >= HANDED_BYTES
    }

    /// One after another, until `take` has enough or the end has come, and whether it has.
    pub(crate) fn take(
        self,
        take: &mut impl FnMut(Item<'_>) -> Result<Flow, Error>,
    ) -> Result<Flow, Error> {
        let Self {
            items,
            values,
            text,
            bytes,
        } = self;
        let row = |row: Range<usize>| -> Row<'_> {
            let values = values.get(row).unwrap_or_default().iter();
            let cells = values.map(|value| match value {
                Value::Null => Cell::Null,
                Value::Unchanged => Cell::Unchanged,
                Value::Text(place) => Cell::Text(Cow::Borrowed(&text[place.clone()])),
                Value::Bytes(place) => Cell::Bytes(Cow::Borrowed(&bytes[place.clone()])),
            });
            cells.collect()
        };
        for kept in items {
            let record = match kept {
                Kept::Segment(encoding) => {
                    if take(Item::Segment(&encoding))? == Flow::Enough {
                        return Ok(Flow::Enough);
                    }
                    continue;
                }
                Kept::End => {
                    take(Item::End)?;
                    return Ok(Flow::Enough);
                }
                Kept::Insert { rel, new } => Record::Insert { rel, new: row(new) },
                Kept::Update { rel, old, new } => Record::Update {
                    rel,
                    old: old.map(row),
                    new: row(new),
                },
                Kept::Delete { rel, old } => Record::Delete {
                    rel,
                    old: old.map(row),
                },
                Kept::Other(record) => record,
            };
            if take(Item::Record(record))? == Flow::Enough {
                return Ok(Flow::Enough);
            }
        }
        Ok(Flow::GoOn)
    }
}

/// Hands on what is read, as long as anybody takes it.
pub(crate) struct Relay {
    batches: Option<SyncSender<Batch>>,
    batch: Batch,
}

impl Relay {
    pub(crate) fn new(batches: SyncSender<Batch>) -> Self {
        Self {
            batches: Some(batches),
            batch: Batch::default(),
        }
    }

    pub(crate) fn segment(&mut self, encoding: &str) {
        if self.batches.is_some() {
            self.batch.items.push(Kept::Segment(encoding.to_owned()));
        }
    }

    pub(crate) fn record(&mut self, record: Record<'_>) {
        if self.batches.is_some() {
            self.batch.record(record);
            if self.batch.is_full() {
                self.hand_on();
            }
        }
    }

    /// What comes is not needed.
    pub(crate) fn end(&mut self) {
        if self.batches.is_some() {
            self.batch.items.push(Kept::End);
            self.hand_on();
            self.batches = None;
        }
    }

    fn hand_on(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let sent = self.batches.as_ref().map(|batches| batches.send(batch));
        if sent.is_some_and(|sent| sent.is_err()) {
            self.batches = None;
        }
    }
}
