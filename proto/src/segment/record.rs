//! What a segment says: what the reader yields and what header and footer hold.
//!
//! `Debug` of a message shows its size only: what an application sends goes into no log.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::key::{SegmentKey, SegmentKind};
use crate::pgoutput::{self, ReplicaIdentity};
use crate::{Digest, LineageId, Lsn, Oid, PgTimestamp, SourceId, Xid};

/// The first record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub source: SourceId,
    pub lineage: LineageId,
    /// End of the segment before, or start of the lineage.
    pub start: Lsn,
    /// `server_version_num` of the source.
    pub server: u32,
    /// What the bytes of values are in, by PostgreSQL's name. None in version 1: UTF8, or SQL_ASCII
    /// for a source in SQL_ASCII.
    pub encoding: Option<String>,
}

/// Every record between header and footer, with rows in one form or another. Small, for there is one to each row,
/// handed from one to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Record<R> {
    Relation(Box<RelationRecord>),
    Begin {
        xid: Xid,
        /// The commit LSN: start of the commit record.
        lsn: Lsn,
        time: PgTimestamp,
        /// Of one that was replicated into the source, whose own commit time is not known: it was
        /// committed at or after `time`, and at or before this.
        until: Option<PgTimestamp>,
    },
    Insert {
        rel: Oid,
        new: R,
    },
    Update {
        rel: Oid,
        old: Old<R>,
        new: R,
    },
    Delete {
        rel: Oid,
        /// Never [`Old::None`].
        old: Old<R>,
    },
    Truncate {
        /// Never empty.
        rels: Vec<Oid>,
        cascade: bool,
        restart_identity: bool,
    },
    Message(Box<MessageRecord>),
    Sequences {
        /// Sampled at or after this position, which may lie beyond the segment's end.
        lsn: Lsn,
        samples: Vec<SequenceSample>,
    },
    Commit {
        lsn: Lsn,
        end: Lsn,
    },
}

impl<R> Record<R> {
    /// The same with rows in another form.
    pub fn map<T>(self, mut form: impl FnMut(R) -> T) -> Record<T> {
        match self {
            Self::Insert { rel, new } => Record::Insert {
                rel,
                new: form(new),
            },
            Self::Update { rel, old, new } => Record::Update {
                rel,
                old: old.map(&mut form),
                new: form(new),
            },
            Self::Delete { rel, old } => Record::Delete {
                rel,
                old: old.map(form),
            },
            Self::Relation(relation) => Record::Relation(relation),
            Self::Begin {
                xid,
                lsn,
                time,
                until,
            } => Record::Begin {
                xid,
                lsn,
                time,
                until,
            },
            Self::Truncate {
                rels,
                cascade,
                restart_identity,
            } => Record::Truncate {
                rels,
                cascade,
                restart_identity,
            },
            Self::Message(message) => Record::Message(message),
            Self::Sequences { lsn, samples } => Record::Sequences { lsn, samples },
            Self::Commit { lsn, end } => Record::Commit { lsn, end },
        }
    }
}

/// How the rows that follow are to be read, until the same relation comes again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelationRecord {
    pub rel: Oid,
    pub schema: String,
    pub table: String,
    pub identity: ReplicaIdentity,
    pub columns: Vec<ColumnRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ColumnRecord {
    pub name: String,
    /// Printable, for people: a restore goes by the target's own catalog.
    #[serde(rename = "type")]
    pub type_name: String,
    #[serde(rename = "oid")]
    pub type_oid: Oid,
    #[serde(rename = "mod")]
    pub type_modifier: i32,
    /// Part of the replica identity.
    pub key: bool,
}

impl RelationRecord {
    /// `type_names` are in the order of the columns, one each: checked by the writer.
    #[must_use]
    pub fn new(relation: &pgoutput::Relation, type_names: &[String]) -> Self {
        let columns = relation.columns.iter().zip(type_names);
        Self {
            rel: relation.oid,
            schema: relation.schema.clone(),
            table: relation.table.clone(),
            identity: relation.identity,
            columns: columns
                .map(|(column, type_name)| ColumnRecord {
                    name: column.name.clone(),
                    type_name: type_name.clone(),
                    type_oid: column.type_oid,
                    type_modifier: column.type_modifier,
                    key: column.key,
                })
                .collect(),
        }
    }
}

/// The old row of an UPDATE or DELETE as far as the replica identity has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Old<R> {
    /// An UPDATE that left the key alone: the key is in the new row.
    None,
    /// The key columns; every other value is null, which here means "not sent".
    Key(R),
    /// The whole row.
    Full(R),
}

impl<R> Old<R> {
    pub const fn as_ref(&self) -> Old<&R> {
        match self {
            Self::None => Old::None,
            Self::Key(key) => Old::Key(key),
            Self::Full(row) => Old::Full(row),
        }
    }

    /// The same in another form.
    pub fn map<T>(self, form: impl FnOnce(R) -> T) -> Old<T> {
        match self {
            Self::None => Old::None,
            Self::Key(key) => Old::Key(form(key)),
            Self::Full(row) => Old::Full(form(row)),
        }
    }
}

/// `pg_logical_emit_message`.
#[derive(Clone, PartialEq, Eq)]
pub struct MessageRecord {
    /// Part of the transaction around it; else it stands between transactions.
    pub transactional: bool,
    pub lsn: Lsn,
    pub prefix: Vec<u8>,
    pub content: Vec<u8>,
}

impl fmt::Debug for MessageRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageRecord")
            .field("transactional", &self.transactional)
            .field("lsn", &self.lsn)
            .field("prefix", &String::from_utf8_lossy(&self.prefix))
            .field("content_bytes", &self.content.len())
            .finish()
    }
}

/// A sequence's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceSample {
    pub schema: String,
    pub name: String,
    pub last_value: String,
    pub is_called: bool,
}

/// The last record: what a reader holds against what it read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Footer {
    /// Every transaction that ends at or below it, and begins its commit record at or above the
    /// header's start, is inside.
    pub end: Lsn,
    pub transactions: u64,
    /// None if there is no transaction.
    pub commit_times: Option<CommitTimes>,
    /// The server's clock up to which this segment and those before it hold every commit.
    pub observed_through: Option<PgTimestamp>,
    /// One entry for each relation that is described, rows or not.
    pub rows: BTreeMap<Oid, RowCounts>,
    /// Of NDJSON before the footer.
    pub bytes: u64,
    /// SHA-256 of these bytes.
    pub sha256: Digest,
}

impl Footer {
    /// The key of the captured segment that begins at `start` and ends with this footer.
    #[must_use]
    pub fn key(&self, start: Lsn) -> SegmentKey {
        SegmentKey {
            start,
            end: self.end,
            max_commit_time: self.commit_times.map(|times| times.max),
            observed_through: self.observed_through,
            kind: SegmentKind::Captured,
        }
    }
}

/// Commit times do not rise with the commit LSN, so these need not be the first and the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitTimes {
    pub min: PgTimestamp,
    pub max: PgTimestamp,
}

impl CommitTimes {
    /// The range that also holds `time`.
    pub(super) fn extend(range: Option<Self>, time: PgTimestamp) -> Self {
        let range = range.unwrap_or(Self {
            min: time,
            max: time,
        });
        Self {
            min: range.min.min(time),
            max: range.max.max(time),
        }
    }
}

/// Rows of one relation; in the footer `[inserts, updates, deletes, truncates]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(from = "[u64; 4]", into = "[u64; 4]")]
pub struct RowCounts {
    pub inserts: u64,
    pub updates: u64,
    pub deletes: u64,
    pub truncates: u64,
}

impl RowCounts {
    pub(super) fn add(&mut self, other: &Self) {
        self.inserts = self.inserts.saturating_add(other.inserts);
        self.updates = self.updates.saturating_add(other.updates);
        self.deletes = self.deletes.saturating_add(other.deletes);
        self.truncates = self.truncates.saturating_add(other.truncates);
    }
}

impl From<[u64; 4]> for RowCounts {
    fn from([inserts, updates, deletes, truncates]: [u64; 4]) -> Self {
        Self {
            inserts,
            updates,
            deletes,
            truncates,
        }
    }
}

impl From<RowCounts> for [u64; 4] {
    fn from(counts: RowCounts) -> Self {
        [
            counts.inserts,
            counts.updates,
            counts.deletes,
            counts.truncates,
        ]
    }
}
