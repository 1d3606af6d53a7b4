//! Objects by their keys: created once, never changed, read in bounded pieces.
//!
//! Invariant: when a put returns [`Put`], exactly the bytes given stand under the key, durably. Object
//! stores that ignore the condition of a conditional put are found out by a probe; there every put
//! looks before and reads back after, which leaves a moment in which two writers can miss each other.
//! The same holds for large objects on remote stores: completing a multipart upload takes no condition.

mod multipart;
mod probe;

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use bytes::Bytes;
use futures::TryStreamExt;
use lastgood_proto::{Class, PgTimestamp};
use object_store::path::Path;
use object_store::{
    GetOptions, GetRange, ObjectMeta, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use tokio::sync::OnceCell;

use crate::backend::{Backend, Kind};
use crate::error::{Error, Result};

pub(crate) use multipart::Multipart;

/// Bodies up to this size go in one request.
pub(crate) const SINGLE_PUT_BYTES_MAX: u64 = 16 << 20;
/// What one read request asks for.
pub(crate) const READ_BYTES: u64 = 8 << 20;
/// Tries of a create-only put, beyond the retries inside each: after a timeout only we can tell,
/// by comparing, whether it was done.
const PUT_TRIES: u32 = 3;
const PUT_PAUSE: Duration = Duration::from_millis(500);

/// What the store makes of "create only if absent".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionalPut {
    Enforced,
    /// Accepted and ignored, or not known at all.
    Ignored,
}

/// How a create-only put went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    Created,
    /// The very same content was there: an earlier try had succeeded.
    AlreadyThereSame,
}

/// The bytes of an object, ready to be stored and to be stored again.
pub enum SealedBody {
    Memory(Bytes),
    /// A spooled file and its length. Read by position, so the file's cursor does not matter.
    File(File, u64),
}

impl SealedBody {
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match self {
            SealedBody::Memory(bytes) => bytes.len() as u64,
            SealedBody::File(_, bytes) => *bytes,
        }
    }

    /// The part of the body that lies in `range`.
    async fn part(&self, key: &str, range: Range<u64>) -> Result<Bytes> {
        let spool = |source| Error::Spool {
            key: key.to_owned(),
            source,
        };
        let (start, end) = (range.start, range.end);
        let length = usize::try_from(end - start)
            .map_err(|_| spool(std::io::ErrorKind::InvalidInput.into()))?;
        match self {
            SealedBody::Memory(bytes) => {
                let start = usize::try_from(start)
                    .map_err(|_| spool(std::io::ErrorKind::InvalidInput.into()))?;
                Ok(bytes.slice(start..start + length))
            }
            SealedBody::File(file, _) => {
                let file = file.try_clone().map_err(spool)?;
                let read = tokio::task::spawn_blocking(move || {
                    let mut buffer = vec![0; length];
                    file.read_exact_at(&mut buffer, start)?;
                    Ok(Bytes::from(buffer))
                });
                read.await
                    .map_err(std::io::Error::other)
                    .flatten()
                    .map_err(spool)
            }
        }
    }
}

/// One object in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Below the repository's prefix.
    pub(crate) key: String,
    pub(crate) bytes: u64,
    pub(crate) modified: PgTimestamp,
}

/// The raw layer below keys and envelopes.
pub(crate) struct Objects {
    pub(crate) backend: Backend,
    conditional: OnceCell<ConditionalPut>,
}

impl Objects {
    pub(crate) fn new(backend: Backend) -> Self {
        Self {
            backend,
            conditional: OnceCell::new(),
        }
    }

    /// None until the first put: a reader needs no right to write.
    pub(crate) fn conditional_put(&self) -> Option<ConditionalPut> {
        self.conditional.get().copied()
    }

    /// Finds out, once, by putting twice.
    pub(crate) async fn probe(&self) -> Result<ConditionalPut> {
        self.conditional
            .get_or_try_init(|| probe::conditional_put(&self.backend))
            .await
            .copied()
    }

    /// Creates `key` with `body`.
    ///
    /// # Errors
    /// [`Error::Conflict`] if there is other content under the key.
    pub(crate) async fn put_new(&self, key: &str, body: &SealedBody) -> Result<Put> {
        let conditional = self.probe().await?;
        if body.bytes() > SINGLE_PUT_BYTES_MAX {
            return self.put_large(key, body).await;
        }
        let bytes = body.part(key, 0..body.bytes()).await?;
        let mut pause = PUT_PAUSE;
        for _ in 1..PUT_TRIES {
            match self.try_put(key, &bytes, conditional).await {
                Ok(Some(put)) => return Ok(put),
                // Another's put was in the way and then failed.
                Ok(None) => {}
                Err(error) if error.class() == Class::Transient => {
                    tracing::info!(key, %error, "put failed, trying again");
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(pause).await;
            pause *= 4;
        }
        match self.try_put(key, &bytes, conditional).await? {
            Some(put) => Ok(put),
            None => Err(Error::Transport {
                key: key.to_owned(),
                detail: "other puts of the same key keep getting in the way".to_owned(),
            }),
        }
    }

    /// None if the store said the key is taken and then that it is free.
    async fn try_put(
        &self,
        key: &str,
        bytes: &Bytes,
        conditional: ConditionalPut,
    ) -> Result<Option<Put>> {
        let body = SealedBody::Memory(bytes.clone());
        let mode = match conditional {
            ConditionalPut::Enforced => PutMode::Create,
            ConditionalPut::Ignored => match self.same(key, &body).await? {
                Some(same) => return self.already_there(key, same).await.map(Some),
                None => PutMode::Overwrite,
            },
        };
        let path = self.path(key)?;
        let payload = PutPayload::from_bytes(bytes.clone());
        let store = &self.backend.store;
        let put = store.put_opts(&path, payload, PutOptions::from(mode)).await;
        match put.map_err(|error| put_error(key, &error)) {
            Ok(_) if conditional == ConditionalPut::Enforced => Ok(Some(Put::Created)),
            Ok(_) => match self.same(key, &body).await? {
                Some(true) => Ok(Some(Put::Created)),
                Some(false) | None => Err(conflict(key)),
            },
            Err(Error::Conflict { .. }) => match self.same(key, &body).await? {
                Some(same) => self.already_there(key, same).await.map(Some),
                None => Ok(None),
            },
            Err(error) => Err(error),
        }
    }

    async fn put_large(&self, key: &str, body: &SealedBody) -> Result<Put> {
        if let Some(same) = self.same(key, body).await? {
            return self.already_there(key, same).await;
        }
        let mut upload = Multipart::start(self, key).await?;
        let mut start = 0;
        while start < body.bytes() {
            let end = body.bytes().min(start + upload.part_bytes());
            upload.add(body.part(key, start..end).await?).await?;
            start = end;
        }
        match upload.complete(self).await {
            Ok(()) => Ok(Put::Created),
            // It may be our own: the answer to completing an upload gets lost like any other.
            Err(error) => match self.same(key, body).await {
                Ok(Some(same)) => self.already_there(key, same).await,
                Ok(None) | Err(_) => Err(error),
            },
        }
    }

    async fn already_there(&self, key: &str, same: bool) -> Result<Put> {
        if !same {
            return Err(conflict(key));
        }
        // The process that made it may have died before its folder was synced.
        self.settle(key.rsplit_once('/').map_or("", |(folder, _)| folder))
            .await?;
        Ok(Put::AlreadyThereSame)
    }

    /// Whether `key` holds exactly `body`; none if it is not there.
    async fn same(&self, key: &str, body: &SealedBody) -> Result<Option<bool>> {
        let mut start = 0;
        let meta = match self.head(key).await? {
            Some(meta) => meta,
            None => return Ok(None),
        };
        if meta.size != body.bytes() {
            return Ok(Some(false));
        }
        while start < meta.size {
            let range = start..meta.size.min(start + READ_BYTES);
            start = range.end;
            let ours = body.part(key, range.clone()).await?;
            match self.get_part(key, range, meta.size).await {
                Ok((theirs, _)) if theirs == ours => {}
                Ok(_) => return Ok(Some(false)),
                Err(Error::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
        Ok(Some(true))
    }

    /// Size and tag; none if the object is not there.
    pub(crate) async fn head(&self, key: &str) -> Result<Option<ObjectMeta>> {
        match self.backend.store.head(&self.path(key)?).await {
            Ok(meta) => Ok(Some(meta)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(Error::from_store(key, &error)),
        }
    }

    /// The bytes in `range`, fewer if the object ends before.
    pub(crate) async fn get_range(
        &self,
        key: &str,
        range: Range<u64>,
    ) -> Result<(Bytes, ObjectMeta)> {
        self.get(key, Some(GetRange::Bounded(range))).await
    }

    /// The bytes in `range` of an object of `bytes` bytes.
    pub(crate) async fn get_part(
        &self,
        key: &str,
        range: Range<u64>,
        bytes: u64,
    ) -> Result<(Bytes, ObjectMeta)> {
        // Some servers answer a range that is everything as if it were none, which is refused.
        let range = (range != (0..bytes)).then_some(GetRange::Bounded(range));
        self.get(key, range).await
    }

    async fn get(&self, key: &str, range: Option<GetRange>) -> Result<(Bytes, ObjectMeta)> {
        let options = GetOptions {
            range,
            ..GetOptions::default()
        };
        let from_store = |error| Error::from_store(key, &error);
        let path = self.path(key)?;
        let result = self
            .backend
            .store
            .get_opts(&path, options)
            .await
            .map_err(from_store)?;
        let meta = result.meta.clone();
        Ok((result.bytes().await.map_err(from_store)?, meta))
    }

    /// A whole small object.
    ///
    /// # Errors
    /// [`Error::TooLarge`] if it has more than `limit` bytes; nothing of it is read then.
    pub(crate) async fn get_small(&self, key: &str, limit: u64) -> Result<Bytes> {
        let from_store = |error| Error::from_store(key, &error);
        let result = self
            .backend
            .store
            .get(&self.path(key)?)
            .await
            .map_err(from_store)?;
        if result.meta.size > limit {
            return Err(Error::TooLarge {
                key: key.to_owned(),
                detail: format!("{} bytes, at most {limit} expected", result.meta.size),
            });
        }
        result.bytes().await.map_err(from_store)
    }

    /// Every object in `folder` and below whose key comes after `after`, sorted by key.
    pub(crate) async fn list(&self, folder: &str, after: Option<&str>) -> Result<Vec<Entry>> {
        // Whoever lists builds on what is there, so it has to be there after a power cut as well.
        self.settle(folder).await?;
        let prefix = self.path(folder)?;
        let metas = match after {
            None => self.backend.store.list(Some(&prefix)),
            Some(after) => {
                let after = self.path(after)?;
                self.backend.store.list_with_offset(Some(&prefix), &after)
            }
        };
        let cut = match self.backend.prefix.len() {
            0 => 0,
            length => length + 1,
        };
        let entries = metas.map_ok(|meta| Entry {
            key: meta.location.as_ref().get(cut..).unwrap_or("").to_owned(),
            bytes: meta.size,
            modified: PgTimestamp::from_unix_micros(meta.last_modified.timestamp_micros()),
        });
        let mut entries: Vec<Entry> = entries
            .try_collect()
            .await
            .map_err(|error| Error::from_store(folder, &error))?;
        entries.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(entries)
    }

    /// The names of the folders directly in `folder`.
    pub(crate) async fn folders(&self, folder: &str) -> Result<Vec<String>> {
        let prefix = self.path(folder)?;
        let listed = self.backend.store.list_with_delimiter(Some(&prefix)).await;
        let listed = listed.map_err(|error| Error::from_store(folder, &error))?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        Ok(listed.common_prefixes.iter().filter_map(name).collect())
    }

    /// Succeeds if it is not there.
    pub(crate) async fn delete(&self, key: &str) -> Result<()> {
        match self.backend.store.delete(&self.path(key)?).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(Error::from_store(key, &error)),
        }
    }

    /// Removes what interrupted puts left in a local folder.
    pub(crate) async fn sweep(&self) {
        if let Kind::Local(root) = &self.backend.kind {
            let root = root.clone();
            match tokio::task::spawn_blocking(move || probe::sweep(&root)).await {
                Ok(0) => {}
                Ok(files) => tracing::info!(files, "removed what interrupted puts had left"),
                Err(error) => tracing::warn!(%error, "could not look for interrupted puts"),
            }
        }
    }

    /// Makes every name in a local folder, below and on the way to it, durable; nothing to do elsewhere.
    async fn settle(&self, folder: &str) -> Result<()> {
        let Kind::Local(root) = &self.backend.kind else {
            return Ok(());
        };
        let (root, path) = (root.clone(), root.join(folder));
        tokio::task::spawn_blocking(move || probe::sync_folders(&root, &path))
            .await
            .map_err(std::io::Error::other)
            .flatten()
            .map_err(|error| Error::Transport {
                key: folder.to_owned(),
                detail: error.to_string(),
            })
    }

    pub(crate) fn path(&self, key: &str) -> Result<Path> {
        let path = match self.backend.prefix.as_str() {
            "" => Path::parse(key),
            prefix => Path::parse(format!("{prefix}/{key}")),
        };
        path.map_err(|error| Error::Format {
            key: key.to_owned(),
            reason: error.to_string(),
        })
    }
}

fn conflict(key: &str) -> Error {
    Error::Conflict {
        key: key.to_owned(),
    }
}

/// As [`Error::from_store`], for a request that makes something: there "not found" is the bucket.
pub(crate) fn put_error(key: &str, error: &object_store::Error) -> Error {
    match Error::from_store(key, error) {
        Error::NotFound { key } => Error::Refused {
            key,
            detail: "the bucket or container does not exist".to_owned(),
        },
        other => other,
    }
}
