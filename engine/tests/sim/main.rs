//! The worker against a simulated walsender and a faulty object store, on a paused clock: everything
//! that happens follows from one seed. Each seed lives through several incarnations, killed at
//! random steps, and must in the end have stored every transaction of the server exactly once.
//!
//! `LASTGOOD_SIM_SEED=n` replays one seed, `LASTGOOD_SIM_SEEDS=n` runs that many.

mod server;
mod storage;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use lastgood_engine::overlap::{Overlap, Stored};
use lastgood_engine::worker::{self, Policy, Progress, Start};
use lastgood_engine::{Error, Events, Fingerprints};
use lastgood_proto::key::{ShapeKey, SourceObject};
use lastgood_proto::listing::LineageListing;
use lastgood_proto::manifest::ShapeFile;
use lastgood_proto::pgoutput::{TupleBuf, Value};
use lastgood_proto::segment::{Record, SegmentReader};
use lastgood_proto::{LineageId, Lsn, PgTimestamp, SourceId};
use lastgood_store::{Backend, Encryption, Repository, SourceStore};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use server::{Item, Server};
use storage::FaultyStore;

const SEEDS: u64 = 200;
const LINEAGE: LineageId = LineageId::new(1, 7);

/// Segments that a service before another stored beside the chain.
static BESIDE: AtomicUsize = AtomicUsize::new(0);

#[test]
fn every_transaction_exactly_once() -> Result<()> {
    let played = seeds(|seed| Box::pin(live(seed)))?;
    let beside = BESIDE.load(Ordering::Relaxed);
    assert!(played < SEEDS || beside > 0, "no put came late");
    Ok(())
}

/// Runs every seed on a paused clock of its own, and says how many.
fn seeds(work: impl Fn(u64) -> Pin<Box<dyn Future<Output = Result<()>>>>) -> Result<u64> {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seeds = match number("LASTGOOD_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("LASTGOOD_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let played = seeds.end - seeds.start;
    for seed in seeds {
        // Shown only if the test fails, and then the last one is the culprit.
        eprintln!("LASTGOOD_SIM_SEED={seed}");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()?;
        runtime.block_on(work(seed))?;
    }
    Ok(played)
}

/// A server, its storage, and how it is captured.
struct World {
    faulty: Arc<FaultyStore>,
    store: SourceStore,
    server: Server,
    policy: Policy,
    spool: tempfile::TempDir,
}

impl World {
    async fn new(rng: &mut ChaCha8Rng) -> Result<Self> {
        let faulty = Arc::new(FaultyStore::new(rng.random()));
        let backend = Backend::from_object_store(Arc::clone(&faulty) as _, "");
        let repository = Repository::create_or_open_on(backend, Encryption::Off).await?;
        let id = SourceId::from_bytes([5; 8]);
        let store = repository.create_source(id).await?;
        Ok(Self {
            server: Server::new(rng.random(), store.clone()),
            store,
            faulty,
            policy: Policy {
                segment_bytes: rng.random_range(500..20_000),
                segment_age: Duration::from_millis(rng.random_range(200..3000)),
                idle_interval: Duration::from_millis(rng.random_range(1000..10_000)),
                spool_bytes: rng.random_range(200..50_000),
            },
            spool: tempfile::tempdir()?,
        })
    }

    async fn incarnation(&self, cancel: CancellationToken) -> std::result::Result<(), Error> {
        incarnation(
            &self.server,
            &self.store,
            &self.policy,
            self.spool.path(),
            cancel,
        )
        .await
    }
}

/// One life, then storage that was set back: every difference below what is durable is found, before
/// anything of the other history is stored or confirmed.
#[test]
fn another_history_is_told() -> Result<()> {
    seeds(|seed| Box::pin(set_back(seed))).map(|_| ())
}

async fn set_back(seed: u64) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let world = World::new(&mut rng).await?;
    let World {
        faulty,
        server,
        store,
        ..
    } = &world;
    server.kill_after(rng.random_range(50..2000));
    tokio::select! {
        biased;
        () = server.killed() => faulty.kill(),
        ended = world.incarnation(CancellationToken::new()) => {
            let error = ended.expect_err("nobody asked it to stop");
            assert!(matches!(error, Error::NotConfirmed { .. }), "{error:?}");
        }
    }
    server.reconnectable();
    let before = store.list().await?;
    let Some(durable) = before
        .lineage(LINEAGE)
        .and_then(LineageListing::durable_lsn)
    else {
        return Ok(());
    };
    let differs = server.set_back(durable);
    let confirmed = server.confirmed();
    server.kill_after(u64::MAX);
    server.fall_silent();
    let cancel = CancellationToken::new();
    let stop = async {
        server.all_confirmed().await;
        cancel.cancel();
    };
    tokio::select! {
        ended = world.incarnation(cancel.clone()) => match ended {
            Err(Error::SetBack { agreed, .. }) => {
                assert!(differs && agreed >= confirmed && agreed < durable);
                assert_eq!(store.list().await?, before);
                assert_eq!(server.confirmed(), confirmed);
            }
            other => panic!("{other:?}"),
        },
        () = stop => assert!(!differs, "not noticed"),
    }
    Ok(())
}

async fn live(seed: u64) -> Result<()> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let world = World::new(&mut rng).await?;
    let World {
        faulty,
        store,
        server,
        ..
    } = &world;
    let lives = rng.random_range(1..8);
    for _ in 0..lives {
        server.kill_after(rng.random_range(1..800));
        let cancel = CancellationToken::new();
        faulty.trouble(true);
        tokio::select! {
            biased;
            () = server.killed() => faulty.kill(),
            ended = world.incarnation(cancel) => {
                let error = ended.expect_err("nobody asked it to stop");
                assert!(matches!(error, Error::NotConfirmed { .. }), "{error:?}");
            }
        }
        faulty.trouble(false);
        server.reconnectable();
        if rng.random() {
            server.crash();
        }
    }
    // The last life: storage behaves, the server falls silent, and all of it must become durable.
    server.kill_after(u64::MAX);
    server.fall_silent();
    let cancel = CancellationToken::new();
    let last = world.incarnation(cancel.clone());
    let stop = async {
        server.all_confirmed().await;
        cancel.cancel();
    };
    let (ended, ()) = tokio::join!(last, stop);
    ended?;
    compare(server, store).await
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
            Some(Fingerprints {
                shape: file.fingerprint,
                definitions: file.definitions,
            })
        }
        None => None,
    };
    let (events, _events) = mpsc::channel(1);
    let (progress, _progress) = watch::channel(Progress {
        durable,
        received: durable,
        observed_through,
        shape: shape.clone(),
        told: false,
        reshaped: 0,
        trouble: None,
    });
    let from = server.confirmed();
    let segments = lineage.map_or(&[][..], |lineage| &lineage.segments);
    let stored = Stored {
        lineage: LINEAGE,
        from,
        durable,
        segments: segments
            .iter()
            .filter(|it| it.end > from)
            .copied()
            .collect(),
    };
    worker::run(
        Overlap::new(server.stream(from), store.clone(), stored),
        server.marks(),
        store.clone(),
        policy.clone(),
        Start {
            lineage: LINEAGE,
            server_version: 180_000,
            encoding: "UTF8".to_owned(),
            durable,
            observed_through,
            latest_commit: lineage.and_then(lastgood_proto::listing::LineageListing::latest_commit),
            shape,
            ddl_trigger: None,
            looked_at,
            spool_folder: spool.to_owned(),
            wanted: tokio::sync::watch::channel(Lsn::INVALID).1,
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
    BESIDE.fetch_add(lineage.beside.len(), Ordering::Relaxed);
    let mut found = Vec::new();
    let mut end = server::START;
    let mut ahead = None;
    for key in &lineage.segments {
        assert_eq!(key.start, end);
        end = key.end;
        let reader = store.open(&SourceObject::Segment(LINEAGE, *key)).await?;
        let (key, id) = (*key, store.id());
        let records = tokio::task::spawn_blocking(move || -> Result<Vec<Record<TupleBuf>>> {
            let reader = reader.into_blocking();
            let mut reader = SegmentReader::open(reader, Some((id, LINEAGE, &key)))?;
            let mut records = Vec::new();
            while let Some(record) = reader.next()? {
                records.push(record.map(|row| TupleBuf::new(row.iter()).expect("a row")));
            }
            Ok(records)
        });
        let records = records.await??;
        ahead = check_samples(&records, end, ahead);
        collect(records, &mut found);
        if let Some(observed) = key.observed_through {
            server.check_observed(observed, key.end);
        }
    }
    let expected = server.history();
    assert_eq!(found.len(), expected.len());
    for ((mut found, until), mut expected) in found.into_iter().zip(expected) {
        // Where another server's time is sent, it is known to lie between two moments.
        if let (
            Item::Transaction { time: after, .. },
            Item::Transaction {
                time, elsewhere, ..
            },
        ) = (&mut found, &mut expected)
            && elsewhere.take().is_some()
        {
            let until = until.expect("a moment until when it was committed");
            assert!(*after <= *time && *time <= until, "{after} {time} {until}");
            *after = *time;
        } else {
            assert_eq!(until, None);
        }
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

/// A sample of the sequences is of a position within its segment: a base that is taken ahead of the stream
/// makes a restore begin behind the segments before, and nobody would read it there. The last one may
/// lie beyond and comes again, `ahead` is that of the segment before.
fn check_samples(records: &[Record<TupleBuf>], end: Lsn, ahead: Option<Lsn>) -> Option<Lsn> {
    let samples = records.iter().filter_map(|record| match record {
        Record::Sequences { lsn, .. } => Some(*lsn),
        _ => None,
    });
    let samples: Vec<Lsn> = samples.collect();
    assert!(samples.is_sorted(), "{samples:?}");
    let beyond: Vec<Lsn> = samples.iter().copied().filter(|lsn| *lsn > end).collect();
    assert!(
        beyond.len() <= 1,
        "samples of {beyond:?} in a segment that ends at {end}"
    );
    if let Some(ahead) = ahead {
        assert!(
            samples.iter().any(|lsn| *lsn >= ahead),
            "the sample of {ahead} does not come again: {samples:?} up to {end}"
        );
    }
    beyond.first().copied()
}

/// Each with the moment until when it was committed, if it was replicated.
fn collect(records: Vec<Record<TupleBuf>>, found: &mut Vec<(Item, Option<PgTimestamp>)>) {
    let mut open: Option<Item> = None;
    let mut committed_until = None;
    for record in records {
        match record {
            Record::Begin {
                xid,
                lsn,
                time,
                until,
            } => {
                committed_until = until;
                open = Some(Item::Transaction {
                    xid: xid.get(),
                    commit_lsn: lsn,
                    end_lsn: Lsn::INVALID,
                    time,
                    elsewhere: None,
                    rows: Vec::new(),
                });
            }
            Record::Insert { rel, new } => {
                let Some(Item::Transaction { rows, .. }) = &mut open else {
                    panic!("a row outside a transaction");
                };
                let Some(Value::Text(value)) = new.as_tuple().iter().next() else {
                    panic!("a row without a value");
                };
                rows.push((rel.get(), String::from_utf8_lossy(value).into_owned()));
            }
            Record::Commit { end, .. } => {
                let Some(Item::Transaction { end_lsn, .. }) = &mut open else {
                    panic!("a commit outside a transaction");
                };
                *end_lsn = end;
                found.extend(open.take().map(|item| (item, committed_until)));
            }
            Record::Message(message) => found.push((Item::Message { lsn: message.lsn }, None)),
            Record::Relation(_) | Record::Sequences { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(open.is_none());
}
