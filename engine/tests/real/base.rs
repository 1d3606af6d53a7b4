//! Bases of a real server.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lastgood_engine::{Error, Event, Events, take_base};
use lastgood_integration::{Postgres, TestDatabase, wait};
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
        // The worker's own base after the change may have been under way: the server drops its slot when it
        // sees that the connection is gone.
        let slots = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
        wait::until("only the capture slot to be left", async || {
            let left: i64 = client.query_one(slots, &[]).await?.get(0);
            Ok((left == 1).then_some(()))
        })
        .await?;
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

#[tokio::test(flavor = "multi_thread")]
async fn bases_among_truncates_hang_nobody() -> Result<()> {
    for major in majors() {
        let database = TestDatabase::new(major).await?;
        let client = database.connect().await?;
        client
            .batch_execute(
                "CREATE TABLE a(id serial PRIMARY KEY, v text); CREATE TABLE b(id serial PRIMARY KEY);
                 CREATE TABLE big(id int PRIMARY KEY, v text);
                 INSERT INTO big SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 5000) i",
            )
            .await?;
        let settings = lastgood_engine::SourceSettings {
            big_table_bytes: 1 << 20,
            ..quick()
        };
        let fixture = Fixture::new(&database.url(), settings).await?;
        let mut running = fixture.start();
        running.base().await?;
        let stop = tokio_util::sync::CancellationToken::new();
        let (writer, stopped) = (database.connect().await?, stop.clone());
        let writer = tokio::spawn(async move {
            let round = "INSERT INTO a(v) VALUES ('x'); INSERT INTO b DEFAULT VALUES;
                BEGIN; TRUNCATE b RESTART IDENTITY; TRUNCATE a RESTART IDENTITY; COMMIT;
                UPDATE big SET v = 'y' WHERE id = 1";
            while !stopped.is_cancelled() {
                writer.batch_execute(round).await?;
            }
            anyhow::Ok(())
        });
        for _ in 0..3 {
            let (sender, _receiver) = tokio::sync::mpsc::channel(100);
            let cancel = tokio_util::sync::CancellationToken::new();
            let base = take_base(&fixture.source, &fixture.store, Events::new(sender), cancel);
            let outcome = tokio::time::timeout(crate::running::DEADLINE, base).await?;
            // A table that is truncated all the time can be too quick for us; that is no harm.
            ensure!(
                matches!(
                    outcome,
                    Ok(_) | Err(Error::CatalogMoved | Error::TablesLocked)
                ),
                "{outcome:?}"
            );
        }
        stop.cancel();
        writer.await??;
        running.stop().await?;
    }
    Ok(())
}

/// Somebody who truncates a table and fills it again, many times a second, leaves no moment as long
/// as a dump takes to begin.
#[tokio::test(flavor = "multi_thread")]
async fn truncates_many_times_a_second_leave_room_for_a_base() -> Result<()> {
    for major in majors() {
        let database = TestDatabase::new(major).await?;
        let client = database.connect().await?;
        client
            .batch_execute(
                "CREATE TABLE t(id int PRIMARY KEY, v text); CREATE TABLE u(id serial PRIMARY KEY);
                 CREATE TABLE big(id int PRIMARY KEY, v text);
                 INSERT INTO big SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 5000) i",
            )
            .await?;
        let settings = lastgood_engine::SourceSettings {
            big_table_bytes: 1 << 20,
            ..quick()
        };
        let stop = tokio_util::sync::CancellationToken::new();
        let (writer, stopped) = (database.connect().await?, stop.clone());
        let writer = tokio::spawn(async move {
            let mut pace = tokio::time::interval(std::time::Duration::from_millis(100));
            // The time that a base makes it wait is not made up for.
            pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            let round = "TRUNCATE t; INSERT INTO t SELECT i FROM generate_series(1, 100) i;
                INSERT INTO u DEFAULT VALUES; UPDATE big SET v = 'x' WHERE id = 1";
            while !stopped.is_cancelled() {
                pace.tick().await;
                writer.batch_execute(round).await?;
            }
            anyhow::Ok(())
        });
        let fixture = Fixture::new(&database.url(), settings).await?;
        let mut running = fixture.start();
        let first = running
            .wait("base", |event| match event {
                Event::BaseFinished { manifest, .. } => Some(manifest),
                _ => None,
            })
            .await?;
        ensure!(first.archives.len() >= 3, "{:?}", first.archives);
        for _ in 0..3 {
            let (sender, _receiver) = tokio::sync::mpsc::channel(100);
            let cancel = tokio_util::sync::CancellationToken::new();
            take_base(&fixture.source, &fixture.store, Events::new(sender), cancel).await?;
        }
        stop.cancel();
        writer.await??;
        running.stop().await?;
    }
    Ok(())
}

/// Whoever makes one table after the other is always making one: the slot waits for it, and then the
/// snapshot has a table that was not there when tables were listed.
#[tokio::test(flavor = "multi_thread")]
async fn tables_made_all_the_time_leave_room_for_a_base() -> Result<()> {
    let database = TestDatabase::new(18).await?;
    let client = database.connect().await?;
    client
        .batch_execute("CREATE TABLE t(id int PRIMARY KEY)")
        .await?;
    let fixture = Fixture::new(&database.url(), quick()).await?;
    let mut running = fixture.start();
    running.base().await?;
    let stop = tokio_util::sync::CancellationToken::new();
    let (writer, stopped) = (database.connect().await?, stop.clone());
    let writer = tokio::spawn(async move {
        let mut number = 0;
        while !stopped.is_cancelled() {
            number += 1;
            let round = format!(
                "BEGIN; CREATE TABLE x_{number} AS SELECT 1 AS a; SELECT pg_sleep(1); COMMIT"
            );
            writer.batch_execute(&round).await?;
        }
        anyhow::Ok(())
    });
    wait::until("a table being made", async || {
        let waits = "SELECT FROM pg_stat_activity
            WHERE datname = current_database() AND wait_event = 'PgSleep'";
        Ok(client.query_opt(waits, &[]).await?.map(drop))
    })
    .await?;
    let (sender, _receiver) = tokio::sync::mpsc::channel(100);
    let cancel = tokio_util::sync::CancellationToken::new();
    let base = take_base(&fixture.source, &fixture.store, Events::new(sender), cancel);
    let base = tokio::time::timeout(crate::running::DEADLINE, base).await??;
    ensure!(base.tables.iter().any(|table| table.name.starts_with("x_")));
    stop.cancel();
    writer.await??;
    running.stop().await
}

/// Whoever drops a view that a base is about to read, and then alters a table that the base holds,
/// is not the one who is ended, whoever of the two would have noticed first.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_gives_way_to_whoever_it_waits_for() -> Result<()> {
    for patience in ["60s", "10ms"] {
        let database = TestDatabase::new(18).await?;
        let client = database.connect().await?;
        let name = &database.name;
        client
            .batch_execute(&format!(
                "CREATE TABLE t(id int PRIMARY KEY); CREATE VIEW v AS SELECT 1 AS one;
                 ALTER DATABASE {name} SET deadlock_timeout = '{patience}'"
            ))
            .await?;
        let other = database.connect().await?;
        // The server looks for a deadlock after this, in the session that waits.
        other.batch_execute("SET deadlock_timeout = '5s'").await?;
        let fixture = Fixture::new(&database.url(), quick()).await?;
        let mut running = fixture.start();
        running.base().await?;
        let (sender, mut events) = tokio::sync::mpsc::channel(1000);
        let (source, store) = (fixture.source.clone(), fixture.store.clone());
        let cancel = tokio_util::sync::CancellationToken::new();
        let taking =
            tokio::spawn(
                async move { take_base(&source, &store, Events::new(sender), cancel).await },
            );
        while let Some(event) = events.recv().await {
            if matches!(event, Event::BaseStarted { .. }) {
                break;
            }
        }
        other.batch_execute("BEGIN; DROP VIEW v").await?;
        other
            .batch_execute("ALTER TABLE t ADD c int; COMMIT")
            .await
            .with_context(|| format!("deadlock_timeout {patience}"))?;
        let mut begun_again = 0;
        while let Some(event) = events.recv().await {
            begun_again += usize::from(matches!(event, Event::BaseStarted { .. }));
        }
        taking
            .await?
            .with_context(|| format!("deadlock_timeout {patience}"))?;
        ensure!(begun_again > 0, "the first attempt was not in the way");
        running.stop().await?;
    }
    Ok(())
}

/// A migration goes on while the base that follows its first step is still being taken.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_that_follows_a_change_gives_way_to_the_next() -> Result<()> {
    let database = TestDatabase::new(18).await?;
    let client = database.connect().await?;
    client
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, n int, v text);
             INSERT INTO t SELECT i, i, repeat(md5(i::text), 30) FROM generate_series(1, 200000) i",
        )
        .await?;
    let fixture = Fixture::new(&database.url(), quick()).await?;
    let mut running = fixture.start();
    running.base().await?;
    client
        .batch_execute("ALTER TABLE t ALTER n TYPE bigint")
        .await?;
    running
        .wait("a base after the change", |event| match event {
            Event::BaseStarted {
                follows_change: true,
                ..
            } => Some(()),
            _ => None,
        })
        .await?;
    client.batch_execute("ALTER TABLE t ADD c int").await?;
    let gave_way = running
        .wait("what becomes of the base", |event| match event {
            Event::BaseStarted { .. } => Some(true),
            Event::BaseFinished { .. } => Some(false),
            _ => None,
        })
        .await?;
    ensure!(gave_way, "the migration waited until the base was taken");
    running.base().await?;
    running.stop().await
}

/// What a server has room for is not ours alone.
#[tokio::test(flavor = "multi_thread")]
async fn more_large_tables_than_a_server_has_locks_for() -> Result<()> {
    let settings = [
        "wal_level=logical",
        "max_connections=20",
        "max_locks_per_transaction=10",
    ];
    let server = Postgres::start(18, &settings).await?;
    server.execute("postgres", "CREATE DATABASE many").await?;
    let client = server.connect("many").await?;
    for table in 0..100 {
        let sql = format!(
            "CREATE TABLE t{table}(id int PRIMARY KEY, v text);
             INSERT INTO t{table} SELECT i, repeat('x', {table} * 5) FROM generate_series(1, 100) i"
        );
        client.batch_execute(&sql).await?;
    }
    let settings = lastgood_engine::SourceSettings {
        big_table_bytes: 8192,
        base_jobs: 4,
        ..quick()
    };
    let fixture = Fixture::new(&server.url("many"), settings).await?;
    let mut running = fixture.start();
    let base = running.base().await?;
    let parts = base.archives.iter().filter(|it| it.table.is_some());
    let tables: BTreeSet<_> = parts.map(|it| &it.table).collect();
    ensure!((2..10).contains(&tables.len()), "{tables:?}");
    running.stop().await
}
