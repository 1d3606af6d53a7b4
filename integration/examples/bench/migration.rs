//! What a migration costs: the source by the event triggers that tell of DDL, and whoever wants to restore by the
//! moments that cannot be restored.

use std::time::Instant;

use anyhow::{Context, Result};
use lastgood_integration::{Postgres, Service, history, truth, wait};
use serde_json::{Value, json};

use crate::{
    DATABASE, RUNS, SOURCE, finish, median, micros, protect, psql, ratio, row, start_pgbench,
};

pub(crate) const HEAD: &[&str] = &[
    "500 statements of DDL",
    "without event triggers",
    "with them",
    "ratio",
];

pub(crate) const HEAD_AFTER: &[&str] = &[
    "migration of pgbench, scale 50",
    "what cannot be restored",
    "base after it",
    "size",
];

/// Tables, columns, indexes, constraints: a hundred of each.
fn statements() -> String {
    let one = |number: u32| {
        format!(
            "CREATE TABLE m.t{number} (id int PRIMARY KEY); ALTER TABLE m.t{number} ADD v text DEFAULT 'x';
             CREATE INDEX ON m.t{number} (v); ALTER TABLE m.t{number} ALTER v SET NOT NULL;
             ALTER TABLE m.t{number} ADD CHECK (id > 0);\n"
        )
    };
    (0..100).map(one).collect()
}

pub(crate) async fn rows() -> Result<Vec<String>> {
    let server = start_pgbench(&["fsync=off"], 1).await?;
    let service = protect(&server, history::settings()).await?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), statements())?;
    let path = file.path().display().to_string();
    let run = |together: bool| -> Result<f64> {
        psql(&server, "DROP SCHEMA IF EXISTS m CASCADE; CREATE SCHEMA m")?;
        let mut psql = server.program("psql");
        let begun = Instant::now();
        finish(
            psql.args(["-Xqf", &path, DATABASE])
                .args(together.then_some("-1")),
        )?;
        Ok(begun.elapsed().as_secs_f64() * 1000.0)
    };
    let (mut with, mut without) = ([vec![], vec![]], [vec![], vec![]]);
    for _ in 0..RUNS {
        for (trigger, times) in [(true, &mut with), (false, &mut without)] {
            set_trigger(&service, &server, trigger).await?;
            for (together, times) in [false, true].into_iter().zip(times) {
                times.push(run(together)?);
            }
        }
    }
    let names = ["each by itself", "in one transaction"];
    let both = names.iter().zip(without.iter_mut().zip(&mut with));
    Ok(both
        .map(|(name, (without, with))| {
            let (without, with) = (median(without), median(with));
            row(&[
                (*name).to_owned(),
                format!("{without:.0} ms"),
                format!("{with:.0} ms"),
                ratio(with, without),
            ])
        })
        .collect())
}

async fn set_trigger(service: &Service, server: &Postgres, wanted: bool) -> Result<()> {
    let path = format!("/api/v1/sources/{SOURCE}");
    let body = json!({"ddl_trigger": wanted});
    let patch = reqwest::Method::PATCH;
    service.request(patch, &path, Some(&body)).await?.ok()?;
    let client = server.connect(DATABASE).await?;
    let count = if wanted { 2 } else { 0 };
    let is_set = || async {
        let there = "SELECT count(*) FROM pg_event_trigger";
        let there: i64 = client.query_one(there, &[]).await?.get(0);
        Ok((there == count).then_some(()))
    };
    wait::until("the event triggers", is_set).await
}

const MIGRATIONS: &[&str] = &[
    "ALTER TABLE pgbench_accounts ADD seen timestamptz DEFAULT now()",
    "ALTER TABLE pgbench_accounts RENAME filler TO filling",
    "UPDATE pgbench_accounts SET seen = NULL WHERE aid <= 1000; ALTER TABLE pgbench_accounts DROP seen",
    "CREATE TABLE pgbench_notes (id int PRIMARY KEY, note text)",
    "ALTER TABLE pgbench_tellers ALTER tbalance TYPE bigint",
    "ALTER TABLE pgbench_accounts ALTER abalance TYPE bigint",
];

/// After each the next.
pub(crate) async fn rows_after() -> Result<Vec<String>> {
    let server = start_pgbench(&["fsync=off"], 50).await?;
    let service = protect(&server, history::settings()).await?;
    let client = server.connect(DATABASE).await?;
    let mut rows = Vec::new();
    for (number, migration) in MIGRATIONS.iter().enumerate() {
        let settled = truth::wal_position(&client).await?;
        service.wait_durable(SOURCE, &settled).await?;
        psql(&server, &format!("BEGIN; {migration}; COMMIT"))?;
        let committed = truth::clock(&client).await?;
        let bases = service.wait_bases(SOURCE, number + 2).await?;
        let base = bases.first().context("a base")?;
        let path = format!("/api/v1/sources/{SOURCE}/window");
        let is_there = |window: &Value| {
            let windows = window["windows"].as_array();
            windows.is_some_and(|windows| windows.len() >= number + 2)
                && window["latest_refused"].is_null()
        };
        let window = wait::until_value("a window", || service.get(&path), is_there).await?;
        let windows = window["windows"].as_array().context("windows")?;
        let last_two = windows.iter().rev().take(2);
        let edges: Vec<&Value> = last_two.collect();
        let (next, before) = (edges.first().context("one")?, edges.get(1).context("two")?);
        rows.push(row(&[
            format!("`{migration}`"),
            seconds(&before["to"]["time"], &next["from"]["time"])?,
            seconds(&json!(committed), &base["finished"])? + " later",
            format!(
                "{:.1} kB",
                base["bytes"].as_f64().context("bytes")? / 1000.0
            ),
        ]));
    }
    Ok(rows)
}

fn seconds(from: &Value, to: &Value) -> Result<String> {
    // Of two windows that follow each other the later one begins a microsecond later.
    let micros = (micros(to)? - micros(from)? - 1).max(0);
    Ok(format!("{:.2} s", micros as f64 / 1e6))
}
