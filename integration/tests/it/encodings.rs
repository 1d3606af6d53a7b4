//! Databases that are not UTF-8: values and names come back as they were, and what cannot be carried is
//! refused beforehand.

use anyhow::{Context, Result, ensure};
use lastgood_integration::{Service, Storage, TestDatabase, history, truth};
use serde_json::{Value, json};
use tokio_postgres::Client;

/// The bytes of every row, whatever they mean: `E'\x..'` of the server's encoding.
const CONTENT: &str = "SELECT string_agg(id || ':' || encode(convert_to(v, getdatabaseencoding()), 'hex') || ':' || \
    encode(convert_to(k::text, getdatabaseencoding()), 'hex'), ' ' ORDER BY id) FROM ONLY ";

struct Case {
    encoding: &'static str,
    /// Quoted, with whatever the encoding has.
    table: &'static str,
    /// `bytea` literals of text in the encoding.
    values: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        encoding: "LATIN1",
        table: "\"Größe é\"",
        values: &["\\xe9", "\\xc3a9", "\\xff41a0", "\\x80819f", "\\x"],
    },
    Case {
        encoding: "EUC_JP",
        table: "\"日本\"",
        values: &["\\xc6fccbdc", "\\x8eb1", "\\x8fb0a1", "\\x5c7e", "\\x"],
    },
    // Bytes that are no UTF-8, beside some that are.
    Case {
        encoding: "SQL_ASCII",
        table: "plain",
        values: &[
            "\\xff",
            "\\xc3a9",
            "\\xe9",
            "\\x80fe5c09",
            "\\xeda080",
            "\\x",
        ],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn other_encodings_come_back_byte_for_byte() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let majors = [13, 18];
    let checks = majors.iter().flat_map(|major| {
        let service = &service;
        CASES.iter().map(move |case| async move {
            let checked = check(service, *major, case).await;
            checked.with_context(|| format!("PostgreSQL {major}, {}", case.encoding))
        })
    });
    futures::future::try_join_all(checks).await?;
    ensure!(service.terminate().await?.success());
    Ok(())
}

async fn database(major: u32, encoding: &str) -> Result<TestDatabase> {
    let database = TestDatabase::new(major).await?;
    let sql = format!(
        "CREATE DATABASE {0}_e TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'",
        database.name
    );
    database.server.execute("postgres", &sql).await?;
    let name = format!("{}_e", database.name);
    Ok(TestDatabase { name, ..database })
}

async fn write(client: &Client, case: &Case, from: usize) -> Result<()> {
    for (at, value) in case.values.iter().enumerate() {
        let sql = format!(
            "INSERT INTO {} VALUES ({}, convert_from('{value}', '{encoding}'), convert_from('{value}', '{encoding}') || '{from}')",
            case.table,
            from + at,
            encoding = case.encoding,
        );
        client.batch_execute(&sql).await?;
    }
    Ok(())
}

async fn content(client: &Client, case: &Case) -> Result<String> {
    let row = client
        .query_one(&format!("{CONTENT}{}", case.table), &[])
        .await?;
    Ok(row.get(0))
}

async fn check(service: &Service, major: u32, case: &Case) -> Result<()> {
    let database = database(major, case.encoding).await?;
    let client = database.connect().await?;
    let table = case.table;
    client
        .batch_execute(&format!(
            "CREATE TABLE {table} (id int, v text, k varchar(40) PRIMARY KEY)"
        ))
        .await?;
    write(&client, case, 0).await?;
    let name = format!("{}-{major}", case.encoding.to_lowercase());
    service
        .add_source(&name, &database.url(), history::settings())
        .await?;
    service.wait_protected(&name).await?;
    write(&client, case, 100).await?;
    // By key, with another key, and gone.
    let sql = format!(
        "UPDATE {table} SET v = v || k WHERE id >= 100; UPDATE {table} SET k = k || 'x', id = id + 10 WHERE id < 2; \
         DELETE FROM {table} WHERE id = 102"
    );
    client.batch_execute(&sql).await?;
    let expected = content(&client, case).await?;
    service
        .wait_durable(&name, &truth::wal_position(&client).await?)
        .await?;

    let copy = format!("{}_copy", database.name);
    let into = json!({"connection": database.server.url("postgres"), "create_database": copy});
    service.restore(&name, &json!("latest"), into).await?;
    let restored = database.server.connect(&copy).await?;
    let encoding: String = restored
        .query_one("SELECT getdatabaseencoding()::text", &[])
        .await?
        .get(0);
    assert_eq!(encoding, case.encoding);
    assert_eq!(content(&restored, case).await?, expected);
    Ok(())
}

/// A name that is not UTF-8 cannot stand in a segment: the probe says which, before anything is made.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_utf8_are_refused_beforehand() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = database(18, "SQL_ASCII").await?;
    let client = database.connect().await?;
    let name = |sql: &str| {
        format!(
            "DO $$ BEGIN EXECUTE convert_from('\\x{}', 'SQL_ASCII'); END $$",
            sql.bytes()
                .map(|byte| if byte == b'?' {
                    "ff".to_owned()
                } else {
                    format!("{byte:02x}")
                })
                .collect::<String>()
        )
    };
    for (create, drop, object) in [
        (
            "CREATE TABLE \"t?\" (id int)",
            "DROP TABLE \"t?\"",
            "public.t\\xff",
        ),
        (
            "CREATE TABLE t (id int PRIMARY KEY, \"c?\" text)",
            "DROP TABLE t",
            "public.t.c\\xff",
        ),
        (
            "CREATE TYPE e AS ENUM ('l?')",
            "DROP TYPE e",
            "public.e.l\\xff",
        ),
        ("CREATE SCHEMA \"s?\"", "DROP SCHEMA \"s?\"", "s\\xff"),
    ] {
        client.batch_execute(&name(create)).await.context(create)?;
        let report = service
            .post("/api/v1/probe", json!({"connection": database.url()}))
            .await?;
        let findings = report["findings"].as_array().cloned().unwrap_or_default();
        let found = |finding: &&Value| {
            finding["code"] == "name_not_utf8" && finding["severity"] == "blocker"
        };
        let objects: Vec<&Value> = findings
            .iter()
            .filter(found)
            .map(|finding| &finding["object"])
            .collect();
        assert!(objects.contains(&&json!(object)), "{create}: {report:#}");
        client.batch_execute(&name(drop)).await.context(drop)?;
    }
    ensure!(service.terminate().await?.success());
    Ok(())
}
