//! After a change of tables, the new base borrows the rows of the others from the one before. What is restored
//! from it equals the source, whichever way the changes come in, and retention keeps what it stands on.

use anyhow::{Context, Result, ensure};
use lastgood_integration::{Service, Storage, TestDatabase, digest, history, seed, truth};
use serde_json::{Value, json};
use tokio_postgres::error::SqlState;

use crate::shapes::wait_beyond;

const SHOP: &str = "/api/v1/sources/shop";

/// `big` has an archive of its own, the others share one. Rows of some are told apart by all they have.
const TABLES: &str = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE EXTENSION hstore;
    CREATE TABLE big (id int PRIMARY KEY, v text, n int, s serial);
    INSERT INTO big SELECT n, repeat(md5(n::text), 8), 0 FROM generate_series(1, 12000) n;
    CREATE TABLE small (id serial PRIMARY KEY, v text NOT NULL, h hstore);
    INSERT INTO small (v, h) SELECT md5(n::text), hstore('n', n::text) FROM generate_series(1, 300) n;
    CREATE TABLE \"Odd \"\"one\" (a int, b text); ALTER TABLE \"Odd \"\"one\" REPLICA IDENTITY FULL;
    INSERT INTO \"Odd \"\"one\" SELECT n % 5, 'x' FROM generate_series(1, 50) n;
    CREATE TABLE feels (id int PRIMARY KEY, f mood); INSERT INTO feels SELECT n, 'sad' FROM generate_series(1, 9) n;
    CREATE TABLE altered (id int PRIMARY KEY, v int); INSERT INTO altered SELECT n, n FROM generate_series(1, 90) n;
    CREATE TABLE emptied (id serial PRIMARY KEY, v int); INSERT INTO emptied (v) SELECT nullif(n, 7) FROM generate_series(1, 70) n;
    CREATE TABLE parts (id int, v int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
    CREATE TABLE part_a PARTITION OF parts FOR VALUES FROM (0) TO (50);
    CREATE TABLE part_b PARTITION OF parts FOR VALUES FROM (50) TO (100);
    INSERT INTO parts SELECT n, n FROM generate_series(0, 99) n;
    CREATE UNLOGGED TABLE scratch (id int PRIMARY KEY); INSERT INTO scratch VALUES (1);
    CREATE TABLE no_key (v int); INSERT INTO no_key VALUES (1)";

/// Changes of every table that has any; `$` is a number that grows.
const WRITES: &str = "UPDATE big SET n = n + $ WHERE id % 7 = $ % 7; DELETE FROM big WHERE id = 20 + $;
    INSERT INTO big VALUES (100000 + $, 'new', $); UPDATE big SET id = id + 200000 WHERE id = 1000 + $;
    INSERT INTO small (v) VALUES ('$'); UPDATE small SET v = v || '$', h = h || hstore('k$', NULL) WHERE id % 3 = 0;
    DELETE FROM \"Odd \"\"one\" WHERE ctid = (SELECT min(ctid) FROM \"Odd \"\"one\");
    INSERT INTO \"Odd \"\"one\" VALUES ($, NULL); UPDATE \"Odd \"\"one\" SET b = '$' WHERE a = 2;
    UPDATE altered SET v = v + 1 WHERE id > $; INSERT INTO emptied (v) VALUES ($);
    UPDATE parts SET v = v + $; DELETE FROM parts WHERE id = $;
    UPDATE feels SET f = 'ok' WHERE id = $; SELECT nextval('big_s_seq') FROM generate_series(1, 100)";

/// Migrations, one after the other, and how many tables' rows are borrowed after each: of those that are
/// captured and not partitioned, the ones whose rows nothing touched, whatever became of their columns. To leave its
/// root touches a partition.
const MIGRATIONS: &[(&str, usize)] = &[
    // Columns come, with and without a value for the rows there are, and get another name and type.
    (
        r#"ALTER TABLE altered ADD c varchar(9) DEFAULT 'sev', ADD d text; UPDATE altered SET d = c WHERE id < 9;
         ALTER TABLE altered RENAME c TO cc; ALTER TABLE altered ALTER cc DROP DEFAULT, ALTER cc TYPE varchar(20);
         UPDATE altered SET v = 0 WHERE id > 80; ALTER TABLE big ADD at timestamptz DEFAULT now();
         ALTER TABLE "Odd ""one" ADD c text[] DEFAULT ARRAY[E'a,"\tb', NULL]; ALTER TABLE parts ADD more text DEFAULT E'\\N'"#,
        8,
    ),
    // Renamed to each other's names, come and gone, demanded more of after a repair, with new labels.
    (
        r#"ALTER TABLE altered RENAME cc TO x; UPDATE altered SET x = 'renamed' WHERE id = 3;
         ALTER TABLE altered RENAME d TO cc; ALTER TABLE altered RENAME x TO d; UPDATE altered SET cc = 'swapped' WHERE id = 4;
         ALTER TABLE big ADD gone int; UPDATE big SET gone = 3 WHERE id = 30; ALTER TABLE big DROP gone;
         UPDATE big SET v = 'left' WHERE id = 31; UPDATE emptied SET v = 0 WHERE v IS NULL;
         ALTER TABLE emptied ALTER v SET NOT NULL; UPDATE altered SET v = 1000 WHERE v < 5;
         ALTER TABLE altered ADD CONSTRAINT up CHECK (v >= 5); COMMENT ON CONSTRAINT up ON altered IS 'it''s up';
         ALTER TABLE "Odd ""one" DROP c; ALTER TYPE mood ADD VALUE 'glad' BEFORE 'ok'; UPDATE feels SET f = 'glad' WHERE id = 8;
         UPDATE parts SET more = NULL WHERE id IN (20, 60); UPDATE parts SET more = '' WHERE more IS NULL; ALTER TABLE parts ALTER more SET DEFAULT '', ALTER more SET NOT NULL;
         UPDATE parts SET v = 5 WHERE v < 5; ALTER TABLE parts ADD CHECK (v > 4); ALTER TABLE part_a ADD CHECK (v > 3);
         ALTER TABLE small ALTER v DROP NOT NULL; INSERT INTO small (v) VALUES (NULL); UPDATE small SET v = '' WHERE v IS NULL;
         ALTER TABLE small ALTER v SET NOT NULL; CREATE TABLE child (own int, PRIMARY KEY (id)) INHERITS (altered)"#,
        7,
    ),
    // There and back; emptied; demands that come and go; one more column.
    (
        "ALTER TABLE big RENAME TO other; UPDATE other SET n = 5 WHERE id = 5; ALTER TABLE other RENAME TO big;
         CREATE INDEX ON big (n); CREATE TABLE fresh (id int PRIMARY KEY); INSERT INTO fresh VALUES (1);
         ALTER TABLE small ADD CONSTRAINT apart UNIQUE (v); TRUNCATE emptied RESTART IDENTITY;
         INSERT INTO emptied (v) VALUES (1); ALTER TABLE big ADD z text DEFAULT E'a\\\\\tb'; UPDATE big SET z = NULL WHERE id < 9",
        8,
    ),
    // Another one of the same name, of columns and of tables.
    (
        "ALTER TABLE big DROP at; UPDATE big SET v = 'less' WHERE id = 32; ALTER TABLE big ADD at date DEFAULT '2020-01-01';
         UPDATE big SET at = '2021-01-01' WHERE id = 33; ALTER TABLE fresh RENAME TO older;
         CREATE TABLE fresh (id int PRIMARY KEY, x text); INSERT INTO fresh VALUES (5, 'new'); INSERT INTO older VALUES (7);
         CREATE SCHEMA apart; ALTER TABLE feels SET SCHEMA apart; ALTER TABLE apart.feels RENAME TO felt;
         UPDATE apart.felt SET f = 'ok' WHERE id = 9; ALTER TABLE altered ALTER d SET DEFAULT 'd'",
        10,
    ),
    (
        "ALTER TYPE mood RENAME VALUE 'sad' TO 'blue'; ALTER TABLE parts DETACH PARTITION part_b; UPDATE part_b SET v = 11;
         ALTER TABLE altered DROP d",
        9,
    ),
    (
        "ALTER TABLE apart.felt ALTER f TYPE text; VACUUM FULL part_a; DROP TABLE child; DROP TABLE altered;
         ALTER TABLE small ADD r float8 DEFAULT random()",
        6,
    ),
];

struct Moment {
    what: String,
    target: Value,
    content: digest::Content,
}

struct Shop {
    service: Service,
    database: TestDatabase,
    moments: Vec<Moment>,
    written: u32,
}

impl Shop {
    /// Writes, and remembers what the source is then.
    async fn write(&mut self, what: &str) -> Result<()> {
        self.written += 1;
        let number = self.written.to_string();
        let mut client = self.database.connect().await?;
        for write in WRITES.replace('$', &number).split(';') {
            // Each is a transaction of its own; what is dropped meanwhile is not written any more.
            match client.batch_execute(write).await {
                Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {}
                written => written.with_context(|| write.to_owned())?,
            }
        }
        let content = digest::of(&mut client, None).await?;
        let lsn = truth::wal_position(&client).await?;
        self.service.wait_durable("shop", &lsn).await?;
        self.moments.push(Moment {
            what: what.to_owned(),
            target: json!({"lsn": lsn, "inclusive": false}),
            content,
        });
        Ok(())
    }

    /// Restores to a moment, with these settings of the restore.
    async fn check(&self, moment: &Moment, with: &Value) -> Result<()> {
        let what = format!("{} {with}", moment.what);
        let copy = format!("{}_copy", self.database.name);
        let server = &self.database.server;
        let mut body = json!({
            "target": moment.target,
            "into": {"connection": server.url("postgres"), "create_database": copy},
        });
        let fields = body.as_object_mut().context("an object")?;
        fields.extend(with.as_object().cloned().unwrap_or_default());
        let path = format!("{SHOP}/restores");
        let job = self.service.post(&path, body).await.context(what.clone())?;
        let ended = self
            .service
            .wait_restore(job["id"].as_str().context("an id")?)
            .await?;
        ensure!(ended["status"] == "succeeded", "{what}: {ended:#}");
        let restored = digest::of(&mut server.connect(&copy).await?, None).await?;
        match with["tables"].as_array() {
            None => moment.content.assert_restored(&restored, &what),
            Some(tables) => {
                let names: Vec<&str> = tables.iter().filter_map(Value::as_str).collect();
                let part = moment.content.part(&names, &[]);
                part.assert_restored(&restored.part(&names, &[]), &what);
            }
        }
        // The source has gone on since the others.
        let is_last = self
            .moments
            .last()
            .is_some_and(|last| last.target == moment.target);
        if is_last && with.get("tables").is_none() {
            history::compare_schemas(server, &self.database.name, &copy).context(what)?;
        }
        history::drop_database(server, &copy).await
    }

    async fn plan(&self, target: &Value) -> Result<Value> {
        let path = format!("{SHOP}/plan");
        self.service.post(&path, json!({"target": target})).await
    }

    async fn bases(&self) -> Result<usize> {
        let bases = self.service.get(&format!("{SHOP}/bases")).await?;
        Ok(bases["items"].as_array().context("bases")?.len())
    }

    async fn set(&self, settings: Value) -> Result<()> {
        let path = reqwest::Method::PATCH;
        let changed = self.service.request(path, SHOP, Some(&settings)).await?;
        changed.ok().map(drop)
    }
}

/// The tables as a protected source.
async fn start(settings: Value, major: u32) -> Result<(Storage, Service, TestDatabase)> {
    let storage = Storage::local()?;
    let database = TestDatabase::new(major).await?;
    database.execute(TABLES).await?;
    let service = Service::start(&storage).await?;
    service
        .add_source("shop", &database.url(), settings)
        .await?;
    service.wait_protected("shop").await?;
    Ok((storage, service, database))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_after_a_migration_borrows_the_rows_that_nothing_touched() -> Result<()> {
    migrate(18).await
}

/// Before 18, NOT NULL is no constraint.
#[tokio::test(flavor = "multi_thread")]
async fn a_base_after_a_migration_of_an_older_major() -> Result<()> {
    migrate(16).await
}

async fn migrate(major: u32) -> Result<()> {
    let mut settings = history::settings();
    settings["big_table_bytes"] = json!(1 << 20);
    let (storage, service, database) = start(settings, major).await?;
    let mut shop = Shop {
        service,
        database,
        moments: Vec::new(),
        written: 0,
    };
    shop.write("before").await?;
    for (number, (migration, borrowed)) in MIGRATIONS.iter().enumerate() {
        let client = shop.database.connect().await?;
        for step in migration.split(';') {
            client
                .batch_execute(step)
                .await
                .with_context(|| step.to_owned())?;
        }
        // Also while the base is not taken yet.
        shop.write("between").await?;
        let between = shop.moments.pop().context("a moment")?;
        let changed = truth::wal_position(&client).await?;
        wait_beyond(&shop.service, "shop", &changed).await?;
        shop.write(&format!("after migration {number}")).await?;
        let newest = &shop.moments.last().context("a moment")?.target;
        let plan = shop.plan(newest).await?;
        let lenders = plan["base"]["lenders"].as_array().map_or(0, Vec::len);
        ensure!(lenders > 0, "{plan:#}");
        let found = borrowed_tables(&shop.service, &storage).await?;
        ensure!(found == *borrowed, "{migration}: {found} borrowed");
        // The very moment at which it was taken, where nothing but what the borrowed rows lack is brought in. (Without
        // rows of its own it serves from before.)
        let taken = plan["base"]["id"].as_str().context("an id")?;
        let taken = taken.split('-').next().context("a position")?;
        let (high, low) = taken.split_at(8);
        let [high, low] = [high, low].map(|half| u32::from_str_radix(half, 16));
        let taken = format!("{:X}/{:X}", high?, low?);
        let target = json!({"lsn": taken, "inclusive": false});
        let exact = shop.plan(&target).await?;
        let is_own = exact["base"]["consistent_point"] == json!(taken);
        ensure!(exact["last_kept"].is_null() == is_own, "{exact:#}");
        ensure!(exact["segments"].as_u64() > Some(0), "{exact:#}");
        shop.moments.push(Moment {
            what: format!("the base of migration {number}"),
            target,
            content: between.content,
        });
    }
    let last = shop.moments.last().context("a moment")?;
    // Each major one half in order, where what came before a demand goes through the table, and the other half merged.
    for (number, moment) in shop.moments.iter().rev().enumerate() {
        let is_ordered = (number + usize::from(major < 18)).is_multiple_of(2);
        if is_ordered || seed::all_majors() {
            shop.check(moment, &json!({"replay": "ordered"})).await?;
        }
        if !is_ordered || seed::all_majors() {
            shop.check(moment, &json!({})).await?;
        }
    }
    // Some of it merged, the rest replayed.
    shop.check(last, &json!({"memory_bytes": 1 << 20})).await?;
    shop.check(last, &json!({"tables": ["public.big", "public.fresh"]}))
        .await?;
    shop.check(
        last,
        &json!({"tables": ["public.part_b"], "replay": "ordered"}),
    )
    .await?;
    history::verify(&shop.service, &storage, "shop").await?;
    let bases = shop.service.get(&format!("{SHOP}/bases")).await?;
    let bases = bases["items"].as_array().context("bases")?;
    let mut causes = bases.iter().rev().map(|base| &base["cause"]);
    ensure!(causes.next() == Some(&json!("first")), "{bases:#?}");
    ensure!(causes.all(|cause| cause == "change"), "{bases:#?}");

    // The newest base is promised, and so is what it stands on.
    shop.set(json!({"retention": "1 base", "retention_grace_hours": 0}))
        .await?;
    let path = format!("{SHOP}/retention");
    shop.service.post(&path, json!({})).await?;
    shop.check(last, &json!({})).await?;
    let count = shop.bases().await?;
    ensure!(count < 1 + MIGRATIONS.len(), "{count} bases are left");
    // A base that is asked for has everything itself.
    let take = format!("{SHOP}/bases");
    shop.service.post(&take, json!({})).await?;
    shop.service.wait_bases("shop", count + 1).await?;
    shop.write("at last").await?;
    shop.service.post(&path, json!({})).await?;
    ensure!(shop.bases().await? == 1, "more than one base is left");
    let last = shop.moments.last().context("a moment")?;
    shop.check(last, &json!({})).await?;
    assert!(shop.service.terminate().await?.success());
    Ok(())
}

/// A base that borrows has its own moment once the segments reach it, which must not take as long as a source
/// may be idle.
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_source_is_restorable_soon_after_a_migration() -> Result<()> {
    let settings = json!({"big_table_bytes": 1 << 20, "segment_seconds": 1, "idle_seconds": 3600});
    let (storage, service, database) = start(settings, 18).await?;
    database
        .execute("ALTER TABLE big ADD c int DEFAULT 7")
        .await?;
    let changed = truth::wal_position(&database.connect().await?).await?;
    wait_beyond(&service, "shop", &changed).await?;
    ensure!(borrowed_tables(&service, &storage).await? > 0);
    let expected = digest::of(&mut database.connect().await?, None).await?;
    let copy = format!("{}_copy", database.name);
    let server = &database.server;
    let into = json!({"connection": server.url("postgres"), "create_database": copy});
    service.restore("shop", &json!("latest"), into).await?;
    let restored = digest::of(&mut server.connect(&copy).await?, None).await?;
    expected.assert_restored(&restored, "the latest");
    history::drop_database(server, &copy).await
}

/// Tables of the newest base whose rows are borrowed, by its manifest.
async fn borrowed_tables(service: &Service, storage: &Storage) -> Result<usize> {
    let mut manifests = storage.files(|path| path.contains("manifest.json"))?;
    manifests.sort();
    let newest = manifests.last().context("a manifest")?;
    let name = newest.strip_prefix(storage.path().context("a local repository")?)?;
    let key = service.key_file().display().to_string();
    let name = name.display().to_string();
    let arguments = [
        "cat",
        "--repository",
        storage.url(),
        "--key-file",
        &key,
        &name,
    ];
    let shown = service.cli(&arguments).await?;
    ensure!(shown.status.success(), "{shown:?}");
    let manifest: Value = serde_json::from_slice(&shown.stdout)?;
    let borrowed = manifest["borrowed"].as_array().into_iter().flatten();
    Ok(borrowed
        .map(|lent| lent["tables"].as_array().map_or(0, Vec::len))
        .sum())
}
