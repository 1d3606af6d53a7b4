//! A cut on its way to storage: what must be there first, then the segment.

use lastgood_proto::LineageId;
use lastgood_proto::key::{ShapeKey, SourceObject};
use lastgood_proto::manifest::{DdlFile, ShapeFile};
use lastgood_store::{SourceStore, failpoint};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, chain};
use crate::open_segment::SealedSegment;

/// A sealed segment and the changes of shape that must be on record before it is.
pub(crate) struct Cut {
    pub(crate) sealed: SealedSegment,
    pub(crate) changes: Vec<ShapeFile>,
    /// Where exactly changes lie that end within the segment. Windows gain by it; nothing depends on it.
    pub(crate) placed: Vec<DdlFile>,
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
        let (from, to) = (change.from, change.to);
        let object = SourceObject::Shape(lineage, ShapeKey { from, to });
        store_once(store, &object, change).await?;
    }
    for placed in &cut.placed {
        let (from, to) = (placed.from, placed.to);
        let object = SourceObject::Ddl(lineage, ShapeKey { from, to });
        if let Err(error) = store_once(store, &object, placed).await {
            let error = chain(&error);
            tracing::warn!(error, "where a change of shape lies is not on record");
        }
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
async fn store_once<T>(store: &SourceStore, object: &SourceObject, file: &T) -> Result<(), Error>
where
    T: Serialize + DeserializeOwned + PartialEq,
{
    match store.put_json(object, file).await {
        Err(error @ lastgood_store::Error::Conflict { .. }) => {
            let there: T = store.get_json(object).await?;
            match there == *file {
                true => Ok(()),
                false => Err(error.into()),
            }
        }
        result => Ok(result.map(|_| ())?),
    }
}
