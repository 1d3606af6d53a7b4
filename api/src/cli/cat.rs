//! `lastgood cat`: an object of the repository in clear, on standard output.

use std::io::{ErrorKind, Write};

use lastgood_proto::key::Key;

use super::failure::Failure;
use super::output::Output;
use super::place::RepositoryArgs;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Path of the object below the repository, such as sources/…/segments/….ndjson.zst.enc; without
    /// it, the paths there are
    path: Option<String>,
    #[command(flatten)]
    repository: RepositoryArgs,
}

pub(super) async fn run(args: Args, output: &Output) -> Result<(), Failure> {
    let Some(repository) = args.repository.open().await? else {
        return Err(Failure::usage(
            "give --repository, and --key-file if it is encrypted",
        ));
    };
    let Some(path) = args.path else {
        let mut paths = Vec::new();
        for (id, _) in repository.sources().await? {
            let store = repository.source(id).await?;
            for entry in store.objects().await? {
                paths.push(store.path(&entry.object));
            }
        }
        output.answer(&serde_json::json!({"items": paths}), |_| {
            paths.iter().map(|path| format!("{path}\n")).collect()
        });
        return Ok(());
    };
    let path = path.trim_start_matches('/');
    if let Ok(Key::Repository | Key::DataKey(..)) = Key::parse(path) {
        return Err(Failure::usage(
            "this object is plain JSON: read it as it is",
        ));
    }
    let mut reader = repository.open_path(path).await?;
    let mut stdout = std::io::stdout().lock();
    while let Some(chunk) = reader.next_chunk().await? {
        match stdout.write_all(&chunk) {
            Ok(()) => {}
            // Whoever reads has seen enough.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(anyhow::Error::from(error).context("standard output").into()),
        }
    }
    Ok(())
}
