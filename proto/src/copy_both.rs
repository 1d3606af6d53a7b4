//! What travels inside CopyData while a walsender streams: WAL data and keepalives from the server,
//! status updates to it.
//!
//! Source: PostgreSQL's "Streaming Replication Protocol", START_REPLICATION. The length prefix and
//! the `d` of CopyData itself are the connection's business, not this module's.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::cursor::{Cursor, DecodeError};
use crate::{Lsn, PgTimestamp};

/// One message of the server.
#[derive(Clone, PartialEq, Eq)]
pub enum ReplicationMessage {
    /// A piece of the stream; with pgoutput exactly one of its messages.
    XLogData {
        /// Where the data stems from; `0/0` for Relation and Type messages.
        wal_start: Lsn,
        /// How far the server had read when it sent this; *not* the server's end of WAL.
        wal_end: Lsn,
        clock: PgTimestamp,
        /// A view of the frame: nothing is copied.
        data: Bytes,
    },
    Keepalive {
        /// Everything below has been decoded and, if published, sent before this message.
        wal_end: Lsn,
        clock: PgTimestamp,
        /// The server wants a status update now; it does while it shuts down.
        reply_requested: bool,
    },
}

impl ReplicationMessage {
    /// Takes the payload of one CopyData message apart.
    pub fn decode(mut frame: Bytes) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new(&frame);
        match cursor.u8()? {
            b'w' => {
                let wal_start = Lsn::new(cursor.u64()?);
                let wal_end = Lsn::new(cursor.u64()?);
                let clock = PgTimestamp::from_micros(cursor.i64()?);
                let header_bytes = frame.len().saturating_sub(cursor.rest().len());
                frame.advance(header_bytes);
                Ok(Self::XLogData {
                    wal_start,
                    wal_end,
                    clock,
                    data: frame,
                })
            }
            b'k' => {
                let keepalive = Self::Keepalive {
                    wal_end: Lsn::new(cursor.u64()?),
                    clock: PgTimestamp::from_micros(cursor.i64()?),
                    reply_requested: flag(&mut cursor)?,
                };
                cursor.finish()?;
                Ok(keepalive)
            }
            value => Err(DecodeError::Unknown {
                what: "replication message",
                value,
            }),
        }
    }

    /// The inverse of [`ReplicationMessage::decode`]: what a simulated server sends.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            Self::XLogData {
                wal_start,
                wal_end,
                clock,
                data,
            } => {
                out.put_u8(b'w');
                out.put_u64(wal_start.as_u64());
                out.put_u64(wal_end.as_u64());
                out.put_i64(clock.as_micros());
                out.extend_from_slice(data);
            }
            Self::Keepalive {
                wal_end,
                clock,
                reply_requested,
            } => {
                out.put_u8(b'k');
                out.put_u64(wal_end.as_u64());
                out.put_i64(clock.as_micros());
                out.put_u8(u8::from(*reply_requested));
            }
        }
    }
}

impl std::fmt::Debug for ReplicationMessage {
    /// Without the data: it holds row values, and those go into no log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::XLogData {
                wal_start,
                wal_end,
                clock,
                data,
            } => f
                .debug_struct("XLogData")
                .field("wal_start", wal_start)
                .field("wal_end", wal_end)
                .field("clock", clock)
                .field("data_bytes", &data.len())
                .finish(),
            Self::Keepalive {
                wal_end,
                clock,
                reply_requested,
            } => f
                .debug_struct("Keepalive")
                .field("wal_end", wal_end)
                .field("clock", clock)
                .field("reply_requested", reply_requested)
                .finish(),
        }
    }
}

/// A standby status update: the only thing that flows back to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StandbyStatus {
    /// Received.
    pub written: Lsn,
    /// Durable: the server may drop WAL below it and will not send it again.
    pub flushed: Lsn,
    pub applied: Lsn,
    /// The client's clock; the server only shows it.
    pub clock: PgTimestamp,
    /// Ask the server for a keepalive at once.
    pub reply_requested: bool,
}

impl StandbyStatus {
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(b'r');
        out.put_u64(self.written.as_u64());
        out.put_u64(self.flushed.as_u64());
        out.put_u64(self.applied.as_u64());
        out.put_i64(self.clock.as_micros());
        out.put_u8(u8::from(self.reply_requested));
    }

    /// The inverse of [`StandbyStatus::encode`]: what a simulated server reads.
    pub fn decode(frame: &[u8]) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new(frame);
        match cursor.u8()? {
            b'r' => {
                let status = Self {
                    written: Lsn::new(cursor.u64()?),
                    flushed: Lsn::new(cursor.u64()?),
                    applied: Lsn::new(cursor.u64()?),
                    clock: PgTimestamp::from_micros(cursor.i64()?),
                    reply_requested: flag(&mut cursor)?,
                };
                cursor.finish()?;
                Ok(status)
            }
            value => Err(DecodeError::Unknown {
                what: "standby message",
                value,
            }),
        }
    }
}

fn flag(cursor: &mut Cursor<'_>) -> Result<bool, DecodeError> {
    match cursor.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        value => Err(DecodeError::Unknown {
            what: "reply flag",
            value,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message() -> impl Strategy<Value = ReplicationMessage> {
        prop_oneof![
            any::<(u64, u64, i64, Vec<u8>)>().prop_map(|(start, end, clock, data)| {
                ReplicationMessage::XLogData {
                    wal_start: Lsn::new(start),
                    wal_end: Lsn::new(end),
                    clock: PgTimestamp::from_micros(clock),
                    data: data.into(),
                }
            }),
            any::<(u64, i64, bool)>().prop_map(|(end, clock, reply_requested)| {
                ReplicationMessage::Keepalive {
                    wal_end: Lsn::new(end),
                    clock: PgTimestamp::from_micros(clock),
                    reply_requested,
                }
            }),
        ]
    }

    proptest! {
        #[test]
        fn decode_is_the_inverse_of_encode(message in message()) {
            let mut frame = BytesMut::new();
            message.encode(&mut frame);
            prop_assert_eq!(ReplicationMessage::decode(frame.freeze()), Ok(message));
        }

        #[test]
        fn a_cut_header_is_an_error(message in message(), cut in 0_usize..25) {
            let mut frame = BytesMut::new();
            message.encode(&mut frame);
            let frame = frame.freeze();
            let header_bytes = match &message {
                ReplicationMessage::XLogData { .. } => 25,
                ReplicationMessage::Keepalive { .. } => frame.len(),
            };
            prop_assume!(cut < header_bytes);
            prop_assert!(ReplicationMessage::decode(frame.slice(..cut)).is_err());
        }

        #[test]
        fn status_decode_is_the_inverse_of_encode(
            lsns: [u64; 3], clock: i64, reply_requested: bool
        ) {
            let status = StandbyStatus {
                written: Lsn::new(lsns[0]),
                flushed: Lsn::new(lsns[1]),
                applied: Lsn::new(lsns[2]),
                clock: PgTimestamp::from_micros(clock),
                reply_requested,
            };
            let mut frame = BytesMut::new();
            status.encode(&mut frame);
            prop_assert_eq!(StandbyStatus::decode(&frame), Ok(status));
            for cut in 0..frame.len() {
                prop_assert!(StandbyStatus::decode(&frame[..cut]).is_err());
            }
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = ReplicationMessage::decode(bytes.clone().into());
            let _ = StandbyStatus::decode(&bytes);
        }
    }

    #[test]
    fn debug_shows_no_data() {
        let message = ReplicationMessage::XLogData {
            wal_start: Lsn::new(1),
            wal_end: Lsn::new(2),
            clock: PgTimestamp::from_micros(3),
            data: Bytes::from_static(b"secret"),
        };
        let text = format!("{message:?}");
        assert!(
            text.contains("data_bytes: 6") && !text.contains("secret"),
            "{text}"
        );
    }
}
