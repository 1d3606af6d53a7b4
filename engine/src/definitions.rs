//! Definitions that hold no rows: views, functions, indexes, grants and whatever else a dump has.
//!
//! Rows do not depend on them, so a restore goes across a change of theirs; but it brings back what the
//! base has. So a change is noticed, is followed by a new base, and a plan names it until then.
//!
//! One digest for each kind, over the `xmin` of its catalog rows: any command that alters one leaves another.

use std::collections::BTreeMap;

use tokio_postgres::Client;

use crate::error::Error;

/// Of `pg_class` not the whole row: TRUNCATE, REINDEX and REFRESH write one anew. What belongs to temporary
/// relations comes and goes; what is ours is in no base. OIDs below 16384 are PostgreSQL's own, and columns of
/// tables are part of the shape.
const DEFINITIONS: &str = r"
WITH schemas AS MATERIALIZED (
    SELECT oid, xmin AS version FROM pg_namespace WHERE nspname !~ '^(pg_|lastgood_[0-9a-f]{16}$)' AND nspname <> 'information_schema'),
relations AS MATERIALIZED (
    SELECT c.* FROM pg_class c JOIN schemas s ON s.oid = c.relnamespace WHERE c.relpersistence <> 't'),
parts(kind, part) AS (
    SELECT 'schemas', concat_ws(' ', oid, version) FROM schemas
    UNION ALL
    SELECT 'names, owners, grants and options', concat_ws(' ', oid, relname, relnamespace, relkind, relowner, relacl,
           reloptions, relrowsecurity, relforcerowsecurity, relam, reltablespace, relpersistence)
    FROM relations
    UNION ALL
    SELECT 'columns', concat_ws(' ', a.attrelid, a.attnum, a.xmin)
    FROM pg_attribute a JOIN relations r ON r.oid = a.attrelid AND r.relkind IN ('v', 'm', 'f', 'c')
    UNION ALL
    SELECT 'columns', concat_ws(' ', a.attrelid, a.attnum, a.attacl, a.attoptions)
    FROM pg_attribute a JOIN relations r ON r.oid = a.attrelid
    WHERE a.attacl IS NOT NULL OR a.attoptions IS NOT NULL
    UNION ALL
    SELECT 'defaults', concat_ws(' ', d.oid, d.xmin) FROM pg_attrdef d JOIN relations r ON r.oid = d.adrelid
    UNION ALL
    SELECT 'indexes', concat_ws(' ', i.indexrelid, i.xmin)
    FROM pg_index i JOIN relations r ON r.oid = i.indrelid
    UNION ALL
    SELECT 'constraints', concat_ws(' ', o.oid, o.xmin)
    FROM pg_constraint o JOIN schemas s ON s.oid = o.connamespace LEFT JOIN relations r ON r.oid = o.conrelid
    WHERE o.conrelid = 0 OR r.oid IS NOT NULL
    UNION ALL
    SELECT 'views and rules', concat_ws(' ', w.oid, w.xmin) FROM pg_rewrite w JOIN relations r ON r.oid = w.ev_class
    UNION ALL
    SELECT 'triggers', concat_ws(' ', t.oid, t.xmin)
    FROM pg_trigger t JOIN relations r ON r.oid = t.tgrelid WHERE NOT t.tgisinternal
    UNION ALL
    SELECT 'policies', concat_ws(' ', p.oid, p.xmin) FROM pg_policy p
    UNION ALL
    SELECT 'functions', concat_ws(' ', p.oid, p.xmin) FROM pg_proc p JOIN schemas s ON s.oid = p.pronamespace
    UNION ALL
    SELECT 'types', concat_ws(' ', t.oid, t.xmin)
    FROM pg_type t JOIN schemas s ON s.oid = t.typnamespace LEFT JOIN relations r ON r.oid = t.typrelid
    WHERE t.typrelid = 0 OR r.oid IS NOT NULL
    UNION ALL SELECT 'extensions', concat_ws(' ', oid, xmin) FROM pg_extension
    UNION ALL SELECT 'statistics', concat_ws(' ', oid, xmin) FROM pg_statistic_ext
    UNION ALL SELECT 'default privileges', concat_ws(' ', oid, xmin) FROM pg_default_acl
    UNION ALL SELECT 'comments', concat_ws(' ', objoid, objsubid, xmin) FROM pg_description WHERE objoid >= 16384
    UNION ALL SELECT 'security labels', concat_ws(' ', objoid, objsubid, xmin) FROM pg_seclabel
    UNION ALL SELECT 'event triggers', concat_ws(' ', oid, xmin) FROM pg_event_trigger
              WHERE evtname !~ '^lastgood_[0-9a-f]{16}_'
    UNION ALL SELECT 'foreign data', concat_ws(' ', oid, xmin) FROM pg_foreign_data_wrapper
    UNION ALL SELECT 'foreign data', concat_ws(' ', oid, xmin) FROM pg_foreign_server
    UNION ALL SELECT 'foreign data', concat_ws(' ', ftrelid, xmin) FROM pg_foreign_table
    UNION ALL SELECT 'languages', concat_ws(' ', oid, xmin) FROM pg_language WHERE oid >= 16384
    UNION ALL SELECT 'languages', concat_ws(' ', oid, xmin) FROM pg_transform WHERE oid >= 16384
    UNION ALL SELECT 'operators', concat_ws(' ', oid, xmin) FROM pg_operator WHERE oid >= 16384
    UNION ALL SELECT 'operators', concat_ws(' ', oid, xmin) FROM pg_opclass WHERE oid >= 16384
    UNION ALL SELECT 'operators', concat_ws(' ', oid, xmin) FROM pg_opfamily WHERE oid >= 16384
    UNION ALL SELECT 'operators', concat_ws(' ', oid, xmin) FROM pg_amop WHERE oid >= 16384
    UNION ALL SELECT 'operators', concat_ws(' ', oid, xmin) FROM pg_amproc WHERE oid >= 16384
    UNION ALL SELECT 'operators', concat_ws(' ', oid, xmin) FROM pg_am WHERE oid >= 16384
    UNION ALL SELECT 'casts', concat_ws(' ', oid, xmin) FROM pg_cast WHERE oid >= 16384
    UNION ALL SELECT 'collations', concat_ws(' ', oid, xmin) FROM pg_collation WHERE oid >= 16384
    UNION ALL SELECT 'conversions', concat_ws(' ', oid, xmin) FROM pg_conversion WHERE oid >= 16384
    UNION ALL SELECT 'text search', concat_ws(' ', oid, xmin) FROM pg_ts_config WHERE oid >= 16384
    UNION ALL SELECT 'text search', concat_ws(' ', mapcfg, maptokentype, mapseqno, xmin) FROM pg_ts_config_map
              WHERE mapcfg >= 16384
    UNION ALL SELECT 'text search', concat_ws(' ', oid, xmin) FROM pg_ts_dict WHERE oid >= 16384
    UNION ALL SELECT 'text search', concat_ws(' ', oid, xmin) FROM pg_ts_parser WHERE oid >= 16384
    UNION ALL SELECT 'text search', concat_ws(' ', oid, xmin) FROM pg_ts_template WHERE oid >= 16384)
SELECT kind, concat_ws(' ', count(*), sum(hashtextextended(part, 0)), sum(hashtextextended(part, 1)))
FROM parts GROUP BY kind";

/// The kind whose changes no event trigger tells of.
pub(crate) const EVENT_TRIGGERS: &str = "event triggers";

/// A digest for each kind there is any of, as the client sees them.
pub(crate) async fn read(client: &Client) -> Result<BTreeMap<String, String>, Error> {
    let rows = client.query(DEFINITIONS, &[]).await;
    let rows = rows.map_err(Error::sql("reading what is defined"))?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// As the client's open transaction has them; none if they cannot be read, and the transaction goes on.
pub(crate) async fn under_snapshot(
    client: &Client,
) -> Result<Option<BTreeMap<String, String>>, Error> {
    let command = |sql: &'static str| async move {
        let done = client.batch_execute(sql).await;
        done.map_err(Error::sql("reading what is defined"))
    };
    command("SAVEPOINT definitions").await?;
    let read = read(client).await;
    command(match read {
        Ok(_) => "RELEASE SAVEPOINT definitions",
        Err(_) => "ROLLBACK TO SAVEPOINT definitions; RELEASE SAVEPOINT definitions",
    })
    .await?;
    Ok(read.ok())
}
