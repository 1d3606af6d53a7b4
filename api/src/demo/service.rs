//! `lastgood serve` and the commands a person would type, as child processes of the demo: what it
//! shows is the product itself.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

pub(super) struct Service {
    child: Child,
    program: PathBuf,
    pub(super) data_dir: PathBuf,
    pub(super) url: String,
    keep: bool,
}

impl Service {
    /// With its embedded defaults: SQLite and local files, below one folder.
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("where are we?")?;
        let data_dir = folder.join("lastgood-data");
        let log = std::fs::File::create(folder.join("lastgood.log"))?;
        let mut child = Command::new(&program)
            .args(["serve", "--listen", "127.0.0.1:0", "--data-dir"])
            .arg(&data_dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("cannot start lastgood serve")?;
        let output = child.stdout.take().context("no standard output")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        let announced: Value = serde_json::from_str(&line).with_context(|| {
            let log = folder.join("lastgood.log");
            format!("lastgood serve did not start; see {}", log.display())
        })?;
        let url = announced["serving"]
            .as_str()
            .context("no address")?
            .to_owned();
        Ok(Self {
            child,
            program,
            data_dir,
            url,
            keep: false,
        })
    }

    /// Runs a command as a person would see it; its output goes to the terminal.
    pub(super) fn show(&self, arguments: &[&str]) -> Result<()> {
        let status = self.command(arguments).status()?;
        match status.success() {
            true => Ok(()),
            false => bail!("lastgood {} ended with {status}", arguments.join(" ")),
        }
    }

    /// Runs a command with `--json`.
    pub(super) fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.command(arguments).arg("--json").output()?;
        let words = || format!("lastgood {}", arguments.join(" "));
        if !output.status.success() {
            bail!(
                "{}: {}",
                words(),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        serde_json::from_slice(&output.stdout).with_context(words)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            .env("LASTGOOD_SERVER", &self.url)
            .env("LASTGOOD_DATA_DIR", &self.data_dir)
            .env_remove("LASTGOOD_TOKEN")
            .env_remove("LASTGOOD_TOKEN_FILE")
            .stdin(Stdio::null());
        command
    }

    /// How to stop it by hand.
    pub(super) fn keep_running(&mut self) -> String {
        self.keep = true;
        format!("kill {}", self.child.id())
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        // It is a throw-away service: nothing that it could still seal is worth a wait.
        if let Err(error) = self
            .child
            .kill()
            .and_then(|()| self.child.wait().map(|_| ()))
        {
            tracing::warn!(%error, "the demo's service could not be stopped");
        }
    }
}
