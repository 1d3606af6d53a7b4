//! What real servers sent for `captured/statements.sql`: every major says the same, except for
//! OIDs, LSNs, xids and times, which `describe` leaves out.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use lastgood_proto::pgoutput::{Message, OldTuple, Relation, Tuple, Value, decode, encode};
use lastgood_proto::segment::{Header, SegmentReader, SegmentWriter};
use lastgood_proto::{LineageId, Lsn, Oid, SourceId};

use crate::owned::{owned, record};

const CAPTURED: [(u32, &str); 6] = [
    (13, include_str!("../captured/13.hex")),
    (14, include_str!("../captured/14.hex")),
    (15, include_str!("../captured/15.hex")),
    (16, include_str!("../captured/16.hex")),
    (17, include_str!("../captured/17.hex")),
    (18, include_str!("../captured/18.hex")),
];

#[test]
fn every_major_says_the_same() {
    let expected = include_str!("../captured/expected.txt");
    for (major, hex) in CAPTURED {
        let described = describe(&messages(hex));
        let expected = match major {
            13 => without_messages(expected),
            _ => expected.to_owned(),
        };
        assert!(
            described == expected,
            "PostgreSQL {major} says otherwise:\n{described}"
        );
    }
}

#[test]
fn decoding_loses_nothing() {
    for (major, hex) in CAPTURED {
        for bytes in messages(hex) {
            let message = decode(&bytes).unwrap();
            let mut again = Vec::new();
            encode(&message, &mut again).unwrap();
            assert!(again == bytes, "PostgreSQL {major}: {message:?}");
            for cut in 0..bytes.len() {
                assert!(
                    decode(&bytes[..cut]).is_err(),
                    "PostgreSQL {major}: {message:?}"
                );
            }
        }
    }
}

#[test]
fn a_segment_holds_it_all() {
    for (major, hex) in CAPTURED {
        let messages = messages(hex);
        let messages: Vec<_> = messages
            .iter()
            .map(|bytes| decode(bytes).unwrap())
            .collect();
        let header = Header {
            source: SourceId::from_bytes([1; 8]),
            lineage: LineageId::new(1, 2),
            start: Lsn::new(1),
            server: major * 10_000,
            encoding: Some("UTF8".to_owned()),
        };
        let mut writer = SegmentWriter::new(Vec::new(), &header).unwrap();
        for message in &messages {
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
            .unwrap();
        }
        let end = writer.last_end();
        let (ndjson, footer) = writer.finish(end, None).unwrap();

        let key = footer.key(header.start);
        let expect = Some((header.source, header.lineage, &key));
        let mut reader = SegmentReader::open(&ndjson[..], expect).unwrap();
        let mut expected = messages
            .iter()
            .filter_map(|message| record(message, type_name));
        while let Some(record) = reader.next().unwrap() {
            assert_eq!(Some(owned(record)), expected.next());
        }
        assert_eq!(expected.next(), None);
        assert_eq!(reader.footer(), Some(&footer));
    }
}

fn type_name(oid: Oid) -> String {
    format!("type {oid}")
}

fn messages(hex: &str) -> Vec<Vec<u8>> {
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    hex.lines()
        .map(|line| line.as_bytes().chunks(2).map(byte).collect())
        .collect()
}

/// 13 sends no messages, but the transactions around them; these stand in no published table.
fn without_messages(described: &str) -> String {
    let lines = described
        .lines()
        .filter(|line| !line.starts_with("message "));
    lines.map(|line| format!("{line}\n")).collect()
}

fn describe(messages: &[Vec<u8>]) -> String {
    let mut relations: BTreeMap<Oid, Relation> = BTreeMap::new();
    let mut out = String::new();
    for bytes in messages {
        let message = decode(bytes).unwrap();
        if let Message::Relation(relation) = &message {
            relations.insert(relation.oid, relation.clone());
        }
        let table = |oid: &Oid| {
            let relation = &relations[oid];
            format!("{}.{}", relation.schema, relation.table)
        };
        match message {
            Message::Begin(_) => out.push_str("begin"),
            Message::Commit(_) => out.push_str("commit\n"),
            Message::Origin(_) => out.push_str("origin"),
            Message::Type(custom) => write!(out, "type {}.{}", custom.schema, custom.name).unwrap(),
            Message::Relation(relation) => {
                let identity = relation.identity;
                write!(out, "relation {} {identity:?}", table(&relation.oid)).unwrap();
                for column in relation.columns {
                    let key = if column.key { " key" } else { "" };
                    // Types that are not built in have other OIDs in every database.
                    let oid = match column.type_oid.get() {
                        oid @ 0..16_384 => oid.to_string(),
                        _ => "custom".to_owned(),
                    };
                    let modifier = column.type_modifier;
                    write!(out, " [{} {oid} {modifier}{key}]", column.name).unwrap();
                }
            }
            Message::Insert(insert) => {
                write!(out, "insert {}", table(&insert.relation)).unwrap();
                row(&mut out, "new", &insert.new);
            }
            Message::Update(update) => {
                write!(out, "update {}", table(&update.relation)).unwrap();
                old(&mut out, &update.old);
                row(&mut out, "new", &update.new);
            }
            Message::Delete(delete) => {
                write!(out, "delete {}", table(&delete.relation)).unwrap();
                old(&mut out, &delete.old);
            }
            Message::Truncate(truncate) => {
                let tables: Vec<_> = truncate.relations.iter().map(table).collect();
                let (cascade, restart) = (truncate.cascade, truncate.restart_identity);
                write!(
                    out,
                    "truncate {tables:?} cascade {cascade} restart {restart}"
                )
                .unwrap();
            }
            Message::Message(message) => {
                let transactional = message.transactional;
                let prefix = String::from_utf8_lossy(message.prefix);
                let content = message.content.escape_ascii();
                write!(out, "message {transactional} {prefix:?} {content}").unwrap();
            }
        }
        out.push('\n');
    }
    out
}

fn old(out: &mut String, old: &OldTuple<'_>) {
    match old {
        OldTuple::None => {}
        OldTuple::Key(key) => row(out, "key", key),
        OldTuple::Full(full) => row(out, "old", full),
    }
}

fn row(out: &mut String, name: &str, row: &Tuple<'_>) {
    write!(out, "\n    {name}").unwrap();
    for value in row.iter() {
        match value {
            Value::Null => out.push_str(" null"),
            Value::Unchanged => out.push_str(" unchanged"),
            Value::Text(text) if text.len() > 100 => {
                write!(out, " {} bytes", text.len()).unwrap();
            }
            Value::Text(text) => write!(out, " {:?}", str::from_utf8(text).unwrap()).unwrap(),
        }
    }
}
