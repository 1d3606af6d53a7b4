//! A source at work in a test, and what its repository says.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lastgood_engine::{
    Control, Error, Event, Events, Source, SourceSettings, SourceState, SourceStatus, Stopped, run,
};
use lastgood_proto::key::SourceObject;
use lastgood_proto::listing::LineageListing;
use lastgood_proto::pgoutput::TupleBuf;
use lastgood_proto::segment::{Record, SegmentReader};
use lastgood_proto::{Lsn, SourceId};
use lastgood_store::{Backend, Encryption, MasterKey, Repository, SourceStore};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Nothing in these tests takes longer, on any machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// A source with a repository in memory.
pub(crate) struct Fixture {
    pub(crate) source: Source,
    pub(crate) store: SourceStore,
    pub(crate) spool: tempfile::TempDir,
}

/// Settings that make a test quick.
pub(crate) fn quick() -> SourceSettings {
    SourceSettings {
        segment_seconds: 1,
        idle_seconds: 2,
        ..SourceSettings::default()
    }
}

impl Fixture {
    pub(crate) async fn new(url: &str, settings: SourceSettings) -> Result<Self> {
        let repository = Repository::create_or_open_on(
            Backend::memory(),
            Encryption::On(MasterKey::generate()?),
        )
        .await?;
        let id = SourceId::from_bytes(rand::random());
        Ok(Self {
            source: Source {
                id,
                name: "test".to_owned(),
                connection: url.parse()?,
                settings,
                writer: crate::kept::writer(&Arc::default()),
            },
            store: repository.create_source(id).await?,
            spool: tempfile::tempdir()?,
        })
    }

    pub(crate) fn start(&self) -> Running {
        self.start_with(Control::default())
    }

    pub(crate) fn start_with(&self, mut control: Control) -> Running {
        let (sender, events) = mpsc::channel(10_000);
        let cancel = CancellationToken::new();
        let (source, store) = (self.source.clone(), self.store.clone());
        let (spool, events_in) = (self.spool.path().to_owned(), Events::new(sender));
        let stop = cancel.clone();
        let task =
            tokio::spawn(
                async move { run(source, store, spool, &mut control, events_in, stop).await },
            );
        Running {
            task,
            events,
            cancel,
        }
    }

    pub(crate) async fn lineages(&self) -> Result<Vec<LineageListing>> {
        Ok(self.store.list().await?.lineages)
    }

    pub(crate) async fn newest(&self) -> Result<LineageListing> {
        let listing = self.store.list().await?;
        listing.newest().cloned().context("no lineage")
    }

    /// Every record of a lineage's chain, in order.
    pub(crate) async fn records(&self, lineage: &LineageListing) -> Result<Vec<Record<TupleBuf>>> {
        ensure!(lineage.orphans.is_empty(), "orphans: {:?}", lineage.orphans);
        let mut records = Vec::new();
        for key in &lineage.segments {
            let object = SourceObject::Segment(lineage.id, *key);
            let reader = self.store.open(&object).await?.into_blocking();
            let (source, id, key) = (self.source.id, lineage.id, *key);
            let read = tokio::task::spawn_blocking(move || -> Result<Vec<Record<TupleBuf>>> {
                let mut reader = SegmentReader::open(reader, Some((source, id, &key)))?;
                let mut records = Vec::new();
                while let Some(record) = reader.next()? {
                    records.push(record.map(|row| TupleBuf::new(row.iter()).expect("a row")));
                }
                Ok(records)
            });
            records.extend(read.await??);
        }
        Ok(records)
    }
}

/// A run that can be watched and stopped.
pub(crate) struct Running {
    task: JoinHandle<Result<Stopped, Error>>,
    events: mpsc::Receiver<Event>,
    cancel: CancellationToken,
}

impl Running {
    /// The first event that `pick` picks.
    pub(crate) async fn wait<T>(
        &mut self,
        what: &str,
        mut pick: impl FnMut(Event) -> Option<T>,
    ) -> Result<T> {
        let deadline = tokio::time::sleep(DEADLINE);
        tokio::pin!(deadline);
        let mut last: Option<SourceStatus> = None;
        loop {
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => {
                        if let Event::Status(status) = &event {
                            last = Some(status.clone());
                        }
                        if let Some(found) = pick(event) {
                            return Ok(found);
                        }
                    }
                    None => {
                        let ended = (&mut self.task).await?;
                        bail!("the run ended while waiting for {what}: {ended:?}");
                    }
                },
                () = &mut deadline => bail!("no {what} in time; last status {last:?}"),
            }
        }
    }

    pub(crate) async fn base(&mut self) -> Result<lastgood_proto::manifest::BaseManifest> {
        self.wait("base", |event| match event {
            Event::BaseFinished { manifest, .. } => Some(Ok(*manifest)),
            Event::BaseFailed { error } => Some(Err(anyhow::anyhow!(error))),
            _ => None,
        })
        .await?
    }

    /// Waits until everything up to `lsn` is durable.
    pub(crate) async fn durable(&mut self, lsn: Lsn) -> Result<()> {
        self.wait(&format!("durable LSN {lsn}"), |event| match event {
            Event::Segment { key, .. } if key.end >= lsn => Some(()),
            Event::Status(status) if status.durable_lsn >= Some(lsn) => Some(()),
            _ => None,
        })
        .await
    }

    /// Lets it come to stream, then stops it.
    pub(crate) async fn stop_streaming(mut self) -> Result<()> {
        self.wait("streaming", |event| match event {
            Event::Status(status) => (status.state == SourceState::Streaming).then_some(()),
            _ => None,
        })
        .await?;
        self.stop().await
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.cancel.cancel();
        tokio::time::timeout(DEADLINE, self.task).await???;
        Ok(())
    }

    /// As a crash: nothing is sealed, confirmed or said.
    pub(crate) async fn kill(self) {
        self.task.abort();
        let _aborted = self.task.await;
    }

    pub(crate) async fn ended(self) -> Result<Result<Stopped, Error>> {
        Ok(tokio::time::timeout(DEADLINE, self.task).await??)
    }
}

/// The end of the server's WAL.
pub(crate) async fn wal_end(client: &tokio_postgres::Client) -> Result<Lsn> {
    let row = client
        .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])
        .await?;
    Ok(row.get::<_, String>(0).parse()?)
}
