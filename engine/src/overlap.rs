//! What the server sends again is compared with what is stored.
//!
//! A provider that restores a snapshot of the source's storage gives back an older server with the
//! same system identifier on the same timeline. Once its WAL has run past what is durable, no
//! number tells it from the server that was captured, and one lineage would hold two histories. But
//! its slot went back with the storage: it has confirmed less than is durable. So whenever the slot
//! has confirmed less, the stream begins there, and each transaction it sends below the durable LSN
//! must be the one that is stored: same commit LSN, xid and commit time (but for one that was replayed
//! from another server, whose time is not stored). After a crash that is so, and the overlap is
//! short; the first difference ends the lineage.
//!
//! Until the overlap is checked nothing new is confirmed: a check that is cut short is made again.
//!
//! A slot that has confirmed exactly what is durable leaves nothing to compare, and needs nothing:
//! a walsender sends, and so lets confirm, only WAL that is flushed, hence storage that was copied
//! at one moment and whose slot has confirmed a position holds the very WAL up to it. Two things
//! cannot be told by this or by anything else a client may read: a slot that somebody has moved by
//! hand to the very durable LSN after the storage was set back, and storage put together of parts
//! of different moments. And a clone of the source (same system identifier, same timeline) that is
//! reached in its place is told only if something became durable after it was made; if nothing did,
//! its history goes on from the stored one as well as the source's does.

use std::collections::VecDeque;
use std::pin::Pin;

use lastgood_proto::copy_both::ReplicationMessage;
use lastgood_proto::key::{SegmentKey, SourceObject};
use lastgood_proto::pgoutput::{self, Begin, Message};
use lastgood_proto::segment::{Record, SegmentReader};
use lastgood_proto::{LineageId, Lsn, PgTimestamp, Xid};
use lastgood_store::SourceStore;

use crate::error::Error;
use crate::worker::Stream;

/// Messages left out before the loop gets its turn.
const BURST: usize = 128;

/// What has to be compared.
#[derive(Debug, Clone)]
pub struct Stored {
    pub lineage: LineageId,
    /// Where the stream begins: what the slot has confirmed.
    pub from: Lsn,
    /// Where the overlap ends.
    pub durable: Lsn,
    /// The chain's segments that end after `from`.
    pub segments: Vec<SegmentKey>,
}

/// A stream that begins at or below the durable LSN and shows only what follows it.
pub struct Overlap<S> {
    inner: S,
    check: Option<Check>,
}

struct Check {
    store: SourceStore,
    lineage: LineageId,
    from: Lsn,
    durable: Lsn,
    /// Not read yet, by LSN.
    segments: VecDeque<SegmentKey>,
    loading: Option<Loading>,
    /// Of the segments that were read, in commit order.
    expected: VecDeque<Transaction>,
    /// The stream is inside a transaction that is not to be shown.
    inside: Option<Inside>,
    /// The end of the last transaction that is on both sides.
    agreed: Lsn,
    /// A message that waits for a segment to be read.
    held: Option<ReplicationMessage>,
}

type Loading = Pin<Box<dyn Future<Output = Result<VecDeque<Transaction>, Error>> + Send>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Transaction {
    commit_lsn: Lsn,
    end_lsn: Lsn,
    xid: Xid,
    time: PgTimestamp,
}

#[derive(Clone, Copy)]
struct Inside {
    begin: Begin,
    /// It has shown a change and was compared. One that shows none is not stored either: before 15
    /// the walsender sends those too.
    compared: bool,
    /// It was replayed from another server, whose time of commit it has; a segment has the time here.
    from_elsewhere: bool,
}

/// What to do with a message.
enum Judged {
    Show,
    LeaveOut,
    /// Once another segment was read.
    Wait,
}

impl<S: Stream> Overlap<S> {
    /// `inner` was asked to begin at `stored.from`.
    pub fn new(inner: S, store: SourceStore, stored: Stored) -> Self {
        let check = (stored.from < stored.durable).then(|| Check {
            store,
            lineage: stored.lineage,
            from: stored.from,
            durable: stored.durable,
            // One without transactions has nothing to say.
            segments: stored
                .segments
                .into_iter()
                .filter(|segment| segment.max_commit_time.is_some())
                .collect(),
            loading: None,
            expected: VecDeque::new(),
            inside: None,
            agreed: stored.from,
            held: None,
        });
        Self { inner, check }
    }
}

impl<S: Stream> Stream for Overlap<S> {
    /// Cancel-safe: a message that is not decided yet and a segment that is being read are kept.
    async fn next(&mut self) -> Result<ReplicationMessage, Error> {
        let mut left_out = 0;
        loop {
            let Some(check) = &mut self.check else {
                return self.inner.next().await;
            };
            check.load().await?;
            let message = match check.held.take() {
                Some(message) => message,
                None => self.inner.next().await?,
            };
            match check.judge(&message)? {
                Judged::Show => {
                    if check.is_over(&message) {
                        tracing::info!(through = %check.durable, "the overlap agrees");
                        self.check = None;
                    }
                    return Ok(message);
                }
                Judged::LeaveOut => left_out += 1,
                Judged::Wait => check.held = Some(message),
            }
            if left_out >= BURST {
                left_out = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    fn buffered(&mut self) -> Result<Option<ReplicationMessage>, Error> {
        match self.check {
            Some(_) => Ok(None),
            None => self.inner.buffered(),
        }
    }

    async fn confirm(
        &mut self,
        written: Lsn,
        flushed: Lsn,
        reply_requested: bool,
    ) -> Result<(), Error> {
        let limit = self.check.as_ref().map_or(Lsn::MAX, |check| check.from);
        self.inner
            .confirm(written.min(limit), flushed.min(limit), reply_requested)
            .await
    }

    async fn close(self) {
        self.inner.close().await;
    }
}

impl Check {
    /// Finishes reading a segment, if one is being read.
    async fn load(&mut self) -> Result<(), Error> {
        if let Some(loading) = &mut self.loading {
            let read = loading.await;
            self.loading = None;
            let from = self.from;
            self.expected
                .extend(read?.into_iter().filter(|it| it.commit_lsn >= from));
        }
        Ok(())
    }

    /// Whether `message` shows that everything below the durable LSN was sent.
    fn is_over(&self, message: &ReplicationMessage) -> bool {
        match message {
            ReplicationMessage::Keepalive { wal_end, .. } => {
                self.inside.is_none() && *wal_end >= self.durable
            }
            ReplicationMessage::XLogData { data, .. } => match pgoutput::decode(data) {
                Ok(Message::Begin(begin)) => begin.commit_lsn >= self.durable,
                Ok(Message::Message(message)) => {
                    self.inside.is_none() && message.lsn > self.durable
                }
                _ => false,
            },
        }
    }

    fn judge(&mut self, message: &ReplicationMessage) -> Result<Judged, Error> {
        if self.is_over(message) {
            return match self.next_expected() {
                None => Ok(Judged::Show),
                Some(Next::NotRead) => Ok(Judged::Wait),
                Some(Next::Transaction(missing)) => Err(self.differs(&format!(
                    "transaction {}, committed at {}, is stored and the server does not send it",
                    missing.xid, missing.commit_lsn
                ))),
            };
        }
        let data = match message {
            ReplicationMessage::XLogData { data, .. } => data,
            // It would say that the transaction was whole.
            ReplicationMessage::Keepalive { wal_end, .. } if *wal_end >= self.durable => {
                return Ok(Judged::LeaveOut);
            }
            ReplicationMessage::Keepalive { .. } => return Ok(Judged::Show),
        };
        let decoded =
            pgoutput::decode(data).map_err(|error| Error::Stream(format!("pgoutput: {error}")))?;
        match decoded {
            // Whatever comes later may refer to them.
            Message::Relation(_) | Message::Type(_) => Ok(Judged::Show),
            Message::Begin(begin) => {
                self.inside = Some(Inside {
                    begin,
                    compared: false,
                    from_elsewhere: false,
                });
                Ok(Judged::LeaveOut)
            }
            Message::Commit(_) => {
                self.inside = None;
                Ok(Judged::LeaveOut)
            }
            Message::Origin(_) => {
                if let Some(inside) = &mut self.inside {
                    inside.from_elsewhere = true;
                }
                Ok(Judged::LeaveOut)
            }
            Message::Message(message) if !message.transactional => Ok(Judged::LeaveOut),
            Message::Insert(_)
            | Message::Update(_)
            | Message::Delete(_)
            | Message::Truncate(_)
            | Message::Message(_) => self.compare(),
        }
    }

    /// The transaction that the stream is inside with the next one that is stored.
    fn compare(&mut self) -> Result<Judged, Error> {
        let inside = match self.inside {
            Some(inside) if inside.compared => return Ok(Judged::LeaveOut),
            Some(inside) => inside,
            None => return Err(Error::Stream("a change outside a transaction".to_owned())),
        };
        let begin = inside.begin;
        let next = match self.next_expected() {
            Some(Next::NotRead) => return Ok(Judged::Wait),
            Some(Next::Transaction(next)) => Some(next),
            None => None,
        };
        let same = |next: &Transaction| {
            next.commit_lsn == begin.commit_lsn
                && next.xid == begin.xid
                && (inside.from_elsewhere || next.time == begin.commit_time)
        };
        match next {
            Some(next) if same(&next) => {
                self.expected.pop_front();
                self.agreed = next.end_lsn;
                self.inside = Some(Inside {
                    compared: true,
                    ..inside
                });
                Ok(Judged::LeaveOut)
            }
            Some(next) => Err(self.differs(&format!(
                "transaction {}, committed at {} ({}), is sent where transaction {}, committed at \
                 {} ({}), is stored",
                begin.xid,
                begin.commit_lsn,
                begin.commit_time,
                next.xid,
                next.commit_lsn,
                next.time
            ))),
            None => Err(self.differs(&format!(
                "transaction {}, committed at {} ({}), is sent and not stored",
                begin.xid, begin.commit_lsn, begin.commit_time
            ))),
        }
    }

    /// The next stored transaction; begins to read the segment it stands in.
    fn next_expected(&mut self) -> Option<Next> {
        if let Some(next) = self.expected.front() {
            return Some(Next::Transaction(*next));
        }
        let key = self.segments.pop_front()?;
        self.loading = Some(Box::pin(transactions(
            self.store.clone(),
            self.lineage,
            key,
        )));
        Some(Next::NotRead)
    }

    fn differs(&self, how: &str) -> Error {
        Error::SetBack {
            agreed: self.agreed,
            durable: self.durable,
            detail: how.to_owned(),
        }
    }
}

enum Next {
    NotRead,
    Transaction(Transaction),
}

async fn transactions(
    store: SourceStore,
    lineage: LineageId,
    key: SegmentKey,
) -> Result<VecDeque<Transaction>, Error> {
    let object = SourceObject::Segment(lineage, key);
    let reader = store.open(&object).await?.into_blocking();
    let (source, path) = (store.id(), store.path(&object));
    let read = tokio::task::spawn_blocking(move || {
        let mut reader = SegmentReader::open(reader, Some((source, lineage, &key)))?;
        let mut found = VecDeque::new();
        let mut begun = None;
        while let Some(record) = reader.next()? {
            match record {
                Record::Begin { xid, lsn, time, .. } => begun = Some((xid, lsn, time)),
                Record::Commit { end, .. } => {
                    found.extend(begun.take().map(|(xid, commit_lsn, time)| Transaction {
                        commit_lsn,
                        end_lsn: end,
                        xid,
                        time,
                    }));
                }
                _ => {}
            }
        }
        Ok(found)
    });
    read.await
        .map_err(|error| Error::Task(error.to_string()))?
        .map_err(|source| Error::Segment { path, source })
}
