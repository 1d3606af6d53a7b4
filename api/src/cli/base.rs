//! `lastgood base list|take`

use std::time::Duration;

use clap::{Args as ClapArgs, Subcommand};
use serde_json::{Value, json};

use super::client::{Client, ServerArgs};
use super::failure::Failure;
use super::output::{Output, bytes, show, table};
use super::place::{SourceArg, source_path};

/// How often a base that is waited for is looked at.
const POLL: Duration = Duration::from_millis(500);

#[derive(ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Subcommand)]
enum Command {
    /// List bases, newest first, failed attempts included
    List {
        #[command(flatten)]
        source: SourceArg,
    },
    /// Take a new base now, beside the capture that goes on
    Take {
        #[command(flatten)]
        source: SourceArg,
        /// Return at once instead of when it is complete
        #[arg(long)]
        no_wait: bool,
    },
}

pub(super) async fn run(args: Args, output: &Output) -> Result<(), Failure> {
    let client = args.server.client()?;
    match args.command {
        Command::List { source } => {
            let path = source_path(&client, source.wanted()).await?;
            let bases = client.list(&format!("{path}/bases")).await?;
            output.answer(&json!({"items": bases}), |value| {
                let rows: Vec<Vec<String>> = value["items"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(row)
                    .collect();
                let headings = [
                    "BASE",
                    "STARTED",
                    "STATUS",
                    "CAUSE",
                    "CONSISTENT AT",
                    "SIZE",
                    "STORED",
                    "FINISHED",
                    "ERROR",
                ];
                table(&headings, &rows)
            });
        }
        Command::Take { source, no_wait } => {
            let path = source_path(&client, source.wanted()).await?;
            let bases = format!("{path}/bases");
            let begun = client.post(&bases, &json!({})).await?;
            if no_wait {
                output.answer(&begun, |begun| format!("begun: {}\n", show(&begun["id"])));
                return Ok(());
            }
            let base = wait(&client, &path, &begun["id"], output).await?;
            if base["status"] != "succeeded" {
                return Err(Failure::failed(format!(
                    "the base failed: {}",
                    show(&base["error"])
                )));
            }
            output.answer(&base, |base| {
                format!(
                    "base {}: {} at {}, {} ({} stored)\n",
                    show(&base["base"]),
                    show(&base["status"]),
                    show(&base["consistent_point"]),
                    bytes(&base["bytes"]),
                    bytes(&base["stored_bytes"])
                )
            });
        }
    }
    Ok(())
}

/// Until it has ended; tells what keeps it waiting.
async fn wait(
    client: &Client,
    source: &str,
    id: &Value,
    output: &Output,
) -> Result<Value, Failure> {
    let mut told = Value::Null;
    loop {
        // The newest are on the first page.
        let mut page = client.get(&format!("{source}/bases")).await?;
        let items = page["items"].as_array_mut().map(std::mem::take);
        let found = items
            .unwrap_or_default()
            .into_iter()
            .find(|base| base["id"] == *id);
        match found {
            Some(base) if base["status"] != "running" => return Ok(base),
            Some(_) => {
                let mut source = client.get(source).await?;
                let reason = source["reason"].take();
                // It says for how long, which is another text each time.
                if told.is_null() && !reason.is_null() {
                    output.note(show(&reason));
                }
                told = reason;
                tokio::time::sleep(POLL).await;
            }
            None => return Err(Failure::failed("the base is no longer listed")),
        }
    }
}

fn row(base: &Value) -> Vec<String> {
    vec![
        show(&base["base"]),
        show(&base["started"]),
        show(&base["status"]),
        show(&base["cause"]),
        show(&base["consistent_point"]),
        bytes(&base["bytes"]),
        bytes(&base["stored_bytes"]),
        show(&base["finished"]),
        show(&base["error"]),
    ]
}
