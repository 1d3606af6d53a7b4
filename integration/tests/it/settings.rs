//! Hostile settings of database and role, at the source and at the target: every session of ours pins
//! what decides how a value looks, and how long a statement may take.

use anyhow::{Context, Result, ensure};
use lastgood_integration::{Service, Storage, TestDatabase, digest, hard_values, history, truth};
use serde_json::json;

/// For the database of the source, and for the role, which the restore uses as well.
const HOSTILE: &[&str] = &[
    "DateStyle = 'German, DMY'",
    "IntervalStyle = 'sql_standard'",
    "TimeZone = 'Asia/Kolkata'",
    "bytea_output = 'escape'",
    "extra_float_digits = -15",
    "xmloption = 'document'",
    "xmlbinary = 'hex'",
    "array_nulls = off",
    "transform_null_equals = on",
    "quote_all_identifiers = on",
    "standard_conforming_strings = off",
    "backslash_quote = on",
    "escape_string_warning = on",
    "client_encoding = 'LATIN1'",
    "search_path = 'hostile', 'public', 'pg_catalog'",
    "default_transaction_read_only = on",
    "default_transaction_isolation = 'serializable'",
    "default_transaction_deferrable = on",
    "statement_timeout = '500ms'",
    "lock_timeout = '500ms'",
    "idle_in_transaction_session_timeout = '500ms'",
    "session_replication_role = 'replica'",
    "row_security = off",
    "check_function_bodies = off",
    "plpgsql.variable_conflict = 'use_column'",
    "plpgsql.extra_errors = 'all'",
    "synchronous_commit = off",
];

/// What a database may have as well that is restored into.
const OF_A_TARGET: &[&str] = &[
    "default_tablespace = 'nowhere'",
    "temp_tablespaces = ''",
    "default_table_access_method = 'heap'",
    "temp_buffers = '800kB'",
    "work_mem = '64kB'",
    "maintenance_work_mem = '1MB'",
    "enable_indexscan = off",
    "enable_seqscan = off",
    "jit = on",
    "jit_above_cost = 0",
    "constraint_exclusion = on",
    "client_min_messages = 'debug1'",
    "plan_cache_mode = 'force_generic_plan'",
    "vacuum_cost_delay = 1",
    "gin_fuzzy_search_limit = 1",
    "exit_on_error = on",
];

const LATER: &[(u32, &str)] = &[
    (14, "idle_session_timeout = '500ms'"),
    (17, "transaction_timeout = '500ms'"),
];

/// In front of `pg_catalog` in the search path: whoever does not pin it meets these.
const IN_FRONT: &str = r#"
CREATE SCHEMA hostile;
CREATE TABLE hostile.pg_class (oid int PRIMARY KEY, relname text);
CREATE TABLE hostile.pg_type (oid int PRIMARY KEY);
CREATE DOMAIN hostile.text AS pg_catalog.text CHECK (VALUE = 'never');
CREATE FUNCTION hostile.concat(VARIADIC pg_catalog.text[]) RETURNS pg_catalog.text LANGUAGE sql IMMUTABLE AS 'SELECT ''wrong''::pg_catalog.text';
CREATE FUNCTION hostile.never(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'SELECT false';
CREATE OPERATOR hostile.= (FUNCTION = hostile.never, LEFTARG = int, RIGHTARG = int);
INSERT INTO hostile.pg_class VALUES (1, 'one');
"#;

#[tokio::test(flavor = "multi_thread")]
async fn hostile_settings_change_nothing() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let of = |major| {
        let service = &service;
        async move {
            let checked = under_hostile_settings(service, major).await;
            checked.with_context(|| format!("PostgreSQL {major}"))
        }
    };
    tokio::try_join!(of(13), of(18))?;
    ensure!(service.terminate().await?.success());
    Ok(())
}

async fn under_hostile_settings(service: &Service, major: u32) -> Result<()> {
    let database = TestDatabase::new(major).await?;
    let mut client = database.connect().await?;
    client.batch_execute(IN_FRONT).await?;
    let mut types = hard_values::all(major);
    types.retain(|hard| hard.extension.is_none());
    client.batch_execute(hard_values::OBJECTS).await?;
    let rows = types
        .iter()
        .map(|hard| hard.values.len())
        .max()
        .unwrap_or(0);
    let columns: Vec<String> = (types.iter().enumerate())
        .map(|(at, hard)| format!("v{at} {}", hard.sql))
        .collect();
    let row = |id: usize, number: usize| -> String {
        let values = types.iter().map(|hard| {
            let value = &hard.values[number % hard.values.len()];
            format!("'{}'::{}", value.replace('\'', "''"), hard.sql)
        });
        format!("({id}, {})", values.collect::<Vec<_>>().join(", "))
    };
    for table in ["by_key", "by_row"] {
        let key = if table == "by_key" { "PRIMARY KEY" } else { "" };
        let all: Vec<String> = (0..rows).map(|number| row(number, number)).collect();
        let sql = format!(
            "CREATE TABLE {table} (id int {key}, {}); INSERT INTO {table} VALUES {}",
            columns.join(", "),
            all.join(", ")
        );
        client.batch_execute(&sql).await?;
    }
    client
        .batch_execute("ALTER TABLE by_row REPLICA IDENTITY FULL")
        .await?;

    let role = format!("hostile_{}", database.name);
    let mut settings = format!("CREATE ROLE {role} SUPERUSER LOGIN;");
    let later = LATER
        .iter()
        .filter(|(since, _)| major >= *since)
        .map(|(_, setting)| setting);
    for setting in HOSTILE.iter().chain(later) {
        let (name, value) = setting.split_once(" = ").context("a setting")?;
        for whom in [
            format!("DATABASE {}", database.name),
            format!("ROLE {role}"),
        ] {
            settings.push_str(&format!("ALTER {whom} SET {name} TO {value};"));
        }
    }
    // From here on every new session meets them; this one does not.
    client.batch_execute(&settings).await?;

    let name = format!("hostile-{major}");
    let url = database.server.url_as(&role, "", &database.name);
    service.add_source(&name, &url, history::settings()).await?;
    service.wait_protected(&name).await?;
    for table in ["by_key", "by_row"] {
        let all: Vec<String> = (0..rows).map(|number| row(1000 + number, number)).collect();
        let sql = format!(
            "INSERT INTO {table} VALUES {}; DELETE FROM {table} WHERE id % 7 = 3;
             UPDATE {table} SET id = id + 5000 WHERE id % 2 = 0; UPDATE hostile.pg_class SET relname = relname || '!'",
            all.join(", ")
        );
        client.batch_execute(&sql).await?;
    }
    let lsn = truth::wal_position(&client).await?;
    service.wait_durable(&name, &lsn).await?;
    let expected = digest::of(&mut client, None).await?;
    let copy = format!("{}_copy", database.name);
    let into = json!({"connection": database.server.url_as(&role, "", "postgres"), "create_database": copy});
    service.restore(&name, &json!("latest"), into).await?;
    let mut restored = database.server.connect(&copy).await?;
    expected.assert_restored(
        &digest::of(&mut restored, None).await?,
        &format!("PostgreSQL {major}"),
    );
    drop(restored);
    history::drop_database(&database.server, &copy).await?;

    // Into an empty database that is there already, with settings of its own.
    let empty = database.sibling().await?;
    let mut hostile = "SET client_min_messages = error;".to_owned();
    let later = LATER.iter().filter(|(since, _)| major >= *since);
    for setting in HOSTILE
        .iter()
        .chain(later.map(|(_, setting)| setting))
        .chain(OF_A_TARGET)
    {
        let (name, value) = setting.split_once(" = ").context("a setting")?;
        hostile.push_str(&format!(
            "ALTER DATABASE {} SET {name} TO {value};",
            empty.name
        ));
    }
    empty.execute(&hostile).await?;
    for url in [empty.url(), database.server.url_as(&role, "", &empty.name)] {
        service
            .restore(&name, &json!("latest"), json!({"connection": url}))
            .await?;
        let mut restored = empty.connect().await?;
        restored
            .batch_execute("SET quote_all_identifiers = off")
            .await?;
        expected.assert_restored(
            &digest::of(&mut restored, None).await?,
            &format!("PostgreSQL {major}, into {url}"),
        );
        let clear = "SET default_transaction_read_only = off; SET search_path = pg_catalog; SET statement_timeout = 0; SET lock_timeout = 0;
            DO $$ DECLARE s name; BEGIN FOR s IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema)' LOOP
              EXECUTE format('DROP SCHEMA %I CASCADE', s); END LOOP; END $$; CREATE SCHEMA public";
        restored.batch_execute("BEGIN READ WRITE").await?;
        restored.batch_execute(clear).await?;
        restored.batch_execute("COMMIT").await?;
    }
    Ok(())
}
