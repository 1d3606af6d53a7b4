//! What a server can do to a lineage: nothing may be papered over, and the server never waits for
//! us.

use std::cell::Cell;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lastgood_engine::{Control, Error, Event, NoIdentity, SourceSettings, release_slot, remove};
use lastgood_integration::{Postgres, Stop, TestDatabase, wait};
use lastgood_proto::Lsn;
use lastgood_proto::key::{SegmentKey, SourceObject};
use lastgood_proto::manifest::{EndReason, LineageEnd};

use crate::majors;
use crate::running::{Fixture, quick, wal_end};

const TABLE: &str = "CREATE TABLE t(id bigserial PRIMARY KEY, v text)";

/// A server of its own with a database and a table.
async fn shop(major: u32) -> Result<(Arc<Postgres>, String, tokio_postgres::Client)> {
    shop_with(major, &[]).await
}

async fn shop_with(
    major: u32,
    settings: &[&str],
) -> Result<(Arc<Postgres>, String, tokio_postgres::Client)> {
    let server = Arc::new(Postgres::start(major, settings).await?);
    let url = server.create_database("shop").await?;
    let client = server.connect("shop").await?;
    client.batch_execute(TABLE).await?;
    Ok((server, url, client))
}

async fn slot(client: &tokio_postgres::Client) -> Result<String> {
    let row = client
        .query_one(
            "SELECT slot_name::text FROM pg_replication_slots
             WHERE database = current_database() AND NOT temporary",
            &[],
        )
        .await?;
    Ok(row.get(0))
}

/// Breaks a stopped lineage with `sql`; the next start must end it for `reason` and begin another.
async fn gap(sql: &str, reason: EndReason) -> Result<()> {
    let database = TestDatabase::new(15).await?;
    let client = database.connect().await?;
    client.batch_execute(TABLE).await?;
    let fixture = Fixture::new(&database.url(), quick()).await?;
    let mut running = fixture.start();
    running.base().await?;
    client
        .batch_execute("INSERT INTO t(v) VALUES ('a')")
        .await?;
    running.durable(wal_end(&client).await?).await?;
    running.stop().await?;

    let sql = sql.replace("<slot>", &slot(&client).await?);
    let sql = sql.replace("<publication>", &format!("lastgood_{}", fixture.source.id));
    for statement in sql.split(';') {
        client.batch_execute(statement).await?;
    }
    let mut running = fixture.start();
    let base = running.base().await?;
    running.stop().await?;
    let lineages = fixture.lineages().await?;
    ensure!(lineages.len() == 2 && lineages[0].ended && !lineages[1].ended);
    ensure!(lineages[1].bases == [base.id]);
    let end: LineageEnd = fixture
        .store
        .get_json(&SourceObject::LineageEnd(lineages[0].id))
        .await?;
    assert_eq!(end.reason, reason, "{}", end.detail);
    assert_eq!(Some(end.end), lineages[0].durable_lsn());
    // Nothing of the old lineage is left on the server.
    slot(&client).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_slot_is_a_gap() -> Result<()> {
    gap(
        "SELECT pg_drop_replication_slot('<slot>')",
        EndReason::SlotMissing,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_moved_on_is_a_gap() -> Result<()> {
    gap(
        "INSERT INTO t(v) VALUES ('lost');
         SELECT pg_replication_slot_advance('<slot>', pg_current_wal_lsn())",
        EndReason::SlotAhead,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_recreated_slot_is_a_gap() -> Result<()> {
    gap(
        "SELECT pg_drop_replication_slot('<slot>'); INSERT INTO t(v) VALUES ('lost');
         SELECT pg_create_logical_replication_slot('<slot>', 'pgoutput')",
        EndReason::SlotAhead,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_publication_made_anew_is_a_gap() -> Result<()> {
    gap(
        "DROP PUBLICATION <publication>; CREATE PUBLICATION <publication> FOR TABLE t",
        EndReason::PublicationChanged,
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slot_lost_while_streaming_begins_a_new_lineage() -> Result<()> {
    let database = TestDatabase::new(15).await?;
    let client = database.connect().await?;
    client.batch_execute(TABLE).await?;
    let fixture = Fixture::new(&database.url(), quick()).await?;
    let mut running = fixture.start();
    running.base().await?;
    let slot = slot(&client).await?;
    let sql = "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
               WHERE slot_name = $1::text::name";
    client.execute(sql, &[&slot]).await?;
    // The reader is gone for a moment; whoever comes first wins, and we try for a while.
    let drop_it = "SELECT pg_drop_replication_slot($1::text::name)";
    while client.execute(drop_it, &[&slot]).await.is_err() {}
    // The supervisor's part: start again after the broken connection.
    let ended = running.ended().await?;
    ensure!(ended.is_err(), "{ended:?}");
    let mut running = fixture.start();
    running
        .wait("new lineage", |event| {
            matches!(event, Event::LineageStarted { .. }).then_some(())
        })
        .await?;
    running.base().await?;
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_stops_at_once_and_its_crash_loses_nothing() -> Result<()> {
    for major in majors() {
        let (server, url, client) = shop(major).await?;
        // Segments would be cut late by themselves: it is the server's wish that has to do it.
        let settings = SourceSettings {
            segment_seconds: 600,
            idle_seconds: 600,
            ..SourceSettings::default()
        };
        let fixture = Fixture::new(&url, settings).await?;
        let mut running = fixture.start();
        running.base().await?;
        client
            .batch_execute("INSERT INTO t VALUES (1, 'before')")
            .await?;
        let start = Instant::now();
        server.stop(Stop::Fast).await?;
        ensure!(
            start.elapsed() < Duration::from_secs(5),
            "took {:?}",
            start.elapsed()
        );
        let ended = running.ended().await?;
        ensure!(ended.is_err(), "{ended:?}");
        server.start_again().await?;
        let client = server.connect("shop").await?;
        let running = fixture.start();
        client
            .batch_execute("INSERT INTO t VALUES (2, 'between')")
            .await?;
        server.crash().await?;
        let ended = running.ended().await?;
        ensure!(ended.is_err(), "{ended:?}");
        server.start_again().await?;
        let client = server.connect("shop").await?;
        let running = fixture.start();
        client
            .batch_execute("INSERT INTO t VALUES (3, 'after')")
            .await?;
        running.stop().await?;
        let mut quick_fixture = fixture;
        quick_fixture.source.settings = quick();
        let mut running = quick_fixture.start();
        running.durable(wal_end(&client).await?).await?;
        running.stop().await?;
        let lineages = quick_fixture.lineages().await?;
        ensure!(lineages.len() == 1, "{lineages:?}");
        let records = quick_fixture.records(&lineages[0]).await?;
        assert_eq!(crate::capture::inserted(&records), ["1", "2", "3"]);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_of_other_databases_is_let_go() -> Result<()> {
    let (server, url, client) = shop(15).await?;
    server.create_database("other").await?;
    let fixture = Fixture::new(&url, quick()).await?;
    let mut running = fixture.start();
    running.base().await?;
    let noise = "CREATE TABLE noise AS SELECT md5(i::text) FROM generate_series(1, 100000) i";
    server.execute("other", noise).await?;
    let end = wal_end(&client).await?;
    running.durable(end).await?;
    let observed = running
        .wait("observed time", |event| match event {
            Event::Status(status) if status.durable_lsn >= Some(end) => status.observed_through,
            _ => None,
        })
        .await?;
    // However much is written beside it, little is held back.
    let retained = "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint FROM pg_replication_slots";
    let begun = wal_end(&client).await?;
    let most = Cell::new(0);
    for _ in 0..10 {
        let noise = "INSERT INTO noise SELECT md5(i::text) FROM generate_series(1, 100000) i";
        server.execute("other", noise).await?;
        // A slot lets go up to a record of the transactions that run, which a checkpoint writes.
        server.execute("other", "CHECKPOINT").await?;
        wait::until("WAL to be let go", async || {
            let held: i64 = client.query_one(retained, &[]).await?.get(0);
            most.set(most.get().max(held));
            Ok((held < 12 << 20).then_some(()))
        })
        .await?;
    }
    let written = wal_end(&client).await?.as_u64() - begun.as_u64();
    let most = most.get();
    ensure!(written > 64 << 20 && most < 32 << 20, "{most} of {written}");
    // A source on which nothing happens at all can be restored to later and later moments.
    running
        .wait("later observed time", |event| match event {
            Event::Status(status) => (status.observed_through.map(|time| time.as_micros())
                > Some(observed.as_micros() + 3_000_000))
            .then_some(()),
            _ => None,
        })
        .await?;
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_takes_the_slot_and_the_source_waits_to_be_asked() -> Result<()> {
    let small = ["max_wal_size=64MB", "min_wal_size=32MB"];
    let (server, url, client) = shop_with(15, &small).await?;
    let settings = SourceSettings {
        wal_budget_bytes: 64 << 20,
        ..quick()
    };
    let fixture = Fixture::new(&url, settings).await?;
    let mut running = fixture.start();
    running.base().await?;
    // An open transaction keeps the slot's restart position where it is, whatever is confirmed.
    let blocker = server.connect("shop").await?;
    blocker
        .batch_execute("BEGIN; INSERT INTO t(v) VALUES ('open')")
        .await?;
    let noise = "INSERT INTO t(v) SELECT repeat(md5(i::text), 30) FROM generate_series(1, 90000) i";
    client.batch_execute(noise).await?;
    let ended = running.ended().await?;
    ensure!(matches!(ended, Err(Error::Ended { .. })), "{ended:?}");
    ensure!(slot(&client).await.is_err(), "the slot is still there");
    // Nothing is kept for us any more, whatever else is written.
    client.batch_execute(noise).await?;
    client.batch_execute(noise).await?;
    client.batch_execute("CHECKPOINT").await?;
    let size = "SELECT sum(size)::bigint FROM pg_ls_waldir()";
    let size: i64 = client.query_one(size, &[]).await?.get(0);
    ensure!(size < 128 << 20, "pg_wal holds {size} bytes");
    blocker.batch_execute("ROLLBACK").await?;
    let again = fixture.start().ended().await?;
    ensure!(matches!(again, Err(Error::Ended { .. })), "{again:?}");
    let mut running = fixture.start_with(Control {
        new_lineage: true,
        ..Control::default()
    });
    running.base().await?;
    running.stop().await
}

#[tokio::test(flavor = "multi_thread")]
async fn pausing_without_the_slot_and_removing_leave_nothing() -> Result<()> {
    let database = TestDatabase::new(18).await?;
    let client = database.connect().await?;
    client
        .batch_execute(
            "CREATE TABLE t(id bigserial PRIMARY KEY); CREATE TABLE bare(a int);
             CREATE TABLE nothing(a int); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
             CREATE TABLE computed(a int, g int GENERATED ALWAYS AS (a * 2) STORED);",
        )
        .await?;
    let settings = SourceSettings {
        no_identity: NoIdentity::Full,
        ..quick()
    };
    let fixture = Fixture::new(&database.url(), settings).await?;
    let mut running = fixture.start();
    let base = running.base().await?;
    ensure!(
        base.tables
            .iter()
            .all(|table| table.protection == lastgood_proto::manifest::Protection::Full),
        "{:?}",
        base.tables
    );
    client
        .batch_execute(
            "INSERT INTO bare VALUES (1), (1); UPDATE bare SET a = 2; DELETE FROM bare;
             INSERT INTO computed VALUES (1); UPDATE computed SET a = 2",
        )
        .await?;
    running.durable(wal_end(&client).await?).await?;
    running.stop().await?;
    let removal = release_slot(&fixture.source, &fixture.store).await?;
    ensure!(
        removal.left.is_empty() && removal.dropped.len() == 1,
        "{removal:?}"
    );
    ensure!(fixture.newest().await?.ended);
    let mut running = fixture.start();
    running.base().await?;
    running.stop().await?;
    let removal = remove(&fixture.source).await?;
    ensure!(removal.left.is_empty(), "{removal:?}");
    let rows = client
        .query(
            "SELECT relname::text, relreplident::text FROM pg_class
             WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1",
            &[],
        )
        .await?;
    let identities: Vec<(String, String)> =
        rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let expected = [
        ("bare", "d"),
        ("computed", "d"),
        ("nothing", "n"),
        ("t", "d"),
    ];
    assert_eq!(
        identities,
        expected.map(|(name, identity)| (name.to_owned(), identity.to_owned()))
    );
    ensure!(slot(&client).await.is_err());
    ensure!(
        client
            .query("SELECT FROM pg_publication", &[])
            .await?
            .is_empty()
    );
    Ok(())
}

/// A provider restores a snapshot of the source's storage while the service is off, and the source
/// writes on past what is durable: no position tells the two histories apart, what was sent does.
#[tokio::test(flavor = "multi_thread")]
async fn storage_set_back_is_a_gap_also_once_it_has_caught_up() -> Result<()> {
    let (server, url, client) = shop(15).await?;
    let fixture = Fixture::new(&url, quick()).await?;
    let mut running = fixture.start();
    running.base().await?;
    client
        .batch_execute("INSERT INTO t VALUES (1, 'both')")
        .await?;
    running.durable(wal_end(&client).await?).await?;
    running.stop().await?;
    server.stop(Stop::Fast).await?;
    let copy = server.data_dir().with_extension("copy");
    copy_folder(&server.data_dir(), &copy)?;

    server.start_again().await?;
    let client = server.connect("shop").await?;
    let mut running = fixture.start();
    client
        .batch_execute("INSERT INTO t VALUES (2, 'only before')")
        .await?;
    let durable = wal_end(&client).await?;
    running.durable(durable).await?;
    running.stop().await?;
    server.stop(Stop::Fast).await?;
    std::fs::remove_dir_all(server.data_dir())?;
    std::fs::rename(&copy, server.data_dir())?;

    server.start_again().await?;
    let client = server.connect("shop").await?;
    client
        .batch_execute("INSERT INTO t VALUES (3, 'only after')")
        .await?;
    let noise = "INSERT INTO t(id, v) SELECT i, repeat('x', 1000) FROM generate_series(10, 200) i";
    client.batch_execute(noise).await?;
    ensure!(wal_end(&client).await? > durable);
    let mut running = fixture.start();
    running.base().await?;
    running.durable(wal_end(&client).await?).await?;
    running.stop().await?;
    let lineages = fixture.lineages().await?;
    ensure!(
        lineages.len() == 2 && lineages[0].ended && !lineages[1].ended,
        "{lineages:?}"
    );
    let end: LineageEnd = fixture
        .store
        .get_json(&SourceObject::LineageEnd(lineages[0].id))
        .await?;
    assert_eq!(end.reason, EndReason::ServerBehind, "{}", end.detail);
    ensure!(end.end < durable, "{end:?}");
    // What was captured before is as it was.
    let records = fixture.records(&lineages[0]).await?;
    assert_eq!(crate::capture::inserted(&records), ["1", "2"]);
    Ok(())
}

/// With owners and modes, which the server insists on.
fn copy_folder(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let copied = std::process::Command::new("cp")
        .arg("-a")
        .args([from, to])
        .status()?;
    ensure!(copied.success(), "{} was not copied", from.display());
    Ok(())
}

/// The last put of a service that was taken over comes late: while its successor works, and before a
/// start. Neither ends the lineage.
#[tokio::test(flavor = "multi_thread")]
async fn a_late_put_ends_no_lineage() -> Result<()> {
    let database = TestDatabase::new(18).await?;
    let client = database.connect().await?;
    client.batch_execute(TABLE).await?;
    let fixture = Fixture::new(&database.url(), quick()).await?;
    let late = async |segment: SegmentKey| -> Result<SegmentKey> {
        let late = SegmentKey {
            end: Lsn::new(segment.end.as_u64() - 1),
            ..segment
        };
        let object = SourceObject::Segment(fixture.newest().await?.id, late);
        fixture.store.put_json(&object, &"by another").await?;
        Ok(late)
    };
    let mut running = fixture.start();
    running.base().await?;
    let first = running
        .wait("a segment", |event| match event {
            Event::Segment { key, .. } => Some(key),
            _ => None,
        })
        .await?;
    let mut beside = vec![late(first).await?];
    client
        .batch_execute("INSERT INTO t VALUES (1, 'a')")
        .await?;
    running.durable(wal_end(&client).await?).await?;
    running.stop().await?;
    let before = fixture.newest().await?;
    beside.push(late(*before.segments.last().context("a segment")?).await?);
    let mut running = fixture.start();
    client
        .batch_execute("INSERT INTO t VALUES (2, 'b')")
        .await?;
    running.durable(wal_end(&client).await?).await?;
    running.stop().await?;
    let lineages = fixture.lineages().await?;
    ensure!(lineages.len() == 1 && !lineages[0].ended);
    ensure!(lineages[0].segments.starts_with(&before.segments));
    ensure!(lineages[0].segments.len() > before.segments.len());
    assert_eq!(
        (&lineages[0].beside, &lineages[0].orphans),
        (&beside, &vec![])
    );
    Ok(())
}

/// A slot waits for whoever is writing, and holds WAL back meanwhile: within the budget.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_cannot_be_made_is_given_up_at_the_budget() -> Result<()> {
    let (server, url, client) = shop(18).await?;
    let settings = SourceSettings {
        wal_budget_bytes: 64 << 20,
        ..quick()
    };
    let fixture = Fixture::new(&url, settings).await?;
    let writer = server.connect("shop").await?;
    writer
        .batch_execute("SET application_name = 'nightly'; BEGIN; INSERT INTO t(v) VALUES ('open')")
        .await?;
    let mut running = fixture.start();
    let waits = |reason: &str| reason.contains("(nightly)") && reason.contains("began");
    running
        .wait("what it waits for", |event| match event {
            Event::Status(status) => status.reason.filter(|reason| waits(reason)),
            _ => None,
        })
        .await?;
    let noise = "INSERT INTO t(v) SELECT repeat(md5(i::text), 30) FROM generate_series(1, 90000) i";
    client.batch_execute(noise).await?;
    let ended = running.ended().await?;
    let Err(error @ Error::SlotWait { .. }) = ended else {
        anyhow::bail!("{ended:?}");
    };
    ensure!(waits(&error.to_string()), "{error}");
    // It is gone while the writer is still there.
    let slots = "SELECT count(*) FROM pg_replication_slots";
    wait::until("the slot to be gone", async || {
        let left: i64 = client.query_one(slots, &[]).await?.get(0);
        Ok((left == 0).then_some(()))
    })
    .await?;
    writer.batch_execute("COMMIT").await?;
    let mut running = fixture.start();
    running.base().await?;
    running.stop().await
}
