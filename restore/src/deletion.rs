//! Deleting what nothing uses any more: the end of retention and of compaction.

use futures::{TryStreamExt, stream};
use lastgood_proto::key::SourceObject;
use lastgood_store::SourceStore;

use crate::Error;

/// Deletions under way at the same time.
const DELETIONS: usize = 16;

/// Safe to stop anywhere: whoever calls it goes on with what is left.
pub(crate) async fn remove(store: &SourceStore, objects: &[SourceObject]) -> Result<(), Error> {
    stream::iter(objects.iter().map(Ok))
        .try_for_each_concurrent(DELETIONS, |object| async move {
            store.delete(object).await?;
            tracing::debug!(object = store.path(object), "deleted");
            Ok(())
        })
        .await
}
