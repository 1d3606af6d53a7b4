//! Many sources on one service: memory and CPU, and how long it takes to start with a thousand registered.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use lastgood_integration::{Service, Storage, vitals, wait};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::{cpu_seconds, initialize, row, seconds, start_server};

pub(crate) const HEAD: &[&str] = &[
    "sources",
    "memory of the service",
    "its CPU while all are idle",
    "its CPU at 400 small transactions a second in sum",
    "start until all stream",
];

const STREAMING: [usize; 3] = [1, 10, 50];
/// Registered and paused beside those that stream.
const REGISTERED: usize = 1000;
const REGISTERED_AT_ONCE: usize = 16;
const MEASURED: Duration = Duration::from_secs(30);

pub(crate) async fn rows() -> Result<Vec<String>> {
    let most = STREAMING[STREAMING.len() - 1];
    let slots = format!("max_replication_slots={}", most + 2 * REGISTERED_AT_ONCE);
    let senders = format!("max_wal_senders={}", 2 * most + 10);
    let server = start_server(&["fsync=on", "max_connections=400", &slots, &senders]).await?;
    for number in 0..most {
        let database = format!("db{number}");
        server.create_database(&database).await?;
        initialize(&server, &database, 1)?;
    }
    let service = Service::start(&Storage::local()?).await?;
    let mut rows = Vec::new();
    let mut count = 0;
    for streaming in STREAMING {
        for number in count..streaming {
            let settings = json!({"no_identity": "full"});
            let url = server.url(&format!("db{number}"));
            service
                .add_source(&format!("source-{number}"), &url, settings)
                .await?;
        }
        for number in count..streaming {
            service.wait_protected(&format!("source-{number}")).await?;
        }
        count = streaming;
        let started = restart(&service, streaming).await?;
        let idle = cpu_during(&service).await?;
        let mut loads = Vec::new();
        for number in 0..streaming {
            let rate = (400.0 / streaming as f64).to_string();
            let time = (MEASURED.as_secs() + 10).to_string();
            let mut pgbench = server.program("pgbench");
            pgbench.args(["-n", "-M", "prepared", "-R", &rate, "-T", &time]);
            let pgbench = pgbench.arg(format!("db{number}"));
            loads.push(pgbench.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?);
        }
        sleep(Duration::from_secs(5)).await;
        let loaded = cpu_during(&service).await?;
        let memory = resident_mb(&service)?;
        for mut load in loads {
            load.wait()?;
        }
        rows.push(row(&[
            format!("{streaming} streaming"),
            format!("{memory} MB"),
            format!("{:.1} %", idle * 100.0),
            format!("{:.1} %", loaded * 100.0),
            seconds(started),
        ]));
    }
    // Paused at once, so that no more than a few of them have a slot at a time.
    let others = (count..REGISTERED).map(async |number| {
        let url = server.url(&format!("db{}", number % most));
        let name = format!("source-{number}");
        let settings = json!({"no_identity": "full"});
        service.add_source(&name, &url, settings).await?;
        let pause = format!("/api/v1/sources/{name}/pause");
        service.post(&pause, json!({"slot": "drop"})).await
    });
    let mut others = stream::iter(others).buffer_unordered(REGISTERED_AT_ONCE);
    while others.try_next().await?.is_some() {}
    let started = restart(&service, most).await?;
    let idle = cpu_during(&service).await?;
    rows.push(row(&[
        format!("{most} streaming of {REGISTERED} registered"),
        format!("{} MB", resident_mb(&service)?),
        format!("{:.1} %", idle * 100.0),
        String::new(),
        seconds(started),
    ]));
    Ok(rows)
}

/// Seconds from the order to end until as many stream again.
async fn restart(service: &Service, streaming: usize) -> Result<f64> {
    let begun = Instant::now();
    service.terminate().await?;
    service.start_again().await?;
    all_stream(service, streaming).await?;
    Ok(begun.elapsed().as_secs_f64())
}

async fn all_stream(service: &Service, count: usize) -> Result<()> {
    wait::until_within(
        Duration::from_secs(600),
        "all sources to stream",
        async || {
            let mut streaming = 0;
            let mut page = service.get("/api/v1/sources").await?;
            loop {
                let items = page["items"].as_array().context("items")?;
                streaming += items
                    .iter()
                    .filter(|item| item["status"] == "streaming")
                    .count();
                let Value::String(next) = &page["next"] else {
                    break;
                };
                page = service
                    .get(&format!("/api/v1/sources?after={next}"))
                    .await?;
            }
            Ok((streaming >= count).then_some(()))
        },
    )
    .await
}

/// Cores in use, on average.
async fn cpu_during(service: &Service) -> Result<f64> {
    let before = cpu_seconds(service)?;
    sleep(MEASURED).await;
    Ok((cpu_seconds(service)? - before) / MEASURED.as_secs_f64())
}

fn resident_mb(service: &Service) -> Result<u64> {
    let process = service.process_id().context("the service runs")?;
    Ok(vitals::sample(0.0, process).context("VmRSS")?.rss_kib >> 10)
}
