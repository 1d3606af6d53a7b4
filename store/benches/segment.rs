//! What a transaction costs on its way into a segment and out again, step by step: `cargo bench`.
//!
//! The transactions are pgbench's: three updates and an insert.

#![expect(clippy::unwrap_used, reason = "what a benchmark reads is its own")]

use std::hint::black_box;
use std::io::{self, Write};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use lastgood_proto::key::{Form, Key, SegmentKey, SegmentKind, SourceObject};
use lastgood_proto::listing::Listing;
use lastgood_proto::pgoutput::{
    Begin, Column, Commit, Insert, Message, OldTuple, Relation, ReplicaIdentity, TupleBuf, Update,
    Value, decode, encode,
};
use lastgood_proto::segment::{Header, SegmentReader, SegmentWriter};
use lastgood_proto::{LineageId, Lsn, Oid, PgTimestamp, SourceId, Xid};
use lastgood_store::{
    Encryption, MasterKey, Repository, RepositoryUrl, SourceStore, StorageOptions,
};

const TRANSACTIONS: u64 = 1000;
const ROWS: u64 = 4 * TRANSACTIONS;
const LINEAGE: LineageId = LineageId::new(1, 1);
const START: Lsn = Lsn::new(0x100);
const TABLES: [(u32, usize); 4] = [(1, 4), (2, 3), (3, 3), (4, 6)];

fn lsn(number: u64) -> Lsn {
    Lsn::new(START.as_u64() + number * 0x200)
}

/// The messages of all transactions, as they come.
fn messages() -> Vec<Vec<u8>> {
    let filler = " ".repeat(84);
    let mut all = Vec::new();
    let mut add = |message: &Message<'_>| {
        let mut bytes = Vec::new();
        encode(message, &mut bytes).unwrap();
        all.push(bytes);
    };
    for number in 0..TRANSACTIONS {
        let (commit_lsn, end_lsn) = (lsn(number), Lsn::new(lsn(number).as_u64() + 0x30));
        let commit_time = PgTimestamp::from_micros(800_000_000_000_000);
        add(&Message::Begin(Begin {
            commit_lsn,
            commit_time,
            xid: Xid::new(1000),
        }));
        let account = (number * 7919 % 100_000).to_string();
        for (rel, columns) in TABLES {
            let values = [
                account.as_str(),
                "1",
                "-4711",
                &filler,
                "2026-11-28 12:00:00",
                "",
            ];
            let values = values.iter().take(columns);
            let row = TupleBuf::new(values.map(|text| Value::Text(text.as_bytes()))).unwrap();
            let (relation, new) = (Oid::new(rel), row.as_tuple());
            match rel {
                4 => add(&Message::Insert(Insert { relation, new })),
                _ => add(&Message::Update(Update {
                    relation,
                    old: OldTuple::None,
                    new,
                })),
            }
        }
        add(&Message::Commit(Commit {
            commit_lsn,
            end_lsn,
            commit_time,
        }));
    }
    all
}

fn writer<W: Write>(source: SourceId, sink: W) -> SegmentWriter<W> {
    let header = Header {
        source,
        lineage: LINEAGE,
        start: START,
        server: 180_006,
        encoding: Some("UTF8".to_owned()),
    };
    let mut writer = SegmentWriter::new(sink, &header).unwrap();
    for (oid, columns) in TABLES {
        let column = |number| Column {
            key: number == 0,
            name: format!("column{number}"),
            type_oid: Oid::new(25),
            type_modifier: -1,
        };
        let relation = Relation {
            oid: Oid::new(oid),
            schema: "public".to_owned(),
            table: format!("table{oid}"),
            identity: ReplicaIdentity::Default,
            columns: (0..columns).map(column).collect(),
        };
        let types = vec!["text".to_owned(); columns];
        writer.relation(&relation, &types).unwrap();
    }
    writer
}

fn write<W: Write>(messages: &[Vec<u8>], mut writer: SegmentWriter<W>) -> W {
    for message in messages {
        match decode(message).unwrap() {
            Message::Begin(begin) => writer.begin(&begin).unwrap(),
            Message::Insert(insert) => writer.insert(&insert).unwrap(),
            Message::Update(update) => writer.update(&update).unwrap(),
            Message::Commit(commit) => writer.commit(&commit).unwrap(),
            _ => {}
        }
    }
    writer.finish(lsn(TRANSACTIONS), None).unwrap().0
}

fn store(runtime: &tokio::runtime::Runtime, folder: &std::path::Path) -> SourceStore {
    let opened = async {
        let url = RepositoryUrl::local(folder);
        let encryption = Encryption::On(MasterKey::generate().unwrap());
        let repository =
            Repository::create_or_open(&url, &StorageOptions::default(), encryption).await;
        let source = SourceId::from_bytes([1; 8]);
        repository.unwrap().create_source(source).await.unwrap()
    };
    runtime.block_on(opened)
}

fn segments(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = store(&runtime, folder.path());
    let messages = messages();
    let object = SourceObject::Segment(
        LINEAGE,
        SegmentKey {
            start: START,
            end: lsn(TRANSACTIONS),
            max_commit_time: None,
            observed_through: None,
            kind: SegmentKind::Captured,
        },
    );
    let ndjson = write(&messages, writer(store.id(), Vec::new()));

    let mut group = criterion.benchmark_group("4 rows a transaction");
    group.throughput(Throughput::Elements(ROWS));
    group.bench_function("decode pgoutput", |bench| {
        bench.iter(|| {
            for message in &messages {
                black_box(decode(black_box(message)).unwrap());
            }
        });
    });
    group.bench_function("decode, NDJSON, SHA-256", |bench| {
        bench.iter(|| write(black_box(&messages), writer(store.id(), io::sink())));
    });
    group.bench_function("decode, NDJSON, SHA-256, zstd, AES-GCM", |bench| {
        bench.iter_batched(
            || store.sealer(&object, io::sink(), 1).unwrap(),
            |sealer| {
                let sealer = write(black_box(&messages), writer(store.id(), sealer));
                sealer.finish().unwrap()
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("read NDJSON", |bench| {
        bench.iter(|| {
            let mut reader = SegmentReader::open(black_box(ndjson.as_slice()), None).unwrap();
            while let Some(record) = reader.next().unwrap() {
                black_box(record);
            }
        });
    });
    group.finish();
}

/// What a plan begins with, after a bucket has been listed.
fn listing(criterion: &mut Criterion) {
    const SEGMENTS: u64 = 1_000_000;
    let time = Some(PgTimestamp::from_micros(800_000_000_000_000));
    let path = |number| {
        let segment = SegmentKey {
            start: lsn(number),
            end: lsn(number + 1),
            max_commit_time: time,
            observed_through: time,
            kind: SegmentKind::Captured,
        };
        let source = SourceId::from_bytes([1; 8]);
        Key::Source(
            source,
            SourceObject::Segment(LINEAGE, segment),
            Form::ZstdEncrypted,
        )
        .path()
    };
    let paths: Vec<String> = (0..SEGMENTS).map(path).collect();
    let mut group = criterion.benchmark_group("1,000,000 segments");
    group.sample_size(10);
    group.throughput(Throughput::Elements(SEGMENTS));
    group.bench_function("keys to a listing", |bench| {
        bench.iter(|| {
            let keys = black_box(&paths)
                .iter()
                .map(|path| Key::parse(path).unwrap());
            Listing::from_objects(keys.filter_map(|key| match key {
                Key::Source(_, object, _) => Some(object),
                _ => None,
            }))
        });
    });
    group.finish();
}

criterion_group!(benches, segments, listing);
criterion_main!(benches);
