//! Base and segments of a real source, restored into a real server and compared with what was seen.

mod scattered;

use std::sync::{Arc, Mutex};

use lastgood_integration::TestDatabase;
use lastgood_proto::{Lsn, PgTimestamp};

use super::*;
use crate::testing::{Fixture, chain, content, majors, tables};
use crate::{PlanOptions, TableName, Target, TargetKind, plan};

const SHOP: &str = "
    CREATE TABLE customer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email text UNIQUE, note text);
    CREATE TABLE product (id serial PRIMARY KEY, name text NOT NULL, price numeric(10,2) CHECK (price >= 0));
    CREATE TABLE sale (id bigserial, at date, customer bigint REFERENCES customer, product int REFERENCES product,
        n int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE sale_1 PARTITION OF sale FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
    CREATE TABLE \"sale 2\" PARTITION OF sale FOR VALUES FROM ('2026-07-01') TO ('2027-01-01');
    CREATE INDEX sale_customer ON sale (customer);
    CREATE TABLE log (at timestamptz, line text); ALTER TABLE log REPLICA IDENTITY FULL;
    CREATE TABLE counted (id int PRIMARY KEY, n int NOT NULL);
    CREATE UNIQUE INDEX counted_n ON counted (n); ALTER TABLE counted REPLICA IDENTITY USING INDEX counted_n;
    CREATE FUNCTION shout() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.note := upper(NEW.note); RETURN NEW; END $$;
    CREATE TRIGGER shout BEFORE INSERT OR UPDATE ON customer FOR EACH ROW EXECUTE FUNCTION shout();
    CREATE MATERIALIZED VIEW turnover AS SELECT p.name, sum(s.n * p.price) AS total
        FROM sale s JOIN product p ON p.id = s.product GROUP BY p.name;
    CREATE RULE keep AS ON DELETE TO product DO INSTEAD NOTHING;
    ALTER TABLE customer ENABLE ROW LEVEL SECURITY;
    CREATE SEQUENCE loose INCREMENT 2;
    INSERT INTO customer (email, note) SELECT 'c' || g || '@example.org', 'note' FROM generate_series(1, 200) g;
    INSERT INTO product (name, price) SELECT 'p' || g, g FROM generate_series(1, 20) g;
    INSERT INTO sale (at, customer, product, n) SELECT '2026-01-01'::date + g % 360, 1 + g % 200, 1 + g % 20, 1
        FROM generate_series(1, 500) g;
    INSERT INTO log SELECT '2026-01-01', 'line ' || g % 10 FROM generate_series(1, 50) g;
    INSERT INTO counted SELECT g, g FROM generate_series(1, 10) g;
    REFRESH MATERIALIZED VIEW turnover;";

const CHANGES: [&str; 6] = [
    "INSERT INTO customer (email, note) SELECT 'd' || g || '@example.org', 'new' FROM generate_series(1, 50) g;
     UPDATE customer SET note = 'seen' WHERE id % 3 = 0; SELECT nextval('loose'), nextval('loose')",
    "INSERT INTO sale (at, customer, product, n) SELECT '2026-01-01'::date + g % 360, 1 + g % 240, 1 + g % 20, 2
        FROM generate_series(1, 300) g; UPDATE sale SET at = at + 180 WHERE at < '2026-03-01'",
    "DELETE FROM log WHERE ctid IN (SELECT ctid FROM log WHERE line = 'line 3' LIMIT 2); UPDATE counted SET n = -n",
    "UPDATE customer SET email = 'lost'  || id",
    "TRUNCATE \"sale 2\"; INSERT INTO product (name, price) VALUES ('last', 1)",
    "DELETE FROM customer WHERE id > 240",
];

fn options() -> PlanOptions {
    PlanOptions {
        now: PgTimestamp::from_micros(i64::MAX / 2),
        lineage: None,
        base: None,
        tables: Vec::new(),
        into_schema: None,
    }
}

const RUN: Options = Options {
    jobs: 2,
    replay: Replay::Merged { bytes_max: 1 << 30 },
    resume: false,
};

/// As [`RUN`], for those who want a replay of many commits to look at.
const ORDERED: Options = Options {
    replay: Replay::Ordered,
    ..RUN
};

async fn restore(fixture: &Fixture, target: &Target) -> (TestDatabase, Report) {
    let plan = plan(&fixture.store, target, &options()).await.unwrap();
    restore_plan(fixture, &plan).await
}

async fn restore_plan(fixture: &Fixture, plan: &Plan) -> (TestDatabase, Report) {
    let copy = fixture.source.sibling().await.unwrap();
    let into = into(&copy);
    let done = execute(
        plan,
        &fixture.store,
        into,
        &RUN,
        |_| {},
        CancellationToken::new(),
    )
    .await;
    (
        copy,
        done.unwrap_or_else(|error| panic!("{}", chain(&error))),
    )
}

fn into(database: &TestDatabase) -> Into {
    Into {
        connection: database.url().parse().unwrap(),
        create_database: None,
        allow_source: false,
    }
}

#[test]
fn the_futures_can_be_spawned() {
    fn send<T: Send>(_: impl Fn(Plan, SourceStore, Into) -> T) {}
    send(|plan, store, into| async move {
        execute(&plan, &store, into, &RUN, |_| {}, CancellationToken::new()).await
    });
    send(|_, store, _| async move { crate::plan(&store, &Target::latest(), &options()).await });
}

/// Every moment between two changes, named in every way, on every major.
#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_target() {
    for major in majors().await {
        let mut fixture = Fixture::new(major, SHOP).await;
        let start = fixture.content().await;
        let mut moments = Vec::new();
        for (number, change) in CHANGES.iter().enumerate() {
            fixture.run(&format!("BEGIN; {change}; COMMIT")).await;
            if number == 3 {
                fixture.base().await;
            }
            let commits = fixture.seal().await;
            assert_eq!(commits.len(), 1);
            moments.push((commits[0], fixture.content().await, fixture.durable()));
        }
        let mut before = start;
        for (begin, after, end) in &moments {
            let targets = [
                (TargetKind::Lsn(begin.commit_lsn), true, after),
                (TargetKind::Xid(begin.xid), false, &before),
                (TargetKind::Lsn(*end), false, after),
                (TargetKind::Time(begin.commit_time), true, after),
            ];
            for (kind, inclusive, expected) in targets {
                let target = Target::new(kind, inclusive);
                let (copy, _) = restore(&fixture, &target).await;
                expected.assert_restored(&content(&copy).await, &format!("{major}: {target}"));
            }
            before = after.clone();
        }
        let (copy, report) = restore(&fixture, &Target::latest()).await;
        before.assert_restored(&content(&copy).await, "latest");
        assert_eq!(report.reached.unwrap().xid, moments[5].0.xid);
        assert_eq!(report.transactions, 2);
        same_definitions(&fixture.source, &copy).await;
    }
}

/// Everything that `pg_dump` has to say, apart from the data.
async fn same_definitions(source: &TestDatabase, copy: &TestDatabase) {
    let sql = "
        SELECT 'constraint', conrelid::regclass::text || ' ' || conname, pg_get_constraintdef(oid) || convalidated::text FROM pg_constraint WHERE conrelid <> 0
        UNION ALL SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid) || indisreplident::text || indisvalid::text
          FROM pg_index WHERE indexrelid >= 16384
        UNION ALL SELECT 'trigger', tgrelid::regclass::text || ' ' || tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal
        UNION ALL SELECT 'rule', ev_class::regclass::text || ' ' || rulename, pg_get_ruledef(oid) FROM pg_rewrite WHERE ev_class >= 16384
        UNION ALL SELECT 'column', attrelid::regclass::text || ' ' || attname, attidentity::text || attnotnull::text
          FROM pg_attribute WHERE attrelid >= 16384 AND attnum > 0
        UNION ALL SELECT 'table', oid::regclass::text, relkind::text || relreplident::text || relrowsecurity::text FROM pg_class
          WHERE oid >= 16384 AND relkind IN ('r', 'p', 'S', 'm', 'v') AND relnamespace::regnamespace::text !~ '^pg_'
        UNION ALL SELECT 'schema', nspname, '' FROM pg_namespace WHERE nspname !~ '^pg_'
        ORDER BY 1, 2, 3";
    let mut found = Vec::new();
    for database in [source, copy] {
        let client = database.connect().await.unwrap();
        let rows = client.query(sql, &[]).await.unwrap();
        let rows: Vec<(String, String, String)> = rows
            .iter()
            .map(|row| (row.get(0), row.get(1), row.get(2)))
            .filter(|(_, name, _): &(String, String, String)| !name.starts_with("pg_toast"))
            .collect();
        found.push(rows);
    }
    assert_eq!(found[0], found[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_says_what_is_kept_and_what_is_not() {
    let mut fixture = Fixture::new(15, SHOP).await;
    for change in &CHANGES[..3] {
        fixture.run(&format!("BEGIN; {change}; COMMIT")).await;
    }
    fixture.seal().await;
    fixture.run(&format!("BEGIN; {}; COMMIT", CHANGES[3])).await;
    let lost = fixture.seal().await[0];
    let target = Target::new(TargetKind::Xid(lost.xid), false);
    let planned = plan(&fixture.store, &target, &options()).await.unwrap();
    let discarded = planned.stop.first_discarded.as_ref().unwrap();
    assert_eq!(
        (discarded.xid, discarded.commit_lsn),
        (lost.xid, lost.commit_lsn)
    );
    assert_eq!(discarded.tables.len(), 1);
    assert_eq!(
        (
            discarded.tables[0].table.as_str(),
            discarded.tables[0].updates
        ),
        ("customer", 250)
    );
    let kept = planned.stop.last_kept.as_ref().unwrap();
    assert!(kept.commit_lsn < lost.commit_lsn);
    assert_eq!(
        kept.tables
            .iter()
            .map(|table| table.table.as_str())
            .collect::<Vec<_>>(),
        ["counted", "log"]
    );
    assert_eq!((kept.tables[0].updates, kept.tables[1].deletes), (10, 2));
    assert!(planned.stored_bytes > 0 && planned.not_covered.is_empty());
    let text = serde_json::to_string(&planned).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), planned);

    // Nothing past the newest, nothing of an unknown name or transaction.
    let outside = [
        TargetKind::Lsn(Lsn::new(fixture.durable().as_u64() + 1)),
        TargetKind::Lsn(Lsn::new(planned.base.consistent_point.as_u64() - 2)),
        TargetKind::Time(PgTimestamp::from_micros(i64::MAX / 4)),
        TargetKind::Time(PgTimestamp::from_micros(0)),
    ];
    for kind in outside {
        let target = Target::new(kind, true);
        let error = plan(&fixture.store, &target, &options()).await.unwrap_err();
        assert!(
            matches!(error, Error::OutsideWindows { .. }),
            "{target}: {error}"
        );
    }
    let unknown = Target::new(TargetKind::Xid(lastgood_proto::Xid::new(1)), true);
    let error = plan(&fixture.store, &unknown, &options())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::UnknownTransaction { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_from_the_stream() {
    let mut fixture = Fixture::new(15, SHOP).await;
    fixture.run("INSERT INTO counted VALUES (100, 100)").await;
    let expected = fixture.content().await;
    fixture
        .run("SELECT pg_logical_emit_message(false, 'lastgood.point', 'before'); ")
        .await;
    fixture.run("DELETE FROM counted").await;
    fixture.seal().await;
    let target = Target::new(TargetKind::Name("before".to_owned()), true);
    let (copy, _) = restore(&fixture, &target).await;
    expected.assert_restored(&content(&copy).await, "named");
    let target = Target::new(TargetKind::Name("other".to_owned()), true);
    let error = plan(&fixture.store, &target, &options()).await.unwrap_err();
    assert!(matches!(error, Error::UnknownPoint { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_may_not_be_written_to() {
    let fixture = Fixture::new(15, SHOP).await;
    let planned = plan(&fixture.store, &Target::latest(), &options())
        .await
        .unwrap();
    let attempt = async |into: Into| {
        let token = CancellationToken::new();
        execute(&planned, &fixture.store, into, &RUN, |_| {}, token)
            .await
            .unwrap_err()
    };
    let error = attempt(into(&fixture.source)).await;
    assert!(matches!(error, Error::IsSource { .. }), "{error}");
    let named = Into {
        create_database: Some(fixture.source.name.clone()),
        ..into(&fixture.source)
    };
    assert!(matches!(attempt(named).await, Error::IsSource { .. }));
    let anyway = Into {
        allow_source: true,
        ..into(&fixture.source)
    };
    assert!(matches!(attempt(anyway).await, Error::NotEmpty { .. }));

    for object in [
        "CREATE TABLE t ()",
        "CREATE TYPE e AS ENUM ()",
        "CREATE SCHEMA s",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "SELECT lo_create(0)",
        "CREATE VIEW v AS SELECT 1",
    ] {
        let copy = fixture.source.sibling().await.unwrap();
        copy.execute(object).await.unwrap();
        let error = attempt(into(&copy)).await;
        assert!(matches!(error, Error::NotEmpty { .. }), "{object}: {error}");
    }
    let copy = fixture.source.sibling().await.unwrap();
    let exists = Into {
        create_database: Some(copy.name.clone()),
        ..into(&fixture.source)
    };
    assert!(matches!(
        attempt(exists).await,
        Error::DatabaseExists { .. }
    ));

    // Only an extension: that is empty enough. And a new one, with a name that needs quoting.
    copy.execute("CREATE EXTENSION citext").await.unwrap();
    let name = format!("Odd \"name\" {}", copy.name);
    let new = Into {
        create_database: Some(name.clone()),
        ..into(&copy)
    };
    for into in [into(&copy), new] {
        let token = CancellationToken::new();
        execute(&planned, &fixture.store, into, &RUN, |_| {}, token)
            .await
            .unwrap();
    }
    fixture
        .source
        .server
        .execute(
            "postgres",
            &format!("DROP DATABASE {}", crate::sql::quoted(&name)),
        )
        .await
        .unwrap();
}

/// Cut off at several places, and taken up again.
#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_restore_resumes() {
    let mut fixture = Fixture::new(15, SHOP).await;
    fixture
        .run("INSERT INTO counted SELECT g, g FROM generate_series(11, 70000) g")
        .await;
    fixture.run("UPDATE counted SET id = id + 1000000").await;
    for change in CHANGES {
        fixture.run(&format!("BEGIN; {change}; COMMIT")).await;
    }
    fixture.seal().await;
    fixture.run("UPDATE product SET price = price + 1").await;
    fixture.seal().await;
    let expected = fixture.content().await;
    let planned = plan(&fixture.store, &Target::latest(), &options())
        .await
        .unwrap();
    // The last with changes in each of the two ways, and in both.
    let some = Options {
        replay: Replay::Merged { bytes_max: 1 << 16 },
        ..RUN
    };
    for (phase, run) in [
        (Phase::Changes, RUN),
        (Phase::Data, RUN),
        (Phase::Keys, ORDERED),
        (Phase::Replay, ORDERED),
        (Phase::Replay, some),
        (Phase::Constraints, ORDERED),
        (Phase::Constraints, RUN),
        (Phase::Finish, RUN),
    ] {
        let copy = fixture.source.sibling().await.unwrap();
        let cancel = CancellationToken::new();
        // In replay, after the first commit: there is more to come.
        let stop = |progress: Progress| {
            if progress.phase == phase && (phase != Phase::Replay || progress.transactions > 0) {
                cancel.cancel();
            }
        };
        let error = execute(
            &planned,
            &fixture.store,
            into(&copy),
            &run,
            stop,
            cancel.clone(),
        )
        .await
        .unwrap_err();
        let Error::Failed {
            phase: reached,
            left_behind,
            source,
        } = &error
        else {
            panic!("{}", chain(&error));
        };
        assert!(
            matches!(**source, Error::Cancelled) && *reached == phase,
            "{}",
            chain(&error)
        );
        assert!(left_behind.contains("DROP DATABASE"));
        let begun = unfinished(&into(&copy), None).await.unwrap();
        assert_eq!(begun, Some((planned.lineage, planned.base.id)));

        let again = execute(
            &planned,
            &fixture.store,
            into(&copy),
            &RUN,
            |_| {},
            CancellationToken::new(),
        )
        .await;
        assert!(matches!(again, Err(Error::NotEmpty { .. })));
        let first = Mutex::new(None);
        let seen = |progress: Progress| {
            if progress.phase == Phase::Replay && progress.through.is_some() {
                first.lock().unwrap().get_or_insert(progress.transactions);
            }
        };
        let resume = Options {
            resume: true,
            ..run
        };
        let report = execute(
            &planned,
            &fixture.store,
            into(&copy),
            &resume,
            seen,
            CancellationToken::new(),
        )
        .await;
        let report = report.unwrap_or_else(|error| panic!("{phase:?}: {}", chain(&error)));
        assert!(report.resumed);
        assert_eq!(report.transactions, 9, "{phase:?}");
        expected.assert_restored(&content(&copy).await, &format!("{phase:?}"));
        same_definitions(&fixture.source, &copy).await;
    }
}

/// A second one into the same place would bring the same changes in beside the first, and a table
/// without a key would not tell.
#[tokio::test(flavor = "multi_thread")]
async fn two_restores_at_once() {
    let mut fixture = Fixture::new(
        15,
        "CREATE TABLE log (line text); ALTER TABLE log REPLICA IDENTITY FULL",
    )
    .await;
    for part in ["1, 70000", "70001, 140000"] {
        let insert = format!("INSERT INTO log SELECT 'line ' || g FROM generate_series({part}) g");
        fixture.run(&insert).await;
    }
    fixture.seal().await;
    let expected = fixture.content().await;
    for schema in [None, Some("recovered")] {
        let wanted = PlanOptions {
            tables: schema
                .map(|_| TableName::parse("log").unwrap())
                .into_iter()
                .collect(),
            into_schema: schema.map(ToOwned::to_owned),
            ..options()
        };
        let planned = plan(&fixture.store, &Target::latest(), &wanted)
            .await
            .unwrap();
        let copy = fixture.source.sibling().await.unwrap();
        // The first one stops between two commits of the replay until it is told to go on.
        let (reached, has_reached) = std::sync::mpsc::channel();
        let (go_on, may_go_on) = std::sync::mpsc::channel::<()>();
        let may_go_on = Mutex::new(Some(may_go_on));
        let hold = move |progress: Progress| {
            if progress.phase == Phase::Replay
                && progress.transactions == 1
                && let Some(may_go_on) = may_go_on.lock().unwrap().take()
            {
                reached.send(()).unwrap();
                tokio::task::block_in_place(|| may_go_on.recv().unwrap());
            }
        };
        let (plan, store, target) = (planned.clone(), fixture.store.clone(), into(&copy));
        let first = tokio::spawn(async move {
            execute(
                &plan,
                &store,
                target,
                &ORDERED,
                hold,
                CancellationToken::new(),
            )
            .await
        });
        tokio::task::block_in_place(|| has_reached.recv().unwrap());
        for resume in [true, false] {
            let again = Options { resume, ..ORDERED };
            let token = CancellationToken::new();
            let second =
                execute(&planned, &fixture.store, into(&copy), &again, |_| {}, token).await;
            let error = second.unwrap_err();
            let is_refused = match (schema, resume) {
                (Some(_), false) => matches!(error, Error::ScratchExists { .. }),
                _ => matches!(
                    error,
                    Error::AnotherRestore {
                        process: Some(_),
                        ..
                    }
                ),
            };
            assert!(is_refused, "{schema:?} {resume}: {}", chain(&error));
        }
        go_on.send(()).unwrap();
        let report = first.await.unwrap();
        let report = report.unwrap_or_else(|error| panic!("{schema:?}: {}", chain(&error)));
        assert!(!report.resumed);
        let (expected, found) = (tables(&expected), content(&copy).await);
        let name = format!("{}.log", schema.unwrap_or("public"));
        assert_eq!(expected["public.log"], tables(&found)[&name], "{schema:?}");
    }
}

/// A scratch database holds what may have taken hours: it goes only if whoever began it cancels.
#[tokio::test(flavor = "multi_thread")]
async fn what_becomes_of_a_scratch_database() {
    let mut fixture = Fixture::new(15, "CREATE TABLE t (id int PRIMARY KEY)").await;
    fixture
        .run("INSERT INTO t SELECT generate_series(1, 100)")
        .await;
    fixture.seal().await;
    let wanted = PlanOptions {
        tables: vec![TableName::parse("t").unwrap()],
        into_schema: Some("recovered".to_owned()),
        ..options()
    };
    let planned = plan(&fixture.store, &Target::latest(), &wanted)
        .await
        .unwrap();
    let copy = fixture.source.sibling().await.unwrap();
    for (is_cancel, phase, resume, stays) in [
        (true, Phase::Data, false, false),
        (false, Phase::Schema, false, false),
        (false, Phase::Data, false, true),
        (true, Phase::Constraints, true, true),
        (false, Phase::Constraints, true, true),
    ] {
        let what = format!("{is_cancel} {phase:?} {resume}");
        let (cancel, shutdown) = (CancellationToken::new(), CancellationToken::new());
        let stop = |progress: Progress| match is_cancel {
            _ if progress.phase != phase => {}
            true => cancel.cancel(),
            false => shutdown.cancel(),
        };
        let interrupt = Interrupt {
            cancel: cancel.clone(),
            shutdown: shutdown.clone(),
        };
        let options = Options { resume, ..RUN };
        let done = execute(
            &planned,
            &fixture.store,
            into(&copy),
            &options,
            stop,
            interrupt,
        )
        .await;
        let Err(Error::Failed { left_behind, .. }) = &done else {
            panic!("{what}: {done:?}");
        };
        assert!(
            left_behind.contains("schema \"recovered\""),
            "{what}: {left_behind}"
        );
        assert_eq!(
            left_behind.starts_with("nothing"),
            !stays,
            "{what}: {left_behind}"
        );
        let begun = unfinished(&into(&copy), Some("recovered")).await.unwrap();
        assert_eq!(begun.is_some(), stays, "{what}");
    }
    let resume = Options {
        resume: true,
        ..RUN
    };
    let token = CancellationToken::new();
    let done = execute(
        &planned,
        &fixture.store,
        into(&copy),
        &resume,
        |_| {},
        token,
    )
    .await;
    assert!(done.unwrap().resumed);
    let (truth, found) = (fixture.content().await, content(&copy).await);
    assert_eq!(tables(&truth)["public.t"], tables(&found)["recovered.t"]);
}

/// Told before any row is loaded, with what mends it.
#[tokio::test(flavor = "multi_thread")]
async fn an_extension_that_only_an_index_needs() {
    let schema = "CREATE EXTENSION pg_trgm; CREATE EXTENSION btree_gist;
        CREATE TABLE t (id int PRIMARY KEY, name text, EXCLUDE USING gist (id WITH =));
        CREATE TABLE other (name text); CREATE INDEX ON t USING gin (name gin_trgm_ops)";
    let fixture = Fixture::new(15, schema).await;
    fixture
        .run("INSERT INTO t SELECT g, 'name ' || g FROM generate_series(1, 100) g")
        .await;
    fixture.base().await;
    let copy = fixture.source.sibling().await.unwrap();
    let attempt = async |table: &str, schema: &str| {
        let wanted = PlanOptions {
            tables: vec![TableName::parse(table).unwrap()],
            into_schema: Some(schema.to_owned()),
            ..options()
        };
        let planned = plan(&fixture.store, &Target::latest(), &wanted)
            .await
            .unwrap();
        let token = CancellationToken::new();
        execute(&planned, &fixture.store, into(&copy), &RUN, |_| {}, token).await
    };
    attempt("other", "without").await.unwrap();
    for extension in ["btree_gist", "pg_trgm"] {
        let error = attempt("t", "recovered").await.unwrap_err();
        let Error::Failed { phase, source, .. } = &error else {
            panic!("{}", chain(&error));
        };
        assert_eq!(*phase, Phase::Schema, "{}", chain(&error));
        let Error::MissingExtension { remedy, .. } = &**source else {
            panic!("{}", chain(&error));
        };
        assert!(remedy.contains(extension), "{remedy}");
        copy.execute(remedy).await.unwrap();
    }
    attempt("t", "recovered").await.unwrap();
    let (truth, found) = (fixture.content().await, content(&copy).await);
    assert_eq!(tables(&truth)["public.t"], tables(&found)["recovered.t"]);
}

/// What comes back beside the others is its owner's alone: default privileges of the existing database
/// give nothing of it away, and who saw some rows only does not see all of them now.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_may_use_what_comes_back_under_a_schema() {
    for major in majors().await {
        let schema = "CREATE TYPE mood AS ENUM ('sad'); CREATE TYPE span AS RANGE (subtype = int);
            CREATE FUNCTION twice(n int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT n * 2';
            CREATE TABLE t (id serial PRIMARY KEY, mood mood, span span, CHECK (twice(id) > 0));
            ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY;
            CREATE POLICY own ON t USING (id > 50); INSERT INTO t SELECT generate_series(1, 100)";
        let mut fixture = Fixture::new(major, schema).await;
        fixture.run("UPDATE t SET mood = 'sad' WHERE id = 1").await;
        fixture.seal().await;
        let copy = fixture.source.sibling().await.unwrap();
        let app = format!("app {}", copy.name);
        for objects in ["SCHEMAS", "TABLES", "SEQUENCES", "ROUTINES", "TYPES"] {
            let sql =
                format!("ALTER DEFAULT PRIVILEGES GRANT ALL ON {objects} TO PUBLIC, \"{app}\"");
            if objects == "SCHEMAS" {
                copy.execute(&format!("CREATE ROLE \"{app}\""))
                    .await
                    .unwrap();
            }
            copy.execute(&sql).await.unwrap();
        }
        let wanted = PlanOptions {
            tables: vec![TableName::parse("t").unwrap()],
            into_schema: Some("Re covered".to_owned()),
            ..options()
        };
        let planned = plan(&fixture.store, &Target::latest(), &wanted)
            .await
            .unwrap();
        let attached = &planned.partial.as_ref().unwrap().attached;
        assert!(
            attached[0].starts_with("row security of public.t, without its policies"),
            "{attached:?}"
        );
        let token = CancellationToken::new();
        let done = execute(&planned, &fixture.store, into(&copy), &RUN, |_| {}, token).await;
        done.unwrap_or_else(|error| panic!("{major}: {}", chain(&error)));
        let (truth, found) = (fixture.content().await, content(&copy).await);
        assert_eq!(
            tables(&truth)["public.t"],
            tables(&found)["\"Re covered\".t"]
        );
        let sql = "WITH made AS (
                SELECT nspacl AS acl, nspowner AS owner FROM pg_namespace WHERE nspname = $1
                UNION ALL SELECT relacl, relowner FROM pg_class WHERE relnamespace = $1::text::regnamespace
                UNION ALL SELECT proacl, proowner FROM pg_proc WHERE pronamespace = $1::text::regnamespace
                UNION ALL SELECT typacl, typowner FROM pg_type WHERE typnamespace = $1::text::regnamespace AND typtype <> 'm')
            SELECT (SELECT count(acl) FROM made), (SELECT count(*) FROM made CROSS JOIN LATERAL aclexplode(acl) WHERE grantee <> owner),
                   relrowsecurity, relforcerowsecurity FROM pg_class WHERE relname = 't' AND relkind = 'r'";
        let client = copy.connect().await.unwrap();
        let row = client
            .query_one(
                &sql.replace("$1::text", "'\"Re covered\"'"),
                &[&"Re covered"],
            )
            .await
            .unwrap();
        assert!(
            row.get::<_, i64>(0) >= 5,
            "the server has made grants at all"
        );
        assert_eq!(
            (row.get(1), row.get(2), row.get(3)),
            (0_i64, true, false),
            "{major}"
        );
        let clean = format!("DROP OWNED BY \"{app}\"; DROP ROLE \"{app}\"");
        copy.execute(&clean).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_table_that_is_not_covered_is_said_and_does_not_stop_a_restore() {
    let schema =
        "CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1), (2), (3);
        CREATE TABLE child (parent int REFERENCES parent); INSERT INTO child VALUES (1), (3);
        CREATE TABLE kept (id int PRIMARY KEY REFERENCES parent); INSERT INTO kept VALUES (1)";
    let mut fixture = Fixture::new(15, schema).await;
    fixture.run("DELETE FROM child WHERE parent = 3; DELETE FROM parent WHERE id = 3; INSERT INTO parent VALUES (4)").await;
    fixture.seal().await;
    let (copy, report) = restore(&fixture, &Target::latest()).await;
    assert_eq!(report.not_covered.len(), 1);
    assert_eq!(report.not_covered[0].object, "\"public\".\"child\"");
    assert_eq!(report.notes.len(), 1);
    assert!(
        report.notes[0].starts_with("created NOT VALID"),
        "{:?}",
        report.notes
    );
    let (truth, found) = (fixture.content().await, content(&copy).await);
    assert_eq!(
        tables(&truth)["public.parent"],
        tables(&found)["public.parent"]
    );
    assert_eq!(tables(&found)["public.child"].rows, 2);
    let client = copy.connect().await.unwrap();
    let valid = client
        .query(
            "SELECT conname::text, convalidated FROM pg_constraint WHERE contype = 'f' ORDER BY 1",
            &[],
        )
        .await
        .unwrap();
    let valid: Vec<(String, bool)> = valid.iter().map(|row| (row.get(0), row.get(1))).collect();
    assert_eq!(
        valid,
        [
            ("child_parent_fkey".to_owned(), false),
            ("kept_id_fkey".to_owned(), true)
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_and_grants_where_the_role_exists() {
    let mut fixture = Fixture::new(
        15,
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)",
    )
    .await;
    let (here, gone) = (
        format!("here {}", fixture.source.name),
        format!("gone {}", fixture.source.name),
    );
    fixture.run(&format!("CREATE ROLE \"{here}\"; CREATE ROLE \"{gone}\";
        ALTER TABLE a OWNER TO \"{here}\"; ALTER TABLE b OWNER TO \"{gone}\"; GRANT SELECT ON b TO \"{here}\", \"{gone}\"; REVOKE ALL ON a FROM \"{here}\"")).await;
    fixture.seal().await;
    fixture.base().await;
    let planned = plan(&fixture.store, &Target::latest(), &options())
        .await
        .unwrap();
    fixture
        .run(&format!("DROP OWNED BY \"{gone}\"; DROP ROLE \"{gone}\""))
        .await;
    let place = into(&fixture.source);
    let missing = crate::missing_roles(&planned, &fixture.store, &place).await;
    assert_eq!(missing.unwrap(), [gone.as_str()]);
    let (copy, report) = restore_plan(&fixture, &planned).await;
    assert_eq!(report.notes.len(), 1, "{:?}", report.notes);
    assert!(
        report.notes.iter().all(|note| note.contains(&gone)),
        "{:?}",
        report.notes
    );
    let client = copy.connect().await.unwrap();
    let row = client
        .query_one(
            "SELECT (SELECT relowner::regrole::text FROM pg_class WHERE relname = 'a'),
        has_table_privilege($1, 'b', 'SELECT'), has_table_privilege($1, 'a', 'SELECT')",
            &[&here],
        )
        .await
        .unwrap();
    assert_eq!(
        (row.get::<_, String>(0), row.get(1), row.get(2)),
        (format!("\"{here}\""), true, false)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_or_altered_segment() {
    let mut fixture = Fixture::new(15, "CREATE TABLE t (id int PRIMARY KEY)").await;
    let mut ends = Vec::new();
    for number in 0..4 {
        fixture
            .run(&format!("INSERT INTO t VALUES ({number})"))
            .await;
        fixture.seal().await;
        ends.push(fixture.durable());
    }
    let segments = fixture.folder.path().join(format!(
        "sources/{}/{}/segments",
        fixture.store.id(),
        fixture.lineage
    ));
    let mut files: Vec<_> = std::fs::read_dir(&segments)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    let latest = plan(&fixture.store, &Target::latest(), &options())
        .await
        .unwrap();

    let bytes = std::fs::read(&files[1]).unwrap();
    for damage in 0..3 {
        let mut changed = bytes.clone();
        match damage {
            0 => changed.truncate(bytes.len() - 1),
            1 => changed[bytes.len() / 2] ^= 1,
            _ => changed = std::fs::read(&files[2]).unwrap(),
        }
        std::fs::write(&files[1], changed).unwrap();
        let copy = fixture.source.sibling().await.unwrap();
        let token = CancellationToken::new();
        let error = execute(&latest, &fixture.store, into(&copy), &RUN, |_| {}, token)
            .await
            .unwrap_err();
        assert_eq!(
            error.class(),
            lastgood_proto::Class::Corrupt,
            "{damage}: {}",
            chain(&error)
        );
    }
    std::fs::remove_file(&files[1]).unwrap();
    let error = plan(&fixture.store, &Target::latest(), &options())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::SegmentsMissing { .. }), "{error}");
    let before = Target::new(TargetKind::Lsn(ends[0]), false);
    plan(&fixture.store, &before, &options()).await.unwrap();
    let after = Target::new(TargetKind::Lsn(ends[2]), true);
    let error = plan(&fixture.store, &after, &options()).await.unwrap_err();
    assert!(matches!(error, Error::OutsideWindows { .. }), "{error}");
}

/// Older into newer and newer into older: what `pg_restore` says of unknown settings is no error.
#[tokio::test(flavor = "multi_thread")]
async fn another_major() {
    let majors = majors().await;
    for (from, to) in [(15, 18), (18, 15)] {
        if !majors.contains(&from) || !majors.contains(&to) {
            continue;
        }
        let mut fixture = Fixture::new(from, SHOP).await;
        for change in CHANGES {
            fixture.run(&format!("BEGIN; {change}; COMMIT")).await;
        }
        fixture.seal().await;
        let planned = plan(&fixture.store, &Target::latest(), &options())
            .await
            .unwrap();
        let copy = TestDatabase::new(to).await.unwrap();
        let token = CancellationToken::new();
        let done = execute(&planned, &fixture.store, into(&copy), &RUN, |_| {}, token).await;
        done.unwrap_or_else(|error| panic!("{from} to {to}: {}", chain(&error)));
        let what = format!("{from} to {to}");
        (fixture.content().await).assert_restored(&content(&copy).await, &what);
    }
}

/// A role that owns the database and is nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn without_superuser() {
    for major in majors().await {
        let mut fixture = Fixture::new(major, SHOP).await;
        fixture
            .run("COMMENT ON SCHEMA public IS 'ours'; CREATE EXTENSION citext; COMMENT ON EXTENSION citext IS 'x'")
            .await;
        fixture.base().await;
        for change in CHANGES {
            fixture.run(&format!("BEGIN; {change}; COMMIT")).await;
        }
        fixture.seal().await;
        let copy = fixture.source.sibling().await.unwrap();
        let role = format!("owner_{}", copy.name);
        let sql = format!(
            "CREATE ROLE {role} LOGIN PASSWORD 'x'; ALTER DATABASE {} OWNER TO {role}",
            copy.name
        );
        copy.execute(&sql).await.unwrap();
        let planned = plan(&fixture.store, &Target::latest(), &options())
            .await
            .unwrap();
        let url = copy.server.url_as(&role, "x", &copy.name);
        let into = Into {
            connection: url.parse().unwrap(),
            create_database: None,
            allow_source: false,
        };
        let token = CancellationToken::new();
        let done = execute(&planned, &fixture.store, into, &RUN, |_| {}, token).await;
        let report = done.unwrap_or_else(|error| panic!("{major}: {}", chain(&error)));
        (fixture.content().await).assert_restored(&content(&copy).await, "without superuser");
        assert!(!report.notes.is_empty());
    }
}

/// The latest, in a new database on the source's server.
async fn restored(fixture: &Fixture, prefix: &str) -> TestDatabase {
    let planned = plan(&fixture.store, &Target::latest(), &options())
        .await
        .unwrap();
    let name = format!("{prefix}_{}", fixture.source.name);
    let into = Into {
        connection: fixture.source.server.url("postgres").parse().unwrap(),
        create_database: Some(name.clone()),
        allow_source: false,
    };
    let token = CancellationToken::new();
    let done = execute(&planned, &fixture.store, into, &RUN, |_| {}, token).await;
    done.unwrap_or_else(|error| panic!("{}", chain(&error)));
    TestDatabase {
        server: Arc::clone(&fixture.source.server),
        name,
    }
}

/// A lineage goes on with segments of another version, whose values are in another encoding.
#[tokio::test(flavor = "multi_thread")]
async fn segments_in_two_encodings() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, \"日本\" text)";
    let mut fixture = Fixture::with_encoding(18, schema, "EUC_JP").await;
    fixture.run("INSERT INTO t VALUES (1, '日')").await;
    fixture.seal().await;
    fixture.sent_in = Some("EUC_JP".to_owned());
    fixture
        .run("INSERT INTO t VALUES (2, convert_from('\\xcbdcadf0', 'EUC_JP')); UPDATE t SET id = 3 WHERE id = 1")
        .await;
    fixture.seal().await;
    let copy = restored(&fixture, "two").await;
    let client = copy.connect().await.unwrap();
    let sql = "SELECT string_agg(id || encode(convert_to(\"日本\", 'EUC_JP'), 'hex'), ' ' ORDER BY id) FROM t";
    let found: String = client.query_one(sql, &[]).await.unwrap().get(0);
    assert_eq!(found, "2cbdcadf0 3c6fc");
}

/// Bytes that are no text in any encoding.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_without_an_encoding() {
    let schema = "CREATE TABLE t (id int PRIMARY KEY, v text);
        CREATE TABLE whole (v text); ALTER TABLE whole REPLICA IDENTITY FULL";
    let mut fixture = Fixture::with_encoding(15, schema, "SQL_ASCII").await;
    fixture
        .run("SET client_encoding = 'SQL_ASCII'; INSERT INTO t VALUES (1, E'\\xff\\xfe'), (2, E'gr\\xfcn'); INSERT INTO whole VALUES (E'\\x80'), ('x')")
        .await;
    fixture.base().await;
    fixture
        .run("SET client_encoding = 'SQL_ASCII'; INSERT INTO t VALUES (3, E'\\xe4\\n'); UPDATE t SET v = v || E'\\xf6';
              UPDATE whole SET v = E'\\x81' WHERE v = E'\\x80'")
        .await;
    fixture.seal().await;
    let copy = restored(&fixture, "ascii").await;
    let sql = "SELECT string_agg(encode(v::bytea, 'hex'), ' ' ORDER BY id) || (SELECT string_agg(encode(v::bytea, 'hex'), ' ' ORDER BY v) FROM whole) FROM t";
    let mut found = Vec::new();
    for database in [&fixture.source, &copy] {
        let client = database.connect().await.unwrap();
        let row = client.query_one(sql, &[]).await.unwrap();
        found.push(row.get::<_, String>(0));
    }
    assert_eq!(found[0], found[1]);
    assert!(found[0].contains("fffef6"));
}
