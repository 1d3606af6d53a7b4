//! Repositories that were damaged, cannot be written, are opened with another key, or have two
//! writers: a clear error, never a quiet restore of something else.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use lastgood_integration::history::{self, History};
use lastgood_integration::{Postgres, Service, Storage, TestDatabase, seed, service, truth, wait};
use serde_json::json;

async fn cli(storage: &Storage, key: &str, arguments: &[&str]) -> Result<(bool, String)> {
    let mut command = service::cli()?;
    command
        .arg(arguments[0])
        .args(["--repository", storage.url(), "--key-file", key]);
    command.args(&arguments[1..]);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let text = [output.stdout, output.stderr].concat();
    Ok((
        output.status.success(),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_damage_is_found() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let seed = seed::choose("every_damage_is_found");
    let database = TestDatabase::new(18).await?;
    let large = "CREATE TABLE large (id int PRIMARY KEY, v text);
        INSERT INTO large SELECT i, md5(i::text) FROM generate_series(1, 5000) i";
    database.execute(large).await?;
    let mut settings = history::settings();
    settings["big_table_bytes"] = json!(100_000);
    let connection = database.url();
    let history = History::start_by(&service, database, &connection, settings, seed);
    let mut history = history.await?;
    for _ in 0..3 {
        history.advance().await?;
        history.record_loud().await?;
        service
            .wait_durable(&history.name, &history.last_lsn.clone())
            .await?;
    }
    let finished = history.finish(&service).await?;
    ensure!(service.terminate().await?.success(), "{}", service.log());
    let key = service.key_file().display().to_string();
    let server = &finished.database.server;
    let into = server.url("postgres");
    let database = format!("{}_damaged", finished.database.name);

    let (intact, text) = cli(&storage, &key, &["verify", &finished.name]).await?;
    ensure!(intact, "an intact repository: {text}");
    let segments = storage.files(|path| path.contains("/segments/"))?;
    let dumps = storage.files(|path| path.contains("/bases/") && path.contains("main.dump"))?;
    let parts = storage.files(|path| path.contains("/bases/") && path.contains("/rows-"))?;
    ensure!(parts.len() > 1, "{parts:?}");
    let manifests = storage.files(|path| path.contains("manifest.json"))?;
    ensure!(segments.len() > 3, "{segments:?}");
    // Segments that hold something: the largest ones.
    let mut large = segments.clone();
    large.sort_by_key(|path| std::cmp::Reverse(fs::metadata(path).map_or(0, |it| it.len())));
    let (one, two, dump) = (&large[0], &large[1], &dumps[0]);

    type Damage<'a> = Box<dyn Fn(&PathBuf) -> Result<()> + Send + Sync + 'a>;
    let cut = |bytes: usize| -> Damage<'_> {
        Box::new(move |path| {
            let content = fs::read(path)?;
            Ok(fs::write(
                path,
                &content[..content.len().saturating_sub(bytes)],
            )?)
        })
    };
    let flip = |part: usize| -> Damage<'_> {
        Box::new(move |path| {
            let mut content = fs::read(path)?;
            let at = (content.len() - 1) * part / 4;
            content[at] ^= 1;
            Ok(fs::write(path, content)?)
        })
    };
    let missing = || -> Damage<'_> { Box::new(|path| Ok(fs::remove_file(path)?)) };
    let swapped: Damage<'_> = Box::new(|path| {
        fs::copy(two, path)?;
        Ok(())
    });
    let grown: Damage<'_> = Box::new(|path| {
        let content = fs::read(path)?;
        Ok(fs::write(path, [content.clone(), content].concat())?)
    });
    let damages: Vec<(&str, &PathBuf, Damage<'_>)> = vec![
        ("a segment cut short by a byte", one, cut(1)),
        (
            "a segment cut in half",
            one,
            cut(fs::metadata(one)?.len() as usize / 2),
        ),
        ("an empty segment", one, cut(usize::MAX)),
        ("a segment altered at its start", one, flip(0)),
        ("a segment altered in its middle", one, flip(2)),
        ("a segment altered at its end", one, flip(4)),
        ("a segment swapped with another", one, swapped),
        ("a segment written twice over", one, grown),
        ("a missing segment", one, missing()),
        ("a dump cut short", dump, cut(1)),
        ("a dump altered", dump, flip(2)),
        ("a missing dump", dump, missing()),
        ("a part of a table cut short", &parts[0], cut(1)),
        ("a part of a table altered", &parts[0], flip(2)),
        ("a missing part of a table", &parts[1], missing()),
        ("a manifest altered", &manifests[0], flip(2)),
    ];
    for (what, path, damage) in damages {
        let before = fs::read(path)?;
        // An immutable object may be read-only.
        let _ = fs::remove_file(path);
        fs::write(path, &before)?;
        damage(path)?;
        let (verified, text) = cli(&storage, &key, &["verify", &finished.name]).await?;
        ensure!(!verified, "{what} was not found by verify: {text}");
        let arguments = [
            "restore",
            "--source",
            &finished.name,
            "--latest",
            "--into",
            &into,
            "--create-database",
            &database,
        ];
        let (restored, text) = cli(&storage, &key, &arguments).await?;
        ensure!(!restored, "{what} was not found by a restore: {text}");
        ensure!(text.len() > 20, "{what}: {text}");
        // Not the first thing that came of it, but what is damaged.
        let is_named = text.contains("/segments/") || text.contains("/bases/");
        ensure!(is_named || !what.contains("part"), "{what}: {text}");
        server
            .execute(
                "postgres",
                &format!("DROP DATABASE IF EXISTS \"{database}\" WITH (FORCE)"),
            )
            .await?;
        fs::write(path, &before)?;
    }
    let (intact, text) = cli(&storage, &key, &["verify", &finished.name]).await?;
    ensure!(intact, "intact again: {text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_wrong_master_key() -> Result<()> {
    let storage = Storage::local()?;
    let first = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await?;
    first
        .add_source("shop", &database.url(), history::settings())
        .await?;
    first.wait_protected("shop").await?;
    // A second service makes a key of its own and must not use it on this repository.
    let second = Service::builder().storage(&storage).prepare()?;
    second.spawn()?;
    ensure!(
        !second.wait_for_exit().await?.success(),
        "it started with a wrong key"
    );
    ensure!(second.log().contains("key"), "{}", second.log());
    let stranger = tempfile::tempdir()?;
    let other = Service::start(&Storage::local()?).await?;
    let key = stranger.path().join("key");
    fs::copy(other.key_file(), &key)?;
    let key = key.display().to_string();
    let (done, text) = cli(&storage, &key, &["verify", "shop"]).await?;
    ensure!(!done && text.contains("key"), "{text}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repository_that_cannot_be_written() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("file");
    fs::write(&file, "not a folder")?;
    let url = format!("file://{}/below", file.display());
    let service = Service::builder()
        .argument("--repository")
        .argument(&url)
        .prepare()?;
    service.spawn()?;
    ensure!(
        !service.wait_for_exit().await?.success(),
        "it started on {url}"
    );
    ensure!(
        service.log().contains("below") || service.log().contains("file"),
        "{}",
        service.log()
    );
    ensure!(!service.log().contains("panicked"), "{}", service.log());
    Ok(())
}

/// Two services with the same repository, key and source: the slot and the repository have one
/// owner, and what is restored afterwards is right.
#[tokio::test(flavor = "multi_thread")]
async fn two_services_on_one_source() -> Result<()> {
    let storage = Storage::local()?;
    let seed = seed::choose("two_services_on_one_source");
    let first = Service::start(&storage).await?;
    let mut history = History::start(&first, TestDatabase::new(18).await?, seed).await?;
    let id = first.source(&history.name).await?["id"]
        .as_str()
        .context("an id")?
        .to_owned();
    let second = Service::builder()
        .storage(&storage)
        .key(&first.key_file())
        .start()
        .await?;
    let body = json!({"name": "again", "connection": history.database.url(), "id": id});
    let answer = second
        .request(reqwest::Method::POST, "/api/v1/sources", Some(&body))
        .await?;
    if answer.status == 201 {
        let disturbed = async || {
            let status = second.source("again").await?["status"].clone();
            Ok((status == "failed" || status == "degraded").then_some(()))
        };
        wait::until(
            "the second service to say that the source is taken",
            disturbed,
        )
        .await?;
    } else {
        ensure!((400..500).contains(&answer.status), "{answer:?}");
    }
    for _ in 0..2 {
        history.advance().await?;
        history.record_loud().await?;
    }
    second.kill()?;
    let window = first
        .get(&format!("/api/v1/sources/{}/window", history.name))
        .await?;
    ensure!(
        window["gaps"] == json!([]),
        "the first one's lineage was ended: {window:#}"
    );
    history.finish(&first).await?.check(&first).await?;

    // And one data folder has one service.
    let third = service::cli()?
        .arg("serve")
        .arg("--data-dir")
        .arg(first.data_dir())
        .args(["--listen", "127.0.0.1:0", "--repository", storage.url()])
        .output()?;
    ensure!(
        !third.status.success(),
        "a second service on one data folder"
    );
    Ok(())
}

/// The catalog is gone, the repository and the key are there: a new service takes the source up.
#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_is_lost() -> Result<()> {
    let storage = Storage::local()?;
    let seed = seed::choose("the_catalog_is_lost");
    let first = Service::start(&storage).await?;
    let mut history = History::start(&first, TestDatabase::new(18).await?, seed).await?;
    let id = first.source(&history.name).await?["id"]
        .as_str()
        .context("an id")?
        .to_owned();
    history.advance().await?;
    history.record_loud().await?;
    first.terminate().await?;
    history.advance().await?;
    let second = Service::builder()
        .storage(&storage)
        .key(&first.key_file())
        .start()
        .await?;
    let mut body = json!({"name": history.name, "connection": history.database.url(), "id": id});
    if let (Some(body), Some(more)) = (body.as_object_mut(), history::settings().as_object()) {
        body.extend(more.clone());
    }
    second.post("/api/v1/sources", body).await?;
    history.advance().await?;
    history.record_loud().await?;
    let client = history.database.connect().await?;
    second
        .wait_durable(&history.name, &truth::wal_position(&client).await?)
        .await?;
    history.finish(&second).await?.check(&second).await
}

/// A source that cannot be captured, for whatever reason, still has its slot on its own disk.
#[tokio::test(flavor = "multi_thread")]
async fn the_slot_of_a_failed_source_is_watched() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let server = Postgres::start(15, &[]).await?;
    let url = server.create_database("shop").await?;
    let client = server.connect("shop").await?;
    client
        .batch_execute("CREATE TABLE t (id serial PRIMARY KEY, a text)")
        .await?;
    let settings = json!({"wal_budget_bytes": 64 << 20, "segment_seconds": 1});
    service.add_source("shop", &url, settings).await?;
    service.wait_protected("shop").await?;
    ensure!(service.terminate().await?.success(), "{}", service.log());
    let lineages = storage.files(|path| path.contains("/lineage.json"))?;
    let [lineage] = &lineages[..] else {
        anyhow::bail!("{lineages:?}");
    };
    let mut content = fs::read(lineage)?;
    let last = content.last_mut().context("a byte")?;
    *last ^= 1;
    fs::remove_file(lineage)?;
    fs::write(lineage, content)?;

    service.start_again().await?;
    let shown = |source: &serde_json::Value| {
        source["status"] == "failed" && source["retained_wal_bytes"].is_u64()
    };
    wait::until_value("the slot to be measured", || service.source("shop"), shown).await?;
    client
        .batch_execute(
            "INSERT INTO t (a) SELECT repeat(md5(n::text), 30) FROM generate_series(1, 90000) n",
        )
        .await?;
    let told = |source: &serde_json::Value| {
        let reason = source["reason"].as_str().unwrap_or_default();
        source["status"] == "failed"
            && reason.contains("lineage.json")
            && reason.contains("the budget is 67108864")
    };
    wait::until_value("the budget to be told", || service.source("shop"), told).await?;
    let slots: i64 = client
        .query_one("SELECT count(*) FROM pg_replication_slots", &[])
        .await?
        .get(0);
    ensure!(slots == 0, "the slot is still there");
    Ok(())
}
