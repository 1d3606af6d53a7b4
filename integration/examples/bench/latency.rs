//! How long a commit waits to be durable, under load; and how long lastgood needs to be there again after
//! it was away.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lastgood_integration::service::parse_lsn;
use lastgood_integration::truth;
use serde_json::json;
use tokio::time::{interval, sleep};

use crate::overhead::{RATE, load};
use crate::{DATABASE, SOURCE, finish, protect, row, seconds, start_pgbench};

pub(crate) const HEAD: &[&str] = &["latency", "median", "99th percentile", "most"];

/// The bound is this and what it takes to put a segment.
const SEGMENT_SECONDS: u64 = 2;
const SECONDS: u32 = 120;
/// How often a commit is measured, and how often the service is asked.
const COMMIT_EVERY: Duration = Duration::from_millis(70);
const ASK_EVERY: Duration = Duration::from_millis(5);
/// An outage, as long as the last row says, of a source that goes on at that rate.
const OUTAGE_SECONDS: u32 = 600;

pub(crate) async fn rows() -> Result<Vec<String>> {
    let server = start_pgbench(&["fsync=on"], 10).await?;
    let settings = json!({"segment_seconds": SEGMENT_SECONDS, "no_identity": "full"});
    let service = protect(&server, settings).await?;
    let client = server.connect(DATABASE).await?;

    let mut pgbench = load(&server, Some(RATE), SECONDS);
    let mut pgbench = pgbench.stdout(Stdio::null()).spawn()?;
    let mut waiting: Vec<(u64, Instant)> = Vec::new();
    let mut waited: Vec<f64> = Vec::new();
    let mut commits = interval(COMMIT_EVERY);
    let end = Instant::now() + Duration::from_secs(u64::from(SECONDS));
    while Instant::now() < end || !waiting.is_empty() {
        tokio::select! {
            _ = commits.tick(), if Instant::now() < end => {
                client
                    .execute("UPDATE pgbench_branches SET filler = clock_timestamp()::text WHERE bid = 10", &[])
                    .await?;
                let committed = Instant::now();
                let position = truth::wal_position(&client).await?;
                waiting.push((parse_lsn(&position)?, committed));
            }
            () = sleep(ASK_EVERY) => {
                let source = service.source(SOURCE).await?;
                let durable = parse_lsn(source["durable_lsn"].as_str().context("a position")?)?;
                waiting.retain(|(position, committed)| {
                    let is_durable = *position <= durable;
                    if is_durable {
                        waited.push(committed.elapsed().as_secs_f64());
                    }
                    !is_durable
                });
            }
        }
    }
    pgbench.wait()?;
    waited.sort_by(f64::total_cmp);
    let at = |share: f64| seconds(waited[((waited.len() - 1) as f64 * share) as usize]);
    let name = format!(
        "commit to durable, {RATE} transactions a second, segment_seconds {SEGMENT_SECONDS}, {} commits",
        waited.len()
    );
    let latency = row(&[name, at(0.5), at(0.99), at(1.0)]);

    service.kill()?;
    finish(&mut load(&server, Some(RATE), OUTAGE_SECONDS))?;
    let position = truth::wal_position(&client).await?;
    let begun = Instant::now();
    service.start_again().await?;
    service.wait_durable(SOURCE, &position).await?;
    let again = seconds(begun.elapsed().as_secs_f64());
    let minutes = OUTAGE_SECONDS / 60;
    let name =
        format!("all durable again after {minutes} minutes away at that rate, start included");
    Ok(vec![
        latency,
        row(&[name, again, String::new(), String::new()]),
    ])
}
