//! Objects → PostgreSQL: choose what a target needs, then bring it back.
//!
//! [`plan`] is a pure choice over a listing, made exact by opening the segment the target falls
//! into; it never connects to a server. [`execute`] does what the plan says: the base's rows with what
//! the captured transactions come to merged in, or followed by each of them in commit order, then
//! indexes, constraints and sequences. A repository and its key are all that is needed: nothing here knows the service or
//! its catalog.
//!
//! Invariants: a restore equals the source at the target or fails; nothing is ever skipped to get
//! on; the target database is new or empty, and never the source itself; or one that exists gets a new
//! schema with some tables, whole or not at all.
//!
//! Absent: schema changes inside a window (a relation that no longer fits its table is an error).

mod apply;
mod archive;
mod batch;
#[cfg(feature = "bench")]
pub mod bench;
mod binding;
mod boundary;
mod catalog;
mod changes;
mod choose;
mod columns;
mod compaction;
mod copy_text;
mod deletion;
mod demands;
mod destination;
mod error;
mod execute;
mod existing;
mod foreign_keys;
mod gather;
mod identity;
mod indexes;
mod lanes;
mod leftover;
mod locale;
mod lock;
mod merge;
mod net;
mod ownership;
mod partial;
mod plan;
mod progress_table;
mod prune;
mod relations;
mod relay;
mod replay;
mod report;
mod retention;
mod rows;
mod segments;
mod selection;
mod sequences;
mod settings;
mod sql;
mod statements;
mod survey;
mod target;
#[cfg(test)]
mod testing;
mod tool_errors;
mod transactions;
mod window;

pub use boundary::{TableChanges, Transaction};
pub use compaction::{Compaction, CompactionOptions, Made, Parts, compact, same_content};
pub use error::{Error, Outside, Place};
pub use execute::{Interrupt, Into, Options, Replay, check, execute, unfinished};
pub use ownership::missing_roles;
pub use partial::{LeftOut, Partial, PartialTable};
pub use plan::{NotCovered, Plan, PlanOptions, PlannedBase, PlannedSegment, Stop, plan};
pub use report::{Phase, PhaseTime, Progress, Report};
pub use retention::{Held, Pass, Pending, Unneeded, pass};
pub use selection::{TableName, split_list, written};
pub use survey::{BaseInfo, Survey};
pub use target::{ParseTargetError, Target, TargetKind};
pub use transactions::{TransactionFilter, transactions};
pub use window::{Gap, Moment, Window};
