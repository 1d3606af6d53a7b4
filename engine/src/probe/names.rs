//! Names that no segment and no manifest could carry.

use lastgood_proto::encoding;
use tokio_postgres::Client;

use super::{Finding, Severity, finding};
use crate::error::Error;

/// Every name we read, with the kind of object, as bytes: the server refuses to send as text what has
/// no form in UTF-8.
const NAMES: &str = r"
WITH own AS (SELECT oid, nspname FROM pg_namespace
             WHERE nspname !~ '^pg_' AND nspname <> 'information_schema')
SELECT kind, convert_to(name, getdatabaseencoding()) FROM (
    SELECT 'schema' AS kind, nspname::text AS name FROM own
    UNION ALL
    SELECT CASE c.relkind WHEN 'S' THEN 'sequence' WHEN 'i' THEN 'index' ELSE 'table' END,
           own.nspname || '.' || c.relname
    FROM pg_class c JOIN own ON own.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'f', 'm', 'S', 'i')
    UNION ALL
    SELECT 'column', own.nspname || '.' || c.relname || '.' || a.attname
    FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN own ON own.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'c') AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT 'type', own.nspname || '.' || t.typname
    FROM pg_type t JOIN own ON own.oid = t.typnamespace LEFT JOIN pg_class c ON c.oid = t.typrelid
    WHERE t.typtype IN ('e', 'd') OR c.relkind = 'c'
    UNION ALL
    SELECT 'label', own.nspname || '.' || t.typname || '.' || e.enumlabel
    FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid JOIN own ON own.oid = t.typnamespace
) names ORDER BY 1, 2";

/// Named at most.
const SHOWN_MAX: usize = 20;

/// Whether there are any; then nothing else can be read of the tables.
pub(super) async fn judge(
    client: &Client,
    server_encoding: &str,
    findings: &mut Vec<Finding>,
) -> Result<bool, Error> {
    if encoding::sent_in(server_encoding) == "UTF8" {
        return Ok(false);
    }
    let rows = client
        .query(NAMES, &[])
        .await
        .map_err(Error::sql("reading names"))?;
    let bad: Vec<(&str, String)> = rows
        .iter()
        .map(|row| (row.get(0), row.get::<_, &[u8]>(1)))
        .map(|(kind, name)| (kind, name, encoding::decode(server_encoding, name)))
        .filter(|(_, name, text)| encoding::encode(server_encoding, text).as_deref() != Some(*name))
        .map(|(kind, _, text)| (kind, text))
        .collect();
    for (kind, name) in bad.iter().take(SHOWN_MAX) {
        findings.push(finding(
            "name_not_utf8",
            Severity::Blocker,
            name.clone(),
            format!(
                "the name of this {kind} has bytes that are not UTF-8 or do not come back from it as \
                 they were, and segments carry names as UTF-8"
            ),
            format!("rename the {kind}, in a session with client_encoding = {server_encoding}"),
        ));
    }
    Ok(!bad.is_empty())
}
