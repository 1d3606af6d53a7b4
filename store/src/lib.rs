//! Object storage: the repository and everything that keeps its bytes honest.
//!
//! Invariants:
//! - An object is created once and never changed. A put of the very same bytes is success, of other
//!   bytes an error ([`Error::Conflict`]): two writers met.
//! - What a reader gets was written by a holder of the data key for exactly that object, whole and in
//!   order, or the read fails ([`Error::Corrupt`]). Nothing is cut off quietly.
//! - When a put returns, the object is durable: object stores promise it, local files are synced with
//!   their folders.
//! - Memory does not grow with an object's size.
//!
//! Absent on purpose: PostgreSQL, the format of a segment, retention's policy, any cache.

// Here, because a release build has the macro and not the module.
/// Stops here if the environment says so; `?` is applied to the outcome, a [`crate::Error`].
#[macro_export]
macro_rules! failpoint {
    ($point:literal) => {
        #[cfg(debug_assertions)]
        $crate::failpoint::pass($point).await?;
    };
}

mod backend;
mod beside;
mod config;
mod envelope;
mod error;
#[cfg(debug_assertions)]
pub mod failpoint;
mod keyring;
mod objects;
mod reader;
mod repository;
mod source;
mod spool;
mod writer;

pub use backend::Backend;
pub use beside::SealerBeside;
pub use config::{RepositoryUrl, StorageOptions};
pub use envelope::{Sealer, UnsealError};
pub use error::{Error, Result};
pub use keyring::{Encryption, MASTER_KEY_VARIABLE, MasterKey};
pub use lastgood_proto::Class;
pub use lastgood_proto::key::{Fingerprint, Form, KeyId, SourceObject};
pub use objects::{ConditionalPut, Put, SealedBody};
pub use reader::{BlockingReader, ObjectReader};
pub use repository::{DataKeyRotation, Repository, Rotation};
pub use source::{ObjectEntry, SourceStore};
pub use spool::Spool;
pub use writer::ObjectWriter;
