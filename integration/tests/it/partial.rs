//! The afternoon on which somebody dropped a table: it comes back alone, by the service and with
//! nothing but repository and key.

use anyhow::{Context, Result, ensure};
use lastgood_integration::{Service, Storage, TestDatabase, digest, history, service, truth};
use serde_json::{Value, json};

const SCHEMA: &str = "
    CREATE SCHEMA app; CREATE TYPE app.mood AS ENUM ('sad', 'happy');
    CREATE TABLE users (id bigserial PRIMARY KEY, mood app.mood, name text UNIQUE);
    CREATE TABLE app.\"Order, old\" (id bigserial PRIMARY KEY, who bigint REFERENCES users, n int);
    CREATE TABLE other (id bigserial PRIMARY KEY, who bigint REFERENCES users);
    INSERT INTO users (mood, name) SELECT 'sad', 'u' || g FROM generate_series(1, 100) g;
    INSERT INTO app.\"Order, old\" (who, n) SELECT g, g FROM generate_series(1, 100) g;
    INSERT INTO other (who) SELECT g FROM generate_series(1, 100) g;";

/// It is protected.
async fn shop(storage: &Storage) -> Result<(Service, TestDatabase)> {
    let service = Service::start(storage).await?;
    let database = TestDatabase::new(18).await?;
    database.execute(SCHEMA).await?;
    service
        .add_source("shop", &database.url(), history::settings())
        .await?;
    service.wait_protected("shop").await?;
    Ok((service, database))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_table_comes_back_alone() -> Result<()> {
    let storage = Storage::local()?;
    let (service, database) = shop(&storage).await?;
    let mut client = database.connect().await?;
    client
        .batch_execute(
            "UPDATE users SET mood = 'happy' WHERE id % 2 = 0; UPDATE other SET who = 1;
             INSERT INTO app.\"Order, old\" (who, n) VALUES (1, 0); DELETE FROM app.\"Order, old\" WHERE n = 7",
        )
        .await?;
    let truth = digest::of(&mut client, None).await?;
    let lsn = truth::wal_position(&client).await?;
    // Somebody looked at the tables since; what came after the last look goes with the change.
    service.wait_durable("shop", &lsn).await?;
    client.batch_execute("DROP TABLE users CASCADE").await?;
    service
        .wait_durable("shop", &truth::wal_position(&client).await?)
        .await?;
    let target = json!({"lsn": lsn, "inclusive": false});

    // By the service: the table, and nothing that refers to it or that it refers to.
    let plan = service
        .post(
            "/api/v1/sources/shop/plan",
            json!({"target": target, "tables": ["app.\"Order, old\""]}),
        )
        .await?;
    let left_out = &plan["partial"]["left_out"][0];
    ensure!(
        left_out["object"] == "constraint \"Order, old_who_fkey\" of app.\"Order, old\"",
        "{plan:#}"
    );
    let server = &database.server;
    let name = format!("{}_users", database.name);
    let body = json!({
        "target": target,
        "tables": ["public.users"],
        "into": {"connection": server.url("postgres"), "create_database": name},
    });
    let begun = service.post("/api/v1/sources/shop/restores", body).await?;
    let id = begun["id"].as_str().context("an id")?;
    let ended = service.wait_restore(id).await?;
    ensure!(ended["status"] == "succeeded", "{ended:#}");
    ensure!(
        ended["report"]["partial"]["tables"]
            .as_array()
            .map(Vec::len)
            == Some(1),
        "{ended:#}"
    );
    let restored = digest::of(&mut server.connect(&name).await?, None).await?;
    truth
        .part(&["public.users"], &["public.users_id_seq"])
        .assert_restored(&restored, "users by the service");

    let unknown = json!({"target": target, "tables": ["public.user"]});
    let path = "/api/v1/sources/shop/plan";
    let answer = service
        .request(reqwest::Method::POST, path, Some(&unknown))
        .await?;
    ensure!(
        answer.status == 422 && answer.code() == "unknown_table",
        "{answer:?}"
    );

    // With the service gone, two of them, named as a list.
    service.kill()?;
    let tables = "users,app.\"Order, old\"";
    let name = format!("{}_two", database.name);
    let output = by_itself(
        &service,
        &storage,
        &lsn,
        tables,
        &server.url("postgres"),
        &name,
    )
    .await?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        report["partial"]["left_out"] == json!([]),
        "the key between them comes: {report:#}"
    );
    let mut copy = server.connect(&name).await?;
    let restored = digest::of(&mut copy, None).await?;
    let expected = truth.part(
        &["public.users", "app.\"Order, old\""],
        &["public.users_id_seq", "app.\"Order, old_id_seq\""],
    );
    expected.assert_restored(&restored, "two tables by repository and key");
    let keys = "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND convalidated";
    assert_eq!(copy.query_one(keys, &[]).await?.get::<_, i64>(0), 1);

    let output = by_itself(
        &service,
        &storage,
        &lsn,
        "usres",
        &server.url("postgres"),
        "x",
    )
    .await?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(
        output.status.code() == Some(2) && said.contains("it has public.users"),
        "{:?} {said}",
        output.status
    );
    Ok(())
}

async fn by_itself(
    service: &Service,
    storage: &Storage,
    lsn: &str,
    tables: &str,
    into: &str,
    name: &str,
) -> Result<std::process::Output> {
    let mut restore = service::cli()?;
    let environment = storage.environment();
    restore.envs(environment.iter().map(|(name, value)| (name, value)));
    restore.args(["restore", "--json", "--repository", storage.url()]);
    restore.arg("--key-file").arg(service.key_file());
    restore.args(["--source", "shop", "--lsn", lsn, "--exclusive"]);
    restore.args(["--tables", tables, "--into", into]);
    restore.args(["--create-database", name]);
    Ok(tokio::task::spawn_blocking(move || restore.output()).await??)
}
