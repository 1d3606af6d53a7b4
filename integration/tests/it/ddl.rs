//! DDL that the source itself tells of: a restore goes up to the very transaction, and nobody's DDL ever notices.

use anyhow::{Context, Result, ensure};
use lastgood_integration::service::parse_lsn;
use lastgood_integration::{
    Postgres, Service, Storage, TestDatabase, digest, history, seed, truth, wait,
};
use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::shapes::wait_beyond;

const TABLES: &str = "CREATE TABLE t (id int PRIMARY KEY, a int, b text); INSERT INTO t SELECT i, i, 'x' FROM generate_series(1, 100) i;
    CREATE TABLE other (id serial PRIMARY KEY, v text)";

/// A migration is what one wants back from: the moment right before it, whatever it did and however much was going on.
#[tokio::test(flavor = "multi_thread")]
async fn a_restore_goes_up_to_the_transaction_with_the_ddl() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let runs = [14, 16, 18].map(|major| {
        let run = up_to_the_ddl(&service, major);
        async move { run.await.with_context(|| format!("PostgreSQL {major}")) }
    });
    futures::future::try_join_all(runs).await?;
    ensure!(service.terminate().await?.success());
    Ok(())
}

async fn up_to_the_ddl(service: &Service, major: u32) -> Result<()> {
    let name = format!("ddl{major}");
    let (database, mut client) = protected(service, &name, major, "").await?;

    // All in one go: no look lies between.
    client
        .batch_execute("UPDATE t SET b = 'right before' WHERE id <= 50")
        .await?;
    client
        .batch_execute("INSERT INTO other (v) VALUES ('last')")
        .await?;
    let before = digest::of(&mut client, None).await?;
    let time_before = truth::clock(&client).await?;
    client
        .batch_execute(
            "BEGIN; UPDATE t SET a = 0; ALTER TABLE t DROP COLUMN b; ALTER TABLE t ADD c text DEFAULT 'c'; \
             INSERT INTO t VALUES (1000, 1, 'new'); COMMIT",
        )
        .await?;
    let time_between = truth::clock(&client).await?;
    let between = truth::wal_position(&client).await?;
    client
        .batch_execute(
            "BEGIN; DROP TABLE other; SELECT 1; COMMIT; INSERT INTO t VALUES (1001, 1, 'newer')",
        )
        .await?;
    let xid: String = client
        .query_one("SELECT xmin::text FROM t WHERE id = 1000", &[])
        .await?
        .get(0);
    let after = digest::of(&mut client, None).await?;
    let changed = truth::wal_position(&client).await?;
    wait_beyond(service, &name, &changed).await?;

    // The window ends at the transaction, and says so as soon as what was altered has been stored.
    let path = format!("/api/v1/sources/{name}/window");
    let is_placed = |window: &Value| {
        let reason = window["gaps"][0]["reason"].as_str().unwrap_or_default();
        let told = ["ALTER TABLE public.t", "DROP TABLE public.other"];
        told.iter().all(|told| reason.contains(told))
    };
    let window = wait::until_value("the change's place", || service.get(&path), is_placed).await?;
    let end = window["windows"][0]["to"]["lsn"]
        .as_str()
        .context("an LSN")?;
    ensure!(parse_lsn(end)? < parse_lsn(&between)?, "{window:#}");

    let target = |target: Value, truth: &digest::Content, what: &str| {
        restore(
            service,
            &database,
            &name,
            target,
            truth.clone(),
            what.to_owned(),
        )
    };
    target(json!({"time": time_before}), &before, "time").await?;
    target(json!({"lsn": end, "inclusive": false}), &before, "lsn").await?;
    let xid: u64 = xid.parse()?;
    target(json!({"xid": xid, "inclusive": false}), &before, "xid").await?;
    target(json!("latest"), &after, "latest").await?;
    // What it did itself, and what came between, has no definitions yet.
    for refused in [
        json!({"time": time_between}),
        json!({"lsn": between}),
        json!({"xid": xid}),
    ] {
        let path = format!("/api/v1/sources/{name}/plan");
        let answer = service
            .request(
                reqwest::Method::POST,
                &path,
                Some(&json!({"target": refused})),
            )
            .await?;
        ensure!(
            answer.status == 422 || answer.status == 409,
            "{refused}: {:#}",
            answer.body
        );
        ensure!(
            answer.body["detail"]
                .as_str()
                .is_some_and(|it| it.contains("ALTER TABLE")),
            "{:#}",
            answer.body
        );
    }
    Ok(())
}

/// Restores, compares, and drops what was restored.
async fn restore(
    service: &Service,
    database: &TestDatabase,
    name: &str,
    target: Value,
    truth: digest::Content,
    what: String,
) -> Result<()> {
    let copy = restored(service, database, name, &target, &truth, &what).await?;
    history::drop_database(&database.server, &copy).await
}

/// Restores and compares; answers the database.
async fn restored(
    service: &Service,
    database: &TestDatabase,
    name: &str,
    target: &Value,
    truth: &digest::Content,
    what: &str,
) -> Result<String> {
    let copy = format!("{}_{}", database.name, what.replace(' ', "_"));
    let into = json!({"connection": database.server.url("postgres"), "create_database": copy});
    let restored = service.restore(name, target, into).await;
    restored.with_context(|| what.to_owned())?;
    let content = digest::of(&mut database.server.connect(&copy).await?, None).await?;
    truth.assert_restored(&content, what);
    Ok(copy)
}

/// [`TABLES`] and `more` as a source whose event triggers are trusted.
async fn protected(
    service: &Service,
    name: &str,
    major: u32,
    more: &str,
) -> Result<(TestDatabase, Client)> {
    let database = TestDatabase::new(major).await?;
    database.execute(TABLES).await?;
    database.execute(more).await?;
    service
        .add_source(name, &database.url(), history::settings())
        .await?;
    service.wait_protected(name).await?;
    let client = database.connect().await?;
    trusted(service, name, &client).await?;
    Ok((database, client))
}

/// Three cuts, with looks between: the event trigger is known to have been there from one to the next, and whatever was
/// under way when it was made to have ended.
async fn trusted(service: &Service, name: &str, client: &Client) -> Result<()> {
    for _ in 0..3 {
        client
            .batch_execute("INSERT INTO other (v) VALUES ('look')")
            .await?;
        let lsn = truth::wal_position(client).await?;
        service.wait_durable(name, &lsn).await?;
    }
    Ok(())
}

/// What no rows depend on is as of the base; a change of it is followed by a base, and named until there is one.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_view_is_named_and_then_in_a_base() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let runs = [(13, true), (17, false), (18, true)].map(|(major, trigger)| {
        let run = new_view(&service, major, trigger);
        async move { run.await.with_context(|| format!("PostgreSQL {major}")) }
    });
    futures::future::try_join_all(runs).await?;
    ensure!(service.terminate().await?.success());
    Ok(())
}

async fn new_view(service: &Service, major: u32, trigger: bool) -> Result<()> {
    let database = TestDatabase::new(major).await?;
    database.execute(TABLES).await?;
    let name = format!("view{major}");
    let mut settings = history::settings();
    settings["ddl_trigger"] = json!(trigger);
    service.add_source(&name, &database.url(), settings).await?;
    service.wait_protected(&name).await?;
    let client = database.connect().await?;
    client
        .batch_execute("CREATE VIEW v AS SELECT count(*) FROM t; CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'")
        .await?;
    client
        .batch_execute("INSERT INTO t VALUES (1000, 1, 'x')")
        .await?;
    let lsn = truth::wal_position(&client).await?;
    service.wait_durable(&name, &lsn).await?;
    let path = format!("/api/v1/sources/{name}/plan");
    let target = json!({"target": {"lsn": lsn, "inclusive": false}});
    let plan = service.post(&path, target.clone()).await?;
    // Where nobody tells of DDL, not every look is at all definitions; where somebody does, the base may be there already.
    let is_based = plan["base"]["lenders"]
        .as_array()
        .is_some_and(|it| !it.is_empty());
    if trigger && major > 13 && !is_based {
        let named = plan["not_covered"].as_array().context("a list")?;
        ensure!(
            named.len() == 1 && named[0]["object"] == "definitions",
            "{plan:#}"
        );
        let why = named[0]["why"].as_str().context("a text")?;
        ensure!(why.contains("view"), "{why}");
    }

    service.wait_bases(&name, 2).await?;
    client
        .batch_execute("INSERT INTO t VALUES (1001, 1, 'x')")
        .await?;
    let lsn = truth::wal_position(&client).await?;
    service.wait_durable(&name, &lsn).await?;
    // No window ends by it.
    let window = service
        .get(&format!("/api/v1/sources/{name}/window"))
        .await?;
    ensure!(
        window["windows"].as_array().is_some_and(|it| it.len() == 1),
        "{window:#}"
    );
    let copy = format!("{}_copy", database.name);
    let into = json!({"connection": database.server.url("postgres"), "create_database": copy});
    let restored = service.restore(&name, &json!("latest"), into).await?;
    ensure!(restored["plan"]["not_covered"] == json!([]), "{restored:#}");
    history::compare_schemas(&database.server, &database.name, &copy)?;
    history::drop_database(&database.server, &copy).await
}

/// Whatever is in the stream of a slot of one's own.
async fn told(client: &Client) -> Result<Vec<Value>> {
    let rows = client
        .query(
            "SELECT convert_from(substring(data FROM position('lastgood.ddl'::bytea IN data) + 17), 'UTF8') FROM pg_logical_slot_get_binary_changes('told', NULL, NULL,
                'proto_version', '1', 'publication_names', 'none', 'messages', 'true')
              WHERE get_byte(data, 0) = ascii('M') AND position('lastgood.ddl'::bytea IN data) > 0",
            &[],
        )
        .await?;
    let texts = rows.iter().map(|row| row.get::<_, String>(0));
    texts.map(|text| Ok(serde_json::from_str(&text)?)).collect()
}

/// (what is run, and what is told of it)
const COMMANDS: &[(&str, &[&str])] = &[
    (
        "CREATE TABLE a (id serial PRIMARY KEY)",
        &["CREATE TABLE by app"],
    ),
    ("ALTER TABLE a ADD v text UNIQUE", &["ALTER TABLE by app"]),
    (
        "DO $$ BEGIN CREATE INDEX ON a (v); CREATE VIEW w AS SELECT * FROM a; END $$",
        &["CREATE INDEX by app", "CREATE VIEW by app"],
    ),
    ("BEGIN; CREATE TABLE b (); ROLLBACK", &[]),
    (
        "BEGIN; SAVEPOINT s; CREATE TABLE b (); ROLLBACK TO s; CREATE TABLE c (); COMMIT",
        &["CREATE TABLE by app"],
    ),
    (
        "CREATE TEMP TABLE x (id serial PRIMARY KEY, v text); CREATE INDEX ON x (v); CREATE TEMP VIEW y AS SELECT 1",
        &[],
    ),
    ("ALTER TABLE x ADD z int; DROP TABLE x", &[]),
    ("CREATE TABLE IF NOT EXISTS a (id int)", &[]),
    ("DROP TABLE IF EXISTS missing", &[]),
    ("DROP VIEW w", &["DROP VIEW by app"]),
    (
        "ALTER TABLE a DROP v",
        &["ALTER TABLE by app", "ALTER TABLE by app"],
    ),
    ("GRANT SELECT ON a TO public", &["GRANT by app"]),
    ("COMMENT ON TABLE a IS 'x'", &["COMMENT by app"]),
    (
        "CREATE TABLE d AS SELECT 1 AS one",
        &["CREATE TABLE AS by app"],
    ),
    ("SELECT 1 AS one INTO e", &["SELECT INTO by app"]),
    (
        "TRUNCATE a; VACUUM a; ANALYZE a; INSERT INTO a DEFAULT VALUES",
        &[],
    ),
    (
        "CREATE MATERIALIZED VIEW m AS SELECT 1 AS one; REFRESH MATERIALIZED VIEW m",
        &["CREATE MATERIALIZED VIEW by app"],
    ),
    (
        "CREATE SCHEMA s CREATE TABLE t (id int) CREATE VIEW v AS SELECT 1",
        &["CREATE SCHEMA by app"],
    ),
    ("DROP SCHEMA s CASCADE", &["DROP SCHEMA by app"]),
    (
        "DROP OWNED BY app",
        &["DROP OWNED by app", "DROP OWNED by app"],
    ),
];

/// By a role that may do nothing with what tells of it, not even see it.
#[tokio::test(flavor = "multi_thread")]
async fn ddl_is_told_of_and_never_fails() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    for major in [14, 15, 16, 17, 18] {
        if lastgood_integration::tools::bin_dir(major).is_err() {
            continue;
        }
        let database = TestDatabase::new(major).await?;
        let app = format!("app{}", database.name);
        let name = format!("told{major}");
        let admin = database.connect().await?;
        admin.batch_execute("CREATE PUBLICATION none").await?;
        admin
            .batch_execute("SELECT pg_create_logical_replication_slot('told', 'pgoutput')")
            .await?;
        service
            .add_source(&name, &database.url(), history::settings())
            .await?;
        service.wait_protected(&name).await?;
        admin
            .batch_execute(&format!("CREATE ROLE {app} LOGIN; GRANT CREATE ON DATABASE {0} TO {app}; GRANT ALL ON SCHEMA public TO {app}", database.name))
            .await?;
        told(&admin).await?;
        let url = database.server.url_as(&app, "", &database.name);
        let client = lastgood_integration::postgres::connect(&url).await?;
        for (command, expected) in COMMANDS {
            let command = command.replace("BY app", &format!("BY {app}"));
            // One after the other: VACUUM takes no company.
            for one in split(&command) {
                client
                    .batch_execute(&one)
                    .await
                    .with_context(|| format!("{major}: {one}"))?;
            }
            let mut told = told(&admin).await?;
            // Bases that follow put new tables into the publication.
            let is_ours = |one: &Value| {
                one["names"]
                    .as_str()
                    .is_some_and(|it| it.contains("in publication lastgood_"))
            };
            told.retain(|one| !is_ours(one));
            let texts = told.iter().map(|told| {
                let role = told["role"]
                    .as_str()
                    .unwrap_or_default()
                    .replace(&app, "app");
                format!("{} by {role}", told["tag"].as_str().unwrap_or_default())
            });
            let texts: Vec<String> = texts.collect();
            ensure!(texts == *expected, "{major}: {command}: {told:?}");
        }
        drop(client);
        admin
            .batch_execute(&format!("DROP OWNED BY {app}; DROP ROLE {app}"))
            .await?;

        // Without a trace.
        let answer = service
            .request(
                reqwest::Method::DELETE,
                &format!("/api/v1/sources/{name}"),
                None,
            )
            .await?;
        ensure!(answer.status < 300, "{:#}", answer.body);
        let left = wait::until("nothing of ours", || async {
            let left = "SELECT count(*) FROM (SELECT FROM pg_event_trigger UNION ALL SELECT FROM pg_namespace WHERE nspname ~ '^lastgood'
                        UNION ALL SELECT FROM pg_publication WHERE pubname <> 'none') ours";
            let count: i64 = admin.query_one(left, &[]).await?.get(0);
            Ok((count == 0).then_some(()))
        });
        left.await?;
        admin
            .batch_execute("SELECT pg_drop_replication_slot('told')")
            .await?;
    }
    ensure!(service.terminate().await?.success());
    Ok(())
}

/// A command that is a transaction or a block stays whole.
fn split(command: &str) -> Vec<String> {
    match command.starts_with("BEGIN") || command.starts_with("DO") {
        true => vec![command.to_owned()],
        false => command.split("; ").map(ToOwned::to_owned).collect(),
    }
}

/// A migration that leaves the rows as they are costs no moment but its own: the base after it has definitions only, and
/// serves from the last statement on, also where it was taken later.
#[tokio::test(flavor = "multi_thread")]
async fn what_follows_a_migration_at_once_can_be_restored() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let others: &[u32] = match seed::all_majors() {
        true => &[15, 16, 17],
        false => &[],
    };
    let runs = [14, 18].iter().chain(others).map(|major| {
        let run = after_a_migration(&service, *major);
        async move { run.await.with_context(|| format!("PostgreSQL {major}")) }
    });
    futures::future::try_join_all(runs).await?;
    ensure!(service.terminate().await?.success());
    Ok(())
}

const MIGRATION: &[&str] = &[
    "ALTER TABLE t ADD c timestamptz DEFAULT now()",
    "CREATE INDEX ON t (c)",
    "CREATE VIEW v AS SELECT id, c FROM t",
    "ALTER TABLE other ADD n int; UPDATE t SET c = NULL WHERE id = 7",
];

async fn after_a_migration(service: &Service, major: u32) -> Result<()> {
    let name = format!("after{major}");
    // More than what is captured of what follows.
    let more =
        "INSERT INTO t SELECT i, i, repeat(md5(i::text), 4) FROM generate_series(1001, 21000) i";
    let (database, mut client) = protected(service, &name, major, more).await?;
    let path = format!("/api/v1/sources/{name}/window");
    // A base is there once there is another window and nothing between.
    let based = |window: &Value, count: usize| {
        let windows = window["windows"].as_array();
        windows.is_some_and(|windows| windows.len() >= count) && window["latest_refused"].is_null()
    };

    // One transaction leaves no gap.
    let before = digest::of(&mut client, None).await?;
    let time_before = truth::clock(&client).await?;
    client
        .batch_execute(
            "BEGIN; ALTER TABLE t ADD d int DEFAULT 4; UPDATE t SET d = 5 WHERE id = 3; \
             CREATE VIEW w AS SELECT d FROM t; DELETE FROM t WHERE id = 4; COMMIT",
        )
        .await?;
    let time_after = truth::clock(&client).await?;
    let after = digest::of(&mut client, None).await?;
    let xid = "SELECT xmin::text FROM t WHERE id = 3";
    let xid: String = client.query_one(xid, &[]).await?.get(0);
    let xid: u64 = xid.parse()?;
    let reached = truth::wal_position(&client).await?;
    let window = wait::until_value("a base", || service.get(&path), |it| based(it, 2)).await?;
    ensure!(window["gaps"] == json!([]), "{window:#}");
    // It is told all the same, for who wants to be back before it.
    let reason = window["windows"][0]["reason"].as_str();
    ensure!(
        reason.is_some_and(|reason| reason.contains("ALTER TABLE public.t")),
        "{window:#}"
    );
    let shown = service.cli(&["window", &name]).await?;
    let shown = String::from_utf8(shown.stdout)?;
    ensure!(shown.contains("then table public.t changed"), "{shown}");
    wait_beyond(service, &name, &reached).await?;
    for (what, target, truth) in [
        ("time before", json!({"time": time_before}), &before),
        (
            "before it",
            json!({"xid": xid, "inclusive": false}),
            &before,
        ),
        ("with it", json!({"xid": xid}), &after),
        ("time after", json!({"time": time_after}), &after),
    ] {
        let copy = restored(service, &database, &name, &target, truth, what).await?;
        if truth == &after {
            history::compare_schemas(&database.server, &database.name, &copy)?;
        }
        history::drop_database(&database.server, &copy).await?;
    }

    for statement in MIGRATION {
        client.batch_execute(statement).await?;
        client
            .batch_execute("UPDATE t SET a = a + 1 WHERE id < 10")
            .await?;
    }
    // From the last statement on.
    let mut moments = Vec::new();
    for round in 0..3 {
        let content = digest::of(&mut client, None).await?;
        moments.push((truth::wal_position(&client).await?, content));
        let write = format!(
            "INSERT INTO t VALUES ({0}, 1, 'after'); DELETE FROM t WHERE id = {0} - 25000; UPDATE t SET b = 'x' WHERE id = {round} + 20",
            30000 + round
        );
        client.batch_execute(&write).await?;
    }
    // All of it was looked at first: a base from between two of its statements may be there as well.
    let (last, _) = moments.last().context("a moment")?;
    service.wait_durable(&name, last).await?;
    let based = |window: &Value| based(window, 3);
    let window =
        wait::until_value("a base after the migration", || service.get(&path), based).await?;
    let last = window["windows"]
        .as_array()
        .and_then(|windows| windows.last());
    let from = last
        .and_then(|last| last["from"]["lsn"].as_str())
        .context("an LSN")?;
    for (at, (lsn, content)) in moments.iter().enumerate() {
        let target = json!({"lsn": lsn, "inclusive": false});
        let plan = service
            .post(
                &format!("/api/v1/sources/{name}/plan"),
                json!({"target": target}),
            )
            .await
            .with_context(|| format!("moment {at}"))?;
        // Its id has the position at which it was taken.
        let base = plan["base"]["id"].as_str().context("an id")?;
        let taken = base.split('-').next().context("a position")?;
        ensure!(
            u64::from_str_radix(taken, 16)? > parse_lsn(from)?,
            "{plan:#}"
        );
        ensure!(plan["not_covered"] == json!([]), "{plan:#}");
        let what = format!("moment {at}");
        let copy = restored(service, &database, &name, &target, content, &what).await?;
        history::compare_schemas(&database.server, &database.name, &copy)?;
        history::drop_database(&database.server, &copy).await?;
    }
    Ok(())
}

/// A commit that waits for a standby is in the WAL and in the stream, and shows to nobody, also to no look.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_does_not_show_yet_is_waited_for() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let server = Postgres::start(18, &[]).await?;
    server.execute("postgres", TABLES).await?;
    let url = server.url("postgres");
    service
        .add_source("stalled", &url, history::settings())
        .await?;
    service.wait_protected("stalled").await?;
    let mut client = server.connect("postgres").await?;
    trusted(&service, "stalled", &client).await?;
    let before = digest::of(&mut client, None).await?;

    let set = "ALTER SYSTEM SET synchronous_standby_names = 'nobody'";
    client.batch_execute(set).await?;
    client.batch_execute("SELECT pg_reload_conf()").await?;
    let other = server.connect("postgres").await?;
    let hanging = tokio::spawn(async move {
        let migration =
            "BEGIN; ALTER TABLE t ADD q int DEFAULT 5; CREATE TABLE fresh (id int PRIMARY KEY);
            INSERT INTO fresh VALUES (1); UPDATE t SET q = 6 WHERE id = 1; COMMIT";
        other.batch_execute(migration).await.map(|()| other)
    });
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
    let is_waiting = || async {
        let count: i64 = client.query_one(waits, &[]).await?.get(0);
        Ok((count > 0).then_some(()))
    };
    wait::until("the commit to wait", is_waiting).await?;
    let hidden = truth::wal_position(&client).await?;
    // What does not wait for anybody goes on being written, and is sent.
    client
        .batch_execute(
            "SET synchronous_commit = off; UPDATE other SET v = 'more'; SELECT pg_switch_wal()",
        )
        .await?;
    let hidden = parse_lsn(&hidden)?;
    let received = || async {
        let sent = "SELECT (sent_lsn - '0/0')::text FROM pg_stat_replication";
        let sent: String = client.query_one(sent, &[]).await?.get(0);
        Ok((sent.parse::<u64>()? > hidden).then_some(()))
    };
    wait::until("it to be sent", received).await?;
    // It is told once a cut has waited for a while.
    let told = |source: &Value| {
        let reason = source["reason"].as_str().unwrap_or_default();
        reason.contains("shows to nobody yet")
    };
    wait::until_value("a cut that waits", || service.source("stalled"), told).await?;
    let window = service.get("/api/v1/sources/stalled/window").await?;
    let windows = window["windows"].as_array().context("windows")?;
    let to = windows.last().context("a window")?["to"]["lsn"].as_str();
    ensure!(parse_lsn(to.context("an LSN")?)? < hidden, "{window:#}");
    client
        .batch_execute("ALTER SYSTEM RESET synchronous_standby_names")
        .await?;
    client.batch_execute("SELECT pg_reload_conf()").await?;
    hanging.await??;
    let after = digest::of(&mut client, None).await?;
    let changed = truth::wal_position(&client).await?;
    wait_beyond(&service, "stalled", &changed).await?;
    let window = service.get("/api/v1/sources/stalled/window").await?;
    let end = window["windows"][0]["to"]["lsn"].clone();
    for (target, truth) in [
        (json!({"lsn": end, "inclusive": false}), &before),
        (json!("latest"), &after),
    ] {
        let copy = format!("copy_{}", truth.tables.len());
        let into = json!({"connection": url, "create_database": copy});
        service.restore("stalled", &target, into).await?;
        let restored = digest::of(&mut server.connect(&copy).await?, None).await?;
        truth.assert_restored(&restored, &copy);
    }
    ensure!(service.terminate().await?.success());
    Ok(())
}

/// What sends no message may have come before what does: then nobody knows where the change lies.
#[tokio::test(flavor = "multi_thread")]
async fn ddl_that_nobody_told_of_is_not_placed_at_another() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = TestDatabase::new(18).await?;
    database.execute(TABLES).await?;
    database
        .execute("CREATE TABLE u (id int PRIMARY KEY)")
        .await?;
    let mut settings = history::settings();
    settings["ddl_trigger"] = json!(false);
    service
        .add_source("silent", &database.url(), settings)
        .await?;
    service.wait_protected("silent").await?;
    let client = database.connect().await?;
    let early = database.connect().await?;
    // Begun before there is a trigger, and so silent.
    early
        .batch_execute("BEGIN; CREATE TABLE fresh (id int PRIMARY KEY)")
        .await?;
    let changed = service
        .request(
            reqwest::Method::PATCH,
            "/api/v1/sources/silent",
            Some(&json!({"ddl_trigger": true})),
        )
        .await?;
    ensure!(changed.status == 200, "{:#}", changed.body);
    let is_there = || async {
        let count = "SELECT count(*) FROM pg_event_trigger";
        let count: i64 = client.query_one(count, &[]).await?.get(0);
        Ok((count == 2).then_some(()))
    };
    wait::until("the event triggers", is_there).await?;
    trusted(&service, "silent", &client).await?;
    early.batch_execute("COMMIT").await?;
    ensure!(!is_placed(&service, "silent", &client, "ALTER TABLE u ADD v int").await?);
    trusted(&service, "silent", &client).await?;
    // A command within another fires none.
    client
        .batch_execute("EXPLAIN (ANALYZE) CREATE TABLE made AS SELECT 1 AS id")
        .await?;
    ensure!(!is_placed(&service, "silent", &client, "ALTER TABLE u ADD w int").await?);
    ensure!(service.terminate().await?.success());
    Ok(())
}

/// Whether the window reaches up to that DDL.
async fn is_placed(service: &Service, name: &str, client: &Client, ddl: &str) -> Result<bool> {
    client
        .batch_execute("INSERT INTO other (v) VALUES (clock_timestamp()::text)")
        .await?;
    let between = truth::wal_position(client).await?;
    client.batch_execute(ddl).await?;
    let changed = truth::wal_position(client).await?;
    wait_beyond(service, name, &changed).await?;
    let plan = json!({"target": {"lsn": between, "inclusive": false}});
    let path = format!("/api/v1/sources/{name}/plan");
    let answer = service
        .request(reqwest::Method::POST, &path, Some(&plan))
        .await?;
    ensure!(
        [200, 422].contains(&answer.status),
        "{ddl}: {:#}",
        answer.body
    );
    Ok(answer.status == 200)
}

/// Objects that look otherwise because of what was done to another one.
#[tokio::test(flavor = "multi_thread")]
async fn what_alters_a_table_is_placed_whatever_it_names() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let runs = [14, 18].map(|major| {
        let service = &service;
        async move {
            let name = format!("names{major}");
            let more = "CREATE UNIQUE INDEX once ON other (id, v); CREATE TYPE mood AS ENUM ('ok');
                CREATE TABLE feels (id int PRIMARY KEY, m mood);
                CREATE TABLE root (id int PRIMARY KEY) PARTITION BY RANGE (id);
                CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (9);";
            let (_database, client) = protected(service, &name, major, more).await?;
            for ddl in [
                "DROP INDEX once",
                "ALTER TABLE root DETACH PARTITION leaf",
                "ALTER TABLE root ATTACH PARTITION leaf FOR VALUES FROM (0) TO (20)",
                "ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'",
                "DROP TYPE mood CASCADE",
                "ALTER TABLE root ADD v int",
            ] {
                let placed = is_placed(service, &name, &client, ddl).await?;
                ensure!(placed, "{major}: {ddl}");
            }
            Ok(())
        }
    });
    futures::future::try_join_all(runs).await?;
    ensure!(service.terminate().await?.success());
    Ok(())
}

/// How far it was right before it was dropped nobody knows.
#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_that_is_dropped_is_named_where_it_may_be_behind() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let (database, client) = protected(&service, "numbers", 18, "CREATE SEQUENCE numbers").await?;
    client
        .batch_execute("SELECT count(nextval('numbers')) FROM generate_series(1, 500); INSERT INTO other (v) VALUES ('x')")
        .await?;
    let lsn = truth::wal_position(&client).await?;
    client.batch_execute("DROP SEQUENCE numbers").await?;
    let changed = truth::wal_position(&client).await?;
    wait_beyond(&service, "numbers", &changed).await?;
    let copy = format!("{}_copy", database.name);
    let into = json!({"connection": database.server.url("postgres"), "create_database": copy});
    let target = json!({"lsn": lsn, "inclusive": false});
    let restored = service.restore("numbers", &target, into).await?;
    let notes = restored["report"]["notes"].to_string();
    ensure!(
        notes.contains("numbers") && !notes.contains("EVENT TRIGGER"),
        "{restored:#}"
    );
    history::drop_database(&database.server, &copy).await?;
    ensure!(service.terminate().await?.success());
    Ok(())
}
