//! An open lineage at work: the worker in a task of its own, the watch over the slot here.

use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use lastgood_pg::{Condition, ReplicationStream};
use lastgood_proto::copy_both::{ReplicationMessage, StandbyStatus};
use lastgood_proto::key::SourceObject;
use lastgood_proto::manifest::{BaseManifest, EndReason, LineageFile, ShapeFile};
use lastgood_proto::{Lsn, PgTimestamp, encoding};
use lastgood_store::SourceStore;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::first_base::Task;
use super::{FirstBase, Opened, lineage, not_taken_over};
use crate::base::is_usable;
use crate::error::{Error, chain};
use crate::events::{Event, Events, SourceState};
use crate::marks::SessionMarks;
use crate::overlap::Overlap;
use crate::shape::Fingerprints;
use crate::watch::{Verdict, Watch};
use crate::worker::{self, Policy, Progress, Start, Stream};

const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// A migration comes in many steps; the base that follows waits until they are over.
const SETTLED: Duration = Duration::from_secs(5);
/// The same where each step is seen as soon as it is made.
const SETTLED_TOLD: Duration = Duration::from_millis(300);
/// How often it is looked whether a base is due.
const TICK: Duration = Duration::from_millis(100);
/// However many steps there are: nothing behind the first one can be restored meanwhile.
const SETTLED_MAX: Duration = Duration::from_secs(60);
/// Where steps are further apart than that, bases take one part of so many of the time.
const BASE_SHARE: u32 = 5;
/// But none waits longer than this for the one before.
const BASE_PAUSE_MAX: Duration = Duration::from_secs(30);
/// A change of definitions that rows do not depend on makes no moment unrecoverable, so bases that follow such
/// changes keep a distance.
const BETWEEN_REDEFINED: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(600)];
/// Between these two: they take one part of so many of the time.
const REDEFINED_SHARE: u32 = 20;
/// Between two looks at a shape that stays as it is: a base may be deleted by somebody, and the last change of
/// shape that a killed service saw may be put on record late.
const LOOK_AGAIN: Duration = Duration::from_secs(3600);
/// How long the walsender is given to answer a good-bye.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// How it ended without an error.
pub(super) enum Outcome {
    Cancelled,
    /// By the WAL budget, or because the source's storage was set back: the end is on record.
    LineageEnded,
}

/// Runs the lineage until the worker ends or the WAL budget is used up.
pub(super) async fn run(
    store: &SourceStore,
    spool_folder: PathBuf,
    opened: Opened,
    first_base: &mut Option<Task>,
    events: &Events,
    cancel: &CancellationToken,
) -> Result<Outcome, Error> {
    let source = &opened.source;
    let (file, durable) = (&opened.file, opened.durable);
    // The snapshot has been taken over, so this connection may stream.
    let stream = opened
        .connection
        .start(
            &file.slot,
            opened.stored.from,
            &file.publication,
            file.server_version,
        )
        .await?;
    let mut guard = Watch::new(source, file);
    source.writer.check(store).await?;
    guard.check_not_ahead(durable).await?;

    let stop = cancel.child_token();
    let (progress_in, progress) = watch::channel(Progress {
        durable,
        received: durable,
        observed_through: opened.observed_through,
        shape: opened.shape.clone(),
        told: false,
        reshaped: 0,
        trouble: None,
    });
    let (want, wanted) = watch::channel(Lsn::INVALID);
    let worker = worker::run(
        Overlap::new(Walsender(stream), store.clone(), opened.stored),
        SessionMarks::new(
            source.connection.clone(),
            source.id,
            file.publication.clone(),
            source.settings.clone(),
            opened.ddl_trigger.clone(),
        ),
        store.clone(),
        Policy::of(&source.settings),
        Start {
            lineage: file.id,
            server_version: file.server_version,
            encoding: encoding::sent_in(&file.server_encoding).to_owned(),
            durable,
            observed_through: opened.observed_through,
            latest_commit: opened.latest_commit,
            shape: opened.shape,
            ddl_trigger: opened.ddl_trigger,
            looked_at: opened.looked_at,
            spool_folder,
            wanted,
        },
        events.clone(),
        progress_in,
        stop.clone(),
    );
    let mut worker = AbortOnDropHandle::new(tokio::spawn(worker));
    match opened.base {
        FirstBase::Present => *first_base = None,
        // One that was begun before the stream broke goes on.
        FirstBase::Missing
            if first_base
                .as_ref()
                .is_some_and(|task| task.lineage() == file.id) => {}
        FirstBase::Missing => {
            *first_base = Some(Task::begin(source, store, file, None, events, cancel));
        }
        FirstBase::Snapshot(snapshot) => {
            *first_base = Some(Task::begin(
                source,
                store,
                file,
                Some(*snapshot),
                events,
                cancel,
            ));
        }
    }
    let mut rebase = Rebase::new();
    let mut lost = pin!(source.writer.lost(store));
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut watched: Option<Instant> = None;
    loop {
        // All branches are cancel-safe: handles live outside the turn, a tick is not lost.
        tokio::select! {
            biased;
            // The worker is dropped as it is: what it holds is the other service's to capture.
            taken_over = &mut lost => return Err(taken_over),
            ended = &mut worker => {
                let outcome = match ended.map_err(|error| Error::Task(error.to_string()))? {
                    Err(error @ Error::SetBack { agreed, .. }) => {
                        lineage::set_back(store, file, agreed, error.to_string(), events).await?;
                        Outcome::LineageEnded
                    }
                    ended => ended.map(|()| Outcome::Cancelled)?,
                };
                return Ok(outcome);
            }
            _ = ticks.tick() => {
                let progress = progress.borrow().clone();
                if let Some(task) = first_base.take_if(|task| task.is_finished()) {
                    let taken = task.taken();
                    want.send_replace(taken.point);
                    rebase = rebase.again();
                    rebase.pause(taken.took);
                }
                let is_due = first_base.is_none() && rebase.is_due(&progress, store, file).await;
                if !is_due && watched.is_some_and(|at| at.elapsed() < STATUS_INTERVAL) {
                    continue;
                }
                watched = Some(Instant::now());
                let looked = guard.look(&progress, events).await;
                let looked = looked.and_then(|verdict| guard.check_read().map(|()| verdict));
                let mut verdict = match looked {
                    Ok(verdict) => verdict,
                    Err(error) => {
                        // A put that is dropped may arrive all the same.
                        stop.cancel();
                        (&mut worker).await.ok();
                        return Err(error);
                    }
                };
                // After the look, which says what it has let go; the base would do so without a word.
                if is_due {
                    *first_base = Some(Task::begin(source, store, file, None, events, cancel));
                }
                let failure = first_base.as_ref().and_then(Task::failure);
                if let (Verdict::Well, Some(failure)) = (&verdict, failure) {
                    verdict = Verdict::Degraded(format!("there is no base yet: {failure}"));
                }
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
                    *first_base = None;
                    not_taken_over(source, store).await?;
                    let reason = EndReason::BudgetExceeded;
                    let removal = lineage::finish(source, store, reason, detail, events).await?;
                    removal.into_result()?;
                    return Ok(Outcome::LineageEnded);
                }
            }
        }
    }
}

/// Whether the source's shape has left every base behind.
struct Rebase {
    /// Since when the shape is as it is.
    since: Instant,
    /// The shape, and how many changes are on record: what came and went again is one, too.
    seen: (Option<Fingerprints>, usize),
    /// When the newest base was found to go on as the shape does, or one that is wanted was begun.
    compared: Option<Instant>,
    /// When a base was begun for definitions' sake alone.
    redefined: Option<Instant>,
    /// The newest base is known to differ in these, and waits until then.
    differs_until: Option<Instant>,
    /// Since when there has been something that no base has.
    waiting: Option<Instant>,
    /// What the last base took.
    took: Duration,
    /// No base before that.
    not_before: Instant,
}

impl Rebase {
    fn new() -> Self {
        Self {
            since: Instant::now(),
            seen: (None, 0),
            compared: None,
            redefined: None,
            differs_until: None,
            waiting: None,
            took: Duration::ZERO,
            not_before: Instant::now(),
        }
    }

    /// A base was taken, or another shape was seen.
    fn again(&self) -> Self {
        Self {
            redefined: self.redefined,
            took: self.took,
            not_before: self.not_before,
            ..Self::new()
        }
    }

    /// Until when no base is begun for definitions' sake alone, if one was.
    fn distance(&self) -> Option<Instant> {
        let [least, most] = BETWEEN_REDEFINED;
        let distance = (self.took * REDEFINED_SHARE).clamp(least, most);
        Some(self.redefined? + distance)
    }

    /// One was taken, and took so long.
    fn pause(&mut self, took: Duration) {
        self.took = took;
        self.not_before = Instant::now() + (took * BASE_SHARE).min(BASE_PAUSE_MAX);
    }

    /// Once the shape has settled, looks whether the newest base reaches what comes now.
    async fn is_due(
        &mut self,
        progress: &Progress,
        store: &SourceStore,
        file: &LineageFile,
    ) -> bool {
        let seen = (progress.shape.clone(), progress.reshaped);
        if seen != self.seen {
            *self = Self {
                seen,
                waiting: self.waiting.or_else(|| Some(Instant::now())),
                ..self.again()
            };
        }
        let Some(shape) = &self.seen.0 else {
            return false;
        };
        let is_recent = |at: Instant| at.elapsed() < LOOK_AGAIN;
        let settled = match progress.told {
            true => SETTLED_TOLD,
            false => SETTLED,
        };
        let now = Instant::now();
        let waits_long = self.waiting.is_some_and(|at| now - at >= SETTLED_MAX);
        if self.since.elapsed() < settled && !waits_long || now < self.not_before {
            return false;
        }
        if self.compared.is_some_and(is_recent) || self.differs_until.is_some_and(|at| now < at) {
            return false;
        }
        match newest_base_holds(store, file, shape).await {
            Ok(Holds::Rows) if self.distance().is_some_and(|until| Instant::now() < until) => {
                self.differs_until = self.distance();
                false
            }
            Ok(holds) => {
                self.compared = Some(Instant::now());
                match holds {
                    Holds::All => self.waiting = None,
                    Holds::Rows => self.redefined = self.compared,
                    Holds::Nothing => {}
                }
                holds != Holds::All
            }
            Err(error) => {
                tracing::warn!(error = chain(&error), "the newest base cannot be read");
                self.since = Instant::now();
                false
            }
        }
    }
}

/// What of the newest base goes on as the source does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holds {
    All,
    /// Definitions that rows do not depend on are others.
    Rows,
    Nothing,
}

/// Whether the newest base was taken under `shape`, no other has been seen since, and what it borrows is there.
async fn newest_base_holds(
    store: &SourceStore,
    file: &LineageFile,
    shape: &Fingerprints,
) -> Result<Holds, Error> {
    let listing = store.list().await?;
    let Some(lineage) = listing.lineage(file.id) else {
        return Ok(Holds::Nothing);
    };
    let Some(newest) = lineage.bases.last() else {
        return Ok(Holds::Nothing);
    };
    let object = SourceObject::Manifest(file.id, *newest);
    let base: BaseManifest = store.get_json(&object).await?;
    let mut shapes: Vec<ShapeFile> = Vec::new();
    for key in &lineage.shapes {
        if key.to > base.consistent_point {
            let object = SourceObject::Shape(file.id, *key);
            shapes.push(store.get_json(&object).await?);
        }
    }
    let mut shapes = shapes.iter();
    let is_over = shapes.any(|shape| shape.ends(base.consistent_point, &base.fingerprint));
    let is_usable = base.fingerprint == shape.shape && !is_over && is_usable(&base, lineage);
    let based = Fingerprints {
        shape: base.fingerprint,
        definitions: base.definitions,
    };
    Ok(match is_usable {
        false => Holds::Nothing,
        true if based.definitions.is_some() && based.is_redefined(shape) => Holds::Rows,
        true => Holds::All,
    })
}

/// What the end of a stream means.
fn broken(error: lastgood_pg::Error) -> Error {
    match error.condition() {
        Condition::RowTooLong => Error::RowTooLong(error),
        _ => Error::Pg(error),
    }
}

/// A real walsender.
struct Walsender(ReplicationStream);

impl Stream for Walsender {
    async fn next(&mut self) -> Result<ReplicationMessage, Error> {
        self.0.next().await.map_err(broken)
    }

    fn buffered(&mut self) -> Result<Option<ReplicationMessage>, Error> {
        self.0.try_next().map_err(broken)
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
