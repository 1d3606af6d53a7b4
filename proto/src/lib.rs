//! Bytes and names: everything that has a fixed form on the wire or in the repository.
//!
//! No I/O, no clock, no randomness, no async: so this crate can be fuzzed, property-tested and
//! trusted. Whatever reads bytes here never panics, never allocates what its input merely
//! announces, and fails closed on anything unknown.

#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

mod class;
pub mod copy_both;
pub mod cursor;
mod digest;
pub mod encoding;
mod ids;
pub mod key;
pub mod listing;
mod lsn;
pub mod manifest;
pub mod pgoutput;
mod retention;
pub mod segment;
pub mod text;
mod time;
pub mod word;

pub use class::Class;
pub use digest::{Digest, Sha256};
pub use ids::{
    BaseId, LineageId, Oid, ParseIdError, RepositoryId, SourceId, SystemId, TimelineId, WriterId,
    Xid,
};
pub use lsn::{Lsn, ParseLsnError};
pub use retention::{ParseRetentionError, Retention};
pub use time::{ParseTimeError, PgTimestamp};
