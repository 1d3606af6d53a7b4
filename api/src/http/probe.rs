//! Looking at a source before anything is created there.

use axum::Json;
use lastgood_engine::SourceSettings;
use lastgood_engine::probe as engine;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::Body;
use super::openapi::{BadBody, Common};
use super::problem::Problem;
use super::sources::connection;

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Probe {
    /// A connection string, as a URL or as `key=value` pairs.
    #[schema(example = "postgresql://app:secret@db.example.org/shop")]
    connection: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Severity {
    /// Registration is refused until it is mended.
    Blocker,
    /// It works, but not for everything or not for long.
    Warning,
    Info,
}

/// One thing to know or to mend.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Finding {
    /// Stable: programs may branch on it.
    pub(crate) code: String,
    pub(crate) severity: Severity,
    /// The table, setting or role it is about.
    pub(crate) object: String,
    /// One sentence.
    pub(crate) message: String,
    /// SQL or setting that mends it.
    pub(crate) fix: Option<String>,
}

/// What a probe found, the most severe first.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ProbeReport)]
pub(crate) struct ReportView {
    /// Whether registration would be refused.
    blocked: bool,
    findings: Vec<Finding>,
    /// Null if the server could not be reached.
    server: Option<ServerView>,
}

/// The server and the database behind the connection.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Server)]
struct ServerView {
    version: String,
    database: String,
    role: String,
    superuser: bool,
    encoding: String,
    wal_level: String,
    slots_free: i64,
    senders_free: i64,
    database_bytes: u64,
    tables: usize,
    tables_protected: usize,
    /// Version of the `pg_dump` that would be used.
    pg_dump: Option<String>,
}

impl From<engine::Finding> for Finding {
    fn from(finding: engine::Finding) -> Self {
        Self {
            code: finding.code.to_owned(),
            severity: match finding.severity {
                engine::Severity::Blocker => Severity::Blocker,
                engine::Severity::Warning => Severity::Warning,
                engine::Severity::Info => Severity::Info,
            },
            object: finding.object,
            message: finding.message,
            fix: finding.fix,
        }
    }
}

impl From<engine::Report> for ReportView {
    fn from(report: engine::Report) -> Self {
        Self {
            blocked: report.is_blocked(),
            findings: report.findings.into_iter().map(Into::into).collect(),
            server: report.server.map(|server| ServerView {
                version: server.version_text,
                database: server.database,
                role: server.role,
                superuser: server.superuser,
                encoding: server.encoding,
                wal_level: server.wal_level,
                slots_free: server.slots_free,
                senders_free: server.senders_free,
                database_bytes: server.database_bytes,
                tables: server.tables,
                tables_protected: server.tables_protected,
                pg_dump: server.pg_dump,
            }),
        }
    }
}

/// Look at a source; nothing is created
#[utoipa::path(
    post,
    path = "/api/v1/probe",
    operation_id = "probe",
    tag = "sources",
    request_body = Probe,
    responses((status = 200, body = ReportView), Common, BadBody)
)]
pub(super) async fn probe(Body(request): Body<Probe>) -> Result<Json<ReportView>, Problem> {
    let config = connection(&request.connection)?;
    let report = Box::pin(engine::probe(&config, &SourceSettings::default())).await;
    Ok(Json(report.into()))
}
