//! The envelope of every object below `sources/`: one zstd frame, in clear or inside AES-256-GCM.
//!
//! FORMAT.md, "Envelope", specifies the bytes. Invariants:
//! - Every object has a key of its own, derived from the source's data key, a random salt and the
//!   *context* (which object it is). So no nonce ever repeats, and an object under another name, or of
//!   another source, does not open.
//! - The nonce holds the chunk's number and whether it is the last: a cut-off object, a missing or
//!   moved chunk and bytes after the end do not open either.
//! - The frame must end where the object ends. In clear, its checksum finds damage, not malice.
//!
//! Sealing and opening are pure computation, usable from any thread; I/O is elsewhere.

mod open;
mod seal;

use std::io;

use aes_gcm::aead::AeadInOut;
use aes_gcm::{Aes256Gcm, KeyInit, Nonce};
use hkdf::Hkdf;
use lastgood_proto::key::KeyId;
use sha2::Sha256;
use zeroize::Zeroizing;

pub(crate) use open::{Opened, Opener};
pub use seal::Sealer;

use crate::keyring::DataKey;

/// Compressed bytes in every chunk but the last, which holds 1 to as many.
pub(crate) const CHUNK_BYTES: usize = 64 * 1024;
/// AES-GCM's tag, after each chunk.
pub(crate) const TAG_BYTES: usize = 16;
/// A whole chunk as it stands in the object.
pub(crate) const SEALED_CHUNK_BYTES: usize = CHUNK_BYTES + TAG_BYTES;
/// A frame that needs more memory than this (8 MiB) to decompress is refused.
const WINDOW_LOG_MAX: u32 = 23;

const MAGIC: [u8; 8] = *b"lastgood";
const VERSION: u8 = 1;
const SALT_BYTES: usize = 32;
const OBJECT_KEY_LABEL: &[u8] = b"lastgood object key v1\n";

/// The bytes are not what a [`Sealer`] with this key and context wrote.
#[derive(Debug, thiserror::Error)]
pub enum UnsealError {
    #[error("it is shorter than its header")]
    NoHeader,
    #[error("it does not begin as an encrypted object does")]
    Magic,
    #[error(
        "its envelope has version {0}, which is not known; a newer lastgood may have written it"
    )]
    Version(u8),
    #[error("chunk {chunk} does not open: altered, cut off, moved, or another object's")]
    Authentication { chunk: u64 },
    #[error("it does not decompress")]
    Compression(#[source] io::Error),
    #[error("it ends before its content does")]
    CutOff,
    #[error("bytes follow the end of its content")]
    Trailing,
    #[error("its content is larger than {limit} bytes")]
    TooLarge { limit: usize },
    #[error("its content is not the JSON expected")]
    Json(#[source] serde_json::Error),
    #[error("its size changed while it was read")]
    Changed,
}

/// What stands in clear before the chunks, and is authenticated with each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) key_id: KeyId,
    salt: [u8; SALT_BYTES],
}

impl Header {
    /// Magic 8, version 1, zeros 7, key id 8, salt 32.
    pub(crate) const BYTES: usize = 56;

    fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8] = VERSION;
        bytes[16..24].copy_from_slice(self.key_id.as_bytes());
        bytes[24..].copy_from_slice(&self.salt);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8; Self::BYTES]) -> Result<Self, UnsealError> {
        if bytes[..8] != MAGIC {
            return Err(UnsealError::Magic);
        }
        if bytes[8] != VERSION || bytes[9..16] != [0; 7] {
            return Err(UnsealError::Version(bytes[8]));
        }
        let mut key_id = [0; 8];
        key_id.copy_from_slice(&bytes[16..24]);
        let mut salt = [0; SALT_BYTES];
        salt.copy_from_slice(&bytes[24..]);
        Ok(Self {
            key_id: KeyId::from_bytes(key_id),
            salt,
        })
    }
}

/// The cipher of one object and the number of its next chunk.
struct ObjectCipher {
    cipher: Aes256Gcm,
    header: [u8; Header::BYTES],
    chunk: u64,
}

impl ObjectCipher {
    fn new(key: &DataKey, header: &Header, context: &str) -> Self {
        let mut object_key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(&header.salt), key.secret())
            .expand_multi_info(&[OBJECT_KEY_LABEL, context.as_bytes()], &mut *object_key)
            .expect("32 bytes are a length HKDF-SHA256 can give");
        Self {
            cipher: Aes256Gcm::new((&*object_key).into()),
            header: header.encode(),
            chunk: 0,
        }
    }

    /// Zeros 3, chunk number 8 (big-endian), last flag 1.
    fn nonce(&self, last: bool) -> Nonce<aes_gcm::aead::consts::U12> {
        let mut nonce = [0; 12];
        nonce[3..11].copy_from_slice(&self.chunk.to_be_bytes());
        nonce[11] = u8::from(last);
        nonce.into()
    }

    /// Encrypts `chunk` in place and appends the tag.
    fn seal(&mut self, chunk: &mut Vec<u8>, last: bool) {
        let nonce = self.nonce(last);
        self.cipher
            .encrypt_in_place(&nonce, &self.header, chunk)
            .expect("a chunk is far below AES-GCM's limit, and a vector grows");
        self.chunk += 1;
    }

    /// Decrypts `chunk` in place and takes the tag off.
    fn open(&mut self, chunk: &mut Vec<u8>, last: bool) -> Result<(), UnsealError> {
        let nonce = self.nonce(last);
        self.cipher
            .decrypt_in_place(&nonce, &self.header, chunk)
            .map_err(|_| UnsealError::Authentication { chunk: self.chunk })?;
        self.chunk += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
