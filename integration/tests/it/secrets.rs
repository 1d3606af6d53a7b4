//! No secret in any answer, log, process list, or in clear in the data folder or the repository.

use anyhow::{Result, ensure};
use lastgood_integration::{Postgres, Service, Storage, digest, history, tools, truth};
use reqwest::Method;
use serde_json::{Value, json};

const PASSWORD: &str = "s3cr3t-pass-wörd%&";
const ROW: &str = "a row that nobody else may read";

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaks() -> Result<()> {
    let hba = "host all all 127.0.0.1/32 scram-sha-256\nhost replication all 127.0.0.1/32 scram-sha-256\n";
    let server = Postgres::builder(18).hba(hba).start().await?;
    server
        .execute(
            "postgres",
            &format!("CREATE ROLE keeper SUPERUSER LOGIN PASSWORD '{PASSWORD}'"),
        )
        .await?;
    server.create_database("shop").await?;
    server
        .execute("shop", "CREATE TABLE t (id serial PRIMARY KEY, a text)")
        .await?;
    let storage = Storage::local()?;
    let service = Service::builder()
        .storage(&storage)
        .environment("RUST_LOG", "trace")
        .argument("--log")
        .argument("json")
        .start()
        .await?;
    let encoded = "s3cr3t-pass-w%C3%B6rd%25%26";
    let url = server.url_as("keeper", encoded, "shop");
    let pairs = format!(
        "host=127.0.0.1 port={} user=keeper dbname=shop password='{PASSWORD}'",
        server.port()
    );
    let wrong = server.url_as("keeper", &format!("{encoded}x"), "shop");
    let mut heard = String::new();
    let mut ask = async |method: Method, path: &str, body: Option<Value>| -> Result<Value> {
        let answer = service.request(method, path, body.as_ref()).await?;
        heard += &answer.text;
        // What children were given shows here while they run.
        heard += &process_list();
        Ok(answer.body)
    };
    for connection in [&url, &pairs, &wrong] {
        ask(
            Method::POST,
            "/api/v1/probe",
            Some(json!({"connection": connection})),
        )
        .await?;
    }
    ask(
        Method::POST,
        "/api/v1/sources",
        Some(json!({"name": "x", "connection": wrong})),
    )
    .await?;
    ask(
        Method::POST,
        "/api/v1/sources",
        Some(json!({"name": "x", "connection": format!("{url}?sslmode=nonsense")})),
    )
    .await?;
    ask(
        Method::POST,
        "/api/v1/sources",
        Some(json!({"name": "x", "connection": format!("{url}?colour=red"), "colour": url})),
    )
    .await?;
    let mut body = json!({"name": "shop", "connection": pairs});
    if let (Some(body), Some(more)) = (body.as_object_mut(), history::settings().as_object()) {
        body.extend(more.clone());
    }
    ask(Method::POST, "/api/v1/sources", Some(body)).await?;
    service.wait_protected("shop").await?;
    let mut client = server.connect("shop").await?;
    client
        .batch_execute(&format!("INSERT INTO t (a) VALUES ('{ROW}')"))
        .await?;
    service
        .wait_durable("shop", &truth::wal_position(&client).await?)
        .await?;
    let content = digest::of(&mut client, None).await?;
    let into = json!({"connection": server.url_as("keeper", encoded, "postgres"), "create_database": "back"});
    let restore = ask(
        Method::POST,
        "/api/v1/sources/shop/restores",
        Some(json!({"target": "latest", "into": into})),
    )
    .await?;
    let id = restore["id"].as_str().unwrap_or_default().to_owned();
    let ended = service.wait_restore(&id).await?;
    ensure!(
        ended["status"] == "succeeded",
        "{ended:#}\n{}",
        service.log()
    );
    content.assert_restored(
        &digest::of(&mut server.connect("back").await?, None).await?,
        "restored",
    );
    // Into a database that is not empty: an error that is about the connection.
    let into = json!({"connection": url});
    let refused = ask(
        Method::POST,
        "/api/v1/sources/shop/restores",
        Some(json!({"target": "latest", "into": into})),
    )
    .await?;
    if let Some(id) = refused["id"].as_str() {
        service.wait_restore(id).await?;
        ask(Method::GET, &format!("/api/v1/restores/{id}"), None).await?;
    }
    for path in [
        "sources",
        "sources/shop",
        "sources/shop/bases",
        "sources/shop/segments",
        "sources/shop/window",
        "restores",
        "health",
        "openapi.json",
    ] {
        ask(Method::GET, &format!("/api/v1/{path}"), None).await?;
    }
    ask(Method::GET, &format!("/api/v1/restores/{id}"), None).await?;
    heard += &service.request(Method::GET, "/metrics", None).await?.text;
    // A source that cannot be reached any more is an error in the log, too.
    client
        .batch_execute("ALTER ROLE keeper PASSWORD 'changed'")
        .await?;
    client
        .batch_execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'keeper'",
        )
        .await?;
    let failed = |source: &Value| source["status"] != "streaming";
    lastgood_integration::wait::until_value("an error", || service.source("shop"), failed).await?;
    heard += &service.source("shop").await?.to_string();
    service.terminate().await?;
    heard += &service.log();

    let token = service.token()?;
    let key = std::fs::read_to_string(service.key_file())?;
    let long_lines = key.lines().map(str::trim).filter(|line| line.len() > 30);
    let secrets: Vec<&str> = [PASSWORD, encoded, "pass-w", token.as_str(), ROW]
        .into_iter()
        .chain(long_lines)
        .collect();
    for secret in &secrets {
        let at = heard.find(secret);
        let around = at.map(|at| heard.get(at.saturating_sub(200)..at).unwrap_or_default());
        ensure!(
            at.is_none(),
            "a secret in an answer, the log or a process list, after: {around:?}"
        );
    }
    // In files: neither the password nor a row; the key and the token only in their own.
    let own = [service.key_file(), service.data_dir().join("admin.token")];
    let data = std::fs::read_dir(service.data_dir())?
        .flatten()
        .map(|entry| entry.path());
    let files: Vec<_> = data
        .filter(|path| path.is_file() && !own.contains(path))
        .chain(storage.files(|_| true)?)
        .collect();
    ensure!(files.len() > 5, "{files:?}");
    for file in files {
        let content = std::fs::read(&file)?;
        let leaks = secrets.iter().any(|secret| {
            content
                .windows(secret.len())
                .any(|it| it == secret.as_bytes())
        });
        ensure!(!leaks, "a secret in {}", file.display());
    }
    Ok(())
}

/// The command lines of everything that runs, except PostgreSQL's own servers.
fn process_list() -> String {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return String::new();
    };
    let ours = tools::bin_dirs();
    let lines = processes
        .flatten()
        .filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines
        .filter(|line| line.contains("lastgood") || ours.split(':').any(|dir| line.contains(dir)))
        .collect()
}
