//! Lines to records. Believes nothing: every record is checked for its place, its fields and its
//! columns, and the whole against the footer, so that a segment that was cut, altered or swapped
//! is an error. Records already yielded when that comes out must be undone by the consumer. Rows that nobody wants
//! are vouched for by the digest alone.

use std::io::{self, BufRead};
use std::sync::Arc;

use serde::Deserialize;

use super::ledger::{Change, Ledger, Refusal};
use super::line::{
    BeginLine, CommitLine, DeleteLine, FooterLine, HeaderLine, InsertLine, MessageLine,
    RelationLine, SequencesLine, TruncateLine, UpdateLine, Values,
};
use super::lines::Lines;
use super::record::{Footer, Header, MessageRecord, Old, Record, RelationRecord, SequenceSample};
use super::row::{Row, RowBuffer, RowPlace};
use super::{LINE_BYTES_MAX, UNTIL_SINCE, VERSION, canonical};
use crate::key::SegmentKey;
use crate::{Class, LineageId, Oid, SourceId};

/// A segment being read.
pub struct SegmentReader<R> {
    lines: Lines<R>,
    header: Header,
    version: u32,
    key: Option<SegmentKey>,
    ledger: Ledger,
    state: State,
    is_wanted: Option<IsWanted>,
    /// Those of the record last read.
    rows: RowBuffer,
}

/// Whether anybody wants the rows of a relation.
pub type IsWanted = Arc<dyn Fn(&RelationRecord) -> bool + Send + Sync>;

/// A record and the line it was read from.
type WithLine<'a> = (Record<Row<'a>>, &'a [u8]);

enum State {
    Reading,
    /// Read to its end, and everything agrees.
    Verified(Footer),
    Failed,
}

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot read the segment")]
    Io(#[from] io::Error),
    #[error("the segment ends in line {line}, before its footer")]
    Truncated { line: u64 },
    #[error("line {line} is longer than {} bytes", LINE_BYTES_MAX)]
    LineTooLong { line: u64 },
    /// Without the parser's own message, which quotes values.
    #[error("line {line} is no record of this format, from column {column} on")]
    Malformed { line: u64, column: usize },
    #[error("line {line} is a record of an unknown kind")]
    UnknownRecord { line: u64 },
    #[error("the segment has format version {0}, this program reads those up to {VERSION}")]
    Version(u32),
    #[error("line {line} is out of place")]
    Refused {
        line: u64,
        #[source]
        refusal: Refusal,
    },
    #[error("the {what} does not agree with the object's key")]
    Key { what: &'static str },
    #[error("the footer's {what} does not agree with the segment's content")]
    Footer { what: &'static str },
    #[error("something follows the footer")]
    Trailing,
    #[error("the segment was given up after an earlier error")]
    Unusable,
}

impl ReadError {
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            // What unseals and decompresses reports bytes that are not what was written so.
            Self::Io(error) => match error.kind() {
                io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => Class::Corrupt,
                _ => Class::Transient,
            },
            Self::Version(_) => Class::NeedsOperator,
            Self::Truncated { .. }
            | Self::LineTooLong { .. }
            | Self::Malformed { .. }
            | Self::UnknownRecord { .. }
            | Self::Refused { .. }
            | Self::Key { .. }
            | Self::Footer { .. }
            | Self::Trailing
            | Self::Unusable => Class::Corrupt,
        }
    }
}

impl<R: BufRead> SegmentReader<R> {
    /// Reads the header. `expect` is where the segment was found: header and footer must agree.
    pub fn open(
        input: R,
        expect: Option<(SourceId, LineageId, &SegmentKey)>,
    ) -> Result<Self, ReadError> {
        let mut lines = Lines::new(input);
        lines.advance()?;
        if lines.tag() != Some(b'H') {
            return Err(ReadError::UnknownRecord { line: lines.number });
        }
        let VersionOnly { v } = lines.parse()?;
        if !(1..=VERSION).contains(&v) {
            return Err(ReadError::Version(v));
        }
        let line: HeaderLine = lines.parse()?;
        let header = Header {
            source: line.source,
            lineage: line.lineage,
            start: line.start,
            server: line.server,
            encoding: line.encoding,
        };
        if (v == 1) != header.encoding.is_none() {
            let (line, column) = (lines.number, 1);
            return Err(ReadError::Malformed { line, column });
        }
        if let Some((source, lineage, key)) = expect {
            agrees("source", &header.source, &source)?;
            agrees("lineage", &header.lineage, &lineage)?;
            agrees("start", &header.start, &key.start)?;
        }
        Ok(Self {
            lines,
            ledger: Ledger::new(header.start),
            header,
            version: v,
            key: expect.map(|(_, _, key)| *key),
            state: State::Reading,
            is_wanted: None,
            rows: RowBuffer::default(),
        })
    }

    /// Rows that nobody wants may be left out: they are counted and digested, but not decoded. Some come all the
    /// same. To be said before the first record; not for what is written anew, which would lack them.
    #[must_use]
    pub fn only(mut self, is_wanted: Option<IsWanted>) -> Self {
        self.is_wanted = is_wanted;
        self
    }

    #[must_use]
    pub const fn header(&self) -> &Header {
        &self.header
    }

    /// The footer, once [`SegmentReader::next`] has returned `None`.
    #[must_use]
    pub const fn footer(&self) -> Option<&Footer> {
        match &self.state {
            State::Verified(footer) => Some(footer),
            State::Reading | State::Failed => None,
        }
    }

    /// The footer, at the end of a segment that was read to its verified end.
    #[must_use]
    pub fn into_footer(self) -> Option<Footer> {
        match self.state {
            State::Verified(footer) => Some(footer),
            State::Reading | State::Failed => None,
        }
    }

    /// The next record between header and footer; `None` when the footer has been read and the
    /// whole segment agrees with it. After an error there is nothing but errors.
    #[expect(
        clippy::should_implement_trait,
        reason = "fallible: callers write `while let Some(record) = reader.next()?`"
    )]
    pub fn next(&mut self) -> Result<Option<Record<Row<'_>>>, ReadError> {
        Ok(self.next_with_line()?.map(|(record, _)| record))
    }

    /// As [`SegmentReader::next`], with its rows in the caller's buffer, behind those that are there.
    pub fn next_into(
        &mut self,
        rows: &mut RowBuffer,
    ) -> Result<Option<Record<RowPlace>>, ReadError> {
        match self.state {
            State::Verified(_) => return Ok(None),
            State::Failed => return Err(ReadError::Unusable),
            State::Reading => {}
        }
        // Set before, so that whatever goes wrong leaves it behind.
        self.state = State::Failed;
        self.advance()?;
        if self.lines.tag() == Some(b'F') {
            self.state = State::Verified(self.verified_footer()?);
            return Ok(None);
        }
        let record = record(&self.lines, self.version, rows)?;
        let line = self.lines.number;
        let refused = |refusal| ReadError::Refused { line, refusal };
        enter(&mut self.ledger, &record, |place| rows.row(place)).map_err(refused)?;
        if let (Some(is_wanted), Record::Relation(relation)) = (&self.is_wanted, &record) {
            self.ledger.pass_over(relation.rel, !is_wanted(relation));
        }
        self.state = State::Reading;
        Ok(Some(record))
    }

    /// As [`SegmentReader::next`], with the line it was read from, its end included.
    pub(super) fn next_with_line(&mut self) -> Result<Option<WithLine<'_>>, ReadError> {
        let mut rows = std::mem::take(&mut self.rows);
        rows.clear();
        let record = self.next_into(&mut rows);
        self.rows = rows;
        let record = record?.map(|record| record.map(|place| self.rows.row(&place)));
        Ok(record.map(|record| (record, self.lines.line())))
    }

    /// To the next line that somebody wants.
    fn advance(&mut self) -> Result<(), ReadError> {
        self.lines.advance()?;
        if self.is_wanted.is_none() {
            return Ok(());
        }
        while let Some((kind, rel)) = canonical::row_of(self.lines.line()) {
            let line = self.lines.number;
            let refused = |refusal| ReadError::Refused { line, refusal };
            if !self.ledger.passed_over(rel, kind).map_err(refused)? {
                break;
            }
            self.lines.advance()?;
        }
        Ok(())
    }

    fn verified_footer(&mut self) -> Result<Footer, ReadError> {
        let line: FooterLine = self.lines.parse()?;
        let (bytes, sha256) = self.lines.digest();
        let read = self
            .ledger
            .finish(line.end, line.observed_through, bytes, sha256)
            .map_err(|refusal| ReadError::Refused {
                line: self.lines.number,
                refusal,
            })?;
        for (what, same) in [
            ("transactions", line.transactions == read.transactions),
            ("commit_times", line.commit_times == read.commit_times),
            ("rows", line.rows == read.rows),
            ("bytes", line.bytes == read.bytes),
            ("sha256", line.sha256 == read.sha256),
        ] {
            if !same {
                return Err(ReadError::Footer { what });
            }
        }
        // The digest does not cover the footer itself: so it has one form, to the byte.
        if !self.lines.is(&FooterLine::from(&read)) {
            return Err(ReadError::Footer { what: "form" });
        }
        if let Some(key) = &self.key {
            let found = read.key(self.header.start);
            agrees("end", &found.end, &key.end)?;
            agrees("commit time", &found.max_commit_time, &key.max_commit_time)?;
            agrees(
                "observed time",
                &found.observed_through,
                &key.observed_through,
            )?;
        }
        self.lines.end()?;
        Ok(read)
    }
}

fn record<R: BufRead>(
    lines: &Lines<R>,
    version: u32,
    rows: &mut RowBuffer,
) -> Result<Record<RowPlace>, ReadError> {
    match canonical::record(lines.line(), rows) {
        Some(record) => Ok(record),
        None => any_record(lines, version, rows),
    }
}

/// Whatever JSON it is.
pub(super) fn any_record<R: BufRead>(
    lines: &Lines<R>,
    version: u32,
    rows: &mut RowBuffer,
) -> Result<Record<RowPlace>, ReadError> {
    let line = lines.number;
    let refused = |refusal| ReadError::Refused { line, refusal };
    Ok(match lines.tag() {
        Some(b'R') => relation(lines.parse()?),
        Some(b'B') => {
            let begin: BeginLine = lines.parse()?;
            if begin.until.is_some() && version < UNTIL_SINCE {
                return Err(ReadError::Malformed { line, column: 1 });
            }
            self::begin(&begin)
        }
        Some(b'I') => insert(&lines.parse()?, rows),
        Some(b'U') => update(&lines.parse()?, rows).map_err(refused)?,
        Some(b'D') => delete(&lines.parse()?, rows).map_err(refused)?,
        Some(b'T') => truncate(lines.parse()?),
        Some(b'M') => message(lines.parse()?),
        Some(b'S') => sequences(lines.parse()?),
        Some(b'C') => commit(&lines.parse()?),
        _ => return Err(ReadError::UnknownRecord { line }),
    })
}

/// Holds a record against the order and counts it; `row` has its rows.
pub(super) fn enter<'r, R>(
    ledger: &mut Ledger,
    record: &Record<R>,
    row: impl Fn(&R) -> Row<'r>,
) -> Result<(), Refusal> {
    match record {
        Record::Relation(relation) => {
            ledger.relation(relation.rel, relation.columns.len());
            Ok(())
        }
        Record::Begin {
            lsn, time, until, ..
        } => ledger.begin(*lsn, *time, *until),
        Record::Insert { rel, new } => {
            let new = sent(*rel, row(new))?;
            ledger.change(*rel, Change::Insert { new })
        }
        Record::Update { rel, old, new } => {
            let old = old_columns(*rel, old, &row)?;
            let new = row(new).len();
            ledger.change(*rel, Change::Update { old, new })
        }
        Record::Delete { rel, old } => {
            let old = old_columns(*rel, old, &row)?.ok_or(Refusal::DeleteWithoutOld(*rel))?;
            ledger.change(*rel, Change::Delete { old })
        }
        Record::Truncate { rels, .. } => ledger.truncate(rels),
        Record::Message(message) => ledger.message(message.transactional),
        Record::Sequences { .. } => ledger.sequences(),
        Record::Commit { lsn, end } => ledger.commit(*lsn, *end, None),
    }
}

fn old_columns<'r, R>(
    rel: Oid,
    old: &Old<R>,
    row: impl Fn(&R) -> Row<'r>,
) -> Result<Option<usize>, Refusal> {
    match old {
        Old::None => Ok(None),
        Old::Key(old) | Old::Full(old) => sent(rel, row(old)).map(Some),
    }
}

/// How many values there are; only the new row of an update leaves some out.
fn sent(rel: Oid, row: Row<'_>) -> Result<usize, Refusal> {
    match row.has_unchanged() {
        true => Err(Refusal::Unchanged(rel)),
        false => Ok(row.len()),
    }
}

fn relation(line: RelationLine) -> Record<RowPlace> {
    Record::Relation(Box::new(RelationRecord {
        rel: line.rel,
        schema: line.schema,
        table: line.table,
        identity: line.identity,
        columns: line.columns,
    }))
}

const fn begin(line: &BeginLine) -> Record<RowPlace> {
    Record::Begin {
        xid: line.xid,
        lsn: line.lsn,
        time: line.time,
        until: line.until,
    }
}

fn insert(line: &InsertLine<'_>, rows: &mut RowBuffer) -> Record<RowPlace> {
    Record::Insert {
        rel: line.rel,
        new: line.new.put(rows),
    }
}

fn update(line: &UpdateLine<'_>, rows: &mut RowBuffer) -> Result<Record<RowPlace>, Refusal> {
    Ok(Record::Update {
        rel: line.rel,
        old: old(line.rel, line.key.as_ref(), line.old.as_ref(), rows)?,
        new: line.new.put(rows),
    })
}

fn delete(line: &DeleteLine<'_>, rows: &mut RowBuffer) -> Result<Record<RowPlace>, Refusal> {
    Ok(Record::Delete {
        rel: line.rel,
        old: old(line.rel, line.key.as_ref(), line.old.as_ref(), rows)?,
    })
}

fn old(
    rel: Oid,
    key: Option<&Values<'_>>,
    full: Option<&Values<'_>>,
    rows: &mut RowBuffer,
) -> Result<Old<RowPlace>, Refusal> {
    match (key, full) {
        (None, None) => Ok(Old::None),
        (Some(key), None) => Ok(Old::Key(key.put(rows))),
        (None, Some(full)) => Ok(Old::Full(full.put(rows))),
        (Some(_), Some(_)) => Err(Refusal::TwoOldRows(rel)),
    }
}

fn truncate(line: TruncateLine) -> Record<RowPlace> {
    Record::Truncate {
        rels: line.rels,
        cascade: line.cascade,
        restart_identity: line.restart_identity,
    }
}

fn message(line: MessageLine) -> Record<RowPlace> {
    Record::Message(Box::new(MessageRecord {
        transactional: line.transactional,
        lsn: line.lsn,
        prefix: line.prefix.0,
        content: line.content.0,
    }))
}

fn sequences(line: SequencesLine) -> Record<RowPlace> {
    let samples = line.sequences.into_iter();
    Record::Sequences {
        lsn: line.lsn,
        samples: samples
            .map(|(schema, name, last_value, is_called)| SequenceSample {
                schema,
                name,
                last_value,
                is_called,
            })
            .collect(),
    }
}

const fn commit(line: &CommitLine) -> Record<RowPlace> {
    Record::Commit {
        lsn: line.lsn,
        end: line.end,
    }
}

fn agrees<T: PartialEq>(what: &'static str, found: &T, expected: &T) -> Result<(), ReadError> {
    if found != expected {
        return Err(ReadError::Key { what });
    }
    Ok(())
}

/// Read before the rest of the header: another version may have other fields.
#[derive(Deserialize)]
struct VersionOnly {
    v: u32,
}
