//! A database, or a role, with hostile settings does not change what we read.

use anyhow::Result;
use lastgood_integration::TestDatabase;
use lastgood_integration::tools::MAJORS;
use lastgood_pg::{ConnectionConfig, PINNED_SETTINGS};

use crate::{config, replication, session};

const HOSTILE: &[(&str, &str)] = &[
    ("DateStyle", "German"),
    ("IntervalStyle", "sql_standard"),
    ("TimeZone", "Asia/Tokyo"),
    ("extra_float_digits", "0"),
    ("bytea_output", "escape"),
    ("xmlbinary", "hex"),
    ("xmloption", "document"),
    ("array_nulls", "off"),
    ("quote_all_identifiers", "on"),
    ("search_path", "public"),
    ("standard_conforming_strings", "off"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_read_only", "on"),
    ("row_security", "on"),
    ("statement_timeout", "1000000"),
    ("lock_timeout", "1000000"),
    ("idle_in_transaction_session_timeout", "1000000"),
];

#[tokio::test]
async fn pinned_on_every_major() -> Result<()> {
    for major in MAJORS {
        let database = TestDatabase::new(major).await?;
        let mut hostile: Vec<String> = HOSTILE
            .iter()
            .map(|(name, value)| format!("ALTER DATABASE {} SET {name} = '{value}'", database.name))
            .collect();
        let mut later = Vec::new();
        for (name, since) in [("idle_session_timeout", 14), ("transaction_timeout", 17)] {
            if major >= since {
                hostile.push(format!(
                    "ALTER DATABASE {} SET {name} = 1000000",
                    database.name
                ));
                later.push((name, "0"));
            }
        }
        let admin = database.server.connect("postgres").await?;
        for statement in &hostile {
            admin.batch_execute(statement).await?;
        }

        let session = session(&database.url()).await;
        let mut walsender = replication(&database.url()).await;
        assert_eq!(session.server_version() / 10_000, major);
        assert_eq!(walsender.server_version(), session.server_version());
        assert_eq!(session.server_encoding(), "UTF8");
        for (name, value) in PINNED_SETTINGS.iter().copied().chain(later) {
            // TimeZone and the like come back as they were set, DateStyle with a blank.
            let value = if name == "DateStyle" {
                "ISO, MDY"
            } else {
                value
            };
            let sql = format!("SELECT current_setting('{name}')");
            let row = session.client().query_one(&sql, &[]).await?;
            assert_eq!(row.get::<_, &str>(0), value, "{name} on {major}, SQL");
            let rows = walsender.query(&sql).await?;
            assert_eq!(rows[0].at(0), Some(value), "{name} on {major}, walsender");
        }
        assert_eq!(
            walsender.identify_system().await?.system_id,
            session.system_id().await?
        );
    }
    Ok(())
}

#[tokio::test]
async fn options_of_the_caller_are_kept_and_do_not_win() -> Result<()> {
    let database = TestDatabase::new(15).await?;
    let url = format!(
        "{}?options=-c%20work_mem%3D9MB%20-c%20DateStyle%3DGerman",
        database.url()
    );
    let session = session(&url).await;
    let row = session
        .client()
        .query_one(
            "SELECT current_setting('work_mem'), current_setting('DateStyle')",
            &[],
        )
        .await?;
    assert_eq!((row.get(0), row.get(1)), ("9MB", "ISO, MDY"));
    Ok(())
}

#[tokio::test]
async fn a_running_query_can_be_cancelled() -> Result<()> {
    let database = TestDatabase::new(15).await?;
    let session = session(&database.url()).await;
    let canceller = session.canceller();
    let watcher = database.connect().await?;
    let (query, cancelled) = tokio::join!(
        session.client().batch_execute("SELECT pg_sleep(600)"),
        async {
            lastgood_integration::wait::until("the query runs", || async {
            let row = watcher
                .query_opt("SELECT 1 FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'", &[])
                .await?;
            Ok(row.map(drop))
        })
        .await?;
            Ok::<_, anyhow::Error>(canceller.cancel().await?)
        }
    );
    cancelled?;
    let error = lastgood_pg::Error::from(query.unwrap_err());
    assert_eq!(error.sqlstate(), Some("57014"));
    Ok(())
}

#[tokio::test]
async fn another_database_of_the_same_server() -> Result<()> {
    let database = TestDatabase::new(15).await?;
    let other: ConnectionConfig =
        config(&database.server.url("postgres")).with_database(&database.name);
    let session = lastgood_pg::Session::connect(&other, lastgood_pg::Purpose::Restore).await?;
    let row = session
        .client()
        .query_one(
            "SELECT current_database()::text, current_setting('application_name')",
            &[],
        )
        .await?;
    assert_eq!(
        (row.get(0), row.get(1)),
        (database.name.as_str(), "lastgood restore")
    );
    Ok(())
}
