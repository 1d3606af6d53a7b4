//! `lastgood source …`

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use serde_json::{Map, Value, json};

use super::client::{Client, ServerArgs};
use super::failure::Failure;
use super::output::{Output, bytes, findings, human_seconds, pairs, show, table};
use super::place::{self, source_path};

#[derive(ClapArgs)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Register a database: probe it, then capture it and take the first base
    Add {
        /// What to call it
        name: String,
        /// Connection string, as a URL or as key=value pairs; - reads it from standard input
        #[arg(env = "LASTGOOD_CONNECTION", hide_env_values = true)]
        connection: String,
        /// Take up a source that the repository holds, after the catalog was lost
        #[arg(long)]
        id: Option<String>,
        #[command(flatten)]
        settings: Settings,
    },
    /// List sources
    List,
    /// Show a source and its settings
    Show { source: Option<String> },
    /// Change a source's name, connection or settings
    Set {
        source: String,
        #[arg(long)]
        name: Option<String>,
        /// A new connection string; - reads it from standard input
        #[arg(long)]
        connection: Option<String>,
        #[command(flatten)]
        settings: Settings,
    },
    /// Stop capturing
    Pause {
        source: Option<String>,
        /// `keep`: the server keeps WAL for us; `drop`: it does not, and resuming needs a new base
        #[arg(long, value_enum, default_value = "keep")]
        slot: Slot,
    },
    /// Capture again; or try again now, if it failed
    Resume { source: Option<String> },
    /// Remove everything of ours from the database and forget it; backups stay in the repository
    Remove {
        source: String,
        /// Forget it even if the database cannot be reached
        #[arg(long)]
        force: bool,
    },
}

#[derive(Clone, Copy, ValueEnum)]
enum Slot {
    Keep,
    Drop,
}

#[derive(Clone, Copy, ValueEnum)]
enum NoIdentity {
    BaseOnly,
    Full,
}

/// Settings of a source, by the names they have in the API.
#[derive(ClapArgs)]
#[command(next_help_heading = "Settings")]
struct Settings {
    /// When to take new bases: five-field crontab expression, or "off"
    #[arg(long)]
    schedule: Option<String>,
    /// The zone the schedule is meant in
    #[arg(long)]
    timezone: Option<String>,
    /// NDJSON bytes after which a segment is cut
    #[arg(long)]
    segment_bytes: Option<u64>,
    /// Seconds after which a segment is cut
    #[arg(long)]
    segment_seconds: Option<u32>,
    /// Seconds between position marks while nothing is published
    #[arg(long)]
    idle_seconds: Option<u32>,
    /// WAL the slot may hold back
    #[arg(long)]
    wal_budget_bytes: Option<u64>,
    /// Start a new lineage at once after the budget took the slot
    #[arg(long)]
    restart_after_budget: Option<bool>,
    /// Tables without a usable replica identity: only in bases, or ALTER TABLE … REPLICA IDENTITY FULL
    #[arg(long, value_enum)]
    no_identity: Option<NoIdentity>,
    /// Tables to protect, schema.table with *; may be repeated
    #[arg(long)]
    include: Vec<String>,
    /// Tables to leave out; may be repeated
    #[arg(long)]
    exclude: Vec<String>,
    /// Memory of the source's walsender for one transaction
    #[arg(long)]
    logical_decoding_work_mem_kb: Option<u32>,
    /// Dumps at the same time
    #[arg(long)]
    base_jobs: Option<u32>,
    /// A table larger than this is an archive of its own
    #[arg(long)]
    big_table_bytes: Option<u64>,
    /// Sealed bytes that may wait for an upload
    #[arg(long)]
    spool_bytes: Option<u64>,
}

impl Settings {
    fn body(&self) -> Map<String, Value> {
        let schedule = self.schedule.as_deref().map(|schedule| match schedule {
            "off" => Value::Null,
            text => text.into(),
        });
        let no_identity = self.no_identity.map(|choice| match choice {
            NoIdentity::BaseOnly => "base-only",
            NoIdentity::Full => "full",
        });
        let list = |items: &[String]| (!items.is_empty()).then(|| json!(items));
        let given = [
            ("schedule", schedule),
            ("timezone", self.timezone.as_deref().map(Value::from)),
            ("segment_bytes", self.segment_bytes.map(Value::from)),
            ("segment_seconds", self.segment_seconds.map(Value::from)),
            ("idle_seconds", self.idle_seconds.map(Value::from)),
            ("wal_budget_bytes", self.wal_budget_bytes.map(Value::from)),
            (
                "restart_after_budget",
                self.restart_after_budget.map(Value::from),
            ),
            ("no_identity", no_identity.map(Value::from)),
            ("include", list(&self.include)),
            ("exclude", list(&self.exclude)),
            (
                "logical_decoding_work_mem_kb",
                self.logical_decoding_work_mem_kb.map(Value::from),
            ),
            ("base_jobs", self.base_jobs.map(Value::from)),
            ("big_table_bytes", self.big_table_bytes.map(Value::from)),
            ("spool_bytes", self.spool_bytes.map(Value::from)),
        ];
        given
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }
}

pub(super) async fn run(args: Args, output: &Output) -> Result<(), Failure> {
    let client = args.server.client()?;
    match args.command {
        Command::Add {
            name,
            connection,
            id,
            settings,
        } => {
            let mut body = settings.body();
            body.insert("name".to_owned(), name.into());
            let text = place::connection(connection)?;
            body.insert("connection".to_owned(), text.as_str().into());
            body.extend(id.map(|id| ("id".to_owned(), id.into())));
            let source = client.post("/api/v1/sources", &body.into()).await?;
            output.answer(&source, |source| {
                format!(
                    "{}\nregistered {} ({}); follow it with: lastgood source show {}\n",
                    findings(&source["findings"]),
                    show(&source["name"]),
                    show(&source["id"]),
                    show(&source["name"])
                )
            });
        }
        Command::List => list(&client, output).await?,
        Command::Show { source } => {
            let path = source_path(&client, source.as_deref()).await?;
            let source = client.get(&path).await?;
            output.answer(&source, describe);
        }
        Command::Set {
            source,
            name,
            connection,
            settings,
        } => {
            let mut body = settings.body();
            body.extend(name.map(|name| ("name".to_owned(), name.into())));
            if let Some(connection) = connection {
                let text = place::connection(connection)?;
                body.insert("connection".to_owned(), text.as_str().into());
            }
            let path = source_path(&client, Some(&source)).await?;
            let source = client.patch(&path, &body.into()).await?;
            output.answer(&source, describe);
        }
        Command::Pause { source, slot } => {
            let path = source_path(&client, source.as_deref()).await?;
            let slot = match slot {
                Slot::Keep => "keep",
                Slot::Drop => "drop",
            };
            let body = json!({"slot": slot});
            let source = client.post(&format!("{path}/pause"), &body).await?;
            output.answer(&source, describe);
        }
        Command::Resume { source } => {
            let path = source_path(&client, source.as_deref()).await?;
            let source = client.post(&format!("{path}/resume"), &json!({})).await?;
            output.answer(&source, describe);
        }
        Command::Remove { source, force } => {
            let path = source_path(&client, Some(&source)).await?;
            let query = if force { "?force=true" } else { "" };
            let removed = client.delete(&format!("{path}{query}")).await?;
            output.answer(&removed, removal);
        }
    }
    Ok(())
}

async fn list(client: &Client, output: &Output) -> Result<(), Failure> {
    let sources = client.list("/api/v1/sources").await?;
    let value = json!({"items": sources});
    output.answer(&value, |value| {
        let rows: Vec<Vec<String>> = value["items"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|source| {
                vec![
                    show(&source["name"]),
                    show(&source["status"]),
                    lag(source),
                    show(&source["observed_through"]),
                    show(&source["last_base"]),
                    show(&source["reason"]),
                ]
            })
            .collect();
        match rows.is_empty() {
            true => "no source is registered yet: lastgood source add NAME CONNECTION\n".to_owned(),
            false => table(
                &[
                    "NAME",
                    "STATUS",
                    "LAG",
                    "DURABLE THROUGH",
                    "LAST BASE",
                    "REASON",
                ],
                &rows,
            ),
        }
    });
    Ok(())
}

fn lag(source: &Value) -> String {
    match (source["lag_seconds"].as_u64(), source["lag_bytes"].as_u64()) {
        (Some(seconds), Some(_)) => {
            format!(
                "{}, {}",
                human_seconds(seconds),
                bytes(&source["lag_bytes"])
            )
        }
        _ => "-".to_owned(),
    }
}

fn describe(source: &Value) -> String {
    let budget = format!(
        "{} of {}",
        bytes(&source["retained_wal_bytes"]),
        bytes(&source["wal_budget_bytes"])
    );
    let schedule = match source["schedule"].as_str() {
        Some(schedule) => format!("{schedule} ({})", show(&source["timezone"])),
        None => "off".to_owned(),
    };
    pairs(&[
        ("name", show(&source["name"])),
        ("id", show(&source["id"])),
        ("database", show(&source["endpoint"])),
        ("status", show(&source["status"])),
        ("reason", show(&source["reason"])),
        ("durable through", show(&source["observed_through"])),
        ("durable LSN", show(&source["durable_lsn"])),
        ("lag", lag(source)),
        ("WAL kept for us", budget),
        ("lineage", show(&source["lineage"])),
        ("last base", show(&source["last_base"])),
        ("not covered", show(&source["uncovered"])),
        ("schedule", schedule),
        (
            "segments",
            format!(
                "{} or {} s, idle {} s",
                bytes(&source["segment_bytes"]),
                show(&source["segment_seconds"]),
                show(&source["idle_seconds"])
            ),
        ),
        ("without identity", show(&source["no_identity"])),
        ("include", show(&source["include"])),
        ("exclude", show(&source["exclude"])),
    ])
}

fn removal(removed: &Value) -> String {
    let mut text = format!("removed {}; its backups are kept\n", show(&removed["name"]));
    for dropped in removed["dropped"].as_array().into_iter().flatten() {
        text.push_str(&format!("  dropped {}\n", show(dropped)));
    }
    let left = removed["left"].as_array().cloned().unwrap_or_default();
    if !left.is_empty() {
        text.push_str("STILL THERE, and to be dropped by hand (a slot fills the server's disk):\n");
    }
    for left in left {
        text.push_str(&format!(
            "  {}: {}\n      {}\n",
            show(&left["object"]),
            show(&left["error"]),
            show(&left["sql"])
        ));
    }
    text
}
