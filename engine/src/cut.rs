//! A cut on its way to storage: what must be there first, then the segment.

use std::collections::BTreeSet;

use lastgood_proto::key::{ShapeKey, SourceObject};
use lastgood_proto::manifest::ShapeFile;
use lastgood_proto::{LineageId, Lsn};
use lastgood_store::{SourceStore, failpoint};

use crate::error::Error;
use crate::open_segment::SealedSegment;

/// A sealed segment and the changes of shape that must be on record before it is.
pub(crate) struct Cut {
    pub(crate) sealed: SealedSegment,
    pub(crate) changes: Vec<ShapeFile>,
}

/// Stores a segment. `since` looks first whether somebody else's has begun where one of ours does,
/// from there on: the last put of a service that was killed may arrive after its successor has made
/// its listing, and what follows such a fork is never restored.
pub(crate) async fn store_cut(
    store: &SourceStore,
    lineage: LineageId,
    cut: &Cut,
    since: Option<Lsn>,
) -> Result<(), Error> {
    failpoint!("seal");
    let sealed = &cut.sealed;
    let object = SourceObject::Segment(lineage, sealed.key);
    if let Some(since) = since {
        let there = store.segments_from(lineage, since).await?;
        let mut starts = BTreeSet::from([sealed.key.start]);
        for key in there.iter().filter_map(|entry| match &entry.object {
            other @ SourceObject::Segment(_, key) if *other != object => Some(key),
            _ => None,
        }) {
            if !starts.insert(key.start) {
                return Err(Error::Overtaken {
                    lineage,
                    listed: key.start,
                });
            }
        }
    }
    for change in &cut.changes {
        store_change(store, lineage, change).await?;
    }
    failpoint!("put.before");
    store.put_sealed(&object, &sealed.body).await?;
    failpoint!("put.after");
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
