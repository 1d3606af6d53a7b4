//! `lastgood retention`

use serde_json::{Value, json};

use super::client::ServerArgs;
use super::failure::Failure;
use super::output::{Output, human_bytes, show, some};
use super::place::{SourceArg, source_path};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: SourceArg,
    /// Only say what would be given up and deleted
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    server: ServerArgs,
}

pub(super) async fn run(args: Args, output: &Output) -> Result<(), Failure> {
    let client = args.server.client()?;
    let path = source_path(&client, args.source.wanted()).await?;
    let path = format!("{path}/retention");
    let pass = match args.dry_run {
        true => client.get(&path).await?,
        false => client.post(&path, &json!({})).await?,
    };
    output.answer(&pass, |pass| describe(pass, args.dry_run));
    Ok(())
}

fn describe(pass: &Value, dry_run: bool) -> String {
    let done = |past: &str, would: &str| match dry_run {
        true => would.to_owned(),
        false => past.to_owned(),
    };
    let mut text = String::new();
    for (name, word) in [
        ("given_up", done("given up", "would give up")),
        ("taken_back", done("taken back", "would take back")),
        ("deleted", done("deleted", "would delete")),
    ] {
        text.push_str(&format!("{word:<15}  {}\n", held(&pass[name])));
    }
    for pending in pass["pending"].as_array().into_iter().flatten() {
        let after = show(&pending["delete_after"]);
        text.push_str(&format!(
            "{:<15}  {}, after {after}\n",
            "waiting",
            held(pending)
        ));
    }
    for window in pass["windows"].as_array().into_iter().flatten() {
        text.push_str(&format!(
            "{:<15}  {}  to  {}\n",
            done("recoverable", "recoverable then"),
            show(&window["from"]["time"]),
            show(&window["to"]["time"])
        ));
    }
    text
}

fn held(value: &Value) -> String {
    let bases = value["bases"].as_array().map_or(0, Vec::len);
    match (bases, value["segments"].as_u64().unwrap_or(0)) {
        (0, 0) => "nothing".to_owned(),
        (_, segments) => format!(
            "{} and {}, {}",
            some(&bases.into(), "base"),
            some(&segments.into(), "segment"),
            human_bytes(value["stored_bytes"].as_u64().unwrap_or(0))
        ),
    }
}
