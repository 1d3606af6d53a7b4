//! `lastgood compact`: by the service, or on a repository by itself.

use std::time::Duration;

use anyhow::Context;
use lastgood_restore::CompactionOptions;
use lastgood_store::SourceStore;
use serde_json::{Value, json};

use super::client::Client;
use super::failure::Failure;
use super::output::{Output, human_bytes, some};
use super::place::{Place, PlaceArgs, SourceArg, source_path, source_store};
use crate::clock::now;
use crate::http::CompactionView;

/// Merged segments between two words about it.
const MERGES_MAX: usize = 64;

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: SourceArg,
    /// Only say what would be merged and deleted
    #[arg(long)]
    dry_run: bool,
    /// Hours between merging segments and deleting them, on a repository without its service; the
    /// service goes by the source's retention_grace_hours
    #[arg(
        long,
        value_name = "HOURS",
        default_value_t = 24,
        requires = "repository"
    )]
    grace_hours: u32,
    #[command(flatten)]
    place: PlaceArgs,
}

/// Where passes are made.
enum Passes {
    Service(Client, String),
    Repository(SourceStore, Duration),
}

impl Passes {
    async fn pass(&self, dry_run: bool) -> Result<Value, Failure> {
        match self {
            Passes::Service(client, path) if dry_run => client.get(path).await,
            Passes::Service(client, path) => client.post(path, &json!({})).await,
            Passes::Repository(store, grace) => {
                let spool = std::env::temp_dir();
                let options = CompactionOptions {
                    grace: *grace,
                    now: now(),
                    dry_run,
                    spool: &spool,
                    merges_max: if dry_run { usize::MAX } else { MERGES_MAX },
                };
                let compaction = lastgood_restore::compact(store, &options).await?;
                let view = serde_json::to_value(CompactionView::from(compaction));
                Ok(view.context("the answer has no JSON form")?)
            }
        }
    }
}

pub(super) async fn run(args: Args, output: &Output) -> Result<(), Failure> {
    let passes = match args.place.open().await? {
        Place::Service(client) => {
            let path = source_path(&client, args.source.wanted()).await?;
            Passes::Service(client, format!("{path}/compaction"))
        }
        Place::Repository(repository) => {
            let (_, store) = source_store(&repository, args.source.wanted()).await?;
            // For writing: sealed with the newest key.
            let store = repository.create_source(store.id()).await?;
            let grace = Duration::from_secs(u64::from(args.grace_hours) * 3600);
            Passes::Repository(store, grace)
        }
    };
    let mut all = passes.pass(args.dry_run).await?;
    while all["more"] == true {
        if output.is_watched() {
            output.note(format!("{} left, going on", segments(&all["segments"])));
        }
        let next = passes.pass(args.dry_run).await?;
        all = together(all, next);
    }
    output.answer(&all, |all| describe(all, args.dry_run));
    Ok(())
}

/// Two passes as if they had been one.
fn together(mut all: Value, next: Value) -> Value {
    for name in ["segments", "stored_bytes"] {
        let sum = number(&all["deleted"][name]) + number(&next["deleted"][name]);
        all["deleted"][name] = sum.into();
    }
    if let (Some(all), Some(next)) = (all["merged"].as_array_mut(), next["merged"].as_array()) {
        all.extend(next.iter().cloned());
    }
    for name in ["waiting", "segments", "more"] {
        all[name] = next[name].clone();
    }
    all
}

fn describe(all: &Value, dry_run: bool) -> String {
    let done = |past: &str, would: &str| match dry_run {
        true => would.to_owned(),
        false => past.to_owned(),
    };
    let merged = all["merged"].as_array().map_or(&[][..], Vec::as_slice);
    let sum = |of: &dyn Fn(&Value) -> &Value| merged.iter().map(|one| number(of(one))).sum::<u64>();
    let parts = json!({
        "segments": sum(&|one| &one["parts"]["segments"]),
        "stored_bytes": sum(&|one| &one["parts"]["stored_bytes"]),
    });
    let into = match (merged.len(), dry_run) {
        (0, _) => String::new(),
        (count, true) => format!(" into {count}"),
        (count, false) => {
            let stored = sum(&|one| &one["stored_bytes"]);
            format!(" into {count} ({})", human_bytes(stored))
        }
    };
    format!(
        "{:<15}  {}{into}\n{:<15}  {}\n{:<15}  {}\n{:<15}  {}\n",
        done("merged", "would merge"),
        held(&parts),
        done("deleted", "would delete"),
        held(&all["deleted"]),
        "waiting",
        held(&all["waiting"]),
        "there",
        segments(&all["segments"]),
    )
}

fn held(parts: &Value) -> String {
    match number(&parts["segments"]) {
        0 => "nothing".to_owned(),
        _ => {
            let bytes = human_bytes(number(&parts["stored_bytes"]));
            format!("{} ({bytes})", segments(&parts["segments"]))
        }
    }
}

fn segments(count: &Value) -> String {
    some(count, "segment")
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}
