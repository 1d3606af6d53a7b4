//! A repository: what says that a prefix is one, and the keys of its sources.
//!
//! Invariants: a repository is encrypted or not from its first day on, so no reader ever accepts the
//! clear form in place of the encrypted one. A data key is deleted under one master key only after it
//! was read back under another.
//!
//! Opening writes nothing: a restore needs no right to write. The first put probes the store.

mod keys;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use lastgood_proto::key::{Fingerprint, Form, Key, SourceObject};
use lastgood_proto::manifest::{SourceFile, Version1};
use lastgood_proto::{PgTimestamp, RepositoryId, SourceId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::config::{RepositoryUrl, StorageOptions};
use crate::error::{Error, Result};
use crate::keyring::{DataKey, Encryption, MasterKey};
use crate::objects::{ConditionalPut, Objects, SealedBody};
use crate::reader::{Fetch, ObjectReader};
use crate::source::SourceStore;

pub use keys::{DataKeyRotation, Rotation};

/// `lastgood.json` and key objects are a few hundred bytes.
const SMALL_BYTES_MAX: u64 = 64 * 1024;

/// `lastgood.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RepositoryFile {
    v: Version1,
    id: RepositoryId,
    created: PgTimestamp,
    encryption: Cipher,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Cipher {
    #[serde(rename = "aes-256-gcm")]
    Aes256Gcm,
    #[serde(rename = "none")]
    None,
}

/// Everything kept under one prefix. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    inner: Arc<Inner>,
}

struct Inner {
    objects: Arc<Objects>,
    id: RepositoryId,
    /// None if the repository is not encrypted. Replaced by a rotation.
    master: Option<Mutex<MasterKey>>,
    /// What new objects are sealed with, of sources that were opened for writing.
    sealing: Mutex<HashMap<SourceId, DataKey>>,
}

impl Repository {
    /// Opens a repository that exists, without writing anything.
    ///
    /// # Errors
    /// [`Error::NoRepository`], [`Error::WrongMasterKey`], or a mismatch of encryption.
    pub async fn open(
        url: &RepositoryUrl,
        options: &StorageOptions,
        encryption: Encryption,
    ) -> Result<Self> {
        let backend = Backend::connect(url, options, false).await?;
        Self::open_on(backend, encryption).await
    }

    /// Opens a repository for writing, and makes it if there is none. Proves that it can be written.
    ///
    /// # Errors
    /// As [`Repository::open`]; [`Error::Refused`] if it cannot be written.
    pub async fn create_or_open(
        url: &RepositoryUrl,
        options: &StorageOptions,
        encryption: Encryption,
    ) -> Result<Self> {
        let backend = Backend::connect(url, options, true).await?;
        Self::create_or_open_on(backend, encryption).await
    }

    /// As [`Repository::open`], on a store that is connected already.
    ///
    /// # Errors
    /// As [`Repository::open`].
    pub async fn open_on(backend: Backend, encryption: Encryption) -> Result<Self> {
        let objects = Arc::new(Objects::new(backend));
        match read_file(&objects).await? {
            Some(file) => Self::assemble(objects, &file, encryption).await,
            None => Err(Error::NoRepository {
                url: objects.backend.to_string(),
            }),
        }
    }

    /// As [`Repository::create_or_open`], on a store that is connected already.
    ///
    /// # Errors
    /// As [`Repository::create_or_open`].
    pub async fn create_or_open_on(backend: Backend, encryption: Encryption) -> Result<Self> {
        let objects = Arc::new(Objects::new(backend));
        objects.probe().await?;
        objects.sweep().await;
        let file = match read_file(&objects).await? {
            Some(file) => file,
            None => create_file(&objects, &encryption).await?,
        };
        Self::assemble(objects, &file, encryption).await
    }

    async fn assemble(
        objects: Arc<Objects>,
        file: &RepositoryFile,
        encryption: Encryption,
    ) -> Result<Self> {
        let master = match (file.encryption, encryption) {
            (Cipher::None, Encryption::Off) => None,
            (Cipher::Aes256Gcm, Encryption::On(master)) => Some(Mutex::new(master)),
            (Cipher::Aes256Gcm, Encryption::Off) => return Err(Error::MasterKeyNeeded),
            (Cipher::None, Encryption::On(_)) => return Err(Error::NotEncrypted),
        };
        let repository = Self {
            inner: Arc::new(Inner {
                objects,
                id: file.id,
                master,
                sealing: Mutex::default(),
            }),
        };
        if let Some(master) = repository.master() {
            let given = master.fingerprint();
            let wraps = repository.wraps().await?;
            // Not all have to be ours: a rotation may have been interrupted.
            let ours = wraps.iter().any(|(_, fingerprint)| *fingerprint == given);
            if let (false, Some(&(_, expected))) = (ours, wraps.first()) {
                return Err(Error::WrongMasterKey { expected, given });
            }
        }
        Ok(repository)
    }

    #[must_use]
    pub fn id(&self) -> RepositoryId {
        self.inner.id
    }

    /// The form of every object below `sources/`.
    #[must_use]
    pub fn form(&self) -> Form {
        match self.inner.master {
            Some(_) => Form::ZstdEncrypted,
            None => Form::Zstd,
        }
    }

    /// The fingerprint of the master key in use; none if the repository is not encrypted.
    #[must_use]
    pub fn master_fingerprint(&self) -> Option<Fingerprint> {
        self.master().map(|master| master.fingerprint())
    }

    /// What the store makes of create-only puts; none if it was opened for reading and nothing has been
    /// put yet.
    #[must_use]
    pub fn conditional_put(&self) -> Option<ConditionalPut> {
        self.inner.objects.conditional_put()
    }

    /// The sources that are described, by id.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub async fn sources(&self) -> Result<Vec<(SourceId, SourceFile)>> {
        let mut ids: Vec<SourceId> = self
            .inner
            .objects
            .folders("sources")
            .await?
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        ids.sort_unstable();
        let mut sources = Vec::with_capacity(ids.len());
        for id in ids {
            let described = match self.source(id).await {
                Ok(store) => store.get_json(&SourceObject::Source).await,
                Err(error) => Err(error),
            };
            match described {
                Ok(file) => sources.push((id, file)),
                // Its making was interrupted before anything was kept.
                Err(Error::NotFound { .. } | Error::NoDataKeyOfSource { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(sources)
    }

    /// A source's store, with its data key opened.
    ///
    /// # Errors
    /// [`Error::NoDataKeyOfSource`] if it was never made, [`Error::DataKeyMissing`] if its key is gone.
    pub async fn source(&self, id: SourceId) -> Result<SourceStore> {
        let Some(_) = self.master() else {
            return Ok(SourceStore::new(self.clone(), id, None));
        };
        // Its description names the key it was sealed with; before there is one, look at all.
        let key = Key::Source(id, SourceObject::Source, self.form()).path();
        let key = match Fetch::start(Arc::clone(self.objects()), key).await {
            Ok(mut description) => self.data_key(id, description.header()?.key_id).await?,
            Err(Error::NotFound { .. }) => self.search_data_key(id).await?,
            Err(error) => return Err(error),
        };
        Ok(SourceStore::new(self.clone(), id, Some(key)))
    }

    /// A source's store for writing: makes its data key, unless there is one, and seals with its newest.
    ///
    /// # Errors
    /// If the key cannot be stored, or the newest is gone.
    pub async fn create_source(&self, id: SourceId) -> Result<SourceStore> {
        match self.source(id).await {
            Err(Error::NoDataKeyOfSource { .. }) => {}
            Ok(store) => {
                if self.sealing(id).is_none()
                    && let Some(key) = self.newest_data_key(&store).await?
                {
                    self.seal_with(id, key);
                }
                return Ok(store);
            }
            Err(error) => return Err(error),
        }
        let key = DataKey::generate()?;
        if let Some(master) = self.master() {
            self.store_wrap(&master, id, &key).await?;
        }
        Ok(SourceStore::new(self.clone(), id, Some(key)))
    }

    /// Any object below `sources/`, by its path in the repository.
    ///
    /// # Errors
    /// [`Error::Format`] if the path names none, or one of the other form.
    pub async fn open_path(&self, path: &str) -> Result<ObjectReader> {
        match Key::parse(path) {
            Ok(Key::Source(source, object, form)) if form == self.form() => {
                self.source(source).await?.open(&object).await
            }
            Ok(_) => Err(Error::Format {
                key: path.to_owned(),
                reason: "only objects below sources/, as they are named there, can be opened"
                    .to_owned(),
            }),
            Err(error) => Err(Error::Format {
                key: path.to_owned(),
                reason: error.to_string(),
            }),
        }
    }

    /// The key that new objects of the source are sealed with, if it is another than its first.
    pub(crate) fn sealing(&self, id: SourceId) -> Option<DataKey> {
        let sealing = self.inner.sealing.lock();
        sealing
            .unwrap_or_else(PoisonError::into_inner)
            .get(&id)
            .cloned()
    }

    fn seal_with(&self, id: SourceId, key: DataKey) {
        let sealing = self.inner.sealing.lock();
        let mut sealing = sealing.unwrap_or_else(PoisonError::into_inner);
        sealing.insert(id, key);
    }

    pub(crate) fn objects(&self) -> &Arc<Objects> {
        &self.inner.objects
    }

    fn master(&self) -> Option<MasterKey> {
        let master = self.inner.master.as_ref()?;
        Some(
            master
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone(),
        )
    }
}

async fn read_file(objects: &Objects) -> Result<Option<RepositoryFile>> {
    let path = Key::Repository.path();
    match objects.get_small(&path, SMALL_BYTES_MAX).await {
        Ok(bytes) => parse_json(&path, &bytes).map(Some),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

async fn create_file(objects: &Objects, encryption: &Encryption) -> Result<RepositoryFile> {
    let mut id = [0; 8];
    getrandom::fill(&mut id).map_err(|_| Error::Random)?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let file = RepositoryFile {
        v: Version1,
        id: RepositoryId::from_bytes(id),
        created: PgTimestamp::from_unix_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX)),
        encryption: match encryption {
            Encryption::On(_) => Cipher::Aes256Gcm,
            Encryption::Off => Cipher::None,
        },
    };
    let path = Key::Repository.path();
    let body = SealedBody::Memory(json_line(&path, &file)?);
    match objects.put_new(&path, &body).await {
        Ok(_) => Ok(file),
        // Two made it at once; the first one's holds.
        Err(Error::Conflict { key }) => match read_file(objects).await? {
            Some(file) => Ok(file),
            None => Err(Error::NotFound { key }),
        },
        Err(error) => Err(error),
    }
}

fn json_line(key: &str, value: &impl Serialize) -> Result<Bytes> {
    let mut text = serde_json::to_vec(value).map_err(|error| Error::Format {
        key: key.to_owned(),
        reason: error.to_string(),
    })?;
    text.push(b'\n');
    Ok(text.into())
}

fn parse_json<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| Error::Format {
        key: key.to_owned(),
        reason: error.to_string(),
    })
}
