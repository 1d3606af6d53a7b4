//! A session that is lent to client tools: they use its server process, with the transaction, the
//! snapshot and the locks that were taken in it beforehand, one tool after the other.
//!
//! `pg_dump` on a connection of its own has to queue for its locks behind every TRUNCATE that came
//! since the snapshot, and no other session can hold them for it: a TRUNCATE that waits for that one
//! stands before `pg_dump` all the same. On a lent session it finds them held already. Besides, no
//! tool needs to know how the server is reached: no password, no certificate, no TLS of its own.
//!
//! The tool connects to a socket of ours, is told that it is welcome, and from then on bytes are
//! passed on as they are. Its good-bye is not: the session stays.

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use crate::connect::Canceller;
use crate::transport::Transport;

/// What libpq and `pg_dump` look at. Anything else they ask for by SQL.
pub(crate) const PARAMETERS: &[&str] = &[
    "server_version",
    "server_encoding",
    "client_encoding",
    "standard_conforming_strings",
    "integer_datetimes",
    "DateStyle",
    "IntervalStyle",
    "TimeZone",
    "is_superuser",
    "session_authorization",
];

const CHUNK_BYTES: usize = 64 * 1024;
/// Tag and length.
const HEADER_BYTES: usize = 5;
/// libpq sends a few hundred bytes.
const STARTUP_BYTES_MAX: u32 = 10_000;
const TERMINATE: u8 = b'X';
const READY: u8 = b'Z';
/// Protocol numbers of a first message (`pqcomm.h`).
const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
/// What tools leave behind that would be in the way of the next one. An encoding that is set already is
/// not reported again, and the tool would write the one it was welcomed with into its archive.
const TIDY: &str = "DEALLOCATE ALL; SET client_encoding = 'UTF8'";

/// A session that nobody is using. Dropping it ends it, also while it waits for a lock: a server
/// process that does would not notice that nobody is there any more, and keep the locks it has.
pub struct Loan {
    server: Transport,
    /// Until the session has been left in good order.
    canceller: Option<Canceller>,
    parameters: Vec<(&'static str, String)>,
    /// Of the last ReadyForQuery: whether a transaction is open.
    status: u8,
}

impl Loan {
    /// Takes over a server process that waits for a command.
    pub(crate) async fn new(
        server: Transport,
        canceller: Canceller,
        parameters: Vec<(&'static str, String)>,
    ) -> io::Result<Self> {
        let mut loan = Self {
            server,
            canceller: Some(canceller),
            parameters,
            status: b'I',
        };
        loan.tidy().await?;
        Ok(loan)
    }

    /// Says the good-bye that the tools were not let say. A session that is dropped without it ends as
    /// well, and the server notes in its log that nobody said so.
    pub async fn close(mut self) {
        self.canceller = None;
        let good_bye = [TERMINATE, 0, 0, 0, 4];
        // An error here is one of a connection that ends anyway.
        let _ended = self.server.write_all(&good_bye).await;
        let _ended = self.server.shutdown().await;
    }

    async fn tidy(&mut self) -> io::Result<()> {
        let mut query = vec![b'Q'];
        let length = u32::try_from(TIDY.len() + HEADER_BYTES).unwrap_or(0);
        query.extend(length.to_be_bytes());
        query.extend(TIDY.as_bytes());
        query.push(0);
        self.server.write_all(&query).await?;
        self.server.flush().await?;
        let mut answers = Messages::default();
        let mut chunk = vec![0; CHUNK_BYTES];
        // An error in it shows in the status.
        while !(answers.last == READY && answers.at_boundary()) {
            let count = read_some(&mut self.server, &mut chunk).await?;
            answers.pass(chunk.get(..count).unwrap_or_default());
        }
        self.status = answers.status;
        Ok(())
    }

    /// Serves the first client that comes to `socket` until it says good-bye.
    ///
    /// # Errors
    /// If either side goes without one; the session is lost then.
    pub(crate) async fn serve(mut self, socket: Socket) -> io::Result<Self> {
        let mut client = socket.accept().await?;
        self.welcome(&mut client).await?;
        let (mut from_client, mut to_client) = client.split();
        let (mut from_server, mut to_server) = tokio::io::split(&mut self.server);
        let mut answers = Messages::default();
        // The good-bye comes when all has been said: what is dropped here is a read.
        tokio::select! {
            biased;
            back = pass_back(&mut from_server, &mut to_client, &mut answers) => back?,
            there = pass_on(&mut from_client, &mut to_server) => there?,
        }
        if !(answers.last == READY && answers.at_boundary()) {
            return Err(io::Error::other(
                "the tool left before its command was done",
            ));
        }
        self.tidy().await?;
        Ok(self)
    }

    /// Plays the server up to the moment at which it waits for a command.
    async fn welcome(&self, client: &mut UnixStream) -> io::Result<()> {
        loop {
            let length = client.read_u32().await?;
            if !(8..=STARTUP_BYTES_MAX).contains(&length) {
                return Err(io::Error::other("a startup message of no sensible length"));
            }
            let code = client.read_u32().await?;
            let mut rest = vec![0; usize::try_from(length).unwrap_or(8).saturating_sub(8)];
            client.read_exact(&mut rest).await?;
            match code {
                SSL_REQUEST | GSS_REQUEST => client.write_all(b"N").await?,
                // User, database and settings are those of the session.
                _ => break,
            }
        }
        let mut welcome = Vec::new();
        let mut message = |tag: u8, body: &[u8]| {
            welcome.push(tag);
            let length = u32::try_from(body.len() + 4).unwrap_or(0);
            welcome.extend(length.to_be_bytes());
            welcome.extend(body);
        };
        // AuthenticationOk.
        message(b'R', &[0; 4]);
        for (name, value) in &self.parameters {
            message(b'S', format!("{name}\0{value}\0").as_bytes());
        }
        // A key to cancel with, which is good for nothing.
        message(b'K', &[0; 8]);
        message(READY, &[self.status]);
        client.write_all(&welcome).await
    }
}

impl Drop for Loan {
    fn drop(&mut self) {
        let (Some(canceller), Ok(runtime)) =
            (self.canceller.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        runtime.spawn(async move {
            if let Err(error) = canceller.cancel().await {
                let error = &error as &dyn std::error::Error;
                tracing::debug!(error, "a lent session could not be cancelled");
            }
        });
    }
}

async fn read_some(reader: &mut (impl AsyncRead + Unpin), chunk: &mut [u8]) -> io::Result<usize> {
    match reader.read(chunk).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        count => Ok(count),
    }
}

async fn pass_back(
    server: &mut (impl AsyncRead + Unpin),
    client: &mut (impl AsyncWrite + Unpin),
    answers: &mut Messages,
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = read_some(server, &mut chunk).await?;
        let fresh = chunk.get(..count).unwrap_or_default();
        answers.pass(fresh);
        client.write_all(fresh).await?;
    }
}

async fn pass_on(
    client: &mut (impl AsyncRead + Unpin),
    server: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut commands = Messages::default();
    loop {
        let count = read_some(client, &mut chunk).await?;
        let fresh = chunk.get(..count).unwrap_or_default();
        let passed = commands.pass(fresh);
        server
            .write_all(fresh.get(..passed).unwrap_or_default())
            .await?;
        server.flush().await?;
        if commands.last == TERMINATE {
            return Ok(());
        }
    }
}

/// Follows the messages in a stream of bytes that comes in arbitrary pieces.
#[derive(Default)]
struct Messages {
    /// Of the message that has begun: as far as it is there.
    header: [u8; HEADER_BYTES],
    known: usize,
    /// Of its body, still to come.
    left: usize,
    /// Tag of the last message that has begun.
    last: u8,
    /// First byte of the last ReadyForQuery.
    status: u8,
}

impl Messages {
    fn at_boundary(&self) -> bool {
        self.known == 0 && self.left == 0
    }

    /// Returns how much of `bytes` lies before a good-bye: all, if there is none.
    fn pass(&mut self, bytes: &[u8]) -> usize {
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            if self.left > 0 {
                if self.last == READY {
                    self.status = byte;
                }
                let skipped = self.left.min(rest.len());
                self.left -= skipped;
                rest = rest.get(skipped..).unwrap_or_default();
                continue;
            }
            if self.known == 0 {
                self.last = byte;
                if byte == TERMINATE {
                    return bytes.len() - rest.len();
                }
            }
            if let Some(place) = self.header.get_mut(self.known) {
                *place = byte;
            }
            self.known += 1;
            rest = after;
            if self.known == HEADER_BYTES {
                let [_, a, b, c, d] = self.header;
                let length = u32::from_be_bytes([a, b, c, d]);
                self.left = usize::try_from(length).unwrap_or(0).saturating_sub(4);
                self.known = 0;
            }
        }
        bytes.len()
    }
}

/// Where one tool can connect. The folder is ours alone, and gone once the tool is there.
pub(crate) struct Socket {
    listener: UnixListener,
    folder: Folder,
}

impl Socket {
    /// libpq finds a socket by a folder and a port.
    pub(crate) const PORT: &str = "5432";

    pub(crate) fn bind() -> io::Result<Self> {
        // Keyed by the system's randomness.
        let random = std::collections::hash_map::RandomState::new()
            .build_hasher()
            .finish();
        let path = std::env::temp_dir().join(format!("lastgood-{random:016x}"));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        let folder = Folder(path);
        let listener = UnixListener::bind(folder.0.join(format!(".s.PGSQL.{}", Self::PORT)))?;
        Ok(Self { listener, folder })
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder.0
    }

    async fn accept(self) -> io::Result<UnixStream> {
        let (stream, _) = self.listener.accept().await?;
        Ok(stream)
    }
}

struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        // What stays is an empty folder.
        let _removed = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag][..], &length.to_be_bytes(), body].concat()
    }

    #[test]
    fn messages_are_followed_however_they_are_cut() {
        // A body that looks like a good-bye is none.
        let data = message(b'd', &message(TERMINATE, b""));
        let stream = [data, message(READY, b"T")].concat();
        for size in 1..=stream.len() {
            let mut messages = Messages::default();
            for piece in stream.chunks(size) {
                assert_eq!(messages.pass(piece), piece.len());
            }
            assert!(messages.at_boundary() && messages.last == READY);
            assert_eq!(messages.status, b'T');
        }
        let mut messages = Messages::default();
        let end = [message(b'Q', b"SELECT 1\0"), message(TERMINATE, b"")].concat();
        assert_eq!(messages.pass(&end), end.len() - HEADER_BYTES);
        assert_eq!(messages.last, TERMINATE);
    }
}
