//! Beside programs that others use for the same: pgcopydb for what goes through a connection, pgBackRest for
//! what goes by the disk. On PostgreSQL 15, which Debian's packages of them are for; `tools/setup.sh peers` has them.
//!
//! Medians of three, one WAL for all. Only what pgcopydb applies is of one run, with servers and the same workload
//! of its own: a publication of all tables, such as lastgood's, forbids the updates of a table that it makes in the
//! source. A program that fails, or whose result is wrong, has what it said of it instead of a time.

mod peer;
mod pgbackrest;
mod pgcopydb;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use lastgood_integration::history::drop_database;
use lastgood_integration::{Postgres, digest, tools, truth};
use serde_json::json;

use crate::workload::{Bench, Workload, transactions};
use crate::{DATABASE, capture, finish, initialize, psql, restore};
use peer::{Peer, Took};
use pgbackrest::Archive;

pub(crate) const CAPTURE_HEAD: &[&str] = &[
    "capture of 100,000 small transactions",
    "what it makes of them",
    "time",
    "ratio",
];

pub(crate) const RESTORE_HEAD: &[&str] = &[
    "restore to their end",
    "what it needs",
    "time",
    "of it for the changes",
    "ratio",
];

const RUNS: usize = 3;

const WORKLOAD: Workload = Workload {
    name: "pgbench, 100,000 small transactions",
    scale: 10,
    make: small_transactions,
};

fn small_transactions(server: &Postgres) -> Result<()> {
    transactions(server, 25_000, None)
}

pub(crate) struct Rows {
    pub(crate) capture: Vec<String>,
    pub(crate) restore: Vec<String>,
}

pub(crate) async fn rows() -> Result<Rows> {
    let server = start(&["archive_mode=on"], &[]).await?;
    fill(&server).await?;
    let sentinel = pgcopydb::make_sentinel(&server).await;
    // Its backup is older than the workload, as the others' bases are.
    let archive = Archive::begin(&server).await;
    let mut readers = vec![("receive", "pgoutput"), ("native", "pgoutput")];
    if wal2json().is_ok() {
        readers.extend([("wal2json", "wal2json"), ("pgcopydb", "wal2json")]);
    }
    let bench = Bench::of(&WORKLOAD, server, RUNS, &readers).await?;
    let capture = peer::rows(&captured(&bench, sentinel).await?, Peer::without_changes);
    // The tables come when all is measured.
    eprintln!("{}", capture.join("\n"));
    let mut restore = restored(&bench, archive).await?;
    drop(bench);
    let needs = "a connection, wal2json on the source's disk";
    for (name, initdb) in [
        ("a base, pgcopydb follow", &[][..]),
        ("the same, WAL segments of 1 GB", &["--wal-segsize=1024"]),
    ] {
        let mut pgcopydb = Peer::new(&[name, needs]);
        pgcopydb.add(pgcopydb::follow(initdb).await);
        restore.push(pgcopydb);
        eprintln!("{}", peer::rows(&restore, Peer::with_changes).join("\n"));
    }
    Ok(Rows {
        capture,
        restore: peer::rows(&restore, Peer::with_changes),
    })
}

async fn captured(bench: &Bench, sentinel: Result<()>) -> Result<Vec<Peer>> {
    let mut receive = Peer::new(&["pg_recvlogical, pgoutput", "nothing: /dev/null"]);
    let mut wal2json = Peer::new(&["pg_recvlogical, wal2json", "a file of JSON"]);
    let mut pgcopydb = Peer::new(&["pgcopydb stream receive, wal2json", "files of JSON"]);
    let mut lastgood = Peer::new(&["lastgood", "a repository, compressed and encrypted"]);
    if let Err(error) = self::wal2json() {
        wal2json.add(Err(error));
    }
    if let Err(error) = sentinel {
        pgcopydb.add(Err(error));
    }
    for (run, name) in bench.sources.iter().enumerate() {
        let slot = format!("receive_{run}");
        let discarded = capture::pg_recvlogical(bench, &slot, Path::new("/dev/null"));
        receive.add(discarded.map(Took::whole));
        if wal2json.works() {
            wal2json.add(pg_recvlogical_wal2json(bench, run));
        }
        if pgcopydb.works() {
            pgcopydb.add(pgcopydb::receive(bench, run).await);
        }
        let captured = capture::lastgood(bench, name).await?;
        lastgood.add(Ok(Took::whole(captured.seconds)));
    }
    Ok(vec![receive, wal2json, pgcopydb, lastgood])
}

fn pg_recvlogical_wal2json(bench: &Bench, run: usize) -> Result<Took> {
    let file = bench.dumps.path().join("wal2json");
    let mut receive = bench.server.program("pg_recvlogical");
    receive.args(["--start", "-d", DATABASE, "-o", "format-version=2"]);
    receive.args(["--endpos", &bench.end, "-S", &format!("wal2json_{run}")]);
    receive.arg("-f").arg(&file);
    let begun = Instant::now();
    finish(&mut receive)?;
    let took = begun.elapsed().as_secs_f64();
    std::fs::remove_file(file)?;
    Ok(Took::whole(took))
}

async fn restored(bench: &Bench, archive: Result<Archive>) -> Result<Vec<Peer>> {
    let (server, service) = (&bench.server, &bench.service);
    let mut plain = Peer::new(&[
        "pg_restore of a dump at the target",
        "a connection, and to know the target before",
    ]);
    let mut pgbackrest = Peer::new(&[
        "pgBackRest, the whole server",
        "its disk, archive_command, the same major",
    ]);
    let mut lastgood = Peer::new(&["lastgood", "a connection"]);
    let mut native = Peer::new(&[
        "a base, native replication",
        "a connection, and that it still runs",
    ]);

    bench.dump("after")?;
    let source = digest::of(&mut server.connect(DATABASE).await?, None).await?;
    let latest = truth::wal_position(&server.connect(DATABASE).await?).await?;
    service.wait_durable(&bench.sources[0], &latest).await?;
    let archive = match archive {
        Ok(archive) => archive.until_archived(server).await.map(|()| archive),
        Err(error) => Err(error),
    };
    let mut bases = Vec::new();
    for run in 0..RUNS {
        plain.add(loaded(bench, "after").await.map(Took::whole));
        bases.push(loaded(bench, "before").await?);
        let compare = (run == 0).then_some(&source);
        match &archive {
            Ok(archive) => pgbackrest.add(archive.restore(&latest, compare).await),
            Err(error) => pgbackrest.add(Err(anyhow::anyhow!("{error:#}"))),
        }
        let base = restore::lastgood(bench, &json!({"lsn": bench.start}), None).await?;
        let whole = restore::lastgood(bench, &json!("latest"), compare).await?;
        lastgood.add(Ok(Took::with_changes(whole, whole - base)));
    }
    for (base, changes) in bases.iter().zip(restore::native(bench).await?) {
        native.add(Ok(Took::with_changes(base + changes, changes)));
    }
    Ok(vec![plain, pgbackrest, lastgood, native])
}

/// The seconds of a dump's way into a new database.
async fn loaded(bench: &Bench, dump: &str) -> Result<f64> {
    let begun = Instant::now();
    bench.server.create_database("plain").await?;
    bench.load(dump, "plain")?;
    let took = begun.elapsed().as_secs_f64();
    drop_database(&bench.server, "plain").await?;
    Ok(took)
}

/// With wal2json if it is here.
async fn start(settings: &[&str], initdb: &[&str]) -> Result<Arc<Postgres>> {
    let mut server = Postgres::builder(15).on_disk();
    let always = [
        "max_wal_size=8GB",
        "autovacuum=off",
        "max_replication_slots=30",
    ];
    for setting in always.iter().chain(settings) {
        server = server.config(*setting);
    }
    if let Ok(library) = wal2json() {
        let folder = library.parent().unwrap_or(&library).display();
        server = server.config(format!("dynamic_library_path='$libdir:{folder}'"));
        server = server.config("output_plugin_libraries='pgoutput, test_decoding, wal2json'");
    }
    let server = initdb.iter().fold(server, |it, option| it.initdb(*option));
    Ok(Arc::new(server.start().await?))
}

/// With pgbench's tables, each with a replica identity.
async fn fill(server: &Postgres) -> Result<()> {
    server.create_database(DATABASE).await?;
    initialize(server, DATABASE, WORKLOAD.scale)?;
    psql(server, "ALTER TABLE pgbench_history REPLICA IDENTITY FULL")
}

fn wal2json() -> Result<PathBuf> {
    installed("lib/wal2json.so")
}

fn installed(name: &str) -> Result<PathBuf> {
    let path = tools::root()?.join("peers").join(name);
    ensure!(
        path.exists(),
        "{name} is not here: tools/setup.sh peers, where there is apt"
    );
    Ok(path)
}
