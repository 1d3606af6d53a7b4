//! What is written to a source, and everything that reads it later, made at the same position before.

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use lastgood_integration::service::parse_lsn;
use lastgood_integration::{Postgres, Service, Storage, truth};
use serde_json::json;
use tempfile::TempDir;

use crate::{DATABASE, RUNS, finish, psql, start_pgbench};

pub(crate) struct Workload {
    pub(crate) name: &'static str,
    /// pgbench's scale, for the base.
    pub(crate) scale: u32,
    pub(crate) make: fn(&Postgres) -> Result<()>,
}

pub(crate) const WORKLOADS: [Workload; 5] = [
    Workload {
        name: "pgbench, 300,000 small transactions",
        scale: 50,
        make: small_transactions,
    },
    Workload {
        name: "mixed, 300,000 transactions of 1 to 20 rows",
        scale: 10,
        make: mixed,
    },
    Workload {
        name: "100,000 rows of 4 KB, inserted and updated",
        scale: 1,
        make: wide_rows,
    },
    Workload {
        name: "one UPDATE of 1,000,000 rows",
        scale: 10,
        make: one_update,
    },
    Workload {
        name: "one INSERT of 5,000,000 rows",
        scale: 1,
        make: one_insert,
    },
];

/// Orders are placed with their items, paid, looked at, and now and then cancelled.
const MIXED: &str = r"
\set customer random_zipfian(1, 100000 * :scale, 1.1)
\set items random(1, 9)
\set what random(1, 100)
BEGIN;
\if :what <= 60
WITH placed AS (INSERT INTO orders (customer, note) VALUES (:customer, repeat(md5(:customer::text), 4)) RETURNING id)
INSERT INTO items SELECT id, n, n * 17, 'article ' || n FROM placed, generate_series(1, :items) n;
UPDATE pgbench_accounts SET abalance = abalance + :items WHERE aid = :customer;
\elif :what <= 90
UPDATE orders SET paid = true, paid_at = now() WHERE id = (SELECT max(id) - :customer % 1000 FROM orders);
UPDATE pgbench_accounts SET abalance = 0 WHERE aid BETWEEN :customer AND :customer + :items;
\else
WITH gone AS (DELETE FROM orders WHERE id = (SELECT max(id) - :customer % 1000 FROM orders) RETURNING id)
DELETE FROM items USING gone WHERE items.order_id = gone.id;
\endif
END;
";

/// The history has no key: its rows are told apart by all they have.
const TABLES: &str = "
ALTER TABLE pgbench_history REPLICA IDENTITY FULL;
CREATE TABLE narrow (id int PRIMARY KEY, a int);
CREATE TABLE wide (id int PRIMARY KEY, n int, text text STORAGE EXTERNAL);
CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL,
    paid boolean NOT NULL DEFAULT false, paid_at timestamptz, note text NOT NULL);
CREATE TABLE items (order_id bigint, position int, price int, article text, PRIMARY KEY (order_id, position));
";

/// A source with its WAL, and as many readers of each kind as there are runs, all at the same position
/// before it.
pub(crate) struct Bench {
    pub(crate) name: &'static str,
    pub(crate) server: Arc<Postgres>,
    pub(crate) storage: Storage,
    pub(crate) service: Service,
    /// Of the service's sources.
    pub(crate) sources: Vec<String>,
    pub(crate) publication: String,
    /// Dumps: as it was where the WAL begins.
    pub(crate) dumps: TempDir,
    pub(crate) start: String,
    pub(crate) end: String,
}

impl Bench {
    pub(crate) async fn prepare(workload: &Workload) -> Result<Self> {
        let settings = ["autovacuum=off", "max_replication_slots=30"];
        let server = start_pgbench(&settings, workload.scale).await?;
        server.execute(DATABASE, TABLES).await?;
        let readers = [("receive", "pgoutput"), ("native", "pgoutput")];
        Self::of(workload, server, RUNS, &readers).await
    }

    /// On a server of any major that has what the workload writes to. A reader is what its slots' names
    /// begin with, and its output plugin.
    pub(crate) async fn of(
        workload: &Workload,
        server: Arc<Postgres>,
        runs: usize,
        readers: &[(&str, &str)],
    ) -> Result<Self> {
        let storage = Storage::local()?;
        let service = Service::start(&storage).await?;
        let sources: Vec<String> = (0..runs).map(|run| format!("run-{run}")).collect();
        for name in &sources {
            let settings = json!({"segment_seconds": 1, "wal_budget_bytes": 1_u64 << 40});
            service
                .add_source(name, &server.url(DATABASE), settings)
                .await?;
            service.wait_protected(name).await?;
            let pause = format!("/api/v1/sources/{name}/pause");
            service.post(&pause, json!({"slot": "keep"})).await?;
        }
        let client = server.connect(DATABASE).await?;
        let publication = "SELECT pubname::text FROM pg_publication LIMIT 1";
        let publication: String = client.query_one(publication, &[]).await?.get(0);
        let slots = (0..runs).flat_map(|run| {
            let slot = move |&(reader, plugin): &_| (format!("{reader}_{run}"), plugin);
            readers.iter().map(slot)
        });
        for (slot, plugin) in slots.chain([("size".to_owned(), "pgoutput")]) {
            let sql = format!("SELECT pg_create_logical_replication_slot('{slot}', '{plugin}')");
            server.execute(DATABASE, &sql).await?;
        }
        let start = truth::wal_position(&client).await?;
        let dumps = tempfile::tempdir()?;
        let bench = Self {
            name: workload.name,
            server,
            storage,
            service,
            sources,
            publication,
            dumps,
            end: String::new(),
            start,
        };
        bench.dump("before")?;
        (workload.make)(&bench.server)?;
        let end = truth::wal_position(&client).await?;
        // Something behind the end, so that all have a commit to stop at.
        let last = "UPDATE pgbench_branches SET filler = 'end' WHERE bid = 1";
        bench.server.execute(DATABASE, last).await?;
        Ok(Self { end, ..bench })
    }

    pub(crate) fn dump(&self, name: &str) -> Result<()> {
        let mut dump = self.server.program("pg_dump");
        dump.args(["-Fc", "-Z0", "-f"])
            .arg(self.dumps.path().join(name));
        finish(dump.arg(DATABASE))
    }

    /// Into a database, with two jobs.
    pub(crate) fn load(&self, name: &str, database: &str) -> Result<()> {
        let mut restore = self.server.program("pg_restore");
        restore.args(["-j2", "--no-publications", "-d", database]);
        finish(restore.arg(self.dumps.path().join(name)))
    }

    pub(crate) fn wal_mb(&self) -> Result<u64> {
        Ok((parse_lsn(&self.end)? - parse_lsn(&self.start)?) >> 20)
    }
}

/// Of four clients, each so many transactions: pgbench's own, or those of a script.
pub(crate) fn transactions(server: &Postgres, each: u32, script: Option<&Path>) -> Result<()> {
    let mut pgbench = server.program("pgbench");
    pgbench.args(["-n", "-c", "4", "-j", "2", "-t", &each.to_string()]);
    if let Some(script) = script {
        pgbench.arg("-f").arg(script);
    }
    finish(pgbench.arg(DATABASE))
}

fn small_transactions(server: &Postgres) -> Result<()> {
    transactions(server, 75_000, None)
}

fn mixed(server: &Postgres) -> Result<()> {
    let script = tempfile::NamedTempFile::new()?;
    std::fs::write(script.path(), MIXED)?;
    transactions(server, 75_000, Some(script.path()))
}

/// The updates leave what is stored out of line alone.
fn wide_rows(server: &Postgres) -> Result<()> {
    for part in 0..20 {
        let (from, to) = (part * 5000 + 1, (part + 1) * 5000);
        psql(
            server,
            &format!(
                "INSERT INTO wide SELECT n, 0, string_agg(md5((n * 131 + m)::text), '')
                   FROM generate_series({from}, {to}) n, generate_series(1, 125) m GROUP BY n"
            ),
        )?;
        psql(
            server,
            &format!("UPDATE wide SET n = 1 WHERE id BETWEEN {from} AND {to}"),
        )?;
    }
    Ok(())
}

fn one_update(server: &Postgres) -> Result<()> {
    psql(
        server,
        "UPDATE pgbench_accounts SET abalance = abalance + 1",
    )
}

fn one_insert(server: &Postgres) -> Result<()> {
    psql(
        server,
        "INSERT INTO narrow SELECT n, n % 1000 FROM generate_series(1, 5000000) n",
    )
}
