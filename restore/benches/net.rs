//! What a change costs on its way from a segment's lines into the net changes of its table, and what a row of the
//! base costs that is held against them: `cargo bench -p lastgood-restore --features bench`.

#![expect(clippy::unwrap_used, reason = "what a benchmark reads is its own")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use lastgood_proto::pgoutput::{
    Begin, Column, Commit, Insert, OldTuple, Relation, ReplicaIdentity, TupleBuf, Update, Value,
};
use lastgood_proto::segment::{Header, SegmentWriter};
use lastgood_proto::{LineageId, Lsn, Oid, PgTimestamp, SourceId, Xid};
use lastgood_restore::bench::Gathered;

const TRANSACTIONS: u64 = 100_000;
/// Rows of the table that is updated.
const ROWS: u64 = 1_000_000;
const ACCOUNTS: u32 = 1;
const HISTORY: u32 = 2;
const COLUMNS: usize = 4;

/// Each updates a row, anywhere in a table, and inserts one into another.
fn segment() -> Vec<u8> {
    let header = Header {
        source: SourceId::from_bytes([1; 8]),
        lineage: LineageId::new(1, 1),
        start: Lsn::new(0x100),
        server: 180_006,
        encoding: Some("UTF8".to_owned()),
    };
    let mut writer = SegmentWriter::new(Vec::new(), &header).unwrap();
    for (oid, table) in [(ACCOUNTS, "accounts"), (HISTORY, "history")] {
        let relation = Relation {
            oid: Oid::new(oid),
            schema: "public".to_owned(),
            table: table.to_owned(),
            identity: ReplicaIdentity::Default,
            columns: columns().into_iter().enumerate().map(column).collect(),
        };
        let types = vec!["text".to_owned(); COLUMNS];
        writer.relation(&relation, &types).unwrap();
    }
    let filler = " ".repeat(84);
    let commit_time = PgTimestamp::from_micros(800_000_000_000_000);
    for number in 0..TRANSACTIONS {
        let commit_lsn = Lsn::new(0x200 + number * 0x200);
        let begin = Begin {
            commit_lsn,
            commit_time,
            xid: Xid::new(1000),
        };
        writer.begin(&begin).unwrap();
        for (rel, key) in [(ACCOUNTS, number * 7919 % ROWS), (HISTORY, number)] {
            let key = key.to_string();
            let values = [&key, "1", "-4711", &filler].map(|text| Value::Text(text.as_bytes()));
            let row = TupleBuf::new(values).unwrap();
            let (relation, new) = (Oid::new(rel), row.as_tuple());
            if rel == HISTORY {
                writer.insert(&Insert { relation, new }).unwrap();
                continue;
            }
            let old = OldTuple::None;
            let update = Update { relation, old, new };
            writer.update(&update).unwrap();
        }
        let end_lsn = Lsn::new(commit_lsn.as_u64() + 0x30);
        let commit = Commit {
            commit_lsn,
            end_lsn,
            commit_time,
        };
        writer.commit(&commit).unwrap();
    }
    let end = Lsn::new(0x200 + TRANSACTIONS * 0x200);
    writer.finish(end, None).unwrap().0
}

fn columns() -> Vec<String> {
    (0..COLUMNS)
        .map(|number| format!("column{number}"))
        .collect()
}

fn column((number, name): (usize, String)) -> Column {
    Column {
        key: number == 0,
        name,
        type_oid: Oid::new(25),
        type_modifier: -1,
    }
}

fn net(criterion: &mut Criterion) {
    let segment = segment();
    let tables = [
        (ACCOUNTS, "public", "accounts", columns()),
        (HISTORY, "public", "history", columns()),
    ];
    let mut group = criterion.benchmark_group("net changes");
    group
        .sample_size(20)
        .measurement_time(Duration::from_secs(15));
    group.throughput(Throughput::Elements(2 * TRANSACTIONS));
    group.bench_function("gather", |bench| {
        bench.iter_with_large_drop(|| Gathered::of(black_box(&segment), &tables).unwrap());
    });
    let accounts = ("public".to_owned(), "accounts".to_owned());
    let keys: Vec<String> = (0..ROWS).map(|key| key.to_string()).collect();
    group.throughput(Throughput::Elements(ROWS));
    group.bench_function("a row of the base, one in ten changed", |bench| {
        let gathered = || {
            let mut gathered = Gathered::of(&segment, &tables).unwrap();
            gathered.close();
            gathered
        };
        bench.iter_batched_ref(
            gathered,
            |gathered| {
                let changed = |key: &&String| gathered.meets(&accounts, key.as_bytes());
                keys.iter().filter(changed).count()
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group!(benches, net);
criterion_main!(benches);
