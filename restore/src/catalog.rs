//! The tables of the target as the replay needs them: one query, before anything is replayed.
//!
//! Rows are found by the equality operator of the identity index itself, named with its schema: a
//! type from an extension has its operators outside `pg_catalog`, and another operator of the same
//! name would compare differently and miss the index.

use std::collections::HashMap;

use lastgood_pg::dump::SCATTERED;
use lastgood_proto::Oid;
use tokio_postgres::Client;

use crate::Error;
use crate::sql::{qualified, quoted};

/// A table that rows are written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TargetTable {
    pub(crate) schema: String,
    pub(crate) name: String,
    /// `pg_class.relkind`.
    pub(crate) kind: char,
    /// A partition that an enum decides on by its hash: labels have other numbers in each database, so its rows lie in
    /// other partitions here.
    pub(crate) is_scattered: bool,
    /// In the order of `pg_attribute.attnum`.
    pub(crate) columns: Vec<TargetColumn>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TargetColumn {
    pub(crate) name: String,
    pub(crate) type_oid: Oid,
    pub(crate) type_modifier: i32,
    /// The type as SQL, a domain's base type for a domain: what a value is staged as.
    pub(crate) staged_type: String,
    /// Computed by the server, never written.
    pub(crate) generated: bool,
    /// Values may be stored out of line, so an UPDATE may come without them.
    pub(crate) toastable: bool,
    /// As SQL, if it is not the database's own: that of the identity index, if the column is part of
    /// one, because texts that differ for the index may be equal for the column.
    pub(crate) collation: Option<String>,
    /// `OPERATOR(schema.=)` of the identity index, if the column is part of one.
    pub(crate) equality: Option<String>,
    /// `OPERATOR(schema.=)` of the type's own hash indexes, if it has any: then the column can carry
    /// a lookup index of ours.
    pub(crate) hash_equality: Option<String>,
}

impl TargetTable {
    /// `"schema"."name"`.
    pub(crate) fn sql(&self) -> String {
        qualified(&self.schema, &self.name)
    }

    /// As a TRUNCATE names it that is to reach nothing else: a partitioned table has no rows of its
    /// own, and ONLY is refused for it.
    pub(crate) fn sql_for_truncate(&self) -> String {
        match self.kind {
            'p' => self.sql(),
            _ => format!("ONLY {}", self.sql()),
        }
    }
}

impl TargetColumn {
    pub(crate) fn sql(&self) -> String {
        quoted(&self.name)
    }
}

/// By schema and name.
pub(crate) type Tables = HashMap<(String, String), TargetTable>;

const TABLES: &str = "
WITH RECURSIVE domain(column_type, type, modifier) AS (
    SELECT t.oid, t.typbasetype, t.typtypmod FROM pg_type t WHERE t.typtype = 'd'
  UNION ALL
    SELECT d.column_type, t.typbasetype,
           CASE WHEN d.modifier = -1 THEN t.typtypmod ELSE d.modifier END
      FROM domain d JOIN pg_type t ON t.oid = d.type AND t.typtype = 'd'
), resolved(column_type, type, modifier) AS (
    SELECT d.column_type, d.type, d.modifier
      FROM domain d JOIN pg_type t ON t.oid = d.type AND t.typtype <> 'd'
), scattered AS (
    SELECT c.oid FROM pg_class c WHERE {SCATTERED}
)
SELECT n.nspname::text, c.relname::text, c.relkind::text,
       a.attname::text, a.atttypid, a.atttypmod,
       format_type(coalesce(r.type, a.atttypid), coalesce(r.modifier, a.atttypmod)),
       a.attgenerated <> '',
       b.typlen = -1,
       CASE WHEN co.oid <> 100 OR a.attcollation <> 100
            THEN quote_ident(cn.nspname) || '.' || quote_ident(co.collname) END,
       identity.equality,
       hash.equality,
       c.oid IN (SELECT oid FROM scattered)
  FROM pg_class c
  JOIN pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
  LEFT JOIN resolved r ON r.column_type = a.atttypid
  LEFT JOIN pg_type b ON b.oid = coalesce(r.type, a.atttypid)
  LEFT JOIN LATERAL (
      SELECT 'OPERATOR(' || quote_ident(opn.nspname) || '.' || op.oprname || ')' AS equality,
             i.indcollation[(k.place - 1)::int] AS collation
        FROM pg_index i
       CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, place)
        JOIN pg_opclass oc ON oc.oid = i.indclass[(k.place - 1)::int]
        JOIN pg_amop am ON am.amopfamily = oc.opcfamily AND am.amopstrategy = 3
         AND am.amoplefttype = oc.opcintype AND am.amoprighttype = oc.opcintype
        JOIN pg_operator op ON op.oid = am.amopopr
        JOIN pg_namespace opn ON opn.oid = op.oprnamespace
       WHERE i.indrelid = c.oid AND k.attnum = a.attnum AND i.indisvalid
         AND k.place <= i.indnkeyatts AND (i.indisprimary OR i.indisreplident)
       ORDER BY i.indisreplident DESC LIMIT 1
  ) identity ON true
  LEFT JOIN pg_collation co ON co.oid = coalesce(identity.collation, a.attcollation)
  LEFT JOIN pg_namespace cn ON cn.oid = co.collnamespace
  LEFT JOIN LATERAL (
      SELECT 'OPERATOR(' || quote_ident(opn.nspname) || '.' || op.oprname || ')' AS equality
        FROM pg_opclass oc
        JOIN pg_am m ON m.oid = oc.opcmethod AND m.amname = 'hash'
        JOIN pg_amop am ON am.amopfamily = oc.opcfamily AND am.amopstrategy = 1
         AND am.amoplefttype = oc.opcintype AND am.amoprighttype = oc.opcintype
        JOIN pg_operator op ON op.oid = am.amopopr
        JOIN pg_namespace opn ON opn.oid = op.oprnamespace
       WHERE oc.opcdefault AND oc.opcintype = CASE b.oid WHEN 1043 THEN 25 ELSE b.oid END LIMIT 1
  ) hash ON true
 WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
   AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'lastgood_restore')
 ORDER BY 1, 2, a.attnum";

/// Reads every ordinary and partitioned table.
pub(crate) async fn tables(client: &Client) -> Result<Tables, Error> {
    let mut tables = Tables::new();
    let sql = TABLES.replace("{SCATTERED}", SCATTERED);
    for row in client.query(&sql, &[]).await? {
        let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let kind: String = row.try_get(2)?;
        let is_scattered = row.try_get(12)?;
        let table = tables
            .entry((schema.clone(), name.clone()))
            .or_insert_with(|| TargetTable {
                schema,
                name,
                kind: kind.chars().next().unwrap_or('r'),
                is_scattered,
                columns: Vec::new(),
            });
        let Some(name) = row.try_get::<_, Option<String>>(3)? else {
            continue; // A table without columns.
        };
        table.columns.push(TargetColumn {
            name,
            type_oid: Oid::new(row.try_get(4)?),
            type_modifier: row.try_get(5)?,
            staged_type: row.try_get(6)?,
            generated: row.try_get(7)?,
            toastable: row.try_get(8)?,
            collation: row.try_get(9)?,
            equality: row.try_get(10)?,
            hash_equality: row.try_get(11)?,
        });
    }
    Ok(tables)
}
