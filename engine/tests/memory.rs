//! One huge transaction through capture, and many small ones: memory must not grow with it, and no row
//! is allocated for. A process of its own, because what is measured is the process.
//!
//! `LASTGOOD_TEST_ROWS=5000000` is what the design promises; the usual run is smaller.

#[path = "real/kept.rs"]
mod kept;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lastgood_engine::{Control, Event, Events, Source, SourceSettings, run};
use lastgood_integration::{TestDatabase, vitals};
use lastgood_proto::SourceId;
use lastgood_store::{Encryption, MasterKey, Repository, StorageOptions};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// The promise is for the whole service; this process is a test harness besides.
const RSS_BYTES_MAX: u64 = 150 << 20;
/// Reads, events and looks allocate, some hundred times a second; a row or a transaction that did would
/// come to one.
const ALLOCATIONS_PER_ROW_MAX: f64 = 0.1;
const SMALL_TRANSACTIONS: u64 = 30_000;
const DEADLINE: Duration = Duration::from_secs(600);

/// Counts.
#[global_allocator]
static ALLOCATOR: dhat::Alloc = dhat::Alloc;

#[tokio::test(flavor = "multi_thread")]
async fn stays_flat_through_one_huge_transaction() -> Result<()> {
    let _profiler = dhat::Profiler::builder().testing().build();
    let rows: u64 = match std::env::var("LASTGOOD_TEST_ROWS") {
        Ok(text) => text.parse()?,
        Err(_) => 300_000,
    };
    let database = TestDatabase::new(18).await?;
    let client = database.connect().await?;
    client
        .batch_execute("CREATE TABLE t(id bigint PRIMARY KEY, v text)")
        .await?;
    let folder = tempfile::tempdir()?;
    let url = format!("file://{}", folder.path().join("repository").display());
    let repository = Repository::create_or_open(
        &url.parse()?,
        &StorageOptions::default(),
        Encryption::On(MasterKey::generate()?),
    )
    .await?;
    let id = SourceId::from_bytes([9; 8]);
    let source = Source {
        id,
        name: "huge".to_owned(),
        connection: database.url().parse()?,
        settings: SourceSettings::default(),
        writer: kept::writer(&Arc::default()),
    };
    let store = repository.create_source(id).await?;
    let (sender, mut events) = mpsc::channel(1000);
    let cancel = CancellationToken::new();
    let spool = folder.path().join("spool");
    let stop = cancel.clone();
    let running = tokio::spawn(async move {
        let mut control = Control::default();
        let events = Events::new(sender);
        run(source, store, spool, &mut control, events, stop).await
    });
    let begun = tokio::time::timeout(DEADLINE, async {
        while let Some(event) = events.recv().await {
            if matches!(event, Event::BaseFinished { .. }) {
                return Ok(());
            }
        }
        anyhow::bail!("no base")
    });
    begun.await??;
    let before = dhat::HeapStats::get().total_blocks;
    client
        .execute(
            "INSERT INTO t SELECT i, md5(i::text) FROM generate_series(1, $1::bigint) i",
            &[&i64::try_from(rows)?],
        )
        .await?;
    let start = Instant::now();
    let found = tokio::time::timeout(DEADLINE, async {
        while let Some(event) = events.recv().await {
            if let Event::Segment {
                ndjson_bytes,
                stored_bytes,
                transactions: 1..,
                ..
            } = event
                && ndjson_bytes > rows * 20
            {
                return Some((ndjson_bytes, stored_bytes));
            }
        }
        None
    });
    let (ndjson_bytes, stored_bytes) = found.await?.context("no segment")?;
    let seconds = start.elapsed().as_secs_f64();
    let peak = vitals::peak_bytes(std::process::id()).context("no VmHWM")?;
    println!(
        "{rows} rows, {ndjson_bytes} bytes of NDJSON, {stored_bytes} stored, {seconds:.1} s, peak \
         RSS {} MiB",
        peak >> 20
    );
    let blocks = dhat::HeapStats::get().total_blocks - before;
    let per_row = blocks as f64 / rows as f64;

    let before = dhat::HeapStats::get().total_blocks;
    client
        .batch_execute(&format!(
            "DO $$ BEGIN FOR i IN 1..{SMALL_TRANSACTIONS} LOOP
               UPDATE t SET v = 'x' WHERE id = i; COMMIT; END LOOP; END $$"
        ))
        .await?;
    let found = tokio::time::timeout(DEADLINE, async {
        let mut found = 0;
        while found < SMALL_TRANSACTIONS
            && let Some(event) = events.recv().await
        {
            if let Event::Segment { transactions, .. } = event {
                found += transactions;
            }
        }
        found
    });
    ensure!(found.await? >= SMALL_TRANSACTIONS, "not all came");
    let blocks = dhat::HeapStats::get().total_blocks - before;
    let per_transaction = blocks as f64 / SMALL_TRANSACTIONS as f64;
    println!("{per_row:.4} allocations a row, {per_transaction:.4} a small transaction");
    cancel.cancel();
    running.await??;
    ensure!(per_row < ALLOCATIONS_PER_ROW_MAX, "{per_row} a row");
    ensure!(
        per_transaction < ALLOCATIONS_PER_ROW_MAX,
        "{per_transaction} a transaction"
    );
    ensure!(peak < RSS_BYTES_MAX, "peak RSS {peak}");
    Ok(())
}
