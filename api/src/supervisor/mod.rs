//! One task for each running source, started again after an error by the error's class.
//!
//! The task owns everything of its source; what others see of it is a [`Snapshot`]. Events of the
//! engine become rows of the catalog, which is an index: if that fails it is logged, and capture
//! goes on. Absent: any way for a reader here to slow a source down.

mod backoff;
pub(crate) mod index;
mod snapshot;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use lastgood_engine::{Control, Event, Events, Source, Writer};
use lastgood_proto::{Class, SourceId};
use lastgood_store::{Repository, SourceStore};
use tokio::sync::{Notify, OwnedMutexGuard, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::{Catalog, Desired, Seal, SourceRow};
use crate::http::{Code, Problem, chain};
use backoff::Backoff;
pub(crate) use index::note_base;
pub(crate) use snapshot::{Snapshot, State};

/// An answer to a change waits this long for what comes of it.
const SETTLE_TIME: Duration = Duration::from_secs(5);
/// So long an operator's resume holds while an attempt fails in passing: a server takes a minute to notice
/// that the reader of a slot is gone. Longer, and it could rob a service that has begun since.
const RESUME_HOLDS: Duration = Duration::from_secs(300);
/// Events a slow catalog may leave waiting; beyond it the index misses rows until the next start.
const EVENTS_WAITING_MAX: usize = 4096;

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct Supervisor {
    shared: Arc<SharedState>,
}

struct SharedState {
    catalog: Catalog,
    seal: Seal,
    repository: Repository,
    spool_dir: PathBuf,
    /// This run of the service.
    writer: Writer,
    sources: Mutex<BTreeMap<SourceId, Supervised>>,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

struct Supervised {
    change: Arc<tokio::sync::Mutex<()>>,
    snapshot: watch::Sender<Snapshot>,
    /// Present while a task runs.
    task: Option<Task>,
}

struct Task {
    cancel: CancellationToken,
    wake: Arc<Wake>,
    done: tokio::task::JoinHandle<()>,
}

/// Asks a waiting task to try again now.
#[derive(Default)]
struct Wake {
    notify: Notify,
    /// When an operator asked to resume, until that is done: the next lineage may begin where the last
    /// one was ended, and take the source back from another service.
    resumed: Mutex<Option<Instant>>,
}

/// What stands between a source's row and the engine.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Catalog(#[from] crate::catalog::Error),
    #[error(transparent)]
    Store(#[from] lastgood_store::Error),
    #[error("the connection string in the catalog is not understood")]
    Connection(#[from] lastgood_pg::ConfigError),
    #[error("the settings in the catalog are not understood")]
    Settings(#[from] serde_json::Error),
    #[error(transparent)]
    Engine(#[from] lastgood_engine::Error),
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Catalog(error) => error.into(),
            Error::Store(error) => error.into(),
            Error::Engine(error) => error.into(),
            error @ (Error::Connection(_) | Error::Settings(_)) => {
                Problem::new(Code::Internal).detail(chain(&error))
            }
        }
    }
}

impl Error {
    fn class(&self) -> Class {
        match self {
            Error::Catalog(error) => error.class(),
            Error::Connection(_) | Error::Settings(_) => Class::NeedsOperator,
            Error::Store(error) => error.class(),
            Error::Engine(error) => error.class(),
        }
    }
}

impl Error {
    pub(crate) fn is_taken_over(&self) -> bool {
        matches!(
            self,
            Error::Engine(lastgood_engine::Error::TakenOver { .. })
        )
    }
}

impl Supervisor {
    pub(crate) fn new(
        catalog: Catalog,
        seal: Seal,
        repository: Repository,
        spool_dir: PathBuf,
        writer: Writer,
        cancel: CancellationToken,
    ) -> Self {
        Self {
            shared: Arc::new(SharedState {
                catalog,
                seal,
                repository,
                spool_dir,
                writer,
                sources: Mutex::default(),
                tracker: TaskTracker::new(),
                cancel,
            }),
        }
    }

    /// Take up a source as the catalog says: capture it, watch its slot, or show it as paused.
    pub(crate) fn adopt(&self, row: &SourceRow, resumed: bool) {
        if !row.is_connected {
            let reason = crate::catalog::Error::NoConnection.to_string();
            self.show(
                row.id,
                State::Failed,
                Some(&reason.replace("NAME", &row.name)),
            );
            return;
        }
        match row.desired {
            Desired::Running => {
                self.show(row.id, State::Starting, None);
                self.start(row.id, resumed);
            }
            Desired::Paused => {
                self.show(row.id, State::Paused, None);
                self.start(row.id, false);
            }
            Desired::PausedWithoutSlot => {
                let reason = "its slot is dropped: resuming starts a new lineage with a new base";
                self.show(row.id, State::Paused, Some(reason));
            }
        }
    }

    fn show(&self, id: SourceId, state: State, reason: Option<&str>) {
        self.entry(id, |supervised| {
            supervised
                .snapshot
                .send_modify(|snapshot| snapshot.stop(state, reason.map(str::to_owned)));
        });
    }

    /// Held while a source is changed, so that one change ends before the next begins.
    pub(crate) async fn exclusive(&self, id: SourceId) -> OwnedMutexGuard<()> {
        let change = self.entry(id, |supervised| Arc::clone(&supervised.change));
        change.lock_owned().await
    }

    /// Start the task of a source, or wake it if it waits after an error.
    fn start(&self, id: SourceId, resumed: bool) {
        let shared = Arc::clone(&self.shared);
        self.entry(id, |supervised| {
            if let Some(task) = supervised
                .task
                .as_ref()
                .filter(|task| !task.done.is_finished())
            {
                task.wake.ask(resumed);
                return;
            }
            let cancel = shared.cancel.child_token();
            let wake = Arc::new(Wake::default());
            wake.set_resumed(resumed);
            let snapshot = supervised.snapshot.clone();
            let tracker = shared.tracker.clone();
            let done = tracker.spawn(supervise(
                shared,
                id,
                Arc::clone(&wake),
                snapshot,
                cancel.clone(),
            ));
            supervised.task = Some(Task { cancel, wake, done });
        });
    }

    /// Stop the task of a source: seal, upload, confirm, close. Returns when it has ended.
    pub(crate) async fn stop(&self, id: SourceId) {
        let task = self.entry(id, |supervised| supervised.task.take());
        if let Some(task) = task {
            task.cancel.cancel();
            if let Err(error) = task.done.await {
                tracing::error!(source = %id, %error, "the task of a source did not end well");
            }
        }
    }

    /// Stop, then take up what the catalog says now.
    pub(crate) async fn restart(&self, row: &SourceRow, resumed: bool) {
        self.stop(row.id).await;
        self.adopt(row, resumed);
    }

    /// Stop a source and forget it.
    pub(crate) async fn forget(&self, id: SourceId) {
        self.stop(id).await;
        self.lock().remove(&id);
    }

    /// Wait, some seconds at most, until a source that was taken up is no longer merely starting.
    pub(crate) async fn settle(&self, id: SourceId) {
        let mut snapshot = self.entry(id, |supervised| supervised.snapshot.subscribe());
        let settled = snapshot.wait_for(|snapshot| snapshot.state != State::Starting);
        // Not settled in time is a state as well, and shown as it is.
        let _ = tokio::time::timeout(SETTLE_TIME, settled).await;
    }

    /// What becomes of a base that is taken beside the capture.
    pub(crate) fn note_base(&self, id: SourceId, event: &Event) {
        self.entry(id, |supervised| {
            supervised
                .snapshot
                .send_if_modified(|snapshot| snapshot.note_base(event))
        });
    }

    pub(crate) fn snapshot(&self, id: SourceId) -> Option<Snapshot> {
        let sources = self.lock();
        sources
            .get(&id)
            .map(|supervised| supervised.snapshot.borrow().clone())
    }

    pub(crate) fn snapshots(&self) -> Vec<Snapshot> {
        let sources = self.lock();
        sources
            .values()
            .map(|supervised| supervised.snapshot.borrow().clone())
            .collect()
    }

    /// A source as the engine takes it, from the catalog.
    pub(crate) async fn source(&self, row: &SourceRow) -> Result<Source, Error> {
        self.shared.source(row).await
    }

    /// The store of a source; made if it is not there yet.
    pub(crate) async fn store(&self, id: SourceId) -> Result<SourceStore, Error> {
        self.shared.store(id).await
    }

    /// That no other service has taken the source over from this one.
    ///
    /// # Errors
    /// If one has, or it cannot be told: then nothing may be deleted.
    pub(crate) async fn check_writer(&self, id: SourceId) -> Result<(), Error> {
        let store = self.store(id).await?;
        Ok(self.shared.writer.check(&store).await?)
    }

    /// Write name and settings into the repository, for the case that the catalog is lost.
    pub(crate) async fn record_settings(&self, row: &SourceRow) -> Result<(), Error> {
        let (source, store) = (self.source(row).await?, self.store(row.id).await?);
        Ok(lastgood_engine::record_settings(&source, &store).await?)
    }

    /// Wait until every task has ended; they were cancelled by the token given to `new`.
    pub(crate) async fn wait(&self) {
        self.shared.tracker.close();
        self.shared.tracker.wait().await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SourceId, Supervised>> {
        // Nothing that panics runs under this lock.
        self.shared
            .sources
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn entry<T>(&self, id: SourceId, work: impl FnOnce(&mut Supervised) -> T) -> T {
        let mut sources = self.lock();
        let supervised = sources.entry(id).or_insert_with(|| Supervised {
            change: Arc::default(),
            snapshot: watch::Sender::new(Snapshot::new(State::Starting)),
            task: None,
        });
        work(supervised)
    }
}

impl Wake {
    fn ask(&self, resumed: bool) {
        if resumed {
            self.set_resumed(true);
        }
        self.notify.notify_one();
    }

    fn set_resumed(&self, resumed: bool) {
        *self.lock() = resumed.then(Instant::now);
    }

    /// What an operator wants of the next attempt.
    fn control(&self) -> Control {
        let resumed = self.lock().is_some_and(|at| at.elapsed() < RESUME_HOLDS);
        Control {
            new_lineage: resumed,
            take_over: resumed,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.resumed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedState {
    async fn source(&self, row: &SourceRow) -> Result<Source, Error> {
        let connection = self.catalog.connection(&self.seal, row.id).await?;
        Ok(Source {
            id: row.id,
            name: row.name.clone(),
            connection: connection.parse()?,
            settings: serde_json::from_value(row.settings.clone())?,
            writer: self.writer.clone(),
        })
    }

    async fn store(&self, id: SourceId) -> Result<SourceStore, Error> {
        Ok(self.repository.create_source(id).await?)
    }
}

/// Run a source until it is cancelled.
#[tracing::instrument(skip_all, fields(source = %id))]
async fn supervise(
    shared: Arc<SharedState>,
    id: SourceId,
    wake: Arc<Wake>,
    snapshot: watch::Sender<Snapshot>,
    cancel: CancellationToken,
) {
    let mut backoff = Backoff::default();
    while !cancel.is_cancelled() {
        let begun = Instant::now();
        let asked = wake.control();
        let mut control = asked;
        // On the heap: the engine's future is large.
        let attempt = Box::pin(attempt(&shared, id, &mut control, &snapshot, &cancel));
        let outcome = attempt.await;
        if control != asked {
            wake.set_resumed(false);
        }
        let (class, again, reason) = match outcome {
            Ok(()) if cancel.is_cancelled() => break,
            Ok(()) => (
                Class::Transient,
                true,
                "capture ended without being asked to".to_owned(),
            ),
            Err(_) if cancel.is_cancelled() => break,
            Err(error) => {
                let class = error.class();
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    ?class,
                    "a source failed"
                );
                (class, !error.is_taken_over(), chain(&error))
            }
        };
        let state = match class {
            Class::Transient => State::Degraded,
            Class::NeedsOperator | Class::Corrupt => State::Failed,
        };
        snapshot.send_modify(|snapshot| snapshot.stop(state, Some(reason.clone())));
        let random = u32::from_be_bytes({
            let mut bytes = [0; 4];
            // Without randomness the pause is merely not spread.
            getrandom::fill(&mut bytes).unwrap_or_default();
            bytes
        });
        let pause = backoff.after(class, begun.elapsed(), random);
        // Another service writes the source: only an operator takes it back.
        let pause = pause.filter(|_| again);
        let sleep = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = cancel.cancelled() => break,
            () = wake.notify.notified() => backoff.reset(),
            () = sleep => {}
            () = idle(&shared, id, &reason, &snapshot, &cancel) => break,
        }
    }
}

/// Between two attempts, or after the last: the slot still holds WAL back, and is watched. Ends when
/// cancelled.
async fn idle(
    shared: &SharedState,
    id: SourceId,
    failure: &str,
    snapshot: &watch::Sender<Snapshot>,
    cancel: &CancellationToken,
) {
    let found = async {
        let row = shared.catalog.source(&id.to_string()).await?;
        let Some(row) = row.filter(|row| row.desired != Desired::PausedWithoutSlot) else {
            return Ok(None);
        };
        Ok::<_, Error>(Some((shared.source(&row).await?, shared.store(id).await?)))
    };
    let (source, store) = match found.await {
        Ok(Some(found)) => found,
        Ok(None) => return cancel.cancelled().await,
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(error, "the slot of a source that failed is not watched");
            return cancel.cancelled().await;
        }
    };
    let (sender, mut receiver) = mpsc::channel(EVENTS_WAITING_MAX);
    let events = Events::new(sender);
    let note = async {
        while let Some(event) = receiver.recv().await {
            match event {
                Event::Idle {
                    retained_bytes,
                    trouble,
                } => snapshot.send_modify(|snapshot| {
                    snapshot.retained_wal_bytes = retained_bytes;
                    snapshot.reason = Some(match trouble {
                        Some(trouble) => format!("{failure}; {trouble}"),
                        None => failure.to_owned(),
                    });
                }),
                Event::WalBudgetHalf {
                    retained_bytes,
                    budget_bytes,
                } => warn_half(id, retained_bytes, budget_bytes),
                // The engine logs them; windows are read from the repository.
                _ => {}
            }
        }
    };
    tokio::join!(
        async {
            lastgood_engine::watch_idle(&source, &store, &events, cancel).await;
            drop(events);
        },
        note
    );
}

fn warn_half(id: SourceId, retained_bytes: u64, budget_bytes: u64) {
    tracing::warn!(
        source = %id, retained_bytes, budget_bytes,
        "the slot holds back more than half of the WAL budget"
    );
}

/// One run of the engine, from the catalog's row to the engine's end.
async fn attempt(
    shared: &Arc<SharedState>,
    id: SourceId,
    control: &mut Control,
    snapshot: &watch::Sender<Snapshot>,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    let Some(row) = shared.catalog.source(&id.to_string()).await? else {
        return Ok(());
    };
    let state = match row.desired {
        Desired::Running => State::Starting,
        Desired::Paused | Desired::PausedWithoutSlot => State::Paused,
    };
    snapshot.send_modify(|snapshot| snapshot.stop(state, None));
    let source = shared.source(&row).await?;
    let store = shared.store(id).await?;
    if let Err(error) = index::rebuild(&shared.catalog, &store).await {
        let cause = error.source();
        tracing::warn!(%error, cause, "the catalog's index of this source is not up to date");
    }
    let (sender, receiver) = mpsc::channel(EVENTS_WAITING_MAX);
    let consumer = shared.tracker.spawn(consume(
        shared.catalog.clone(),
        id,
        receiver,
        snapshot.clone(),
    ));
    let events = Events::new(sender);
    let outcome = match row.desired {
        Desired::Running => {
            let spool_dir = shared.spool_dir.join(id.to_string());
            let run =
                lastgood_engine::run(source, store, spool_dir, control, events, cancel.clone());
            Box::pin(run).await.map(|_| ())
        }
        Desired::Paused => {
            let watch = async move {
                lastgood_engine::watch_paused(&source, &store, &events, cancel).await
            };
            Box::pin(watch).await
        }
        Desired::PausedWithoutSlot => {
            drop(events);
            Ok(())
        }
    };
    // The engine has dropped its sender: the consumer ends when it has read the rest.
    if consumer.await.is_err() {
        tracing::error!("the reader of events failed");
    }
    outcome.map_err(Error::from)
}

/// Events into the snapshot and the catalog.
async fn consume(
    catalog: Catalog,
    id: SourceId,
    mut events: mpsc::Receiver<Event>,
    snapshot: watch::Sender<Snapshot>,
) {
    let mut base = None;
    while let Some(event) = events.recv().await {
        snapshot.send_if_modified(|snapshot| snapshot.note_base(&event));
        let noted = match event {
            Event::Status(status) => {
                snapshot.send_if_modified(|snapshot| {
                    snapshot.take(status);
                    true
                });
                Ok(())
            }
            Event::Uncovered { tables } => {
                snapshot.send_modify(|snapshot| snapshot.uncovered = tables);
                Ok(())
            }
            Event::WalBudgetHalf {
                retained_bytes,
                budget_bytes,
            } => {
                warn_half(id, retained_bytes, budget_bytes);
                Ok(())
            }
            // The engine logs them; windows are read from the repository.
            Event::LineageStarted { .. } | Event::LineageEnded { .. } | Event::Idle { .. } => {
                Ok(())
            }
            Event::Segment {
                lineage,
                key,
                stored_bytes,
                ..
            } => {
                let noted = index::note_segment(&catalog, id, lineage, key, stored_bytes).await;
                snapshot.send_modify(|snapshot| {
                    snapshot.reach(lineage, Some(key.end), key.observed_through);
                });
                noted
            }
            event => index::note_base(&catalog, id, &mut base, event)
                .await
                .map_err(Error::from),
        };
        if let Err(error) = noted {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(source = %id, error, "the catalog missed an event");
        }
    }
    // A base that ends with the capture it is part of has nobody left to say so.
    let stopped = Event::BaseFailed {
        error: "capture was stopped while it ran".to_owned(),
    };
    snapshot.send_if_modified(|snapshot| snapshot.note_base(&stopped));
    if let Err(error) = index::note_base(&catalog, id, &mut base, stopped).await {
        let error = &error as &dyn std::error::Error;
        tracing::warn!(source = %id, error, "the catalog missed the end of a base");
    }
}
