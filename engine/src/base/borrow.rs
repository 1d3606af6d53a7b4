//! Rows that a base need not dump again: those of tables that nothing but captured changes has touched
//! since an earlier base. So a migration costs a dump of the definitions and of the tables it altered,
//! whatever the size of the others, and what came after it can be restored that much sooner.
//!
//! Whether a table was touched is told by its catalog rows alone: every command that changes rows
//! without decoding them leaves another storage file, another type, or another row of
//! the publication. TRUNCATE, VACUUM FULL and CLUSTER also leave another storage file; they cost a dump
//! of the table that was not needed. Columns may be altered as long as no row is written anew (`columns`).

use std::collections::BTreeMap;

use lastgood_proto::key::SourceObject;
use lastgood_proto::listing::LineageListing;
use lastgood_proto::manifest::{AlteredTable, BaseManifest, Borrowed, Protection, TableEntry};
use lastgood_proto::{BaseId, LineageId, Oid, encoding};
use lastgood_store::SourceStore;
use tokio_postgres::Client;

use super::columns::{Missing, Step};
use super::mark::Mark;
use crate::error::{Error, chain};

/// More names than this are not given to `pg_dump`: it looks each up by a query of its own.
const BORROWED_MAX: usize = 5000;
/// So many bytes are not dumped again, however much has changed since.
const WORTH_BYTES: u64 = 1 << 30;

/// New columns, and what rows that were not written anew have there: null, where nothing else stands. And whether that
/// can be told: they are of types whose text means the same always and is parted by commas: PostgreSQL's own,
/// and enums whose labels are all as they were made, by the very command that made the type, or older than $3.
const MISSING: &str = r"
SELECT a.attrelid, a.attnum::int4,
       t.typdelim = ',' AND t.typname !~ '^_?(reg|aclitem$)'
       AND (t.oid < 16384 OR enum.typtype = 'e' AND NOT EXISTS (
                SELECT FROM pg_enum e WHERE e.enumtypid = enum.oid
                   AND (e.xmin <> enum.xmin OR e.cmin::text <> enum.cmin::text)
                   AND NOT coalesce(age(e.xmin) > age($3::text::xid), false))),
       CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END
FROM unnest($1::oid[], $2::int4[]) one(rel, number)
JOIN pg_attribute a ON a.attrelid = one.rel AND a.attnum = one.number
JOIN pg_type t ON t.oid = a.atttypid
LEFT JOIN pg_type enum ON enum.oid = CASE WHEN t.typcategory = 'A' THEN t.typelem ELSE t.oid END
ORDER BY 1, 2";

/// The newest base of the lineage, to borrow from. None, if it cannot be read or is of no use itself: then
/// everything is dumped, and what comes later stands on that.
pub(super) async fn newest(store: &SourceStore, lineage: LineageId) -> Option<BaseManifest> {
    let read = async {
        let listing = store.list().await?;
        let Some(lineage) = listing.lineage(lineage) else {
            return Ok(None);
        };
        let Some(newest) = lineage.bases.last() else {
            return Ok(None);
        };
        let object = SourceObject::Manifest(lineage.id, *newest);
        let newest: BaseManifest = store.get_json(&object).await?;
        // Behind a hole nothing can be brought up to now.
        let lends = is_usable(&newest, lineage) && lineage.orphans.is_empty();
        Ok(lends.then_some(newest))
    };
    match read.await {
        Ok(newest) => newest,
        Err(error) => {
            let error: lastgood_store::Error = error;
            tracing::warn!(error = chain(&error), "the newest base cannot be read");
            None
        }
    }
}

/// A segment's NDJSON is about so many times what is stored.
const COMPRESSED: u64 = 8;

/// About what was captured since the oldest rows of a base. (Not the WAL, which is of all databases.)
pub(super) async fn changes_bytes(
    store: &SourceStore,
    lineage: LineageId,
    base: &BaseManifest,
) -> Result<u64, Error> {
    let since = base.rows_from();
    let captured = store.segments_from(lineage, since).await?;
    let merged = store.merged_segments(lineage).await?;
    let merged = merged.iter().filter(
        |entry| matches!(&entry.object, SourceObject::Segment(_, key) if key.start >= since),
    );
    let stored: u64 = captured.iter().chain(merged).map(|entry| entry.bytes).sum();
    Ok(stored.saturating_mul(COMPRESSED))
}

/// Whether a base has everything itself, or its lenders and the changes since.
pub(crate) fn is_usable(base: &BaseManifest, lineage: &LineageListing) -> bool {
    let starts = lineage.segments.first().map(|first| first.start);
    base.borrowed.is_empty()
        || has_lenders(&base.borrowed, lineage)
            && lineage.orphans.is_empty()
            && starts.is_none_or(|start| start <= base.rows_from())
}

/// Whether the lenders are all there, and nobody has given them up.
pub(super) fn has_lenders(borrowed: &[Borrowed], lineage: &LineageListing) -> bool {
    let mut lenders = borrowed.iter().map(|lent| lent.base);
    lenders.all(|lender| lineage.bases.contains(&lender))
}

/// What a base of now is made with.
pub(super) struct Now<'a> {
    /// About what a restore goes through instead of the rows that are spared.
    pub(super) changes_bytes: u64,
    /// Under the base's snapshot.
    pub(super) client: &'a Client,
    pub(super) marks: &'a BTreeMap<Oid, Mark>,
    pub(super) server_version: u32,
    pub(super) pg_dump_version: &'a str,
    pub(super) encoding: &'a str,
    pub(super) snapshot_xmin: u64,
    pub(super) definitions: &'a Option<String>,
}

impl Now<'_> {
    /// Which of `tables` need not be dumped. All that can be borrowed is, unless it comes to less than the
    /// changes since, which a restore would go through instead, and than [`WORTH_BYTES`].
    pub(super) async fn borrows(
        &self,
        newest: &BaseManifest,
        tables: &[TableEntry],
    ) -> Result<Vec<Borrowed>, Error> {
        let read_alike = newest.server_version == self.server_version
            && newest.pg_dump_version == self.pg_dump_version
            && newest.encoding == self.encoding;
        if !read_alike {
            return Ok(Vec::new());
        }
        let mut untouched = self.untouched(newest, tables).await?;
        untouched.sort_by_key(|(table, _)| std::cmp::Reverse(table.bytes));
        untouched.truncate(BORROWED_MAX);
        let bytes: u64 = untouched.iter().map(|(table, _)| table.bytes).sum();
        if bytes < self.changes_bytes.min(WORTH_BYTES) {
            return Ok(Vec::new());
        }
        let mut lenders: BTreeMap<BaseId, Borrowed> = BTreeMap::new();
        for (table, altered) in untouched {
            let base = newest.lender(table.oid).unwrap_or(newest.id);
            let lent = lenders.entry(base).or_insert_with(|| Borrowed {
                base,
                tables: Vec::new(),
                altered: Vec::new(),
            });
            lent.tables.push(table.oid);
            lent.altered.extend(altered);
        }
        let mut lenders: Vec<Borrowed> = lenders.into_values().collect();
        for lent in &mut lenders {
            lent.tables.sort();
            lent.altered.sort_by_key(|altered| altered.table);
        }
        Ok(lenders)
    }

    /// Captured tables whose rows are those of the newest base with the changes since, and what became of their
    /// columns since the lender.
    async fn untouched<'t>(
        &self,
        newest: &BaseManifest,
        tables: &'t [TableEntry],
    ) -> Result<Vec<(&'t TableEntry, Option<AlteredTable>)>, Error> {
        let is_captured =
            |table: &&TableEntry| table.protection == Protection::Full && table.unaltered.is_some();
        let before = newest.tables.iter().filter(is_captured);
        let before: BTreeMap<Oid, &TableEntry> = before.map(|table| (table.oid, table)).collect();
        let pairs = tables.iter().filter(is_captured);
        let pairs = pairs.filter_map(|table| Some((*before.get(&table.oid)?, table)));
        let is_redefined = newest.definitions.is_none() || newest.definitions != *self.definitions;
        // A transaction id that is too old to be compared with others' says nothing.
        let xmin = newest.snapshot_xmin;
        let xmin = xmin.filter(|xmin| self.snapshot_xmin.saturating_sub(*xmin) < 1 << 31);
        let older = xmin.map(|xmin| (xmin & u64::from(u32::MAX)).to_string());
        let mut steps = Vec::new();
        for (before, table) in pairs {
            if let Some(mark) = self.marks.get(&table.oid)
                && let Some(step) = Step::between(before, mark, is_redefined)
            {
                steps.push((before, table, mark, step));
            }
        }
        let new = steps
            .iter()
            .map(|(_, table, _, step)| (table.oid, step.new.as_slice()));
        let mut missing = self.missing(new, older.as_deref()).await?;
        let mut untouched = Vec::new();
        for (before, table, mark, step) in steps {
            let missing = missing.remove(&table.oid).unwrap_or_default();
            let altered = newest.altered(table.oid).cloned();
            let at = newest.consistent_point;
            if let Some(altered) = step.take(at, before, mark, missing, altered) {
                untouched.push((table, altered));
            }
        }
        Ok(untouched)
    }

    /// What rows have in columns they lack, by table and number; nothing of a column where that cannot be told.
    async fn missing(
        &self,
        new: impl Iterator<Item = (Oid, &[u32])>,
        older: Option<&str>,
    ) -> Result<BTreeMap<Oid, Missing>, Error> {
        let new =
            new.flat_map(|(table, numbers)| numbers.iter().map(move |number| (table, *number)));
        let (tables, numbers): (Vec<u32>, Vec<i32>) = new
            .map(|(table, number)| (table.get(), i32::try_from(number).unwrap_or(0)))
            .unzip();
        let mut missing: BTreeMap<Oid, Missing> = BTreeMap::new();
        if tables.is_empty() {
            return Ok(missing);
        }
        let rows = self
            .client
            .query(MISSING, &[&tables, &numbers, &older])
            .await;
        for row in rows.map_err(Error::sql("reading added columns"))? {
            let number = u32::try_from(row.get::<_, i32>(1)).unwrap_or(0);
            let value: Option<String> = row.get(3);
            // The values come as UTF-8, and go into what an archive is in.
            let fits = encoding::sent_in(self.encoding) == "UTF8"
                || value.as_ref().is_none_or(|value| value.is_ascii());
            if row.get(2) && fits {
                let table = Oid::new(row.get(0));
                missing.entry(table).or_default().insert(number, value);
            }
        }
        Ok(missing)
    }
}

#[cfg(test)]
mod tests;
