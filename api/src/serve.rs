//! `lastgood serve`: everything is put together, runs, and ends in order.
//!
//! At SIGTERM or SIGINT: no new request is taken, every source seals, uploads and confirms what it
//! has, jobs stop, the catalog closes. All of it under a deadline, and a second signal ends it at
//! once: nothing that was confirmed to a source depends on a clean end.

use std::fs::{File, TryLockError};
use std::future::IntoFuture;
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use hkdf::Hkdf;
use lastgood_engine::Writer;
use lastgood_store::{Encryption, MASTER_KEY_VARIABLE, MasterKey, Repository, StorageOptions};
use sha2::Sha256;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use zeroize::Zeroizing;

use crate::app::{App, KEY_WARNING, KeyState, Shared};
use crate::catalog::{Catalog, Seal};
use crate::clock::now;
use crate::config::{Config, EncryptionArg, ServeArgs};
use crate::exit::Refusal;
use crate::jobs::{self, BaseJobs, RestoreJobs};
use crate::secrets;
use crate::supervisor::Supervisor;
use crate::{http, rebuild, telemetry};

/// Names the key that seals connection strings in the catalog.
const SEAL_LABEL: &[u8] = b"lastgood catalog connection v1";
/// How long open connections may take to end, once everything else has.
const CONNECTIONS_DEADLINE: Duration = Duration::from_secs(3);
/// Name of the catalog's setting that says which repository it belongs to.
const REPOSITORY: &str = "repository";
/// And where that was when it was last used.
const REPOSITORY_URL: &str = "repository_url";
/// And the one that is set once that repository's sources are in the catalog.
const TAKEN_UP: &str = "taken_up";

pub(crate) async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    telemetry::init(args.log);
    #[cfg(debug_assertions)]
    lastgood_store::failpoint::prepare().map_err(anyhow::Error::msg)?;
    let config = Config::prepare(args)?;
    let lock = lock(&config)?;
    let app = Box::pin(assemble(&config)).await?;
    let listener = TcpListener::bind(config.listen)
        .await
        .with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr().context("no local address")?;
    warn(&app, &config).await?;
    start(&app).await?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        %address,
        repository = %app.repository_url,
        data_dir = %config.data_dir.display(),
        "lastgood is serving"
    );
    announce(&config, &address.to_string())?;
    run(&app, listener, &config).await?;
    // Held until here: another service must not begin while this one still writes.
    drop(lock);
    tracing::info!("stopped");
    Ok(())
}

/// One service for one data folder.
pub(crate) fn lock(config: &Config) -> anyhow::Result<File> {
    let path = config.lock_path();
    let file = File::options()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Refusal(format!(
            "another lastgood uses the data folder {}; stop it first, or give --data-dir",
            config.data_dir.display()
        ))
        .into()),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

/// The master key: from the environment, from its file, or, where nothing exists yet, a new one.
pub(crate) fn master_key(config: &Config) -> anyhow::Result<(MasterKey, KeyState)> {
    let rotated = config.rotated_key_path();
    if rotated.exists() {
        let refusal = format!(
            "a rotation of the master key was cut short ({} exists): run `lastgood key rotate` again, \
             with the same --repository",
            rotated.display()
        );
        return Err(Refusal(refusal).into());
    }
    if let Some(key) = MasterKey::from_env().with_context(|| MASTER_KEY_VARIABLE.to_owned())? {
        let state = KeyState::Given(key.fingerprint());
        return Ok((key, state));
    }
    let path = &config.key_file;
    if !path.exists() {
        if config.catalog_path().exists() {
            let refusal = format!(
                "the master key {} is gone, and there is a catalog that needs it: put the key back",
                path.display()
            );
            return Err(Refusal(refusal).into());
        }
        let key = MasterKey::generate()?;
        key.write_new(path)?;
        tracing::info!(path = %path.display(), "made a new master key");
    }
    let key = MasterKey::from_file(path)?;
    let state = KeyState::File(key.fingerprint());
    Ok((key, state))
}

/// The key for the catalog's connection strings, from the master key.
pub(crate) fn seal(master: &MasterKey) -> anyhow::Result<Seal> {
    let text = master.to_base64();
    let mut key = Zeroizing::new([0_u8; 32]);
    Hkdf::<Sha256>::new(None, text.as_bytes())
        .expand(SEAL_LABEL, key.as_mut())
        .map_err(|_| anyhow::anyhow!("no key can be derived"))?;
    Ok(Seal::new(&key))
}

async fn assemble(config: &Config) -> anyhow::Result<Shared> {
    let (master, key) = master_key(config)?;
    let seal = seal(&master)?;
    let (encryption, key) = match config.encryption {
        EncryptionArg::On => (Encryption::On(master), key),
        EncryptionArg::Off => (Encryption::Off, KeyState::Unencrypted),
    };
    let path = config.catalog_path();
    let catalog = Catalog::open(&path).with_context(|| format!("cannot use {}", path.display()))?;
    let repository = open_repository(&catalog, config, encryption).await?;
    if catalog.setting(TAKEN_UP).await?.is_none() && take_up(&catalog, &seal, &repository).await {
        catalog.set_setting(TAKEN_UP, "yes".to_owned()).await?;
    }
    let (token, made) = secrets::token(&config.token_path())?;
    if made {
        tracing::info!(path = %config.token_path().display(), "made a new token");
    }
    catalog
        .set_token("admin", secrets::hash(&token), now())
        .await?;
    let shutdown = CancellationToken::new();
    let supervisor = Supervisor::new(
        catalog.clone(),
        seal.clone(),
        repository.clone(),
        config.spool_dir(),
        Writer::new(Arc::new(catalog.clone()))?,
        shutdown.child_token(),
    );
    Ok(Arc::new(App {
        token_hashes: catalog.token_hashes().await?,
        catalog,
        seal,
        repository,
        repository_url: config.repository.clone(),
        key,
        supervisor,
        bases: BaseJobs::default(),
        restores: RestoreJobs::default(),
        upkeep: tokio::sync::Mutex::default(),
        spool_dir: config.spool_dir(),
        started: now(),
        tracker: TaskTracker::new(),
        shutdown,
    }))
}

/// The repository, made if the catalog belongs to none yet. A catalog beside another repository would
/// capture into the wrong place, so one that belongs to a repository is looked at before anything is
/// written.
async fn open_repository(
    catalog: &Catalog,
    config: &Config,
    encryption: Encryption,
) -> anyhow::Result<Repository> {
    let (url, options) = (&config.repository, StorageOptions::from_env());
    let cannot = || format!("cannot use the repository {url}");
    if catalog.setting(REPOSITORY).await?.is_some() {
        let found = Repository::open(url, &options, encryption.clone()).await;
        belongs_together(catalog, config, &found).await?;
        found.with_context(cannot)?;
    }
    let repository = Repository::create_or_open(url, &options, encryption)
        .await
        .with_context(cannot)?;
    remember(catalog, config, &repository).await?;
    Ok(repository)
}

/// From here on the catalog belongs to this repository.
pub(crate) async fn remember(
    catalog: &Catalog,
    config: &Config,
    repository: &Repository,
) -> anyhow::Result<()> {
    let id = repository.id().to_string();
    catalog.set_setting(REPOSITORY, id).await?;
    let url = config.repository.to_string();
    catalog.set_setting(REPOSITORY_URL, url).await?;
    Ok(())
}

/// A new catalog beside a repository that holds sources: it is the old one that was lost. Whether all of
/// them were taken up.
async fn take_up(catalog: &Catalog, seal: &Seal, repository: &Repository) -> bool {
    match Box::pin(rebuild::rebuild(catalog, seal, repository)).await {
        Ok(found) => {
            for source in found {
                tracing::warn!(
                    source = %source.id,
                    name = source.name,
                    "found in the repository; it waits for its connection string"
                );
            }
            true
        }
        Err(error) => {
            let error = http::chain(&error);
            tracing::error!(
                error,
                "the sources of the repository cannot be taken up; the next start tries again, as does \
                 `lastgood catalog rebuild`"
            );
            false
        }
    }
}

/// Refuse a repository that is not the one this data folder's catalog belongs to.
pub(crate) async fn belongs_together(
    catalog: &Catalog,
    config: &Config,
    found: &Result<Repository, lastgood_store::Error>,
) -> anyhow::Result<()> {
    let Some(known) = catalog.setting(REPOSITORY).await? else {
        return Ok(());
    };
    let here = match found {
        Ok(repository) if repository.id().to_string() == known => return Ok(()),
        Ok(repository) => format!("is repository {}", repository.id()),
        Err(lastgood_store::Error::NoRepository { .. }) => "holds none".to_owned(),
        // Whether it is the same cannot be told.
        Err(_) => return Ok(()),
    };
    let home = catalog.setting(REPOSITORY_URL).await?;
    let home = home.map_or_else(String::new, |url| format!(", last at {url}"));
    let url = &config.repository;
    Err(Refusal(format!(
        "the data folder {} belongs to repository {known}{home}; {url} {here}: give the right \
         --repository or another --data-dir",
        config.data_dir.display()
    ))
    .into())
}

async fn warn(app: &Shared, config: &Config) -> anyhow::Result<()> {
    if !config.listen.ip().is_loopback() {
        tracing::warn!(
            listen = %config.listen,
            "the API speaks plain HTTP and listens beyond this machine: put TLS in front of it"
        );
    }
    if app.key == KeyState::Unencrypted {
        tracing::warn!("encryption is switched off: whoever reads the repository reads the data");
    }
    if !app.is_key_safe().await? {
        tracing::warn!(key_file = %config.key_file.display(), "{KEY_WARNING}");
    }
    if app.repository.conditional_put() == Some(lastgood_store::ConditionalPut::Ignored) {
        tracing::warn!(
            "the object store ignores conditional puts: every object is read back and compared, \
             which cannot shut out a second service as surely"
        );
    }
    match app.repository.sources().await {
        Ok(sources) => {
            for (id, file) in sources {
                if app.catalog.source(&id.to_string()).await?.is_none() {
                    tracing::warn!(
                        source = %id,
                        name = file.name,
                        "the repository holds a source that is not registered here: it can be \
                         restored with --repository, or registered again with its id or by \
                         `lastgood catalog rebuild`"
                    );
                }
            }
        }
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "the sources of the repository cannot be listed");
        }
    }
    Ok(())
}

/// Take up what was running when the service last ended.
async fn start(app: &Shared) -> anyhow::Result<()> {
    let bases = app.catalog.fail_interrupted_bases(now()).await?;
    let restores = app.catalog.fail_interrupted_restores(now()).await?;
    if bases + restores.len() > 0 {
        tracing::warn!(
            bases,
            ?restores,
            "jobs ended with the service that ran them"
        );
    }
    for row in app.catalog.sources(None, usize::MAX).await? {
        app.supervisor.adopt(&row, false);
    }
    let task = jobs::bases::keep_schedule(Arc::clone(app));
    app.tracker.spawn(task);
    app.tracker.spawn(jobs::retention::keep(Arc::clone(app)));
    Ok(())
}

/// One line on standard output, for whoever started this and waits for the address.
fn announce(config: &Config, address: &str) -> anyhow::Result<()> {
    let token_file = config.token_path();
    let mut stdout = std::io::stdout();
    let written = match stdout.is_terminal() {
        true => writeln!(
            stdout,
            "lastgood serves http://{address}; its token is in {}",
            token_file.display()
        ),
        false => {
            let serving = format!("http://{address}");
            let line = serde_json::json!({"serving": serving, "token_file": token_file});
            writeln!(stdout, "{line}")
        }
    };
    written.context("standard output is closed")
}

async fn run(app: &Shared, listener: TcpListener, config: &Config) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("no signals")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("no signals")?;
    let intake = app.shutdown.clone().cancelled_owned();
    let server = axum::serve(listener, http::router(Arc::clone(app)))
        .with_graceful_shutdown(intake)
        .into_future();
    let mut server = tokio::spawn(server);
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM: shutting down"),
        _ = interrupt.recv() => tracing::info!("SIGINT: shutting down"),
        ended = &mut server => {
            ended.context("the HTTP server failed")?.context("the HTTP server failed")?;
            bail!("the HTTP server ended without being asked to");
        }
    }
    app.shutdown.cancel();
    app.tracker.close();
    let orderly = async {
        app.supervisor.wait().await;
        app.tracker.wait().await;
        // A client that opened a connection and says nothing is not waited for.
        let abort = server.abort_handle();
        let ended = tokio::time::timeout(CONNECTIONS_DEADLINE, server).await;
        abort.abort();
        ended
    };
    tokio::select! {
        ended = tokio::time::timeout(config.shutdown_deadline, orderly) => match ended {
            Ok(Ok(Err(error))) => tracing::warn!(%error, "the HTTP server did not end well"),
            Ok(Ok(Ok(_)) | Err(_)) => {}
            Err(_) => bail!(
                "not everything ended within {} s; what was not uploaded is still on the sources",
                config.shutdown_deadline.as_secs()
            ),
        },
        _ = terminate.recv() => bail!("a second signal: ended at once"),
        _ = interrupt.recv() => bail!("a second signal: ended at once"),
    }
    Ok(())
}
