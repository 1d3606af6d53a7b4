//! Every type with its hard values, on every major: in the base, inserted, updated from and to each
//! value, as plain column, array, matrix, composite and domain, as a key and as a row that is found by
//! all its columns. What comes back is compared as text and in binary.
//!
//! What the tests rest on was found by experiment (logical replication of PostgreSQL 13 to 18); each
//! says which finding it holds down.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use lastgood_integration::hard_values::{self, HardType};
use lastgood_integration::{Service, Storage, TestDatabase, history, seed, truth};
use serde_json::json;
use tokio_postgres::Client;

/// The settings that decide how a value looks.
const PINNED: &str = "SET DateStyle='ISO'; SET IntervalStyle='postgres'; SET TimeZone='UTC'; \
    SET extra_float_digits=3; SET bytea_output='hex'; SET lc_monetary='C'; SET search_path='pg_catalog'";

/// Values come back as they were: text round trips of every type; types without equality and
/// rows that are equal but not the same, such as 0 and -0, 1.0 and 1.00, one day and 24 hours, under
/// REPLICA IDENTITY FULL.
#[tokio::test(flavor = "multi_thread")]
async fn every_type_comes_back_with_its_hard_values() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    // Two at once: more would only wait for each other.
    let majors = seed::majors("every_type_comes_back_with_its_hard_values");
    let majors = majors.into_iter().map(|major| {
        let service = &service;
        async move {
            let checked = Box::pin(types_of(service, major)).await;
            checked.with_context(|| format!("PostgreSQL {major}"))
        }
    });
    futures::stream::iter(majors)
        .buffer_unordered(2)
        .try_collect::<()>()
        .await?;
    ensure!(service.terminate().await?.success());
    Ok(())
}

async fn types_of(service: &Service, major: u32) -> Result<()> {
    let database = TestDatabase::new(major).await?;
    let client = database.connect().await?;
    let types = installed(&client, major).await?;
    none_is_missing(&client, &types).await?;
    client.batch_execute(hard_values::OBJECTS).await?;
    // A table for each type twice over is much to restore: on the oldest and the newest major.
    let each = [13, 18].contains(&major);
    let tables = Tables {
        types: &types,
        each,
    };
    client.batch_execute(&tables.definitions()).await?;
    client.batch_execute(&tables.base()).await?;
    let keyed = keyed(&client).await?;

    let name = format!("types-{major}");
    service
        .add_source(&name, &database.url(), history::settings())
        .await?;
    service.wait_protected(&name).await?;
    for change in tables.changes(&keyed) {
        client
            .batch_execute(&change)
            .await
            .with_context(|| change.chars().take(300).collect::<String>())?;
    }
    let expected = content(&client).await?;
    service
        .wait_durable(&name, &truth::wal_position(&client).await?)
        .await?;
    let copy = format!("{}_copy", database.name);
    let into = json!({"connection": database.server.url("postgres"), "create_database": copy});
    service.restore(&name, &json!("latest"), into).await?;
    let restored = content(&database.server.connect(&copy).await?).await?;
    let differences = differences(&expected, &restored);
    ensure!(differences.is_empty(), "{}", differences.join("\n"));
    history::drop_database(&database.server, &copy).await
}

/// The types of this server: built in, or of an extension that it has.
async fn installed(client: &Client, major: u32) -> Result<Vec<HardType>> {
    let mut types = hard_values::all(major);
    let wanted: BTreeSet<_> = types.iter().filter_map(|hard| hard.extension).collect();
    for extension in wanted {
        let sql = format!("CREATE EXTENSION {extension}");
        client.batch_execute(&sql).await.context(sql)?;
    }
    types.retain(|hard| major >= hard.since);
    Ok(types)
}

/// A type that this server has and the list does not know is a type that nobody has tested.
async fn none_is_missing(client: &Client, types: &[HardType]) -> Result<()> {
    let sql = "SELECT typname::text FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace \
        AND typtype IN ('b', 'r', 'm', 'e', 'd') AND typinput <> 'array_in'::regproc ORDER BY 1";
    for row in client.query(sql, &[]).await? {
        let name: &str = row.get(0);
        if hard_values::WITHOUT_INPUT.contains(&name) {
            let value = client.batch_execute(&format!("SELECT ''::{name}")).await;
            ensure!(value.is_err(), "{name} has values: give it some");
            continue;
        }
        ensure!(
            types
                .iter()
                .any(|hard| hard.name == name && hard.values.len() > 1),
            "the type {name} has no hard values yet: add it to hard_values.rs"
        );
    }
    Ok(())
}

/// Types that can be a key: those with an order.
async fn keyed(client: &Client) -> Result<Vec<usize>> {
    let sql = "SELECT substr(relname, 2)::int FROM pg_class WHERE relkind = 'r' AND relname ~ '^k[0-9]+$'";
    let rows = client.query(sql, &[]).await?;
    rows.iter()
        .map(|row| Ok(usize::try_from(row.get::<_, i32>(0))?))
        .collect()
}

struct Tables<'a> {
    types: &'a [HardType],
    /// Also tables for each type alone.
    each: bool,
}

/// The wide tables: one column for every type.
const WIDE: [&str; 5] = ["plain", "vector", "matrix", "composite", "domain"];

impl Tables<'_> {
    fn definitions(&self) -> String {
        let mut sql = String::new();
        let mut columns = WIDE.map(|_| String::new());
        for (at, hard) in self.types.iter().enumerate() {
            let own = hard.sql;
            let _ = writeln!(
                sql,
                "CREATE DOMAIN d{at} AS {own}; CREATE TYPE c{at} AS (\"x y\" int, v {own}, d d{at}, a {own}[], t text);"
            );
            if self.each {
                let _ = writeln!(
                    sql,
                    "CREATE TABLE f{at} (v {own}, n int); ALTER TABLE f{at} REPLICA IDENTITY FULL;
                 DO $$ BEGIN CREATE TABLE k{at} (v {own}, d d{at}, n int, PRIMARY KEY (v, d));
                 EXCEPTION WHEN undefined_object THEN NULL; END $$;"
                );
            }
            for (shape, columns) in WIDE.iter().zip(&mut columns) {
                let declared = match *shape {
                    "plain" => own.to_owned(),
                    "vector" => format!("{own}[]"),
                    "matrix" => format!("d{at}[]"),
                    "composite" => format!("c{at}"),
                    _ => format!("d{at}"),
                };
                let _ = write!(columns, ", v{at} {declared}");
            }
        }
        for (shape, columns) in WIDE.iter().zip(columns) {
            let _ = write!(
                sql,
                "CREATE TABLE by_key_{shape} (id int PRIMARY KEY{columns});
                 CREATE TABLE by_row_{shape} (id int{columns}); ALTER TABLE by_row_{shape} REPLICA IDENTITY FULL;\n"
            );
        }
        sql
    }

    /// The types that have tables for each alone.
    fn alone(&self) -> impl Iterator<Item = (usize, &HardType)> {
        self.types.iter().enumerate().filter(|_| self.each)
    }

    /// A value, counted round: every row has one of each type.
    fn value(&self, at: usize, number: usize) -> String {
        let hard = &self.types[at];
        let text = &hard.values[number % hard.values.len()];
        format!("'{}'::{}", text.replace('\'', "''"), hard.sql)
    }

    fn shaped(&self, shape: &str, at: usize, number: usize) -> String {
        let (one, two) = (self.value(at, number), self.value(at, number + 1));
        let own = self.types[at].sql;
        match shape {
            "vector" => match number % 4 {
                0 => format!("ARRAY[{one}, NULL, {two}]"),
                1 => format!("('[-2:0]=' || ARRAY[{one}, NULL, {two}]::text)::{own}[]"),
                2 => format!("ARRAY[]::{own}[]"),
                _ => format!("ARRAY[{one}]"),
            },
            "matrix" => match number % 2 {
                0 => format!("ARRAY[ARRAY[{one}, {two}], ARRAY[{two}, NULL]]::d{at}[]"),
                _ => format!("('[0:1][5:5]=' || ARRAY[ARRAY[{one}], ARRAY[{two}]]::text)::d{at}[]"),
            },
            "composite" => match number % 3 {
                0 => format!("ROW(NULL, {one}, {two}, ARRAY[{two}], 'q\"(,)\\ ')::c{at}"),
                1 => format!("ROW({number}, {one}, NULL, NULL, '')::c{at}"),
                _ => format!("ROW(NULL, {two}, {one}, ARRAY[{one}, NULL], NULL)::c{at}"),
            },
            _ => one,
        }
    }

    /// The wide rows; the last one is all null.
    fn rows(&self) -> usize {
        self.types
            .iter()
            .map(|hard| hard.values.len())
            .max()
            .unwrap_or(0)
            + 1
    }

    fn row(&self, shape: &str, number: usize) -> Vec<String> {
        let last = number + 1 == self.rows();
        let columns = 0..self.types.len();
        columns
            .map(|at| match last {
                true => "NULL".to_owned(),
                false => self.shaped(shape, at, number),
            })
            .collect()
    }

    fn inserts(&self, id: usize) -> String {
        let mut sql = String::new();
        for shape in WIDE {
            for kind in ["by_key", "by_row"] {
                let _ = write!(sql, "INSERT INTO {kind}_{shape} VALUES ");
                for number in 0..self.rows() {
                    let comma = if number > 0 { ", " } else { "" };
                    let values = self.row(shape, number).join(", ");
                    let _ = write!(sql, "{comma}({}, {values})", id + number);
                }
                sql.push_str(";\n");
            }
        }
        sql
    }

    fn base(&self) -> String {
        let mut sql = self.inserts(0);
        for (at, hard) in self.alone() {
            let (one, two) = (self.value(at, 0), self.value(at, 1));
            let _ = writeln!(
                sql,
                "DO $$ BEGIN INSERT INTO k{at} VALUES ({one}, {two}, 0); EXCEPTION WHEN undefined_table THEN NULL; END $$;"
            );
            for number in 0..hard.values.len() {
                let value = self.value(at, number);
                let _ = writeln!(sql, "INSERT INTO f{at} VALUES ({value}, 0), ({value}, 0);");
            }
            let _ = writeln!(sql, "INSERT INTO f{at} VALUES (NULL, 0), (NULL, 0);");
        }
        sql
    }

    fn changes(&self, keyed: &[usize]) -> Vec<String> {
        let mut all = vec![self.inserts(1000)];
        // Each row takes the values of the next one, column by column and whole.
        for shape in WIDE {
            for kind in ["by_key", "by_row"] {
                let mut sql = String::new();
                for number in 0..self.rows() {
                    let next = self.row(shape, (number + 1) % self.rows());
                    let set: Vec<String> = (next.iter().enumerate())
                        .map(|(at, value)| format!("v{at} = {value}"))
                        .collect();
                    let _ = writeln!(
                        sql,
                        "UPDATE {kind}_{shape} SET {} WHERE id = {number};",
                        set.join(", ")
                    );
                }
                let _ = writeln!(
                    sql,
                    "DELETE FROM {kind}_{shape} WHERE id > 1000 AND id % 2 = 0;"
                );
                all.push(sql);
            }
        }
        for (at, hard) in self.alone() {
            let mut sql = String::new();
            let count = hard.values.len();
            if keyed.contains(&at) {
                for number in 1..=count {
                    let (one, two) = (self.value(at, number), self.value(at, number + 1));
                    let _ = writeln!(
                        sql,
                        "UPDATE k{at} SET v = {one}, d = {two}; UPDATE k{at} SET n = n + 1;"
                    );
                }
                let (one, two) = (self.value(at, 0), self.value(at, 1));
                let _ = writeln!(
                    sql,
                    "DELETE FROM k{at}; INSERT INTO k{at} VALUES ({two}, {one}, 1);"
                );
            }
            // Of each two rows with one image the first goes and the second takes the next image, so
            // that in between rows are equal to others with another image.
            let values: Vec<String> = (1..=count).map(|number| self.value(at, number)).collect();
            let _ = writeln!(
                sql,
                "DO $do$ DECLARE rows tid[]; values {}[] := ARRAY[{}]; BEGIN
                   SELECT array_agg(ctid ORDER BY ctid) INTO rows FROM f{at};
                   FOR i IN 1..{count} LOOP
                     DELETE FROM f{at} WHERE ctid = rows[2 * i - 1];
                     UPDATE f{at} SET v = values[i] WHERE ctid = rows[2 * i];
                   END LOOP;
                   UPDATE f{at} SET v = values[1] WHERE ctid = rows[{count} * 2 + 1];
                 END $do$;",
                hard.sql,
                values.join(", "),
            );
            all.push(sql);
        }
        all
    }
}

/// Every row of every table: its text, and the binary form of the columns that have one that means
/// the same on both sides.
async fn content(client: &Client) -> Result<Vec<(String, Vec<String>)>> {
    client.batch_execute(PINNED).await?;
    let sql = "SELECT format('%I.%I', n.nspname, c.relname),
        coalesce(string_agg(format(' || coalesce(encode(%s(t.%I), ''hex''), '''')', y.typsend, a.attname), '' ORDER BY a.attnum)
           FILTER (WHERE y.typsend <> 0 AND e.oid < 10000 AND e.typname !~ '^(reg|aclitem|refcursor)'), '')
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
      JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
      JOIN pg_type y ON y.oid = a.atttypid JOIN pg_type e ON e.oid = coalesce(nullif(y.typelem, 0), y.oid)
     WHERE c.relkind = 'r' AND n.nspname !~ '^(pg_|information_schema)' GROUP BY 1 ORDER BY 1";
    let mut found = Vec::new();
    for table in client.query(sql, &[]).await? {
        let (name, binary): (String, String) = (table.get(0), table.get(1));
        let rows = format!(
            "SELECT md5('' {binary}) || ' ' || md5(t::text) || ' ' || left(t::text, 500) FROM ONLY {name} t"
        );
        let rows = client.query(&rows, &[]).await.context(name.clone())?;
        let mut rows: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        rows.sort();
        found.push((name, rows));
    }
    Ok(found)
}

fn differences(
    expected: &[(String, Vec<String>)],
    restored: &[(String, Vec<String>)],
) -> Vec<String> {
    let mut found = Vec::new();
    for (name, rows) in expected {
        let other = restored.iter().find(|(restored, _)| restored == name);
        let Some((_, other)) = other else {
            found.push(format!("{name} is missing"));
            continue;
        };
        let only = |these: &[String], those: &[String]| -> Vec<String> {
            these
                .iter()
                .filter(|row| !those.contains(row))
                .cloned()
                .collect()
        };
        if rows != other {
            let (lost, new) = (only(rows, other), only(other, rows));
            found.push(format!(
                "{name}: {} rows, {} expected; lost {lost:#?}, new {new:#?}",
                other.len(),
                rows.len()
            ));
        }
    }
    found
}
