//! One archive: a tool's stdout through the envelope into storage. No local copy; memory is one
//! chunk and what the object writer keeps.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesOrdered;
use lastgood_pg::dump::{DumpContent, DumpOptions, DumpProcess, PgTools};
use lastgood_pg::publication::TableName;
use lastgood_pg::{ConnectionConfig, Session, ToolError};
use lastgood_proto::key::{ArchiveName, SourceObject};
use lastgood_proto::manifest::{Archive, Protection, TableEntry};
use lastgood_proto::{BaseId, LineageId};
use lastgood_store::SourceStore;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::catalog::{self, Contents};
use crate::error::{Error, chain};
use crate::settings::SourceSettings;
use crate::source::client_encoding;

const CHUNK_BYTES: usize = 256 << 10;
/// Shorter than the server's usual `deadlock_timeout`: where a transaction that locks several tables
/// and a dump stand in each other's way, it is the dump that gives up, not the transaction.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);

/// What every archive of a base has in common.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) tools: Arc<PgTools>,
    pub(super) connection: ConnectionConfig,
    pub(super) store: SourceStore,
    pub(super) lineage: LineageId,
    pub(super) base: BaseId,
    /// To import.
    pub(super) snapshot: String,
    pub(super) contents: Arc<Contents>,
    /// Sees the present, not the snapshot.
    pub(super) fresh: Arc<Session>,
    pub(super) dumped_bytes: Arc<AtomicU64>,
}

/// Dumps the main archive, the big tables and the globals, as many at a time as the settings say.
pub(super) async fn all(place: &Place, settings: &SourceSettings) -> Result<Vec<Archive>, Error> {
    let mut big: Vec<&TableEntry> = place
        .contents
        .tables
        .iter()
        .map(|(entry, _)| entry)
        .filter(|entry| entry.kind == 'r' && entry.bytes > settings.big_table_bytes)
        .filter(|entry| {
            !matches!(
                entry.protection,
                Protection::Foreign | Protection::Extension
            )
        })
        .collect();
    // The largest first: it decides when the base is done.
    big.sort_by_key(|entry| std::cmp::Reverse(entry.bytes));

    let name = |entry: &TableEntry| TableName::new(&entry.schema, &entry.name);
    // As the stream is sent. A setting of the database or the role must not choose, and names are
    // given to the tool, and read from its lists, in UTF-8.
    let encoding = Some(client_encoding(place.fresh.server_encoding()).to_owned());
    let main = DumpOptions {
        encoding: encoding.clone(),
        snapshot: Some(place.snapshot.clone()),
        exclude_table_data: big.iter().map(|entry| name(entry)).collect(),
        lock_wait_timeout: Some(LOCK_PATIENCE),
        ..DumpOptions::default()
    };
    let slots = Arc::new(Semaphore::new(
        usize::try_from(settings.base_jobs).unwrap_or(1),
    ));
    let mut running = FuturesOrdered::new();
    running.push_back(spawn(place, &slots, ArchiveName::Main, None, main));
    for entry in big {
        let options = DumpOptions {
            encoding: encoding.clone(),
            snapshot: Some(place.snapshot.clone()),
            content: DumpContent::DataOnly,
            tables: vec![name(entry)],
            lock_wait_timeout: Some(LOCK_PATIENCE),
            ..DumpOptions::default()
        };
        let table = Some((entry.schema.clone(), entry.name.clone()));
        running.push_back(spawn(
            place,
            &slots,
            ArchiveName::Table(entry.oid),
            table,
            options,
        ));
    }
    let mut archives = Vec::with_capacity(running.len() + 1);
    while let Some(joined) = running.next().await {
        archives.push(joined.map_err(|error| Error::Task(error.to_string()))??);
    }
    archives.extend(globals(place).await?);
    Ok(archives)
}

/// A task of its own, because compressing and sealing are work for a core; it ends with its handle.
fn spawn(
    place: &Place,
    slots: &Arc<Semaphore>,
    name: ArchiveName,
    table: Option<(String, String)>,
    options: DumpOptions,
) -> AbortOnDropHandle<Result<Archive, Error>> {
    let (place, slots) = (place.clone(), Arc::clone(slots));
    AbortOnDropHandle::new(tokio::spawn(async move {
        let _slot = slots.acquire().await;
        let process = place
            .tools
            .dump(&place.connection, &options)
            .map_err(lastgood_pg::Error::from)?;
        place.write(name, table, process).await
    }))
}

/// Roles and their memberships, if the role may read them: many providers refuse.
async fn globals(place: &Place) -> Result<Option<Archive>, Error> {
    let outcome = async {
        let process = place
            .tools
            .dumpall_globals(&place.connection)
            .map_err(lastgood_pg::Error::from)?;
        place.write(ArchiveName::Globals, None, process).await
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
    async fn unchanged(&self, name: ArchiveName) -> Result<(), Error> {
        let only = match name {
            ArchiveName::Main => None,
            ArchiveName::Table(oid) => Some(oid),
            ArchiveName::Globals => return Ok(()),
        };
        catalog::unchanged(self.fresh.client(), &self.contents, only).await
    }

    async fn write(
        &self,
        name: ArchiveName,
        table: Option<(String, String)>,
        mut process: DumpProcess,
    ) -> Result<Archive, Error> {
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
                if bytes == 0 {
                    // The first byte: the tool has read the definitions and holds its locks.
                    self.unchanged(name).await?;
                }
                let part = &chunk[..count];
                digest.update(part);
                writer.write(part).await?;
                bytes += count as u64;
                self.dumped_bytes.fetch_add(count as u64, Ordering::Relaxed);
            }
            // Only the exit code tells a whole archive from one that was cut.
            process.wait().await.map_err(lastgood_pg::Error::from)?;
            Ok::<_, Error>(())
        };
        if let Err(error) = copied.await {
            writer.abort().await;
            // A table that was dropped under the snapshot makes the tool fail in its own words.
            self.unchanged(name).await?;
            return Err(match error {
                // The lock is waited for by a statement timeout of the tool's own.
                Error::Pg(lastgood_pg::Error::Tool(ToolError::Failed { stderr, .. }))
                    if bytes == 0 && stderr.contains("timeout") =>
                {
                    Error::TablesLocked
                }
                error => error,
            });
        }
        Ok(Archive {
            name,
            table,
            bytes,
            stored_bytes: writer.finish().await?,
            sha256: hex(&digest.finalize()),
        })
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing into a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
