//! PostgreSQL to objects: what happens to one protected source.
//!
//! Absent on purpose: restoring, the catalog, more than one source at a time, deleting objects.

pub mod schedule;
mod settings;

pub use settings::{NoIdentity, SettingsError, SourceSettings};
