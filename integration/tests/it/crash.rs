//! kill -9 at random moments, of the service and of the server; and ends that are asked for. What was
//! written meanwhile must be in the restore, once.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use lastgood_integration::history::{self, History, Moment};
use lastgood_integration::{
    Postgres, Service, Stop, Storage, TestDatabase, digest, failpoint, seed, truth, wait,
};
use rand::Rng;
use serde_json::{Value, json};

#[tokio::test(flavor = "multi_thread")]
async fn the_service_is_killed_while_it_captures() -> Result<()> {
    let seed = seed::choose("the_service_is_killed_while_it_captures");
    let mut rng = seed::rng(seed, "kills");
    let storage = Storage::s3().map_or_else(Storage::local, Ok)?;
    let service = Service::start(&storage).await?;
    let mut history = History::start(&service, TestDatabase::new(18).await?, seed).await?;
    for _ in 0..5 {
        history.workload.advance(rng.random_range(1..40)).await?;
        service.kill()?;
        // The writers never notice, and what they do now must not be lost.
        history.record_loud().await?;
        history.workload.advance(rng.random_range(1..40)).await?;
        history.record_quiet(None).await?;
        service.start_again().await?;
        if rng.random_bool(0.5) {
            service
                .wait_durable(&history.name, &history.last_lsn.clone())
                .await?;
        }
    }
    let name = history.name.clone();
    let finished = history.finish(&service).await?;
    let window = service
        .get(&format!("/api/v1/sources/{name}/window"))
        .await?;
    ensure!(window["gaps"] == json!([]), "a kill is no gap: {window:#}");
    finished.thinned(9).check(&service).await
}

/// Nobody samples the sequences any more after the end of the service, and a column that no sequence
/// owns tells how far one came.
#[tokio::test(flavor = "multi_thread")]
async fn the_sequences_of_a_killed_service_are_not_behind_its_rows() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    let make = "CREATE SEQUENCE s; CREATE TABLE t (n bigint PRIMARY KEY)";
    database.execute(make).await?;
    let settings = json!({"segment_seconds": 1, "idle_seconds": 1});
    service
        .add_source("shop", &database.url(), settings)
        .await?;
    service.wait_protected("shop").await?;
    let client = database.connect().await?;
    let write = "DO $$ BEGIN LOOP INSERT INTO t VALUES (nextval('s')); COMMIT; END LOOP; END $$";
    let writing = client.batch_execute(write);
    let watching = async {
        for _ in 0..3 {
            let position = truth::wal_position(&database.connect().await?).await?;
            service.wait_durable("shop", &position).await?;
        }
        service.kill()
    };
    let writer = client.cancel_token();
    tokio::select! {
        ended = writing => anyhow::bail!("the writer ended: {ended:?}"),
        watched = watching => watched?,
    }
    // The server does not notice that nobody waits for it any more.
    writer.cancel_query(tokio_postgres::NoTls).await?;
    let name = format!("{}_restored", database.name);
    let mut restore = service.command()?;
    restore.args(["restore", "shop", "--latest", "--yes"]);
    restore.args(["--repository", storage.url(), "--key-file"]);
    restore.arg(service.key_file());
    restore.args(["--into", &database.server.url("postgres")]);
    restore.args(["--create-database", &name]);
    let output = tokio::task::spawn_blocking(move || restore.output()).await??;
    ensure!(output.status.success(), "{output:?}");
    let restored = database.server.connect(&name).await?;
    let stood = "SELECT max(n), (SELECT last_value FROM s) FROM t";
    let row = restored.query_one(stood, &[]).await?;
    let (used, next): (i64, i64) = (row.get(0), row.get(1));
    ensure!(
        used > 1 && used <= next,
        "{used} is used, the sequence is at {next}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_is_killed_while_it_takes_a_base() -> Result<()> {
    let seed = seed::choose("the_service_is_killed_while_it_takes_a_base");
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    // Large enough for a base to take a while.
    let database = TestDatabase::new(15).await?;
    let ballast = "CREATE TABLE ballast (id int PRIMARY KEY, a text); INSERT INTO ballast SELECT n, repeat(md5(n::text), 4) FROM generate_series(1, 100000) n";
    database.execute(ballast).await?;
    let mut history = History::start(&service, database, seed).await?;
    let path = format!("/api/v1/sources/{}/bases", history.name);
    for _ in 0..2 {
        service.post(&path, json!({})).await?;
        history.workload.advance(2).await?;
        service.kill()?;
        history.workload.advance(10).await?;
        service.start_again().await?;
        service.wait_protected(&history.name).await?;
    }
    let succeeded = |bases: &Value| {
        let items = bases["items"].as_array().cloned().unwrap_or_default();
        items
            .iter()
            .filter(|base| base["status"] == "succeeded")
            .count()
    };
    let before = succeeded(&service.get(&path).await?);
    let begun = async || {
        let answer = service
            .request(reqwest::Method::POST, &path, Some(&json!({})))
            .await?;
        Ok((answer.status == 202).then_some(()))
    };
    wait::until("a base to be begun", begun).await?;
    let more = |bases: &Value| succeeded(bases) > before;
    wait::until_value("the base", || service.get(&path), more).await?;
    history.record_quiet(None).await?;
    let finished = history.finish(&service).await?;
    finished.thinned(4).check(&service).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_service_is_killed_while_it_restores() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    database
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, a text); CREATE TABLE other (id int PRIMARY KEY)",
        )
        .await?;
    service
        .add_source("big", &database.url(), history::settings())
        .await?;
    service.wait_protected("big").await?;
    let mut client = database.connect().await?;
    for start in (0..40_000).step_by(500) {
        let sql = format!(
            "INSERT INTO t SELECT n, md5(n::text) FROM generate_series({start}, {start} + 499) n; UPDATE t SET a = a || 'x' WHERE id % 10 = {}",
            start / 500 % 10
        );
        client.batch_execute(&sql).await?;
    }
    let moment = Moment {
        target: json!("latest"),
        content: digest::of(&mut client, None).await?,
    };
    service
        .wait_durable("big", &truth::wal_position(&client).await?)
        .await?;

    let server = &database.server;
    let name = format!("{}_interrupted", database.name);
    let whole = json!({"connection": server.url("postgres"), "create_database": name});
    interrupted(&service, &moment, whole, json!({})).await?;
    history::check_restored(server, &name, &moment).await?;
    let again = format!("{name}_again");
    let into = json!({"connection": server.url("postgres"), "create_database": again});
    service.restore("big", &moment.target, into).await?;
    history::check_restored(server, &again, &moment).await?;

    // Some tables, into a database of their own and beside the ones that are there.
    let name = format!("{}_part", database.name);
    let part = json!({"connection": server.url("postgres"), "create_database": name});
    let tables = json!({"tables": ["public.t"]});
    interrupted(&service, &moment, part, tables).await?;
    let truth = moment.content.part(&["public.t"], &[]);
    let restored = digest::of(&mut server.connect(&name).await?, None).await?;
    truth.assert_restored(&restored, "a table");
    let beside = json!({"connection": database.url(), "allow_source": true});
    let under = json!({"tables": ["public.t"], "into_schema": "recovered"});
    interrupted(&service, &moment, beside, under).await?;
    let restored = digest::of(&mut client, None).await?;
    let recovered = restored.part(&["recovered.t"], &[]);
    truth
        .renamed("public", "recovered")
        .assert_restored(&recovered, "a table beside the others");
    assert_eq!(restored.tables.len(), moment.content.tables.len() + 1);
    let scratch = "SELECT count(*) FROM pg_database WHERE strpos(shobj_description(oid, 'pg_database'), $1) > 0";
    let left = client.query_one(scratch, &[&database.name]).await?;
    assert_eq!(left.get::<_, i64>(0), 0);
    Ok(())
}

/// A restore that the service does not survive, and then goes on with.
async fn interrupted(service: &Service, moment: &Moment, into: Value, more: Value) -> Result<()> {
    let mut body = json!({"target": moment.target, "into": into});
    for (name, value) in more.as_object().into_iter().flatten() {
        body[name] = value.clone();
    }
    let restores = "/api/v1/sources/big/restores";
    let begun = service.post(restores, body.clone()).await?;
    let id = begun["id"].as_str().unwrap_or_default().to_owned();
    // From the first table on it can be taken up again; before, there is nothing to take up.
    let begun = |restore: &Value| {
        restore["phase"]
            .as_str()
            .is_some_and(|phase| !matches!(phase, "prepare" | "schema"))
    };
    let path = format!("/api/v1/restores/{id}");
    wait::until_value("the restore to begin", || service.get(&path), begun).await?;
    service.kill()?;
    service.start_again().await?;
    // It says that it was cut short, and can be taken up where it stopped.
    let ended = service.wait_restore(&id).await?;
    ensure!(
        ended["status"] == "failed" && ended["error"].is_string(),
        "{ended:#}"
    );
    let left = ended["left_behind"].as_str().unwrap_or_default();
    let is_scratch = left.contains("a scratch database");
    ensure!(is_scratch == body["into_schema"].is_string(), "{ended:#}");
    // Not by itself.
    let refused = service
        .request(reqwest::Method::POST, restores, Some(&body))
        .await?;
    ensure!(refused.code() == "restore_refused", "{refused:?}");
    // A newer base changes nothing: it goes on from its own.
    service.wait_protected("big").await?;
    let bases = service.wait_bases("big", 1).await?.len();
    service.post("/api/v1/sources/big/bases", json!({})).await?;
    service.wait_bases("big", bases + 1).await?;
    body["resume"] = true.into();
    let plan = service
        .post("/api/v1/sources/big/plan", body.clone())
        .await?;
    let resumed = service.post(restores, body).await?;
    ensure!(
        plan["base"] == resumed["plan"]["base"]
            && plan["base"]["id"] == ended["plan"]["base"]["id"],
        "{plan:#} {resumed:#}"
    );
    let resumed = service
        .wait_restore(resumed["id"].as_str().unwrap_or_default())
        .await?;
    ensure!(
        resumed["status"] == "succeeded" && resumed["report"]["resumed"] == true,
        "{resumed:#}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_stops_and_crashes() -> Result<()> {
    let seed = seed::choose("the_server_stops_and_crashes");
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    // fsync stays off: a killed postmaster loses nothing that the kernel has.
    let server = Arc::new(Postgres::start(15, &[]).await?);
    server.create_database("shop").await?;
    let database = TestDatabase {
        server: Arc::clone(&server),
        name: "shop".to_owned(),
    };
    let mut history = History::start(&service, database, seed).await?;
    for round in 0..4 {
        history.advance().await?;
        match round {
            // A shutdown waits for walsenders: ours must let it go.
            0 => {
                server
                    .stop_within(Stop::Fast, Duration::from_secs(30))
                    .await?;
                server.start_again().await?;
            }
            1 => server.restart(Stop::Immediate).await?,
            _ => {
                server.crash().await?;
                server.start_again().await?;
            }
        }
        history.advance().await?;
        history.record_quiet(None).await?;
    }
    let name = history.name.clone();
    let finished = history.finish(&service).await?;
    let window = service
        .get(&format!("/api/v1/sources/{name}/window"))
        .await?;
    ensure!(
        window["gaps"] == json!([]),
        "a restart is no gap: {window:#}"
    );
    finished.thinned(9).check(&service).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_end_leaves_everything_durable() -> Result<()> {
    let seed = seed::choose("a_graceful_end_leaves_everything_durable");
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let mut history = History::start(&service, TestDatabase::new(18).await?, seed).await?;
    history.advance().await?;
    ensure!(service.terminate().await?.success(), "{}", service.log());
    history.record_loud().await?;
    history.advance().await?;
    service.start_again().await?;
    let finished = history.finish(&service).await?;
    finished.thinned(4).check(&service).await
}

/// SIGTERM in the middle of a base and of each phase of a restore: the process ends in order and soon, says
/// what was cut short, and that is done again or gone on with.
#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_end_in_the_middle_of_a_base_and_of_a_restore() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = TestDatabase::new(17).await?;
    let make = "CREATE TABLE t (id int PRIMARY KEY, a text);
        INSERT INTO t SELECT n, md5(n::text) FROM generate_series(1, 20000) n";
    database.execute(make).await?;
    service
        .add_source("shop", &database.url(), history::settings())
        .await?;
    service.wait_protected("shop").await?;
    service.terminate().await?;
    // Runs until it hangs at `point`, then ends it.
    let ended_at = async |point: &str, begin: &str, body: Value| -> Result<Value> {
        failpoint::start_hanging(&service, point).await?;
        service.wait_protected("shop").await?;
        database
            .execute("INSERT INTO t SELECT max(id) + 1, 'before' FROM t")
            .await?;
        let position = truth::wal_position(&database.connect().await?).await?;
        service.wait_durable("shop", &position).await?;
        let job = service.post(begin, body).await?;
        failpoint::wait_hanging(&service, point).await?;
        database
            .execute("INSERT INTO t SELECT max(id) + 1, 'meanwhile' FROM t")
            .await?;
        let begun = std::time::Instant::now();
        let status = service.terminate().await?;
        ensure!(
            status.success() && begun.elapsed() < Duration::from_secs(30),
            "{point}: {status} after {:?}\n{}",
            begun.elapsed(),
            service.log()
        );
        Ok(job)
    };
    let bases = "/api/v1/sources/shop/bases";
    let job = ended_at("base.dump", bases, json!({})).await?;
    service.start_again().await?;
    service.wait_protected("shop").await?;
    let items = service.get(bases).await?["items"].clone();
    let cut = items.as_array().into_iter().flatten();
    let cut = cut.filter(|base| base["id"] == job["id"] && base["status"] == "failed");
    ensure!(cut.count() == 1, "{items:#}");
    service.post(bases, json!({})).await?;
    service.wait_bases("shop", 2).await?;
    service.terminate().await?;

    for point in ["restore.data", "restore.replay", "restore.indexes"] {
        let server = &database.server;
        let name = format!("{}_{}", database.name, point.replace('.', "_"));
        let into = json!({"connection": server.url("postgres"), "create_database": name});
        let body = json!({"target": "latest", "into": into, "replay": "ordered"});
        let path = "/api/v1/sources/shop/restores";
        let job = ended_at(point, path, body.clone()).await?;
        service.start_again().await?;
        let id = job["id"].as_str().unwrap_or_default();
        let ended = service.get(&format!("/api/v1/restores/{id}")).await?;
        ensure!(
            ended["status"] == "failed" && ended["left_behind"].is_string(),
            "{ended:#}"
        );
        let mut again = body;
        again["resume"] = true.into();
        // The same end: what came meanwhile is after what was replayed already.
        again["target"] = json!({"lsn": job["plan"]["last_kept"]["commit_lsn"]});
        let resumed = service.post(path, again).await?;
        let resumed = service
            .wait_restore(resumed["id"].as_str().unwrap_or_default())
            .await?;
        ensure!(resumed["status"] == "succeeded", "{resumed:#}");
        let rows = "SELECT count(*) FROM t";
        let client = server.connect(&name).await?;
        let restored: i64 = client.query_one(rows, &[]).await?.get(0);
        drop(client);
        let source = database.connect().await?;
        let held: i64 = source.query_one(rows, &[]).await?.get(0);
        ensure!(restored + 1 == held, "{point}: {restored} of {held}");
        history::drop_database(server, &name).await?;
        service.terminate().await?;
    }
    Ok(())
}
