//! The loop of a source: walsender in, durable segments out, one number back.
//!
//! It holds the replication stream, the open segment, at most one upload, and the durable LSN, and
//! nothing of it is shared. The order of the branches is the order of importance: stop, a finished
//! upload, the clock, a finished mark, the next message.
//!
//! Invariants:
//! - What is confirmed to the server is the end of the last segment whose upload has succeeded, and
//!   segments are uploaded one at a time, in order: so it never passes the contiguous durable run.
//! - A failed upload is repeated with the same bytes under the same key: the first attempt may have
//!   succeeded in truth, and of two that cut elsewhere one would be stored for nothing.
//! - The stream is read only while the spool has room, but status always flows.
//! - A transaction is never cut. Stopping inside one gives it up: the server sends it again.
//!
//! Time comes from tokio and everything else through two small traits and the store, so a simulator
//! can drive it.

use std::future::{Future, pending};
use std::pin::Pin;
use std::time::Duration;

use lastgood_proto::copy_both::ReplicationMessage;
use lastgood_proto::key::SegmentKey;
use lastgood_proto::segment::SequenceSample;
use lastgood_proto::{Class, LineageId, Lsn, PgTimestamp};
use lastgood_store::{SourceStore, failpoint};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::cut::{Cut, store_cut};
use crate::error::Error;
use crate::events::{Event, Events};
use crate::look::Look;
use crate::marks::{Mark, Marks};
use crate::open_segment::{OpenSegment, Place};
use crate::placing::Placing;
use crate::settings::SourceSettings;
use crate::shape::Fingerprints;

/// How often the clock is looked at.
const TICK: Duration = Duration::from_millis(100);
/// A status update is due after this, and so is a keepalive if nothing else came.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
/// How long a server that asks for confirmation is kept waiting.
const ASKED_PATIENCE: Duration = Duration::from_secs(2);
/// How long a server that ends, or a stop, waits for the look that a cut needs.
const LOOK_PATIENCE: Duration = Duration::from_secs(1);
/// Looks at DDL, one after the other, take one part of so many of the time.
const LOOK_SHARE: u32 = 10;
const STORAGE: &str = "storage does not take segments";
/// Between looks at a transaction that shows to nobody yet.
const HIDDEN_PAUSE: Duration = Duration::from_millis(500);
/// A cut that waits for such a one for so long is told of.
const HIDDEN_TOLD: Duration = Duration::from_secs(10);
/// How long reading pauses for a look at the most.
const LOOK_PAUSE: Duration = Duration::from_secs(2);
/// How long a stop waits for the last upload.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// Messages taken in one turn of the loop.
const BURST: usize = 128;
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(15);

/// A walsender, or a simulated one.
pub trait Stream: Send {
    /// The next message. Cancel-safe: dropping the future loses nothing.
    fn next(&mut self) -> impl Future<Output = Result<ReplicationMessage, Error>> + Send;

    /// As `next`, but only what has arrived already.
    fn buffered(&mut self) -> Result<Option<ReplicationMessage>, Error>;

    /// Sends a standby status update: `written` received, `flushed` durable.
    fn confirm(
        &mut self,
        written: Lsn,
        flushed: Lsn,
        reply_requested: bool,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Says good-bye, so that the slot is free at once.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// How a lineage is captured.
#[derive(Debug, Clone)]
pub struct Policy {
    pub segment_bytes: u64,
    pub segment_age: Duration,
    pub idle_interval: Duration,
    pub spool_bytes: u64,
}

impl Policy {
    #[must_use]
    pub fn of(settings: &SourceSettings) -> Self {
        Self {
            segment_bytes: settings.segment_bytes,
            segment_age: settings.segment_age(),
            idle_interval: settings.idle_interval(),
            spool_bytes: settings.spool_bytes,
        }
    }
}

/// Where a worker starts.
#[derive(Debug, Clone)]
pub struct Start {
    pub lineage: LineageId,
    pub server_version: u32,
    /// What the stream is sent in.
    pub encoding: String,
    /// End of the durable run: the stream shows nothing below it.
    pub durable: Lsn,
    pub observed_through: Option<PgTimestamp>,
    /// The latest commit time so far.
    pub latest_commit: Option<PgTimestamp>,
    /// Of the shape that was seen last; none if the lineage has not been looked at.
    pub shape: Option<Fingerprints>,
    /// What tells of DDL in the stream, and has done so at least since `durable`.
    pub ddl_trigger: Option<String>,
    /// Up to here that shape was seen to hold.
    pub looked_at: Lsn,
    pub spool_folder: std::path::PathBuf,
    /// Is to be durable soon, also if nothing is written: a base that borrows rows waits for its own moment.
    pub wanted: watch::Receiver<Lsn>,
}

/// How far a worker is; only the latest value counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress {
    pub durable: Lsn,
    /// Newest position received between transactions.
    pub received: Lsn,
    pub observed_through: Option<PgTimestamp>,
    /// Of the shape that was seen last.
    pub shape: Option<Fingerprints>,
    /// DDL is told of in the stream.
    pub told: bool,
    /// Changes of it that this worker has put on record: one and back again in between two looks at
    /// this are two.
    pub reshaped: usize,
    /// Why uploads are being repeated.
    pub trouble: Option<String>,
}

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;
type Upload = Boxed<(Cut, Result<(), Error>)>;

/// Runs until `cancel`: then seals, uploads and confirms what it can within a few seconds.
///
/// # Errors
/// When the stream breaks, storage refuses, or the server asks for a confirmation that cannot be
/// given in time. Whatever happened, starting again from the listing loses and repeats nothing.
#[expect(
    clippy::too_many_arguments,
    reason = "the two ends, the policy, the start and what watches it: nothing here belongs together"
)]
pub async fn run<S: Stream, M: Marks>(
    stream: S,
    marks: M,
    store: SourceStore,
    policy: Policy,
    start: Start,
    events: Events,
    progress: watch::Sender<Progress>,
    cancel: CancellationToken,
) -> Result<(), Error> {
    let now = Instant::now();
    let place = Place {
        store: store.clone(),
        lineage: start.lineage,
        server_version: start.server_version,
        encoding: start.encoding,
        spool_folder: start.spool_folder,
    };
    let worker = Worker {
        stream,
        open: OpenSegment::new(
            place,
            start.durable,
            start.observed_through,
            start.latest_commit,
        ),
        upload: None,
        durable: start.durable,
        marks: MarkTimer {
            idle: Some(marks),
            running: None,
            due: now,
            last: now,
            took: Duration::ZERO,
            told: false,
            moved_to: start.durable,
            sequences: None,
        },
        look: Look::new(
            start.shape,
            Placing::new(start.ddl_trigger, start.durable),
            start.looked_at,
            start.durable,
        ),
        store,
        lineage: start.lineage,
        policy,
        events,
        progress,
        last_cut: now,
        settling: false,
        last_message: now,
        last_status: now,
        asked: None,
        retry: RETRY_FIRST,
        wanted: start.wanted,
    };
    worker.run(cancel).await
}

struct Worker<S, M> {
    stream: S,
    open: OpenSegment,
    upload: Option<Upload>,
    /// End of the last segment known to be stored; survives a restart as the listing's end.
    durable: Lsn,
    marks: MarkTimer<M>,
    look: Look,
    store: SourceStore,
    lineage: LineageId,
    policy: Policy,
    events: Events,
    progress: watch::Sender<Progress>,
    last_cut: Instant,
    /// The segment before held transactions.
    settling: bool,
    last_message: Instant,
    last_status: Instant,
    /// When the server must have its confirmation, if it asks for one, and of what.
    asked: Option<(Instant, Lsn)>,
    /// Pause before the next attempt of a failed upload.
    retry: Duration,
    wanted: watch::Receiver<Lsn>,
}

struct MarkTimer<M> {
    idle: Option<M>,
    running: Option<Boxed<(M, Result<Mark, Error>)>>,
    due: Instant,
    last: Instant,
    /// What the last one took.
    took: Duration,
    /// The stream has told of DDL since the last one was begun.
    told: bool,
    /// Position received when the last mark was taken.
    moved_to: Lsn,
    /// The samples written last: the same ones are not written again.
    sequences: Option<Vec<SequenceSample>>,
}

/// What woke the loop.
enum Woken {
    Stop,
    Uploaded(Cut, Result<(), Error>),
    Tick,
    Marked(Result<Mark, Error>),
    Message(ReplicationMessage),
}

impl<S: Stream, M: Marks> Worker<S, M> {
    /// Turns until the end, then lets the slot go, and only then the upload.
    async fn run(mut self, cancel: CancellationToken) -> Result<(), Error> {
        let ended = self.turns(cancel).await;
        let Self { stream, upload, .. } = self;
        match (&ended, upload) {
            // Nothing is on its way, or it was waited for.
            (Ok(()), _) => stream.close().await,
            (Err(_), None) => drop(stream),
            // A put that is dropped may arrive all the same, beside one of the next worker's.
            (Err(_), Some(upload)) => {
                drop(stream);
                if tokio::time::timeout(STOP_PATIENCE, upload).await.is_err() {
                    tracing::warn!("an upload was given up; it may still arrive");
                }
            }
        }
        ended
    }

    async fn turns(&mut self, cancel: CancellationToken) -> Result<(), Error> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stop_by: Option<Instant> = None;
        self.confirm(true).await?;
        loop {
            self.cut_if_due(stop_by.is_some())?;
            if let Some(deadline) = stop_by
                && (self.is_still() || Instant::now() >= deadline)
            {
                return Ok(());
            }
            let reading = stop_by.is_none() && self.has_room() && !self.is_looking();
            // Every branch is cancel-safe: the token, the boxed upload and mark live outside this
            // loop's turn, an interval keeps its tick, and `Stream::next` promises it.
            let woken = tokio::select! {
                biased;
                () = cancel.cancelled(), if stop_by.is_none() => Woken::Stop,
                (cut, result) = maybe(&mut self.upload) => Woken::Uploaded(cut, result),
                _ = ticks.tick() => Woken::Tick,
                (marks, result) = maybe(&mut self.marks.running) => {
                    self.marks.idle = Some(marks);
                    Woken::Marked(result)
                }
                message = self.stream.next(), if reading => Woken::Message(message?),
            };
            match woken {
                Woken::Stop => stop_by = Some(Instant::now() + STOP_PATIENCE),
                Woken::Uploaded(cut, result) => self.uploaded(cut, result).await?,
                Woken::Tick => self.tick().await?,
                Woken::Marked(result) => self.marked(result)?,
                Woken::Message(message) => {
                    self.message(&message).await?;
                    self.burst().await?;
                }
            }
        }
    }

    /// Nothing is on its way to storage, and nothing waits for a look to be.
    fn is_still(&self) -> bool {
        self.upload.is_none() && self.look.waited_for.is_none()
    }

    /// Takes what has arrived already without looking at anything else, but not for long: a turn of
    /// the loop costs as much as several messages.
    async fn burst(&mut self) -> Result<(), Error> {
        for _ in 0..BURST {
            match self.stream.buffered()? {
                Some(message) => self.message(&message).await?,
                None => break,
            }
        }
        Ok(())
    }

    /// Where nothing but a COMMIT makes a cut possible, reading always goes on.
    fn has_room(&self) -> bool {
        let waits = self.upload.is_some() || self.look.waited_for.is_some();
        !waits || self.open.spooled_bytes() < self.policy.spool_bytes
    }

    /// A cut waits for the look that is on its way: what came meanwhile would be past it. Not for
    /// long, and not between two looks: a server that shuts down answers none and asks, in the
    /// stream, for what it has sent to be confirmed.
    fn is_looking(&self) -> bool {
        self.look.waited_for.is_some()
            && !self.look.is_behind()
            && self.marks.running.is_some()
            && self.marks.last.elapsed() < LOOK_PAUSE
    }

    fn cut_if_due(&mut self, stopping: bool) -> Result<(), Error> {
        if self.upload.is_some() || !self.open.can_cut() {
            self.look.waited_for = None;
            return Ok(());
        }
        let full = self.open.ndjson_bytes() >= self.policy.segment_bytes;
        let old = match self.open.since() {
            Some(since) => since.elapsed() >= self.policy.segment_age,
            None => self.last_cut.elapsed() >= self.pause_before_empty(),
        };
        let hurried = stopping || self.asked.is_some();
        let wanted = *self.wanted.borrow();
        let wanted = self.durable < wanted && wanted <= self.open.end();
        if !(full || old || hurried || wanted || !self.look.changes.is_empty()) {
            return Ok(());
        }
        let seen = self.look.has_seen(self.open.end());
        if !seen && !self.may_cut_blind(hurried) {
            return Ok(());
        }
        self.look.waited_for = None;
        let sealed = self.open.seal()?;
        if seen {
            self.look.holds_to = sealed.key.end;
        }
        self.settling = sealed.transactions > 0;
        self.last_cut = Instant::now();
        self.retry = RETRY_FIRST;
        let changes = std::mem::take(&mut self.look.changes);
        let holds_to = self.look.holds_to;
        let placed = self.look.placing.place(sealed.key.end, holds_to);
        let cut = Cut {
            sealed,
            changes,
            placed,
        };
        self.start_upload(cut, Duration::ZERO);
        Ok(())
    }

    /// After the last change one empty segment follows soon, so that the recoverable time does not
    /// stop at that change; then they come at the idle interval.
    fn pause_before_empty(&self) -> Duration {
        match self.settling && self.open.covers_a_mark() {
            true => self.policy.segment_age,
            false => self.policy.idle_interval,
        }
    }

    /// Asks for a look past the end of the open segment. Whether to cut without one: a server that
    /// shuts down answers no query any more and yet waits for what it sent to be confirmed. The next
    /// start looks then, and takes a change to have come before the segment that was cut blind.
    fn may_cut_blind(&mut self, hurried: bool) -> bool {
        let now = Instant::now();
        let since = *self.look.waited_for.get_or_insert(now);
        // One and no more, because a start looks back no further than the last segment.
        let all_before_seen = self.look.holds_to >= self.open.start();
        if hurried && all_before_seen && (self.look.failed || now - since >= LOOK_PATIENCE) {
            return true;
        }
        // What is not seen yet may take its time, and reading goes on meanwhile.
        let is_hidden = self.look.is_behind() && now - self.marks.last < HIDDEN_PAUSE;
        if now >= self.marks.due && !is_hidden {
            self.take_mark(now, false);
        }
        false
    }

    fn start_upload(&mut self, cut: Cut, pause: Duration) {
        let store = self.store.clone();
        let lineage = self.lineage;
        self.upload = Some(Box::pin(async move {
            tokio::time::sleep(pause).await;
            let result = store_cut(&store, lineage, &cut).await;
            (cut, result)
        }));
    }

    async fn uploaded(&mut self, cut: Cut, result: Result<(), Error>) -> Result<(), Error> {
        self.upload = None;
        if let Err(error) = result {
            let again = matches!(error, Error::Store(_)) && error.class() == Class::Transient;
            if !again {
                return Err(error);
            }
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                end = %cut.sealed.key.end,
                "a segment was not stored; trying again"
            );
            self.report(Some(format!("{STORAGE}: {error}")));
            self.start_upload(cut, self.retry);
            self.retry = (self.retry * 2).min(RETRY_LONGEST);
            return Ok(());
        }
        let Cut {
            sealed, changes, ..
        } = cut;
        let changes = changes.len();
        let key: SegmentKey = sealed.key;
        self.durable = key.end;
        self.events.send(Event::Segment {
            lineage: self.lineage,
            key,
            transactions: sealed.transactions,
            ndjson_bytes: sealed.ndjson_bytes,
            stored_bytes: sealed.stored_bytes,
        });
        self.progress.send_modify(|progress| {
            progress.durable = key.end;
            progress.observed_through = key.observed_through;
            progress.reshaped += changes;
            progress.trouble = None;
        });
        self.asked = self.asked.filter(|(_, position)| *position > key.end);
        failpoint!("confirm.before");
        self.confirm(false).await?;
        failpoint!("confirm.after");
        Ok(())
    }

    /// Something was received that is not durable: rows, or just a position.
    fn unconfirmed(&self) -> bool {
        self.open.end() > self.durable
    }

    async fn tick(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        if self.asked.is_some_and(|(deadline, _)| now >= deadline) {
            return Err(Error::NotConfirmed {
                durable: self.durable,
            });
        }
        if now - self.last_status >= STATUS_INTERVAL {
            let silent = now - self.last_message >= STATUS_INTERVAL;
            self.confirm(silent).await?;
            self.report(None);
            self.report_wait();
        }
        self.start_mark(now);
        Ok(())
    }

    async fn confirm(&mut self, reply_requested: bool) -> Result<(), Error> {
        self.last_status = Instant::now();
        let written = self.open.end().max(self.durable);
        self.stream
            .confirm(written, self.durable, reply_requested)
            .await
    }

    fn report(&self, trouble: Option<String>) {
        let received = self.open.end();
        self.progress.send_if_modified(|progress| {
            let changed = progress.received != received || trouble.is_some();
            progress.received = received;
            if trouble.is_some() {
                progress.trouble = trouble;
            }
            changed
        });
    }

    /// That reading waits for storage is trouble also while nothing has failed.
    fn report_wait(&self) {
        if self.upload.is_none() || self.has_room() {
            return;
        }
        let full = format!(
            "the spool is full ({} bytes): nothing more is read until an upload has ended",
            self.open.spooled_bytes()
        );
        self.progress.send_if_modified(|progress| {
            let told = progress.trouble.as_deref().unwrap_or_default();
            let is_new = !told.contains(&full);
            if is_new {
                progress.trouble = Some(match told {
                    "" => format!("{STORAGE}: {full}"),
                    told => format!("{told}; {full}"),
                });
            }
            is_new
        });
    }

    async fn message(&mut self, message: &ReplicationMessage) -> Result<(), Error> {
        self.last_message = Instant::now();
        self.open.take(message)?;
        for ddl in self.open.take_ddl() {
            self.marks.told |= ddl.what.told;
            self.look.committed(ddl);
        }
        failpoint!("receive");
        if let ReplicationMessage::Keepalive {
            reply_requested: true,
            ..
        } = message
        {
            // It counts as an answer at once; the confirmation it wants follows the upload.
            self.confirm(false).await?;
            if self.unconfirmed() && !self.open.in_transaction() {
                let deadline = Instant::now() + ASKED_PATIENCE;
                let received = self.open.end();
                self.asked.get_or_insert((deadline, received));
            }
        }
        Ok(())
    }

    fn start_mark(&mut self, now: Instant) {
        let position = self.open.end();
        let moved = position > self.marks.moved_to;
        let since = now - self.marks.last;
        let idle = since >= self.policy.idle_interval;
        // DDL is looked at soon, but not all the time.
        let told = self.marks.told && since >= self.marks.took * LOOK_SHARE;
        let aged = moved && since >= self.policy.segment_age;
        let due = now >= self.marks.due && (idle || told || aged);
        if due {
            let wake = idle && !moved && position == self.durable;
            self.take_mark(now, wake);
        }
    }

    /// Unless one is on its way.
    fn take_mark(&mut self, now: Instant, wake: bool) {
        let Some(mut marks) = self.marks.idle.take() else {
            return;
        };
        self.marks.last = now;
        let told = std::mem::take(&mut self.marks.told);
        self.marks.moved_to = self.open.end();
        self.marks.running = Some(Box::pin(async move {
            let result = marks.take(wake, told).await;
            (marks, result)
        }));
    }

    fn marked(&mut self, result: Result<Mark, Error>) -> Result<(), Error> {
        self.marks.running = None;
        self.marks.took = self.marks.last.elapsed();
        match result {
            Ok(mark) => {
                let told = mark.ddl_trigger.is_some();
                let shape = self.look.take(&mark);
                let is_other = shape.is_some();
                if let Some(shape) = shape {
                    self.progress.send_modify(|progress| {
                        progress.shape = Some(shape);
                        progress.told = told;
                    });
                }
                // A base may serve from a change on, and wants them as of then.
                let changed = is_other || self.marks.sequences.as_ref() != Some(&mark.sequences);
                if changed {
                    self.marks.sequences = Some(mark.sequences.clone());
                }
                let waited = self.look.waited_for;
                let waited = waited.is_some_and(|since| since.elapsed() >= HIDDEN_TOLD);
                if waited && self.look.is_behind() {
                    let hidden = "a transaction with DDL shows to nobody yet; it may wait for a synchronous standby";
                    self.report(Some(hidden.to_owned()));
                }
                self.open.mark(mark, changed)
            }
            // Rows do not depend on it; the recoverable time stands still and shows it.
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "no position mark; trying again"
                );
                self.marks.due = Instant::now() + self.policy.segment_age;
                self.look.failed = true;
                if self.look.waited_for.is_some() {
                    let trouble = format!("the source does not let itself be looked at: {error}");
                    self.report(Some(trouble));
                }
                Ok(())
            }
        }
    }
}

/// The slot's future, or forever if it is empty. The caller empties the slot when it is done.
async fn maybe<T>(slot: &mut Option<Boxed<T>>) -> T {
    match slot {
        Some(future) => future.await,
        None => pending().await,
    }
}
