//! A restore with nothing but the repository's URL and a copy of the master key: service, host and
//! catalog are gone.

use anyhow::{Result, ensure};
use lastgood_integration::history::{self, History};
use lastgood_integration::{Service, Storage, TestDatabase, seed, service};

async fn restore_from_nothing(storage: &Storage) -> Result<()> {
    let seed = seed::choose("restore_from_nothing");
    let service = Service::start(storage).await?;
    let database = TestDatabase::new(18).await?;
    let mut history = History::start(&service, database, seed).await?;
    history.advance().await?;
    history.record_loud().await?;
    history.advance().await?;
    let finished = history.finish(&service).await?;

    let elsewhere = tempfile::tempdir()?;
    let key = elsewhere.path().join("key");
    std::fs::copy(service.key_file(), &key)?;
    service.kill()?;
    drop(service);

    for (number, moment) in finished.moments.iter().enumerate() {
        let name = format!("{}_nothing_{number}", finished.database.name);
        let server = &finished.database.server;
        let mut restore = service::cli()?;
        restore.current_dir(&elsewhere);
        restore.envs(
            storage
                .environment()
                .iter()
                .map(|(name, value)| (name, value)),
        );
        restore
            .args([
                "restore",
                "--json",
                "--repository",
                storage.url(),
                "--key-file",
            ])
            .arg(&key);
        restore.args(["--source", &finished.name]);
        match moment.target["lsn"].as_str() {
            Some(lsn) => restore.args(["--lsn", lsn, "--exclusive"]),
            None => restore.arg("--latest"),
        };
        restore.args([
            "--into",
            &server.url("postgres"),
            "--create-database",
            &name,
        ]);
        let output = tokio::task::spawn_blocking(move || restore.output()).await??;
        ensure!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        history::check_restored(server, &name, moment).await?;
        history::drop_database(server, &name).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn from_local_files() -> Result<()> {
    restore_from_nothing(&Storage::local()?).await
}

#[tokio::test(flavor = "multi_thread")]
async fn from_s3() -> Result<()> {
    match Storage::s3() {
        Some(storage) => restore_from_nothing(&storage).await,
        None => Ok(()),
    }
}
