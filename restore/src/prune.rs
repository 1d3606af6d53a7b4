//! What a partial restore takes away again: every table, view and sequence that was not asked for.
//!
//! All definitions were restored, so the server itself knows what depends on what. Before anything
//! is dropped, all that would go with it is looked at. A foreign key, trigger, rule or policy of a
//! chosen table may go, and is named; anything else of a chosen table may not, and then the restore
//! fails rather than bring back less than the table. Repeatable.

use lastgood_pg::dump::{SCATTERED, TYPE_PARTS};
use tokio_postgres::Client;

use crate::gather::gather;
use crate::partial::{LeftOut, Partial};
use crate::sql::qualified;
use crate::{Error, indexes};

const CHOSEN: &str = "
CREATE TABLE IF NOT EXISTS lastgood_restore.chosen (oid oid PRIMARY KEY);
CREATE TABLE IF NOT EXISTS lastgood_restore.doomed (oid oid PRIMARY KEY);
CREATE TABLE IF NOT EXISTS lastgood_restore.left_out (object text PRIMARY KEY, why text NOT NULL);
TRUNCATE lastgood_restore.chosen, lastgood_restore.doomed";

const PARENTS: &str = "
SELECT pn.nspname::text, p.relname::text, p.relkind = 'p', cn.nspname::text, c.relname::text
  FROM pg_inherits i
  JOIN lastgood_restore.chosen ON chosen.oid = i.inhrelid
  JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace pn ON pn.oid = p.relnamespace
  JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_namespace cn ON cn.oid = c.relnamespace
 WHERE i.inhparent NOT IN (SELECT oid FROM lastgood_restore.chosen)";

/// Partitions whose rows lie in others here, and the root that has them all.
const WITHOUT_ROOT: &str = "
SELECT n.nspname::text, c.relname::text, rn.nspname::text, r.relname::text
  FROM lastgood_restore.chosen JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_class r ON r.oid = pg_partition_root(c.oid) JOIN pg_namespace rn ON rn.oid = r.relnamespace
 WHERE r.oid NOT IN (SELECT oid FROM lastgood_restore.chosen) AND ";

/// Sequences that chosen tables own or draw from.
const SEQUENCES: &str = "
    SELECT d.objid AS oid FROM pg_depend d JOIN lastgood_restore.chosen ON chosen.oid = d.refobjid
     WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')
  UNION
    SELECT d.refobjid FROM pg_attrdef f JOIN lastgood_restore.chosen ON chosen.oid = f.adrelid
      JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = f.oid
     WHERE d.refclassid = 'pg_class'::regclass";

/// Sequences that chosen tables draw from and others own.
const SHARED: &str = "
SELECT n.nspname::text, c.relname::text
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
  JOIN pg_depend d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid
   AND d.refclassid = 'pg_class'::regclass AND d.deptype = 'a'
 WHERE c.relkind = 'S' AND d.refobjid NOT IN (SELECT oid FROM lastgood_restore.chosen)";

const DOOMED: &str = "
INSERT INTO lastgood_restore.doomed
SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND c.relpersistence <> 't'
   AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'lastgood_restore')
   AND c.oid NOT IN (SELECT oid FROM lastgood_restore.chosen)
   AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                      AND d.objid = c.oid AND d.deptype = 'e')";

/// Everything that DROP … CASCADE of the doomed would take along, and whose it is. What an object
/// is an internal part of goes with it (`dependency.c`, findDependentObjects).
const AFFECTED: &str = "
WITH RECURSIVE affected(class, obj, sub) AS (
    SELECT 'pg_class'::regclass::oid, oid, 0 FROM lastgood_restore.doomed
  UNION
    SELECT next.* FROM affected a CROSS JOIN LATERAL (
        SELECT d.classid, d.objid, d.objsubid FROM pg_depend d
         WHERE d.refclassid = a.class AND d.refobjid = a.obj AND (a.sub = 0 OR d.refobjsubid = a.sub)
      UNION ALL
        SELECT d.refclassid, d.refobjid, d.refobjsubid FROM pg_depend d
         WHERE d.classid = a.class AND d.objid = a.obj AND a.sub = 0 AND d.deptype = 'i'
    ) next
), owned AS (
    SELECT a.*, CASE a.class
        WHEN 'pg_constraint'::regclass THEN (SELECT conrelid FROM pg_constraint WHERE oid = a.obj)
        WHEN 'pg_trigger'::regclass THEN (SELECT tgrelid FROM pg_trigger WHERE oid = a.obj)
        WHEN 'pg_rewrite'::regclass THEN (SELECT ev_class FROM pg_rewrite WHERE oid = a.obj)
        WHEN 'pg_policy'::regclass THEN (SELECT polrelid FROM pg_policy WHERE oid = a.obj)
        WHEN 'pg_attrdef'::regclass THEN (SELECT adrelid FROM pg_attrdef WHERE oid = a.obj)
        WHEN 'pg_statistic_ext'::regclass THEN (SELECT stxrelid FROM pg_statistic_ext WHERE oid = a.obj)
        WHEN 'pg_type'::regclass THEN (SELECT nullif(typrelid, 0) FROM pg_type WHERE oid = a.obj)
        WHEN 'pg_class'::regclass THEN coalesce((SELECT indrelid FROM pg_index WHERE indexrelid = a.obj), a.obj)
    END AS owner
    FROM affected a
)
SELECT pg_describe_object(o.class, o.obj, o.sub),
       o.class IN ('pg_trigger'::regclass, 'pg_policy'::regclass, 'pg_rewrite'::regclass)
         OR o.class = 'pg_constraint'::regclass
            AND EXISTS (SELECT FROM pg_constraint c WHERE c.oid = o.obj AND c.contype = 'f'),
       chosen.oid IS NOT NULL
  FROM owned o LEFT JOIN lastgood_restore.chosen ON chosen.oid = o.owner
 WHERE (chosen.oid IS NOT NULL OR o.class IN ('pg_proc'::regclass, 'pg_cast'::regclass, 'pg_operator'::regclass))
   AND NOT EXISTS (SELECT FROM pg_trigger t WHERE o.class = 'pg_trigger'::regclass AND t.oid = o.obj AND t.tgisinternal)
 ORDER BY 1";

/// Values of `regclass` and its like are printed as names and kept as OIDs: of what is dropped only the number is left.
const NAMING: &str = "
WITH RECURSIVE used(rel, att, typ) AS (
    SELECT a.attrelid, a.attnum, a.atttypid FROM lastgood_restore.chosen JOIN pg_attribute a ON a.attrelid = chosen.oid
     WHERE a.attnum > 0 AND NOT a.attisdropped
  UNION
    SELECT used.rel, used.att, part.typ FROM used JOIN pg_type t ON t.oid = used.typ CROSS JOIN LATERAL {TYPE_PARTS} part(typ)
     WHERE part.typ <> 0)
INSERT INTO lastgood_restore.left_out
SELECT DISTINCT format('names in column %I of %I.%I', a.attname, n.nspname, c.relname),
       'its values name other objects, and a number stands for what is not restored'
  FROM used JOIN pg_type t ON t.oid = used.typ JOIN pg_attribute a ON a.attrelid = used.rel AND a.attnum = used.att
  JOIN pg_class c ON c.oid = used.rel JOIN pg_namespace n ON n.oid = c.relnamespace
 WHERE t.typnamespace = 'pg_catalog'::regnamespace AND t.typname ~ '^reg' AND t.typname <> 'regrole'
ON CONFLICT DO NOTHING";

const DROPS: &str = "
SELECT format('DROP %s IF EXISTS %I.%I CASCADE',
              CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'f' THEN 'FOREIGN TABLE'
                             WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, n.nspname, c.relname)
  FROM lastgood_restore.doomed JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
 ORDER BY c.relkind = 'S', c.oid";

/// Marks the chosen tables and all that is to go, and what goes of theirs.
async fn mark(client: &Client, partial: &Partial) -> Result<(), Error> {
    client.batch_execute(CHOSEN).await?;
    for table in &partial.tables {
        let marked = client
            .execute(
                "INSERT INTO lastgood_restore.chosen SELECT c.oid FROM pg_class c
                   JOIN pg_namespace n ON n.oid = c.relnamespace
                  WHERE n.nspname = $1 AND c.relname = $2 AND c.relkind IN ('r', 'p')",
                &[&table.schema, &table.name],
            )
            .await?;
        if marked != 1 {
            return Err(Error::UnknownTable {
                name: table.written(),
                near: Vec::new(),
            });
        }
    }
    client
        .batch_execute(&format!("{DOOMED} AND c.oid NOT IN ({SEQUENCES})"))
        .await?;
    let scattered = format!("{WITHOUT_ROOT} {SCATTERED}");
    if let Some(row) = client
        .query_opt(&format!("{scattered} LIMIT 1"), &[])
        .await?
    {
        let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let (root_schema, root): (String, String) = (row.try_get(2)?, row.try_get(3)?);
        return Err(Error::NotWithoutRoot {
            table: qualified(&schema, &name),
            root: qualified(&root_schema, &root),
        });
    }
    // A partition without its root, a child without its parent: its own table from here on.
    for row in client.query(PARENTS, &[]).await? {
        let (parent_schema, parent): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let (schema, name): (String, String) = (row.try_get(3)?, row.try_get(4)?);
        let (parent, child) = (
            qualified(&parent_schema, &parent),
            qualified(&schema, &name),
        );
        let sql = match row.try_get(2)? {
            true => format!("ALTER TABLE {parent} DETACH PARTITION {child}"),
            false => format!("ALTER TABLE {child} NO INHERIT {parent}"),
        };
        client.batch_execute(&sql).await?;
    }
    for row in client
        .query(&format!("{SHARED} AND c.oid IN ({SEQUENCES})"), &[])
        .await?
    {
        let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let sequence = qualified(&schema, &name);
        client
            .batch_execute(&format!("ALTER SEQUENCE {sequence} OWNED BY NONE"))
            .await?;
    }
    for row in client.query(AFFECTED, &[]).await? {
        let object: String = row.try_get(0)?;
        let (may_go, is_chosen): (bool, bool) = (row.try_get(1)?, row.try_get(2)?);
        if is_chosen && !may_go {
            return Err(Error::TableNeedsOther { object });
        }
        // Kept, for an attempt that goes on from here finds them gone.
        let keep = "INSERT INTO lastgood_restore.left_out
                    VALUES ($1, 'it depends on a table or view that is not restored') ON CONFLICT DO NOTHING";
        client.execute(keep, &[&object]).await?;
    }
    let naming = NAMING.replace("{TYPE_PARTS}", TYPE_PARTS);
    client.batch_execute(&naming).await?;
    Ok(())
}

/// What of the chosen tables went with others, or means less without them.
pub(crate) async fn left_out(client: &Client) -> Result<Vec<LeftOut>, Error> {
    let sql = "SELECT object, why FROM lastgood_restore.left_out ORDER BY 1";
    let mut left_out = Vec::new();
    for row in client.query(sql, &[]).await? {
        left_out.push(LeftOut {
            object: row.try_get(0)?,
            why: row.try_get(1)?,
        });
    }
    Ok(left_out)
}

/// Fails early, before any row is loaded, if the chosen tables cannot stand alone, or not under their
/// schema. Answers the extensions that they and their `indexes` need there.
pub(crate) async fn check(
    client: &Client,
    partial: &Partial,
    indexes: &[String],
) -> Result<Vec<String>, Error> {
    client.batch_execute("BEGIN").await?;
    let checked = async {
        mark(client, partial).await?;
        match &partial.schema {
            None => Ok(Vec::new()),
            Some(schema) => {
                indexes::try_out(client, indexes).await?;
                gather(client, schema).await
            }
        }
    };
    let checked = checked.await;
    client.batch_execute("ROLLBACK").await?;
    checked
}

/// Drops what was not asked for.
pub(crate) async fn prune(client: &Client, partial: &Partial) -> Result<(), Error> {
    mark(client, partial).await?;
    client
        .batch_execute("SET client_min_messages = error")
        .await?;
    // One by one: a transaction that drops them all may need more locks than the server has.
    for row in client.query(DROPS, &[]).await? {
        let sql: String = row.try_get(0)?;
        client
            .batch_execute(&sql)
            .await
            .map_err(|source| Error::Statement {
                statement: sql,
                source,
            })?;
    }
    client.batch_execute("RESET client_min_messages").await?;
    Ok(())
}
