//! Rows on their way into a table: one COPY, or several side by side as long as sessions are free. One keeps
//! a single core of the server busy, and the largest table would decide when a restore is done.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::SinkExt as _;
use lastgood_pg::{ConnectionConfig, Purpose, Session};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::sql::{literal, quoted};
use crate::{Error, apply};

/// What is sent to the server at a time.
pub(crate) const PIECE_BYTES: usize = 256 << 10;
/// After how many bytes of a table another session is asked for: small tables stay in their order.
const SHARE_BYTES: usize = 4 << 20;
/// Many: how much waits is bounded by bytes.
const ROWS_MAX: usize = 64;
/// What of a table waits for the server at most; a longer row waits alone.
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
    _place: OwnedSemaphorePermit,
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
            _place: place,
        }
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Session>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn session(&self) -> Result<Session, Error> {
        let idle = self.idle().pop();
        if let Some(session) = idle {
            return Ok(session);
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
type Queue = Arc<tokio::sync::Mutex<mpsc::Receiver<Rows>>>;

/// A COPY into a table.
pub(crate) struct Copy<'a> {
    lane: &'a Lane,
    table: String,
    statement: String,
    sender: mpsc::Sender<Rows>,
    queue: Queue,
    room: Arc<Semaphore>,
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
        let (sender, receiver) = mpsc::channel(ROWS_MAX);
        Self {
            lane,
            table,
            statement,
            sender,
            queue: Arc::new(tokio::sync::Mutex::new(receiver)),
            room: Arc::new(Semaphore::new(WAITING_BYTES as usize)),
            running: Vec::new(),
            share_at: 0,
            sent: 0,
            waiting: BytesMut::with_capacity(PIECE_BYTES),
        }
    }

    /// Whole rows, each with its line end.
    pub(crate) async fn send(&mut self, rows: Bytes) -> Result<(), Error> {
        if self.sent >= self.share_at {
            self.share();
        }
        self.sent += rows.len();
        let bytes = u32::try_from(rows.len()).unwrap_or(WAITING_BYTES);
        let room = Arc::clone(&self.room).acquire_many_owned(bytes.min(WAITING_BYTES));
        if let Ok(room) = room.await
            && self.sender.send((rows, room)).await.is_ok()
        {
            return Ok(());
        }
        // Somebody has given up, and says why.
        self.ended().await.and(Err(Error::Cancelled))
    }

    pub(crate) fn push(&mut self, row: &[u8]) {
        self.waiting.extend_from_slice(row);
        self.waiting.extend_from_slice(b"\n");
    }

    /// What was pushed, if it is worth sending.
    pub(crate) async fn send_full(&mut self) -> Result<(), Error> {
        match self.waiting.len() >= PIECE_BYTES {
            true => {
                let rows = self.waiting.split().freeze();
                self.send(rows).await
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
        let place = match self.running.is_empty() {
            true => None,
            false => match lanes.another() {
                Some(lane) => Some(lane),
                None => return,
            },
        };
        self.share_at = self.sent + SHARE_BYTES;
        let (lanes, queue) = (Arc::clone(lanes), Arc::clone(&self.queue));
        let (table, statement) = (self.table.clone(), self.statement.clone());
        let copy = async move {
            let copied = copy(&lanes, &statement, &queue, &table).await;
            if copied.is_err() {
                // Nobody is to wait until the others have taken the rest.
                queue.lock().await.close();
            }
            drop(place);
            copied
        };
        self.running
            .push(AbortOnDropHandle::new(tokio::spawn(copy)));
    }

    async fn ended(&mut self) -> Result<(), Error> {
        // No more rows come.
        self.sender = mpsc::channel(1).0;
        for running in std::mem::take(&mut self.running) {
            running.await??;
        }
        Ok(())
    }
}

async fn copy(lanes: &Lanes, statement: &str, queue: &Queue, table: &str) -> Result<(), Error> {
    let failed = |source| Error::Load {
        table: table.to_owned(),
        source,
    };
    let session = lanes.session().await?;
    {
        let sink = session.client().copy_in::<_, Bytes>(statement).await;
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
    lanes.idle().push(session);
    Ok(())
}
