//! A cut on its way to storage: what must be there first, then the segment.

use lastgood_proto::LineageId;
use lastgood_proto::key::{ShapeKey, SourceObject};
use lastgood_proto::manifest::ShapeFile;
use lastgood_store::SourceStore;

use crate::error::Error;
use crate::open_segment::SealedSegment;

/// A sealed segment and the changes of shape that must be on record before it is.
pub(crate) struct Cut {
    pub(crate) sealed: SealedSegment,
    pub(crate) changes: Vec<ShapeFile>,
}

/// Stores a segment. Before the first one, `alone` looks whether somebody else's stands in its place:
/// the last put of a service that was killed may arrive after its successor has made its listing,
/// and a different segment beside it would fork the lineage.
pub(crate) async fn store_cut(
    store: &SourceStore,
    lineage: LineageId,
    cut: &Cut,
    alone: bool,
) -> Result<(), Error> {
    let sealed = &cut.sealed;
    let object = SourceObject::Segment(lineage, sealed.key);
    if alone {
        let there = store.segments_from(lineage, sealed.key.start).await?;
        if there.iter().any(|entry| entry.object != object) {
            return Err(Error::Overtaken {
                lineage,
                listed: sealed.key.start,
            });
        }
    }
    for change in &cut.changes {
        store_change(store, lineage, change).await?;
    }
    store.put_sealed(&object, &sealed.body).await?;
    Ok(())
}

/// Sealing draws a new salt each time, so an attempt that did arrive is told by its content.
async fn store_change(
    store: &SourceStore,
    lineage: LineageId,
    change: &ShapeFile,
) -> Result<(), Error> {
    let (from, to) = (change.from, change.to);
    let object = SourceObject::Shape(lineage, ShapeKey { from, to });
    match store.put_json(&object, change).await {
        Err(error @ lastgood_store::Error::Conflict { .. }) => {
            let there: ShapeFile = store.get_json(&object).await?;
            match there == *change {
                true => Ok(()),
                false => Err(error.into()),
            }
        }
        result => Ok(result.map(|_| ())?),
    }
}
