//! The command line: the same words as the API, for people first and with `--json` for programs.
//!
//! A command that changes or watches the service speaks HTTP with it; one that only needs what the
//! repository holds can be pointed at it with `--repository` and `--key-file`, and then no service,
//! no catalog and no network but the storage's is needed.

mod bar;
mod base;
mod cat;
mod catalog;
mod client;
mod compact;
mod failure;
mod key;
mod output;
mod place;
mod point;
mod probe;
mod restore;
mod restores;
mod retention;
mod size;
mod source;
mod target;
mod transactions;
mod verify;
mod window;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::config::ServeArgs;
use failure::Failure;
use output::Output;

const AFTER_HELP: &str = "\
Exit codes, through the service and with --repository alike:
    0  done
    1  failed, trying again may help: a server or the storage does not answer
    2  wrong usage: an option, a value, a name that does not exist
    3  refused until somebody has changed something: the target exists, a right is missing
    4  the repository holds what was not written
    5  the target of a plan or a restore cannot be reached; the nearest that can is named
  130  interrupted

Arguments are seen by everybody on the machine. What holds a password may come from the environment: \
LASTGOOD_CONNECTION (probe, source add, source set --connection), LASTGOOD_INTO (restore), \
LASTGOOD_MASTER_KEY, LASTGOOD_TOKEN; a connection string also from standard input, given as -.

The service's address and token come from --server and --token-file, LASTGOOD_SERVER and \
LASTGOOD_TOKEN, or the data folder of a service on this machine.";

/// Restore any PostgreSQL that you can connect to, to its last good moment
#[derive(Parser)]
#[command(name = "lastgood", version, about, after_help = AFTER_HELP, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Command {
    /// Run the service
    Serve(ServeArgs),
    /// Play the story on a throw-away PostgreSQL: a shop, a disaster, the way back
    Demo(crate::demo::Args),
    /// Look at a database before registering it; nothing is created
    Probe(probe::Args),
    /// Register, list, show, change, pause, resume and remove sources
    Source(source::Args),
    /// List bases, or take one now
    Base(base::Args),
    /// Show what can be restored
    Window(window::Args),
    /// Find captured transactions by time, table and size: when did it happen?
    Transactions(transactions::Args),
    /// Name this moment, to restore to it by its name
    Point(point::Args),
    /// Show what a restore would do
    Plan(restore::PlanArgs),
    /// Restore into a new or an empty database
    Restore(Box<restore::RestoreArgs>),
    /// List, show, follow and cancel the restores of the service
    Restores(restores::Args),
    /// Print an object of the repository: NDJSON, JSON or the raw dump
    Cat(cat::Args),
    /// Read and authenticate every object of a source
    Verify(verify::Args),
    /// Give up and delete what the settings do not keep, now instead of at the next hour
    Retention(retention::Args),
    /// Merge small segments into large ones, now instead of at the next hour
    Compact(compact::Args),
    /// Make the catalog again from the repository, after it was lost or damaged
    Catalog(catalog::Args),
    /// Show, confirm and rotate the master key, rotate data keys
    Key(key::Args),
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = Output::new(cli.json);
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return output.fail(&Failure::from(anyhow::Error::from(error))),
    };
    match runtime.block_on(dispatch(cli.command, &output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output.fail(&failure),
    }
}

async fn dispatch(command: Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => Ok(Box::pin(crate::serve::serve(args)).await?),
        Command::Demo(args) => Ok(Box::pin(crate::demo::run(args)).await?),
        Command::Probe(args) => Box::pin(probe::run(args, output)).await,
        Command::Source(args) => Box::pin(source::run(args, output)).await,
        Command::Base(args) => Box::pin(base::run(args, output)).await,
        Command::Window(args) => Box::pin(window::run(args, output)).await,
        Command::Transactions(args) => Box::pin(transactions::run(args, output)).await,
        Command::Point(args) => Box::pin(point::run(args, output)).await,
        Command::Plan(args) => Box::pin(restore::plan(args, output)).await,
        Command::Restore(args) => Box::pin(restore::run(*args, output)).await,
        Command::Restores(args) => Box::pin(restores::run(args, output)).await,
        Command::Cat(args) => Box::pin(cat::run(args, output)).await,
        Command::Retention(args) => retention::run(args, output).await,
        Command::Compact(args) => Box::pin(compact::run(args, output)).await,
        Command::Verify(args) => Box::pin(verify::run(args, output)).await,
        Command::Catalog(args) => Box::pin(catalog::run(args, output)).await,
        Command::Key(args) => Box::pin(key::run(args, output)).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    /// Somebody reads it at 3 a.m.
    #[test]
    fn every_command_and_every_argument_says_what_it_is() {
        use clap::CommandFactory;
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path}");
            for argument in command.get_arguments() {
                let id = argument.get_id();
                assert!(argument.get_help().is_some(), "{path}: {id}");
            }
            for inner in command.get_subcommands() {
                check(inner, &path);
            }
        }
        check(&Cli::command(), "");
    }
}
