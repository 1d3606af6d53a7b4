//! Does what a plan says.
//!
//! Order: definitions, rows of the base, the indexes that rows are found by, the captured
//! transactions, then everything else. No foreign key, trigger or rule exists while rows come in, so
//! no special right is needed and nothing a user wrote is run by a restore. Each stage is recorded in
//! the target before it begins; an interrupted restore goes on with the stage it was in.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
use lastgood_pg::dump::{ArchiveMaker, Section, TocEntry};
use lastgood_pg::{Canceller, ConnectionConfig, PgTools, Purpose, Session};
use lastgood_proto::key::{ArchiveName, SourceObject};
use lastgood_proto::manifest::{BaseManifest, LineageFile, Protection};
use lastgood_proto::{BaseId, LineageId, Lsn, Oid};
use lastgood_store::SourceStore;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use crate::apply::{self, Replayed};
use crate::archive::{Archives, Head};
use crate::destination::{self, Destination};
use crate::existing::Existing;
use crate::partial::Partial;
use crate::plan::{self, Plan};
use crate::progress_table::{self, Stage};
use crate::relations::Name;
use crate::replay::{Outcome, replay};
use crate::report::{Phase, PhaseTime, Progress, Report};
use crate::sql::qualified;
use crate::{
    Error, foreign_keys, gather, identity, indexes, leftover, locale, ownership, partial, prune,
    sequences,
};

/// Where to.
#[derive(Clone)]
pub struct Into {
    pub connection: ConnectionConfig,
    /// A new database, made through `connection`; else the connection's own, which must be empty
    /// unless the plan is of some tables under a new schema.
    pub create_database: Option<String>,
    /// Also into the cluster and database that was captured.
    pub allow_source: bool,
}

impl Into {
    /// The database that is restored into.
    #[must_use]
    pub fn database(&self) -> &str {
        self.create_database
            .as_deref()
            .unwrap_or_else(|| self.connection.database())
    }
}

/// How changes are brought in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replay {
    /// Every change, in commit order.
    Ordered,
}

/// How to go about it.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Parallel connections for loading and for indexes.
    pub jobs: u32,
    pub replay: Replay,
    /// Go on with a restore of the same base that was interrupted.
    pub resume: bool,
}

/// What ends a restore before it is done.
pub struct Interrupt {
    /// Nobody wants it any more.
    pub cancel: CancellationToken,
    /// The process has to end; somebody may go on with the restore afterwards.
    pub shutdown: CancellationToken,
}

impl From<CancellationToken> for Interrupt {
    fn from(cancel: CancellationToken) -> Self {
        Self {
            cancel,
            shutdown: CancellationToken::new(),
        }
    }
}

impl Interrupt {
    async fn comes(&self) {
        tokio::select! {
            () = self.cancel.cancelled() => {}
            () = self.shutdown.cancelled() => {}
        }
    }
}

/// Brings the source back as the plan says. Dropping the future stops it too, but only an interrupt
/// also ends what is still running on the server.
///
/// # Errors
/// Before anything was written as it is; afterwards as [`Error::Failed`], which says what was left.
pub async fn execute(
    plan: &Plan,
    store: &SourceStore,
    into: Into,
    options: &Options,
    progress: impl Fn(Progress) + Send + Sync,
    interrupt: impl std::convert::Into<Interrupt>,
) -> Result<Report, Error> {
    let interrupt = interrupt.into();
    let Replay::Ordered = options.replay;
    let manifest = SourceObject::Manifest(plan.lineage, plan.base.id);
    let manifest: BaseManifest = store.get_json(&manifest).await?;
    let lineage: LineageFile = store.get_json(&SourceObject::Lineage(plan.lineage)).await?;
    let tracker = Tracker {
        report: &progress,
        times: Vec::new(),
        phase: (Phase::Prepare, Instant::now()),
    };
    tracker.now(0, 0, None);
    let existing = plan.schema().map(|schema| Existing::new(&into, schema));
    let open = async {
        let into = match &existing {
            None => into,
            Some(existing) => {
                let (source, resume) = (plan.source, options.resume);
                existing.check(&into, source, &lineage, resume).await?
            }
        };
        destination::open(&into, plan.source, &lineage, &manifest, options.resume).await
    };
    let destination = tokio::select! {
        biased;
        () = interrupt.comes() => return Err(Error::Cancelled),
        opened = open.boxed() => opened?,
    };
    let (config, created) = (destination.config.clone(), destination.created);
    let mut run = Run {
        plan,
        store,
        manifest: &manifest,
        options,
        tracker,
        notes: Vec::new(),
        existing: existing.as_ref(),
        transferring: None,
    };
    let outcome = tokio::select! {
        biased;
        () = interrupt.comes() => Err(Error::Cancelled),
        done = run.all(destination).boxed() => done,
    };
    match outcome {
        Ok(report) => Ok(report),
        Err(error) => {
            let phase = run.tracker.phase.0;
            let transferring = run.transferring.take();
            drop(run);
            if let Some(transferring) = transferring {
                // A best effort: without its client the transaction ends unfinished anyway.
                let _asked = transferring.cancel().await;
            }
            destination::end_sessions(&config).await;
            let left_behind = match &existing {
                None => left_behind(&config, created),
                Some(existing) => {
                    // What took long to make goes only if whoever began it does not want it.
                    let is_unwanted = interrupt.cancel.is_cancelled() || phase < Phase::Data;
                    existing.left_behind(!created || !is_unwanted).await
                }
            };
            Err(Error::Failed {
                phase,
                left_behind,
                source: Box::new(error),
            })
        }
    }
}

/// Whether [`execute`] would begin: what it refuses before it writes anything is refused here too.
///
/// # Errors
/// As [`execute`] before anything was written.
pub async fn check(
    plan: &Plan,
    store: &SourceStore,
    into: &Into,
    resume: bool,
) -> Result<(), Error> {
    let lineage: LineageFile = store.get_json(&SourceObject::Lineage(plan.lineage)).await?;
    let scratch;
    let into = match plan.schema() {
        None => into,
        Some(schema) => {
            let existing = Existing::new(into, schema);
            scratch = existing.check(into, plan.source, &lineage, resume).await?;
            &scratch
        }
    };
    match destination::look(into, plan.source, &lineage, resume).await? {
        destination::Found::Ready { session, .. } | destination::Found::Missing(session) => {
            session.close().await;
        }
    }
    Ok(())
}

/// The lineage and base of the unfinished restore there, if there is one: a plan to resume it must
/// start from that base, also if there is a newer one now.
///
/// # Errors
/// If the database cannot be asked.
pub async fn unfinished(
    into: &Into,
    schema: Option<&str>,
) -> Result<Option<(LineageId, BaseId)>, Error> {
    let config = match schema {
        None => into.connection.with_database(into.database()),
        Some(schema) => Existing::new(into, schema).scratch(),
    };
    let session = match Session::connect(&config, Purpose::Restore).await {
        Err(lastgood_pg::Error::Server { source, .. })
            if source.code == SqlState::INVALID_CATALOG_NAME.code() =>
        {
            return Ok(None);
        }
        session => session?,
    };
    let state = progress_table::read(session.client()).await?;
    session.close().await;
    Ok(state.and_then(|state| {
        let mut parts = state.plan.split('/').skip(1);
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }))
}

fn left_behind(config: &ConnectionConfig, created: bool) -> String {
    let database = crate::sql::quoted(config.database());
    let made = match created {
        true => "was created and ",
        false => "",
    };
    format!(
        "database {database} {made}holds an unfinished restore, not to be used: resume it, or drop it \
         with DROP DATABASE {database}"
    )
}

/// Tells of progress and keeps the time of each phase.
struct Tracker<'a> {
    report: &'a (dyn Fn(Progress) + Send + Sync),
    times: Vec<PhaseTime>,
    phase: (Phase, Instant),
}

impl Tracker<'_> {
    fn enter(&mut self, phase: Phase) {
        let (before, since) = std::mem::replace(&mut self.phase, (phase, Instant::now()));
        self.times.push(PhaseTime::new(before, since.elapsed()));
        self.now(0, 0, None);
    }

    fn now(&self, done: u64, total: u64, replayed: Option<Replayed>) {
        (self.report)(Progress {
            phase: self.phase.0,
            done,
            total,
            transactions: replayed.map_or(0, |replayed| replayed.transactions),
            rows: replayed.map_or(0, |replayed| replayed.rows),
            through: replayed.map(|replayed| replayed.through),
        });
    }
}

struct Run<'a> {
    plan: &'a Plan,
    store: &'a SourceStore,
    manifest: &'a BaseManifest,
    options: &'a Options,
    tracker: Tracker<'a>,
    notes: Vec<String>,
    /// Where the tables go from the scratch database that is restored into.
    existing: Option<&'a Existing>,
    /// Ends what the existing database does for us.
    transferring: Option<Canceller>,
}

impl Run<'_> {
    async fn all(&mut self, destination: Destination) -> Result<Report, Error> {
        let Destination {
            config,
            session,
            earlier,
            ..
        } = destination;
        let client = session.client();
        if let Some(existing) = self.existing {
            existing.label(client).await?;
        }
        if let Some(source) = &self.manifest.locale {
            self.notes
                .extend(locale::note(source, &session.locale().await?));
        }
        let tools = PgTools::discover().await;
        let maker = ArchiveMaker(major(&self.manifest.pg_dump_version));
        let tools = PgTools::for_restore(&tools, session.server_version(), maker)?;
        let archives = Archives {
            store: self.store,
            lineage: self.plan.lineage,
            base: self.plan.base.id,
            tools: &tools,
        };
        let head = archives.head().await?;
        let resumed = earlier.is_some();
        let (stage, replayed) = self.begin(client, earlier).await?;

        if stage <= Stage::Schema {
            if self.existing.is_none() {
                let roles = ownership::missing(client, &archives, &head).await?;
                if !roles.is_empty() {
                    let roles = roles.join(", ");
                    tracing::warn!(roles, "not there: what they own and may do is not kept");
                }
            }
            self.tracker.enter(Phase::Schema);
            // Large objects belong to no table; their definitions would make empty ones.
            let is_wanted = |entry: &&TocEntry| !matches!(entry.kind(), "BLOB" | "BLOB METADATA");
            let only: Option<Vec<&TocEntry>> = self
                .plan
                .partial
                .as_ref()
                .map(|_| head.entries.iter().filter(is_wanted).collect());
            let notes = archives
                .definitions(&config, &head, Section::PreData, only.as_deref(), 1)
                .await?;
            self.notes.extend(notes);
            if let Some(partial) = &self.plan.partial {
                let indexes = match self.existing {
                    None => Vec::new(),
                    Some(_) => {
                        let script = archives.script_of(&head, &["INDEX", "CONSTRAINT"]).await?;
                        indexes::statements(&script, &partial.names())
                    }
                };
                let extensions = prune::check(client, partial, &indexes).await?;
                if let Some(existing) = self.existing {
                    existing.has_extensions(client, &extensions).await?;
                }
            }
            progress_table::enter(client, Stage::Data).await?;
        }
        if stage <= Stage::Data {
            self.tracker.enter(Phase::Data);
            if stage == Stage::Data {
                empty_tables(client).await?;
            }
            self.data(&config, &archives, &head).await?;
            progress_table::enter(client, Stage::Keys).await?;
        }
        let (keys, rest) = self.post_data(&head);
        if stage <= Stage::Keys {
            self.tracker.enter(Phase::Keys);
            let missing = leftover::missing(client, keys).await?;
            let jobs = self.options.jobs;
            let notes =
                archives.definitions(&config, &head, Section::PostData, Some(&missing), jobs);
            self.notes.extend(notes.await?);
            identity::relax(client).await?;
            progress_table::enter(client, Stage::Replay).await?;
        }
        self.tracker.enter(Phase::Replay);
        let outcome = self.replay(client, replayed).await?;
        let mut sequences = 0;
        if stage <= Stage::Replay {
            apply::drop_lookup_indexes(client).await?;
            identity::set_back(client).await?;
            sequences = sequences::set(client, &outcome.samples, self.manifest).await?;
            progress_table::enter(client, Stage::Finish).await?;
        }
        if stage <= Stage::Finish {
            self.tracker.enter(Phase::Constraints);
            let rest = match stage {
                Stage::Finish => leftover::missing(client, rest).await?,
                _ => rest,
            };
            self.constraints(client, &config, &archives, &head, rest)
                .await?;
            self.tracker.enter(Phase::Finish);
        }
        let mut partial = self.plan.partial.clone();
        if let Some(partial) = &mut partial {
            if stage <= Stage::Prune {
                progress_table::enter(client, Stage::Prune).await?;
                prune::prune(client, partial).await?;
            }
            partial.left_out.extend(prune::left_out(client).await?);
        }
        if let Some(existing) = self.existing {
            if stage <= Stage::Prune {
                gather::for_good(client, existing).await?;
            }
            self.transfer(existing, session, &head).await?;
        } else {
            let is_partial = partial.is_some();
            let notes = ownership::apply(client, &archives, &head, is_partial).await?;
            self.notes.extend(notes);
            progress_table::drop(client).await?;
            if !is_partial {
                // Last: from here on a user's own code may run.
                let triggers: Vec<&TocEntry> = of_kind(&head, "EVENT TRIGGER").collect();
                let notes =
                    archives.definitions(&config, &head, Section::PostData, Some(&triggers), 1);
                self.notes.extend(notes.await?);
            }
            session.close().await;
        }
        let database = self.existing.map_or(config.database(), Existing::database);
        let database = database.to_owned();
        let (phase, since) = self.tracker.phase;
        self.tracker
            .times
            .push(PhaseTime::new(phase, since.elapsed()));
        Ok(Report {
            source: self.plan.source,
            lineage: self.plan.lineage,
            base: self.plan.base.id,
            database,
            reached: self.plan.stop.last_kept.clone(),
            transactions: outcome.replayed.transactions,
            rows: outcome.replayed.rows,
            sequences,
            resumed,
            phases: std::mem::take(&mut self.tracker.times),
            notes: std::mem::take(&mut self.notes),
            not_covered: self.plan.not_covered.clone(),
            partial,
        })
    }

    /// From the scratch database to the existing one; then nothing is left of the first.
    async fn transfer(
        &mut self,
        existing: &Existing,
        scratch: Session,
        head: &Head,
    ) -> Result<(), Error> {
        self.tracker.enter(Phase::Transfer);
        let (session, canceller) = existing.connect().await?;
        self.transferring = Some(canceller);
        let (done, tracker) = (AtomicU64::new(0), &self.tracker);
        let fed = |bytes| {
            let before = done.fetch_add(bytes, Ordering::Relaxed);
            if before >> 22 != (before + bytes) >> 22 {
                tracker.now(before + bytes, 0, None);
            }
        };
        let encoding = &self.manifest.encoding;
        let tables = self.plan.partial.iter().flat_map(|partial| &partial.tables);
        let protected =
            tables.filter(|table| partial::has_row_security(head, &table.schema, &table.name));
        let protected: Vec<&str> = protected.map(|table| table.name.as_str()).collect();
        let transferred = existing.transfer(&scratch, &session, encoding, &protected, &fed);
        transferred.await?;
        self.transferring = None;
        session.close().await;
        scratch.close().await;
        // The tables are there: this is no reason to call it failed.
        if let Err(error) = existing.drop_scratch().await {
            self.notes.push(existing.scratch_stays(&error));
        }
        Ok(())
    }

    /// The stage to go on with, and how far an earlier attempt came.
    async fn begin(
        &self,
        client: &Client,
        earlier: Option<progress_table::State>,
    ) -> Result<(Stage, Replayed), Error> {
        // Which base it is; where it stops may differ, as long as nothing is past it yet.
        let mut plan = format!(
            "{}/{}/{}",
            self.plan.source, self.plan.lineage, self.plan.base.id
        );
        if let Some(partial) = &self.plan.partial {
            plan.push('/');
            plan.push_str(&partial.fingerprint());
        }
        let Some(state) = earlier else {
            progress_table::create(client, &plan).await?;
            let replayed = Replayed {
                through: Lsn::INVALID,
                transactions: 0,
                rows: 0,
            };
            return Ok((Stage::Schema, replayed));
        };
        let refused = |why: String| Err(Error::NotResumable { why });
        if state.plan != plan {
            return refused(format!(
                "it was begun from {}, this plan is from {plan}",
                state.plan
            ));
        }
        if state.stage == Stage::Schema {
            return refused("it was interrupted before its tables were there".to_owned());
        }
        let stop = self.plan.stop.last_kept.as_ref().map(|kept| kept.end_lsn);
        let through = state.replayed.through;
        if stop < Some(through).filter(|_| state.replayed.transactions > 0) {
            return refused(format!(
                "it has already gone on to {through}, past this target"
            ));
        }
        if state.stage >= Stage::Finish && stop.unwrap_or_default() != through {
            return refused(format!(
                "its changes ended at {through}, this target is another"
            ));
        }
        Ok((state.stage, state.replayed))
    }

    async fn data(
        &self,
        target: &ConnectionConfig,
        archives: &Archives<'_>,
        head: &Head,
    ) -> Result<(), Error> {
        let chosen = self.plan.partial.as_ref().map(Partial::names);
        let rows = chosen
            .as_ref()
            .map(|chosen| self.rows_of(chosen, head))
            .transpose()?;
        if chosen.is_some() {
            // They belong to no table's rows. A sample may not be newer than the base.
            let sets: Vec<&TocEntry> = of_kind(head, "SEQUENCE SET").collect();
            let set = archives.definitions(target, head, Section::Data, Some(&sets), 1);
            set.await?;
        }
        let wanted = self.manifest.archives.iter();
        let wanted =
            wanted.filter(|archive| plan::is_needed(archive, self.manifest, chosen.as_ref()));
        let total = wanted.clone().map(|archive| archive.bytes).sum();
        let done = AtomicU64::new(0);
        let tracker = &self.tracker;
        let fed = |bytes| {
            let before = done.fetch_add(bytes, Ordering::Relaxed);
            // Every few megabytes: a listener has better things to do.
            if before >> 22 != (before + bytes) >> 22 {
                tracker.now(before + bytes, total, None);
            }
        };
        let mut sorted: Vec<_> = wanted.collect();
        sorted.sort_by_key(|archive| std::cmp::Reverse(archive.bytes));
        let jobs = usize::try_from(self.options.jobs.max(1)).unwrap_or(1);
        let loads = sorted.into_iter().map(|archive| {
            let only = rows
                .as_deref()
                .filter(|_| archive.name == ArchiveName::Main);
            archives.data(target, archive, only, &fed).boxed()
        });
        let loads: Vec<_> = loads.collect();
        futures::stream::iter(loads)
            .buffer_unordered(jobs)
            .try_collect::<()>()
            .await
    }

    /// The chosen tables' entries in the main archive. Each has one, or an archive of its own.
    fn rows_of<'h>(
        &self,
        chosen: &HashSet<Name>,
        head: &'h Head,
    ) -> Result<Vec<&'h TocEntry>, Error> {
        let archives = self.manifest.archives.iter();
        let apart: HashSet<&Name> = archives
            .filter_map(|archive| archive.table.as_ref())
            .collect();
        let data: Vec<&TocEntry> = of_kind(head, "TABLE DATA").collect();
        let mut wanted = HashSet::new();
        for table in &self.manifest.tables {
            let name = (table.schema.clone(), table.name.clone());
            if table.kind != 'r' || !chosen.contains(&name) || apart.contains(&name) {
                continue;
            }
            let own = |entry: &&&TocEntry| entry.is("TABLE DATA", &table.schema, &table.name);
            let mut own = data.iter().filter(own).map(|entry| entry.dump_id());
            wanted.insert(own.next().ok_or_else(|| Error::NoRows {
                table: qualified(&table.schema, &table.name),
            })?);
            wanted.extend(own);
        }
        // In the order of the archive, which is read through a pipe.
        let is_wanted = |entry: &&TocEntry| wanted.contains(&entry.dump_id());
        Ok(data.into_iter().filter(is_wanted).collect())
    }

    /// The entries that replay needs, and the others but event triggers and privileges.
    fn post_data<'h>(&self, head: &'h Head) -> (Vec<&'h TocEntry>, Vec<&'h TocEntry>) {
        let mut wanted = HashSet::new();
        for table in &self.manifest.tables {
            if table.protection == Protection::Full
                && table.kind != 'p'
                && let Some(index) = &table.identity_index
            {
                let (schema, name) = (&table.schema, &table.name);
                wanted.insert(leftover::printed(&format!("{schema} {name} {index}")));
                wanted.insert(leftover::printed(&format!("{schema} {index}")));
            }
        }
        let is_key =
            |entry: &TocEntry| leftover::beginnings(entry.rest()).any(|name| wanted.contains(name));
        let (mut keys, mut rest) = (Vec::new(), Vec::new());
        let is_partial = self.plan.partial.is_some();
        let under_a_schema = self.plan.schema().is_some();
        for entry in &head.entries {
            match entry.kind() {
                "EVENT TRIGGER" => {}
                // The plan has named them; row security comes back with the schema.
                kind if under_a_schema && partial::ATTACHED.contains(&kind) => {}
                // They would be made of tables that are empty, and then dropped.
                "MATERIALIZED VIEW DATA" if is_partial => {}
                "CONSTRAINT" | "INDEX" if is_key(entry) => keys.push(entry),
                _ => rest.push(entry),
            }
        }
        (keys, rest)
    }

    async fn replay(&self, client: &Client, replayed: Replayed) -> Result<Outcome, Error> {
        client.batch_execute(apply::SESSION).await?;
        let tables = self.manifest.tables.iter();
        let base: HashMap<(String, String), Oid> = tables
            .map(|table| ((table.schema.clone(), table.name.clone()), table.oid))
            .collect();
        let start = self.plan.base.consistent_point;
        let end = self.plan.stop.last_kept.as_ref().map(|kept| kept.end_lsn);
        let total = end.map_or(0, |end| end.bytes_since(start));
        let report = |replayed: Replayed| {
            self.tracker
                .now(replayed.through.bytes_since(start), total, Some(replayed));
        };
        let outcome = replay(
            self.plan,
            self.store,
            client,
            Arc::new(base),
            &self.manifest.encoding,
            replayed,
            &report,
        )
        .await?;
        client
            .batch_execute("RESET enable_seqscan; RESET plan_cache_mode; RESET synchronous_commit")
            .await?;
        Ok(outcome)
    }

    /// Indexes, constraints, triggers, materialized views. Foreign keys apart, if tables that are
    /// only as fresh as the base may not satisfy them.
    async fn constraints(
        &mut self,
        client: &Client,
        target: &ConnectionConfig,
        archives: &Archives<'_>,
        head: &Head,
        rest: Vec<&TocEntry>,
    ) -> Result<(), Error> {
        let apart = !self.plan.not_covered.is_empty() || self.plan.partial.is_some();
        let is_apart = |entry: &&TocEntry| apart && entry.kind() == "FK CONSTRAINT";
        let (keys, rest): (Vec<&TocEntry>, Vec<&TocEntry>) = rest.into_iter().partition(is_apart);
        // Enabled at the very end: where it is forced on the restoring role, neither a foreign key
        // could be checked nor a view refreshed.
        let is_row_security = |entry: &&TocEntry| entry.kind() == "ROW SECURITY";
        let (row_security, rest): (Vec<&TocEntry>, Vec<&TocEntry>) =
            rest.into_iter().partition(is_row_security);
        let jobs = self.options.jobs;
        let notes = archives.definitions(target, head, Section::PostData, Some(&rest), jobs);
        self.notes.extend(notes.await?);
        if !keys.is_empty() {
            let statements = match &self.plan.partial {
                None => {
                    let script = archives.script(head, Some(&keys), &["--no-owner"]).await?;
                    foreign_keys::statements(&script)
                }
                Some(partial) => {
                    let chosen = partial.names();
                    let is_chosen = |name: &Name| chosen.contains(name);
                    let (keys, _) = partial::keys(archives, head, Some(&keys), &is_chosen).await?;
                    keys.into_iter().map(|key| key.statement).collect()
                }
            };
            let notes = foreign_keys::create(client, statements).await?;
            self.notes.extend(notes);
        }
        let notes = archives.definitions(target, head, Section::PostData, Some(&row_security), 1);
        self.notes.extend(notes.await?);
        Ok(())
    }
}

pub(crate) fn of_kind<'h>(
    head: &'h Head,
    kind: &'static str,
) -> impl Iterator<Item = &'h TocEntry> {
    head.entries
        .iter()
        .filter(move |entry| entry.kind() == kind)
}

/// `15.18 (Debian ...)` or `pg_dump (PostgreSQL) 15.18`.
pub(crate) fn major(version: &str) -> u32 {
    let digits = version
        .split(|c: char| !c.is_ascii_digit())
        .find(|digits| !digits.is_empty());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// Rows of an earlier attempt, of which nobody knows how many came. Large objects stay: their bytes
/// are written over.
async fn empty_tables(client: &Client) -> Result<(), Error> {
    let tables = client
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_class c
               JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_'
                AND n.nspname NOT IN ('information_schema', 'lastgood_restore')
                AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                                   AND d.objid = c.oid AND d.deptype = 'e')",
            &[],
        )
        .await?;
    for row in tables {
        let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        client
            .batch_execute(&format!("TRUNCATE {}", qualified(&schema, &name)))
            .await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
