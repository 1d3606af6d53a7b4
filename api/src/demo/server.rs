//! The demo's throw-away PostgreSQL: a folder, a port on loopback, gone at the end.

use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use lastgood_pg::PgTools;

/// A server of our own.
pub(super) struct Server {
    bin: PathBuf,
    data: PathBuf,
    port: u16,
    pub(super) major: u32,
    keep: bool,
}

impl Server {
    /// Makes a cluster below `folder` and starts it with `wal_level=logical`, which is all that a
    /// source needs.
    pub(super) async fn start(folder: &Path) -> Result<Self> {
        let tools = PgTools::discover().await;
        let newest = tools
            .iter()
            .filter(|tools| tools.dir().join("initdb").exists())
            .max_by_key(|tools| tools.major())
            .context(
                "no PostgreSQL server is installed: install one, or name the folder of its \
                 programs in LASTGOOD_PG_BIN_DIRS",
            )?;
        let server = Self {
            bin: newest.dir().to_owned(),
            data: folder.join("postgres"),
            port: free_port()?,
            major: newest.major(),
            keep: false,
        };
        std::fs::create_dir(&server.data).context("cannot make a folder for PostgreSQL")?;
        if let Some(user) = unprivileged()? {
            chown(&server.data, Some(user), None).context("cannot hand the folder over")?;
        }
        server.run(
            "initdb",
            &[
                "-U",
                "postgres",
                "-A",
                "trust",
                "--no-sync",
                "-E",
                "UTF8",
                "--locale=C",
            ],
        )?;
        let settings = format!(
            "-c listen_addresses=127.0.0.1 -c port={} -c unix_socket_directories='' \
             -c wal_level=logical -c fsync=off",
            server.port
        );
        let log = server.data.join("server.log").display().to_string();
        server.run("pg_ctl", &["-w", "-l", &log, "-o", &settings, "start"])?;
        Ok(server)
    }

    pub(super) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// How to stop it by hand.
    pub(super) fn keep_running(&mut self) -> String {
        self.keep = true;
        let pid = std::fs::read_to_string(self.data.join("postmaster.pid")).unwrap_or_default();
        format!("kill -INT {}", pid.lines().next().unwrap_or("<postmaster>"))
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(self.bin.join(program));
        command
            .arg("-D")
            .arg(&self.data)
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C")
            .current_dir("/")
            .stdin(Stdio::null())
            // Not a pipe: the server inherits it and would keep it open for ever.
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(user) = unprivileged()? {
            command.uid(user);
        }
        let status = command
            .status()
            .with_context(|| format!("cannot run {program}"))?;
        ensure!(
            status.success(),
            "{program} failed ({status}); see {}",
            self.data.join("server.log").display()
        );
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = self.run("pg_ctl", &["-m", "immediate", "stop"]) {
            tracing::warn!(%error, "the demo's PostgreSQL could not be stopped");
        }
    }
}

/// The user to run PostgreSQL as, because it refuses to run as root; none if we are not root.
fn unprivileged() -> Result<Option<u32>> {
    use std::os::unix::fs::MetadataExt;
    let own = std::fs::metadata("/proc/self")
        .context("who are we?")?
        .uid();
    if own != 0 {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
    let id = |name: &str| {
        let mut fields = users.lines().map(|line| line.split(':'));
        let mut line = fields.find(|line| line.clone().next() == Some(name))?;
        line.nth(2)?.parse().ok()
    };
    match id("postgres").or_else(|| id("nobody")) {
        Some(user) => Ok(Some(user)),
        None => bail!("PostgreSQL does not run as root, and there is no user postgres or nobody"),
    }
}

fn free_port() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port")?;
    Ok(listener.local_addr()?.port())
}

/// A folder that PostgreSQL's user can reach, too.
pub(super) fn folder() -> Result<PathBuf> {
    let mut name = [0_u8; 6];
    getrandom::fill(&mut name).map_err(|error| anyhow::anyhow!("no randomness: {error}"))?;
    let name: String = name.iter().map(|byte| format!("{byte:02x}")).collect();
    let folder = std::env::temp_dir().join(format!("lastgood-demo-{name}"));
    std::fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&folder, open).context("cannot open the folder")?;
    Ok(folder)
}
