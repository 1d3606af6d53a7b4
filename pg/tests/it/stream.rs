//! The stream, byte by byte, on every major.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lastgood_integration::tools::MAJORS;
use lastgood_integration::{Postgres, TestDatabase};
use lastgood_pg::publication::{self, TableName};
use lastgood_pg::{ReplicationConnection, ReplicationOptions, ReplicationStream, SlotKind, slot};
use lastgood_proto::copy_both::{ReplicationMessage, StandbyStatus};
use lastgood_proto::pgoutput::{self, Message, Tuple, Value};
use lastgood_proto::{Lsn, PgTimestamp};
use rand::{Rng, SeedableRng};

use crate::{config, replication, session};

fn status(lsn: Lsn) -> StandbyStatus {
    StandbyStatus {
        written: lsn,
        flushed: lsn,
        applied: lsn,
        clock: PgTimestamp::from_micros(0),
        reply_requested: false,
    }
}

fn cells(tuple: &Tuple<'_>) -> Vec<Option<String>> {
    tuple
        .iter()
        .map(|value| match value {
            Value::Null => None,
            Value::Unchanged => Some("(unchanged)".to_owned()),
            Value::Text(text) => Some(String::from_utf8_lossy(text).into_owned()),
        })
        .collect()
}

/// What is read of a stream: rows in order, and the end of the last commit.
#[derive(Default)]
struct Seen {
    rows: Vec<Vec<Option<String>>>,
    messages: Vec<Vec<u8>>,
    transactions: usize,
    commits: Vec<(Lsn, Lsn)>,
}

impl Seen {
    fn take(&mut self, message: &ReplicationMessage) -> Result<()> {
        let ReplicationMessage::XLogData { data, .. } = message else {
            return Ok(());
        };
        match pgoutput::decode(data)? {
            Message::Insert(insert) => self.rows.push(cells(&insert.new)),
            Message::Update(update) => self.rows.push(cells(&update.new)),
            Message::Message(message) => self.messages.push(message.content.to_vec()),
            Message::Commit(commit) => {
                self.transactions += 1;
                self.commits.push((commit.commit_lsn, commit.end_lsn));
            }
            _ => {}
        }
        Ok(())
    }

    async fn rows(stream: &mut ReplicationStream, count: usize) -> Result<Self> {
        let mut seen = Self::default();
        // To the commit of the last row.
        loop {
            let before = seen.transactions;
            seen.take(&stream.next().await?)?;
            if seen.transactions > before && seen.rows.len() >= count {
                break;
            }
        }
        Ok(seen)
    }
}

/// Values that are awkward in some form: empty, long, with every kind of quote, not ASCII.
fn awkward(rng: &mut impl Rng) -> Option<String> {
    match rng.random_range(0..8) {
        0 => None,
        1 => Some(String::new()),
        2 => Some("x".repeat(rng.random_range(1..20_000))),
        3 => Some("\\N\t\n\r'\"\\\\ ü€😀".to_owned()),
        _ => Some(
            (0..rng.random_range(0..40))
                .map(|_| rng.random_range('\u{1}'..'\u{2ff}'))
                .collect(),
        ),
    }
}

#[tokio::test]
async fn thousands_of_transactions_byte_for_byte() -> Result<()> {
    for major in MAJORS {
        let database = TestDatabase::new(major).await?;
        let name = format!("slot_{}", database.name);
        database
            .execute("CREATE TABLE \"odd \"\"name\" (id int PRIMARY KEY, body text, more text)")
            .await?;
        let sql = session(&database.url()).await;
        let publication = "odd \"publication'";
        publication::ensure(&sql, publication, &[TableName::new("public", "odd \"name")]).await?;
        let mut connection = replication(&database.url()).await;
        let created = connection.create_slot(&name, SlotKind::Permanent).await?;
        let mut stream = connection
            .start(&name, created.consistent_point, publication, 0)
            .await?;

        let seed = rand::random();
        println!("seed {seed}");
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        let mut expect = Vec::new();
        let mut writer = database.connect().await?;
        let insert = writer
            .prepare("INSERT INTO public.\"odd \"\"name\" VALUES ($1, $2, $3)")
            .await?;
        let mut transactions = 0_usize;
        while transactions < 1500 {
            let transaction = writer.transaction().await?;
            for _ in 0..rng.random_range(1..4) {
                let id = i32::try_from(expect.len())?;
                let (body, more) = (awkward(&mut rng), awkward(&mut rng));
                transaction.execute(&insert, &[&id, &body, &more]).await?;
                expect.push(vec![Some(id.to_string()), body, more]);
            }
            transaction.commit().await?;
            transactions += 1;
        }
        let seen = Seen::rows(&mut stream, expect.len()).await?;
        assert_eq!(seen.transactions, transactions, "{major}");
        assert!(seen.rows == expect, "rows differ on {major}");
        ensure!(
            seen.commits.windows(2).all(|pair| pair[0].1 <= pair[1].0),
            "commit order"
        );

        // Confirm one half; the other half comes again, and nothing else.
        let half = transactions / 2;
        let confirmed = seen.commits[half - 1].1;
        stream.send_status(&status(confirmed)).await?;
        stream.close(Duration::from_secs(30)).await?;
        let info = slot::slot_info(&sql, &name).await?.context("the slot")?;
        assert_eq!(info.confirmed_flush_lsn, Some(confirmed));
        assert_eq!(info.active_pid, None);
        let mut stream = replication(&database.url())
            .await
            .start(&name, confirmed, publication, sql.server_version())
            .await?;
        let mut again = Seen::default();
        while again.transactions < transactions - half {
            again.take(&stream.next().await?)?;
        }
        assert_eq!(again.commits, seen.commits[half..], "{major}");
        let known = expect.len() - again.rows.len();
        assert!(again.rows == expect[known..], "rows differ on {major}");
        stream.close(Duration::from_secs(30)).await?;
        assert!(slot::drop_slot(&sql, &name).await?);
    }
    Ok(())
}

#[tokio::test]
async fn logical_messages_from_14_on() -> Result<()> {
    for major in MAJORS {
        let database = TestDatabase::new(major).await?;
        let name = format!("slot_{}", database.name);
        database
            .execute("CREATE TABLE t (x int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE t")
            .await?;
        let mut connection = replication(&database.url()).await;
        let created = connection.create_slot(&name, SlotKind::Temporary).await?;
        let mut stream = connection
            .start(&name, created.consistent_point, "p", 0)
            .await?;
        database
            .execute(
                "SELECT pg_logical_emit_message(true, 'prefix', 'content'); INSERT INTO t VALUES (1)",
            )
            .await?;
        let seen = Seen::rows(&mut stream, 1).await?;
        let expect: &[&[u8]] = if major >= 14 { &[b"content"] } else { &[] };
        assert_eq!(seen.messages, expect, "{major}");
        stream.close(Duration::from_secs(30)).await?;
        // A temporary slot goes with its connection.
        let sql = session(&database.url()).await;
        assert_eq!(slot::slot_info(&sql, &name).await?, None);
    }
    Ok(())
}

/// A caller that cannot read sends status all the same, and the walsender does not end the
/// connection, though several of its timeouts pass.
#[tokio::test]
async fn status_goes_on_while_nothing_is_read() -> Result<()> {
    for (major, tls) in [(15, true), (18, false)] {
        let builder = Postgres::builder(major).config("wal_sender_timeout=60s");
        let server = if tls { builder.tls() } else { builder }.start().await?;
        let url = format!(
            "{}?sslmode={}",
            server.url("postgres"),
            if tls { "require" } else { "disable" }
        );
        server
            .execute(
                "postgres",
                "CREATE TABLE t (id int PRIMARY KEY, x text); CREATE PUBLICATION p FOR TABLE t",
            )
            .await?;
        let options = ReplicationOptions {
            wal_sender_timeout: Some(Duration::from_secs(2)),
            ..ReplicationOptions::default()
        };
        let mut connection = ReplicationConnection::connect(&config(&url), &options).await?;
        let created = connection.create_slot("s", SlotKind::Permanent).await?;
        // Far more than sockets hold.
        let rows = 60_000;
        server
            .execute(
                "postgres",
                &format!(
                    "INSERT INTO t SELECT i, repeat('x', 1000) FROM generate_series(1, {rows}) i"
                ),
            )
            .await?;
        let mut stream = connection
            .start("s", created.consistent_point, "p", 0)
            .await?;
        let mut ticks = tokio::time::interval(Duration::from_millis(200));
        for _ in 0..35 {
            ticks.tick().await;
            stream
                .send_status(&status(created.consistent_point))
                .await?;
        }
        let mut seen = Seen::default();
        while seen.rows.len() < rows || seen.transactions == 0 {
            tokio::select! {
                message = stream.next() => seen.take(&message?)?,
                _ = ticks.tick() => stream.send_status(&status(created.consistent_point)).await?,
            }
        }
        assert_eq!(
            seen.rows[rows - 1][1].as_deref(),
            Some("x".repeat(1000).as_str())
        );
    }
    Ok(())
}

/// A call of `next` that is dropped at any moment loses nothing, over TLS as well.
#[tokio::test]
async fn a_dropped_call_loses_nothing() -> Result<()> {
    let server = Postgres::builder(15).tls().start().await?;
    let url = format!("{}?sslmode=require", server.url("postgres"));
    server
        .execute(
            "postgres",
            "CREATE TABLE t (id int PRIMARY KEY, x text); CREATE PUBLICATION p FOR TABLE t",
        )
        .await?;
    let mut connection = replication(&url).await;
    let created = connection.create_slot("s", SlotKind::Permanent).await?;
    let mut stream = connection
        .start("s", created.consistent_point, "p", 0)
        .await?;
    let rows = 20_000;
    server
        .execute("postgres", &format!("INSERT INTO t SELECT i, repeat('x', i % 3000) FROM generate_series(0, {rows} - 1) i"))
        .await?;
    let mut seen = Seen::default();
    let mut dropped = 0_u64;
    while seen.rows.len() < rows || seen.transactions == 0 {
        let mut patience = 0_u32;
        tokio::select! {
            biased;
            message = stream.next() => seen.take(&message?)?,
            // Gives up after one to seven polls.
            () = std::future::poll_fn(|cx| {
                patience += 1;
                if u64::from(patience) > dropped % 7 {
                    return std::task::Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                std::task::Poll::Pending
            }) => {
                dropped += 1;
                tokio::task::yield_now().await;
            }
        }
        if dropped.is_multiple_of(64) {
            stream
                .send_status(&status(created.consistent_point))
                .await?;
        }
    }
    assert!(dropped > 0);
    for (at, row) in seen.rows.iter().enumerate() {
        assert_eq!(row[0].as_deref(), Some(at.to_string().as_str()));
        assert_eq!(row[1].as_ref().map(String::len), Some(at % 3000));
    }
    Ok(())
}

/// One value of 100 MB, a hundred times what a read takes.
#[tokio::test]
async fn a_huge_value() -> Result<()> {
    let database = TestDatabase::new(15).await?;
    let name = format!("slot_{}", database.name);
    database
        .execute("CREATE TABLE t (x text); CREATE PUBLICATION p FOR TABLE t")
        .await?;
    let mut connection = replication(&database.url()).await;
    let created = connection.create_slot(&name, SlotKind::Temporary).await?;
    let mut stream = connection
        .start(&name, created.consistent_point, "p", 0)
        .await?;
    database
        .execute("INSERT INTO t VALUES ('small'), (repeat('0123456789', 10000000)), ('small')")
        .await?;
    let seen = Seen::rows(&mut stream, 3).await?;
    let lengths: Vec<_> = seen
        .rows
        .iter()
        .map(|row| row[0].as_ref().map(String::len))
        .collect();
    assert_eq!(lengths, [Some(5), Some(100_000_000), Some(5)]);
    Ok(())
}

/// A database in SQL_ASCII holds any bytes; asked for as SQL_ASCII they come as they are.
#[tokio::test]
async fn bytes_that_are_no_utf8() -> Result<()> {
    let server = Postgres::start(15, &[]).await?;
    server
        .execute("postgres", "CREATE DATABASE raw ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0")
        .await?;
    server
        .execute(
            "raw",
            "CREATE TABLE t (x text); CREATE PUBLICATION p FOR TABLE t",
        )
        .await?;
    let url = server.url("raw");
    assert_eq!(session(&url).await.server_encoding(), "SQL_ASCII");
    let raw = ReplicationOptions {
        client_encoding: "SQL_ASCII".to_owned(),
        ..ReplicationOptions::default()
    };
    let mut connection = ReplicationConnection::connect(&config(&url), &raw).await?;
    let created = connection.create_slot("s", SlotKind::Permanent).await?;
    server
        .execute("raw", "INSERT INTO t VALUES (E'\\xff\\xfe')")
        .await?;

    let mut stream = connection
        .start("s", created.consistent_point, "p", 0)
        .await?;
    let bytes = loop {
        if let ReplicationMessage::XLogData { data, .. } = stream.next().await?
            && let Message::Insert(insert) = pgoutput::decode(&data)?
        {
            break match insert.new.iter().next() {
                Some(Value::Text(bytes)) => bytes.to_vec(),
                _ => Vec::new(),
            };
        }
    };
    assert_eq!(bytes, [0xff, 0xfe]);
    stream.close(Duration::from_secs(30)).await?;

    // Asked for as UTF8 the server refuses, and says which condition it is.
    let mut stream = replication(&url)
        .await
        .start("s", created.consistent_point, "p", 0)
        .await?;
    let error = loop {
        if let Err(error) = stream.next().await {
            break error;
        }
    };
    assert_eq!(
        error.condition(),
        lastgood_pg::Condition::Encoding,
        "{error:?}"
    );
    Ok(())
}
