//! A history as a list of operations: what several sessions say, one statement at a time in a fixed
//! order, what happens to the service meanwhile, and the moments that are restored.
//!
//! Because it is a list, it can be replayed, shortened ([`shrink`]) and read: [`Case`] has a text form,
//! SQL with markers, which is what a failing seed leaves behind and what a regression test keeps.

pub mod generate;
pub mod run;
pub mod shrink;

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A history and the servers, storage and settings it happens on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Case {
    pub setting: Setting,
    pub operations: Vec<Operation>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// The seed it was generated from, for the reader.
    pub seed: u64,
    /// The source's major.
    pub source: u32,
    /// The major that is restored into.
    pub target: u32,
    /// In the bucket, if there is an S3 server; else in a folder.
    pub s3: bool,
    pub encryption: bool,
    /// The source's, as the API takes them.
    pub settings: Value,
    /// SQL that damages every restored database before it is compared. Only the test of this harness
    /// has it: a fault that must be found, and found again in the shortened case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// What one session says. `{database}` is the database's name, for identifiers that a whole server
    /// shares.
    Sql {
        session: u32,
        sql: String,
    },
    /// The source is registered; its first base begins beside what follows.
    Register,
    /// Open transactions are rolled back, and the source comes to be protected.
    Settle,
    /// A new base is asked for.
    Base,
    /// What was changed of the tables is in a base.
    Rebased,
    /// `kill -9` of the service, and a new one.
    Kill,
    Pause,
    Resume,
    /// This state is to be restored.
    Moment(Restore),
}

/// How a moment is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Restore {
    pub target: Target,
    /// Some of its tables only: which ones, follows from this number and their names, whatever else is
    /// left out of the case.
    pub part: Option<u32>,
    /// Those tables under a new schema of a database that exists.
    pub beside: bool,
    /// How changes are brought in.
    pub replay: Replay,
    /// At once, while what follows in the case happens; else when all is over.
    pub meanwhile: bool,
    /// A change of definitions may make it unrecoverable; the refusal has to say so.
    pub perhaps: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// Merged into the base's rows.
    Merged,
    /// The same with so little memory, in bytes, that the rest is replayed.
    Memory(u32),
    Ordered,
}

impl fmt::Display for Restore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.target.word())?;
        if let Some(part) = self.part {
            write!(f, "; part {part}")?;
        }
        if self.beside {
            f.write_str("; beside")?;
        }
        match self.replay {
            Replay::Merged => {}
            Replay::Memory(bytes) => write!(f, "; memory {bytes}")?,
            Replay::Ordered => f.write_str("; ordered")?,
        }
        for (is_so, word) in [(self.meanwhile, "; meanwhile"), (self.perhaps, "; perhaps")] {
            if is_so {
                f.write_str(word)?;
            }
        }
        Ok(())
    }
}

impl FromStr for Restore {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut words = text.split("; ");
        let target = words.next().unwrap_or_default();
        let target = Target::ALL.into_iter().find(|it| it.word() == target);
        let mut restore = Self {
            target: target.context("no such target")?,
            part: None,
            beside: false,
            replay: Replay::Merged,
            meanwhile: false,
            perhaps: false,
        };
        for word in words {
            match word.split_once(' ').unwrap_or((word, "")) {
                ("part", part) => restore.part = Some(part.parse()?),
                ("memory", bytes) => restore.replay = Replay::Memory(bytes.parse()?),
                ("ordered", "") => restore.replay = Replay::Ordered,
                ("meanwhile", "") => restore.meanwhile = true,
                ("perhaps", "") => restore.perhaps = true,
                ("beside", "") => restore.beside = true,
                _ => bail!("{word}: no way to restore"),
            }
        }
        Ok(restore)
    }
}

/// How a moment is named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Lsn,
    LsnExclusive,
    Time,
    TimeExclusive,
    /// The transaction of a mark.
    Xid,
    /// The state before the transaction of a mark.
    XidExclusive,
    /// A named restore point.
    Name,
    /// Nothing may follow it.
    Latest,
}

impl Target {
    pub const ALL: [Self; 8] = [
        Self::Lsn,
        Self::LsnExclusive,
        Self::Time,
        Self::TimeExclusive,
        Self::Xid,
        Self::XidExclusive,
        Self::Name,
        Self::Latest,
    ];

    fn word(self) -> &'static str {
        match self {
            Self::Lsn => "lsn",
            Self::LsnExclusive => "lsn exclusive",
            Self::Time => "time",
            Self::TimeExclusive => "time exclusive",
            Self::Xid => "xid",
            Self::XidExclusive => "xid exclusive",
            Self::Name => "name",
            Self::Latest => "latest",
        }
    }
}

/// What a marker line begins with; no statement that is generated has such a line.
const MARK: &str = "--! ";

/// The text form: the setting, then one marker line for each operation, with the SQL below it.
impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setting = serde_json::to_string(&self.setting).map_err(|_| fmt::Error)?;
        writeln!(f, "{MARK}case {setting}")?;
        for operation in &self.operations {
            match operation {
                Operation::Sql { session, sql } => writeln!(f, "{MARK}session {session}\n{sql}")?,
                Operation::Register => writeln!(f, "{MARK}register")?,
                Operation::Settle => writeln!(f, "{MARK}settle")?,
                Operation::Base => writeln!(f, "{MARK}base")?,
                Operation::Rebased => writeln!(f, "{MARK}rebased")?,
                Operation::Kill => writeln!(f, "{MARK}kill")?,
                Operation::Pause => writeln!(f, "{MARK}pause")?,
                Operation::Resume => writeln!(f, "{MARK}resume")?,
                Operation::Moment(restore) => writeln!(f, "{MARK}moment {restore}")?,
            }
        }
        Ok(())
    }
}

impl FromStr for Case {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let mut setting = None;
        let mut operations: Vec<Operation> = Vec::new();
        for line in text.strip_suffix('\n').unwrap_or(text).split('\n') {
            let Some(mark) = line.strip_prefix(MARK) else {
                // A comment at the top, or the next line of a statement.
                if let Some(Operation::Sql { sql, .. }) = operations.last_mut() {
                    sql.push('\n');
                    sql.push_str(line);
                } else {
                    ensure!(
                        line.starts_with("--") || line.is_empty(),
                        "{line}: no session"
                    );
                }
                continue;
            };
            let (word, rest) = mark.split_once(' ').unwrap_or((mark, ""));
            operations.push(match word {
                "case" => {
                    setting = Some(serde_json::from_str(rest).context("the setting")?);
                    continue;
                }
                "session" => Operation::Sql {
                    session: rest.parse().with_context(|| line.to_owned())?,
                    sql: String::new(),
                },
                "register" => Operation::Register,
                "settle" => Operation::Settle,
                "base" => Operation::Base,
                "rebased" => Operation::Rebased,
                "kill" => Operation::Kill,
                "pause" => Operation::Pause,
                "resume" => Operation::Resume,
                "moment" => Operation::Moment(rest.parse().with_context(|| line.to_owned())?),
                _ => bail!("{line}: no such operation"),
            });
        }
        for operation in &mut operations {
            if let Operation::Sql { sql, .. } = operation
                && !sql.is_empty()
            {
                // The end of the marker line.
                sql.remove(0);
            }
        }
        Ok(Self {
            setting: setting.context("a case begins with its setting")?,
            operations,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_of_a_case_is_the_case() {
        for seed in 0..30 {
            let case = generate::case(seed);
            let text = case.to_string();
            assert_eq!(text.parse::<Case>().unwrap(), case, "seed {seed}");
        }
    }

    #[test]
    fn a_seed_is_a_case() {
        assert_eq!(generate::case(7), generate::case(7));
        assert_ne!(generate::case(7).operations, generate::case(8).operations);
    }
}
