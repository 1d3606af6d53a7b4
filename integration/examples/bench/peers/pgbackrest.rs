//! pgBackRest 2.45: a backup of the server's files, the WAL that its `archive_command` brings, and a server that
//! replays this until a position. With two processes; whatever else is as it comes.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lastgood_integration::{Postgres, digest, postgres, wait};
use tempfile::TempDir;

use super::installed;
use super::peer::{Took, succeeded};
use crate::DATABASE;

const PATIENCE: Duration = Duration::from_secs(300);

/// A repository with a backup, into which the server's WAL goes.
pub(super) struct Archive {
    folder: TempDir,
    program: String,
    bin: PathBuf,
    /// Whom the server runs as, and all that touches its files.
    user: (u32, u32),
}

impl Archive {
    /// Takes a backup of the server, which has `archive_mode` on.
    pub(super) async fn begin(server: &Postgres) -> Result<Self> {
        let program = installed("pgbackrest")?.display().to_string();
        let owner = fs::metadata(server.data_dir())?;
        let archive = Self {
            folder: tempfile::Builder::new()
                .prefix("lastgood-pgbackrest-")
                .tempdir_in("/tmp")?,
            program,
            bin: server.bin().to_owned(),
            user: (owner.uid(), owner.gid()),
        };
        let folder = archive.folder.path();
        archive.give(folder)?;
        let at = folder.display();
        let config = format!(
            "[global]\nrepo1-path={at}/repository\nrepo1-retention-full=1\nlock-path={at}/lock\nspool-path={at}/spool\n\
             log-path={at}\nlog-level-file=off\nlog-level-console=warn\nprocess-max=2\nstart-fast=y\ncmd={}\n\
             [bench]\npg1-path={}\npg1-port={}\npg1-socket-path={}\npg1-user=postgres\n",
            archive.program,
            server.data_dir().display(),
            server.port(),
            server.socket_dir().display()
        );
        fs::write(folder.join("config"), config)?;
        archive.run(&["stanza-create"])?;
        let push = archive.arguments(&["archive-push", "%p"]).join(" ");
        server.append_config(&format!("archive_command='{} {push}'", archive.program))?;
        server.execute(DATABASE, "SELECT pg_reload_conf()").await?;
        archive.run(&["--type=full", "backup"])?;
        Ok(archive)
    }

    /// Waits until all WAL there is has arrived.
    pub(super) async fn until_archived(&self, server: &Postgres) -> Result<()> {
        let client = server.connect(DATABASE).await?;
        let last = "SELECT pg_walfile_name(pg_switch_wal())";
        let last: String = client.query_one(last, &[]).await?.get(0);
        wait::until_within(PATIENCE, "the WAL to be archived", async || {
            let there = "SELECT coalesce(last_archived_wal >= $1, false) FROM pg_stat_archiver";
            let there: bool = client.query_one(there, &[&last]).await?.get(0);
            Ok(there.then_some(()))
        })
        .await
    }

    /// From the command until a new server has left recovery. It is gone then.
    pub(super) async fn restore(
        &self,
        lsn: &str,
        compare: Option<&digest::Content>,
    ) -> Result<Took> {
        let folder = tempfile::Builder::new()
            .prefix("lastgood-restored-")
            .tempdir_in("/tmp")?;
        let data = folder.path().join("data");
        fs::create_dir(&data)?;
        for made in [folder.path(), &data] {
            self.give(made)?;
        }
        let begun = Instant::now();
        let (path, target) = (
            format!("--pg1-path={}", data.display()),
            format!("--target={lsn}"),
        );
        self.run(&[
            &path,
            "--type=lsn",
            &target,
            "--target-action=promote",
            "--archive-mode=off",
            "restore",
        ])?;
        let files = begun.elapsed().as_secs_f64();
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        let server = Guarded::start(self, folder.path(), port)?;
        let url = |database| format!("postgres://postgres@127.0.0.1:{port}/{database}");
        let promoted = wait::until_within(PATIENCE, "the end of recovery", async || {
            let client = postgres::connect(&url("postgres")).await?;
            let ended: bool = client
                .query_one("SELECT NOT pg_is_in_recovery()", &[])
                .await?
                .get(0);
            Ok(ended.then_some(()))
        });
        promoted
            .await
            .with_context(|| fs::read_to_string(folder.path().join("log")).unwrap_or_default())?;
        let whole = begun.elapsed().as_secs_f64();
        if let Some(source) = compare {
            let restored = digest::of(&mut postgres::connect(&url(DATABASE)).await?, None).await?;
            let differences = source.differences(&restored);
            ensure!(
                differences.is_empty(),
                "it differs: {}",
                differences.join(", ")
            );
        }
        drop(server);
        Ok(Took::with_changes(whole, whole - files))
    }

    fn run(&self, arguments: &[&str]) -> Result<String> {
        let mut command = self.command(&self.program);
        succeeded(&command.args(self.arguments(arguments)).output()?)
    }

    fn arguments(&self, more: &[&str]) -> Vec<String> {
        let config = format!("--config={}", self.folder.path().join("config").display());
        let always = [config, "--stanza=bench".to_owned()];
        always
            .into_iter()
            .chain(more.iter().map(|&one| one.to_owned()))
            .collect()
    }

    /// As the server's user, with nothing of our environment.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LC_ALL", "C.UTF-8");
        command.current_dir("/").stdin(Stdio::null());
        if rustix::process::geteuid().as_raw() != self.user.0 {
            command.uid(self.user.0).gid(self.user.1);
        }
        command
    }

    fn give(&self, folder: &Path) -> Result<()> {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o700))?;
        Ok(chown(folder, Some(self.user.0), Some(self.user.1))?)
    }
}

/// A server below a shell, which ends it and removes its folder when this is dropped or our process is gone.
struct Guarded(Child);

impl Guarded {
    fn start(archive: &Archive, folder: &Path, port: u16) -> Result<Self> {
        const SCRIPT: &str = r#"
            trap '' HUP INT TERM
            folder=$1; shift
            "$@" & server=$!
            read -r _
            kill -QUIT $server
            wait $server
            rm -rf "$folder"
        "#;
        let log = File::create(folder.join("log"))?;
        let mut shell = archive.command("/bin/sh");
        shell.args(["-c", SCRIPT, "guarded"]).arg(folder);
        shell
            .arg(archive.bin.join("postgres"))
            .arg("-D")
            .arg(folder.join("data"));
        shell.args(["-p", &port.to_string(), "-k"]).arg(folder);
        shell
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log);
        Ok(Self(shell.process_group(0).spawn()?))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        // Nothing can be done about a failure here.
        let _ = self.0.wait();
    }
}
