//! An open lineage at work: the worker in a task of its own, the first base in another, the watch
//! over the slot here.

use std::path::PathBuf;
use std::time::Duration;

use lastgood_pg::ReplicationStream;
use lastgood_proto::copy_both::{ReplicationMessage, StandbyStatus};
use lastgood_proto::manifest::{EndReason, LineageFile};
use lastgood_proto::{Lsn, PgTimestamp};
use lastgood_store::SourceStore;
use tokio::sync::watch;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::{FirstBase, Opened, Source, lineage};
use crate::base::{self, Snapshot};
use crate::error::{Error, chain};
use crate::events::{Event, Events, SourceState};
use crate::marks::SessionMarks;
use crate::watch::{Verdict, Watch};
use crate::worker::{self, Policy, Progress, Start, Stream};

const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// Before a failed first base is tried again; doubled up to the second.
const BASE_RETRY_FIRST: Duration = Duration::from_secs(5);
const BASE_RETRY_LONGEST: Duration = Duration::from_secs(300);
/// How long the walsender is given to answer a good-bye.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// How it ended without an error.
pub(super) enum Outcome {
    Cancelled,
    /// The WAL budget is used up: the slot is gone and the end is on record.
    LineageEnded,
}

/// Runs the lineage until the worker ends or the WAL budget is used up.
pub(super) async fn run(
    store: &SourceStore,
    spool_folder: PathBuf,
    opened: Opened,
    events: &Events,
    cancel: &CancellationToken,
) -> Result<Outcome, Error> {
    let source = &opened.source;
    let (file, durable) = (&opened.file, opened.durable);
    // From here on the snapshot is in the keeper's hands, so this connection may stream.
    let stream = opened
        .connection
        .start(&file.slot, durable, &file.publication, file.server_version)
        .await?;
    let mut guard = Watch::new(source, file);
    not_overtaken(store, file, durable).await?;
    guard.check_not_ahead(durable).await?;

    let stop = cancel.child_token();
    let (progress_in, progress) = watch::channel(Progress {
        durable,
        received: durable,
        observed_through: opened.observed_through,
        trouble: None,
    });
    let worker = worker::run(
        Walsender(stream),
        SessionMarks::new(source.connection.clone()),
        store.clone(),
        Policy::of(&source.settings),
        Start {
            lineage: file.id,
            server_version: file.server_version,
            durable,
            observed_through: opened.observed_through,
            spool_folder,
        },
        events.clone(),
        progress_in,
        stop.clone(),
    );
    let mut worker = AbortOnDropHandle::new(tokio::spawn(worker));
    let snapshot = match opened.base {
        FirstBase::Present => None,
        FirstBase::Missing => Some(None),
        FirstBase::Snapshot(snapshot) => Some(Some(*snapshot)),
    };
    let mut first_base = snapshot.map(|snapshot| {
        let (source, store, file) = (source.clone(), store.clone(), file.clone());
        let task = first_base(
            source,
            store,
            file,
            snapshot,
            events.clone(),
            cancel.clone(),
        );
        AbortOnDropHandle::new(tokio::spawn(task))
    });

    let mut ticks = interval(STATUS_INTERVAL);
    loop {
        // All branches are cancel-safe: handles live outside the turn, a tick is not lost.
        tokio::select! {
            biased;
            ended = &mut worker => {
                ended.map_err(|error| Error::Task(error.to_string()))??;
                return Ok(Outcome::Cancelled);
            }
            // It reports for itself; without one the next start tries again.
            _ = maybe(&mut first_base) => first_base = None,
            _ = ticks.tick() => {
                let progress = progress.borrow().clone();
                let verdict = guard.look(&progress, events).await;
                let state = match (&verdict, &first_base) {
                    (Verdict::Degraded(_) | Verdict::OverBudget(_), _) => SourceState::Degraded,
                    (Verdict::Well, Some(_)) => SourceState::BaseBackup,
                    (Verdict::Well, None) => SourceState::Streaming,
                };
                events.send(Event::Status(guard.status(state, &progress, &verdict)));
                if let Verdict::OverBudget(detail) = verdict {
                    // Seals, uploads and confirms what it can first.
                    stop.cancel();
                    (&mut worker).await.ok();
                    drop(first_base.take());
                    let reason = EndReason::BudgetExceeded;
                    let removal = lineage::finish(source, store, reason, detail, events).await?;
                    removal.into_result()?;
                    return Ok(Outcome::LineageEnded);
                }
            }
        }
    }
}

/// Streaming means that we are the slot's only reader; but whoever was it before us may have
/// stored one more segment after the listing was made.
async fn not_overtaken(store: &SourceStore, file: &LineageFile, durable: Lsn) -> Result<(), Error> {
    let newer = store.segments_from(file.id, durable).await?;
    match newer.is_empty() {
        true => Ok(()),
        false => Err(Error::Overtaken {
            lineage: file.id,
            listed: durable,
        }),
    }
}

/// Takes the first base, trying until there is one.
async fn first_base(
    source: Source,
    store: SourceStore,
    file: LineageFile,
    snapshot: Option<Snapshot>,
    events: Events,
    cancel: CancellationToken,
) {
    if let Some(snapshot) = snapshot {
        let dumped = tokio::select! {
            () = cancel.cancelled() => return,
            dumped = base::dump(&source, &store, &file, snapshot, &events) => dumped,
        };
        let Err(error) = dumped else {
            return;
        };
        tracing::warn!(error = chain(&error), "the first base failed; trying again");
        events.send(Event::BaseFailed {
            error: chain(&error),
        });
    }
    let mut pause = BASE_RETRY_FIRST;
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = (pause * 2).min(BASE_RETRY_LONGEST);
        match base::take_base(&source, &store, events.clone(), cancel.clone()).await {
            Ok(_) | Err(Error::NoLineage | Error::Cancelled) => return,
            Err(error) => tracing::warn!(error = chain(&error), "no base yet; trying again"),
        }
    }
}

async fn maybe<T>(slot: &mut Option<AbortOnDropHandle<T>>) {
    match slot {
        Some(handle) => {
            handle.await.ok();
        }
        None => std::future::pending().await,
    }
}

/// A real walsender.
struct Walsender(ReplicationStream);

impl Stream for Walsender {
    async fn next(&mut self) -> Result<ReplicationMessage, Error> {
        Ok(self.0.next().await?)
    }

    fn buffered(&mut self) -> Result<Option<ReplicationMessage>, Error> {
        Ok(self.0.try_next()?)
    }

    async fn confirm(
        &mut self,
        written: Lsn,
        flushed: Lsn,
        reply_requested: bool,
    ) -> Result<(), Error> {
        let now = chrono::Utc::now().timestamp_micros();
        let status = StandbyStatus {
            written,
            flushed,
            applied: flushed,
            clock: PgTimestamp::from_unix_micros(now),
            reply_requested,
        };
        Ok(self.0.send_status(&status).await?)
    }

    async fn close(self) {
        // If it does not answer in time, the server frees the slot when it notices.
        self.0.close(CLOSE_LIMIT).await.ok();
    }
}
