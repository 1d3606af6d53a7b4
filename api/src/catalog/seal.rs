//! Connection strings at rest: AES-256-GCM under a key derived from the master key, bound to the
//! source they belong to.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use zeroize::Zeroizing;

use super::{Error, Result};

const NONCE_BYTES: usize = 12;

/// Seals and opens what the catalog must not hold in clear.
#[derive(Clone)]
pub(crate) struct Seal {
    cipher: Aes256Gcm,
}

impl Seal {
    /// `key` comes from the master key by a derivation of its own.
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self {
            cipher: Aes256Gcm::new(&Key::<Aes256Gcm>::from(*key)),
        }
    }

    /// Nonce, then ciphertext with its tag; `context` must be given again to open it.
    pub(super) fn seal(&self, context: &str, plain: &str) -> Result<Vec<u8>> {
        let mut nonce = [0_u8; NONCE_BYTES];
        getrandom::fill(&mut nonce).map_err(|_| Error::Sealed)?;
        let payload = Payload {
            msg: plain.as_bytes(),
            aad: context.as_bytes(),
        };
        let sealed = self
            .cipher
            .encrypt(&Nonce::from(nonce), payload)
            .map_err(|_| Error::Sealed)?;
        Ok([nonce.as_slice(), &sealed].concat())
    }

    pub(super) fn open(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<String>> {
        let (nonce, sealed) = sealed
            .split_first_chunk::<NONCE_BYTES>()
            .ok_or(Error::Sealed)?;
        let payload = Payload {
            msg: sealed,
            aad: context.as_bytes(),
        };
        let plain = self
            .cipher
            .decrypt(&Nonce::from(*nonce), payload)
            .map_err(|_| Error::Sealed)?;
        String::from_utf8(plain)
            .map(Zeroizing::new)
            .map_err(|_| Error::Sealed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_with_its_key_and_context_only() {
        let seal = Seal::new(&[7; 32]);
        let sealed = seal.seal("source 1", "host=db password=hunter2").unwrap();
        assert!(!sealed.windows(7).any(|window| window == b"hunter2"));
        let opened = seal.open("source 1", &sealed).unwrap();
        assert_eq!(opened.as_str(), "host=db password=hunter2");
        assert!(seal.open("source 2", &sealed).is_err());
        assert!(Seal::new(&[8; 32]).open("source 1", &sealed).is_err());
        for length in 0..sealed.len() {
            assert!(seal.open("source 1", &sealed[..length]).is_err());
        }
    }
}
