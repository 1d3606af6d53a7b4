//! Every major as source and as target, on each kind of storage, encrypted or not, over TLS or not, with
//! each replica identity, as a superuser and as a plain role: every two of these circumstances meet in
//! some row of a covering array, and each row is a small random history that is restored.
//!
//! `make matrix` runs all rows; otherwise a few are drawn by the seed.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, stream};
use lastgood_integration::digest::{self, Content};
use lastgood_integration::history::{self, Moment};
use lastgood_integration::workload::{KEYLESS, Workload};
use lastgood_integration::{Postgres, Service, Storage, TestDatabase, pairs, seed, tools, truth};
use rand::Rng;
use rand::seq::SliceRandom;
use reqwest::Method;
use serde_json::{Value, json};

/// How many rows are run where nobody asked for all.
const SHARE: usize = 3;

/// They mostly wait: for segments to be cut, for servers, for programs to start.
const AT_ONCE: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Identity {
    Default,
    Index,
    Full,
    Nothing,
}

#[derive(Clone, Copy, Debug)]
struct Row {
    source: u32,
    target: u32,
    on_s3: bool,
    encrypted: bool,
    tls: bool,
    identity: Identity,
    superuser: bool,
}

/// What of a row is a service's, not a source's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Kind {
    on_s3: bool,
    encrypted: bool,
    tls: bool,
}

impl Row {
    fn kind(&self) -> Kind {
        Kind {
            on_s3: self.on_s3,
            encrypted: self.encrypted,
            tls: self.tls,
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let storage = if self.on_s3 { "S3" } else { "local" };
        let encryption = if self.encrypted { "encrypted" } else { "clear" };
        let tls = if self.tls { "verify-full" } else { "no TLS" };
        let role = if self.superuser {
            "superuser"
        } else {
            "plain role"
        };
        let (from, to, identity) = (self.source, self.target, self.identity);
        write!(
            f,
            "{from} to {to}, {storage}, {encryption}, {tls}, identity {identity:?}, {role}"
        )
    }
}

fn rows() -> Vec<Row> {
    use Identity::{Default, Full, Index, Nothing};
    let identities = [Default, Index, Full, Nothing];
    let majors = tools::MAJORS;
    let levels = [majors.len(), majors.len(), 2, 2, 2, identities.len(), 2];
    let row = |row: Vec<usize>| Row {
        source: majors[row[0]],
        target: majors[row[1]],
        on_s3: row[2] == 1,
        encrypted: row[3] == 0,
        tls: row[4] == 1,
        identity: identities[row[5]],
        superuser: row[6] == 1,
    };
    pairs::covering(&levels).into_iter().map(row).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn matrix() -> Result<()> {
    let seed = seed::choose("matrix");
    let mut rows = rows();
    if std::env::var("LASTGOOD_MATRIX").is_err() {
        rows.shuffle(&mut seed::rng(seed, "share"));
        rows.truncate(SHARE);
    }
    let place = Place::new(&rows).await?;
    let total = rows.len();
    let runs = rows.into_iter().enumerate().map(|(number, row)| {
        let place = &place;
        async move {
            let seed = seed.wrapping_add(number as u64);
            let what = format!("matrix {}/{total}: {row}", number + 1);
            let done = run(place, row, number, seed).await;
            let outcome = if done.is_ok() { "restored" } else { "FAILED" };
            eprintln!("{what}: {outcome}");
            done.with_context(|| what).err()
        }
    });
    let ended: Vec<_> = stream::iter(runs).buffer_unordered(AT_ONCE).collect().await;
    let failed = ended.into_iter().flatten();
    let failed: Vec<_> = failed.map(|error| format!("{error:#}")).collect();
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

/// One server a major and one service a kind of repository, for all rows.
struct Place {
    servers: BTreeMap<u32, Arc<Postgres>>,
    services: BTreeMap<Kind, Service>,
}

/// Who writes, and owns everything. A superuser, because writers set `deadlock_timeout`; a member has
/// what is owned, not that attribute.
const WRITER: &str = "app";

impl Place {
    async fn new(rows: &[Row]) -> Result<Self> {
        let majors: BTreeSet<u32> = rows
            .iter()
            .flat_map(|row| [row.source, row.target])
            .collect();
        let mut servers = BTreeMap::new();
        for major in majors {
            servers.insert(major, Arc::new(server(major).await?));
        }
        let kinds: BTreeSet<Kind> = rows.iter().map(Row::kind).collect();
        let mut services = BTreeMap::new();
        for kind in kinds {
            services.insert(kind, service(kind).await?);
        }
        Ok(Self { servers, services })
    }
}

async fn service(kind: Kind) -> Result<Service> {
    let storage = match kind.on_s3 {
        true => Storage::s3().map_or_else(Storage::local, Ok)?,
        false => Storage::local()?,
    };
    let encryption = if kind.encrypted { "on" } else { "off" };
    let mut service = Service::builder()
        .storage(&storage)
        .argument("--encryption")
        .argument(encryption);
    if kind.tls {
        // The 13 that is installed for tests has client programs without TLS.
        let dirs = tools::MAJORS[1..]
            .iter()
            .map(|major| tools::bin_dir(*major));
        let dirs = std::env::join_paths(dirs.collect::<Result<Vec<_>>>()?)?;
        let dirs = dirs.to_string_lossy().into_owned();
        service = service.environment("LASTGOOD_PG_BIN_DIRS", dirs);
    }
    service.start().await
}

/// A server on which the roles of the rows with TLS get in with TLS only, and the others without only.
async fn server(major: u32) -> Result<Postgres> {
    let hba = "hostssl all tls_superuser,tls_plain 127.0.0.1/32 scram-sha-256\n\
               hostnossl all clear_superuser,clear_plain 127.0.0.1/32 scram-sha-256\n\
               host all tls_superuser,tls_plain,clear_superuser,clear_plain 127.0.0.1/32 reject\n\
               host all all 127.0.0.1/32 trust\n";
    let builder = Postgres::builder(major).tls().hba(hba);
    let server = builder
        .config("password_encryption='scram-sha-256'")
        .start()
        .await?;
    let mut sql = format!("CREATE ROLE {WRITER} SUPERUSER LOGIN;");
    for tls in ["tls", "clear"] {
        sql += &format!(
            "CREATE ROLE {tls}_superuser SUPERUSER LOGIN PASSWORD 'x';\
             CREATE ROLE {tls}_plain LOGIN REPLICATION CREATEDB BYPASSRLS PASSWORD 'x'; GRANT {WRITER} TO {tls}_plain;"
        );
    }
    server.execute("postgres", &sql).await?;
    Ok(server)
}

/// As lastgood connects in this row.
fn connection(server: &Postgres, row: Row, database: &str) -> String {
    let tls = if row.tls { "tls" } else { "clear" };
    let role = if row.superuser { "superuser" } else { "plain" };
    let url = server.url_as(&format!("{tls}_{role}"), "x", database);
    match row.tls {
        // By name: a libpq before 15 compares no addresses with a certificate.
        true => format!(
            "{}?sslmode=verify-full&sslrootcert={}",
            url.replace("127.0.0.1", "localhost"),
            server.ca_file().display()
        ),
        false => format!("{url}?sslmode=disable"),
    }
}

async fn run(place: &Place, row: Row, number: usize, seed: u64) -> Result<()> {
    let service = &place.services[&row.kind()];
    let name = format!("matrix_{number}_{seed:x}");
    let server = Arc::clone(&place.servers[&row.source]);
    let create = format!("CREATE DATABASE {name} OWNER {WRITER} TEMPLATE template0");
    server.execute("postgres", &create).await?;
    let database = TestDatabase {
        server,
        name: name.clone(),
    };
    let moments = live(service, &database, row, seed).await?;

    let target = &place.servers[&row.target];
    for (moment, what) in moments.iter().zip(["loud", "quiet", "end"]) {
        let restored = format!("{name}_{what}");
        let into =
            json!({"connection": connection(target, row, "postgres"), "create_database": restored});
        service.restore(&name, &moment.target, into).await?;
        history::check_restored(target, &restored, moment).await?;
        history::drop_database(target, &restored).await?;
    }
    let path = format!("/api/v1/sources/{name}");
    service.request(Method::DELETE, &path, None).await?.ok()?;
    history::drop_database(&database.server, &name).await
}

/// The life of one database: three moments, the first while writers write.
async fn live(
    service: &Service,
    database: &TestDatabase,
    row: Row,
    seed: u64,
) -> Result<Vec<Moment>> {
    let (server, name) = (&database.server, &database.name);
    let mut rng = seed::rng(seed, "matrix");
    let writer = server.url_as(WRITER, "", name);
    let client = lastgood_integration::postgres::connect(&writer).await?;
    let mut workload = Workload::start_for(&writer, seed, 2, row.target).await?;
    client.batch_execute(&subject(row.identity)).await?;
    // Bases under writers, TRUNCATE among them, are the oracle's; here they would only take long.
    let quiet = workload.quiet().await;
    service
        .add_source(name, &connection(server, row, name), history::settings())
        .await?;
    service.wait_protected(name).await?;
    let as_of_base = truth::record(server, name).await?.content;
    drop(quiet);

    let expected = |mut content: Content| {
        // What has no replica identity is in no stream, so it is what it was in the base.
        for (name, table) in &as_of_base.tables {
            let is_subject = name == SUBJECT && row.identity == Identity::Nothing;
            if is_subject || name.starts_with(KEYLESS) {
                content.tables.insert(name.clone(), table.clone());
            }
        }
        content
    };
    workload.advance(rng.random_range(10..30)).await?;
    client.batch_execute(&changes(row.identity, 1)).await?;
    let loud = truth::record(server, name).await?;
    let loud_target = json!({"lsn": loud.lsn, "inclusive": false});

    workload.advance(rng.random_range(10..30)).await?;
    let quiet = workload.quiet().await;
    client.batch_execute(&changes(row.identity, 2)).await?;
    let xid: i64 = client
        .query_one("INSERT INTO public.marks VALUES ('quiet') RETURNING pg_current_xact_id()::text::bigint % 4294967296", &[])
        .await?
        .get(0);
    let mut reader = database.connect().await?;
    let quiet_content = digest::of(&mut reader, None).await?;
    let time = truth::clock(&reader).await?;
    let lsn = truth::wal_position(&reader).await?;
    drop(quiet);
    let names = [
        json!({"xid": xid}),
        json!({"time": time}),
        json!({"lsn": lsn}),
    ];
    let quiet_target = names[rng.random_range(0..names.len())].clone();

    workload.advance(rng.random_range(10..30)).await?;
    workload.stop().await?;
    client.batch_execute(&changes(row.identity, 3)).await?;
    client
        .batch_execute("INSERT INTO public.marks VALUES ('end')")
        .await?;
    let end = digest::of(&mut reader, None).await?;
    ensure!(
        as_of_base.tables[SUBJECT] != end.tables[SUBJECT],
        "the table did not change"
    );
    let (lsn, time) = (
        truth::wal_position(&reader).await?,
        truth::clock(&reader).await?,
    );
    service.wait_durable(name, &lsn).await?;
    service.wait_observed(name, &time).await?;

    let moments = [
        (loud_target, loud.content),
        (quiet_target, quiet_content),
        (json!("latest"), end),
    ];
    let moment = |(target, content): (Value, Content)| {
        let mut content = expected(content);
        if workload.restarts_sequences() {
            content.sequences.clear();
        }
        Moment { target, content }
    };
    Ok(moments.into_iter().map(moment).collect())
}

const SUBJECT: &str = "public.subject";

/// The table whose replica identity is the row's, with rows, and one for marks.
fn subject(identity: Identity) -> String {
    let (key, identified) = match identity {
        Identity::Default => ("PRIMARY KEY (a)", ""),
        Identity::Index => (
            "CONSTRAINT by_b UNIQUE (b)",
            "ALTER TABLE subject REPLICA IDENTITY USING INDEX by_b",
        ),
        Identity::Full => ("CHECK (a > 0)", "ALTER TABLE subject REPLICA IDENTITY FULL"),
        Identity::Nothing => (
            "PRIMARY KEY (a)",
            "ALTER TABLE subject REPLICA IDENTITY NOTHING",
        ),
    };
    format!(
        "CREATE TABLE marks (what text PRIMARY KEY);
         CREATE TABLE subject (a int, b int NOT NULL, v text, {key}); {identified};
         INSERT INTO subject SELECT g, -g, md5(g::text) FROM generate_series(1, 50) g"
    )
}

/// Inserts, updates, key changes and deletions in one transaction; `round` counts from 1.
fn changes(identity: Identity, round: u32) -> String {
    // Equal rows, where rows may be equal.
    let twice = if identity == Identity::Full { 2 } else { 1 };
    format!(
        "BEGIN;
         INSERT INTO subject SELECT {round} * 100 + g, -{round} * 100 - g, repeat(md5(g::text), g * 10)
           FROM generate_series(1, 20) g, generate_series(1, {twice});
         UPDATE subject SET v = v || ' {round}' WHERE a % 7 = {round};
         UPDATE subject SET a = a + 10000, b = b - 10000 WHERE a % 13 = {round};
         DELETE FROM subject WHERE a % 11 = {round};
         COMMIT"
    )
}

/// What an older server does not know cannot go back to it. The restore says which definition, and why.
#[tokio::test(flavor = "multi_thread")]
async fn a_newer_definition_is_refused_by_an_older_server() -> Result<()> {
    let storage = Storage::local()?;
    let service = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    database
        .execute("CREATE TABLE newer (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) VIRTUAL)")
        .await?;
    service
        .add_source("newer", &database.url(), history::settings())
        .await?;
    service.wait_protected("newer").await?;
    let target = TestDatabase::new(13).await?;
    let restored = format!("{}_back", target.name);
    let into = json!({"connection": target.server.url("postgres"), "create_database": restored});
    let id = service
        .start_restore("newer", &json!("latest"), into)
        .await?;
    let ended = service.wait_restore(&id).await?;
    ensure!(ended["status"] == "failed", "{ended:#}");
    let said = ended.to_string();
    for part in ["CREATE TABLE public.newer", "syntax error", &restored] {
        ensure!(said.contains(part), "no {part:?} in {ended:#}");
    }
    Ok(())
}
