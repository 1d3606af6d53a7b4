//! What the stream does not carry: changes of tables and of the publication. A restore never goes
//! across one; it equals the source before it, and again once a base was taken after it.

use anyhow::{Context, Result};
use lastgood_integration::{Service, Storage, TestDatabase, digest, history, truth, wait};
use serde_json::{Value, json};

const TABLES: &str = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN small AS int CONSTRAINT small CHECK (VALUE < 10000); \
    CREATE TABLE t (id int PRIMARY KEY, a int CONSTRAINT positive CHECK (a > 0), b int, feels mood, once int, limited small); INSERT INTO t VALUES (1, 1, 2); \
    CREATE UNIQUE INDEX t_once ON t (once); CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY); INSERT INTO scratch VALUES (1); \
    CREATE TABLE dropped (id int PRIMARY KEY); INSERT INTO dropped VALUES (1); \
    CREATE TABLE child (id int PRIMARY KEY, up int CONSTRAINT parent REFERENCES child); INSERT INTO child VALUES (1, 1);";

/// Each of these once made a restore succeed with wrong values, or without a table.
const CHANGES: &[&str] = &[
    "ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME x TO b; \
     INSERT INTO t VALUES (2, 1, 2)",
    "ALTER TABLE t ALTER a TYPE int USING a * 100; INSERT INTO t VALUES (2, 700, 0)",
    "ALTER TABLE t ADD c int DEFAULT 7",
    "ALTER TABLE t ADD c timestamptz DEFAULT now()",
    "ALTER TABLE scratch SET LOGGED; INSERT INTO scratch VALUES (2)",
    "ALTER TYPE mood ADD VALUE 'glad'; COMMIT; INSERT INTO t VALUES (3, 3, 3, 'glad')",
    "ALTER TABLE t DROP CONSTRAINT positive; INSERT INTO t VALUES (3, -10, 3)",
    "DROP INDEX t_once; INSERT INTO t VALUES (3, 3, 3, NULL, 7), (4, 4, 4, NULL, 7)",
    "ALTER TABLE child DROP CONSTRAINT parent; INSERT INTO child VALUES (2, 99)",
    "ALTER DOMAIN small DROP CONSTRAINT small; INSERT INTO t (id, a, limited) VALUES (3, 3, 20000)",
    "DROP TABLE dropped; CREATE TABLE fresh (id int PRIMARY KEY); INSERT INTO fresh VALUES (1)",
    "ALTER PUBLICATION {publication} SET (publish = 'insert'); UPDATE t SET a = 100",
    "ALTER PUBLICATION {publication} SET TABLE t WHERE (id < 5), dropped; UPDATE t SET a = 100",
    "ALTER PUBLICATION {publication} DROP TABLE t; UPDATE t SET a = 100",
    "DROP PUBLICATION {publication}; UPDATE t SET a = 100",
];

#[tokio::test]
async fn no_restore_goes_across_a_change_that_the_stream_does_not_carry() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    // Side by side: each waits for its change to settle.
    let checks = CHANGES
        .iter()
        .enumerate()
        .map(|(at, change)| check(&service, at, change));
    futures::future::try_join_all(checks).await?;
    assert!(service.terminate().await?.success());
    Ok(())
}

async fn check(service: &Service, number: usize, change: &str) -> Result<()> {
    let database = TestDatabase::new(18).await?;
    database.execute(TABLES).await?;
    let name = format!("s{number}");
    let created = service
        .add_source(&name, &database.url(), history::settings())
        .await?;
    service.wait_protected(&name).await?;
    let mut client = database.connect().await?;
    client
        .batch_execute("INSERT INTO t VALUES (10, 10, 10)")
        .await?;
    let before = digest::of(&mut client, None).await?;
    let lsn = truth::wal_position(&client).await?;
    service.wait_durable(&name, &lsn).await?;

    let id = created["id"].as_str().context("an id")?;
    let change = change.replace("{publication}", &format!("lastgood_{id}"));
    client.batch_execute(&change).await?;
    let changed = truth::wal_position(&client).await?;
    let after = digest::of(&mut client, None).await?;
    wait_beyond(service, &name, &changed).await?;

    let restore = async |target: Value, truth: &digest::Content, what: &str| -> Result<()> {
        let copy = format!("{}_{what}", database.name);
        let into = json!({"connection": database.server.url("postgres"), "create_database": copy});
        service
            .restore(&name, &target, into)
            .await
            .with_context(|| format!("{change}: {what}"))?;
        let restored = digest::of(&mut database.server.connect(&copy).await?, None).await?;
        truth.assert_restored(&restored, &format!("{change}: {what}"));
        history::drop_database(&database.server, &copy).await
    };
    restore(json!({"lsn": lsn, "inclusive": false}), &before, "before").await?;
    restore(json!("latest"), &after, "after").await?;

    // And what comes after is captured again, every row of it.
    client
        .batch_execute("UPDATE t SET a = a + 1; DELETE FROM t WHERE id = 10")
        .await?;
    let later = digest::of(&mut client, None).await?;
    service
        .wait_durable(&name, &truth::wal_position(&client).await?)
        .await?;
    restore(json!("latest"), &later, "later").await
}

/// Whatever was seen ends what a base reaches, though the shape is as it was again before it has settled.
#[tokio::test]
async fn a_change_that_is_taken_back_at_once_is_followed_by_a_base() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    database.execute(TABLES).await?;
    service
        .add_source("back", &database.url(), history::settings())
        .await?;
    service.wait_protected("back").await?;
    let mut client = database.connect().await?;
    let change = "CREATE UNIQUE INDEX x ON t (b); INSERT INTO t VALUES (2, 2, 3)";
    client.batch_execute(change).await?;
    // Durable is only what was looked at.
    let lsn = truth::wal_position(&client).await?;
    service.wait_durable("back", &lsn).await?;
    client
        .batch_execute("DROP INDEX x; INSERT INTO t VALUES (3, 3, 3)")
        .await?;
    wait_beyond(&service, "back", &truth::wal_position(&client).await?).await?;

    client.batch_execute("UPDATE t SET a = 7").await?;
    let later = digest::of(&mut client, None).await?;
    let lsn = truth::wal_position(&client).await?;
    service.wait_durable("back", &lsn).await?;
    let copy = format!("{}_later", database.name);
    let into = json!({"connection": database.server.url("postgres"), "create_database": copy});
    service.restore("back", &json!("latest"), into).await?;
    let restored = digest::of(&mut database.server.connect(&copy).await?, None).await?;
    later.assert_restored(&restored, "later");
    history::drop_database(&database.server, &copy).await?;
    assert!(service.terminate().await?.success());
    Ok(())
}

/// In one transaction, so that no look finds anything else than before; its rows have text that means something else.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_called_otherwise_for_a_while_is_followed_by_a_base() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    let tables = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE feels (id int PRIMARY KEY, f mood);
        INSERT INTO feels VALUES (1, 'sad'), (2, 'ok'); CREATE TABLE live (id int PRIMARY KEY); CREATE TABLE archive (id int PRIMARY KEY);
        CREATE TABLE log (id int PRIMARY KEY, rel regclass); INSERT INTO log VALUES (1, 'live'), (2, 'archive')";
    database.execute(tables).await?;
    service
        .add_source("back", &database.url(), history::settings())
        .await?;
    service.wait_protected("back").await?;
    let mut client = database.connect().await?;
    let labels =
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'x'; ALTER TYPE mood RENAME VALUE 'ok' TO 'sad';
        ALTER TYPE mood RENAME VALUE 'x' TO 'ok';";
    let names = "ALTER TABLE live RENAME TO x; ALTER TABLE archive RENAME TO live; ALTER TABLE x RENAME TO archive;";
    let changes = [
        (
            labels,
            "INSERT INTO feels VALUES (3, 'sad'); UPDATE feels SET f = 'ok' WHERE id = 1",
        ),
        (
            names,
            "INSERT INTO log VALUES (3, 'live'); INSERT INTO live VALUES (7)",
        ),
    ];
    for (at, (there, rows)) in changes.into_iter().enumerate() {
        let change = format!("BEGIN; {there} {rows}; {there} COMMIT");
        client.batch_execute(&change).await?;
        wait_beyond(&service, "back", &truth::wal_position(&client).await?).await?;
        let truth = digest::of(&mut client, None).await?;
        let lsn = truth::wal_position(&client).await?;
        service.wait_durable("back", &lsn).await?;
        let copy = format!("{}_{at}", database.name);
        let into = json!({"connection": database.server.url("postgres"), "create_database": copy});
        service.restore("back", &json!("latest"), into).await?;
        let restored = digest::of(&mut database.server.connect(&copy).await?, None).await?;
        truth.assert_restored(&restored, there);
        history::drop_database(&database.server, &copy).await?;
    }
    assert!(service.terminate().await?.success());
    Ok(())
}

/// Until what is behind `changed` can be restored: a base was taken since. It may serve from before, but no window goes on
/// across a change.
pub(crate) async fn wait_beyond(service: &Service, name: &str, changed: &str) -> Result<()> {
    let changed = lastgood_integration::service::parse_lsn(changed)?;
    wait::until_within(
        std::time::Duration::from_secs(90),
        "a base after the change",
        || async {
            let answer = service
                .get(&format!("/api/v1/sources/{name}/window"))
                .await?;
            let windows = answer["windows"].as_array().cloned().unwrap_or_default();
            let last = windows.last().context("a window")?;
            let edge = |end: &str| {
                let lsn = last[end]["lsn"].as_str().context("an LSN")?;
                lastgood_integration::service::parse_lsn(lsn)
            };
            let is_new = windows.len() > 1 || edge("from")? >= changed;
            let reaches = edge("to")? >= changed && answer["latest_refused"].is_null();
            Ok((is_new && reaches).then_some(()))
        },
    )
    .await
}
