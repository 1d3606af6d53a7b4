//! What a real database does to its rows, on every major: each scenario is a script in a schema of its
//! own, all of them run side by side in one database, and a few restores check them all.
//!
//! A file of scenarios is SQL with marks:
//!
//! ```text
//! -- scenario name [since 15]: what it is about; docs/facts.md lists the facts they show
//! (the definitions and the rows of the first base)
//! -- step
//! (before the first moment; two more steps follow)
//! ```
//!
//! Transactions are separated by empty lines; one that begins with `-- session b` runs in the
//! scenario's second session. `{database}` is the database's name. Between the second and the third
//! moment a base is taken. No step changes a table's definition: no restore goes across that.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context, Result, ensure};
use lastgood_integration::digest::{self, Content};
use lastgood_integration::{Service, Storage, TestDatabase, history, seed, truth};
use serde_json::{Value, json};
use tokio_postgres::Client;

const FILES: [&str; 3] = [
    include_str!("rows.sql"),
    include_str!("transactions.sql"),
    include_str!("sequences.sql"),
];

/// Its definitions and three steps, each a list of transactions.
struct Scenario {
    name: &'static str,
    since: u32,
    parts: Vec<Vec<&'static str>>,
}

fn scenarios(major: u32) -> Result<Vec<Scenario>> {
    let mut found = Vec::new();
    for file in FILES {
        for text in file.split("-- scenario ").skip(1) {
            let (head, body) = text.split_once('\n').context("a body")?;
            let mut words = head.split([' ', ':']);
            let name = words.next().unwrap_or_default();
            let since = match words.next() {
                Some("since") => words.next().context("a major")?.parse()?,
                _ => 0,
            };
            let parts: Vec<Vec<&str>> = body
                .split("-- step\n")
                .map(|part| {
                    part.split("\n\n")
                        .filter(|it| !it.trim().is_empty())
                        .collect()
                })
                .collect();
            ensure!(parts.len() == 4, "{name} has {} parts", parts.len());
            found.push(Scenario { name, since, parts });
        }
    }
    found.retain(|scenario| scenario.since <= major);
    Ok(found)
}

/// The database of one major with its sessions.
struct Stage {
    database: TestDatabase,
    scenarios: Vec<Scenario>,
    first: Client,
    second: HashMap<&'static str, Client>,
}

impl Stage {
    async fn new(major: u32) -> Result<Self> {
        let database = TestDatabase::new(major).await?;
        let first = database.connect().await?;
        Ok(Self {
            scenarios: scenarios(major)?,
            database,
            first,
            second: HashMap::new(),
        })
    }

    /// Runs one part of every scenario.
    async fn run(&mut self, part: usize) -> Result<()> {
        for scenario in &self.scenarios {
            let name = scenario.name;
            let path = format!("SET search_path = {name}");
            if part == 0 {
                self.first
                    .batch_execute(&format!("CREATE SCHEMA {name}"))
                    .await?;
            }
            self.first.batch_execute(&path).await?;
            for transaction in &scenario.parts[part] {
                let sql = transaction.replace("{database}", &self.database.name);
                let done = if transaction.starts_with("-- session b\n") {
                    if !self.second.contains_key(name) {
                        let client = self.database.connect().await?;
                        client.batch_execute(&path).await?;
                        self.second.insert(name, client);
                    }
                    self.second[name].batch_execute(&sql).await
                } else {
                    self.first.batch_execute(&sql).await
                };
                done.with_context(|| format!("{name}, part {part}: {transaction}"))?;
            }
        }
        Ok(())
    }

    /// What the source holds now, and where that is.
    async fn moment(&mut self, service: &Service, source: &str) -> Result<(String, Content)> {
        let content = digest::of(&mut self.first, None).await?;
        let lsn = truth::wal_position(&self.first).await?;
        service.wait_durable(source, &lsn).await?;
        Ok((lsn, content))
    }
}

/// By scenario, so that the report says which ones fail.
fn compare(
    expected: &Content,
    restored: &Content,
    collisions: Vec<String>,
) -> BTreeMap<String, Vec<String>> {
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for difference in expected.differences(restored).into_iter().chain(collisions) {
        let scenario = difference.split('.').next().unwrap_or_default();
        found
            .entry(scenario.to_owned())
            .or_default()
            .push(difference);
    }
    found
}

async fn check(
    service: &Service,
    stage: &Stage,
    source: &str,
    target: &Value,
    expected: &Content,
) -> Result<()> {
    let server = &stage.database.server;
    let copy = format!("{}_copy", stage.database.name);
    let into = json!({"connection": server.url("postgres"), "create_database": copy});
    service.restore(source, target, into).await?;
    let mut client = server.connect(&copy).await?;
    let restored = digest::of(&mut client, None).await?;
    let differences = compare(expected, &restored, digest::collisions(&client).await?);
    ensure!(
        differences.is_empty(),
        "restore to {target}: {differences:#?}"
    );
    drop(client);
    if *target == json!("latest") {
        history::compare_schemas(server, &stage.database.name, &copy)?;
        // With nothing after it, a sequence is exactly where it was.
        let exact = |content: &Content| -> Vec<(String, i64)> {
            let all = content.sequences.clone().into_iter();
            all.filter(|(name, _)| !name.starts_with("set_back") && !name.starts_with("truncates"))
                .collect()
        };
        ensure!(
            exact(expected) == exact(&restored),
            "sequences: {:?} became {:?}",
            exact(expected),
            exact(&restored)
        );
    }
    history::drop_database(server, &copy).await
}

async fn all_on(service: &Service, major: u32) -> Result<()> {
    let mut stage = Stage::new(major).await?;
    stage.run(0).await?;
    let source = format!("scenarios-{major}");
    let mut settings = history::settings();
    settings["no_identity"] = json!("full");
    service
        .add_source(&source, &stage.database.url(), settings)
        .await?;
    service.wait_protected(&source).await?;
    stage.run(1).await?;
    let (first, at_first) = stage.moment(service, &source).await?;
    stage.run(2).await?;
    let (second, at_second) = stage.moment(service, &source).await?;
    service
        .post(&format!("/api/v1/sources/{source}/bases"), json!({}))
        .await?;
    service.wait_bases(&source, 2).await?;
    stage.run(3).await?;
    let (_, at_third) = stage.moment(service, &source).await?;

    check(
        service,
        &stage,
        &source,
        &json!({"lsn": first, "inclusive": false}),
        &at_first,
    )
    .await?;
    check(
        service,
        &stage,
        &source,
        &json!({"lsn": second, "inclusive": false}),
        &at_second,
    )
    .await?;
    check(service, &stage, &source, &json!("latest"), &at_third).await
}

#[tokio::test(flavor = "multi_thread")]
async fn scenarios_on_every_major() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let majors = seed::majors("scenarios_on_every_major");
    let runs = majors.into_iter().map(|major| {
        let run = all_on(&service, major);
        async move { run.await.with_context(|| format!("PostgreSQL {major}")) }
    });
    let outcomes = futures::future::join_all(runs).await;
    let failed: Vec<String> = outcomes
        .into_iter()
        .filter_map(|it| it.err())
        .map(|it| format!("{it:#}"))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    ensure!(service.terminate().await?.success(), "a clean end");
    Ok(())
}
