//! What the rows of a table depend on, as the catalog has it under a snapshot: equal in two bases, nothing but captured
//! changes has touched them in between.

use std::collections::BTreeMap;

use lastgood_pg::dump::{SCATTERED, TYPE_PARTS};
use lastgood_proto::Oid;
use lastgood_proto::manifest::ColumnEntry;
use tokio_postgres::types::FromSql;
use tokio_postgres::{Client, Row};

use crate::error::Error;

/// Of each published table: its storage, its identity, the publication and its place in that, with their `xmin`; of a
/// partition all that bounds it, of a default one also its siblings; its checks; its columns, and the definitions of
/// types that are not PostgreSQL's own, because what was changed there and back has left text in the stream that means
/// something else. `varchar` is text: they become each other without a row being written.
///
/// Not of a table with values that are printed as names of other objects, which may be renamed. Nor of a partition whose
/// rows an archive sends through its root, because they are hashed by an enum.
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
    CROSS JOIN LATERAL {TYPE_PARTS} part(typ)
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
  AND NOT {SCATTERED}";

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
    let rows = client
        .query(
            &MARKS
                .replace("{SCATTERED}", SCATTERED)
                .replace("{TYPE_PARTS}", TYPE_PARTS),
            &[&publication.get()],
        )
        .await;
    let rows = rows.map_err(Error::sql("reading what rows depend on"))?;
    let marks = rows.iter();
    Ok(marks
        .map(|row| (Oid::new(row.get(0)), Mark::of(row)))
        .collect())
}
