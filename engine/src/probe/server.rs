//! Facts about the server, and what follows from them.

use lastgood_pg::Error as PgError;
use lastgood_proto::encoding;
use tokio_postgres::Client;

use super::{Finding, ServerFacts, Severity, finding, quoted};
use crate::error::{Error, chain};

const FACTS: &str = r"
SELECT current_setting('server_version') AS version, current_database()::text AS database,
       current_user::text AS role,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
       pg_encoding_to_char((SELECT encoding FROM pg_database WHERE datname = current_database()))::text
           AS encoding,
       current_setting('wal_level') AS wal_level,
       current_setting('max_replication_slots')::int8
           - (SELECT count(*) FROM pg_replication_slots) AS slots_free,
       current_setting('max_wal_senders')::int8
           - (SELECT count(*) FROM pg_stat_get_wal_senders()) AS senders_free,
       pg_database_size(current_database()) AS database_bytes";

const STATE: &str = r"
SELECT pg_is_in_recovery() AS standby,
       current_setting('max_slot_wal_keep_size') AS keep_size,
       (SELECT count(*) FROM pg_largeobject_metadata) AS large_objects,
       (SELECT count(*) FROM pg_prepared_xacts WHERE prepared < now() - interval '1 minute')
           AS prepared,
       (SELECT count(*) FROM pg_stat_activity
        WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
          AND xact_start < now() - interval '1 minute') AS long_writers,
       (SELECT min(pid) FROM pg_stat_activity
        WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
          AND xact_start < now() - interval '1 minute') AS long_writer_pid,
       ARRAY(SELECT DISTINCT substring(slot_name FROM '^lastgood_([0-9a-f]{16})_')
             FROM pg_replication_slots WHERE database = current_database()
             AND slot_name ~ '^lastgood_[0-9a-f]{16}_') AS sources";

pub(super) async fn facts(client: &Client, version: u32) -> Result<ServerFacts, Error> {
    let row = client
        .query_one(FACTS, &[])
        .await
        .map_err(Error::sql("reading server facts"))?;
    let bytes: i64 = row.get("database_bytes");
    Ok(ServerFacts {
        version,
        version_text: row.get("version"),
        system_id: None,
        database: row.get("database"),
        role: row.get("role"),
        superuser: row.get::<_, Option<bool>>("superuser").unwrap_or(false),
        encoding: row.get("encoding"),
        wal_level: row.get("wal_level"),
        slots_free: row.get("slots_free"),
        senders_free: row.get("senders_free"),
        database_bytes: u64::try_from(bytes).unwrap_or(0),
        tables: 0,
        tables_protected: 0,
        pg_dump: None,
        schemas: Vec::new(),
        owners: Vec::new(),
        row_security: false,
    })
}

/// The first minor release in which a publication's change reaches transactions that are open
/// (release notes of 17.5 and its siblings); none for majors that never had the fault.
const fn fixed_minor(version: u32) -> Option<u32> {
    match version / 10_000 {
        13 => Some(21),
        14 => Some(18),
        15 => Some(13),
        16 => Some(9),
        17 => Some(5),
        _ => None,
    }
}

fn loses_rows(version: u32) -> bool {
    fixed_minor(version).is_some_and(|minor| version % 10_000 < minor)
}

pub(super) async fn judge(
    client: &Client,
    facts: &ServerFacts,
    findings: &mut Vec<Finding>,
) -> Result<(), Error> {
    use Severity::{Blocker, Info, Warning};
    let state = client
        .query_one(STATE, &[])
        .await
        .map_err(Error::sql("reading the server's state"))?;

    if facts.version < 130_000 {
        findings.push(finding(
            "version_unsupported",
            Blocker,
            "server_version",
            format!("PostgreSQL {} is older than 13", facts.version_text),
            "upgrade the server to PostgreSQL 13 or newer".to_owned(),
        ));
    }
    if loses_rows(facts.version) {
        findings.push(finding(
            "minor_version",
            Warning,
            "server_version",
            format!(
                "PostgreSQL {} may lose changes of a table that is added to a publication while a \
                 transaction that writes to it is open: a table made after registration may be \
                 captured incompletely",
                facts.version_text
            ),
            format!(
                "update the server to {} or newer",
                fixed_minor(facts.version)
                    .map(|minor| format!("{}.{minor}", facts.version / 10_000))
                    .unwrap_or_default()
            ),
        ));
    }
    if state.get("standby") {
        findings.push(finding(
            "standby",
            Blocker,
            "server",
            "the server is a standby: no publication can be made here",
            "connect to the primary".to_owned(),
        ));
    }
    if facts.wal_level != "logical" {
        findings.push(finding(
            "wal_level",
            Blocker,
            "wal_level",
            format!(
                "wal_level is {}; logical decoding needs logical",
                facts.wal_level
            ),
            "ALTER SYSTEM SET wal_level = 'logical'; -- then restart the server (Amazon RDS: \
             rds.logical_replication = 1; Cloud SQL: cloudsql.logical_decoding = on)"
                .to_owned(),
        ));
    }
    match facts.slots_free {
        ..=0 => findings.push(finding(
            "no_free_slot",
            Blocker,
            "max_replication_slots",
            "every replication slot is in use",
            more("max_replication_slots", 4),
        )),
        1 => findings.push(finding(
            "one_free_slot",
            Warning,
            "max_replication_slots",
            "one replication slot is free; a base that is taken while changes are captured needs \
             another for a moment",
            more("max_replication_slots", 4),
        )),
        _ => {}
    }
    match facts.senders_free {
        ..=0 => findings.push(finding(
            "no_free_sender",
            Blocker,
            "max_wal_senders",
            "every walsender is in use",
            more("max_wal_senders", 4),
        )),
        1 => findings.push(finding(
            "one_free_sender",
            Warning,
            "max_wal_senders",
            "one walsender is free; a base that is taken while changes are captured needs another \
             for a moment",
            more("max_wal_senders", 4),
        )),
        _ => {}
    }
    let encoding = &facts.encoding;
    if encoding == "SQL_ASCII" {
        findings.push(finding(
            "sql_ascii",
            Info,
            facts.database.clone(),
            "the database is SQL_ASCII: its bytes are kept as they are, and a restore needs a \
             SQL_ASCII database too",
            None,
        ));
    } else if encoding::sent_in(encoding) != "UTF8" {
        findings.push(finding(
            "encoding_kept",
            Info,
            facts.database.clone(),
            format!(
                "the database is {encoding}, of which not every code comes back from UTF-8 as it was: \
                 values are kept in {encoding}, and a restore into a database in another encoding \
                 fails if that lacks a character"
            ),
            None,
        ));
    }
    let keep_size: String = state.get("keep_size");
    if keep_size != "-1" {
        findings.push(finding(
            "slot_keep_size",
            Info,
            "max_slot_wal_keep_size",
            format!(
                "the server itself drops a slot that holds back more than {keep_size} of WAL; a \
                 new base is then needed"
            ),
            None,
        ));
    }
    let sources: Vec<String> = state.get("sources");
    for source in sources {
        findings.push(finding(
            super::ALREADY_CAPTURED,
            Warning,
            source,
            "lastgood has a slot of this source on the database already: to capture it twice costs \
             the server twice",
            None,
        ));
    }
    let large_objects: i64 = state.get("large_objects");
    if large_objects > 0 {
        findings.push(finding(
            "large_objects",
            Warning,
            facts.database.clone(),
            format!(
                "{large_objects} large objects are not in the stream of changes: they are as fresh \
                 as the newest base"
            ),
            "take bases often (setting schedule), or move the data into bytea columns".to_owned(),
        ));
    }
    let (prepared, writers): (i64, i64) = (state.get("prepared"), state.get("long_writers"));
    if prepared + writers > 0 {
        let pid: Option<i32> = state.get("long_writer_pid");
        findings.push(finding(
            "long_transaction",
            Warning,
            "pg_stat_activity",
            "a writing transaction has been open for more than a minute; a slot can only be made \
             once it has ended",
            match pid {
                Some(pid) => format!("end it, or: SELECT pg_terminate_backend({pid});"),
                None => "SELECT gid FROM pg_prepared_xacts; -- then COMMIT PREPARED or ROLLBACK \
                         PREPARED"
                    .to_owned(),
            },
        ));
    }
    Ok(())
}

fn more(setting: &str, add: u32) -> String {
    format!("ALTER SYSTEM SET {setting} = <now + {add}>; -- then restart the server")
}

/// Endpoints that are known to pool by transaction: a replication connection does not pass them.
pub(super) fn pooler_by_name(host: &str, port: u16) -> Option<Finding> {
    let named = host.contains("-pooler.") || host.contains(".pooler.");
    (named || port == 6543 || port == 6432).then(|| {
        finding(
            "pooler_endpoint",
            if named {
                Severity::Blocker
            } else {
                Severity::Warning
            },
            format!("{host}:{port}"),
            "this looks like a connection pooler, which does not carry a replication connection",
            "use the database's direct host and port (usually 5432)".to_owned(),
        )
    })
}

/// A pooler that says so by refusing; what connects is judged by what it can do.
fn refusing_pooler(error: &PgError) -> Option<Finding> {
    let refuses = matches!(error, PgError::Pooler { .. }) || error.sqlstate() == Some("08P01");
    refuses.then(|| {
        finding(
            "pooler_endpoint",
            Severity::Blocker,
            "connection",
            chain(error),
            "use the database's direct host and port (usually 5432)".to_owned(),
        )
    })
}

pub(super) fn cannot_connect(error: &PgError) -> Finding {
    if let Some(pooler) = refusing_pooler(error) {
        return pooler;
    }
    let (code, fix) = match error.sqlstate() {
        Some("28P01" | "28000") => (
            "authentication",
            Some("check user and password, and pg_hba.conf on the server".to_owned()),
        ),
        Some("3D000") => ("no_database", Some("check the database name".to_owned())),
        Some("53300") => (
            "too_many_connections",
            Some("raise max_connections, or end idle connections".to_owned()),
        ),
        _ => (
            "cannot_connect",
            Some("check host, port, TLS mode and firewall".to_owned()),
        ),
    };
    finding(code, Severity::Blocker, "connection", chain(error), fix)
}

pub(super) fn cannot_replicate(error: &PgError, facts: &ServerFacts) -> Finding {
    if let Some(pooler) = refusing_pooler(error) {
        return pooler;
    }
    let role = quoted(&facts.role);
    let (code, fix) = match error.sqlstate() {
        // Before 16 the walsender's refusal has no better code than the one for bad passwords.
        Some("42501") => (
            "no_replication_right",
            format!(
                "ALTER ROLE {role} REPLICATION; -- Amazon RDS: GRANT rds_replication TO {role};"
            ),
        ),
        Some("28000") => (
            "no_replication_entry",
            "let the role connect in pg_hba.conf; a logical replication connection needs an entry \
             for its database"
                .to_owned(),
        ),
        Some("53300") => ("no_free_sender", more("max_wal_senders", 4)),
        _ => (
            "no_replication_connection",
            "use the database's direct host, not a pooler, and check pg_hba.conf".to_owned(),
        ),
    };
    finding(
        code,
        Severity::Blocker,
        facts.role.clone(),
        format!("a replication connection is refused: {}", chain(error)),
        fix,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minors_that_lose_rows() {
        for (version, loses) in [
            (130_020, true),
            (130_021, false),
            (140_017, true),
            (150_013, false),
            (160_008, true),
            (170_004, true),
            (170_005, false),
            (180_000, false),
        ] {
            assert_eq!(loses_rows(version), loses, "{version}");
        }
    }
}
