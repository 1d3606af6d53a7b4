//! Frames: PostgreSQL's protocol 3.0 as tagged, length-prefixed messages over a transport.
//!
//! Invariants: one buffer; a body handed out is a view of it, never a copy. No announced length is
//! believed beyond the limit, and memory grows with the bytes that arrive, not with those that are
//! promised. Reading and writing are cancel-safe: what was read stays in the buffer, what was not
//! yet written stays in the other.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::config::Host;
use crate::error::Error;
use crate::transport::Transport;

/// Before authentication nothing longer has any business here (libpq has the same bound).
const HANDSHAKE_MESSAGE_BYTES_MAX: u64 = 30_000;
/// A row cannot be longer than PostgreSQL's own limit on one allocation (`MaxAllocSize`).
const MESSAGE_BYTES_MAX: u64 = 1 << 30;
/// Room made for each read: what a socket buffer holds after the reader was away for a moment.
const READ_BYTES: usize = 256 * 1024;

/// A message above this takes its buffer along, so that one huge row is not paid for ever after.
const KEPT_BYTES_MAX: usize = 4 * READ_BYTES;

/// A task that never has to wait keeps the runtime from its timers, and with a backlog to read there
/// is no waiting; so after this much the runtime gets its turn. Its own sockets see to that, by
/// operations; a lazy one does not, and TLS would swallow what the socket below it does.
const YIELD_BYTES: usize = 128 * 1024;

/// How many bytes are looked at for how long messages are, and from which length on they are long.
const LOOK_BYTES: usize = 8 << 20;
const LONG_BYTES: usize = 1024;

/// Tag and length.
const HEADER_BYTES: usize = 5;

pub(crate) struct Wire {
    stream: Transport,
    host: Host,
    incoming: BytesMut,
    outgoing: BytesMut,
    /// Bytes were handed to the transport that it may still hold (TLS records).
    unflushed: bool,
    limit: u64,
    /// Bytes read since the runtime had its turn.
    since_yield: usize,
    /// Bytes read, and messages taken, since somebody looked at how long these are.
    since_look: usize,
    messages: usize,
}

impl Wire {
    pub(crate) fn new(stream: Transport, host: Host) -> Self {
        Self {
            stream,
            host,
            incoming: BytesMut::new(),
            outgoing: BytesMut::new(),
            unflushed: false,
            limit: HANDSHAKE_MESSAGE_BYTES_MAX,
            since_yield: 0,
            since_look: 0,
            messages: 0,
        }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    /// From here on messages may be as long as the server makes them.
    pub(crate) fn lift_limit(&mut self) {
        self.limit = MESSAGE_BYTES_MAX;
    }

    /// From here on bytes come in a stream that nobody waits for message by message.
    /// An answer takes `roundtrip` at least.
    pub(crate) fn read_lazily(&mut self, roundtrip: Duration) -> Result<(), Error> {
        self.stream.make_lazy(roundtrip).map_err(Error::Broken)
    }

    /// The next message: its tag and body. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Result<(u8, Bytes), Error> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(message);
            }
            self.flush().await?;
            self.read().await?;
        }
    }

    /// The next message if it has arrived in full.
    pub(crate) fn take(&mut self) -> Result<Option<(u8, Bytes)>, Error> {
        let Some(&[tag, a, b, c, d]) = self.incoming.first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let length = u64::from(u32::from_be_bytes([a, b, c, d]));
        // The length counts itself and not the tag.
        let Some(body) = length.checked_sub(4) else {
            return Err(Error::Protocol(format!("a message of length {length}")));
        };
        if body > self.limit {
            return Err(Error::MessageTooLong {
                length: body,
                limit: self.limit,
            });
        }
        let body = usize::try_from(body).unwrap_or(usize::MAX);
        if self.incoming.len().saturating_sub(HEADER_BYTES) < body {
            return Ok(None);
        }
        self.messages += 1;
        self.incoming.advance(HEADER_BYTES);
        let message = self.incoming.split_to(body).freeze();
        if body > KEPT_BYTES_MAX {
            // What follows it shares its allocation and would keep all of it alive.
            self.incoming = BytesMut::from(&self.incoming[..]);
        }
        Ok(Some((tag, message)))
    }

    async fn read(&mut self) -> Result<(), Error> {
        if self.since_yield >= YIELD_BYTES {
            self.since_yield = 0;
            tokio::task::yield_now().await;
        }
        let spare = self.incoming.capacity().saturating_sub(self.incoming.len());
        if spare < READ_BYTES / 2 {
            // Reclaims the buffer if all bodies handed out are gone, else makes a new one.
            self.incoming.reserve(READ_BYTES);
        }
        let count = self
            .stream
            .read_buf(&mut self.incoming)
            .await
            .map_err(Error::Broken)?;
        if count == 0 {
            return Err(Error::Closed);
        }
        self.since_yield = self.since_yield.saturating_add(count);
        self.since_look = self.since_look.saturating_add(count);
        if self.since_look >= LOOK_BYTES {
            if self.since_look / LONG_BYTES > self.messages {
                self.stream.expect_long().map_err(Error::Broken)?;
            }
            (self.since_look, self.messages) = (0, 0);
        }
        Ok(())
    }

    /// Queues a message and sends all that is queued. Cancel-safe: a call that is dropped leaves
    /// the rest queued for the next one.
    pub(crate) async fn send(&mut self, message: &[u8]) -> Result<(), Error> {
        self.queue(message);
        self.flush().await
    }

    pub(crate) fn queue(&mut self, message: &[u8]) {
        self.outgoing.extend_from_slice(message);
    }

    pub(crate) async fn flush(&mut self) -> Result<(), Error> {
        self.write().await.map_err(Error::Broken)
    }

    async fn write(&mut self) -> io::Result<()> {
        while self.outgoing.has_remaining() {
            self.unflushed = true;
            self.stream.write_buf(&mut self.outgoing).await?;
        }
        if self.unflushed {
            poll_fn(|cx| Pin::new(&mut self.stream).poll_flush(cx)).await?;
            self.unflushed = false;
        }
        Ok(())
    }

    /// Sends what is queued and says that no more will come.
    pub(crate) async fn shut_down(mut self) -> io::Result<()> {
        self.write().await?;
        self.stream.shutdown().await
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::config::ConnectionConfig;
    use crate::socket::Socket;

    /// A wire and the other end of it.
    async fn pair() -> (Wire, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (far, _) = listener.accept().await.unwrap();
        let config: ConnectionConfig = "user=u host=h".parse().unwrap();
        let wire = Wire::new(Transport::Tcp(Socket::Eager(near)), config.hosts[0].clone());
        (wire, far)
    }

    #[tokio::test]
    async fn messages_in_any_pieces() {
        for lazy in [false, true] {
            let (mut wire, mut far) = pair().await;
            if lazy {
                wire.read_lazily(Duration::ZERO).unwrap();
            }
            let writer = async {
                for byte in b"d\0\0\0\x07abcZ\0\0\0\x04d\0\0\0\x05x" {
                    far.write_all(&[*byte]).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            let reader = async {
                assert_eq!(
                    wire.next().await.unwrap(),
                    (b'd', Bytes::from_static(b"abc"))
                );
                assert_eq!(wire.next().await.unwrap(), (b'Z', Bytes::new()));
                assert_eq!(wire.next().await.unwrap(), (b'd', Bytes::from_static(b"x")));
            };
            tokio::join!(writer, reader);
            drop(far);
            assert!(matches!(wire.next().await, Err(Error::Closed)));
        }
    }

    #[tokio::test]
    async fn a_length_is_not_believed() {
        let (mut wire, mut far) = pair().await;
        far.write_all(b"R\xff\xff\xff\xff").await.unwrap();
        assert!(matches!(
            wire.next().await,
            Err(Error::MessageTooLong { .. })
        ));

        let (mut wire, mut far) = pair().await;
        far.write_all(b"R\0\0\0\x03").await.unwrap();
        assert!(matches!(wire.next().await, Err(Error::Protocol(_))));

        // Announced and allowed, and still nothing is allocated for what does not come.
        let (mut wire, mut far) = pair().await;
        wire.lift_limit();
        far.write_all(b"d\x3f\xff\xff\xffabc").await.unwrap();
        drop(far);
        assert!(matches!(
            wire.next().await,
            Err(Error::Closed | Error::Broken(_))
        ));
        assert!(wire.incoming.capacity() < 2 * READ_BYTES);
    }

    #[tokio::test]
    async fn a_long_message_takes_its_buffer_along() {
        let (mut wire, mut far) = pair().await;
        wire.lift_limit();
        let long = vec![b'x'; 5 << 20];
        let writer = async {
            let length = u32::try_from(long.len() + 4).unwrap();
            far.write_all(b"d").await.unwrap();
            far.write_all(&length.to_be_bytes()).await.unwrap();
            far.write_all(&long).await.unwrap();
            far.write_all(b"d\0\0\0\x05y").await.unwrap();
        };
        let reader = async {
            assert_eq!(wire.next().await.unwrap().1, long);
            assert_eq!(wire.next().await.unwrap().1, "y");
        };
        tokio::join!(writer, reader);
        assert!(wire.incoming.capacity() < 2 * READ_BYTES);
    }

    #[tokio::test]
    async fn a_stream_of_long_messages_has_more_room() {
        for (length, is_more) in [(100, false), (4096, true)] {
            let (mut wire, mut far) = pair().await;
            wire.lift_limit();
            wire.read_lazily(Duration::ZERO).unwrap();
            let size = |wire: &Wire| match &wire.stream {
                Transport::Tcp(socket) => socket.buffer_bytes(),
                Transport::Unix(_) | Transport::Tls(_) => None,
            };
            let before = size(&wire);
            let header = u32::try_from(length + 4).unwrap().to_be_bytes();
            let message = [&b"d"[..], &header, &vec![b'x'; length]].concat();
            let count = 2 * LOOK_BYTES / length;
            let writer = async { far.write_all(&message.repeat(count)).await.unwrap() };
            let reader = async {
                for _ in 0..count {
                    wire.next().await.unwrap();
                }
            };
            tokio::join!(writer, reader);
            assert_eq!(size(&wire) > before, is_more);
        }
    }

    /// With a backlog there is always something to read, and timers of the same task fire anyway.
    #[tokio::test]
    async fn a_backlog_does_not_stop_the_clock() {
        use std::io::Write as _;

        const COUNT: usize = 100_000;
        let (mut wire, far) = pair().await;
        wire.lift_limit();
        wire.read_lazily(Duration::ZERO).unwrap();
        let mut far = far.into_std().unwrap();
        far.set_nonblocking(false).unwrap();
        let writer = std::thread::spawn(move || {
            let message = [&b"d\0\0\0\x68"[..], &[b'x'; 100]].concat();
            far.write_all(&message.repeat(COUNT)).unwrap();
        });
        let mut clock = tokio::time::interval(Duration::from_millis(1));
        let (mut messages, mut ticks) = (0, 0);
        while messages < COUNT {
            tokio::select! {
                biased;
                message = wire.next() => {
                    message.unwrap();
                    messages += 1;
                    // Slower than the writer, so that the socket never runs dry.
                    let begun = std::time::Instant::now();
                    while begun.elapsed() < Duration::from_micros(5) {}
                }
                _ = clock.tick() => ticks += 1,
            }
        }
        writer.join().unwrap();
        assert!(ticks > 20, "{ticks}");
    }
}
