//! Where exactly a target falls: the last transaction kept and the first one discarded.

use std::collections::{BTreeMap, HashMap};

use lastgood_proto::key::SegmentKey;
use lastgood_proto::segment::{Record, RowCounts};
use lastgood_proto::{LineageId, Lsn, Oid, PgTimestamp, Xid};
use lastgood_store::SourceStore;
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::choose::{Choice, Cut};
use crate::segments::scan;

/// What becomes of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Committed below the consistent point.
    InBase,
    Kept,
    /// It may have been committed before the target or after it: see [`Record::Begin`]. Kept if anything
    /// behind it is, as that was committed later.
    Unsure,
    Discarded,
}

/// Judges transactions, in commit order.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Splitter {
    from: Lsn,
    cut: Cut,
    discarding: bool,
}

impl Splitter {
    pub(crate) const fn new(consistent_point: Lsn, cut: Cut) -> Self {
        Self {
            from: consistent_point,
            cut,
            discarding: false,
        }
    }

    pub(crate) fn admit(
        &mut self,
        commit_lsn: Lsn,
        commit_time: PgTimestamp,
        until: Option<PgTimestamp>,
    ) -> Verdict {
        if commit_lsn < self.from {
            return Verdict::InBase;
        }
        // One past the cut discards everything behind it, whatever its time.
        self.discarding |= !self.cut.keeps(commit_lsn, commit_time);
        match until {
            _ if self.discarding => Verdict::Discarded,
            Some(until) if !self.cut.keeps(commit_lsn, until) => Verdict::Unsure,
            _ => Verdict::Kept,
        }
    }
}

/// One transaction, as evidence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Transaction {
    pub xid: Xid,
    /// Start of the commit record.
    pub commit_lsn: Lsn,
    pub end_lsn: Lsn,
    pub time: PgTimestamp,
    /// Of one that was replicated into the source: it was committed between `time` and this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<PgTimestamp>,
    /// By schema and table.
    pub tables: Vec<TableChanges>,
}

/// What a transaction did to one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableChanges {
    pub schema: String,
    pub table: String,
    pub inserts: u64,
    pub updates: u64,
    pub deletes: u64,
    pub truncates: u64,
}

/// The two sides of the place where a target falls.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Boundary {
    /// None if everything kept is in the base.
    pub(crate) last_kept: Option<Transaction>,
    /// Those between the two that may belong to either side.
    pub(crate) unsure: Option<Unsure>,
    /// None if nothing that is durable comes after.
    pub(crate) first_discarded: Option<Transaction>,
}

/// Transactions of which it is not known whether they were committed before the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unsure {
    pub(crate) first: Transaction,
    /// When all of them had been.
    pub(crate) until: PgTimestamp,
}

impl Unsure {
    fn new(first: Transaction) -> Self {
        let until = first.until.unwrap_or(first.time);
        Self { first, until }
    }

    /// Of two stretches that follow each other.
    fn join(earlier: Option<Self>, later: Option<Self>) -> Option<Self> {
        match (earlier, later) {
            (Some(earlier), Some(later)) => Some(Self {
                until: earlier.until.max(later.until),
                ..earlier
            }),
            (earlier, later) => earlier.or(later),
        }
    }
}

/// Opens the segment the cut falls into, and its neighbours as far as needed. Where the cut lies
/// further on than the segments' names tell, the choice is extended.
pub(crate) async fn find(
    store: &SourceStore,
    choice: &mut Choice,
    cut: Cut,
) -> Result<Boundary, Error> {
    let mut boundary = Boundary::default();
    let splitter = Splitter::new(choice.base.point, cut);
    let lineage = choice.lineage;
    // Backwards to the last transaction kept; the first discarded is in the last of these or later.
    for key in choice.needed.iter().rev().filter(|key| !key.is_empty()) {
        let sides = sides(store, lineage, *key, splitter).await?;
        boundary.first_discarded = sides.first_discarded.or(boundary.first_discarded);
        boundary.unsure = Unsure::join(sides.unsure, boundary.unsure);
        boundary.last_kept = sides.last_kept;
        if boundary.last_kept.is_some() {
            break;
        }
    }
    let mut kept = 0;
    for (place, key) in choice.following.iter().enumerate() {
        if boundary.first_discarded.is_some() {
            break;
        }
        if key.is_empty() {
            continue;
        }
        let sides = sides(store, lineage, *key, splitter).await?;
        boundary.first_discarded = sides.first_discarded;
        if sides.last_kept.is_some() {
            (boundary.last_kept, kept) = (sides.last_kept, place + 1);
            boundary.unsure = sides.unsure;
        } else {
            boundary.unsure = Unsure::join(boundary.unsure, sides.unsure);
        }
    }
    choice.need(match (cut, &boundary.first_discarded) {
        // Nothing is past the time in all that is durable.
        (Cut::Time { .. }, None) => choice.following.len(),
        _ => kept,
    });
    Ok(boundary)
}

async fn sides(
    store: &SourceStore,
    lineage: LineageId,
    key: SegmentKey,
    mut splitter: Splitter,
) -> Result<Boundary, Error> {
    scan(store, lineage, key, move |mut segment| {
        let mut boundary = Boundary::default();
        let mut relations = HashMap::new();
        let mut open: Option<(Verdict, Counted)> = None;
        while let Some(record) = segment.next()? {
            match record {
                Record::Relation(relation) => {
                    relations.insert(relation.rel, (relation.schema, relation.table));
                }
                Record::Begin {
                    xid,
                    lsn,
                    time,
                    until,
                } => {
                    let verdict = splitter.admit(lsn, time, until);
                    open = Some((verdict, Counted::new(xid, lsn, time, until)));
                }
                Record::Commit { end, .. } => match open.take() {
                    Some((Verdict::Kept, counted)) => {
                        boundary.last_kept = Some(counted.finish(end, &relations));
                        boundary.unsure = None;
                    }
                    Some((Verdict::Unsure, counted)) => {
                        let this = Unsure::new(counted.finish(end, &relations));
                        boundary.unsure = Unsure::join(boundary.unsure, Some(this));
                    }
                    Some((Verdict::Discarded, counted)) => {
                        boundary.first_discarded = Some(counted.finish(end, &relations));
                        return Ok(boundary);
                    }
                    Some((Verdict::InBase, _)) | None => {}
                },
                Record::Insert { .. }
                | Record::Update { .. }
                | Record::Delete { .. }
                | Record::Truncate { .. } => {
                    if let Some((_, counted)) = &mut open {
                        counted.count(&record);
                    }
                }
                Record::Message(_) | Record::Sequences { .. } => {}
            }
        }
        Ok(boundary)
    })
    .await
}

/// A transaction while its changes are counted.
pub(crate) struct Counted {
    xid: Xid,
    commit_lsn: Lsn,
    time: PgTimestamp,
    until: Option<PgTimestamp>,
    rows: BTreeMap<Oid, RowCounts>,
}

impl Counted {
    pub(crate) const fn new(
        xid: Xid,
        commit_lsn: Lsn,
        time: PgTimestamp,
        until: Option<PgTimestamp>,
    ) -> Self {
        Self {
            xid,
            commit_lsn,
            time,
            until,
            rows: BTreeMap::new(),
        }
    }

    pub(crate) fn count<R>(&mut self, change: &Record<R>) {
        match change {
            Record::Insert { rel, .. } => self.rows.entry(*rel).or_default().inserts += 1,
            Record::Update { rel, .. } => self.rows.entry(*rel).or_default().updates += 1,
            Record::Delete { rel, .. } => self.rows.entry(*rel).or_default().deletes += 1,
            Record::Truncate { rels, .. } => {
                for rel in rels {
                    self.rows.entry(*rel).or_default().truncates += 1;
                }
            }
            _ => {}
        }
    }

    pub(crate) fn finish(
        self,
        end_lsn: Lsn,
        relations: &HashMap<Oid, (String, String)>,
    ) -> Transaction {
        let named = self.rows.into_iter().filter_map(|(rel, counts)| {
            let (schema, table) = relations.get(&rel)?.clone();
            Some(TableChanges {
                schema,
                table,
                inserts: counts.inserts,
                updates: counts.updates,
                deletes: counts.deletes,
                truncates: counts.truncates,
            })
        });
        let mut tables: Vec<TableChanges> = named.collect();
        tables.sort_by(|a, b| (&a.schema, &a.table).cmp(&(&b.schema, &b.table)));
        Transaction {
            xid: self.xid,
            commit_lsn: self.commit_lsn,
            end_lsn,
            time: self.time,
            until: self.until,
            tables,
        }
    }
}

/// A transaction with that id, as committed.
pub(crate) async fn find_xid(
    store: &SourceStore,
    lineage: LineageId,
    key: SegmentKey,
    wanted: Xid,
) -> Result<Vec<(Lsn, PgTimestamp)>, Error> {
    scan(store, lineage, key, move |mut segment| {
        let mut found = Vec::new();
        while let Some(record) = segment.next()? {
            match record {
                Record::Begin { xid, lsn, time, .. } if xid == wanted => found.push((lsn, time)),
                _ => {}
            }
        }
        Ok(found)
    })
    .await
}

/// The prefix of the message that a named restore point leaves in the stream.
const POINT_PREFIX: &[u8] = b"lastgood.point";

/// Restore points of that name in the stream. One made within a transaction is at its commit.
pub(crate) async fn find_point(
    store: &SourceStore,
    lineage: LineageId,
    key: SegmentKey,
    name: String,
) -> Result<Vec<Lsn>, Error> {
    scan(store, lineage, key, move |mut segment| {
        let (mut found, mut commit_lsn) = (Vec::new(), Lsn::INVALID);
        while let Some(record) = segment.next()? {
            match record {
                Record::Begin { lsn, .. } => commit_lsn = lsn,
                Record::Message(message)
                    if message.prefix == POINT_PREFIX && message.content == name.as_bytes() =>
                {
                    found.push(match message.transactional {
                        true => commit_lsn,
                        false => message.lsn,
                    });
                }
                _ => {}
            }
        }
        Ok(found)
    })
    .await
}
