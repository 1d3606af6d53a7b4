//! Long work: bases on schedule or on request, restores, retention, compaction. A job outlives the request that asked for
//! it, is told in the catalog, and is waited for at a shutdown.

pub(crate) mod bases;
pub(crate) mod compaction;
mod due;
pub(crate) mod restores;
pub(crate) mod retention;

pub(crate) use bases::BaseJobs;
pub(crate) use restores::RestoreJobs;
