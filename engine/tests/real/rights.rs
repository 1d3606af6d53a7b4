//! Roles that are no superusers, and what a probe says about them.

use anyhow::{Result, ensure};
use lastgood_engine::SourceSettings;
use lastgood_engine::probe::{Report, Severity, probe, role_sql};
use lastgood_integration::{Postgres, TestDatabase};
use lastgood_proto::manifest::Protection;

use crate::majors;
use crate::running::{Fixture, quick, wal_end};

fn codes(report: &Report, severity: Severity) -> Vec<(&str, &str)> {
    let findings = report.findings.iter();
    findings
        .filter(|finding| finding.severity == severity)
        .map(|finding| (finding.code, finding.object.as_str()))
        .collect()
}

async fn look(url: &str) -> Result<Report> {
    Ok(probe(&url.parse()?, &SourceSettings::default()).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_role_works_in_full() -> Result<()> {
    for major in majors() {
        let database = TestDatabase::new(major).await?;
        let client = database.connect().await?;
        let owner = format!("owner_{}", database.name);
        let role = format!("small role {}", database.name);
        client
            .batch_execute(&format!(
                "CREATE ROLE {owner}; CREATE SCHEMA app AUTHORIZATION {owner}; SET ROLE {owner};
                 CREATE TABLE app.t(id bigserial PRIMARY KEY, v text);
                 CREATE TABLE app.secret(id int PRIMARY KEY);
                 ALTER TABLE app.secret ENABLE ROW LEVEL SECURITY;
                 ALTER TABLE app.secret FORCE ROW LEVEL SECURITY; RESET ROLE;"
            ))
            .await?;
        let report = look(&database.url()).await?;
        let none = ("no_event_trigger", database.name.as_str());
        ensure!(!codes(&report, Severity::Info).contains(&none), "{major}");
        let facts = report.server.expect("reachable");
        client.batch_execute(&role_sql(&role, &facts)).await?;
        let url = database
            .server
            .url_as(&role, "<choose one>", &database.name);
        let report = look(&url).await?;
        assert_eq!(codes(&report, Severity::Blocker), [], "{major}");
        let is_named = codes(&report, Severity::Info).contains(&none);
        assert_eq!(is_named, major >= 14, "{major}");

        let fixture = Fixture::new(&url, quick()).await?;
        let mut running = fixture.start();
        let base = running.base().await?;
        ensure!(
            base.tables
                .iter()
                .all(|table| table.protection == Protection::Full)
        );
        ensure!(
            base.sequences
                .iter()
                .all(|sequence| sequence.last_value.is_some())
        );
        client
            .batch_execute("INSERT INTO app.t(v) VALUES ('a')")
            .await?;
        running.durable(wal_end(&client).await?).await?;
        running.stop().await?;
        let removal = lastgood_engine::remove(&fixture.source).await?;
        ensure!(removal.left.is_empty(), "{removal:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_missing_right_is_named_with_its_fix() -> Result<()> {
    for major in majors() {
        let database = TestDatabase::new(major).await?;
        let client = database.connect().await?;
        let role = format!("nobody_{}", database.name);
        client
            .batch_execute(&format!(
                "CREATE ROLE {role} LOGIN; CREATE SCHEMA app; GRANT USAGE ON SCHEMA app TO {role};
                 CREATE TABLE app.closed(id bigserial PRIMARY KEY);
                 CREATE TABLE app.filtered(id int PRIMARY KEY);
                 GRANT SELECT ON app.filtered TO {role};
                 ALTER TABLE app.filtered ENABLE ROW LEVEL SECURITY;"
            ))
            .await?;
        let url = database.server.url_as(&role, "x", &database.name);
        let report = look(&url).await?;
        let blockers = codes(&report, Severity::Blocker);
        for expected in [
            ("no_replication_right", role.as_str()),
            ("no_publication_right", database.name.as_str()),
            ("no_select_right", "app.closed"),
            ("row_security", "app.filtered"),
            ("no_sequence_right", "app.closed_id_seq"),
        ] {
            ensure!(
                blockers.contains(&expected),
                "{expected:?} is not in {blockers:?}"
            );
        }
        ensure!(codes(&report, Severity::Warning).contains(&("not_owned", "app.closed")));
        // The fixes, run as they stand, leave no blocker.
        for finding in &report.findings {
            if finding.severity == Severity::Blocker {
                let fix = finding.fix.as_deref().expect("a fix");
                client.batch_execute(fix).await?;
            }
        }
        assert_eq!(codes(&look(&url).await?, Severity::Blocker), []);
        let left = client.query("SELECT FROM pg_publication", &[]).await?;
        ensure!(left.is_empty(), "a probe creates nothing");
    }
    Ok(())
}

/// A lock is no missing right: it is gone in a moment, and a base waits for it.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_locked_is_said_once_and_blocks_nothing() -> Result<()> {
    let database = TestDatabase::new(18).await?;
    let client = database.connect().await?;
    let table = "CREATE TABLE t(id bigserial PRIMARY KEY)";
    client.batch_execute(table).await?;
    let truncate = "BEGIN; TRUNCATE t RESTART IDENTITY";
    client.batch_execute(truncate).await?;
    let report = look(&database.url()).await?;
    assert_eq!(codes(&report, Severity::Blocker), []);
    let mut locked = codes(&report, Severity::Warning);
    locked.retain(|(code, _)| *code == "table_locked");
    locked.sort_unstable();
    let expected = [
        ("table_locked", "public.t"),
        ("table_locked", "public.t_id_seq"),
    ];
    assert_eq!(locked, expected);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_server_lacks_is_named() -> Result<()> {
    let config = ["wal_level=replica", "max_replication_slots=0"];
    let server = Postgres::start(18, &config).await?;
    let report = look(&server.url("postgres")).await?;
    let blockers = codes(&report, Severity::Blocker);
    ensure!(
        blockers.contains(&("wal_level", "wal_level")),
        "{blockers:?}"
    );
    ensure!(
        blockers.contains(&("no_free_slot", "max_replication_slots")),
        "{blockers:?}"
    );
    let nowhere = "postgresql://postgres@127.0.0.1:1/postgres";
    assert_eq!(codes(&look(nowhere).await?, Severity::Blocker).len(), 1);
    let missing = look(&server.url("missing")).await?;
    assert_eq!(
        codes(&missing, Severity::Blocker),
        [("no_database", "connection")]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_extensions_are_named() -> Result<()> {
    for major in majors() {
        let database = TestDatabase::new(major).await?;
        let client = database.connect().await?;
        client
            .batch_execute(
                "CREATE EXTENSION hstore; CREATE TABLE own(id int PRIMARY KEY);
                 CREATE TABLE theirs(id int PRIMARY KEY); ALTER EXTENSION hstore ADD TABLE theirs",
            )
            .await?;
        let report = look(&database.url()).await?;
        let named = codes(&report, Severity::Info);
        ensure!(
            named.contains(&("extension_table", "public.theirs")),
            "{named:?}"
        );
        let facts = report.server.expect("reachable");
        assert_eq!((facts.tables, facts.tables_protected), (1, 1));

        let fixture = Fixture::new(&database.url(), quick()).await?;
        let mut running = fixture.start();
        let base = running.base().await?;
        running.stop().await?;
        let tables = base.tables.iter();
        let protection: Vec<_> = tables
            .map(|table| (&*table.name, table.protection))
            .collect();
        assert_eq!(
            protection,
            [("own", Protection::Full), ("theirs", Protection::Extension)]
        );
        lastgood_engine::remove(&fixture.source).await?;
    }
    Ok(())
}
