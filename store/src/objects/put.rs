//! Putting: create only, compare on doubt, repeat when trouble passes.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use bytes::Bytes;
use lastgood_proto::Class;
use object_store::{PutMode, PutOptions, PutPayload};

use super::{ConditionalPut, Multipart, Objects, READ_BYTES};
use crate::error::{Error, Result};

/// Bodies up to this size go in one request.
const SINGLE_PUT_BYTES_MAX: u64 = 16 << 20;
/// Tries of a create-only put, beyond the retries inside each: after a timeout only we can tell,
/// by comparing, whether it was done.
const PUT_TRIES: u32 = 3;
const PUT_PAUSE: Duration = Duration::from_millis(500);

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

impl Objects {
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
}

pub(super) fn conflict(key: &str) -> Error {
    Error::Conflict {
        key: key.to_owned(),
    }
}

/// As [`Error::from_store`], for a request that makes something: there "not found" is the bucket.
pub(super) fn put_error(key: &str, error: &object_store::Error) -> Error {
    match Error::from_store(key, error) {
        Error::NotFound { key } => Error::Refused {
            key,
            detail: "the bucket or container does not exist".to_owned(),
        },
        other => other,
    }
}
