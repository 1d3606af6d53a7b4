//! The catalog deleted, damaged, or told to be made again: everything but connection strings comes back
//! from the repository.

use std::fs;

use anyhow::{Context, Result, ensure};
use lastgood_integration::{Service, Storage, TestDatabase, history, service, truth, wait};
use reqwest::Method;
use serde_json::{Value, json};

const SETTINGS: [&str; 7] = [
    "retention",
    "schedule",
    "timezone",
    "exclude",
    "no_identity",
    "segment_bytes",
    "segment_seconds",
];

fn remove(service: &Service) -> Result<()> {
    for name in ["catalog.db", "catalog.db-wal", "catalog.db-shm"] {
        let path = service.data_dir().join(name);
        if path.exists() {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

async fn rebuild(service: &Service, storage: &Storage) -> Result<Value> {
    let data = service.data_dir();
    let mut command = service::cli()?;
    command.args(["--json", "catalog", "rebuild", "--data-dir"]);
    command.arg(data).args(["--repository", storage.url()]);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "{output:?}");
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// What the repository says is there, and the source waits for its connection string.
async fn ensure_found(service: &Service, before: &Value) -> Result<()> {
    let listed = service.get("/api/v1/sources").await?;
    let [source] = &listed["items"].as_array().context("items")?[..] else {
        anyhow::bail!("{listed:#}");
    };
    let name = before["source"]["name"].as_str().context("a name")?;
    let next = format!("lastgood source set {name} --connection CONNECTION");
    ensure!(
        source["status"] == "failed" && source["next"] == next,
        "{source:#}"
    );
    for field in SETTINGS.iter().chain(&["id", "name", "lineage"]) {
        ensure!(
            source[field] == before["source"][field],
            "{field}: {source:#}"
        );
    }
    let path = format!("/api/v1/sources/{name}");
    for what in ["bases", "window", "points"] {
        let found = service.get(&format!("{path}/{what}")).await?;
        let kept = |value: &Value| match what {
            "bases" => value["items"][0]["base"].clone(),
            "points" => value["items"].clone(),
            _ => value["windows"][0]["from"].clone(),
        };
        ensure!(kept(&found) == kept(&before[what]), "{what}: {found:#}");
    }
    let transactions = service.get(&format!("{path}/transactions?limit=1")).await?;
    ensure!(!transactions["items"].is_null(), "{transactions:#}");
    Ok(())
}

async fn note(service: &Service, name: &str) -> Result<Value> {
    let path = format!("/api/v1/sources/{name}");
    let mut before = json!({"source": service.get(&path).await?});
    for what in ["bases", "window", "points"] {
        before[what] = service.get(&format!("{path}/{what}")).await?;
    }
    Ok(before)
}

async fn connect(service: &Service, database: &TestDatabase, lineage: &Value) -> Result<()> {
    let url = database.url();
    let set = ["source", "set", "shop", "--connection", &url];
    let set = service.cli(&set).await?;
    ensure!(set.status.success(), "{set:?}");
    let streams = |source: &Value| source["status"] == "streaming";
    let source = wait::until_value("streaming", || service.source("shop"), streams).await?;
    ensure!(source["lineage"] == *lineage, "another lineage: {source:#}");
    let window = service.get("/api/v1/sources/shop/window").await?;
    ensure!(window["gaps"] == json!([]), "{window:#}");
    Ok(())
}

/// Rows that tell the moments apart.
async fn write(database: &TestDatabase) -> Result<String> {
    let sql = "INSERT INTO t (a) SELECT md5(n::text) FROM generate_series(1, 100) n";
    database.execute(sql).await?;
    truth::wal_position(&database.connect().await?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_but_connection_strings_is_found_again() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    database
        .execute("CREATE TABLE t (id serial PRIMARY KEY, a text)")
        .await?;
    let mut settings = history::settings();
    settings["retention"] = "30 days, 12 monthly".into();
    settings["timezone"] = "Europe/Berlin".into();
    service
        .add_source("shop", &database.url(), settings)
        .await?;
    service.wait_protected("shop").await?;
    write(&database).await?;
    // Changed while it runs, without an interruption of the capture.
    let schedule = json!({"schedule": "0 4 * * *"});
    let path = "/api/v1/sources/shop";
    let changed = service
        .request(Method::PATCH, path, Some(&schedule))
        .await?;
    changed.ok()?;
    let points = format!("{path}/points");
    service.post(&points, json!({"name": "early"})).await?;
    let lsn = write(&database).await?;
    service.wait_durable("shop", &lsn).await?;
    let before = note(&service, "shop").await?;
    let lineage = &before["source"]["lineage"];

    // Deleted.
    ensure!(service.terminate().await?.success(), "{}", service.log());
    remove(&service)?;
    service.start_again().await?;
    ensure_found(&service, &before).await?;
    let (server, early) = (&database.server, json!({"name": "early"}));
    let plan = json!({"target": early});
    service.post(&format!("{path}/plan"), plan).await?;
    let copy = format!("{}_found", database.name);
    let into = json!({"connection": server.url("postgres"), "create_database": copy});
    service.restore("shop", &early, into).await?;
    let client = server.connect(&copy).await?;
    let rows: i64 = client
        .query_one("SELECT count(*) FROM t", &[])
        .await?
        .get(0);
    ensure!(rows == 100, "{rows} rows");
    history::drop_database(server, &copy).await?;
    let resume = format!("{path}/resume");
    let resumed = service.request(Method::POST, &resume, None).await?;
    ensure!(resumed.body["status"] == "failed", "{resumed:?}");
    write(&database).await?;
    connect(&service, &database, lineage).await?;
    let lsn = write(&database).await?;
    service.wait_durable("shop", &lsn).await?;

    // No database any more.
    ensure!(service.terminate().await?.success(), "{}", service.log());
    remove(&service)?;
    fs::write(service.data_dir().join("catalog.db"), [7; 9000])?;
    service.spawn()?;
    ensure!(!service.wait_for_exit().await?.success());
    ensure!(
        service.log().contains("lastgood catalog rebuild"),
        "{}",
        service.log()
    );
    let found = rebuild(&service, &storage).await?;
    let source = &found["sources"][0];
    ensure!(
        source["name"] == "shop"
            && source["settings"] == true
            && source["needs_connection"] == true
            && !found["moved_aside"].is_null(),
        "{found:#}"
    );
    service.start_again().await?;
    ensure_found(&service, &before).await?;
    connect(&service, &database, lineage).await?;

    // One that is well keeps what the repository does not know.
    ensure!(service.terminate().await?.success(), "{}", service.log());
    let found = rebuild(&service, &storage).await?;
    let source = &found["sources"][0];
    ensure!(
        source["needs_connection"] == false && found["moved_aside"].is_null(),
        "{found:#}"
    );
    service.start_again().await?;
    write(&database).await?;
    history::check_latest(&service, "shop", &database).await?;
    Ok(())
}
