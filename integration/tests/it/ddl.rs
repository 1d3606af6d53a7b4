//! DDL that the source itself tells of: a restore goes up to the very transaction, and nobody's DDL ever notices.

use anyhow::{Context, Result, ensure};
use lastgood_integration::service::parse_lsn;
use lastgood_integration::{Service, Storage, TestDatabase, digest, history, truth, wait};
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
    let database = TestDatabase::new(major).await?;
    database.execute(TABLES).await?;
    let name = format!("ddl{major}");
    service
        .add_source(&name, &database.url(), history::settings())
        .await?;
    service.wait_protected(&name).await?;
    let mut client = database.connect().await?;
    // Another look, so that the trigger is known to have been there from one to the next.
    client
        .batch_execute("INSERT INTO other (v) VALUES ('first')")
        .await?;
    service
        .wait_durable(&name, &truth::wal_position(&client).await?)
        .await?;

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

    // The window ends at the transaction, and says so.
    let window = service
        .get(&format!("/api/v1/sources/{name}/window"))
        .await?;
    let reason = &window["gaps"][0]["reason"];
    let told = ["ALTER TABLE public.t", "DROP TABLE public.other"];
    for told in told {
        ensure!(
            reason.as_str().is_some_and(|it| it.contains(told)),
            "{window:#}"
        );
    }
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

async fn restore(
    service: &Service,
    database: &TestDatabase,
    name: &str,
    target: Value,
    truth: digest::Content,
    what: String,
) -> Result<()> {
    let copy = format!("{}_{what}", database.name);
    let into = json!({"connection": database.server.url("postgres"), "create_database": copy});
    service
        .restore(name, &target, into)
        .await
        .context(what.clone())?;
    let restored = digest::of(&mut database.server.connect(&copy).await?, None).await?;
    truth.assert_restored(&restored, &what);
    history::drop_database(&database.server, &copy).await
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
    let named = plan["not_covered"].as_array().context("a list")?;
    ensure!(
        named.len() == 1 && named[0]["object"] == "definitions",
        "{plan:#}"
    );
    let why = named[0]["why"].as_str().context("a text")?;
    ensure!(why.contains("view"), "{why}");

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
    (
        "CREATE TABLE IF NOT EXISTS a (id int)",
        &["CREATE TABLE by app"],
    ),
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
    ("DROP OWNED BY app", &["DROP OWNED by app"]),
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
            let told = told(&admin).await?;
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
    let runs = [14, 15, 17, 18].map(|major| {
        let run = after_a_migration(&service, major);
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
    let database = TestDatabase::new(major).await?;
    database.execute(TABLES).await?;
    // More than the WAL of what follows.
    database
        .execute("INSERT INTO t SELECT i, i, repeat(md5(i::text), 4) FROM generate_series(1001, 21000) i")
        .await?;
    let name = format!("after{major}");
    service
        .add_source(&name, &database.url(), history::settings())
        .await?;
    service.wait_protected(&name).await?;
    let mut client = database.connect().await?;
    client
        .batch_execute("INSERT INTO other (v) VALUES ('first')")
        .await?;
    service
        .wait_durable(&name, &truth::wal_position(&client).await?)
        .await?;
    for statement in MIGRATION {
        client.batch_execute(statement).await?;
        client
            .batch_execute("UPDATE t SET a = a + 1 WHERE id < 10")
            .await?;
    }
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
    // A base of that moment on is there once there are two windows and nothing between.
    let path = format!("/api/v1/sources/{name}/window");
    let based = |window: &Value| {
        let windows = window["windows"].as_array();
        windows.is_some_and(|windows| windows.len() > 1) && window["latest_refused"].is_null()
    };
    wait::until_value("a base after the migration", || service.get(&path), based).await?;
    let (last, _) = moments.last().context("a moment")?;
    service.wait_durable(&name, last).await?;
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
            u64::from_str_radix(taken, 16)? > parse_lsn(lsn)?,
            "{plan:#}"
        );
        ensure!(plan["not_covered"] == json!([]), "{plan:#}");
        let copy = format!("{}_{at}", database.name);
        let into = json!({"connection": database.server.url("postgres"), "create_database": copy});
        service.restore(&name, &target, into).await?;
        let restored = digest::of(&mut database.server.connect(&copy).await?, None).await?;
        content.assert_restored(&restored, &format!("moment {at}"));
        history::compare_schemas(&database.server, &database.name, &copy)?;
        history::drop_database(&database.server, &copy).await?;
    }
    Ok(())
}
