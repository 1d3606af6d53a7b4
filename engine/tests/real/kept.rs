//! What a service would keep in its catalog.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use lastgood_engine::{Error, Memory, Writer};
use lastgood_proto::{SourceId, WriterId};

/// For one source. A copy of it is a copy of a data folder.
#[derive(Default)]
pub(crate) struct Kept(Mutex<Vec<WriterId>>);

impl Kept {
    fn names(&self) -> MutexGuard<'_, Vec<WriterId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Memory for Kept {
    fn recall(&self, _: SourceId) -> BoxFuture<'_, Result<Vec<WriterId>, Error>> {
        async { Ok(self.names().clone()) }.boxed()
    }

    fn keep(&self, _: SourceId, names: Vec<WriterId>) -> BoxFuture<'_, Result<(), Error>> {
        *self.names() = names;
        async { Ok(()) }.boxed()
    }
}

impl Clone for Kept {
    fn clone(&self) -> Self {
        Self(Mutex::new(self.names().clone()))
    }
}

/// A run on a data folder.
pub(crate) fn writer(folder: &Arc<Kept>) -> Writer {
    Writer::new(Arc::<Kept>::clone(folder)).expect("random bytes for a name")
}
