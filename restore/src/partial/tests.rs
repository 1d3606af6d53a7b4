//! Some tables of a real source, restored into a real server.

use std::collections::BTreeSet;

use lastgood_integration::TestDatabase;
use lastgood_proto::{Lsn, PgTimestamp};
use tokio_util::sync::CancellationToken;

use crate::testing::{Fixture, chain, content, majors_of};
use crate::{
    Error, Into, Options, Phase, Plan, PlanOptions, Progress, Replay, Report, TableName, Target,
    TargetKind, execute, plan, split_list,
};

/// Tables that hang together in every way that there is, over three schemas.
const SHOP: &str = "
    CREATE SCHEMA app; CREATE SCHEMA \"Odd, one\";
    CREATE TYPE app.mood AS ENUM ('sad', 'ok', 'happy');
    CREATE DOMAIN app.email AS text CHECK (VALUE LIKE '%@%');
    CREATE TYPE app.pair AS (a int, b app.mood);
    CREATE FUNCTION app.twice(n int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT n * 2';
    CREATE SEQUENCE app.ord; CREATE SEQUENCE app.lent;
    CREATE TABLE customer (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, email app.email UNIQUE, mood app.mood, pair app.pair,
        twice int GENERATED ALWAYS AS (app.twice(id::int)) STORED);
    CREATE TABLE app.\"Order\" (id bigint PRIMARY KEY DEFAULT nextval('app.ord'), customer bigint REFERENCES customer ON DELETE CASCADE,
        lent int DEFAULT nextval('app.lent'), note text);
    CREATE TABLE app.lender (id int PRIMARY KEY DEFAULT nextval('app.lent')); ALTER SEQUENCE app.lent OWNED BY app.lender.id;
    CREATE TABLE \"Odd, one\".\"a.b\" (id serial PRIMARY KEY, ord bigint REFERENCES app.\"Order\" ON DELETE CASCADE, v text);
    CREATE INDEX ON \"Odd, one\".\"a.b\" (lower(v));
    CREATE TABLE sale (id bigserial, at date, customer bigint REFERENCES customer, n int, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE sale_1 PARTITION OF sale FOR VALUES FROM ('2026-01-01') TO ('2026-07-01');
    CREATE TABLE app.sale_2 PARTITION OF sale FOR VALUES FROM ('2026-07-01') TO ('2027-01-01') PARTITION BY RANGE (at);
    CREATE TABLE app.sale_2_all PARTITION OF app.sale_2 DEFAULT;
    CREATE TABLE animal (id int PRIMARY KEY, name text); CREATE TABLE dog (bark text, PRIMARY KEY (id)) INHERITS (animal);
    CREATE TABLE audit (at timestamptz DEFAULT now(), what text, id bigserial PRIMARY KEY);
    CREATE FUNCTION app.audited() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN INSERT INTO public.audit (what) VALUES (TG_TABLE_NAME); RETURN NEW; END $$;
    CREATE TRIGGER audited AFTER INSERT ON customer FOR EACH ROW EXECUTE FUNCTION app.audited();
    CREATE RULE keep AS ON UPDATE TO audit DO INSTEAD NOTHING;
    CREATE RULE told AS ON DELETE TO \"Odd, one\".\"a.b\" DO ALSO INSERT INTO public.audit (what) VALUES ('deleted');
    ALTER TABLE customer ENABLE ROW LEVEL SECURITY;
    CREATE POLICY own ON customer USING (id > 0);
    CREATE POLICY known ON customer USING (EXISTS (SELECT FROM public.audit));
    CREATE VIEW happy AS SELECT c.id FROM customer c WHERE c.mood = 'happy';
    CREATE MATERIALIZED VIEW counts AS SELECT count(*) FROM sale;
    CREATE TABLE row_of_view (id int PRIMARY KEY, c animal);
    INSERT INTO customer (email, mood, pair) SELECT 'c' || g || '@x', 'ok', row(g, 'sad'::app.mood)::app.pair FROM generate_series(1, 100) g;
    INSERT INTO app.\"Order\" (customer) SELECT g FROM generate_series(1, 100) g;
    INSERT INTO \"Odd, one\".\"a.b\" (ord, v) SELECT g, 'v' || g FROM generate_series(1, 100) g;
    INSERT INTO sale (at, customer, n) SELECT '2026-01-01'::date + g % 360, 1 + g % 100, g % 3 FROM generate_series(1, 200) g;
    INSERT INTO animal VALUES (1, 'cat'); INSERT INTO dog VALUES (2, 'rex', 'woof');";

const CHANGES: [&str; 4] = [
    "INSERT INTO customer (email, mood) SELECT 'd' || g || '@x', 'happy' FROM generate_series(1, 30) g;
     INSERT INTO app.\"Order\" (customer, note) SELECT 100 + g, 'new' FROM generate_series(1, 30) g;
     UPDATE customer SET mood = 'sad' WHERE id % 7 = 0",
    "UPDATE sale SET at = at + 180 WHERE at < '2026-03-01'; UPDATE app.\"Order\" SET id = id + 1000 WHERE id % 10 = 0 AND id > 100;
     DELETE FROM sale WHERE n = 2; UPDATE animal SET name = name || '!'",
    "TRUNCATE customer CASCADE; INSERT INTO customer (email) VALUES ('z@x'); INSERT INTO app.lender DEFAULT VALUES",
    "INSERT INTO sale (at, n) VALUES ('2026-08-01', 5); INSERT INTO dog VALUES (3, 'bello', 'wau')",
];

fn options(tables: &str) -> PlanOptions {
    let names = split_list(tables);
    let names = names
        .into_iter()
        .map(|name| TableName::parse(name).unwrap());
    PlanOptions {
        now: PgTimestamp::from_micros(i64::MAX / 2),
        lineage: None,
        base: None,
        tables: names.collect(),
        into_schema: None,
    }
}

fn at(lsn: Lsn) -> Target {
    Target::new(TargetKind::Lsn(lsn), false)
}

async fn planned(fixture: &Fixture, target: &Target, tables: &str) -> Plan {
    let plan = plan(&fixture.store, target, &options(tables)).await;
    plan.unwrap_or_else(|error| panic!("{tables}: {}", chain(&error)))
}

async fn run(fixture: &Fixture, plan: &Plan, copy: &TestDatabase) -> Result<Report, Error> {
    attempt(fixture, plan, copy, None, false).await
}

/// Cancelled in this phase; in replay, after the first commit.
async fn attempt(
    fixture: &Fixture,
    plan: &Plan,
    copy: &TestDatabase,
    until: Option<Phase>,
    resume: bool,
) -> Result<Report, Error> {
    let into = Into {
        connection: copy.url().parse().unwrap(),
        create_database: None,
        allow_source: false,
    };
    let options = Options {
        jobs: 2,
        replay: match until {
            Some(Phase::Keys | Phase::Replay) => Replay::Ordered,
            _ => Replay::Merged { bytes_max: 1 << 30 },
        },
        resume,
    };
    let cancel = CancellationToken::new();
    let stop = |progress: Progress| {
        let is_begun = progress.phase != Phase::Replay || progress.transactions > 0;
        if until == Some(progress.phase) && is_begun {
            cancel.cancel();
        }
    };
    let store = &fixture.store;
    execute(plan, store, into, &options, stop, cancel.clone()).await
}

async fn relations(database: &TestDatabase) -> BTreeSet<String> {
    let client = database.connect().await.unwrap();
    let sql = "SELECT format('%s %I.%I', c.relkind, n.nspname, c.relname) FROM pg_class c
                 JOIN pg_namespace n ON n.oid = c.relnamespace
                WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relkind NOT IN ('i', 'I', 'c')";
    let rows = client.query(sql, &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

struct Case {
    tables: &'static str,
    /// Those that hold rows, as a digest names them.
    rows: &'static [&'static str],
    /// All that is there, but for tables with rows.
    others: &'static [&'static str],
    sequences: &'static [&'static str],
    left_out: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case {
        tables: "public.customer",
        rows: &["public.customer"],
        others: &[],
        sequences: &["public.customer_id_seq"],
        left_out: &["policy known on table public.customer"],
    },
    Case {
        tables: "app.\"Order\",\"Odd, one\".\"a.b\"",
        rows: &["app.\"Order\"", "\"Odd, one\".\"a.b\""],
        others: &[],
        sequences: &["app.ord", "app.lent", "\"Odd, one\".\"a.b_id_seq\""],
        left_out: &[
            "constraint \"Order_customer_fkey\" of app.\"Order\"",
            "rule told on table \"Odd, one\".\"a.b\"",
        ],
    },
    Case {
        tables: "sale",
        rows: &["public.sale_1", "app.sale_2_all"],
        others: &["p public.sale", "p app.sale_2"],
        sequences: &["public.sale_id_seq"],
        left_out: &["constraint \"sale_customer_fkey\" of public.sale"],
    },
    Case {
        tables: "app.sale_2_all,dog",
        rows: &["app.sale_2_all", "public.dog"],
        others: &[],
        // A partition has the default of its root.
        sequences: &["public.sale_id_seq"],
        left_out: &[
            "public.dog as a partition or child of public.animal",
            "app.sale_2_all as a partition or child of app.sale_2",
        ],
    },
    Case {
        tables: "animal",
        rows: &["public.animal", "public.dog"],
        others: &[],
        sequences: &[],
        left_out: &[],
    },
];

#[tokio::test(flavor = "multi_thread")]
async fn tables_with_what_they_need() {
    // Not every case on every major: each major has its turn with each kind of table.
    let majors = majors_of(&[13, 15, 16, 18]).await;
    for (round, major) in majors.into_iter().enumerate() {
        let mut fixture = Fixture::new(major, SHOP).await;
        let mut moments = vec![(fixture.durable(), fixture.content().await)];
        for change in CHANGES {
            fixture.run(&format!("BEGIN; {change}; COMMIT")).await;
            fixture.seal().await;
            moments.push((fixture.durable(), fixture.content().await));
        }
        for (number, case) in CASES.iter().enumerate() {
            if matches!(major, 13 | 16) && number % 2 != usize::from(major == 16) {
                continue;
            }
            // Another moment on each major.
            let moment = (number + 3 * round) % moments.len();
            let (lsn, truth) = &moments[moment];
            let what = format!("{major}: {} at moment {moment}", case.tables);
            let plan = planned(&fixture, &at(*lsn), case.tables).await;
            let copy = fixture.source.sibling().await.unwrap();
            let report = run(&fixture, &plan, &copy).await;
            let report = report.unwrap_or_else(|error| panic!("{what}: {}", chain(&error)));
            let expected = truth.part(case.rows, case.sequences);
            expected.assert_restored(&content(&copy).await, &what);
            let rows = case.rows.iter().map(|name| format!("r {name}"));
            let sequences = case.sequences.iter().map(|name| format!("S {name}"));
            let others = case.others.iter().map(|name| (*name).to_owned());
            let all: BTreeSet<String> = rows.chain(sequences).chain(others).collect();
            assert_eq!(relations(&copy).await, all, "{what}");
            let left_out: BTreeSet<String> = report
                .partial
                .unwrap()
                .left_out
                .into_iter()
                .map(|left| left.object)
                .collect();
            let expected: BTreeSet<String> = case
                .left_out
                .iter()
                .map(|name| (*name).to_owned())
                .collect();
            assert_eq!(left_out, expected, "{what}");
            same_definitions(&fixture.source, &copy, case, &what).await;
        }
    }
}

/// Columns, defaults, keys, checks and indexes of the chosen tables are those of the source.
async fn same_definitions(source: &TestDatabase, copy: &TestDatabase, case: &Case, what: &str) {
    let sql = "
        SELECT format('%I.%I', n.nspname, c.relname), 'column ' || a.attname,
               concat_ws(' ', format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity, a.attgenerated,
                         pg_get_expr(d.adbin, d.adrelid))
          FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
          LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
         WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'p')
        UNION ALL
        SELECT format('%I.%I', n.nspname, c.relname), 'constraint ' || k.conname, pg_get_constraintdef(k.oid)
          FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE k.contype <> 'f'
        UNION ALL
        SELECT format('%I.%I', n.nspname, c.relname), 'index', pg_get_indexdef(i.indexrelid) || i.indisvalid
          FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        ORDER BY 1, 2, 3";
    let mut found = Vec::new();
    for database in [source, copy] {
        let client = database.connect().await.unwrap();
        client.batch_execute("SET search_path = ''").await.unwrap();
        let rows = client.query(sql, &[]).await.unwrap();
        let rows = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2)));
        let rows: Vec<(String, String, Option<String>)> = rows
            .filter(|(table, ..): &(String, String, Option<String>)| {
                case.rows.contains(&table.as_str())
            })
            .collect();
        found.push(rows);
    }
    assert_eq!(found[0], found[1], "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_of_some_tables_says_what_comes_and_what_does_not() {
    let fixture = Fixture::new(15, SHOP).await;
    let latest = Target::latest();
    let plan = planned(&fixture, &latest, "customer, sale").await;
    let partial = plan.partial.clone().unwrap();
    let tables: Vec<_> = partial
        .tables
        .iter()
        .map(|table| (table.written(), table.child_of.clone()))
        .collect();
    let by = |parent: &str| Some(parent.to_owned());
    assert_eq!(
        tables,
        [
            ("app.sale_2".to_owned(), by("public.sale")),
            ("app.sale_2_all".to_owned(), by("app.sale_2")),
            ("public.customer".to_owned(), None),
            ("public.sale".to_owned(), None),
            ("public.sale_1".to_owned(), by("public.sale")),
        ]
    );
    assert_eq!(
        partial.attached,
        [
            "trigger \"audited\" on public.customer",
            "policy \"known\" on public.customer",
            "policy \"own\" on public.customer",
            "row security of public.customer"
        ]
        .into_iter()
        .collect::<Vec<_>>()
        .as_slice()
    );
    // The one between them comes.
    assert_eq!(partial.left_out, []);
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);

    let refused = crate::plan(&fixture.store, &latest, &options("public.custmer")).await;
    assert_eq!(
        refused.unwrap_err().to_string(),
        "the base has no table public.custmer; it has public.customer"
    );

    // A column of another table's row type: this table is less without the other.
    let plan = planned(&fixture, &latest, "row_of_view").await;
    let copy = fixture.source.sibling().await.unwrap();
    let error = run(&fixture, &plan, &copy).await.unwrap_err();
    assert!(
        chain(&error).contains("column c of table public.row_of_view needs a table or view"),
        "{}",
        chain(&error)
    );
    assert!(matches!(
        error,
        Error::Failed {
            phase: crate::Phase::Schema,
            ..
        }
    ));
}

/// A source whose replay is more than one commit on the target.
async fn long_history(major: u32) -> Fixture {
    let mut fixture = Fixture::new(major, SHOP).await;
    fixture
        .run("INSERT INTO animal SELECT g, 'x' FROM generate_series(11, 70000) g")
        .await;
    fixture.run("UPDATE animal SET id = id + 1000000").await;
    for change in CHANGES {
        fixture.run(&format!("BEGIN; {change}; COMMIT")).await;
    }
    fixture.seal().await;
    fixture
}

fn is_cancelled_in(error: &Error, phase: Phase) -> bool {
    matches!(error, Error::Failed { phase: reached, source, .. }
        if *reached == phase && matches!(**source, Error::Cancelled))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_one_resumes() {
    let fixture = long_history(16).await;
    let truth = fixture.content().await;
    let plan = planned(&fixture, &Target::latest(), "animal,customer").await;
    let expected = truth.part(
        &["public.animal", "public.dog", "public.customer"],
        &["public.customer_id_seq"],
    );
    let phases = [
        Phase::Data,
        Phase::Keys,
        Phase::Replay,
        Phase::Constraints,
        Phase::Finish,
    ];
    for phase in phases {
        let copy = fixture.source.sibling().await.unwrap();
        let cut = attempt(&fixture, &plan, &copy, Some(phase), false).await;
        let error = cut.unwrap_err();
        assert!(is_cancelled_in(&error, phase), "{}", chain(&error));
        let again = attempt(&fixture, &plan, &copy, None, true).await;
        let report = again.unwrap_or_else(|error| panic!("{phase:?}: {}", chain(&error)));
        assert!(report.resumed);
        expected.assert_restored(&content(&copy).await, &format!("{phase:?}"));
        let left_out = &report.partial.unwrap().left_out;
        let is_named = |name: &str| left_out.iter().any(|left| left.object == name);
        assert!(is_named("policy known on table public.customer"));
        // Other tables are another restore.
        if phase == Phase::Data {
            let copy = fixture.source.sibling().await.unwrap();
            let _cut = attempt(&fixture, &plan, &copy, Some(phase), false).await;
            let other = planned(&fixture, &Target::latest(), "animal").await;
            let refused = attempt(&fixture, &other, &copy, None, true).await;
            let refused = chain(&refused.unwrap_err());
            assert!(
                refused.contains("this restore cannot be resumed"),
                "{refused}"
            );
        }
    }
}

/// Under a schema of a database that has other things, a cancel leaves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_one_leaves_an_existing_database_alone() {
    let fixture = long_history(15).await;
    let truth = fixture.content().await;
    let mut options = options("animal,customer");
    options.into_schema = Some("back".to_owned());
    let plan = plan(&fixture.store, &Target::latest(), &options).await;
    let plan = plan.unwrap();
    let copy = fixture.source.sibling().await.unwrap();
    let roles = ["keeper", "nosy"].map(|role| format!("{role}_of_{}", copy.name));
    let [role, nosy] = &roles;
    let captured = format!(
        "CREATE TABLE mine (id int); INSERT INTO mine VALUES (1); CREATE ROLE {role} REPLICATION; CREATE ROLE {nosy};
         CREATE PUBLICATION lastgood_0123456789abcdef; CREATE PUBLICATION lastgood_0123456789abcdee;
         GRANT CREATE ON DATABASE {} TO {role}, {nosy};
         ALTER PUBLICATION lastgood_0123456789abcdef OWNER TO {role};
         ALTER PUBLICATION lastgood_0123456789abcdee OWNER TO {nosy}",
        copy.name
    );
    copy.execute(&captured).await.unwrap();
    let scratch = async || {
        let client = copy.connect().await.unwrap();
        let sql = "SELECT count(*) FROM pg_database WHERE strpos(shobj_description(oid, 'pg_database'), $1) > 0";
        let row = client.query_one(sql, &[&copy.name]).await.unwrap();
        row.get::<_, i64>(0)
    };
    for phase in [Phase::Data, Phase::Replay, Phase::Transfer] {
        let cut = attempt(&fixture, &plan, &copy, Some(phase), false).await;
        let error = cut.unwrap_err();
        assert!(is_cancelled_in(&error, phase), "{}", chain(&error));
        assert!(
            error.to_string().contains("nothing: schema \"back\""),
            "{error}"
        );
        assert_eq!(
            relations(&copy).await,
            BTreeSet::from(["r public.mine".to_owned()])
        );
        assert_eq!(scratch().await, 0);
    }
    let report = run(&fixture, &plan, &copy).await;
    let report = report.unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(report.database, copy.name);
    let expected = truth.part(
        &["public.animal", "public.dog", "public.customer"],
        &["public.customer_id_seq"],
    );
    let tables = ["back.animal", "back.dog", "back.customer"];
    let found = content(&copy).await;
    let expected = expected.renamed("public", "back");
    expected.assert_restored(&found.part(&tables, &["back.customer_id_seq"]), "back");
    assert_eq!(found.tables.len(), 4);
    assert_eq!(scratch().await, 0);
    // Else the next base of whoever captures that database would fail.
    let client = copy.connect().await.unwrap();
    let may = "SELECT has_schema_privilege($1, 'back', 'USAGE') AND has_table_privilege($1, 'back.animal', 'SELECT')
                  AND has_sequence_privilege($1, 'back.customer_id_seq', 'SELECT')
              AND NOT has_table_privilege($1, 'back.animal', 'UPDATE') AND NOT has_schema_privilege($2, 'back', 'USAGE')";
    let row = client.query_one(may, &[role, nosy]).await.unwrap();
    assert!(row.get::<_, bool>(0));
    drop(client);
    copy.execute(&format!(
        "DROP OWNED BY {role}, {nosy}; DROP ROLE {role}, {nosy}"
    ))
    .await
    .unwrap();
    let again = run(&fixture, &plan, &copy).await.unwrap_err();
    assert!(
        matches!(again, Error::SchemaExists { .. }),
        "{}",
        chain(&again)
    );
}

/// No sample is newer than the base: then the base knows how far a sequence was.
#[tokio::test(flavor = "multi_thread")]
async fn a_sequence_is_as_far_as_in_the_base() {
    let schema = "CREATE TABLE t (id serial PRIMARY KEY); INSERT INTO t DEFAULT VALUES; SELECT setval('t_id_seq', 500)";
    let fixture = Fixture::new(15, schema).await;
    let plan = planned(&fixture, &at(fixture.durable()), "t").await;
    let copy = fixture.source.sibling().await.unwrap();
    let report = run(&fixture, &plan, &copy).await;
    report.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let truth = fixture.content().await;
    truth.assert_restored(&content(&copy).await, "t");
}

/// Names in values: there is nothing in the copy that they could name.
#[tokio::test(flavor = "multi_thread")]
async fn names_of_what_is_not_restored_are_told_of() {
    let schema =
        "CREATE TABLE account (id int PRIMARY KEY); CREATE TYPE pair AS (rel regclass, n int);
        CREATE TABLE log (id int PRIMARY KEY, rel regclass, \"All\" pair[], who regrole, n oid);
        INSERT INTO log VALUES (1, 'account', ARRAY[('account', 1)::pair], 'pg_monitor', 7)";
    let fixture = Fixture::new(15, schema).await;
    let plan = planned(&fixture, &at(fixture.durable()), "log").await;
    let copy = fixture.source.sibling().await.unwrap();
    let report = run(&fixture, &plan, &copy).await;
    let report = report.unwrap_or_else(|error| panic!("{}", chain(&error)));
    let left_out = report.partial.unwrap().left_out;
    let left_out: Vec<&str> = left_out.iter().map(|left| left.object.as_str()).collect();
    let named = ["\"All\"", "rel"].map(|column| format!("names in column {column} of public.log"));
    assert_eq!(left_out, named);
}
