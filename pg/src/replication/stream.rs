//! The stream after START_REPLICATION: frames in, status updates out, independent of each other.
//!
//! A caller that stops reading must go on to send status: the walsender reads replies also while
//! it waits for room to send, and ends the connection after `wal_sender_timeout` without one.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lastgood_proto::copy_both::{ReplicationMessage, StandbyStatus};
use postgres_protocol::message::frontend;

use crate::config::Host;
use crate::error::{Error, Operation, ServerError};
use crate::replication::unexpected;
use crate::wire::Wire;

/// A walsender that streams.
pub struct ReplicationStream {
    wire: Wire,
    /// Reused for each status update.
    status: BytesMut,
}

impl ReplicationStream {
    pub(super) fn new(mut wire: Wire, roundtrip: Duration) -> Result<Self, Error> {
        wire.read_lazily(roundtrip)?;
        Ok(Self {
            wire,
            status: BytesMut::new(),
        })
    }

    /// The host of the list that was reached.
    #[must_use]
    pub fn host(&self) -> &Host {
        self.wire.host()
    }

    /// The next message; its data is a view of the receive buffer, which is used again once all
    /// views are dropped.
    ///
    /// Cancel-safe: bytes that were read stay in the buffer, and a pause that was begun is not
    /// begun anew.
    ///
    /// # Errors
    /// [`Error::StreamEnded`] if the server ended the stream in good order, as it does at shutdown.
    pub async fn next(&mut self) -> Result<ReplicationMessage, Error> {
        loop {
            let (tag, body) = self.wire.next().await?;
            if let Some(message) = message(tag, body)? {
                return Ok(message);
            }
        }
    }

    /// As [`next`](Self::next), but only what has arrived already.
    pub fn try_next(&mut self) -> Result<Option<ReplicationMessage>, Error> {
        while let Some((tag, body)) = self.wire.take()? {
            if let Some(message) = message(tag, body)? {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Tells the server how far we are. Needs no reading. Cancel-safe: an update is sent whole,
    /// now or with the next call of any kind.
    pub async fn send_status(&mut self, status: &StandbyStatus) -> Result<(), Error> {
        self.status.clear();
        let mut payload = BytesMut::with_capacity(40);
        status.encode(&mut payload);
        frontend::CopyData::new(payload)
            .map_err(|error| Error::Protocol(error.to_string()))?
            .write(&mut self.status);
        self.wire.send(&self.status).await
    }

    /// Ends the stream and the connection in good order, within `limit`: CopyDone, then what was
    /// on its way is read and thrown away, then Terminate. The slot is free when this returns
    /// `Ok`; otherwise the server frees it once it notices that we are gone.
    ///
    /// The walsender answers only between transactions, so behind a huge one the limit will pass.
    pub async fn close(mut self, limit: Duration) -> Result<(), Error> {
        let mut message = BytesMut::new();
        frontend::copy_done(&mut message);
        let farewell = async {
            self.wire.send(&message).await?;
            loop {
                let (tag, body) = self.wire.next().await?;
                match tag {
                    b'Z' => break,
                    b'E' => return Err(Error::server(Operation::Stream, &body)),
                    _ => {}
                }
            }
            let mut message = BytesMut::new();
            frontend::terminate(&mut message);
            self.wire.queue(&message);
            self.wire.shut_down().await.map_err(Error::Broken)
        };
        tokio::time::timeout(limit, farewell)
            .await
            .unwrap_or(Err(Error::Closed))
    }
}

/// One message of the server's; `None` if it is of no account.
fn message(tag: u8, body: Bytes) -> Result<Option<ReplicationMessage>, Error> {
    match tag {
        b'd' => Ok(Some(ReplicationMessage::decode(body)?)),
        b'c' | b'C' | b'Z' => Err(Error::StreamEnded),
        b'E' => Err(Error::server(Operation::Stream, &body)),
        b'N' => {
            if let Ok(notice) = ServerError::parse(&body) {
                tracing::debug!(code = notice.code, message = notice.message, "notice");
            }
            Ok(None)
        }
        b'S' => Ok(None),
        tag => Err(unexpected(tag, "the stream")),
    }
}
