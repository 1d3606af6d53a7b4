//! How text is compared and converted: collations under which different texts are equal, and databases
//! whose locale is not the server's.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use lastgood_integration::{Service, Storage, TestDatabase, digest, history, postgres, truth};
use serde_json::json;

/// Keys that are equal although they are not the same, each in its way.
const EQUAL_KEYS: &str = "
    CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false);
    CREATE COLLATION letters (provider = icu, locale = 'und-u-ks-level1', deterministic = false);
    CREATE DOMAIN code AS text COLLATE nocase;
    CREATE TABLE key (k text COLLATE nocase PRIMARY KEY, v text, big text); ALTER TABLE key ALTER big SET STORAGE EXTERNAL;
    CREATE TABLE pair (n int, k varchar(20) COLLATE letters, v text, PRIMARY KEY (n, k));
    CREATE TABLE coded (k code PRIMARY KEY, v code);
    CREATE TABLE whole (k text COLLATE nocase, v text COLLATE letters); ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE whole_keyed (k text COLLATE nocase PRIMARY KEY, v text); ALTER TABLE whole_keyed REPLICA IDENTITY FULL;
    CREATE TABLE strict (k text COLLATE nocase NOT NULL, v text); CREATE UNIQUE INDEX strict_k ON strict (k COLLATE \"C\");
    ALTER TABLE strict REPLICA IDENTITY USING INDEX strict_k;
    CREATE TABLE loose (k text NOT NULL, v text); CREATE UNIQUE INDEX loose_k ON loose (k COLLATE nocase);
    ALTER TABLE loose REPLICA IDENTITY USING INDEX loose_k;
    INSERT INTO key SELECT k, 'x', repeat(k, 3000) FROM unnest('{A,b,C,Straße}'::text[]) k;
    INSERT INTO pair VALUES (1, 'É', 'x'), (1, 'f', 'x'), (2, 'e', 'x'); INSERT INTO coded VALUES ('A', 'x'), ('b', 'x');
    INSERT INTO whole VALUES ('A', 'x'), ('a', 'x'), ('A', 'X'), ('a', 'x'), (NULL, 'É'), (NULL, 'e'); INSERT INTO whole_keyed VALUES ('A', 'x'), ('b', 'x');
    INSERT INTO strict VALUES ('A', 'upper'), ('a', 'lower'), ('b', 'x'); INSERT INTO loose VALUES ('A', 'x'), ('b', 'x');";

const CHANGES: &[&str] = &[
    "UPDATE key SET v = 'y' WHERE k = 'a'; UPDATE pair SET v = 'y' WHERE k = 'e'; UPDATE coded SET v = 'y' WHERE k = 'a'; UPDATE loose SET v = 'y' WHERE k = 'A'",
    "UPDATE key SET k = 'a' WHERE k = 'A'; UPDATE key SET v = 'z' WHERE k = 'A'; UPDATE pair SET k = 'e' WHERE n = 1 AND k = 'É'; UPDATE coded SET k = 'a', v = 'z'
       WHERE k = 'A'; UPDATE loose SET k = 'a' WHERE k = 'A'; UPDATE whole_keyed SET k = 'a' WHERE k = 'A'",
    "BEGIN; UPDATE key SET k = 'B' WHERE k = 'b'; UPDATE key SET k = 'b', v = 'back' WHERE k = 'b'; UPDATE key SET v = 'last' WHERE k = 'B'; COMMIT",
    "BEGIN; DELETE FROM key WHERE k = 'c'; INSERT INTO key VALUES ('c', 'again', 'short'); UPDATE key SET v = 'more' WHERE k = 'C'; COMMIT",
    "BEGIN; DELETE FROM loose WHERE k = 'b'; INSERT INTO loose VALUES ('B', 'again'); UPDATE loose SET v = 'more' WHERE k = 'B'; COMMIT",
    "UPDATE strict SET v = 'one' WHERE k = 'A' COLLATE \"C\"; UPDATE strict SET v = 'two' WHERE k = 'a' COLLATE \"C\"; UPDATE strict SET k = 'B' WHERE k = 'b'",
    "INSERT INTO strict VALUES ('b', 'beside'); DELETE FROM strict WHERE k = 'A' COLLATE \"C\"; UPDATE strict SET k = 'A', v = 'three' WHERE k = 'a'",
    "UPDATE whole SET v = 'y' WHERE ctid = (SELECT ctid FROM whole WHERE k = 'a' COLLATE \"C\" LIMIT 1); DELETE FROM whole WHERE v = 'X' COLLATE \"C\"",
    "UPDATE whole SET k = upper(k) WHERE v = 'y'; DELETE FROM whole WHERE v = 'e' COLLATE \"C\" AND k IS NULL; UPDATE whole_keyed SET v = 'y' WHERE k = 'A'; DELETE FROM whole_keyed WHERE k = 'B'",
    "DELETE FROM pair WHERE k = 'E' AND n = 1; UPDATE key SET k = 'strasse' WHERE k = 'straße'; UPDATE key SET k = upper(k), v = v || '!'; DELETE FROM coded WHERE k = 'B'",
];

/// PostgreSQL fact: a key of a collation that calls 'A' and 'a' equal. The server takes a change from the one to the
/// other for a change of the key, and sends the old key as it was.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_equal_and_not_the_same() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let mut tested = 0;
    for major in lastgood_integration::tools::MAJORS {
        let database = TestDatabase::new(major).await?;
        let client = database.connect().await?;
        let sql =
            "SELECT count(*) FROM pg_collation WHERE collprovider = 'i' AND collname = 'de-x-icu'";
        if client.query_one(sql, &[]).await?.get::<_, i64>(0) == 0 {
            eprintln!("PostgreSQL {major} here is built without ICU: not tested on it");
            continue;
        }
        tested += 1;
        client.batch_execute(EQUAL_KEYS).await?;
        let name = format!("collations-{major}");
        service
            .add_source(&name, &database.url(), history::settings())
            .await?;
        service.wait_protected(&name).await?;
        for change in CHANGES {
            client.batch_execute(change).await.context(*change)?;
        }
        history::check_latest(&service, &name, &database).await?;
    }
    ensure!(
        tested > 0 || std::env::var_os("CI").is_none(),
        "no server here has ICU"
    );
    service.terminate().await?;
    Ok(())
}

/// Options of CREATE DATABASE, and since when.
const LOCALES: [(u32, u32, &str); 4] = [
    (13, 18, "LC_COLLATE 'C' LC_CTYPE 'C'"),
    (13, 16, "LC_COLLATE 'POSIX' LC_CTYPE 'C.UTF-8'"),
    (
        17,
        18,
        "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'",
    ),
    (
        18,
        18,
        "LOCALE_PROVIDER builtin BUILTIN_LOCALE 'PG_UNICODE_FAST'",
    ),
];

const OF_LOCALE: &str =
    "SELECT concat_ws(' ', d->>'datlocprovider', d->>'datcollate', d->>'datctype', d->>'datlocale')
    FROM (SELECT to_jsonb(d) AS d FROM pg_database d WHERE datname = current_database()) d";

/// What the database's locale decides is in the rows as well: generated columns are computed again by
/// a restore. So a database made for a restore has the source's, and one that has another is named.
#[tokio::test(flavor = "multi_thread")]
async fn the_locale_of_the_database_comes_along() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let all = [13, 16, 17, 18].into_iter().flat_map(|major| {
        let known = LOCALES.iter().enumerate();
        known
            .filter(move |(_, (since, until, _))| (*since..=*until).contains(&major))
            .map(move |(at, (.., options))| (major, at, *options))
    });
    let runs = all.map(|(major, at, options)| {
        let run = of_locale(&service, major, at, options);
        async move {
            run.await
                .with_context(|| format!("PostgreSQL {major}, {options}"))
        }
    });
    futures::future::try_join_all(runs).await?;
    service.terminate().await?;
    Ok(())
}

async fn of_locale(service: &Service, major: u32, at: usize, options: &str) -> Result<()> {
    let server = postgres::shared(major).await?;
    let name = format!("locale_{major}_{at}");
    let create = format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8' {options}");
    server.execute("postgres", &create).await?;
    let database = TestDatabase {
        server: Arc::clone(&server),
        name: name.clone(),
    };
    let mut client = database.connect().await?;
    client
        .batch_execute(
            "CREATE TABLE t (id int PRIMARY KEY, v text, up text GENERATED ALWAYS AS (upper(v)) STORED, before bool GENERATED ALWAYS AS (v < 'a') STORED);
             INSERT INTO t VALUES (1, 'straße'), (2, 'É é'), (3, 'ŉ Ǆ ﬁ'), (4, 'B')",
        )
        .await?;
    let setting = r#"SET "search_path" TO public, "Odd one""#;
    let alter = async |database: &str| {
        let alter = format!("ALTER DATABASE \"{database}\" {setting}");
        server.execute("postgres", &alter).await?;
        anyhow::Ok(alter)
    };
    alter(&name).await?;
    service
        .add_source(&name, &database.url(), history::settings())
        .await?;
    service.wait_protected(&name).await?;
    client
        .batch_execute("INSERT INTO t VALUES (5, 'ä'); UPDATE t SET v = v || 'ö' WHERE id < 3")
        .await?;
    let content = digest::of(&mut client, None).await?;
    let lsn = truth::wal_position(&client).await?;
    service.wait_durable(&name, &lsn).await?;

    let copy = format!("{name}_copy");
    let into = json!({"connection": server.url("postgres"), "create_database": copy});
    let made = service.restore(&name, &json!("latest"), into).await?;
    let mut restored = server.connect(&copy).await?;
    content.assert_restored(&digest::of(&mut restored, None).await?, options);
    let locale: String = client.query_one(OF_LOCALE, &[]).await?.get(0);
    let same: String = restored.query_one(OF_LOCALE, &[]).await?.get(0);
    ensure!(locale == same, "{locale} became {same}");
    ensure!(!names_locale(&made), "{made:#}");
    let note = format!("not kept: {}", alter(&copy).await?);
    ensure!(made["report"]["notes"] == json!([note]), "{made:#}");
    let own = "SELECT setconfig FROM pg_db_role_setting s JOIN pg_database d ON d.oid = setdatabase WHERE datname = current_database()";
    let [had, has] = [&client, &restored].map(async |client| client.query_one(own, &[]).await);
    let (had, has): (Vec<String>, Vec<String>) = (had.await?.get(0), has.await?.get(0));
    ensure!(had == has, "{had:?} became {has:?}");
    drop(restored);
    history::drop_database(&server, &copy).await?;

    let other = TestDatabase::new(major).await?;
    let into = json!({"connection": other.url()});
    let found = service.restore(&name, &json!("latest"), into).await?;
    ensure!(names_locale(&found), "{found:#}");
    Ok(())
}

fn names_locale(restore: &serde_json::Value) -> bool {
    let notes = restore["report"]["notes"].as_array();
    notes.is_some_and(|notes| {
        notes
            .iter()
            .any(|it| it.to_string().contains("the database's locale is"))
    })
}
