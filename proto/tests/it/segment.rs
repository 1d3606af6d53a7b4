//! Random segments written and read back; what the writer refuses.

use std::collections::BTreeSet;
use std::io::{self, BufReader, Write};
use std::sync::Arc;

use lastgood_proto::pgoutput::{
    Begin, Column, Commit, Delete, Insert, LogicalMessage, Message, OldTuple, Relation,
    ReplicaIdentity, Truncate, TupleBuf, Update, Value,
};
use lastgood_proto::segment::{
    Header, Record, Refusal, RelationRecord, SegmentReader, SegmentWriter, SequenceSample,
    WriteError,
};
use lastgood_proto::{Class, LineageId, Lsn, Oid, PgTimestamp, SourceId, Xid};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::owned::{cells, owned, record, relation, row, text};

const COLUMNS_MAX: usize = 5;

type Cells = Vec<Option<Vec<u8>>>;

/// One thing that happens; relations are chosen by index, rows are cut to their relation's width.
#[derive(Debug, Clone)]
enum Step {
    Insert(usize, Cells),
    /// The bits say which values of the new row are unchanged.
    Update(usize, Option<(bool, Cells)>, Cells, u8),
    Delete(usize, bool, Cells),
    Truncate(usize, bool, bool),
    Message(Vec<u8>, Vec<u8>),
    Redefine(usize, Relation),
}

#[derive(Debug, Clone)]
struct Transaction {
    gap: u8,
    time: i32,
    steps: Vec<Step>,
    after: Option<Vec<u8>>,
    samples: Option<Vec<(String, i64, bool)>>,
}

fn step() -> impl Strategy<Value = Step> {
    let full = || cells(COLUMNS_MAX);
    let old = proptest::option::of((any::<bool>(), full()));
    let index = || any::<usize>();
    prop_oneof![
        4 => (index(), full()).prop_map(|(rel, new)| Step::Insert(rel, new)),
        4 => (index(), old, full(), any::<u8>())
            .prop_map(|(rel, old, new, unchanged)| Step::Update(rel, old, new, unchanged)),
        2 => (index(), any::<bool>(), full())
            .prop_map(|(rel, key, old)| Step::Delete(rel, key, old)),
        1 => (index(), any::<bool>(), any::<bool>())
            .prop_map(|(rel, cascade, restart)| Step::Truncate(rel, cascade, restart)),
        1 => (text(), text()).prop_map(|(prefix, content)| Step::Message(prefix, content)),
        1 => (index(), relation(0..COLUMNS_MAX + 1))
            .prop_map(|(rel, relation)| Step::Redefine(rel, relation)),
    ]
}

fn transaction() -> impl Strategy<Value = Transaction> {
    (
        any::<u8>(),
        any::<i32>(),
        vec(step(), 0..8),
        proptest::option::of(text()),
        proptest::option::of(vec((".{0,5}", any::<i64>(), any::<bool>()), 0..3)),
    )
        .prop_map(|(gap, time, steps, after, samples)| Transaction {
            gap,
            time,
            steps,
            after,
            samples,
        })
}

pub(crate) fn header() -> Header {
    Header {
        source: SourceId::from_bytes(*b"lastgood"),
        lineage: LineageId::new(1, 0xABCD_EF01),
        start: Lsn::new(0x1_0000_1000),
        server: 150_018,
        encoding: Some("UTF8".to_owned()),
    }
}

/// Gives each message to the right method.
pub(crate) fn write<W: Write>(
    writer: &mut SegmentWriter<W>,
    message: &Message<'_>,
) -> Result<(), WriteError> {
    match message {
        Message::Begin(begin) => writer.begin(begin),
        Message::Commit(commit) => writer.commit(commit),
        Message::Relation(relation) => {
            let columns = relation.columns.iter();
            let types: Vec<_> = columns.map(|column| type_name(column.type_oid)).collect();
            writer.relation(relation, &types)
        }
        Message::Insert(insert) => writer.insert(insert),
        Message::Update(update) => writer.update(update),
        Message::Delete(delete) => writer.delete(delete),
        Message::Truncate(truncate) => writer.truncate(truncate),
        Message::Message(message) => writer.message(message),
        Message::Origin(_) | Message::Type(_) => Ok(()),
    }
}

pub(crate) fn type_name(oid: Oid) -> String {
    format!("type \"{oid}\"")
}

/// Writes and keeps what the reader should say.
struct Story {
    writer: SegmentWriter<Vec<u8>>,
    expected: Vec<Record<TupleBuf>>,
}

impl Story {
    fn new() -> Self {
        Self {
            writer: SegmentWriter::new(Vec::new(), &header()).unwrap(),
            expected: Vec::new(),
        }
    }

    fn tell(&mut self, message: &Message<'_>) {
        write(&mut self.writer, message).unwrap();
        self.expected.extend(record(message, type_name));
    }

    fn step(&mut self, step: &Step, relations: &mut [Relation]) {
        let count = relations.len();
        let chosen = |index: usize| (relations[index % count].oid, &relations[index % count]);
        let cut = |relation: &Relation, cells: &Cells| row(&cells[..relation.columns.len()]);
        match step {
            Step::Insert(index, new) => {
                let (oid, relation) = chosen(*index);
                let new = cut(relation, new);
                self.tell(&Message::Insert(Insert {
                    relation: oid,
                    new: new.as_tuple(),
                }));
            }
            Step::Update(index, old, new, unchanged) => {
                let (oid, relation) = chosen(*index);
                let values = new.iter().take(relation.columns.len()).enumerate();
                let new = TupleBuf::new(values.map(|(position, cell)| match cell {
                    _ if unchanged >> position & 1 == 1 => Value::Unchanged,
                    Some(text) => Value::Text(text),
                    None => Value::Null,
                }))
                .unwrap();
                let buffer = old.as_ref().map(|(key, cells)| (key, cut(relation, cells)));
                let old = match &buffer {
                    None => OldTuple::None,
                    Some((true, old)) => OldTuple::Key(old.as_tuple()),
                    Some((false, old)) => OldTuple::Full(old.as_tuple()),
                };
                self.tell(&Message::Update(Update {
                    relation: oid,
                    old,
                    new: new.as_tuple(),
                }));
            }
            Step::Delete(index, key, old) => {
                let (oid, relation) = chosen(*index);
                let old = cut(relation, old);
                let old = match key {
                    true => OldTuple::Key(old.as_tuple()),
                    false => OldTuple::Full(old.as_tuple()),
                };
                self.tell(&Message::Delete(Delete { relation: oid, old }));
            }
            Step::Truncate(index, cascade, restart_identity) => {
                self.tell(&Message::Truncate(Truncate {
                    relations: relations[index % count..]
                        .iter()
                        .map(|one| one.oid)
                        .collect(),
                    cascade: *cascade,
                    restart_identity: *restart_identity,
                }));
            }
            Step::Message(prefix, content) => {
                self.tell(&Message::Message(LogicalMessage {
                    transactional: true,
                    lsn: Lsn::new(7),
                    prefix,
                    content,
                }));
            }
            Step::Redefine(index, relation) => {
                let oid = chosen(*index).0;
                let relation = Relation {
                    oid,
                    ..relation.clone()
                };
                self.tell(&Message::Relation(relation.clone()));
                relations[index % count] = relation;
            }
        }
    }

    fn transaction(&mut self, transaction: &Transaction, relations: &mut [Relation]) {
        let commit_lsn = Lsn::new(self.writer.last_end().as_u64() + u64::from(transaction.gap));
        let end_lsn = Lsn::new(commit_lsn.as_u64() + 48);
        let commit_time = PgTimestamp::from_micros(i64::from(transaction.time) * 1_000_003);
        self.tell(&Message::Begin(Begin {
            commit_lsn,
            commit_time,
            xid: Xid::new(u32::from(transaction.gap)),
        }));
        assert!(self.writer.in_transaction());
        for step in &transaction.steps {
            self.step(step, relations);
        }
        self.tell(&Message::Commit(Commit {
            commit_lsn,
            end_lsn,
            commit_time,
        }));
        assert!(!self.writer.in_transaction());
        assert_eq!(self.writer.last_end(), end_lsn);
        if let Some(content) = &transaction.after {
            self.tell(&Message::Message(LogicalMessage {
                transactional: false,
                lsn: end_lsn,
                prefix: b"lastgood.point",
                content,
            }));
        }
        if let Some(samples) = &transaction.samples {
            let samples: Vec<_> = samples
                .iter()
                .map(|(name, value, is_called)| SequenceSample {
                    schema: "public".to_owned(),
                    name: name.clone(),
                    last_value: value.to_string(),
                    is_called: *is_called,
                })
                .collect();
            self.writer.sequences(end_lsn, &samples).unwrap();
            self.expected.push(Record::Sequences {
                lsn: end_lsn,
                samples,
            });
        }
    }
}

proptest! {
    #[test]
    fn what_was_written_is_read(
        mut relations in vec(relation(0..COLUMNS_MAX + 1), 1..4),
        transactions in vec(transaction(), 0..6),
        idle: u16,
        observed in proptest::option::of(any::<i32>()),
        capacity in 1_usize..100,
    ) {
        let mut story = Story::new();
        for (number, relation) in relations.iter_mut().enumerate() {
            relation.oid = Oid::new(16_384 + u32::try_from(number).unwrap());
            prop_assert!(!story.writer.is_relation_known(relation.oid));
            story.tell(&Message::Relation(relation.clone()));
            prop_assert!(story.writer.is_relation_known(relation.oid));
        }
        for transaction in &transactions {
            story.transaction(transaction, &mut relations);
        }
        let Story { writer, mut expected } = story;
        prop_assert_eq!(writer.transactions(), transactions.len() as u64);
        let end = Lsn::new(writer.last_end().as_u64() + u64::from(idle));
        let observed = observed.map(|time| PgTimestamp::from_micros(i64::from(time) * 1_000_003));
        let bytes = writer.bytes();
        let (ndjson, footer) = writer.finish(end, observed).unwrap();

        let times = transactions.iter().map(|one| i64::from(one.time) * 1_000_003);
        prop_assert_eq!(footer.end, end);
        prop_assert_eq!(footer.bytes, bytes);
        prop_assert_eq!(footer.transactions, transactions.len() as u64);
        prop_assert_eq!(
            footer.commit_times.map(|range| (range.min.as_micros(), range.max.as_micros())),
            times.clone().min().zip(times.max())
        );
        let counted: u64 = footer
            .rows
            .values()
            .map(|rows| rows.inserts + rows.updates + rows.deletes)
            .sum();
        let rows = expected.iter().filter(|record| {
            matches!(record, Record::Insert { .. } | Record::Update { .. } | Record::Delete { .. })
        });
        prop_assert_eq!(counted, rows.count() as u64);
        // One record a line, each of them JSON that anybody can read.
        for line in ndjson.split_inclusive(|byte| *byte == b'\n') {
            prop_assert!(serde_json::from_slice::<serde_json::Value>(line).is_ok());
        }

        let key = footer.key(header().start);
        let expect = Some((header().source, header().lineage, &key));
        let input = BufReader::with_capacity(capacity, &ndjson[..]);
        let mut reader = SegmentReader::open(input, expect).unwrap();
        prop_assert_eq!(reader.header(), &header());
        prop_assert_eq!(reader.footer(), None);
        let mut read = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            read.push(owned(record));
        }
        prop_assert_eq!(&read, &expected);
        prop_assert_eq!(reader.footer(), Some(&footer));
        prop_assert_eq!(reader.next().unwrap(), None);

        // With the rows of some relations left out, and all of it vouched for.
        let is_wanted = |relation: &RelationRecord| relation.columns.len().is_multiple_of(2);
        let input = BufReader::with_capacity(capacity, &ndjson[..]);
        let reader = SegmentReader::open(input, expect).unwrap();
        let mut reader = reader.only(Some(Arc::new(is_wanted)));
        let mut read = Vec::new();
        while let Some(record) = reader.next().unwrap() {
            read.push(owned(record));
        }
        let mut wanted = BTreeSet::new();
        expected.retain(|record| match record {
            Record::Relation(relation) => {
                match is_wanted(relation) {
                    true => wanted.insert(relation.rel),
                    false => wanted.remove(&relation.rel),
                };
                true
            }
            Record::Insert { rel, .. } | Record::Update { rel, .. } | Record::Delete { rel, .. } => {
                wanted.contains(rel)
            }
            _ => true,
        });
        prop_assert_eq!(read, expected);
        prop_assert_eq!(reader.footer(), Some(&footer));
    }
}

fn lsn(offset: u64) -> Lsn {
    Lsn::new(header().start.as_u64() + offset)
}

fn time(micros: i64) -> PgTimestamp {
    PgTimestamp::from_micros(micros)
}

fn begin(offset: u64) -> Begin {
    Begin {
        commit_lsn: lsn(offset),
        commit_time: time(5),
        xid: Xid::new(1),
    }
}

fn commit(start: u64, end: u64) -> Commit {
    Commit {
        commit_lsn: lsn(start),
        end_lsn: lsn(end),
        commit_time: time(5),
    }
}

fn emitted(transactional: bool) -> Message<'static> {
    Message::Message(LogicalMessage {
        transactional,
        lsn: lsn(1),
        prefix: b"p",
        content: b"c",
    })
}

/// Writes `before`, which must go well, then `refused`.
fn refusal(before: &[Message<'_>], refused: &Message<'_>) -> Refusal {
    let mut writer = SegmentWriter::new(Vec::new(), &header()).unwrap();
    for message in before {
        write(&mut writer, message).unwrap();
    }
    refusal_of(write(&mut writer, refused))
}

fn refusal_of<T>(result: Result<T, WriteError>) -> Refusal {
    match result.map(|_| ()) {
        Err(error @ WriteError::Refused(_)) => {
            assert_eq!(error.class(), Class::Corrupt);
            let WriteError::Refused(refusal) = error else {
                unreachable!()
            };
            refusal
        }
        other => panic!("not refused: {other:?}"),
    }
}

fn two_columns() -> Relation {
    let column = |name: &str| Column {
        name: name.to_owned(),
        type_oid: Oid::new(25),
        type_modifier: -1,
        key: true,
    };
    Relation {
        oid: Oid::new(1),
        schema: "public".to_owned(),
        table: "t".to_owned(),
        identity: ReplicaIdentity::Default,
        columns: vec![column("a"), column("b")],
    }
}

fn insert(relation: Oid, new: &TupleBuf) -> Message<'_> {
    let new = new.as_tuple();
    Message::Insert(Insert { relation, new })
}

#[test]
fn the_writer_refuses_what_has_no_place() {
    let oid = Oid::new(1);
    let one = TupleBuf::new([Value::Null]).unwrap();
    let two = TupleBuf::new([Value::Null, Value::Text(b"x")]).unwrap();
    let toast = TupleBuf::new([Value::Null, Value::Unchanged]).unwrap();
    let described = Message::Relation(two_columns());
    let opened = Message::Begin(begin(10));
    let closed = Message::Commit(commit(10, 20));
    let update = |old| {
        Message::Update(Update {
            relation: oid,
            old,
            new: two.as_tuple(),
        })
    };
    let delete = |old| Message::Delete(Delete { relation: oid, old });
    let truncate = |relations| {
        Message::Truncate(Truncate {
            relations,
            cascade: false,
            restart_identity: false,
        })
    };
    let inside = [described.clone(), opened.clone()];

    // Rows, truncates and commits belong inside, begins outside, messages as they say.
    assert_eq!(
        refusal(std::slice::from_ref(&described), &insert(oid, &two)),
        Refusal::Outside { record: "row" }
    );
    assert_eq!(
        refusal(&[], &truncate(vec![oid])),
        Refusal::Outside { record: "truncate" }
    );
    assert_eq!(refusal(&[], &closed), Refusal::Outside { record: "commit" });
    assert_eq!(
        refusal(&inside, &opened),
        Refusal::Inside { record: "begin" }
    );
    assert_eq!(
        refusal(&[], &emitted(true)),
        Refusal::Outside {
            record: "transactional message"
        }
    );
    assert_eq!(
        refusal(&inside, &emitted(false)),
        Refusal::Inside {
            record: "non-transactional message"
        }
    );
    // Relations come before their rows, and rows have their columns.
    let unknown = Refusal::UnknownRelation(Oid::new(9));
    assert_eq!(refusal(&inside, &insert(Oid::new(9), &two)), unknown);
    assert_eq!(refusal(&inside, &truncate(vec![oid, Oid::new(9)])), unknown);
    assert_eq!(refusal(&inside, &truncate(vec![])), Refusal::EmptyTruncate);
    let columns = Refusal::Columns {
        rel: oid,
        relation: 2,
        row: 1,
    };
    assert_eq!(refusal(&inside, &insert(oid, &one)), columns);
    assert_eq!(
        refusal(&inside, &update(OldTuple::Key(one.as_tuple()))),
        columns
    );
    assert_eq!(
        refusal(&inside, &delete(OldTuple::Full(one.as_tuple()))),
        columns
    );
    assert_eq!(
        refusal(&inside, &delete(OldTuple::None)),
        Refusal::DeleteWithoutOld(oid)
    );
    // Values are left out of an update's new row only.
    let unchanged = Refusal::Unchanged(oid);
    assert_eq!(refusal(&inside, &insert(oid, &toast)), unchanged);
    assert_eq!(
        refusal(&inside, &update(OldTuple::Full(toast.as_tuple()))),
        unchanged
    );
    // A commit ends what was begun, later than it began; nothing begins before the last end.
    let begun = std::slice::from_ref(&opened);
    assert_eq!(
        refusal(begun, &Message::Commit(commit(11, 20))),
        Refusal::CommitLsn {
            begin: lsn(10),
            commit: lsn(11)
        }
    );
    let late = Commit {
        commit_time: time(6),
        ..commit(10, 20)
    };
    assert_eq!(
        refusal(begun, &Message::Commit(late)),
        Refusal::CommitTime {
            begin: time(5),
            commit: time(6)
        }
    );
    assert_eq!(
        refusal(begun, &Message::Commit(commit(10, 10))),
        Refusal::LsnOrder {
            what: "the end LSN",
            lsn: lsn(10),
            floor: lsn(10)
        }
    );
    assert_eq!(
        refusal(&[opened, closed], &Message::Begin(begin(19))),
        Refusal::LsnOrder {
            what: "the commit LSN",
            lsn: lsn(19),
            floor: lsn(20)
        }
    );
    // A clock that RFC 3339 cannot say.
    let far = Begin {
        commit_time: time(i64::MAX),
        ..begin(10)
    };
    assert_eq!(
        refusal(&[], &Message::Begin(far)),
        Refusal::Time(time(i64::MAX))
    );
    // Committed before it was.
    let mut writer = SegmentWriter::new(Vec::new(), &header()).unwrap();
    let until = time(begin(10).commit_time.as_micros() - 1);
    assert_eq!(
        refusal_of(writer.begin_between(&begin(10), Some(until))),
        Refusal::Until {
            time: begin(10).commit_time,
            until
        }
    );
}

#[test]
fn the_writer_refuses_a_wrong_end() {
    let started = || {
        let mut writer = SegmentWriter::new(Vec::new(), &header()).unwrap();
        writer.begin(&begin(10)).unwrap();
        writer
    };
    assert_eq!(
        refusal_of(started().finish(lsn(20), None)),
        Refusal::Inside { record: "footer" }
    );
    assert_eq!(
        refusal_of(started().sequences(lsn(20), &[])),
        Refusal::Inside {
            record: "sequences"
        }
    );
    assert_eq!(
        refusal_of(started().relation(&two_columns(), &[])),
        Refusal::TypeNames {
            rel: Oid::new(1),
            columns: 2,
            names: 0
        }
    );
    let mut writer = started();
    writer.commit(&commit(10, 20)).unwrap();
    assert_eq!(
        refusal_of(writer.finish(lsn(19), None)),
        Refusal::LsnOrder {
            what: "the segment's end",
            lsn: lsn(19),
            floor: lsn(20)
        }
    );
}

#[test]
fn nothing_follows_half_a_line() {
    let mut writer = SegmentWriter::new(Vec::new(), &header()).unwrap();
    let toast = TupleBuf::new([Value::Text(b"half a row"), Value::Unchanged]).unwrap();
    write(&mut writer, &Message::Relation(two_columns())).unwrap();
    writer.begin(&begin(10)).unwrap();
    let insert = Insert {
        relation: Oid::new(1),
        new: toast.as_tuple(),
    };
    assert_eq!(
        refusal_of(writer.insert(&insert)),
        Refusal::Unchanged(Oid::new(1))
    );
    let commit = writer.commit(&commit(10, 20));
    assert!(matches!(commit, Err(WriteError::Unusable)));
    let finish = writer.finish(lsn(20), None);
    assert!(matches!(finish, Err(WriteError::Unusable)));
}

/// Takes so many bytes and no more.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.min(bytes.len()) {
            0 => Err(io::ErrorKind::StorageFull.into()),
            taken => {
                self.0 -= taken;
                Ok(taken)
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_sink_is_an_error_that_stays() {
    let large = vec![b'x'; 1 << 20];
    let row = TupleBuf::new([Value::Text(&large), Value::Null]).unwrap();
    let insert = Insert {
        relation: Oid::new(1),
        new: row.as_tuple(),
    };
    let mut writer = SegmentWriter::new(Full(100_000), &header()).unwrap();
    write(&mut writer, &Message::Relation(two_columns())).unwrap();
    writer.begin(&begin(10)).unwrap();
    let error = writer.insert(&insert).unwrap_err();
    assert!(matches!(error, WriteError::Sink(_)));
    assert_eq!(error.class(), Class::Transient);
    assert!(matches!(writer.insert(&insert), Err(WriteError::Unusable)));

    // At the very end, too: the last buffer goes out with the footer.
    let writer = SegmentWriter::new(Full(10), &header()).unwrap();
    assert!(matches!(
        writer.finish(lsn(20), None),
        Err(WriteError::Sink(_))
    ));
}
