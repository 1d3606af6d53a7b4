//! The harness itself: what the other tests trust.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use lastgood_integration::workload::Workload;
use lastgood_integration::{
    Postgres, Proxy, Stop, TestDatabase, digest, postgres, seed, tools, truth,
};

#[tokio::test]
async fn every_major_starts_and_decodes() -> Result<()> {
    for major in tools::MAJORS {
        let database = TestDatabase::new(major).await?;
        let client = database.connect().await?;
        let version: String = client
            .query_one("SHOW server_version_num", &[])
            .await?
            .get(0);
        assert_eq!(version.parse::<u32>()? / 10_000, major);
        let slot = format!("harness_{}", database.name);
        let sql =
            format!("SELECT 1 FROM pg_create_logical_replication_slot('{slot}', 'pgoutput', true)");
        client.batch_execute(&sql).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_survives_stop_and_crash_and_leaves_nothing() -> Result<()> {
    let server = Arc::new(Postgres::start(18, &["work_mem=5MB"]).await?);
    server
        .execute("postgres", "CREATE TABLE t AS SELECT 1 AS a")
        .await?;
    server.restart(Stop::Fast).await?;
    server.crash().await?;
    server.start_again().await?;
    let client = server.connect("postgres").await?;
    let work_mem: String = client.query_one("SHOW work_mem", &[]).await?.get(0);
    assert_eq!(work_mem, "5MB");
    assert_eq!(
        client
            .query_one("SELECT a FROM t", &[])
            .await?
            .get::<_, i32>(0),
        1
    );
    let data = server.data_dir();
    drop(client);
    drop(server);
    assert!(!data.exists());
    Ok(())
}

#[tokio::test]
async fn passwords_and_tls() -> Result<()> {
    let hba = "hostssl all all 127.0.0.1/32 scram-sha-256\nhostssl replication all 127.0.0.1/32 scram-sha-256\n";
    let server = Postgres::builder(15).tls().hba(hba).start().await?;
    let run = |url: String| {
        let mut psql = server.program("psql");
        psql.env_remove("PGPASSWORD").args([
            "-XAtc",
            "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
            &url,
        ]);
        psql.output()
    };
    let verified = format!(
        "?sslmode=verify-full&sslrootcert={}",
        server.ca_file().display()
    );
    let output = run(format!("{}{verified}", server.url("postgres")))?;
    assert_eq!(String::from_utf8(output.stdout)?.trim(), "t");
    assert!(
        !run(server.url_as("postgres", "wrong", "postgres"))?
            .status
            .success()
    );
    assert!(
        !run(format!("{}?sslmode=disable", server.url("postgres")))?
            .status
            .success()
    );
    Ok(())
}

#[tokio::test]
async fn digests_see_content_and_nothing_else() -> Result<()> {
    let (one, two) = (TestDatabase::new(15).await?, TestDatabase::new(18).await?);
    one.execute(
        "CREATE TABLE t (id serial, a text); INSERT INTO t (a) VALUES ('x'), ('y'), (NULL)",
    )
    .await?;
    two.execute("CREATE TABLE t (id serial, a text); INSERT INTO t VALUES (3, NULL), (2, 'y'), (1, 'x'); SELECT setval('t_id_seq', 3)").await?;
    let mut clients = (one.connect().await?, two.connect().await?);
    let truth = digest::of(&mut clients.0, None).await?;
    truth.assert_restored(
        &digest::of(&mut clients.1, None).await?,
        "same rows in another order",
    );
    two.execute("UPDATE t SET a = '' WHERE a IS NULL").await?;
    let other = digest::of(&mut clients.1, None).await?;
    assert_eq!(truth.differences(&other), ["public.t: 3 rows, expected 3"]);
    Ok(())
}

#[tokio::test]
async fn the_proxy_cuts_and_is_silent() -> Result<()> {
    let database = TestDatabase::new(18).await?;
    let proxy = Proxy::start(("127.0.0.1", database.server.port())).await?;
    let port = database.server.port().to_string();
    let url = database
        .url()
        .replace(&format!(":{port}/"), &format!(":{}/", proxy.port()));
    let client = postgres::connect(&url).await?;
    proxy.set(|network| network.latency = Duration::from_millis(20));
    client.batch_execute("SELECT 1").await?;
    proxy.set(|network| network.blackhole = true);
    let silent = tokio::time::timeout(Duration::from_millis(200), client.batch_execute("SELECT 1"));
    assert!(silent.await.is_err());
    proxy.set(|network| network.blackhole = false);
    client.batch_execute("SELECT 1").await?;
    proxy.cut();
    assert!(client.batch_execute("SELECT 1").await.is_err());
    postgres::connect(&url)
        .await?
        .batch_execute("SELECT 1")
        .await?;
    Ok(())
}

#[tokio::test]
async fn writers_write_and_a_quiet_moment_is_quiet() -> Result<()> {
    for major in [13, 18] {
        let database = TestDatabase::new(major).await?;
        let seed = seed::choose("writers_write");
        let mut workload = Workload::start(&database.url(), seed, 4).await?;
        workload.advance(100).await?;
        let loud = truth::record(&database.server, &database.name).await?;
        let quiet = workload.quiet().await;
        let first = truth::record(&database.server, &database.name).await?;
        let second = truth::record(&database.server, &database.name).await?;
        assert_eq!(first.content, second.content);
        assert!(loud.content.tables.len() > 8);
        drop(quiet);
        workload.advance(100).await?;
        workload.stop().await?;
        let last = truth::record(&database.server, &database.name).await?;
        assert!(!first.content.differences(&last.content).is_empty());
    }
    Ok(())
}
