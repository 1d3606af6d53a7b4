//! Keys of both kinds are rotated in turns, and a restore goes across all of them.

use std::process::Command;

use anyhow::{Result, ensure};
use lastgood_integration::history::{self, History};
use lastgood_integration::{Service, Storage, TestDatabase, seed, service};

async fn run(mut command: Command) -> Result<()> {
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "{output:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_goes_across_three_rotations_of_each() -> Result<()> {
    let storage = Storage::local()?;
    let seed = seed::choose("a_restore_goes_across_three_rotations_of_each");
    let service = Service::start(&storage).await?;
    let mut history = History::start(&service, TestDatabase::new(18).await?, seed).await?;
    for round in 0..3 {
        let durable = async |history: &mut History| {
            history.advance().await?;
            history.record_loud().await?;
            let lsn = history.last_lsn.clone();
            service.wait_durable(&history.name, &lsn).await
        };
        if round != 1 {
            let rotated = service.cli(&["key", "rotate-data", &history.name]).await?;
            ensure!(rotated.status.success(), "{rotated:?}");
            durable(&mut history).await?;
        }
        ensure!(service.terminate().await?.success(), "{}", service.log());
        if round == 1 {
            let mut alone = service::cli()?;
            alone.args(["key", "rotate-data", &history.name]);
            alone.args(["--repository", storage.url(), "--key-file"]);
            alone.arg(service.key_file());
            run(alone).await?;
        }
        let mut rotate = service::cli()?;
        rotate.args(["key", "rotate", "--repository", storage.url(), "--data-dir"]);
        rotate.arg(service.data_dir());
        run(rotate).await?;
        service.start_again().await?;
        durable(&mut history).await?;
    }
    let finished = history.finish(&service).await?.thinned(3);
    let sealed = storage.files(|path| path.contains("/keys/"))?;
    // Of the repository: one for each data key. Of the source: one for each rotation.
    ensure!(sealed.len() == 4 + 3, "{sealed:?}");
    history::verify(&service, &storage, &finished.name).await?;
    finished.check(&service).await?;
    // With nothing but repository and key.
    let copy = format!("{}_alone", finished.database.name);
    let mut restore = service::cli()?;
    restore.args(["restore", "--source", &finished.name, "--latest", "--yes"]);
    restore.args(["--repository", storage.url(), "--key-file"]);
    restore.arg(service.key_file());
    let into = finished.database.server.url("postgres");
    restore.args(["--into", &into, "--create-database", &copy]);
    run(restore).await?;
    if let Some(latest) = finished.moments.last() {
        history::check_restored(&finished.database.server, &copy, latest).await?;
    }
    history::drop_database(&finished.database.server, &copy).await
}
