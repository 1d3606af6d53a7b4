//! The worker against a simulated walsender and a faulty object store, on a paused clock: everything
//! that happens follows from one seed. Each seed lives through several incarnations, killed at
//! random steps, and must in the end have stored every transaction of the server exactly once.
//!
//! `LASTGOOD_SIM_SEED=n` replays one seed, `LASTGOOD_SIM_SEEDS=n` runs that many.

mod server;
mod storage;

use std::io::BufReader;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use lastgood_engine::worker::{self, Policy, Progress, Start};
use lastgood_engine::{Error, Events};
use lastgood_proto::key::{ShapeKey, SourceObject};
use lastgood_proto::listing::LineageListing;
use lastgood_proto::manifest::ShapeFile;
use lastgood_proto::segment::{Cell, Record, SegmentReader};
use lastgood_proto::{LineageId, Lsn, SourceId};
use lastgood_store::{Backend, Encryption, Repository, SourceStore};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use server::{Item, Server};
use storage::FaultyStore;

const SEEDS: u64 = 100;
const LINEAGE: LineageId = LineageId::new(1, 7);

#[test]
fn every_transaction_exactly_once() -> Result<()> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seeds = match number("LASTGOOD_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LASTGOOD_SIM_SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        // Shown only if the test fails, and then the last one is the culprit.
        println!("LASTGOOD_SIM_SEED={seed}");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()?;
        runtime.block_on(Box::pin(live(seed)))?;
    }
    Ok(())
}

async fn live(seed: u64) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let faulty = Arc::new(FaultyStore::new(rng.random()));
    let backend = Backend::from_object_store(Arc::clone(&faulty) as _, "");
    let repository = Repository::create_or_open_on(backend, Encryption::Off).await?;
    let id = SourceId::from_bytes([5; 8]);
    let store = repository.create_source(id).await?;
    let server = Server::new(rng.random(), store.clone());
    let spool = tempfile::tempdir()?;
    let policy = Policy {
        segment_bytes: rng.random_range(500..20_000),
        segment_age: Duration::from_millis(rng.random_range(200..3000)),
        idle_interval: Duration::from_millis(rng.random_range(1000..10_000)),
        spool_bytes: rng.random_range(200..50_000),
    };
    let lives = rng.random_range(1..8);
    for _ in 0..lives {
        server.kill_after(rng.random_range(1..800));
        let cancel = CancellationToken::new();
        faulty.trouble(true);
        tokio::select! {
            biased;
            () = server.killed() => {}
            ended = incarnation(&server, &store, &policy, spool.path(), cancel) => {
                let error = ended.expect_err("nobody asked it to stop");
                assert!(matches!(error, Error::NotConfirmed { .. }), "{error:?}");
            }
        }
        faulty.trouble(false);
        server.reconnectable();
    }
    // The last life: storage behaves, the server falls silent, and all of it must become durable.
    server.kill_after(u64::MAX);
    server.fall_silent();
    let cancel = CancellationToken::new();
    let last = incarnation(&server, &store, &policy, spool.path(), cancel.clone());
    let stop = async {
        server.all_confirmed().await;
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(last, stop);
    ended?;
    compare(&server, &store).await
}

async fn incarnation(
    server: &Server,
    store: &SourceStore,
    policy: &Policy,
    spool: &std::path::Path,
    cancel: CancellationToken,
) -> std::result::Result<(), Error> {
    let listing = store.list().await?;
    let lineage = listing.lineage(LINEAGE);
    let durable = lineage
        .and_then(lastgood_proto::listing::LineageListing::durable_lsn)
        .unwrap_or(server::START);
    let observed_through =
        lineage.and_then(lastgood_proto::listing::LineageListing::observed_through);
    // As `source::lineage` does it.
    let looked_at = lineage
        .and_then(|lineage| lineage.segments.last())
        .map_or(server::START, |last| last.start);
    let newest = lineage.and_then(|lineage| lineage.shapes.iter().max_by_key(|key| key.to));
    let shape = match newest {
        Some(key) => {
            let file: ShapeFile = store.get_json(&SourceObject::Shape(LINEAGE, *key)).await?;
            Some(file.fingerprint)
        }
        None => None,
    };
    let (events, _events) = mpsc::channel(1);
    let (progress, _progress) = watch::channel(Progress {
        durable,
        received: durable,
        observed_through,
        shape: shape.clone(),
        trouble: None,
    });
    worker::run(
        server.stream(durable),
        server.marks(),
        store.clone(),
        policy.clone(),
        Start {
            lineage: LINEAGE,
            server_version: 180_000,
            durable,
            observed_through,
            shape,
            looked_at,
            spool_folder: spool.to_owned(),
        },
        Events::new(events),
        progress,
        cancel,
    )
    .await
}

/// The concatenated segments against what the server did.
async fn compare(server: &Server, store: &SourceStore) -> Result<()> {
    let listing = store.list().await?;
    let Some(lineage) = listing.lineage(LINEAGE) else {
        assert_eq!(server.wal_end(), server::START, "nothing was stored");
        return Ok(());
    };
    assert_eq!(lineage.orphans, []);
    let mut found = Vec::new();
    let mut end = server::START;
    for key in &lineage.segments {
        assert_eq!(key.start, end);
        end = key.end;
        let reader = store.open(&SourceObject::Segment(LINEAGE, *key)).await?;
        let (key, id) = (*key, store.id());
        let records = tokio::task::spawn_blocking(move || -> Result<Vec<Record>> {
            let reader = BufReader::new(reader.into_blocking());
            let mut reader = SegmentReader::open(reader, Some((id, LINEAGE, &key)))?;
            let mut records = Vec::new();
            while let Some(record) = reader.next()? {
                records.push(record);
            }
            Ok(records)
        });
        collect(records.await??, &mut found);
        if let Some(observed) = key.observed_through {
            server.check_observed(observed, key.end);
        }
    }
    let expected = server.history();
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert!(end <= server.wal_end(), "{end} is beyond the server's WAL");
    check_shapes(server, lineage);
    Ok(())
}

/// Every change of shape below what is durable is on record, or the next start will put it there:
/// that takes a change to have come before the last segment.
fn check_shapes(server: &Server, lineage: &LineageListing) {
    let Some(last) = lineage.segments.last() else {
        return;
    };
    for change in server
        .shape_changes()
        .into_iter()
        .filter(|change| *change < last.start)
    {
        let on_record = |shape: &&ShapeKey| shape.from <= change && change <= shape.to;
        assert!(
            lineage.shapes.iter().find(on_record).is_some(),
            "the change of shape at {change} is on no record: {:?}",
            lineage.shapes
        );
    }
}

fn collect(records: Vec<Record>, found: &mut Vec<Item>) {
    let mut open: Option<Item> = None;
    for record in records {
        match record {
            Record::Begin { xid, lsn, time } => {
                open = Some(Item::Transaction {
                    xid: xid.get(),
                    commit_lsn: lsn,
                    end_lsn: Lsn::INVALID,
                    time,
                    rows: Vec::new(),
                });
            }
            Record::Insert { rel, new } => {
                let Some(Item::Transaction { rows, .. }) = &mut open else {
                    panic!("a row outside a transaction");
                };
                let Some(Cell::Text(value)) = new.first() else {
                    panic!("a row without a value");
                };
                rows.push((rel.get(), value.clone()));
            }
            Record::Commit { end, .. } => {
                let Some(Item::Transaction { end_lsn, .. }) = &mut open else {
                    panic!("a commit outside a transaction");
                };
                *end_lsn = end;
                found.extend(open.take());
            }
            Record::Message(message) => found.push(Item::Message { lsn: message.lsn }),
            Record::Relation(_) | Record::Sequences { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(open.is_none());
}
