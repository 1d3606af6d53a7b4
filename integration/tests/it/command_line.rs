//! The command line: what it ends with, what it changes, what it says. The same words and the same
//! exit codes through the service and with repository and key alone.

use std::fs;
use std::process::{Output, Stdio};

use anyhow::{Context, Result, ensure};
use lastgood_integration::service::cli;
use lastgood_integration::{Service, Storage, TestDatabase, history, truth, wait};
use reqwest::Method;
use serde_json::{Value, json};

fn check(what: &str, output: &Output, exit: i32) -> Result<()> {
    ensure!(
        output.status.code() == Some(exit),
        "{what} ended with {} instead of {exit}: {}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

async fn alone(arguments: &[&str]) -> Result<Output> {
    let mut command = cli()?;
    command.args(arguments).stdin(Stdio::null());
    tokio::task::spawn_blocking(move || Ok(command.output()?)).await?
}

async fn json_of(service: &Service, arguments: &[&str]) -> Result<Value> {
    let output = service.cli(&[arguments, &["--json"]].concat()).await?;
    check(&arguments.join(" "), &output, 0)?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_the_same_through_the_service_and_without_it() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY); CREATE ROLE limited LOGIN")
        .await?;
    service
        .add_source("shop", &database.url(), history::settings())
        .await?;
    service.wait_protected("shop").await?;
    let filled = database.sibling().await?;
    filled.execute("CREATE TABLE mine (id int)").await?;
    let server = &database.server;
    let postgres = server.url("postgres");
    let limited = server.url_as("limited", "x", "postgres");
    let key = service.key_file().display().to_string();
    let repository = ["--repository", storage.url(), "--key-file", &key];

    let into = |url: &str, rest: &[&str]| -> Vec<String> {
        let first = ["restore", "shop", "--latest", "--into", url];
        let words = first.iter().chain(rest);
        words.map(|word| (*word).to_owned()).collect()
    };
    let plain =
        |words: &[&str]| -> Vec<String> { words.iter().map(|word| (*word).to_owned()).collect() };
    for (arguments, exit) in [
        // The database exists, is not empty, is the source, does not exist.
        (into(&postgres, &["--create-database", &filled.name]), 3),
        (into(&filled.url(), &[]), 3),
        (into(&database.url(), &[]), 3),
        (into(&server.url("no_such_database"), &[]), 3),
        // No such role; one that may not create a database.
        (
            into(
                &server.url_as("nobody", "x", "postgres"),
                &["--create-database", "x"],
            ),
            3,
        ),
        (
            into(&limited, &["--create-database", "lastgood_not_made"]),
            3,
        ),
        // Nobody listens.
        (
            into(
                "postgres://postgres@127.0.0.1:1/postgres",
                &["--create-database", "x"],
            ),
            1,
        ),
        (into("bogus", &[]), 2),
        (
            plain(&["restore", "shop", "--lsn", "0/1", "--into", &postgres]),
            5,
        ),
        (plain(&["plan", "--source", "shop", "--lsn", "FFFFFF/0"]), 5),
        (plain(&["plan", "shop", "--xid", "4000000000"]), 5),
        (plain(&["plan", "shop", "--name", "never-made"]), 5),
        (plain(&["plan", "nobody", "--latest"]), 2),
        (plain(&["window", "nobody"]), 2),
        (plain(&["transactions", "--source", "nobody"]), 2),
    ] {
        let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let what = words.join(" ");
        check(&what, &service.cli(&words).await?, exit)?;
        let without = [words.as_slice(), &repository].concat();
        check(&without.join(" "), &alone(&without).await?, exit)?;
    }
    // The role that may not create a database fails in its job: only the server can tell.
    let restores = service.get("/api/v1/restores").await?;
    let restores = restores["items"].as_array().context("restores")?;
    ensure!(
        restores.len() <= 1,
        "what needs no work is refused before a job exists: {restores:#?}"
    );
    for words in [
        ["window", "shop"].as_slice(),
        &["window", "--source", "shop"],
        &["transactions", "shop"],
        &["plan", "shop", "--latest"],
        &["base", "list", "--source", "shop"],
        &["source", "show", "--source", "shop"],
        &["source", "list", "--server", &service.base_url()],
    ] {
        check(&words.join(" "), &service.cli(words).await?, 0)?;
    }

    // A reader that has seen enough is no failure.
    let listed = alone(&[["cat"].as_slice(), &repository].concat()).await?;
    let listed = String::from_utf8(listed.stdout)?;
    let archive = listed
        .lines()
        .find(|path| path.contains(".dump"))
        .context("an archive")?;
    let mut child = cli()?
        .args(["cat", archive])
        .args(repository)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    drop(child.stdout.take());
    let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
    check("cat into a closed pipe", &output, 0)?;
    ensure!(output.stderr.is_empty(), "{output:?}");
    database.execute("DROP ROLE limited").await
}

#[tokio::test(flavor = "multi_thread")]
async fn transactions_of_a_table_are_found_or_it_is_said_why_none_is() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    let tables = r#"CREATE TABLE users (id int PRIMARY KEY); CREATE TABLE "Order" (id int PRIMARY KEY); CREATE TABLE bare (a int);
        CREATE TABLE root (id int PRIMARY KEY) PARTITION BY LIST (id); CREATE TABLE part PARTITION OF root DEFAULT"#;
    database.execute(tables).await?;
    service
        .add_source("shop", &database.url(), history::settings())
        .await?;
    service.wait_protected("shop").await?;
    let client = database.connect().await?;
    for table in ["users", r#""Order""#, "bare", "root"] {
        let insert = format!("INSERT INTO {table} VALUES (1)");
        client.batch_execute(&insert).await?;
    }
    let position = truth::wal_position(&client).await?;
    service.wait_durable("shop", &position).await?;

    let key = service.key_file().display().to_string();
    let repository = ["--repository", storage.url(), "--key-file", &key];
    for (table, exit, said) in [
        ("users", 0, "public.users: 1 insert"),
        (r#"public."Order""#, 0, r#"public."Order": 1 insert"#),
        ("part", 0, "public.part: 1 insert"),
        ("public.userss", 2, "it has public.users"),
        ("Order", 2, r#"it has public."Order""#),
        ("bare", 2, "it is as old as a base"),
        ("root", 2, "name one of those"),
        ("a.b.c", 2, "a name is schema.table"),
    ] {
        let words = ["transactions", "shop", "--table", table];
        let without = [words.as_slice(), &repository].concat();
        for output in [service.cli(&words).await?, alone(&without).await?] {
            check(table, &output, exit)?;
            let [out, error] =
                [&output.stdout, &output.stderr].map(|it| String::from_utf8_lossy(it));
            ensure!(
                out.contains(said) || error.contains(said),
                "{table}: {out}{error}"
            );
        }
    }
    let later = ["transactions", "shop", "--since", "2900-01-01T00:00:00Z"];
    let output = service.cli(&later).await?;
    check("later", &output, 0)?;
    let out = String::from_utf8_lossy(&output.stdout);
    ensure!(out.contains("; what was committed by 2"), "{out}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_is_changed_shown_and_taken_up_again() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE bare (a int)")
        .await?;
    let added = service
        .add_source("shop", &database.url(), history::settings())
        .await?;
    service.wait_protected("shop").await?;
    let id = added["id"].as_str().context("its id")?;

    // Loud: a table that is only in bases.
    let bare = |source: &Value| source["not_covered"][0]["object"] == "public.bare";
    wait::until_value("the bare table", || service.source("shop"), bare).await?;
    let health = service.get("/api/v1/health").await?;
    ensure!(
        health["warnings"].to_string().contains("only in bases"),
        "{health:#}"
    );
    let metrics = service.request(Method::GET, "/metrics", None).await?.text;
    let gauge = "lastgood_source_base_only_tables{source=\"shop\"} 1";
    ensure!(metrics.contains(gauge), "{metrics}");

    check(
        "nothing to set",
        &service.cli(&["source", "set", "shop"]).await?,
        2,
    )?;
    let set = async |options: &[&str]| {
        json_of(
            &service,
            &[["source", "set", "shop"].as_slice(), options].concat(),
        )
        .await
    };
    // What does not touch capture does not interrupt it.
    let client = database.connect().await?;
    let reader = async || -> Result<Option<i32>> {
        let sql = "SELECT active_pid FROM pg_replication_slots \
                   WHERE database = current_database() AND NOT temporary";
        Ok(client.query_one(sql, &[]).await?.get(0))
    };
    let before = reader().await?;
    set(&["--schedule", "0 3 * * 0", "--timezone", "Europe/Berlin"]).await?;
    ensure!(reader().await? == before && before.is_some(), "{before:?}");
    let changed = set(&["--exclude", "public.bare", "--wal-budget-bytes", "20GiB"]).await?;
    ensure!(changed["status"] == "streaming", "{changed:#}");
    ensure!(changed["wal_budget_bytes"] == 20_u64 << 30, "{changed:#}");
    ensure!(reader().await? != before, "capture has begun anew");
    let none = |source: &Value| source["not_covered"] == json!([]);
    wait::until_value("nothing uncovered", || service.source("shop"), none).await?;
    let changed = set(&["--exclude", ""]).await?;
    ensure!(changed["exclude"] == json!([]), "{changed:#}");
    wait::until_value("the bare table again", || service.source("shop"), bare).await?;
    let shown = service.cli(&["source", "show", "shop"]).await?;
    let shown = String::from_utf8(shown.stdout)?;
    ensure!(shown.contains("(default 10GiB)"), "{shown}");
    ensure!(shown.contains("public.bare: only in bases"), "{shown}");

    let paused = json_of(&service, &["source", "pause", "shop"]).await?;
    ensure!(paused["status"] == "paused", "{paused:#}");
    ensure!(
        paused["next"] == "lastgood source resume shop",
        "{paused:#}"
    );
    let resumed = json_of(&service, &["source", "resume", "shop"]).await?;
    ensure!(resumed["status"] == "streaming", "{resumed:#}");

    // The same database under another name.
    let url = database.url();
    let other = json_of(&service, &["source", "add", "other", &url]).await?;
    let findings = other["findings"].to_string();
    ensure!(findings.contains("already_captured"), "{findings}");
    ensure!(findings.contains("shop"), "{findings}");
    service.cli(&["source", "remove", "other"]).await?;

    // A name that the repository knows means that source.
    let removed = service.cli(&["source", "remove", "shop"]).await?;
    check("remove", &removed, 0)?;
    let refused = service.cli(&["source", "add", "shop", &url]).await?;
    check("a second shop", &refused, 3)?;
    let hint = String::from_utf8_lossy(&refused.stderr);
    ensure!(hint.contains(&format!("--id {id}")), "{hint}");
    let key = service.key_file().display().to_string();
    let list = ["source", "list", "--repository", storage.url()];
    let held = alone(&[list.as_slice(), &["--key-file", &key]].concat()).await?;
    let held = String::from_utf8(held.stdout)?;
    let line = held.lines().find(|line| line.starts_with(id));
    // With the beginning of its window.
    let told = |line: &str| line.contains(" shop ") && line.contains("  20");
    ensure!(line.is_some_and(told), "{held}");
    let taken = json_of(&service, &["source", "add", "shop", &url, "--id", id]).await?;
    ensure!(taken["id"] == id, "{taken:#}");
    service.cli(&["source", "remove", "shop"]).await?;
    let new = json_of(&service, &["source", "add", "shop", &url, "--new"]).await?;
    ensure!(new["id"] != id, "{new:#}");
    service.cli(&["source", "remove", "shop"]).await?;
    Ok(())
}

/// Starting again does not help with any of these, and none of them may leave anything behind.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_cannot_start_says_who_is_needed() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let data = service.data_dir().display().to_string();
    let elsewhere = tempfile::tempdir()?;
    let wrong = format!("file://{}", elsewhere.path().join("other").display());
    let serve = async |repository: &str| {
        let listen = ["--listen", "127.0.0.1:0"];
        let arguments = ["serve", "--data-dir", &data, "--repository", repository];
        alone(&[arguments.as_slice(), &listen].concat()).await
    };
    let rotate = async |repository: &str| {
        alone(&[
            "key",
            "rotate",
            "--data-dir",
            &data,
            "--repository",
            repository,
        ])
        .await
    };
    check("the data folder is in use", &serve(storage.url()).await?, 3)?;
    let taken = service.base_url().replace("http://", "");
    let fresh = elsewhere.path().join("data").display().to_string();
    let output = alone(&["serve", "--data-dir", &fresh, "--listen", &taken]).await?;
    check("the port is in use", &output, 3)?;
    ensure!(service.terminate().await?.success(), "{}", service.log());

    let refused = serve(&wrong).await?;
    check("another repository", &refused, 3)?;
    let told = String::from_utf8_lossy(&refused.stderr);
    ensure!(
        told.contains(storage.url()),
        "which is the right one: {told}"
    );
    let new_key = service.key_file().with_extension("key.new");
    check("rotate in another repository", &rotate(&wrong).await?, 3)?;
    ensure!(!new_key.exists(), "a key for nothing");
    ensure!(!elsewhere.path().join("other").exists(), "made by the way");

    // Cut short: the service waits, and the same command ends it.
    let key = service.key_file();
    fs::copy(&key, &new_key)?;
    check("a rotation was cut short", &serve(storage.url()).await?, 3)?;
    check("rotate again", &rotate(storage.url()).await?, 0)?;
    ensure!(!new_key.exists());
    service.start_again().await?;
    ensure!(service.terminate().await?.success(), "{}", service.log());

    fs::rename(&key, elsewhere.path().join("key"))?;
    check("the key is gone", &serve(storage.url()).await?, 3)?;
    ensure!(!key.exists(), "no new key beside an old catalog");
    Ok(())
}
