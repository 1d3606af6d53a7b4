//! Which source is meant, and where it is looked for: the service, or a repository by itself.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use lastgood_pg::ConnectionConfig;
use lastgood_store::{
    Encryption, MasterKey, Repository, RepositoryUrl, SourceStore, StorageOptions,
};

use zeroize::Zeroizing;

use super::client::{Client, ServerArgs};
use super::failure::Failure;

/// Holds a connection string, because arguments are seen by everybody on the machine.
pub(super) const CONNECTION_VARIABLE: &str = "LASTGOOD_CONNECTION";

/// A source, named as the first argument or as `--source`; neither if there is only one.
#[derive(Debug, Clone, Args)]
pub(super) struct SourceArg {
    /// Name or id of the source; where there is only one, needed to change or remove it
    source: Option<String>,
    /// The same, as an option
    #[arg(
        long = "source",
        value_name = "SOURCE",
        conflicts_with = "source",
        id = "source_option"
    )]
    option: Option<String>,
}

impl SourceArg {
    pub(super) fn wanted(&self) -> Option<&str> {
        self.source.as_deref().or(self.option.as_deref())
    }

    /// For what should not happen to a source that nobody named.
    pub(super) fn named(&self) -> Result<&str, Failure> {
        self.wanted()
            .ok_or_else(|| Failure::usage("say which source is meant"))
    }
}

/// A repository without a service.
#[derive(Debug, Clone, Args)]
pub(super) struct RepositoryArgs {
    /// Work on this repository, without a service: file://, s3://bucket/prefix, gs://, az://
    #[arg(long, value_name = "URL", help_heading = "Repository")]
    pub(super) repository: Option<RepositoryUrl>,
    /// The master key; without it, LASTGOOD_MASTER_KEY holds the key itself
    #[arg(
        long,
        value_name = "FILE",
        requires = "repository",
        help_heading = "Repository"
    )]
    pub(super) key_file: Option<PathBuf>,
}

/// A repository or a service.
#[derive(Debug, Clone, Args)]
pub(super) struct PlaceArgs {
    #[command(flatten)]
    pub(super) repository: RepositoryArgs,
    #[command(flatten)]
    pub(super) server: ServerArgs,
}

/// Where a command works.
pub(super) enum Place {
    Repository(Repository),
    Service(Client),
}

impl RepositoryArgs {
    /// Open the repository, if one is named.
    pub(super) async fn open(&self) -> Result<Option<Repository>, Failure> {
        let Some(url) = &self.repository else {
            return Ok(None);
        };
        let key = match &self.key_file {
            Some(path) => Some(MasterKey::from_file(path)?),
            None => MasterKey::from_env()?,
        };
        let encryption = key.map_or(Encryption::Off, Encryption::On);
        let repository = Repository::open(url, &StorageOptions::from_env(), encryption).await;
        repository.map(Some).map_err(|error| match error {
            lastgood_store::Error::MasterKeyNeeded => Failure::operator(
                "the repository is encrypted: give --key-file or LASTGOOD_MASTER_KEY",
            ),
            error => error.into(),
        })
    }
}

impl PlaceArgs {
    pub(super) async fn open(&self) -> Result<Place, Failure> {
        match self.repository.open().await? {
            Some(repository) => Ok(Place::Repository(repository)),
            None => self.server.client().map(Place::Service),
        }
    }
}

/// A connection string as it was given: `-` stands for a line on standard input, because arguments
/// are seen by everybody on the machine.
pub(super) fn connection(given: String) -> Result<Zeroizing<String>, Failure> {
    if given != "-" {
        return Ok(Zeroizing::new(given));
    }
    let mut line = Zeroizing::new(String::new());
    std::io::stdin()
        .read_line(&mut line)
        .context("cannot read the connection string from standard input")?;
    Ok(Zeroizing::new(
        line.trim_end_matches(['\r', '\n']).to_owned(),
    ))
}

/// As [`connection`]; an empty one stands for the environment's.
pub(super) fn connection_or_variable(given: String) -> Result<Zeroizing<String>, Failure> {
    if !given.is_empty() {
        return connection(given);
    }
    let held = std::env::var(CONNECTION_VARIABLE).map(Zeroizing::new);
    held.map_err(|_| {
        Failure::usage(format!(
            "--connection needs a value, or a connection string in {CONNECTION_VARIABLE}"
        ))
    })
}

/// The connection string that `option` gave, understood.
pub(super) fn parse_connection(option: &str, text: &str) -> Result<ConnectionConfig, Failure> {
    text.parse().map_err(|error: lastgood_pg::ConfigError| {
        Failure::usage(format!(
            "{option} is no connection string that is understood: {error}; it looks like \
             postgres://user:password@host:5432/database"
        ))
    })
}

/// The source of a repository that is called `wanted`; the only one if nothing is wanted.
pub(super) async fn source_store(
    repository: &Repository,
    wanted: Option<&str>,
) -> Result<(String, SourceStore), Failure> {
    let sources = repository.sources().await?;
    let mut matching = sources.iter().filter(|(id, file)| match wanted {
        Some(wanted) => file.name == wanted || id.to_string() == wanted,
        None => true,
    });
    let (first, second) = (matching.next(), matching.next());
    let names = || {
        let names: Vec<String> = sources
            .iter()
            .map(|(id, file)| format!("{} ({id})", file.name))
            .collect();
        match names.is_empty() {
            true => "it holds none".to_owned(),
            false => format!("it holds {}", names.join(", ")),
        }
    };
    match (first, second) {
        (Some((id, file)), None) => Ok((file.name.clone(), repository.source(*id).await?)),
        (None, _) => Err(Failure::usage(format!(
            "the repository has no such source; {}",
            names()
        ))),
        (Some(_), Some(_)) => Err(Failure::usage(format!(
            "say which source is meant, by its id if its name is not unique; {}",
            names()
        ))),
    }
}

/// The path of a source of the service; of its only one if nothing is wanted.
pub(super) async fn source_path(client: &Client, wanted: Option<&str>) -> Result<String, Failure> {
    let name = match wanted {
        Some(wanted) => wanted.to_owned(),
        None => {
            let sources = client.list("/api/v1/sources").await?;
            let names: Vec<&str> = sources
                .iter()
                .filter_map(|source| source["name"].as_str())
                .collect();
            match names.as_slice() {
                [name] => (*name).to_owned(),
                [] => return Err(Failure::usage("no source is registered yet")),
                _ => {
                    return Err(Failure::usage(format!(
                        "say which source is meant: {}",
                        names.join(", ")
                    )));
                }
            }
        }
    };
    let plain = !name.is_empty()
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    match plain {
        true => Ok(format!("/api/v1/sources/{name}")),
        false => Err(Failure::usage(format!("\"{name}\" is no name of a source"))),
    }
}
