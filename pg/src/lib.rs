//! Connections to PostgreSQL: connection strings, TLS, SQL sessions, the replication stream,
//! slots, publications, and the client tools.
//!
//! Everything that touches a server touches it through here, under one set of pinned settings
//! ([`PINNED_SETTINGS`]), so that a value is written and read as the same text everywhere. No
//! password ever leaves this crate but towards a server or a child process.
//!
//! Absent: any notion of a lineage, a segment or a restore; what is done with the bytes is decided
//! above.

mod auth;
mod config;
mod connect;
pub mod dump;
mod error;
mod loan;
mod locale;
mod percent;
pub mod publication;
pub mod quote;
mod replication;
mod settings;
pub mod slot;
mod socket;
mod sqlstate;
mod tls;
mod transport;
mod version;
mod wire;

pub use config::{
    ChannelBinding, ConfigError, ConnectionConfig, Host, SslMode, SslNegotiation,
    TargetSessionAttrs,
};
pub use connect::{Canceller, Purpose, Session};
pub use dump::{PgTools, ToolError};
pub use error::{AuthFailure, Error, Operation, ServerError};
pub use loan::Loan;
pub use replication::{
    CreatedSlot, ReplicationConnection, ReplicationOptions, ReplicationStream, SimpleRow, SlotKind,
    SystemIdentity,
};
pub use settings::PINNED_SETTINGS;
pub use sqlstate::{Condition, class_of};
pub use tls::TlsError;
