//! What a source loses by being captured: pgbench as fast as it goes, and its latency at a fixed rate.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use lastgood_integration::{Postgres, truth};
use serde_json::json;

use crate::{DATABASE, RUNS, SOURCE, cpu_seconds, median, protect, ratio, row, start_pgbench};

pub(crate) const HEAD: &[&str] = &["pgbench", "without", "with lastgood attached", "ratio"];

/// Of one run of pgbench.
const SECONDS: u32 = 15;
/// A rate at which neither side has to wait for a core.
pub(crate) const RATE: u32 = 400;

pub(crate) async fn rows() -> Result<Vec<String>> {
    let server = start_pgbench(&["fsync=on"], 10).await?;
    let settings = json!({"segment_seconds": 5, "no_identity": "full"});
    let service = protect(&server, settings).await?;
    let client = server.connect(DATABASE).await?;
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let (mut slow_with, mut slow_without) = (Vec::new(), Vec::new());
    let mut cpu = Vec::new();
    let path = format!("/api/v1/sources/{SOURCE}");
    for run in 1..=RUNS {
        service.wait_bases(SOURCE, run).await?;
        let before = cpu_seconds(&service)?;
        let fast = pgbench_for(&server, None)?;
        let position = truth::wal_position(&client).await?;
        service.wait_durable(SOURCE, &position).await?;
        let spent = cpu_seconds(&service)? - before;
        cpu.push(spent / (fast.tps * f64::from(SECONDS)) * 1e6);
        with.push(fast.tps);
        slow_with.push(pgbench_for(&server, Some(RATE))?.latency);
        let pause = format!("{path}/pause");
        service.post(&pause, json!({"slot": "drop"})).await?;
        without.push(pgbench_for(&server, None)?.tps);
        slow_without.push(pgbench_for(&server, Some(RATE))?.latency);
        service.post(&format!("{path}/resume"), json!({})).await?;
    }
    let compared = |name: &str, unit: &str, without: &mut [f64], with: &mut [f64]| {
        let (without, with) = (median(without), median(with));
        row(&[
            name.to_owned(),
            format!("{without:.2} {unit}"),
            format!("{with:.2} {unit}"),
            ratio(with, without),
        ])
    };
    let fast = "4 clients, as fast as they go";
    let slow = format!("{RATE} a second, latency");
    let cpu = format!("{:.0} µs a transaction", median(&mut cpu));
    Ok(vec![
        compared(fast, "tps", &mut without, &mut with),
        compared(&slow, "ms", &mut slow_without, &mut slow_with),
        row(&[
            "the service's CPU".to_owned(),
            String::new(),
            cpu,
            String::new(),
        ]),
    ])
}

/// Four clients for so many seconds, as fast as they go or at a rate.
pub(crate) fn load(server: &Postgres, rate: Option<u32>, seconds: u32) -> Command {
    let mut pgbench = server.program("pgbench");
    let time = seconds.to_string();
    pgbench.args(["-n", "-c", "4", "-j", "2", "-M", "prepared", "-T", &time]);
    if let Some(rate) = rate {
        pgbench.args(["-R", &rate.to_string()]);
    }
    pgbench.arg(DATABASE).stdin(Stdio::null());
    pgbench
}

struct Pgbench {
    tps: f64,
    /// In milliseconds.
    latency: f64,
}

fn pgbench_for(server: &Postgres, rate: Option<u32>) -> Result<Pgbench> {
    let output = load(server, rate, SECONDS).output()?;
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
