//! `make bench`: capture beside `pg_recvlogical`, restore beside `pg_restore` of a dump that was taken at
//! the target and beside native logical replication, both beside other programs for the same, latency, many sources, what a
//! source loses, and what a migration costs. Both sides of a row run in turn, on the same server, WAL and machine.
//!
//! What is printed are the tables of BENCHMARKS.md; the pictures are written beside it. An argument names
//! the sections to run, by a part of their name.
#![expect(clippy::print_stdout, reason = "printing a table is what it is for")]

mod base;
mod capture;
mod latency;
mod many;
mod migration;
mod overhead;
mod peers;
mod picture;
mod restore;
mod workload;

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use chrono::DateTime;
use lastgood_integration::{Postgres, Service, Storage, vitals};
use serde_json::Value;
use workload::{Bench, WORKLOADS};

/// Odd, so that the median is one of them.
const RUNS: usize = 5;
const DATABASE: &str = "bench";
const SOURCE: &str = "source";

#[tokio::main]
async fn main() -> Result<()> {
    let only = std::env::args().nth(1);
    let wanted = |name: &str| only.as_ref().is_none_or(|only| name.contains(only));
    let mut captured = Vec::new();
    let mut restored = Vec::new();
    for workload in WORKLOADS.iter().filter(|one| wanted(one.name)) {
        let bench = Bench::prepare(workload).await?;
        captured.push(capture::measured(&bench).await?);
        println!("{}", captured[captured.len() - 1]);
        restored.push(restore::measured(&bench).await?);
        println!("{}", restored[restored.len() - 1]);
    }
    if !captured.is_empty() {
        table(capture::HEAD, &captured);
        table(restore::HEAD, &restored);
    }
    if wanted("peers") {
        let rows = peers::rows().await?;
        table(peers::CAPTURE_HEAD, &rows.capture);
        table(peers::RESTORE_HEAD, &rows.restore);
    }
    if wanted("bases") {
        table(base::HEAD, &base::rows().await?);
    }
    if wanted("latency") {
        table(latency::HEAD, &latency::rows().await?);
    }
    if wanted("many sources") {
        table(many::HEAD, &many::rows().await?);
    }
    if wanted("overhead") {
        table(overhead::HEAD, &overhead::rows().await?);
    }
    if wanted("migration") {
        table(migration::HEAD, &migration::rows().await?);
        table(migration::HEAD_AFTER, &migration::rows_after().await?);
    }
    if wanted("picture of capture") {
        picture::draw_capture().await?;
    }
    if wanted("picture of restore") {
        picture::draw_restore().await?;
    }
    Ok(())
}

/// A table of Markdown.
fn table(head: &[&str], rows: &[String]) {
    println!("\n| {} |\n|{}", head.join(" | "), "---|".repeat(head.len()));
    for row in rows {
        println!("{row}");
    }
    println!();
}

fn row(cells: &[String]) -> String {
    format!("| {} |", cells.join(" | "))
}

async fn start_server(settings: &[&str]) -> Result<Arc<Postgres>> {
    let server = Postgres::builder(18).on_disk().config("max_wal_size=8GB");
    let server = settings
        .iter()
        .fold(server, |server, setting| server.config(*setting));
    Ok(Arc::new(server.start().await?))
}

/// One with pgbench's tables.
async fn start_pgbench(settings: &[&str], scale: u32) -> Result<Arc<Postgres>> {
    let server = start_server(settings).await?;
    server.create_database(DATABASE).await?;
    initialize(&server, DATABASE, scale)?;
    Ok(server)
}

fn initialize(server: &Postgres, database: &str, scale: u32) -> Result<()> {
    let mut pgbench = server.program("pgbench");
    finish(pgbench.args(["-iq", "-s", &scale.to_string(), database]))
}

/// A service that protects the database of a server, as its only source.
async fn protect(server: &Postgres, settings: Value) -> Result<Service> {
    let service = Service::start(&Storage::local()?).await?;
    service
        .add_source(SOURCE, &server.url(DATABASE), settings)
        .await?;
    service.wait_protected(SOURCE).await?;
    Ok(service)
}

fn finish(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn psql(server: &Postgres, sql: &str) -> Result<()> {
    finish(server.program("psql").args(["-Xqc", sql, DATABASE]))
}

/// User and system time of the service so far.
fn cpu_seconds(service: &Service) -> Result<f64> {
    cpu_seconds_of(service.process_id().context("the service runs")?)
}

fn cpu_seconds_of(process: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("a name")?;
    let ticks: Vec<&str> = rest.split_whitespace().skip(11).take(2).collect();
    let ticks: Vec<f64> = ticks
        .iter()
        .map(|ticks| ticks.parse())
        .collect::<Result<_, _>>()?;
    // Linux counts in hundredths of a second, whatever the kernel is built with.
    Ok(ticks.iter().sum::<f64>() / 100.0)
}

fn peak_memory_mb(service: &Service) -> Result<u64> {
    let process = service.process_id().context("the service runs")?;
    Ok(vitals::peak_bytes(process).context("VmHWM")? >> 20)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Since 1970, of a time as the API tells it.
fn micros(time: &Value) -> Result<i64> {
    let time = DateTime::parse_from_rfc3339(time.as_str().context("a time")?)?;
    Ok(time.timestamp_micros())
}

fn seconds(time: f64) -> String {
    format!("{time:.2} s")
}

fn ratio(ours: f64, theirs: f64) -> String {
    format!("{:.2}", ours / theirs)
}
