//! One segment with every kind of record: whatever is done to it is an error, never a panic and
//! never other records than were written.

use std::io;
use std::sync::Arc;

use lastgood_proto::key::SegmentKey;
use lastgood_proto::pgoutput::{
    Begin, Column, Commit, Delete, Insert, LogicalMessage, OldTuple, Relation, ReplicaIdentity,
    Truncate, TupleBuf, Update, Value,
};
use lastgood_proto::segment::{
    Header, ReadError, Record, Refusal, SegmentReader, SegmentWriter, SequenceSample,
};
use lastgood_proto::{Class, LineageId, Lsn, Oid, PgTimestamp, SourceId, Xid};
use proptest::prelude::*;

use crate::owned::owned;
use crate::segment::header;

const EXPECTED: &str = include_str!("segment.ndjson");

fn segment() -> (Vec<u8>, SegmentKey) {
    let rel = Oid::new(16_385);
    let at = |offset: u64| Lsn::new(header().start.as_u64() + offset);
    let noon = PgTimestamp::from_micros(848_577_600_123_456);
    let column = |name: &str, oid, modifier, key| Column {
        name: name.to_owned(),
        type_oid: Oid::new(oid),
        type_modifier: modifier,
        key,
    };
    let relation = Relation {
        oid: rel,
        schema: "public".to_owned(),
        table: "users".to_owned(),
        identity: ReplicaIdentity::Default,
        columns: vec![column("id", 20, -1, true), column("name", 1043, 44, false)],
    };
    let row = |id: &'static str, name| TupleBuf::new([Value::Text(id.as_bytes()), name]).unwrap();
    let (ann, changed) = (row("1", Value::Text(b"ann")), row("2", Value::Unchanged));
    let (bytes, key) = (row("3", Value::Text(b"\xFF\n\"")), row("1", Value::Null));
    let control = row("4", Value::Text("\u{0}\u{1f}\u{7f}\\/ü\u{2028}".as_bytes()));
    let begin = |offset, time, xid| Begin {
        commit_lsn: at(offset),
        commit_time: time,
        xid: Xid::new(xid),
    };
    let commit = |start, end, time| Commit {
        commit_lsn: at(start),
        end_lsn: at(end),
        commit_time: time,
    };
    let earlier = PgTimestamp::from_micros(noon.as_micros() - 1);
    let message = |transactional, offset, prefix, content| LogicalMessage {
        transactional,
        lsn: at(offset),
        prefix,
        content,
    };

    let mut writer = SegmentWriter::new(Vec::new(), &header()).unwrap();
    writer.begin(&begin(0x10, noon, 742)).unwrap();
    let types = ["int8".to_owned(), "varchar".to_owned()];
    writer.relation(&relation, &types).unwrap();
    for new in [&ann, &bytes, &control] {
        let new = new.as_tuple();
        writer.insert(&Insert { relation: rel, new }).unwrap();
    }
    for old in [
        OldTuple::None,
        OldTuple::Key(key.as_tuple()),
        OldTuple::Full(ann.as_tuple()),
    ] {
        let new = changed.as_tuple();
        let update = Update {
            relation: rel,
            old,
            new,
        };
        writer.update(&update).unwrap();
    }
    for old in [
        OldTuple::Key(key.as_tuple()),
        OldTuple::Full(ann.as_tuple()),
    ] {
        writer.delete(&Delete { relation: rel, old }).unwrap();
    }
    writer
        .message(&message(
            true,
            8,
            b"lastgood.ddl",
            b"{\"tag\":\"CREATE TABLE\"}",
        ))
        .unwrap();
    writer.commit(&commit(0x10, 0x40, noon)).unwrap();
    writer
        .message(&message(false, 0x48, b"lastgood.point", b"\x00\xFF"))
        .unwrap();
    let sequence = SequenceSample {
        schema: "public".to_owned(),
        name: "users_id_seq".to_owned(),
        last_value: "42".to_owned(),
        is_called: true,
    };
    writer.sequences(at(0x60), &[sequence]).unwrap();
    writer
        .begin_between(&begin(0x60, earlier, 743), Some(noon))
        .unwrap();
    writer
        .truncate(&Truncate {
            relations: vec![rel],
            cascade: true,
            restart_identity: false,
        })
        .unwrap();
    writer.commit(&commit(0x60, 0x90, earlier)).unwrap();
    let (ndjson, footer) = writer.finish(at(0xA0), Some(noon)).unwrap();
    (ndjson, footer.key(header().start))
}

fn read(
    ndjson: &[u8],
    expect: Option<(SourceId, LineageId, &SegmentKey)>,
) -> Result<(Header, Vec<Record<TupleBuf>>), ReadError> {
    let mut reader = SegmentReader::open(ndjson, expect)?;
    let mut records = Vec::new();
    loop {
        match reader.next() {
            Ok(Some(record)) => records.push(owned(record)),
            Ok(None) => return Ok((reader.header().clone(), records)),
            Err(error) => {
                assert!(reader.footer().is_none());
                assert!(matches!(reader.next(), Err(ReadError::Unusable)));
                return Err(error);
            }
        }
    }
}

/// With the key it was stored under.
fn read_stored(ndjson: &[u8]) -> Result<(Header, Vec<Record<TupleBuf>>), ReadError> {
    let key = segment().1;
    let expect = Some((header().source, header().lineage, &key));
    let found = read(ndjson, expect);
    // Whoever wants no rows finds as much.
    if let Ok(reader) = SegmentReader::open(ndjson, expect) {
        let mut reader = reader.only(Some(Arc::new(|_| false)));
        let end = loop {
            match reader.next() {
                Ok(Some(_)) => {}
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        assert_eq!(end.is_ok(), found.is_ok());
        if end.is_err() {
            assert!(matches!(reader.next(), Err(ReadError::Unusable)));
        }
    }
    found
}

/// Told by its place, before the digest is asked.
#[test]
fn a_row_outside_a_transaction_is_an_error_if_nobody_wants_it_too() {
    let (ndjson, _) = segment();
    let mut lines = lines(&ndjson);
    let is_commit = |line: &&[u8]| line.starts_with(b"{\"t\":\"C\"");
    let commit = lines.iter().position(is_commit).unwrap();
    let row = lines
        .iter()
        .position(|line| line.starts_with(b"{\"t\":\"I\""))
        .unwrap();
    lines.insert(commit + 1, lines[row]);
    let input = lines.concat();
    for is_wanted in [true, false] {
        let reader = SegmentReader::open(&input[..], None).unwrap();
        let mut reader = reader.only(Some(Arc::new(move |_| is_wanted)));
        let error = loop {
            match reader.next() {
                Ok(record) => assert!(record.is_some()),
                Err(error) => break error,
            }
        };
        let expect = commit as u64 + 2;
        assert!(
            matches!(error, ReadError::Refused { line, refusal: Refusal::Outside { .. } } if line == expect),
            "{error:?}"
        );
    }
}

fn lines(ndjson: &[u8]) -> Vec<&[u8]> {
    ndjson.split_inclusive(|byte| *byte == b'\n').collect()
}

#[test]
fn this_is_the_format() {
    let (ndjson, _) = segment();
    let text = String::from_utf8(ndjson).unwrap();
    assert!(text == EXPECTED, "{text}");
    assert_eq!(read_stored(EXPECTED.as_bytes()).unwrap().1.len(), 17);
}

#[test]
fn a_cut_anywhere_is_an_error() {
    let (ndjson, _) = segment();
    for cut in 0..ndjson.len() {
        let error = read(&ndjson[..cut], None).unwrap_err();
        assert!(
            matches!(error, ReadError::Truncated { .. }),
            "{cut}: {error}"
        );
        assert_eq!(error.class(), Class::Corrupt);
    }
}

#[test]
fn a_line_dropped_doubled_or_moved_is_an_error() {
    let (ndjson, _) = segment();
    let lines = lines(&ndjson);
    for at in 0..lines.len() {
        let mut dropped = lines.clone();
        dropped.remove(at);
        assert!(read_stored(&dropped.concat()).is_err(), "line {at} dropped");
        let mut doubled = lines.clone();
        doubled.insert(at, lines[at]);
        assert!(read_stored(&doubled.concat()).is_err(), "line {at} doubled");
        for other in 0..at {
            let mut swapped = lines.clone();
            swapped.swap(at, other);
            assert!(
                read_stored(&swapped.concat()).is_err(),
                "{at} and {other} swapped"
            );
        }
    }
}

#[test]
fn a_flipped_bit_is_an_error() {
    let (mut ndjson, _) = segment();
    for at in 0..ndjson.len() {
        for bit in 0..8 {
            ndjson[at] ^= 1 << bit;
            assert!(read_stored(&ndjson).is_err(), "byte {at}, bit {bit}");
            ndjson[at] ^= 1 << bit;
        }
    }
}

#[test]
fn whatever_follows_the_footer_is_an_error() {
    let (ndjson, _) = segment();
    for tail in [&b"\n"[..], b" ", b"{}", &ndjson] {
        let error = read_stored(&[&ndjson, tail].concat()).unwrap_err();
        assert!(matches!(error, ReadError::Trailing), "{error}");
    }
}

#[test]
fn another_key_is_an_error() {
    let (ndjson, key) = segment();
    let other_lsn = Lsn::new(1);
    let other_time = Some(PgTimestamp::from_micros(1));
    let keys = [
        (
            "start",
            SegmentKey {
                start: other_lsn,
                ..key
            },
        ),
        (
            "end",
            SegmentKey {
                end: other_lsn,
                ..key
            },
        ),
        (
            "commit time",
            SegmentKey {
                max_commit_time: other_time,
                ..key
            },
        ),
        (
            "commit time",
            SegmentKey {
                max_commit_time: None,
                ..key
            },
        ),
        (
            "observed time",
            SegmentKey {
                observed_through: None,
                ..key
            },
        ),
    ];
    let (source, lineage) = (header().source, header().lineage);
    for (field, key) in &keys {
        let error = read(&ndjson, Some((source, lineage, key))).unwrap_err();
        assert!(
            matches!(error, ReadError::Key { what } if what == *field),
            "{error}"
        );
    }
    let other = SourceId::from_bytes([0; 8]);
    assert!(read(&ndjson, Some((other, lineage, &key))).is_err());
    assert!(read(&ndjson, Some((source, LineageId::new(2, 0), &key))).is_err());
}

/// Lines that are no records, each in a segment that is otherwise well: the digest is not asked.
#[test]
fn fails_closed_on_what_it_does_not_know() {
    let (ndjson, _) = segment();
    let lines = lines(&ndjson);
    let replaced = |at: usize, line: &str| {
        let mut lines = lines.clone();
        let line = format!("{line}\n");
        lines[at] = line.as_bytes();
        read(&lines.concat(), None).unwrap_err()
    };
    let header = |field: &str| {
        let line = std::str::from_utf8(lines[0]).unwrap().trim_end();
        replaced(0, &line.replace("\"v\":3", field))
    };
    for (field, version) in [("\"v\":4", 4), ("\"v\":0", 0)] {
        let error = header(field);
        assert!(matches!(error, ReadError::Version(found) if found == version));
        assert_eq!(error.class(), Class::NeedsOperator);
    }
    // Version 1 knew no encoding.
    for field in ["\"v\":3,\"more\":1", "\"v\":1"] {
        assert!(matches!(
            header(field),
            ReadError::Malformed { line: 1, .. }
        ));
    }
    let without = std::str::from_utf8(lines[0]).unwrap();
    let without = without.replace(",\"encoding\":\"UTF8\"", "");
    for (line, ok) in [
        (without.clone(), false),
        (without.replace("\"v\":3", "\"v\":1"), true),
    ] {
        let opened = SegmentReader::open(line.as_bytes(), None);
        assert_eq!(opened.is_ok(), ok, "{line}");
        assert!(opened.is_err() || opened.unwrap().header().encoding.is_none());
    }
    // Version 2 knew no transaction that was replicated.
    let second = std::str::from_utf8(&ndjson).unwrap();
    let second = second.replace("\"v\":3", "\"v\":2");
    let error = read(second.as_bytes(), None).unwrap_err();
    assert!(
        matches!(error, ReadError::Malformed { line: 16, .. }),
        "{error}"
    );
    for line in [
        "",
        "{}",
        "[]",
        "{\"t\":\"X\"}",
        "{ \"t\":\"I\"}",
        "{\"t\":1}",
        "{\"t\":\"II\"}",
    ] {
        let error = replaced(3, line);
        assert!(
            matches!(error, ReadError::UnknownRecord { line: 4 }),
            "{line}: {error}"
        );
    }
    for line in [
        r#"{"t":"I"}"#,
        r#"{"t":"I","rel":16385,"new":["1","a"],"more":1}"#,
        r#"{"t":"I","rel":16385,"new":["1","a"],"new":["1","a"]}"#,
        r#"{"t":"I","rel":-1,"new":["1","a"]}"#,
        r#"{"t":"I","rel":16385,"new":["1",true]}"#,
        r#"{"t":"I","rel":16385,"new":["1",2]}"#,
        r#"{"t":"I","rel":16385,"new":["1",["a"]]}"#,
        r#"{"t":"I","rel":16385,"new":["1",{}]}"#,
        r#"{"t":"I","rel":16385,"new":["1",{"b64":"?"}]}"#,
        r#"{"t":"I","rel":16385,"new":["1",{"b64":"YQ"}]}"#,
        r#"{"t":"I","rel":16385,"new":["1",{"b64":"YQ==","b64":"YQ=="}]}"#,
        r#"{"t":"I","rel":16385,"new":["1",{"hex":"00"}]}"#,
        r#"{"t":"I","rel":16385,"new":["1","a"]} {}"#,
        r#"{"t":"I","t":"I","rel":16385,"new":["1","a"]}"#,
        r#"{"t":"U","rel":16385,"key":null,"new":["1","a"]}"#,
        r#"{"t":"D","rel":16385,"key":["1",null],"new":["1","a"]}"#,
        r#"{"t":"I","rel":16385,"key":["1",null],"new":["1","a"]}"#,
        r#"{"t":"I","rel":16385,"old":["1",null],"new":["1","a"]}"#,
        r#"{"t":"C","lsn":"0/0"}"#,
        r#"{"t":"M","transactional":true,"lsn":"0/0","prefix":null,"content":""}"#,
    ] {
        let error = replaced(3, line);
        assert!(
            matches!(error, ReadError::Malformed { line: 4, .. }),
            "{line}: {error}"
        );
        assert!(
            !error.to_string().contains("16385"),
            "no values in errors: {error}"
        );
    }
    for line in [
        r#"{"t":"I","rel":16385,"new":["1"]}"#,
        r#"{"t":"I","rel":1,"new":["1","a"]}"#,
        r#"{"t":"I","rel":16385,"new":["1",false]}"#,
        r#"{"t":"U","rel":16385,"key":["1",null],"old":["1",null],"new":["1","a"]}"#,
        r#"{"t":"U","rel":16385,"key":["1",false],"new":["1","a"]}"#,
        r#"{"t":"D","rel":16385}"#,
        r#"{"t":"T","rels":[],"cascade":false,"restart_identity":false}"#,
        r#"{"t":"T","rels":[1],"cascade":false,"restart_identity":false}"#,
        r#"{"t":"C","lsn":"0/1","end":"0/2"}"#,
        r#"{"t":"B","xid":1,"lsn":"F/0","time":"2026-11-20T12:00:00.000000Z"}"#,
        r#"{"t":"M","transactional":false,"lsn":"0/0","prefix":"","content":""}"#,
        r#"{"t":"S","lsn":"0/0","sequences":[]}"#,
    ] {
        let error = replaced(3, line);
        assert!(
            matches!(error, ReadError::Refused { line: 4, .. }),
            "{line}: {error}"
        );
    }
    assert!(matches!(
        replaced(0, r#"{"t":"F"}"#),
        ReadError::UnknownRecord { line: 1 }
    ));
}

/// The footer itself is under no digest: each number in it must be the one that was counted.
#[test]
fn a_footer_that_says_otherwise_is_an_error() {
    let (ndjson, _) = segment();
    let text = String::from_utf8(ndjson).unwrap();
    for (from, to, field) in [
        ("\"transactions\":2", "\"transactions\":3", "transactions"),
        ("[3,3,2,1]", "[3,3,2,0]", "rows"),
        ("{\"16385\":", "{\"1\":[0,0,0,0],\"16385\":", "rows"),
        ("\"min\":\"2", "\"min\":\"1", "commit_times"),
        ("\"bytes\":1", "\"bytes\":2", "bytes"),
        ("\"sha256\":\"", "\"sha256\":\"0", "form"),
        ("{\"16385\":", "{\"16385\":[0,0,0,0],\"16385\":", "form"),
        ("\"t\":\"F\",", "\"t\":\"F\", ", "form"),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(text, changed);
        let error = read(changed.as_bytes(), None).unwrap_err();
        let named = matches!(error, ReadError::Footer { what } if what == field);
        let malformed = matches!(error, ReadError::Malformed { .. });
        assert!(
            named || malformed && from.contains("sha256"),
            "{field}: {error}"
        );
    }
}

/// Its end must have been reached, and verified by what unseals it: no matter in which pieces it comes.
#[test]
fn what_follows_the_footer_in_another_piece_is_an_error() {
    let (ndjson, _) = segment();
    let more = [&ndjson[..], b"\n"].concat();
    for bytes in [1, 7, ndjson.len(), more.len()] {
        let pieces = |ndjson, kind| Pieces {
            rest: ndjson,
            bytes,
            fails: (kind, 1),
        };
        let interrupted = pieces(&ndjson, io::ErrorKind::Interrupted);
        assert_eq!(read_all(interrupted).unwrap(), 17);
        let trailing = read_all(pieces(&more, io::ErrorKind::Interrupted)).unwrap_err();
        assert!(matches!(trailing, ReadError::Trailing), "{bytes}");
        let broken = read_all(pieces(&ndjson, io::ErrorKind::InvalidData)).unwrap_err();
        assert!(matches!(broken, ReadError::Io(_)), "{bytes}");
    }
}

fn read_all(input: impl io::BufRead) -> Result<usize, ReadError> {
    let mut reader = SegmentReader::open(input, None)?;
    let mut records = 0;
    while reader.next()?.is_some() {
        records += 1;
    }
    Ok(records)
}

/// Comes in pieces of so many bytes, and at its end fails so often.
struct Pieces<'a> {
    rest: &'a [u8],
    bytes: usize,
    fails: (io::ErrorKind, u8),
}

impl io::BufRead for Pieces<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.rest.is_empty() && self.fails.1 > 0 {
            self.fails.1 -= 1;
            return Err(self.fails.0.into());
        }
        Ok(&self.rest[..self.bytes.min(self.rest.len())])
    }

    fn consume(&mut self, bytes: usize) {
        self.rest = &self.rest[bytes..];
    }
}

impl io::Read for Pieces<'_> {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[test]
fn what_unseals_reports_its_own_errors() {
    struct Broken(io::ErrorKind);

    impl io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
    }

    for (kind, class) in [
        (io::ErrorKind::InvalidData, Class::Corrupt),
        (io::ErrorKind::UnexpectedEof, Class::Corrupt),
        (io::ErrorKind::TimedOut, Class::Transient),
    ] {
        let Err(error) = SegmentReader::open(io::BufReader::new(Broken(kind)), None) else {
            panic!("read from nothing")
        };
        assert!(matches!(error, ReadError::Io(_)));
        assert_eq!(error.class(), class);
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes: Vec<u8>) {
        prop_assert!(read(&bytes, None).is_err());
        let (mut ndjson, _) = segment();
        let end = ndjson.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        ndjson.truncate(end);
        ndjson.extend(bytes);
        prop_assert!(read(&ndjson, None).is_err());
    }

    #[test]
    fn no_altered_segment_panics(
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)
    ) {
        let (original, _) = segment();
        let mut ndjson = original.clone();
        for (at, byte) in edits {
            let at = at.index(ndjson.len());
            ndjson[at] = byte;
        }
        prop_assert_eq!(read_stored(&ndjson).is_ok(), ndjson == original);
    }
}
