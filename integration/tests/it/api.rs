//! The HTTP API against its own OpenAPI document, and the shape of its lists, streams and answers.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use lastgood_integration::service::{Answer, send};
use lastgood_integration::{Service, Storage, TestDatabase, history, truth, wait};
use reqwest::Method;
use serde_json::{Value, json};

use crate::schema;

/// The document with a way to ask for operations by their id.
struct Api<'s> {
    service: &'s Service,
    document: Value,
    asked: BTreeSet<String>,
}

impl<'s> Api<'s> {
    async fn read(service: &'s Service) -> Result<Self> {
        Ok(Self {
            service,
            document: service.get("/api/v1/openapi.json").await?,
            asked: BTreeSet::new(),
        })
    }

    /// Method, path and description of every operation, by its id.
    fn operations(&self) -> Result<BTreeMap<String, (Method, String, Value)>> {
        let mut operations = BTreeMap::new();
        let paths = self.document["paths"].as_object().context("paths")?;
        for (path, methods) in paths {
            for (method, operation) in methods.as_object().context("methods")? {
                let id = operation["operationId"].as_str().context("an id")?;
                let method: Method = method.to_uppercase().parse()?;
                operations.insert(id.to_owned(), (method, path.clone(), operation.clone()));
            }
        }
        Ok(operations)
    }

    /// Asks; the answer has a status that is documented, and is what is documented for it.
    async fn ask(
        &mut self,
        id: &str,
        place: &[(&str, &str)],
        query: &str,
        body: Option<Value>,
    ) -> Result<Answer> {
        let operations = self.operations()?;
        let (method, path, operation) = operations.get(id).context(id.to_owned())?;
        let path = place.iter().fold(path.clone(), |path, (name, value)| {
            path.replace(&format!("{{{name}}}"), value)
        });
        let answer = self
            .service
            .request(method.clone(), &format!("{path}{query}"), body.as_ref())
            .await?;
        self.check(operation, &answer)
            .with_context(|| format!("{id}: {} {}", answer.status, answer.text))?;
        self.asked.insert(id.to_owned());
        Ok(answer)
    }

    fn check(&self, operation: &Value, answer: &Answer) -> Result<()> {
        let response = &operation["responses"][answer.status.to_string()];
        ensure!(response.is_object(), "the status is not documented");
        let content = response["content"].as_object().context("content")?;
        let essence = answer.content_type.split(';').next().unwrap_or_default();
        let media = content
            .get(essence)
            .with_context(|| format!("{essence} is not documented"))?;
        match essence {
            "application/json" | "application/problem+json" => {
                schema::check(&self.document, &media["schema"], &answer.body)
            }
            _ => Ok(()),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_answers_as_documented() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY, a text); CREATE TABLE loose (a int)")
        .await?;
    let mut api = Api::read(&service).await?;
    let shop = [("source", "shop")];
    let nobody = [("source", "nobody")];

    api.ask("health", &[], "", None).await?;
    api.ask("document", &[], "", None).await?;
    let connection = json!({"connection": database.url()});
    let report = api.ask("probe", &[], "", Some(connection)).await?.ok()?;
    ensure!(report["blocked"] == false, "{report:#}");
    api.ask("probe", &[], "", Some(json!({"connection": "://"})))
        .await?;
    let mut body = history::settings();
    body["name"] = json!("shop");
    body["connection"] = json!(database.url());
    let created = api
        .ask("source_create", &[], "", Some(body.clone()))
        .await?;
    ensure!(created.status == 201, "{created:?}");
    ensure!(api.ask("source_create", &[], "", Some(body)).await?.status == 409);
    service.wait_protected("shop").await?;

    api.ask("source_list", &[], "?limit=1", None).await?.ok()?;
    ensure!(api.ask("source_list", &[], "?limit=0", None).await?.status == 400);
    ensure!(api.ask("source_list", &[], "?page=2", None).await?.status == 400);
    api.ask("source_show", &shop, "", None).await?.ok()?;
    let change = json!({"schedule": "0 4 * * *", "timezone": "Europe/Berlin"});
    let changed = api.ask("source_update", &shop, "", Some(change)).await?;
    ensure!(changed.body["schedule"] == "0 4 * * *", "{changed:?}");
    let change = json!({"schedule": null, "retention": "30 days, 12 monthly"});
    let changed = api.ask("source_update", &shop, "", Some(change)).await?;
    ensure!(changed.ok()?["schedule"].is_null());
    service.wait_protected("shop").await?;

    let point = json!({"name": "here"});
    let point = api
        .ask("point_create", &shop, "", Some(point))
        .await?
        .ok()?;
    let bad = json!({"name": "a b"});
    ensure!(api.ask("point_create", &shop, "", Some(bad)).await?.status == 422);
    api.ask("point_list", &shop, "", None).await?.ok()?;
    let begun = api.ask("base_take", &shop, "", None).await?;
    ensure!(begun.status == 202, "{begun:?}");
    service.wait_bases("shop", 2).await?;
    api.ask("base_list", &shop, "", None).await?.ok()?;
    let upkeep = [
        "retention_show",
        "retention_run",
        "compaction_show",
        "compaction_run",
    ];
    for id in upkeep {
        let pass = api.ask(id, &shop, "", None).await?.ok()?;
        ensure!(pass["deleted"]["segments"] == 0, "{pass:#}");
    }
    let client = database.connect().await?;
    client
        .batch_execute("INSERT INTO t VALUES (1, 'x'); INSERT INTO loose VALUES (1)")
        .await?;
    let position = truth::wal_position(&client).await?;
    service.wait_durable("shop", &position).await?;
    api.ask("segment_list", &shop, "", None).await?.ok()?;
    api.ask("window", &shop, "", None).await?.ok()?;
    let found = api.ask("transaction_list", &shop, "", None).await?.ok()?;
    ensure!(found["items"][0].is_object(), "{found:#}");

    let target = json!({"target": {"lsn": position, "inclusive": false}});
    let plan = api.ask("plan", &shop, "", Some(target)).await?.ok()?;
    ensure!(plan["last_kept"].is_object(), "{plan:#}");
    ensure!(plan["not_covered"][0].is_object(), "{plan:#}");
    let named = json!({"target": {"name": "here"}});
    let plan = api.ask("plan", &shop, "", Some(named)).await?.ok()?;
    ensure!(plan["target"]["name"] == "here", "{plan:#} {point:#}");
    let early = json!({"target": {"lsn": "0/1"}});
    ensure!(api.ask("plan", &shop, "", Some(early)).await?.status == 422);

    let into =
        json!({"connection": database.server.url("postgres"), "create_database": "api_back"});
    let order = json!({"target": "latest", "into": into});
    let begun = api
        .ask("restore_start", &shop, "", Some(order.clone()))
        .await?;
    ensure!(begun.status == 202, "{begun:?}");
    let id = begun.body["id"].as_str().context("id")?.to_owned();
    let restore = [("id", id.as_str())];
    let ended = service.wait_restore(&id).await?;
    ensure!(ended["status"] == "succeeded", "{ended:#}");
    api.ask("restore_show", &restore, "", None).await?.ok()?;
    api.ask("restore_list", &[], "", None).await?.ok()?;
    api.ask("restore_events", &restore, "", None).await?.ok()?;
    ensure!(api.ask("restore_cancel", &restore, "", None).await?.status == 409);
    // The database is there now.
    ensure!(
        api.ask("restore_start", &shop, "", Some(order))
            .await?
            .status
            == 422
    );
    // That this role may not make one, only the server can tell.
    database.execute("CREATE ROLE api_limited LOGIN").await?;
    let connection = database.server.url_as("api_limited", "x", "postgres");
    let into = json!({"connection": connection, "create_database": "api_not_made"});
    let order = json!({"target": "latest", "into": into});
    let begun = api.ask("restore_start", &shop, "", Some(order)).await?;
    let id = begun.body["id"].as_str().context("id")?;
    let ended = service.wait_restore(id).await?;
    ensure!(ended["status"] == "failed", "{ended:#}");
    ensure!(ended["error_class"] == "needs_operator", "{ended:#}");
    api.ask("restore_show", &[("id", id)], "", None)
        .await?
        .ok()?;

    api.ask("key_show", &[], "", None).await?.ok()?;
    api.ask("data_key_rotate", &shop, "", None).await?.ok()?;
    let wrong = json!({"fingerprint": "0000000000000000"});
    ensure!(api.ask("key_confirm", &[], "", Some(wrong)).await?.status == 422);
    api.ask("metrics", &[], "", None).await?;
    api.ask("source_pause", &shop, "", Some(json!({"slot": "keep"})))
        .await?
        .ok()?;
    let paused = api.ask("base_take", &shop, "", None).await?;
    ensure!(paused.status == 409, "{paused:?}");
    api.ask("source_resume", &shop, "", None).await?.ok()?;
    for id in [
        "source_show",
        "base_list",
        "segment_list",
        "window",
        "point_list",
        "base_take",
        "retention_show",
        "retention_run",
        "compaction_show",
        "compaction_run",
    ] {
        ensure!(api.ask(id, &nobody, "", None).await?.status == 404, "{id}");
    }
    let unknown = [("id", "0000000000000000")];
    for id in ["restore_show", "restore_events", "restore_cancel"] {
        ensure!(api.ask(id, &unknown, "", None).await?.status == 404, "{id}");
    }
    let removed = api.ask("source_remove", &shop, "", None).await?.ok()?;
    ensure!(removed["left"] == json!([]), "{removed:#}");
    ensure!(api.ask("source_remove", &shop, "", None).await?.status == 404);

    let documented: BTreeSet<String> = api.operations()?.into_keys().collect();
    let forgotten: Vec<_> = documented.difference(&api.asked).collect();
    ensure!(forgotten.is_empty(), "never asked: {forgotten:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_but_health_needs_the_token() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let api = Api::read(&service).await?;
    for (id, (method, path, operation)) in api.operations()? {
        let path = path.replace("{source}", "x").replace("{id}", "x");
        for token in [None, Some(""), Some("lastgood_guess")] {
            let request = service.raw(method.clone(), &path);
            let request = match token {
                Some(token) => request.bearer_auth(token),
                None => request,
            };
            let answer = send(request).await?;
            let expected = if id == "health" { 200 } else { 401 };
            ensure!(answer.status == expected, "{id}: {answer:?}");
            api.check(&operation, &answer).context(id.clone())?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_beyond_the_limit_are_refused_announced_or_not() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let request = || -> Result<reqwest::RequestBuilder> {
        Ok(service
            .raw(Method::POST, "/api/v1/probe")
            .bearer_auth(service.token()?)
            .header("content-type", "application/json"))
    };
    let text = format!("{{\"connection\":\"{}\"}}", "x".repeat(1 << 20));
    let announced = send(request()?.body(text.clone())).await?;
    ensure!(announced.code() == "body_too_large", "{announced:?}");
    let chunks = text.into_bytes();
    let chunks: Vec<_> = chunks
        .chunks(64 << 10)
        .map(|chunk| Ok::<_, std::io::Error>(chunk.to_vec()))
        .collect();
    let body = reqwest::Body::wrap_stream(futures::stream::iter(chunks));
    let chunked = send(request()?.body(body)).await?;
    ensure!(chunked.code() == "body_too_large", "{chunked:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_paged_and_events_can_be_taken_up_again() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(15).await?;
    database
        .execute("CREATE TABLE t (id int PRIMARY KEY)")
        .await?;
    service
        .add_source("shop", &database.url(), history::settings())
        .await?;
    service.wait_protected("shop").await?;
    let client = database.connect().await?;
    for number in 0..3 {
        client
            .batch_execute(&format!("INSERT INTO t VALUES ({number})"))
            .await?;
        let position = truth::wal_position(&client).await?;
        service.wait_durable("shop", &position).await?;
    }
    let path = "/api/v1/sources/shop/segments";
    let indexed = |page: &Value| {
        page["items"]
            .as_array()
            .is_some_and(|items| items.len() >= 3)
    };
    let whole = wait::until_value("three segments", || service.get(path), indexed).await?;
    let whole = whole["items"].as_array().context("items")?.clone();
    let (mut paged, mut after) = (Vec::new(), String::new());
    for _ in 0..whole.len() {
        let page = service.get(&format!("{path}?limit=1{after}")).await?;
        paged.extend(page["items"].as_array().cloned().unwrap_or_default());
        match page["next"].as_str() {
            Some(next) => after = format!("&after={next}"),
            None => break,
        }
    }
    ensure!(paged == whole, "{paged:#?} {whole:#?}");
    for (before, after) in whole.iter().zip(whole.iter().skip(1)) {
        ensure!(before["end"] == after["start"], "{before} {after}");
    }
    let bad = service
        .request(Method::GET, &format!("{path}?after=nonsense"), None)
        .await?;
    ensure!(bad.code() == "invalid_query", "{bad:?}");

    let into =
        json!({"connection": database.server.url("postgres"), "create_database": "events_back"});
    let id = service
        .start_restore("shop", &json!("latest"), into)
        .await?;
    // Opened while it runs, the stream ends with it.
    let events = format!("/api/v1/restores/{id}/events");
    let all = service.request(Method::GET, &events, None).await?;
    ensure!(all.content_type == "text/event-stream", "{all:?}");
    let ids = |text: &str| -> Vec<u64> {
        text.lines()
            .filter_map(|line| line.strip_prefix("id:")?.trim().parse().ok())
            .collect()
    };
    let seen = ids(&all.text);
    ensure!(
        seen == (1..=seen.len() as u64).collect::<Vec<_>>(),
        "{all:?}"
    );
    ensure!(all.text.contains("\"status\":\"succeeded\""), "{all:?}");
    let rest = service
        .raw(Method::GET, &events)
        .bearer_auth(service.token()?)
        .header("last-event-id", "2");
    let rest = ids(&send(rest).await?.text);
    ensure!(rest == seen[2..], "{rest:?} {seen:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_is_confirmed_by_its_copy() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let health = service.get("/api/v1/health").await?;
    ensure!(health["warnings"][0].as_str().is_some(), "{health}");
    ensure!(
        service.log().contains("lives only beside"),
        "the log says so"
    );
    let key_file = service.key_file().display().to_string();
    let shown = service
        .cli(&["key", "show", "--key-file", &key_file])
        .await?;
    let fingerprint = String::from_utf8(shown.stdout)?.trim().to_owned();
    ensure!(
        !service
            .get("/api/v1/key")
            .await?
            .to_string()
            .contains(&fingerprint),
        "whoever knows only the service cannot confirm"
    );
    let wrong = service.cli(&["key", "confirm", "0123456789abcdef"]).await?;
    ensure!(wrong.status.code() == Some(3), "{wrong:?}");
    let right = service.cli(&["key", "confirm", &fingerprint]).await?;
    ensure!(right.status.success(), "{right:?}");
    let health = service.get("/api/v1/health").await?;
    ensure!(health["warnings"] == json!([]), "{health}");
    Ok(())
}
