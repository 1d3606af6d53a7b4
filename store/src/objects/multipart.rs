//! Objects too large for one request, sent in parts of bounded number and size.
//!
//! On local disk the parts go into a temporary object, and a link, which fails if the name is taken,
//! makes it the object. A remote store cannot do that; there the key is looked at once more before the
//! upload is completed.

use bytes::Bytes;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::Objects;
use super::put::{conflict, put_error};
use crate::backend::Kind;
use crate::error::{Error, Result};

/// Parts that are on their way at once; one more is being filled.
const IN_FLIGHT_MAX: usize = 2;
const PART_BYTES: u64 = 8 << 20;
/// From this part on they are larger: S3 takes at most [`PARTS_MAX`]. All before are of one size,
/// because some stores want that.
const LARGE_PARTS_FROM: usize = 5_000;
const LARGE_PART_BYTES: u64 = 64 << 20;
const PARTS_MAX: usize = 10_000;

/// An upload that is under way. Dropped, it is taken back in the background, as far as the runtime
/// lives on.
pub(crate) struct Multipart {
    key: String,
    /// None once it is completed or taken back.
    upload: Option<Box<dyn MultipartUpload>>,
    in_flight: JoinSet<object_store::Result<()>>,
    parts: usize,
    /// What to make the object from, on local disk.
    draft: Option<Path>,
}

impl Multipart {
    /// The size of the first part, known before there is an upload.
    pub(crate) const FIRST_PART_BYTES: u64 = PART_BYTES;

    pub(crate) async fn start(objects: &Objects, key: &str) -> Result<Self> {
        let draft = match objects.backend.kind {
            Kind::Remote => None,
            Kind::Local(_) => Some(objects.path(&draft_key("upload")?)?),
        };
        let path = match &draft {
            Some(draft) => draft.clone(),
            None => objects.path(key)?,
        };
        let upload = objects.backend.store.put_multipart(&path).await;
        Ok(Self {
            key: key.to_owned(),
            upload: Some(upload.map_err(|error| put_error(key, &error))?),
            in_flight: JoinSet::new(),
            parts: 0,
            draft,
        })
    }

    /// The size the next part must have, unless it is the last.
    pub(crate) fn part_bytes(&self) -> u64 {
        match self.parts {
            ..LARGE_PARTS_FROM => PART_BYTES,
            _ => LARGE_PART_BYTES,
        }
    }

    /// Sends a part; waits while enough others are on their way.
    pub(crate) async fn add(&mut self, part: Bytes) -> Result<()> {
        if self.parts == PARTS_MAX {
            return Err(Error::TooLarge {
                key: self.key.clone(),
                detail: format!("an object has at most {PARTS_MAX} parts"),
            });
        }
        while self.in_flight.len() >= IN_FLIGHT_MAX {
            self.wait_one().await?;
        }
        self.parts += 1;
        if let Some(upload) = &mut self.upload {
            let part = upload.put_part(PutPayload::from_bytes(part));
            self.in_flight.spawn(part);
        }
        Ok(())
    }

    /// Creates the object.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the key was taken in the meantime. After any error the upload is undone
    /// as far as the store lets us.
    pub(crate) async fn complete(mut self, objects: &Objects) -> Result<()> {
        let completed = self.try_complete(objects).await;
        if completed.is_err() {
            self.abort().await;
        }
        completed
    }

    async fn try_complete(&mut self, objects: &Objects) -> Result<()> {
        while !self.in_flight.is_empty() {
            self.wait_one().await?;
        }
        if objects.head(&self.key).await?.is_some() {
            return Err(conflict(&self.key));
        }
        let error = |error| put_error(&self.key, &error);
        if let Some(upload) = &mut self.upload {
            upload.complete().await.map_err(error)?;
        }
        self.upload = None;
        if let Some(draft) = &self.draft {
            let store = &objects.backend.store;
            let linked = store
                .copy_if_not_exists(draft, &objects.path(&self.key)?)
                .await;
            let removed = store.delete(draft).await;
            linked.and(removed).map_err(error)?;
        }
        Ok(())
    }

    /// Takes the upload back. A store that cannot be reached keeps the parts until its own rules for
    /// incomplete uploads remove them.
    pub(crate) async fn abort(&mut self) {
        self.in_flight.shutdown().await;
        if let Some(upload) = self.upload.take() {
            take_back(upload, &self.key).await;
        }
    }

    async fn wait_one(&mut self) -> Result<()> {
        match self.in_flight.join_next().await {
            None | Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(put_error(&self.key, &error)),
            Some(Err(error)) => Err(Error::Transport {
                key: self.key.clone(),
                detail: error.to_string(),
            }),
        }
    }
}

impl Drop for Multipart {
    fn drop(&mut self) {
        // Nobody waits for this, and nothing depends on it: parts left behind cost only money.
        if let (Some(upload), Ok(runtime)) = (self.upload.take(), Handle::try_current()) {
            let key = std::mem::take(&mut self.key);
            runtime.spawn(async move { take_back(upload, &key).await });
        }
    }
}

async fn take_back(mut upload: Box<dyn MultipartUpload>, key: &str) {
    if let Err(error) = upload.abort().await {
        let error = put_error(key, &error);
        tracing::debug!(key, %error, "could not take an upload back");
    }
}

/// A key for something that is not to stay; nothing that lists sources or keys sees it.
pub(super) fn draft_key(what: &str) -> Result<String> {
    let mut nonce = [0; 8];
    getrandom::fill(&mut nonce).map_err(|_| Error::Random)?;
    Ok(format!("tmp/{what}-{:016x}", u64::from_be_bytes(nonce)))
}
