//! Random histories, cut into segments anywhere and merged: the very segment that one cut would have made.

use lastgood_proto::pgoutput::{
    Begin, Column, Commit, Insert, LogicalMessage, Message, Relation, ReplicaIdentity, Truncate,
    TupleBuf, Value,
};
use lastgood_proto::segment::{
    Content, ContentReader, Footer, Header, MergeError, Merger, ReadError, SegmentReader,
    SegmentWriter, SequenceSample, WriteError,
};
use lastgood_proto::{Lsn, Oid, PgTimestamp, Xid};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::segment::{header, write};

#[derive(Debug, Clone)]
enum Step {
    /// A row of the relation, with as many columns as it has by now.
    Insert(u8, String),
    Truncate(u8),
    /// From here on the relation has so many columns.
    Redefine(u8, u8),
    Message(bool),
    Sequences(i64),
    /// A description that nothing needed.
    Describe(u8),
}

#[derive(Debug, Clone)]
struct Stretch {
    steps: Vec<Step>,
    time: i32,
    /// A segment ends after it, so much further on.
    cut: Option<u8>,
}

const RELATIONS: u8 = 3;

fn step() -> impl Strategy<Value = Step> {
    let rel = || 0..RELATIONS;
    prop_oneof![
        8 => (rel(), ".{0,5}").prop_map(|(rel, text)| Step::Insert(rel, text)),
        1 => rel().prop_map(Step::Truncate),
        2 => (rel(), 0_u8..3).prop_map(|(rel, columns)| Step::Redefine(rel, columns)),
        1 => any::<bool>().prop_map(Step::Message),
        1 => any::<i64>().prop_map(Step::Sequences),
        1 => rel().prop_map(Step::Describe),
    ]
}

fn stretches() -> impl Strategy<Value = Vec<Stretch>> {
    let stretch = (
        vec(step(), 0..6),
        any::<i32>(),
        proptest::option::of(0_u8..9),
    );
    let stretch = stretch.prop_map(|(steps, time, cut)| Stretch { steps, time, cut });
    vec(stretch, 1..12)
}

/// A segment in the making, which describes relations as it has to.
struct Open {
    writer: SegmentWriter<Vec<u8>>,
    described: [Option<u8>; RELATIONS as usize],
}

impl Open {
    fn new(start: Lsn) -> Self {
        let header = Header { start, ..header() };
        Self {
            writer: SegmentWriter::new(Vec::new(), &header).unwrap(),
            described: [None; RELATIONS as usize],
        }
    }

    fn describe(&mut self, rel: u8, columns: u8) {
        let relation = Relation {
            oid: Oid::new(u32::from(rel)),
            schema: "public".to_owned(),
            table: format!("t{rel}"),
            identity: ReplicaIdentity::Full,
            columns: (0..columns)
                .map(|number| Column {
                    name: format!("c{number}"),
                    type_oid: Oid::new(25),
                    type_modifier: -1,
                    key: true,
                })
                .collect(),
        };
        write(&mut self.writer, &Message::Relation(relation)).unwrap();
        self.described[usize::from(rel)] = Some(columns);
    }

    fn use_relation(&mut self, rel: u8, columns: u8) {
        if self.described[usize::from(rel)] != Some(columns) {
            self.describe(rel, columns);
        }
    }

    fn finish(self, end: Lsn, observed: i64) -> (Vec<u8>, Footer) {
        let observed = PgTimestamp::from_micros(observed);
        self.writer.finish(end, Some(observed)).unwrap()
    }
}

/// The history in one segment and in several; only the latter have descriptions that nothing needed.
fn write_both(history: &[Stretch]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let start = header().start;
    let (mut whole, mut part, mut parts) = (Open::new(start), Open::new(start), Vec::new());
    let mut columns = [1_u8; RELATIONS as usize];
    let (mut lsn, mut observed) = (start.as_u64(), 0);
    let tell = |open: &mut Open, lsn: u64, step: &Step, columns: u8| match step {
        Step::Insert(rel, text) => {
            open.use_relation(*rel, columns);
            let values = (0..columns).map(|_| Value::Text(text.as_bytes()));
            let row = TupleBuf::new(values).unwrap();
            let (relation, new) = (Oid::new(u32::from(*rel)), row.as_tuple());
            write(&mut open.writer, &Message::Insert(Insert { relation, new })).unwrap();
        }
        Step::Truncate(rel) => {
            open.use_relation(*rel, columns);
            let truncate = Truncate {
                relations: vec![Oid::new(u32::from(*rel))],
                cascade: false,
                restart_identity: false,
            };
            write(&mut open.writer, &Message::Truncate(truncate)).unwrap();
        }
        Step::Message(transactional) if *transactional == open.writer.in_transaction() => {
            let message = LogicalMessage {
                transactional: *transactional,
                lsn: Lsn::new(lsn),
                prefix: b"p",
                content: b"c",
            };
            write(&mut open.writer, &Message::Message(message)).unwrap();
        }
        Step::Sequences(value) if !open.writer.in_transaction() => {
            let sample = SequenceSample {
                schema: "public".to_owned(),
                name: "s".to_owned(),
                last_value: value.to_string(),
                is_called: true,
            };
            open.writer.sequences(Lsn::new(lsn), &[sample]).unwrap();
        }
        Step::Redefine(..) | Step::Describe(_) | Step::Message(_) | Step::Sequences(_) => {}
    };
    for stretch in history {
        let begin = Begin {
            commit_lsn: Lsn::new(lsn + 1),
            commit_time: PgTimestamp::from_micros(stretch.time.into()),
            xid: Xid::new(7),
        };
        let commit = Commit {
            commit_lsn: begin.commit_lsn,
            end_lsn: Lsn::new(lsn + 2),
            commit_time: begin.commit_time,
        };
        for open in [&mut whole, &mut part] {
            write(&mut open.writer, &Message::Begin(begin)).unwrap();
        }
        for step in &stretch.steps {
            if let Step::Redefine(rel, now) = step {
                columns[usize::from(*rel)] = *now;
            }
            if let Step::Describe(rel) = step
                && whole.described[usize::from(*rel)] == Some(columns[usize::from(*rel)])
            {
                part.describe(*rel, columns[usize::from(*rel)]);
            }
            let rel = match step {
                Step::Insert(rel, _) | Step::Truncate(rel) => *rel,
                _ => 0,
            };
            for open in [&mut whole, &mut part] {
                tell(open, lsn, step, columns[usize::from(rel)]);
            }
        }
        for open in [&mut whole, &mut part] {
            write(&mut open.writer, &Message::Commit(commit)).unwrap();
        }
        for step in stretch
            .steps
            .iter()
            .filter(|step| matches!(step, Step::Sequences(_) | Step::Message(false)))
        {
            for open in [&mut whole, &mut part] {
                tell(open, lsn, step, 0);
            }
        }
        lsn += 2;
        if let Some(further) = stretch.cut {
            lsn += u64::from(further);
            observed += i64::from(further);
            let next = Open::new(Lsn::new(lsn));
            let done = std::mem::replace(&mut part, next);
            parts.push(done.finish(Lsn::new(lsn), observed).0);
        }
    }
    let end = Lsn::new(lsn + 1);
    parts.push(part.finish(end, observed).0);
    (whole.finish(end, observed).0, parts)
}

fn open(part: &[u8]) -> SegmentReader<&[u8]> {
    SegmentReader::open(part, None).unwrap()
}

fn content(parts: &[Vec<u8>]) -> Content {
    let mut content = ContentReader::new();
    for part in parts {
        content.read(open(part)).unwrap();
    }
    content.finish()
}

fn merge(parts: &[Vec<u8>]) -> Result<(Vec<u8>, Footer, Content), MergeError> {
    let mut merger = Merger::new(Vec::new(), open(&parts[0]).header())?;
    for part in parts {
        merger.take(open(part))?;
    }
    merger.finish()
}

proptest! {
    #[test]
    fn parts_become_the_segment_that_one_cut_would_have_made(history in stretches()) {
        let (whole, parts) = write_both(&history);
        let (merged, footer, said) = merge(&parts).unwrap();
        prop_assert_eq!(String::from_utf8_lossy(&merged), String::from_utf8_lossy(&whole));
        let mut reader = open(&merged);
        while reader.next().unwrap().is_some() {}
        prop_assert_eq!(reader.footer(), Some(&footer));
        // However it is cut, it says the same.
        prop_assert_eq!(&said, &content(&parts));
        prop_assert_eq!(&said, &content(&[whole]));
        prop_assert_eq!((said.transactions, &said.rows), (footer.transactions, &footer.rows));
        prop_assert_eq!(said.commit_times, footer.commit_times);
    }

    /// Merged again, hours to a day: the same.
    #[test]
    fn merged_ones_are_merged_again(history in stretches(), at: prop::sample::Index) {
        let (whole, parts) = write_both(&history);
        let (before, after) = parts.split_at(at.index(parts.len()));
        let halves = [before, after].into_iter().filter(|half| !half.is_empty());
        let halves: Vec<Vec<u8>> = halves.map(|half| merge(half).unwrap().0).collect();
        prop_assert_eq!(merge(&halves).unwrap().0, whole);
    }
}

fn one(start: u64, end: u64, header: Header) -> Vec<u8> {
    let header = Header {
        start: Lsn::new(start),
        ..header
    };
    let writer = SegmentWriter::new(Vec::new(), &header).unwrap();
    writer.finish(Lsn::new(end), None).unwrap().0
}

#[test]
fn what_does_not_follow_is_refused() {
    let hole = [one(1, 2, header()), one(3, 4, header())];
    assert!(matches!(merge(&hole), Err(MergeError::NotNext { .. })));
    let twice = [one(1, 2, header()), one(1, 2, header())];
    assert!(matches!(merge(&twice), Err(MergeError::NotNext { .. })));
    let server = Header {
        server: 160_000,
        ..header()
    };
    let encoding = Header {
        encoding: None,
        ..header()
    };
    for other in [server, encoding] {
        let parts = [one(1, 2, header()), one(2, 3, other)];
        assert!(matches!(merge(&parts), Err(MergeError::OtherHeader)));
    }
}

/// Nothing that is no proper segment is taken.
#[test]
fn a_damaged_part_is_refused() {
    let (_, parts) = write_both(&[Stretch {
        steps: vec![Step::Insert(0, "x".to_owned())],
        time: 0,
        cut: None,
    }]);
    let text = String::from_utf8(parts[0].clone()).unwrap();
    let altered = text.replace("[\"x\"]", "[\"y\"]");
    let cut = text[..text.len() - 1].to_owned();
    for damaged in [altered, cut] {
        let merged = merge(&[damaged.into_bytes()]);
        assert!(matches!(
            merged,
            Err(MergeError::Read(
                ReadError::Footer { .. } | ReadError::Truncated { .. }
            ))
        ));
    }
}

/// A row that is read by another description says something else.
#[test]
fn what_rows_are_read_by_is_compared_too() {
    let segment = |table: &str| {
        let mut writer = SegmentWriter::new(Vec::new(), &header()).unwrap();
        let column = |name: &str| Column {
            name: name.to_owned(),
            type_oid: Oid::new(25),
            type_modifier: -1,
            key: true,
        };
        let relation = Relation {
            oid: Oid::new(1),
            schema: "public".to_owned(),
            table: table.to_owned(),
            identity: ReplicaIdentity::Full,
            columns: vec![column("a")],
        };
        let mut tell =
            |message: Message<'_>| -> Result<(), WriteError> { write(&mut writer, &message) };
        let (commit_lsn, commit_time) = (header().start, PgTimestamp::from_micros(0));
        tell(Message::Begin(Begin {
            commit_lsn,
            commit_time,
            xid: Xid::new(1),
        }))
        .unwrap();
        tell(Message::Relation(relation)).unwrap();
        let row = TupleBuf::new([Value::Text(b"x")]).unwrap();
        let (relation, new) = (Oid::new(1), row.as_tuple());
        tell(Message::Insert(Insert { relation, new })).unwrap();
        let end_lsn = Lsn::new(commit_lsn.as_u64() + 1);
        tell(Message::Commit(Commit {
            commit_lsn,
            end_lsn,
            commit_time,
        }))
        .unwrap();
        writer.finish(end_lsn, None).unwrap().0
    };
    assert_eq!(content(&[segment("t")]), content(&[segment("t")]));
    assert_ne!(content(&[segment("t")]), content(&[segment("u")]));
}
