//! A real stream against a real target: statements run on one database, what `pgoutput` says of them
//! is written as a segment, read again and replayed into a copy made before. Both must then hold the
//! same rows.

use std::time::{Duration, Instant};

use lastgood_integration::{TestDatabase, digest};
use lastgood_proto::segment::{Header, RowBuffer, SegmentReader};
use lastgood_proto::{LineageId, SourceId};

use super::*;
use crate::batch::Batcher;
use crate::changes::{BaseTables, Changes, Range};
use crate::testing::{PINNED, capture};
use crate::{catalog, identity};

/// Source and copy, with a slot on the source.
struct Pair {
    source: TestDatabase,
    copy: TestDatabase,
    slot: String,
}

/// A stream as a segment, with the commit LSN of its last transaction.
struct Captured {
    segment: Vec<u8>,
    last: Option<Lsn>,
}

impl Pair {
    /// `schema` is run on both sides; `source_only` on the source.
    async fn new(major: u32, schema: &str, source_only: &str) -> Self {
        let source = TestDatabase::new(major).await.unwrap();
        let copy = source.sibling().await.unwrap();
        source.execute(schema).await.unwrap();
        copy.execute(schema).await.unwrap();
        let slot = format!("slot_{}", source.name);
        source.execute(source_only).await.unwrap();
        let options = match major {
            18 => " WITH (publish_generated_columns = stored)",
            _ => "",
        };
        source
            .execute(&format!(
                "CREATE PUBLICATION everything FOR ALL TABLES{options}"
            ))
            .await
            .unwrap();
        source
            .execute(&format!(
                "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput')"
            ))
            .await
            .unwrap();
        Self { source, copy, slot }
    }

    async fn capture(&self) -> Captured {
        let client = self.source.connect().await.unwrap();
        let start: String = client
            .query_one(
                "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = $1",
                &[&self.slot],
            )
            .await
            .unwrap()
            .get(0);
        let header = Header {
            source: SourceId::from_bytes([1; 8]),
            lineage: LineageId::new(1, 1),
            start: start.parse().unwrap(),
            server: 150_000,
            encoding: Some("UTF8".to_owned()),
        };
        let (segment, _, commits) = capture(&self.source, &self.slot, header, Vec::new()).await;
        Captured {
            segment,
            last: commits.last().map(|begin| begin.commit_lsn),
        }
    }

    /// Replays everything, in the session's real settings.
    async fn replay(&self, captured: &Captured) -> Result<Replayed, Error> {
        let client = self.copy.connect().await.unwrap();
        client.batch_execute(PINNED).await.unwrap();
        client.batch_execute(SESSION).await.unwrap();
        progress_table::create(&client, "test").await?;
        identity::relax(&client).await?;
        let source = self.source.connect().await.unwrap();
        let base = source
            .query(
                "SELECT n.nspname::text, c.relname::text, c.oid FROM pg_class c
                   JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')",
                &[],
            )
            .await
            .unwrap();
        let oids = base.iter();
        let base = BaseTables {
            oids: oids
                .map(|row| ((row.get(0), row.get(1)), Oid::new(row.get(2))))
                .collect(),
            ..BaseTables::default()
        };
        let range = Range {
            from: Lsn::INVALID,
            rows_from: Lsn::INVALID,
            last_kept: captured.last,
            replayed: Replayed {
                through: Lsn::INVALID,
                transactions: 0,
                rows: 0,
            },
        };
        let tables = Arc::new(catalog::tables(&client).await?);
        let changes = Changes::new(range, tables, Arc::new(base));
        let mut batcher = Batcher::new(changes);
        let mut applier = Applier::new(&client, range.replayed);
        let mut reader = SegmentReader::open(captured.segment.as_slice(), None).unwrap();
        let mut rows = RowBuffer::default();
        while let Some(record) = reader.next_into(&mut rows).unwrap() {
            if let Some(batch) = batcher.feed(&record, &rows)? {
                applier.apply(batch).await?;
            }
        }
        if let Some(batch) = batcher.finish() {
            applier.apply(batch).await?;
        }
        drop_lookup_indexes(&client).await?;
        identity::set_back(&client).await?;
        let state = progress_table::read(&client).await?.unwrap();
        progress_table::drop(&client).await?;
        Ok(state.replayed)
    }

    async fn assert_same(&self) {
        let mut source = self.source.connect().await.unwrap();
        let mut copy = self.copy.connect().await.unwrap();
        let expected = digest::of(&mut source, None).await.unwrap();
        let found = digest::of(&mut copy, None).await.unwrap();
        assert_eq!(expected.tables, found.tables);
        assert!(!expected.tables.is_empty());
    }
}

/// Runs `changes` on the source and replays them on both majors that differ most for us.
async fn check(schema: &str, changes: &[&str]) {
    for major in [15, 18] {
        check_on(major, schema, changes).await;
    }
}

async fn check_on(major: u32, schema: &str, changes: &[&str]) {
    let pair = Pair::new(major, schema, "").await;
    for change in changes {
        pair.source
            .execute(change)
            .await
            .unwrap_or_else(|error| panic!("{change}: {error:#}"));
    }
    let captured = pair.capture().await;
    assert!(captured.last.is_some());
    if let Err(error) = pair.replay(&captured).await {
        panic!("{}: {error:?}", error);
    }
    pair.assert_same().await;
}

#[tokio::test]
async fn many_types() {
    let schema = "
        CREATE TYPE mood AS ENUM ('sad', 'it''s \"ok\"');
        CREATE TYPE pair AS (a int, b text);
        CREATE DOMAIN short AS varchar(8) NOT NULL CHECK (VALUE <> 'never');
        CREATE DOMAIN shorter AS short CHECK (length(VALUE) < 8);
        CREATE TABLE \"Odd \"\"Na\\me\" (
            id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            \"select\" text, \"r\" int, hits int, place numeric(12,3), f8 float8, f4 float4, flag boolean,
            c char(5), one \"char\", n name, bits bit(5), vb bit varying(9), raw bytea, cash money,
            j json, jb jsonb, x xml, m mood, ms mood[], p pair, ps pair[], d shorter DEFAULT 'dflt',
            ts timestamp, tz timestamptz, t timetz, day date, iv interval, u uuid, net inet, ci cidr,
            box box, pt point, poly polygon, r4 int4range, mr int8multirange, tsv tsvector, tsq tsquery,
            o oid, rc regclass, ia int[], ta text[][], lsn pg_lsn,
            twice int GENERATED ALWAYS AS (r * 2) STORED);";
    let row = "INSERT INTO \"Odd \"\"Na\\me\" (\"select\", r, hits, place, f8, f4, flag, c, one, n, bits, vb, raw,
            cash, j, jb, x, m, ms, p, ps, d, ts, tz, t, day, iv, u, net, ci, box, pt, poly, r4, mr, tsv, tsq,
            o, rc, ia, ta, lsn)
        SELECT E'tab\\there\\nnl\\rcr\\\\back\\\\N ' || g, g, -g, 'NaN', 0.1::float8 + 0.2, 1e-30, g % 2 = 0, 'ab ', 'x',
            'nam', B'10110', B'101', '\\x00ff5c', '12.34', '{\"a\": 1,  \"b\":[]}', '{\"k\": \"\\\\u00e9\"}',
            '<?xml version=\"1.0\"?><a>t</a>', 'it''s \"ok\"', '{sad,NULL}', ROW(g, 'q\"u,o)te')::pair, ARRAY[ROW(1, NULL)::pair],
            'dom', 'infinity', '2026-03-29 01:30:00.123456+02', '12:00:01.5+05:30', '0044-03-15 BC', '1 mon -2 days 03:04:05.6',
            '00000000-0000-0000-0000-00000000000a', '10.1.2.3', '10.0.0.0/8', '((1,2),(3,4))', '(1.5,-2)',
            '((0,0),(1,1),(2,0))', '[1,5)', '{[1,3),[5,7)}', 'a:1 fat:2 c:3', 'a & !b', 4294967295, 'pg_class',
            '[0:2]={1,2,NULL}', '{{a,NULL},{\"c,d\",\"\"}}', '16/B374D848'
        FROM generate_series(1, 20) g;";
    check(
        schema,
        &[
            row,
            "UPDATE \"Odd \"\"Na\\me\" SET r = r + 100, f8 = 'infinity', c = NULL, d = 'new', m = NULL WHERE id % 3 = 0",
            "DELETE FROM \"Odd \"\"Na\\me\" WHERE id % 5 = 0",
            row,
            "UPDATE \"Odd \"\"Na\\me\" SET p = NULL, ps = '{}', bits = B'00000', cash = '-0.01', one = '', x = NULL",
        ],
    )
    .await;
}

#[tokio::test]
async fn keys_change_and_swap() {
    check(
        "CREATE TABLE t (a int, b text, v int, PRIMARY KEY (b, a));
         CREATE TABLE one (id int PRIMARY KEY, other int UNIQUE);
         CREATE TABLE ri (x int NOT NULL, y int NOT NULL, z text); CREATE UNIQUE INDEX ri_y ON ri (y);
         ALTER TABLE ri REPLICA IDENTITY USING INDEX ri_y;",
        &[
            "INSERT INTO t SELECT g, 'k' || g, 0 FROM generate_series(1, 50) g",
            "INSERT INTO one SELECT g, g FROM generate_series(1, 9) g",
            "INSERT INTO ri SELECT g, g, 'z' FROM generate_series(1, 9) g",
            "UPDATE t SET a = a + 1, v = v + 1 WHERE a % 2 = 0",
            "UPDATE t SET b = b || '!' WHERE a > 25",
            // The same rows again and again, in one transaction.
            "BEGIN; UPDATE t SET v = v + 1; UPDATE t SET v = v + 1; UPDATE t SET a = a + 1000;
             DELETE FROM t WHERE v % 3 = 0; INSERT INTO t VALUES (1, 'again', 1); COMMIT",
            "BEGIN; UPDATE one SET id = 100 WHERE id = 1; UPDATE one SET id = 1 WHERE id = 2;
             UPDATE one SET id = 2 WHERE id = 100; COMMIT",
            "BEGIN; DELETE FROM one WHERE id = 3; INSERT INTO one VALUES (3, 33); UPDATE one SET id = -id WHERE id > 5; COMMIT",
            "UPDATE ri SET y = -y; UPDATE ri SET x = y, z = NULL; DELETE FROM ri WHERE y < -7",
        ],
    )
    .await;
}

#[tokio::test]
async fn toasted_values_that_do_not_change() {
    check(
        "CREATE TABLE t (id int PRIMARY KEY, n int, big text, big2 bytea, d text);
         CREATE TABLE whole (n int, big text, j jsonb); ALTER TABLE whole REPLICA IDENTITY FULL;
         ALTER TABLE t ALTER big SET STORAGE EXTERNAL; ALTER TABLE whole ALTER big SET STORAGE EXTERNAL;
         ALTER TABLE t ALTER big2 SET STORAGE EXTERNAL;",
        &[
            "INSERT INTO t SELECT g, g, repeat('x' || g, 3000), decode(repeat('ab', 9000), 'hex'), 'd' FROM generate_series(1, 10) g",
            "INSERT INTO whole SELECT g, repeat('y' || g, 3000), '{}' FROM generate_series(1, 10) g",
            "UPDATE t SET n = -n",
            "UPDATE t SET big = repeat('z', 5000) WHERE id < 4; UPDATE t SET d = NULL, id = id + 100 WHERE id < 6",
            "UPDATE whole SET n = n + 1; UPDATE whole SET j = '[1]' WHERE n > 5; DELETE FROM whole WHERE n = 3",
        ],
    )
    .await;
}

/// Each version of a row that is updated within one transaction stays until its end, so a search for
/// the row passes them all: few of such updates are applied, and they must be the right ones.
#[tokio::test]
async fn a_hot_row_with_a_value_that_does_not_change() {
    check_on(
        18,
        "CREATE TABLE t (id int PRIMARY KEY, n int, m int, big text, other text);
         ALTER TABLE t ALTER big SET STORAGE EXTERNAL; ALTER TABLE t ALTER other SET STORAGE EXTERNAL;",
        &[
            "INSERT INTO t VALUES (1, 0, 0, repeat('x', 1000000), repeat('y', 9000)), (2, 0, 0, repeat('z', 1000000), NULL)",
            "DO $$ BEGIN FOR i IN 1..500 LOOP UPDATE t SET n = i WHERE id = 1; END LOOP;
             UPDATE t SET other = repeat('new', 9000) WHERE id = 1; UPDATE t SET m = 7, n = 0 WHERE id = 1;
             UPDATE t SET big = 'short' WHERE id = 1; UPDATE t SET n = -1 WHERE id = 1; END $$",
        ],
    )
    .await;
}

#[tokio::test]
async fn whole_rows_identify_themselves() {
    check(
        "CREATE TABLE dup (a int, b text, j json, p point, f boolean, c char(4), i inet, x xml, k text);
         ALTER TABLE dup REPLICA IDENTITY FULL;
         CREATE TYPE pair AS (a int, b int);
         CREATE TABLE odd (j json, p point, r pair); ALTER TABLE odd REPLICA IDENTITY FULL;
         CREATE TABLE keyed (id int PRIMARY KEY, j json, g int GENERATED ALWAYS AS (id + 1) STORED);
         ALTER TABLE keyed REPLICA IDENTITY FULL;",
        &[
            "INSERT INTO dup SELECT g % 5, CASE WHEN g % 2 = 0 THEN '' END, '{\"a\":1}', '(1,2)', g % 2 = 0, 'ab', '10.0.0.1',
                '<?xml version=\"1.0\"?><a/>', 'k' || g % 7 FROM generate_series(1, 70) g",
            "INSERT INTO dup SELECT 1, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL FROM generate_series(1, 3)",
            "INSERT INTO odd SELECT '[1]', '(0,0)', ROW(NULL, NULL)::pair FROM generate_series(1, 4)",
            "INSERT INTO odd SELECT NULL, '(0,0)', NULL FROM generate_series(1, 4)",
            "INSERT INTO keyed SELECT g, '{\"g\": 1}' FROM generate_series(1, 20) g",
            "DELETE FROM dup WHERE ctid IN (SELECT ctid FROM dup WHERE a = 1 LIMIT 3)",
            "UPDATE dup SET b = 'upd' WHERE ctid IN (SELECT ctid FROM dup WHERE a = 2 LIMIT 4)",
            "DELETE FROM dup WHERE ctid = (SELECT ctid FROM dup WHERE k IS NULL LIMIT 1)",
            "UPDATE dup SET a = a + 1, k = NULL WHERE a < 3",
            "UPDATE odd SET p = '(1,1)' WHERE ctid IN (SELECT ctid FROM odd WHERE r IS NOT DISTINCT FROM NULL LIMIT 2)",
            "DELETE FROM odd WHERE ctid = (SELECT ctid FROM odd WHERE j IS NULL LIMIT 1)",
            "UPDATE keyed SET j = '[]' WHERE id % 2 = 0; UPDATE keyed SET id = -id WHERE id > 15; DELETE FROM keyed WHERE id = 3",
        ],
    )
    .await;
}

#[tokio::test]
async fn truncate_is_a_barrier() {
    check(
        "CREATE TABLE a (id serial PRIMARY KEY, v int); CREATE TABLE b (id int PRIMARY KEY, v int);
         CREATE TABLE parent (id int PRIMARY KEY); CREATE TABLE child () INHERITS (parent);
         ALTER TABLE child ADD PRIMARY KEY (id);
         CREATE TABLE parts (id int, at date, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
         CREATE TABLE \"parts 1\" PARTITION OF parts FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
         CREATE TABLE \"parts 2\" PARTITION OF parts FOR VALUES FROM ('2026-07-01') TO ('2027-01-01');",
        &[
            "INSERT INTO a (v) SELECT g FROM generate_series(1, 5) g; INSERT INTO b SELECT g, g FROM generate_series(1, 5) g",
            "BEGIN; UPDATE a SET v = 0; TRUNCATE a RESTART IDENTITY; INSERT INTO a (v) VALUES (7); UPDATE b SET v = 1; COMMIT",
            "INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1), (3); UPDATE parent SET id = id + 10",
            "TRUNCATE ONLY parent; INSERT INTO parent VALUES (5)",
            "DELETE FROM ONLY parent WHERE id = 5; INSERT INTO parent VALUES (11)",
            "INSERT INTO parts SELECT g, '2026-01-01'::date + g FROM generate_series(1, 300) g",
            "UPDATE parts SET at = at + 180 WHERE id < 30; DELETE FROM parts WHERE id % 7 = 0",
            "TRUNCATE \"parts 2\"; INSERT INTO parts VALUES (1000, '2026-12-31')",
            "BEGIN; INSERT INTO b VALUES (100, 1); TRUNCATE a, b CASCADE; INSERT INTO b VALUES (101, 1); COMMIT",
            "TRUNCATE parts; INSERT INTO parts VALUES (1, '2026-02-02')",
        ],
    )
    .await;
}

#[tokio::test]
async fn wide_tables() {
    let columns = |prefix: &str| -> String {
        let each = (0..400).map(|number| {
            format!(
                ", {prefix}{number} {}",
                ["int", "text", "date", "numeric(9,2)"][number % 4]
            )
        });
        each.collect()
    };
    let schema = format!(
        "CREATE TABLE wide (id int PRIMARY KEY{}, r text, lastgood_old int);
         CREATE TABLE whole (id int{}); ALTER TABLE whole REPLICA IDENTITY FULL;
         CREATE TABLE nothing (); CREATE TABLE computed (g int GENERATED ALWAYS AS (1) STORED);",
        columns("c"),
        columns("w")
    );
    check(
        &schema,
        &[
            "INSERT INTO wide (id, c0, c1, c399, r) SELECT g, g, repeat('a\"\\,{}' || g, 800), 1.5, NULL FROM generate_series(1, 5) g",
            "INSERT INTO whole (id, w1, w2) SELECT g % 3, 'NULL', now() FROM generate_series(1, 9) g",
            "UPDATE wide SET c0 = c0 + 1, c2 = '2026-01-01' WHERE id > 1; UPDATE wide SET id = -id WHERE id = 2; DELETE FROM wide WHERE id = 3",
            "UPDATE whole SET w0 = 1 WHERE id = 1; DELETE FROM whole WHERE id = 2",
            "INSERT INTO nothing DEFAULT VALUES; INSERT INTO computed DEFAULT VALUES",
        ],
    )
    .await;
}

#[tokio::test]
async fn extension_types_as_keys() {
    check(
        "CREATE EXTENSION citext SCHEMA public; CREATE EXTENSION hstore SCHEMA public;
         CREATE COLLATION nocase (provider = libc, locale = 'C');
         CREATE DOMAIN code AS text COLLATE \"C\";
         CREATE TABLE t (k public.citext PRIMARY KEY, h public.hstore);
         CREATE TABLE coll (k text COLLATE nocase PRIMARY KEY, v text);
         CREATE TABLE dom (k code PRIMARY KEY, v code);",
        &[
            "INSERT INTO t VALUES ('Ann', 'a=>1'), ('bob', NULL); UPDATE t SET h = 'b=>\"x y\"' WHERE k = 'ann'; UPDATE t SET k = 'ANN' WHERE k = 'ann'",
            "DELETE FROM t WHERE k = 'BOB'",
            "INSERT INTO coll VALUES ('a', '1'), ('b', '2'); UPDATE coll SET v = 'x' WHERE k = 'a'; DELETE FROM coll WHERE k = 'b'",
            "INSERT INTO dom VALUES ('a', '1'), ('b', '2'); UPDATE dom SET v = 'x', k = 'c' WHERE k = 'a'; DELETE FROM dom WHERE k = 'b'",
        ],
    )
    .await;
}

#[tokio::test]
async fn a_divergence_is_an_error_with_its_place() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, \"it's\" int); INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)";
    let failing = async |before: &str, change: &str| {
        let pair = Pair::new(15, schema, "").await;
        pair.copy.execute(before).await.unwrap();
        pair.source
            .execute("UPDATE t SET \"it's\" = 9 WHERE id = 3")
            .await
            .unwrap();
        pair.source.execute(change).await.unwrap();
        let captured = pair.capture().await;
        (pair.replay(&captured).await.unwrap_err(), captured.last)
    };
    let (error, last) = failing(
        "DELETE FROM t WHERE id = 2",
        "UPDATE t SET \"it's\" = 7 WHERE id = 2",
    )
    .await;
    let Error::NotOneRow { place, found } = error else {
        panic!("{error:?}");
    };
    assert_eq!(found, "0 rows");
    assert_eq!(place.key, "id=2");
    assert_eq!(place.table, "\"public\".\"t\"");
    assert_eq!(place.operation, "UPDATE");
    assert_eq!(Some(place.commit_lsn), last);

    let (error, last) = failing("DELETE FROM t WHERE id = 1", "DELETE FROM t WHERE id = 1").await;
    assert!(
        matches!(&error, Error::NotOneRow { place, .. } if place.operation == "DELETE" && Some(place.commit_lsn) == last)
    );

    // A new row that is there already, staged and by COPY.
    let (error, last) = failing("INSERT INTO t VALUES (4, 4)", "INSERT INTO t VALUES (4, 4)").await;
    assert!(
        matches!(&error, Error::Change { place, .. }
        if place.operation == "INSERT" && place.key == "id=4" && Some(place.commit_lsn) == last),
        "{error:?}"
    );
    let pair = Pair::new(15, schema, "").await;
    pair.copy
        .execute("INSERT INTO t VALUES (5, 5)")
        .await
        .unwrap();
    pair.source
        .execute("INSERT INTO t VALUES (4, 4)")
        .await
        .unwrap();
    pair.source
        .execute("INSERT INTO t VALUES (5, 5)")
        .await
        .unwrap();
    let captured = pair.capture().await;
    let error = pair.replay(&captured).await.unwrap_err();
    assert!(
        matches!(&error, Error::Change { place, .. } if Some(place.commit_lsn) == captured.last),
        "{error:?}"
    );
}

/// What a group of transactions brings in comes back if another restore has brought it in already.
#[tokio::test]
async fn progress_that_somebody_else_has_moved() {
    let copy = TestDatabase::new(15).await.unwrap();
    let (client, other) = (copy.connect().await.unwrap(), copy.connect().await.unwrap());
    progress_table::create(&client, "test").await.unwrap();
    let at = |number| Replayed {
        through: Lsn::new(number),
        transactions: number,
        rows: number,
    };
    let batch = |number| Batch {
        tables: Vec::new(),
        encoding: "UTF8".into(),
        index: Vec::new(),
        truncate: None,
        commit: Some(at(number)),
    };
    let mut first = Applier::new(&client, at(0));
    let mut second = Applier::new(&other, at(0));
    first.apply(batch(1)).await.unwrap();
    first.apply(batch(2)).await.unwrap();
    let error = second.apply(batch(1)).await.unwrap_err();
    assert!(
        matches!(error, Error::ProgressMoved { expected } if expected == Lsn::INVALID),
        "{error:?}"
    );
    let state = progress_table::read(&client).await.unwrap().unwrap();
    assert_eq!(state.replayed, at(2));
}

#[tokio::test]
async fn another_schema_is_refused() {
    let pair = Pair::new(15, "CREATE TABLE t (id int PRIMARY KEY)", "").await;
    let changes = "ALTER TABLE t ADD v int; INSERT INTO t VALUES (1, 2)";
    pair.source.execute(changes).await.unwrap();
    let captured = pair.capture().await;
    let error = pair.replay(&captured).await.unwrap_err();
    assert!(
        matches!(&error, Error::SchemaChanged { why, .. } if why.contains("\"v\"")),
        "{error:?}"
    );
}

#[tokio::test]
async fn identity_of_a_partitioned_table() {
    check(
        "CREATE TABLE p (id bigint GENERATED ALWAYS AS IDENTITY, k int, v text, PRIMARY KEY (id, k)) PARTITION BY LIST (k);
         CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); CREATE TABLE p2 PARTITION OF p FOR VALUES IN (2);",
        &[
            "INSERT INTO p (k, v) SELECT 1 + g % 2, 'x' FROM generate_series(1, 20) g",
            "UPDATE p SET v = 'y' WHERE id % 3 = 0; UPDATE p SET k = 3 - k WHERE id % 5 = 0; UPDATE p SET id = DEFAULT WHERE id = 7; DELETE FROM p WHERE id = 8",
        ],
    )
    .await;
}

/// A plan made while the table was empty must not stay a sequential scan.
#[tokio::test]
async fn a_table_that_starts_empty() {
    let pair = Pair::new(15, "CREATE TABLE t (id int PRIMARY KEY, v int)", "").await;
    let changes = [
        "INSERT INTO t SELECT g, 0 FROM generate_series(1, 100) g",
        "UPDATE t SET v = 1",
        "INSERT INTO t SELECT g, 0 FROM generate_series(101, 60000) g",
        "UPDATE t SET v = v + 1",
    ];
    for change in changes {
        pair.source.execute(change).await.unwrap();
    }
    let captured = pair.capture().await;
    let start = Instant::now();
    let replayed = pair.replay(&captured).await.unwrap();
    assert_eq!((replayed.transactions, replayed.rows), (4, 120_100));
    assert!(start.elapsed() < Duration::from_secs(60));
    pair.assert_same().await;
}
