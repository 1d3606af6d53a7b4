//! A first base beside `pg_dump -Fd` of the same with the same number of jobs, into compressed files.

use std::fs;
use std::time::Instant;

use anyhow::{Context, Result};
use lastgood_integration::{Postgres, Service, Storage};
use serde_json::json;

use crate::{
    DATABASE, finish, median, micros, peak_memory_mb, psql, ratio, row, seconds, start_pgbench,
};

pub(crate) const HEAD: &[&str] = &[
    "base, two jobs",
    "pg_dump -Fd -j2 -Z gzip",
    "pg_dump -Fd -j2 -Z zstd:1",
    "lastgood",
    "ratio to the faster",
    "peak memory of the service",
];

const RUNS: usize = 3;
const DATA: [(&str, u32, &str); 2] = [
    ("pgbench, scale 50", 50, "SELECT"),
    (
        "100,000 rows of 4 KB in one table",
        1,
        "CREATE TABLE wide AS SELECT n, string_agg(md5((n * 131 + m)::text), '') text
           FROM generate_series(1, 100000) n, generate_series(1, 125) m GROUP BY n",
    ),
];

pub(crate) async fn rows() -> Result<Vec<String>> {
    let mut rows = Vec::new();
    for (name, scale, sql) in DATA {
        let server = start_pgbench(&["autovacuum=off"], scale).await?;
        psql(&server, sql)?;
        let service = Service::start(&Storage::local()?).await?;
        let (mut gzip, mut zstd, mut ours) = (Made::default(), Made::default(), Made::default());
        for run in 0..RUNS {
            gzip.add(pg_dump(&server, "gzip")?);
            zstd.add(pg_dump(&server, "zstd:1")?);
            ours.add(lastgood(&server, &service, &format!("run-{run}")).await?);
        }
        let faster = gzip.median().min(zstd.median());
        rows.push(row(&[
            name.to_owned(),
            gzip.told(),
            zstd.told(),
            ours.told(),
            ratio(ours.median(), faster),
            format!("{} MB", peak_memory_mb(&service)?),
        ]));
    }
    Ok(rows)
}

/// Seconds of each run, and what the last one stored.
#[derive(Default)]
struct Made {
    times: Vec<f64>,
    bytes: u64,
}

impl Made {
    fn add(&mut self, (time, bytes): (f64, u64)) {
        self.times.push(time);
        self.bytes = bytes;
    }

    fn median(&mut self) -> f64 {
        median(&mut self.times)
    }

    fn told(&mut self) -> String {
        format!("{}, {} MB", seconds(self.median()), self.bytes / 1_000_000)
    }
}

fn pg_dump(server: &Postgres, compress: &str) -> Result<(f64, u64)> {
    let folder = tempfile::tempdir()?;
    let dump = folder.path().join("dump");
    let begun = Instant::now();
    let mut command = server.program("pg_dump");
    command
        .args(["-Fd", "-j2", "-Z", compress, "-f"])
        .arg(&dump);
    finish(command.arg(DATABASE))?;
    let took = begun.elapsed().as_secs_f64();
    let mut bytes = 0;
    for file in fs::read_dir(dump)? {
        bytes += file?.metadata()?.len();
    }
    Ok((took, bytes))
}

/// The first one of a new source, slot and all.
async fn lastgood(server: &Postgres, service: &Service, name: &str) -> Result<(f64, u64)> {
    let settings = json!({"base_jobs": 2});
    service
        .add_source(name, &server.url(DATABASE), settings)
        .await?;
    service.wait_protected(name).await?;
    let bases = service.wait_bases(name, 1).await?;
    let base = bases.first().context("a base")?;
    let took = micros(&base["finished"])? - micros(&base["started"])?;
    let pause = format!("/api/v1/sources/{name}/pause");
    service.post(&pause, json!({"slot": "drop"})).await?;
    let bytes = base["stored_bytes"].as_u64().context("bytes")?;
    Ok((took as f64 / 1e6, bytes))
}
