//! The archives of a base: what a tool or the server gives, through the envelope into storage. No local copy; memory
//! is one chunk, or one row if that is longer, and what the object writer keeps, for each session.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use lastgood_pg::dump::{DumpOptions, DumpProcess, PgTools};
use lastgood_pg::publication::TableName;
use lastgood_pg::{ConnectionConfig, Loan, Purpose, Session, ToolError};
use lastgood_proto::key::{ArchiveName, SourceObject};
use lastgood_proto::manifest::Archive;
use lastgood_proto::{BaseId, LineageId, Sha256, encoding};
use lastgood_store::{ObjectWriter, SourceStore, failpoint};
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::rows::{self, Part};
use super::snapshot::LOCK_PATIENCE_MS;
use crate::error::{Error, chain};
use crate::settings::SourceSettings;

pub(super) const CHUNK_BYTES: usize = 256 << 10;

/// What every archive of a base has in common.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) tools: Arc<PgTools>,
    pub(super) connection: ConnectionConfig,
    pub(super) store: SourceStore,
    pub(super) lineage: LineageId,
    pub(super) base: BaseId,
    pub(super) server_encoding: String,
    /// What is of use on the source only.
    pub(super) exclude_schemas: Vec<String>,
    pub(super) dumped_bytes: Arc<AtomicU64>,
}

/// The sessions that archives are made in.
pub(super) struct Sessions {
    pub(super) main: Loan,
    pub(super) hands: Vec<Session>,
}

/// Makes the main archive, those of the large tables' parts and the globals, as many at a time as the settings say.
/// The main one is without the rows of the tables that are `apart`: in parts, or in another base.
pub(super) async fn all(
    place: &Place,
    sessions: Sessions,
    parts: VecDeque<Part>,
    apart: Vec<TableName>,
    settings: &SourceSettings,
) -> Result<Vec<Archive>, Error> {
    let options = DumpOptions {
        // As the stream is sent; a setting of the database or the role must not choose.
        encoding: Some(encoding::sent_in(&place.server_encoding).to_owned()),
        exclude_schemas: place.exclude_schemas.clone(),
        exclude_table_data: apart,
        // For what the tool locks beyond what its session holds.
        lock_wait_timeout: Some(Duration::from_millis(LOCK_PATIENCE_MS)),
    };
    let expected = parts.len() + 1;
    let jobs = usize::try_from(settings.base_jobs).unwrap_or(1);
    let jobs = Arc::new(Semaphore::new(jobs));
    let queue = Arc::new(Mutex::new(parts));
    let mut running = FuturesUnordered::new();
    running.push(main(place, &jobs, sessions.main, options));
    for session in sessions.hands {
        running.push(rows::spawn(place, &jobs, session, &queue));
    }
    let mut archives = Vec::new();
    while let Some(joined) = running.next().await {
        archives.extend(joined.map_err(|error| Error::Task(error.to_string()))??);
    }
    if archives.len() != expected {
        return Err(Error::Task(
            "an archive of the base was left out".to_owned(),
        ));
    }
    archives.sort_by_key(|archive| archive.name);
    archives.extend(globals(place).await?);
    Ok(archives)
}

/// A task of its own, because compressing and sealing are work for a core; it ends with its handle.
fn main(
    place: &Place,
    jobs: &Arc<Semaphore>,
    session: Loan,
    options: DumpOptions,
) -> AbortOnDropHandle<Result<Vec<Archive>, Error>> {
    let (place, jobs) = (place.clone(), Arc::clone(jobs));
    AbortOnDropHandle::new(tokio::spawn(async move {
        let _job = jobs.acquire().await;
        let process = place
            .tools
            .dump(session, place.connection.database(), &options)
            .map_err(lastgood_pg::Error::from)?;
        let (archive, session) = place.write(ArchiveName::Main, process).await?;
        session.close().await;
        Ok(vec![archive])
    }))
}

/// Roles and their memberships, if the role may read them: many providers refuse.
async fn globals(place: &Place) -> Result<Option<Archive>, Error> {
    let outcome = async {
        let session = Session::connect(&place.connection, Purpose::Base).await?;
        let process = place
            .tools
            .dumpall_globals(session.lend().await?)
            .map_err(lastgood_pg::Error::from)?;
        let (archive, session) = place.write(ArchiveName::Globals, process).await?;
        session.close().await;
        Ok(archive)
    };
    match outcome.await {
        Ok(archive) => Ok(Some(archive)),
        Err(Error::Pg(error)) => {
            tracing::warn!(error = chain(&error), "the base has no roles");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

impl Place {
    /// What a tool prints.
    async fn write(
        &self,
        name: ArchiveName,
        mut process: DumpProcess,
    ) -> Result<(Archive, Loan), Error> {
        let mut sink = self.sink(name).await?;
        let mut chunk = vec![0_u8; CHUNK_BYTES];
        let copied = async {
            loop {
                let count = process.stdout.read(&mut chunk).await.map_err(|error| {
                    Error::Task(format!("the pipe from pg_dump broke: {error}"))
                })?;
                if count == 0 {
                    break;
                }
                sink.write(&chunk[..count]).await?;
            }
            // Only the exit code tells a whole archive from one that was cut.
            Ok::<_, Error>(process.wait().await.map_err(lastgood_pg::Error::from)?)
        };
        match copied.await {
            Ok(session) => Ok((sink.finish().await?, session)),
            Err(error) => {
                let written = sink.bytes;
                sink.abort().await;
                Err(match error {
                    Error::Pg(lastgood_pg::Error::Tool(ToolError::Failed { stderr, .. }))
                        if was_in_the_way(written, &stderr) =>
                    {
                        Error::TablesLocked
                    }
                    error => error,
                })
            }
        }
    }

    pub(super) async fn sink(&self, name: ArchiveName) -> Result<Sink<'_>, Error> {
        let object = SourceObject::Archive(self.lineage, self.base, name);
        Ok(Sink {
            name,
            writer: self.store.put_stream(&object).await?,
            digest: Sha256::new(),
            bytes: 0,
            dumped_bytes: &self.dumped_bytes,
        })
    }
}

/// An archive on its way into storage.
pub(super) struct Sink<'a> {
    name: ArchiveName,
    writer: ObjectWriter,
    digest: Sha256,
    bytes: u64,
    dumped_bytes: &'a AtomicU64,
}

impl Sink<'_> {
    pub(super) async fn write(&mut self, part: &[u8]) -> Result<(), Error> {
        self.digest.update(part);
        self.writer.write(part).await?;
        failpoint!("base.dump");
        let count = part.len() as u64;
        self.bytes += count;
        self.dumped_bytes.fetch_add(count, Ordering::Relaxed);
        Ok(())
    }

    pub(super) async fn finish(self) -> Result<Archive, Error> {
        Ok(Archive {
            name: self.name,
            table: None,
            parts: None,
            bytes: self.bytes,
            stored_bytes: self.writer.finish().await?,
            sha256: self.digest.digest().to_string(),
        })
    }

    /// Takes away what is there of it.
    pub(super) async fn abort(self) {
        self.writer.abort().await;
    }
}

/// Whether somebody else's lock ended a tool, which tells it by its words only. It waits for tables by
/// a statement timeout of its own, before it has written anything.
fn was_in_the_way(written: u64, stderr: &str) -> bool {
    stderr.contains("deadlock detected") || (written == 0 && stderr.contains("timeout"))
}
