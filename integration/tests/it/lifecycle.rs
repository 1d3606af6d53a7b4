//! A source through its life: paused, resumed, changed, removed; the service through its own:
//! stopped in order, started again, its master key replaced.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lastgood_integration::service::cli;
use lastgood_integration::{
    Proxy, Service, Storage, TestDatabase, digest, failpoint, history, postgres, truth, wait,
};
use reqwest::Method;
use serde_json::{Value, json};

const SHOP: &str = "/api/v1/sources/shop";

/// A protected source with one table.
async fn shop(service: &Service, database: &TestDatabase, url: &str) -> Result<()> {
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
        .await?;
    service.add_source("shop", url, history::settings()).await?;
    service.wait_protected("shop").await
}

/// Writes a row and waits until it is durable.
async fn write(service: &Service, database: &TestDatabase, id: i32) -> Result<()> {
    let client = database.connect().await?;
    client
        .execute("INSERT INTO t VALUES ($1, 'x')", &[&id])
        .await?;
    let position = truth::wal_position(&client).await?;
    service.wait_durable("shop", &position).await
}

async fn slots(database: &TestDatabase) -> Result<i64> {
    let client = database.connect().await?;
    let sql = "SELECT count(*) FROM pg_replication_slots WHERE database = current_database()";
    Ok(client.query_one(sql, &[]).await?.get(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_keeps_the_slot_or_drops_it() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    shop(&service, &database, &database.url()).await?;
    write(&service, &database, 1).await?;

    let paused = service
        .post(&format!("{SHOP}/pause"), json!({"slot": "keep"}))
        .await?;
    ensure!(paused["status"] == "paused", "{paused:#}");
    ensure!(slots(&database).await? == 1);
    database.execute("INSERT INTO t VALUES (2, 'x')").await?;
    service.post(&format!("{SHOP}/resume"), json!({})).await?;
    write(&service, &database, 3).await?;
    let window = service.get(&format!("{SHOP}/window")).await?;
    ensure!(
        window["gaps"] == json!([]),
        "nothing was missed: {window:#}"
    );

    let paused = service
        .post(&format!("{SHOP}/pause"), json!({"slot": "drop"}))
        .await?;
    ensure!(paused["status"] == "paused", "{paused:#}");
    ensure!(slots(&database).await? == 0);
    // It stays so through a restart.
    ensure!(service.terminate().await?.success(), "{}", service.log());
    service.start_again().await?;
    ensure!(service.source("shop").await?["status"] == "paused");
    database.execute("INSERT INTO t VALUES (4, 'x')").await?;
    service.post(&format!("{SHOP}/resume"), json!({})).await?;
    service.wait_bases("shop", 2).await?;
    write(&service, &database, 5).await?;
    let window = service.get(&format!("{SHOP}/window")).await?;
    ensure!(window["windows"][1].is_object(), "{window:#}");
    ensure!(window["gaps"][0]["reason"].is_string(), "{window:#}");

    let mut client = database.connect().await?;
    let content = digest::of(&mut client, None).await?;
    let back = format!("{}_back", database.name);
    let into = json!({"connection": database.server.url("postgres"), "create_database": back});
    service.restore("shop", &json!("latest"), into).await?;
    let mut restored = postgres::connect(&database.server.url(&back)).await?;
    content.assert_restored(&digest::of(&mut restored, None).await?, "after the gap");
    drop(restored);
    history::drop_database(&database.server, &back).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_ends_a_first_base_and_says_so() -> Result<()> {
    let storage = Storage::local()?;
    let folder = tempfile::tempdir()?;
    let go = folder.path().join("go");
    let hang = format!("base.archives=hang:{}", go.display());
    let builder = Service::builder().storage(&storage);
    let builder = builder.environment(failpoint::VARIABLE, hang);
    let service = builder.start().await?;
    let database = TestDatabase::new(18).await?;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY, a text)")
        .await?;
    let settings = history::settings();
    service
        .add_source("shop", &database.url(), settings)
        .await?;
    let newest = async || {
        let bases = service.get(&format!("{SHOP}/bases")).await?;
        Ok(bases["items"][0].clone())
    };
    let is_running = |base: &Value| base["status"] == "running";
    wait::until_value("a first base", newest, is_running).await?;

    let pause = json!({"slot": "keep"});
    service.post(&format!("{SHOP}/pause"), pause).await?;
    let base = newest().await?;
    ensure!(base["status"] == "failed", "{base:#}");
    let error = base["error"].as_str().unwrap_or_default();
    ensure!(error.contains("stopped while it ran"), "{base:#}");

    fs::write(go, [])?;
    service.post(&format!("{SHOP}/resume"), json!({})).await?;
    service.wait_bases("shop", 1).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_name_and_connection_can_change_while_it_runs() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    shop(&service, &database, &database.url()).await?;
    write(&service, &database, 1).await?;
    let patch =
        async |path: &str, body: Value| service.request(Method::PATCH, path, Some(&body)).await;
    let lineage = service.source("shop").await?["lineage"].clone();
    let body = json!({"segment_seconds": 2, "connection": format!("{}?connect_timeout=5", database.url())});
    let changed = patch(SHOP, body).await?.ok()?;
    ensure!(changed["segment_seconds"] == 2, "{changed:#}");
    write(&service, &database, 2).await?;
    let nowhere = json!({"connection": "postgres://nobody@127.0.0.1:1/x"});
    let refused = patch(SHOP, nowhere).await?;
    ensure!(refused.code() == "probe_blocked", "{refused:?}");
    let renamed = patch(SHOP, json!({"name": "store"})).await?.ok()?;
    ensure!(
        renamed["name"] == "store" && renamed["lineage"] == lineage,
        "{renamed:#}"
    );
    let gone = service.request(Method::GET, SHOP, None).await?;
    ensure!(gone.code() == "unknown_source", "{gone:?}");
    Ok(())
}

/// A mistyped name must not end what protects the source, nor a move leave a slot behind that holds WAL back for ever.
#[tokio::test(flavor = "multi_thread")]
async fn another_database_is_refused_unless_the_source_has_moved() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    shop(&service, &database, &database.url()).await?;
    write(&service, &database, 1).await?;
    let lineage = service.source("shop").await?["lineage"].clone();
    let [beside, elsewhere] = [TestDatabase::new(18).await?, TestDatabase::new(17).await?];
    for other in [&beside, &elsewhere] {
        let body = json!({"connection": other.url()});
        let refused = service.request(Method::PATCH, SHOP, Some(&body)).await?;
        ensure!(refused.code() == "other_database", "{refused:?}");
    }
    write(&service, &database, 2).await?;
    ensure!(service.source("shop").await?["lineage"] == lineage);

    let table = "CREATE TABLE t (id int PRIMARY KEY, a text)";
    elsewhere.execute(table).await?;
    let body = json!({"connection": elsewhere.url(), "moved": true});
    let moved = service.request(Method::PATCH, SHOP, Some(&body)).await?;
    moved.ok()?;
    ensure!(slots(&database).await? == 0);
    let ours = "SELECT count(*) FROM pg_publication";
    let client = database.connect().await?;
    ensure!(client.query_one(ours, &[]).await?.get::<_, i64>(0) == 0);
    service.wait_protected("shop").await?;
    write(&service, &elsewhere, 1).await?;
    ensure!(slots(&elsewhere).await? == 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_to_be_captured_and_is_not_there_is_told_of() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    shop(&service, &database, &database.url()).await?;
    let state = async |what: &'static str, status: &'static str| {
        wait::until(what, || async {
            let source = service.source("shop").await?;
            Ok((source["status"] == status).then_some(source))
        })
        .await
    };
    let include = |pattern: &str| json!({"include": ["public.t", pattern]});
    let mistyped = include("public.user");
    service
        .request(Method::PATCH, SHOP, Some(&mistyped))
        .await?
        .ok()?;
    let source = state("the pattern is told of", "degraded").await?;
    let reason = source["reason"].as_str().context("a reason")?;
    ensure!(
        reason.contains("no table is called public.user"),
        "{reason}"
    );
    let mended = include("public.*");
    service
        .request(Method::PATCH, SHOP, Some(&mended))
        .await?
        .ok()?;
    state("it is mended", "streaming").await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_base_waits_for_is_named() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    shop(&service, &database, &database.url()).await?;
    let mut writer = database.connect().await?;
    let writing = writer.transaction().await?;
    writing
        .batch_execute("INSERT INTO t VALUES (1, 'x')")
        .await?;
    let process: i32 = writing
        .query_one("SELECT pg_backend_pid()", &[])
        .await?
        .get(0);
    service.post(&format!("{SHOP}/bases"), json!({})).await?;
    let named = format!("process {process}");
    wait::until("who it waits for is named", || async {
        let source = service.source("shop").await?;
        let reason = source["reason"].as_str().unwrap_or_default();
        let is_named = reason.starts_with("a base cannot begin yet") && reason.contains(&named);
        Ok(is_named.then_some(()))
    })
    .await?;
    writing.commit().await?;
    service.wait_bases("shop", 2).await?;
    ensure!(service.source("shop").await?["reason"].is_null());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removal_says_what_it_could_not_drop() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    let proxy = Proxy::start(("127.0.0.1", database.server.port())).await?;
    let port = format!(":{}/", database.server.port());
    let url = database
        .url()
        .replace(&port, &format!(":{}/", proxy.port()));
    shop(&service, &database, &format!("{url}?connect_timeout=2")).await?;

    proxy.set(|network| network.blackhole = true);
    proxy.cut();
    let refused = service.request(Method::DELETE, SHOP, None).await?;
    ensure!(!(200..300).contains(&refused.status), "{refused:?}");
    let sql = refused.body["left"][0]["sql"].as_str().context("its SQL")?;
    ensure!(sql.contains("pg_drop_replication_slot"), "{refused:?}");
    service.source("shop").await?;

    let forced = format!("{SHOP}?force=true");
    let removed = service.request(Method::DELETE, &forced, None).await?.ok()?;
    ensure!(slots(&database).await? == 1);
    // What it says mends it.
    for left in removed["left"].as_array().context("left")? {
        let sql = left["sql"].as_str().context("its SQL")?;
        wait::until("the slot to be free", async || {
            Ok(database.execute(sql).await.is_ok().then_some(()))
        })
        .await?;
    }
    ensure!(slots(&database).await? == 0);
    let gone = service.request(Method::GET, SHOP, None).await?;
    ensure!(gone.status == 404, "{gone:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_is_cancelled_and_says_what_is_left() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::builder().storage(&storage).prepare()?;
    failpoint::start_hanging(&service, "restore.data").await?;
    let database = TestDatabase::new(18).await?;
    shop(&service, &database, &database.url()).await?;
    write(&service, &database, 0).await?;
    let back = format!("{}_cancelled", database.name);
    let into = json!({"connection": database.server.url("postgres"), "create_database": back});
    let id = service
        .start_restore("shop", &json!("latest"), into)
        .await?;
    let path = format!("/api/v1/restores/{id}");
    // Once something is in the target.
    failpoint::wait_hanging(&service, "restore.data").await?;
    let cancelled = service
        .request(Method::POST, &format!("{path}/cancel"), None)
        .await?;
    ensure!(cancelled.status == 202, "{cancelled:?}");
    let ended = service.wait_restore(&id).await?;
    ensure!(ended["status"] == "cancelled", "{ended:#}");
    let left = ended["left_behind"].as_str().context("left behind")?;
    ensure!(left.contains(&back), "{left}");
    history::drop_database(&database.server, &back).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_master_key_is_replaced() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    shop(&service, &database, &database.url()).await?;
    write(&service, &database, 1).await?;
    let old = service.data_dir().join("old.key");
    fs::copy(service.key_file(), &old)?;
    let data_dir = service.data_dir().display().to_string();
    let rotate = async || -> Result<std::process::Output> {
        let mut command = cli()?;
        command
            .args(["key", "rotate", "--data-dir", &data_dir])
            .args(["--repository", storage.url()]);
        Ok(tokio::task::spawn_blocking(move || command.output()).await??)
    };
    let refused = rotate().await?;
    ensure!(!refused.status.success(), "not while the service runs");
    ensure!(service.terminate().await?.success(), "{}", service.log());
    let rotated = rotate().await?;
    ensure!(rotated.status.success(), "{rotated:?}");
    ensure!(fs::read(&old)? != fs::read(service.key_file())?);

    let window = async |key: String| -> Result<bool> {
        let mut command = cli()?;
        command.args([
            "window",
            "shop",
            "--repository",
            storage.url(),
            "--key-file",
            &key,
        ]);
        let output = tokio::task::spawn_blocking(move || command.output()).await??;
        Ok(output.status.success())
    };
    ensure!(
        !window(old.display().to_string()).await?,
        "the old key opens nothing"
    );
    ensure!(window(service.key_file().display().to_string()).await?);
    // Capture goes on, with the connection string that was sealed anew.
    service.start_again().await?;
    write(&service, &database, 2).await?;
    Ok(())
}

/// A table that is truncated and filled again ten times a second, as a staging table may be, is in
/// every base as the stream goes on from it: the source is protected, and comes back equal.
#[tokio::test]
async fn a_table_truncated_all_the_time_comes_back_equal() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    let mut client = database.connect().await?;
    client
        .batch_execute(
            "CREATE TABLE staging (id int PRIMARY KEY, v text); CREATE TABLE log (id serial PRIMARY KEY)",
        )
        .await?;
    let stop = Arc::new(AtomicBool::new(false));
    let (writer, stopped) = (database.connect().await?, Arc::clone(&stop));
    let writer = tokio::spawn(async move {
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        // The time that a base makes it wait is not made up for.
        pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let round = "INSERT INTO log DEFAULT VALUES; UPDATE staging SET v = 'seen';
            DELETE FROM staging WHERE id % 2 = 0; TRUNCATE staging;
            INSERT INTO staging SELECT i, txid_current() FROM generate_series(1, 50) i";
        while !stopped.load(Ordering::Relaxed) {
            pace.tick().await;
            for statement in round.split(';') {
                writer.batch_execute(statement).await?;
            }
        }
        anyhow::Ok(())
    });
    service
        .add_source("shop", &database.url(), history::settings())
        .await?;
    service.wait_protected("shop").await?;
    service.post(&format!("{SHOP}/bases"), json!({})).await?;
    service.wait_bases("shop", 2).await?;
    stop.store(true, Ordering::Relaxed);
    writer.await??;

    let content = digest::of(&mut client, None).await?;
    let end = truth::wal_position(&client).await?;
    client
        .batch_execute("INSERT INTO log DEFAULT VALUES")
        .await?;
    let position = truth::wal_position(&client).await?;
    service.wait_durable("shop", &position).await?;
    let name = format!("{}_restored", database.name);
    let into = json!({"connection": database.server.url("postgres"), "create_database": name});
    service.restore("shop", &json!({"lsn": end}), into).await?;
    let restored = digest::of(&mut database.server.connect(&name).await?, None).await?;
    content.assert_restored(&restored, "after many truncates");
    assert!(service.terminate().await?.success());
    Ok(())
}
