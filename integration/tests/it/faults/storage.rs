//! A real S3 server behind a proxy that has bad days.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lastgood_integration::history::{self, History};
use lastgood_integration::{
    Fault, Proxy, S3Proxy, Service, Storage, TestDatabase, seed, truth, wait,
};
use rand::seq::SliceRandom;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::{no_gap, shop, wait_reason, write};

const STORM: [Fault; 4] = [
    Fault::Status(503),
    Fault::Status(429),
    Fault::Status(500),
    Fault::NoAnswer,
];

/// The service's storage behind a proxy; none if there is no S3 server.
async fn storage() -> Result<Option<(S3Proxy, Storage)>> {
    let Some(proxy) = S3Proxy::start().await? else {
        eprintln!("NOT TESTED on S3: run by tools/with-s3.sh");
        return Ok(None);
    };
    let storage = Storage::s3_by(&proxy.endpoint()).context("an S3 server")?;
    Ok(Some((proxy, storage)))
}

/// Of four requests one is refused or left without an answer, which one is drawn, and every segment's first
/// put is done and not answered; a base is taken in the middle of it.
#[tokio::test(flavor = "multi_thread")]
async fn storms_of_errors_and_lost_answers() -> Result<()> {
    let Some((proxy, storage)) = storage().await? else {
        return Ok(());
    };
    let seed = seed::choose("storms_of_errors_and_lost_answers");
    let service = Service::start(&storage).await?;
    let mut history = History::start(&service, TestDatabase::new(18).await?, seed).await?;
    let bases = format!("/api/v1/sources/{}/bases", history.name);
    let mut rng = seed::rng(seed, "storm");
    let mut put = HashSet::new();
    let mut four = Vec::new();
    let mut faults = STORM.into_iter().cycle();
    proxy.set(move |request| {
        if request.is_write_of_segment() && put.insert(request.target.clone()) {
            return Some(Fault::NoAnswer);
        }
        // Drawn from each four anew: each fault is met, and none fails as often in a row as a request is
        // repeated, or a base would fail.
        if four.is_empty() {
            four = vec![faults.next(), None, None, None];
            four.shuffle(&mut rng);
        }
        four.pop().flatten()
    });
    service.post(&bases, json!({})).await?;
    for _ in 0..4 {
        history.advance().await?;
        history.record_loud().await?;
        let lsn = history.last_lsn.clone();
        service.wait_durable(&history.name, &lsn).await?;
    }
    service.wait_bases(&history.name, 2).await?;
    proxy.mend();
    for fault in STORM {
        ensure!(proxy.met(fault) > 0, "{fault:?} was never met");
    }
    let name = history.name.clone();
    let finished = history.finish(&service).await?;
    no_gap(&service, &name).await?;
    finished.thinned(4).check(&service).await
}

/// The last puts of services that were killed arrive when their successors are long at work: nothing that
/// was captured since is out of reach.
#[tokio::test(flavor = "multi_thread")]
async fn the_last_put_of_a_killed_service_comes_late() -> Result<()> {
    let Some((proxy, storage)) = storage().await? else {
        return Ok(());
    };
    let seed = seed::choose("the_last_put_of_a_killed_service_comes_late");
    let service = Service::start(&storage).await?;
    let mut history = History::start(&service, TestDatabase::new(18).await?, seed).await?;
    let name = history.name.clone();
    let mut arrived = Vec::new();
    for turn in 1..=3 {
        history.advance().await?;
        history.record_loud().await?;
        proxy.set(|request| request.is_write_of_segment().then_some(Fault::Late));
        let held = async || Ok((proxy.met(Fault::Late) >= turn).then_some(()));
        wait::until("a put that will be late", held).await?;
        service.kill()?;
        proxy.mend();
        // So that the next one's first segment ends elsewhere.
        history.advance().await?;
        service.start_again().await?;
        history.record_loud().await?;
        let lsn = history.last_lsn.clone();
        service.wait_durable(&name, &lsn).await?;
        arrived.extend(proxy.deliver().await?);
    }
    // One that was repeated before the end of its service is refused.
    let new = |answer: &String| answer.contains(" 200 ");
    ensure!(arrived.iter().any(new), "{arrived:?}");
    let finished = history.finish(&service).await?;
    no_gap(&service, &name).await?;
    history::verify(&service, &storage, &name).await?;
    finished.thinned(6).check(&service).await
}

/// A put is neither done nor refused, and then storage is away. The server, which would give a silent
/// reader up after five seconds, keeps its walsender; reading stops at the bound of the spool, and says so.
#[tokio::test(flavor = "multi_thread")]
async fn it_is_silent_and_then_away_for_long() -> Result<()> {
    let Some((proxy, storage)) = storage().await? else {
        return Ok(());
    };
    let service = Service::start(&storage).await?;
    let server = lastgood_integration::Postgres::start(18, &["wal_sender_timeout=5s"]).await?;
    let database = TestDatabase {
        server: std::sync::Arc::new(server),
        name: "shop".to_owned(),
    };
    database.server.create_database("shop").await?;
    database.execute(super::TABLE).await?;
    let settings = json!({"segment_seconds": 1, "idle_seconds": 1, "spool_bytes": 1 << 20});
    service
        .add_source("shop", &database.url(), settings)
        .await?;
    service.wait_protected("shop").await?;
    let client = database.connect().await?;
    let walsender = "SELECT active_pid FROM pg_replication_slots WHERE database = 'shop'";
    let before: i32 = client.query_one(walsender, &[]).await?.get(0);
    write(&database, "before").await?;
    let position = truth::wal_position(&client).await?;
    service.wait_durable("shop", &position).await?;

    let (silenced, mut is_silent) = watch::channel(false);
    proxy.set(move |request| {
        request.is_write().then(|| {
            silenced.send_replace(true);
            Fault::Silence
        })
    });
    // Noise, which compression does not shrink: several times what the spool may hold, behind the segment
    // that is being put.
    let noise = "INSERT INTO t (v) SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 8000) n, generate_series(1, 30) GROUP BY n";
    client.batch_execute(noise).await?;
    is_silent.wait_for(|is_silent| *is_silent).await?;
    for _ in 0..3 {
        client.batch_execute(noise).await?;
    }
    wait_reason(&service, "shop", "the spool is full").await?;
    let late = |source: &Value| source["lag_seconds"].as_u64() >= Some(12);
    wait::until_value(
        "twice the server's patience",
        || service.source("shop"),
        late,
    )
    .await?;
    let after: i32 = client.query_one(walsender, &[]).await?.get(0);
    ensure!(
        before == after,
        "the walsender was ended: {}",
        service.log()
    );

    // Away: what was silent is cut off, and nothing is to be reached, not by a new service either.
    proxy.set(|_| Some(Fault::NoAnswer));
    wait_reason(&service, "shop", "storage does not take segments").await?;
    service.kill()?;
    service.spawn()?;
    let status = service.wait_for_exit().await?;
    ensure!(status.code() == Some(1), "{status}");
    proxy.mend();
    service.start_again().await?;
    write(&database, "after").await?;
    history::check_latest(&service, "shop", &database).await?;
    no_gap(&service, "shop").await
}

/// Latency, and less bandwidth than is written: later, not wrong.
#[tokio::test(flavor = "multi_thread")]
async fn it_is_slow() -> Result<()> {
    let Some((proxy, _)) = storage().await? else {
        return Ok(());
    };
    let endpoint = proxy.endpoint();
    let (_, port) = endpoint.rsplit_once(':').context("a port")?;
    let slow = Proxy::start(("127.0.0.1", port.parse()?)).await?;
    let storage = Storage::s3_by(&format!("http://127.0.0.1:{}", slow.port()));
    let service = Service::start(&storage.context("an S3 server")?).await?;
    let database = TestDatabase::new(15).await?;
    shop(&service, &database, &database.url()).await?;
    slow.set(|network| {
        network.latency = Duration::from_millis(100);
        network.bytes_per_second = Some(200_000);
    });
    let noise = "INSERT INTO t (v) SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 1000) n, generate_series(1, 30) GROUP BY n";
    database.execute(noise).await?;
    write(&database, "after").await?;
    history::check_latest(&service, "shop", &database).await?;
    no_gap(&service, "shop").await
}

/// Servers that refuse the condition of a create-only put, or pass over it: found out, said, made up for.
#[tokio::test(flavor = "multi_thread")]
async fn it_knows_no_conditional_puts() -> Result<()> {
    for fault in [Fault::Status(501), Fault::Status(400), Fault::NoCondition] {
        let Some((proxy, storage)) = storage().await? else {
            return Ok(());
        };
        proxy.set(move |request| (request.is_write() && request.is_conditional).then_some(fault));
        let service = Service::start(&storage)
            .await
            .with_context(|| format!("{fault:?}"))?;
        let told = "ignores the condition of create-only puts";
        ensure!(service.log().contains(told), "{fault:?}: {}", service.log());
        let database = TestDatabase::new(18).await?;
        shop(&service, &database, &database.url()).await?;
        write(&database, "without conditions").await?;
        history::check_latest(&service, "shop", &database).await?;
        ensure!(proxy.met(fault) > 0);
        no_gap(&service, "shop").await?;
    }
    Ok(())
}

/// Listings show the repository as it was a while ago, as some stores' still do. A service that starts on one
/// must neither stream from too early on nor take its own progress for somebody else's.
#[tokio::test(flavor = "multi_thread")]
async fn listings_lag() -> Result<()> {
    let Some((proxy, storage)) = storage().await? else {
        return Ok(());
    };
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(16).await?;
    shop(&service, &database, &database.url()).await?;
    write(&database, "before").await?;
    // What a start asks for is answered once as it is.
    service.terminate().await?;
    service.start_again().await?;
    history::check_latest(&service, "shop", &database).await?;

    proxy.set(|request| request.is_listing().then_some(Fault::OldAnswer));
    write(&database, "in no listing").await?;
    let position = truth::wal_position(&database.connect().await?).await?;
    service.wait_durable("shop", &position).await?;
    service.kill()?;
    write(&database, "while nobody looks").await?;
    service.start_again().await?;
    wait_reason(&service, "shop", "listing").await?;
    ensure!(proxy.met(Fault::OldAnswer) > 0);
    proxy.mend();
    write(&database, "after").await?;
    history::check_latest(&service, "shop", &database).await?;
    no_gap(&service, "shop").await
}
