//! Sources that cannot be protected as they are: the probe and the registration say why, with what
//! mends it, and create nothing.

use anyhow::{Context, Result, ensure};
use lastgood_integration::{Postgres, Service, Storage, postgres};
use reqwest::Method;
use serde_json::{Value, json};

/// The probe has a blocker with one of the codes, and registration is refused with the same.
async fn check_blocked(service: &Service, connection: &str, codes: &[&str]) -> Result<Value> {
    let report = service
        .post("/api/v1/probe", json!({"connection": connection}))
        .await?;
    let findings = report["findings"].as_array().context("findings")?;
    let blocker = findings.iter().find(|finding| {
        finding["severity"] == "blocker" && codes.iter().any(|code| finding["code"] == *code)
    });
    let blocker = blocker
        .with_context(|| format!("{codes:?} in {report:#}"))?
        .clone();
    ensure!(report["blocked"] == true, "{report:#}");
    ensure!(
        blocker["message"].as_str().is_some_and(|it| it.len() > 10),
        "{blocker}"
    );
    let body = json!({"name": "bad", "connection": connection});
    let answer = service
        .request(Method::POST, "/api/v1/sources", Some(&body))
        .await?;
    ensure!(
        answer.status == 422 && answer.code() == "probe_blocked",
        "{answer:?}"
    );
    ensure!(answer.body["findings"].is_array(), "{answer:?}");
    ensure!(
        service.get("/api/v1/sources").await?["items"] == json!([]),
        "nothing is registered"
    );
    Ok(blocker)
}

#[tokio::test(flavor = "multi_thread")]
async fn cannot_connect() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let hba = "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n";
    let server = Postgres::builder(18).hba(hba).start().await?;
    let wrong = server.url_as("postgres", "wrong-password", "postgres");
    check_blocked(&service, &wrong, &["authentication", "cannot_connect"]).await?;
    let nobody = server.url_as("nobody_at_all", "x", "postgres");
    check_blocked(&service, &nobody, &["authentication", "cannot_connect"]).await?;
    for unreachable in [
        "postgres://u@127.0.0.1:1/db",
        "postgres://u@no-such-host.invalid/db",
    ] {
        check_blocked(&service, unreachable, &["cannot_connect"]).await?;
    }
    check_blocked(&service, &server.url("no_such_database"), &["no_database"]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn not_configured_for_it() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let server = Postgres::start(15, &["wal_level=replica"]).await?;
    let blocker = check_blocked(&service, &server.url("postgres"), &["wal_level"]).await?;
    ensure!(
        blocker["fix"]
            .as_str()
            .is_some_and(|fix| fix.contains("wal_level")),
        "{blocker}"
    );

    let server = Postgres::start(15, &["max_replication_slots=1"]).await?;
    server
        .execute(
            "postgres",
            "SELECT pg_create_logical_replication_slot('taken', 'pgoutput')",
        )
        .await?;
    let blocker = check_blocked(&service, &server.url("postgres"), &["no_free_slot"]).await?;
    ensure!(
        blocker["fix"]
            .as_str()
            .is_some_and(|fix| fix.contains("max_replication_slots")),
        "{blocker}"
    );

    let server = Postgres::start(18, &[]).await?;
    server
        .execute(
            "postgres",
            "CREATE ROLE poor LOGIN; CREATE TABLE t (id int PRIMARY KEY); GRANT ALL ON t TO poor",
        )
        .await?;
    let poor = server.url_as("poor", "x", "postgres");
    check_blocked(&service, &poor, &["no_replication_right"]).await?;
    let client = server.connect("postgres").await?;
    let made = "SELECT (SELECT count(*) FROM pg_replication_slots) + (SELECT count(*) FROM pg_publication)";
    ensure!(
        client.query_one(made, &[]).await?.get::<_, i64>(0) == 0,
        "a probe creates nothing"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pooler_in_between() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let server = Postgres::start(18, &[]).await?;
    let Some(pooler) = server.start_pooler().await? else {
        return Ok(());
    };
    let direct = format!(":{}/", server.port());
    let pooled = server
        .url("postgres")
        .replace(&direct, &format!(":{}/", pooler.port()));
    let blocker = check_blocked(&service, &pooled, &["pooler_endpoint"]).await?;
    let message = blocker["message"].as_str().unwrap_or_default();
    ensure!(message.contains("pooler"), "{blocker}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn pg_dump_is_too_old() -> Result<()> {
    let old = lastgood_integration::tools::bin_dir(13)?;
    let service = Service::builder()
        .storage(&Storage::local()?)
        .environment("LASTGOOD_PG_BIN_DIRS", old.to_string_lossy())
        .environment("PATH", "/bin")
        .start()
        .await?;
    let server = Postgres::start(18, &[]).await?;
    let blocker = check_blocked(
        &service,
        &server.url("postgres"),
        &["pg_dump_missing", "pg_dump_too_old"],
    )
    .await?;
    ensure!(blocker["fix"].is_string(), "{blocker}");
    Ok(())
}

/// The smallest role, by the SQL that the CLI prints: no superuser anywhere.
#[tokio::test(flavor = "multi_thread")]
async fn the_smallest_role_works_in_full() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    for major in [13, 15, 18] {
        let server = Postgres::start(major, &[]).await?;
        server.create_database("shop").await?;
        server
            .execute("shop", "CREATE ROLE app LOGIN; CREATE SCHEMA app AUTHORIZATION app; SET ROLE app; CREATE TABLE app.t (id serial PRIMARY KEY, a text); INSERT INTO app.t (a) VALUES ('x')")
            .await?;
        let output = service
            .cli(&["probe", &server.url("shop"), "--sql-role", "keeper"])
            .await?;
        let sql = String::from_utf8(output.stdout)?;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        server
            .execute("shop", &sql)
            .await
            .with_context(|| sql.clone())?;
        let name = format!("shop{major}");
        let keeper = server.url_as("keeper", "x", "shop");
        service
            .add_source(&name, &keeper, lastgood_integration::history::settings())
            .await?;
        service.wait_protected(&name).await?;
        let mut client = postgres::connect(&server.url_as("app", "x", "shop")).await?;
        client
            .batch_execute(
                "INSERT INTO app.t (a) VALUES ('y'); UPDATE app.t SET a = 'z' WHERE id = 1",
            )
            .await?;
        let lsn = lastgood_integration::truth::wal_position(&client).await?;
        let truth = lastgood_integration::digest::of(&mut client, None).await?;
        service.wait_durable(&name, &lsn).await?;
        let into = json!({"connection": server.url("postgres"), "create_database": "back"});
        service.restore(&name, &json!("latest"), into).await?;
        let restored =
            lastgood_integration::digest::of(&mut server.connect("back").await?, None).await?;
        truth.assert_restored(&restored, "by the smallest role");
        service
            .request(Method::DELETE, &format!("/api/v1/sources/{name}"), None)
            .await?
            .ok()?;
    }
    Ok(())
}
