//! `make bench`: capture beside `pg_recvlogical`, restore beside `pg_restore` of a dump that was taken at
//! the target, and pgbench on a source beside the same without us. Both sides of a row run in turn, on the
//! same server, WAL and machine.
//!
//! The capture side is the whole way: decode, NDJSON, zstd, AES-GCM, fsync into local files, confirm;
//! `pg_recvlogical` throws the same stream away. Its last cut waits for `segment_seconds` (1 here), which
//! is part of the time. What is printed are the tables of BENCHMARKS.md.
#![expect(clippy::print_stdout, reason = "printing a table is what it is for")]

use std::fs;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lastgood_integration::history::drop_database;
use lastgood_integration::service::parse_lsn;
use lastgood_integration::{Postgres, Service, Storage, digest, truth, vitals, wait};
use serde_json::json;

/// Odd, so that the median is one of them.
const RUNS: usize = 5;
const DATABASE: &str = "bench";
/// Of one run of pgbench on a source.
const OVERHEAD_SECONDS: u32 = 15;
/// A rate at which neither side has to wait for a core.
const OVERHEAD_RATE: u32 = 400;

struct Workload {
    name: &'static str,
    /// pgbench's scale, for the base.
    scale: u32,
    make: fn(&Postgres) -> Result<()>,
}

const WORKLOADS: [Workload; 3] = [
    Workload {
        name: "pgbench, 300,000 small transactions",
        scale: 50,
        make: small_transactions,
    },
    Workload {
        name: "one UPDATE of 1,000,000 rows",
        scale: 10,
        make: one_update,
    },
    Workload {
        name: "one INSERT of 5,000,000 rows",
        scale: 1,
        make: one_insert,
    },
];

#[tokio::main]
async fn main() -> Result<()> {
    let only = std::env::args().nth(1);
    println!(
        "| workload | WAL | pg_recvlogical | lastgood capture | ratio | CPU of service, walsender | pg_restore | lastgood restore | ratio | service's peak memory |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for workload in WORKLOADS {
        if only
            .as_ref()
            .is_none_or(|only| workload.name.contains(only))
        {
            println!("{}", run(&workload).await?);
        }
    }
    if only.is_none_or(|only| "the source's overhead".contains(&only)) {
        println!();
        println!("| pgbench | without | with lastgood attached | ratio |");
        println!("|---|---|---|---|");
        println!("{}", overhead().await?);
    }
    Ok(())
}

/// What a source loses by being captured: pgbench as fast as it goes, and its latency at a fixed rate.
async fn overhead() -> Result<String> {
    let server = start_server("fsync=on").await?;
    server.create_database(DATABASE).await?;
    finish(
        server
            .program("pgbench")
            .args(["-iq", "-s", "10", DATABASE]),
    )?;
    let service = Service::start(&Storage::local()?).await?;
    let settings = json!({"segment_seconds": 5, "no_identity": "full"});
    service
        .add_source("source", &server.url(DATABASE), settings)
        .await?;
    let client = server.connect(DATABASE).await?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let (mut slow_with, mut slow_without) = (Vec::new(), Vec::new());
    let mut cpu = Vec::new();
    let path = "/api/v1/sources/source";
    for run in 1..=RUNS {
        service.wait_bases("source", run).await?;
        let before = cpu_seconds(&service)?;
        let fast = pgbench(&server, None)?;
        service
            .wait_durable("source", &truth::wal_position(&client).await?)
            .await?;
        let spent = cpu_seconds(&service)? - before;
        cpu.push(spent / (fast.tps * f64::from(OVERHEAD_SECONDS)) * 1e6);
        with.push(fast.tps);
        slow_with.push(pgbench(&server, Some(OVERHEAD_RATE))?.latency);
        service
            .post(&format!("{path}/pause"), json!({"slot": "drop"}))
            .await?;
        without.push(pgbench(&server, None)?.tps);
        slow_without.push(pgbench(&server, Some(OVERHEAD_RATE))?.latency);
        service.post(&format!("{path}/resume"), json!({})).await?;
    }
    let row = |name: &str, unit: &str, without: &mut [f64], with: &mut [f64]| {
        let (without, with) = (median(without), median(with));
        format!(
            "| {name} | {without:.2} {unit} | {with:.2} {unit} | {} |",
            ratio(with, without)
        )
    };
    Ok([
        row(
            "4 clients, as fast as they go",
            "tps",
            &mut without,
            &mut with,
        ),
        row(
            &format!("{OVERHEAD_RATE} a second, latency"),
            "ms",
            &mut slow_without,
            &mut slow_with,
        ),
        format!(
            "| the service's CPU | | {:.0} µs a transaction | |",
            median(&mut cpu)
        ),
    ]
    .join("\n"))
}

async fn start_server(setting: &str) -> Result<Arc<Postgres>> {
    let server = Postgres::builder(18).on_disk();
    let server = server.config("max_wal_size=8GB").config(setting);
    Ok(Arc::new(server.start().await?))
}

struct Pgbench {
    tps: f64,
    /// In milliseconds.
    latency: f64,
}

fn pgbench(server: &Postgres, rate: Option<u32>) -> Result<Pgbench> {
    let mut pgbench = server.program("pgbench");
    let time = OVERHEAD_SECONDS.to_string();
    pgbench.args(["-n", "-c", "4", "-j", "2", "-M", "prepared", "-T", &time]);
    if let Some(rate) = rate {
        pgbench.args(["-R", &rate.to_string()]);
    }
    let output = pgbench.arg(DATABASE).stdin(Stdio::null()).output()?;
    ensure!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout)?;
    let number = |name: &str| -> Result<f64> {
        let (_, rest) = text.split_once(name).with_context(|| text.clone())?;
        let number = rest.split_whitespace().next().context("a number")?;
        Ok(number.parse()?)
    };
    Ok(Pgbench {
        tps: number("tps = ")?,
        latency: number("latency average = ")?,
    })
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

async fn run(workload: &Workload) -> Result<String> {
    let server = start_server("autovacuum=off").await?;
    server.create_database(DATABASE).await?;
    let scale = workload.scale.to_string();
    finish(
        server
            .program("pgbench")
            .args(["-iq", "-s", &scale, DATABASE]),
    )?;
    // The history has no key: rows are only ever inserted, and are told apart by nothing.
    let tables = "ALTER TABLE pgbench_history REPLICA IDENTITY FULL; CREATE TABLE narrow (id int PRIMARY KEY, a int)";
    server.execute(DATABASE, tables).await?;

    // As many sources and slots as runs, all at the same position, before the WAL is made.
    let service = Service::start(&Storage::local()?).await?;
    let names: Vec<String> = (0..RUNS).map(|run| format!("run-{run}")).collect();
    for name in &names {
        let settings = json!({"segment_seconds": 1, "wal_budget_bytes": 1_u64 << 40});
        service
            .add_source(name, &server.url(DATABASE), settings)
            .await?;
        service.wait_protected(name).await?;
        service
            .post(
                &format!("/api/v1/sources/{name}/pause"),
                json!({"slot": "keep"}),
            )
            .await?;
    }
    let publication: String = server
        .connect(DATABASE)
        .await?
        .query_one("SELECT pubname::text FROM pg_publication LIMIT 1", &[])
        .await?
        .get(0);
    for run in 0..RUNS {
        let sql = format!("SELECT pg_create_logical_replication_slot('recv_{run}', 'pgoutput')");
        server.execute(DATABASE, &sql).await?;
    }
    let client = server.connect(DATABASE).await?;
    let start = truth::wal_position(&client).await?;
    (workload.make)(&server)?;
    let end = truth::wal_position(&client).await?;
    // Something behind the end, so that both have a commit to stop at.
    server
        .execute(
            DATABASE,
            "UPDATE pgbench_branches SET filler = 'end' WHERE bid = 1",
        )
        .await?;
    let wal_mb = (parse_lsn(&end)? - parse_lsn(&start)?) >> 20;

    let (mut receive, mut capture) = (Vec::new(), Vec::new());
    let (mut cpu, mut sender_cpu) = (Vec::new(), Vec::new());
    for (run, name) in names.iter().enumerate() {
        receive.push(pg_recvlogical(&server, run, &publication, &end)?);
        let captured = lastgood_capture(&service, name, &end, &client).await?;
        capture.push(captured.seconds);
        cpu.push(captured.cpu);
        sender_cpu.push(captured.sender_cpu);
    }
    let peak = peak_memory_mb(&service)?;

    let dump = tempfile::NamedTempFile::new()?;
    finish(
        server
            .program("pg_dump")
            .args(["-Fc", "-Z0", "-f"])
            .arg(dump.path())
            .arg(DATABASE),
    )?;
    let source = digest::of(&mut server.connect(DATABASE).await?, None).await?;
    service
        .wait_durable(&names[0], &truth::wal_position(&client).await?)
        .await?;
    let (mut plain, mut restore) = (Vec::new(), Vec::new());
    for run in 0..RUNS {
        let begun = Instant::now();
        server.create_database("plain").await?;
        finish(
            server
                .program("pg_restore")
                .args(["-j2", "--no-publications", "-d", "plain"])
                .arg(dump.path()),
        )?;
        plain.push(begun.elapsed().as_secs_f64());
        drop_database(&server, "plain").await?;

        let begun = Instant::now();
        let into = json!({"connection": server.url("postgres"), "create_database": "restored"});
        service.restore(&names[0], &json!("latest"), into).await?;
        restore.push(begun.elapsed().as_secs_f64());
        if run == 0 {
            let restored = digest::of(&mut server.connect("restored").await?, None).await?;
            source.assert_restored(&restored, workload.name);
        }
        drop_database(&server, "restored").await?;
    }
    let row = [
        workload.name.to_owned(),
        format!("{wal_mb} MB"),
        seconds(median(&mut receive)),
        seconds(median(&mut capture)),
        ratio(median(&mut capture), median(&mut receive)),
        format!(
            "{:.2} s, {:.2} s",
            median(&mut cpu),
            median(&mut sender_cpu)
        ),
        seconds(median(&mut plain)),
        seconds(median(&mut restore)),
        ratio(median(&mut restore), median(&mut plain)),
        format!("{peak} MB"),
    ];
    Ok(format!("| {} |", row.join(" | ")))
}

fn pg_recvlogical(server: &Postgres, run: usize, publication: &str, end: &str) -> Result<f64> {
    let mut receive = server.program("pg_recvlogical");
    receive.args([
        "--start",
        "-d",
        DATABASE,
        "-f",
        "/dev/null",
        "--endpos",
        end,
    ]);
    receive.args(["-S", &format!("recv_{run}"), "-o", "proto_version=1"]);
    receive.args([
        "-o",
        &format!("publication_names={publication}"),
        "-o",
        "messages=true",
    ]);
    let begun = Instant::now();
    finish(&mut receive)?;
    Ok(begun.elapsed().as_secs_f64())
}

/// In seconds.
struct Captured {
    seconds: f64,
    cpu: f64,
    sender_cpu: f64,
}

async fn lastgood_capture(
    service: &Service,
    name: &str,
    end: &str,
    client: &tokio_postgres::Client,
) -> Result<Captured> {
    let end = parse_lsn(end)?;
    let before = cpu_seconds(service)?;
    let begun = Instant::now();
    service
        .post(&format!("/api/v1/sources/{name}/resume"), json!({}))
        .await?;
    wait::until_within(Duration::from_secs(600), "the capture", async || {
        let source = service.source(name).await?;
        let durable = source["durable_lsn"]
            .as_str()
            .context("no durable LSN yet")?;
        Ok((parse_lsn(durable)? >= end).then_some(()))
    })
    .await?;
    let seconds = begun.elapsed().as_secs_f64();
    let cpu = cpu_seconds(service)? - before;
    let sender = "SELECT pid FROM pg_stat_replication ORDER BY backend_start DESC LIMIT 1";
    let sender: i32 = client.query_one(sender, &[]).await?.get(0);
    let sender_cpu = cpu_seconds_of(u32::try_from(sender)?)?;
    // It must not disturb the next run; the first one is restored from and goes on.
    if name != "run-0" {
        service
            .post(
                &format!("/api/v1/sources/{name}/pause"),
                json!({"slot": "drop"}),
            )
            .await?;
    }
    Ok(Captured {
        seconds,
        cpu,
        sender_cpu,
    })
}

fn small_transactions(server: &Postgres) -> Result<()> {
    finish(
        server
            .program("pgbench")
            .args(["-n", "-c", "4", "-j", "2", "-t", "75000", DATABASE]),
    )
}

fn one_update(server: &Postgres) -> Result<()> {
    let sql = "UPDATE pgbench_accounts SET abalance = abalance + 1";
    finish(server.program("psql").args(["-Xqc", sql, DATABASE]))
}

fn one_insert(server: &Postgres) -> Result<()> {
    let sql = "INSERT INTO narrow SELECT n, n % 1000 FROM generate_series(1, 5000000) n";
    finish(server.program("psql").args(["-Xqc", sql, DATABASE]))
}

fn finish(command: &mut std::process::Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn peak_memory_mb(service: &Service) -> Result<u64> {
    let process = service.process_id().context("the service runs")?;
    Ok(vitals::peak_bytes(process).context("VmHWM")? >> 20)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn seconds(time: f64) -> String {
    format!("{time:.2} s")
}

fn ratio(ours: f64, theirs: f64) -> String {
    format!("{:.2}", ours / theirs)
}
