//! pgoutput, protocol version 1, text format, without streaming: every transaction arrives whole,
//! committed and in commit order.
//!
//! Source: PostgreSQL's "Logical Replication Message Formats" and `proto.c`. Deliberately absent:
//! streamed and prepared transactions (protocol 2 and up) and binary values; their messages are
//! unknown here and therefore errors.

mod decode;
mod encode;
mod message;

pub use decode::{decode, decode_in};
pub use encode::{EncodeError, encode};
pub use message::{
    Begin, Column, Commit, Delete, Insert, LogicalMessage, Message, OldTuple, Origin, Relation,
    ReplicaIdentity, Truncate, Tuple, TupleBuf, Type, Update, Value, Values,
};
