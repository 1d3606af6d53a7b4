//! Why a command failed, with the exit code that says so.

use lastgood_proto::Class;
use serde_json::{Value, json};

use crate::http::chain;

/// Trying again may help.
const FAILED: u8 = 1;
const USAGE: u8 = 2;
/// Somebody has to change something first.
const OPERATOR: u8 = 3;
const CORRUPT: u8 = 4;
const UNREACHABLE_TARGET: u8 = 5;
const INTERRUPTED: u8 = 130;

/// A failed command.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: u8,
    pub(super) message: String,
    /// The service's problem, if it was one.
    pub(super) problem: Option<Value>,
}

impl Failure {
    fn new(exit: u8, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            problem: None,
        }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(FAILED, message)
    }

    pub(super) fn operator(message: impl Into<String>) -> Self {
        Self::new(OPERATOR, message)
    }

    pub(super) fn corrupt(message: impl Into<String>) -> Self {
        Self::new(CORRUPT, message)
    }

    pub(super) fn interrupted(message: impl Into<String>) -> Self {
        Self::new(INTERRUPTED, message)
    }

    /// From a problem that the service answered.
    pub(super) fn problem(status: u16, problem: Value) -> Self {
        let text = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
        let (title, detail) = (text("title"), text("detail"));
        let mut message = match (title.is_empty(), detail.is_empty()) {
            (true, true) => format!("the service answered {status}"),
            (false, true) => title,
            (_, false) => format!("{title}: {detail}"),
        };
        if let Some(hint) = problem["hint"].as_str() {
            message.push_str("\nhint: ");
            message.push_str(hint);
        }
        let exit = match text("code").as_str() {
            "target_outside_windows"
            | "nothing_recoverable"
            | "unknown_transaction"
            | "unknown_point"
            | "ambiguous_target"
            | "segments_missing" => UNREACHABLE_TARGET,
            "repository_corrupt" => CORRUPT,
            "invalid_json" | "invalid_query" | "unknown_field" | "missing_field"
            | "invalid_value" | "invalid_name" | "invalid_settings" | "invalid_target"
            | "invalid_connection" => USAGE,
            _ if status >= 500 => FAILED,
            _ => OPERATOR,
        };
        Self {
            exit,
            message,
            problem: Some(problem),
        }
    }

    pub(super) fn to_json(&self) -> Value {
        self.problem.clone().unwrap_or_else(
            || json!({"title": "failed", "detail": self.message, "exit": self.exit}),
        )
    }
}

const fn exit_of(class: Class) -> u8 {
    match class {
        Class::Transient => FAILED,
        Class::NeedsOperator => OPERATOR,
        Class::Corrupt => CORRUPT,
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let exit = error
            .chain()
            .find_map(|cause| cause.downcast_ref::<lastgood_store::Error>())
            .map_or(FAILED, |error| exit_of(error.class()));
        Self::new(exit, format!("{error:#}"))
    }
}

impl From<lastgood_store::Error> for Failure {
    fn from(error: lastgood_store::Error) -> Self {
        Self::new(exit_of(error.class()), chain(&error))
    }
}

impl From<lastgood_restore::Error> for Failure {
    fn from(error: lastgood_restore::Error) -> Self {
        use lastgood_restore::Error;
        let exit = match &error {
            Error::NothingRecoverable
            | Error::OutsideWindows { .. }
            | Error::AmbiguousLsn { .. }
            | Error::SegmentsMissing { .. }
            | Error::LatestNotRecoverable { .. }
            | Error::UnknownTransaction { .. }
            | Error::AmbiguousTransaction { .. }
            | Error::UnknownPoint { .. }
            | Error::AmbiguousPoint { .. } => UNREACHABLE_TARGET,
            error => exit_of(error.class()),
        };
        Self::new(exit, chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_become_exit_codes() {
        let exit =
            |status, code: &str| Failure::problem(status, json!({"title": "t", "code": code})).exit;
        assert_eq!(exit(422, "target_outside_windows"), UNREACHABLE_TARGET);
        assert_eq!(exit(422, "probe_blocked"), OPERATOR);
        assert_eq!(exit(422, "unknown_field"), USAGE);
        assert_eq!(exit(503, "source_unavailable"), FAILED);
        assert_eq!(exit(500, "repository_corrupt"), CORRUPT);
        assert_eq!(exit(401, "unauthorized"), OPERATOR);
    }

    #[test]
    fn a_problem_is_told_in_one_line() {
        let problem = json!({"title": "The name is taken", "detail": "x exists", "hint": "y"});
        let failure = Failure::problem(409, problem);
        assert_eq!(failure.message, "The name is taken: x exists\nhint: y");
    }
}
