//! Why a command failed, with the exit code that says so.

use lastgood_proto::Class;
use serde_json::{Value, json};

use crate::exit::{Exit, Refusal};
use crate::http::{Code, Problem, ProblemBody};

/// A failed command.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: Exit,
    pub(super) message: String,
    /// The problem, as the API writes it, if it is one.
    pub(super) problem: Option<Value>,
}

impl Failure {
    pub(super) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self {
            exit,
            message: message.into(),
            problem: None,
        }
    }

    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }

    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self::new(Exit::Failed, message)
    }

    pub(super) fn operator(message: impl Into<String>) -> Self {
        Self::new(Exit::Operator, message)
    }

    pub(super) fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Exit::Corrupt, message)
    }

    pub(super) fn interrupted(message: impl Into<String>) -> Self {
        Self::new(Exit::Interrupted, message)
    }

    /// From a problem that the service answered.
    pub(super) fn problem(status: u16, problem: Value) -> Self {
        let text = |name: &str| problem[name].as_str().unwrap_or_default().to_owned();
        let (title, detail) = (text("title"), text("detail"));
        let mut message = match (title.is_empty(), detail.is_empty()) {
            (true, true) => format!("the service answered {status}"),
            (false, true) => title,
            // Some details say it all.
            (_, false) if starts_with(&detail, &title) => detail,
            (_, false) => format!("{title}: {detail}"),
        };
        if let Some(hint) = problem["hint"].as_str() {
            message.push_str("\nhint: ");
            message.push_str(hint);
        }
        let exit = match serde_json::from_value::<Code>(problem["code"].clone()) {
            Ok(code) => code.exit(),
            // Of a newer service.
            Err(_) if status >= 500 => Exit::Failed,
            Err(_) => Exit::Operator,
        };
        Self {
            exit,
            message,
            problem: Some(problem),
        }
    }

    /// With what a restore left in the target.
    #[must_use]
    pub(super) fn left_behind(mut self, left_behind: Option<&str>) -> Self {
        if let Some(left_behind) = left_behind {
            self.message.push_str("\nleft behind: ");
            self.message.push_str(left_behind);
            if let Some(problem) = &mut self.problem {
                problem["left_behind"] = left_behind.into();
            }
        }
        self
    }

    pub(super) fn to_json(&self) -> Value {
        let mut value = self
            .problem
            .clone()
            .unwrap_or_else(|| json!({"title": "failed", "detail": self.message}));
        value["exit"] = (self.exit as u8).into();
        value
    }
}

fn starts_with(text: &str, beginning: &str) -> bool {
    text.get(..beginning.len())
        .is_some_and(|start| start.eq_ignore_ascii_case(beginning))
}

/// What this command found without a service is told as the service tells it.
impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        let body = ProblemBody::from(problem);
        match serde_json::to_value(&body) {
            Ok(value) => Self::problem(body.status(), value),
            Err(error) => Self::failed(error.to_string()),
        }
    }
}

impl From<lastgood_store::Error> for Failure {
    fn from(error: lastgood_store::Error) -> Self {
        Problem::from(error).into()
    }
}

impl From<lastgood_restore::Error> for Failure {
    fn from(error: lastgood_restore::Error) -> Self {
        Problem::from(error).into()
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        let class = error.chain().find_map(|cause| {
            if let Some(error) = cause.downcast_ref::<lastgood_store::Error>() {
                return Some(error.class());
            }
            if let Some(error) = cause.downcast_ref::<crate::catalog::Error>() {
                return Some(error.class());
            }
            // A file, a folder or an address that is not as it has to be.
            let needs_operator = cause.is::<Refusal>() || cause.is::<std::io::Error>();
            needs_operator.then_some(Class::NeedsOperator)
        });
        let exit = class.map_or(Exit::Failed, Exit::from);
        Self::new(exit, format!("{error:#}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_become_exit_codes() {
        let exit =
            |status, code: &str| Failure::problem(status, json!({"title": "t", "code": code})).exit;
        assert_eq!(exit(422, "target_outside_windows"), Exit::Target);
        assert_eq!(exit(422, "probe_blocked"), Exit::Operator);
        assert_eq!(exit(422, "unknown_field"), Exit::Usage);
        assert_eq!(exit(503, "source_unavailable"), Exit::Failed);
        assert_eq!(exit(500, "repository_corrupt"), Exit::Corrupt);
        assert_eq!(exit(401, "unauthorized"), Exit::Operator);
        assert_eq!(exit(503, "of_a_newer_service"), Exit::Failed);
        assert_eq!(exit(409, "of_a_newer_service"), Exit::Operator);
    }

    #[test]
    fn a_problem_is_told_in_one_line() {
        let problem = json!({"title": "The name is taken", "detail": "x exists", "hint": "y"});
        let failure = Failure::problem(409, problem);
        assert_eq!(failure.message, "The name is taken: x exists\nhint: y");
    }

    #[test]
    fn a_refusal_needs_somebody() {
        let exit = |error: anyhow::Error| Failure::from(error).exit;
        assert_eq!(exit(Refusal("no".to_owned()).into()), Exit::Operator);
        let taken = std::io::Error::from(std::io::ErrorKind::AddrInUse);
        assert_eq!(
            exit(anyhow::Error::from(taken).context("x")),
            Exit::Operator
        );
        assert_eq!(exit(anyhow::anyhow!("whatever")), Exit::Failed);
    }
}
