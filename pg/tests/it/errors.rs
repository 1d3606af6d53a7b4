//! Every condition that a caller branches on, as a real server reports it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use lastgood_integration::tools::MAJORS;
use lastgood_integration::{Postgres, Stop, TestDatabase};
use lastgood_pg::slot::{self, WalStatus};
use lastgood_pg::{
    Condition, Error, Purpose, ReplicationConnection, ReplicationOptions, ReplicationStream,
    Session, SlotKind,
};
use lastgood_proto::copy_both::ReplicationMessage;
use lastgood_proto::{Class, Lsn};

use crate::{config, connect_both, replication, session};

fn check<T>(result: Result<T, Error>, condition: Condition, class: Class) {
    match result {
        Err(error) => {
            assert_eq!(error.condition(), condition, "{error:?}");
            assert_eq!(error.class(), class, "{error:?}");
        }
        Ok(_) => panic!("{condition:?} did not happen"),
    }
}

/// Reads until the stream fails.
async fn failure(stream: &mut ReplicationStream) -> Error {
    loop {
        if let Err(error) = stream.next().await {
            return error;
        }
    }
}

/// Waits until the walsender is in its loop: it answers us.
async fn is_streaming(stream: &mut ReplicationStream) -> Result<(), Error> {
    let status = lastgood_proto::copy_both::StandbyStatus {
        written: Lsn::INVALID,
        flushed: Lsn::INVALID,
        applied: Lsn::INVALID,
        clock: lastgood_proto::PgTimestamp::from_micros(0),
        reply_requested: true,
    };
    stream.send_status(&status).await?;
    stream.next().await.map(drop)
}

#[tokio::test]
async fn no_way_to_the_server() -> Result<()> {
    // Nobody listens on a port that the kernel just gave away and took back.
    let port = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let error = connect_both(&format!("postgres://u@127.0.0.1:{port}/d"))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Transient);

    let error = connect_both("postgres://u@no-such-host.invalid/d")
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");

    // A listener that never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let port = silent.local_addr()?.port();
    let error = connect_both(&format!(
        "postgres://u@127.0.0.1:{port}/d?connect_timeout=2"
    ))
    .await
    .unwrap_err();
    assert!(
        matches!(error, Error::ConnectTimeout { seconds: 2, .. }),
        "{error:?}"
    );
    assert_eq!(error.class(), Class::Transient);
    Ok(())
}

#[tokio::test]
async fn several_hosts() -> Result<()> {
    let server = Postgres::start(15, &[]).await?;
    let dead = std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port();
    let hosts = format!("127.0.0.1:{dead},127.0.0.1:{}", server.port());
    let reached = session(&format!("postgres://postgres@{hosts}/postgres")).await;
    assert_eq!(reached.host().port(), server.port());
    for wanted in ["primary", "read-write", "prefer-standby"] {
        connect_both(&format!(
            "postgres://postgres@{hosts}/postgres?target_session_attrs={wanted}"
        ))
        .await?;
    }
    let error = connect_both(&format!(
        "postgres://postgres@{hosts}/postgres?target_session_attrs=standby"
    ))
    .await
    .unwrap_err();
    assert!(matches!(error, Error::WrongSession { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Transient);
    Ok(())
}

#[tokio::test]
async fn rights_databases_and_connections() -> Result<()> {
    for major in MAJORS {
        let server = Postgres::start(
            major,
            &[
                "max_wal_senders=1",
                "max_connections=20",
                "max_replication_slots=1",
            ],
        )
        .await?;
        server
            .execute(
                "postgres",
                "CREATE ROLE ordinary LOGIN; CREATE ROLE sender LOGIN REPLICATION",
            )
            .await?;

        // A walsender counts until its process is gone.
        let watcher = server.connect("postgres").await?;
        let no_sender = || {
            lastgood_integration::wait::until("no walsender is left", async || {
                let sql = "SELECT 1 FROM pg_stat_activity WHERE backend_type = 'walsender'";
                Ok(watcher.query_opt(sql, &[]).await?.is_none().then_some(()))
            })
        };

        let missing = connect_both(&server.url("no_such_database")).await;
        check(missing, Condition::DatabaseMissing, Class::NeedsOperator);
        no_sender().await?;

        let as_role = |role: &str| config(&server.url_as(role, "x", "postgres"));
        let (ordinary, sender) = (as_role("ordinary"), as_role("sender"));
        let options = ReplicationOptions::default();
        let no_right = ReplicationConnection::connect(&ordinary, &options);
        check(no_right.await, Condition::NoRight, Class::NeedsOperator);
        no_sender().await?;
        let no_right = Session::connect(&ordinary, Purpose::Probe).await?;
        let denied = no_right
            .client()
            .batch_execute("CREATE TABLE pg_catalog.x ()")
            .await;
        check(
            denied.map_err(Error::from),
            Condition::NoRight,
            Class::NeedsOperator,
        );

        let mut first = ReplicationConnection::connect(&sender, &options).await?;
        let full = ReplicationConnection::connect(&sender, &options);
        check(full.await, Condition::NoFreeConnection, Class::Transient);

        first.create_slot("only", SlotKind::Permanent).await?;
        let full = first.create_slot("another", SlotKind::Temporary).await;
        check(full, Condition::NoFreeSlot, Class::NeedsOperator);
        // The connection survives an error.
        assert_eq!(first.identify_system().await?.database, "postgres");
    }
    Ok(())
}

#[tokio::test]
async fn wal_level() -> Result<()> {
    for major in MAJORS {
        let server = Postgres::start(major, &["wal_level=replica"]).await?;
        let mut connection = replication(&server.url("postgres")).await;
        let created = connection.create_slot("s", SlotKind::Permanent).await;
        check(created, Condition::WalLevel, Class::NeedsOperator);
    }
    Ok(())
}

#[tokio::test]
async fn slots_in_use_missing_and_existing() -> Result<()> {
    for major in MAJORS {
        let database = TestDatabase::new(major).await?;
        let name = format!("slot_{}", database.name);
        database.execute("CREATE PUBLICATION p").await?;

        let mut connection = replication(&database.url()).await;
        let created = connection.create_slot(&name, SlotKind::Permanent).await?;
        let twice = connection.create_slot(&name, SlotKind::Permanent).await;
        check(twice, Condition::SlotExists, Class::NeedsOperator);

        let stream = connection
            .start(&name, created.consistent_point, "p", 0)
            .await?;
        let second = replication(&database.url()).await;
        let second = second.start(&name, Lsn::INVALID, "p", 0).await;
        check(second, Condition::SlotActive, Class::Transient);

        let session = session(&database.url()).await;
        let active = slot::drop_slot(&session, &name).await;
        check(active, Condition::SlotActive, Class::Transient);
        let info = slot::slot_info(&session, &name).await?.expect("the slot");
        assert_eq!(info.plugin.as_deref(), Some("pgoutput"));
        assert_eq!(info.database.as_deref(), Some(database.name.as_str()));
        assert!(info.active_pid.is_some() && !info.is_lost());
        assert_eq!(slot::slots_with_prefix(&session, &name).await?, [info]);

        stream.close(Duration::from_secs(30)).await?;
        assert!(slot::drop_slot(&session, &name).await?);
        assert!(!slot::drop_slot(&session, &name).await?);
        assert_eq!(slot::slot_info(&session, &name).await?, None);

        let gone = replication(&database.url()).await;
        let gone = gone.start(&name, Lsn::INVALID, "p", 0).await;
        check(gone, Condition::SlotMissing, Class::NeedsOperator);
    }
    Ok(())
}

#[tokio::test]
async fn a_slot_whose_wal_is_gone() -> Result<()> {
    for major in MAJORS {
        let server = Postgres::start(
            major,
            &[
                "max_slot_wal_keep_size=1MB",
                "max_wal_size=32MB",
                "min_wal_size=32MB",
            ],
        )
        .await?;
        let url = server.url("postgres");
        server
            .execute("postgres", "CREATE PUBLICATION p; CREATE TABLE t (x text)")
            .await?;
        let mut connection = replication(&url).await;
        connection.create_slot("s", SlotKind::Permanent).await?;
        for _ in 0..3 {
            server
                .execute(
                    "postgres",
                    "INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 30000);
                     SELECT pg_switch_wal();",
                )
                .await?;
            server.execute("postgres", "CHECKPOINT").await?;
        }
        let session = session(&url).await;
        let info = slot::slot_info(&session, "s").await?.expect("the slot");
        assert_eq!(info.wal_status, Some(WalStatus::Lost), "{major}: {info:?}");
        assert!(info.is_lost());
        let lost = replication(&url)
            .await
            .start("s", Lsn::INVALID, "p", 0)
            .await;
        check(lost, Condition::SlotLost, Class::NeedsOperator);
    }
    Ok(())
}

#[tokio::test]
async fn a_publication_that_is_gone() -> Result<()> {
    // From 18 on the server goes on without it, with a warning to its log.
    for major in MAJORS.into_iter().filter(|major| *major < 18) {
        let database = TestDatabase::new(major).await?;
        let name = format!("slot_{}", database.name);
        database
            .execute("CREATE TABLE t (x int PRIMARY KEY)")
            .await?;
        let mut connection = replication(&database.url()).await;
        let created = connection.create_slot(&name, SlotKind::Permanent).await?;
        database.execute("INSERT INTO t VALUES (1)").await?;
        let mut stream = connection
            .start(&name, created.consistent_point, "gone", 0)
            .await?;
        let error = failure(&mut stream).await;
        assert_eq!(
            error.condition(),
            Condition::PublicationMissing,
            "{major}: {error:?}"
        );
        assert_eq!(error.class(), Class::NeedsOperator);
        drop(stream);
        let session = session(&database.url()).await;
        lastgood_integration::wait::until("the slot is free", || async {
            Ok(slot::drop_slot(&session, &name).await.ok())
        })
        .await?;
    }
    Ok(())
}

#[tokio::test]
async fn an_end_from_outside() -> Result<()> {
    for major in [13, 15, 18] {
        let server = Arc::new(Postgres::start(major, &[]).await?);
        let url = server.url("postgres");
        server.execute("postgres", "CREATE PUBLICATION p").await?;
        let mut connection = replication(&url).await;
        let created = connection.create_slot("s", SlotKind::Permanent).await?;
        let mut stream = connection
            .start("s", created.consistent_point, "p", 0)
            .await?;

        let watcher = session(&url).await;
        assert!(slot::terminate_reader(&watcher, "s").await?);
        let error = failure(&mut stream).await;
        assert_eq!(error.condition(), Condition::Restarting, "{error:?}");
        assert_eq!(error.class(), Class::Transient);
        assert!(
            !lastgood_integration::wait::until("the slot is free", || async {
                let reader = slot::terminate_reader(&watcher, "s").await?;
                Ok((!reader).then_some(reader))
            })
            .await?
        );

        // A shutdown in good order: what was sent is confirmed, so the server need not wait.
        let mut stream = replication(&url)
            .await
            .start("s", created.consistent_point, "p", 0)
            .await?;
        drop(watcher);
        // A walsender answers START_REPLICATION a moment before it counts as one (walsender.c sets
        // `replication_active` afterwards); until then a stop ends it like any other session.
        is_streaming(&mut stream).await?;
        let (stopped, error) = tokio::join!(
            server.stop_within(Stop::Fast, Duration::from_secs(20)),
            async {
                loop {
                    match stream.next().await {
                        Ok(ReplicationMessage::Keepalive { wal_end, clock, .. }) => {
                            let status = lastgood_proto::copy_both::StandbyStatus {
                                written: wal_end,
                                flushed: wal_end,
                                applied: wal_end,
                                clock,
                                reply_requested: false,
                            };
                            if let Err(error) = stream.send_status(&status).await {
                                return error;
                            }
                        }
                        Ok(_) => {}
                        Err(error) => return error,
                    }
                }
            }
        );
        stopped?;
        assert!(
            matches!(error, Error::StreamEnded | Error::Closed),
            "{error:?}"
        );
        assert_eq!(error.class(), Class::Transient);

        // And a crash.
        server.start_again().await?;
        let mut stream = replication(&url)
            .await
            .start("s", created.consistent_point, "p", 0)
            .await?;
        let sql = session(&url).await;
        server.crash().await?;
        let error = failure(&mut stream).await;
        assert_eq!(error.class(), Class::Transient, "{error:?}");
        let error = Error::from(sql.client().batch_execute("SELECT 1").await.unwrap_err());
        assert_eq!(error.class(), Class::Transient, "{error:?}");
        let error = connect_both(&url).await.unwrap_err();
        assert_eq!(error.class(), Class::Transient, "{error:?}");
    }
    Ok(())
}
