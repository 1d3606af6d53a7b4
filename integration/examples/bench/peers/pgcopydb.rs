//! pgcopydb 0.10: its capture, and its apply by the procedure of its manual: `stream setup`, the base, `follow` until
//! a position.
//!
//! It stores the changes in a file for each WAL segment. Where transactions cross from one into the next, it makes no
//! SQL of them, or none that it goes on from, and waits for ever. With segments of 1 GB there is nothing to cross.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use lastgood_integration::{Postgres, truth};

use super::peer::{Took, succeeded};
use super::{fill, installed, small_transactions, start, wal2json};
use crate::workload::Bench;
use crate::{DATABASE, finish, psql};

/// Of one command. Its apply may wait for ever for what does not come.
const SECONDS_MAX: &str = "300";
const TRANSACTIONS: usize = 100_000;
/// `BEGIN`, three updates, an insert, `COMMIT`.
const MESSAGES: usize = 6 * TRANSACTIONS;

/// The balances are equal if every transaction arrived once.
const SUMS: &str = "SELECT format('%s %s %s %s',
    (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
    (SELECT sum(bbalance) FROM pgbench_branches), (SELECT count(*) || ' ' || sum(delta) FROM pgbench_history))";

/// The table by which it is controlled, without which it receives nothing.
pub(super) async fn make_sentinel(server: &Postgres) -> Result<()> {
    wal2json()?;
    let folder = tempfile::tempdir()?;
    let start = truth::wal_position(&server.connect(DATABASE).await?).await?;
    let create = [
        "stream",
        "sentinel",
        "create",
        "--startpos",
        &start,
        "--endpos",
        "0/0",
    ];
    run(&create, server, server, folder.path())?;
    // As its manual says for tables without a key: it could not update it beside a publication of all.
    psql(
        server,
        "ALTER TABLE pgcopydb.sentinel REPLICA IDENTITY FULL",
    )
}

pub(super) async fn receive(bench: &Bench, run_number: usize) -> Result<Took> {
    let server = &bench.server;
    let folder = tempfile::tempdir()?;
    // As it was before the run before.
    psql(
        server,
        "UPDATE pgcopydb.sentinel SET write_lsn = '0/0', flush_lsn = '0/0', replay_lsn = '0/0'",
    )?;
    let slot = format!("pgcopydb_{run_number}");
    let receive = [
        "stream",
        "receive",
        "--slot-name",
        &slot,
        "--endpos",
        &bench.end,
    ];
    let begun = Instant::now();
    let said = run(&receive, server, server, folder.path())?;
    let took = begun.elapsed().as_secs_f64();
    let count = said.rsplit_once("after processing ").map(|(_, rest)| rest);
    let count = count
        .and_then(|rest| rest.split_whitespace().next())
        .context("it does not say how many")?;
    ensure!(
        count.parse::<usize>()? >= MESSAGES,
        "only {count} of {MESSAGES} messages"
    );
    Ok(Took::whole(took))
}

/// From a server with these options of initdb into another like it.
pub(super) async fn follow(initdb: &[&str]) -> Result<Took> {
    installed("pgcopydb")?;
    wal2json()?;
    let (source, target) = (start(&[], initdb).await?, start(&[], initdb).await?);
    fill(&source).await?;
    let folder = tempfile::tempdir()?;
    let dump = folder.path().join("base");
    finish(
        source
            .program("pg_dump")
            .args(["-Fc", "-Z0", "-f"])
            .arg(&dump)
            .arg(DATABASE),
    )?;
    target.create_database(DATABASE).await?;
    let pgcopydb = |arguments: &[&str]| run(arguments, &source, &target, folder.path());

    pgcopydb(&["stream", "setup"])?;
    let begun = Instant::now();
    finish(
        target
            .program("pg_restore")
            .args(["-j2", "-d", DATABASE])
            .arg(&dump),
    )?;
    let base = begun.elapsed().as_secs_f64();
    small_transactions(&source)?;
    let client = source.connect(DATABASE).await?;
    let end = truth::wal_position(&client).await?;
    // It stops at what comes behind the end.
    psql(
        &source,
        "UPDATE pgbench_branches SET filler = 'end' WHERE bid = 1",
    )?;
    pgcopydb(&["stream", "sentinel", "set", "apply"])?;

    let begun = Instant::now();
    let followed = pgcopydb(&["follow", "--resume", "--not-consistent", "--endpos", &end]);
    let changes = begun.elapsed().as_secs_f64();
    let sums: String = client.query_one(SUMS, &[]).await?.get(0);
    let target = target.connect(DATABASE).await?;
    let arrived: i64 = target
        .query_one("SELECT count(*) FROM pgbench_history", &[])
        .await?
        .get(0);
    followed.with_context(|| {
        format!("{arrived} of {TRANSACTIONS} transactions after {changes:.0} s")
    })?;
    let found: String = target.query_one(SUMS, &[]).await?.get(0);
    ensure!(found == sums, "it has {found} instead of {sums}");
    Ok(Took::with_changes(base + changes, changes))
}

/// Under a time limit, which ends its child processes too.
fn run(arguments: &[&str], source: &Postgres, target: &Postgres, folder: &Path) -> Result<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = [source.bin().to_owned()]
        .into_iter()
        .chain(std::env::split_paths(&path));
    let mut command = Command::new("timeout");
    command
        .args(["-k", "10", SECONDS_MAX])
        .arg(installed("pgcopydb")?)
        .args(arguments);
    command
        .env("PGCOPYDB_SOURCE_PGURI", source.url(DATABASE))
        .env("PGCOPYDB_TARGET_PGURI", target.url(DATABASE))
        .env("TMPDIR", folder)
        .env("XDG_DATA_HOME", folder)
        .env("PATH", std::env::join_paths(path)?)
        .stdin(Stdio::null());
    succeeded(&command.output()?)
}
