//! Named points at which a debug build dies, fails or waits if the environment says so: what a test
//! needs to end a process at one particular step. In a release build there is nothing of it: the macro
//! [`failpoint!`](crate::failpoint!) is empty there and this module is not compiled.
//!
//! It stands in this crate because all that do something step by step are built on it.
//!
//! `LASTGOOD_FAILPOINTS=put.before=abort@2,confirm.after=error` names points, what happens there and at
//! which pass (the first, if it is not said); every other pass goes on.
//!
//! | action | what happens |
//! |---|---|
//! | `abort` | the process is gone at once, as after `kill -9` |
//! | `error` | the step fails, as if storage had not answered |
//! | `hang:FILE` | the step waits until that file exists |

use std::path::PathBuf;
use std::process::abort;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};

/// The variable of the environment.
pub const VARIABLE: &str = "LASTGOOD_FAILPOINTS";

/// Every point, in the order in which things happen.
pub const POINTS: &[&str] = &[
    "lineage.slot",
    "lineage.file",
    "receive",
    "seal",
    "put.before",
    "put.after",
    "confirm.before",
    "confirm.after",
    "catalog.before",
    "catalog.after",
    "lineage.end",
    "base.slot",
    "base.snapshot",
    "base.dump",
    "base.archives",
    "base.manifest",
    "restore.schema",
    "restore.data",
    "restore.replay",
    "restore.indexes",
    "restore.finish",
];

const POLL: Duration = Duration::from_millis(20);

#[derive(Debug, PartialEq, Eq)]
enum Action {
    Abort,
    Error,
    Hang(PathBuf),
}

#[derive(Debug)]
struct Armed {
    point: &'static str,
    action: Action,
    /// The pass that it happens at, counted from one.
    at: u32,
    passes: AtomicU32,
}

/// Reads the environment, so that a wrong word ends the process at its start.
///
/// # Errors
/// With the points there are, if one is named that is not.
pub fn prepare() -> std::result::Result<(), String> {
    armed().as_ref().map(|_| ()).map_err(Clone::clone)
}

/// What [`failpoint!`](crate::failpoint!) does.
///
/// # Errors
/// [`Error::Transport`], where the environment wants one.
pub async fn pass(point: &'static str) -> Result<()> {
    debug_assert!(POINTS.contains(&point), "{point} is not in the list");
    let Ok(armed) = armed() else {
        return Ok(());
    };
    let Some(armed) = armed.iter().find(|armed| armed.point == point) else {
        return Ok(());
    };
    if armed.passes.fetch_add(1, Ordering::Relaxed) + 1 != armed.at {
        return Ok(());
    }
    // Whoever waits for it reads this, from a command line as well, where nothing is logged.
    eprintln!("failpoint {point}: {:?}", armed.action);
    match &armed.action {
        Action::Abort => abort(),
        Action::Error => Err(Error::Transport {
            key: point.to_owned(),
            detail: "a failpoint".to_owned(),
        }),
        Action::Hang(until) => {
            while !until.exists() {
                tokio::time::sleep(POLL).await;
            }
            Ok(())
        }
    }
}

fn armed() -> &'static std::result::Result<Vec<Armed>, String> {
    static ARMED: OnceLock<std::result::Result<Vec<Armed>, String>> = OnceLock::new();
    ARMED.get_or_init(|| parse(&std::env::var(VARIABLE).unwrap_or_default()))
}

fn parse(text: &str) -> std::result::Result<Vec<Armed>, String> {
    text.split(',')
        .filter(|part| !part.is_empty())
        .map(|part| {
            one(part).ok_or_else(|| {
                format!(
                    "{VARIABLE} has \"{part}\", which is not POINT=ACTION[@PASS]; the points are {}",
                    POINTS.join(" ")
                )
            })
        })
        .collect()
}

fn one(part: &str) -> Option<Armed> {
    let (name, action) = part.split_once('=')?;
    let point = POINTS.iter().find(|point| **point == name)?;
    let (action, at) = match action.split_once('@') {
        Some((action, at)) => (action, at.parse().ok().filter(|at| *at > 0)?),
        None => (action, 1),
    };
    let action = match action.split_once(':') {
        None if action == "abort" => Action::Abort,
        None if action == "error" => Action::Error,
        Some(("hang", file)) => Action::Hang(file.into()),
        _ => return None,
    };
    Some(Armed {
        point,
        action,
        at,
        passes: AtomicU32::new(0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_environment_may_say() {
        let armed = parse("seal=abort,put.before=error@3,base.dump=hang:/tmp/go@2").unwrap();
        let armed: Vec<_> = armed
            .iter()
            .map(|armed| (armed.point, &armed.action, armed.at))
            .collect();
        let expected = [
            ("seal", &Action::Abort, 1),
            ("put.before", &Action::Error, 3),
            ("base.dump", &Action::Hang("/tmp/go".into()), 2),
        ];
        assert_eq!(armed, expected);
        assert!(parse("").unwrap().is_empty());
        for wrong in ["?", "seal", "seal=stop", "seal=abort@0", "sealed=abort"] {
            assert!(parse(wrong).unwrap_err().contains("put.before"), "{wrong}");
        }
    }
}
