//! Tables that a base reads by itself, in parts.

use anyhow::{Context, Result, ensure};
use lastgood_integration::digest::{self, Content};
use lastgood_integration::{Service, Storage, TestDatabase, history, tools, truth};
use serde_json::json;
use tokio_postgres::Client;

/// The oddest that PostgreSQL takes; `computed` is `STORED` or `VIRTUAL`.
const TABLES: &str = r#"
    CREATE SCHEMA "odd; ""schema";
    CREATE TABLE "odd; ""schema"."a
b" (gone int, "v, (w)" text, id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) {computed}, z bytea);
    INSERT INTO "odd; ""schema"."a
b" (gone, "v, (w)", id, z) SELECT 1, E'tab\t\\. ' || g || repeat('x', g % 90), g, sha256(g::text::bytea) FROM generate_series(1, 2000) g;
    ALTER TABLE "odd; ""schema"."a
b" DROP gone;
    CREATE TABLE long (id int PRIMARY KEY, v text);
    INSERT INTO long SELECT g, (SELECT string_agg(md5((g * 1000 + m)::text), '') FROM generate_series(1, CASE WHEN g % 7 = 0 THEN 20000 ELSE 200 END) m)
      FROM generate_series(1, 40) g;
    CREATE TABLE bare (a text, b int); ALTER TABLE bare REPLICA IDENTITY FULL;
    INSERT INTO bare SELECT CASE WHEN g % 3 > 0 THEN 'r' || g % 50 END, g % 7 FROM generate_series(1, 3000) g;
    CREATE TABLE parent (id int PRIMARY KEY, v text);
    CREATE TABLE child (w text, PRIMARY KEY (id)) INHERITS (parent);
    INSERT INTO parent SELECT g, 'parent' FROM generate_series(1, 2000) g;
    INSERT INTO child SELECT -g, 'child', 'w' FROM generate_series(1, 2000) g;
    CREATE TYPE mood AS ENUM ('a', 'b', 'c', 'd');
    CREATE TABLE moods (v text, m mood, id int) PARTITION BY HASH (m);
    CREATE TABLE moods_0 (id int, m mood, v text); ALTER TABLE moods ATTACH PARTITION moods_0 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
    CREATE TABLE moods_1 PARTITION OF moods FOR VALUES WITH (MODULUS 2, REMAINDER 1);
    INSERT INTO moods SELECT 'm' || g, (enum_range(NULL::mood))[1 + g % 4], g FROM generate_series(1, 4000) g;
    CREATE TABLE holes (id int PRIMARY KEY, v text); INSERT INTO holes SELECT g, repeat('h', 100) FROM generate_series(1, 3000) g;
    DELETE FROM holes WHERE id % 1000 > 5; UPDATE holes SET v = 'moved' WHERE id % 1000 < 3;
    CREATE TABLE nothing (); INSERT INTO nothing SELECT FROM generate_series(1, 2000);"#;

/// In the first parts and the last, out of one into another.
const CHANGES: &str = r#"
    UPDATE "odd; ""schema"."a
b" SET z = NULL WHERE id IN (1, 1000, 2000);
    DELETE FROM "odd; ""schema"."a
b" WHERE id % 100 = 1;
    UPDATE "odd; ""schema"."a
b" SET id = id + 5000 WHERE id % 100 = 2;
    UPDATE long SET id = id + 100 WHERE id IN (1, 7, 40);
    UPDATE long SET v = 'short' WHERE id % 10 = 0;
    INSERT INTO long SELECT 1, repeat('long ', 100000);
    UPDATE bare SET b = 8 WHERE b = 1; DELETE FROM bare WHERE a = 'r9';
    UPDATE parent SET v = 'changed' WHERE id % 500 = 0;
    DELETE FROM parent WHERE id % 500 = 1;
    DELETE FROM holes WHERE id < 3; INSERT INTO holes VALUES (1, 'again')"#;

/// Which partition an enum's label hashes to is another in each database.
async fn content(client: &mut Client) -> Result<(Content, String)> {
    let mut content = digest::of(client, None).await?;
    content.tables.retain(|name, _| !name.contains("moods"));
    let moods = "SELECT md5(string_agg(m::text, ',' ORDER BY id)) FROM moods m";
    Ok((content, client.query_one(moods, &[]).await?.get(0)))
}

async fn large_tables(service: &Service, major: u32) -> Result<()> {
    let database = TestDatabase::new(major).await?;
    let computed = match major >= 18 {
        true => "VIRTUAL",
        false => "STORED",
    };
    database
        .execute(&TABLES.replace("{computed}", computed))
        .await?;
    let mut client = database.connect().await?;
    let name = format!("large-{major}");
    let mut settings = history::settings();
    settings["big_table_bytes"] = json!(8192);
    settings["base_jobs"] = json!(3);
    service.add_source(&name, &database.url(), settings).await?;
    service.wait_protected(&name).await?;
    client.batch_execute(CHANGES).await?;
    let expect = content(&mut client).await?;
    let position = truth::wal_position(&client).await?;
    service.wait_durable(&name, &position).await?;
    for replay in ["merged", "ordered"] {
        let copy = format!("{}_{replay}", database.name);
        let into = json!({"connection": database.server.url("postgres"), "create_database": copy});
        let order = json!({"target": "latest", "into": into, "replay": replay});
        let path = format!("/api/v1/sources/{name}/restores");
        let id = service.post(&path, order).await?["id"].clone();
        let ended = service.wait_restore(id.as_str().context("an id")?).await?;
        ensure!(
            ended["status"] == "succeeded",
            "{ended:#}\n{}",
            service.log()
        );
        let restored = content(&mut database.server.connect(&copy).await?).await?;
        history::drop_database(&database.server, &copy).await?;
        ensure!(expect == restored, "{expect:#?} became {restored:#?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn large_tables_come_back_whole_whatever_they_are() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let runs = tools::MAJORS.map(|major| {
        let run = large_tables(&service, major);
        async move { run.await.with_context(|| format!("PostgreSQL {major}")) }
    });
    futures::future::try_join_all(runs).await?;
    service.terminate().await?;
    Ok(())
}
