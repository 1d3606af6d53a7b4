//! Both ways of reading a line, side by side.

use super::super::SegmentWriter;
use super::super::VERSION;
use super::super::lines::Lines;
use super::super::reader::any_record;
use super::super::record::Header;
use super::*;
use crate::pgoutput::{
    Begin, Column, Commit, Delete, Insert, OldTuple, Relation, ReplicaIdentity, TupleBuf, Update,
    Value,
};
use crate::{LineageId, Lsn, PgTimestamp, SourceId, Xid};
use proptest::prelude::*;

/// What a line says, by either way of reading it.
type Said = Option<Record<TupleBuf>>;

fn said(line: &[u8]) -> (Said, Said) {
    let mut rows = RowBuffer::default();
    // As if others had come before.
    let _ = rows.push([Value::Text(b"before"), Value::Null]);
    let mut lines = Lines::new(line);
    lines.advance().unwrap();
    let owned = |record: Record<RowPlace>, rows: &RowBuffer| {
        record.map(|place| TupleBuf::new(rows.row(&place).iter()).unwrap())
    };
    let quick = record(lines.line(), &mut rows);
    let quick = quick.map(|record| owned(record, &rows));
    let slow = any_record(&lines, VERSION, &mut rows).ok();
    (quick, slow.map(|record| owned(record, &rows)))
}

fn value() -> impl Strategy<Value = Option<Vec<u8>>> {
    let bytes = prop_oneof![
        "[a-z0-9]{0,12}".prop_map(String::into_bytes),
        "(?s)[\\x00-\\x21\"\\\\/ü€]{0,6}".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..6),
    ];
    prop::option::of(bytes)
}

/// One line of a transaction with one change.
fn written(
    columns: usize,
    write: impl FnOnce(&mut SegmentWriter<Vec<u8>>, Oid),
    rel: Oid,
    commit_lsn: Lsn,
    which: usize,
) -> Vec<u8> {
    let header = Header {
        source: SourceId::from_bytes([0; 8]),
        lineage: LineageId::new(1, 1),
        start: Lsn::new(1),
        server: 180_000,
        encoding: None,
    };
    let column = Column {
        name: "c".to_owned(),
        type_oid: Oid::new(25),
        type_modifier: -1,
        key: true,
    };
    let relation = Relation {
        oid: rel,
        schema: "public".to_owned(),
        table: "t".to_owned(),
        identity: ReplicaIdentity::Full,
        columns: vec![column; columns],
    };
    let end_lsn = commit_lsn.behind();
    let micros = i64::try_from(commit_lsn.as_u64() / 100).unwrap();
    let commit_time = PgTimestamp::from_micros(micros);
    let mut writer = SegmentWriter::new(Vec::new(), &header).unwrap();
    writer
        .relation(&relation, &vec!["text".to_owned(); columns])
        .unwrap();
    let xid = Xid::new(rel.get());
    let begin = Begin {
        commit_lsn,
        commit_time,
        xid,
    };
    writer.begin(&begin).unwrap();
    write(&mut writer, rel);
    let commit = Commit {
        commit_lsn,
        end_lsn,
        commit_time,
    };
    writer.commit(&commit).unwrap();
    let (ndjson, _) = writer.finish(end_lsn, None).unwrap();
    let mut lines = ndjson.split_inclusive(|byte| *byte == b'\n');
    lines.nth(2 + which).unwrap().to_vec()
}

/// A line as the writer makes it.
fn line() -> impl Strategy<Value = Vec<u8>> {
    let columns = prop::collection::vec((value(), value(), any::<bool>()), 0..4);
    let lsn = 2_u64..u64::MAX;
    let which = prop_oneof![1 => Just(0), 4 => Just(1), 1 => Just(2)];
    let parts = (columns, 0..6_u8, any::<u32>(), lsn, which);
    parts.prop_map(|(columns, kind, oid, lsn, which)| {
        let text = |value: &Option<Vec<u8>>| {
            value
                .clone()
                .map_or(Value::Null, |text| Value::Text(text.leak()))
        };
        let olds = TupleBuf::new(columns.iter().map(|(old, ..)| text(old))).unwrap();
        let news = TupleBuf::new(columns.iter().map(|(_, new, _)| text(new))).unwrap();
        let some = columns.iter().map(|(_, new, unchanged)| match unchanged {
            true => Value::Unchanged,
            false => text(new),
        });
        let some = TupleBuf::new(some).unwrap();
        let old = match kind % 3 {
            0 => OldTuple::Key(olds.as_tuple()),
            1 => OldTuple::Full(olds.as_tuple()),
            _ => OldTuple::None,
        };
        let write = |writer: &mut SegmentWriter<Vec<u8>>, relation| match (kind, old) {
            (0..3, old) => {
                let new = some.as_tuple();
                let update = Update { relation, old, new };
                writer.update(&update).unwrap();
            }
            (_, OldTuple::None) => {
                let new = news.as_tuple();
                writer.insert(&Insert { relation, new }).unwrap();
            }
            (_, old) => writer.delete(&Delete { relation, old }).unwrap(),
        };
        written(columns.len(), write, Oid::new(oid), Lsn::new(lsn), which)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn what_the_writer_makes_is_read_quickly_and_says_the_same(line in line()) {
        let (quick, slow) = said(&line);
        prop_assert!(quick.is_some(), "{}", String::from_utf8_lossy(&line));
        prop_assert_eq!(quick, slow);
    }

    /// What is read quickly is never anything else, or what another parser would refuse.
    #[test]
    fn whatever_is_read_quickly_says_the_same(
        line in line(),
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0..4_u8, any::<prop::sample::Index>()), 1..4)
    ) {
        const BYTES: &[u8] = b"\"\\[]{}:,019aefnu \n\xff\x1f";
        let mut line = line;
        for (at, kind, which) in edits {
            let at = at.index(line.len());
            let byte = *which.get(BYTES);
            match kind {
                0 => line[at] = byte,
                1 => line.insert(at, byte),
                2 => drop(line.remove(at)),
                // Part of it once more.
                _ => {
                    let part = line[at..(at + 1 + which.index(8)).min(line.len())].to_vec();
                    line.splice(at..at, part);
                }
            }
            if line.is_empty() { break; }
        }
        line.push(b'\n');
        let (quick, slow) = said(&line);
        if quick.is_some() {
            prop_assert_eq!(quick, slow, "{}", String::from_utf8_lossy(&line));
        }
    }
}
