//! Keys and tokens of the service: the master key's file, the operator's token.
//!
//! The token is random, stands in clear only in `admin.token` (mode 0600) for the operator on this
//! machine, and is known to the service by its SHA-256 alone; a fast hash is enough for 256 random
//! bits. Comparison takes the same time whatever differs.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// What every token begins with, so that a leaked one is recognised for what it is.
const TOKEN_PREFIX: &str = "lastgood_";
const TOKEN_BYTES: usize = 32;

/// Read the token in `path`, or make one there. True if it was made.
pub(crate) fn token(path: &Path) -> anyhow::Result<(Zeroizing<String>, bool)> {
    match read_private(path) {
        Ok(text) => {
            let token = Zeroizing::new(text.trim().to_owned());
            if token.len() < TOKEN_BYTES {
                bail!(
                    "{} holds no token: delete it and start again for a new one",
                    path.display()
                );
            }
            Ok((token, false))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let token = new_token()?;
            write_private(path, format!("{}\n", *token).as_bytes())
                .with_context(|| format!("cannot write {}", path.display()))?;
            Ok((token, true))
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn new_token() -> anyhow::Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0_u8; TOKEN_BYTES]);
    getrandom::fill(bytes.as_mut()).context("the operating system gives no random bytes")?;
    let text = Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes.as_ref()));
    Ok(Zeroizing::new(format!("{TOKEN_PREFIX}{}", *text)))
}

/// A new id for a job: sixteen hexadecimal digits.
pub(crate) fn job_id() -> Result<String, getrandom::Error> {
    random_id().map(|bytes| format!("{:016x}", u64::from_be_bytes(bytes)))
}

pub(crate) fn random_id() -> Result<[u8; 8], getrandom::Error> {
    let mut bytes = [0_u8; 8];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

pub(crate) fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// Whether `token` is one of those whose hashes are given. All are compared, none ends it early.
pub(crate) fn is_known(token: &str, hashes: &[[u8; 32]]) -> bool {
    let given = hash(token);
    let known = hashes.iter().fold(subtle::Choice::from(0), |known, hash| {
        known | given.ct_eq(hash)
    });
    known.into()
}

/// Read a file that nobody else may read.
pub(crate) fn read_private(path: &Path) -> io::Result<Zeroizing<String>> {
    let mode = fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "others may read it (mode {:03o}): chmod 600 it",
                mode & 0o777
            ),
        ));
    }
    fs::read_to_string(path).map(Zeroizing::new)
}

/// Create a file that only we may read; it must not exist.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_made_once_and_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin.token");
        let (first, made) = token(&path).unwrap();
        assert!(made);
        let (second, made) = token(&path).unwrap();
        assert!(!made);
        assert_eq!(*first, *second);
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let error = format!("{:#}", token(&path).unwrap_err());
        assert!(error.contains("chmod 600"), "{error}");
        assert!(!error.contains(first.as_str()));
    }

    #[test]
    fn only_the_whole_token_is_known() {
        let hashes = [hash("lastgood_aaaa"), hash("lastgood_bbbb")];
        assert!(is_known("lastgood_bbbb", &hashes));
        for token in ["", "lastgood_", "lastgood_bbb", "lastgood_bbbb "] {
            assert!(!is_known(token, &hashes), "{token:?}");
        }
        assert!(!is_known("x", &[]));
    }
}
