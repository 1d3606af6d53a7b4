//! Records on their way from the thread that reads them to the one that takes them: many at once, in a few pieces
//! of memory. Each row in memory of its own costs more than to decode it, for what one thread frees another has
//! allocated, and both wait for the same lock.

use std::sync::mpsc::{Receiver, SyncSender};

use lastgood_proto::segment::{ColumnRecord, Record, RowBuffer, RowPlace};

use crate::Error;
use crate::replay::Flow;

/// Bytes of values and records before they are handed on.
const HANDED_BYTES: usize = 256 << 10;

/// What a reader comes upon.
pub(crate) enum Item<'a> {
    /// A segment with values in this encoding.
    Segment(&'a str),
    /// With its rows.
    Record(&'a Record<RowPlace>, &'a RowBuffer),
    /// Some were handed on, perhaps none, and the next are not there yet.
    Pause,
    /// All needed segments were read.
    End,
}

/// Items in order.
#[derive(Default)]
pub(crate) struct Batch {
    items: Vec<Kept>,
    rows: RowBuffer,
    /// What records have in memory of their own, by and large.
    owned: usize,
}

enum Kept {
    Segment(String),
    Record(Record<RowPlace>),
    End,
}

impl Batch {
    /// Where a record's rows are to be before it is taken.
    pub(crate) const fn rows(&mut self) -> &mut RowBuffer {
        &mut self.rows
    }

    pub(crate) fn record(&mut self, record: Record<RowPlace>) {
        self.owned += owned_bytes(&record);
        self.items.push(Kept::Record(record));
    }

    pub(crate) fn is_full(&self) -> bool {
        let items = self.items.len() * size_of::<Kept>();
        items + self.rows.bytes() + self.owned >= HANDED_BYTES
    }

    /// One after another, until `take` has enough or the end has come, and whether it has. Then it is empty.
    pub(crate) fn take(
        &mut self,
        take: &mut impl FnMut(Item<'_>) -> Result<Flow, Error>,
    ) -> Result<Flow, Error> {
        for kept in &self.items {
            let flow = match kept {
                Kept::Segment(encoding) => take(Item::Segment(encoding))?,
                Kept::Record(record) => take(Item::Record(record, &self.rows))?,
                Kept::End => {
                    take(Item::End)?;
                    Flow::Enough
                }
            };
            if flow == Flow::Enough {
                return Ok(Flow::Enough);
            }
        }
        self.items.clear();
        self.rows.clear();
        self.owned = 0;
        take(Item::Pause)
    }
}

fn owned_bytes<R>(record: &Record<R>) -> usize {
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
    /// Those that come back, to be filled anew: what one thread frees, the other would have to be given again.
    taken: Receiver<Batch>,
}

impl Relay {
    pub(crate) fn new(batches: SyncSender<Batch>, taken: Receiver<Batch>) -> Self {
        Self {
            batches: Some(batches),
            batch: Batch::default(),
            taken,
        }
    }

    pub(crate) fn segment(&mut self, encoding: &str) {
        if self.batches.is_some() {
            self.batch.items.push(Kept::Segment(encoding.to_owned()));
        }
    }

    /// Where the next record's rows are to be.
    pub(crate) fn rows(&mut self) -> &mut RowBuffer {
        if self.batches.is_none() {
            self.batch.rows.clear();
        }
        self.batch.rows()
    }

    pub(crate) fn record(&mut self, record: Record<RowPlace>) {
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

    /// What was read, or that nothing was: whoever takes it wants to know that it goes on.
    pub(crate) fn hand_on(&mut self) {
        let empty = self.taken.try_recv().unwrap_or_default();
        let batch = std::mem::replace(&mut self.batch, empty);
        let sent = self.batches.as_ref().map(|batches| batches.send(batch));
        if sent.is_some_and(|sent| sent.is_err()) {
            self.batches = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{channel, sync_channel};

    use lastgood_proto::pgoutput::{ReplicaIdentity, TupleBuf, Value};
    use lastgood_proto::segment::{MessageRecord, Old, RelationRecord, SequenceSample};
    use lastgood_proto::{Lsn, Oid};

    fn text(bytes: usize) -> Value<'static> {
        Value::Text("x".repeat(bytes).leak().as_bytes())
    }

    fn row<const N: usize>(values: [Value<'_>; N]) -> TupleBuf {
        TupleBuf::new(values).unwrap()
    }

    fn relayed(relay: &mut Relay, record: &Record<TupleBuf>) {
        let rows = relay.rows();
        let record = record.clone().map(|row| rows.push(row.as_tuple()));
        relay.record(record);
    }

    /// Of every kind that may be large.
    fn records() -> Vec<Record<TupleBuf>> {
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
                new: row([text(100_000), Value::Null]),
            },
            Record::Update {
                rel,
                old: Old::Key(row([text(3), Value::Null])),
                new: row([text(4), Value::Unchanged]),
            },
            Record::Delete {
                rel,
                old: Old::Full(row([Value::Text(&[0xff; 100_000]), text(0)])),
            },
            Record::Relation(Box::new(RelationRecord {
                rel,
                schema: "public".to_owned(),
                table: "t".to_owned(),
                identity: ReplicaIdentity::Full,
                columns: vec![column; 1600],
            })),
            Record::Truncate {
                rels: vec![rel; 10_000],
                cascade: false,
                restart_identity: true,
            },
            Record::Message(Box::new(MessageRecord {
                transactional: true,
                lsn: Lsn::new(1),
                prefix: b"outbox".to_vec(),
                content: vec![b'x'; 200_000],
            })),
            Record::Sequences {
                lsn: Lsn::new(1),
                samples: vec![sample; 5000],
            },
        ]
    }

    #[test]
    fn items_come_as_they_went_in_order() {
        let (sender, batches) = sync_channel(1000);
        let mut relay = Relay::new(sender, channel().1);
        relay.segment("LATIN1");
        let all: Vec<Record<TupleBuf>> = (0..10).flat_map(|_| records()).collect();
        all.iter().for_each(|record| relayed(&mut relay, record));
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
                Item::Record(record, rows) => seen.push(
                    record
                        .clone()
                        .map(|row| TupleBuf::new(rows.row(&row).iter()).unwrap()),
                ),
                Item::Pause => {}
                Item::End => ends.push("end".to_owned()),
            }
            Ok(Flow::GoOn)
        };
        drop(relay);
        let mut flow = Flow::GoOn;
        for mut batch in batches {
            assert_eq!(flow, Flow::GoOn);
            flow = batch.take(&mut take).unwrap();
        }
        assert_eq!(flow, Flow::Enough);
        assert_eq!(ends, ["LATIN1", "end"]);
        let is_nothing = |record: &Record<TupleBuf>| {
            matches!(record, Record::Message(_) | Record::Sequences { .. })
        };
        let all: Vec<_> = all.into_iter().filter(|it| !is_nothing(it)).collect();
        assert!(seen == all);
    }

    #[test]
    fn batches_that_come_back_hold_what_is_new() {
        let (sender, batches) = sync_channel(1000);
        let (giver, taken) = channel();
        let mut relay = Relay::new(sender, taken);
        let rel = Oid::new(7);
        let (mut given, mut seen, mut most) = (0_u32, 0_u32, 0);
        while given < 20_000 {
            let digits = given.to_string();
            let rows = relay.rows();
            // One that came to nothing.
            let _ = rows.push([Value::Text(b"none"), Value::Unchanged]);
            let new = rows.push([Value::Text(digits.as_bytes()), Value::Null]);
            relay.record(Record::Insert { rel, new });
            given += 1;
            for mut batch in batches.try_iter() {
                most = most.max(batch.items.len());
                let mut take = |item: Item<'_>| {
                    if let Item::Record(Record::Insert { new, .. }, rows) = item {
                        let digits = seen.to_string();
                        let expect = [Value::Text(digits.as_bytes()), Value::Null];
                        assert!(rows.row(new).iter().eq(expect));
                        seen += 1;
                    }
                    Ok(Flow::GoOn)
                };
                assert_eq!(batch.take(&mut take).unwrap(), Flow::GoOn);
                assert!(batch.items.is_empty() && batch.rows.bytes() == 0);
                giver.send(batch).unwrap();
            }
        }
        assert!(
            seen > 15_000 && most < 5000,
            "{seen} of {given}, {most} at once"
        );
    }

    /// An application may send messages of any length, and each would wait here.
    #[test]
    fn a_batch_is_bounded_whatever_is_in_it() {
        for record in records() {
            let (sender, batches) = sync_channel(1000);
            let mut relay = Relay::new(sender, channel().1);
            let kind = format!("{record:?}");
            let size = match &record {
                Record::Message(_) | Record::Sequences { .. } => 0,
                Record::Update { .. } => 100,
                Record::Relation(_) => 150_000,
                Record::Truncate { .. } => 40_000,
                _ => 100_000,
            };
            let enough = HANDED_BYTES.checked_div(size).unwrap_or(10) + 1;
            (0..enough).for_each(|_| relayed(&mut relay, &record));
            assert_eq!(batches.try_recv().is_ok(), size > 0, "{kind:.60}");
            assert!(size > 0 || relay.batch.items.is_empty());
        }
    }
}
