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
use lastgood_proto::listing::LineageListing;
use lastgood_proto::manifest::{AddedColumns, BaseManifest, Borrowed, Protection, TableEntry};
use lastgood_proto::{BaseId, LineageId, Oid, encoding};
use lastgood_store::SourceStore;
use tokio_postgres::{Client, Row};

use crate::error::{Error, chain};

/// More names than this are not given to `pg_dump`: it looks each up by a query of its own.
const BORROWED_MAX: usize = 5000;

/// A digest for each published table, of all that its rows' text depends on beside the changes of the
/// stream: storage, columns, identity, checks (which rows have to satisfy when they are loaded), the
/// publication and the table's place in it, and the definitions of types that are not PostgreSQL's own;
/// each with its `xmin`, because what was changed there and back has left text in the stream that means
/// something else. Of some tables only the first columns count. None for a table with values that are
/// printed as names of other objects, which may be renamed.
const UNALTERED: &str = r"
WITH RECURSIVE wanted(rel, most) AS (
    SELECT r.prrelid, coalesce(first.most, 32767)
    FROM pg_publication_rel r LEFT JOIN unnest($2::oid[], $3::int4[]) first(rel, most) ON first.rel = r.prrelid
    WHERE r.prpubid = $1 AND (cardinality($2::oid[]) = 0 OR first.rel IS NOT NULL)),
named(typ) AS (
    SELECT t.oid FROM pg_type t
    WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.typname ~ '^_?(reg|aclitem$)'),
used(rel, typ) AS (
    SELECT a.attrelid, a.atttypid
    FROM wanted JOIN pg_attribute a ON a.attrelid = wanted.rel AND a.attnum BETWEEN 1 AND wanted.most
    WHERE NOT a.attisdropped AND (a.atttypid >= 16384 OR a.atttypid IN (SELECT typ FROM named))
    UNION
    SELECT used.rel, part.typ
    FROM used JOIN pg_type t ON t.oid = used.typ AND t.oid >= 16384
    CROSS JOIN LATERAL (
        SELECT t.typelem
        UNION ALL SELECT t.typbasetype
        UNION ALL SELECT g.rngsubtype FROM pg_range g
                  WHERE g.rngtypid = t.oid OR to_jsonb(g)->>'rngmultitypid' = t.oid::text
        UNION ALL SELECT a.atttypid FROM pg_attribute a
                  WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0
                    AND NOT a.attisdropped) part(typ)
    WHERE part.typ >= 16384 OR part.typ IN (SELECT typ FROM named)),
types(typ, definition) AS (
    SELECT t.oid, concat_ws(' ', t.oid, t.xmin, t.typtype, t.typbasetype, t.typtypmod, t.typnotnull,
        (SELECT string_agg(concat_ws(':', e.oid, e.xmin, e.enumlabel), ',' ORDER BY e.oid)
         FROM pg_enum e WHERE e.enumtypid = t.oid),
        (SELECT string_agg(concat_ws(':', a.attnum, a.xmin, a.attname, a.atttypid, a.atttypmod,
                                     a.attisdropped), ',' ORDER BY a.attnum)
         FROM pg_attribute a WHERE t.typtype = 'c' AND a.attrelid = t.typrelid AND a.attnum > 0),
        (SELECT string_agg(concat_ws(':', o.oid, o.xmin), ',' ORDER BY o.oid)
         FROM pg_constraint o WHERE o.contypid = t.oid),
        (SELECT string_agg(e.extversion, ',') FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
         WHERE d.classid = 'pg_type'::regclass AND d.objid = t.oid
           AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'e'))
    FROM pg_type t WHERE t.oid IN (SELECT typ FROM used)),
own(rel, definitions, is_named) AS (
    SELECT used.rel, string_agg(types.definition, ';' ORDER BY types.typ), bool_or(named.typ IS NOT NULL)
    FROM used JOIN types ON types.typ = used.typ LEFT JOIN named ON named.typ = used.typ
    GROUP BY used.rel)
SELECT c.oid, md5(concat_ws(' ', c.oid, c.relfilenode, c.relpersistence, c.relreplident,
    p.oid, p.xmin, r.oid, r.xmin,
    (SELECT string_agg(x.indexrelid::text, ',' ORDER BY x.indexrelid) FROM pg_index x
     WHERE x.indrelid = c.oid AND x.indisvalid AND (x.indisprimary OR x.indisreplident)),
    (SELECT string_agg(concat_ws(':', a.attnum, a.xmin, a.attname, a.atttypid, a.atttypmod,
                                 a.attisdropped), ',' ORDER BY a.attnum)
     FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum BETWEEN 1 AND wanted.most),
    (SELECT string_agg(concat_ws(':', o.oid, o.xmin), ',' ORDER BY o.oid)
     FROM pg_constraint o WHERE o.conrelid = c.oid AND o.contype = 'c'),
    own.definitions)), c.relnatts::int4
FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid
JOIN wanted ON wanted.rel = c.oid LEFT JOIN own ON own.rel = c.oid
WHERE p.oid = $1 AND c.relkind = 'r' AND own.is_named IS NOT TRUE";

/// Columns behind the first ones of some tables, and what rows that were not written anew have there.
/// And whether that can be told: they are all there, in the order in which they come in the stream and
/// in a dump, behind others; and they are of PostgreSQL's own types, whose text means the same always
/// and is parted by commas.
const ADDED: &str = r"
SELECT a.attrelid,
       NOT a.attisdropped AND a.atttypid < 16384 AND t.typdelim = ','
       AND t.typname !~ '^_?(reg|aclitem$)'
       AND NOT EXISTS (
           SELECT FROM pg_attribute g WHERE g.attrelid = a.attrelid AND g.attnum > 0 AND g.attgenerated <> '')
       AND NOT EXISTS (
           SELECT FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid
            WHERE c.oid = a.attrelid AND NOT c.relispartition)
       AND EXISTS (
           SELECT FROM pg_attribute o WHERE o.attrelid = a.attrelid AND o.attnum BETWEEN 1 AND first.most
              AND NOT o.attisdropped),
       CASE WHEN a.atthasmissing THEN (a.attmissingval::text::text[])[1] END
FROM unnest($1::oid[], $2::int4[]) first(rel, most)
JOIN pg_attribute a ON a.attrelid = first.rel AND a.attnum > first.most
LEFT JOIN pg_type t ON t.oid = a.atttypid
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
    pub(super) publication: Oid,
    pub(super) server_version: u32,
    pub(super) pg_dump_version: &'a str,
    pub(super) encoding: &'a str,
}

impl Now<'_> {
    /// Which of `tables` need not be dumped. All that can be borrowed is, unless it comes to less than the
    /// changes since, which a restore would go through instead, and than `worth_bytes`.
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
        if bytes < self.changes_bytes.min(worth_bytes) {
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

#[cfg(test)]
mod tests {
    use super::*;
    use lastgood_integration::{TestDatabase, tools};

    /// What becomes of the rows of a table.
    #[derive(Debug, PartialEq, Eq)]
    enum Fate {
        Borrowed,
        /// With these in new columns.
        Grown(Vec<Option<&'static str>>),
        Dumped,
    }
    use Fate::{Borrowed, Dumped, Grown};

    const TABLES: &str = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (x int, y int);
        CREATE DOMAIN small AS int CONSTRAINT small CHECK (VALUE < 100);
        CREATE TABLE t (id int PRIMARY KEY, a int CONSTRAINT positive CHECK (a > 0), gone int, m mood[], p pair, s small);
        ALTER TABLE t DROP gone; INSERT INTO t VALUES (1, 2, '{sad}', '(1,2)', 3);
        CREATE TABLE other (id int PRIMARY KEY);
        CREATE PUBLICATION pub FOR TABLE t, other";

    /// Each from a fresh start, on `t`.
    fn changes() -> Vec<(&'static str, Fate)> {
        vec![
            ("INSERT INTO t VALUES (2, 2); UPDATE t SET a = 3; ANALYZE t; GRANT SELECT ON t TO public", Borrowed),
            ("CREATE UNIQUE INDEX ON t (a); ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES other NOT VALID", Borrowed),
            ("CREATE TABLE fresh (id int PRIMARY KEY); DROP TABLE other", Borrowed),
            ("ALTER TABLE t RENAME TO u; ALTER TABLE u RENAME TO t", Borrowed),
            ("TRUNCATE t", Dumped),
            ("ALTER TABLE t ALTER a TYPE int USING a * 100", Dumped),
            ("ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME id TO a; ALTER TABLE t RENAME x TO id", Dumped),
            ("ALTER TABLE t DROP a", Dumped),
            ("ALTER TABLE t RENAME TO old; CREATE TABLE t (id int PRIMARY KEY, a int)", Dumped),
            ("ALTER TABLE t REPLICA IDENTITY FULL", Dumped),
            ("ALTER TABLE t DROP CONSTRAINT positive", Dumped),
            ("ALTER TABLE t DROP CONSTRAINT positive; ALTER TABLE t ADD CONSTRAINT positive CHECK (a > 0)", Dumped),
            ("ALTER DOMAIN small DROP CONSTRAINT small; ALTER DOMAIN small ADD CONSTRAINT small CHECK (VALUE < 100)", Dumped),
            // There and back: what came in between has other text.
            (
                "ALTER TYPE mood RENAME VALUE 'sad' TO 'x'; ALTER TYPE mood RENAME VALUE 'ok' TO 'sad';
                 ALTER TYPE mood RENAME VALUE 'x' TO 'ok'; ALTER TYPE mood RENAME VALUE 'sad' TO 'x';
                 ALTER TYPE mood RENAME VALUE 'ok' TO 'sad'; ALTER TYPE mood RENAME VALUE 'x' TO 'ok'",
                Dumped,
            ),
            ("ALTER TYPE pair ADD ATTRIBUTE z int; ALTER TYPE pair DROP ATTRIBUTE z", Dumped),
            ("ALTER PUBLICATION pub DROP TABLE t; ALTER PUBLICATION pub ADD TABLE t", Dumped),
            (
                "ALTER PUBLICATION pub SET (publish = 'insert'); \
                 ALTER PUBLICATION pub SET (publish = 'insert, update, delete, truncate')",
                Dumped,
            ),
            ("ALTER TABLE t ADD b int", Grown(vec![None])),
            (
                "ALTER TABLE t ADD b int DEFAULT 7, ADD c text DEFAULT E'a,\"\t{}\\\\'; UPDATE t SET b = 1; ALTER TABLE t RENAME b TO d;
                 ALTER TABLE t ADD e int[] DEFAULT '{1,NULL}', ALTER d DROP DEFAULT",
                Grown(vec![Some("7"), Some("a,\"\t{}\\"), Some("{1,NULL}")]),
            ),
            ("ALTER TABLE t ADD b float8 DEFAULT random()", Dumped),
            ("ALTER TABLE t ADD b int DEFAULT 1, ADD CHECK (b > 0)", Dumped),
            ("ALTER TABLE t ADD b int; ALTER TABLE t DROP b; ALTER TABLE t ADD c int", Dumped),
            ("ALTER TABLE t ADD b int GENERATED ALWAYS AS (id * 2) STORED", Dumped),
            ("ALTER TABLE t ADD b int DEFAULT 1; ALTER TABLE t ALTER a SET NOT NULL", Dumped),
            // What the new columns have may have been changed by their types meanwhile.
            ("ALTER TABLE t ADD b mood DEFAULT 'ok'", Dumped),
            ("ALTER TABLE t ADD b pair", Dumped),
            ("ALTER TABLE t ADD b regclass", Dumped),
            // Parted by semicolons.
            ("ALTER TABLE t ADD b box DEFAULT '((1,1),(0,0))'", Dumped),
        ]
    }

    async fn captured(client: &Client, publication: Oid) -> Vec<TableEntry> {
        let marks = marks(client, publication, &BTreeMap::new()).await.unwrap();
        let rows = client
            .query("SELECT oid, relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace", &[])
            .await
            .unwrap();
        let entry = |row: &Row| {
            let oid = Oid::new(row.get(0));
            let mark = marks.get(&oid);
            TableEntry {
                oid,
                schema: "public".to_owned(),
                name: row.get(1),
                kind: 'r',
                protection: Protection::Full,
                identity_index: None,
                rows_estimate: None,
                bytes: 10,
                unaltered: mark.map(|mark| mark.unaltered.clone()),
                attributes: mark.map(|mark| mark.attributes),
            }
        };
        rows.iter().map(entry).collect()
    }

    fn manifest(tables: Vec<TableEntry>) -> BaseManifest {
        let text = format!(
            r#"{{"v":1,"id":"{}","consistent_point":"0/10","fingerprint":"","snapshot_time":"2000-01-01T00:00:00Z",
              "started":"2000-01-01T00:00:00Z","finished":"2000-01-01T00:00:00Z","server_version":1,"pg_dump_version":"",
              "database":"d","encoding":"UTF8","archives":[],"tables":[],"sequences":[],"large_objects":0}}"#,
            BaseId::new(lastgood_proto::Lsn::new(16), 1)
        );
        let empty: BaseManifest = serde_json::from_str(&text).unwrap();
        BaseManifest { tables, ..empty }
    }

    /// What becomes of the table `name` when the database goes from `tables` to `change`.
    async fn fate(major: u32, setup: &str, change: &str, name: &str) -> Fate {
        let database = TestDatabase::new(major).await.unwrap();
        let client = database.connect().await.unwrap();
        for sql in setup.split(';') {
            client.batch_execute(sql).await.unwrap();
        }
        let publication = "SELECT oid FROM pg_publication";
        let publication = Oid::new(client.query_one(publication, &[]).await.unwrap().get(0));
        let newest = manifest(captured(&client, publication).await);
        for sql in change.split(';') {
            let done = client.batch_execute(sql).await;
            done.unwrap_or_else(|error| panic!("{major}: {sql}: {error:?}"));
        }
        let now = Now {
            changes_bytes: 0,
            client: &client,
            publication,
            server_version: 1,
            pg_dump_version: "",
            encoding: "UTF8",
        };
        let tables = captured(&client, publication).await;
        let borrows = now.borrows(&newest, &tables, 0).await.unwrap();
        let after = manifest(tables);
        let table = after.tables.iter().find(|table| table.name == name);
        let oid = table.unwrap().oid;
        let after = BaseManifest {
            borrowed: borrows,
            ..after.clone()
        };
        match (after.lender(oid), after.added(oid)) {
            (None, _) => Dumped,
            (Some(_), []) => Borrowed,
            (Some(_), values) => {
                let values = values.iter().cloned();
                // As long as the test.
                Grown(
                    values
                        .map(|value| value.map(|text| &*text.leak()))
                        .collect(),
                )
            }
        }
    }

    /// One that is not usable is followed by another base at once: a whole one must always be.
    #[test]
    fn a_base_that_borrows_needs_its_lender_and_the_way_from_it() {
        use lastgood_proto::Lsn;
        use lastgood_proto::key::{SegmentKey, SegmentKind};
        use lastgood_proto::listing::Listing;

        let id = LineageId::new(1, 0);
        let lender = BaseId::new(Lsn::new(15), 1);
        let listing = |segments: &[(u64, u64)], bases: &[BaseId]| {
            let segments = segments.iter().map(|(start, end)| {
                let key = SegmentKey {
                    start: Lsn::new(*start),
                    end: Lsn::new(*end),
                    max_commit_time: None,
                    observed_through: None,
                    kind: SegmentKind::Captured,
                };
                SourceObject::Segment(id, key)
            });
            let bases = bases.iter().map(|base| SourceObject::Manifest(id, *base));
            Listing::from_objects(segments.chain(bases))
        };
        let whole = manifest(Vec::new());
        let borrows = BaseManifest {
            consistent_point: Lsn::new(40),
            borrowed: vec![lastgood_proto::manifest::Borrowed {
                base: lender,
                tables: vec![Oid::new(1)],
                added: Vec::new(),
            }],
            ..whole.clone()
        };
        let check = |segments: &[(u64, u64)], bases: &[BaseId], expect: bool| {
            let listing = listing(segments, bases);
            let lineage = listing.lineage(id).unwrap();
            assert!(is_usable(&whole, lineage));
            assert_eq!(
                is_usable(&borrows, lineage),
                expect,
                "{segments:?} {bases:?}"
            );
        };
        check(&[(10, 20), (20, 50)], &[lender], true);
        check(&[(10, 20)], &[lender], true);
        check(&[(10, 20), (20, 50)], &[], false);
        check(&[(10, 20), (30, 50)], &[lender], false);
        check(&[(20, 50)], &[lender], false);
    }

    #[tokio::test]
    async fn what_touches_rows_is_told_by_the_catalog() {
        for major in [13, 15, 18] {
            if tools::bin_dir(major).is_err() {
                continue;
            }
            for (change, expect) in changes() {
                assert_eq!(
                    fate(major, TABLES, change, "t").await,
                    expect,
                    "{major}: {change}"
                );
            }
        }
    }

    /// Names of other objects, and columns that a dump puts elsewhere.
    #[tokio::test]
    async fn tables_whose_text_depends_on_others() {
        let named = "CREATE TABLE n (id int PRIMARY KEY, r regclass[]); CREATE TABLE o (id int PRIMARY KEY);
            CREATE DOMAIN named AS regtype; CREATE TABLE d (id int PRIMARY KEY, r named);
            CREATE PUBLICATION pub FOR TABLE n, d, o";
        for (table, expect) in [("n", Dumped), ("d", Dumped), ("o", Borrowed)] {
            assert_eq!(
                fate(18, named, "CREATE TABLE x (id int)", table).await,
                expect
            );
        }
        let child = "CREATE TABLE par (a int PRIMARY KEY); CREATE TABLE chi (PRIMARY KEY (a)) INHERITS (par);
            CREATE TABLE root (a int PRIMARY KEY) PARTITION BY RANGE (a);
            CREATE TABLE leaf PARTITION OF root FOR VALUES FROM (0) TO (9); CREATE PUBLICATION pub FOR TABLE par, chi, leaf";
        let change = "ALTER TABLE chi ADD x int DEFAULT 10; ALTER TABLE par ADD y int DEFAULT 20; ALTER TABLE root ADD z int DEFAULT 3";
        for (table, expect) in [
            ("chi", Dumped),
            ("par", Grown(vec![Some("20")])),
            ("leaf", Grown(vec![Some("3")])),
        ] {
            assert_eq!(fate(18, child, change, table).await, expect, "{table}");
        }
    }
}
