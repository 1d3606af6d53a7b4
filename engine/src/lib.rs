//! PostgreSQL to objects: what happens to one protected source.
//!
//! Absent on purpose: restoring, the catalog, more than one source at a time, deleting objects.

mod base;
mod cut;
mod ddl;
mod definitions;
mod error;
mod events;
mod look;
mod marks;
mod open_segment;
pub mod overlap;
mod placing;
mod point;
pub mod probe;
mod publication;
mod random;
mod record;
mod remove;
pub mod resume;
pub mod schedule;
mod settings;
mod shape;
mod source;
mod tables;
mod watch;
pub mod worker;
mod writer;

pub use base::take_base;
pub use error::{Error, chain};
pub use events::{Event, Events, SourceState, SourceStatus, Uncovered, Why};
pub use lastgood_proto::Class;
pub use marks::{Mark, Marks, Running};
pub use point::create_point;
pub use record::{record_settings, recorded_settings};
pub use remove::{Left, Removal, remove};
pub use settings::{NoIdentity, SettingsError, SourceSettings};
pub use shape::{Fingerprints, Shape};
pub use source::{
    Control, Source, Stopped, elsewhere, release_slot, run, watch_idle, watch_paused,
};
pub use writer::{Memory, Writer};
