//! Retention on a real source: given up, taken back, deleted, and capture goes on over it.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lastgood_integration::{Service, Storage, TestDatabase, digest, history, postgres, truth};
use reqwest::Method;
use serde_json::{Value, json};

const SHOP: &str = "/api/v1/sources/shop";
const RETENTION: &str = "/api/v1/sources/shop/retention";

struct Shop {
    service: Service,
    database: TestDatabase,
}

impl Shop {
    /// Writes rows, each durable in a segment of its own; the position after them.
    async fn write(&self, ids: std::ops::Range<i32>) -> Result<String> {
        let client = self.database.connect().await?;
        let mut position = String::new();
        for id in ids {
            let sql = "INSERT INTO t VALUES ($1, 'x')";
            client.execute(sql, &[&id]).await?;
            position = truth::wal_position(&client).await?;
            self.service.wait_durable("shop", &position).await?;
        }
        Ok(position)
    }

    async fn base(&self, count: usize) -> Result<()> {
        let path = format!("{SHOP}/bases");
        self.service.post(&path, json!({})).await?;
        self.service.wait_bases("shop", count).await?;
        Ok(())
    }

    async fn set(&self, settings: Value) -> Result<()> {
        let changed = self.service.request(Method::PATCH, SHOP, Some(&settings));
        changed.await?.ok()?;
        Ok(())
    }

    async fn plan(&self, lsn: &str) -> Result<lastgood_integration::service::Answer> {
        let body = json!({"target": {"lsn": lsn}});
        let path = format!("{SHOP}/plan");
        self.service.request(Method::POST, &path, Some(&body)).await
    }

    async fn rows(&self, target: &Value, expected: i64) -> Result<()> {
        let back = format!("{}_back", self.database.name);
        let url = self.database.server.url("postgres");
        let into = json!({"connection": url, "create_database": back});
        self.service.restore("shop", target, into).await?;
        let restored = postgres::connect(&self.database.server.url(&back)).await?;
        let rows: i64 = restored
            .query_one("SELECT count(*) FROM t", &[])
            .await?
            .get(0);
        drop(restored);
        history::drop_database(&self.database.server, &back).await?;
        ensure!(
            rows == expected,
            "{rows} rows at {target}, {expected} expected"
        );
        Ok(())
    }
}

fn count(held: &Value) -> (usize, u64) {
    let bases = held["bases"].as_array().map_or(0, Vec::len);
    (bases, held["segments"].as_u64().unwrap_or(0))
}

/// Where the listed segments start.
fn starts(segments: &Value) -> BTreeSet<String> {
    let items = segments["items"].as_array().into_iter().flatten();
    items.map(|segment| segment["start"].to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_given_up_is_deleted_after_its_grace_and_capture_goes_on() -> Result<()> {
    let storage = Storage::s3().map_or_else(Storage::local, Ok)?;
    let shop = Shop {
        service: Service::start(&storage).await?,
        database: TestDatabase::new(18).await?,
    };
    let (service, database) = (&shop.service, &shop.database);
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
        .await?;
    let settings = history::settings();
    service
        .add_source("shop", &database.url(), settings)
        .await?;
    service.wait_protected("shop").await?;
    let everything = service.post(RETENTION, json!({})).await?;
    ensure!(count(&everything["given_up"]) == (0, 0), "{everything:#}");

    let early = shop.write(0..4).await?;
    shop.base(2).await?;
    let bases = service.get(&format!("{SHOP}/bases")).await?;
    let second = bases["items"][0].clone();
    let middle = shop.write(4..8).await?;
    shop.base(3).await?;
    shop.write(8..12).await?;

    // Looked at, and nothing happens.
    shop.set(json!({"retention": "1 base"})).await?;
    let looked = service.get(RETENTION).await?;
    let (given, segments) = count(&looked["given_up"]);
    ensure!(given == 2 && segments >= 6, "{looked:#}");
    ensure!(count(&looked["pending"][0]) == (2, segments), "{looked:#}");
    shop.plan(&early).await?.ok()?;

    // Given up: no plan uses it, and all of it is still there.
    let before = service.get(&format!("{SHOP}/segments?limit=1000")).await?;
    let pass = service.post(RETENTION, json!({})).await?;
    ensure!(count(&pass["given_up"]) == (2, segments), "{pass:#}");
    ensure!(count(&pass["deleted"]) == (0, 0), "{pass:#}");
    for lsn in [&early, &middle] {
        let refused = shop.plan(lsn).await?;
        ensure!(refused.code() == "target_outside_windows", "{refused:?}");
    }
    let after = service.get(&format!("{SHOP}/segments?limit=1000")).await?;
    ensure!(starts(&after).is_superset(&starts(&before)), "{after:#}");
    let again = service.post(RETENTION, json!({})).await?;
    ensure!(count(&again["given_up"]) == (0, 0), "{again:#}");

    // A change of mind within the grace period.
    for wanted in [json!("3 bases"), Value::Null] {
        shop.set(json!({"retention": "1 base"})).await?;
        service.post(RETENTION, json!({})).await?;
        shop.set(json!({"retention": wanted})).await?;
        let back = service.post(RETENTION, json!({})).await?;
        ensure!(count(&back["taken_back"]).0 == 2, "{back:#}");
    }
    shop.rows(&json!({"lsn": early}), 4).await?;

    // Deleted: the pinned base alone is left of what was before the newest.
    let pinned = json!({
        "retention": "1 base", "pinned": [second["base"]], "retention_grace_hours": 0,
    });
    shop.set(pinned).await?;
    let pass = service.post(RETENTION, json!({})).await?;
    ensure!(count(&pass["deleted"]) == (1, segments), "{pass:#}");
    ensure!(pass["pending"] == json!([]), "{pass:#}");
    let left = service.get(&format!("{SHOP}/segments?limit=1000")).await?;
    let gone = starts(&after).difference(&starts(&left)).count();
    ensure!(u64::try_from(gone)? == segments, "{left:#}");
    for lsn in [&early, &middle] {
        let refused = shop.plan(lsn).await?;
        ensure!(refused.code() == "target_outside_windows", "{refused:?}");
    }
    let moment = second["consistent_point"]
        .as_str()
        .context("consistent point")?;
    shop.rows(&json!({"lsn": moment, "inclusive": false}), 4)
        .await?;
    let window = service.get(&format!("{SHOP}/window")).await?;
    let reason = window["gaps"][0]["reason"]
        .as_str()
        .context("a gap's reason")?;
    ensure!(reason.contains("retention"), "{window:#}");
    let again = service.post(RETENTION, json!({})).await?;
    ensure!(count(&again["taken_back"]) == (0, 0), "{again:#}");
    let window = service.get(&format!("{SHOP}/window")).await?;
    ensure!(window["gaps"][0]["reason"] == reason, "{window:#}");

    // The service goes on from what is left, and finds it whole.
    let lineage = service.source("shop").await?["lineage"].clone();
    ensure!(service.terminate().await?.success(), "{}", service.log());
    service.start_again().await?;
    shop.write(12..16).await?;
    ensure!(service.source("shop").await?["lineage"] == lineage);
    shop.rows(&json!("latest"), 16).await?;
    let mut client = database.connect().await?;
    let content = digest::of(&mut client, None).await?;
    let key = service.key_file().display().to_string();
    let repository = ["--repository", storage.url(), "--key-file", &key];
    let verify = [&["verify", "shop"], &repository[..]].concat();
    let verified = service.cli(&verify).await?;
    ensure!(verified.status.success(), "{verified:?}");
    let back = format!("{}_repository", database.name);
    let into = database.server.url("postgres");
    let restore = [
        "restore",
        "shop",
        "--latest",
        "--into",
        &into,
        "--create-database",
        &back,
    ];
    let restored = service
        .cli(&[&restore[..], &repository[..]].concat())
        .await?;
    ensure!(restored.status.success(), "{restored:?}");
    let mut restored = postgres::connect(&database.server.url(&back)).await?;
    content.assert_restored(
        &digest::of(&mut restored, None).await?,
        "without the service",
    );
    drop(restored);
    history::drop_database(&database.server, &back).await
}
