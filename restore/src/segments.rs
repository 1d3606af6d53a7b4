//! Opening segments: off the runtime's threads, a few of them ahead.

use std::collections::VecDeque;

use lastgood_proto::LineageId;
use lastgood_proto::key::{SegmentKey, SourceObject};
use lastgood_proto::segment::{IsWanted, SegmentReader};
use lastgood_store::{BlockingReader, ObjectReader, SourceStore};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::Error;

/// How many segments are fetched ahead. The first range of each is in memory.
const AHEAD: usize = 4;

pub(crate) type Segment = SegmentReader<BlockingReader>;

/// Runs `read` over one segment, on a thread that may block.
pub(crate) async fn scan<T: Send + 'static>(
    store: &SourceStore,
    lineage: LineageId,
    key: SegmentKey,
    read: impl FnOnce(Segment) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let object = open(store, &SourceObject::Segment(lineage, key)).await?;
    let source = store.id();
    let task = tokio::task::spawn_blocking(move || {
        let expect = Some((source, lineage, &key));
        read(SegmentReader::open(object.into_blocking(), expect)?)
    });
    task.await?
}

/// Segments one after another, for a thread that may block.
pub(crate) struct Segments {
    store: SourceStore,
    lineage: LineageId,
    keys: VecDeque<SegmentKey>,
    opening: VecDeque<(SegmentKey, Opening)>,
    is_wanted: Option<IsWanted>,
    runtime: Handle,
}

type Opening = AbortOnDropHandle<Result<ObjectReader, Error>>;

/// A segment that a listing has named may have been deleted since.
async fn open(store: &SourceStore, object: &SourceObject) -> Result<ObjectReader, Error> {
    store.open(object).await.map_err(|error| match error {
        lastgood_store::Error::NotFound { key } => Error::SegmentGone { path: key },
        error => error.into(),
    })
}

impl Segments {
    /// Must be called within a runtime.
    pub(crate) fn new(
        store: SourceStore,
        lineage: LineageId,
        keys: impl IntoIterator<Item = SegmentKey>,
    ) -> Self {
        Self {
            store,
            lineage,
            keys: keys.into_iter().collect(),
            opening: VecDeque::new(),
            is_wanted: None,
            runtime: Handle::current(),
        }
    }

    /// See [`SegmentReader::only`].
    pub(crate) fn only(mut self, is_wanted: Option<IsWanted>) -> Self {
        self.is_wanted = is_wanted;
        self
    }

    /// The next segment with its header read; none after the last. Blocks.
    pub(crate) fn next(&mut self) -> Result<Option<Segment>, Error> {
        while self.opening.len() < AHEAD
            && let Some(key) = self.keys.pop_front()
        {
            let (store, object) = (self.store.clone(), SourceObject::Segment(self.lineage, key));
            let open = async move { open(&store, &object).await };
            let task = AbortOnDropHandle::new(self.runtime.spawn(open));
            self.opening.push_back((key, task));
        }
        let Some((key, task)) = self.opening.pop_front() else {
            return Ok(None);
        };
        let object = self.runtime.block_on(task)??;
        let expect = Some((self.store.id(), self.lineage, &key));
        let segment = SegmentReader::open(object.into_blocking(), expect)?;
        Ok(Some(segment.only(self.is_wanted.clone())))
    }
}
