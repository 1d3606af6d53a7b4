//! Tables that cannot be captured, that come and go, and whose owner is not the one who captures.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use lastgood_integration::digest::{self, Content};
use lastgood_integration::{Service, Storage, TestDatabase, history, tools, truth};
use serde_json::{Value, json};

use crate::shapes::wait_beyond;

/// PostgreSQL fact: whatever a publication could make fail.
const HARD: &str = "
    CREATE TABLE plain (id int PRIMARY KEY, v text);
    CREATE TABLE bare (id int, v text);
    CREATE TABLE nothing (id int PRIMARY KEY, v text); ALTER TABLE nothing REPLICA IDENTITY NOTHING;
    CREATE TABLE lost (id int NOT NULL, v text); CREATE UNIQUE INDEX lost_id ON lost (id);
    ALTER TABLE lost REPLICA IDENTITY USING INDEX lost_id; DROP INDEX lost_id;
    CREATE TABLE late (id int, v text, PRIMARY KEY (id) DEFERRABLE);
    CREATE TABLE nullable (id int UNIQUE, v text);
    CREATE TABLE computed (id int, k int GENERATED ALWAYS AS (id * 2) STORED PRIMARY KEY, v text);
    CREATE TABLE whole (id int, k int GENERATED ALWAYS AS (id * 2) STORED, v text); ALTER TABLE whole REPLICA IDENTITY FULL;
    CREATE TABLE whole_bare (id int, k int GENERATED ALWAYS AS (id * 2) STORED, v text);
    CREATE UNLOGGED TABLE unlogged (id int, v text);
    CREATE TABLE child (more int) INHERITS (plain);
    CREATE TABLE keyed (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE keyed_1 PARTITION OF keyed FOR VALUES FROM (0) TO (100);
    CREATE TABLE mixed (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
    CREATE TABLE mixed_1 PARTITION OF mixed FOR VALUES FROM (0) TO (3);
    CREATE TABLE mixed_2 PARTITION OF mixed FOR VALUES FROM (3) TO (100); ALTER TABLE mixed_2 REPLICA IDENTITY NOTHING;
    CREATE TABLE keyless (id int, v text) PARTITION BY RANGE (id);
    CREATE TABLE keyless_1 PARTITION OF keyless FOR VALUES FROM (0) TO (100);
    CREATE TABLE left_out (id int PRIMARY KEY, v text);";
const HARD_18: &str = "
    CREATE TABLE virtual (id int, k int GENERATED ALWAYS AS (id * 2) VIRTUAL, v text);
    CREATE TABLE virtual_full (id int, k int GENERATED ALWAYS AS (id * 2) VIRTUAL, v text); ALTER TABLE virtual_full REPLICA IDENTITY FULL;
    CREATE TABLE virtual_key (id int PRIMARY KEY, k int GENERATED ALWAYS AS (id * 2) VIRTUAL, v text);";

/// What an application does to each of them.
async fn use_tables(client: &tokio_postgres::Client, tables: &[String]) -> Result<()> {
    for table in tables {
        let changes = [
            format!("INSERT INTO {table} (id, v) VALUES (7, 'new')"),
            format!("UPDATE {table} SET v = 'changed' WHERE id IN (1, 4)"),
            format!("UPDATE {table} SET id = 8 WHERE id = 7"),
            format!("DELETE FROM {table} WHERE id IN (2, 5)"),
        ];
        for change in changes {
            client
                .batch_execute(&change)
                .await
                .with_context(|| format!("the source's own change fails: {change}"))?;
        }
    }
    Ok(())
}

async fn tables_of(client: &tokio_postgres::Client) -> Result<Vec<String>> {
    let sql =
        "SELECT relname::text FROM pg_class WHERE relkind IN ('r', 'p') AND NOT relispartition
               AND relnamespace = 'public'::regnamespace ORDER BY 1";
    Ok(client
        .query(sql, &[])
        .await?
        .iter()
        .map(|row| row.get(0))
        .collect())
}

/// Restores to the newest moment; answers what came back and what the plan said of it.
async fn restore(
    service: &Service,
    name: &str,
    database: &TestDatabase,
) -> Result<(Content, Vec<String>, Value)> {
    let copy = format!("{}_copy", database.name);
    let into = json!({"connection": database.server.url("postgres"), "create_database": copy});
    let job = service.restore(name, &json!("latest"), into).await?;
    let restored = digest::of(&mut database.server.connect(&copy).await?, None).await?;
    history::drop_database(&database.server, &copy).await?;
    let objects = job["plan"]["not_covered"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    let named = objects.iter().filter_map(|it| it["object"].as_str());
    Ok((restored, named.map(|it| it.replace('"', "")).collect(), job))
}

/// Each table is as it is now, or as it was in the base and named in the plan.
async fn hard_tables(service: &Service, major: u32, no_identity: &str) -> Result<()> {
    let database = TestDatabase::new(major).await?;
    database.execute(HARD).await?;
    if major >= 18 {
        database.execute(HARD_18).await?;
    }
    let mut client = database.connect().await?;
    let tables = tables_of(&client).await?;
    for table in &tables {
        client
            .batch_execute(&format!(
                "INSERT INTO {table} (id, v) SELECT g, 'base' FROM generate_series(1, 5) g"
            ))
            .await?;
    }
    let name = format!("hard-{major}-{no_identity}");
    let mut settings = history::settings();
    settings["no_identity"] = json!(no_identity);
    settings["exclude"] = json!(["public.left_*"]);
    service.add_source(&name, &database.url(), settings).await?;
    service.wait_protected(&name).await?;
    let base = digest::of(&mut client, None).await?;
    use_tables(&client, &tables).await?;
    let now = digest::of(&mut client, None).await?;
    service
        .wait_durable(&name, &truth::wal_position(&client).await?)
        .await?;
    let (restored, stale, _) = restore(service, &name, &database).await?;
    let expect: BTreeMap<_, _> = now
        .tables
        .iter()
        .map(|(name, table)| {
            (
                name.clone(),
                if stale.contains(name) {
                    base.tables[name].clone()
                } else {
                    table.clone()
                },
            )
        })
        .collect();
    ensure!(
        expect == restored.tables,
        "{expect:#?} became {:#?}; as fresh as the base: {stale:?}",
        restored.tables
    );

    let mut expected = vec!["public.left_out", "public.unlogged"];
    if major >= 18 {
        expected.extend(["public.virtual", "public.virtual_full"]);
    }
    if no_identity == "base-only" {
        expected.extend([
            "public.bare",
            "public.child",
            "public.keyless_1",
            "public.late",
            "public.lost",
            "public.mixed_2",
            "public.nothing",
            "public.nullable",
            "public.whole_bare",
        ]);
        expected.extend((major < 18).then_some("public.computed"));
    }
    expected.sort_unstable();
    ensure!(stale == expected, "as fresh as the base: {stale:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn no_change_of_the_source_ever_fails_and_each_table_is_fresh_or_named() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let runs = tools::MAJORS
        .into_iter()
        .flat_map(|major| ["base-only", "full"].map(|it| (major, it)));
    let runs =
        runs.filter(|(major, it)| [13, 18].contains(major) || (*major == 15) == (*it == "full"));
    let runs = runs.map(|(major, it)| {
        let run = hard_tables(&service, major, it);
        async move {
            run.await
                .with_context(|| format!("PostgreSQL {major}, {it}"))
        }
    });
    let outcomes = futures::future::join_all(runs).await;
    let failed: Vec<String> = outcomes
        .into_iter()
        .filter_map(Result::err)
        .map(|it| format!("{it:#}"))
        .collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    service.terminate().await?;
    Ok(())
}

/// PostgreSQL fact: what appears, moves or changes its nature while capture runs; used at once, before anybody can look.
const COMING: &[&str] = &[
    "CREATE TABLE fresh (id int PRIMARY KEY, v text); INSERT INTO fresh VALUES (1, 'first'), (2, 'x'); UPDATE fresh SET v = 'y'; DELETE FROM fresh WHERE id = 2",
    "CREATE TABLE loose (id int, v text); INSERT INTO loose VALUES (1, 'x'), (1, 'x')",
    "UPDATE loose SET v = 'y'; DELETE FROM loose WHERE ctid = (SELECT ctid FROM loose LIMIT 1)",
    "CREATE TABLE selected AS SELECT g AS id, 's' AS v FROM generate_series(1, 5) g",
    "SELECT * INTO into_it FROM selected; UPDATE selected SET v = 'u'; DELETE FROM into_it WHERE id = 1",
    "CREATE TABLE part_3 PARTITION OF root FOR VALUES FROM (200) TO (300); ALTER TABLE part_3 REPLICA IDENTITY NOTHING; INSERT INTO root VALUES (201, 'x'), (202, 'x')",
    "UPDATE root SET v = 'y' WHERE id = 201; DELETE FROM root WHERE id = 202",
    "CREATE TABLE alone (v text, id int NOT NULL); INSERT INTO alone VALUES ('x', 301), ('x', 302); ALTER TABLE alone REPLICA IDENTITY NOTHING; ALTER TABLE root ATTACH PARTITION alone FOR VALUES FROM (300) TO (400)",
    "UPDATE root SET v = 'y' WHERE id = 301; DELETE FROM root WHERE id = 302; UPDATE root SET id = 303 WHERE id = 1",
    "ALTER TABLE root DETACH PARTITION part_2; UPDATE part_2 SET v = 'apart'; INSERT INTO part_2 VALUES (5000, 'x'); DELETE FROM part_2 WHERE id = 150",
    "ALTER TABLE renamed RENAME TO other_name; UPDATE other_name SET v = 'y'",
    "CREATE SCHEMA elsewhere; ALTER TABLE moved SET SCHEMA elsewhere; UPDATE elsewhere.moved SET v = 'y'",
    "DROP TABLE dropped",
    "ALTER SEQUENCE counter RENAME TO counted; SELECT nextval('counted')",
    "ALTER TABLE wants REPLICA IDENTITY FULL; UPDATE wants SET v = 'y' WHERE id = 1; DELETE FROM wants WHERE id = 2",
    "SELECT lo_from_bytea(0, 'first large object')",
];

async fn coming_and_going(service: &Service, major: u32) -> Result<()> {
    let database = TestDatabase::new(major).await?;
    database
        .execute(
            "CREATE TABLE root (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
             CREATE TABLE part_1 PARTITION OF root FOR VALUES FROM (0) TO (100); CREATE TABLE part_2 PARTITION OF root FOR VALUES FROM (100) TO (200);
             INSERT INTO root SELECT g, 'r' FROM generate_series(1, 199) g; CREATE SEQUENCE counter; SELECT nextval('counter');
             CREATE TABLE renamed (id int PRIMARY KEY, v text); CREATE TABLE moved (id int PRIMARY KEY, v text); CREATE TABLE dropped (id int PRIMARY KEY);
             CREATE TABLE wants (id int, v text); INSERT INTO wants SELECT g, 'w' FROM generate_series(1, 5) g;
             INSERT INTO renamed VALUES (1, 'x'); INSERT INTO moved VALUES (1, 'x'); INSERT INTO dropped VALUES (1)",
        )
        .await?;
    let name = format!("coming-{major}");
    let mut settings = history::settings();
    settings["no_identity"] = json!("full");
    service.add_source(&name, &database.url(), settings).await?;
    service.wait_protected(&name).await?;
    let mut client = database.connect().await?;
    for change in COMING {
        client
            .batch_execute(change)
            .await
            .with_context(|| format!("the source's own change fails: {change}"))?;
    }
    let changed = truth::wal_position(&client).await?;
    wait_beyond(service, &name, &changed).await?;
    client
        .batch_execute(
            "UPDATE fresh SET v = 'later'; UPDATE loose SET v = 'later'; UPDATE root SET v = 'later'; UPDATE part_2 SET v = 'later' WHERE id < 120;
             UPDATE other_name SET v = 'later'; UPDATE elsewhere.moved SET v = 'later'; UPDATE wants SET v = 'later' WHERE id = 1; SELECT nextval('counted');
             UPDATE root SET id = id + 50 WHERE id = 201",
        )
        .await?;
    let now = digest::of(&mut client, None).await?;
    service
        .wait_durable(&name, &truth::wal_position(&client).await?)
        .await?;
    let (restored, stale, job) = restore(service, &name, &database).await?;
    now.assert_restored(&restored, &format!("PostgreSQL {major}"));
    ensure!(
        stale == ["large objects"],
        "as fresh as the base: {stale:?} in {job:#}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_come_and_go_and_their_changes_never_fail() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let runs = [14, 18].map(|major| {
        let run = coming_and_going(&service, major);
        async move { run.await.with_context(|| format!("PostgreSQL {major}")) }
    });
    futures::future::try_join_all(runs).await?;
    service.terminate().await?;
    Ok(())
}

/// PostgreSQL fact: captured by a superuser, restored by a role that owns everything and that row security is
/// forced on; a sequence that could not be read any more.
#[tokio::test(flavor = "multi_thread")]
async fn row_security_forced_on_the_restoring_role() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let runs = [13, 18].map(|major| {
        let run = forced(&service, major);
        async move { run.await.with_context(|| format!("PostgreSQL {major}")) }
    });
    futures::future::try_join_all(runs).await?;
    service.terminate().await?;
    Ok(())
}

async fn forced(service: &Service, major: u32) -> Result<()> {
    let database = TestDatabase::new(major).await?;
    let (server, owner) = (&database.server, format!("owner_{}", database.name));
    database
        .execute(&format!(
            "CREATE ROLE {owner} LOGIN CREATEDB PASSWORD 'owner';
             CREATE TABLE t (id serial PRIMARY KEY, v text); ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY;
             CREATE POLICY visible ON t USING (v <> 'hidden'); INSERT INTO t (v) SELECT 'x' FROM generate_series(1, 5);
             CREATE TABLE c (id int PRIMARY KEY REFERENCES t, up int REFERENCES c); ALTER TABLE c ENABLE ROW LEVEL SECURITY;
             ALTER TABLE c FORCE ROW LEVEL SECURITY; INSERT INTO c SELECT g, g FROM generate_series(1, 5) g;
             CREATE MATERIALIZED VIEW m AS SELECT count(*) FROM t; ALTER MATERIALIZED VIEW m OWNER TO {owner};
             ALTER TABLE t OWNER TO {owner}; ALTER TABLE c OWNER TO {owner}"
        ))
        .await?;
    let name = format!("forced-{major}");
    service
        .add_source(&name, &database.url(), history::settings())
        .await?;
    service.wait_protected(&name).await?;
    let mut client = database.connect().await?;
    client
        .batch_execute("SELECT setval('t_id_seq', 500); INSERT INTO t (v) SELECT 'hidden' FROM generate_series(1, 50); UPDATE t SET v = 'hidden' WHERE id = 1; INSERT INTO c VALUES (510, 1)")
        .await?;
    let now = digest::of(&mut client, None).await?;
    service
        .wait_durable(&name, &truth::wal_position(&client).await?)
        .await?;
    // Set back right after: the columns have to tell how far it was.
    client.batch_execute("SELECT setval('t_id_seq', 3)").await?;
    let lsn = truth::wal_position(&client).await?;
    client
        .batch_execute("INSERT INTO c VALUES (511, 1)")
        .await?;
    service
        .wait_durable(&name, &truth::wal_position(&client).await?)
        .await?;
    let copy = format!("{}_copy", database.name);
    let into =
        json!({"connection": server.url_as(&owner, "owner", "postgres"), "create_database": copy});
    service
        .restore(&name, &json!({"lsn": lsn, "inclusive": false}), into)
        .await?;
    let mut client = server.connect(&copy).await?;
    let restored = digest::of(&mut client, None).await?;
    now.assert_restored(&restored, &format!("PostgreSQL {major}"));
    ensure!(
        digest::collisions(&client).await?.is_empty(),
        "sequences behind their columns"
    );
    let forced = "SELECT count(*) FROM pg_class c WHERE relrowsecurity AND relforcerowsecurity AND pg_get_userbyid(relowner) = $1";
    let forced: i64 = client.query_one(forced, &[&owner]).await?.get(0);
    ensure!(forced == 2, "row security is as it was");
    drop(client);
    history::drop_database(server, &copy).await?;
    // Roles live longer than databases: nothing of it may stay behind for other tests.
    database
        .execute(&format!(
            "REASSIGN OWNED BY {owner} TO postgres; DROP OWNED BY {owner}; DROP ROLE {owner}"
        ))
        .await
}
