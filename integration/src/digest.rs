//! What a database contains, as digests that can be compared: of every table, and the state of every
//! sequence, in one snapshot.

use std::collections::BTreeMap;

use anyhow::Result;
use tokio_postgres::{Client, IsolationLevel};

/// Everything in the user's schemas.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// By quoted name: rows, and a digest that does not depend on their order.
    pub tables: BTreeMap<String, Table>,
    /// By quoted name: the next value that `nextval` could give at the earliest; of a descending one
    /// its negative, so that further is more.
    pub sequences: BTreeMap<String, i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub rows: i64,
    pub digest: String,
}

/// A table was truncated after the snapshot and before it was read: it looks empty, but was not.
#[derive(Debug)]
pub struct Truncated(String);

impl std::fmt::Display for Truncated {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} was truncated behind the snapshot", self.0)
    }
}

impl std::error::Error for Truncated {}

/// The settings that decide how a value looks as text.
const PINNED: &str = "SET LOCAL DateStyle='ISO'; SET LOCAL IntervalStyle='postgres'; SET LOCAL TimeZone='UTC'; \
     SET LOCAL extra_float_digits=3; SET LOCAL bytea_output='hex'; SET LOCAL lc_monetary='C'; \
     SET LOCAL search_path='pg_catalog'; SET LOCAL statement_timeout=0; SET LOCAL row_security=off";

/// Our own schemas and PostgreSQL's are left out.
const OUTSIDE: &str = "n.nspname NOT IN ('pg_catalog', 'information_schema', 'lastgood', 'lastgood_restore') \
     AND n.nspname !~ '^pg_(toast|temp)'";

/// The state of every sequence, now: sequences obey no snapshot.
///
/// # Errors
/// The server's.
pub async fn sequences(client: &Client) -> Result<BTreeMap<String, i64>> {
    let sql = format!(
        "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_class c \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'S' AND {OUTSIDE}"
    );
    let mut found = BTreeMap::new();
    for row in client.query(&sql, &[]).await? {
        let name: String = row.get(0);
        let next = client.query_one(&next_value(&name), &[]).await?.get(0);
        found.insert(name, next);
    }
    Ok(found)
}

/// The next value at the earliest, so that further is more: of a descending sequence its negative, of
/// one that cycles nothing, for it is never further.
fn next_value(sequence: &str) -> String {
    format!(
        "SELECT CASE WHEN seqcycle THEN 0 WHEN seqincrement > 0 THEN last_value + is_called::int ELSE is_called::int - last_value END \
         FROM {sequence}, pg_sequence WHERE seqrelid = {}::regclass",
        format_args!("'{}'", sequence.replace('\'', "''"))
    )
}

/// Sequences whose next value is in their column already: an insert would fail or repeat a number.
///
/// # Errors
/// The server's.
pub async fn collisions(client: &Client) -> Result<Vec<String>> {
    let owned = format!(
        "SELECT format('%I.%I', n.nspname, c.relname), d.refobjid::regclass::text, quote_ident(a.attname), \
          CASE WHEN s.seqincrement > 0 THEN 1 ELSE -1 END \
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_sequence s ON s.seqrelid = c.oid AND NOT s.seqcycle \
         JOIN pg_depend d ON d.objid = c.oid AND d.classid = 'pg_class'::regclass \
          AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i') AND d.refobjsubid > 0 \
         JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid \
         WHERE c.relkind = 'S' AND {OUTSIDE}"
    );
    let mut found = Vec::new();
    for row in client.query(&owned, &[]).await? {
        let (sequence, table, column): (String, String, String) =
            (row.get(0), row.get(1), row.get(2));
        let way: i32 = row.get(3);
        let sql = format!(
            "SELECT ({}), (SELECT max({column}::bigint * ({way})) FROM {table})",
            next_value(&sequence)
        );
        let row = client.query_one(&sql, &[]).await?;
        let (next, max): (i64, Option<i64>) = (row.get(0), row.get(1));
        if max.is_some_and(|max| next <= max) {
            found.push(format!(
                "{sequence}: next is {next}, but {table}.{column} has {max:?}"
            ));
        }
    }
    Ok(found)
}

/// Under a snapshot of another transaction, or the newest one.
///
/// # Errors
/// The server's, and [`Truncated`].
pub async fn of(client: &mut Client, snapshot: Option<&str>) -> Result<Content> {
    let transaction = client
        .build_transaction()
        .isolation_level(IsolationLevel::RepeatableRead)
        .read_only(true)
        .start()
        .await?;
    if let Some(snapshot) = snapshot {
        transaction
            .batch_execute(&format!("SET TRANSACTION SNAPSHOT '{snapshot}'"))
            .await?;
    }
    transaction.batch_execute(PINNED).await?;
    let mut content = Content::default();
    let relations = transaction
        .query(
            &format!(
                "SELECT format('%I.%I', n.nspname, c.relname), c.relkind::text FROM pg_class c \
                 JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'S') AND c.relpersistence = 'p' AND {OUTSIDE} ORDER BY 1"
            ),
            &[],
        )
        .await?;
    for relation in relations {
        let (name, kind): (String, String) = (relation.get(0), relation.get(1));
        if kind == "S" {
            let next = transaction.query_one(&next_value(&name), &[]).await?;
            content.sequences.insert(name, next.get(0));
        } else {
            // A sum of the rows' digests: no order, no limit on the size, no memory.
            let row = transaction
                .query_one(
                    &format!(
                        "SELECT count(*), coalesce(sum(('x' || left(d, 16))::bit(64)::bigint::numeric) || '/' || \
                         sum(('x' || right(d, 16))::bit(64)::bigint::numeric), '') \
                         FROM (SELECT md5(t::text) AS d FROM ONLY {name} t) digests"
                    ),
                    &[],
                )
                .await?;
            content.tables.insert(
                name,
                Table {
                    rows: row.get(0),
                    digest: row.get(1),
                },
            );
        }
    }
    // From the first look at a table on, it is locked against this; before that it is not.
    let truncated = format!(
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         WHERE c.relkind = 'r' AND c.relfilenode <> pg_relation_filenode(c.oid) AND {OUTSIDE}"
    );
    if let Some(row) = transaction.query(&truncated, &[]).await?.first() {
        return Err(Truncated(row.get(0)).into());
    }
    transaction.rollback().await?;
    Ok(content)
}

impl Content {
    /// With the tables and sequences of one schema named as if they were in another.
    #[must_use]
    pub fn renamed(&self, from: &str, to: &str) -> Content {
        let rename = |name: &String| match name.strip_prefix(&format!("{from}.")) {
            Some(rest) => format!("{to}.{rest}"),
            None => name.clone(),
        };
        let tables = self.tables.iter();
        let sequences = self.sequences.iter();
        Content {
            tables: tables
                .map(|(name, it)| (rename(name), it.clone()))
                .collect(),
            sequences: sequences.map(|(name, it)| (rename(name), *it)).collect(),
        }
    }

    /// Says what differs, one line each; empty if `restored` has exactly these tables with these rows
    /// and every sequence stands where it stood or beyond.
    pub fn differences(&self, restored: &Content) -> Vec<String> {
        let mut found = Vec::new();
        for (name, table) in &self.tables {
            match restored.tables.get(name) {
                None => found.push(format!("{name}: missing")),
                Some(other) if other != table => {
                    found.push(format!(
                        "{name}: {} rows, expected {}",
                        other.rows, table.rows
                    ));
                }
                Some(_) => {}
            }
        }
        for name in restored
            .tables
            .keys()
            .filter(|name| !self.tables.contains_key(*name))
        {
            found.push(format!("{name}: not expected"));
        }
        for (name, next) in &self.sequences {
            match restored.sequences.get(name) {
                None => found.push(format!("{name}: missing")),
                Some(other) if other < next => {
                    found.push(format!("{name}: next is {other}, expected at least {next}"));
                }
                Some(_) => {}
            }
        }
        found
    }

    /// These tables and sequences alone.
    ///
    /// # Panics
    /// If a table is not there.
    #[must_use]
    pub fn part(&self, tables: &[&str], sequences: &[&str]) -> Content {
        let mut part = self.clone();
        part.tables
            .retain(|name, _| tables.contains(&name.as_str()));
        part.sequences
            .retain(|name, _| sequences.contains(&name.as_str()));
        assert_eq!(part.tables.len(), tables.len(), "{:?}", self.tables.keys());
        part
    }

    /// # Panics
    /// With the differences, if there are any.
    pub fn assert_restored(&self, restored: &Content, what: &str) {
        let differences = self.differences(restored);
        assert!(
            differences.is_empty(),
            "{what}:\n{}",
            differences.join("\n")
        );
    }
}
