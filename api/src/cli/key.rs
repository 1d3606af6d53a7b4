//! `lastgood key show|confirm|rotate|rotate-data`

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args as ClapArgs, Subcommand};
use lastgood_store::{Encryption, Error, MasterKey, Repository, StorageOptions};
use serde_json::json;

use super::client::ServerArgs;
use super::failure::Failure;
use super::output::{Output, show};
use super::place::{Place, PlaceArgs, SourceArg, source_path, source_store};
use crate::catalog::Catalog;
use crate::config::{Config, ServeArgs};
use crate::http::DataKeyView;
use crate::serve;

#[derive(ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show a key's fingerprint; without a key file, what the service says of its key
    Show {
        /// The key, or a copy of it
        #[arg(long, value_name = "FILE")]
        key_file: Option<PathBuf>,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Confirm that a copy of the key is kept elsewhere, by the copy's fingerprint
    Confirm {
        /// As `lastgood key show --key-file COPY` prints it
        fingerprint: String,
        #[command(flatten)]
        server: ServerArgs,
    },
    /// Replace the master key by a new one; the service must be stopped
    Rotate(ServeArgs),
    /// Seal a source's new objects with a new data key, by the service while it runs or with the
    /// repository alone; what is there stays readable
    RotateData {
        #[command(flatten)]
        source: SourceArg,
        #[command(flatten)]
        place: PlaceArgs,
    },
}

pub(super) async fn run(args: Args, output: &Output) -> Result<(), Failure> {
    match args.command {
        Command::Show {
            key_file: Some(path),
            ..
        } => {
            let fingerprint = MasterKey::from_file(&path)?.fingerprint().to_string();
            let value = json!({"fingerprint": fingerprint, "key_file": path});
            output.answer(&value, |value| format!("{}\n", show(&value["fingerprint"])));
        }
        Command::Show {
            key_file: None,
            server,
        } => {
            let key = server.client()?.get("/api/v1/key").await?;
            output.answer(&key, describe);
        }
        Command::Confirm {
            fingerprint,
            server,
        } => {
            let body = json!({"fingerprint": fingerprint});
            let key = server.client()?.post("/api/v1/key/confirm", &body).await?;
            output.answer(&key, describe);
        }
        Command::Rotate(args) => Box::pin(rotate(args, output)).await?,
        Command::RotateData { source, place } => {
            Box::pin(rotate_data(&source, &place, output)).await?;
        }
    }
    Ok(())
}

fn describe(key: &serde_json::Value) -> String {
    let warning = key["warning"].as_str();
    let warning = warning.map_or_else(String::new, |text| format!("WARNING: {text}\n"));
    format!(
        "kept in      {}\nconfirmed    {}\nfingerprint  {}\n{warning}",
        show(&key["kept_in"]),
        show(&key["confirmed"]),
        show(&key["fingerprint"])
    )
}

async fn rotate_data(
    source: &SourceArg,
    place: &PlaceArgs,
    output: &Output,
) -> Result<(), Failure> {
    let key = match place.open().await? {
        Place::Service(client) => {
            let path = source_path(&client, source.wanted()).await?;
            client
                .post(&format!("{path}/key/rotate"), &json!({}))
                .await?
        }
        Place::Repository(repository) => {
            let (_, store) = source_store(&repository, source.wanted()).await?;
            let rotation = repository.rotate_data_key(store.id()).await?;
            serde_json::to_value(DataKeyView::from(rotation))
                .map_err(|error| Failure::failed(error.to_string()))?
        }
    };
    output.answer(&key, |key| {
        format!(
            "new objects are sealed with data key {}\n",
            show(&key["key"])
        )
    });
    Ok(())
}

/// Wrap every data key and seal every connection string anew.
///
/// The new key stands beside the old one under `….new` until everything is done with it; cut short
/// at any point, the same command goes on from there.
async fn rotate(args: ServeArgs, output: &Output) -> Result<(), Failure> {
    let config = Config::prepare(args)?;
    let lock = serve::lock(&config)?;
    let new_path = config.rotated_key_path();
    if MasterKey::from_env()?.is_some() {
        return Err(Failure::usage(
            "the key comes from LASTGOOD_MASTER_KEY: put it into a file, give --key-file and unset \
             the variable; the new key will stand in that file",
        ));
    }
    let old = || MasterKey::from_file(&config.key_file);
    let new = || MasterKey::from_file(&new_path);
    let open = async |encryption| {
        Repository::open(&config.repository, &StorageOptions::from_env(), encryption).await
    };
    let resumed = new_path.exists();
    let repository = match open(Encryption::On(old()?)).await {
        // Cut short after the last of the old wraps was gone.
        Err(Error::WrongMasterKey { .. }) if resumed => open(Encryption::On(new()?)).await,
        // Without encryption the key protects the catalog alone.
        Err(Error::NotEncrypted) => open(Encryption::Off).await,
        opened => opened,
    };
    let path = config.catalog_path();
    let catalog = Catalog::open(&path).with_context(|| format!("cannot use {}", path.display()))?;
    serve::belongs_together(&catalog, &config, &repository).await?;
    let repository = repository?;
    // Only now that everything the new key is for has been found.
    if !resumed {
        MasterKey::generate()?.write_new(&new_path)?;
    }
    if repository.master_fingerprint().is_some() {
        repository.rotate_master_key(new()?).await?;
    }
    catalog
        .reseal(serve::seal(&old()?)?, serve::seal(&new()?)?)
        .await
        .context("cannot seal the connection strings anew")?;
    let fingerprint = new()?.fingerprint().to_string();
    std::fs::rename(&new_path, &config.key_file)
        .with_context(|| format!("cannot replace {}", config.key_file.display()))?;
    drop(lock);
    let value = json!({"fingerprint": fingerprint, "key_file": config.key_file});
    output.answer(&value, |_| {
        format!(
            "the master key in {} is new; copies of the old one open nothing any more\n\
             keep a copy elsewhere, then start the service and run `lastgood key confirm` with its \
             fingerprint\n",
            config.key_file.display()
        )
    });
    Ok(())
}
