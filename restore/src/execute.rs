//! Does what a plan says.
//!
//! Order: definitions, rows of the base with the changes merged in, the indexes that rows are found by, the
//! captured transactions that are not merged, then everything else. No foreign key, trigger or rule exists while rows come in, so
//! no special right is needed and nothing a user wrote is run by a restore. Each stage is recorded in
//! the target before it begins; an interrupted restore goes on with the stage it was in.

mod loads;
mod phases;
mod run;

use std::time::Instant;

use futures::FutureExt as _;
use lastgood_pg::dump::TocEntry;
use lastgood_pg::{ConnectionConfig, Purpose, Session};
use lastgood_proto::key::SourceObject;
use lastgood_proto::manifest::{BaseManifest, LineageFile};
use lastgood_proto::{BaseId, LineageId};
use lastgood_store::SourceStore;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

use self::run::{Run, Tracker};
use crate::archive::Head;
use crate::existing::Existing;
use crate::plan::Plan;
use crate::report::{Phase, Progress, Report};
use crate::{Error, destination, progress_table};

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
    /// What the changes come to, merged into the rows of the base while these are loaded; what does
    /// not fit into so many bytes of memory, in commit order afterwards.
    Merged { bytes_max: usize },
    /// Every change, in commit order, after the base was loaded.
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
    let manifest = SourceObject::Manifest(plan.lineage, plan.base.id);
    let mut manifest: BaseManifest = store.get_json(&manifest).await?;
    manifest.consistent_point = plan.base.consistent_point;
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

#[cfg(test)]
mod tests;
