//! Random schemas, and writers that change them at random: what the oracle test restores.
//!
//! A seed decides the schema and what every writer tries; the interleaving of the writers is the
//! server's. DDL inside the window is deliberately absent: capture refuses it loudly, and other tests
//! see to that.

mod hard;
mod migration;
mod special;
mod table;
mod value;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use tokio::sync::{Notify, RwLock};
use tokio::task::JoinSet;
use tokio_postgres::Client;

use hard::Hard;
use special::Special;
use table::Table;

use crate::postgres::connect;
use crate::seed;

/// Between two transactions of a writer, while somebody waits for them.
const PACE: Duration = Duration::from_millis(10);
/// And while nobody does: a test that takes its time is not to end in a history that takes longer to be
/// replayed.
const SLOW_PACE: Duration = Duration::from_millis(150);

/// Tables named so have no usable replica identity: they are as of the base unless the settings ask
/// for more.
pub const KEYLESS: &str = "public.keyless";

/// Of so many TRUNCATEs one is kept: rare, as in life.
const TRUNCATES_KEPT: u32 = 20;

/// A random schema, and what can be done to it.
pub(crate) struct Schema {
    seed: u64,
    major: u32,
    tables: Vec<Table>,
    specials: Vec<&'static Special>,
    hard: Option<Hard>,
    restarts: bool,
    /// Writers that wait for nobody would otherwise truncate faster than a base can begin.
    rare_truncates: bool,
}

impl Schema {
    pub(crate) fn random(seed: u64, major: u32) -> Self {
        let mut rng = seed::rng(seed, "schema");
        let restarts = rng.random_bool(0.5);
        Self {
            seed,
            major,
            tables: Table::random_set(&mut rng, restarts),
            specials: Special::some(major, &mut rng),
            hard: Some(Hard::some(major, &mut seed::rng(seed, "hard values"))),
            restarts,
            rare_truncates: false,
        }
    }

    /// The statements that make it, with some first rows.
    pub(crate) fn statements(&self) -> Vec<String> {
        let mut statements = vec![value::TYPES_SQL.to_owned()];
        let mut rng = seed::rng(self.seed, "first rows");
        for table in &self.tables {
            statements.push(table.create_sql());
            statements.extend((0..rng.random_range(0..4)).map(|_| table.insert(&mut rng)));
        }
        statements.extend(
            self.specials
                .iter()
                .map(|special| special.create.to_owned()),
        );
        statements.extend(self.hard.iter().flat_map(Hard::statements));
        statements
    }

    /// One change of something.
    pub(crate) fn change(&self, rng: &mut ChaCha8Rng) -> String {
        if let Some(hard) = &self.hard
            && rng.random_ratio(1, 8)
        {
            return hard.change(rng);
        }
        if let Some(special) = self.specials.choose(rng)
            && rng.random_bool(0.5)
        {
            let change = special.change(self.major, rng);
            // A base cannot begin while a table is truncated between its snapshot and its locks.
            let refused = self.rare_truncates
                && change.contains("TRUNCATE")
                && !rng.random_ratio(1, TRUNCATES_KEPT);
            if !refused {
                return change;
            }
        }
        self.tables
            .choose(rng)
            .map_or_else(String::new, |table| table.change(rng))
    }

    /// From BEGIN to the end.
    pub(crate) fn transaction(&self, rng: &mut ChaCha8Rng) -> Vec<String> {
        let mut statements = vec!["BEGIN".to_owned()];
        // Mostly small, sometimes large.
        let changes = if rng.random_ratio(1, 20) {
            rng.random_range(20..60)
        } else {
            rng.random_range(1..6)
        };
        let mut savepoints = 0;
        for _ in 0..changes {
            match rng.random_range(0..12) {
                0 => {
                    savepoints += 1;
                    statements.push(format!("SAVEPOINT s{savepoints}"));
                }
                1 if savepoints > 0 => {
                    statements.push(format!("ROLLBACK TO SAVEPOINT s{savepoints}"));
                }
                2 if savepoints > 0 => {
                    statements.push(format!("RELEASE SAVEPOINT s{savepoints}"));
                    savepoints -= 1;
                }
                _ => statements.push(self.change(rng)),
            }
        }
        let end = match rng.random_ratio(1, 12) {
            true => "ROLLBACK",
            false => "COMMIT",
        };
        statements.push(end.to_owned());
        statements
    }
}

struct Shared {
    schema: Schema,
    url: String,
    commits: AtomicU64,
    /// As many of them are waited for.
    goal: AtomicU64,
    stop: AtomicBool,
    /// Writers hold it for a transaction; whoever holds it alone sees a quiet moment.
    gate: RwLock<()>,
    progress: Notify,
}

/// Writers at work.
pub struct Workload {
    shared: Arc<Shared>,
    writers: JoinSet<Result<()>>,
}

impl Workload {
    /// Makes the schema and starts the writers.
    ///
    /// # Errors
    /// The server's.
    pub async fn start(url: &str, seed: u64, writers: usize) -> Result<Self> {
        Self::start_for(url, seed, writers, u32::MAX).await
    }

    /// As `start`, with definitions that a server of major `target` understands, too: a newer
    /// `pg_dump` writes some of an inherited or generated column in a way that older servers refuse.
    ///
    /// # Errors
    /// The server's.
    pub async fn start_for(url: &str, seed: u64, writers: usize, target: u32) -> Result<Self> {
        let client = connect(url).await?;
        let version = "SELECT current_setting('server_version_num')::int / 10000";
        let major: i32 = client.query_one(version, &[]).await?.get(0);
        let mut schema = Schema::random(seed, u32::try_from(major)?);
        schema.rare_truncates = true;
        if target < schema.major {
            schema.specials.clear();
            schema.hard = None;
        }
        for sql in schema.statements() {
            let made = client.batch_execute(&sql).await;
            made.with_context(|| format!("the schema: {sql}"))?;
        }
        let shared = Arc::new(Shared {
            schema,
            url: url.to_owned(),
            commits: AtomicU64::new(0),
            goal: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            gate: RwLock::default(),
            progress: Notify::new(),
        });
        let mut tasks = JoinSet::new();
        for number in 0..writers {
            tasks.spawn(write(Arc::clone(&shared), number));
        }
        Ok(Self {
            shared,
            writers: tasks,
        })
    }

    /// Whether some TRUNCATE restarts sequences. Sequences are sampled, so a restore to a moment just
    /// before a restart cannot know how far they were: only that they are past every row.
    pub fn restarts_sequences(&self) -> bool {
        self.shared.schema.restarts
    }

    /// Transactions that were committed until now.
    pub fn commits(&self) -> u64 {
        self.shared.commits.load(Ordering::Relaxed)
    }

    /// Waits until `more` transactions have been committed from now on.
    ///
    /// # Errors
    /// When a writer has failed.
    pub async fn advance(&mut self, more: u64) -> Result<()> {
        let goal = self.commits() + more;
        self.shared.goal.store(goal, Ordering::Relaxed);
        while self.commits() < goal {
            tokio::select! {
                () = self.shared.progress.notified() => {}
                ended = self.writers.join_next() => {
                    ended.context("there are no writers")???;
                }
            }
        }
        Ok(())
    }

    /// Nothing is written, and no transaction is open, while the guard is held.
    pub async fn quiet(&self) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.shared.gate.write().await
    }

    /// Ends the writers after their current transaction.
    ///
    /// # Errors
    /// When one of them has failed.
    pub async fn stop(&mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.writers.join_next().await {
            ended??;
        }
        Ok(())
    }
}

/// One writer: transactions until it is stopped. Refusals (deadlocks, duplicate keys) are part of the
/// game; a lost connection is made anew, so that a test may restart the server.
async fn write(shared: Arc<Shared>, number: usize) -> Result<()> {
    let mut rng = seed::rng(shared.schema.seed, &format!("writer {number}"));
    let mut client: Option<Client> = None;
    while !shared.stop.load(Ordering::Relaxed) {
        let transaction = shared.schema.transaction(&mut rng);
        let open = shared.gate.read().await;
        let connected = match client.take() {
            Some(connected) => connected,
            None => match prepare(&shared.url).await {
                Ok(connected) => connected,
                Err(_) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
        };
        if run(&connected, &transaction).await {
            shared.commits.fetch_add(1, Ordering::Relaxed);
            shared.progress.notify_one();
        }
        client = (!connected.is_closed()).then_some(connected);
        drop(open);
        let goal = shared.goal.load(Ordering::Relaxed);
        let pace = match shared.commits.load(Ordering::Relaxed) < goal {
            true => PACE,
            false => SLOW_PACE,
        };
        tokio::time::sleep(pace).await;
    }
    Ok(())
}

/// Deadlocks are frequent here and should not cost a second each.
async fn prepare(url: &str) -> Result<Client> {
    let client = connect(url).await?;
    client
        .batch_execute("SET deadlock_timeout = '20ms'")
        .await?;
    Ok(client)
}

/// Whether it was committed.
async fn run(client: &Client, statements: &[String]) -> bool {
    for statement in statements {
        if let Err(error) = client.batch_execute(statement).await {
            // What this generator writes must be right; only the server's state may refuse it.
            let code = error.code().map_or("", |code| code.code());
            let is_ours = code.starts_with("42") || code.starts_with("0A");
            assert!(!is_ours, "{statement}: {error:?}");
            // On a lost connection there is nothing to roll back.
            let _ = client.batch_execute("ROLLBACK").await;
            return false;
        }
    }
    statements.last().is_some_and(|last| last == "COMMIT")
}
