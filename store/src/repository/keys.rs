//! The data keys of a repository: found, opened, and wrapped anew when the master key changes.

use std::sync::PoisonError;
use std::time::{SystemTime, UNIX_EPOCH};

use lastgood_proto::key::{Fingerprint, Key, KeyId, Series, SourceObject};
use lastgood_proto::manifest::{KeyFile, Version1};
use lastgood_proto::{PgTimestamp, SourceId};

use super::{Repository, SMALL_BYTES_MAX, json_line, parse_json};
use crate::error::{Error, Result};
use crate::keyring::{DataKey, MasterKey, WrappedKey};
use crate::objects::SealedBody;
use crate::source::SourceStore;

/// What a rotation of the master key did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotation {
    pub from: Fingerprint,
    pub to: Fingerprint,
    /// Data keys that the new master key opens now, and the old one no longer.
    pub data_keys: usize,
}

/// What a rotation of a source's data key did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataKeyRotation {
    /// Seals new objects from here on. What other keys sealed stays readable.
    pub key: KeyId,
    /// How many rotations there have been.
    pub number: u32,
}

impl Repository {
    /// Makes a new data key for a source and seals its new objects with that. Cut short, it leaves a
    /// key that nothing is sealed with. A rotation of the master key must not run at the same time.
    ///
    /// # Errors
    /// If the repository is not encrypted, the source has no data key yet, or something cannot be
    /// stored; [`Error::Conflict`] if somebody else rotated it at the same moment.
    pub async fn rotate_data_key(&self, id: SourceId) -> Result<DataKeyRotation> {
        let Some(master) = self.master() else {
            return Err(Error::NotEncrypted);
        };
        let store = self.source(id).await?;
        let newest = store.newest(Series::Keys).await?;
        let key = DataKey::generate()?;
        self.store_wrap(&master, id, &key).await?;
        // Read back, so that nothing is ever sealed on the word of a put.
        self.data_key(id, key.id()).await?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let micros = i64::try_from(now.unwrap_or_default().as_micros());
        let file = KeyFile {
            v: Version1,
            key: key.id(),
            time: PgTimestamp::from_unix_micros(micros.unwrap_or(i64::MAX)),
        };
        let number = newest.unwrap_or(0).saturating_add(1);
        let object = SourceObject::Numbered(Series::Keys, number);
        store.put_json_under(Some(&key), &object, &file).await?;
        let rotation = DataKeyRotation {
            key: key.id(),
            number,
        };
        self.seal_with(id, key);
        Ok(rotation)
    }

    /// The data key of the last rotation; none if there was none.
    pub(super) async fn newest_data_key(&self, store: &SourceStore) -> Result<Option<DataKey>> {
        if self.master().is_none() {
            return Ok(None);
        }
        let Some(number) = store.newest(Series::Keys).await? else {
            return Ok(None);
        };
        let object = SourceObject::Numbered(Series::Keys, number);
        let file: KeyFile = store.get_json(&object).await?;
        self.data_key(store.id(), file.key).await.map(Some)
    }

    /// Wraps every data key with `new` and forgets the wraps by other master keys. Interrupted, it is
    /// simply run again, by whichever of the two keys still opens the repository.
    ///
    /// # Errors
    /// If a data key does not open, or a wrap cannot be stored. Then nothing was deleted that `new`
    /// cannot open.
    pub async fn rotate_master_key(&self, new: MasterKey) -> Result<Rotation> {
        let Some(old) = self.master() else {
            return Err(Error::NotEncrypted);
        };
        let (from, to) = (old.fingerprint(), new.fingerprint());
        let wraps = self.wraps().await?;
        let mut ids: Vec<KeyId> = wraps.iter().map(|(id, _)| *id).collect();
        ids.dedup();
        for &id in &ids {
            let source = match wraps.contains(&(id, to)) {
                true => self.wrap(id, to).await?.source,
                false => {
                    let wrap = self.wrap(id, from).await.map_err(|error| {
                        match (error, wraps.iter().find(|wrap| wrap.0 == id)) {
                            (Error::NotFound { .. }, Some(&(_, expected))) => {
                                Error::WrongMasterKey {
                                    expected,
                                    given: from,
                                }
                            }
                            (error, _) => error,
                        }
                    })?;
                    let key = self.unwrap(&wrap, &old, id)?;
                    self.store_wrap(&new, wrap.source, &key).await?;
                    wrap.source
                }
            };
            // Read back, so that no key is ever forgotten on the word of a put.
            let stored = self.wrap(id, to).await?;
            self.unwrap(&stored, &new, id)?;
            debug_assert_eq!(stored.source, source);
        }
        if let Some(master) = &self.inner.master {
            *master.lock().unwrap_or_else(PoisonError::into_inner) = new;
        }
        for (id, fingerprint) in wraps.into_iter().filter(|(_, by)| *by != to) {
            let key = Key::DataKey(id, fingerprint).path();
            self.objects().delete(&key).await?;
        }
        Ok(Rotation {
            from,
            to,
            data_keys: ids.len(),
        })
    }

    /// The data key `id`, which must be `source`'s.
    pub(crate) async fn data_key(&self, source: SourceId, id: KeyId) -> Result<DataKey> {
        let Some(master) = self.master() else {
            return Err(Error::NotEncrypted);
        };
        let given = master.fingerprint();
        let wrap = match self.wrap(id, given).await {
            Ok(wrap) => wrap,
            Err(Error::NotFound { .. }) => {
                let wraps = self.wraps().await?;
                let expected = wraps.iter().find(|(other, _)| *other == id);
                return Err(match expected {
                    Some(&(_, expected)) => Error::WrongMasterKey { expected, given },
                    None => Error::DataKeyMissing { id },
                });
            }
            Err(error) => return Err(error),
        };
        if wrap.source != source {
            return Err(Error::Format {
                key: Key::DataKey(id, given).path(),
                reason: format!("it is the key of source {}, not of {source}", wrap.source),
            });
        }
        self.unwrap(&wrap, &master, id)
    }

    /// The data key of a source that has no description yet.
    pub(super) async fn search_data_key(&self, source: SourceId) -> Result<DataKey> {
        if let Some(master) = self.master() {
            let given = master.fingerprint();
            for (id, fingerprint) in self.wraps().await? {
                if fingerprint == given {
                    let wrap = self.wrap(id, given).await?;
                    if wrap.source == source {
                        return self.unwrap(&wrap, &master, id);
                    }
                }
            }
        }
        Err(Error::NoDataKeyOfSource { source_id: source })
    }

    pub(super) async fn store_wrap(
        &self,
        master: &MasterKey,
        source: SourceId,
        key: &DataKey,
    ) -> Result<()> {
        let wrap = WrappedKey::wrap(master, self.inner.id, source, key)?;
        let path = Key::DataKey(key.id(), master.fingerprint()).path();
        let body = SealedBody::Memory(json_line(&path, &wrap)?);
        self.objects().put_new(&path, &body).await.map(|_| ())
    }

    async fn wrap(&self, id: KeyId, fingerprint: Fingerprint) -> Result<WrappedKey> {
        let path = Key::DataKey(id, fingerprint).path();
        let bytes = self.objects().get_small(&path, SMALL_BYTES_MAX).await?;
        parse_json(&path, &bytes)
    }

    fn unwrap(&self, wrap: &WrappedKey, master: &MasterKey, id: KeyId) -> Result<DataKey> {
        wrap.unwrap(master, self.inner.id, id)
            .ok_or_else(|| Error::Format {
                key: Key::DataKey(id, master.fingerprint()).path(),
                reason: "the wrapped key does not open: altered, or another repository's"
                    .to_owned(),
            })
    }

    /// All wrapped keys by their names, sorted.
    pub(super) async fn wraps(&self) -> Result<Vec<(KeyId, Fingerprint)>> {
        let entries = self.objects().list("keys", None).await?;
        let names = entries.iter().map(|entry| Key::parse(&entry.key));
        let wraps = names.filter_map(|key| match key {
            Ok(Key::DataKey(id, fingerprint)) => Some((id, fingerprint)),
            Ok(_) | Err(_) => None,
        });
        Ok(wraps.collect())
    }
}
