//! `lastgood source …`

mod settings;
mod show;

use clap::{Args as ClapArgs, Subcommand, ValueEnum};
use lastgood_restore::Survey;
use lastgood_store::Repository;
use serde_json::{Value, json};

use super::client::ServerArgs;
use super::failure::Failure;
use super::output::{self, Output, findings};
use super::place::{self, CONNECTION_VARIABLE, RepositoryArgs, SourceArg, source_path};
use crate::http::WindowsView;
use settings::Settings;

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
        /// Connection string, as a URL or as key=value pairs; - reads it from standard input. Others on
        /// this machine see arguments: LASTGOOD_CONNECTION may hold it instead
        #[arg(env = CONNECTION_VARIABLE, hide_env_values = true)]
        connection: String,
        /// Take up this source that the repository holds, after the catalog was lost; its ids are told
        /// by `lastgood source list --repository URL`
        #[arg(long, conflicts_with = "new")]
        id: Option<String>,
        /// Begin another source although the repository holds one of this name
        #[arg(long)]
        new: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// List sources: those of the service, or with --repository those that a repository holds
    List {
        #[command(flatten)]
        repository: RepositoryArgs,
    },
    /// Show a source, with every setting
    Show {
        #[command(flatten)]
        source: SourceArg,
    },
    /// Change a source's name, connection or settings
    Set {
        #[command(flatten)]
        source: SourceArg,
        /// A new name
        #[arg(long)]
        name: Option<String>,
        /// A new connection string; - reads it from standard input, and without a value
        /// LASTGOOD_CONNECTION holds it
        #[arg(long, num_args = 0..=1, default_missing_value = "")]
        connection: Option<String>,
        /// It has moved to another server or database for good: begin anew there, and remove what is ours
        /// from the old one, if that can be reached
        #[arg(long, requires = "connection")]
        moved: bool,
        #[command(flatten)]
        settings: Settings,
    },
    /// Stop capturing
    Pause {
        #[command(flatten)]
        source: SourceArg,
        /// `keep`: the server keeps WAL for us; `drop`: it does not, and resuming needs a new base
        #[arg(long, value_enum, default_value = "keep")]
        slot: Slot,
    },
    /// Capture again; or try again now, if it failed
    Resume {
        #[command(flatten)]
        source: SourceArg,
    },
    /// Remove everything of ours from the database and forget it; backups stay in the repository
    Remove {
        #[command(flatten)]
        source: SourceArg,
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

pub(super) async fn run(args: Args, output: &Output) -> Result<(), Failure> {
    if let Command::List { repository } = &args.command
        && let Some(repository) = repository.open().await?
    {
        output.answer(&held(&repository).await?, show::held);
        return Ok(());
    }
    let client = args.server.client()?;
    match args.command {
        Command::Add {
            name,
            connection,
            id,
            new,
            settings,
        } => {
            let mut body = settings.body();
            body.insert("name".to_owned(), name.into());
            let text = place::connection(connection)?;
            body.insert("connection".to_owned(), text.as_str().into());
            body.extend(id.map(|id| ("id".to_owned(), id.into())));
            body.insert("new".to_owned(), new.into());
            let source = client.post("/api/v1/sources", &body.into()).await?;
            output.answer(&source, |source| {
                format!(
                    "{}\nregistered {} ({}); follow it with: lastgood source show {}\n",
                    findings(&source["findings"]),
                    output::show(&source["name"]),
                    output::show(&source["id"]),
                    output::show(&source["name"])
                )
            });
        }
        Command::List { .. } => {
            let sources = client.list("/api/v1/sources").await?;
            output.answer(&json!({"items": sources}), show::list);
        }
        Command::Show { source } => {
            let path = source_path(&client, source.wanted()).await?;
            output.answer(&client.get(&path).await?, show::describe);
        }
        Command::Set {
            source,
            name,
            connection,
            moved,
            settings,
        } => {
            let mut body = settings.body();
            body.extend(name.map(|name| ("name".to_owned(), name.into())));
            if let Some(connection) = connection {
                let text = place::connection_or_variable(connection)?;
                body.insert("connection".to_owned(), text.as_str().into());
                body.insert("moved".to_owned(), moved.into());
            }
            if body.is_empty() {
                return Err(Failure::usage(
                    "nothing to set: see `lastgood source set --help` for what can be",
                ));
            }
            let path = source_path(&client, Some(source.named()?)).await?;
            let source = client.patch(&path, &body.into()).await?;
            output.answer(&source, show::describe);
        }
        Command::Pause { source, slot } => {
            let path = source_path(&client, source.wanted()).await?;
            let slot = match slot {
                Slot::Keep => "keep",
                Slot::Drop => "drop",
            };
            let body = json!({"slot": slot});
            let source = client.post(&format!("{path}/pause"), &body).await?;
            output.answer(&source, show::describe);
        }
        Command::Resume { source } => {
            let path = source_path(&client, source.wanted()).await?;
            let source = client.post(&format!("{path}/resume"), &json!({})).await?;
            output.answer(&source, show::describe);
        }
        Command::Remove { source, force } => {
            let path = source_path(&client, Some(source.named()?)).await?;
            let query = if force { "?force=true" } else { "" };
            let removed = client.delete(&format!("{path}{query}")).await?;
            output.answer(&removed, show::removal);
        }
    }
    Ok(())
}

/// The sources a repository holds, each with its newest window.
async fn held(repository: &Repository) -> Result<Value, Failure> {
    let mut items = Vec::new();
    for (id, file) in repository.sources().await? {
        let survey = Survey::read(&repository.source(id).await?).await?;
        let view = serde_json::to_value(WindowsView::from(&survey));
        let mut view = view.map_err(|error| Failure::failed(error.to_string()))?;
        let windows = view["windows"].as_array_mut();
        let newest = windows.and_then(Vec::pop).unwrap_or_default();
        items.push(json!({"id": id.to_string(), "name": file.name, "newest": newest}));
    }
    Ok(json!({"items": items}))
}
