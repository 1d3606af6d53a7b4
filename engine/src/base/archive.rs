//! One archive: a tool's stdout through the envelope into storage. No local copy; memory is one
//! chunk and what the object writer keeps.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use lastgood_pg::dump::{DumpContent, DumpOptions, DumpProcess, PgTools};
use lastgood_pg::publication::TableName;
use lastgood_pg::{ConnectionConfig, Loan, Purpose, Session, ToolError};
use lastgood_proto::key::{ArchiveName, SourceObject};
use lastgood_proto::manifest::{Archive, TableEntry};
use lastgood_proto::{BaseId, LineageId, Sha256, encoding};
use lastgood_store::{SourceStore, failpoint};
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::snapshot::LOCK_PATIENCE_MS;
use crate::error::{Error, chain};
use crate::settings::SourceSettings;

const CHUNK_BYTES: usize = 256 << 10;

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
    pub(super) hands: Vec<Loan>,
}

/// An archive to be made.
struct Task {
    name: ArchiveName,
    table: Option<(String, String)>,
    options: DumpOptions,
}

/// Dumps the main archive, the big tables and the globals, as many at a time as the settings say. The rows
/// of the tables that are `elsewhere` are left out.
pub(super) async fn all(
    place: &Place,
    sessions: Sessions,
    mut big: Vec<TableEntry>,
    elsewhere: &[TableEntry],
    settings: &SourceSettings,
) -> Result<Vec<Archive>, Error> {
    // The largest first: it decides when the base is done.
    big.sort_by_key(|entry| std::cmp::Reverse(entry.bytes));

    let name = |entry: &TableEntry| TableName::new(&entry.schema, &entry.name);
    let common = DumpOptions {
        // As the stream is sent; a setting of the database or the role must not choose.
        encoding: Some(encoding::sent_in(&place.server_encoding).to_owned()),
        // For what a tool locks beyond what its session holds.
        lock_wait_timeout: Some(Duration::from_millis(LOCK_PATIENCE_MS)),
        ..DumpOptions::default()
    };
    let main = Task {
        name: ArchiveName::Main,
        table: None,
        options: DumpOptions {
            exclude_schemas: place.exclude_schemas.clone(),
            exclude_table_data: big.iter().chain(elsewhere).map(name).collect(),
            ..common.clone()
        },
    };
    let tables = big.iter().map(|entry| Task {
        name: ArchiveName::Table(entry.oid),
        table: Some((entry.schema.clone(), entry.name.clone())),
        options: DumpOptions {
            content: DumpContent::DataOnly,
            tables: vec![name(entry)],
            ..common.clone()
        },
    });
    let jobs = usize::try_from(settings.base_jobs).unwrap_or(1);
    let jobs = Arc::new(Semaphore::new(jobs));
    let queue = Arc::new(Mutex::new(tables.collect()));
    let mut running = FuturesUnordered::new();
    running.push(spawn(
        place,
        &jobs,
        sessions.main,
        Arc::new(Mutex::new(VecDeque::from([main]))),
    ));
    for session in sessions.hands {
        running.push(spawn(place, &jobs, session, Arc::clone(&queue)));
    }
    let mut archives = Vec::new();
    while let Some(joined) = running.next().await {
        archives.extend(joined.map_err(|error| Error::Task(error.to_string()))??);
    }
    if archives.len() != big.len() + 1 {
        return Err(Error::Task(
            "an archive of the base was left out".to_owned(),
        ));
    }
    let rank = |archive: &Archive| (archive.table.is_some(), std::cmp::Reverse(archive.bytes));
    archives.sort_by_key(rank);
    archives.extend(globals(place).await?);
    Ok(archives)
}

/// A task of its own, because compressing and sealing are work for a core; it ends with its handle.
/// Makes archives in one session until the queue is empty; then the session ends, with its locks.
fn spawn(
    place: &Place,
    jobs: &Arc<Semaphore>,
    mut session: Loan,
    queue: Arc<Mutex<VecDeque<Task>>>,
) -> AbortOnDropHandle<Result<Vec<Archive>, Error>> {
    let (place, jobs) = (place.clone(), Arc::clone(jobs));
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut archives = Vec::new();
        loop {
            let _job = jobs.acquire().await;
            let task = queue.lock().ok().and_then(|mut queue| queue.pop_front());
            let Some(task) = task else {
                session.close().await;
                return Ok(archives);
            };
            let process = place
                .tools
                .dump(session, place.connection.database(), &task.options)
                .map_err(lastgood_pg::Error::from)?;
            let (archive, again) = place.write(task.name, task.table, process).await?;
            archives.push(archive);
            session = again;
        }
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
        let (archive, session) = place.write(ArchiveName::Globals, None, process).await?;
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
    async fn write(
        &self,
        name: ArchiveName,
        table: Option<(String, String)>,
        mut process: DumpProcess,
    ) -> Result<(Archive, Loan), Error> {
        let object = SourceObject::Archive(self.lineage, self.base, name);
        let mut writer = self.store.put_stream(&object).await?;
        let mut digest = Sha256::new();
        let mut bytes = 0_u64;
        let mut chunk = vec![0_u8; CHUNK_BYTES];
        let copied = async {
            loop {
                let count = process.stdout.read(&mut chunk).await.map_err(|error| {
                    Error::Task(format!("the pipe from pg_dump broke: {error}"))
                })?;
                if count == 0 {
                    break;
                }
                let part = &chunk[..count];
                digest.update(part);
                writer.write(part).await?;
                failpoint!("base.dump");
                bytes += count as u64;
                self.dumped_bytes.fetch_add(count as u64, Ordering::Relaxed);
            }
            // Only the exit code tells a whole archive from one that was cut.
            Ok::<_, Error>(process.wait().await.map_err(lastgood_pg::Error::from)?)
        };
        let session =
            match copied.await {
                Ok(session) => session,
                Err(error) => {
                    writer.abort().await;
                    return Err(match error {
                        Error::Pg(lastgood_pg::Error::Tool(ToolError::Failed {
                            stderr, ..
                        })) if was_in_the_way(bytes, &stderr) => Error::TablesLocked,
                        error => error,
                    });
                }
            };
        let archive = Archive {
            name,
            table,
            bytes,
            stored_bytes: writer.finish().await?,
            sha256: digest.digest().to_string(),
        };
        Ok((archive, session))
    }
}

/// Whether somebody else's lock ended a tool, which tells it by its words only. It waits for tables by
/// a statement timeout of its own, before it has written anything.
fn was_in_the_way(written: u64, stderr: &str) -> bool {
    stderr.contains("deadlock detected") || (written == 0 && stderr.contains("timeout"))
}
