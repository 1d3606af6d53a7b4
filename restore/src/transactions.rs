//! When did it happen? The captured transactions of a stretch of time, with what they did.
//!
//! Only segments that can hold one of them are opened: their keys tell the latest commit time
//! inside, and the segment before tells about where the earliest is.

use std::collections::HashMap;

use lastgood_proto::PgTimestamp;
use lastgood_proto::key::{SegmentKey, SourceObject};
use lastgood_proto::manifest::{BaseManifest, Protection};
use lastgood_proto::segment::Record;
use lastgood_store::SourceStore;

use crate::Error;
use crate::boundary::{Counted, Transaction};
use crate::segments::scan;
use crate::selection::{TableName, printed};
use crate::survey::Survey;

/// How much earlier than the latest commit before it a segment may hold one: commit times do not
/// rise strictly with the LSN. The worst measured on a busy server was 48 ms.
const DISORDER_MICROS: i64 = 60_000_000;

/// Which transactions are wanted.
#[derive(Debug, Clone, Default)]
pub struct TransactionFilter {
    /// Committed at or after this time.
    pub since: Option<PgTimestamp>,
    /// Committed at or before this time.
    pub until: Option<PgTimestamp>,
    /// Changed this table.
    pub table: Option<TableName>,
    /// Changed at least this many rows, of the table if one is given. A TRUNCATE counts as any
    /// number.
    pub min_rows: u64,
}

/// The newest `limit` transactions that match, newest first.
///
/// # Errors
/// If the repository cannot be read; and if none matches because there is no such table, or it is not captured.
pub async fn transactions(
    store: &SourceStore,
    filter: &TransactionFilter,
    limit: usize,
) -> Result<Vec<Transaction>, Error> {
    let survey = Survey::read(store).await?;
    let mut found: Vec<Transaction> = Vec::new();
    for lineage in survey.listing.lineages.iter().rev() {
        let (mut before, mut keys) = (None, Vec::new());
        for (place, key) in lineage.segments.iter().enumerate() {
            let later = lineage.segments.get(place + 1..).unwrap_or_default();
            let known = later.partition_point(|it| it.observed_through <= key.max_commit_time);
            let after = later.get(known).and_then(|it| it.observed_through);
            if filter.may_match(key, before, after) {
                keys.push(key);
            }
            before = before.max(key.max_commit_time);
        }
        for key in keys.into_iter().rev() {
            if found.len() >= limit {
                break;
            }
            let wanted = filter.clone();
            let mut newest = scan(store, lineage.id, *key, move |mut segment| {
                let (mut found, mut open) = (Vec::new(), None);
                let mut relations = HashMap::new();
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
                        } => open = Some(Counted::new(xid, lsn, time, until)),
                        Record::Commit { end, .. } => {
                            let counted = open.take().map(|open| open.finish(end, &relations));
                            found.extend(counted.filter(|counted| wanted.matches(counted)));
                            // The newest are wanted: memory holds no more than the answer.
                            if found.len() > limit.saturating_mul(2) {
                                found.drain(..found.len() - limit);
                            }
                        }
                        Record::Message(_) | Record::Sequences { .. } => {}
                        change => {
                            if let Some(open) = &mut open {
                                open.count(&change);
                            }
                        }
                    }
                }
                Ok(found)
            })
            .await?;
            newest.reverse();
            found.extend(newest);
        }
    }
    if let (true, Some(table)) = (found.is_empty(), &filter.table) {
        is_captured(store, &survey, table).await?;
    }
    found.truncate(limit);
    Ok(found)
}

/// That a table none of whose changes were found could have had some, by the newest base.
async fn is_captured(store: &SourceStore, survey: &Survey, table: &TableName) -> Result<(), Error> {
    let Some(base) = survey.bases.last() else {
        return Ok(());
    };
    let manifest = SourceObject::Manifest(base.lineage, base.id);
    let manifest: BaseManifest = store.get_json(&manifest).await?;
    let entry = table.find(&manifest.tables)?;
    let why = match (entry.kind, entry.protection) {
        ('p', _) => "its rows change in its partitions; name one of those",
        (_, Protection::Full) => return Ok(()),
        _ => "it is as old as a base, whatever the target",
    };
    Err(Error::NotCaptured {
        table: printed(entry),
        why,
    })
}

impl TransactionFilter {
    /// `before` is the latest commit time of all segments before this one; `after` the first moment known
    /// to be later than its own: until then what was replicated may have been committed.
    fn may_match(
        &self,
        key: &SegmentKey,
        before: Option<PgTimestamp>,
        after: Option<PgTimestamp>,
    ) -> bool {
        if key.is_empty() {
            return false;
        }
        let latest = after.map(|time| time.as_micros().saturating_add(DISORDER_MICROS));
        let earliest = before.map(|time| time.as_micros().saturating_sub(DISORDER_MICROS));
        self.since
            .is_none_or(|since| latest.is_none_or(|latest| latest >= since.as_micros()))
            && match (self.until, earliest) {
                (Some(until), Some(earliest)) => earliest <= until.as_micros(),
                (None, _) | (_, None) => true,
            }
    }

    fn matches(&self, transaction: &Transaction) -> bool {
        let rows = transaction.tables.iter().filter(|changes| {
            self.table
                .as_ref()
                .is_none_or(|table| table.is(&changes.schema, &changes.table))
        });
        let (mut count, mut any) = (0_u64, false);
        for changes in rows {
            any = true;
            let rows = [changes.inserts, changes.updates, changes.deletes];
            count = rows.into_iter().fold(count, u64::saturating_add);
            if changes.truncates > 0 {
                count = u64::MAX;
            }
        }
        (any || self.table.is_none())
            && count >= self.min_rows
            && self
                .since
                .is_none_or(|since| transaction.until.unwrap_or(transaction.time) >= since)
            && self.until.is_none_or(|until| transaction.time <= until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boundary::TableChanges;
    use lastgood_proto::key::SegmentKind;
    use lastgood_proto::{Lsn, Xid};

    fn time(seconds: i64) -> PgTimestamp {
        PgTimestamp::from_micros(seconds * 1_000_000)
    }

    fn update(table: &str, updates: u64) -> Transaction {
        Transaction {
            xid: Xid::new(1),
            commit_lsn: Lsn::new(1),
            end_lsn: Lsn::new(2),
            time: time(1000),
            until: None,
            tables: vec![TableChanges {
                schema: "public".to_owned(),
                table: table.to_owned(),
                inserts: 0,
                updates,
                deletes: 0,
                truncates: 0,
            }],
        }
    }

    #[test]
    fn rows_are_counted_in_the_table_asked_for() {
        let table = Some(TableName::parse("users").unwrap());
        let filter = TransactionFilter {
            table,
            min_rows: 10,
            ..TransactionFilter::default()
        };
        assert!(filter.matches(&update("users", 10)));
        assert!(!filter.matches(&update("users", 9)));
        assert!(!filter.matches(&update("orders", 10)));
        let mut truncated = update("users", 0);
        truncated.tables[0].truncates = 1;
        assert!(filter.matches(&truncated));
    }

    #[test]
    fn only_segments_that_can_hold_it_are_opened() {
        let key = SegmentKey {
            start: Lsn::new(1),
            end: Lsn::new(2),
            max_commit_time: Some(time(1000)),
            observed_through: None,
            kind: SegmentKind::Captured,
        };
        let filter = |since: Option<i64>, until: Option<i64>| TransactionFilter {
            since: since.map(time),
            until: until.map(time),
            ..TransactionFilter::default()
        };
        let before = Some(time(999));
        let after = Some(time(1005));
        assert!(filter(None, None).may_match(&key, None, None));
        assert!(filter(Some(1000), Some(1000)).may_match(&key, before, after));
        assert!(filter(Some(1065), None).may_match(&key, None, after));
        assert!(!filter(Some(1066), None).may_match(&key, None, after));
        // Nothing later is known: what was replicated may have been committed at any time.
        assert!(filter(Some(1066), None).may_match(&key, None, None));
        assert!(filter(None, Some(940)).may_match(&key, Some(time(1000)), after));
        assert!(!filter(None, Some(939)).may_match(&key, Some(time(1000)), after));
        let empty = SegmentKey {
            max_commit_time: None,
            ..key
        };
        assert!(!filter(None, None).may_match(&empty, None, None));
    }
}
