//! Throw-away PostgreSQL servers.
//!
//! [`Postgres::start`] gives a server of its own; [`TestDatabase::new`] a database on a server that all
//! tests of one process share, which is enough for a test that does not disturb others. A server
//! runs without fsync, with `wal_level=logical`, as a user that is not root, on a free port of 127.0.0.1,
//! in memory where there is enough of it.

mod certificates;
mod pooler;

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::NoTls;

use crate::guardian::Guardian;
use crate::{port, tools, vitals};
pub use pooler::Pooler;

/// How to stop a server, as `pg_ctl stop` knows it.
#[derive(Clone, Copy, Debug)]
pub enum Stop {
    Smart,
    Fast,
    Immediate,
}

/// A server and its folder; both are gone when this is dropped.
pub struct Postgres {
    major: u32,
    bin: PathBuf,
    folder: PathBuf,
    port: u16,
    environment: Vec<(String, String)>,
    process: Mutex<Option<Child>>,
    // Last: it removes the folder.
    _guardian: Guardian,
}

/// What differs from the usual server.
pub struct Builder {
    major: u32,
    config: Vec<String>,
    hba: Option<String>,
    tls: bool,
    initdb: Vec<String>,
    environment: Vec<(String, String)>,
    on_disk: bool,
}

const DISK: &str = "/tmp";
const MEMORY: &str = "/dev/shm";
/// Free memory below which servers are made on disk: all tests together keep 8 GiB at a time.
const MEMORY_BYTES_MIN: u64 = 12 << 30;

/// Most of what a test of this kind costs is making and removing the hundreds of files of a database, and
/// a file system on disk takes many times as long for it.
fn roomiest() -> &'static str {
    let room = rustix::fs::statvfs(MEMORY).map_or(0, |is| is.f_bavail.saturating_mul(is.f_frsize));
    // The file system may allow more than there is.
    match room.min(vitals::available_bytes().unwrap_or(0)) {
        MEMORY_BYTES_MIN.. => MEMORY,
        _ => DISK,
    }
}

/// The superuser's password, where `pg_hba.conf` asks for one.
pub const PASSWORD: &str = "throw-away";

impl Builder {
    /// One line of `postgresql.conf`.
    #[must_use]
    pub fn config(mut self, line: impl Into<String>) -> Self {
        self.config.push(line.into());
        self
    }

    /// The whole of `pg_hba.conf` instead of trust for everyone on this machine.
    #[must_use]
    pub fn hba(mut self, text: impl Into<String>) -> Self {
        self.hba = Some(text.into());
        self
    }

    /// TLS with a new certificate for `localhost` and 127.0.0.1, see [`Postgres::ca_file`].
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// An option of initdb; the defaults are UTF8 and `C.UTF-8`.
    #[must_use]
    pub fn initdb(mut self, option: impl Into<String>) -> Self {
        self.initdb.push(option.into());
        self
    }

    /// A variable in the environment of the server.
    #[must_use]
    pub fn environment(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// On disk, where times are to be measured that are those of a real server.
    #[must_use]
    pub fn on_disk(mut self) -> Self {
        self.on_disk = true;
        self
    }

    /// Makes the cluster and starts it.
    ///
    /// # Errors
    /// When the major is not installed or the server does not start; with its log.
    pub async fn start(self) -> Result<Postgres> {
        blocking(move || self.start_blocking()).await
    }

    fn start_blocking(self) -> Result<Postgres> {
        let parent = if self.on_disk { DISK } else { roomiest() };
        let mut server = Postgres::nowhere(self.major, parent)?;
        server.environment.clone_from(&self.environment);
        let folder = &server.folder;
        let password = folder.join("password");
        fs::write(&password, PASSWORD)?;
        give_to_server(&password, 0o600)?;
        let mut initdb = server_command(&server.bin.join("initdb"))?;
        initdb.args(["-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8"]);
        initdb
            .args(["--locale=C.UTF-8", "--pwfile"])
            .arg(&password)
            .arg("-D");
        initdb.arg(folder.join("data")).args(&self.initdb);
        finished(initdb, "initdb")?;
        server.configure(&self)?;
        server.launch_somewhere()?;
        Ok(server)
    }
}

impl Postgres {
    /// A folder for a cluster that is not there yet.
    fn nowhere(major: u32, parent: &str) -> Result<Self> {
        let bin = tools::bin_dir(major)?;
        let folder = tempfile::Builder::new()
            .prefix(&format!("lastgood-pg{major}-"))
            .tempdir_in(parent)?
            .keep();
        let guardian = Guardian::new(&folder.join("data/postmaster.pid"), &folder)?;
        give_to_server(&folder, 0o755)?;
        Ok(Postgres {
            major,
            bin,
            folder,
            port: 0,
            environment: Vec::new(),
            process: Mutex::new(None),
            _guardian: guardian,
        })
    }

    /// A hot standby of `primary`, which streams from it.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn standby_of(primary: &Postgres) -> Result<Self> {
        let mut standby = Self::nowhere(primary.major, roomiest())?;
        let port = primary.port;
        let primary = format!("host=127.0.0.1 port={port} user=postgres");
        let mut copy = server_command(&standby.bin.join("pg_basebackup"))?;
        copy.args(["--checkpoint=fast", "--no-sync"])
            .args(["--username=postgres", "--host=127.0.0.1"])
            .arg(format!("--port={port}"))
            .arg("--pgdata")
            .arg(standby.data_dir());
        blocking(move || {
            finished(copy, "pg_basebackup")?;
            let sockets = standby.folder.display();
            standby.append_config(&format!("unix_socket_directories='{sockets}'"))?;
            // Not left to the program: it may know options that the library of the server does not.
            standby.append_config(&format!("primary_conninfo='{primary}'"))?;
            let signal = standby.data_dir().join("standby.signal");
            fs::write(&signal, "")?;
            give_to_server(&signal, 0o600)?;
            standby.launch_somewhere()?;
            Ok(standby)
        })
        .await
    }

    /// A server with these additional lines of `postgresql.conf`.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn start(major: u32, config: &[&str]) -> Result<Self> {
        config
            .iter()
            .fold(Self::builder(major), |builder, line| builder.config(*line))
            .start()
            .await
    }

    pub fn builder(major: u32) -> Builder {
        Builder {
            major,
            config: Vec::new(),
            hba: None,
            tls: false,
            initdb: Vec::new(),
            environment: Vec::new(),
            on_disk: false,
        }
    }

    pub fn major(&self) -> u32 {
        self.major
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder with this major's programs.
    pub fn bin(&self) -> &Path {
        &self.bin
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// The folder of the Unix-domain socket.
    pub fn socket_dir(&self) -> &Path {
        &self.folder
    }

    /// The certificate that signed the server's, for `sslrootcert`.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// The superuser's connection string.
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", PASSWORD, database)
    }

    pub fn url_as(&self, user: &str, password: &str, database: &str) -> String {
        format!(
            "postgres://{user}:{password}@127.0.0.1:{}/{database}",
            self.port
        )
    }

    /// A connection of the superuser. Its task ends with the client.
    ///
    /// # Errors
    /// When the server does not accept it.
    pub async fn connect(&self, database: &str) -> Result<tokio_postgres::Client> {
        connect(&self.url(database)).await
    }

    /// Runs statements as the superuser.
    ///
    /// # Errors
    /// The server's.
    pub async fn execute(&self, database: &str, sql: &str) -> Result<()> {
        let client = self.connect(database).await?;
        Ok(client.batch_execute(sql).await?)
    }

    /// An empty database; answers the superuser's connection string.
    ///
    /// # Errors
    /// The server's.
    pub async fn create_database(&self, name: &str) -> Result<String> {
        self.execute(
            "postgres",
            &format!("CREATE DATABASE \"{name}\" TEMPLATE template0"),
        )
        .await?;
        Ok(self.url(name))
    }

    /// The server's log since the cluster was made.
    pub fn log(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Stops the server and waits until it is gone.
    ///
    /// # Errors
    /// When it is still there after a minute.
    pub async fn stop(self: &Arc<Self>, how: Stop) -> Result<()> {
        let server = Arc::clone(self);
        blocking(move || server.stop_blocking(how, Duration::from_secs(60))).await
    }

    /// As [`Postgres::stop`] with a deadline of one's own: a shutdown that hangs is an error.
    ///
    /// # Errors
    /// When it is still there at the deadline.
    pub async fn stop_within(self: &Arc<Self>, how: Stop, deadline: Duration) -> Result<()> {
        let server = Arc::clone(self);
        blocking(move || server.stop_blocking(how, deadline)).await
    }

    /// Starts a stopped or crashed server again, on the same port.
    ///
    /// # Errors
    /// With the log when it does not start.
    pub async fn start_again(self: &Arc<Self>) -> Result<()> {
        let server = Arc::clone(self);
        blocking(move || server.launch()).await
    }

    /// # Errors
    /// As [`Postgres::stop`] and [`Postgres::start_again`].
    pub async fn restart(self: &Arc<Self>, how: Stop) -> Result<()> {
        self.stop(how).await?;
        self.start_again().await
    }

    /// Kills the postmaster with SIGKILL; its children see it and end themselves.
    ///
    /// # Errors
    /// When it is not running.
    pub async fn crash(self: &Arc<Self>) -> Result<()> {
        let server = Arc::clone(self);
        blocking(move || {
            let mut child = server
                .process()
                .take()
                .context("the server is not running")?;
            child.kill()?;
            child.wait()?;
            server.wait_for_children()
        })
        .await
    }

    /// Appends to `postgresql.conf`; takes effect at a reload or restart.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append_config(&self, line: &str) -> Result<()> {
        let path = self.data_dir().join("postgresql.conf");
        Ok(writeln!(
            OpenOptions::new().append(true).open(path)?,
            "{line}"
        )?)
    }

    /// One of this major's programs with an environment that finds the server, as the superuser.
    pub fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.bin.join(name));
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string());
        command
            .env("PGUSER", "postgres")
            .env("PGPASSWORD", PASSWORD);
        command
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn configure(&self, builder: &Builder) -> Result<()> {
        let data = self.data_dir();
        let mut config = format!(
            "listen_addresses='127.0.0.1'\nunix_socket_directories='{}'\nfsync=off\nwal_level=logical\n\
             max_wal_senders=100\nmax_replication_slots=300\nmax_connections=300\nmax_prepared_transactions=20\nshared_buffers=64MB\n\
             log_line_prefix='%m [%p] %q%u@%d '\ntimezone='UTC'\nlog_timezone='UTC'\n",
            self.folder.display()
        );
        if builder.tls {
            self.make_certificates()?;
            config += "ssl=on\nssl_cert_file='server.crt'\nssl_key_file='server.key'\n";
            config += "ssl_ca_file='../ca.crt'\n";
        }
        for line in &builder.config {
            config += line;
            config.push('\n');
        }
        let path = data.join("postgresql.conf");
        OpenOptions::new()
            .append(true)
            .open(path)?
            .write_all(config.as_bytes())?;
        if let Some(hba) = &builder.hba {
            fs::write(data.join("pg_hba.conf"), hba)?;
        }
        Ok(())
    }

    /// On a port that is free. Somebody else may have taken it in between.
    fn launch_somewhere(&mut self) -> Result<()> {
        for attempt in 0.. {
            self.port = port::free();
            match self.launch() {
                Ok(()) => break,
                Err(error) if attempt == 4 || !self.log().contains("could not bind") => {
                    return Err(error);
                }
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn launch(&self) -> Result<()> {
        let mut process = self.process();
        ensure!(process.is_none(), "the server is running");
        let log = self.folder.join("log");
        let log = File::options().create(true).append(true).open(log)?;
        let mut child = server_command(&self.bin.join("postgres"))?
            .arg("-D")
            .arg(self.data_dir())
            .args(["-p", &self.port.to_string()])
            .envs(self.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()
            .context("postgres")?;
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            if let Some(status) = child.try_wait()? {
                bail!("PostgreSQL {} ended: {status}\n{}", self.major, self.log());
            }
            // The eighth line of postmaster.pid says what the postmaster is doing.
            let pid_file = fs::read_to_string(self.data_dir().join("postmaster.pid"));
            let lines: Vec<&str> = pid_file.as_deref().unwrap_or_default().lines().collect();
            let ours = lines
                .first()
                .is_some_and(|pid| *pid == child.id().to_string());
            let state = lines.get(7).map_or("", |state| state.trim());
            if ours && matches!(state, "ready" | "standby") {
                break;
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                bail!("PostgreSQL {} does not start\n{}", self.major, self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        *process = Some(child);
        Ok(())
    }

    fn stop_blocking(&self, how: Stop, deadline: Duration) -> Result<()> {
        let mut process = self.process();
        let child = process.as_mut().context("the server is not running")?;
        let pid = Pid::from_child(child);
        kill_process(
            pid,
            match how {
                Stop::Smart => Signal::TERM,
                Stop::Fast => Signal::INT,
                Stop::Immediate => Signal::QUIT,
            },
        )?;
        let end = Instant::now() + deadline;
        while child.try_wait()?.is_none() {
            ensure!(
                Instant::now() < end,
                "the server does not stop\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        *process = None;
        Ok(())
    }

    /// After SIGKILL of the postmaster, a new one refuses to start while old backends are attached.
    fn wait_for_children(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        let data = self.data_dir();
        loop {
            let attached = fs::read_dir("/proc")?.flatten().any(|process| {
                fs::read_link(process.path().join("cwd")).is_ok_and(|cwd| cwd == data)
            });
            if !attached {
                return Ok(());
            }
            ensure!(Instant::now() < end, "backends outlive their postmaster");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(mut child) = self.process().take() {
            let _ = kill_process(Pid::from_child(&child), Signal::QUIT);
            let _ = child.wait();
        }
    }
}

/// A database of its own on the shared server of its major.
pub struct TestDatabase {
    pub server: Arc<Postgres>,
    pub name: String,
}

impl TestDatabase {
    /// # Errors
    /// As [`Builder::start`].
    pub async fn new(major: u32) -> Result<Self> {
        let server = shared(major).await?;
        let name = format!("test_{:08x}", rand::random::<u32>());
        server.create_database(&name).await?;
        Ok(Self { server, name })
    }

    /// Another empty database beside it, for instance to restore into.
    ///
    /// # Errors
    /// The server's.
    pub async fn sibling(&self) -> Result<Self> {
        Self::new(self.server.major()).await
    }

    pub fn url(&self) -> String {
        self.server.url(&self.name)
    }

    /// The same through another port of this machine, such as a proxy's.
    pub fn url_by(&self, port: u16) -> String {
        let own = format!(":{}/", self.server.port());
        self.url().replace(&own, &format!(":{port}/"))
    }

    /// # Errors
    /// The server's.
    pub async fn connect(&self) -> Result<tokio_postgres::Client> {
        self.server.connect(&self.name).await
    }

    /// # Errors
    /// The server's.
    pub async fn execute(&self, sql: &str) -> Result<()> {
        self.server.execute(&self.name, sql).await
    }
}

/// The server of this major that the tests of one process share. It must not be stopped or configured.
///
/// # Errors
/// As [`Builder::start`].
pub async fn shared(major: u32) -> Result<Arc<Postgres>> {
    static SERVERS: OnceLock<Mutex<HashMap<u32, Arc<Postgres>>>> = OnceLock::new();
    blocking(move || {
        let mut servers = SERVERS
            .get_or_init(Mutex::default)
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = servers.get(&major) {
            return Ok(Arc::clone(server));
        }
        let server = Arc::new(Postgres::builder(major).start_blocking()?);
        servers.insert(major, Arc::clone(&server));
        Ok(server)
    })
    .await
}

/// A plain connection. Its task ends with the client.
///
/// # Errors
/// When the server does not accept it.
pub async fn connect(url: &str) -> Result<tokio_postgres::Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// A program of the server, as its user, with nothing of our environment.
fn server_command(program: &Path) -> Result<Command> {
    let mut command = Command::new(program);
    command
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C.UTF-8")
        .env("HOME", "/tmp");
    command.current_dir("/");
    if let Some(user) = tools::server_user()? {
        command.uid(user.uid).gid(user.gid);
    }
    Ok(command)
}

fn finished(mut command: Command, name: &'static str) -> Result<()> {
    let output = command.output().context(name)?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {error}");
    Ok(())
}

fn give_to_server(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    if let Some(user) = tools::server_user()? {
        chown(path, Some(user.uid), Some(user.gid))?;
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work).await?
}
