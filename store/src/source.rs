//! One source's part of a repository: its objects by name, sealed and opened with its data key.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use lastgood_proto::key::{Key, KeyId, Series, SourceObject};
use lastgood_proto::listing::{GivenUp, Listing};
use lastgood_proto::manifest::RetiredFile;
use lastgood_proto::{LineageId, Lsn, PgTimestamp, SourceId};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::envelope::{Opener, Sealer, UnsealError};
use crate::error::{Error, Result};
use crate::keyring::DataKey;
use crate::objects::{Put, SealedBody};
use crate::reader::{Fetch, ObjectReader};
use crate::repository::Repository;
use crate::writer::ObjectWriter;

/// zstd's own default.
const LEVEL: i32 = 3;
/// Of a dump, which keeps a snapshot open at the source until it is through: with the default, 1.2 GB of
/// hexadecimal text in one table took 16.5 s where `pg_dump -Z zstd:1` takes 4.7, and was no smaller.
const STREAM_LEVEL: i32 = 1;
/// The largest JSON object, the manifest of a base with a hundred thousand tables, fits.
const JSON_BYTES_MAX: usize = 256 << 20;

/// One object of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectEntry {
    pub object: SourceObject,
    /// As stored.
    pub bytes: u64,
    pub modified: PgTimestamp,
}

/// The objects of one source. Cheap to clone.
#[derive(Clone)]
pub struct SourceStore {
    inner: Arc<Inner>,
}

struct Inner {
    repository: Repository,
    id: SourceId,
    /// What it was begun with: seals what is written before a rotation. None if the repository is not
    /// encrypted.
    key: Option<DataKey>,
    /// Other keys of this source that objects were sealed with, by id.
    others: Mutex<HashMap<KeyId, DataKey>>,
}

impl SourceStore {
    pub(crate) fn new(repository: Repository, id: SourceId, key: Option<DataKey>) -> Self {
        Self {
            inner: Arc::new(Inner {
                repository,
                id,
                key,
                others: Mutex::new(HashMap::new()),
            }),
        }
    }

    #[must_use]
    pub fn id(&self) -> SourceId {
        self.inner.id
    }

    #[must_use]
    pub fn repository(&self) -> &Repository {
        &self.inner.repository
    }

    /// The path of an object in the repository.
    #[must_use]
    pub fn path(&self, object: &SourceObject) -> String {
        Key::Source(self.inner.id, object.clone(), self.inner.repository.form()).path()
    }

    /// What the source holds, by keys alone, without what retention has given up. On local disk, all of
    /// it is durable on return.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn list(&self) -> Result<Listing> {
        self.listing(&self.objects().await?).await
    }

    /// What these objects are together, as [`Self::list`] has it.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn listing(&self, objects: &[ObjectEntry]) -> Result<Listing> {
        let objects = objects.iter().map(|entry| entry.object.clone());
        let listing = Listing::from_objects(objects);
        let mut given_up: BTreeMap<LineageId, GivenUp> = BTreeMap::new();
        for (lineage, file) in self.retired(&listing).await? {
            given_up.entry(lineage).or_default().add(&file.into());
        }
        Ok(listing.without(&given_up))
    }

    /// What retention has written down, lineage by lineage, oldest first.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn retired(&self, listing: &Listing) -> Result<Vec<(LineageId, RetiredFile)>> {
        let mut files = Vec::new();
        for lineage in &listing.lineages {
            for time in &lineage.retired {
                let object = SourceObject::Retired(lineage.id, *time);
                match self.get_json(&object).await {
                    Ok(file) => files.push((lineage.id, file)),
                    // Taken back meanwhile, or the last of its lineage.
                    Err(Error::NotFound { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(files)
    }

    /// Every object of the source, sorted by key.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn objects(&self) -> Result<Vec<ObjectEntry>> {
        self.entries(&format!("sources/{}", self.inner.id), None)
            .await
    }

    /// The captured segments of a lineage that start at `from` or later, sorted: the way to follow a
    /// lineage without listing all of it again.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn segments_from(&self, lineage: LineageId, from: Lsn) -> Result<Vec<ObjectEntry>> {
        let folder = format!("sources/{}/{lineage}/segments", self.inner.id);
        // Sorts before every segment that starts at `from`, and after all that start earlier.
        let after = format!("{folder}/{:016x}", from.as_u64());
        self.entries(&folder, Some(&after)).await
    }

    /// The merged segments of a lineage, sorted.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn merged_segments(&self, lineage: LineageId) -> Result<Vec<ObjectEntry>> {
        let folder = format!("sources/{}/{lineage}/merged", self.inner.id);
        self.entries(&folder, None).await
    }

    /// The greatest number of a series; none if it has none yet.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn newest(&self, series: Series) -> Result<Option<u32>> {
        Ok(self.numbers(series).await?.into_iter().max())
    }

    /// Deletes the old ones of a series, but for the `kept` newest: the number never goes back.
    ///
    /// # Errors
    /// If the store fails or forbids it.
    pub async fn prune(&self, series: Series, kept: u32) -> Result<()> {
        let numbers = self.numbers(series).await?;
        let newest = numbers.iter().copied().max().unwrap_or(0);
        for number in numbers {
            if newest - number >= kept {
                self.delete(&SourceObject::Numbered(series, number)).await?;
            }
        }
        Ok(())
    }

    async fn numbers(&self, series: Series) -> Result<Vec<u32>> {
        let folder = format!("sources/{}/{}", self.inner.id, series.folder());
        let entries = self.entries(&folder, None).await?.into_iter();
        let numbers = entries.filter_map(|entry| match entry.object {
            SourceObject::Numbered(its, number) if its == series => Some(number),
            _ => None,
        });
        Ok(numbers.collect())
    }

    async fn entries(&self, folder: &str, after: Option<&str>) -> Result<Vec<ObjectEntry>> {
        let form = self.inner.repository.form();
        let entries = self.inner.repository.objects().list(folder, after).await?;
        let entries = entries.into_iter().filter_map(|entry| {
            match Key::parse(&entry.key) {
                Ok(Key::Source(source, object, its)) if source == self.inner.id && its == form => {
                    Some(ObjectEntry {
                        object,
                        bytes: entry.bytes,
                        modified: entry.modified,
                    })
                }
                // Not ours, so it says nothing about what we hold; a reader would refuse it anyway.
                Ok(_) | Err(_) => {
                    tracing::debug!(key = entry.key, "passed over a foreign object");
                    None
                }
            }
        });
        Ok(entries.collect())
    }

    /// Creates a JSON object. The same value again is success.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the object holds another value.
    pub async fn put_json<T: Serialize>(&self, object: &SourceObject, value: &T) -> Result<Put> {
        self.put_json_under(self.sealing().as_ref(), object, value)
            .await
    }

    /// As [`SourceStore::put_json`], sealed with `key`.
    pub(crate) async fn put_json_under<T: Serialize>(
        &self,
        key: Option<&DataKey>,
        object: &SourceObject,
        value: &T,
    ) -> Result<Put> {
        let path = self.path(object);
        let spool = |source| Error::Spool {
            key: path.clone(),
            source,
        };
        let mut text = serde_json::to_vec(value).map_err(|error| spool(error.into()))?;
        text.push(b'\n');
        if text.len() > JSON_BYTES_MAX {
            let detail = format!(
                "{} bytes, of which {JSON_BYTES_MAX} can be read",
                text.len()
            );
            return Err(Error::TooLarge { key: path, detail });
        }
        let context = object.context(self.inner.id);
        let mut sealer = Sealer::new(key, &context, Vec::new(), LEVEL)?;
        sealer.write_all(&text).map_err(spool)?;
        let sealed = Bytes::from(sealer.finish().map_err(spool)?);
        match self.put_sealed(object, &SealedBody::Memory(sealed)).await {
            // Sealed twice, the same text makes different bytes.
            Err(Error::Conflict { key }) => {
                let there = self.open(object).await?.read_all(JSON_BYTES_MAX).await?;
                match there == text {
                    true => Ok(Put::AlreadyThereSame),
                    false => Err(Error::Conflict { key }),
                }
            }
            result => result,
        }
    }

    /// Reads a JSON object.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Corrupt`] if it is not what was written or not a `T`.
    pub async fn get_json<T: DeserializeOwned>(&self, object: &SourceObject) -> Result<T> {
        let text = self.open(object).await?.read_all(JSON_BYTES_MAX).await?;
        serde_json::from_slice(&text)
            .map_err(|error| Error::corrupt(&self.path(object), UnsealError::Json(error)))
    }

    /// Seals an object into `sink`: no I/O but the sink's own. Of a segment's name only the start
    /// LSN matters here.
    ///
    /// # Errors
    /// If the sink fails, or there are no random bytes.
    pub fn sealer<W: Write>(
        &self,
        object: &SourceObject,
        sink: W,
        level: i32,
    ) -> Result<Sealer<W>> {
        let context = object.context(self.inner.id);
        Sealer::new(self.sealing().as_ref(), &context, sink, level)
    }

    fn sealing(&self) -> Option<DataKey> {
        let newest = self.inner.repository.sealing(self.inner.id);
        newest.or_else(|| self.inner.key.clone())
    }

    /// Creates an object of what a [`Sealer`] for it wrote. Durable on return; with the same body it
    /// may be repeated after any error.
    ///
    /// # Errors
    /// [`Error::Conflict`] if the object is there with other content.
    pub async fn put_sealed(&self, object: &SourceObject, body: &SealedBody) -> Result<Put> {
        let objects = self.inner.repository.objects();
        objects.put_new(&self.path(object), body).await
    }

    /// Creates an object of unknown size from a stream.
    ///
    /// # Errors
    /// [`Error::Conflict`] if there is one already.
    pub async fn put_stream(&self, object: &SourceObject) -> Result<ObjectWriter> {
        let objects = Arc::clone(self.inner.repository.objects());
        let sealer = self.sealer(object, Vec::new(), STREAM_LEVEL)?;
        ObjectWriter::start(objects, self.path(object), sealer).await
    }

    /// Opens an object for reading.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Corrupt`] if it does not even begin as it should.
    pub async fn open(&self, object: &SourceObject) -> Result<ObjectReader> {
        let path = self.path(object);
        let objects = Arc::clone(self.inner.repository.objects());
        let mut fetch = Fetch::start(objects, path).await?;
        let opener = match &self.inner.key {
            None => Opener::clear(),
            Some(key) => {
                let header = fetch.header()?;
                let context = object.context(self.inner.id);
                match header.key_id == key.id() {
                    true => Opener::encrypted(key, &header, &context),
                    false => {
                        let key = self.other_key(header.key_id).await?;
                        Opener::encrypted(&key, &header, &context)
                    }
                }
            }
        };
        let opener = opener.map_err(|error| Error::corrupt(fetch.key(), error))?;
        Ok(ObjectReader::new(fetch, opener))
    }

    /// Deletes an object; success if there is none. The business of retention and compaction only.
    ///
    /// # Errors
    /// If the store fails or forbids it.
    pub async fn delete(&self, object: &SourceObject) -> Result<()> {
        let objects = self.inner.repository.objects();
        objects.delete(&self.path(object)).await
    }

    /// A data key that is not the first one: the key was rotated, or two services made this source at
    /// once.
    async fn other_key(&self, id: KeyId) -> Result<DataKey> {
        let others = || {
            let others = self.inner.others.lock();
            others.unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(key) = others().get(&id) {
            return Ok(key.clone());
        }
        let key = self.inner.repository.data_key(self.inner.id, id).await?;
        others().insert(id, key.clone());
        Ok(key)
    }
}
