//! Messages to lines. Refuses whatever may not stand where it comes, so that every finished segment
//! can be read. Rows are written straight from the frame: no allocation per row.

use std::io::{self, Write};

use super::ledger::{Change, Ledger, Refusal};
use super::line::{
    BeginLine, CommitLine, FooterLine, HeaderLine, RelationLine, SequencesLine, Tag, TruncateLine,
};
use super::reader::enter;
use super::record::{Footer, Header, Record, RelationRecord, SequenceSample};
use super::row::Row;
use super::sink::LineSink;
use super::{LINE_BYTES_MAX, version};
use crate::pgoutput::{
    Begin, Commit, Delete, Insert, LogicalMessage, OldTuple, Relation, Truncate, Tuple, Update,
    Value,
};
use crate::{Class, Lsn, Oid, PgTimestamp};

/// A segment in the making. After an error it can only be dropped.
pub struct SegmentWriter<W: Write> {
    lines: LineSink<W>,
    ledger: Ledger,
    /// Set while a line is written, so it stays set when one could not be finished: no other line
    /// may follow half of one.
    within_line: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    #[error("cannot write the segment")]
    Sink(#[from] io::Error),
    #[error("the segment would be unreadable")]
    Refused(#[from] Refusal),
    #[error("the segment was given up after an earlier error")]
    Unusable,
}

impl WriteError {
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Sink(_) => Class::Transient,
            Self::Refused(_) | Self::Unusable => Class::Corrupt,
        }
    }
}

impl<W: Write> SegmentWriter<W> {
    pub fn new(sink: W, header: &Header) -> Result<Self, WriteError> {
        let mut writer = Self {
            lines: LineSink::new(sink),
            ledger: Ledger::new(header.start),
            within_line: false,
        };
        writer.line(|lines| {
            lines.json(&HeaderLine {
                t: Tag,
                v: version(header),
                source: header.source,
                lineage: header.lineage,
                start: header.start,
                server: header.server,
                encoding: header.encoding.clone(),
            })
        })?;
        Ok(writer)
    }

    /// Describes a relation; `type_names` are printable names of its columns' types, in order.
    /// Needed before its first row or truncate in this segment, and again when it has changed.
    pub fn relation(
        &mut self,
        relation: &Relation,
        type_names: &[String],
    ) -> Result<(), WriteError> {
        if relation.columns.len() != type_names.len() {
            return Err(WriteError::Refused(Refusal::TypeNames {
                rel: relation.oid,
                columns: relation.columns.len(),
                names: type_names.len(),
            }));
        }
        let record = RelationRecord::new(relation, type_names);
        self.ledger.relation(record.rel, record.columns.len());
        self.line(|lines| {
            lines.json(&RelationLine {
                t: Tag,
                rel: record.rel,
                schema: record.schema,
                table: record.table,
                identity: record.identity,
                columns: record.columns,
            })
        })
    }

    pub fn begin(&mut self, begin: &Begin) -> Result<(), WriteError> {
        self.begin_between(begin, None)
    }

    /// As [`Self::begin`], of a transaction that was replicated into the source: it was committed at
    /// or after its commit time, and at or before `until`.
    pub fn begin_between(
        &mut self,
        begin: &Begin,
        until: Option<PgTimestamp>,
    ) -> Result<(), WriteError> {
        self.ledger
            .begin(begin.commit_lsn, begin.commit_time, until)?;
        self.line(|lines| {
            lines.json(&BeginLine {
                t: Tag,
                xid: begin.xid,
                lsn: begin.commit_lsn,
                time: begin.commit_time,
                until,
            })
        })
    }

    pub fn insert(&mut self, insert: &Insert<'_>) -> Result<(), WriteError> {
        let rel = insert.relation;
        let new = insert.new.len();
        self.ledger.change(rel, Change::Insert { new })?;
        self.line(|lines| {
            lines.raw(b"{\"t\":\"I\",\"rel\":");
            lines.json(&rel)?;
            row(lines, b",\"new\":[", &insert.new, Toast::Sent(rel))?;
            lines.raw(b"}");
            Ok::<_, WriteError>(())
        })
    }

    pub fn update(&mut self, update: &Update<'_>) -> Result<(), WriteError> {
        let rel = update.relation;
        let change = Change::Update {
            old: columns(&update.old),
            new: update.new.len(),
        };
        self.ledger.change(rel, change)?;
        self.line(|lines| {
            lines.raw(b"{\"t\":\"U\",\"rel\":");
            lines.json(&rel)?;
            old_row(lines, rel, &update.old)?;
            row(lines, b",\"new\":[", &update.new, Toast::MayBeUnchanged)?;
            lines.raw(b"}");
            Ok::<_, WriteError>(())
        })
    }

    pub fn delete(&mut self, delete: &Delete<'_>) -> Result<(), WriteError> {
        let rel = delete.relation;
        let old = columns(&delete.old).ok_or(Refusal::DeleteWithoutOld(rel))?;
        self.ledger.change(rel, Change::Delete { old })?;
        self.line(|lines| {
            lines.raw(b"{\"t\":\"D\",\"rel\":");
            lines.json(&rel)?;
            old_row(lines, rel, &delete.old)?;
            lines.raw(b"}");
            Ok::<_, WriteError>(())
        })
    }

    /// All relations of one TRUNCATE must have been described.
    pub fn truncate(&mut self, truncate: &Truncate) -> Result<(), WriteError> {
        self.ledger.truncate(&truncate.relations)?;
        self.line(|lines| {
            lines.json(&TruncateLine {
                t: Tag,
                rels: truncate.relations.clone(),
                cascade: truncate.cascade,
                restart_identity: truncate.restart_identity,
            })
        })
    }

    pub fn message(&mut self, message: &LogicalMessage<'_>) -> Result<(), WriteError> {
        self.ledger.message(message.transactional)?;
        self.line(|lines| {
            lines.raw(b"{\"t\":\"M\",\"transactional\":");
            lines.json(&message.transactional)?;
            lines.raw(b",\"lsn\":");
            lines.json(&message.lsn)?;
            lines.raw(b",\"prefix\":");
            lines.text(message.prefix)?;
            lines.raw(b",\"content\":");
            lines.text(message.content)?;
            lines.raw(b"}");
            Ok::<_, WriteError>(())
        })
    }

    /// Sequences as they were at or after `lsn`; between transactions only.
    pub fn sequences(&mut self, lsn: Lsn, samples: &[SequenceSample]) -> Result<(), WriteError> {
        self.ledger.sequences()?;
        let sequences = samples.iter().cloned();
        self.line(|lines| {
            lines.json(&SequencesLine {
                t: Tag,
                lsn,
                sequences: sequences
                    .map(|one| (one.schema, one.name, one.last_value, one.is_called))
                    .collect(),
            })
        })
    }

    pub fn commit(&mut self, commit: &Commit) -> Result<(), WriteError> {
        let Commit {
            commit_lsn,
            end_lsn,
            commit_time,
        } = *commit;
        self.ledger.commit(commit_lsn, end_lsn, Some(commit_time))?;
        self.line(|lines| {
            lines.json(&CommitLine {
                t: Tag,
                lsn: commit_lsn,
                end: end_lsn,
            })
        })
    }

    /// A record as another segment has it; `line` is where it was read.
    pub(super) fn copy(&mut self, record: &Record<Row<'_>>, line: &[u8]) -> Result<(), WriteError> {
        enter(&mut self.ledger, record, |row| *row)?;
        let text = line.strip_suffix(b"\n").unwrap_or(line);
        self.line(|lines| lines.copy(text))
    }

    /// Bytes of NDJSON so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.lines.bytes()
    }

    /// Whole transactions so far.
    #[must_use]
    pub const fn transactions(&self) -> u64 {
        self.ledger.transactions()
    }

    #[must_use]
    pub const fn in_transaction(&self) -> bool {
        self.ledger.in_transaction()
    }

    /// Whether the relation has been described in this segment.
    #[must_use]
    pub fn is_relation_known(&self, relation: Oid) -> bool {
        self.ledger.knows(relation)
    }

    /// End LSN of the last whole transaction, else the segment's start: the least end possible.
    #[must_use]
    pub const fn last_end(&self) -> Lsn {
        self.ledger.floor()
    }

    /// Writes the footer and hands the sink back, everything written to it, not flushed.
    pub fn finish(
        mut self,
        end: Lsn,
        observed_through: Option<PgTimestamp>,
    ) -> Result<(W, Footer), WriteError> {
        let (bytes, sha256) = (self.lines.bytes(), self.lines.digest());
        let footer = self.ledger.finish(end, observed_through, bytes, sha256)?;
        self.line(|lines| lines.json(&FooterLine::from(&footer)))?;
        Ok((self.lines.finish()?, footer))
    }

    /// One line, whole or never followed by another.
    fn line<E>(
        &mut self,
        write: impl FnOnce(&mut LineSink<W>) -> Result<(), E>,
    ) -> Result<(), WriteError>
    where
        WriteError: From<E>,
    {
        if self.within_line {
            return Err(WriteError::Unusable);
        }
        self.within_line = true;
        let start = self.lines.bytes();
        write(&mut self.lines)?;
        self.lines.end_line()?;
        if self.lines.bytes().saturating_sub(start) > LINE_BYTES_MAX {
            return Err(WriteError::Refused(Refusal::LineTooLong));
        }
        self.within_line = false;
        Ok(())
    }
}

/// Whether a row may leave out TOAST values that did not change.
#[derive(Clone, Copy)]
enum Toast {
    /// The new row of an update.
    MayBeUnchanged,
    /// Every other row; the relation is for the error.
    Sent(Oid),
}

fn columns(old: &OldTuple<'_>) -> Option<usize> {
    match old {
        OldTuple::None => None,
        OldTuple::Key(row) | OldTuple::Full(row) => Some(row.len()),
    }
}

fn old_row<W: Write>(
    lines: &mut LineSink<W>,
    rel: Oid,
    old: &OldTuple<'_>,
) -> Result<(), WriteError> {
    match old {
        OldTuple::None => Ok(()),
        OldTuple::Key(key) => row(lines, b",\"key\":[", key, Toast::Sent(rel)),
        OldTuple::Full(full) => row(lines, b",\"old\":[", full, Toast::Sent(rel)),
    }
}

fn row<W: Write>(
    lines: &mut LineSink<W>,
    field: &[u8],
    values: &Tuple<'_>,
    toast: Toast,
) -> Result<(), WriteError> {
    lines.raw(field);
    for (position, value) in values.iter().enumerate() {
        if position > 0 {
            lines.raw(b",");
        }
        match (value, toast) {
            (Value::Null, _) => lines.raw(b"null"),
            (Value::Unchanged, Toast::MayBeUnchanged) => lines.raw(b"false"),
            (Value::Unchanged, Toast::Sent(rel)) => {
                return Err(WriteError::Refused(Refusal::Unchanged(rel)));
            }
            (Value::Text(text), _) => lines.text(text)?,
        }
    }
    lines.raw(b"]");
    Ok(())
}
