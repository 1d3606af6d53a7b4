//! Objects by their keys: created once, never changed, read in bounded pieces.
//!
//! Invariant: when a put returns [`Put`], exactly the bytes given stand under the key, durably. Object
//! stores that ignore the condition of a conditional put are found out by a probe; there every put
//! looks before and reads back after, which leaves a moment in which two writers can miss each other.
//! The same holds for large objects on remote stores: completing a multipart upload takes no condition.

mod multipart;
mod probe;
mod put;

use std::ops::Range;

use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt};
use lastgood_proto::PgTimestamp;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectMeta, ObjectStoreExt};
use tokio::sync::OnceCell;

use crate::backend::{Backend, Kind};
use crate::error::{Error, Result};

pub(crate) use multipart::Multipart;
pub use put::{Put, SealedBody};

/// What one read request asks for.
pub(crate) const READ_BYTES: u64 = 8 << 20;

/// What the store makes of "create only if absent".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConditionalPut {
    Enforced,
    /// Accepted and ignored, or not known at all.
    Ignored,
}

/// Objects in one listing: what is known of each is kept in memory.
const LISTED_MAX: usize = 10_000_000;

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
        let mut entries = collect(folder, entries, LISTED_MAX).await?;
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

/// A listing as a whole, if it has no more than `limit` entries.
async fn collect(
    folder: &str,
    mut entries: impl Stream<Item = object_store::Result<Entry>> + Unpin,
    limit: usize,
) -> Result<Vec<Entry>> {
    let mut all = Vec::new();
    while let Some(entry) = entries.next().await {
        if all.len() == limit {
            return Err(Error::TooLarge {
                key: folder.to_owned(),
                detail: format!("more than {limit} objects; retention makes them fewer"),
            });
        }
        all.push(entry.map_err(|error| Error::from_store(folder, &error))?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_listing_is_bounded() {
        let entry = |number: u64| {
            Ok(Entry {
                key: number.to_string(),
                bytes: 0,
                modified: PgTimestamp::from_micros(0),
            })
        };
        let listed = async |limit| {
            let entries = futures::stream::iter((0..3).map(entry));
            collect("sources/x", entries, limit).await
        };
        assert_eq!(listed(3).await.unwrap().len(), 3);
        let error = listed(2).await.err().unwrap();
        assert!(
            error.to_string().starts_with("sources/x is too large"),
            "{error}"
        );
    }
}
