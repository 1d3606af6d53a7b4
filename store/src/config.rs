//! Where a repository is: its URL, and what the environment says about the service behind it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use url::Url;
use zeroize::Zeroizing;

use crate::error::{Error, Result};

/// `file:///path`, a bare path, `s3://bucket/prefix`, `gs://bucket/prefix` or
/// `az://container/prefix`. It never holds a secret, so it may be printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepositoryUrl {
    pub(crate) place: Place,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Place {
    Local(PathBuf),
    S3(Bucket),
    Gcs(Bucket),
    Azure(Bucket),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bucket {
    pub(crate) name: String,
    /// Without a slash at either end; may be empty.
    pub(crate) prefix: String,
}

impl RepositoryUrl {
    /// A repository in a local folder.
    #[must_use]
    pub fn local(path: &Path) -> Self {
        Self {
            place: Place::Local(path.to_owned()),
        }
    }

    /// The folder, if it is a local one.
    #[must_use]
    pub fn local_path(&self) -> Option<&Path> {
        match &self.place {
            Place::Local(path) => Some(path),
            Place::S3(_) | Place::Gcs(_) | Place::Azure(_) => None,
        }
    }
}

impl fmt::Display for RepositoryUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, bucket) = match &self.place {
            Place::Local(path) if path.is_absolute() => {
                return write!(f, "file://{}", path.display());
            }
            Place::Local(path) => return write!(f, "{}", path.display()),
            Place::S3(bucket) => ("s3", bucket),
            Place::Gcs(bucket) => ("gs", bucket),
            Place::Azure(bucket) => ("az", bucket),
        };
        write!(f, "{scheme}://{}", bucket.name)?;
        match bucket.prefix.as_str() {
            "" => Ok(()),
            prefix => write!(f, "/{prefix}"),
        }
    }
}

impl FromStr for RepositoryUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return match text {
                "" => Err(bad(text, "it is empty")),
                path => Ok(Self::local(Path::new(path))),
            };
        };
        if scheme == "file" {
            // Taken as written, not percent-decoded: a folder may be called anything.
            let path = rest.strip_prefix("localhost").unwrap_or(rest);
            return match path.starts_with('/') {
                true => Ok(Self::local(Path::new(path))),
                false => Err(bad(text, "a file URL has three slashes: file:///path")),
            };
        }
        let place: fn(Bucket) -> Place = match scheme {
            "s3" => Place::S3,
            "gs" => Place::Gcs,
            "az" => Place::Azure,
            _ => return Err(bad(text, "the scheme is none of file, s3, gs and az")),
        };
        // Nothing is quoted from here on before it is known to hold no password.
        let url = Url::parse(text).map_err(|error| bad(scheme, &error.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            let reason = "credentials belong into the environment, not into the URL";
            return Err(bad(scheme, reason));
        }
        if url.query().is_some() || url.fragment().is_some() || url.port().is_some() {
            let reason = "only a bucket and a prefix may follow the scheme; an endpoint is set in the \
                          environment";
            return Err(bad(text, reason));
        }
        let name = url.host_str().unwrap_or_default().to_owned();
        if name.is_empty() {
            return Err(bad(text, "it names no bucket"));
        }
        let prefix = url.path().trim_matches('/').to_owned();
        object_store::path::Path::parse(&prefix)
            .map_err(|_| bad(text, "the prefix has an empty or unusual part"))?;
        Ok(Self {
            place: place(Bucket { name, prefix }),
        })
    }
}

fn bad(text: &str, reason: &str) -> Error {
    Error::Url {
        text: text.to_owned(),
        reason: reason.to_owned(),
    }
}

/// Endpoint, region and credentials of a service, by the names of the usual environment variables
/// (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, `GOOGLE_SERVICE_ACCOUNT`, `AZURE_STORAGE_ACCOUNT_KEY`, …).
/// Has no `Debug`: there are secrets inside.
#[derive(Clone, Default)]
pub struct StorageOptions {
    /// Lower-case names.
    pairs: Vec<(String, Zeroizing<String>)>,
}

impl StorageOptions {
    /// All variables that begin with `AWS_`, `GOOGLE_` or `AZURE_`.
    #[must_use]
    pub fn from_env() -> Self {
        let ours = |name: &str| {
            ["AWS_", "GOOGLE_", "AZURE_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        };
        let pairs = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .filter(|(name, _)| ours(name));
        Self::from_pairs(pairs)
    }

    /// Later pairs win.
    #[must_use]
    pub fn from_pairs(pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        Self::default().with_pairs(pairs)
    }

    /// The same with `pairs` on top, for settings from a configuration file.
    #[must_use]
    pub fn with_pairs(mut self, pairs: impl IntoIterator<Item = (String, String)>) -> Self {
        let pairs = pairs
            .into_iter()
            .map(|(name, value)| (name.to_ascii_lowercase(), Zeroizing::new(value)));
        self.pairs.extend(pairs);
        self
    }

    /// Settings whose name begins with `prefix`, in the order given.
    pub(crate) fn of<'a>(
        &'a self,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a str)> + 'a {
        self.pairs
            .iter()
            .filter(move |(name, _)| name.starts_with(prefix))
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The last value of the first of `names` that is set.
    pub(crate) fn get(&self, names: &[&str]) -> Option<&str> {
        names.iter().find_map(|wanted| {
            self.pairs
                .iter()
                .rev()
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value.as_str())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_print_as_they_parse() {
        for text in [
            "file:///var/lib/lastgood",
            "relative/folder",
            "./x",
            "s3://bucket",
            "s3://bucket/a/b-c_d.e",
            "gs://bucket/p",
            "az://container/p",
        ] {
            let url: RepositoryUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), text);
        }
        let absolute: RepositoryUrl = "/var/lib/lastgood".parse().unwrap();
        assert_eq!(absolute.to_string(), "file:///var/lib/lastgood");
        let slashes: RepositoryUrl = "s3://bucket/p/".parse().unwrap();
        assert_eq!(slashes.to_string(), "s3://bucket/p");
    }

    #[test]
    fn refuses_what_is_no_repository_and_keeps_passwords_to_itself() {
        for text in [
            "",
            "file://relative",
            "s3://",
            "s3:///prefix",
            "http://host/bucket",
            "s3://bucket:9000/prefix",
            "s3://bucket/a//b",
            "s3://bucket/p?region=x",
        ] {
            assert!(text.parse::<RepositoryUrl>().is_err(), "{text:?}");
        }
        let error = "s3://key:hunter2@bucket/p".parse::<RepositoryUrl>();
        let error = error.unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn later_settings_win() {
        let options = StorageOptions::from_pairs([
            ("AWS_REGION".to_owned(), "one".to_owned()),
            ("AWS_REGION".to_owned(), "two".to_owned()),
        ]);
        assert_eq!(options.get(&["aws_region"]), Some("two"));
        assert_eq!(options.of("aws_").count(), 2);
        assert_eq!(options.of("azure_").count(), 0);
    }
}
