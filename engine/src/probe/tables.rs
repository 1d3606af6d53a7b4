//! What the tables are: how much of the database would be protected.

use lastgood_proto::manifest::Protection;
use tokio_postgres::Client;

use super::{Finding, ServerFacts, Severity, finding, quoted};
use crate::error::Error;
use crate::settings::{NoIdentity, SourceSettings};
use crate::tables::{Identity, Table};

const SCHEMAS: &str = r"
SELECT DISTINCT n.nspname, pg_get_userbyid(c.relowner)::text AS owner
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'S', 'm') AND c.relpersistence <> 't'
  AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
ORDER BY 1";

pub(super) async fn judge(
    client: &Client,
    tables: &[Table],
    settings: &SourceSettings,
    facts: &mut ServerFacts,
    findings: &mut Vec<Finding>,
) -> Result<(), Error> {
    let rows = client
        .query(SCHEMAS, &[])
        .await
        .map_err(Error::sql("listing schemas"))?;
    facts.schemas = rows.iter().map(|row| row.get(0)).collect();
    facts.schemas.dedup();
    // What an extension made is its owner's business, and the role needs no part in it.
    let own = || tables.iter().filter(|table| !table.extension);
    facts.owners = own()
        .filter(|table| settings.wants(&table.schema, &table.name))
        .map(|table| table.owner.clone())
        .collect();
    facts.owners.sort();
    facts.owners.dedup();
    facts.row_security = own().any(|table| table.row_security);
    facts.tables = own().filter(|table| table.kind == 'r').count();
    facts.tables_protected = tables
        .iter()
        .filter(|table| table.protection(settings) == Protection::Full)
        .count();
    for table in tables {
        findings.extend(one(table, settings));
    }
    if facts.tables > 0 && facts.tables_protected == 0 {
        findings.push(finding(
            "nothing_to_protect",
            Severity::Warning,
            facts.database.clone(),
            "no table can be captured: everything would be as fresh as the newest base",
            None,
        ));
    }
    Ok(())
}

fn one(table: &Table, settings: &SourceSettings) -> Option<Finding> {
    use Severity::{Info, Warning};
    let name = format!("{}.{}", table.schema, table.name);
    let sql = &table.quoted;
    let found = match table.protection(settings) {
        Protection::Full if table.needs_full(settings) => finding(
            "identity_will_be_full",
            Info,
            name,
            "the table has no primary key; as the settings ask, lastgood will set REPLICA IDENTITY \
             FULL, which makes every UPDATE and DELETE log the whole old row",
            format!("ALTER TABLE {sql} ADD PRIMARY KEY (...); -- instead"),
        ),
        Protection::Full if table.identity == Identity::Full => finding(
            "identity_full",
            Info,
            name,
            "REPLICA IDENTITY FULL: rows are found by all their columns, so a restore of many \
             changes to this table is slow",
            format!("ALTER TABLE {sql} ADD PRIMARY KEY (...); -- then REPLICA IDENTITY DEFAULT"),
        ),
        Protection::Full if table.generated => finding(
            "generated_columns",
            Info,
            name,
            "generated columns are computed anew by a restore",
            None,
        ),
        Protection::Full => return None,
        Protection::NoIdentity if table.identity == Identity::Impossible => finding(
            "no_identity",
            Warning,
            name,
            "the table has no primary key and a virtual generated column, so its UPDATEs cannot be \
             published: it is only as fresh as the newest base",
            format!("ALTER TABLE {sql} ADD PRIMARY KEY (...);"),
        ),
        Protection::NoIdentity => finding(
            "no_identity",
            Warning,
            name,
            "the table has no usable replica identity, so publishing it would make its UPDATE and \
             DELETE fail: it is only as fresh as the newest base",
            identity_fix(table, settings),
        ),
        Protection::Unlogged => finding(
            "unlogged",
            Warning,
            name,
            "the table is unlogged: it is only as fresh as the newest base",
            format!("ALTER TABLE {sql} SET LOGGED; -- rewrites the table"),
        ),
        Protection::NotOwned => finding(
            "not_owned",
            Warning,
            name,
            format!(
                "the table belongs to {} and only its owner may publish it: it is only as fresh as \
                 the newest base",
                table.owner
            ),
            format!("GRANT {} TO CURRENT_USER;", quoted(&table.owner)),
        ),
        Protection::Extension => finding(
            "extension_table",
            Info,
            name,
            "the table came with an extension: its rows are as fresh as the newest base if the \
             extension marks it as configuration, else they are not kept",
            None,
        ),
        Protection::Foreign => finding(
            "foreign_table",
            Info,
            name,
            "a foreign table: only its definition is kept, its rows live elsewhere",
            None,
        ),
        Protection::Derived if table.kind == 'm' => finding(
            "materialized_view",
            Info,
            name,
            "a materialized view: a restore refreshes it",
            None,
        ),
        Protection::Derived => finding(
            "partitioned_table",
            Info,
            name,
            "a partitioned table: its partitions are captured, each under its own name",
            None,
        ),
        Protection::Excluded => finding(
            "excluded",
            Info,
            name,
            "the settings leave the table out: it is only as fresh as the newest base",
            None,
        ),
    };
    Some(found)
}

fn identity_fix(table: &Table, settings: &SourceSettings) -> String {
    let sql = &table.quoted;
    match settings.no_identity {
        NoIdentity::BaseOnly => format!(
            "ALTER TABLE {sql} ADD PRIMARY KEY (...); -- or ALTER TABLE {sql} REPLICA IDENTITY \
             FULL, or the setting no_identity = full"
        ),
        NoIdentity::Full => format!("ALTER TABLE {sql} ADD PRIMARY KEY (...);"),
    }
}
