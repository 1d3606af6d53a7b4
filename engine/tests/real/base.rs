//! Bases of a real server.

use anyhow::{Result, ensure};
use lastgood_engine::{Event, Events, take_base};
use lastgood_integration::TestDatabase;
use lastgood_proto::manifest::Protection;

use crate::majors;
use crate::running::{Fixture, quick, wal_end};

#[tokio::test(flavor = "multi_thread")]
async fn later_bases_come_beside_capture_and_cover_new_tables() -> Result<()> {
    for major in majors() {
        let database = TestDatabase::new(major).await?;
        let client = database.connect().await?;
        client
            .batch_execute("CREATE TABLE t(id int PRIMARY KEY); INSERT INTO t VALUES (1)")
            .await?;
        let fixture = Fixture::new(&database.url(), quick()).await?;
        let mut running = fixture.start();
        let first = running.base().await?;
        assert_eq!(first.tables.len(), 1);
        client
            .batch_execute("CREATE TABLE later(id int PRIMARY KEY); INSERT INTO t VALUES (2)")
            .await?;
        let (sender, _receiver) = tokio::sync::mpsc::channel(100);
        let second = take_base(
            &fixture.source,
            &fixture.store,
            Events::new(sender),
            tokio_util::sync::CancellationToken::new(),
        )
        .await?;
        assert_eq!(second.tables.len(), 2);
        ensure!(second.consistent_point > first.consistent_point);
        ensure!(
            second
                .tables
                .iter()
                .all(|table| table.protection == Protection::Full)
        );
        client.batch_execute("INSERT INTO later VALUES (1)").await?;
        running.durable(wal_end(&client).await?).await?;
        running.stop().await?;
        let slots = client
            .query("SELECT slot_name::text FROM pg_replication_slots WHERE database = current_database()", &[])
            .await?;
        assert_eq!(slots.len(), 1, "only the capture slot is left");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_base_survives_a_broken_stream() -> Result<()> {
    let database = TestDatabase::new(18).await?;
    let client = database.connect().await?;
    client
        .batch_execute(
            "CREATE TABLE t(id int PRIMARY KEY, v text);
             INSERT INTO t SELECT i, repeat(md5(i::text), 20) FROM generate_series(1, 50000) i",
        )
        .await?;
    let fixture = Fixture::new(&database.url(), quick()).await?;
    let mut running = fixture.start();
    let begun = running
        .wait("base to start", |event| match event {
            Event::BaseStarted { base, .. } => Some(base),
            _ => None,
        })
        .await?;
    client
        .execute(
            "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
             WHERE database = current_database() AND active",
            &[],
        )
        .await?;
    let base = running.base().await?;
    assert_eq!(base.id, begun);
    client.batch_execute("INSERT INTO t VALUES (0)").await?;
    running.durable(wal_end(&client).await?).await?;
    ensure!(fixture.lineages().await?.len() == 1);
    running.stop().await
}
