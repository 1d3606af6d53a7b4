//! A database under a random workload, protected by a service, with the truth about random moments of
//! its life: what the oracle test, the crash test and the storage tests restore.

use anyhow::{Context, Result, ensure};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use crate::digest::{self, Content};
use crate::postgres::{Postgres, TestDatabase};
use crate::service::Service;
use crate::storage::Storage;
use crate::truth;
use crate::workload::{KEYLESS, Workload};

/// The settings of a source that is watched closely: small segments, quick cuts.
pub fn settings() -> Value {
    json!({"segment_bytes": 65_536, "segment_seconds": 1, "idle_seconds": 1})
}

/// A target, and what a restore to it must give.
#[derive(Clone, Debug)]
pub struct Moment {
    pub target: Value,
    pub content: Content,
}

/// A source with its writers and its recorded moments.
pub struct History {
    pub database: TestDatabase,
    pub name: String,
    pub workload: Workload,
    pub moments: Vec<Moment>,
    /// Everything recorded lies at or before these.
    pub last_lsn: String,
    pub last_time: String,
    rng: ChaCha8Rng,
}

impl History {
    /// Starts the writers, then registers the database under them: the first base is taken while
    /// they write.
    ///
    /// # Errors
    /// When the source does not come to be protected.
    pub async fn start(service: &Service, database: TestDatabase, seed: u64) -> Result<Self> {
        let connection = database.url();
        Self::start_by(service, database, &connection, settings(), seed).await
    }

    /// As [`History::start`], where the service reaches the source in its own way, with these settings.
    ///
    /// # Errors
    /// As [`History::start`].
    pub async fn start_by(
        service: &Service,
        database: TestDatabase,
        connection: &str,
        settings: Value,
        seed: u64,
    ) -> Result<Self> {
        let mut workload = Workload::start(&database.url(), seed, 4).await?;
        database
            .execute("CREATE TABLE marks (id bigserial PRIMARY KEY, what text)")
            .await?;
        workload.advance(20).await?;
        let name = format!("source-{}", database.name);
        service.add_source(&name, connection, settings).await?;
        service.wait_protected(&name).await?;
        Ok(Self {
            database,
            name,
            workload,
            moments: Vec::new(),
            last_lsn: String::new(),
            last_time: String::new(),
            rng: crate::seed::rng(seed, "moments"),
        })
    }

    /// Lets the writers go on for a random while.
    ///
    /// # Errors
    /// When a writer has failed.
    pub async fn advance(&mut self) -> Result<()> {
        let commits = self.rng.random_range(15..60);
        self.workload.advance(commits).await
    }

    /// Records a moment in the middle of everything: an LSN.
    ///
    /// # Errors
    /// When the truth cannot be had.
    pub async fn record_loud(&mut self) -> Result<()> {
        let truth = truth::record(&self.database.server, &self.database.name).await?;
        let target = json!({"lsn": truth.lsn, "inclusive": false});
        self.note(target, truth.content);
        self.note_position().await
    }

    /// Records a quiet moment in all the ways it can be named: before and after a transaction, an
    /// LSN, a time, and a restore point if there is a service to make it.
    ///
    /// # Errors
    /// When the truth cannot be had.
    pub async fn record_quiet(&mut self, service: Option<&Service>) -> Result<()> {
        let mut client = self.database.connect().await?;
        let quiet = self.workload.quiet().await;
        let before = digest::of(&mut client, None).await?;
        let sql = "INSERT INTO public.marks (what) VALUES ('quiet') RETURNING pg_current_xact_id()::text::bigint % 4294967296";
        let xid: i64 = client.query_one(sql, &[]).await?.get(0);
        let content = digest::of(&mut client, None).await?;
        let time = truth::clock(&client).await?;
        let lsn = truth::wal_position(&client).await?;
        let mut targets = vec![
            json!({"time": time}),
            json!({"lsn": lsn, "inclusive": false}),
            json!({"xid": xid}),
        ];
        if let Some(service) = service {
            let point = format!("quiet-{}", self.moments.len());
            let path = format!("/api/v1/sources/{}/points", self.name);
            service.post(&path, json!({"name": point})).await?;
            targets.push(json!({"name": point}));
        }
        drop(quiet);
        self.note(json!({"xid": xid, "inclusive": false}), before);
        for target in targets {
            self.note(target, content.clone());
        }
        self.note_position().await
    }

    fn note(&mut self, target: Value, mut content: Content) {
        if self.workload.restarts_sequences() {
            content.sequences.clear();
        }
        self.moments.push(Moment { target, content });
    }

    async fn note_position(&mut self) -> Result<()> {
        let client = self.database.connect().await?;
        self.last_lsn = truth::wal_position(&client).await?;
        self.last_time = truth::clock(&client).await?;
        Ok(())
    }

    /// Ends the writers; the end is a moment too: `latest`.
    ///
    /// # Errors
    /// When a writer has failed or the end does not become durable.
    pub async fn finish(mut self, service: &Service) -> Result<Finished> {
        self.workload.stop().await?;
        let mut client = self.database.connect().await?;
        client
            .batch_execute("INSERT INTO public.marks (what) VALUES ('end')")
            .await?;
        let content = digest::of(&mut client, None).await?;
        let lsn = truth::wal_position(&client).await?;
        let time = truth::clock(&client).await?;
        service.wait_durable(&self.name, &lsn).await?;
        service.wait_observed(&self.name, &time).await?;
        self.note(json!("latest"), content);
        Ok(Finished {
            database: self.database,
            name: self.name,
            moments: self.moments,
        })
    }
}

/// A history that is over, and durable as a whole.
pub struct Finished {
    pub database: TestDatabase,
    pub name: String,
    pub moments: Vec<Moment>,
}

impl Finished {
    /// Only that many of the moments, spread over the whole history; the end is always among them.
    #[must_use]
    pub fn thinned(mut self, count: usize) -> Self {
        let all = self.moments.len();
        let step = all.div_ceil(count.max(1)).max(1);
        let mut left = all;
        self.moments.retain(|_| {
            left -= 1;
            left.is_multiple_of(step)
        });
        self
    }

    /// Restores to every moment by the service and compares.
    ///
    /// # Errors
    /// When a restore fails or gives something else.
    pub async fn check(&self, service: &Service) -> Result<()> {
        let server = &self.database.server;
        for (number, moment) in self.moments.iter().enumerate() {
            let database = format!("{}_{number}", self.database.name);
            let into = json!({"connection": server.url("postgres"), "create_database": database});
            service.restore(&self.name, &moment.target, into).await?;
            check_restored(server, &database, moment).await?;
            if moment.target == json!("latest") {
                compare_schemas(server, &self.database.name, &database)?;
            }
            drop_database(server, &database).await?;
        }
        Ok(())
    }
}

/// Compares a restored database with what the moment must give.
///
/// # Errors
/// Says what differs.
pub async fn check_restored(server: &Postgres, database: &str, moment: &Moment) -> Result<()> {
    let mut client = server.connect(database).await?;
    let mut restored = digest::of(&mut client, None).await?;
    let mut expected = moment.content.clone();
    for content in [&mut expected, &mut restored] {
        // As of the base; the matrix compares them with that.
        content.tables.retain(|name, _| !name.starts_with(KEYLESS));
    }
    let mut differences = expected.differences(&restored);
    differences.extend(digest::collisions(&client).await?);
    let what = &moment.target;
    ensure!(
        differences.is_empty(),
        "restore to {what}:\n{}",
        differences.join("\n")
    );
    Ok(())
}

/// What the source holds now is what a restore to the newest moment gives; answers the restore. The
/// copy is gone afterwards.
///
/// # Errors
/// Says what differs, or the server's.
pub async fn check_latest(
    service: &Service,
    source: &str,
    database: &TestDatabase,
) -> Result<Value> {
    let mut client = database.connect().await?;
    let content = digest::of(&mut client, None).await?;
    let lsn = truth::wal_position(&client).await?;
    service.wait_durable(source, &lsn).await?;
    let (server, copy) = (&database.server, format!("{}_copy", database.name));
    let into = json!({"connection": server.url("postgres"), "create_database": copy});
    let restore = service.restore(source, &json!("latest"), into).await?;
    let restored = digest::of(&mut server.connect(&copy).await?, None).await?;
    let differences = content.differences(&restored);
    ensure!(
        differences.is_empty(),
        "PostgreSQL {}: {}",
        server.major(),
        differences.join("\n")
    );
    drop_database(server, &copy).await?;
    Ok(restore)
}

/// Everything that a source has in its repository is what was written, by `lastgood verify`.
///
/// # Errors
/// With its output, if it is not.
pub async fn verify(service: &Service, storage: &Storage, source: &str) -> Result<()> {
    let key = service.key_file().display().to_string();
    let repository = ["--repository", storage.url(), "--key-file", &key];
    let verified = service
        .cli(&[&["verify", source], &repository[..]].concat())
        .await?;
    ensure!(verified.status.success(), "{verified:?}");
    Ok(())
}

/// # Errors
/// The server's.
pub async fn drop_database(server: &Postgres, name: &str) -> Result<()> {
    server
        .execute(
            "postgres",
            &format!("DROP DATABASE \"{name}\" WITH (FORCE)"),
        )
        .await
}

/// # Errors
/// Says what differs in the definitions of two databases of one server.
pub fn compare_schemas(server: &Postgres, source: &str, restored: &str) -> Result<()> {
    compare_schema(&schema(server, source)?, server, restored)
}

/// # Errors
/// As [`compare_schemas`], with what [`schema`] said of the source.
pub fn compare_schema(source: &[String], server: &Postgres, restored: &str) -> Result<()> {
    let restored = schema(server, restored)?;
    ensure!(
        source == restored,
        "the schemas differ:\n{}",
        lines_of_one(source, &restored)
    );
    Ok(())
}

/// `pg_dump --schema-only` without what is ours or differs from run to run.
///
/// # Errors
/// If it cannot be made.
pub fn schema(server: &Postgres, database: &str) -> Result<Vec<String>> {
    let mut dump = server.program("pg_dump");
    let output = dump
        .args(["--schema-only", "--no-publications"])
        .args(["--exclude-schema", "lastgood_*"])
        .args(["--lock-wait-timeout", "2000", database])
        .output()?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).context("a dump in UTF-8")?;
    let ours = [
        "CREATE EVENT TRIGGER lastgood_",
        "   EXECUTE FUNCTION lastgood_",
        "ALTER EVENT TRIGGER lastgood_",
    ];
    let noise = |line: &&str| {
        line.is_empty()
            || ["--", "\\restrict", "\\unrestrict"]
                .iter()
                .chain(&ours)
                .any(|start| line.starts_with(start))
    };
    Ok(text
        .lines()
        .filter(|line| !noise(line))
        .map(ToOwned::to_owned)
        .collect())
}

fn lines_of_one(left: &[String], right: &[String]) -> String {
    let only = |sign: &str, these: &[String], those: &[String]| -> Vec<String> {
        these
            .iter()
            .filter(|line| !those.contains(line))
            .map(|line| format!("{sign} {line}"))
            .collect()
    };
    [only("-", left, right), only("+", right, left)]
        .concat()
        .join("\n")
}
