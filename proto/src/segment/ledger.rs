//! The order of a segment's records and their counts: kept alike by the writer, so that nothing
//! else can be written, and by the reader, so that nothing else is believed.

use std::collections::BTreeMap;

use super::record::{CommitTimes, Footer, RowCounts};
use crate::{Digest, Lsn, Oid, PgTimestamp};

/// A record that must not stand where it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("a {record} record stands inside a transaction")]
    Inside { record: &'static str },
    #[error("a {record} record stands outside a transaction")]
    Outside { record: &'static str },
    #[error("relation {0} is used before it is described")]
    UnknownRelation(Oid),
    #[error("a row of relation {rel} has {row} columns where the relation has {relation}")]
    Columns {
        rel: Oid,
        relation: usize,
        row: usize,
    },
    #[error("relation {rel} has {columns} columns and {names} type names")]
    TypeNames {
        rel: Oid,
        columns: usize,
        names: usize,
    },
    #[error("an unchanged value of relation {0} stands elsewhere than in the new row of an update")]
    Unchanged(Oid),
    #[error("a change of relation {0} has two old rows")]
    TwoOldRows(Oid),
    #[error("a delete of relation {0} has no old row")]
    DeleteWithoutOld(Oid),
    #[error("a truncate names no relation")]
    EmptyTruncate,
    #[error("{what} {lsn} lies before {floor}")]
    LsnOrder {
        what: &'static str,
        lsn: Lsn,
        floor: Lsn,
    },
    #[error("the transaction that began with commit LSN {begin} ends with commit LSN {commit}")]
    CommitLsn { begin: Lsn, commit: Lsn },
    #[error("the transaction that began with commit time {begin} ends with commit time {commit}")]
    CommitTime {
        begin: PgTimestamp,
        commit: PgTimestamp,
    },
    #[error("a transaction committed at or after {time}, and at or before {until}")]
    Until {
        time: PgTimestamp,
        until: PgTimestamp,
    },
    #[error("the time {0} has no RFC 3339 form")]
    Time(PgTimestamp),
    #[error("a line is longer than {} bytes", super::LINE_BYTES_MAX)]
    LineTooLong,
}

pub(super) struct Ledger {
    open: Option<Open>,
    /// End of the last transaction, at first the segment's start: nothing commits below it.
    floor: Lsn,
    transactions: u64,
    commit_times: Option<CommitTimes>,
    relations: BTreeMap<Oid, Described>,
}

/// The transaction that has begun and not ended.
#[derive(Clone, Copy)]
struct Open {
    commit_lsn: Lsn,
    commit_time: PgTimestamp,
}

#[derive(Default)]
struct Described {
    columns: usize,
    rows: RowCounts,
    is_passed_over: bool,
}

/// The columns of each row that a record carries.
#[derive(Clone, Copy)]
pub(super) enum Change {
    Insert { new: usize },
    Update { old: Option<usize>, new: usize },
    Delete { old: usize },
}

#[derive(Clone, Copy)]
pub(super) enum Kind {
    Insert,
    Update,
    Delete,
}

impl Described {
    fn count(&mut self, kind: Kind) {
        let count = match kind {
            Kind::Insert => &mut self.rows.inserts,
            Kind::Update => &mut self.rows.updates,
            Kind::Delete => &mut self.rows.deletes,
        };
        *count = count.saturating_add(1);
    }
}

impl Ledger {
    pub(super) const fn new(start: Lsn) -> Self {
        Self {
            open: None,
            floor: start,
            transactions: 0,
            commit_times: None,
            relations: BTreeMap::new(),
        }
    }

    pub(super) const fn floor(&self) -> Lsn {
        self.floor
    }

    pub(super) const fn transactions(&self) -> u64 {
        self.transactions
    }

    pub(super) const fn in_transaction(&self) -> bool {
        self.open.is_some()
    }

    pub(super) fn knows(&self, relation: Oid) -> bool {
        self.relations.contains_key(&relation)
    }

    /// A relation may come anywhere, and again with other columns.
    pub(super) fn relation(&mut self, relation: Oid, columns: usize) {
        self.relations.entry(relation).or_default().columns = columns;
    }

    /// From now on its rows are only counted, or not any more.
    pub(super) fn pass_over(&mut self, relation: Oid, is_passed_over: bool) {
        self.relations.entry(relation).or_default().is_passed_over = is_passed_over;
    }

    /// Counts a row that is passed over; if it is none, says so.
    pub(super) fn passed_over(&mut self, relation: Oid, kind: Kind) -> Result<bool, Refusal> {
        let described = self.relations.get_mut(&relation);
        let Some(described) = described.filter(|it| it.is_passed_over) else {
            return Ok(false);
        };
        described.count(kind);
        self.inside("row").map(|()| true)
    }

    pub(super) fn begin(
        &mut self,
        lsn: Lsn,
        time: PgTimestamp,
        until: Option<PgTimestamp>,
    ) -> Result<(), Refusal> {
        self.outside("begin")?;
        self.at_or_after_floor("the commit LSN", lsn)?;
        printable(time)?;
        if let Some(until) = until {
            printable(until)?;
            if until < time {
                return Err(Refusal::Until { time, until });
            }
        }
        self.open = Some(Open {
            commit_lsn: lsn,
            commit_time: time,
        });
        Ok(())
    }

    pub(super) fn change(&mut self, relation: Oid, change: Change) -> Result<(), Refusal> {
        self.inside("row")?;
        let described = self
            .relations
            .get_mut(&relation)
            .ok_or(Refusal::UnknownRelation(relation))?;
        let (kind, first, second) = match change {
            Change::Insert { new } => (Kind::Insert, new, None),
            Change::Update { old, new } => (Kind::Update, new, old),
            Change::Delete { old } => (Kind::Delete, old, None),
        };
        for row in std::iter::once(first).chain(second) {
            if row != described.columns {
                return Err(Refusal::Columns {
                    rel: relation,
                    relation: described.columns,
                    row,
                });
            }
        }
        described.count(kind);
        Ok(())
    }

    pub(super) fn truncate(&mut self, relations: &[Oid]) -> Result<(), Refusal> {
        self.inside("truncate")?;
        if relations.is_empty() {
            return Err(Refusal::EmptyTruncate);
        }
        if let Some(unknown) = relations.iter().find(|oid| !self.knows(**oid)) {
            return Err(Refusal::UnknownRelation(*unknown));
        }
        for relation in relations {
            let truncates = &mut self.relations.entry(*relation).or_default().rows.truncates;
            *truncates = truncates.saturating_add(1);
        }
        Ok(())
    }

    pub(super) const fn message(&self, transactional: bool) -> Result<(), Refusal> {
        if transactional {
            self.inside("transactional message")
        } else {
            // The server decodes them when it meets them, and a transaction only at its commit:
            // so they cannot come between its begin and its end.
            self.outside("non-transactional message")
        }
    }

    pub(super) const fn sequences(&self) -> Result<(), Refusal> {
        self.outside("sequences")
    }

    /// The commit time stands in the begin record only, so a reader has none to give.
    pub(super) fn commit(
        &mut self,
        lsn: Lsn,
        end: Lsn,
        time: Option<PgTimestamp>,
    ) -> Result<(), Refusal> {
        let open = self.open.ok_or(Refusal::Outside { record: "commit" })?;
        if lsn != open.commit_lsn {
            return Err(Refusal::CommitLsn {
                begin: open.commit_lsn,
                commit: lsn,
            });
        }
        if let Some(commit) = time.filter(|time| *time != open.commit_time) {
            return Err(Refusal::CommitTime {
                begin: open.commit_time,
                commit,
            });
        }
        if end <= lsn {
            return Err(Refusal::LsnOrder {
                what: "the end LSN",
                lsn: end,
                floor: lsn,
            });
        }
        self.open = None;
        self.floor = end;
        self.transactions = self.transactions.saturating_add(1);
        self.commit_times = Some(CommitTimes::extend(self.commit_times, open.commit_time));
        Ok(())
    }

    /// The footer that belongs under what has been recorded.
    pub(super) fn finish(
        &self,
        end: Lsn,
        observed_through: Option<PgTimestamp>,
        bytes: u64,
        sha256: Digest,
    ) -> Result<Footer, Refusal> {
        self.outside("footer")?;
        self.at_or_after_floor("the segment's end", end)?;
        observed_through.map_or(Ok(()), printable)?;
        let rows = self.relations.iter();
        Ok(Footer {
            end,
            transactions: self.transactions,
            commit_times: self.commit_times,
            observed_through,
            rows: rows
                .map(|(oid, described)| (*oid, described.rows))
                .collect(),
            bytes,
            sha256,
        })
    }

    const fn inside(&self, record: &'static str) -> Result<(), Refusal> {
        match self.open {
            Some(_) => Ok(()),
            None => Err(Refusal::Outside { record }),
        }
    }

    const fn outside(&self, record: &'static str) -> Result<(), Refusal> {
        match self.open {
            None => Ok(()),
            Some(_) => Err(Refusal::Inside { record }),
        }
    }

    fn at_or_after_floor(&self, what: &'static str, lsn: Lsn) -> Result<(), Refusal> {
        if lsn < self.floor {
            return Err(Refusal::LsnOrder {
                what,
                lsn,
                floor: self.floor,
            });
        }
        Ok(())
    }
}

/// Years 1 to 9999: what RFC 3339 can say. A clock beyond is refused here, not by the reader.
const fn printable(time: PgTimestamp) -> Result<(), Refusal> {
    match time.as_unix_micros() {
        -62_135_596_800_000_000..=253_402_300_799_999_999 => Ok(()),
        _ => Err(Refusal::Time(time)),
    }
}
