//! Preflight: what would keep a source from being protected, with the SQL that mends it.
//!
//! Creates nothing. A right is never inferred from the catalogs: what has to work later is tried
//! inside BEGIN … ROLLBACK. The one thing that cannot be tried that way, a slot, is judged by what
//! it needs: the replication connection itself, `wal_level`, a free slot, a free sender.

mod names;
mod rights;
mod role;
mod server;
mod tables;

use lastgood_pg::dump::PgTools;
use lastgood_pg::{ConnectionConfig, Purpose, ReplicationConnection, ReplicationOptions, Session};
use lastgood_proto::SystemId;
use serde::Serialize;

use crate::error::{Error, chain};
use crate::settings::SourceSettings;

pub use role::role_sql;

/// Code of the finding that there is a slot of ours; its object is the source's id.
pub const ALREADY_CAPTURED: &str = "already_captured";

/// What a probe found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub findings: Vec<Finding>,
    /// None if the server could not be reached.
    pub server: Option<ServerFacts>,
}

/// One thing to know or to mend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Stable: programs may branch on it.
    pub code: &'static str,
    pub severity: Severity,
    /// The table, setting or role it is about.
    pub object: String,
    /// One sentence.
    pub message: String,
    /// SQL or setting that mends it; absent if nothing needs to be or can be done.
    pub fix: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Registration is refused until it is mended.
    Blocker,
    /// It works, but not for everything or not for long.
    Warning,
    Info,
}

/// The server and the database behind the connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerFacts {
    /// `server_version_num`.
    pub version: u32,
    pub version_text: String,
    /// None if it could not be asked for.
    pub system_id: Option<SystemId>,
    pub database: String,
    pub role: String,
    pub superuser: bool,
    pub encoding: String,
    pub wal_level: String,
    pub slots_free: i64,
    pub senders_free: i64,
    pub database_bytes: u64,
    pub tables: usize,
    pub tables_protected: usize,
    /// Version of the `pg_dump` that would be used.
    pub pg_dump: Option<String>,
    /// Schemas that hold tables or sequences.
    pub schemas: Vec<String>,
    /// Roles that own what must be published.
    pub owners: Vec<String>,
    pub row_security: bool,
}

impl Report {
    /// Whether anything forbids registration.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.findings
            .iter()
            .any(|finding| finding.severity == Severity::Blocker)
    }
}

/// Looks at the source with the eyes of `settings`. Never fails: what cannot be looked at is a
/// finding itself. Findings come most severe first.
pub async fn probe(config: &ConnectionConfig, settings: &SourceSettings) -> Report {
    let mut findings = Vec::new();
    let server = match look(config, settings, &mut findings).await {
        Ok(server) => server,
        Err(error) => {
            findings.push(unexpected(&error));
            None
        }
    };
    findings.sort_by_key(|finding| finding.severity);
    Report { findings, server }
}

async fn look(
    config: &ConnectionConfig,
    settings: &SourceSettings,
    findings: &mut Vec<Finding>,
) -> Result<Option<ServerFacts>, Error> {
    findings.extend(server::pooler_by_name(config.host(), config.port()));
    let session = match Session::connect(config, Purpose::Probe).await {
        Ok(session) => session,
        Err(error) => {
            findings.push(server::cannot_connect(&error));
            return Ok(None);
        }
    };
    let client = session.client();
    let mut facts = server::facts(client, session.server_version()).await?;
    server::judge(client, &facts, findings).await?;
    facts.system_id = replication(config, &facts, findings).await;
    tools(&mut facts, findings).await;
    if names::judge(client, &facts.encoding, findings).await? {
        return Ok(Some(facts));
    }
    let tables = crate::tables::list(client, facts.version).await?;
    tables::judge(client, &tables, settings, &mut facts, findings).await?;
    rights::attempt(client, &tables, settings, &facts, findings).await?;
    Ok(Some(facts))
}

/// Opens a replication connection and asks it who it is.
async fn replication(
    config: &ConnectionConfig,
    facts: &ServerFacts,
    findings: &mut Vec<Finding>,
) -> Option<SystemId> {
    let options = ReplicationOptions::default();
    let attempt = async {
        let mut connection = ReplicationConnection::connect(config, &options).await?;
        connection.identify_system().await
    };
    match attempt.await {
        Ok(identity) => Some(identity.system_id),
        Err(error) => {
            findings.push(server::cannot_replicate(&error, facts));
            None
        }
    }
}

async fn tools(facts: &mut ServerFacts, findings: &mut Vec<Finding>) {
    let found = PgTools::discover().await;
    match PgTools::for_dump(&found, facts.version) {
        Ok(tools) => facts.pg_dump = Some(tools.version().to_owned()),
        Err(error) => {
            let major = facts.version / 10_000;
            findings.push(Finding {
                code: "pg_dump_missing",
                severity: Severity::Blocker,
                object: "pg_dump".to_owned(),
                message: format!(
                    "the server is PostgreSQL {major} and no pg_dump of that version or newer was \
                     found on this machine: {error}"
                ),
                fix: Some(format!(
                    "install postgresql-client-{major}, or name its folder in LASTGOOD_PG_BIN_DIRS"
                )),
            });
        }
    }
}

fn unexpected(error: &Error) -> Finding {
    Finding {
        code: "probe_failed",
        severity: Severity::Blocker,
        object: "source".to_owned(),
        message: format!("the probe itself failed: {}", chain(error)),
        fix: None,
    }
}

/// A finding with its fix; short, because there are many.
fn finding(
    code: &'static str,
    severity: Severity,
    object: impl Into<String>,
    message: impl Into<String>,
    fix: impl Into<Option<String>>,
) -> Finding {
    Finding {
        code,
        severity,
        object: object.into(),
        message: message.into(),
        fix: fix.into(),
    }
}

/// A name as SQL needs it: `quote_ident` without asking the server, quotes always.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
