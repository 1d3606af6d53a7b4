//! What can go wrong with a repository, by what the caller does about it.
//!
//! The texts of object stores are not passed on as they are: a service may answer a bad signature
//! with the whole request it saw, session token included. [`Error::from_store`] keeps the status, the
//! code and the message.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use lastgood_proto::key::{Fingerprint, KeyId};
use lastgood_proto::{Class, SourceId};

use crate::envelope::UnsealError;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("\"{text}\" is no repository URL: {reason}")]
    Url { text: String, reason: String },
    #[error("no repository at {url}: there is no lastgood.json")]
    NoRepository { url: String },
    #[error(
        "the repository is encrypted and encryption is switched off here: a master key is needed"
    )]
    MasterKeyNeeded,
    #[error("encryption is switched on, but this repository was made without it")]
    NotEncrypted,
    #[error(
        "wrong master key: the repository's keys are wrapped by {expected}, the key given is {given}; \
         the repository's own is given by --key-file or LASTGOOD_MASTER_KEY"
    )]
    WrongMasterKey {
        expected: Fingerprint,
        given: Fingerprint,
    },
    #[error("the master key in {path} cannot be used: {reason}")]
    KeyFile { path: PathBuf, reason: String },
    #[error("the key text is no master key: 32 bytes in base64 are expected")]
    KeyText,
    #[error("the repository has no data key {id}: its object under keys/ is missing")]
    DataKeyMissing { id: KeyId },
    #[error("the repository has no data key of source {source_id}")]
    NoDataKeyOfSource { source_id: SourceId },
    #[error("{key} is not in the repository")]
    NotFound { key: String },
    #[error("{key} is already there with other content: another service writes here")]
    Conflict { key: String },
    #[error("{key} is not what was written")]
    Corrupt {
        key: String,
        #[source]
        source: UnsealError,
    },
    #[error("{key} is not of this repository's format: {reason}")]
    Format { key: String, reason: String },
    #[error("the repository refuses {key}: {detail}")]
    Refused { key: String, detail: String },
    #[error("{key} is too large: {detail}")]
    TooLarge { key: String, detail: String },
    #[error("storage failed at {key}: {detail}")]
    Transport { key: String, detail: String },
    #[error("cannot read the spooled body of {key}")]
    Spool {
        key: String,
        #[source]
        source: io::Error,
    },
    #[error("the operating system gives no random bytes")]
    Random,
}

impl Error {
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Error::Transport { .. } | Error::Spool { .. } | Error::Random => Class::Transient,
            Error::Url { .. }
            | Error::NoRepository { .. }
            | Error::MasterKeyNeeded
            | Error::NotEncrypted
            | Error::WrongMasterKey { .. }
            | Error::KeyFile { .. }
            | Error::KeyText
            | Error::NoDataKeyOfSource { .. }
            | Error::NotFound { .. }
            | Error::TooLarge { .. }
            | Error::Refused { .. } => Class::NeedsOperator,
            Error::DataKeyMissing { .. }
            | Error::Conflict { .. }
            | Error::Corrupt { .. }
            | Error::Format { .. } => Class::Corrupt,
        }
    }

    pub(crate) fn corrupt(key: &str, source: UnsealError) -> Self {
        Error::Corrupt {
            key: key.to_owned(),
            source,
        }
    }

    /// What the object store said about `key`, freed of secrets and put into a class.
    pub(crate) fn from_store(key: &str, error: &object_store::Error) -> Self {
        use object_store::Error as Store;
        let key = key.to_owned();
        match error {
            Store::NotFound { .. } => Error::NotFound { key },
            Store::AlreadyExists { .. } | Store::Precondition { .. } => Error::Conflict { key },
            Store::PermissionDenied { .. }
            | Store::Unauthenticated { .. }
            | Store::NotSupported { .. }
            | Store::NotImplemented { .. }
            | Store::InvalidPath { .. }
            | Store::UnknownConfigurationKey { .. } => Error::Refused {
                key,
                detail: describe(error),
            },
            _ if refuses(error) => Error::Refused {
                key,
                detail: describe(error),
            },
            _ => Error::Transport {
                key,
                detail: describe(error),
            },
        }
    }
}

/// Whether trying again alone cannot help: a full or read-only disk, a request the server rejects.
fn refuses(error: &object_store::Error) -> bool {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::ReadOnlyFilesystem
                    | io::ErrorKind::StorageFull
                    | io::ErrorKind::QuotaExceeded
                    | io::ErrorKind::NotADirectory
                    | io::ErrorKind::Unsupported
            );
        }
        cause = error.source();
    }
    matches!(
        http_status(&error.to_string()),
        Some(300..=399 | 400..=407 | 410..=428 | 501)
    )
}

/// The HTTP status inside an error's text; `object_store` keeps the type that holds it private.
pub(crate) fn http_status(text: &str) -> Option<u16> {
    let (_, rest) = text.split_once("status code: ")?;
    rest.get(..3)?.parse().ok()
}

/// One line: the innermost cause of a local failure, or status, code and message of an answer.
fn describe(error: &object_store::Error) -> String {
    let text = error.to_string();
    if let Some(status) = http_status(&text) {
        let part = |tag: &str| {
            let (_, rest) = text.split_once(&format!("<{tag}>"))?;
            rest.split_once(&format!("</{tag}>")).map(|(part, _)| part)
        };
        let words = [part("Code"), part("Message")];
        let words: Vec<&str> = words.into_iter().flatten().collect();
        return match words.is_empty() {
            true => format!("the server answered {status}"),
            false => format!("the server answered {status} ({})", words.join(": ")),
        };
    }
    let mut innermost: &(dyn StdError + 'static) = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    // A body that carries no status is still no place to quote from.
    let text = innermost.to_string();
    let text = text.split('<').next().unwrap_or_default().trim();
    match text.is_empty() {
        true => "no reason given".to_owned(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(text: &str) -> object_store::Error {
        object_store::Error::Generic {
            store: "S3",
            source: text.to_owned().into(),
        }
    }

    #[test]
    fn an_answer_is_cut_down_to_its_code_and_message() {
        let error = generic(
            "Error performing PUT http://h/b/k in 1ms - Server returned non-2xx status code: 400 Bad \
             Request: <Error><Code>ExpiredToken</Code><Message>The token has expired</Message>\
             <Token-0>topsecret</Token-0></Error>",
        );
        let error = Error::from_store("lastgood.json", &error);
        assert_eq!(
            error.to_string(),
            "the repository refuses lastgood.json: the server answered 400 (ExpiredToken: The token \
             has expired)"
        );
        assert_eq!(error.class(), Class::NeedsOperator);
    }

    #[test]
    fn a_server_in_trouble_is_transient() {
        for status in [408, 429, 500, 503] {
            let error = generic(&format!(
                "Server returned non-2xx status code: {status} Oops: x"
            ));
            let error = Error::from_store("k", &error);
            assert_eq!(error.class(), Class::Transient, "{status}");
        }
        let error = Error::from_store("k", &generic("connection closed"));
        assert_eq!(error.class(), Class::Transient);
    }

    #[test]
    fn a_full_disk_needs_the_operator() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        let error = object_store::Error::Generic {
            store: "LocalFileSystem",
            source: Box::new(full),
        };
        assert_eq!(Error::from_store("k", &error).class(), Class::NeedsOperator);
    }
}
