//! Marks: the server's WAL position, clock and sequences, asked on a side connection.
//!
//! A mark says: what had committed by `clock` lies at or below `lsn`, because the position was read
//! after the clock, and something is taken off the clock for those on their way into the WAL.
//! It serves two ends: it moves the observed-through time while nothing is published (a keepalive's
//! clock cannot: a walsender that lags sends a fresh clock with an old position), and it carries
//! the sequences, which the stream never does.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use lastgood_pg::{ConnectionConfig, Purpose, Session};
use lastgood_proto::segment::SequenceSample;
use lastgood_proto::{Lsn, PgTimestamp, SourceId, Xid};
use tokio::time::Instant;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::ddl::Trust;
use crate::definitions;
use crate::error::{Error, chain};
use crate::settings::SourceSettings;
use crate::shape::{self, Shape};

/// One sample.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    pub lsn: Lsn,
    pub clock: PgTimestamp,
    /// The clock again, read after `lsn` was: what lies at or below it had committed by then.
    pub until: PgTimestamp,
    /// Sampled after `lsn` was read: each value is that at `lsn` or later.
    pub sequences: Vec<SequenceSample>,
    /// As it was at `lsn` or later.
    pub shape: Shape,
    /// The WAL position again, read after the shape was: what the shape shows had committed below it.
    pub seen_by: Lsn,
    /// The clock after that: whatever lies below `seen_by` had been committed.
    pub seen_at: PgTimestamp,
    /// Definitions were read in this look, not taken from one before.
    pub is_whole: bool,
    /// Which transactions the shape may not show yet, though they are in the WAL.
    pub running: Running,
    /// One word for the event trigger that tells of DDL, if there is one.
    pub ddl_trigger: Option<String>,
}

/// Transactions under way, as of before the shape was read. A commit is in the WAL, and decoded, before it
/// shows to anybody: until it is flushed, and while it waits for a synchronous standby.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Running {
    /// Those that begin later have the numbers from here on. Full numbers, with the epoch.
    next: Option<u64>,
    numbers: BTreeSet<u64>,
}

impl Running {
    /// As `pg_current_snapshot()` prints it.
    fn parse(snapshot: &str) -> Option<Self> {
        let mut fields = snapshot.split(':');
        let (_, next) = (fields.next()?, fields.next()?.parse().ok()?);
        let numbers = fields
            .next()?
            .split(',')
            .filter(|number| !number.is_empty());
        let numbers = numbers.map(|number| number.parse().ok());
        Some(Self {
            next: Some(next),
            numbers: numbers.collect::<Option<_>>()?,
        })
    }

    /// Whether one that the stream has sent is among them.
    pub(crate) fn has(&self, xid: Xid) -> bool {
        let Some(next) = self.next else {
            return false;
        };
        // The stream's numbers are without the epoch; they wrap around.
        let short = |number: u64| u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0);
        let is_later = xid.get().wrapping_sub(short(next)) < 1 << 31;
        is_later
            || self
                .numbers
                .iter()
                .any(|number| short(*number) == xid.get())
    }
}

/// Where marks come from: a session, or a simulator.
pub trait Marks: Send + 'static {
    /// Takes a mark. With `wake`, also commits an empty message, so that a server on which nothing
    /// happens moves its WAL and with it the recoverable time.
    /// With `told`, all definitions are looked at, as the stream has told of DDL.
    fn take(&mut self, wake: bool, told: bool) -> impl Future<Output = Result<Mark, Error>> + Send;
}

/// Taken off the clock: a transaction reads its commit time a moment before its commit record is in
/// the WAL, so a record with an earlier time may still follow the position.
pub(crate) const CLOCK_SLACK_MICROS: i64 = 100_000;

/// A session that does not answer for so long is given up.
const PATIENCE: Duration = Duration::from_secs(30);

/// Sequences asked without waiting for answers.
const SEQUENCES_AT_ONCE: usize = 200;

/// One statement each, in this order: a position read before its clock would claim too much.
const CLOCK: &str = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::int8";
const POSITION: &str = "SELECT (pg_current_wal_insert_lsn() - '0/0')::text";

const WAKE: &str = "SET LOCAL synchronous_commit = off; \
                    SELECT pg_logical_emit_message(true, 'lastgood.mark', '')";

/// Sequences the role may read, but for those that belong to an extension.
const SEQUENCES: &str = "\
    SELECT n.nspname, c.relname, quote_ident(n.nspname) || '.' || quote_ident(c.relname) \
    FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid \
    JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relpersistence <> 't' AND n.nspname !~ '^pg_' \
      AND n.nspname <> 'information_schema' \
      AND has_schema_privilege(n.oid, 'USAGE') AND has_sequence_privilege(s.seqrelid, 'SELECT') \
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass \
                      AND d.objid = c.oid AND d.deptype = 'e') \
    ORDER BY 1, 2";

/// Marks of a real server. The session is opened when it is needed and again after it broke.
pub(crate) struct SessionMarks {
    config: ConnectionConfig,
    source: SourceId,
    publication: String,
    settings: SourceSettings,
    session: Option<Session>,
    trust: Trust,
    definitions: Definitions,
}

/// Definitions that rows do not depend on need not be looked at each time.
#[derive(Default)]
struct Definitions {
    /// None if they could not be read.
    seen: Option<BTreeMap<String, String>>,
    read: Option<Instant>,
    took: Duration,
    /// The shape that was seen then: a migration alters both.
    beside: Option<String>,
    /// In the last look, or before it.
    is_read: bool,
}

/// To read them takes one part of so many of the time.
const DEFINITIONS_SHARE: u32 = 10;
/// Unless it takes less than this.
const CHEAP: Duration = Duration::from_millis(100);

impl Definitions {
    /// What keeps them from being read is no reason to capture nothing.
    async fn look(
        &mut self,
        client: &Client,
        shape: &Shape,
        told: bool,
    ) -> Option<BTreeMap<String, String>> {
        let pause = match self.took < CHEAP {
            true => Duration::ZERO,
            false => self.took * DEFINITIONS_SHARE,
        };
        let is_fresh = |at: Instant| at.elapsed() < pause;
        let fingerprint = Some(shape.fingerprints().shape);
        self.is_read = told || fingerprint != self.beside || !self.read.is_some_and(is_fresh);
        if self.is_read {
            self.beside = fingerprint;
            let begun = Instant::now();
            let seen = definitions::read(client).await;
            if let Err(error) = &seen {
                tracing::warn!(error = chain(error), "not all definitions can be looked at");
            }
            self.seen = seen.ok();
            self.took = begun.elapsed();
            self.read = Some(Instant::now());
        }
        self.seen.clone()
    }
}

impl SessionMarks {
    pub(crate) fn new(
        config: ConnectionConfig,
        source: SourceId,
        publication: String,
        settings: SourceSettings,
        ddl_trigger: Option<String>,
    ) -> Self {
        Self {
            config,
            source,
            publication,
            settings,
            session: None,
            trust: Trust::new(ddl_trigger),
            definitions: Definitions::default(),
        }
    }

    async fn sample(&mut self, wake: bool, told: bool) -> Result<Mark, Error> {
        let session = match self.session.take() {
            Some(session) => session,
            None => Session::connect(&self.config, Purpose::Capture).await?,
        };
        let client = session.client();
        let before = clock(client).await?;
        let lsn = wal_position(client).await?;
        let until = clock(client).await?;
        let sequences = sequences(client).await?;
        let version = session.server_version();
        let running = running(client).await?;
        let shape = shape::read(client, version, &self.publication, &self.settings).await?;
        let shape = {
            let definitions = self.definitions.look(client, &shape, told).await;
            shape.with(definitions)
        };
        let ddl_trigger = self.trust.look(client, self.source).await?;
        let seen_by = wal_position(client).await?;
        let seen_at = clock(client).await?;
        if wake {
            let transaction = format!("BEGIN; {WAKE}; COMMIT");
            if let Err(error) = client.batch_execute(&transaction).await {
                // Only the idle source's recoverable time suffers; a mark is worth more.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot move an idle WAL"
                );
            }
        }
        // Kept only now: a session that failed half-way is closed.
        self.session = Some(session);
        Ok(Mark {
            lsn,
            clock: PgTimestamp::from_micros(before.as_micros().saturating_sub(CLOCK_SLACK_MICROS)),
            until,
            sequences,
            shape,
            seen_by,
            seen_at,
            is_whole: self.definitions.is_read,
            running,
            ddl_trigger,
        })
    }
}

impl Marks for SessionMarks {
    async fn take(&mut self, wake: bool, told: bool) -> Result<Mark, Error> {
        let silent = |_| Err(Error::Task("the server does not answer".to_owned()));
        tokio::time::timeout(PATIENCE, self.sample(wake, told))
            .await
            .unwrap_or_else(silent)
    }
}

async fn running(client: &Client) -> Result<Running, Error> {
    let row = client
        .query_one("SELECT pg_current_snapshot()::text", &[])
        .await
        .map_err(Error::sql("reading what is under way"))?;
    let text: String = row.get(0);
    Running::parse(&text).ok_or_else(|| Error::Stream(format!("\"{text}\" is no snapshot")))
}

/// What the server's clock reads.
pub(crate) async fn clock(client: &Client) -> Result<PgTimestamp, Error> {
    let row = client
        .query_one(CLOCK, &[])
        .await
        .map_err(Error::sql("reading the clock"))?;
    Ok(PgTimestamp::from_unix_micros(row.get(0)))
}

/// The end of what is written into the WAL, flushed or not.
pub(crate) async fn wal_position(client: &Client) -> Result<Lsn, Error> {
    let row = client
        .query_one(POSITION, &[])
        .await
        .map_err(Error::sql("reading the WAL position"))?;
    let text: String = row.get(0);
    text.parse()
        .map(Lsn::new)
        .map_err(|_| Error::Stream(format!("\"{text}\" is no WAL position")))
}

/// All sequences the role may read. Each is asked itself: `pg_sequences` does not tell one that
/// `setval` placed and nobody has used yet from a new one. And each is asked in a transaction of its
/// own: to hold two of their locks at once could deadlock with a TRUNCATE … RESTART IDENTITY, and
/// the server might well choose the TRUNCATE to fail.
pub(crate) async fn sequences(client: &Client) -> Result<Vec<SequenceSample>, Error> {
    let rows = client
        .query(SEQUENCES, &[])
        .await
        .map_err(Error::sql("listing sequences"))?;
    let named: Vec<(String, String, String)> = rows
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2)))
        .collect();
    let mut samples = Vec::with_capacity(named.len());
    for chunk in named.chunks(SEQUENCES_AT_ONCE) {
        // Sent one behind the other without waiting for answers.
        let answers = chunk.iter().map(|(schema, name, quoted)| async move {
            let sql = format!("SELECT last_value, is_called FROM {quoted}");
            let outcome = client.simple_query(&sql).await;
            (schema, name, outcome)
        });
        for (schema, name, outcome) in futures::future::join_all(answers).await {
            let messages = match outcome {
                Ok(messages) => messages,
                // Dropped since the list was made.
                Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => continue,
                Err(error) => return Err(Error::sql("reading a sequence")(error)),
            };
            samples.extend(messages.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(SequenceSample {
                    schema: schema.clone(),
                    name: name.clone(),
                    last_value: row.get(0)?.to_owned(),
                    is_called: row.get(1)? == "t",
                }),
                _ => None,
            }));
        }
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_under_way_is_told_without_the_epoch() {
        let running = Running::parse("8589934590:8589934595:8589934590,8589934593").unwrap();
        let has = |xid| running.has(Xid::new(xid));
        assert!(has(u32::MAX - 1) && has(1) && has(3) && has(1000));
        assert!(!has(u32::MAX) && !has(0) && !has(2) && !has(u32::MAX - 1000));
        assert!(!Running::default().has(Xid::new(5)));
        assert_eq!(Running::parse("10:10:").unwrap().numbers, BTreeSet::new());
        for wrong in ["", "10", "10:x:", "10:11:y", "10:11"] {
            assert_eq!(Running::parse(wrong), None, "{wrong}");
        }
    }
}
