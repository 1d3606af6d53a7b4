//! The master key, and the data keys it wraps.
//!
//! FORMAT.md, "Keys", specifies the bytes. A source has a data key of its own, made at random; the
//! master key only ever wraps data keys, so changing it rewrites small objects and no data.
//! No secret here has `Debug` or `Display`, and all are wiped when dropped.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hkdf::Hkdf;
use lastgood_proto::key::{Fingerprint, KeyId};
use lastgood_proto::manifest::Version1;
use lastgood_proto::{RepositoryId, SourceId};
use serde::{Deserialize, Serialize};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// The environment variable that may hold the master key's text instead of a file.
pub const MASTER_KEY_VARIABLE: &str = "LASTGOOD_MASTER_KEY";

const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// A key file is one line of 44 characters; whatever is longer than this is something else.
const KEY_FILE_BYTES_MAX: u64 = 256;
const FINGERPRINT_LABEL: &[u8] = b"lastgood master key fingerprint v1";
const WRAP_LABEL: &[u8] = b"lastgood key wrap v1";

/// Whether what is written into a repository is encrypted, and with what.
#[derive(Clone)]
pub enum Encryption {
    On(MasterKey),
    Off,
}

/// The one secret outside the repository that opens it.
#[derive(Clone)]
pub struct MasterKey {
    secret: Zeroizing<[u8; KEY_BYTES]>,
}

impl MasterKey {
    /// # Errors
    /// If the operating system gives no random bytes.
    pub fn generate() -> Result<Self> {
        Ok(Self {
            secret: random_key()?,
        })
    }

    /// From the key's text: 32 bytes in base64, surrounding white space ignored.
    ///
    /// # Errors
    /// [`Error::KeyText`], which does not repeat the text.
    pub fn from_base64(text: &str) -> Result<Self> {
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        // One byte more than fits would be an error; `decode_slice` wants room for its estimate.
        let mut buffer = Zeroizing::new([0; KEY_BYTES + 4]);
        match BASE64.decode_slice(text.trim(), &mut *buffer) {
            Ok(KEY_BYTES) => secret.copy_from_slice(&buffer[..KEY_BYTES]),
            Ok(_) | Err(_) => return Err(Error::KeyText),
        }
        Ok(Self { secret })
    }

    /// The key's text, for a key file or a safe place elsewhere.
    #[must_use]
    pub fn to_base64(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(*self.secret))
    }

    /// From [`MASTER_KEY_VARIABLE`]; none if it is not set.
    ///
    /// # Errors
    /// If it is set to something else than a key.
    pub fn from_env() -> Result<Option<Self>> {
        match std::env::var(MASTER_KEY_VARIABLE) {
            Ok(text) => Self::from_base64(&Zeroizing::new(text)).map(Some),
            Err(std::env::VarError::NotPresent) => Ok(None),
            Err(std::env::VarError::NotUnicode(_)) => Err(Error::KeyText),
        }
    }

    /// From a key file.
    ///
    /// # Errors
    /// [`Error::KeyFile`] if it cannot be read, holds no key, or others than its owner may read it.
    pub fn from_file(path: &Path) -> Result<Self> {
        let read = || {
            let file = File::open(path)?;
            let mode = file.metadata()?.permissions().mode();
            let mut text = Zeroizing::new(String::new());
            file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text)?;
            io::Result::Ok((mode, text))
        };
        let (mode, text) = read().map_err(|error| key_file(path, error.to_string()))?;
        if mode & 0o077 != 0 {
            let mode = mode & 0o777;
            let reason = format!("its mode is {mode:04o}; run chmod 0600 on it");
            return Err(key_file(path, reason));
        }
        Self::from_base64(&text).map_err(|error| key_file(path, error.to_string()))
    }

    /// Writes a new key file with mode 0600, whole or not at all, and durable on return.
    ///
    /// # Errors
    /// [`Error::KeyFile`], also if there is a file already: a key is never overwritten.
    pub fn write_new(&self, path: &Path) -> Result<()> {
        let mut nonce = [0; 8];
        getrandom::fill(&mut nonce).map_err(|_| Error::Random)?;
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder.to_owned(),
            _ => PathBuf::from("."),
        };
        let draft = folder.join(format!(".master-key-{:016x}", u64::from_be_bytes(nonce)));
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&draft)?;
            file.write_all(self.to_base64().as_bytes())?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            // A link, unlike a rename, fails if the name is taken.
            fs::hard_link(&draft, path)?;
            File::open(&folder)?.sync_all()
        };
        let written = write();
        let removed = fs::remove_file(&draft);
        written
            .and(removed)
            .map_err(|error| key_file(path, error.to_string()))
    }

    /// Tells this key from another without revealing it.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        let mut bytes = [0; 8];
        Hkdf::<Sha256>::new(None, &*self.secret)
            .expand(FINGERPRINT_LABEL, &mut bytes)
            .expect("8 bytes are a length HKDF-SHA256 can give");
        Fingerprint::from_bytes(bytes)
    }

    /// The cipher of one wrap. Its key is used once, so the nonce is zero.
    fn wrap_cipher(&self, salt: &[u8]) -> Aes256Gcm {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        Hkdf::<Sha256>::new(Some(salt), &*self.secret)
            .expand(WRAP_LABEL, &mut *key)
            .expect("32 bytes are a length HKDF-SHA256 can give");
        Aes256Gcm::new((&*key).into())
    }
}

fn key_file(path: &Path, reason: String) -> Error {
    Error::KeyFile {
        path: path.to_owned(),
        reason,
    }
}

fn random_key() -> Result<Zeroizing<[u8; KEY_BYTES]>> {
    let mut secret = Zeroizing::new([0; KEY_BYTES]);
    getrandom::fill(&mut *secret).map_err(|_| Error::Random)?;
    Ok(secret)
}

/// What a source's objects are encrypted with.
#[derive(Clone)]
pub(crate) struct DataKey {
    id: KeyId,
    secret: Zeroizing<[u8; KEY_BYTES]>,
}

impl DataKey {
    pub(crate) fn generate() -> Result<Self> {
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(|_| Error::Random)?;
        Ok(Self {
            id: KeyId::from_bytes(id),
            secret: random_key()?,
        })
    }

    pub(crate) fn id(&self) -> KeyId {
        self.id
    }

    pub(crate) fn secret(&self) -> &[u8] {
        &*self.secret
    }

    #[cfg(test)]
    pub(crate) fn fixed(id: [u8; 8], secret: [u8; KEY_BYTES]) -> Self {
        Self {
            id: KeyId::from_bytes(id),
            secret: Zeroizing::new(secret),
        }
    }
}

/// `keys/<key id>-<fingerprint>.json`: a data key wrapped by a master key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrappedKey {
    v: Version1,
    id: KeyId,
    pub(crate) source: SourceId,
    master: Fingerprint,
    /// 32 bytes in base64.
    salt: String,
    /// The data key's 32 bytes encrypted, then the tag's 16, in base64.
    wrapped: String,
}

impl WrappedKey {
    pub(crate) fn wrap(
        master: &MasterKey,
        repository: RepositoryId,
        source: SourceId,
        key: &DataKey,
    ) -> Result<Self> {
        let salt = random_key()?;
        let mut buffer = Zeroizing::new(Vec::with_capacity(KEY_BYTES + TAG_BYTES));
        buffer.extend_from_slice(key.secret());
        master
            .wrap_cipher(&*salt)
            .encrypt_in_place(
                &aes_gcm::Nonce::default(),
                &associated_data(repository, source, key.id),
                &mut *buffer,
            )
            .expect("32 bytes are below AES-GCM's limit, and a vector grows");
        Ok(Self {
            v: Version1,
            id: key.id,
            source,
            master: master.fingerprint(),
            salt: BASE64.encode(*salt),
            wrapped: BASE64.encode(&*buffer),
        })
    }

    /// None if it does not open: altered, another key's, another repository's.
    pub(crate) fn unwrap(
        &self,
        master: &MasterKey,
        repository: RepositoryId,
        id: KeyId,
    ) -> Option<DataKey> {
        if self.id != id || self.master != master.fingerprint() {
            return None;
        }
        let salt = BASE64.decode(&self.salt).ok()?;
        let mut buffer = Zeroizing::new(BASE64.decode(&self.wrapped).ok()?);
        if salt.len() != KEY_BYTES || buffer.len() != KEY_BYTES + TAG_BYTES {
            return None;
        }
        master
            .wrap_cipher(&salt)
            .decrypt_in_place(
                &aes_gcm::Nonce::default(),
                &associated_data(repository, self.source, id),
                &mut *buffer,
            )
            .ok()?;
        let mut secret = Zeroizing::new([0; KEY_BYTES]);
        secret.copy_from_slice(&buffer);
        Some(DataKey { id, secret })
    }
}

/// Binds a wrap to its repository, source and key.
fn associated_data(repository: RepositoryId, source: SourceId, id: KeyId) -> Vec<u8> {
    format!("lastgood key v1\n{repository}\n{source}\n{id}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repository(byte: u8) -> RepositoryId {
        RepositoryId::from_bytes([byte; 8])
    }

    fn source(byte: u8) -> SourceId {
        SourceId::from_bytes([byte; 8])
    }

    #[test]
    fn a_wrap_opens_with_its_master_key_and_in_its_place_only() {
        let master = MasterKey::generate().unwrap();
        let key = DataKey::generate().unwrap();
        let wrap = WrappedKey::wrap(&master, repository(1), source(2), &key).unwrap();
        let opened = wrap.unwrap(&master, repository(1), key.id()).unwrap();
        assert_eq!(opened.secret(), key.secret());

        let other = MasterKey::generate().unwrap();
        assert!(wrap.unwrap(&other, repository(1), key.id()).is_none());
        assert!(wrap.unwrap(&master, repository(9), key.id()).is_none());
        assert!(
            wrap.unwrap(&master, repository(1), KeyId::from_bytes([0; 8]))
                .is_none()
        );
        let moved = WrappedKey {
            source: source(3),
            ..wrap.clone()
        };
        assert!(moved.unwrap(&master, repository(1), key.id()).is_none());
        let relabelled = WrappedKey {
            master: other.fingerprint(),
            ..wrap
        };
        assert!(relabelled.unwrap(&other, repository(1), key.id()).is_none());
    }

    #[test]
    fn every_flipped_bit_of_a_wrap_is_seen() {
        let master = MasterKey::generate().unwrap();
        let key = DataKey::generate().unwrap();
        let wrap = WrappedKey::wrap(&master, repository(1), source(2), &key).unwrap();
        let raw = BASE64.decode(&wrap.wrapped).unwrap();
        for bit in 0..raw.len() * 8 {
            let mut altered = raw.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            let altered = WrappedKey {
                wrapped: BASE64.encode(&altered),
                ..wrap.clone()
            };
            assert!(altered.unwrap(&master, repository(1), key.id()).is_none());
        }
    }

    #[test]
    fn a_key_file_is_written_once_and_for_its_owner_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("master.key");
        let master = MasterKey::generate().unwrap();
        master.write_new(&path).unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let read = MasterKey::from_file(&path).unwrap();
        assert_eq!(read.fingerprint(), master.fingerprint());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        let second = MasterKey::generate().unwrap();
        assert!(second.write_new(&path).is_err());
        let read = MasterKey::from_file(&path).unwrap();
        assert_eq!(read.fingerprint(), master.fingerprint());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);

        for mode in [0o640, 0o604, 0o644, 0o660] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = MasterKey::from_file(&path).err().unwrap();
            assert!(error.to_string().contains("chmod 0600"), "{error}");
        }
    }

    #[test]
    fn what_is_no_key_is_refused_and_not_repeated() {
        for text in ["", "hunter2", "aGVsbG8=", &"A".repeat(43), &"A".repeat(48)] {
            let error = MasterKey::from_base64(text).err().unwrap();
            assert!(text.is_empty() || !error.to_string().contains(text));
        }
        let folder = tempfile::tempdir().unwrap();
        assert!(MasterKey::from_file(&folder.path().join("none")).is_err());
    }

    #[test]
    fn the_text_is_the_inverse() {
        let master = MasterKey::generate().unwrap();
        let again = MasterKey::from_base64(&format!(" {}\n", *master.to_base64())).unwrap();
        assert_eq!(again.fingerprint(), master.fingerprint());
    }
}
