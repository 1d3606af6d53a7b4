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
use lastgood_proto::manifest::{
    AlteredTable, BaseManifest, Borrowed, ColumnEntry, Protection, TableEntry,
};
use lastgood_proto::{BaseId, LineageId, Oid, encoding};
use lastgood_store::SourceStore;
use tokio_postgres::types::FromSql;
use tokio_postgres::{Client, Row};

use super::columns::{Missing, Step};
use crate::error::{Error, chain};

/// More names than this are not given to `pg_dump`: it looks each up by a query of its own.
const BORROWED_MAX: usize = 5000;

/// What the rows' text of each published table depends on beside the changes of the stream: storage, identity, the
/// publication and the table's place in it, with their `xmin`; of a partition all that bounds it, of a default one also
/// its siblings; its columns, and the definitions of types that are not
/// PostgreSQL's own, because what was changed there and back has left text in the stream that means something else.
/// `varchar` is text: they become each other without a row being written. Not of a table with values that are
/// printed as names of other objects, which may be renamed.
/// Nor of a partition whose rows an archive sends through its root, because they are hashed by an enum.
const MARKS: &str = r"
WITH RECURSIVE wanted(rel, place, version) AS (
    SELECT r.prrelid, r.oid, r.xmin FROM pg_publication_rel r WHERE r.prpubid = $1),
named(typ) AS (
    SELECT t.oid FROM pg_type t
    WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.typname ~ '^_?(reg|aclitem$)'),
roots(typ) AS (
    SELECT DISTINCT a.atttypid FROM wanted JOIN pg_attribute a ON a.attrelid = wanted.rel AND a.attnum > 0
    WHERE NOT a.attisdropped AND (a.atttypid >= 16384 OR a.atttypid IN (SELECT typ FROM named))),
used(root, typ) AS (
    SELECT typ, typ FROM roots
    UNION
    SELECT used.root, part.typ
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
calling(con) AS MATERIALIZED (
    SELECT DISTINCT d.objid FROM pg_depend d
    WHERE d.classid = 'pg_constraint'::regclass AND d.refobjid >= 16384
      AND d.refclassid IN ('pg_proc'::regclass, 'pg_operator'::regclass)),
own(root, definitions, is_named, calls) AS MATERIALIZED (
    SELECT used.root, md5(string_agg(types.definition, ';' ORDER BY types.typ)), bool_or(named.typ IS NOT NULL),
           bool_or(EXISTS (SELECT FROM pg_constraint o JOIN calling ON calling.con = o.oid WHERE o.contypid = used.typ))
    FROM used JOIN types ON types.typ = used.typ LEFT JOIN named ON named.typ = used.typ
    GROUP BY used.root),
members(top, rel) AS (
    SELECT i.inhparent, i.inhparent FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhparent AND c.relkind IN ('r', 'p')
    WHERE NOT EXISTS (SELECT FROM pg_inherits u WHERE u.inhrelid = i.inhparent)
    UNION SELECT m.top, i.inhrelid FROM members m JOIN pg_inherits i ON i.inhparent = m.rel),
rigid(rel, names) AS MATERIALIZED (
    SELECT m.rel, array_agg(r.attname) FROM members m JOIN (
        SELECT DISTINCT m.top, a.attname FROM members m
        JOIN pg_attribute a ON a.attrelid = m.rel AND a.attnum > 0 AND NOT a.attisdropped
        WHERE a.attidentity <> '' OR EXISTS (
            SELECT FROM pg_index x WHERE x.indrelid = m.rel AND (x.indisprimary OR x.indisreplident)
               AND a.attnum = ANY ((x.indkey::int2[])[0:x.indnkeyatts - 1]))) r ON r.top = m.top
    GROUP BY m.rel)
SELECT c.oid, md5(concat_ws(' ', c.oid, c.relfilenode, c.relpersistence, c.relreplident,
           CASE WHEN c.relispartition THEN (
               SELECT string_agg(concat_ws(':', k.rel, k.version, m.relpartbound::text), ',' ORDER BY k.rel)
               FROM pg_partition_ancestors(c.oid) up(rel) JOIN pg_inherits own ON own.inhrelid = up.rel
               LEFT JOIN pg_partitioned_table t ON t.partrelid = own.inhparent AND t.partdefid = own.inhrelid
               CROSS JOIN LATERAL (
                   SELECT own.inhrelid, own.xmin::text
                   UNION SELECT s.inhrelid, s.xmin::text FROM pg_inherits s WHERE s.inhparent = t.partrelid) k(rel, version)
               JOIN pg_class m ON m.oid = k.rel) END,
           p.oid, p.xmin, wanted.place, wanted.version,
           (SELECT string_agg(x.indexrelid::text, ',' ORDER BY x.indexrelid) FROM pg_index x
            WHERE x.indrelid = c.oid AND x.indisvalid AND (x.indisprimary OR x.indisreplident)))),
       (SELECT md5(string_agg(concat_ws(':', o.oid, o.xmin), ',' ORDER BY o.oid))
        FROM pg_constraint o WHERE o.conrelid = c.oid AND o.contype = 'c'),
       c.relnatts::int4,
       columns.*,
       EXISTS (SELECT FROM pg_constraint o JOIN calling ON calling.con = o.oid WHERE o.conrelid = c.oid AND o.contype = 'c')
FROM wanted JOIN pg_class c ON c.oid = wanted.rel CROSS JOIN pg_publication p LEFT JOIN rigid ON rigid.rel = c.oid
CROSS JOIN LATERAL (
    SELECT array_agg(a.attnum::int4 ORDER BY a.attnum), array_agg(a.attname::text ORDER BY a.attnum),
           array_agg(coalesce(own.definitions, CASE a.atttypid WHEN 1043 THEN '25' ELSE a.atttypid::text END) ORDER BY a.attnum),
           array_agg(a.xmin::text ORDER BY a.attnum),
           array_agg(a.attnotnull AND NOT EXISTS (
               SELECT FROM pg_constraint o WHERE o.conrelid = c.oid AND o.contype = 'n' AND o.conkey[1] = a.attnum
                  AND NOT o.convalidated) ORDER BY a.attnum),
           array_agg(a.attgenerated <> '' ORDER BY a.attnum), bool_or(own.is_named),
           array_agg(a.attnum::int4) FILTER (WHERE a.attidentity <> '' OR a.attname = ANY (rigid.names)),
           array_agg(a.attnum::int4) FILTER (WHERE EXISTS (
               SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisvalid
                  AND (x.indisprimary OR x.indisreplident)
                  AND a.attnum = ANY ((x.indkey::int2[])[0:x.indnkeyatts - 1]))),
           bool_or(own.calls)
    FROM pg_attribute a LEFT JOIN own ON own.root = a.atttypid
    WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    ) columns(numbers, names, meanings, versions, not_nulls, generated, is_named, rigid, keys, calls)
WHERE p.oid = $1 AND c.relkind = 'r' AND columns.is_named IS NOT TRUE
  AND NOT (c.relispartition AND EXISTS (
      SELECT FROM pg_partition_ancestors(c.oid) up(rel) JOIN pg_partitioned_table t ON t.partrelid = up.rel
        JOIN pg_opclass o ON o.oid = ANY (t.partclass) JOIN pg_am m ON m.oid = o.opcmethod
       WHERE m.amname = 'hash' AND o.opcname = 'enum_ops' AND o.opcnamespace = 'pg_catalog'::regnamespace))";

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

/// What a table's rows depend on.
pub(super) struct Mark {
    pub(super) unaltered: String,
    pub(super) checks: Option<String>,
    /// `pg_class.relnatts`.
    pub(super) attributes: u32,
    pub(super) columns: Vec<ColumnEntry>,
    /// Numbers of columns whose NOT NULL cannot be left out for a while: identities, and what is one or part of a key
    /// somewhere among parents, children and siblings.
    pub(super) rigid: Vec<u32>,
    /// Numbers of columns of primary key and identity index, which are never null.
    pub(super) keys: Vec<u32>,
    /// A check calls functions of users, or that of a type does.
    pub(super) checks_call: bool,
    pub(super) types_call: bool,
}

impl Mark {
    fn of(row: &Row) -> Self {
        let number = |number: &i32| u32::try_from(*number).unwrap_or(0);
        let numbers_at = |at| -> Vec<u32> { array(row, at).iter().map(number).collect() };
        let numbers = numbers_at(4);
        let (names, meanings, versions): (Vec<String>, Vec<String>, Vec<String>) =
            (array(row, 5), array(row, 6), array(row, 7));
        let (not_nulls, generated): (Vec<bool>, Vec<bool>) = (array(row, 8), array(row, 9));
        let texts = names.into_iter().zip(meanings).zip(versions);
        let columns = numbers
            .iter()
            .zip(texts)
            .zip(not_nulls.into_iter().zip(generated));
        Self {
            unaltered: row.get(1),
            checks: row.get(2),
            attributes: number(&row.get(3)),
            rigid: numbers_at(11),
            keys: numbers_at(12),
            types_call: row.get::<_, Option<bool>>(13).unwrap_or(false),
            checks_call: row.get(14),
            columns: columns
                .map(
                    |((number, ((name, meaning), version)), (not_null, generated))| ColumnEntry {
                        number: *number,
                        name,
                        meaning,
                        version: version.parse().unwrap_or(0),
                        not_null,
                        generated,
                    },
                )
                .collect(),
        }
    }
}

/// Empty where there is none, of a table without columns.
fn array<'r, T: FromSql<'r>>(row: &'r Row, at: usize) -> Vec<T> {
    row.get::<_, Option<Vec<T>>>(at).unwrap_or_default()
}

/// By table, as the client's snapshot has it.
pub(super) async fn marks(client: &Client, publication: Oid) -> Result<BTreeMap<Oid, Mark>, Error> {
    let rows = client.query(MARKS, &[&publication.get()]).await;
    let rows = rows.map_err(Error::sql("reading what rows depend on"))?;
    let marks = rows.iter();
    Ok(marks
        .map(|row| (Oid::new(row.get(0)), Mark::of(row)))
        .collect())
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
    pub(super) marks: &'a BTreeMap<Oid, Mark>,
    pub(super) server_version: u32,
    pub(super) pg_dump_version: &'a str,
    pub(super) encoding: &'a str,
    pub(super) snapshot_xmin: u64,
    pub(super) definitions: &'a Option<String>,
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
        let mut untouched = self.untouched(newest, tables).await?;
        untouched.sort_by_key(|(table, _)| std::cmp::Reverse(table.bytes));
        untouched.truncate(BORROWED_MAX);
        let bytes: u64 = untouched.iter().map(|(table, _)| table.bytes).sum();
        if bytes < self.changes_bytes.min(worth_bytes) {
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
        let calls = |table: Oid| {
            let mark = self.marks.get(&table);
            mark.is_none_or(|mark| mark.checks_call || mark.types_call)
        };
        let is_same = |before: &TableEntry, table: &TableEntry| {
            before.unaltered == table.unaltered
                && !(is_redefined && calls(table.oid))
                && before.checks == table.checks
                && before.attributes == table.attributes
                && before.columns == table.columns
        };
        let (same, other): (Vec<_>, Vec<_>) =
            pairs.partition(|(before, table)| is_same(before, table));
        let kept = |table: Oid| newest.altered(table).cloned();
        let mut untouched: Vec<_> = same
            .into_iter()
            .map(|(_, table)| (table, kept(table.oid)))
            .collect();
        if other.is_empty() {
            return Ok(untouched);
        }
        // A transaction id that is too old to be compared with others' says nothing.
        let xmin = newest.snapshot_xmin;
        let xmin = xmin.filter(|xmin| self.snapshot_xmin.saturating_sub(*xmin) < 1 << 31);
        let older = xmin.map(|xmin| (xmin & u64::from(u32::MAX)).to_string());
        let mut steps = Vec::new();
        for (before, table) in other {
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
        for (before, table, mark, step) in steps {
            let missing = missing.remove(&table.oid).unwrap_or_default();
            let altered = kept(table.oid);
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
mod tests {
    use super::*;
    use lastgood_integration::{TestDatabase, tools};
    use lastgood_proto::manifest::Told;

    /// What becomes of the rows of a table.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Fate {
        Borrowed,
        /// With columns that are others: see [`said`].
        Altered(String),
        Dumped,
    }
    use Fate::{Borrowed, Dumped};

    fn altered(what: &str) -> Fate {
        Fate::Altered(what.to_owned())
    }

    /// How columns are told, what rows have in those they lack, and what is demanded of them now.
    fn said(altered: &AlteredTable) -> String {
        let told = altered
            .layouts
            .iter()
            .map(|layout| match layout.until_next {
                Told::Places => "by place".to_owned(),
                Told::Names => "by name".to_owned(),
            });
        let missing = altered.missing.iter().map(|(number, value)| match value {
            Some(value) => format!("{number} is {value}"),
            None => format!("{number} is null"),
        });
        let nullable = altered
            .nullable
            .iter()
            .map(|number| format!("{number} may be null"));
        let unchecked = altered.unchecked.then(|| "unchecked".to_owned());
        let said = told.chain(missing).chain(nullable).chain(unchecked);
        said.collect::<Vec<_>>().join(", ")
    }

    const TABLES: &str = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TYPE pair AS (x int, y int);
        CREATE DOMAIN small AS int CONSTRAINT small CHECK (VALUE < 100);
        CREATE TABLE t (id int PRIMARY KEY, a int CONSTRAINT positive CHECK (a > 0), gone int, m mood[], p pair, s small,
            w varchar(5));
        ALTER TABLE t DROP gone; INSERT INTO t VALUES (1, 2, '{sad}', '(1,2)', 3, 'w');
        CREATE TABLE other (id int PRIMARY KEY);
        CREATE PUBLICATION pub FOR TABLE t, other";

    /// Each from a fresh start, on `t`, whose columns are 1, 2, 4 to 7.
    fn changes() -> Vec<(&'static str, Fate)> {
        vec![
            ("INSERT INTO t VALUES (2, 2); UPDATE t SET a = 3; ANALYZE t; GRANT SELECT ON t TO public", Borrowed),
            ("CREATE UNIQUE INDEX ON t (a); ALTER TABLE t ADD FOREIGN KEY (a) REFERENCES other NOT VALID", Borrowed),
            ("CREATE TABLE fresh (id int PRIMARY KEY); DROP TABLE other", Borrowed),
            ("ALTER TABLE t RENAME TO u; ALTER TABLE u RENAME TO t", Borrowed),
            ("TRUNCATE t", Dumped),
            ("ALTER TABLE t ALTER a TYPE int USING a * 100", Dumped),
            ("ALTER TABLE t RENAME TO old; CREATE TABLE t (id int PRIMARY KEY, a int)", Dumped),
            ("ALTER TABLE t REPLICA IDENTITY FULL", Dumped),
            ("ALTER DOMAIN small DROP CONSTRAINT small; ALTER DOMAIN small ADD CONSTRAINT small CHECK (VALUE < 100)", Dumped),
            // There and back: what came in between has other text.
            (
                "ALTER TYPE mood RENAME VALUE 'sad' TO 'x'; ALTER TYPE mood RENAME VALUE 'ok' TO 'sad';
                 ALTER TYPE mood RENAME VALUE 'x' TO 'ok'; ALTER TYPE mood RENAME VALUE 'sad' TO 'x';
                 ALTER TYPE mood RENAME VALUE 'ok' TO 'sad'; ALTER TYPE mood RENAME VALUE 'x' TO 'ok'",
                Dumped,
            ),
            // Nobody knows whether a label that came was called so all along.
            ("ALTER TYPE mood ADD VALUE 'new'", Dumped),
            ("ALTER TYPE pair ADD ATTRIBUTE z int; ALTER TYPE pair DROP ATTRIBUTE z", Dumped),
            ("ALTER PUBLICATION pub DROP TABLE t; ALTER PUBLICATION pub ADD TABLE t", Dumped),
            (
                "ALTER PUBLICATION pub SET (publish = 'insert'); \
                 ALTER PUBLICATION pub SET (publish = 'insert, update, delete, truncate')",
                Dumped,
            ),
            // Added.
            ("ALTER TABLE t ADD b int", altered("by place, 8 is null")),
            (
                "ALTER TABLE t ADD b int DEFAULT 7, ADD c text DEFAULT E'a,\"\t{}\\\\'; UPDATE t SET b = 1; ALTER TABLE t RENAME b TO d;
                 ALTER TABLE t ADD e int[] DEFAULT '{1,NULL}', ALTER d DROP DEFAULT",
                altered("by place, 8 is 7, 9 is a,\"\t{}\\, 10 is {1,NULL}"),
            ),
            ("ALTER TABLE t ADD b float8 DEFAULT random()", Dumped),
            ("ALTER TABLE t ADD b int DEFAULT 1, ADD CHECK (b > 0)", altered("by place, 8 is 1, unchecked")),
            ("ALTER TABLE t ADD b int; UPDATE t SET b = 1; ALTER TABLE t ALTER b SET NOT NULL", altered("by place, 8 is null, 8 may be null")),
            ("ALTER TABLE t ADD b int; ALTER TABLE t DROP b; ALTER TABLE t ADD c int", Dumped),
            ("ALTER TABLE t ADD b int GENERATED ALWAYS AS (id * 2) STORED", Dumped),
            ("ALTER TABLE t ADD b mood DEFAULT 'ok'", altered("by place, 8 is ok")),
            ("BEGIN; CREATE TYPE fresh AS ENUM ('x'); ALTER TYPE fresh RENAME VALUE 'x' TO 'y'; ALTER TABLE t ADD b fresh; COMMIT", Dumped),
            ("CREATE TYPE fresh AS ENUM ('x,', 'y'); ALTER TABLE t ADD b fresh[] DEFAULT '{\"x,\"}'", altered("by place, 8 is {\"x,\"}")),
            ("CREATE TYPE fresh AS ENUM ('x', 'y'); ALTER TABLE t ADD b fresh; ALTER TYPE fresh RENAME VALUE 'x' TO 'z'", Dumped),
            // What the new columns have may have been changed by their types meanwhile.
            ("ALTER TABLE t ADD b pair", Dumped),
            ("ALTER TABLE t ADD b small", Dumped),
            ("ALTER TABLE t ADD b regclass", Dumped),
            // Parted by semicolons.
            ("ALTER TABLE t ADD b box DEFAULT '((1,1),(0,0))'", Dumped),
            // Renamed, retyped, bound and dropped.
            ("ALTER TABLE t RENAME a TO x; ALTER TABLE t RENAME id TO a; ALTER TABLE t RENAME x TO id", altered("by place")),
            ("ALTER TABLE t ALTER w TYPE varchar(9); ALTER TABLE t ALTER w TYPE text", altered("by place")),
            ("ALTER TABLE t ALTER w TYPE varchar(3)", Dumped),
            ("ALTER TABLE t ALTER a SET NOT NULL, ALTER w SET DEFAULT 'x'", altered("by place, 2 may be null")),
            ("ALTER TABLE t ALTER a SET NOT NULL; ALTER TABLE t ALTER a DROP NOT NULL", altered("by place")),
            ("ALTER TABLE t ALTER id SET STATISTICS 7; ALTER TABLE t RENAME id TO key", altered("by place")),
            ("ALTER TABLE t ADD b int NOT NULL DEFAULT 3", altered("by place, 8 is 3, 8 may be null")),
            ("ALTER TABLE t ALTER a SET NOT NULL; ALTER TABLE t ALTER a ADD GENERATED ALWAYS AS IDENTITY", Dumped),
            ("GRANT SELECT (a) ON t TO public; ALTER TABLE t ALTER w SET STATISTICS 7", altered("by place")),
            ("ALTER TABLE t DROP CONSTRAINT positive", Borrowed),
            ("ALTER TABLE t DROP CONSTRAINT positive; ALTER TABLE t ADD CONSTRAINT positive CHECK (a > 1)", altered("unchecked")),
            ("ALTER TABLE t DROP a", altered("by place")),
            ("ALTER TABLE t DROP a; ALTER TABLE t RENAME w TO a", altered("by place")),
            ("ALTER TABLE t DROP a; ALTER TABLE t DROP w", altered("by name")),
            ("ALTER TABLE t DROP a; ALTER TABLE t DROP w; ALTER TABLE t RENAME s TO w", Dumped),
            ("ALTER TABLE t DROP a; ALTER TABLE t ADD a int DEFAULT 3", altered("by name, 8 is 3")),
            // Was a row's last value the old one or the new?
            ("ALTER TABLE t DROP w; ALTER TABLE t ADD w varchar(5)", Dumped),
            ("ALTER TABLE t ADD b int; ALTER TABLE t DROP b", altered("by name")),
            ("ALTER TABLE t DROP id", Dumped),
        ]
    }

    async fn captured(client: &Client, publication: Oid) -> Vec<TableEntry> {
        let marks = marks(client, publication).await.unwrap();
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
                checks: mark.and_then(|mark| mark.checks.clone()),
                columns: mark.map_or_else(Vec::new, |mark| mark.columns.clone()),
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
        let xmin = async || -> u64 {
            let xmin = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text";
            let xmin: String = client.query_one(xmin, &[]).await.unwrap().get(0);
            xmin.parse().unwrap()
        };
        let newest = BaseManifest {
            snapshot_xmin: Some(xmin().await),
            ..manifest(captured(&client, publication).await)
        };
        let commands: Vec<&str> = match change.starts_with("BEGIN") {
            true => vec![change],
            false => change.split(';').collect(),
        };
        for sql in commands {
            let done = client.batch_execute(sql).await;
            done.unwrap_or_else(|error| panic!("{major}: {sql}: {error:?}"));
        }
        let now = Now {
            changes_bytes: 0,
            client: &client,
            marks: &marks(&client, publication).await.unwrap(),
            server_version: 1,
            pg_dump_version: "",
            encoding: "UTF8",
            snapshot_xmin: xmin().await,
            definitions: &Some("now".to_owned()),
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
        match (after.lender(oid), after.altered(oid)) {
            (None, _) => Dumped,
            (Some(_), None) => Borrowed,
            (Some(_), Some(altered)) => Fate::Altered(said(altered)),
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
                altered: Vec::new(),
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
            ("chi", "by place, 2 is 10, 3 is 20"),
            ("par", "by place, 2 is 20"),
            ("leaf", "by place, 2 is 3"),
        ] {
            assert_eq!(
                fate(18, child, change, table).await,
                altered(expect),
                "{table}"
            );
        }
        // The stream may have what is generated, and archives have not.
        let generated =
            "CREATE TABLE g (id int PRIMARY KEY, v int, w int GENERATED ALWAYS AS (v * 2) STORED);
            CREATE PUBLICATION pub FOR TABLE g";
        for (change, expect) in [
            ("CREATE TABLE x (id int)", Borrowed),
            ("ALTER TABLE g ADD x int", Dumped),
            ("ALTER TABLE g DROP w", Dumped),
            ("ALTER TABLE g ALTER w DROP EXPRESSION", Dumped),
            (
                "ALTER TABLE g ALTER w DROP EXPRESSION; ALTER TABLE g DROP v; ALTER TABLE g DROP w",
                Dumped,
            ),
        ] {
            assert_eq!(fate(18, generated, change, "g").await, expect, "{change}");
        }
        let change =
            "ALTER TABLE root ADD z int; ALTER TABLE root ALTER z SET NOT NULL, ADD CHECK (a < 5)";
        let expect = altered("by place, 2 is null, 2 may be null, unchecked");
        assert_eq!(fate(18, child, change, "leaf").await, expect);
        // A default partition has what its siblings have not, and all have what their ancestors have.
        let bounds = "CREATE TABLE top (a int PRIMARY KEY) PARTITION BY RANGE (a); CREATE TABLE rest PARTITION OF top DEFAULT;
            CREATE TABLE mid PARTITION OF top FOR VALUES FROM (0) TO (9) PARTITION BY RANGE (a);
            CREATE TABLE low PARTITION OF mid FOR VALUES FROM (0) TO (5); CREATE TABLE next (a int NOT NULL PRIMARY KEY);
            CREATE PUBLICATION pub FOR TABLE rest, low, next";
        let attach = "ALTER TABLE top ATTACH PARTITION next FOR VALUES FROM (10) TO (20)";
        let again = "ALTER TABLE top DETACH PARTITION mid; ALTER TABLE top ATTACH PARTITION mid FOR VALUES FROM (0) TO (9)";
        for (change, table, expect) in [
            (attach, "rest", Dumped),
            (attach, "next", Dumped),
            (attach, "low", Borrowed),
            (again, "low", Dumped),
        ] {
            assert_eq!(
                fate(18, bounds, change, table).await,
                expect,
                "{change} {table}"
            );
        }
        // What a function says of rows may be something else now.
        let calls = "CREATE FUNCTION ok(int) RETURNS bool LANGUAGE sql AS 'SELECT true'; CREATE DOMAIN fine AS int CHECK (ok(VALUE));
            CREATE TABLE c (id int PRIMARY KEY, v int CHECK (ok(v))); CREATE TABLE d (id int PRIMARY KEY, v fine);
            CREATE PUBLICATION pub FOR TABLE c, d";
        for (table, expect) in [("c", altered("unchecked")), ("d", Dumped)] {
            let change =
                "CREATE OR REPLACE FUNCTION ok(int) RETURNS bool LANGUAGE sql AS 'SELECT $1 > 5'";
            assert_eq!(fate(18, calls, change, table).await, expect, "{table}");
        }
        // NOT NULL is part of something else there, or none of the key.
        let held = "CREATE TABLE r (k int, seq int GENERATED ALWAYS AS IDENTITY, v int NOT NULL) PARTITION BY LIST (k);
            CREATE TABLE l PARTITION OF r FOR VALUES IN (1); CREATE TABLE s PARTITION OF r FOR VALUES IN (2);
            ALTER TABLE l ADD PRIMARY KEY (k); ALTER TABLE s ADD PRIMARY KEY (v);
            CREATE TABLE i (id int, v int, PRIMARY KEY (id) INCLUDE (v)); CREATE PUBLICATION pub FOR TABLE l, i";
        for (change, table, expect) in [
            ("ALTER TABLE r RENAME seq TO no", "l", Dumped),
            ("ALTER TABLE r RENAME v TO x", "l", Dumped),
            (
                "ALTER TABLE r ALTER k SET STATISTICS 7",
                "l",
                altered("by place"),
            ),
            (
                "ALTER TABLE i ALTER v SET NOT NULL",
                "i",
                altered("by place, 2 may be null"),
            ),
        ] {
            assert_eq!(fate(16, held, change, table).await, expect, "{change}");
        }
        // Rows of such partitions are not in an archive by themselves.
        let hashed = "CREATE TYPE e AS ENUM ('a'); CREATE TABLE h (m e, id int, PRIMARY KEY (m, id)) PARTITION BY HASH (m);
            CREATE TABLE h0 PARTITION OF h FOR VALUES WITH (MODULUS 1, REMAINDER 0); CREATE TABLE o (id int PRIMARY KEY);
            CREATE PUBLICATION pub FOR TABLE h0, o";
        for (table, expect) in [("h0", Dumped), ("o", Borrowed)] {
            assert_eq!(
                fate(18, hashed, "CREATE TABLE x (id int)", table).await,
                expect
            );
        }
    }
}
