//! `lastgood restores list|show|follow|cancel`: the restores of the service.

use clap::{Args as ClapArgs, Subcommand};
use futures::StreamExt;
use serde_json::{Value, json};

use super::bar::Bar;
use super::client::{Client, ServerArgs};
use super::failure::Failure;
use super::output::{Output, pairs, show, table};
use super::restore::{describe_plan, describe_report, describe_target};
use crate::exit::Exit;

/// A line of an event stream is no longer than this.
const LINE_BYTES_MAX: usize = 1 << 20;

#[derive(ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Subcommand)]
enum Command {
    /// List restores, newest first
    List,
    /// Show a restore: plan, progress, report
    Show {
        /// As `lastgood restores list` prints it
        id: String,
    },
    /// Follow a restore to its end
    Follow {
        /// As `lastgood restores list` prints it
        id: String,
    },
    /// Cancel a restore
    Cancel {
        /// As `lastgood restores list` prints it
        id: String,
    },
}

pub(super) async fn run(args: Args, output: &Output) -> Result<(), Failure> {
    let client = args.server.client()?;
    match args.command {
        Command::List => {
            let restores = json!({"items": client.list("/api/v1/restores").await?});
            output.answer(&restores, |restores| {
                let rows: Vec<Vec<String>> = restores["items"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|restore| {
                        vec![
                            show(&restore["id"]),
                            show(&restore["source_name"]),
                            describe_target(&restore["request"]["target"]),
                            show(&restore["status"]),
                            show(&restore["phase"]),
                            show(&restore["created"]),
                            show(&restore["error"]),
                        ]
                    })
                    .collect();
                table(
                    &[
                        "ID", "SOURCE", "TARGET", "STATUS", "PHASE", "CREATED", "ERROR",
                    ],
                    &rows,
                )
            });
        }
        Command::Show { id } => {
            let restore = client.get(&path(&id)?).await?;
            output.answer(&restore, describe);
        }
        Command::Follow { id } => {
            let restore = follow(&client, &id, output).await?;
            finish(&restore, output)?;
        }
        Command::Cancel { id } => {
            let restore = client
                .post(&format!("{}/cancel", path(&id)?), &json!({}))
                .await?;
            output.answer(&restore, |restore| {
                format!("{} is being cancelled\n", show(&restore["id"]))
            });
        }
    }
    Ok(())
}

fn path(id: &str) -> Result<String, Failure> {
    match id.bytes().all(|byte| byte.is_ascii_hexdigit()) && !id.is_empty() {
        true => Ok(format!("/api/v1/restores/{id}")),
        false => Err(Failure::usage(format!("\"{id}\" is no id of a restore"))),
    }
}

/// Follow a restore by its events; the restore as it ended.
pub(super) async fn follow(client: &Client, id: &str, output: &Output) -> Result<Value, Failure> {
    let path = path(id)?;
    let bar = Bar::new(output);
    let mut seen = 0;
    loop {
        let response = client.events(&format!("{path}/events"), seen).await?;
        let mut stream = response.bytes_stream();
        let mut line = Vec::new();
        while let Some(chunk) = stream.next().await {
            // A connection that broke is opened again from the last event on.
            let Ok(chunk) = chunk else { break };
            for byte in chunk {
                match byte {
                    b'\n' => {
                        take_line(&line, &mut seen, &bar);
                        line.clear();
                    }
                    byte if line.len() < LINE_BYTES_MAX => line.push(byte),
                    _ => {}
                }
            }
        }
        let restore = client.get(&path).await?;
        if !matches!(restore["status"].as_str(), Some("planned" | "running")) {
            bar.clear();
            return Ok(restore);
        }
    }
}

fn take_line(line: &[u8], seen: &mut u64, bar: &Bar) {
    let Ok(line) = std::str::from_utf8(line) else {
        return;
    };
    if let Some(id) = line.strip_prefix("id:") {
        *seen = id.trim().parse().unwrap_or(*seen);
    } else if let Some(data) = line.strip_prefix("data:")
        && let Ok(step) = serde_json::from_str::<Value>(data)
    {
        bar.take(&step);
    }
}

/// Say how it ended.
pub(super) fn finish(restore: &Value, output: &Output) -> Result<(), Failure> {
    output.answer(restore, |restore| describe_report(&restore["report"]));
    let ended = |exit, what: &str| {
        let message = match restore["error"].as_str() {
            Some(error) => format!("{what}: {error}"),
            None => what.to_owned(),
        };
        Failure::new(exit, message).left_behind(restore["left_behind"].as_str())
    };
    match restore["status"].as_str() {
        Some("succeeded") => Ok(()),
        Some("cancelled") => Err(ended(Exit::Interrupted, "cancelled")),
        _ => {
            let exit = match restore["error_class"].as_str() {
                Some("needs_operator") => Exit::Operator,
                Some("corrupt") => Exit::Corrupt,
                _ => Exit::Failed,
            };
            Err(ended(exit, "the restore failed"))
        }
    }
}

fn describe(restore: &Value) -> String {
    let into = &restore["request"]["into"];
    let mut text = pairs(&[
        ("id", show(&restore["id"])),
        ("status", show(&restore["status"])),
        ("phase", show(&restore["phase"])),
        ("into", show(&into["connection"])),
        ("new database", show(&into["create_database"])),
        ("created", show(&restore["created"])),
        ("started", show(&restore["started"])),
        ("finished", show(&restore["finished"])),
        ("error", show(&restore["error"])),
        ("left behind", show(&restore["left_behind"])),
    ]);
    text.push('\n');
    text.push_str(&describe_plan(&restore["plan"]));
    if restore["report"].is_object() {
        text.push('\n');
        text.push_str(&describe_report(&restore["report"]));
    }
    text
}
