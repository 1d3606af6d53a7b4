//! `lastgood catalog rebuild`

use std::path::PathBuf;

use anyhow::Context;
use clap::{Args as ClapArgs, Subcommand};
use lastgood_store::{Encryption, MasterKey, Repository, StorageOptions};
use serde_json::{Value, json};

use super::failure::Failure;
use super::output::{Output, show, table};
use crate::catalog::{Catalog, Error};
use crate::config::{Config, EncryptionArg, ServeArgs};
use crate::exit::Refusal;
use crate::{rebuild, serve};

#[derive(ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the catalog again from the repository: its sources, their settings, bases, segments and
    /// points. What a catalog that can be read knows beside that stays; the service must be stopped
    Rebuild(ServeArgs),
}

pub(super) async fn run(args: Args, output: &Output) -> Result<(), Failure> {
    let Command::Rebuild(args) = args.command;
    let config = Config::prepare(args)?;
    let lock = serve::lock(&config)?;
    if !config.key_file.exists() && MasterKey::from_env()?.is_none() {
        return Err(anyhow::Error::from(Refusal(format!(
            "there is no master key: put it back as {}, mode 0600, or give --key-file",
            config.key_file.display()
        )))
        .into());
    }
    let (master, _) = serve::master_key(&config)?;
    let seal = serve::seal(&master)?;
    let encryption = match config.encryption {
        EncryptionArg::On => Encryption::On(master),
        EncryptionArg::Off => Encryption::Off,
    };
    let options = StorageOptions::from_env();
    // Before anything of the old catalog is touched.
    let repository = Repository::open(&config.repository, &options, encryption).await?;
    let (catalog, aside) = open(&config)?;
    let opened = Ok(repository.clone());
    serve::belongs_together(&catalog, &config, &opened).await?;
    serve::remember(&catalog, &config, &repository).await?;
    let found = rebuild::rebuild(&catalog, &seal, &repository).await;
    let found = found.context("cannot make the catalog again")?;
    drop(lock);
    let value = json!({"sources": found, "moved_aside": aside});
    output.answer(&value, describe);
    Ok(())
}

/// The catalog; one that is none any more is moved aside first.
fn open(config: &Config) -> anyhow::Result<(Catalog, Option<PathBuf>)> {
    let path = config.catalog_path();
    let cannot = || format!("cannot use {}", path.display());
    match Catalog::open(&path).and_then(|catalog| catalog.check().map(|()| catalog)) {
        Ok(catalog) => return Ok((catalog, None)),
        Err(Error::Damaged(_)) => {}
        Err(error) => return Err(error).with_context(cannot),
    }
    let aside = (1..)
        .map(|number| config.data_dir.join(format!("catalog.db.damaged-{number}")))
        .find(|aside| !aside.exists())
        .unwrap_or_default();
    std::fs::rename(&path, &aside)
        .with_context(|| format!("cannot move {} aside", path.display()))?;
    for suffix in ["-wal", "-shm"] {
        let mut name = path.clone().into_os_string();
        name.push(suffix);
        match std::fs::remove_file(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", name.display()));
            }
            _ => {}
        }
    }
    Ok((Catalog::open(&path).with_context(cannot)?, Some(aside)))
}

fn describe(value: &Value) -> String {
    let mut text = String::new();
    if let Some(aside) = value["moved_aside"].as_str() {
        text.push_str(&format!("the damaged catalog is in {aside} now\n"));
    }
    let sources = value["sources"].as_array();
    let rows = sources.into_iter().flatten().map(|source| {
        let newest = source["windows"].as_array().and_then(|all| all.last());
        let newest = newest.cloned().unwrap_or_default();
        let settings = match (&source["added"], &source["settings"]) {
            (Value::Bool(true), Value::Bool(false)) => "defaults",
            (Value::Bool(true), _) => "found",
            _ => "kept",
        };
        vec![
            show(&source["name"]),
            show(&source["id"]),
            settings.to_owned(),
            show(&newest["from"]["time"]),
            show(&newest["to"]["time"]),
            show(&source["error"]),
        ]
    });
    let rows: Vec<Vec<String>> = rows.collect();
    if rows.is_empty() {
        text.push_str("the repository holds no source\n");
        return text;
    }
    let headings = ["NAME", "ID", "SETTINGS", "RECOVERABLE FROM", "TO", "ERROR"];
    text.push_str(&table(&headings, &rows));
    let waiting = sources.into_iter().flatten();
    for source in waiting.filter(|source| source["needs_connection"] == true) {
        text.push_str(&format!(
            "start the service, then: lastgood source set {} --connection CONNECTION\n",
            show(&source["name"])
        ));
    }
    text
}
