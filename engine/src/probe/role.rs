//! The smallest role that works.

use super::{ServerFacts, quoted};

/// SQL that makes a role `name` with every right that capture and bases need, and no other. Run it
/// as a superuser or the database's owner, after setting a password.
///
/// Publishing a table needs its ownership, so the role becomes a member of the owners: PostgreSQL
/// knows no lesser right for it.
#[must_use]
pub fn role_sql(name: &str, facts: &ServerFacts) -> String {
    let role = quoted(name);
    let database = quoted(&facts.database);
    let mut sql = vec![
        format!("CREATE ROLE {role} LOGIN REPLICATION PASSWORD '<choose one>';"),
        format!("GRANT CONNECT, CREATE ON DATABASE {database} TO {role};"),
    ];
    for owner in facts.owners.iter().filter(|owner| *owner != name) {
        sql.push(format!("GRANT {} TO {role};", quoted(owner)));
    }
    for schema in &facts.schemas {
        let schema = quoted(schema);
        sql.push(format!("GRANT USAGE ON SCHEMA {schema} TO {role};"));
        sql.push(format!(
            "GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role};"
        ));
        sql.push(format!(
            "GRANT SELECT ON ALL SEQUENCES IN SCHEMA {schema} TO {role};"
        ));
    }
    if facts.row_security {
        sql.push(format!("ALTER ROLE {role} BYPASSRLS;"));
    }
    sql.push(format!(
        "-- Amazon RDS: leave out REPLICATION above and run GRANT rds_replication TO {role};"
    ));
    sql.join("\n") + "\n"
}
