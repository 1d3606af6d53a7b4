//! The first base of a lineage, beside the stream. A dump of many hours survives a stream that
//! breaks: the task belongs to the source's run, not to one connection.

use std::time::Duration;

use lastgood_proto::manifest::LineageFile;
use lastgood_proto::{LineageId, Lsn};
use lastgood_store::SourceStore;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::Source;
use crate::base::{self, Rows, Snapshot};
use crate::error::{Error, chain};
use crate::events::{Event, Events};

/// Before a failed base is tried again; doubled up to the second.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_LONGEST: Duration = Duration::from_secs(300);

/// Ends, without a base, when dropped.
pub(super) struct Task {
    lineage: LineageId,
    handle: AbortOnDropHandle<()>,
    failure: watch::Receiver<Option<String>>,
    taken: watch::Receiver<Taken>,
}

/// A base that follows others.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Taken {
    /// Its consistent point; an invalid one if there is none.
    pub(super) point: Lsn,
    pub(super) took: Duration,
}

impl Task {
    /// Dumps under `snapshot`, or under that of a temporary slot; tries until there is a base.
    pub(super) fn begin(
        source: &Source,
        store: &SourceStore,
        file: &LineageFile,
        snapshot: Option<Snapshot>,
        events: &Events,
        cancel: &CancellationToken,
    ) -> Self {
        let (failed, failure) = watch::channel(None);
        let (taken, seen) = watch::channel(Taken::default());
        let work = Work {
            source: source.clone(),
            store: store.clone(),
            file: file.clone(),
            events: events.clone(),
            cancel: cancel.clone(),
            failed,
            taken,
        };
        Self {
            lineage: file.id,
            handle: AbortOnDropHandle::new(tokio::spawn(work.run(snapshot))),
            failure,
            taken: seen,
        }
    }

    pub(super) fn lineage(&self) -> LineageId {
        self.lineage
    }

    /// What was taken, if it was not the first base.
    pub(super) fn taken(&self) -> Taken {
        *self.taken.borrow()
    }

    pub(super) fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }

    /// Why the last attempt failed, if it did.
    pub(super) fn failure(&self) -> Option<String> {
        self.failure.borrow().clone()
    }
}

struct Work {
    source: Source,
    store: SourceStore,
    file: LineageFile,
    events: Events,
    cancel: CancellationToken,
    failed: watch::Sender<Option<String>>,
    taken: watch::Sender<Taken>,
}

impl Work {
    async fn run(self, snapshot: Option<Snapshot>) {
        let mut pause = Duration::ZERO;
        if let Some(snapshot) = snapshot {
            let dumped = tokio::select! {
                () = self.cancel.cancelled() => return,
                dumped = base::dump(&self.source, &self.store, &self.file, snapshot, Rows::All, &self.events) => {
                    dumped
                }
            };
            let Err(error) = dumped else {
                return;
            };
            self.note(&error);
        }
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).clamp(RETRY_FIRST, RETRY_LONGEST);
            let (events, cancel) = (self.events.clone(), self.cancel.clone());
            let (source, store) = (&self.source, &self.store);
            let begun = Instant::now();
            let rows = Rows::Altered { gives_way: true };
            match base::take_rows(source, store, rows, events, cancel).await {
                Ok(base) => {
                    self.taken.send_replace(Taken {
                        point: base.consistent_point,
                        took: begun.elapsed(),
                    });
                    return;
                }
                Err(Error::NoLineage | Error::Cancelled) => return,
                Err(error) => self.note(&error),
            }
        }
    }

    fn note(&self, error: &Error) {
        let error = chain(error);
        self.events.send(Event::BaseFailed {
            error: error.clone(),
        });
        tracing::warn!(error, lineage = %self.file.id, "no base yet; trying again");
        self.failed.send_replace(Some(error));
    }
}
