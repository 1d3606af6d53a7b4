//! Restores into an existing database of another encoding: the same text, or a clear refusal.

use anyhow::{Result, ensure};
use lastgood_integration::{Service, Storage, TestDatabase, history, truth};
use serde_json::{Value, json};
use tokio_postgres::Client;

use super::database;

/// Text, whatever it is stored in.
const TEXT: &str = "SELECT string_agg(id || v, ' ' ORDER BY id) FROM t";

/// A source with a row in its base and one in its segments, both `bytea` literals of text.
async fn source(
    service: &Service,
    name: &str,
    encoding: &str,
    values: [&str; 2],
) -> Result<Client> {
    let database = database(18, encoding).await?;
    let client = database.connect().await?;
    client
        .batch_execute("CREATE TABLE t (id int PRIMARY KEY, v text)")
        .await?;
    let insert = |id, value| {
        format!("INSERT INTO t VALUES ({id}, convert_from('{value}', getdatabaseencoding()))")
    };
    client.batch_execute(&insert(1, values[0])).await?;
    let settings = history::settings();
    service.add_source(name, &database.url(), settings).await?;
    service.wait_protected(name).await?;
    client.batch_execute(&insert(2, values[1])).await?;
    let position = truth::wal_position(&client).await?;
    service.wait_durable(name, &position).await?;
    Ok(client)
}

async fn restore(service: &Service, name: &str, target: &TestDatabase) -> Result<Value> {
    let into = json!({"connection": target.url()});
    let id = service.start_restore(name, &json!("latest"), into).await?;
    service.wait_restore(&id).await
}

#[tokio::test(flavor = "multi_thread")]
async fn another_encoding_has_the_same_text_or_is_refused() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    for (name, encoding, values, target) in [
        ("latin1", "LATIN1", ["\\xe9", "\\xfc9f"], "UTF8"),
        // Its second value has two codes.
        ("euc_jp", "EUC_JP", ["\\xc6fccbdc", "\\xa2e2adf0"], "UTF8"),
        ("win1251", "WIN1251", ["\\xe6", "\\xc6"], "KOI8R"),
        ("utf8", "UTF8", ["\\xe697a5", "\\xe69cac"], "EUC_JP"),
    ] {
        let client = source(&service, name, encoding, values).await?;
        let target = database(18, target).await?;
        let ended = restore(&service, name, &target).await?;
        ensure!(ended["status"] == "succeeded", "{ended:#}");
        let expected: String = client.query_one(TEXT, &[]).await?.get(0);
        let restored = target.connect().await?;
        let found: String = restored.query_one(TEXT, &[]).await?.get(0);
        assert_eq!(found, expected, "{name}");
    }
    // What the target has no code for, in the base and in the segments.
    for (name, encoding, values, target) in [
        ("base", "EUC_JP", ["\\xa2af", "\\x61"], "UTF8"),
        ("segment", "EUC_JP", ["\\x61", "\\xa2af"], "UTF8"),
        ("latin1_base", "UTF8", ["\\xe697a5", "\\x61"], "LATIN1"),
        ("latin1_segment", "UTF8", ["\\x61", "\\xe697a5"], "LATIN1"),
    ] {
        source(&service, name, encoding, values).await?;
        let target = database(18, target).await?;
        let ended = restore(&service, name, &target).await?;
        let said = ended.to_string();
        ensure!(
            ended["status"] == "failed" && said.contains("has no equivalent in encoding"),
            "{name}: {ended:#}"
        );
    }
    // From 14 on the server would take any bytes for UTF-8. The last two have no conversion.
    for (name, encoding, values, target) in [
        ("ascii", "SQL_ASCII", ["\\xff", "\\xe9"], "UTF8"),
        ("to_ascii", "LATIN1", ["\\xff", "\\xe9"], "SQL_ASCII"),
        ("win1252", "WIN1252", ["\\xe9", "\\xe9"], "LATIN1"),
        ("euc_jis", "EUC_JIS_2004", ["\\xc6fc", "\\xcbdc"], "EUC_JP"),
    ] {
        source(&service, name, encoding, values).await?;
        let target = database(18, target).await?;
        let body = json!({"target": "latest", "into": {"connection": target.url()}});
        let path = format!("/api/v1/sources/{name}/restores");
        let answer = service
            .request(reqwest::Method::POST, &path, Some(&body))
            .await?;
        let said = format!("{answer:?}");
        ensure!(
            answer.code() == "restore_refused" && said.contains("between which nothing converts"),
            "{name}: {said}"
        );
    }
    ensure!(service.terminate().await?.success());
    Ok(())
}
