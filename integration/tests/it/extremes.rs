//! As large as PostgreSQL lets things be: values of a hundred megabytes, tables of 1,600 columns,
//! transactions of a hundred thousand subtransactions, and rows that no walsender can send.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lastgood_integration::{Service, Storage, TestDatabase, history, seed, vitals, wait};
use serde_json::json;
use tokio_postgres::Client;

async fn protect(service: &Service, name: &str, database: &TestDatabase) -> Result<()> {
    let settings = history::settings();
    service.add_source(name, &database.url(), settings).await?;
    service.wait_protected(name).await
}

/// `LASTGOOD_EXTREMES=full` makes the values as large as this module says, and takes every row that cannot
/// be sent instead of one that is drawn (`make extremes`).
fn is_full() -> bool {
    std::env::var("LASTGOOD_EXTREMES").as_deref() == Ok("full")
}

fn value_bytes() -> usize {
    if is_full() { 100_000_000 } else { 1_000_000 }
}

/// PostgreSQL fact: one row is one message; values stored out of line that are changed, left alone, moved by
/// a change of the key and deleted, found by their key and by the whole row. The service holds a few
/// images of one row at the most, never a whole transaction.
#[tokio::test(flavor = "multi_thread")]
async fn values_of_a_hundred_megabytes() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    for major in [13, 18] {
        large_values(&service, major)
            .await
            .with_context(|| format!("PostgreSQL {major}"))?;
    }
    service.terminate().await?;
    Ok(())
}

async fn large_values(service: &Service, major: u32) -> Result<()> {
    let bytes = value_bytes();
    let database = TestDatabase::new(major).await?;
    let client = database.connect().await?;
    // Three times `bytes` on the wire: a bytea has two digits a byte. All that JSON and COPY escape.
    let row = |id: i32, letter: char| {
        format!(
            "SELECT {id}, 0, repeat(E'{letter}\"\\\\\\n\\tü', {bytes} / 7),
              decode(repeat('00ff5c0a{:02x}', {bytes} / 5), 'hex')",
            letter as u32
        )
    };
    let document = |id: i32, letter: char| {
        format!(
            "SELECT {id}, 0, jsonb_build_object('k', repeat(E'{letter}\"\\\\\\n', {bytes} / 5)),
              ARRAY[repeat('{letter}\"', {bytes} / 4), NULL, repeat(E'\\\\,', {bytes} / 4)]"
        )
    };
    for (table, identity) in [("by_key", "DEFAULT"), ("by_row", "FULL")] {
        client
            .batch_execute(&format!(
                "CREATE TABLE {table} (id int PRIMARY KEY, n int, t text, b bytea); ALTER TABLE {table} REPLICA IDENTITY {identity};
                 CREATE TABLE {table}_doc (id int PRIMARY KEY, n int, j jsonb, a text[]); ALTER TABLE {table}_doc REPLICA IDENTITY {identity};
                 INSERT INTO {table} {}; INSERT INTO {table}_doc {}",
                row(1, 'a'),
                document(1, 'a')
            ))
            .await?;
    }
    let name = format!("large-{major}");
    protect(service, &name, &database).await?;
    let begun = Instant::now();
    for table in ["by_key", "by_row"] {
        client
            .batch_execute(&format!(
                "BEGIN; INSERT INTO {table} {two}; INSERT INTO {table} {three}; INSERT INTO {table}_doc {doc}; COMMIT;
                 BEGIN; UPDATE {table} SET n = 1; UPDATE {table} SET t = 'c' || t WHERE id = 1; UPDATE {table} SET n = 2, id = 10 WHERE id = 1; COMMIT;
                 UPDATE {table}_doc SET n = 1; UPDATE {table}_doc SET j = j || '{{\"more\": 1}}', n = 2 WHERE id = 1; UPDATE {table}_doc SET a = a || 'last'::text WHERE id = 2;
                 UPDATE {table} SET b = b || '\\x00'::bytea WHERE id = 2; DELETE FROM {table} WHERE id = 3; DELETE FROM {table}_doc WHERE id = 2",
                two = row(2, 'b'),
                three = row(3, 'c'),
                doc = document(2, 'b'),
            ))
            .await?;
    }
    let written = begun.elapsed();
    let begun = Instant::now();
    history::check_latest(service, &name, &database).await?;
    let peak = peak_bytes(service)?;
    eprintln!(
        "PostgreSQL {major}, values of {bytes} bytes: written in {written:?}, captured and restored in {:?}, service at most {} MB",
        begun.elapsed(),
        peak >> 20
    );
    // Old and new row in one message, by the whole row; and what a service and its restore take anyway.
    let message = 2 * 3 * bytes as u64;
    ensure!(
        peak < (300 << 20) + 5 * message,
        "the service took {peak} bytes for messages of {message}"
    );
    Ok(())
}

/// The most memory that the service ever had.
fn peak_bytes(service: &Service) -> Result<u64> {
    let id = service.process_id().context("a running service")?;
    vitals::peak_bytes(id).context("VmHWM")
}

const COLUMNS: usize = 1600;

/// As many columns as a table can have, as many as an index can, narrow enough for a page.
#[tokio::test(flavor = "multi_thread")]
async fn tables_of_1600_columns() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let runs = [13, 15, 18].map(|major| {
        let run = widest(&service, major);
        async move { run.await.with_context(|| format!("PostgreSQL {major}")) }
    });
    futures::future::try_join_all(runs).await?;
    service.terminate().await?;
    Ok(())
}

async fn widest(service: &Service, major: u32) -> Result<()> {
    let database = TestDatabase::new(major).await?;
    let client = database.connect().await?;
    let kind = |at: usize| match at % 4 {
        0 => "int",
        1 | 2 => "bool",
        _ => "text",
    };
    // Numbers in the first columns, few texts: a row must fit a page.
    let value = |at: usize, row: usize| match at % 4 {
        _ if at < 32 => format!("{}", row * 100 + at),
        0 => format!("{}", row + at),
        1 => "true".to_owned(),
        2 if (at + row).is_multiple_of(3) => "NULL".to_owned(),
        2 => "false".to_owned(),
        _ if (at + row).is_multiple_of(90) => "E'x\\t\"'".to_owned(),
        _ => "NULL".to_owned(),
    };
    let tables = [
        ("one", 1, "DEFAULT"),
        ("many", 32, "DEFAULT"),
        ("whole", 0, "FULL"),
    ];
    for (table, keys, identity) in tables {
        let mut sql = format!("CREATE TABLE {table} (");
        for at in 0..COLUMNS {
            let kind = if at < 32 { "int" } else { kind(at) };
            let _ = write!(sql, "c{at} {kind}, ");
        }
        let key: Vec<String> = (0..keys).map(|at| format!("c{at}")).collect();
        let key = match keys {
            0 => "CHECK (true)".to_owned(),
            _ => format!("PRIMARY KEY ({})", key.join(", ")),
        };
        let _ = write!(
            sql,
            "{key}); ALTER TABLE {table} REPLICA IDENTITY {identity};"
        );
        for row in 1..=4 {
            sql.push_str(&insert(table, row, &value));
        }
        client.batch_execute(&sql).await?;
    }
    // Two rows that are equal in every column.
    client.batch_execute(&insert("whole", 4, &value)).await?;
    let name = format!("wide-{major}");
    protect(service, &name, &database).await?;
    for (table, ..) in tables {
        let all: Vec<String> = (32..COLUMNS)
            .map(|at| format!("c{at} = {}", value(at, 7)))
            .collect();
        let sql = format!(
            "{inserted} UPDATE {table} SET c1599 = 'changed', c1598 = NULL WHERE c0 = 100; UPDATE {table} SET {all} WHERE c0 = 200;
             UPDATE {table} SET c0 = -1, c31 = -1 WHERE c0 = 300; UPDATE {table} SET c99 = 'again' WHERE c0 IN (-1, 500);
             DELETE FROM {table} WHERE ctid = (SELECT ctid FROM {table} WHERE c0 = 400 LIMIT 1);
             BEGIN; UPDATE {table} SET c5 = c5 + 1; UPDATE {table} SET c0 = c0 + 1; DELETE FROM {table} WHERE c0 = 201; {again} COMMIT",
            inserted = insert(table, 5, &value),
            all = all.join(", "),
            again = insert(table, 2, &value),
        );
        client
            .batch_execute(&sql)
            .await
            .with_context(|| table.to_owned())?;
    }
    history::check_latest(service, &name, &database).await?;
    Ok(())
}

fn insert(table: &str, row: usize, value: &dyn Fn(usize, usize) -> String) -> String {
    let values: Vec<String> = (0..COLUMNS).map(|at| value(at, row)).collect();
    format!("INSERT INTO {table} VALUES ({});", values.join(", "))
}

/// PostgreSQL fact: a hundred thousand subtransactions of which every third is rolled back, and two long transactions
/// that write by turns, each with thousands of its own, savepoints within savepoints.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_thousand_subtransactions() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let runs = [13, 18].map(|major| {
        let run = subtransactions(&service, major);
        async move { run.await.with_context(|| format!("PostgreSQL {major}")) }
    });
    futures::future::try_join_all(runs).await?;
    service.terminate().await?;
    Ok(())
}

async fn subtransactions(service: &Service, major: u32) -> Result<()> {
    let database = TestDatabase::new(major).await?;
    let (one, two) = (database.connect().await?, database.connect().await?);
    one.batch_execute("CREATE TABLE t (id int PRIMARY KEY, v int); CREATE TABLE turns (who text, id int, v text, PRIMARY KEY (who, id))")
        .await?;
    let name = format!("subtransactions-{major}");
    protect(service, &name, &database).await?;
    one.batch_execute(
        "DO $$ BEGIN FOR i IN 1..100000 LOOP BEGIN INSERT INTO t VALUES (i, i); IF i % 3 = 0 THEN RAISE EXCEPTION 'no'; END IF;
           EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$",
    )
    .await?;
    one.batch_execute("BEGIN").await?;
    two.batch_execute("BEGIN").await?;
    for turn in 0..6 {
        for (who, client) in [("one", &one), ("two", &two)] {
            client.batch_execute(&format!("SAVEPOINT s{turn}")).await?;
            client
                .batch_execute(&format!(
                    "DO $$ BEGIN FOR i IN 1..1500 LOOP BEGIN
                       INSERT INTO turns VALUES ('{who}', {turn} * 10000 + i, 'turn {turn}');
                       UPDATE turns SET v = v || '.' WHERE who = '{who}' AND id = i;
                       IF i % 5 = 0 THEN RAISE EXCEPTION 'no'; END IF;
                       EXCEPTION WHEN raise_exception THEN NULL; END; END LOOP; END $$"
                ))
                .await?;
            if turn % 3 == 2 {
                // Takes two turns along.
                client
                    .batch_execute(&format!("ROLLBACK TO s{}", turn - 1))
                    .await?;
            }
        }
    }
    two.batch_execute("COMMIT").await?;
    one.batch_execute("UPDATE turns SET v = 'last' WHERE who = 'one' AND id % 7 = 0; COMMIT")
        .await?;
    history::check_latest(service, &name, &database).await?;
    let rows: i64 = one.query_one("SELECT count(*) FROM t", &[]).await?.get(0);
    ensure!(rows == 66_667, "{rows} rows on the source itself");
    Ok(())
}

/// PostgreSQL fact: a row that PostgreSQL stores and cannot print: more than half a gigabyte of bytea, and an old and
/// a new image that are longer than a gigabyte together. No later change can be decoded any more. The
/// source says so and what to do, does not try without pause, and that helps.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_no_walsender_can_send() -> Result<()> {
    const ROWS: [(&str, &str, &str); 2] = [
        (
            "bytea",
            "CREATE TABLE t (id int PRIMARY KEY, v bytea COMPRESSION lz4)",
            "INSERT INTO t SELECT 1, convert_to(repeat('a', 540000000), 'SQL_ASCII')",
        ),
        (
            "whole-rows",
            "CREATE TABLE t (id int, v text COMPRESSION lz4); ALTER TABLE t REPLICA IDENTITY FULL",
            "BEGIN; INSERT INTO t VALUES (1, repeat('a', 540000000)); UPDATE t SET v = repeat('b', 540000000); COMMIT",
        ),
    ];
    let drawn = usize::try_from(seed::choose("a_row_that_no_walsender_can_send") % 2)?;
    let rows = if is_full() {
        &ROWS[..]
    } else {
        &ROWS[drawn..=drawn]
    };
    let service = Service::start(&Storage::local()?).await?;
    for &(name, table, change) in rows {
        let database = TestDatabase::new(18).await?;
        database.execute(table).await?;
        protect(&service, name, &database).await?;
        database
            .execute("CREATE TABLE before (id int PRIMARY KEY)")
            .await?;
        let client = database.connect().await?;
        client.batch_execute(change).await?;
        // Gigabytes are written, decoded and thrown away before.
        let patience = Duration::from_secs(600);
        let failed = wait::until_within(patience, &format!("the end of {name}"), async || {
            let status = service.source(name).await?;
            Ok((status["status"] == "failed").then_some(status))
        })
        .await?;
        let reason = failed["reason"].as_str().unwrap_or_default();
        for part in [
            "cannot send",
            "most likely",
            "1 GB",
            "newest minor release",
            "make the value smaller",
            "--slot drop",
        ] {
            ensure!(reason.contains(part), "{part} in {failed:#}");
        }
        let tries = service.log().matches("a source failed").count();
        ensure!(tries <= 4, "{tries} tries in {}", service.log());

        mend(&service, name, &client).await?;
        history::check_latest(&service, name, &database).await?;
    }
    service.terminate().await?;
    Ok(())
}

/// What the reason asks for.
async fn mend(service: &Service, name: &str, client: &Client) -> Result<()> {
    client
        .batch_execute("UPDATE t SET v = 'short'; INSERT INTO t VALUES (2, 'new')")
        .await?;
    let source = format!("/api/v1/sources/{name}");
    service
        .post(&format!("{source}/pause"), json!({"slot": "drop"}))
        .await?;
    // The table that was made has a base already if it was quicker than the end.
    let before = service.wait_bases(name, 1).await?.len();
    service.post(&format!("{source}/resume"), json!({})).await?;
    service.wait_bases(name, before + 1).await?;
    client
        .batch_execute("INSERT INTO t VALUES (3, 'after')")
        .await?;
    Ok(())
}
