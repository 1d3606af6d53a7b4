//! What goes wrong, as RFC 9457 problems with a stable `code`.
//!
//! A problem's `detail` is for people and may change; its `code` is for programs and may not. No
//! problem carries a secret: errors of the other crates never do, and what a request held is never
//! quoted back.

use std::error::Error as StdError;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lastgood_proto::Class;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;

use crate::exit::Exit;

/// Every code with its status, its exit code on the command line and its title: the one table of
/// what can go wrong.
macro_rules! codes {
    ($($variant:ident $status:ident $exit:ident $code:literal $title:literal;)+) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub(crate) enum Code { $($variant),+ }

        impl Code {
            #[cfg(test)]
            pub(crate) const ALL: &'static [Code] = &[$(Code::$variant),+];

            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $code),+ }
            }

            const fn status(self) -> StatusCode {
                match self { $(Code::$variant => StatusCode::$status),+ }
            }

            /// What the command line exits with, whoever found it: the service or the command itself.
            pub(crate) const fn exit(self) -> Exit {
                match self { $(Code::$variant => Exit::$exit),+ }
            }

            const fn title(self) -> &'static str {
                match self { $(Code::$variant => $title),+ }
            }
        }
    };
}

codes! {
    InvalidJson BAD_REQUEST Usage "invalid_json" "The body is not JSON";
    InvalidQuery BAD_REQUEST Usage "invalid_query" "The query is not understood";
    Unauthorized UNAUTHORIZED Operator "unauthorized" "A bearer token is needed";
    NotFound NOT_FOUND Usage "not_found" "There is no such resource";
    UnknownSource NOT_FOUND Usage "unknown_source" "There is no such source";
    UnknownRestore NOT_FOUND Usage "unknown_restore" "There is no such restore";
    MethodNotAllowed METHOD_NOT_ALLOWED Usage "method_not_allowed" "The method does not fit the resource";
    DuplicateName CONFLICT Operator "duplicate_name" "The name is taken";
    BaseRunning CONFLICT Failed "base_running" "A base of this source is running";
    SourcePaused CONFLICT Operator "source_paused" "The source is paused";
    SourceNotReady CONFLICT Failed "source_not_ready" "The source is not being captured yet";
    RestoreFinished CONFLICT Operator "restore_finished" "The restore has ended";
    SourceKnown CONFLICT Operator "source_known" "The source is registered already";
    SourceInRepository CONFLICT Operator "source_in_repository" "The repository holds a source of this name";
    OtherDatabase CONFLICT Operator "other_database" "Another database answers";
    NoConnection CONFLICT Operator "no_connection" "The source waits for its connection string";
    SourceTakenOver CONFLICT Operator "source_taken_over" "Another service captures the source";
    TooManyRestores TOO_MANY_REQUESTS Failed "too_many_restores" "As many restores run as may at the same time";
    TooManyFollowers TOO_MANY_REQUESTS Failed "too_many_followers" "As many clients follow restores as may at the same time";
    TooManySources CONFLICT Operator "too_many_sources" "The service has as many sources as it takes";
    BodyTooLarge PAYLOAD_TOO_LARGE Usage "body_too_large" "The body is larger than 1 MiB";
    UnsupportedMediaType UNSUPPORTED_MEDIA_TYPE Usage "unsupported_media_type" "The body must be application/json";
    UnknownField UNPROCESSABLE_ENTITY Usage "unknown_field" "A field is not known";
    MissingField UNPROCESSABLE_ENTITY Usage "missing_field" "A field is missing";
    InvalidValue UNPROCESSABLE_ENTITY Usage "invalid_value" "A value is not what its field takes";
    InvalidName UNPROCESSABLE_ENTITY Usage "invalid_name" "The name cannot be used";
    InvalidConnection UNPROCESSABLE_ENTITY Usage "invalid_connection" "The connection string is not understood";
    InvalidSettings UNPROCESSABLE_ENTITY Usage "invalid_settings" "A setting cannot be used";
    InvalidTarget UNPROCESSABLE_ENTITY Usage "invalid_target" "The target is not understood";
    ProbeBlocked UNPROCESSABLE_ENTITY Operator "probe_blocked" "The source cannot be protected as it is";
    SourceRefused UNPROCESSABLE_ENTITY Operator "source_refused" "The source refused";
    TargetOutsideWindows UNPROCESSABLE_ENTITY Target "target_outside_windows" "The target cannot be reached";
    NothingRecoverable UNPROCESSABLE_ENTITY Target "nothing_recoverable" "There is nothing to restore yet";
    AmbiguousTarget UNPROCESSABLE_ENTITY Target "ambiguous_target" "The target fits several moments";
    UnknownTransaction UNPROCESSABLE_ENTITY Target "unknown_transaction" "There is no such transaction";
    UnknownTable UNPROCESSABLE_ENTITY Usage "unknown_table" "There is no such table";
    UnknownPoint UNPROCESSABLE_ENTITY Target "unknown_point" "There is no such restore point";
    LatestNotRecoverable UNPROCESSABLE_ENTITY Target "latest_not_recoverable" "The latest changes cannot be restored yet";
    SegmentsMissing UNPROCESSABLE_ENTITY Target "segments_missing" "Segments are missing before the target";
    RestoreRefused UNPROCESSABLE_ENTITY Operator "restore_refused" "The restore cannot be done as asked";
    WrongFingerprint UNPROCESSABLE_ENTITY Operator "wrong_fingerprint" "This is not the master key's fingerprint";
    RepositoryRefused UNPROCESSABLE_ENTITY Operator "repository_refused" "The repository refused";
    RepositoryCorrupt INTERNAL_SERVER_ERROR Corrupt "repository_corrupt" "The repository holds what was not written";
    Internal INTERNAL_SERVER_ERROR Failed "internal" "Something is wrong in the service";
    RepositoryUnavailable SERVICE_UNAVAILABLE Failed "repository_unavailable" "The repository does not answer";
    SourceUnavailable SERVICE_UNAVAILABLE Failed "source_unavailable" "The source does not answer";
    TargetUnavailable SERVICE_UNAVAILABLE Failed "target_unavailable" "The server to restore to does not answer";
    ShuttingDown SERVICE_UNAVAILABLE Failed "shutting_down" "The service is shutting down";
}

/// A problem as it is written.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Problem)]
pub(crate) struct ProblemBody {
    /// A name of the code that never changes.
    #[serde(rename = "type")]
    #[schema(example = "urn:lastgood:problem:unknown_source")]
    kind: String,
    title: &'static str,
    #[schema(value_type = u16, example = 404)]
    status: u16,
    code: Code,
    /// One sentence for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<String>,
    /// More about some codes: `field`, `findings`, `windows`, `nearest`, `candidates`.
    #[serde(flatten)]
    #[schema(value_type = std::collections::BTreeMap<String, Value>)]
    more: Map<String, Value>,
}

/// A problem on its way to the client.
#[derive(Debug)]
pub(crate) struct Problem {
    code: Code,
    detail: Option<String>,
    more: Map<String, Value>,
}

impl Problem {
    pub(crate) fn new(code: Code) -> Self {
        Self {
            code,
            detail: None,
            more: Map::new(),
        }
    }

    #[must_use]
    pub(crate) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: impl Serialize) -> Self {
        if let Ok(value) = serde_json::to_value(value) {
            self.more.insert(name.to_owned(), value);
        }
        self
    }

    pub(crate) fn field(code: Code, field: &str, detail: impl Into<String>) -> Self {
        Self::new(code).detail(detail).with("field", field)
    }

    #[cfg(test)]
    pub(crate) fn code(&self) -> Code {
        self.code
    }
}

impl ProblemBody {
    pub(crate) fn status(&self) -> u16 {
        self.status
    }
}

impl From<Problem> for ProblemBody {
    fn from(problem: Problem) -> Self {
        Self {
            kind: format!("urn:lastgood:problem:{}", problem.code.as_str()),
            title: problem.code.title(),
            status: problem.code.status().as_u16(),
            code: problem.code,
            detail: problem.detail,
            more: problem.more,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let mut response = (status, axum::Json(ProblemBody::from(self))).into_response();
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Turn what the layers below answer on their own (a path that is no text) into problems.
pub(super) async fn only_problems(response: Response) -> Response {
    let content_type = response.headers().get(header::CONTENT_TYPE);
    let is_text = content_type
        .and_then(|value| value.to_str().ok())
        .is_none_or(|text| text.starts_with("text/plain"));
    match response.status() {
        StatusCode::BAD_REQUEST if is_text => Problem::new(Code::InvalidQuery).into_response(),
        _ => response,
    }
}

/// An error with its causes, as one sentence.
pub(crate) fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Transparent wrappers repeat their cause.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

impl From<crate::catalog::Error> for Problem {
    fn from(error: crate::catalog::Error) -> Self {
        if let crate::catalog::Error::DuplicateName(_) = error {
            return Problem::field(Code::DuplicateName, "name", error.to_string());
        }
        if let crate::catalog::Error::NoConnection = error {
            return Problem::new(Code::NoConnection).detail(error.to_string());
        }
        tracing::error!(error = &error as &dyn StdError, "the catalog failed");
        Problem::new(Code::Internal).detail(chain(&error))
    }
}

impl From<lastgood_store::Error> for Problem {
    fn from(error: lastgood_store::Error) -> Self {
        let code = match error.class() {
            Class::Transient => Code::RepositoryUnavailable,
            Class::NeedsOperator => Code::RepositoryRefused,
            Class::Corrupt => Code::RepositoryCorrupt,
        };
        Problem::new(code).detail(chain(&error))
    }
}

impl From<lastgood_pg::Error> for Problem {
    fn from(error: lastgood_pg::Error) -> Self {
        Problem::new(source_code(error.class())).detail(chain(&error))
    }
}

fn source_code(class: Class) -> Code {
    match class {
        Class::Transient => Code::SourceUnavailable,
        Class::NeedsOperator | Class::Corrupt => Code::SourceRefused,
    }
}

impl From<lastgood_engine::Error> for Problem {
    fn from(error: lastgood_engine::Error) -> Self {
        use lastgood_engine::Error;
        let detail = chain(&error);
        match error {
            Error::Store(error) => error.into(),
            Error::Settings(error) => Problem::field(Code::InvalidSettings, error.field(), detail),
            Error::PointName(_) => Problem::field(Code::InvalidName, "name", detail),
            Error::NoLineage => Problem::new(Code::SourceNotReady).detail(detail),
            Error::TakenOver { .. } => Problem::new(Code::SourceTakenOver).detail(detail),
            error => Problem::new(source_code(error.class())).detail(detail),
        }
    }
}

impl From<lastgood_restore::Error> for Problem {
    fn from(error: lastgood_restore::Error) -> Self {
        use lastgood_restore::Error;
        let detail = chain(&error);
        match error {
            Error::Store(error) => error.into(),
            Error::NothingRecoverable => Problem::new(Code::NothingRecoverable).detail(detail),
            Error::OutsideWindows {
                nearest, windows, ..
            } => Problem::new(Code::TargetOutsideWindows)
                .detail(detail)
                .with("nearest", nearest)
                .with("windows", windows),
            Error::TimeUnknown { since, until, lsn } => Problem::new(Code::AmbiguousTarget)
                .detail(detail)
                .with("since", since)
                .with("until", until)
                .with("lsn", lsn),
            Error::AmbiguousLsn { lineages, .. } => Problem::new(Code::AmbiguousTarget)
                .detail(detail)
                .with("lineages", lineages),
            Error::AmbiguousTransaction { candidates, .. } => {
                let candidates: Vec<Value> = candidates
                    .iter()
                    .map(|(lsn, time)| serde_json::json!({"lsn": lsn, "time": time}))
                    .collect();
                Problem::new(Code::AmbiguousTarget)
                    .detail(detail)
                    .with("candidates", candidates)
            }
            Error::AmbiguousPoint { candidates, .. } => {
                let candidates: Vec<Value> = candidates
                    .iter()
                    .map(|lsn| serde_json::json!({"lsn": lsn}))
                    .collect();
                Problem::new(Code::AmbiguousTarget)
                    .detail(detail)
                    .with("candidates", candidates)
            }
            Error::UnknownTransaction { .. } => {
                Problem::new(Code::UnknownTransaction).detail(detail)
            }
            Error::UnknownTable { .. }
            | Error::InvalidTable { .. }
            | Error::NotCaptured { .. }
            | Error::AmbiguousTable { .. } => Problem::field(Code::UnknownTable, "tables", detail),
            Error::InvalidSchema { .. } => {
                Problem::field(Code::InvalidValue, "into_schema", detail)
            }
            Error::SameName { .. } => Problem::field(Code::InvalidValue, "tables", detail),
            Error::UnknownPoint { .. } => Problem::new(Code::UnknownPoint).detail(detail),
            Error::LatestNotRecoverable { .. } => {
                Problem::new(Code::LatestNotRecoverable).detail(detail)
            }
            Error::SegmentsMissing { .. } => Problem::new(Code::SegmentsMissing).detail(detail),
            error => {
                let code = match error.class() {
                    Class::Transient => Code::TargetUnavailable,
                    Class::NeedsOperator => Code::RestoreRefused,
                    Class::Corrupt => Code::RepositoryCorrupt,
                };
                Problem::new(code).detail(detail)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_plain() {
        let mut seen = std::collections::BTreeSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()), "{} twice", code.as_str());
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'_';
            assert!(code.as_str().bytes().all(plain));
            assert!(code.status().is_client_error() || code.status().is_server_error());
            let text = serde_json::to_value(code).unwrap();
            assert_eq!(text, code.as_str());
        }
    }

    #[tokio::test]
    async fn a_problem_is_written_as_rfc_9457_says() {
        let response = Problem::field(Code::DuplicateName, "name", "taken").into_response();
        assert_eq!(response.status(), StatusCode::CONFLICT);
        assert_eq!(
            response.headers()[header::CONTENT_TYPE],
            "application/problem+json"
        );
        let body = axum::body::to_bytes(response.into_body(), 1 << 16)
            .await
            .unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(
            body,
            serde_json::json!({
                "type": "urn:lastgood:problem:duplicate_name",
                "title": "The name is taken",
                "status": 409,
                "code": "duplicate_name",
                "detail": "taken",
                "field": "name",
            })
        );
    }
}
