//! What retention may give up: a pure choice over a survey, checked before it is believed.
//!
//! A base is kept either *with what follows it*, every segment from its consistent point on, or for
//! its own moment alone. Segments are kept exactly as long as a base of the first kind needs them.
//! Whom a kept base borrows rows from is kept with what follows it.
//! Nothing is given up but a prefix of each lineage, so what is left is a chain again.
//!
//! Kept whatever the policy says: the newest base with what follows it, the newest lineage while it
//! has no base, and the last segment of the newest lineage, where capture goes on.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Datelike, Utc};
use lastgood_proto::key::SegmentKey;
use lastgood_proto::listing::{GivenUp, LineageListing};
use lastgood_proto::{BaseId, LineageId, Lsn, PgTimestamp, Retention};

use crate::Error;
use crate::survey::{BaseInfo, Survey};
use crate::window::{Reach, reaches};

mod pass;

pub use pass::{Held, Pass, Pending, pass};

const DAY_MICROS: i64 = 86_400_000_000;

/// By lineage; those that give up nothing are not in it.
pub type Unneeded = BTreeMap<LineageId, GivenUp>;

/// What no promise needs.
///
/// # Errors
/// [`Error::RetentionBroken`] if a promise would not hold afterwards: nothing may be deleted then.
pub(crate) fn unneeded(
    survey: &Survey,
    policy: &Retention,
    now: PgTimestamp,
) -> Result<Unneeded, Error> {
    let mut unneeded = Unneeded::new();
    let Some(newest) = survey.listing.newest() else {
        return Ok(unneeded);
    };
    let reaches = reaches(survey);
    let (cutoff, by_age) = (cutoff(&reaches, policy, now), by_age(survey));
    let usable = usable(&by_age, &reaches);
    let mut followed = followed(&reaches, newest_bases(&usable, policy), cutoff);
    // It may become usable once what follows is durable.
    followed.extend(by_age.last().map(|newest| newest.id));
    let alone = alone(&by_age, policy);
    let kept = by_age
        .iter()
        .filter(|base| followed.contains(&base.id) || alone.contains(&base.id));
    let lenders: Vec<BaseId> = kept.flat_map(|base| base.lenders.clone()).collect();
    followed.extend(lenders);
    for lineage in survey
        .listing
        .lineages
        .iter()
        .filter(|lineage| lineage.id <= newest.id)
    {
        let bases = lineage.bases.iter().copied();
        let (kept, bases): (BTreeSet<BaseId>, BTreeSet<BaseId>) =
            bases.partition(|base| followed.contains(base) || alone.contains(base));
        let floor = kept.into_iter().find(|base| followed.contains(base));
        let before = match floor {
            Some(base) => before(lineage, base.consistent_point()),
            None if lineage.id == newest.id => Lsn::default(),
            None => Lsn::MAX,
        };
        let given = GivenUp { bases, before };
        if !given.bases.is_empty() || lineage.all_segments().any(|segment| given.has(segment)) {
            unneeded.insert(lineage.id, given);
        }
    }
    check(survey, &reaches, policy, &unneeded, now)?;
    Ok(unneeded)
}

/// How much of a lineage a base at `point` does not need: what lies before the segment that it falls into. If
/// it falls into none, the last one before it stays: where capture goes on if there is none after it, and what
/// the window's end was observed by. Merging segments therefore never takes back what was given up.
fn before(lineage: &LineageListing, point: Lsn) -> Lsn {
    let starts = |wanted: &dyn Fn(&SegmentKey) -> bool| {
        let segments = lineage.all_segments().filter(|segment| wanted(segment));
        segments.map(|segment| segment.start).max()
    };
    starts(&|segment| segment.start <= point && point < segment.end)
        .or_else(|| starts(&|segment| segment.end <= point))
        .unwrap_or_default()
}

/// Moments after it are promised; none if no days are. They are counted back from the newest moment there
/// is: neither a source that is gone nor a clock that is ahead costs what was captured last.
fn cutoff(reaches: &[Reach], policy: &Retention, now: PgTimestamp) -> Option<PgTimestamp> {
    let micros = i64::from(policy.days?).saturating_mul(DAY_MICROS);
    let newest = reaches.iter().map(|reach| reach.window.to.time).max();
    let from = newest.map_or(now, |newest| newest.min(now));
    Some(PgTimestamp::from_micros(
        from.as_micros().saturating_sub(micros),
    ))
}

/// The bases that are kept with every segment from their consistent point on.
fn followed(
    reaches: &[Reach],
    newest: &[&BaseInfo],
    cutoff: Option<PgTimestamp>,
) -> BTreeSet<BaseId> {
    let mut followed: BTreeSet<BaseId> = newest.iter().map(|base| base.id).collect();
    if let Some(cutoff) = cutoff {
        followed.extend(reaches.iter().flat_map(|reach| promised(reach, cutoff)));
    }
    followed
}

/// Those that can be restored: one that borrows rows may lack them.
fn usable<'a>(by_age: &[&'a BaseInfo], reaches: &[Reach]) -> Vec<&'a BaseInfo> {
    let reached = reaches.iter().flat_map(|reach| &reach.bases);
    let reached: BTreeSet<BaseId> = reached.map(|base| base.id).collect();
    let by_age = by_age.iter().copied();
    by_age.filter(|base| reached.contains(&base.id)).collect()
}

/// The newest bases, as many as the policy promises and at least one.
fn newest_bases<'a>(by_age: &'a [&'a BaseInfo], policy: &Retention) -> &'a [&'a BaseInfo] {
    let count = usize::try_from(policy.bases.unwrap_or(1).max(1)).unwrap_or(usize::MAX);
    by_age
        .get(by_age.len().saturating_sub(count)..)
        .unwrap_or_default()
}

/// The bases of a window that its moments from `cutoff` on need, or are nearer to.
fn promised(reach: &Reach, cutoff: PgTimestamp) -> Vec<BaseId> {
    if reach.window.to.time < cutoff {
        return Vec::new();
    }
    // A restore to a time begins with a base whose clock is not past it.
    let bases = &reach.bases;
    let first = bases.iter().rposition(|base| base.snapshot_time < cutoff);
    let needed = bases.iter().skip(first.unwrap_or(0));
    needed.map(|base| base.id).collect()
}

/// Numbers the hour, day, … that a moment lies in.
type Period = fn(DateTime<Utc>) -> i64;

/// The bases that are kept for their own moment.
fn alone(by_age: &[&BaseInfo], policy: &Retention) -> BTreeSet<BaseId> {
    let mut alone: BTreeSet<BaseId> = policy.pinned.clone();
    let periods: [(Option<u32>, Period); 5] = [
        (policy.hourly, |time| time.timestamp().div_euclid(3600)),
        (policy.daily, |time| i64::from(time.num_days_from_ce())),
        // The first day of the common era was a Monday.
        (policy.weekly, |time| {
            i64::from((time.num_days_from_ce() - 1).div_euclid(7))
        }),
        (policy.monthly, |time| {
            i64::from(time.year()) * 12 + i64::from(time.month0())
        }),
        (policy.yearly, |time| i64::from(time.year())),
    ];
    for (count, period) in periods {
        let count = usize::try_from(count.unwrap_or(0)).unwrap_or(usize::MAX);
        let mut seen = BTreeSet::new();
        for base in by_age.iter().rev() {
            let micros = base.snapshot_time.as_unix_micros();
            // A clock beyond the calendar is no reason to let a base go.
            let Some(time) = DateTime::from_timestamp_micros(micros) else {
                alone.insert(base.id);
                continue;
            };
            if seen.len() < count && seen.insert(period(time)) {
                alone.insert(base.id);
            }
        }
    }
    alone
}

/// All bases, the oldest first: in the order of their lineages, whatever a clock said.
fn by_age(survey: &Survey) -> Vec<&BaseInfo> {
    let mut bases: Vec<&BaseInfo> = survey.bases.iter().collect();
    bases.sort_by_key(|base| (base.lineage, base.id.consistent_point(), base.id));
    bases
}

fn earliest(bases: &[BaseInfo]) -> Option<PgTimestamp> {
    bases.iter().map(|base| base.snapshot_time).min()
}

/// Whether every promise that holds now holds afterwards: the last word before anything is deleted,
/// so it asks for the windows again and trusts nothing above.
fn check(
    survey: &Survey,
    held: &[Reach],
    policy: &Retention,
    unneeded: &Unneeded,
    now: PgTimestamp,
) -> Result<(), Error> {
    let after = survey.without(unneeded);
    let left = reaches(&after);
    let cutoff = cutoff(held, policy, now);
    let by_age = usable(&by_age(survey), held);
    for Reach { window, bases, .. } in held {
        let days = cutoff.filter(|cutoff| window.to.time >= *cutoff);
        // A clock may have been set back: the earliest of a window need not be its oldest base's.
        let from_time = days.map(|cutoff| earliest(bases).max(Some(cutoff)));
        let newest = newest_bases(&by_age, policy).iter();
        let newest = newest.filter(|base| bases.contains(base));
        let from_lsn = newest.map(|base| base.point).min();
        let promised = from_time.is_some() || from_lsn.is_some();
        let holds = left.iter().any(|left| {
            left.window.lineage == window.lineage
                && left.window.to.lsn == window.to.lsn
                && from_time.is_none_or(|from| earliest(&left.bases) <= from)
                && from_lsn.is_none_or(|from| left.window.from.lsn <= from)
        });
        if promised && !holds {
            let from = from_time.flatten().unwrap_or(window.from.time);
            let to = window.to.time;
            let what = format!("the time from {from} to {to} could not be restored any more");
            return Err(Error::RetentionBroken { what });
        }
    }
    let has = |bases: &[BaseInfo], id: &BaseId| bases.iter().any(|base| base.id == *id);
    let pinned = policy.pinned.iter().filter(|id| has(&survey.bases, id));
    match pinned.into_iter().find(|id| !has(&after.bases, id)) {
        None => Ok(()),
        Some(base) => Err(Error::RetentionBroken {
            what: format!("base {base} is pinned"),
        }),
    }
}

#[cfg(test)]
mod tests;
