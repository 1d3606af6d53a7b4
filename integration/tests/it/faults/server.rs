//! What a server does to its slots, and another server that answers in its place.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use lastgood_integration::history;
use lastgood_integration::{Postgres, Proxy, Service, Stop, Storage, TestDatabase, wait};
use serde_json::json;

use super::{TABLE, no_gap, shop, told, wait_reason, write};

/// A database on a server of its own.
async fn own(major: u32, config: &[&str]) -> Result<TestDatabase> {
    let server = Arc::new(Postgres::start(major, config).await?);
    server.create_database("shop").await?;
    Ok(TestDatabase {
        server,
        name: "shop".to_owned(),
    })
}

/// Writes until the slot of a source that nobody reads is invalidated.
async fn until_invalid(database: &TestDatabase) -> Result<()> {
    let client = database.connect().await?;
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE NOT active AND wal_status = 'lost'";
    let lost = async || {
        client
            .batch_execute(
                "INSERT INTO t (v) SELECT repeat('x', 1000) FROM generate_series(1, 1000);
                 SELECT pg_switch_wal()",
            )
            .await?;
        client.batch_execute("CHECKPOINT").await?;
        let lost: i64 = client.query_one(sql, &[]).await?.get(0);
        Ok((lost == 1).then_some(()))
    };
    wait::until("the slot to be lost", lost).await
}

/// While the service is away, the server keeps no more than it was told to.
#[tokio::test(flavor = "multi_thread")]
async fn wal_that_the_slot_needs_is_removed() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let config = ["max_slot_wal_keep_size=1MB", "min_wal_size=32MB"];
    let database = own(15, &config).await?;
    shop(&service, &database, &database.url()).await?;
    service.terminate().await?;
    until_invalid(&database).await?;
    service.start_again().await?;
    told(&service, "shop", &database, "cannot be used").await
}

/// A source that is paused longer than the server lets a slot idle.
#[tokio::test(flavor = "multi_thread")]
async fn a_paused_source_idles_longer_than_its_slot_may() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = own(18, &["idle_replication_slot_timeout=1s"]).await?;
    shop(&service, &database, &database.url()).await?;
    let pause = json!({"slot": "keep"});
    service.post("/api/v1/sources/shop/pause", pause).await?;
    until_invalid(&database).await?;
    wait_reason(&service, "shop", "slot").await?;
    service
        .post("/api/v1/sources/shop/resume", json!({}))
        .await?;
    told(&service, "shop", &database, "cannot be used").await
}

/// The same address, another cluster: the slot and the publication are not even looked at.
#[tokio::test(flavor = "multi_thread")]
async fn a_clone_with_another_system_identifier_answers() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let (first, second) = (own(14, &[]).await?, own(14, &[]).await?);
    let proxy = Proxy::start(("127.0.0.1", first.server.port())).await?;
    shop(&service, &first, &first.url_by(proxy.port())).await?;
    write(&first, "on the first").await?;
    second.execute(TABLE).await?;
    write(&second, "on the second").await?;
    proxy.set(|network| network.port = Some(second.server.port()));
    proxy.cut();
    told(&service, "shop", &second, "system identifier").await
}

/// A physical standby is promoted and takes the primary's place: a new timeline, on which nothing vouches for
/// what was decoded before. With a failover slot of 17 as without, that is a gap that is told, never a guess.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_promoted() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = own(17, &[]).await?;
    let proxy = Proxy::start(("127.0.0.1", database.server.port())).await?;
    shop(&service, &database, &database.url_by(proxy.port())).await?;
    write(&database, "on the primary").await?;
    let standby = Arc::new(Postgres::standby_of(&database.server).await?);
    // The standby has it all before the primary is gone.
    let end = database.connect().await?;
    let end: String = end
        .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])
        .await?
        .get(0);
    service.wait_durable("shop", &end).await?;
    let replayed = async || {
        let client = standby.connect("shop").await?;
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'::pg_lsn");
        let replayed: bool = client.query_one(&sql, &[]).await?.get(0);
        Ok(replayed.then_some(()))
    };
    wait::until("the standby", replayed)
        .await
        .with_context(|| standby.log())?;
    database.server.stop(Stop::Immediate).await?;
    let client = standby.connect("postgres").await?;
    client.batch_execute("SELECT pg_promote()").await?;
    drop(client);
    let promoted = TestDatabase {
        server: standby,
        name: "shop".to_owned(),
    };
    proxy.set(|network| network.port = Some(promoted.server.port()));
    proxy.cut();
    write(&promoted, "on the promoted one").await?;
    told(&service, "shop", &promoted, "timeline").await
}

/// Stopped and started again, fast and at once, while it is written to: the service lets it go within
/// seconds, and nothing is missing.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stops_does_not_wait_for_us() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = own(18, &[]).await?;
    shop(&service, &database, &database.url()).await?;
    for how in [Stop::Fast, Stop::Immediate, Stop::Fast] {
        write(&database, "before").await?;
        let patience = std::time::Duration::from_secs(5);
        database
            .server
            .stop_within(how, patience)
            .await
            .with_context(|| format!("{how:?}"))?;
        database.server.start_again().await?;
        write(&database, "after").await?;
    }
    history::check_latest(&service, "shop", &database).await?;
    no_gap(&service, "shop").await?;
    ensure!(service.process_id().is_some());
    Ok(())
}
