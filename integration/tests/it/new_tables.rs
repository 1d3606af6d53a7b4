//! A table that is made while capture runs: from which moment on its rows can be restored, and what says
//! so until then. Superuser or not makes no difference: the tables of the publication are listed, and a
//! change of that list is one of the shape.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lastgood_integration::{Service, Storage, TestDatabase, history, truth, wait};
use serde_json::{Value, json};

use crate::shapes::wait_beyond;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_table_is_covered_from_its_first_base_and_named_until_then() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let runs = [(14, false), (18, false), (18, true)].map(|(major, superuser)| {
        let run = made_while_captured(&service, major, superuser);
        async move {
            run.await
                .with_context(|| format!("PostgreSQL {major}, superuser: {superuser}"))
        }
    });
    futures::future::try_join_all(runs).await?;
    service.terminate().await?;
    Ok(())
}

async fn made_while_captured(service: &Service, major: u32, superuser: bool) -> Result<()> {
    let database = TestDatabase::new(major).await?;
    let (server, owner) = (&database.server, format!("owner_{}", database.name));
    let right = if superuser {
        "SUPERUSER"
    } else {
        "REPLICATION"
    };
    database
        .execute(&format!(
            "CREATE ROLE {owner} LOGIN {right}; ALTER DATABASE {0} OWNER TO {owner}; GRANT CREATE ON SCHEMA public TO {owner};
             CREATE TABLE old (id int PRIMARY KEY); ALTER TABLE old OWNER TO {owner}",
            database.name
        ))
        .await?;
    let url = server.url_as(&owner, "", &database.name);
    let name = format!("new-{major}-{superuser}");
    service.add_source(&name, &url, history::settings()).await?;
    service.wait_protected(&name).await?;
    let client = lastgood_integration::postgres::connect(&url).await?;
    client.batch_execute("INSERT INTO old VALUES (1)").await?;
    let before = truth::wal_position(&client).await?;
    service.wait_durable(&name, &before).await?;

    let made = Instant::now();
    client
        .batch_execute("CREATE TABLE fresh (id int PRIMARY KEY); INSERT INTO fresh VALUES (1)")
        .await?;
    client.batch_execute("INSERT INTO fresh VALUES (2)").await?;
    let between = truth::wal_position(&client).await?;
    client.batch_execute("INSERT INTO fresh VALUES (3)").await?;

    // Until there is a base with it: the last window ends before the table, and says why.
    let path = format!("/api/v1/sources/{name}/window");
    let named = |it: &Value| {
        it.as_str()
            .is_some_and(|it| it.contains("public.fresh is new"))
    };
    let refused = |window: &Value| named(&window["latest_refused"]);
    wait::until_value("the new table's name", || service.get(&path), refused).await?;
    let waited = made.elapsed();
    check_refused(service, &name, &between).await?;
    wait_beyond(service, &name, &between).await?;
    eprintln!(
        "PostgreSQL {major}, superuser {superuser}: a new table named after {waited:?}, covered after {:?}",
        made.elapsed()
    );

    // From then on the span is a gap with its reason; before it and after it everything is there.
    let window = service.get(&path).await?;
    ensure!(window["latest_refused"].is_null(), "{window:#}");
    ensure!(named(&window["gaps"][0]["reason"]), "{window:#}");
    check_refused(service, &name, &between).await?;
    let target = json!({"target": {"lsn": before, "inclusive": false}});
    let plan = format!("/api/v1/sources/{name}/plan");
    service.post(&plan, target).await?;
    client
        .batch_execute("UPDATE fresh SET id = -id; INSERT INTO fresh VALUES (4)")
        .await?;
    let restore = history::check_latest(service, &name, &database).await?;
    ensure!(restore["plan"]["not_covered"] == json!([]), "{restore:#}");
    drop(client);
    Ok(())
}

/// A moment at which the table's rows are not all known: refused with the name of what changed.
async fn check_refused(service: &Service, name: &str, lsn: &str) -> Result<()> {
    let target = json!({"target": {"lsn": lsn, "inclusive": false}});
    let path = format!("/api/v1/sources/{name}/plan");
    let answer = service
        .request(reqwest::Method::POST, &path, Some(&target))
        .await?;
    ensure!(answer.status == 422, "{answer:?}");
    ensure!(
        answer.body.to_string().contains("public.fresh is new"),
        "{:#}",
        answer.body
    );
    Ok(())
}
