//! What goes wrong around the service: the network, the server, storage, the machine. Whatever it is, it ends
//! without a gap, or in one that is on record, shown, told, and followed by a new lineage with its base.

mod host;
mod network;
mod server;
mod storage;

use anyhow::{Context, Result, ensure};
use lastgood_integration::{Service, TestDatabase, history, wait};
use serde_json::{Value, json};

/// Nothing is missing.
async fn no_gap(service: &Service, source: &str) -> Result<()> {
    let gaps = gaps(service, source).await?;
    ensure!(gaps.is_empty(), "no gap expected: {gaps:#?}");
    Ok(())
}

async fn gaps(service: &Service, source: &str) -> Result<Vec<Value>> {
    let window = service
        .get(&format!("/api/v1/sources/{source}/window"))
        .await?;
    Ok(window["gaps"].as_array().context("gaps")?.clone())
}

/// Something was missed: that is on record with its reason, and metrics say it too; the new lineage has a
/// base, and gives the source as it is now.
async fn told(service: &Service, source: &str, database: &TestDatabase, why: &str) -> Result<()> {
    let told = async || {
        let found = gaps(service, source).await?;
        let reason = found
            .last()
            .map_or(Value::Null, |gap| gap["reason"].clone());
        let named = reason.as_str().is_some_and(|reason| reason.contains(why));
        ensure!(named, "a gap because of \"{why}\", not {found:#?}");
        Ok(Some(found.len()))
    };
    let count = wait::until("the gap to be told", told).await?;
    service.wait_protected(source).await?;
    let token = service.token()?;
    let metrics = service.raw(reqwest::Method::GET, "/metrics");
    let metrics = metrics.bearer_auth(token).send().await?.text().await?;
    let generation = format!("lastgood_source_generation{{source=\"{source}\"}} ");
    let (_, rest) = metrics.split_once(&generation).context("a metric")?;
    let generation = rest.lines().next().unwrap_or_default().parse::<usize>()?;
    ensure!(generation > count, "generation {generation}, {count} gaps");
    history::check_latest(service, source, database).await?;
    Ok(())
}

/// Waits until the source is in this state, for a reason that has `word` in it.
async fn wait_reason(service: &Service, source: &str, word: &str) -> Result<Value> {
    let what = format!("{source} to tell of \"{word}\"");
    let has = |found: &Value| {
        found["reason"]
            .as_str()
            .is_some_and(|reason| reason.contains(word))
    };
    wait::until_value(&what, || service.source(source), has)
        .await
        .map_err(|error| error.context(service.log()))
}

/// A table of its own for what a test writes by hand.
const TABLE: &str = "CREATE TABLE t (id bigserial PRIMARY KEY, v text)";

/// A source named `shop` over such a table, protected.
async fn shop(service: &Service, database: &TestDatabase, connection: &str) -> Result<()> {
    database.execute(TABLE).await?;
    let settings = json!({"segment_seconds": 1, "idle_seconds": 1});
    service.add_source("shop", connection, settings).await?;
    service.wait_protected("shop").await
}

async fn write(database: &TestDatabase, what: &str) -> Result<()> {
    let sql = format!("INSERT INTO t (v) VALUES ('{what}')");
    database.execute(&sql).await
}
