//! Restore beside `pg_restore` of a dump that was taken at the target, and what the changes cost beside
//! native logical replication catching up the same.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lastgood_integration::history::drop_database;
use lastgood_integration::{Postgres, Service, digest, truth, wait};
use serde_json::{Value, json};

use crate::workload::Bench;
use crate::{DATABASE, RUNS, finish, median, ratio, row, seconds};

pub(crate) const RESTORED: &str = "restored";

pub(crate) const HEAD: &[&str] = &[
    "restore",
    "pg_restore of a dump at the target",
    "lastgood",
    "ratio",
    "lastgood, the base alone",
    "the changes' share",
    "native replication",
    "times as fast",
];

pub(crate) async fn measured(bench: &Bench) -> Result<String> {
    let (server, service) = (&bench.server, &bench.service);
    bench.dump("after")?;
    let client = server.connect(DATABASE).await?;
    let source = digest::of(&mut server.connect(DATABASE).await?, None).await?;
    let latest = truth::wal_position(&client).await?;
    service.wait_durable(&bench.sources[0], &latest).await?;
    let (mut plain, mut base, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for run in 0..RUNS {
        let begun = Instant::now();
        server.create_database("plain").await?;
        bench.load("after", "plain")?;
        plain.push(begun.elapsed().as_secs_f64());
        drop_database(server, "plain").await?;

        base.push(lastgood(bench, &json!({"lsn": bench.start}), None).await?);
        let compare = (run == 0).then_some(&source);
        whole.push(lastgood(bench, &json!("latest"), compare).await?);
    }
    let mut native = native(bench).await?;
    let (plain, base) = (median(&mut plain), median(&mut base));
    let (whole, native) = (median(&mut whole), median(&mut native));
    Ok(row(&[
        bench.name.to_owned(),
        seconds(plain),
        seconds(whole),
        ratio(whole, plain),
        seconds(base),
        seconds(whole - base),
        seconds(native),
        ratio(native, whole - base),
    ]))
}

pub(crate) async fn lastgood(
    bench: &Bench,
    target: &Value,
    compare: Option<&digest::Content>,
) -> Result<f64> {
    let server = &bench.server;
    let (service, source) = (&bench.service, &bench.sources[0]);
    let took = into_new_database(server, service, source, target, "merged").await?;
    if let Some(source) = compare {
        let restored = digest::of(&mut server.connect(RESTORED).await?, None).await?;
        source.assert_restored(&restored, bench.name);
    }
    drop_database(server, RESTORED).await?;
    Ok(took)
}

/// Answers the seconds it took; the database stays.
pub(crate) async fn into_new_database(
    server: &Postgres,
    service: &Service,
    source: &str,
    target: &Value,
    replay: &str,
) -> Result<f64> {
    let begun = Instant::now();
    let into = json!({"connection": server.url("postgres"), "create_database": RESTORED});
    let path = format!("/api/v1/sources/{source}/restores");
    let request = json!({"target": target, "into": into, "replay": replay, "jobs": 2});
    let restore = service.post(&path, request).await?;
    let ended = service
        .wait_restore(restore["id"].as_str().context("an id")?)
        .await?;
    ensure!(ended["status"] == "succeeded", "{ended:#}");
    // Where the time went; the table has only the sum.
    eprintln!("restore {target}: {}", ended["report"]["phases"]);
    Ok(begun.elapsed().as_secs_f64())
}

/// A subscription to a database that has the base, from when it is enabled until it has everything.
pub(crate) async fn native(bench: &Bench) -> Result<Vec<f64>> {
    let server = &bench.server;
    server.create_database("native_base").await?;
    bench.load("before", "native_base")?;
    let client = server.connect(DATABASE).await?;
    let mut times = Vec::new();
    for run in 0..bench.sources.len() {
        finish(
            server
                .program("createdb")
                .args(["-T", "native_base", "native"]),
        )?;
        // Its own server is what it subscribes to: the slot must be there already.
        let subscribe = format!(
            "CREATE SUBSCRIPTION native CONNECTION '{}' PUBLICATION {}
               WITH (create_slot = false, slot_name = 'native_{run}', copy_data = false, enabled = false)",
            server.url(DATABASE),
            bench.publication
        );
        server.execute("native", &subscribe).await?;
        let begun = Instant::now();
        server
            .execute("native", "ALTER SUBSCRIPTION native ENABLE")
            .await?;
        let has_all = "SELECT coalesce(bool_or(replay_lsn >= $1::text::pg_lsn), false)
                         FROM pg_stat_replication WHERE application_name = 'native'";
        wait::until_within(Duration::from_secs(900), "the subscription", async || {
            let has_all: bool = client.query_one(has_all, &[&bench.end]).await?.get(0);
            Ok(has_all.then_some(()))
        })
        .await?;
        times.push(begun.elapsed().as_secs_f64());
        server
            .execute("native", "ALTER SUBSCRIPTION native DISABLE")
            .await?;
        // With its slot.
        wait::until("the worker's end", async || {
            let ended = "SELECT NOT bool_or(active) FROM pg_replication_slots WHERE slot_name LIKE 'native%'";
            let ended: bool = client.query_one(ended, &[]).await?.get(0);
            Ok(ended.then_some(()))
        })
        .await?;
        server.execute("native", "DROP SUBSCRIPTION native").await?;
        drop_database(server, "native").await?;
    }
    drop_database(server, "native_base").await?;
    Ok(times)
}
