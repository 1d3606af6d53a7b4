//! Rows that a base need not dump again: those of tables that nothing but captured changes has touched
//! since an earlier base. So a migration costs a dump of the definitions and of the tables it altered,
//! whatever the size of the others, and what came after it can be restored that much sooner.
//!
//! Whether a table was touched is told by its catalog rows alone: every command that changes rows
//! without decoding them leaves another storage file, another column, another type, or another row of
//! the publication. TRUNCATE, VACUUM FULL and CLUSTER also leave another storage file; they cost a dump
//! of the table that was not needed. The one command that alters a table and not its rows, ADD COLUMN
//! without a volatile default, is understood: the rows are borrowed without the new columns.

use std::collections::{BTreeMap, BTreeSet};

use lastgood_proto::key::SourceObject;
use lastgood_proto::manifest::{AddedColumns, BaseManifest, Borrowed, Protection, TableEntry};
use lastgood_proto::{BaseId, LineageId, Oid, encoding};
use lastgood_store::SourceStore;
use tokio_postgres::{Client, Row};

use crate::error::{Error, chain};

/// More names than this are not given to `pg_dump`: it looks each up by a query of its own.
const BORROWED_MAX: usize = 5000;

/// A digest for each published table, of all that its rows' text depends on beside the changes of the
/// stream: storage, columns with what they were altered by (`xmin`), identity, checks (which rows have to
/// satisfy when they are loaded), the publication and the table's place in it, and the definitions of
/// types that are not PostgreSQL's own. Of some tables only the first columns count.
const UNALTERED: &str = r"
WITH RECURSIVE wanted(rel, most) AS (
    SELECT r.prrelid, coalesce(first.most, 32767)
    FROM pg_publication_rel r LEFT JOIN unnest($2::oid[], $3::int4[]) first(rel, most) ON first.rel = r.prrelid
    WHERE r.prpubid = $1),
used(rel, typ) AS (
    SELECT a.attrelid, a.atttypid
    FROM wanted JOIN pg_attribute a ON a.attrelid = wanted.rel AND a.attnum BETWEEN 1 AND wanted.most
    WHERE NOT a.attisdropped AND a.atttypid >= 16384
    UNION
    SELECT used.rel, part.typ
    FROM used JOIN pg_type t ON t.oid = used.typ
    CROSS JOIN LATERAL (
        SELECT t.typelem
        UNION ALL SELECT t.typbasetype
        UNION ALL SELECT g.rngsubtype FROM pg_range g
                  WHERE g.rngtypid = t.oid OR to_jsonb(g)->>'rngmultitypid' = t.oid::text
        UNION ALL SELECT a.atttypid FROM pg_attribute a
                  WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0
                    AND NOT a.attisdropped) part(typ)
    WHERE part.typ >= 16384),
types(typ, definition) AS (
    SELECT t.oid, concat_ws(' ', t.oid, t.typtype, t.typbasetype, t.typtypmod, t.typnotnull,
        (SELECT string_agg(concat_ws(':', e.oid, e.enumlabel), ',' ORDER BY e.oid)
         FROM pg_enum e WHERE e.enumtypid = t.oid),
        (SELECT string_agg(concat_ws(':', a.attnum, a.attname, a.atttypid, a.atttypmod,
                                     a.attisdropped, a.xmin), ',' ORDER BY a.attnum)
         FROM pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0),
        (SELECT string_agg(pg_get_constraintdef(o.oid), ';' ORDER BY o.oid)
         FROM pg_constraint o WHERE o.contypid = t.oid),
        (SELECT string_agg(e.extversion, ',') FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
         WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid
           AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'))
    FROM pg_type t WHERE t.oid IN (SELECT typ FROM used))
SELECT c.oid, md5(concat_ws(' ', c.oid, c.relfilenode, c.relpersistence, c.relreplident,
    p.oid, p.xmin, r.oid, r.xmin,
    (SELECT string_agg(x.indexrelid::text, ',' ORDER BY x.indexrelid) FROM pg_index x
     WHERE x.indrelid = c.oid AND x.indisvalid AND (x.indisprimary OR x.indisreplident)),
    (SELECT string_agg(concat_ws(':', a.attnum, a.attname, a.atttypid, a.atttypmod,
                                 a.attisdropped, a.xmin), ',' ORDER BY a.attnum)
     FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum BETWEEN 1 AND wanted.most),
    (SELECT string_agg(pg_get_constraintdef(o.oid), ';' ORDER BY o.oid)
     FROM pg_constraint o WHERE o.conrelid = c.oid AND o.contype = 'c'),
    (SELECT string_agg(types.definition, ';' ORDER BY types.typ)
     FROM used JOIN types ON types.typ = used.typ WHERE used.rel = c.oid))), c.relnatts::int4
FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid
JOIN wanted ON wanted.rel = c.oid
WHERE p.oid = $1 AND c.relkind = 'r'";

/// Columns behind the first ones of some tables: whether they are still there, in the order in which they
/// come in the stream, behind others; and what rows that were not written anew have there.
const ADDED: &str = r"
SELECT a.attrelid, NOT a.attisdropped AND NOT EXISTS (
           SELECT FROM pg_attribute g WHERE g.attrelid = a.attrelid AND g.attnum > 0 AND g.attgenerated <> '')
       AND EXISTS (
           SELECT FROM pg_attribute o WHERE o.attrelid = a.attrelid AND o.attnum BETWEEN 1 AND first.most
              AND NOT o.attisdropped),
       CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END
FROM unnest($1::oid[], $2::int4[]) first(rel, most)
JOIN pg_attribute a ON a.attrelid = first.rel AND a.attnum > first.most
ORDER BY a.attrelid, a.attnum";

/// What a table's rows depend on.
pub(super) struct Mark {
    pub(super) unaltered: String,
    /// `pg_class.relnatts`.
    pub(super) attributes: u32,
}

/// By table, as the client's snapshot has it; of the tables in `first` only so many columns count.
pub(super) async fn marks(
    client: &Client,
    publication: Oid,
    first: &BTreeMap<Oid, u32>,
) -> Result<BTreeMap<Oid, Mark>, Error> {
    let (tables, most) = unzipped(first);
    let rows = client
        .query(UNALTERED, &[&publication.get(), &tables, &most])
        .await
        .map_err(Error::sql("reading what rows depend on"))?;
    let mark = |row: &Row| Mark {
        unaltered: row.get(1),
        attributes: u32::try_from(row.get::<_, i32>(2)).unwrap_or(0),
    };
    Ok(rows
        .iter()
        .map(|row| (Oid::new(row.get(0)), mark(row)))
        .collect())
}

fn unzipped(first: &BTreeMap<Oid, u32>) -> (Vec<u32>, Vec<i32>) {
    let first = first.iter();
    first
        .map(|(table, most)| (table.get(), i32::try_from(*most).unwrap_or(0)))
        .unzip()
}

/// The newest base of the lineage, to borrow from. None, if that cannot be read: then everything is
/// dumped.
pub(super) async fn newest(store: &SourceStore, lineage: LineageId) -> Option<BaseManifest> {
    let read = async {
        let listing = store.list().await?;
        let bases = listing.lineage(lineage).map(|lineage| &lineage.bases);
        let Some(newest) = bases.and_then(|bases| bases.last()) else {
            return Ok(None);
        };
        let object = SourceObject::Manifest(lineage, *newest);
        store.get_json(&object).await.map(Some)
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

/// What a base of now is made with.
pub(super) struct Now<'a> {
    /// Under the base's snapshot.
    pub(super) client: &'a Client,
    pub(super) publication: Oid,
    pub(super) server_version: u32,
    pub(super) pg_dump_version: &'a str,
    pub(super) encoding: &'a str,
}

impl Now<'_> {
    /// Which of `tables` need not be dumped. All that can be borrowed is, unless it comes to less than
    /// `worth_bytes`: one archive with everything is simpler.
    pub(super) async fn borrows(
        &self,
        newest: &BaseManifest,
        tables: &[TableEntry],
        worth_bytes: u64,
    ) -> Result<Vec<Borrowed>, Error> {
        let read_alike = newest.server_version == self.server_version
            && newest.pg_dump_version == self.pg_dump_version
            && newest.encoding == self.encoding;
        if !read_alike {
            return Ok(Vec::new());
        }
        let pairs = pairs(newest, tables);
        let mut grown = self.grown(&pairs).await?;
        let mut untouched: Vec<(&TableEntry, Vec<Option<String>>)> = pairs
            .into_iter()
            .filter_map(
                |(before, table)| match before.unaltered == table.unaltered {
                    true => Some((table, Vec::new())),
                    false => Some((table, grown.remove(&table.oid)?)),
                },
            )
            .collect();
        untouched.sort_by_key(|(table, _)| std::cmp::Reverse(table.bytes));
        untouched.truncate(BORROWED_MAX);
        let bytes: u64 = untouched.iter().map(|(table, _)| table.bytes).sum();
        if bytes < worth_bytes {
            return Ok(Vec::new());
        }
        let mut lenders: BTreeMap<BaseId, Borrowed> = BTreeMap::new();
        for (table, more) in untouched {
            let base = newest.lender(table.oid).unwrap_or(newest.id);
            let lent = lenders.entry(base).or_insert_with(|| Borrowed {
                base,
                tables: Vec::new(),
                added: Vec::new(),
            });
            lent.tables.push(table.oid);
            let values = [newest.added(table.oid), &more].concat();
            if !values.is_empty() {
                let table = table.oid;
                lent.added.push(AddedColumns { table, values });
            }
        }
        let mut lenders: Vec<Borrowed> = lenders.into_values().collect();
        for lent in &mut lenders {
            lent.tables.sort();
        }
        Ok(lenders)
    }

    /// Tables that got columns, and nothing else happened to their rows: ADD COLUMN leaves the rows there are
    /// as they are. What they have in the new columns is in the catalog.
    async fn grown(
        &self,
        pairs: &[(&TableEntry, &TableEntry)],
    ) -> Result<BTreeMap<Oid, Vec<Option<String>>>, Error> {
        let mut grown: BTreeMap<Oid, Vec<Option<String>>> = BTreeMap::new();
        // The values come as UTF-8, and go into what an archive is in.
        if encoding::sent_in(self.encoding) != "UTF8" {
            return Ok(grown);
        }
        let wider = pairs.iter().filter_map(|(before, table)| {
            let (first, all) = (before.attributes?, table.attributes?);
            (first < all && before.unaltered != table.unaltered).then_some((table.oid, first))
        });
        let mut first: BTreeMap<Oid, u32> = wider.collect();
        if first.is_empty() {
            return Ok(grown);
        }
        let marks = marks(self.client, self.publication, &first).await?;
        let before: BTreeMap<Oid, &TableEntry> = pairs
            .iter()
            .map(|(before, table)| (table.oid, *before))
            .collect();
        first.retain(|table, _| {
            let was = before
                .get(table)
                .and_then(|before| before.unaltered.as_ref());
            marks.get(table).map(|mark| &mark.unaltered) == was
        });
        let (tables, most) = unzipped(&first);
        let rows = self.client.query(ADDED, &[&tables, &most]).await;
        let rows = rows.map_err(Error::sql("reading added columns"))?;
        let mut unfit = BTreeSet::new();
        for row in rows {
            let table = Oid::new(row.get(0));
            if !row.get::<_, bool>(1) {
                unfit.insert(table);
            }
            grown.entry(table).or_default().push(row.get(2));
        }
        grown.retain(|table, _| !unfit.contains(table));
        Ok(grown)
    }
}

/// Captured tables as they were in the newest base and as they are, if they have kept their names.
fn pairs<'a>(
    newest: &'a BaseManifest,
    tables: &'a [TableEntry],
) -> Vec<(&'a TableEntry, &'a TableEntry)> {
    let is_captured =
        |table: &&TableEntry| table.protection == Protection::Full && table.unaltered.is_some();
    let before = newest.tables.iter().filter(is_captured);
    let before: BTreeMap<Oid, &TableEntry> = before.map(|table| (table.oid, table)).collect();
    let pairs = tables.iter().filter(is_captured).filter_map(|table| {
        let before = *before.get(&table.oid)?;
        (before.schema == table.schema && before.name == table.name).then_some((before, table))
    });
    pairs.collect()
}
