//! Rows on their way into a table: one COPY, or several side by side as long as sessions are free. One keeps
//! a single core of the server busy, and the largest table would decide when a restore is done.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::{Bytes, BytesMut};
use futures::SinkExt as _;
use lastgood_pg::{ConnectionConfig, Purpose, Session};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::sql::{literal, quoted};
use crate::{Error, apply};

/// What is sent to the server at a time.
pub(crate) const PIECE_BYTES: usize = 256 << 10;
/// After how many bytes of a table another session is asked for: small tables stay in their order.
const SHARE_BYTES: usize = 4 << 20;
/// Many: how much waits is bounded by bytes.
const ROWS_MAX: usize = 64;
/// What waits for each session at most; a longer row takes all of that.
const WAITING_BYTES: u32 = 2 << 20;

/// The sessions that rows go through, as many as the restore has jobs.
pub(crate) struct Lanes {
    target: ConnectionConfig,
    free: Arc<Semaphore>,
    idle: Mutex<Vec<Session>>,
}

/// The right to one session. Whoever loads an archive has one of his own; more come and go.
pub(crate) struct Lane {
    lanes: Arc<Lanes>,
    place: OwnedSemaphorePermit,
}

impl Lanes {
    pub(crate) fn new(target: &ConnectionConfig, jobs: u32) -> Arc<Self> {
        let jobs = usize::try_from(jobs.max(1)).unwrap_or(1);
        Arc::new(Self {
            target: target.clone(),
            free: Arc::new(Semaphore::new(jobs)),
            idle: Mutex::new(Vec::new()),
        })
    }

    /// In the order of asking.
    pub(crate) async fn enter(self: &Arc<Self>) -> Result<Lane, Error> {
        let place = Arc::clone(&self.free).acquire_owned().await;
        // It is never closed.
        Ok(self.lane(place.map_err(|_closed| Error::Cancelled)?))
    }

    /// If one is free, and nobody waits for it.
    fn another(self: &Arc<Self>) -> Option<Lane> {
        let place = Arc::clone(&self.free).try_acquire_owned();
        place.ok().map(|place| self.lane(place))
    }

    fn lane(self: &Arc<Self>, place: OwnedSemaphorePermit) -> Lane {
        Lane {
            lanes: Arc::clone(self),
            place,
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn session(&self) -> Result<Session, Error> {
        loop {
            match self.idle().pop() {
                Some(session) if session.client().is_closed() => {}
                Some(session) => return Ok(session),
                None => break,
            }
        }
        let session = Session::connect(&self.target, Purpose::Restore).await?;
        session.client().batch_execute(apply::SESSION).await?;
        Ok(session)
    }

    /// Ends the sessions, in good order.
    pub(crate) async fn close(&self) {
        let idle = std::mem::take(&mut *self.idle());
        for session in idle {
            session.close().await;
        }
    }
}

/// Whole rows, and the room that they take while they wait.
type Rows = (Bytes, OwnedSemaphorePermit);

/// They wait for whichever session takes them first.
type Queue = tokio::sync::Mutex<mpsc::Receiver<Rows>>;

/// A COPY into a table.
pub(crate) struct Copy<'a> {
    lane: &'a Lane,
    table: String,
    statement: String,
    /// None before there are rows.
    sender: Option<mpsc::Sender<Rows>>,
    /// The sessions have it: it goes with the last of them, whatever that ended of.
    queue: Weak<Queue>,
    room: Arc<Semaphore>,
    /// No more rows come.
    over: CancellationToken,
    running: Vec<AbortOnDropHandle<Result<(), Error>>>,
    /// When another session is asked for.
    share_at: usize,
    sent: usize,
    waiting: BytesMut,
}

impl<'a> Copy<'a> {
    /// Nothing is asked of the server before there are rows.
    pub(crate) fn new(lane: &'a Lane, table: String, columns: &[String], encoding: &str) -> Self {
        let columns: Vec<String> = columns.iter().map(|name| quoted(name)).collect();
        let columns = match columns.is_empty() {
            true => String::new(),
            false => format!(" ({})", columns.join(", ")),
        };
        let encoding = literal(encoding);
        let statement = format!("COPY {table}{columns} FROM STDIN (ENCODING {encoding})");
        Self {
            lane,
            table,
            statement,
            sender: None,
            queue: Weak::new(),
            room: Arc::new(Semaphore::new(0)),
            over: CancellationToken::new(),
            running: Vec::new(),
            share_at: 0,
            sent: 0,
            waiting: BytesMut::new(),
        }
    }

    /// Whole rows, each with its line end.
    pub(crate) async fn send(&mut self, rows: Bytes) -> Result<(), Error> {
        if self.sent >= self.share_at {
            self.share();
        }
        self.sent += rows.len();
        let Some(sender) = &self.sender else {
            return Err(Error::Cancelled);
        };
        let bytes = u32::try_from(rows.len()).unwrap_or(WAITING_BYTES);
        let room = Arc::clone(&self.room).acquire_many_owned(bytes.min(WAITING_BYTES));
        let sent = tokio::select! {
            biased;
            // Nobody makes room any more.
            () = sender.closed() => false,
            room = room => match room {
                Ok(room) => sender.send((rows, room)).await.is_ok(),
                Err(_closed) => false,
            },
        };
        match sent {
            true => Ok(()),
            // Somebody has given up, and says why.
            false => self.ended().await.and(Err(Error::Cancelled)),
        }
    }

    pub(crate) fn push(&mut self, row: &[u8]) {
        self.waiting.extend_from_slice(row);
        self.waiting.extend_from_slice(b"\n");
    }

    /// What was pushed, if it is worth sending.
    pub(crate) async fn send_full(&mut self) -> Result<(), Error> {
        match self.waiting.len() >= PIECE_BYTES {
            true => {
                let room = BytesMut::with_capacity(PIECE_BYTES + PIECE_BYTES / 16);
                let rows = std::mem::replace(&mut self.waiting, room);
                self.send(rows.freeze()).await
            }
            false => Ok(()),
        }
    }

    pub(crate) async fn finish(mut self) -> Result<(), Error> {
        if !self.waiting.is_empty() {
            let rows = self.waiting.split().freeze();
            self.send(rows).await?;
        }
        self.ended().await
    }

    /// One more session, at first the one that is ours by right.
    fn share(&mut self) {
        let lanes = &self.lane.lanes;
        let (queue, another) = if self.running.is_empty() {
            let (sender, receiver) = mpsc::channel(ROWS_MAX);
            let queue = Arc::new(Queue::new(receiver));
            self.sender = Some(sender);
            self.queue = Arc::downgrade(&queue);
            (queue, None)
        } else {
            match (self.queue.upgrade(), lanes.another()) {
                (Some(queue), Some(another)) => (queue, Some(another)),
                _ => return,
            }
        };
        self.share_at = self.sent + SHARE_BYTES;
        self.room.add_permits(WAITING_BYTES as usize);
        let session = session(Arc::clone(lanes), another, self.over.clone());
        let (table, statement) = (self.table.clone(), self.statement.clone());
        self.running
            .push(AbortOnDropHandle::new(tokio::spawn(async move {
                let copied = match session.await {
                    Ok(Some(lent)) => copy(lent, &statement, &queue, &table).await,
                    Ok(None) => Ok(()),
                    Err(error) => Err(error),
                };
                if copied.is_err() {
                    // Nobody is to wait until the others have taken the rest.
                    queue.lock().await.close();
                }
                copied
            })));
    }

    async fn ended(&mut self) -> Result<(), Error> {
        self.sender = None;
        self.over.cancel();
        for running in std::mem::take(&mut self.running) {
            running.await??;
        }
        Ok(())
    }
}

/// A session while it is used, with its place unless that is its user's own.
struct Lent {
    lanes: Arc<Lanes>,
    session: Session,
    _another: Option<Lane>,
}

/// One that is not ours by right may be missing: when the rows are over, or if the server has none left.
async fn session(
    lanes: Arc<Lanes>,
    another: Option<Lane>,
    over: CancellationToken,
) -> Result<Option<Lent>, Error> {
    let lent = |session, another, lanes| Lent {
        lanes,
        session,
        _another: another,
    };
    let Some(lane) = another else {
        let session = lanes.session().await?;
        return Ok(Some(lent(session, None, lanes)));
    };
    let session = tokio::select! {
        () = over.cancelled() => return Ok(None),
        session = lanes.session() => session,
    };
    match session {
        Ok(session) => Ok(Some(lent(session, Some(lane), lanes))),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::info!(error, "rows go through fewer sessions than asked for");
            // It is not tried again.
            lane.place.forget();
            Ok(None)
        }
    }
}

async fn copy(lent: Lent, statement: &str, queue: &Queue, table: &str) -> Result<(), Error> {
    let failed = |source| Error::Load {
        table: table.to_owned(),
        source,
    };
    {
        let sink = lent.session.client().copy_in::<_, Bytes>(statement).await;
        let mut sink = pin!(sink.map_err(failed)?);
        loop {
            let rows = queue.lock().await.recv().await;
            let Some((mut rows, _room)) = rows else {
                break;
            };
            // In pieces: one message must not be longer than a row may be.
            while !rows.is_empty() {
                let piece = rows.split_to(PIECE_BYTES.min(rows.len()));
                sink.feed(piece).await.map_err(failed)?;
            }
        }
        sink.finish().await.map_err(failed)?;
    }
    lent.lanes.idle().push(lent.session);
    Ok(())
}

#[cfg(test)]
mod tests;
