//! Reading an object: fetched by ranges, opened piece by piece, one range ahead.
//!
//! A range is a request of its own with its own retries, so a consumer may be as slow as it likes, and
//! a connection that hangs costs one range, not the object. Memory: two ranges, and some chunks for a
//! reader that blocks.

use std::io::{self, BufRead, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use object_store::ObjectMeta;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use crate::envelope::{Header, Opened, Opener, UnsealError};
use crate::error::{Error, Result};
use crate::objects::{Objects, READ_BYTES};

/// Plain bytes that are handed out at once.
const CHUNK_BYTES: usize = 128 * 1024;
/// Stored bytes that are pushed at once.
const PUSH_BYTES: usize = 64 * 1024;
/// Plain chunks that wait for a reader that blocks.
const CHUNKS_AHEAD: usize = 4;

/// The stored bytes of an object, in order.
pub(crate) struct Fetch {
    objects: Arc<Objects>,
    key: String,
    meta: ObjectMeta,
    /// What was fetched and not taken yet.
    bytes: Bytes,
    /// Where the range after those in hand and under way begins.
    next: u64,
    ahead: Option<AbortOnDropHandle<Result<(Bytes, ObjectMeta)>>>,
}

impl Fetch {
    pub(crate) async fn start(objects: Arc<Objects>, key: String) -> Result<Self> {
        let (bytes, meta) = match objects.get_range(&key, 0..READ_BYTES).await {
            Ok(fetched) => fetched,
            Err(error @ Error::NotFound { .. }) => return Err(error),
            // There is no range in an empty object, and some servers answer one that exceeds the
            // object as if it were none.
            Err(error) => match objects.head(&key).await {
                Ok(Some(meta)) if meta.size == 0 => (Bytes::new(), meta),
                Ok(Some(meta)) if meta.size <= READ_BYTES => {
                    objects.get_part(&key, 0..meta.size, meta.size).await?
                }
                Ok(_) | Err(_) => return Err(error),
            },
        };
        let mut fetch = Self {
            objects,
            key,
            next: bytes.len() as u64,
            bytes,
            meta,
            ahead: None,
        };
        fetch.fetch_ahead();
        Ok(fetch)
    }

    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Takes the header off the front.
    pub(crate) fn header(&mut self) -> Result<Header> {
        let corrupt = |error| Error::corrupt(&self.key, error);
        let header = self
            .bytes
            .first_chunk()
            .ok_or_else(|| corrupt(UnsealError::NoHeader))?;
        let header = Header::decode(header).map_err(corrupt)?;
        self.bytes = self.bytes.slice(Header::BYTES..);
        Ok(header)
    }

    /// The next stored bytes; none at the end. Cancel-safe: what was fetched stays.
    async fn next(&mut self) -> Result<Option<Bytes>> {
        if self.bytes.is_empty() {
            let Some(ahead) = &mut self.ahead else {
                return match self.next == self.meta.size {
                    true => Ok(None),
                    false => Err(Error::corrupt(&self.key, UnsealError::Changed)),
                };
            };
            let fetched = ahead.await.map_err(|error| Error::Transport {
                key: self.key.clone(),
                detail: error.to_string(),
            });
            self.ahead = None;
            let (bytes, meta) = fetched.flatten()?;
            if bytes.is_empty() || meta.size != self.meta.size || meta.e_tag != self.meta.e_tag {
                return Err(Error::corrupt(&self.key, UnsealError::Changed));
            }
            self.next += bytes.len() as u64;
            self.bytes = bytes;
            self.fetch_ahead();
        }
        Ok(Some(self.bytes.split_to(self.bytes.len().min(PUSH_BYTES))))
    }

    fn fetch_ahead(&mut self) {
        if self.next < self.meta.size {
            let range = self.next..self.meta.size.min(self.next + READ_BYTES);
            let (objects, key) = (Arc::clone(&self.objects), self.key.clone());
            let fetch = async move { objects.get_range(&key, range).await };
            self.ahead = Some(AbortOnDropHandle::new(tokio::spawn(fetch)));
        }
    }
}

/// The plain bytes of an object.
///
/// They count only once the end was reached without an error: the check that nothing is missing is
/// in the last bytes.
pub struct ObjectReader {
    fetch: Fetch,
    opener: Opener,
    failed: bool,
}

impl ObjectReader {
    pub(crate) fn new(fetch: Fetch, opener: Opener) -> Self {
        Self {
            fetch,
            opener,
            failed: false,
        }
    }

    /// Size of the object as it is stored.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.fetch.meta.size
    }

    /// The next plain bytes, at most 128 KiB; none at the verified end. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the object is not what was written; what was read so far is worthless
    /// then. After an error there is nothing more to read.
    pub async fn next_chunk(&mut self) -> Result<Option<Bytes>> {
        if self.failed {
            return Err(Error::corrupt(self.fetch.key(), UnsealError::CutOff));
        }
        let next = self.try_next_chunk().await;
        self.failed = next.is_err();
        next
    }

    async fn try_next_chunk(&mut self) -> Result<Option<Bytes>> {
        let mut out = vec![0; CHUNK_BYTES];
        loop {
            let opened = self.opener.take(&mut out);
            match opened.map_err(|error| Error::corrupt(self.fetch.key(), error))? {
                Opened::Plain(bytes) => {
                    out.truncate(bytes);
                    return Ok(Some(Bytes::from(out)));
                }
                Opened::Starved => match self.fetch.next().await? {
                    Some(bytes) => self.opener.push(&bytes),
                    None => self.opener.end(),
                },
                Opened::End => return Ok(None),
            }
        }
    }

    /// All of a small object.
    pub(crate) async fn read_all(mut self, limit: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(chunk) = self.next_chunk().await? {
            if all.len() + chunk.len() > limit {
                let error = UnsealError::TooLarge { limit };
                return Err(Error::corrupt(self.fetch.key(), error));
            }
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    /// For code that blocks, inside `spawn_blocking`. What it reads next is fetched and opened beside it.
    /// Must be called within a runtime.
    #[must_use]
    pub fn into_blocking(mut self) -> BlockingReader {
        let (sender, chunks) = mpsc::channel(CHUNKS_AHEAD);
        let opening = async move {
            loop {
                let next = self.next_chunk().await;
                let is_last = !matches!(next, Ok(Some(_)));
                if sender.send(next).await.is_err() || is_last {
                    return;
                }
            }
        };
        BlockingReader {
            chunks,
            ended: false,
            chunk: Bytes::new(),
            _opening: AbortOnDropHandle::new(tokio::spawn(opening)),
        }
    }
}

/// An [`ObjectReader`] for code that blocks; it buffers, so no `BufReader` is needed around it.
///
/// Its errors are [`io::Error`]s around [`Error`]. It must not be read on a thread of the runtime.
pub struct BlockingReader {
    chunks: mpsc::Receiver<Result<Option<Bytes>>>,
    /// The verified end was reached.
    ended: bool,
    chunk: Bytes,
    _opening: AbortOnDropHandle<()>,
}

impl BufRead for BlockingReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty() && !self.ended {
            match self.chunks.blocking_recv() {
                Some(Ok(Some(chunk))) => self.chunk = chunk,
                Some(Ok(None)) => self.ended = true,
                Some(Err(error)) => return Err(into_io(error)),
                // After an error; or the runtime is shutting down.
                None => return Err(io::Error::other("the object is not read any more")),
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, bytes: usize) {
        self.chunk.advance(bytes);
    }
}

impl Read for BlockingReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let chunk = self.fill_buf()?;
        let bytes = chunk.len().min(out.len());
        out[..bytes].copy_from_slice(&chunk[..bytes]);
        self.consume(bytes);
        Ok(bytes)
    }
}

fn into_io(error: Error) -> io::Error {
    let kind = match &error {
        Error::Corrupt { .. } => io::ErrorKind::InvalidData,
        Error::NotFound { .. } => io::ErrorKind::NotFound,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, error)
}
