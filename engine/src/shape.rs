//! The shape of a source: what its tables, their columns and the publication look like.
//!
//! The stream carries rows, not definitions. A table made, renamed or rewritten, a column added, a
//! publication that somebody narrowed: the rows that follow are right and the restore would be
//! wrong. So the shape is read with every mark, and a segment is cut only after a mark that lies
//! past its end: whatever is durable has been looked at. A change is written down before the
//! segment it may fall into, and no restore replays across it.
//!
//! It may see a change where there is none that matters (a GRANT on a column): that costs a base.
//! What rows do not depend on is looked at along with it (`definitions`).

use std::collections::{BTreeMap, BTreeSet};

use sha2::{Digest, Sha256};
use tokio_postgres::{Client, Row};

use crate::definitions::EVENT_TRIGGERS;
use crate::error::Error;
use crate::settings::SourceSettings;

/// Equal shapes: rows of one fit the tables of the other, and the same rows are sent.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shape {
    /// By what the operator calls it.
    parts: BTreeMap<String, Part>,
    /// A digest for each kind of definition that rows do not depend on; none if they could not be read.
    definitions: Option<BTreeMap<String, String>>,
}

/// One object.
#[derive(Debug, Clone)]
struct Part {
    /// None that DDL could name, if 0.
    oid: u32,
    /// What DDL names that alters this one: a table's indexes and parents.
    parts: Vec<u32>,
    digest: String,
}

/// Which parts there are says nothing: what they demand is in the digest.
impl PartialEq for Part {
    fn eq(&self, other: &Self) -> bool {
        self.oid == other.oid && self.digest == other.digest
    }
}

impl Eq for Part {}

impl Part {
    fn names(&self) -> Vec<u32> {
        match self.oid {
            0 => Vec::new(),
            oid => [&[oid], self.parts.as_slice()].concat(),
        }
    }
}

/// What tells a shape from another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprints {
    pub shape: String,
    /// Of what rows do not depend on. None if whoever saw it last did not look.
    pub definitions: Option<String>,
}

/// Named at most of what has changed.
const NAMED_MAX: usize = 5;

/// The first ones, and how many there are besides.
pub(crate) fn few<T: AsRef<str>>(names: &[T], separator: &str) -> String {
    let first: Vec<&str> = names.iter().take(NAMED_MAX).map(AsRef::as_ref).collect();
    let first = first.join(separator);
    match names.len().saturating_sub(NAMED_MAX) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// Permanent tables. `xmin` of a column's catalog row changes with every command that alters or
/// rewrites it, also where name and type stay (`ALTER TYPE … USING`); ANALYZE and VACUUM leave it. That of the row type
/// changes when the table gets another name or schema, there and back as well: what came in between has that name in the
/// stream, and stands so in values of `regclass`. (That of the table changes with every TRUNCATE.)
/// What a table demands of its rows is in it as well: once it is dropped, rows come that the base's
/// table would refuse. It is read as it stands in the catalogs: to have it deparsed (`pg_get_indexdef`) waits for
/// whoever has locked the table.
const TABLES: &str = r"
SELECT c.oid, n.nspname, c.relname, array(SELECT x.indexrelid FROM pg_index x WHERE x.indrelid = c.oid
                                        UNION ALL SELECT i.inhparent FROM pg_inherits i WHERE i.inhrelid = c.oid),
    md5(concat_ws(' ', c.oid, c.relkind, c.relreplident, (SELECT t.xmin FROM pg_type t WHERE t.oid = c.reltype),
    (SELECT string_agg(i.inhparent::text, ',' ORDER BY i.inhseqno) FROM pg_inherits i
     WHERE i.inhrelid = c.oid),
    (SELECT string_agg(x.indexrelid::text, ',' ORDER BY x.indexrelid) FROM pg_index x
     WHERE x.indrelid = c.oid AND x.indisvalid AND (x.indisprimary OR x.indisreplident)),
    (SELECT string_agg(d, ';' ORDER BY d) FROM (
       SELECT concat_ws(' ', to_jsonb(x)->>'indnullsnotdistinct', x.indimmediate, x.indkey, x.indcollation, x.indclass,
                        x.indexprs, x.indpred)
         FROM pg_index x
        WHERE x.indrelid = c.oid AND x.indisvalid AND (x.indisunique OR x.indisexclusion)
       UNION ALL
       SELECT concat_ws(' ', o.contype, o.condeferrable, o.condeferred, o.convalidated, o.conkey, o.confrelid, o.confkey,
                        o.confupdtype, o.confdeltype, o.confmatchtype, o.conpfeqop, o.conexclop, o.connoinherit, o.conbin)
         FROM pg_constraint o
        WHERE o.conrelid = c.oid AND o.contype IN ('c', 'f', 'x')) AS demands(d)),
    (SELECT string_agg(concat_ws(':', a.attnum, a.attname, a.atttypid, a.atttypmod,
                                 a.attisdropped, a.xmin), ',' ORDER BY a.attnum)
     FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0)))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence = 'p'
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')";

/// Labels of enums, attributes of composite types, demands of domains: values of them stand in rows. A label that was
/// another one for a while (`xmin`) has left text in the stream that means something else.
const TYPES: &str = r"
SELECT t.oid, n.nspname, t.typname, md5(concat_ws(' ', t.oid,
    (SELECT string_agg(concat_ws(':', e.oid, e.xmin, e.enumlabel), ',' ORDER BY e.oid) FROM pg_enum e
     WHERE e.enumtypid = t.oid),
    (SELECT string_agg(concat_ws(':', a.attnum, a.attname, a.atttypid, a.atttypmod,
                                 a.attisdropped), ',' ORDER BY a.attnum)
     FROM pg_attribute a WHERE a.attrelid = t.typrelid),
    t.typnotnull,
    (SELECT string_agg(pg_get_constraintdef(o.oid), ';' ORDER BY o.conname) FROM pg_constraint o
     WHERE o.contypid = t.oid)))
FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
LEFT JOIN pg_class c ON c.oid = t.typrelid
WHERE (t.typtype IN ('e', 'd') OR c.relkind = 'c')
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";

/// Definitions of sequences; their values are sampled beside.
const SEQUENCES: &str = r"
SELECT c.oid, n.nspname, c.relname, md5(to_jsonb(s)::text)
FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relpersistence = 'p' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
  AND NOT EXISTS (SELECT FROM pg_depend d
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')";

/// Whether there are large objects at all: a base says that they are as fresh as itself only if it
/// has some.
const LARGE_OBJECTS: &str = "SELECT EXISTS (SELECT FROM pg_largeobject_metadata)::text";

/// Whole rows, so that an option of a version to come counts as well; with their `xmin`: what was not published for a
/// moment is missing for good.
const PUBLICATION: &str = r"
SELECT p.oid, md5(concat_ws(' ', to_jsonb(p), p.xmin,
    (SELECT string_agg(concat_ws(' ', to_jsonb(r), r.xmin), ',' ORDER BY r.prrelid)
     FROM pg_publication_rel r WHERE r.prpubid = p.oid)))
FROM pg_publication p WHERE p.pubname = $1";

/// Whole schemas in it, from 15 on.
const PUBLISHED_SCHEMAS: &str = r"
SELECT coalesce(string_agg(s.pnnspid::text, ',' ORDER BY s.pnnspid), '')
FROM pg_publication_namespace s JOIN pg_publication p ON p.oid = s.pnpubid WHERE p.pubname = $1";

/// Reads the shape as the client sees it: the present one, or that of its snapshot.
pub(crate) async fn read(
    client: &Client,
    server_version: u32,
    publication: &str,
    settings: &SourceSettings,
) -> Result<Shape, Error> {
    let failed = |error| Error::sql("reading the shape of the tables")(error);
    let part = |row: &Row, parts| Part {
        oid: row.get(0),
        digest: row.get(row.len() - 1),
        parts,
    };
    let mut parts = BTreeMap::new();
    for row in client.query(TABLES, &[]).await.map_err(failed)? {
        let (schema, name): (&str, &str) = (row.get(1), row.get(2));
        if settings.wants(schema, name) {
            parts.insert(format!("table {schema}.{name}"), part(&row, row.get(3)));
        }
    }
    for row in client.query(SEQUENCES, &[]).await.map_err(failed)? {
        let (schema, name): (&str, &str) = (row.get(1), row.get(2));
        parts.insert(format!("sequence {schema}.{name}"), part(&row, Vec::new()));
    }
    for row in client.query(TYPES, &[]).await.map_err(failed)? {
        let (schema, name): (&str, &str) = (row.get(1), row.get(2));
        parts.insert(format!("type {schema}.{name}"), part(&row, Vec::new()));
    }
    let row = client.query_one(LARGE_OBJECTS, &[]).await.map_err(failed)?;
    let large_objects = Part {
        oid: 0,
        parts: Vec::new(),
        digest: row.get(0),
    };
    parts.insert("large objects".to_owned(), large_objects);
    let row = client
        .query_opt(PUBLICATION, &[&publication])
        .await
        .map_err(failed)?;
    let mut published = Part {
        oid: row.as_ref().map_or(0, |row| row.get(0)),
        parts: Vec::new(),
        digest: row.map_or_else(String::new, |row| row.get(1)),
    };
    if server_version >= 150_000 {
        let row = client
            .query_one(PUBLISHED_SCHEMAS, &[&publication])
            .await
            .map_err(failed)?;
        published.digest.push_str(row.get(0));
    }
    parts.insert(format!("publication {publication}"), published);
    Ok(Shape {
        parts,
        definitions: None,
    })
}

impl Fingerprints {
    /// Whether other definitions were seen; not if nobody could look.
    pub(crate) fn is_redefined(&self, now: &Self) -> bool {
        now.definitions.is_some() && self.definitions != now.definitions
    }
}

impl Shape {
    #[must_use]
    pub fn fingerprints(&self) -> Fingerprints {
        let parts = self.parts.iter();
        let definitions = self.definitions.as_ref();
        Fingerprints {
            shape: fingerprint(parts.map(|(name, part)| (name, &part.digest))),
            definitions: definitions.map(fingerprint),
        }
    }

    /// With definitions that were read beside it.
    #[must_use]
    pub(crate) fn with(self, definitions: Option<BTreeMap<String, String>>) -> Self {
        Self {
            definitions,
            ..self
        }
    }

    /// Each part that is not as it was `before`: its name, what it was, and what it is.
    fn pairs<'a>(
        &'a self,
        before: &'a Shape,
    ) -> impl Iterator<Item = (&'a String, Option<&'a Part>, Option<&'a Part>)> {
        let names: BTreeSet<&String> = self.parts.keys().chain(before.parts.keys()).collect();
        let pairs = names
            .into_iter()
            .map(|name| (name, before.parts.get(name), self.parts.get(name)));
        pairs.filter(|(_, old, new)| old != new)
    }

    /// What is not as it was `before`: of each object the OIDs by which DDL may name it. None for what has no OID, and
    /// for event triggers, which tell of all but themselves.
    pub(crate) fn differing(&self, before: &Shape) -> Vec<Vec<u32>> {
        let names = self
            .pairs(before)
            .flat_map(|(_, old, new)| match (old, new) {
                // Also by what it had before, or has now.
                (Some(old), Some(new)) if old.oid == new.oid => {
                    vec![[old.names(), new.names()].concat()]
                }
                _ => [old, new].into_iter().flatten().map(Part::names).collect(),
            });
        let triggers = [self, before].map(|shape| shape.definitions.as_ref()?.get(EVENT_TRIGGERS));
        let untold = (triggers[0] != triggers[1]).then(Vec::new);
        names.chain(untold).collect()
    }

    /// What is not as it was `before`, in words.
    pub(crate) fn difference(&self, before: &Shape) -> String {
        let parts = self.pairs(before).map(|(name, old, new)| match (old, new) {
            (None, _) => format!("{name} is new"),
            (Some(_), None) => format!("{name} is gone"),
            (Some(_), Some(_)) => format!("{name} changed"),
        });
        let mut changed: Vec<String> = parts.collect();
        if changed.is_empty() {
            let none = BTreeMap::new();
            let [old, new] = [before, self].map(|it| it.definitions.as_ref().unwrap_or(&none));
            let kinds: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            let others = kinds.into_iter();
            let others = others.filter(|kind| old.get(*kind) != new.get(*kind));
            changed.extend(others.map(|kind| format!("{kind} changed")));
        }
        few(&changed, ", ")
    }

    /// A shape told by one word, for a simulator.
    #[must_use]
    pub fn named(name: &str) -> Self {
        Self {
            parts: BTreeMap::from([(
                name.to_owned(),
                Part {
                    oid: 0,
                    parts: Vec::new(),
                    digest: String::new(),
                },
            )]),
            definitions: None,
        }
    }
}

/// Thirty-two hexadecimal digits.
fn fingerprint<'a>(parts: impl IntoIterator<Item = (&'a String, &'a String)>) -> String {
    let mut digest = Sha256::new();
    for (name, part) in parts {
        digest.update(name.as_bytes());
        digest.update([0]);
        digest.update(part.as_bytes());
        digest.update([0]);
    }
    let digest = digest.finalize();
    digest
        .iter()
        .take(16)
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::definitions;
    use lastgood_integration::{TestDatabase, tools};

    #[test]
    fn a_difference_names_what_changed() {
        let shape = |parts: &[(&str, &str)]| Shape {
            parts: parts
                .iter()
                .map(|(name, digest)| {
                    let digest = (*digest).to_owned();
                    let parts = Vec::new();
                    (
                        (*name).to_owned(),
                        Part {
                            oid: 1,
                            parts,
                            digest,
                        },
                    )
                })
                .collect(),
            definitions: None,
        };
        let before = shape(&[("table a", "1"), ("table b", "1"), ("table c", "1")]);
        let after = shape(&[("table a", "1"), ("table b", "2"), ("table d", "1")]);
        assert_eq!(
            after.difference(&before),
            "table b changed, table c is gone, table d is new"
        );
        assert_ne!(after.fingerprints(), before.fingerprints());
    }

    /// Every one of these made a restore quietly wrong before shapes were read.
    const CHANGES: &[&str] = &[
        "ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME b TO a; ALTER TABLE t RENAME x TO b",
        "ALTER TABLE t ALTER a TYPE int USING a * 100",
        "ALTER TABLE t ADD c int DEFAULT 7",
        "ALTER TABLE t ALTER a SET DEFAULT 5",
        "ALTER TABLE t DROP CONSTRAINT positive",
        "DROP INDEX t_b",
        "ALTER TABLE child DROP CONSTRAINT parent",
        "ALTER DOMAIN small DROP CONSTRAINT small",
        "ALTER TABLE t DROP b; ALTER TABLE t ADD b int",
        "DROP TABLE t",
        "CREATE TABLE fresh(id int PRIMARY KEY)",
        "ALTER TABLE t RENAME TO old; CREATE TABLE t(id int PRIMARY KEY, a int, b int)",
        "ALTER TABLE root DETACH PARTITION p1",
        "ALTER TABLE u SET LOGGED",
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'",
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'x'; ALTER TYPE mood RENAME VALUE 'x' TO 'sad'",
        "ALTER TYPE mood ADD VALUE 'new'",
        "ALTER TABLE t RENAME TO x; ALTER TABLE x RENAME TO t",
        "ALTER TABLE t SET SCHEMA one; ALTER TABLE one.t SET SCHEMA public",
        "ALTER TABLE root RENAME TO x; ALTER TABLE x RENAME TO root",
        "ALTER TYPE one.mood RENAME VALUE 'a' TO 'b'",
        "ALTER TYPE two.mood RENAME VALUE 'a' TO 'b'",
        "ALTER TYPE pair ADD ATTRIBUTE z int",
        "CREATE SEQUENCE fresh",
        "ALTER SEQUENCE counter MAXVALUE 100",
        "ALTER TABLE t DROP CONSTRAINT t_pkey",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "ALTER PUBLICATION pub DROP TABLE t",
        "ALTER PUBLICATION pub SET (publish = 'insert'); ALTER PUBLICATION pub SET (publish = 'insert, update, delete, truncate')",
        "ALTER PUBLICATION pub DROP TABLE t; ALTER PUBLICATION pub ADD TABLE t",
        "ALTER PUBLICATION pub SET (publish = 'insert')",
        "DROP PUBLICATION pub",
        "ALTER PUBLICATION pub RENAME TO other",
        "DROP PUBLICATION pub; CREATE PUBLICATION pub FOR TABLE t",
        "SELECT lo_create(0)",
    ];

    async fn look(client: &Client, version: u32) -> Shape {
        let settings = SourceSettings::default();
        let shape = read(client, version, "pub", &settings).await.unwrap();
        shape.with(Some(definitions::read(client).await.unwrap()))
    }

    const NO_CHANGES: &str = "INSERT INTO t VALUES (1, 2, 3); REINDEX TABLE t; SELECT nextval('counter'); UPDATE t SET a = 5; TRUNCATE t; \
        ANALYZE; CREATE TEMP TABLE x(id int PRIMARY KEY, v text DEFAULT 'x' CHECK (v > '')); CREATE INDEX ON x(v); \
        CREATE TEMP VIEW w AS SELECT 1; REFRESH MATERIALIZED VIEW counted";

    /// Rows do not depend on them.
    const DEFINITIONS: &[&str] = &[
        "CREATE INDEX ON t(a)",
        "CREATE UNLOGGED TABLE y(id int)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE OR REPLACE VIEW shown AS SELECT id, up FROM child WHERE up > 2",
        "ALTER VIEW shown RENAME up TO c",
        "GRANT SELECT ON t TO public",
        "GRANT SELECT (up) ON shown TO public",
        "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 2'",
        "ALTER FUNCTION f() STABLE",
        "DROP FUNCTION f()",
        "CREATE TRIGGER tr BEFORE UPDATE ON t FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "ALTER TABLE t ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY p ON t USING (true)",
        "CREATE RULE r AS ON INSERT TO t WHERE new.a > 5 DO ALSO NOTHING",
        "COMMENT ON COLUMN t.a IS 'x'",
        "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO public",
        "CREATE SCHEMA s",
        "CREATE STATISTICS st ON a, b FROM t",
        "CREATE TYPE r AS RANGE (subtype = int4)",
        "CREATE CAST (mood AS int) WITH INOUT",
        "CREATE AGGREGATE total(int) (sfunc = int4pl, stype = int)",
        "CREATE TEXT SEARCH CONFIGURATION c (COPY = simple)",
        "CREATE EXTENSION pg_trgm",
        "ALTER INDEX plain SET (fillfactor = 50)",
    ];

    #[tokio::test]
    async fn changes_that_matter_are_seen_and_others_are_not() {
        for major in [13, 14, 15, 16, 17, 18] {
            if tools::bin_dir(major).is_err() {
                continue;
            }
            let database = TestDatabase::new(major).await.unwrap();
            let setup = "CREATE SCHEMA one; CREATE TYPE one.mood AS ENUM ('a'); CREATE SCHEMA two; CREATE TYPE two.mood AS ENUM ('a'); \
                CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (x int, y int); \
                CREATE TABLE t(id int PRIMARY KEY, a int CONSTRAINT positive CHECK (a > 0), b int); \
                CREATE UNIQUE INDEX t_b ON t(b); CREATE DOMAIN small AS int CONSTRAINT small CHECK (VALUE < 10); CREATE UNLOGGED TABLE u(id int); CREATE SEQUENCE counter; \
                CREATE TABLE child(id int PRIMARY KEY, up int CONSTRAINT parent REFERENCES child); \
                CREATE TABLE root(id int) PARTITION BY LIST (id); CREATE VIEW shown AS SELECT id, up FROM child; CREATE INDEX plain ON child(up); \
                CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'; \
                CREATE MATERIALIZED VIEW counted AS SELECT count(*) AS n FROM child; \
                CREATE TABLE p1 PARTITION OF root FOR VALUES IN (1); CREATE PUBLICATION pub FOR TABLE t";
            database.execute(setup).await.unwrap();
            let client = database.connect().await.unwrap();
            let version = major * 10_000;
            let before = look(&client, version).await;
            client.batch_execute(NO_CHANGES).await.unwrap();
            client.batch_execute("VACUUM FULL t").await.unwrap();
            let after = look(&client, version).await;
            assert_eq!(after.difference(&before), "", "{major}");
            // It demands nothing: what is left of it when it fails, and what REINDEX CONCURRENTLY is
            // building, is invalid.
            let doubled = "INSERT INTO t VALUES (1, 2, 3), (2, 2, 4)";
            client.batch_execute(doubled).await.unwrap();
            let invalid = "CREATE UNIQUE INDEX CONCURRENTLY t_a ON t(a)";
            client.batch_execute(invalid).await.unwrap_err();
            let after = look(&client, version).await;
            assert_eq!(after.parts, before.parts, "{major}");
            client
                .batch_execute("DROP INDEX t_a; TRUNCATE t")
                .await
                .unwrap();
            for change in CHANGES {
                let before = look(&client, version).await;
                client.batch_execute("BEGIN").await.unwrap();
                client.batch_execute(change).await.unwrap_or_else(|error| {
                    panic!("{major}: {change}: {error:?}");
                });
                let after = look(&client, version).await;
                let prints = [&after, &before].map(|shape| shape.fingerprints().shape);
                assert_ne!(prints[0], prints[1], "{major}: {change}");
                client.batch_execute("ROLLBACK").await.unwrap();
            }
            for change in DEFINITIONS {
                let before = look(&client, version).await;
                client.batch_execute("BEGIN").await.unwrap();
                client.batch_execute(change).await.unwrap_or_else(|error| {
                    panic!("{major}: {change}: {error:?}");
                });
                let after = look(&client, version).await;
                assert_ne!(after.definitions, before.definitions, "{major}: {change}");
                assert_eq!(after.parts, before.parts, "{major}: {change}");
                assert_ne!(after.difference(&before), "", "{major}: {change}");
                client.batch_execute("ROLLBACK").await.unwrap();
            }
        }
    }
}
