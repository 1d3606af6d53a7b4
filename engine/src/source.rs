//! Everything that happens to one source: open or begin a lineage, stream it, give it a base, watch
//! its slot, end it.
//!
//! Crash safety, step by step: the publication comes first and is found again by its name; a slot
//! without its `lineage.json` is dropped and made anew; a lineage without a base gets one by a
//! temporary slot; an ended lineage whose slot is still there loses it at the next start. So a
//! start needs to know nothing but the listing and the server.

mod first_base;
mod idle;
mod lineage;
mod paused;
mod running;
mod slot;

use std::path::PathBuf;
use std::time::Duration;

use lastgood_pg::{
    Condition, ConnectionConfig, Purpose, ReplicationConnection, ReplicationOptions, Session,
};
use lastgood_proto::manifest::EndReason;
use lastgood_proto::{Class, LineageId, Lsn, PgTimestamp, SourceId, encoding};
use lastgood_store::SourceStore;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, chain};
use crate::events::{Event, Events, SourceState, SourceStatus};
use crate::overlap::Stored;
use crate::remove::Removal;
use crate::settings::SourceSettings;
use crate::shape::Fingerprints;
use crate::writer::Writer;

pub use lineage::elsewhere;
pub(crate) use slot::make as make_slot;

/// One protected database.
#[derive(Clone)]
pub struct Source {
    pub id: SourceId,
    pub name: String,
    pub connection: ConnectionConfig,
    pub settings: SourceSettings,
    /// Who captures it.
    pub writer: Writer,
}

/// What the operator wants once, of the next lineage that is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Control {
    /// Begin a new lineage if the last one was ended by the WAL budget; else that is an error.
    pub new_lineage: bool,
    /// Become the writer although another service has taken the source over; else that is an error.
    pub take_over: bool,
}

/// Why a run ended without an error: it was cancelled, and what could be confirmed is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// Sent by the server if it hears nothing for that long; we speak every second.
const WAL_SENDER_TIMEOUT: Duration = Duration::from_secs(60);

/// Between attempts while a first base is being taken; otherwise the caller decides.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_LONGEST: Duration = Duration::from_secs(30);

/// Where an opened lineage goes on.
pub(crate) struct Opened {
    /// With its connection pinned to the server that was reached.
    pub(crate) source: Source,
    pub(crate) file: lastgood_proto::manifest::LineageFile,
    pub(crate) durable: Lsn,
    /// Where the stream begins, and what is compared up to `durable`.
    pub(crate) stored: Stored,
    pub(crate) observed_through: Option<PgTimestamp>,
    /// The latest commit time so far.
    pub(crate) latest_commit: Option<PgTimestamp>,
    /// Of the shape that was seen last.
    pub(crate) shape: Option<Fingerprints>,
    /// What tells of DDL in the stream, and did before it goes on.
    pub(crate) ddl_trigger: Option<String>,
    /// Up to here it was seen to hold.
    pub(crate) looked_at: Lsn,
    pub(crate) connection: ReplicationConnection,
    pub(crate) base: FirstBase,
}

/// How a lineage comes by its first base.
pub(crate) enum FirstBase {
    Present,
    /// Under the snapshot that the capture slot has just exported.
    Snapshot(Box<crate::base::Snapshot>),
    Missing,
}

/// Runs a source until it is cancelled or fails. A gap is no failure: the lineage ends, on
/// record, and the next one begins. Once a lineage is open `control` is empty: what was asked for is
/// done.
///
/// # Errors
/// Whatever keeps it from being captured; [`Error::class`] tells whether trying again helps. It
/// may be started again at any time.
pub async fn run(
    source: Source,
    store: SourceStore,
    spool_dir: PathBuf,
    control: &mut Control,
    events: Events,
    cancel: CancellationToken,
) -> Result<Stopped, Error> {
    source.settings.validate()?;
    tokio::fs::create_dir_all(&spool_dir)
        .await
        .map_err(|error| Error::Spool {
            folder: spool_dir.display().to_string(),
            source: error,
        })?;
    let mut first_base: Option<first_base::Task> = None;
    let mut reopened: Option<LineageId> = None;
    let mut pause = RETRY_FIRST;
    loop {
        events.send(Event::Status(SourceStatus::starting()));
        let mut lineage = None;
        let attempt = async {
            let opened = tokio::select! {
                () = cancel.cancelled() => return Ok(running::Outcome::Cancelled),
                opened = lineage::open(&source, &store, *control, &events) => opened?,
            };
            lineage = Some(opened.file.id);
            *control = Control::default();
            let spool_dir = spool_dir.clone();
            Box::pin(running::run(
                &store,
                spool_dir,
                opened,
                &mut first_base,
                &events,
                &cancel,
            ))
            .await
        };
        match Box::pin(attempt).await {
            Ok(running::Outcome::Cancelled) => return Ok(Stopped),
            // Whether a new one begins is decided where lineages are opened.
            Ok(running::Outcome::LineageEnded) => {}
            // The server has lost what the lineage needs: look again, once, and begin a new one.
            Err(error) if is_gap(&error) && lineage.is_some() && reopened != lineage => {
                let error = chain(&error);
                tracing::warn!(error, ?lineage, "capture broke off");
                reopened = lineage;
            }
            // To return would give up a base that may be hours old.
            Err(error)
                if error.class() == Class::Transient
                    && first_base.as_ref().is_some_and(|task| !task.is_finished()) =>
            {
                let error = chain(&error);
                tracing::warn!(error, "capture broke off while its first base is taken");
                events.send(Event::Status(SourceStatus {
                    state: SourceState::Degraded,
                    reason: Some(error),
                    ..SourceStatus::starting()
                }));
                tokio::select! {
                    () = cancel.cancelled() => return Ok(Stopped),
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(RETRY_LONGEST);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Watches a paused source: nothing is read, but its slot goes on holding WAL back, and the budget
/// holds for a paused source too. Reports its status and, if it comes to that, the lineage's end.
/// Returns when cancelled.
///
/// # Errors
/// If the listing cannot be read, or a slot that is over the budget cannot be dropped.
pub async fn watch_paused(
    source: &Source,
    store: &SourceStore,
    events: &Events,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    paused::run(source, store, events, cancel).await
}

/// Watches the slots of a source that wants to be captured and cannot be: what they hold back is
/// reported as [`Event::Idle`], and at the WAL budget they are dropped and the lineage ends, as far
/// as the repository can be written. Needs nothing of the repository otherwise. Returns when
/// cancelled; may be dropped at any time.
pub async fn watch_idle(
    source: &Source,
    store: &SourceStore,
    events: &Events,
    cancel: &CancellationToken,
) {
    idle::run(source, store, events, cancel).await;
}

/// Ends the open lineage and drops every slot of a source whose capture has been stopped: the
/// server keeps nothing for it any more. Its publication stays, for the next lineage.
///
/// # Errors
/// If the source or the repository cannot be reached, or the source was taken over; what cannot be
/// dropped is in the answer.
pub async fn release_slot(source: &Source, store: &SourceStore) -> Result<Removal, Error> {
    source.writer.check(store).await?;
    let (sender, _receiver) = tokio::sync::mpsc::channel(1);
    lineage::finish(
        source,
        store,
        EndReason::Stopped,
        "the source was paused without its slot".to_owned(),
        &Events::new(sender),
    )
    .await
}

/// Whether a slot that is over the budget is ours to drop. Without an answer it is: the source's disk
/// comes first.
async fn not_taken_over(source: &Source, store: &SourceStore) -> Result<(), Error> {
    match source.writer.check(store).await {
        Err(error @ Error::TakenOver { .. }) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn is_gap(error: &Error) -> bool {
    let gone = matches!(
        error.condition(),
        Condition::SlotMissing | Condition::SlotLost | Condition::PublicationMissing
    );
    gone || matches!(error, Error::Gap { .. })
}

/// What our walsenders are told.
pub(crate) fn replication_options(
    settings: &SourceSettings,
    server_encoding: &str,
) -> ReplicationOptions {
    ReplicationOptions {
        client_encoding: encoding::sent_in(server_encoding).to_owned(),
        logical_decoding_work_mem_kb: Some(settings.logical_decoding_work_mem_kb),
        wal_sender_timeout: Some(WAL_SENDER_TIMEOUT),
        application_name: None,
    }
}

impl Source {
    /// A session, and the source with its connection pinned to the server that was reached:
    /// snapshots and slots live on one server.
    pub(crate) async fn session(&self, purpose: Purpose) -> Result<(Session, Source), Error> {
        let session = Session::connect(&self.connection, purpose).await?;
        let pinned = Source {
            connection: self.connection.pinned_to(session.host()),
            ..self.clone()
        };
        Ok((session, pinned))
    }
}

impl SourceStatus {
    pub(crate) fn starting() -> Self {
        Self {
            state: SourceState::Starting,
            reason: None,
            lineage: None,
            durable_lsn: None,
            observed_through: None,
            lag_bytes: 0,
            lag_seconds: 0,
            retained_wal_bytes: 0,
        }
    }
}

/// Whether a new lineage may begin after one that ended for `reason`.
pub(crate) fn goes_on(reason: EndReason, settings: &SourceSettings, control: Control) -> bool {
    match reason {
        EndReason::BudgetExceeded => settings.restart_after_budget || control.new_lineage,
        EndReason::SlotMissing
        | EndReason::SlotLost
        | EndReason::SlotAhead
        | EndReason::PublicationChanged
        | EndReason::SystemChanged
        | EndReason::TimelineChanged
        | EndReason::ServerBehind
        | EndReason::Stopped => true,
    }
}
