//! One merged segment: made, stored, read back, compared.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::Path;

use lastgood_proto::key::{SegmentKey, SegmentKind, SourceObject};
use lastgood_proto::segment::{Content, ContentReader, Header, Merger};
use lastgood_proto::{Class, LineageId, Lsn};
use lastgood_store::{SealedBody, Sealer, SourceStore, Spool};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::Error;
use crate::segments::{Segment, Segments};

/// zstd's default: what is gained is gained by the larger frame, and capture may need the processor.
const LEVEL: i32 = 3;

/// A merged segment that is to be stored.
pub(super) struct Merged {
    pub(super) key: SegmentKey,
    /// What it was made of.
    pub(super) parts: Vec<SegmentKey>,
    body: SealedBody,
    content: Content,
}

impl Merged {
    /// Creates the object, and reads it back. One of ours that does not say what its parts do is
    /// taken away again: they are all still there.
    pub(super) async fn store(&self, store: &SourceStore, lineage: LineageId) -> Result<(), Error> {
        let object = SourceObject::Segment(lineage, self.key);
        let is_ours = match store.put_sealed(&object, &self.body).await {
            Ok(_) => true,
            // Sealed twice, the same text makes different bytes: another service was as quick.
            Err(lastgood_store::Error::Conflict { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        let keys = vec![self.key];
        let error = match content(store, lineage, keys, ContentReader::new()).await {
            Ok(content) if content == self.content => return Ok(()),
            Ok(_) => differing(store, lineage, self.key),
            Err(error) => error,
        };
        // What another one made is not ours to delete: its parts may be gone already.
        if is_ours && error.class() == Class::Corrupt {
            store.delete(&object).await?;
        }
        Err(error)
    }

    pub(super) fn stored_bytes(&self) -> u64 {
        self.body.bytes()
    }
}

/// Makes one segment of each stretch of `parts` that can be one: a change of the server's version or
/// of the encoding is never within one.
pub(super) async fn merge(
    store: &SourceStore,
    lineage: LineageId,
    parts: &[SegmentKey],
    spool: &Path,
) -> Result<Vec<Merged>, Error> {
    let (stop, _stops) = stop();
    let (store, spool) = (store.clone(), spool.to_owned());
    let mut segments = Segments::new(store.clone(), lineage, parts.iter().copied());
    let mut keys: VecDeque<SegmentKey> = parts.iter().copied().collect();
    let work = move || {
        let mut made = Vec::new();
        let mut open: Option<Open> = None;
        // Read only if what comes next can be joined to it.
        let mut held: Option<(SegmentKey, Segment)> = None;
        while let (Some(key), Some(segment)) = (keys.pop_front(), segments.next()?) {
            if stop.is_cancelled() {
                return Err(Error::Cancelled);
            }
            if let Some((key, before)) = held.take() {
                let goes_on = segment.header().joins(before.header());
                if goes_on && open.is_none() {
                    open = Some(Open::new(&store, lineage, before.header(), &spool)?);
                }
                if let Some(open) = &mut open {
                    open.take(key, before)?;
                }
                if !goes_on {
                    made.extend(open.take().map(Open::seal).transpose()?);
                }
            }
            held = Some((key, segment));
        }
        if let (Some(mut open), Some((key, last))) = (open, held) {
            open.take(key, last)?;
            made.push(open.seal()?);
        }
        Ok(made)
    };
    tokio::task::spawn_blocking(work).await?
}

/// Dropped with whoever waits for the work.
fn stop() -> (CancellationToken, DropGuard) {
    let stop = CancellationToken::new();
    let guard = stop.clone().drop_guard();
    (stop, guard)
}

/// A merged segment in the making.
struct Open {
    merger: Merger<Sealer<Spool>>,
    start: Lsn,
    parts: Vec<SegmentKey>,
}

impl Open {
    fn new(
        store: &SourceStore,
        lineage: LineageId,
        header: &Header,
        spool: &Path,
    ) -> Result<Self, Error> {
        // Only kind, lineage and start bind the body.
        let key = SegmentKey {
            start: header.start,
            end: header.start,
            max_commit_time: None,
            observed_through: None,
            kind: SegmentKind::Merged,
        };
        let object = SourceObject::Segment(lineage, key);
        let sealer = store.sealer(&object, Spool::new(spool.to_owned()), LEVEL)?;
        Ok(Self {
            merger: Merger::new(sealer, header)?,
            start: header.start,
            parts: Vec::new(),
        })
    }

    fn take(&mut self, key: SegmentKey, segment: Segment) -> Result<(), Error> {
        self.merger.take(segment)?;
        self.parts.push(key);
        Ok(())
    }

    fn seal(self) -> Result<Merged, Error> {
        let (sealer, footer, content) = self.merger.finish()?;
        let spool = sealer.finish().map_err(Error::Scratch)?;
        Ok(Merged {
            key: SegmentKey {
                kind: SegmentKind::Merged,
                ..footer.key(self.start)
            },
            parts: self.parts,
            body: spool.into_body(),
            content,
        })
    }
}

/// What segments say together, each read to its verified end.
async fn content(
    store: &SourceStore,
    lineage: LineageId,
    keys: Vec<SegmentKey>,
    mut content: ContentReader,
) -> Result<Content, Error> {
    let (stop, _stops) = stop();
    let mut segments = Segments::new(store.clone(), lineage, keys);
    let work = move || {
        while let Some(segment) = segments.next()? {
            if stop.is_cancelled() {
                return Err(Error::Cancelled);
            }
            content.read(segment)?;
        }
        Ok(content.finish())
    };
    tokio::task::spawn_blocking(work).await?
}

/// Reads a merged segment to its end and compares it with its parts: all that they say, or if some of
/// them are gone already or another service's, every transaction of them.
///
/// # Errors
/// [`Error::Merged`] if it says something else than they do.
pub async fn same_content(
    store: &SourceStore,
    lineage: LineageId,
    merged: SegmentKey,
    parts: &[SegmentKey],
) -> Result<(), Error> {
    let whole = parts
        .first()
        .is_some_and(|first| first.start == merged.start)
        && parts.last().is_some_and(|last| last.end == merged.end)
        && parts
            .windows(2)
            .all(|pair| matches!(pair, [a, b] if a.end == b.start));
    let ranges: Vec<Range<Lsn>> = parts.iter().map(|key| key.start..key.end).collect();
    let whole = whole.then(ContentReader::new);
    let readers = whole
        .into_iter()
        .chain([ContentReader::of_transactions(ranges)]);
    for reader in readers {
        let said = content(store, lineage, vec![merged], reader.clone()).await?;
        if content(store, lineage, parts.to_vec(), reader).await? == said {
            return Ok(());
        }
    }
    Err(differing(store, lineage, merged))
}

fn differing(store: &SourceStore, lineage: LineageId, merged: SegmentKey) -> Error {
    Error::Merged {
        path: store.path(&SourceObject::Segment(lineage, merged)),
    }
}
