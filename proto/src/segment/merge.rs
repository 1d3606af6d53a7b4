//! Several segments that follow each other become one: their lines as they stand, in order, without
//! descriptions that only repeat what holds already.

use std::collections::HashMap;
use std::io::{BufRead, Write};

use super::content::{Content, ContentReader};
use super::reader::{ReadError, SegmentReader};
use super::record::{Footer, Header, Record, RelationRecord};
use super::writer::{SegmentWriter, WriteError};
use crate::{Class, Lsn, Oid, PgTimestamp};

/// A merged segment in the making. After an error it can only be dropped.
pub struct Merger<W: Write> {
    writer: SegmentWriter<W>,
    header: Header,
    content: ContentReader,
    /// What each relation's rows are read by at this place.
    described: HashMap<Oid, RelationRecord>,
    /// End of the part before.
    end: Lsn,
    observed_through: Option<PgTimestamp>,
}

#[derive(Debug, thiserror::Error)]
pub enum MergeError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error("a segment that begins at {start} does not go on where the one before ends, at {end}")]
    NotNext { start: Lsn, end: Lsn },
    #[error(
        "a segment is of another source, lineage, server version or encoding than the one before"
    )]
    OtherHeader,
}

impl MergeError {
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Read(error) => error.class(),
            Self::Write(error) => error.class(),
            Self::NotNext { .. } | Self::OtherHeader => Class::Corrupt,
        }
    }
}

impl Header {
    /// Whether a segment with this header may be merged with one before it that has the other.
    #[must_use]
    pub fn joins(&self, before: &Self) -> bool {
        Self {
            start: before.start,
            ..self.clone()
        } == *before
    }
}

impl<W: Write> Merger<W> {
    /// `header` is that of the first part.
    ///
    /// # Errors
    /// If the sink fails.
    pub fn new(sink: W, header: &Header) -> Result<Self, MergeError> {
        Ok(Self {
            writer: SegmentWriter::new(sink, header)?,
            header: header.clone(),
            content: ContentReader::new(),
            described: HashMap::new(),
            end: header.start,
            observed_through: None,
        })
    }

    /// Takes a part to its verified end.
    ///
    /// # Errors
    /// If it is not what was written, or not what comes next.
    pub fn take<R: BufRead>(&mut self, mut part: SegmentReader<R>) -> Result<(), MergeError> {
        let header = part.header();
        if !header.joins(&self.header) {
            return Err(MergeError::OtherHeader);
        }
        if header.start != self.end {
            let (start, end) = (header.start, self.end);
            return Err(MergeError::NotNext { start, end });
        }
        while let Some((record, line)) = part.next_with_line()? {
            self.content.see(&record, line);
            if !self.is_known(&record) {
                self.writer.copy(&record, line)?;
            }
        }
        let footer = part.into_footer().ok_or(ReadError::Unusable)?;
        self.content.end(&footer);
        self.end = footer.end;
        self.observed_through = self.observed_through.max(footer.observed_through);
        Ok(())
    }

    /// Whether it describes a relation as it is described already.
    fn is_known<R>(&mut self, record: &Record<R>) -> bool {
        let Record::Relation(relation) = record else {
            return false;
        };
        let before = self.described.insert(relation.rel, (**relation).clone());
        before.as_ref() == Some(&**relation)
    }

    /// Writes the footer and hands the sink back, with what the parts said.
    ///
    /// # Errors
    /// If the sink fails.
    pub fn finish(self) -> Result<(W, Footer, Content), MergeError> {
        let (sink, footer) = self.writer.finish(self.end, self.observed_through)?;
        Ok((sink, footer, self.content.finish()))
    }
}
