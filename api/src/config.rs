//! Configuration of the service: flags and environment in, one checked value out.
//!
//! Settings of the process live here, settings of a source in the catalog. Credentials of object
//! storage come from the usual variables (`AWS_…`, `GOOGLE_…`, `AZURE_…`) and are never written down.

use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use lastgood_store::RepositoryUrl;

use crate::telemetry::LogFormat;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum EncryptionArg {
    /// Everything below `sources/` is encrypted under keys wrapped by the master key.
    On,
    /// Objects are compressed only: whoever reads the bucket reads the data.
    Off,
}

/// `lastgood serve` as it was typed.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServeArgs {
    /// Folder of the service's own files: catalog, master key, token, spool
    #[arg(long, env = "LASTGOOD_DATA_DIR", default_value = "lastgood-data")]
    pub(crate) data_dir: PathBuf,
    /// Address of the HTTP API
    #[arg(long, env = "LASTGOOD_LISTEN", default_value = "127.0.0.1:7070")]
    pub(crate) listen: SocketAddr,
    /// Where everything is kept: file://, s3://bucket/prefix, gs://, az:// [default: below the data folder]
    #[arg(long, env = "LASTGOOD_REPOSITORY", value_name = "URL")]
    pub(crate) repository: Option<RepositoryUrl>,
    /// Whether the repository is encrypted
    #[arg(long, env = "LASTGOOD_ENCRYPTION", value_enum, default_value = "on")]
    pub(crate) encryption: EncryptionArg,
    /// The master key [default: master.key in the data folder; made at the first start].
    /// LASTGOOD_MASTER_KEY, if set, holds the key itself and wins
    #[arg(long, env = "LASTGOOD_KEY_FILE", value_name = "FILE")]
    pub(crate) key_file: Option<PathBuf>,
    /// Form of the log on standard error
    #[arg(long, env = "LASTGOOD_LOG_FORMAT", value_enum, default_value = "text")]
    pub(crate) log: LogFormat,
    /// Seconds that sealing and uploading may take at a shutdown
    #[arg(long, env = "LASTGOOD_SHUTDOWN_SECONDS", default_value = "60")]
    pub(crate) shutdown_seconds: u64,
}

/// The service's configuration, checked.
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    pub(crate) listen: SocketAddr,
    pub(crate) repository: RepositoryUrl,
    pub(crate) encryption: EncryptionArg,
    pub(crate) key_file: PathBuf,
    pub(crate) shutdown_deadline: Duration,
}

impl Config {
    /// Make the data folder, if there is none, and work out the defaults below it.
    pub(crate) fn prepare(args: ServeArgs) -> anyhow::Result<Self> {
        // The service's alone: the catalog names databases and roles.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&args.data_dir)
            .with_context(|| format!("cannot make the data folder {}", args.data_dir.display()))?;
        let data_dir = args
            .data_dir
            .canonicalize()
            .with_context(|| format!("cannot find {}", args.data_dir.display()))?;
        let repository = args
            .repository
            .unwrap_or_else(|| RepositoryUrl::local(&data_dir.join("repository")));
        let key_file = args.key_file.unwrap_or_else(|| data_dir.join("master.key"));
        Ok(Self {
            listen: args.listen,
            repository,
            encryption: args.encryption,
            key_file,
            shutdown_deadline: Duration::from_secs(args.shutdown_seconds),
            data_dir,
        })
    }

    pub(crate) fn catalog_path(&self) -> PathBuf {
        self.data_dir.join("catalog.db")
    }

    pub(crate) fn token_path(&self) -> PathBuf {
        self.data_dir.join("admin.token")
    }

    /// Where a new master key stands while it takes the old one's place.
    pub(crate) fn rotated_key_path(&self) -> PathBuf {
        let mut name = self.key_file.clone().into_os_string();
        name.push(".new");
        name.into()
    }

    pub(crate) fn lock_path(&self) -> PathBuf {
        self.data_dir.join("lock")
    }

    pub(crate) fn spool_dir(&self) -> PathBuf {
        self.data_dir.join("spool")
    }
}
