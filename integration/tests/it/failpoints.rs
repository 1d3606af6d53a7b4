//! The process is ended at every named step, started again, and what it captured, dumped or restored is
//! compared with the truth. A point that is not passed fails its test: the process would not end.

use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, ensure};
use lastgood_integration::failpoint::{VARIABLE, told};
use lastgood_integration::history::{self, History, Moment};
use lastgood_integration::{Service, Storage, TestDatabase, digest, seed, truth, wait};
use reqwest::Method;
use serde_json::{Value, json};

/// While a source begins, with the pass of each point.
const BEGIN: [(&str, u32); 2] = [("lineage.slot", 1), ("lineage.file", 1)];
const CAPTURE: [(&str, u32); 8] = [
    ("receive", 40),
    ("seal", 1),
    ("put.before", 1),
    ("put.after", 1),
    ("confirm.before", 1),
    ("confirm.after", 1),
    ("catalog.before", 1),
    ("catalog.after", 1),
];
const END: [(&str, u32); 1] = [("lineage.end", 1)];
const BASE: [(&str, u32); 5] = [
    ("base.slot", 1),
    ("base.snapshot", 1),
    ("base.dump", 2),
    ("base.archives", 1),
    ("base.manifest", 1),
];
const RESTORE: [(&str, u32); 5] = [
    ("restore.schema", 1),
    ("restore.data", 3),
    ("restore.replay", 2),
    ("restore.indexes", 1),
    ("restore.finish", 1),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_step_survives_its_end() -> Result<()> {
    let seed = seed::choose("every_step_survives_its_end");
    every_point_is_walked_through().await?;
    tokio::try_join!(
        Box::pin(beginning_and_ending()),
        Box::pin(capturing(seed)),
        Box::pin(taking_bases(seed)),
        Box::pin(restoring()),
        Box::pin(failing(seed)),
    )?;
    Ok(())
}

/// The program says itself which points it has: none may be left out above.
async fn every_point_is_walked_through() -> Result<()> {
    let service = Service::builder().storage(&Storage::local()?).prepare()?;
    service.spawn_with(&[(VARIABLE, "?")])?;
    let status = service.wait_for_exit().await?;
    let log = service.log();
    let (_, points) = log
        .split_once("the points are ")
        .with_context(|| format!("no failpoints, is this a release build? {status}: {log}"))?;
    let points: BTreeSet<&str> = points.split_whitespace().collect();
    let walked = [&BEGIN[..], &CAPTURE, &END, &BASE, &RESTORE].concat();
    let walked: BTreeSet<&str> = walked.iter().map(|(point, _)| *point).collect();
    assert_eq!(points, walked);
    Ok(())
}

/// What arms a point.
fn armed((point, pass): (&str, u32), action: &str) -> String {
    format!("{point}={action}@{pass}")
}

/// The process must have ended at this point, and by nothing else.
fn ended_at(point: &str, status: ExitStatus, log: &str) -> Result<()> {
    ensure!(
        log.contains(&told(point)) && status.signal() == Some(6),
        "{point} did not end it: {status}\n{log}"
    );
    Ok(())
}

/// Runs the service until it ends at a point.
async fn until(service: &Service, point: (&str, u32)) -> Result<()> {
    service.spawn_with(&[(VARIABLE, &armed(point, "abort"))])?;
    ended_at(point.0, service.wait_for_exit().await?, &service.log())
}

async fn no_gap(service: &Service, source: &str) -> Result<()> {
    let window = service
        .get(&format!("/api/v1/sources/{source}/window"))
        .await?;
    ensure!(window["gaps"] == json!([]), "no gap expected: {window:#}");
    Ok(())
}

/// A lineage that is begun, and one that ends: its slot is dropped while the service is away.
async fn beginning_and_ending() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = TestDatabase::new(18).await?;
    let make = "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t VALUES (1, 'before')";
    database.execute(make).await?;
    let url = database.url();
    let added = service.add_source("shop", &url, history::settings());
    let id = added.await?["id"].as_str().context("an id")?.to_owned();
    service.wait_protected("shop").await?;
    service.terminate().await?;
    let drop_slots = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots
         WHERE starts_with(slot_name, 'lastgood_{id}_') AND NOT active"
    );
    // Dropped before each: the lineage ends at the first, and the next one never gets further.
    for point in END.into_iter().chain(BEGIN) {
        database.execute(&drop_slots).await?;
        until(&service, point).await?;
        let row = format!("INSERT INTO t SELECT max(id) + 1, '{}' FROM t", point.0);
        database.execute(&row).await?;
    }
    service.start_again().await?;
    service.wait_protected("shop").await?;
    database
        .execute("INSERT INTO t VALUES (0, 'after')")
        .await?;
    history::check_latest(&service, "shop", &database).await?;
    let window = service.get("/api/v1/sources/shop/window").await?;
    let gaps = window["gaps"].as_array().context("gaps")?;
    ensure!(!gaps.is_empty(), "what was missed is on record: {window:#}");
    let slots = format!(
        "SELECT count(*) FROM pg_replication_slots WHERE starts_with(slot_name, 'lastgood_{id}_')"
    );
    let left: i64 = database
        .connect()
        .await?
        .query_one(&slots, &[])
        .await?
        .get(0);
    ensure!(left == 1, "{left} slots");
    Ok(())
}

async fn capturing(seed: u64) -> Result<()> {
    let storage = Storage::s3().map_or_else(Storage::local, Ok)?;
    let service = Service::start(&storage).await?;
    let mut history = History::start(&service, TestDatabase::new(18).await?, seed).await?;
    service.kill()?;
    for point in CAPTURE {
        until(&service, point).await?;
        history.record_loud().await?;
        history.workload.advance(3).await?;
    }
    service.start_again().await?;
    let name = history.name.clone();
    let finished = history.finish(&service).await?;
    no_gap(&service, &name).await?;
    finished.thinned(5).check(&service).await
}

async fn taking_bases(seed: u64) -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = TestDatabase::new(18).await?;
    // More than one piece of an archive.
    let ballast = "CREATE TABLE ballast (id int PRIMARY KEY, a text);
        INSERT INTO ballast SELECT n, md5(n::text) || md5((-n)::text) FROM generate_series(1, 20000) n";
    database.execute(ballast).await?;
    let mut history = History::start(&service, database, seed.wrapping_add(1)).await?;
    service.kill()?;
    let path = format!("/api/v1/sources/{}/bases", history.name);
    for point in BASE {
        service.spawn_with(&[(VARIABLE, &armed(point, "abort"))])?;
        // Asked for until it is begun, which the service does not live to answer in the end.
        let begun = async || {
            let ended = service.try_wait()?;
            if ended.is_none() {
                // One that is being started, or streams not yet, refuses.
                let _answer = service.request(Method::POST, &path, Some(&json!({}))).await;
            }
            Ok(ended)
        };
        let status = wait::until("the end of the service", begun).await?;
        ended_at(point.0, status, &service.log())?;
        history.record_loud().await?;
    }
    service.start_again().await?;
    service.wait_protected(&history.name).await?;
    let bases = service.get(&path).await?;
    let succeeded = |bases: &Value| {
        let items = bases["items"].as_array().cloned().unwrap_or_default();
        items
            .iter()
            .filter(|it| it["status"] == "succeeded")
            .count()
    };
    // The first, and the one that only the manifest tells of.
    ensure!(succeeded(&bases) == 2, "{bases:#}");
    service.post(&path, json!({})).await?;
    wait::until_value(
        "the last base",
        || service.get(&path),
        |it| succeeded(it) == 3,
    )
    .await?;
    let name = history.name.clone();
    let finished = history.finish(&service).await?;
    no_gap(&service, &name).await?;
    finished.thinned(3).check(&service).await
}

/// By the command line alone, once from start to end for each point.
async fn restoring() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    database
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, a text);
             INSERT INTO t SELECT n, md5(n::text) || md5((-n)::text) FROM generate_series(1, 20000) n",
        )
        .await?;
    let settings = json!({"segment_seconds": 1, "idle_seconds": 1});
    service.add_source("big", &database.url(), settings).await?;
    service.wait_protected("big").await?;
    let mut client = database.connect().await?;
    // Several groups of changes.
    for start in (100_000..280_000).step_by(30_000) {
        let sql =
            format!("INSERT INTO t SELECT n, n FROM generate_series({start}, {start} + 29999) n");
        client.batch_execute(&sql).await?;
    }
    let moment = Moment {
        target: json!("latest"),
        content: digest::of(&mut client, None).await?,
    };
    let end = truth::wal_position(&client).await?;
    service.wait_durable("big", &end).await?;
    service.terminate().await?;
    for point in RESTORE {
        let name = format!("{}_{}", database.name, point.0.replace('.', "_"));
        let command = |resume: bool| -> Result<Command> {
            let mut command = service.command()?;
            command.args(["restore", "big", "--latest", "--json", "--yes"]);
            // Merged changes are in the rows: nothing would be replayed in groups.
            command.args(["--replay", "ordered"]);
            command.args(["--repository", storage.url(), "--key-file"]);
            command.arg(service.key_file());
            command.args(["--into", &database.server.url("postgres")]);
            command.args(["--create-database", &name]);
            if resume {
                command.arg("--resume");
            }
            Ok(command)
        };
        let mut cut = command(false)?;
        cut.env(VARIABLE, armed(point, "abort"));
        let (status, text) = run(cut).await?;
        ended_at(point.0, status, &text)?;
        let (status, text) = run(command(false)?).await?;
        ensure!(!status.success(), "not by itself: {text}");
        // What the killed process had begun on the server ends when the server notices.
        let resumed = async || {
            let (status, text) = run(command(true)?).await?;
            Ok((!text.contains("another restore is writing")).then_some((status, text)))
        };
        let (status, text) = wait::until("the server to notice", resumed).await?;
        if point.0 == "restore.schema" {
            // Half of the definitions may be there: nothing to go on with, and it says so.
            ensure!(text.contains("cannot be resumed"), "{status} {text}");
            history::drop_database(&database.server, &name).await?;
            let (status, text) = run(command(false)?).await?;
            ensure!(status.success(), "{status} {text}");
        } else {
            ensure!(status.success(), "{} {status} {text}", point.0);
        }
        history::check_restored(&database.server, &name, &moment).await?;
        history::compare_schemas(&database.server, &database.name, &name)?;
        history::drop_database(&database.server, &name).await?;
    }
    Ok(())
}

/// How it ended, and everything it said.
async fn run(mut command: Command) -> Result<(ExitStatus, String)> {
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status, String::from_utf8_lossy(&text).into_owned()))
}

/// Every step fails once, and the service goes on by itself.
async fn failing(seed: u64) -> Result<()> {
    let armed = |points: &[(&str, u32)]| {
        let errors = points.iter().map(|point| armed(*point, "error"));
        errors.collect::<Vec<_>>().join(",")
    };
    let capture = armed(&[&BEGIN[..], &CAPTURE].concat());
    let service = Service::builder().storage(&Storage::local()?).prepare()?;
    service.spawn_with(&[(VARIABLE, &capture)])?;
    service.wait_healthy().await?;
    let database = TestDatabase::new(18).await?;
    let mut history = History::start(&service, database, seed.wrapping_add(2)).await?;
    let missing = |points: &[(&'static str, u32)]| -> Vec<&'static str> {
        let log = service.log();
        let points = points.iter().map(|(point, _)| *point);
        points.filter(|point| !log.contains(&told(point))).collect()
    };
    let all_failed = async || {
        let missing = missing(&[&BEGIN[..], &CAPTURE].concat());
        ensure!(missing.is_empty(), "{missing:?} did not fail");
        Ok(Some(()))
    };
    wait::until("every failure of capture", all_failed).await?;
    history.record_loud().await?;

    service.terminate().await?;
    service.spawn_with(&[(VARIABLE, &armed(&BASE))])?;
    service.wait_healthy().await?;
    let path = format!("/api/v1/sources/{}/bases", history.name);
    let all_failed = async || {
        let missing = missing(&BASE);
        if !missing.is_empty() {
            // Refused while one runs.
            let base = json!({});
            service.request(Method::POST, &path, Some(&base)).await?;
        }
        ensure!(missing.is_empty(), "{missing:?} did not fail");
        Ok(Some(()))
    };
    wait::until("every failure of a base", all_failed).await?;
    let name = history.name.clone();
    let finished = history.finish(&service).await?;
    no_gap(&service, &name).await?;
    finished.thinned(2).check(&service).await
}
