//! Columns GENERATED ALWAYS AS IDENTITY: no UPDATE may set them, so they are BY DEFAULT while
//! changes are replayed. Which ones is kept in our schema until they are set back.

use tokio_postgres::Client;

use crate::Error;
use crate::sql::{qualified, quoted};

/// From 17 on a partition's identity is its root's and cannot be altered by itself.
const ALWAYS: &str = "SELECT n.nspname::text AS schema, c.relname::text AS name, a.attname::text AS column
      FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE a.attidentity = 'a' AND c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
       AND NOT (c.relispartition AND current_setting('server_version_num')::int >= 170000)";

/// Repeatable: a second call finds nothing new.
pub(crate) async fn relax(client: &Client) -> Result<(), Error> {
    let columns = client.query(ALWAYS, &[]).await?;
    let mut sql = format!(
        "BEGIN; CREATE TABLE IF NOT EXISTS lastgood_restore.identity_always AS {ALWAYS} LIMIT 0;
         INSERT INTO lastgood_restore.identity_always {ALWAYS};"
    );
    for row in columns {
        sql.push_str(&set(&row, "BY DEFAULT")?);
    }
    sql.push_str("COMMIT");
    client.batch_execute(&sql).await?;
    Ok(())
}

pub(crate) async fn set_back(client: &Client) -> Result<(), Error> {
    let any = "SELECT to_regclass('lastgood_restore.identity_always') IS NOT NULL";
    if !client.query_one(any, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(());
    }
    let sql = "SELECT schema, name, \"column\" FROM lastgood_restore.identity_always";
    let mut sets = String::new();
    for row in client.query(sql, &[]).await? {
        sets.push_str(&set(&row, "ALWAYS")?);
    }
    client
        .batch_execute(&format!("BEGIN; {sets} COMMIT"))
        .await?;
    Ok(())
}

fn set(row: &tokio_postgres::Row, kind: &str) -> Result<String, Error> {
    let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let column: String = row.try_get(2)?;
    Ok(format!(
        "ALTER TABLE {} ALTER COLUMN {} SET GENERATED {kind};",
        qualified(&schema, &name),
        quoted(&column)
    ))
}
