//! Transactions whose commit is far from their changes: prepared ones over restarts and bases, and those
//! that another server's clock speaks for.

use std::sync::Arc;

use anyhow::{Result, ensure};
use lastgood_integration::digest::{self, Content};
use lastgood_integration::{Postgres, Service, Stop, Storage, history, truth};
use serde_json::{Value, json};
use tokio_postgres::Client;

struct Source {
    service: Service,
    server: Arc<Postgres>,
    name: &'static str,
}

impl Source {
    async fn start(major: u32, name: &'static str, sql: &str) -> Result<Self> {
        let server = Arc::new(Postgres::start(major, &["max_prepared_transactions=10"]).await?);
        server.create_database(name).await?;
        server.execute(name, sql).await?;
        let service = Service::start(&Storage::local()?).await?;
        service
            .add_source(name, &server.url(name), history::settings())
            .await?;
        service.wait_protected(name).await?;
        Ok(Self {
            service,
            server,
            name,
        })
    }

    async fn moment(&self, client: &mut Client) -> Result<(Value, Content)> {
        let content = digest::of(client, None).await?;
        Ok((
            json!({"lsn": truth::wal_position(client).await?, "inclusive": false}),
            content,
        ))
    }

    async fn wait_durable(&self, client: &Client) -> Result<()> {
        self.service
            .wait_durable(self.name, &truth::wal_position(client).await?)
            .await
    }

    async fn check(&self, (target, content): &(Value, Content), what: &str) -> Result<()> {
        let into = json!({"connection": self.server.url("postgres"), "create_database": "copy"});
        self.service.restore(self.name, target, into).await?;
        let restored = digest::of(&mut self.server.connect("copy").await?, None).await?;
        content.assert_restored(&restored, what);
        history::drop_database(&self.server, "copy").await
    }
}

/// PostgreSQL fact: a prepared transaction is in no restore before its commit, in every one after it; neither a
/// crash of the service, nor a restart of the server, nor a base that begins meanwhile changes that.
#[tokio::test(flavor = "multi_thread")]
async fn prepared_transactions_over_restarts_and_bases() -> Result<()> {
    let source = Source::start(16, "prepared", "CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t VALUES (1, 'base'), (2, 'base')").await?;
    let (service, server) = (&source.service, &source.server);
    let mut client = server.connect(source.name).await?;
    client.batch_execute("BEGIN; UPDATE t SET v = 'prepared' WHERE id = 1; INSERT INTO t VALUES (3, 'prepared'); PREPARE TRANSACTION 'one'").await?;
    client
        .batch_execute("INSERT INTO t VALUES (4, 'beside')")
        .await?;
    let before = source.moment(&mut client).await?;
    source.wait_durable(&client).await?;
    drop(client);
    service.kill()?;
    server.restart(Stop::Fast).await?;
    service.start_again().await?;
    let mut client = server.connect(source.name).await?;
    client
        .batch_execute("UPDATE t SET v = 'after the restart' WHERE id = 2")
        .await?;
    let between = source.moment(&mut client).await?;
    client.batch_execute("COMMIT PREPARED 'one'").await?;
    let committed = source.moment(&mut client).await?;
    source.wait_durable(&client).await?;

    // A base can only begin once this one is over; what commits meanwhile is in the stream.
    client.batch_execute("BEGIN; UPDATE t SET v = 'two' WHERE id = 1; DELETE FROM t WHERE id = 3; PREPARE TRANSACTION 'two'").await?;
    service
        .post("/api/v1/sources/prepared/bases", json!({}))
        .await?;
    client
        .batch_execute("UPDATE t SET v = 'while a base waits' WHERE id = 4")
        .await?;
    let waiting = source.moment(&mut client).await?;
    source.wait_durable(&client).await?;
    client.batch_execute("COMMIT PREPARED 'two'").await?;
    service.wait_bases(source.name, 2).await?;
    client
        .batch_execute("INSERT INTO t VALUES (5, 'last')")
        .await?;
    let last = source.moment(&mut client).await?;
    source.wait_durable(&client).await?;
    drop(client);
    for (moment, what) in [
        (before, "before"),
        (between, "between"),
        (committed, "committed"),
        (waiting, "waiting"),
        (last, "last"),
    ] {
        source.check(&moment, what).await?;
    }
    service.terminate().await?;
    Ok(())
}

/// PostgreSQL fact: a transaction that was replicated into the source brings the commit time of the server it came
/// from, and no other is sent. That clock may be wrong by any span, and must decide neither where a restore to a
/// time stops nor up to when everything is known.
#[tokio::test(flavor = "multi_thread")]
async fn commit_times_of_another_server() -> Result<()> {
    let source = Source::start(17, "origins", "CREATE TABLE t (id int PRIMARY KEY, v text); SELECT pg_replication_origin_create('upstream')").await?;
    let mut client = source.server.connect(source.name).await?;
    let time = async |client: &mut Client| -> Result<(Value, Content)> {
        let content = digest::of(client, None).await?;
        Ok((json!({"time": truth::clock(client).await?}), content))
    };
    client
        .batch_execute("INSERT INTO t VALUES (1, 'here')")
        .await?;
    let replicated = async |client: &mut Client, id: i32, at: &str| -> Result<()> {
        let sql = format!(
            "SELECT pg_replication_origin_session_setup('upstream');
             BEGIN; SELECT pg_replication_origin_xact_setup('0/{id}00', '{at}'); INSERT INTO t VALUES ({id}, 'elsewhere'); COMMIT;
             SELECT pg_replication_origin_session_reset()"
        );
        Ok(client.batch_execute(&sql).await?)
    };
    replicated(&mut client, 2, "2100-01-01").await?;
    // What was sent had been committed.
    source.wait_durable(&client).await?;
    let after_future = time(&mut client).await?;
    client
        .batch_execute("INSERT INTO t VALUES (3, 'here')")
        .await?;
    let after_local = time(&mut client).await?;
    client
        .batch_execute("INSERT INTO t VALUES (4, 'here')")
        .await?;
    source.wait_durable(&client).await?;
    replicated(&mut client, 5, "2001-01-01").await?;
    client
        .batch_execute("INSERT INTO t VALUES (6, 'here')")
        .await?;
    let last = time(&mut client).await?;
    source.wait_durable(&client).await?;
    source
        .service
        .wait_observed(source.name, last.0["time"].as_str().unwrap_or_default())
        .await?;
    let status = source.service.source(source.name).await?;
    ensure!(
        status["observed_through"]
            .as_str()
            .is_some_and(|it| it < "2090"),
        "{status:#}"
    );

    // What came while nobody captured may have come at any moment of it, but for what a commit of this
    // server's own bounds.
    source.service.kill()?;
    replicated(&mut client, 7, "2001-01-01").await?;
    client
        .batch_execute("INSERT INTO t VALUES (8, 'here')")
        .await?;
    let bounded = time(&mut client).await?;
    replicated(&mut client, 9, "2001-01-01").await?;
    let (unsure, _) = time(&mut client).await?;
    source.service.start_again().await?;
    source.wait_durable(&client).await?;
    let known = unsure["time"].as_str().unwrap_or_default();
    source.service.wait_observed(source.name, known).await?;
    let plan = format!("/api/v1/sources/{}/plan", source.name);
    let plan = async |target: &Value| source.service.post(&plan, json!({"target": target})).await;
    let told = plan(&unsure).await?;
    let discarded = &told["first_discarded"];
    ensure!(
        told["not_before"].as_str() <= unsure["time"].as_str()
            && told["not_before"] == discarded["time"]
            && discarded["until"].as_str() > unsure["time"].as_str(),
        "{told:#}"
    );
    let unsure = (unsure, bounded.1.clone());
    drop(client);
    for (moment, what) in [
        (bounded, "in a backlog, after a local one"),
        (unsure, "in a backlog"),
        (after_future, "after one from the future"),
        (after_local, "after a local one"),
        (last, "after one from the past"),
    ] {
        source.check(&moment, what).await?;
    }
    source.service.terminate().await?;
    Ok(())
}
