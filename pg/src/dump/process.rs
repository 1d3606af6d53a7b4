//! A child process: killed on drop, its stderr kept within bounds, its exit code an error or not.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};

use lastgood_proto::Class;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio_util::task::AbortOnDropHandle;

/// What a pipe holds. A user may have 64 MiB of them in all, unless it is root.
const PIPE_BYTES: usize = 256 << 10;

/// Tools write a few kilobytes at a time, and with the 64 KiB that a pipe has of itself each end wakes the
/// other all the time. Where it may not be larger, it works as well.
fn widen(pipe: &impl AsFd) {
    #[cfg(target_os = "linux")]
    let _size = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_BYTES);
}

/// A tool could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("no {tool} of PostgreSQL {wanted} was found{}; install postgresql-client-{install} or name its folder in LASTGOOD_PG_BIN_DIRS", listed(.majors))]
    NotFound {
        tool: &'static str,
        /// Such as "15 or later".
        wanted: String,
        install: u32,
        /// Those that are there.
        majors: Vec<u32>,
    },
    #[error("{} could not be started", .path.display())]
    Spawn {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{tool} failed ({status}): {}", .stderr.trim())]
    Failed {
        tool: &'static str,
        status: ExitStatus,
        /// Its beginning and its end, if it was long.
        stderr: String,
    },
    #[error("the pipe to {tool} broke")]
    Io {
        tool: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("a socket for a tool could not be made in {}; point TMPDIR to a folder that is writable and whose path is short", .folder.display())]
    Socket {
        folder: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the name {name} has no form in {encoding}, in which pg_dump wants it")]
    Name { name: String, encoding: String },
    #[error(
        "a definition in schema {schema} has a code of {encoding} that does not come back from UTF-8 as it was"
    )]
    Definition { schema: String, encoding: String },
    #[error("{tool} has no pipe")]
    NoPipe { tool: &'static str },
}

fn listed(majors: &[u32]) -> String {
    match majors {
        [] => String::new(),
        majors => {
            let list: Vec<String> = majors.iter().map(u32::to_string).collect();
            format!(" (there is {})", list.join(", "))
        }
    }
}

impl ToolError {
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Failed { stderr, .. } if is_passing(stderr) => Class::Transient,
            Self::Failed { .. }
            | Self::NotFound { .. }
            | Self::Spawn { .. }
            | Self::Socket { .. }
            | Self::Name { .. }
            | Self::Definition { .. } => Class::NeedsOperator,
            Self::Io { .. } | Self::NoPipe { .. } => Class::Transient,
        }
    }
}

/// Tools report no SQLSTATE. Client-side texts are English (LC_MESSAGES); the server's may not be,
/// then the error counts as one for the operator.
fn is_passing(stderr: &str) -> bool {
    [
        "server closed the connection unexpectedly",
        "could not connect to server",
        "Connection refused",
        "Connection timed out",
        "timeout expired",
        "terminating connection due to administrator command",
        "the database system is",
        "too many clients already",
        "remaining connection slots",
        "could not receive data from server",
        "could not send data to server",
    ]
    .iter()
    .any(|text| stderr.contains(text))
}

/// Whether every error in a `pg_restore` run was a setting that the target does not know.
pub(super) fn only_unknown_settings(stderr: &str) -> bool {
    let mut errors = stderr
        .lines()
        .filter(|line| line.starts_with("pg_restore: error:"))
        .peekable();
    errors.peek().is_some()
        && errors.all(|line| {
            line.contains("unrecognized configuration parameter \"transaction_timeout\"")
        })
        && stderr.contains("errors ignored on restore")
}

pub(super) struct Process {
    tool: &'static str,
    child: Child,
    stderr: AbortOnDropHandle<String>,
}

impl Process {
    pub(super) fn spawn(mut command: Command, tool: &'static str) -> Result<Self, ToolError> {
        let path = PathBuf::from(command.as_std().get_program());
        command.stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command
            .spawn()
            .map_err(|source| ToolError::Spawn { path, source })?;
        let stderr = child.stderr.take().ok_or(ToolError::NoPipe { tool })?;
        child.stdin.as_ref().map(widen);
        child.stdout.as_ref().map(widen);
        Ok(Self {
            tool,
            child,
            stderr: AbortOnDropHandle::new(tokio::spawn(bounded(stderr))),
        })
    }

    pub(super) fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    pub(super) fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Waits for the end; returns what stood on stderr.
    pub(super) async fn wait(mut self) -> Result<String, ToolError> {
        let tool = self.tool;
        let status = self
            .child
            .wait()
            .await
            .map_err(|source| ToolError::Io { tool, source })?;
        let stderr = (&mut self.stderr).await.unwrap_or_default();
        match status.success() {
            true => Ok(stderr),
            false => Err(ToolError::Failed {
                tool,
                status,
                stderr,
            }),
        }
    }
}

/// The beginning and the end of what is written, at most this much of each: the first error tells
/// the cause, the last lines the outcome. All of it is read, or the child would stall.
const KEPT_BYTES: usize = 8 * 1024;

async fn bounded(mut stderr: impl AsyncRead + Unpin) -> String {
    let mut head = Vec::new();
    let mut tail = VecDeque::new();
    let mut skipped = 0_usize;
    let mut chunk = vec![0; 4096];
    while let Ok(count) = stderr.read(&mut chunk).await {
        if count == 0 {
            break;
        }
        let fresh = chunk.get(..count).unwrap_or_default();
        let (first, rest) = fresh.split_at(count.min(KEPT_BYTES.saturating_sub(head.len())));
        head.extend_from_slice(first);
        tail.extend(rest);
        let surplus = tail.len().saturating_sub(KEPT_BYTES);
        tail.drain(..surplus);
        skipped = skipped.saturating_add(surplus);
    }
    let mut text = String::from_utf8_lossy(&head).into_owned();
    if skipped > 0 {
        text.push_str(&format!("\n[{skipped} bytes left out]\n"));
    }
    text.push_str(&String::from_utf8_lossy(tail.make_contiguous()));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stderr_is_bounded_and_keeps_both_ends() {
        let long = format!("first{}last", "x".repeat(1_000_000));
        let kept = bounded(long.as_bytes()).await;
        assert!(kept.starts_with("first") && kept.ends_with("last"));
        assert!(kept.len() < 3 * KEPT_BYTES);
        assert_eq!(bounded("short".as_bytes()).await, "short");
    }

    #[test]
    fn only_the_unknown_setting_is_passed_over() {
        let known = "pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \"transaction_timeout\"\nCommand was: SET transaction_timeout = 0;\npg_restore: warning: errors ignored on restore: 1\n";
        assert!(only_unknown_settings(known));
        let other =
            "pg_restore: error: could not execute query: ERROR:  relation \"t\" already exists\n";
        assert!(!only_unknown_settings(&format!("{known}{other}")));
        assert!(!only_unknown_settings(""));
    }

    #[test]
    fn a_missing_tool_names_its_fix() {
        let error = ToolError::NotFound {
            tool: "pg_dump",
            wanted: "17 or later".into(),
            install: 17,
            majors: vec![13, 15],
        };
        assert_eq!(
            error.to_string(),
            "no pg_dump of PostgreSQL 17 or later was found (there is 13, 15); install \
             postgresql-client-17 or name its folder in LASTGOOD_PG_BIN_DIRS"
        );
    }
}
