//! The messages. Whatever comes once per row borrows from the frame; what comes once per relation
//! is owned, because it outlives the frame.
//!
//! `Debug` of a value, a tuple or a message's content shows sizes only: row values go into no log.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::encode::{EncodeError, put_value};
use crate::cursor::Cursor;
use crate::{Lsn, Oid, PgTimestamp, Xid};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message<'a> {
    Begin(Begin),
    Commit(Commit),
    Origin(Origin<'a>),
    Relation(Relation),
    Type(Type),
    Insert(Insert<'a>),
    Update(Update<'a>),
    Delete(Delete<'a>),
    Truncate(Truncate),
    Message(LogicalMessage<'a>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// Start of the commit record (`final_lsn` in `proto.c`): never `0/0`.
    pub commit_lsn: Lsn,
    pub commit_time: PgTimestamp,
    pub xid: Xid,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Start of the commit record, as in [`Begin`].
    pub commit_lsn: Lsn,
    /// End of the commit record: streaming from here does not send the transaction again.
    pub end_lsn: Lsn,
    pub commit_time: PgTimestamp,
}

/// The transaction was replicated into the source from elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin<'a> {
    /// Commit LSN at the origin, in its WAL, not in the source's.
    pub commit_lsn: Lsn,
    pub name: &'a [u8],
}

/// Precedes the first row of a relation on a connection, and again after it may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    pub oid: Oid,
    /// Never empty: the wire's "" is `pg_catalog`.
    pub schema: String,
    pub table: String,
    pub identity: ReplicaIdentity,
    pub columns: Vec<Column>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_oid: Oid,
    /// `atttypmod`; -1 for none.
    pub type_modifier: i32,
    /// Part of the replica identity.
    pub key: bool,
}

/// What an UPDATE or DELETE says of the old row (`pg_class.relreplident`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReplicaIdentity {
    /// The primary key, if there is one.
    Default,
    Nothing,
    Full,
    Index,
}

/// Announces a type that is not built in. For a domain it names the base type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Type {
    pub oid: Oid,
    /// Never empty: the wire's "" is `pg_catalog`.
    pub schema: String,
    pub name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insert<'a> {
    pub relation: Oid,
    pub new: Tuple<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update<'a> {
    pub relation: Oid,
    pub old: OldTuple<'a>,
    pub new: Tuple<'a>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delete<'a> {
    pub relation: Oid,
    /// Never [`OldTuple::None`].
    pub old: OldTuple<'a>,
}

/// The old row as far as the replica identity has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OldTuple<'a> {
    /// An UPDATE that left the key alone: the key is in the new row.
    None,
    /// The key columns; every other column is null, which here means "not sent".
    Key(Tuple<'a>),
    /// The whole row.
    Full(Tuple<'a>),
}

/// One TRUNCATE, of all its published relations together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Truncate {
    /// Never empty.
    pub relations: Vec<Oid>,
    pub cascade: bool,
    pub restart_identity: bool,
}

/// `pg_logical_emit_message`: bytes of anybody's making.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct LogicalMessage<'a> {
    /// Part of the transaction around it; else it stands between transactions.
    pub transactional: bool,
    pub lsn: Lsn,
    /// In the client encoding.
    pub prefix: &'a [u8],
    /// In no particular encoding.
    pub content: &'a [u8],
}

/// A row: a view of the frame, checked when it was decoded.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tuple<'a> {
    columns: u16,
    bytes: &'a [u8],
}

/// A column's value in the row it belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    /// A TOASTed value that the UPDATE did not touch and the server did not send.
    Unchanged,
    /// PostgreSQL's text form, in the client encoding.
    Text(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// `bytes` must be `columns` whole values; the decoder and [`TupleBuf`] see to it.
    pub(super) const fn from_checked(columns: u16, bytes: &'a [u8]) -> Self {
        Self { columns, bytes }
    }

    /// How many columns the row has.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.columns)
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.columns == 0
    }

    /// The values, in the order of the relation's columns.
    #[must_use]
    pub const fn iter(&self) -> Values<'a> {
        Values {
            left: self.columns,
            cursor: Cursor::new(self.bytes),
        }
    }

    pub(super) const fn wire(&self) -> (u16, &'a [u8]) {
        (self.columns, self.bytes)
    }
}

impl<'a> IntoIterator for Tuple<'a> {
    type Item = Value<'a>;
    type IntoIter = Values<'a>;

    fn into_iter(self) -> Values<'a> {
        self.iter()
    }
}

/// The values of a [`Tuple`].
#[derive(Clone)]
pub struct Values<'a> {
    left: u16,
    cursor: Cursor<'a>,
}

impl<'a> Iterator for Values<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Value<'a>> {
        self.left = self.left.checked_sub(1)?;
        // Checked at decode: an error cannot happen, and would end the row too early, which every
        // consumer notices because it counts columns.
        super::decode::value(&mut self.cursor).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (usize::from(self.left), Some(usize::from(self.left)))
    }
}

impl ExactSizeIterator for Values<'_> {}

/// A row that owns its bytes: for simulated servers and tests.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct TupleBuf {
    columns: u16,
    bytes: Vec<u8>,
}

impl TupleBuf {
    /// # Errors
    /// More columns than the wire can count, or a value too long for it.
    pub fn new<'v>(values: impl IntoIterator<Item = Value<'v>>) -> Result<Self, EncodeError> {
        let mut row = Self::default();
        for value in values {
            row.columns = row
                .columns
                .checked_add(1)
                .ok_or(EncodeError::TooLong { what: "tuple" })?;
            put_value(&value, &mut row.bytes)?;
        }
        Ok(row)
    }

    #[must_use]
    pub fn as_tuple(&self) -> Tuple<'_> {
        Tuple::from_checked(self.columns, &self.bytes)
    }
}

impl fmt::Debug for TupleBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_tuple().fmt(f)
    }
}

impl fmt::Debug for Tuple<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Unchanged => f.write_str("unchanged"),
            Self::Text(text) => write!(f, "{} bytes", text.len()),
        }
    }
}

impl fmt::Debug for LogicalMessage<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogicalMessage")
            .field("transactional", &self.transactional)
            .field("lsn", &self.lsn)
            .field("prefix", &String::from_utf8_lossy(self.prefix))
            .field("content_bytes", &self.content.len())
            .finish()
    }
}
