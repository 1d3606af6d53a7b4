//! What the command line ends with. One table, whether the service refused or the command itself.

use std::process::ExitCode;

use lastgood_proto::Class;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Trying again may help.
    Failed = 1,
    /// The command or the request is wrong as it was typed.
    Usage = 2,
    /// Somebody has to change something first.
    Operator = 3,
    /// The repository holds what was not written.
    Corrupt = 4,
    /// The target of a plan or a restore cannot be reached.
    Target = 5,
    Interrupted = 130,
}

impl From<Class> for Exit {
    fn from(class: Class) -> Self {
        match class {
            Class::Transient => Exit::Failed,
            Class::NeedsOperator => Exit::Operator,
            Class::Corrupt => Exit::Corrupt,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// What a service or a command will not do until somebody has changed something.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refusal(pub(crate) String);
