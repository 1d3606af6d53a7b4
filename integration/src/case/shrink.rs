//! Leaves out of a failing case what it does not need to fail.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Case, Operation};

/// The smallest case that still fails, of those that could be tried until `time` was over: first
/// whole transactions and ever smaller runs of operations are left out, at last single ones.
///
/// # Errors
/// Those of `fails`.
pub async fn shrink(
    mut case: Case,
    moment: Option<usize>,
    time: Duration,
    mut fails: impl AsyncFnMut(&Case) -> Result<bool>,
) -> Result<Case> {
    let end = Instant::now() + time;
    // One moment fails: the others, and what comes after it, are seldom needed.
    if let Some(moment) = moment {
        for candidate in [only(&case, moment, true), only(&case, moment, false)] {
            if candidate != case && fails(&candidate).await? {
                case = candidate;
                break;
            }
        }
    }
    let mut length = case.operations.len().div_ceil(2);
    while length > 0 {
        let mut start = 0;
        let mut shorter = false;
        while start < case.operations.len() {
            if Instant::now() >= end {
                return Ok(case);
            }
            let mut candidate = case.clone();
            let stop = (start + length).min(case.operations.len());
            candidate.operations.drain(start..stop);
            // Without these there is nothing to fail.
            let has = |wanted: fn(&Operation) -> bool| candidate.operations.iter().any(wanted);
            let is_vain = !has(|it| matches!(it, Operation::Register))
                || moment.is_some()
                    && !(has(|it| matches!(it, Operation::Settle))
                        && has(|it| matches!(it, Operation::Moment(_))));
            if !is_vain && fails(&candidate).await? {
                case = candidate;
                shorter = true;
            } else {
                start = stop;
            }
        }
        // As long as single ones can go, others may become free to go.
        if length > 1 || !shorter {
            length /= 2;
        }
    }
    Ok(case)
}

/// Without the other moments; and, if `cut`, without what comes after this one.
fn only(case: &Case, moment: usize, cut: bool) -> Case {
    let mut number = 0;
    let mut past = false;
    let mut shorter = case.clone();
    shorter.operations.retain(|operation| {
        if let Operation::Moment(_) = operation {
            let is_it = number == moment;
            number += 1;
            past |= is_it;
            is_it
        } else {
            !(cut && past)
        }
    });
    shorter
}

#[cfg(test)]
mod tests {
    use super::super::{Replay, Restore, Setting, Target};
    use super::*;

    fn case(statements: &[&str]) -> Case {
        let sql = |sql: &&str| Operation::Sql {
            session: 1,
            sql: (*sql).to_owned(),
        };
        let mut operations = vec![Operation::Register, Operation::Settle];
        operations.extend(statements.iter().map(sql));
        operations.push(Operation::Moment(Restore {
            target: Target::Latest,
            part: None,
            beside: false,
            replay: Replay::Merged,
            meanwhile: false,
            perhaps: false,
        }));
        Case {
            setting: Setting {
                seed: 0,
                source: 18,
                target: 18,
                s3: false,
                encryption: true,
                settings: serde_json::json!({}),
                fault: None,
            },
            operations,
        }
    }

    #[tokio::test]
    async fn what_is_not_needed_to_fail_is_left_out() {
        let letters = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
        let needed = ["b", "e", "f"];
        let fails = async |case: &Case| {
            let has = |wanted: &&str| {
                let is_it =
                    |it: &Operation| matches!(it, Operation::Sql { sql, .. } if sql == wanted);
                case.operations.iter().any(is_it)
            };
            Ok(needed.iter().all(has))
        };
        let shrunk = shrink(case(&letters), Some(0), Duration::MAX / 4, fails).await;
        assert_eq!(shrunk.unwrap(), case(&needed));
    }
}
