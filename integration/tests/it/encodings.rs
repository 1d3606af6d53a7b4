//! Databases that are not UTF-8: values and names come back as they were, and what cannot be carried is
//! refused beforehand.

mod elsewhere;

use anyhow::{Context, Result, ensure};
use lastgood_integration::{Service, Storage, TestDatabase, history, truth};
use serde_json::{Value, json};
use tokio_postgres::Client;

/// The bytes of everything that can hold text, whatever they mean.
const CONTENT: &str = "
    SELECT string_agg(encode(convert_to(line, getdatabaseencoding()), 'hex'), ' ' ORDER BY line COLLATE \"C\") FROM (
        SELECT 'row ' || t::text FROM ONLY TABLE t
        UNION ALL SELECT 'whole ' || t::text FROM whole t
        UNION ALL SELECT 'default ' || pg_get_expr(adbin, adrelid) FROM pg_attrdef
        UNION ALL SELECT 'comment ' || d.description FROM pg_description d WHERE d.classoid = 'pg_class'::regclass
                         AND d.objoid = 'whole'::regclass
        UNION ALL SELECT 'function ' || prosrc FROM pg_proc WHERE proname = 'f'
        UNION ALL SELECT 'column ' || attname FROM pg_attribute WHERE attrelid = 'TABLE'::regclass AND attnum > 0
    ) AS lines (line)";

struct Case {
    encoding: &'static str,
    /// Quoted, with whatever the encoding has; the name of a column too.
    table: &'static str,
    /// `bytea` literals of text in the encoding.
    values: &'static [&'static str],
}

/// Among others every code that PostgreSQL turns into another one on the way through UTF-8.
const EUC_JP: &[&str] = &[
    "\\xc6fccbdc",
    "\\x8eb1",
    "\\x8fb0a1",
    "\\x5c7e",
    "\\x",
    // For each of these characters there is another code too.
    "\\x8fa2f1",
    "\\xade2",
    "\\x8ff3fd",
    "\\xadb5",
    "\\x8ff3fe",
    "\\xadb6",
    "\\x8ff4a1",
    "\\xadb7",
    "\\x8ff4a2",
    "\\x8ff4a3",
    "\\x8ff4a4",
    "\\x8ff4a5",
    "\\x8ff4a6",
    "\\x8ff4a7",
    "\\x8ff4a8",
    "\\x8ff4ab",
    "\\x8ff4ac",
    "\\x8ff4ad",
    "\\xadf0",
    "\\xa2e2",
    "\\xadf1",
    "\\xadf2",
    "\\xadf5",
    "\\xadf6",
    "\\xadf7",
    "\\xadfa",
    "\\xadfb",
    "\\xadfc",
    // No character.
    "\\xa2af",
    "\\xa8e2",
    "\\x8ffefe",
    // Bytes that would be UTF-8.
    "\\xc3a9",
];

const CASES: &[Case] = &[
    Case {
        encoding: "LATIN1",
        table: "\"Größe é\"",
        values: &["\\xe9", "\\xc3a9", "\\xff41a0", "\\x80819f", "\\x"],
    },
    Case {
        encoding: "EUC_JP",
        table: "\"日本\"",
        values: EUC_JP,
    },
    Case {
        encoding: "EUC_CN",
        table: "\"中文\"",
        values: &["\\xd6d0cec4", "\\xa2a1", "\\xa6d9", "\\x"],
    },
    Case {
        encoding: "EUC_KR",
        table: "\"한국 열\"",
        values: &["\\xc7d1b1b9", "\\xa2e9", "\\xfefe", "\\x"],
    },
    Case {
        encoding: "EUC_TW",
        table: "\"３乂\"",
        values: &[
            "\\xa1a1",
            "\\x8ea1a1a1",
            "\\x8ea1fdcb",
            "\\xfdcb",
            "\\x8ea7fefe",
            "\\x80a1",
        ],
    },
    // Two characters that have a code together, and one each.
    Case {
        encoding: "EUC_JIS_2004",
        table: "\"日本か゚\"",
        values: &["\\xa4f7", "\\xa4ab", "\\xa4fc", "\\x8fa2ab"],
    },
    Case {
        encoding: "WIN1252",
        table: "\"Größe €\"",
        values: &["\\x80", "\\x81", "\\xe99d", "\\xc3a9", "\\x"],
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

pub(crate) async fn database(major: u32, encoding: &str) -> Result<TestDatabase> {
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
    let Case {
        encoding, table, ..
    } = case;
    for (at, value) in case.values.iter().enumerate() {
        let id = from + at;
        for table in [table, "whole"] {
            let sql = format!(
                "INSERT INTO {table} SELECT {id}, x, x || '{from}', ARRAY[x, NULL, x || '\"'], to_jsonb(x), ROW(x, x)::pair \
                 FROM convert_from('{value}', '{encoding}') x"
            );
            client.batch_execute(&sql).await.context(sql)?;
        }
    }
    Ok(())
}

async fn content(client: &Client, case: &Case) -> Result<String> {
    let row = client
        .query_one(&CONTENT.replace("TABLE", case.table), &[])
        .await?;
    Ok(row.get(0))
}

/// Two tables that differ in what finds a row, and definitions with the case's values in them.
async fn define(client: &Client, case: &Case) -> Result<()> {
    let Case {
        encoding, table, ..
    } = case;
    let columns = format!("id int, v text, k varchar(40), many text[], doc jsonb, {table} pair");
    client
        .batch_execute(&format!(
            "CREATE TYPE pair AS (a text, b text);
             CREATE TABLE {table} ({columns}, PRIMARY KEY (k));
             CREATE TABLE whole ({columns}); ALTER TABLE whole REPLICA IDENTITY FULL"
        ))
        .await?;
    for value in case.values {
        client
            .batch_execute(&format!(
                "DO $$ DECLARE x text := convert_from('{value}', '{encoding}'); BEGIN
                     EXECUTE format('ALTER TABLE whole ALTER v SET DEFAULT %L', x);
                     EXECUTE format('COMMENT ON TABLE whole IS %L', x || '.');
                     EXECUTE format('CREATE OR REPLACE FUNCTION f() RETURNS text LANGUAGE sql AS %L',
                                    format('SELECT %L', x));
                 END $$"
            ))
            .await?;
    }
    Ok(())
}

async fn check(service: &Service, major: u32, case: &Case) -> Result<()> {
    let database = database(major, case.encoding).await?;
    let client = database.connect().await?;
    let table = case.table;
    define(&client, case).await?;
    write(&client, case, 0).await?;
    let name = format!("{}-{major}", case.encoding.to_lowercase());
    service
        .add_source(&name, &database.url(), history::settings())
        .await?;
    service.wait_protected(&name).await?;
    write(&client, case, 100).await?;
    for table in [table, "whole"] {
        // By key, with another key, and gone.
        let sql = format!(
            "UPDATE {table} SET v = v || k, many[3] = v WHERE id >= 100; \
             UPDATE {table} SET k = k || 'x', id = id + 1000 WHERE id < 2; DELETE FROM {table} WHERE id IN (2, 102)"
        );
        client.batch_execute(&sql).await?;
    }
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

/// `--tables`, and a table with an archive of its own: `pg_dump` and `pg_restore` know the names in the
/// source's encoding.
#[tokio::test(flavor = "multi_thread")]
async fn a_table_is_found_by_its_name_in_any_encoding() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = database(18, "EUC_JP").await?;
    let client = database.connect().await?;
    client
        .batch_execute(
            "CREATE SCHEMA \"店\"; CREATE TABLE \"店\".\"客\" (\"番号\" int PRIMARY KEY);
             CREATE TABLE \"店\".\"注文 書\" (id int PRIMARY KEY, \"客\" int REFERENCES \"店\".\"客\", v text);
             GRANT SELECT ON \"店\".\"客\" TO PUBLIC; INSERT INTO \"店\".\"客\" VALUES (1);
             INSERT INTO \"店\".\"注文 書\" SELECT i, 1, repeat(md5(i::text), 10) || '日' FROM generate_series(1, 6000) i",
        )
        .await?;
    let mut settings = history::settings();
    settings["big_table_bytes"] = json!(1 << 20);
    service
        .add_source("shop", &database.url(), settings)
        .await?;
    service.wait_protected("shop").await?;
    client
        .batch_execute(
            "UPDATE \"店\".\"注文 書\" SET v = convert_from('\\xadf0', 'EUC_JP') WHERE id = 7",
        )
        .await?;
    let position = truth::wal_position(&client).await?;
    service.wait_durable("shop", &position).await?;

    let content = "SELECT md5(string_agg(convert_to(t::text, 'EUC_JP')::text, ' ' ORDER BY id)) FROM \"店\".\"注文 書\" t";
    let expected: String = client.query_one(content, &[]).await?.get(0);
    for tables in [json!(["店.\"注文 書\""]), json!(null)] {
        let name = format!(
            "{}_{}",
            database.name,
            if tables.is_null() { "all" } else { "one" }
        );
        let mut body = json!({
            "target": "latest",
            "into": {"connection": database.server.url("postgres"), "create_database": name},
        });
        if !tables.is_null() {
            body["tables"] = tables.clone();
            let plan = json!({"target": "latest", "tables": tables});
            let plan = service.post("/api/v1/sources/shop/plan", plan).await?;
            let left_out = &plan["partial"]["left_out"][0];
            ensure!(
                left_out["object"] == "constraint \"注文 書_客_fkey\" of \"店\".\"注文 書\"",
                "{plan:#}"
            );
        }
        let begun = service.post("/api/v1/sources/shop/restores", body).await?;
        let ended = service
            .wait_restore(begun["id"].as_str().context("an id")?)
            .await?;
        ensure!(ended["status"] == "succeeded", "{ended:#}");
        let restored = database.server.connect(&name).await?;
        let found: String = restored.query_one(content, &[]).await?.get(0);
        assert_eq!(found, expected);
        if tables.is_null() {
            let granted = "SELECT relacl::text LIKE '%=r/%' FROM pg_class WHERE relname = '客'";
            ensure!(restored.query_one(granted, &[]).await?.get::<_, bool>(0));
        }
    }
    // Beside it, under a new schema; the second code of a character stays what it was.
    let body = json!({
        "target": "latest",
        "tables": ["店.\"注文 書\""],
        "into": {"connection": database.server.url(&format!("{}_all", database.name))},
        "into_schema": "戻",
    });
    let begun = service.post("/api/v1/sources/shop/restores", body).await?;
    let id = begun["id"].as_str().context("an id")?;
    let ended = service.wait_restore(id).await?;
    ensure!(ended["status"] == "succeeded", "{ended:#}");
    let restored = database
        .server
        .connect(&format!("{}_all", database.name))
        .await?;
    let content = content.replace('店', "戻");
    let found: String = restored.query_one(&content, &[]).await?.get(0);
    assert_eq!(found, expected);
    ensure!(service.terminate().await?.success());
    Ok(())
}

/// Segments carry names as UTF-8: the probe says which cannot stand in them, before anything is made.
#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_not_utf8_are_refused_beforehand() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    for (encoding, code, escaped) in [
        ("SQL_ASCII", "ff", "\\xff"),
        // No character, and the second code of one.
        ("EUC_JP", "a2af", "\\xa2\\xaf"),
        ("EUC_JP", "adf0", "\\xad\\xf0"),
    ] {
        let named = names(&service, encoding, code, escaped).await;
        named.with_context(|| format!("{encoding} {code}"))?;
    }
    ensure!(service.terminate().await?.success());
    Ok(())
}

async fn names(service: &Service, encoding: &str, code: &str, escaped: &str) -> Result<()> {
    let database = database(18, encoding).await?;
    let client = database.connect().await?;
    let name = |sql: &str| {
        let hex = |byte| match byte {
            b'?' => code.to_owned(),
            byte => format!("{byte:02x}"),
        };
        let sql: String = sql.bytes().map(hex).collect();
        format!("DO $$ BEGIN EXECUTE convert_from('\\x{sql}', '{encoding}'); END $$")
    };
    for (create, drop, object) in [
        (
            "CREATE TABLE \"t?\" (id int)",
            "DROP TABLE \"t?\"",
            "public.t?",
        ),
        (
            "CREATE TABLE t (id int PRIMARY KEY, \"c?\" text)",
            "DROP TABLE t",
            "public.t.c?",
        ),
        ("CREATE TYPE e AS ENUM ('l?')", "DROP TYPE e", "public.e.l?"),
        ("CREATE SCHEMA \"s?\"", "DROP SCHEMA \"s?\"", "s?"),
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
        let object = json!(object.replace('?', escaped));
        assert!(objects.contains(&&object), "{create}: {report:#}");
        client.batch_execute(&name(drop)).await.context(drop)?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_encoding_that_nothing_converts_is_refused() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = database(18, "MULE_INTERNAL").await?;
    let report = service
        .post("/api/v1/probe", json!({"connection": database.url()}))
        .await?;
    let finding = &report["findings"][0];
    let message = finding["message"].as_str().unwrap_or_default();
    ensure!(
        finding["severity"] == "blocker"
            && message.contains("conversion between UTF8 and MULE_INTERNAL is not supported"),
        "{report:#}"
    );
    ensure!(service.terminate().await?.success());
    Ok(())
}
