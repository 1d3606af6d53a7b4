use super::*;
use crate::base::mark::marks;
use lastgood_integration::{TestDatabase, tools};
use lastgood_proto::manifest::Told;
use tokio_postgres::Row;

/// What becomes of the rows of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fate {
    Borrowed,
    /// With columns that are others: see [`said`].
    Altered(String),
    Dumped,
}
use Fate::{Borrowed, Dumped};

fn altered(what: &str) -> Fate {
    Fate::Altered(what.to_owned())
}

/// How columns are told, what rows have in those they lack, and what is demanded of them now.
fn said(altered: &AlteredTable) -> String {
    let told = altered
        .layouts
        .iter()
        .map(|layout| match layout.until_next {
            Told::Places => "by place".to_owned(),
            Told::Names => "by name".to_owned(),
        });
    let missing = altered.missing.iter().map(|(number, value)| match value {
        Some(value) => format!("{number} is {value}"),
        None => format!("{number} is null"),
    });
    let nullable = altered
        .nullable
        .iter()
        .map(|number| format!("{number} may be null"));
    let unchecked = altered.unchecked.then(|| "unchecked".to_owned());
    let said = told.chain(missing).chain(nullable).chain(unchecked);
    said.collect::<Vec<_>>().join(", ")
}

const TABLES: &str = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (x int, y int);
    CREATE DOMAIN small AS int CONSTRAINT small CHECK (VALUE < 100);
    CREATE TABLE t (id int PRIMARY KEY, a int CONSTRAINT positive CHECK (a > 0), gone int, m mood[], p pair, s small,
        w varchar(5));
    ALTER TABLE t DROP gone; INSERT INTO t VALUES (1, 2, '{sad}', '(1,2)', 3, 'w');
    CREATE TABLE other (id int PRIMARY KEY);
    CREATE PUBLICATION pub FOR TABLE t, other";

/// Each from a fresh start, on `t`, whose columns are 1, 2, 4 to 7.
fn changes() -> Vec<(&'static str, Fate)> {
    vec![
        ("INSERT INTO t VALUES (2, 2); UPDATE t SET a = 3; ANALYZE t; GRANT SELECT ON t TO public", Borrowed),
        ("CREATE UNIQUE INDEX ON t (a); ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES other NOT VALID", Borrowed),
        ("CREATE TABLE fresh (id int PRIMARY KEY); DROP TABLE other", Borrowed),
        ("ALTER TABLE t RENAME TO u; ALTER TABLE u RENAME TO t", Borrowed),
        ("TRUNCATE t", Dumped),
        ("ALTER TABLE t ALTER a TYPE int USING a * 100", Dumped),
        ("ALTER TABLE t RENAME TO old; CREATE TABLE t (id int PRIMARY KEY, a int)", Dumped),
        ("ALTER TABLE t REPLICA IDENTITY FULL", Dumped),
        ("ALTER DOMAIN small DROP CONSTRAINT small; ALTER DOMAIN small ADD CONSTRAINT small CHECK (VALUE < 100)", Dumped),
        // There and back: what came in between has other text.
        (
            "ALTER TYPE mood RENAME VALUE 'sad' TO 'x'; ALTER TYPE mood RENAME VALUE 'ok' TO 'sad';
             ALTER TYPE mood RENAME VALUE 'x' TO 'ok'; ALTER TYPE mood RENAME VALUE 'sad' TO 'x';
             ALTER TYPE mood RENAME VALUE 'ok' TO 'sad'; ALTER TYPE mood RENAME VALUE 'x' TO 'ok'",
            Dumped,
        ),
        // Nobody knows whether a label that came was called so all along.
        ("ALTER TYPE mood ADD VALUE 'new'", Dumped),
        ("ALTER TYPE pair ADD ATTRIBUTE z int; ALTER TYPE pair DROP ATTRIBUTE z", Dumped),
        ("ALTER PUBLICATION pub DROP TABLE t; ALTER PUBLICATION pub ADD TABLE t", Dumped),
        (
            "ALTER PUBLICATION pub SET (publish = 'insert'); \
             ALTER PUBLICATION pub SET (publish = 'insert, update, delete, truncate')",
            Dumped,
        ),
        // Added.
        ("ALTER TABLE t ADD b int", altered("by place, 8 is null")),
        (
            "ALTER TABLE t ADD b int DEFAULT 7, ADD c text DEFAULT E'a,\"\t{}\\\\'; UPDATE t SET b = 1; ALTER TABLE t RENAME b TO d;
             ALTER TABLE t ADD e int[] DEFAULT '{1,NULL}', ALTER d DROP DEFAULT",
            altered("by place, 8 is 7, 9 is a,\"\t{}\\, 10 is {1,NULL}"),
        ),
        ("ALTER TABLE t ADD b float8 DEFAULT random()", Dumped),
        ("ALTER TABLE t ADD b int DEFAULT 1, ADD CHECK (b > 0)", altered("by place, 8 is 1, unchecked")),
        ("ALTER TABLE t ADD b int; UPDATE t SET b = 1; ALTER TABLE t ALTER b SET NOT NULL", altered("by place, 8 is null, 8 may be null")),
        ("ALTER TABLE t ADD b int; ALTER TABLE t DROP b; ALTER TABLE t ADD c int", Dumped),
        ("ALTER TABLE t ADD b int GENERATED ALWAYS AS (id * 2) STORED", Dumped),
        ("ALTER TABLE t ADD b mood DEFAULT 'ok'", altered("by place, 8 is ok")),
        ("BEGIN; CREATE TYPE fresh AS ENUM ('x'); ALTER TYPE fresh RENAME VALUE 'x' TO 'y'; ALTER TABLE t ADD b fresh; COMMIT", Dumped),
        ("CREATE TYPE fresh AS ENUM ('x,', 'y'); ALTER TABLE t ADD b fresh[] DEFAULT '{\"x,\"}'", altered("by place, 8 is {\"x,\"}")),
        ("CREATE TYPE fresh AS ENUM ('x', 'y'); ALTER TABLE t ADD b fresh; ALTER TYPE fresh RENAME VALUE 'x' TO 'z'", Dumped),
        // What the new columns have may have been changed by their types meanwhile.
        ("ALTER TABLE t ADD b pair", Dumped),
        ("ALTER TABLE t ADD b small", Dumped),
        ("ALTER TABLE t ADD b regclass", Dumped),
        // Parted by semicolons.
        ("ALTER TABLE t ADD b box DEFAULT '((1,1),(0,0))'", Dumped),
        // Renamed, retyped, bound and dropped.
        ("ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME id TO a; ALTER TABLE t RENAME x TO id", altered("by place")),
        ("ALTER TABLE t ALTER w TYPE varchar(9); ALTER TABLE t ALTER w TYPE text", altered("by place")),
        ("ALTER TABLE t ALTER w TYPE varchar(3)", Dumped),
        ("ALTER TABLE t ALTER a SET NOT NULL, ALTER w SET DEFAULT 'x'", altered("by place, 2 may be null")),
        ("ALTER TABLE t ALTER a SET NOT NULL; ALTER TABLE t ALTER a DROP NOT NULL", altered("by place")),
        ("ALTER TABLE t ALTER id SET STATISTICS 7; ALTER TABLE t RENAME id TO key", altered("by place")),
        ("ALTER TABLE t ADD b int NOT NULL DEFAULT 3", altered("by place, 8 is 3, 8 may be null")),
        ("ALTER TABLE t ALTER a SET NOT NULL; ALTER TABLE t ALTER a ADD GENERATED ALWAYS AS IDENTITY", Dumped),
        ("GRANT SELECT (a) ON t TO public; ALTER TABLE t ALTER w SET STATISTICS 7", altered("by place")),
        ("ALTER TABLE t DROP CONSTRAINT positive", Borrowed),
        ("ALTER TABLE t DROP CONSTRAINT positive; ALTER TABLE t ADD CONSTRAINT positive CHECK (a > 1)", altered("unchecked")),
        ("ALTER TABLE t DROP a", altered("by place")),
        ("ALTER TABLE t DROP a; ALTER TABLE t RENAME w TO a", altered("by place")),
        ("ALTER TABLE t DROP a; ALTER TABLE t DROP w", altered("by name")),
        ("ALTER TABLE t DROP a; ALTER TABLE t DROP w; ALTER TABLE t RENAME s TO w", Dumped),
        ("ALTER TABLE t DROP a; ALTER TABLE t ADD a int DEFAULT 3", altered("by name, 8 is 3")),
        // Was a row's last value the old one or the new?
        ("ALTER TABLE t DROP w; ALTER TABLE t ADD w varchar(5)", Dumped),
        ("ALTER TABLE t ADD b int; ALTER TABLE t DROP b", altered("by name")),
        ("ALTER TABLE t DROP id", Dumped),
    ]
}

async fn captured(client: &Client, publication: Oid) -> Vec<TableEntry> {
    let marks = marks(client, publication).await.unwrap();
    let rows = client
        .query("SELECT oid, relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace", &[])
        .await
        .unwrap();
    let entry = |row: &Row| {
        let oid = Oid::new(row.get(0));
        let mark = marks.get(&oid);
        TableEntry {
            oid,
            schema: "public".to_owned(),
            name: row.get(1),
            kind: 'r',
            protection: Protection::Full,
            identity_index: None,
            rows_estimate: None,
            bytes: 10,
            unaltered: mark.map(|mark| mark.unaltered.clone()),
            checks: mark.and_then(|mark| mark.checks.clone()),
            columns: mark.map_or_else(Vec::new, |mark| mark.columns.clone()),
            attributes: mark.map(|mark| mark.attributes),
        }
    };
    rows.iter().map(entry).collect()
}

fn manifest(tables: Vec<TableEntry>) -> BaseManifest {
    let text = format!(
        r#"{{"v":1,"id":"{}","consistent_point":"0/10","fingerprint":"","snapshot_time":"2000-01-01T00:00:00Z",
          "started":"2000-01-01T00:00:00Z","finished":"2000-01-01T00:00:00Z","server_version":1,"pg_dump_version":"",
          "database":"d","encoding":"UTF8","archives":[],"tables":[],"sequences":[],"large_objects":0}}"#,
        BaseId::new(lastgood_proto::Lsn::new(16), 1)
    );
    let empty: BaseManifest = serde_json::from_str(&text).unwrap();
    BaseManifest { tables, ..empty }
}

/// What becomes of the table `name` when the database goes from `tables` to `change`.
async fn fate(major: u32, setup: &str, change: &str, name: &str) -> Fate {
    let database = TestDatabase::new(major).await.unwrap();
    let client = database.connect().await.unwrap();
    for sql in setup.split(';') {
        client.batch_execute(sql).await.unwrap();
    }
    let publication = "SELECT oid FROM pg_publication";
    let publication = Oid::new(client.query_one(publication, &[]).await.unwrap().get(0));
    let xmin = async || -> u64 {
        let xmin = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text";
        let xmin: String = client.query_one(xmin, &[]).await.unwrap().get(0);
        xmin.parse().unwrap()
    };
    let newest = BaseManifest {
        snapshot_xmin: Some(xmin().await),
        ..manifest(captured(&client, publication).await)
    };
    let commands: Vec<&str> = match change.starts_with("BEGIN") {
        true => vec![change],
        false => change.split(';').collect(),
    };
    for sql in commands {
        let done = client.batch_execute(sql).await;
        done.unwrap_or_else(|error| panic!("{major}: {sql}: {error:?}"));
    }
    let now = Now {
        changes_bytes: 0,
        client: &client,
        marks: &marks(&client, publication).await.unwrap(),
        server_version: 1,
        pg_dump_version: "",
        encoding: "UTF8",
        snapshot_xmin: xmin().await,
        definitions: &Some("now".to_owned()),
    };
    let tables = captured(&client, publication).await;
    let borrows = now.borrows(&newest, &tables).await.unwrap();
    let after = manifest(tables);
    let table = after.tables.iter().find(|table| table.name == name);
    let oid = table.unwrap().oid;
    let after = BaseManifest {
        borrowed: borrows,
        ..after.clone()
    };
    match (after.lender(oid), after.altered(oid)) {
        (None, _) => Dumped,
        (Some(_), None) => Borrowed,
        (Some(_), Some(altered)) => Fate::Altered(said(altered)),
    }
}

/// One that is not usable is followed by another base at once: a whole one must always be.
#[test]
fn a_base_that_borrows_needs_its_lender_and_the_way_from_it() {
    use lastgood_proto::Lsn;
    use lastgood_proto::key::{SegmentKey, SegmentKind};
    use lastgood_proto::listing::Listing;

    let id = LineageId::new(1, 0);
    let lender = BaseId::new(Lsn::new(15), 1);
    let listing = |segments: &[(u64, u64)], bases: &[BaseId]| {
        let segments = segments.iter().map(|(start, end)| {
            let key = SegmentKey {
                start: Lsn::new(*start),
                end: Lsn::new(*end),
                max_commit_time: None,
                observed_through: None,
                kind: SegmentKind::Captured,
            };
            SourceObject::Segment(id, key)
        });
        let bases = bases.iter().map(|base| SourceObject::Manifest(id, *base));
        Listing::from_objects(segments.chain(bases))
    };
    let whole = manifest(Vec::new());
    let borrows = BaseManifest {
        consistent_point: Lsn::new(40),
        borrowed: vec![lastgood_proto::manifest::Borrowed {
            base: lender,
            tables: vec![Oid::new(1)],
            altered: Vec::new(),
        }],
        ..whole.clone()
    };
    let check = |segments: &[(u64, u64)], bases: &[BaseId], expect: bool| {
        let listing = listing(segments, bases);
        let lineage = listing.lineage(id).unwrap();
        assert!(is_usable(&whole, lineage));
        assert_eq!(
            is_usable(&borrows, lineage),
            expect,
            "{segments:?} {bases:?}"
        );
    };
    check(&[(10, 20), (20, 50)], &[lender], true);
    check(&[(10, 20)], &[lender], true);
    check(&[(10, 20), (20, 50)], &[], false);
    check(&[(10, 20), (30, 50)], &[lender], false);
    check(&[(20, 50)], &[lender], false);
}

#[tokio::test]
async fn what_touches_rows_is_told_by_the_catalog() {
    for major in [13, 15, 18] {
        if tools::bin_dir(major).is_err() {
            continue;
        }
        for (change, expect) in changes() {
            assert_eq!(
                fate(major, TABLES, change, "t").await,
                expect,
                "{major}: {change}"
            );
        }
    }
}

/// Names of other objects, and columns that a dump puts elsewhere.
#[tokio::test]
async fn tables_whose_text_depends_on_others() {
    let named =
        "CREATE TABLE n (id int PRIMARY KEY, r regclass[]); CREATE TABLE o (id int PRIMARY KEY);
        CREATE DOMAIN named AS regtype; CREATE TABLE d (id int PRIMARY KEY, r named);
        CREATE PUBLICATION pub FOR TABLE n, d, o";
    for (table, expect) in [("n", Dumped), ("d", Dumped), ("o", Borrowed)] {
        assert_eq!(
            fate(18, named, "CREATE TABLE x (id int)", table).await,
            expect
        );
    }
    let child = "CREATE TABLE par (a int PRIMARY KEY); CREATE TABLE chi (PRIMARY KEY (a)) INHERITS (par);
        CREATE TABLE root (a int PRIMARY KEY) PARTITION BY RANGE (a);
        CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (9); CREATE PUBLICATION pub FOR TABLE par, chi, leaf";
    let change = "ALTER TABLE chi ADD x int DEFAULT 10; ALTER TABLE par ADD y int DEFAULT 20; ALTER TABLE root ADD z int DEFAULT 3";
    for (table, expect) in [
        ("chi", "by place, 2 is 10, 3 is 20"),
        ("par", "by place, 2 is 20"),
        ("leaf", "by place, 2 is 3"),
    ] {
        assert_eq!(
            fate(18, child, change, table).await,
            altered(expect),
            "{table}"
        );
    }
    // The stream may have what is generated, and archives have not.
    let generated =
        "CREATE TABLE g (id int PRIMARY KEY, v int, w int GENERATED ALWAYS AS (v * 2) STORED);
        CREATE PUBLICATION pub FOR TABLE g";
    for (change, expect) in [
        ("CREATE TABLE x (id int)", Borrowed),
        ("ALTER TABLE g ADD x int", Dumped),
        ("ALTER TABLE g DROP w", Dumped),
        ("ALTER TABLE g ALTER w DROP EXPRESSION", Dumped),
        (
            "ALTER TABLE g ALTER w DROP EXPRESSION; ALTER TABLE g DROP v; ALTER TABLE g DROP w",
            Dumped,
        ),
    ] {
        assert_eq!(fate(18, generated, change, "g").await, expect, "{change}");
    }
    let change =
        "ALTER TABLE root ADD z int; ALTER TABLE root ALTER z SET NOT NULL, ADD CHECK (a < 5)";
    let expect = altered("by place, 2 is null, 2 may be null, unchecked");
    assert_eq!(fate(18, child, change, "leaf").await, expect);
    // A default partition has what its siblings have not, and all have what their ancestors have.
    let bounds = "CREATE TABLE top (a int PRIMARY KEY) PARTITION BY RANGE (a); CREATE TABLE rest PARTITION OF top DEFAULT;
        CREATE TABLE mid PARTITION OF top FOR VALUES FROM (0) TO (9) PARTITION BY RANGE (a);
        CREATE TABLE low PARTITION OF mid FOR VALUES FROM (0) TO (5); CREATE TABLE next (a int NOT NULL PRIMARY KEY);
        CREATE PUBLICATION pub FOR TABLE rest, low, next";
    let attach = "ALTER TABLE top ATTACH PARTITION next FOR VALUES FROM (10) TO (20)";
    let again = "ALTER TABLE top DETACH PARTITION mid; ALTER TABLE top ATTACH PARTITION mid FOR VALUES FROM (0) TO (9)";
    for (change, table, expect) in [
        (attach, "rest", Dumped),
        (attach, "next", Dumped),
        (attach, "low", Borrowed),
        (again, "low", Dumped),
    ] {
        assert_eq!(
            fate(18, bounds, change, table).await,
            expect,
            "{change} {table}"
        );
    }
    // What a function says of rows may be something else now.
    let calls = "CREATE FUNCTION ok(int) RETURNS bool LANGUAGE sql AS 'SELECT true'; CREATE DOMAIN fine AS int CHECK (ok(VALUE));
        CREATE TABLE c (id int PRIMARY KEY, v int CHECK (ok(v))); CREATE TABLE d (id int PRIMARY KEY, v fine);
        CREATE PUBLICATION pub FOR TABLE c, d";
    for (table, expect) in [("c", altered("unchecked")), ("d", Dumped)] {
        let change =
            "CREATE OR REPLACE FUNCTION ok(int) RETURNS bool LANGUAGE sql AS 'SELECT $1 > 5'";
        assert_eq!(fate(18, calls, change, table).await, expect, "{table}");
    }
    // NOT NULL is part of something else there, or none of the key.
    let held = "CREATE TABLE r (k int, seq int GENERATED ALWAYS AS IDENTITY, v int NOT NULL) PARTITION BY LIST (k);
        CREATE TABLE l PARTITION OF r FOR VALUES IN (1); CREATE TABLE s PARTITION OF r FOR VALUES IN (2);
        ALTER TABLE l ADD PRIMARY KEY (k); ALTER TABLE s ADD PRIMARY KEY (v);
        CREATE TABLE i (id int, v int, PRIMARY KEY (id) INCLUDE (v)); CREATE PUBLICATION pub FOR TABLE l, i";
    for (change, table, expect) in [
        ("ALTER TABLE r RENAME seq TO no", "l", Dumped),
        ("ALTER TABLE r RENAME v TO x", "l", Dumped),
        (
            "ALTER TABLE r ALTER k SET STATISTICS 7",
            "l",
            altered("by place"),
        ),
        (
            "ALTER TABLE i ALTER v SET NOT NULL",
            "i",
            altered("by place, 2 may be null"),
        ),
    ] {
        assert_eq!(fate(16, held, change, table).await, expect, "{change}");
    }
    // Rows of such partitions are not in an archive by themselves.
    let hashed = "CREATE TYPE e AS ENUM ('a'); CREATE TABLE h (m e, id int, PRIMARY KEY (m, id)) PARTITION BY HASH (m);
        CREATE TABLE h0 PARTITION OF h FOR VALUES WITH (MODULUS 1, REMAINDER 0); CREATE TABLE o (id int PRIMARY KEY);
        CREATE PUBLICATION pub FOR TABLE h0, o";
    for (table, expect) in [("h0", Dumped), ("o", Borrowed)] {
        assert_eq!(
            fate(18, hashed, "CREATE TABLE x (id int)", table).await,
            expect
        );
    }
}
