//! What segments say, wherever they begin and end: equal for a run of them and for one that was made
//! of it.
//!
//! The digest covers every line but H, R and F, and before a row or a truncate the description that
//! its relation has there, unless the last one that was digested says the same. So it does not matter
//! how often a description is repeated, and it does matter which one a row is read by.

use std::collections::{BTreeMap, HashMap};
use std::io::BufRead;
use std::ops::Range;

use super::reader::{ReadError, SegmentReader};
use super::record::{CommitTimes, Footer, Record, RowCounts};
use crate::{Digest, Lsn, Oid, Sha256};

/// Gathers what segments say, one after another.
#[derive(Clone, Default)]
pub struct ContentReader {
    transactions: u64,
    commit_times: Option<CommitTimes>,
    rows: BTreeMap<Oid, RowCounts>,
    sha256: Sha256,
    described: HashMap<Oid, Description>,
    only: Option<Only>,
}

/// The transactions that count, by their commit LSN.
#[derive(Clone)]
struct Only {
    ranges: Vec<Range<Lsn>>,
    /// Inside one that does.
    inside: bool,
}

/// What some segments say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    pub transactions: u64,
    pub commit_times: Option<CommitTimes>,
    /// As in a footer.
    pub rows: BTreeMap<Oid, RowCounts>,
    pub sha256: Digest,
}

/// Digests of a relation's description.
#[derive(Clone)]
struct Description {
    current: Digest,
    /// The last one that is in the content's digest.
    digested: Option<Digest>,
}

impl ContentReader {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Only of the transactions that commit in these ranges, and nothing of their times or of what stands
    /// between them: for a part of what a segment holds, whoever has written it.
    #[must_use]
    pub fn of_transactions(ranges: Vec<Range<Lsn>>) -> Self {
        let only = Only {
            ranges,
            inside: false,
        };
        Self {
            only: Some(only),
            ..Self::default()
        }
    }

    /// Reads a segment to its verified end.
    ///
    /// # Errors
    /// If it is not what was written.
    pub fn read<R: BufRead>(&mut self, mut segment: SegmentReader<R>) -> Result<Footer, ReadError> {
        while let Some((record, line)) = segment.next_with_line()? {
            self.see(&record, line);
        }
        let footer = segment.into_footer().ok_or(ReadError::Unusable)?;
        self.end(&footer);
        Ok(footer)
    }

    /// The next record, with the line it was read from.
    pub(super) fn see<R>(&mut self, record: &Record<R>, line: &[u8]) {
        let leaves = match &mut self.only {
            Some(only) => only.leave_out(record),
            None => false,
        };
        match record {
            Record::Relation(relation) => {
                let current = Sha256::of(line);
                let described = self.described.entry(relation.rel);
                described
                    .and_modify(|described| described.current = current)
                    .or_insert(Description {
                        current,
                        digested: None,
                    });
                return;
            }
            _ if leaves => return,
            // The time of one that was replicated is the last moment that its service knew before it, and
            // two services know different ones.
            Record::Begin { xid, lsn, .. } if self.only.is_some() => {
                self.sha256.update(lsn.as_u64().to_be_bytes());
                self.sha256.update(xid.get().to_be_bytes());
                return;
            }
            Record::Insert { rel, .. }
            | Record::Update { rel, .. }
            | Record::Delete { rel, .. } => self.describe(*rel),
            Record::Truncate { rels, .. } => rels.iter().for_each(|rel| self.describe(*rel)),
            Record::Commit { .. } => self.transactions = self.transactions.saturating_add(1),
            Record::Begin { .. } | Record::Message(_) | Record::Sequences { .. } => {}
        }
        self.sha256.update(line);
    }

    /// The end of a segment, which agrees with what was read.
    pub(super) fn end(&mut self, footer: &Footer) {
        if self.only.is_some() {
            return;
        }
        if let Some(CommitTimes { min, max }) = footer.commit_times {
            let earlier = CommitTimes::extend(self.commit_times, min);
            self.commit_times = Some(CommitTimes::extend(Some(earlier), max));
        }
        for (rel, counts) in &footer.rows {
            self.rows.entry(*rel).or_default().add(counts);
        }
    }

    fn describe(&mut self, rel: Oid) {
        // A reader lets no row through that has none.
        if let Some(described) = self.described.get_mut(&rel)
            && described.digested != Some(described.current)
        {
            self.sha256.update(described.current.0);
            described.digested = Some(described.current);
        }
    }

    /// What was read, as a whole.
    #[must_use]
    pub fn finish(self) -> Content {
        Content {
            transactions: self.transactions,
            commit_times: self.commit_times,
            rows: self.rows,
            sha256: self.sha256.digest(),
        }
    }
}

impl Only {
    fn leave_out<R>(&mut self, record: &Record<R>) -> bool {
        if let Record::Begin { lsn, .. } = record {
            self.inside = self.ranges.iter().any(|range| range.contains(lsn));
        }
        let leaves = !self.inside;
        if let Record::Commit { .. } = record {
            self.inside = false;
        }
        leaves
    }
}
