//! The base's archives, given to `pg_restore` straight from the repository.
//!
//! An archive's table of contents stands at its front, so its beginning is all that definitions,
//! indexes and constraints need: it is kept in a temporary file, which may be read again and in
//! parallel. The data is streamed, once. Ownership and privileges are left out here and applied at
//! the end (see `ownership`), so that every object belongs to the restoring role meanwhile.

use std::io::Write as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use lastgood_pg::dump::{RestoreInput, RestoreOptions, Section, TocEntry};
use lastgood_pg::{ConnectionConfig, PgTools, ToolError};
use lastgood_proto::key::{ArchiveName, SourceObject};
use lastgood_proto::manifest::Archive;
use lastgood_proto::{BaseId, LineageId, Sha256, SourceId, encoding};
use lastgood_store::{ObjectReader, SourceStore, failpoint};
use tempfile::NamedTempFile;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio_util::task::AbortOnDropHandle;

use crate::Error;
use crate::tool_errors::judge;

/// Where archives come from, and what reads them.
#[derive(Clone, Copy)]
pub(crate) struct Archives<'a> {
    pub(crate) store: &'a SourceStore,
    pub(crate) lineage: LineageId,
    pub(crate) base: BaseId,
    pub(crate) tools: &'a PgTools,
}

/// The beginning of the main archive, with its table of contents.
pub(crate) struct Head {
    file: NamedTempFile,
    /// What its text is in, definitions and data alike.
    pub(crate) encoding: String,
    pub(crate) entries: Vec<TocEntry>,
}

impl Head {
    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }
}

impl Archives<'_> {
    async fn open(&self, name: ArchiveName) -> Result<ObjectReader, Error> {
        let object = SourceObject::Archive(self.lineage, self.base, name);
        Ok(self.store.open(&object).await?)
    }

    /// Fetches as much of the main archive as its table of contents takes.
    pub(crate) async fn head(&self) -> Result<Head, Error> {
        let mut tee = Tee {
            reader: AsyncChunks::new(self.open(ArchiveName::Main).await?),
            file: NamedTempFile::new().map_err(Error::Scratch)?,
            failed: None,
        };
        let contents = self.tools.list(&mut tee).await;
        let Tee {
            reader,
            mut file,
            failed,
        } = tee;
        // What the reader reports tells more than the tool that starved on it.
        if let Some(error) = failed.or(reader.failed) {
            return Err(error);
        }
        file.flush().map_err(Error::Scratch)?;
        let contents = contents?;
        let encoding = self.encoding(file.path()).await?;
        let mut entries = contents.entries(&encoding);
        entries.retain(|entry| !is_of_capture(entry));
        Ok(Head {
            file,
            entries,
            encoding,
        })
    }

    /// An archive says itself what it is in: a script of nothing still sets it.
    async fn encoding(&self, archive: &Path) -> Result<String, Error> {
        let script = self.script_bytes(archive, Some(&[]), &[]).await?;
        let script = String::from_utf8_lossy(&script);
        let set = script
            .lines()
            .find_map(|line| line.strip_prefix("SET client_encoding = '"));
        let encoding = set.and_then(|rest| rest.strip_suffix("';"));
        Ok(encoding.unwrap_or("UTF8").to_owned())
    }

    /// Restores definitions: one section of the main archive, or only the entries given.
    /// Answers what could not be brought back and does not matter to the data.
    pub(crate) async fn definitions(
        &self,
        target: &ConnectionConfig,
        head: &Head,
        section: Section,
        only: Option<&[&TocEntry]>,
        jobs: u32,
    ) -> Result<Vec<String>, Error> {
        if only.is_some_and(<[&TocEntry]>::is_empty) {
            return Ok(Vec::new());
        }
        let list = only.map(list_file).transpose()?;
        let options = RestoreOptions {
            input: RestoreInput::File(head.path().to_owned()),
            sections: vec![section],
            list_file: list.as_ref().map(|file| file.path().to_owned()),
            jobs: (jobs > 1 && section == Section::PostData).then_some(jobs),
            no_owner: true,
            no_privileges: true,
            exit_on_error: false,
        };
        let process = self.tools.restore(target, &options)?;
        judge(process.wait().await)
    }

    /// Restores the data of an archive's entries that is no table's rows.
    pub(crate) async fn others(
        &self,
        target: &ConnectionConfig,
        archive: &Archive,
        only: &[&TocEntry],
        fed: &Arc<AtomicU64>,
    ) -> Result<(), Error> {
        let list = list_file(only)?;
        let options = RestoreOptions {
            input: RestoreInput::Stdin,
            sections: vec![Section::Data],
            list_file: Some(list.path().to_owned()),
            no_owner: true,
            no_privileges: true,
            ..RestoreOptions::default()
        };
        let mut process = self.tools.restore(target, &options)?;
        if let Some(stdin) = process.stdin.take() {
            self.feed(&[archive], stdin, fed).await??;
        }
        judge(process.wait().await).map(drop)
    }

    /// Gives archives to whoever reads them, one behind the other, and verifies them, on a task of its own: to unseal
    /// and decompress is work for a core. `fed` counts their bytes.
    pub(crate) fn feed(
        &self,
        archives: &[&Archive],
        to: impl AsyncWrite + Unpin + Send + 'static,
        fed: &Arc<AtomicU64>,
    ) -> AbortOnDropHandle<Result<(), Error>> {
        let archives: Vec<Archive> = archives.iter().copied().cloned().collect();
        let (store, lineage, base) = (self.store.clone(), self.lineage, self.base);
        let fed = Arc::clone(fed);
        AbortOnDropHandle::new(tokio::spawn(async move {
            let mut to = Some(to);
            for archive in archives {
                let object = SourceObject::Archive(lineage, base, archive.name);
                let mut reader = store.open(&object).await?;
                let mut digest = Sha256::new();
                while let Some(chunk) = reader.next_chunk().await? {
                    digest.update(&chunk);
                    fed.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                    // A tool leaves after the last data it wants; the rest is read to be verified.
                    if let Some(open) = &mut to
                        && open.write_all(&chunk).await.is_err()
                    {
                        to = None;
                    }
                    failpoint!("restore.data");
                }
                if digest.digest().to_string() != archive.sha256 {
                    return Err(Error::ArchiveAltered {
                        archive: archive.name.to_string(),
                    });
                }
            }
            Ok(())
        }))
    }

    /// The definitions of some kinds as SQL text.
    pub(crate) async fn script_of(&self, head: &Head, kinds: &[&str]) -> Result<String, Error> {
        let wanted = |entry: &&TocEntry| kinds.contains(&entry.kind());
        let entries: Vec<&TocEntry> = head.entries.iter().filter(wanted).collect();
        match entries.is_empty() {
            true => Ok(String::new()),
            false => self.script(head, Some(&entries), &["--no-owner"]).await,
        }
    }

    /// Definitions as SQL text instead.
    pub(crate) async fn script(
        &self,
        head: &Head,
        only: Option<&[&TocEntry]>,
        options: &[&str],
    ) -> Result<String, Error> {
        let script = self.script_bytes(head.path(), only, options).await?;
        Ok(encoding::decode(&head.encoding, &script))
    }

    async fn script_bytes(
        &self,
        archive: &Path,
        only: Option<&[&TocEntry]>,
        options: &[&str],
    ) -> Result<Vec<u8>, Error> {
        let list = only.map(list_file).transpose()?;
        let mut command = tokio::process::Command::new(self.tools.dir().join("pg_restore"));
        command.args([
            "--format=custom",
            "--file=-",
            "--no-publications",
            "--no-subscriptions",
        ]);
        command.args(options);
        if let Some(list) = &list {
            command.arg("--use-list").arg(list.path());
        }
        command.arg(archive).kill_on_drop(true);
        // No variable of ours is to reach it; it connects to nothing.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        let output = command.output().await.map_err(Error::Scratch)?;
        if !output.status.success() {
            return Err(Error::Tool(ToolError::Failed {
                tool: "pg_restore",
                status: output.status,
                stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            }));
        }
        Ok(output.stdout)
    }
}

/// The event triggers that capture has on the source. A base is without their function.
fn is_of_capture(entry: &TocEntry) -> bool {
    let name = entry.rest().strip_prefix("- ");
    entry.kind() == "EVENT TRIGGER" && name.is_some_and(is_trigger_of_capture)
}

/// Whether a text begins with the name of one.
pub(crate) fn is_trigger_of_capture(text: &str) -> bool {
    let name = text.strip_prefix("lastgood_");
    let source = name.and_then(|name| name.split_once('_'));
    source.is_some_and(|(id, _)| id.parse::<SourceId>().is_ok())
}

pub(crate) fn list_file(entries: &[&TocEntry]) -> Result<NamedTempFile, Error> {
    let mut file = NamedTempFile::new().map_err(Error::Scratch)?;
    for entry in entries {
        writeln!(file, "{}", entry.line()).map_err(Error::Scratch)?;
    }
    file.flush().map_err(Error::Scratch)?;
    Ok(file)
}

/// An object's chunks as bytes to be read.
struct AsyncChunks {
    chunks: Pin<Box<dyn futures::Stream<Item = Result<Bytes, Error>> + Send>>,
    chunk: Bytes,
    failed: Option<Error>,
}

impl AsyncChunks {
    fn new(reader: ObjectReader) -> Self {
        let chunks = futures::stream::try_unfold(reader, |mut reader| async move {
            let chunk = reader.next_chunk().await?;
            Ok(chunk.map(|chunk| (chunk, reader)))
        });
        Self {
            chunks: Box::pin(chunks),
            chunk: Bytes::new(),
            failed: None,
        }
    }

    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<std::io::Result<&mut Bytes>> {
        if self.chunk.is_empty() {
            match std::task::ready!(self.chunks.as_mut().poll_next(cx)) {
                Some(Ok(chunk)) => self.chunk = chunk,
                Some(Err(error)) => {
                    self.failed = Some(error);
                    return Poll::Ready(Err(std::io::ErrorKind::InvalidData.into()));
                }
                None => {}
            }
        }
        Poll::Ready(Ok(&mut self.chunk))
    }
}

/// Reads an object and keeps what was read.
struct Tee {
    reader: AsyncChunks,
    file: NamedTempFile,
    failed: Option<Error>,
}

impl AsyncRead for Tee {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let this = &mut *self;
        let chunk = std::task::ready!(this.reader.poll_chunk(cx))?;
        let bytes = chunk.split_to(chunk.len().min(out.remaining()));
        if let Err(error) = this.file.write_all(&bytes) {
            this.failed = Some(Error::Scratch(error));
            return Poll::Ready(Err(std::io::ErrorKind::Other.into()));
        }
        out.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}
