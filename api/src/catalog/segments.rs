//! The index of segments.

use lastgood_proto::key::{SegmentKey, SegmentKind};
use lastgood_proto::listing::GivenUp;
use lastgood_proto::{LineageId, Lsn, SourceId};
use rusqlite::{Row, Transaction, params};

use super::{Catalog, Result, all, count, first, lsn, lsn_text, maybe_time, number, parsed};

/// A segment the repository holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SegmentRow {
    pub(crate) lineage: LineageId,
    pub(crate) key: SegmentKey,
    /// Absent if a listing told of it.
    pub(crate) stored_bytes: Option<u64>,
}

/// Sums over the segments of one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SegmentTotals {
    pub(crate) segments: u64,
    pub(crate) stored_bytes: u64,
}

impl Catalog {
    pub(crate) async fn insert_segment(&self, source: SourceId, row: SegmentRow) -> Result<()> {
        self.transact(move |transaction| put(transaction, source, &row))
            .await
    }

    /// A merged segment takes the place of all that lie within its range.
    pub(crate) async fn merge_segments(
        &self,
        source: SourceId,
        lineage: LineageId,
        key: SegmentKey,
        stored_bytes: u64,
    ) -> Result<()> {
        self.transact(move |transaction| {
            transaction.execute(
                "DELETE FROM segment
                 WHERE source = ?1 AND lineage = ?2 AND start_lsn >= ?3 AND end_lsn <= ?4",
                params![
                    source.to_string(),
                    lineage.to_string(),
                    lsn_text(key.start),
                    lsn_text(key.end)
                ],
            )?;
            let row = SegmentRow {
                lineage,
                key,
                stored_bytes: Some(stored_bytes),
            };
            put(transaction, source, &row)
        })
        .await
    }

    /// Forget what retention has deleted of a lineage.
    pub(crate) async fn forget_given_up(
        &self,
        source: SourceId,
        lineage: LineageId,
        gone: GivenUp,
    ) -> Result<()> {
        self.transact(move |transaction| {
            let (source, lineage) = (source.to_string(), lineage.to_string());
            transaction.execute(
                "DELETE FROM segment WHERE source = ?1 AND lineage = ?2 AND end_lsn <= ?3",
                params![source, lineage, lsn_text(gone.before)],
            )?;
            for base in gone.bases {
                transaction.execute(
                    "DELETE FROM base WHERE source = ?1 AND lineage = ?2 AND base = ?3",
                    params![source, lineage, base.to_string()],
                )?;
            }
            Ok(())
        })
        .await
    }

    /// Make the index equal to what a listing of the repository says.
    pub(crate) async fn replace_segments(
        &self,
        source: SourceId,
        rows: Vec<SegmentRow>,
    ) -> Result<()> {
        self.transact(move |transaction| {
            transaction.execute_batch(
                "CREATE TEMP TABLE IF NOT EXISTS listed
                     (lineage TEXT, start_lsn TEXT, PRIMARY KEY (lineage, start_lsn));
                 DELETE FROM listed;",
            )?;
            let mut listed = transaction.prepare("INSERT INTO listed VALUES (?1, ?2)")?;
            for row in &rows {
                put(transaction, source, row)?;
                listed.execute(params![row.lineage.to_string(), lsn_text(row.key.start)])?;
            }
            transaction.execute(
                "DELETE FROM segment
                 WHERE source = ?1 AND (lineage, start_lsn) NOT IN (SELECT * FROM listed)",
                [source.to_string()],
            )?;
            Ok(())
        })
        .await
    }

    /// Segments in the order of lineage and LSN, after `after`.
    pub(crate) async fn segments(
        &self,
        source: SourceId,
        after: Option<(LineageId, Lsn)>,
        limit: usize,
    ) -> Result<Vec<SegmentRow>> {
        let (lineage, start) = match after {
            Some((lineage, start)) => (lineage.to_string(), lsn_text(start)),
            None => (String::new(), String::new()),
        };
        self.transact(move |transaction| {
            all(
                transaction,
                "SELECT * FROM segment
                 WHERE source = ?1 AND (lineage, start_lsn) > (?2, ?3)
                 ORDER BY lineage, start_lsn LIMIT ?4",
                params![source.to_string(), lineage, start, count(limit as u64)],
                segment_row,
            )
        })
        .await
    }

    /// The newest segment of the newest lineage.
    pub(crate) async fn last_segment(&self, source: SourceId) -> Result<Option<SegmentRow>> {
        self.transact(move |transaction| {
            first(
                transaction,
                "SELECT * FROM segment WHERE source = ?1
                 ORDER BY lineage DESC, start_lsn DESC LIMIT 1",
                [source.to_string()],
                segment_row,
            )
        })
        .await
    }

    pub(crate) async fn segment_totals(&self, source: SourceId) -> Result<SegmentTotals> {
        self.transact(move |transaction| {
            let totals = first(
                transaction,
                "SELECT count(*) AS segments, coalesce(sum(stored_bytes), 0) AS stored_bytes
                 FROM segment WHERE source = ?1",
                [source.to_string()],
                |row| {
                    Ok(SegmentTotals {
                        segments: number(row, "segments")?,
                        stored_bytes: number(row, "stored_bytes")?,
                    })
                },
            )?;
            Ok(totals.unwrap_or_default())
        })
        .await
    }
}

fn put(transaction: &Transaction<'_>, source: SourceId, row: &SegmentRow) -> Result<()> {
    transaction
        .prepare_cached(
            "INSERT INTO segment VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT (source, lineage, start_lsn) DO UPDATE
             SET end_lsn = excluded.end_lsn, max_commit_time = excluded.max_commit_time,
                 observed_through = excluded.observed_through,
                 stored_bytes = coalesce(excluded.stored_bytes, stored_bytes),
                 merged = excluded.merged",
        )?
        .execute(params![
            source.to_string(),
            row.lineage.to_string(),
            lsn_text(row.key.start),
            lsn_text(row.key.end),
            row.key.max_commit_time.map(|time| time.as_unix_micros()),
            row.key.observed_through.map(|time| time.as_unix_micros()),
            row.stored_bytes.map(count),
            row.key.kind == SegmentKind::Merged,
        ])?;
    Ok(())
}

fn segment_row(row: &Row<'_>) -> Result<SegmentRow> {
    Ok(SegmentRow {
        lineage: parsed(row, "lineage")?,
        key: SegmentKey {
            start: lsn(row, "start_lsn")?,
            end: lsn(row, "end_lsn")?,
            max_commit_time: maybe_time(row, "max_commit_time")?,
            observed_through: maybe_time(row, "observed_through")?,
            kind: match row.get("merged")? {
                true => SegmentKind::Merged,
                false => SegmentKind::Captured,
            },
        },
        stored_bytes: row
            .get::<_, Option<i64>>("stored_bytes")?
            .map(i64::cast_unsigned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Seal;
    use crate::catalog::sources::tests::source;

    fn segment(start: u64, end: u64, stored_bytes: Option<u64>) -> SegmentRow {
        SegmentRow {
            lineage: LineageId::new(1, 1),
            key: SegmentKey {
                start: Lsn::new(start),
                end: Lsn::new(end),
                max_commit_time: None,
                observed_through: None,
                kind: SegmentKind::Captured,
            },
            stored_bytes,
        }
    }

    #[tokio::test]
    async fn the_index_follows_events_and_listings() {
        let catalog = Catalog::in_memory();
        let row = source(1, "shop");
        let id = row.id;
        catalog
            .insert_source(&Seal::new(&[1; 32]), row, Some("host=db"))
            .await
            .unwrap();
        for (start, end) in [(1, 0x10), (0x10, 0x200), (0x200, 0x300)] {
            catalog
                .insert_segment(id, segment(start, end, Some(10)))
                .await
                .unwrap();
        }
        let page = catalog.segments(id, None, 2).await.unwrap();
        assert_eq!(page.len(), 2);
        let after = Some((page[1].lineage, page[1].key.start));
        let rest = catalog.segments(id, after, 2).await.unwrap();
        assert_eq!(rest, [segment(0x200, 0x300, Some(10))]);

        let listed = vec![segment(0x10, 0x200, None), segment(0x200, 0x300, None)];
        catalog.replace_segments(id, listed).await.unwrap();
        let totals = catalog.segment_totals(id).await.unwrap();
        assert_eq!((totals.segments, totals.stored_bytes), (2, 20));

        let mut merged = segment(0x10, 0x300, Some(15));
        merged.key.kind = SegmentKind::Merged;
        let key = merged.key;
        catalog
            .merge_segments(id, merged.lineage, key, 15)
            .await
            .unwrap();
        assert_eq!(catalog.segments(id, None, 9).await.unwrap(), [merged]);
    }
}
