//! A TCP socket that can be read lazily.
//!
//! A walsender sends each message by a system call of its own. A reader that is woken for each one
//! makes each of those calls dearer, and halves the sender's speed. It does not help to come back
//! later while the socket is registered with the reactor: every packet wakes the reactor's thread
//! all the same. So a lazy socket takes itself out of the reactor after each read, lets a moment
//! pass if the read brought little, and then simply tries again; only when nothing has come is it
//! registered and waited for.
//!
//! That alone leaves each message a packet of its own, as long as there is room for it at our end:
//! two thirds of what a walsender spends in the kernel. Its kernel joins messages while our end has
//! no room. So where the other end is near, and a small buffer holds nothing up, the buffer is small
//! enough to be full before the moment is over. (Measured on loopback with 640,000 small rows: 7.0 s
//! of the walsender's CPU with a buffer as the kernel grows it, 4.5 s with a small one, 6.9 s with the same and a
//! moment of 2 ms.) Too small, it is short of room for messages of some KB as they come: the kernel drops them, and
//! the sender waits before it sends them again. (300,000 rows of 4 KB, inserted and updated: 8.1 s with half of
//! [`BUFFER_BYTES_MIN`], 7.3 s with it, 6.7 s with twice as much; small rows: 3.2, 3.2 and 3.6 s.)
//! So it becomes larger once such messages have come, and never small again: tried where short messages followed long
//! ones, that left the sender to probe a closed window for minutes.

use std::io::{self, Read, Write};
use std::net::TcpStream as StdTcpStream;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// The pause after a read that brought little.
const PAUSE: Duration = Duration::from_millis(10);
/// Between these lies what a read may bring.
const ROOM_BYTES_MIN: usize = 16 * 1024;
const ROOM_BYTES_MAX: usize = 256 * 1024;
/// A read that brought less, and less than there was room for, brought little.
const LITTLE_BYTES: usize = 16 * 1024;
/// What a small buffer lets through, at least: more than any walsender sends.
const BUFFER_BYTES_PER_MS: usize = 200 * 1000;
/// The kernel makes twice as much of it. That must hold the 64 KiB which the other end was told at
/// first, and what the kernel adds to each message: newer kernels drop what does not fit, again and again.
const BUFFER_BYTES_MIN: usize = 64 * 1024;
/// Where messages are long.
const BUFFER_BYTES_LONG: usize = 128 * 1024;
/// As much as Linux grants without being told otherwise (`net.core.rmem_max`). Where it would not do, the
/// kernel finds a size itself.
const BUFFER_BYTES_MAX: usize = 208 * 1024;

pub(crate) enum Socket {
    /// Read as soon as something is there, for dialogues.
    Eager(TcpStream),
    /// Read in large pieces, for a stream that nobody waits for message by message.
    Lazy(LazySocket),
    /// Between the two; seen only if the change failed.
    Gone,
}

impl Socket {
    /// `roundtrip` is how long an answer takes at least.
    pub(crate) fn make_lazy(&mut self, roundtrip: Duration) -> io::Result<()> {
        match std::mem::replace(self, Self::Gone) {
            Self::Eager(stream) => {
                let buffer = buffer_bytes(roundtrip);
                if let Some(bytes) = buffer {
                    SockRef::from(&stream).set_recv_buffer_size(bytes)?;
                }
                *self = Self::Lazy(LazySocket {
                    registration: Registration::Off(stream.into_std()?),
                    buffer,
                    pause: Box::pin(tokio::time::sleep(Duration::ZERO)),
                    is_pausing: false,
                    room: ROOM_BYTES_MIN,
                });
            }
            other => *self = other,
        }
        Ok(())
    }

    /// What the kernel was told.
    #[cfg(test)]
    pub(crate) fn buffer_bytes(&self) -> Option<usize> {
        match self {
            Self::Lazy(lazy) => lazy.buffer,
            Self::Eager(_) | Self::Gone => None,
        }
    }

    /// Messages are long: a small buffer becomes larger, if it is not yet.
    pub(crate) fn expect_long(&mut self) -> io::Result<()> {
        match self {
            Self::Lazy(lazy) => lazy.expect_long(),
            Self::Eager(_) | Self::Gone => Ok(()),
        }
    }
}

pub(crate) struct LazySocket {
    registration: Registration,
    /// What the kernel was told; nothing if it finds a size itself.
    buffer: Option<usize>,
    /// Kept across calls that are dropped, which must not begin it anew.
    pause: Pin<Box<Sleep>>,
    is_pausing: bool,
    /// How much the next read may bring: memory is zeroed before a socket fills it, which costs as much as
    /// the read itself where little comes.
    room: usize,
}

enum Registration {
    Off(StdTcpStream),
    On(TcpStream),
    Gone,
}

impl LazySocket {
    /// The socket out of the reactor, if that is where it is.
    fn unregistered(&self) -> Option<&StdTcpStream> {
        match &self.registration {
            Registration::Off(socket) => Some(socket),
            Registration::On(_) | Registration::Gone => None,
        }
    }

    fn expect_long(&mut self) -> io::Result<()> {
        if self.buffer.is_none_or(|bytes| bytes >= BUFFER_BYTES_LONG) {
            return Ok(());
        }
        let socket = match &self.registration {
            Registration::Off(socket) => SockRef::from(socket),
            Registration::On(stream) => SockRef::from(stream),
            Registration::Gone => return Err(gone()),
        };
        socket.set_recv_buffer_size(BUFFER_BYTES_LONG)?;
        self.buffer = Some(BUFFER_BYTES_LONG);
        Ok(())
    }

    fn registered(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        match std::mem::replace(&mut self.registration, Registration::Gone) {
            Registration::Off(socket) => {
                self.registration = Registration::On(TcpStream::from_std(socket)?);
            }
            other => self.registration = other,
        }
        match &mut self.registration {
            Registration::On(stream) => Ok(Pin::new(stream)),
            Registration::Off(_) | Registration::Gone => Err(gone()),
        }
    }

    fn unregister(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.registration, Registration::Gone) {
            Registration::On(stream) => {
                self.registration = Registration::Off(stream.into_std()?);
            }
            other => self.registration = other,
        }
        Ok(())
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.is_pausing {
            ready!(self.pause.as_mut().poll(cx));
            self.is_pausing = false;
        }
        let (room, before) = (buf.remaining().min(self.room), buf.filled().len());
        let at_once = match self.unregistered() {
            Some(mut socket) => tried(|| socket.read(buf.initialize_unfilled_to(room)))?,
            None => None,
        };
        match at_once {
            Some(count) => {
                buf.advance(count);
                if count == room {
                    self.room = room.saturating_mul(2);
                } else if count < room / 4 {
                    self.room = room / 2;
                }
                self.room = self.room.clamp(ROOM_BYTES_MIN, ROOM_BYTES_MAX);
            }
            None => {
                ready!(self.registered()?.poll_read(cx, buf))?;
                self.unregister()?;
            }
        }
        let count = buf.filled().len().saturating_sub(before);
        if (1..room.min(LITTLE_BYTES)).contains(&count) {
            self.pause.as_mut().reset(Instant::now() + PAUSE);
            self.is_pausing = true;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let at_once = match self.unregistered() {
            Some(mut socket) => tried(|| socket.write(bytes))?,
            None => None,
        };
        match at_once {
            Some(count) => Poll::Ready(Ok(count)),
            None => self.registered()?.poll_write(cx, bytes),
        }
    }
}

/// How small a buffer does for a network with this roundtrip; `None` if it takes a large one.
fn buffer_bytes(roundtrip: Duration) -> Option<usize> {
    let micros = usize::try_from(roundtrip.as_micros()).unwrap_or(usize::MAX);
    let bytes = micros.saturating_mul(BUFFER_BYTES_PER_MS) / 1000;
    (bytes <= BUFFER_BYTES_MAX).then(|| bytes.max(BUFFER_BYTES_MIN))
}

/// A call on a socket that does not block; `None` if it would have to.
fn tried(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        match call() {
            Ok(count) => return Ok(Some(count)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(
        io::ErrorKind::NotConnected,
        "the socket could not be registered",
    )
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Eager(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Lazy(lazy) => lazy.poll_read(cx, buf),
            Self::Gone => Poll::Ready(Err(gone())),
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Eager(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Lazy(lazy) => lazy.poll_write(cx, bytes),
            Self::Gone => Poll::Ready(Err(gone())),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Eager(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Lazy(lazy) => match lazy.registered() {
                Ok(stream) => stream.poll_shutdown(cx),
                Err(error) => Poll::Ready(Err(error)),
            },
            Self::Gone => Poll::Ready(Err(gone())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_small_where_the_other_end_is_near() {
        let of = |micros| buffer_bytes(Duration::from_micros(micros));
        assert_eq!(of(0), Some(BUFFER_BYTES_MIN));
        assert_eq!(of(100), Some(BUFFER_BYTES_MIN));
        assert_eq!(of(500), Some(100_000));
        assert_eq!(of(1_000), Some(200_000));
        assert_eq!(of(2_000), None);
        assert_eq!(of(u64::MAX), None);
    }

    #[tokio::test]
    async fn a_near_sender_is_left_little_room() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let room = async |roundtrip, is_long| {
            let near = TcpStream::connect(listener.local_addr().unwrap()).await;
            let mut socket = Socket::Eager(near.unwrap());
            socket.make_lazy(roundtrip).unwrap();
            if is_long {
                socket.expect_long().unwrap();
            }
            match &socket {
                Socket::Lazy(lazy) => {
                    let socket = SockRef::from(lazy.unregistered().unwrap());
                    socket.recv_buffer_size().unwrap()
                }
                Socket::Eager(_) | Socket::Gone => panic!("not lazy"),
            }
        };
        let (near, far) = (Duration::from_micros(50), Duration::from_micros(500));
        assert_eq!(room(near, false).await, 2 * BUFFER_BYTES_MIN);
        assert_eq!(room(near, true).await, 2 * BUFFER_BYTES_LONG);
        assert_eq!(room(far, false).await, 2 * 100_000);
        assert_eq!(room(far, true).await, 2 * BUFFER_BYTES_LONG);
        let farther = Duration::from_millis(1);
        assert_eq!(room(farther, true).await, 2 * 200_000);
        // Left to the kernel, it begins as any other, and grows.
        let any = TcpStream::connect(listener.local_addr().unwrap()).await;
        let any = SockRef::from(&any.unwrap()).recv_buffer_size().unwrap();
        assert_eq!(room(Duration::MAX, true).await, any);
        assert_eq!(room(Duration::from_millis(20), false).await, any);
    }
}
