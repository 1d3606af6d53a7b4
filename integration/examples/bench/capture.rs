//! Capture beside `pg_recvlogical`, which throws the same stream away.
//!
//! Ours is the whole way: decode, NDJSON, zstd, AES-GCM, fsync into local files, confirm. The last cut
//! waits for `segment_seconds` (1 here), which is part of the time.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lastgood_integration::service::parse_lsn;
use lastgood_integration::wait;
use serde_json::json;

use crate::workload::Bench;
use crate::{
    DATABASE, cpu_seconds, cpu_seconds_of, finish, median, peak_memory_mb, ratio, row, seconds,
};

pub(crate) const HEAD: &[&str] = &[
    "capture",
    "WAL",
    "pg_recvlogical",
    "lastgood",
    "ratio",
    "CPU of service, walsender",
    "stored",
    "of pgoutput by zstd -3",
    "peak memory",
];

pub(crate) async fn measured(bench: &Bench) -> Result<String> {
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    let (mut cpu, mut sender_cpu) = (Vec::new(), Vec::new());
    for (run, name) in bench.sources.iter().enumerate() {
        let slot = format!("receive_{run}");
        theirs.push(pg_recvlogical(bench, &slot, Path::new("/dev/null"))?);
        let captured = lastgood(bench, name).await?;
        ours.push(captured.seconds);
        cpu.push(captured.cpu);
        sender_cpu.push(captured.sender_cpu);
    }
    let (theirs, ours) = (median(&mut theirs), median(&mut ours));
    let (cpu, sender_cpu) = (median(&mut cpu), median(&mut sender_cpu));
    let (stored, compressed) = (stored_bytes(bench).await?, compressed_bytes(bench)?);
    Ok(row(&[
        bench.name.to_owned(),
        format!("{} MB", bench.wal_mb()?),
        seconds(theirs),
        seconds(ours),
        ratio(ours, theirs),
        format!("{cpu:.2} s, {sender_cpu:.2} s"),
        format!("{:.1} MB", stored / 1e6),
        ratio(stored, compressed),
        format!("{} MB", peak_memory_mb(&bench.service)?),
    ]))
}

/// The segments of the first source.
async fn stored_bytes(bench: &Bench) -> Result<f64> {
    let source = bench.service.source(&bench.sources[0]).await?;
    let id = source["id"].as_str().context("an id")?.to_owned();
    let is_segment = |path: &str| path.contains(&id) && path.contains("/segments/");
    let mut bytes = 0;
    for file in bench.storage.files(is_segment)? {
        bytes += fs::metadata(file)?.len();
    }
    Ok(bytes as f64)
}

/// What `pg_recvlogical -f - | zstd -3` makes of the same stream.
fn compressed_bytes(bench: &Bench) -> Result<f64> {
    let stream = bench.dumps.path().join("stream");
    pg_recvlogical(bench, "size", &stream)?;
    let mut counted = Counted(0);
    zstd::stream::copy_encode(File::open(&stream)?, &mut counted, 3)?;
    fs::remove_file(stream)?;
    Ok(counted.0 as f64)
}

struct Counted(usize);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(crate) fn pg_recvlogical(bench: &Bench, slot: &str, into: &Path) -> Result<f64> {
    let mut receive = bench.server.program("pg_recvlogical");
    receive.args(["--start", "-d", DATABASE, "-f"]).arg(into);
    receive.args(["--endpos", &bench.end, "-S", slot]);
    receive.args(["-o", "proto_version=1", "-o", "messages=true", "-o"]);
    receive.arg(format!("publication_names={}", bench.publication));
    let begun = Instant::now();
    finish(&mut receive)?;
    Ok(begun.elapsed().as_secs_f64())
}

/// In seconds.
pub(crate) struct Captured {
    pub(crate) seconds: f64,
    cpu: f64,
    sender_cpu: f64,
}

pub(crate) async fn lastgood(bench: &Bench, name: &str) -> Result<Captured> {
    let service = &bench.service;
    let end = parse_lsn(&bench.end)?;
    let before = cpu_seconds(service)?;
    let begun = Instant::now();
    let path = format!("/api/v1/sources/{name}");
    service.post(&format!("{path}/resume"), json!({})).await?;
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
    let client = bench.server.connect(DATABASE).await?;
    let sender = "SELECT pid FROM pg_stat_replication ORDER BY backend_start DESC LIMIT 1";
    let sender: i32 = client.query_one(sender, &[]).await?.get(0);
    let sender_cpu = cpu_seconds_of(u32::try_from(sender)?)?;
    // It must not disturb the next run; the first one is restored from and goes on.
    if name != bench.sources[0] {
        let pause = format!("{path}/pause");
        service.post(&pause, json!({"slot": "drop"})).await?;
    }
    Ok(Captured {
        seconds,
        cpu,
        sender_cpu,
    })
}
