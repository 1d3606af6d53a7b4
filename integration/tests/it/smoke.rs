//! The main job once, in the smallest form: register, write, restore.

use anyhow::Result;
use lastgood_integration::{Service, Storage, TestDatabase, digest, history, truth};
use serde_json::json;

#[tokio::test]
async fn register_write_restore() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    database
        .execute(
            "CREATE TABLE t (id serial PRIMARY KEY, a text); INSERT INTO t (a) VALUES ('base')",
        )
        .await?;
    let created = service
        .add_source("shop", &database.url(), history::settings())
        .await?;
    assert_eq!(created["name"], "shop");
    service.wait_protected("shop").await?;

    let mut client = database.connect().await?;
    client
        .batch_execute("INSERT INTO t (a) VALUES ('kept'); UPDATE t SET a = 'changed' WHERE id = 1")
        .await?;
    let (truth, lsn) = (
        digest::of(&mut client, None).await?,
        truth::wal_position(&client).await?,
    );
    client.batch_execute("UPDATE t SET a = 'oh no'").await?;
    service
        .wait_durable("shop", &truth::wal_position(&client).await?)
        .await?;

    let plan = service
        .post("/api/v1/sources/shop/plan", json!({"target": {"lsn": lsn}}))
        .await?;
    let rows = |end: &str| plan[end]["tables"][0].clone();
    assert_eq!(
        (&rows("last_kept")["inserts"], &rows("last_kept")["updates"]),
        (&json!(1), &json!(1))
    );
    assert_eq!(rows("first_discarded")["updates"], 2, "{plan:#}");

    let name = format!("{}_restored", database.name);
    let into = json!({"connection": database.server.url("postgres"), "create_database": name});
    service.restore("shop", &json!({"lsn": lsn}), into).await?;
    let restored = digest::of(&mut database.server.connect(&name).await?, None).await?;
    truth.assert_restored(&restored, "before the mistake");

    let removed = service
        .request(reqwest::Method::DELETE, "/api/v1/sources/shop", None)
        .await?;
    removed.ok()?;
    let left = "SELECT (SELECT count(*) FROM pg_replication_slots WHERE database = current_database()) + (SELECT count(*) FROM pg_publication)";
    assert_eq!(client.query_one(left, &[]).await?.get::<_, i64>(0), 0);
    assert!(service.terminate().await?.success());
    Ok(())
}
