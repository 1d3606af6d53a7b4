//! The `lastgood` binary as a child process: the service with its own data folder and a client for
//! its HTTP API, and the CLI.
//!
//! Answers are `serde_json::Value`: these tests check the API as its users see it, not through our types.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use chrono::DateTime;
use reqwest::Method;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::guardian::Guardian;
use crate::storage::Storage;
use crate::{port, tools, wait};

/// A service on a data folder of its own.
pub struct Service {
    folder: PathBuf,
    listen: String,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    process: Mutex<Option<Child>>,
    client: reqwest::Client,
    _repository: Option<Arc<TempDir>>,
    // Last: it removes the folder.
    _guardian: Guardian,
}

/// An answer of the API.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub content_type: String,
    pub text: String,
    /// `null` when it is not JSON.
    pub body: Value,
}

impl Answer {
    /// The body of a 2xx answer.
    ///
    /// # Errors
    /// The answer, when it is something else.
    pub fn ok(self) -> Result<Value> {
        ensure!(
            (200..300).contains(&self.status),
            "{}: {}",
            self.status,
            self.text
        );
        Ok(self.body)
    }

    /// The `code` of a problem.
    pub fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }
}

/// How a service differs from the usual one.
pub struct Builder {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    key: Option<PathBuf>,
    repository: Option<Arc<TempDir>>,
}

impl Builder {
    #[must_use]
    pub fn storage(mut self, storage: &Storage) -> Self {
        self.repository = storage.keep();
        self.environment.extend_from_slice(storage.environment());
        self.argument("--repository").argument(storage.url())
    }

    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    #[must_use]
    pub fn environment(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    /// Starts with a copy of this master key.
    #[must_use]
    pub fn key(mut self, file: &Path) -> Self {
        self.key = Some(file.to_owned());
        self
    }

    /// Starts it and waits until it is healthy.
    ///
    /// # Errors
    /// With its log when it does not get there.
    pub async fn start(self) -> Result<Service> {
        let service = self.prepare()?;
        service.start_again().await?;
        Ok(service)
    }

    /// The service, not started.
    ///
    /// # Errors
    /// When no folder can be made.
    pub fn prepare(self) -> Result<Service> {
        let folder = tempfile::Builder::new()
            .prefix("lastgood-service-")
            .tempdir()?
            .keep();
        let guardian = Guardian::new(&folder.join("pid"), &folder)?;
        fs::create_dir(folder.join("data"))?;
        if let Some(key) = &self.key {
            // Its mode comes along.
            fs::copy(key, folder.join("data/master.key"))?;
        }
        Ok(Service {
            listen: format!("127.0.0.1:{}", port::free()),
            folder,
            arguments: self.arguments,
            environment: self.environment,
            process: Mutex::new(None),
            client: client()?,
            _repository: self.repository,
            _guardian: guardian,
        })
    }
}

impl Service {
    pub fn builder() -> Builder {
        Builder {
            arguments: Vec::new(),
            environment: Vec::new(),
            key: None,
            repository: None,
        }
    }

    /// # Errors
    /// As [`Builder::start`].
    pub async fn start(storage: &Storage) -> Result<Self> {
        Self::builder().storage(storage).start().await
    }

    pub fn data_dir(&self) -> PathBuf {
        self.folder.join("data")
    }

    pub fn key_file(&self) -> PathBuf {
        self.data_dir().join("master.key")
    }

    pub fn base_url(&self) -> String {
        format!("http://{}", self.listen)
    }

    /// # Errors
    /// When the service has not made it yet.
    pub fn token(&self) -> Result<String> {
        let text =
            fs::read_to_string(self.data_dir().join("admin.token")).context("admin.token")?;
        Ok(text.trim().to_owned())
    }

    /// Everything that all its processes wrote.
    pub fn log(&self) -> String {
        let log = fs::read(self.folder.join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    pub fn process_id(&self) -> Option<u32> {
        self.process().as_ref().map(Child::id)
    }

    /// Starts the process without waiting for anything.
    ///
    /// # Errors
    /// When it runs already or there is no binary.
    pub fn spawn(&self) -> Result<()> {
        self.spawn_with(&[])
    }

    /// As [`Service::spawn`], with more in its environment, this once.
    ///
    /// # Errors
    /// As [`Service::spawn`].
    pub fn spawn_with(&self, environment: &[(&str, &str)]) -> Result<()> {
        let mut process = self.process();
        ensure!(process.is_none(), "the service is running");
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.join("log"))?;
        let child = self
            .command()?
            .arg("serve")
            .arg("--data-dir")
            .arg(self.data_dir())
            .args(["--listen", &self.listen])
            .args(&self.arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        fs::write(self.folder.join("pid"), format!("{}\n", child.id()))?;
        *process = Some(child);
        Ok(())
    }

    /// Starts the process and waits until it is healthy.
    ///
    /// # Errors
    /// With its log when it does not get there.
    pub async fn start_again(&self) -> Result<()> {
        self.spawn()?;
        self.wait_healthy().await
    }

    /// Waits until the process that was started answers.
    ///
    /// # Errors
    /// With its log when it does not get there.
    pub async fn wait_healthy(&self) -> Result<()> {
        let healthy = wait::until("a healthy service", async || {
            if let Some(status) = self.try_wait()? {
                return Ok(Some(Err(status)));
            }
            let url = format!("{}/api/v1/health", self.base_url());
            let answer = self.client.get(url).send().await?;
            Ok(answer.status().is_success().then_some(Ok(())))
        });
        match healthy.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(status)) => bail!("the service ended: {status}\n{}", self.log()),
            Err(error) => Err(error.context(self.log())),
        }
    }

    /// `kill -9`.
    ///
    /// # Errors
    /// When it is not running.
    pub fn kill(&self) -> Result<()> {
        let mut child = self
            .process()
            .take()
            .context("the service is not running")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// SIGTERM; waits for the end of the process.
    ///
    /// # Errors
    /// When it is still there after two minutes.
    pub async fn terminate(&self) -> Result<ExitStatus> {
        {
            let process = self.process();
            let child = process.as_ref().context("the service is not running")?;
            kill_process(Pid::from_child(child), Signal::TERM)?;
        }
        self.wait_for_exit().await
    }

    /// Waits until the process has ended by itself.
    ///
    /// # Errors
    /// When it is still there after two minutes.
    pub async fn wait_for_exit(&self) -> Result<ExitStatus> {
        let what = "the end of the service";
        let ended = async || self.try_wait();
        wait::until_within(Duration::from_secs(120), what, ended).await
    }

    /// How the process ended, if it has.
    ///
    /// # Errors
    /// When it was not started.
    pub fn try_wait(&self) -> Result<Option<ExitStatus>> {
        let mut process = self.process();
        let child = process.as_mut().context("the service is not running")?;
        let status = child.try_wait()?;
        if status.is_some() {
            *process = None;
        }
        Ok(status)
    }

    /// One request with the token.
    ///
    /// # Errors
    /// When there is no answer; a problem is an answer.
    pub async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer> {
        let mut request = self
            .client
            .request(method, format!("{}{path}", self.base_url()));
        request = request.bearer_auth(self.token()?);
        if let Some(body) = body {
            request = request.json(body);
        }
        answer(request).await
    }

    /// A request to be finished by the caller: another token, another body.
    pub fn raw(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        self.client
            .request(method, format!("{}{path}", self.base_url()))
    }

    /// # Errors
    /// When it is not a 2xx answer.
    pub async fn get(&self, path: &str) -> Result<Value> {
        self.request(Method::GET, path, None)
            .await?
            .ok()
            .context(format!("GET {path}"))
    }

    /// # Errors
    /// When it is not a 2xx answer.
    pub async fn post(&self, path: &str, body: Value) -> Result<Value> {
        let answer = self.request(Method::POST, path, Some(&body)).await?;
        answer.ok().context(format!("POST {path}"))
    }

    /// Registers a source; `settings` is merged into the request.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn add_source(&self, name: &str, connection: &str, settings: Value) -> Result<Value> {
        let mut body = json!({"name": name, "connection": connection});
        if let (Some(body), Value::Object(settings)) = (body.as_object_mut(), settings) {
            body.extend(settings);
        }
        self.post("/api/v1/sources", body).await
    }

    /// # Errors
    /// When it is not a 2xx answer.
    pub async fn source(&self, name: &str) -> Result<Value> {
        self.get(&format!("/api/v1/sources/{name}")).await
    }

    /// Waits until the source streams and has its first base.
    ///
    /// # Errors
    /// With the log at the deadline.
    pub async fn wait_protected(&self, name: &str) -> Result<()> {
        let status = |source: &Value| source["status"] == "streaming";
        let what = format!("{name} to stream");
        wait::until_value(&what, || self.source(name), status)
            .await
            .map_err(|error| error.context(self.log()))?;
        self.wait_bases(name, 1).await?;
        Ok(())
    }

    /// Waits until there are that many finished bases, and answers those.
    ///
    /// # Errors
    /// With the log at the deadline.
    pub async fn wait_bases(&self, name: &str, count: usize) -> Result<Vec<Value>> {
        let path = format!("/api/v1/sources/{name}/bases");
        let finished = async || {
            let bases = self.get(&path).await?;
            let mut items = bases["items"].as_array().cloned().unwrap_or_default();
            items.retain(|base| base["status"] == "succeeded");
            Ok(items)
        };
        let what = format!("{count} bases of {name}");
        let enough = |bases: &Vec<Value>| bases.len() >= count;
        wait::until_value(&what, finished, enough)
            .await
            .map_err(|error| error.context(self.log()))
    }

    /// Waits until everything at or below this LSN is durable.
    ///
    /// # Errors
    /// With the log at the deadline.
    pub async fn wait_durable(&self, name: &str, lsn: &str) -> Result<()> {
        let wanted = parse_lsn(lsn)?;
        let reached = |source: &Value| {
            source["durable_lsn"]
                .as_str()
                .is_some_and(|lsn| parse_lsn(lsn).is_ok_and(|lsn| lsn >= wanted))
        };
        let what = format!("{lsn} of {name} to be durable");
        wait::until_value(&what, || self.source(name), reached)
            .await
            .map_err(|error| error.context(self.log()))?;
        Ok(())
    }

    /// Waits until the source's state is known up to this time (RFC 3339, UTC).
    ///
    /// # Errors
    /// With the log at the deadline.
    pub async fn wait_observed(&self, name: &str, time: &str) -> Result<()> {
        let wanted = DateTime::parse_from_rfc3339(time)?;
        let reached = |source: &Value| {
            let seen = source["observed_through"].as_str().unwrap_or_default();
            DateTime::parse_from_rfc3339(seen).is_ok_and(|seen| seen >= wanted)
        };
        let what = format!("{name} to be observed through {time}");
        wait::until_value(&what, || self.source(name), reached)
            .await
            .map_err(|error| error.context(self.log()))?;
        Ok(())
    }

    /// Starts a restore; answers its id.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn start_restore(&self, source: &str, target: &Value, into: Value) -> Result<String> {
        let path = format!("/api/v1/sources/{source}/restores");
        let job = self
            .post(&path, json!({"target": target, "into": into}))
            .await?;
        Ok(job["id"]
            .as_str()
            .context("a restore without an id")?
            .to_owned())
    }

    /// Waits until a restore has ended, in whatever way; answers its last state.
    ///
    /// # Errors
    /// With the log at the deadline.
    pub async fn wait_restore(&self, id: &str) -> Result<Value> {
        let ended = |restore: &Value| {
            matches!(
                restore["status"].as_str(),
                Some("succeeded" | "failed" | "cancelled")
            )
        };
        let path = format!("/api/v1/restores/{id}");
        wait::until_value("the end of a restore", || self.get(&path), ended)
            .await
            .map_err(|error| error.context(self.log()))
    }

    /// A whole restore.
    ///
    /// # Errors
    /// When it does not succeed.
    pub async fn restore(&self, source: &str, target: &Value, into: Value) -> Result<Value> {
        let id = self.start_restore(source, target, into).await?;
        let ended = self.wait_restore(&id).await?;
        ensure!(
            ended["status"] == "succeeded",
            "restore to {target}: {ended:#}\n{}",
            self.log()
        );
        Ok(ended)
    }

    /// The CLI with the environment of this service, talking to it unless told otherwise.
    ///
    /// # Errors
    /// When there is no binary.
    pub fn command(&self) -> Result<Command> {
        let mut command = cli()?;
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        Ok(command)
    }

    /// A CLI command that talks to this service.
    ///
    /// # Errors
    /// When there is no binary or no token yet.
    pub async fn cli(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command()?;
        command
            .env("LASTGOOD_SERVER", self.base_url())
            .env("LASTGOOD_TOKEN", self.token()?);
        command.args(arguments).stdin(Stdio::null());
        tokio::task::spawn_blocking(move || Ok(command.output()?)).await?
    }

    fn process(&self) -> MutexGuard<'_, Option<Child>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let mut ended = None;
        if let Some(mut child) = self.process().take() {
            // One that nobody asked to end is what a test failed of, however it fails.
            ended = child.try_wait().ok().flatten();
            let _ = child.kill();
            let _ = child.wait();
        }
        // Logs outlive their tests when somebody wants to read them.
        if let Some(folder) = std::env::var_os("LASTGOOD_TEST_LOGS") {
            let name = self.folder.file_name().unwrap_or_default();
            let copied = fs::create_dir_all(&folder)
                .and_then(|()| fs::copy(self.folder.join("log"), Path::new(&folder).join(name)));
            if let Err(error) = copied {
                eprintln!("the log is not kept: {error}");
            }
        }
        if ended.is_some() || std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().rev().take(80).collect();
            match ended {
                Some(status) => eprintln!("--- the service had ended: {status}; its log ends:"),
                None => eprintln!("--- the service's log ends:"),
            }
            lines.iter().rev().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// The binary: `LASTGOOD_BIN`, else the one beside the tests.
///
/// # Errors
/// Says how to build it when it is not there.
pub fn binary() -> Result<PathBuf> {
    if let Some(binary) = std::env::var_os("LASTGOOD_BIN") {
        return Ok(binary.into());
    }
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).context("the folder of the tests")?;
    let binary = folder.join("lastgood");
    ensure!(
        binary.exists(),
        "{} is missing: run `cargo build`",
        binary.display()
    );
    Ok(binary)
}

/// The CLI without any service: only what is in its arguments, and PostgreSQL's programs.
///
/// # Errors
/// When there is no binary.
pub fn cli() -> Result<Command> {
    let mut command = Command::new(binary()?);
    for (name, _) in std::env::vars_os().filter(|(name, _)| {
        name.to_str()
            .is_some_and(|name| name.starts_with("LASTGOOD_") || name.starts_with("PG"))
    }) {
        command.env_remove(name);
    }
    command
        .env("LASTGOOD_PG_BIN_DIRS", tools::bin_dirs())
        .env("RUST_BACKTRACE", "1")
        .env("RUST_LIB_BACKTRACE", "0");
    Ok(command)
}

/// An LSN as PostgreSQL prints it, as a number.
///
/// # Errors
/// When it is none.
pub fn parse_lsn(text: &str) -> Result<u64> {
    let (high, low) = text.split_once('/').context("an LSN has a slash")?;
    Ok((u64::from_str_radix(high, 16)? << 32) | u64::from_str_radix(low, 16)?)
}

async fn answer(request: reqwest::RequestBuilder) -> Result<Answer> {
    let response = request.send().await?;
    let status = response.status().as_u16();
    let content_type = response
        .headers()
        .get("content-type")
        .and_then(|it| it.to_str().ok());
    let content_type = content_type.unwrap_or_default().to_owned();
    let text = response.text().await?;
    let body = serde_json::from_str(&text).unwrap_or_default();
    Ok(Answer {
        status,
        content_type,
        text,
        body,
    })
}

/// Sends a request that was made by [`Service::raw`].
///
/// # Errors
/// When there is no answer.
pub async fn send(request: reqwest::RequestBuilder) -> Result<Answer> {
    answer(request).await
}

fn client() -> Result<reqwest::Client> {
    // reqwest wants a TLS provider although nothing here uses TLS.
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Fails only when another one is installed, which is as good.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
    Ok(reqwest::Client::builder()
        .timeout(Duration::from_secs(300))
        .build()?)
}

/// A process that has been asked to end, for those that are not a [`Service`]: waits at most a minute.
///
/// # Errors
/// When it is still there.
pub fn wait_for(child: &mut Child) -> Result<ExitStatus> {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(Instant::now() < end, "the process does not end");
        std::thread::sleep(Duration::from_millis(20));
    }
}
