//! `pg_dump`, `pg_dumpall` and `pg_restore` as child processes.
//!
//! What dumps uses a session that is lent to it ([`Loan`]); what restores connects by itself.
//!
//! Invariants: a password reaches a child by its environment only, never by its arguments; no
//! `PG*` variable of ours reaches it but those that the connection string stands for, and no
//! password or service file is read; a child is killed when its handle is dropped; what is kept of
//! its stderr is bounded.

mod environment;
mod process;
mod toc;
mod tools;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use lastgood_proto::encoding;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio_util::task::AbortOnDropHandle;

pub use process::ToolError;
pub use toc::{Contents, TocEntry};
pub use tools::{ArchiveMaker, PgTools};

use crate::config::ConnectionConfig;
use crate::loan::{self, Loan};
use crate::publication::TableName;
use crate::quote;
use process::Process;

/// One run of `pg_dump`, always in the custom format and uncompressed: compression is ours.
#[derive(Debug, Clone, Default)]
pub struct DumpOptions {
    /// The archive's encoding; if `None`, that of a session when it is lent: UTF8.
    pub encoding: Option<String>,
    /// Definition only.
    pub exclude_table_data: Vec<TableName>,
    pub exclude_schemas: Vec<String>,
    /// How long to wait for a table's lock; for ever if `None`.
    pub lock_wait_timeout: Option<Duration>,
}

/// What a restore reads from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum RestoreInput {
    /// From [`RestoreProcess::stdin`]: in order, so without jobs and without reordering.
    #[default]
    Stdin,
    File(PathBuf),
}

/// A `pg_restore` that prints rows.
pub struct RowsProcess {
    /// Takes the archive; the tool may close it before the archive's end.
    pub stdin: ChildStdin,
    pub stdout: ChildStdout,
    pub process: RowsEnd,
}

/// Its end.
pub struct RowsEnd(Process);

impl RowsEnd {
    /// Waits for it, once all was read.
    ///
    /// # Errors
    /// If it failed.
    pub async fn wait(self) -> Result<(), ToolError> {
        self.0.wait().await.map(drop)
    }
}

/// Whether `pg_class c` is a partition that an enum decides on by its hash (`pg_dump`, forcePartitionRootLoad): its
/// rows are in an archive as its root's, because labels have other numbers in each database.
pub const SCATTERED: &str = "(c.relispartition AND EXISTS (
    SELECT FROM pg_partition_ancestors(c.oid) up(rel) JOIN pg_partitioned_table t ON t.partrelid = up.rel
      JOIN pg_opclass o ON o.oid = ANY (t.partclass) JOIN pg_am m ON m.oid = o.opcmethod
     WHERE m.amname = 'hash' AND o.opcname = 'enum_ops' AND o.opcnamespace = 'pg_catalog'::regnamespace))";

/// What values of `pg_type t` consist of: a query of type OIDs, 0 among them.
pub const TYPE_PARTS: &str = "(
    SELECT t.typelem
    UNION ALL SELECT t.typbasetype
    UNION ALL SELECT g.rngsubtype FROM pg_range g
              WHERE g.rngtypid = t.oid OR to_jsonb(g)->>'rngmultitypid' = t.oid::text
    UNION ALL SELECT a.atttypid FROM pg_attribute a
              WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0 AND NOT a.attisdropped)";

/// A section of an archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    PreData,
    Data,
    PostData,
}

impl Section {
    const fn argument(self) -> &'static str {
        match self {
            Section::PreData => "--section=pre-data",
            Section::Data => "--section=data",
            Section::PostData => "--section=post-data",
        }
    }
}

/// One run of `pg_restore` into the connection's database. Publications and subscriptions are
/// never restored: a publication brought back would impose its rules on the restored database.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    pub input: RestoreInput,
    /// All, if none is named.
    pub sections: Vec<Section>,
    /// A file with lines as [`PgTools::list`] gives them ([`TocEntry::line`]): only these entries.
    pub list_file: Option<PathBuf>,
    /// Parallel connections; needs a file as input.
    pub jobs: Option<u32>,
    pub no_owner: bool,
    pub no_privileges: bool,
    /// Stop at the first error; else errors are counted and reported at the end.
    pub exit_on_error: bool,
}

/// A running `pg_dump` or `pg_dumpall`. Read stdout to its end, then [`DumpProcess::wait`].
pub struct DumpProcess {
    pub stdout: ChildStdout,
    tool: &'static str,
    process: Process,
    served: AbortOnDropHandle<io::Result<Loan>>,
}

impl DumpProcess {
    /// Success only if the tool says so: an archive whose dump failed looks like one that is cut.
    /// Gives the session back, for the next tool.
    pub async fn wait(self) -> Result<Loan, ToolError> {
        let Self {
            stdout,
            tool,
            process,
            served,
        } = self;
        drop(stdout);
        process.wait().await?;
        let served = served.await.map_err(io::Error::other).flatten();
        served.map_err(|source| ToolError::Io { tool, source })
    }
}

/// A running `pg_restore`.
pub struct RestoreProcess {
    /// `Some` if the input is [`RestoreInput::Stdin`]; to be dropped, or shut down, at its end.
    pub stdin: Option<ChildStdin>,
    process: Process,
    tolerates: bool,
}

impl RestoreProcess {
    /// What the tool warned of, empty as a rule.
    ///
    /// A `pg_restore` of 17 or later sets a setting that a target before 17 does not know, counts
    /// that as an error and goes on; without `exit_on_error` this, and only this, is passed over.
    pub async fn wait(self) -> Result<String, ToolError> {
        let Self {
            stdin,
            process,
            tolerates,
        } = self;
        drop(stdin);
        match process.wait().await {
            Err(ToolError::Failed { stderr, .. })
                if tolerates && process::only_unknown_settings(&stderr) =>
            {
                Ok(stderr)
            }
            result => result,
        }
    }
}

impl PgTools {
    /// Starts `pg_dump` of `database`, to which the session is connected, within the session's open
    /// transaction if there is one. That one must be REPEATABLE READ, or the tool fails.
    pub fn dump(
        &self,
        session: Loan,
        database: &str,
        options: &DumpOptions,
    ) -> Result<DumpProcess, ToolError> {
        let mut command = self.bare_command("pg_dump");
        command.args(["--format=custom", "--compress=0", "--no-password"]);
        command.args(["--no-publications", "--no-subscriptions"]);
        if let Some(encoding) = &options.encoding {
            command.arg(format!("--encoding={encoding}"));
        }
        for table in &options.exclude_table_data {
            command.arg(argument("exclude-table-data", &table.quoted(), options)?);
        }
        for schema in &options.exclude_schemas {
            let schema = quote::identifier(schema);
            command.arg(argument("exclude-schema", &schema, options)?);
        }
        if let Some(limit) = options.lock_wait_timeout {
            command.arg(format!("--lock-wait-timeout={}ms", limit.as_millis()));
        }
        command.arg(environment::database_argument(database));
        spawn_reading(command, "pg_dump", session)
    }

    /// One section of a schema's definitions as SQL text, without owners and privileges. `encoding`
    /// is what the text is asked for in; an error if it does not come back from UTF-8 as it was.
    pub async fn script(
        &self,
        session: Loan,
        database: &str,
        schema: &str,
        section: Section,
        encoding: &str,
    ) -> Result<String, ToolError> {
        let mut command = self.bare_command("pg_dump");
        let options = DumpOptions {
            encoding: Some(encoding.to_owned()),
            ..DumpOptions::default()
        };
        command.args(["--format=plain", "--no-password"]);
        command.arg(format!("--encoding={encoding}"));
        command.args(["--no-owner", "--no-privileges", "--strict-names"]);
        command.args(["--no-publications", "--no-subscriptions"]);
        command.arg(argument("schema", &quote::identifier(schema), &options)?);
        command.arg(section.argument());
        command.arg(environment::database_argument(database));
        let mut dump = spawn_reading(command, "pg_dump", session)?;
        let mut bytes = Vec::new();
        let read = dump.stdout.read_to_end(&mut bytes).await;
        dump.wait().await?.close().await;
        read.map_err(|source| ToolError::Io {
            tool: "pg_dump",
            source,
        })?;
        let text = encoding::decode(encoding, &bytes);
        match encoding::encode(encoding, &text).is_some_and(|back| back == bytes) {
            true => Ok(text),
            false => Err(ToolError::Definition {
                schema: schema.to_owned(),
                encoding: encoding.to_owned(),
            }),
        }
    }

    /// Starts `pg_dumpall` for what belongs to no database: roles without their passwords,
    /// memberships, tablespaces. SQL text; a best effort, many providers refuse parts of it.
    pub fn dumpall_globals(&self, session: Loan) -> Result<DumpProcess, ToolError> {
        let mut command = self.bare_command("pg_dumpall");
        command.args(["--globals-only", "--no-role-passwords", "--no-password"]);
        spawn_reading(command, "pg_dumpall", session)
    }

    /// Starts `pg_restore` into the connection's database.
    pub fn restore(
        &self,
        config: &ConnectionConfig,
        options: &RestoreOptions,
    ) -> Result<RestoreProcess, ToolError> {
        let mut command = self.command("pg_restore", config);
        command.args(["--format=custom", "--no-password"]);
        command.args(["--no-publications", "--no-subscriptions"]);
        for section in &options.sections {
            command.arg(section.argument());
        }
        if let Some(list) = &options.list_file {
            command.arg("--use-list").arg(list);
        }
        if let Some(jobs) = options.jobs {
            command.arg(format!("--jobs={jobs}"));
        }
        for (wanted, argument) in [
            (options.no_owner, "--no-owner"),
            (options.no_privileges, "--no-privileges"),
            (options.exit_on_error, "--exit-on-error"),
        ] {
            if wanted {
                command.arg(argument);
            }
        }
        command.arg(environment::database_argument(config.database()));
        match &options.input {
            RestoreInput::Stdin => {
                command.stdin(Stdio::piped());
            }
            RestoreInput::File(path) => {
                command.arg(path).stdin(Stdio::null());
            }
        }
        command.stdout(Stdio::null());
        let mut process = Process::spawn(command, "pg_restore")?;
        Ok(RestoreProcess {
            stdin: process.take_stdin(),
            process,
            tolerates: !options.exit_on_error,
        })
    }

    /// Starts `pg_restore` that prints an archive's rows, of the entries listed or of all: for each
    /// table a line `COPY … FROM stdin;`, its rows, and the line `\\.`; between these, settings.
    pub fn rows(&self, list_file: Option<&Path>) -> Result<RowsProcess, ToolError> {
        const TOOL: &str = "pg_restore";
        let mut command = self.bare_command(TOOL);
        command.args(["--format=custom", "--file=-", "--section=data"]);
        if let Some(list) = list_file {
            command.arg("--use-list").arg(list);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(command, TOOL)?;
        let stdin = process.take_stdin();
        let stdout = process.take_stdout();
        Ok(RowsProcess {
            stdin: stdin.ok_or(ToolError::NoPipe { tool: TOOL })?,
            stdout: stdout.ok_or(ToolError::NoPipe { tool: TOOL })?,
            process: RowsEnd(process),
        })
    }

    /// The table of contents of an archive. `head` is the archive from its beginning;
    /// the table stands at the front, so no more of it is read than that takes.
    pub async fn list(&self, mut head: impl AsyncRead + Unpin) -> Result<Contents, ToolError> {
        /// Far beyond the contents of any database, and still no harm.
        const LIST_BYTES_MAX: u64 = 256 << 20;

        let mut command = self.bare_command("pg_restore");
        command.args(["--format=custom", "--list"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = Process::spawn(command, "pg_restore")?;
        let (stdin, stdout) = (process.take_stdin(), process.take_stdout());
        let (Some(mut stdin), Some(stdout)) = (stdin, stdout) else {
            return Err(ToolError::NoPipe { tool: "pg_restore" });
        };
        // Closes the pipe when the archive ends, which tells the tool so.
        let feed = async move {
            let mut chunk = vec![0; 64 * 1024];
            loop {
                let count = head.read(&mut chunk).await?;
                // The tool leaves when it has seen enough: a broken pipe is no error here.
                if count == 0 || stdin.write_all(&chunk[..count]).await.is_err() {
                    return std::io::Result::Ok(());
                }
            }
        };
        let mut text = Vec::new();
        let mut stdout = stdout.take(LIST_BYTES_MAX);
        // Reading ends with the tool; what is then left of the archive is not fed.
        let outcome = async {
            let mut read = std::pin::pin!(stdout.read_to_end(&mut text));
            tokio::select! {
                biased;
                result = &mut read => result.map(drop),
                fed = feed => match fed {
                    Ok(()) => read.await.map(drop),
                    Err(error) => Err(error),
                },
            }
        };
        outcome.await.map_err(|source| ToolError::Io {
            tool: "pg_restore",
            source,
        })?;
        process.wait().await?;
        Ok(Contents(text))
    }

    fn command(&self, tool: &'static str, config: &ConnectionConfig) -> Command {
        let mut command = self.bare_command(tool);
        for (name, value) in environment::connection(config, self.major()) {
            command.env(name, value);
        }
        command
    }

    fn bare_command(&self, tool: &'static str) -> Command {
        let mut command = Command::new(self.dir().join(tool));
        environment::clear(&mut command);
        command
    }
}

/// The tool takes names in the archive's encoding.
fn argument(option: &str, name: &str, options: &DumpOptions) -> Result<OsString, ToolError> {
    let encoding = options.encoding.as_deref().unwrap_or("UTF8");
    let name = encoding::encode(encoding, name).ok_or_else(|| ToolError::Name {
        name: name.to_owned(),
        encoding: encoding.to_owned(),
    })?;
    let mut argument = OsString::from(format!("--{option}="));
    argument.push(OsString::from_vec(name));
    Ok(argument)
}

fn spawn_reading(
    mut command: Command,
    tool: &'static str,
    session: Loan,
) -> Result<DumpProcess, ToolError> {
    let socket = loan::Socket::bind().map_err(|source| ToolError::Socket {
        folder: std::env::temp_dir(),
        source,
    })?;
    environment::local(&mut command, socket.folder(), loan::Socket::PORT);
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut process = Process::spawn(command, tool)?;
    let stdout = process.take_stdout().ok_or(ToolError::NoPipe { tool })?;
    Ok(DumpProcess {
        stdout,
        tool,
        process,
        served: AbortOnDropHandle::new(tokio::spawn(session.serve(socket))),
    })
}
