//! The object store behind a repository, set up so that no request hangs for long.
//!
//! TLS needs no process-wide crypto provider: `reqwest` brings aws-lc-rs and falls back to it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::{BackoffConfig, ClientOptions, ObjectStore, RetryConfig};

use crate::config::{Bucket, Place, RepositoryUrl, StorageOptions};
use crate::error::{Error, Result};

/// One request, body included: 8 MiB take this long at one megabit a second.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(75);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// No retry begins later than this after the first try.
const RETRY_TIMEOUT: Duration = Duration::from_secs(60);
const RETRIES_MAX: usize = 6;

/// An object store and the place of the repository in it.
#[derive(Clone)]
pub struct Backend {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) prefix: String,
    pub(crate) kind: Kind,
    name: String,
}

#[derive(Clone)]
pub(crate) enum Kind {
    /// A folder: links make even large objects create-only, and folders have to be synced.
    Local(PathBuf),
    Remote,
}

impl Backend {
    /// The store behind `url`. A local folder is made if it is not there and `create` is set. No
    /// request is made yet.
    ///
    /// # Errors
    /// [`Error::Url`] if the settings do not fit together; [`Error::NoRepository`] or
    /// [`Error::Refused`] about a local folder.
    pub async fn connect(
        url: &RepositoryUrl,
        options: &StorageOptions,
        create: bool,
    ) -> Result<Self> {
        let (store, prefix): (Arc<dyn ObjectStore>, &str) = match &url.place {
            Place::Local(path) => return Self::local(path, url, create).await,
            Place::S3(bucket) => (s3(bucket, options, url)?, &bucket.prefix),
            Place::Gcs(bucket) => (gcs(bucket, options, url)?, &bucket.prefix),
            Place::Azure(bucket) => (azure(bucket, options, url)?, &bucket.prefix),
        };
        Ok(Self {
            store,
            prefix: prefix.to_owned(),
            kind: Kind::Remote,
            name: url.to_string(),
        })
    }

    /// Any object store, for tests and simulators. It is treated as a remote one.
    #[must_use]
    pub fn from_object_store(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        Self {
            store,
            prefix: prefix.to_owned(),
            kind: Kind::Remote,
            name: "custom object store".to_owned(),
        }
    }

    /// A store that lives as long as this value and its clones.
    #[must_use]
    pub fn memory() -> Self {
        Self::from_object_store(Arc::new(InMemory::new()), "")
    }

    async fn local(path: &Path, url: &RepositoryUrl, create: bool) -> Result<Self> {
        let folder = path.to_owned();
        let opened = tokio::task::spawn_blocking(move || {
            if create {
                create_folder(&folder)?;
            }
            let folder = std::fs::canonicalize(&folder)?;
            match folder.is_dir() {
                true => Ok(folder),
                false => Err(std::io::Error::from(std::io::ErrorKind::NotADirectory)),
            }
        })
        .await
        .map_err(std::io::Error::other)
        .flatten();
        let folder = opened.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::NoRepository {
                url: url.to_string(),
            },
            _ => Error::Refused {
                key: url.to_string(),
                detail: error.to_string(),
            },
        })?;
        let store = LocalFileSystem::new_with_prefix(&folder)
            .map_err(|error| Error::from_store(&url.to_string(), &error))?
            .with_fsync(true);
        Ok(Self {
            store: Arc::new(store),
            prefix: String::new(),
            kind: Kind::Local(folder),
            name: url.to_string(),
        })
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// Makes the folder for its owner only, and its name durable.
fn create_folder(folder: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;

    if folder.is_dir() {
        return Ok(());
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)?;
    // Those above may be new as well; syncing one that is not costs nothing.
    std::fs::canonicalize(folder)?
        .ancestors()
        .skip(1)
        .try_for_each(|above| match std::fs::File::open(above) {
            Ok(above) => above.sync_all(),
            // One we may not read is not one we made.
            Err(_) => Ok(()),
        })
}

fn retry() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(200),
            max_backoff: Duration::from_secs(10),
            base: 2.0,
        },
        max_retries: RETRIES_MAX,
        retry_timeout: RETRY_TIMEOUT,
    }
}

fn client(allow_http: bool) -> ClientOptions {
    ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_allow_http(allow_http)
}

fn s3(
    bucket: &Bucket,
    options: &StorageOptions,
    url: &RepositoryUrl,
) -> Result<Arc<dyn ObjectStore>> {
    let endpoint = options.get(&["aws_endpoint_url_s3", "aws_endpoint_url", "aws_endpoint"]);
    let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let mut builder = AmazonS3Builder::new()
        .with_client_options(client(plain))
        .with_retry(retry());
    for (name, value) in options.of("aws_") {
        // Variables for other tools (AWS_PAGER) are no settings of the store.
        if let Ok(key) = name.parse::<AmazonS3ConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    let store = builder.with_bucket_name(&bucket.name).build();
    Ok(Arc::new(store.map_err(|error| setup(url, &error))?))
}

fn gcs(
    bucket: &Bucket,
    options: &StorageOptions,
    url: &RepositoryUrl,
) -> Result<Arc<dyn ObjectStore>> {
    let mut builder = GoogleCloudStorageBuilder::new()
        .with_client_options(client(false))
        .with_retry(retry());
    for (name, value) in options.of("google_") {
        if let Ok(key) = name.parse::<GoogleConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    let store = builder.with_bucket_name(&bucket.name).build();
    Ok(Arc::new(store.map_err(|error| setup(url, &error))?))
}

fn azure(
    bucket: &Bucket,
    options: &StorageOptions,
    url: &RepositoryUrl,
) -> Result<Arc<dyn ObjectStore>> {
    let endpoint = options.get(&["azure_storage_endpoint", "azure_endpoint"]);
    let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let mut builder = MicrosoftAzureBuilder::new()
        .with_client_options(client(plain))
        .with_retry(retry());
    for (name, value) in options.of("azure_") {
        if let Ok(key) = name.parse::<AzureConfigKey>() {
            builder = builder.with_config(key, value);
        }
    }
    let store = builder.with_container_name(&bucket.name).build();
    Ok(Arc::new(store.map_err(|error| setup(url, &error))?))
}

fn setup(url: &RepositoryUrl, error: &object_store::Error) -> Error {
    let error = Error::from_store("lastgood.json", error);
    Error::Url {
        text: url.to_string(),
        reason: match error {
            Error::Transport { detail, .. } | Error::Refused { detail, .. } => detail,
            other => other.to_string(),
        },
    }
}
