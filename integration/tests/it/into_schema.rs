//! The afternoon on which somebody dropped a table, again: it comes back under a new schema of the
//! database it was dropped from, which goes on as if nothing had happened.

use anyhow::{Context, Result, ensure};
use lastgood_integration::{
    Postgres, Service, Storage, TestDatabase, digest, history, service, truth, wait,
};
use serde_json::{Value, json};

const SCHEMA: &str = "
    CREATE SCHEMA app; CREATE EXTENSION citext;
    CREATE TYPE app.mood AS ENUM ('sad', 'happy'); CREATE TYPE app.pair AS (n int, mood app.mood);
    CREATE DOMAIN public.email AS text CHECK (VALUE LIKE '%@%');
    CREATE TYPE app.span AS RANGE (subtype = float8);
    CREATE COLLATION app.plain FROM \"C\";
    CREATE FUNCTION app.twice(n int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT n * 2';
    CREATE SEQUENCE app.tickets;
    CREATE TABLE users (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, number serial UNIQUE,
        ticket bigint NOT NULL DEFAULT nextval('app.tickets'), mood app.mood DEFAULT 'sad', moods app.mood[],
        pair app.pair, span app.span DEFAULT app.span(1, 2), email public.email, name text COLLATE app.plain,
        twice int GENERATED ALWAYS AS (app.twice(number)) STORED, at timestamptz DEFAULT '2026-01-01', x float8 DEFAULT 0.1,
        CHECK (app.twice(number) > 0));
    CREATE INDEX users_by_email ON users (lower(email)); CREATE STATISTICS users_stat ON mood, number FROM users;
    COMMENT ON COLUMN users.pair IS 'it''s; a pair';
    CREATE TABLE app.orders (id bigserial PRIMARY KEY, who bigint REFERENCES users, n int, label citext);
    CREATE TABLE app.users (id int PRIMARY KEY);
    CREATE TABLE sale (id int, day date, who bigint REFERENCES users, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
    CREATE TABLE app.sale_1 PARTITION OF sale FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
    CREATE TABLE audit (id bigserial PRIMARY KEY, what text);
    CREATE FUNCTION app.audited() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO public.audit (what) VALUES (TG_TABLE_NAME); RETURN NEW; END $$;
    CREATE TRIGGER shout AFTER INSERT ON users FOR EACH ROW EXECUTE FUNCTION app.audited();
    ALTER TABLE users ENABLE ROW LEVEL SECURITY; CREATE POLICY own ON users USING (id > 0);
    INSERT INTO users (email, pair, moods, name) SELECT 'u' || g || '@x', row(g, 'sad'::app.mood)::app.pair, '{happy}', 'n' || g FROM generate_series(1, 100) g;
    INSERT INTO app.orders (who, n, label) SELECT g, g, 'L' || g FROM generate_series(1, 100) g;
    INSERT INTO sale SELECT g, '2026-02-01', g FROM generate_series(1, 50) g;";

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_comes_back_beside_the_others_13() -> Result<()> {
    beside_the_others(13).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_comes_back_beside_the_others_18() -> Result<()> {
    beside_the_others(18).await
}

async fn beside_the_others(major: u32) -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(major).await?;
    let server = &database.server;
    database.execute(SCHEMA).await?;
    service
        .add_source("shop", &database.url(), history::settings())
        .await?;
    service.wait_protected("shop").await?;
    let mut client = database.connect().await?;
    client
        .batch_execute(
            "UPDATE users SET mood = 'happy', x = x / 3 WHERE id % 2 = 0; DELETE FROM app.orders WHERE n = 7;
             INSERT INTO users (email) VALUES ('late@x'); INSERT INTO app.orders (who, n) VALUES (101, 0);
             INSERT INTO sale VALUES (51, '2026-03-01', 101)",
        )
        .await?;
    let truth = digest::of(&mut client, None).await?;
    let lsn = truth::wal_position(&client).await?;
    service.wait_durable("shop", &lsn).await?;
    client.batch_execute("DROP TABLE users CASCADE").await?;
    let after = truth::wal_position(&client).await?;
    service.wait_durable("shop", &after).await?;
    let target = json!({"lsn": lsn, "inclusive": false});
    let before = digest::of(&mut client, None).await?;
    let definitions = definitions(server, &database.name)?;

    // The plan says what will be made, and what not.
    let order = json!({"target": target, "tables": ["public.users"], "into_schema": "recovered"});
    let plan = service.post("/api/v1/sources/shop/plan", order.clone());
    let plan = plan.await?["partial"].clone();
    ensure!(plan["schema"] == "recovered", "{plan:#}");
    for object in [
        "trigger \"shout\" on public.users",
        "policy \"own\" on public.users",
        "owners and privileges",
    ] {
        let left_out = plan["left_out"].as_array().context("a list")?;
        let is_named = left_out.iter().any(|left| left["object"] == object);
        ensure!(is_named, "{object}: {plan:#}");
    }

    // What cannot be is refused at once.
    let restores = "/api/v1/sources/shop/restores";
    let post = async |changes: Value| {
        let mut order = order.clone();
        order["into"] = json!({"connection": database.url(), "allow_source": true});
        for (name, value) in changes.as_object().into_iter().flatten() {
            order[name] = value.clone();
        }
        service
            .request(reqwest::Method::POST, restores, Some(&order))
            .await
    };
    let unasked = json!({"into": {"connection": database.url()}});
    let both = json!({"into": {"connection": database.url(), "create_database": "x"}});
    for (changes, code, words) in [
        (unasked, "restore_refused", "is the source itself"),
        (both, "invalid_value", "for a database that exists"),
        (
            json!({"into_schema": "app"}),
            "restore_refused",
            "schema \"app\" exists already",
        ),
        (
            json!({"into_schema": "pg_x"}),
            "invalid_value",
            "PostgreSQL keeps",
        ),
        (
            json!({"tables": []}),
            "invalid_value",
            "only tables that are named",
        ),
        (
            json!({"tables": ["public.users", "app.users"]}),
            "invalid_value",
            "cannot both be in",
        ),
    ] {
        let answer = post(changes).await?;
        let is_refused =
            answer.code() == code && answer.body.to_string().replace('\\', "").contains(words);
        ensure!(is_refused, "{words}: {answer:?}");
    }

    let begun = post(json!({})).await?.ok()?;
    let ended = service
        .wait_restore(begun["id"].as_str().context("an id")?)
        .await?;
    ensure!(ended["status"] == "succeeded", "{ended:#}");
    ensure!(
        ended["report"]["database"] == database.name.as_str(),
        "{ended:#}"
    );
    ensure!(ended["report"]["notes"] == json!([]), "{ended:#}");
    let now = digest::of(&mut client, None).await?;
    let (tables, sequences) = (
        ["recovered.users"],
        [
            "recovered.users_id_seq",
            "recovered.users_number_seq",
            "recovered.tickets",
        ],
    );
    let expected = truth
        .renamed("public", "recovered")
        .renamed("app", "recovered");
    let expected = expected.part(&tables, &sequences);
    expected.assert_restored(&now.part(&tables, &sequences), "recovered");
    let mut rest = now.clone();
    rest.tables
        .retain(|name, _| !name.starts_with("recovered."));
    rest.sequences
        .retain(|name, _| !name.starts_with("recovered."));
    assert_eq!(rest, before, "all else is as it was");
    assert_eq!(self::definitions(server, &database.name)?, definitions);
    no_scratch(server, &database.name).await?;
    // It stands by itself, and is whole.
    client
        .batch_execute(
            "DROP TYPE app.pair, app.span; DROP DOMAIN public.email; DROP FUNCTION app.twice; DROP SEQUENCE app.tickets;
             DROP TYPE app.mood; DROP COLLATION app.plain; INSERT INTO recovered.users (email) VALUES ('new@x')",
        )
        .await?;
    let row = client
        .query_one("SELECT mood::text, twice = 2 * number, id = 102 FROM recovered.users WHERE email = 'new@x'", &[])
        .await?;
    assert_eq!((row.get(0), row.get(1), row.get(2)), ("sad", true, true));
    let indexes = "SELECT count(*), (SELECT count(*) FROM pg_statistic_ext WHERE stxrelid = 'recovered.users'::regclass),
         col_description('recovered.users'::regclass, (SELECT attnum FROM pg_attribute WHERE attrelid = 'recovered.users'::regclass AND attname = 'pair'))
         FROM pg_indexes WHERE schemaname = 'recovered'";
    let row = client.query_one(indexes, &[]).await?;
    assert_eq!(
        (row.get(0), row.get(1), row.get(2)),
        (3_i64, 1_i64, "it's; a pair")
    );

    // Capture goes on, with the new tables.
    client
        .batch_execute("INSERT INTO app.orders (n) VALUES (1000)")
        .await?;
    let latest = digest::of(&mut client, None).await?;
    let lsn = truth::wal_position(&client).await?;
    service.wait_durable("shop", &lsn).await?;
    let body = json!({"target": "latest"});
    let path = "/api/v1/sources/shop/plan";
    let planned = async || {
        let answer = service
            .request(reqwest::Method::POST, path, Some(&body))
            .await?;
        let is_whole = answer.status == 200 && answer.body["not_covered"] == json!([]);
        Ok(is_whole.then_some(()))
    };
    wait::until(
        "the latest state with the new table to be recoverable",
        planned,
    )
    .await?;
    let name = format!("{}_latest", database.name);
    let into = json!({"connection": server.url("postgres"), "create_database": name});
    service.restore("shop", &json!("latest"), into).await?;
    let restored = digest::of(&mut server.connect(&name).await?, None).await?;
    latest.assert_restored(&restored, "the latest state");

    // Without the service, several tables into another database: foreign keys between them come.
    service.kill()?;
    let name = format!("{}_other", database.name);
    server.create_database(&name).await?;
    server.execute(&name, "CREATE TABLE users (id int)").await?;
    let restore = async || {
        let mut restore = service::cli()?;
        let environment = storage.environment();
        restore.envs(environment.iter().map(|(name, value)| (name, value)));
        restore.args(["restore", "--repository", storage.url(), "--source", "shop"]);
        restore.arg("--key-file").arg(service.key_file());
        restore.args([
            "--lsn",
            target["lsn"].as_str().unwrap_or_default(),
            "--exclusive",
        ]);
        restore.args([
            "--tables",
            "public.users,app.orders,sale",
            "--into-schema",
            "Old, one",
        ]);
        restore.args(["--into", &server.url(&name)]);
        anyhow::Ok(tokio::task::spawn_blocking(move || restore.output()).await??)
    };
    let output = restore().await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(3)
            && said.contains("CREATE EXTENSION citext SCHEMA \"public\"")
            && said.contains("the scratch database was dropped"),
        "{:?} {said}",
        output.status
    );
    no_scratch(server, &name).await?;
    server.execute(&name, "CREATE EXTENSION citext").await?;
    let output = restore().await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}");
    let mut client = server.connect(&name).await?;
    let now = digest::of(&mut client, None).await?;
    let tables = [
        "\"Old, one\".users",
        "\"Old, one\".orders",
        "\"Old, one\".sale_1",
    ];
    let expected = truth.part(&["public.users", "app.orders", "app.sale_1"], &[]);
    let expected = expected
        .renamed("public", "\"Old, one\"")
        .renamed("app", "\"Old, one\"");
    expected.assert_restored(&now.part(&tables, &[]), "several tables");
    let keys = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND convalidated
         AND connamespace = '\"Old, one\"'::regnamespace";
    assert_eq!(client.query_one(keys, &[]).await?.get::<_, i64>(0), 2);
    no_scratch(server, &name).await
}

/// All but what was recovered.
fn definitions(server: &Postgres, database: &str) -> Result<Vec<String>> {
    let mut dump = server.program("pg_dump");
    dump.args(["--schema-only", "--exclude-schema=recovered", database]);
    let text = String::from_utf8(dump.output()?.stdout)?;
    // The publication takes in what is new.
    let ours = |line: &&str| !line.contains("restrict ") && !line.contains("recovered.");
    let lines: Vec<String> = text.lines().filter(ours).map(ToOwned::to_owned).collect();
    ensure!(lines.len() > 50, "{lines:?}");
    Ok(lines)
}

/// The server is shared; a scratch database says whose it is.
async fn no_scratch(server: &Postgres, database: &str) -> Result<()> {
    let client = server.connect("postgres").await?;
    let sql = "SELECT datname::text FROM pg_database WHERE datname LIKE 'lastgood_scratch%'
         AND strpos(shobj_description(oid, 'pg_database'), $1) > 0";
    let left = client.query(sql, &[&database]).await?;
    ensure!(left.is_empty(), "{:?}", left[0].get::<_, String>(0));
    Ok(())
}
