//! A cut on its way to storage: what must be there first, then the segment.

use lastgood_proto::LineageId;
use lastgood_proto::key::{ShapeKey, SourceObject};
use lastgood_proto::manifest::ShapeFile;
use lastgood_store::{SourceStore, failpoint};

use crate::error::Error;
use crate::open_segment::SealedSegment;

/// A sealed segment and the changes of shape that must be on record before it is.
pub(crate) struct Cut {
    pub(crate) sealed: SealedSegment,
    pub(crate) changes: Vec<ShapeFile>,
}

/// Stores the changes of shape, and then the segment.
pub(crate) async fn store_cut(
    store: &SourceStore,
    lineage: LineageId,
    cut: &Cut,
) -> Result<(), Error> {
    failpoint!("seal");
    let sealed = &cut.sealed;
    let object = SourceObject::Segment(lineage, sealed.key);
    for change in &cut.changes {
        store_change(store, lineage, change).await?;
    }
    failpoint!("put.before");
    match store.put_sealed(&object, &sealed.body).await {
        // The last put of whoever was here before, which has just arrived: it says the same in other
        // bytes, and the next listing has it.
        Err(lastgood_store::Error::Conflict { .. }) => {
            let listed = sealed.key.start;
            return Err(Error::Overtaken { lineage, listed });
        }
        put => put?,
    };
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
