//! Requests that are wrong get a clear problem with a stable code, and change nothing.

use anyhow::{Context, Result, ensure};
use lastgood_integration::history::{self, drop_database};
use lastgood_integration::service::{Answer, send};
use lastgood_integration::{Service, Storage, TestDatabase, truth};
use reqwest::Method;
use serde_json::{Value, json};

/// A problem as RFC 9457 has it.
fn check_problem(answer: &Answer, status: u16, code: &str) -> Result<()> {
    ensure!(
        answer.status == status && answer.code() == code,
        "expected {status} {code}: {answer:?}"
    );
    ensure!(
        answer.content_type == "application/problem+json",
        "{answer:?}"
    );
    ensure!(
        answer.body["title"].is_string() && answer.body["status"] == status,
        "{answer:?}"
    );
    Ok(())
}

async fn post(service: &Service, path: &str, body: Value) -> Result<Answer> {
    service.request(Method::POST, path, Some(&body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_tokens_and_names() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = TestDatabase::new(18).await?;
    let sources = "/api/v1/sources";
    let good = json!({"name": "shop", "connection": database.url()});

    for request in [
        service.raw(Method::GET, sources),
        service.raw(Method::GET, sources).bearer_auth("guess"),
        service
            .raw(Method::GET, sources)
            .header("authorization", "Basic x"),
    ] {
        check_problem(&send(request).await?, 401, "unauthorized")?;
    }
    let with_token =
        |method| Ok::<_, anyhow::Error>(service.raw(method, sources).bearer_auth(service.token()?));
    let json_body = |body: String| {
        Ok::<_, anyhow::Error>(
            with_token(Method::POST)?
                .header("content-type", "application/json")
                .body(body),
        )
    };
    check_problem(
        &send(json_body("{\"name\":".to_owned())?).await?,
        400,
        "invalid_json",
    )?;
    check_problem(
        &send(json_body(format!(
            "{{\"name\":\"{}\"}}",
            "x".repeat(1 << 20)
        ))?)
        .await?,
        413,
        "body_too_large",
    )?;
    check_problem(
        &send(with_token(Method::POST)?.body("name=shop")).await?,
        415,
        "unsupported_media_type",
    )?;
    check_problem(
        &send(with_token(Method::DELETE)?).await?,
        405,
        "method_not_allowed",
    )?;
    check_problem(
        &service
            .request(Method::GET, "/api/v1/nothing", None)
            .await?,
        404,
        "not_found",
    )?;

    let changed = |field: &str, value: Value| {
        let mut body = good.clone();
        body[field] = value;
        body
    };
    for (body, code, field) in [
        (changed("colour", json!("red")), "unknown_field", "colour"),
        (changed("name", json!(7)), "invalid_value", "name"),
        (
            changed("segment_seconds", json!("soon")),
            "invalid_value",
            "segment_seconds",
        ),
        (
            changed("segment_seconds", json!(0)),
            "invalid_settings",
            "segment_seconds",
        ),
        (changed("name", json!("a/b")), "invalid_name", "name"),
        (changed("name", json!("")), "invalid_name", "name"),
        (json!({"name": "shop"}), "missing_field", "connection"),
        (
            changed("connection", json!("postgres://h/db?nonsense=1")),
            "invalid_connection",
            "connection",
        ),
        (
            changed("connection", json!("http://example.org")),
            "invalid_connection",
            "connection",
        ),
        (
            changed("schedule", json!("0 4 * *")),
            "invalid_settings",
            "schedule",
        ),
        (
            changed("schedule", json!("61 4 * * *")),
            "invalid_settings",
            "schedule",
        ),
        (
            changed("schedule", json!("0 4 * * 8")),
            "invalid_settings",
            "schedule",
        ),
        (
            changed("timezone", json!("Mars/Olympus")),
            "invalid_settings",
            "timezone",
        ),
    ] {
        let answer = post(&service, sources, body).await?;
        check_problem(&answer, 422, code)?;
        ensure!(
            answer.body["field"] == field,
            "the field {field}: {answer:?}"
        );
    }
    let listed = service.get(sources).await?;
    ensure!(
        listed["items"] == json!([]),
        "nothing was registered: {listed}"
    );

    check_problem(
        &service
            .request(Method::GET, "/api/v1/sources/nobody", None)
            .await?,
        404,
        "unknown_source",
    )?;
    for path in ["bases", "segments", "window"] {
        let path = format!("/api/v1/sources/nobody/{path}");
        check_problem(
            &service.request(Method::GET, &path, None).await?,
            404,
            "unknown_source",
        )?;
    }
    check_problem(
        &service
            .request(Method::GET, "/api/v1/restores/nobody", None)
            .await?,
        404,
        "unknown_restore",
    )?;
    service.post(sources, good.clone()).await?;
    check_problem(&post(&service, sources, good).await?, 409, "duplicate_name")?;
    service
        .request(Method::DELETE, "/api/v1/sources/shop", None)
        .await?
        .ok()?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_and_places_of_a_restore() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = TestDatabase::new(18).await?;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await?;
    let early = truth::clock(&database.connect().await?).await?;
    service
        .add_source("shop", &database.url(), history::settings())
        .await?;
    service.wait_protected("shop").await?;
    let client = database.connect().await?;
    client.batch_execute("INSERT INTO t VALUES (1)").await?;
    service
        .wait_durable("shop", &truth::wal_position(&client).await?)
        .await?;

    let plan = "/api/v1/sources/shop/plan";
    let wall = chrono::DateTime::parse_from_rfc3339(&early)?;
    let future = (wall + std::time::Duration::from_secs(86_400)).to_rfc3339();
    for (target, code) in [
        (json!({"time": "yesterday"}), "invalid_target"),
        (json!({"time": "2026-02-30T00:00:00Z"}), "invalid_target"),
        (json!({"lsn": "0/XYZ"}), "invalid_target"),
        (json!({"lsn": "123"}), "invalid_target"),
        (json!({"xid": "abc"}), "invalid_target"),
        (json!({"xid": -1}), "invalid_target"),
        (json!({"name": ""}), "invalid_target"),
        (json!("newest"), "invalid_target"),
        (json!({}), "invalid_target"),
        (json!({"time": early, "lsn": "0/1"}), "invalid_target"),
        (json!({"name": "never-made"}), "unknown_point"),
        (json!({"xid": 4_000_000_000_u32}), "unknown_transaction"),
        (json!({"lsn": "0/1"}), "target_outside_windows"),
        (json!({"lsn": "FFFFFF/0"}), "target_outside_windows"),
        (json!({"time": early}), "target_outside_windows"),
        (
            json!({"time": "2001-01-01T00:00:00Z"}),
            "target_outside_windows",
        ),
        (json!({"time": future}), "target_outside_windows"),
    ] {
        let answer = post(&service, plan, json!({"target": target})).await?;
        check_problem(&answer, 422, code).with_context(|| format!("{target}"))?;
        if code == "target_outside_windows" {
            let nearest = &answer.body["nearest"];
            ensure!(
                nearest.is_object() || nearest.as_array().is_some_and(|it| !it.is_empty()),
                "the nearest: {answer:?}"
            );
        }
    }

    let restores = "/api/v1/sources/shop/restores";
    let server = &database.server;
    let filled = database.sibling().await?;
    filled.execute("CREATE TABLE mine (id int)").await?;
    let existing = database.sibling().await?;
    let places = [
        // Not empty.
        json!({"connection": filled.url()}),
        // Does not exist.
        json!({"connection": server.url("no_such_database")}),
        // Exists already.
        json!({"connection": server.url("postgres"), "create_database": existing.name}),
        // The source itself, by its name and by another name of the same machine.
        json!({"connection": database.url()}),
        json!({"connection": database.url().replace("127.0.0.1", "localhost")}),
    ];
    let source_itself =
        json!({"connection": server.url("postgres"), "create_database": database.name});
    let nowhere = json!({"connection": "postgres://postgres@127.0.0.1:1/postgres"});
    let refused = places.into_iter().chain([source_itself]);
    let refused = refused.map(|into| (into, 422, "restore_refused"));
    for (into, status, code) in refused.chain([(nowhere, 503, "target_unavailable")]) {
        let body = json!({"target": "latest", "into": into});
        let answer = post(&service, restores, body).await?;
        check_problem(&answer, status, code).with_context(|| format!("{into}"))?;
        let reason = answer.body["detail"].as_str().unwrap_or_default();
        ensure!(reason.len() > 10, "{into}: no reason: {reason}");
    }
    let jobs = service.get("/api/v1/restores").await?;
    ensure!(jobs["items"] == json!([]), "refused before a job: {jobs:#}");
    let rows: i64 = client
        .query_one("SELECT count(*) FROM t", &[])
        .await?
        .get(0);
    ensure!(rows == 1, "the source is untouched");
    let tables: i64 = filled.connect().await?.query_one("SELECT count(*) FROM pg_tables WHERE schemaname NOT IN ('pg_catalog', 'information_schema')", &[]).await?.get(0);
    ensure!(tables == 1, "the other database is untouched");
    drop_database(server, &filled.name).await?;
    Ok(())
}
