//! SHA-256 of what passes by.
//!
//! Every byte of every segment and base goes through it, when it is written and whenever it is read,
//! and where the processor has no instructions for it a hash costs more than anything else that is
//! done with the byte: so this is the implementation in assembly that TLS brings along.

use std::fmt;

use aws_lc_rs::digest::{Context, SHA256, SHA256_OUTPUT_LEN};

/// A SHA-256, written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A SHA-256 in the making.
#[derive(Clone)]
pub struct Sha256(Context);

impl Sha256 {
    #[must_use]
    pub fn new() -> Self {
        Self(Context::new(&SHA256))
    }

    #[must_use]
    pub fn of(bytes: &[u8]) -> Digest {
        let mut whole = Self::new();
        whole.update(bytes);
        whole.digest()
    }

    pub fn update(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.update(bytes.as_ref());
    }

    /// Of everything so far.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(self.0.clone().finish().as_ref());
        Digest(bytes)
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 180-4, as NIST's examples have it.
    #[test]
    fn the_digest_is_that_of_the_standard() {
        let digest = Sha256::of(b"abc").to_string();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest, expected);
        let mut pieces = Sha256::new();
        pieces.update(b"a");
        assert_eq!(pieces.digest(), Sha256::of(b"a"));
        pieces.update(b"bc");
        assert_eq!(pieces.digest().to_string(), expected);
    }
}
