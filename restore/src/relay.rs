//! Records on their way from the thread that reads them to the one that takes them: many at once, in a few pieces
//! of memory. Each row in memory of its own costs more than to decode it, for what one thread frees another has
//! allocated, and both wait for the same lock.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::mpsc::SyncSender;

use lastgood_proto::Oid;
use lastgood_proto::segment::{Cell, ColumnRecord, Old, Record, Row};

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
    /// What records have in memory of their own, by and large.
    owned: usize,
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
    pub(crate) fn record(&mut self, record: Record<'_>) {
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
            other => {
                self.owned += owned_bytes(&other);
                Kept::Other(other.into_owned())
            }
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

    pub(crate) fn is_full(&self) -> bool {
        let items = self.items.len() * size_of::<Kept>() + self.values.len() * size_of::<Value>();
        items + self.text.len() + self.bytes.len() + self.owned >= HANDED_BYTES
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
            owned: _,
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

fn owned_bytes(record: &Record<'_>) -> usize {
    match record {
        Record::Relation(relation) => {
            let columns = relation.columns.iter();
            let columns = columns.map(|column| column.name.len() + column.type_name.len());
            let columns = columns.map(|names| names + size_of::<ColumnRecord>());
            columns.sum()
        }
        Record::Truncate { rels, .. } => size_of_val(rels.as_slice()),
        _ => 0,
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
        // They change no row, and may be as long as an application makes them.
        let is_nothing = matches!(record, Record::Message(_) | Record::Sequences { .. });
        if self.batches.is_some() && !is_nothing {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::sync_channel;

    use lastgood_proto::Lsn;
    use lastgood_proto::pgoutput::ReplicaIdentity;
    use lastgood_proto::segment::{MessageRecord, RelationRecord, SequenceSample};

    fn text(bytes: usize) -> Cell<'static> {
        Cell::Text("x".repeat(bytes).into())
    }

    /// Of every kind that may be large.
    fn records() -> Vec<Record<'static>> {
        let rel = Oid::new(16_400);
        let column = ColumnRecord {
            name: "a".repeat(63),
            type_name: "text".to_owned(),
            type_oid: Oid::new(25),
            type_modifier: -1,
            key: false,
        };
        let sample = SequenceSample {
            schema: "public".to_owned(),
            name: "s".repeat(63),
            last_value: "1".to_owned(),
            is_called: true,
        };
        vec![
            Record::Insert {
                rel,
                new: vec![text(100_000), Cell::Null],
            },
            Record::Update {
                rel,
                old: Old::Key(vec![text(3), Cell::Null]),
                new: vec![text(4), Cell::Unchanged],
            },
            Record::Delete {
                rel,
                old: Old::Full(vec![Cell::Bytes(vec![0xff; 100_000].into()), text(0)]),
            },
            Record::Relation(RelationRecord {
                rel,
                schema: "public".to_owned(),
                table: "t".to_owned(),
                identity: ReplicaIdentity::Full,
                columns: vec![column; 1600],
            }),
            Record::Truncate {
                rels: vec![rel; 10_000],
                cascade: false,
                restart_identity: true,
            },
            Record::Message(MessageRecord {
                transactional: true,
                lsn: Lsn::new(1),
                prefix: b"outbox".to_vec(),
                content: vec![b'x'; 200_000],
            }),
            Record::Sequences {
                lsn: Lsn::new(1),
                samples: vec![sample; 5000],
            },
        ]
    }

    #[test]
    fn items_come_as_they_went_in_order() {
        let (sender, batches) = sync_channel(1000);
        let mut relay = Relay::new(sender);
        relay.segment("LATIN1");
        let all: Vec<Record<'_>> = (0..10).flat_map(|_| records()).collect();
        all.iter().cloned().for_each(|record| relay.record(record));
        relay.end();
        relay.record(Record::Commit {
            lsn: Lsn::new(1),
            end: Lsn::new(2),
        });
        let mut seen = Vec::new();
        let mut ends = Vec::new();
        let mut take = |item: Item<'_>| {
            match item {
                Item::Segment(encoding) => ends.push(encoding.to_owned()),
                Item::Record(record) => seen.push(record.into_owned()),
                Item::End => ends.push("end".to_owned()),
            }
            Ok(Flow::GoOn)
        };
        drop(relay);
        let mut flow = Flow::GoOn;
        for batch in batches {
            assert_eq!(flow, Flow::GoOn);
            flow = batch.take(&mut take).unwrap();
        }
        assert_eq!(flow, Flow::Enough);
        assert_eq!(ends, ["LATIN1", "end"]);
        let is_nothing =
            |record: &Record<'_>| matches!(record, Record::Message(_) | Record::Sequences { .. });
        let all: Vec<_> = all.into_iter().filter(|it| !is_nothing(it)).collect();
        assert!(seen == all);
    }

    /// An application may send messages of any length, and each would wait here.
    #[test]
    fn a_batch_is_bounded_whatever_is_in_it() {
        for record in records() {
            let (sender, batches) = sync_channel(1000);
            let mut relay = Relay::new(sender);
            let kind = format!("{record:?}");
            let size = match &record {
                Record::Message(_) | Record::Sequences { .. } => 0,
                Record::Update { .. } => 100,
                Record::Relation(_) => 150_000,
                Record::Truncate { .. } => 40_000,
                _ => 100_000,
            };
            let enough = HANDED_BYTES.checked_div(size).unwrap_or(10) + 1;
            (0..enough).for_each(|_| relay.record(record.clone()));
            assert_eq!(batches.try_recv().is_ok(), size > 0, "{kind:.60}");
            assert!(size > 0 || relay.batch.items.is_empty());
        }
    }
}
