//! Brings chosen tables, and all that they need, into one schema of the scratch database.
//!
//! The server knows what a table needs: types, sequences, functions of defaults and checks,
//! collations, operators. Whatever does not come with an extension is moved along, so that nothing
//! of the database the schema is made for is used, and nothing there needs to fit. What cannot be
//! moved stops the restore. (What a function's text names is known to nobody; it stays as written.)

use tokio_postgres::Client;

use crate::Error;
use crate::existing::Existing;
use crate::progress_table::{self, Stage};
use crate::sql::{literal, quoted};

/// A schema of that name which the base has; it must not be in the way.
const ASIDE: &str = "lastgood_aside";

/// What the chosen tables are made of and refer to, up to PostgreSQL's own objects and extensions.
/// `follows`: it moves with what it is a part of.
const NEEDED: &str = "
WITH RECURSIVE needed(class, obj) AS (
    SELECT 'pg_class'::regclass::oid, oid FROM lastgood_restore.chosen
  UNION
    SELECT next.* FROM needed n CROSS JOIN LATERAL (
        SELECT d.refclassid, d.refobjid FROM pg_depend d
         WHERE d.classid = n.class AND d.objid = n.obj
           AND (d.deptype = 'e' OR NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = n.class
                                                  AND e.objid = n.obj AND e.deptype = 'e'))
      UNION ALL
        SELECT d.classid, d.objid FROM pg_depend d
         WHERE d.refclassid = n.class AND d.refobjid = n.obj AND d.deptype IN ('i', 'a')
           AND NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = n.class
                              AND e.objid = n.obj AND e.deptype = 'e')
    ) next(class, obj)
     WHERE next.obj >= 16384
       AND n.class NOT IN ('pg_namespace'::regclass, 'pg_extension'::regclass)
)
SELECT i.type, i.identity, i.schema,
       EXISTS (SELECT FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid
                WHERE class = 'pg_type'::regclass AND t.oid = obj AND (t.typcategory = 'A' OR c.relkind <> 'c'))
    OR EXISTS (SELECT FROM pg_class c JOIN pg_depend d ON d.classid = class AND d.objid = c.oid
                WHERE class = 'pg_class'::regclass AND c.oid = obj AND c.relkind = 'S'
                  AND d.refclassid = 'pg_class'::regclass AND d.deptype IN ('a', 'i')) AS follows
  FROM needed CROSS JOIN LATERAL pg_identify_object(class, obj, 0) i
 WHERE NOT EXISTS (SELECT FROM pg_depend e WHERE e.classid = class AND e.objid = obj AND e.deptype = 'e')
   AND coalesce(i.schema, '') !~ '^pg_'
 -- A function is named with the types of its arguments: they are moved after it.
 ORDER BY i.type IN ('type', 'table', 'sequence'), i.type, i.identity";

/// Gathers, and remembers that it is done, unless the existing database lacks something for it.
pub(crate) async fn for_good(client: &Client, existing: &Existing) -> Result<(), Error> {
    client.batch_execute("BEGIN").await?;
    let extensions = gather(client, existing.schema()).await?;
    existing.has_extensions(client, &extensions).await?;
    progress_table::enter(client, Stage::Transfer).await?;
    client.batch_execute("COMMIT").await?;
    Ok(())
}

/// Creates the schema and moves everything; answers the extensions that are needed. To be executed in
/// a transaction, after the chosen tables were marked.
pub(crate) async fn gather(client: &Client, schema: &str) -> Result<Vec<String>, Error> {
    let exists = "SELECT FROM pg_namespace WHERE nspname = $1";
    if client.query_opt(exists, &[&schema]).await?.is_some() {
        let aside = format!("ALTER SCHEMA {} RENAME TO {ASIDE}", quoted(schema));
        client.batch_execute(&aside).await?;
    }
    let create = format!("CREATE SCHEMA {}", quoted(schema));
    client.batch_execute(&create).await?;
    let mut extensions = Vec::new();
    for row in client.query(NEEDED, &[]).await? {
        let (kind, identity): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let command = match kind.as_str() {
            "extension" => {
                extensions.push(identity);
                continue;
            }
            "table" | "sequence" | "type" | "function" | "procedure" | "aggregate"
            | "collation" | "conversion" | "operator" | "operator class" | "operator family" => {
                kind.as_str()
            }
            "statistics object" => "statistics",
            _ => continue,
        };
        if row.try_get(3)? {
            continue;
        }
        let statement = format!("ALTER {command} {identity} SET SCHEMA {}", quoted(schema));
        let moved = client.batch_execute(&statement).await;
        moved.map_err(|source| Error::Statement { statement, source })?;
    }
    let elsewhere = format!(
        "SELECT type, identity FROM ({NEEDED}) needed
          WHERE schema <> quote_ident({}) OR schema IS NULL AND type NOT IN
                ('schema', 'extension', 'default value', 'cast', 'trigger', 'operator of access method', 'function of access method')
          LIMIT 1",
        literal(schema)
    );
    match client.query_opt(&elsewhere, &[]).await? {
        None => Ok(extensions),
        Some(row) => {
            let (kind, identity): (String, String) = (row.try_get(0)?, row.try_get(1)?);
            Err(Error::CannotMove {
                object: format!("{kind} {identity}"),
            })
        }
    }
}
