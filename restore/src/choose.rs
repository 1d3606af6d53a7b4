//! Base and segments for a target: a pure choice over a survey.
//!
//! Membership is exact: a transaction is in the base if its commit LSN is below the consistent
//! point, and is replayed if it is at or above it and the cut keeps it. Commit times do not rise
//! with the commit LSN, so a time cut is a place in LSN order: before the first commit that is past
//! the time, and everything behind that place is discarded whatever its own time says.

use lastgood_proto::key::SegmentKey;
use lastgood_proto::{BaseId, LineageId, Lsn, PgTimestamp};

use crate::Error;
use crate::error::Outside;
use crate::survey::{BaseInfo, Survey};
use crate::window::{Reach, Window, reaches};

/// How far a source's clock may be ahead of ours. A target beyond that lies in the future, whatever
/// the source's clock has claimed: it may have been set back since.
const CLOCK_SLACK_MICROS: i64 = 10_000_000;

/// A target in terms of LSN order and commit times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cut {
    Latest,
    Time { time: PgTimestamp, inclusive: bool },
    Lsn { lsn: Lsn, inclusive: bool },
}

impl Cut {
    /// Whether a commit lies before the cut, if every commit before it does.
    pub(crate) fn keeps(self, commit_lsn: Lsn, commit_time: PgTimestamp) -> bool {
        match self {
            Cut::Latest => true,
            Cut::Time { time, inclusive } => within(commit_time, time, inclusive),
            Cut::Lsn { lsn, inclusive } => within(commit_lsn, lsn, inclusive),
        }
    }

    /// Whether the cut may lie inside or before this segment. A time may still turn out to lie
    /// further on: the segment's latest commit may be one that the base has.
    fn falls_within(self, segment: &SegmentKey) -> bool {
        match self {
            Cut::Latest => false,
            Cut::Time { time, inclusive } => segment
                .max_commit_time
                .is_some_and(|latest| !within(latest, time, inclusive)),
            // A commit record starts below the segment's end.
            Cut::Lsn { lsn, inclusive } => match inclusive {
                true => lsn < segment.end,
                false => lsn <= segment.end,
            },
        }
    }
}

fn within<T: Ord>(value: T, limit: T, inclusive: bool) -> bool {
    match inclusive {
        true => value <= limit,
        false => value < limit,
    }
}

/// What a cut needs.
#[derive(Debug, Clone)]
pub(crate) struct Choice {
    pub(crate) lineage: LineageId,
    pub(crate) base: BaseInfo,
    /// For the rows that the base borrows: from the segment that holds the oldest lender's consistent point to
    /// the base's own, as far as they are not needed anyway.
    pub(crate) before: Vec<SegmentKey>,
    /// Contiguous, from the segment that holds the consistent point to the one the cut falls into.
    pub(crate) needed: Vec<SegmentKey>,
    /// What follows in the same run: for the first transaction discarded, and for the sequences.
    pub(crate) following: Vec<SegmentKey>,
    /// The server's clock up to which the run has every commit.
    pub(crate) observed: Option<PgTimestamp>,
}

impl Choice {
    /// Moves the first `count` of those that follow to those that are needed.
    pub(crate) fn need(&mut self, count: usize) {
        self.needed.extend(self.following.drain(..count));
    }

    /// Whether nothing that is not durable yet can belong before the cut. `discarded`: a commit past
    /// it was seen.
    pub(crate) fn reaches(&self, cut: Cut, discarded: bool) -> bool {
        match cut {
            Cut::Latest | Cut::Lsn { .. } => true,
            Cut::Time { time, .. } => discarded || self.observed >= Some(time),
        }
    }
}

/// Narrows the choice; for tests and for operators who know better.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Only {
    pub(crate) lineage: Option<LineageId>,
    pub(crate) base: Option<BaseId>,
}

/// The newest base that can reach the cut, and the segments from it.
///
/// # Errors
/// If the cut lies in no window, or in windows of several lineages at once (LSN only).
pub(crate) fn choose(
    survey: &Survey,
    cut: Cut,
    only: Only,
    now: PgTimestamp,
) -> Result<Choice, Error> {
    let mut reaches = reaches(survey);
    reaches.retain(|reach| only.lineage.is_none_or(|id| id == reach.window.lineage));
    if reaches.is_empty() {
        return Err(Error::NothingRecoverable);
    }
    if is_future(cut, now) {
        return Err(outside(survey, cut, now));
    }
    let candidates: Vec<Choice> = reaches
        .iter()
        .filter_map(|reach| within_reach(reach, cut, only.base))
        .collect();
    match cut {
        Cut::Latest => {
            let choice = candidates.into_iter().next_back();
            let choice = choice.ok_or(Error::NothingRecoverable)?;
            beyond_a_hole(survey, &choice)
                .or_else(|| beyond_the_windows(survey, &choice))
                .map_or(Ok(choice), Err)
        }
        // Two lineages may both hold a moment; the newer one is the one that went on.
        Cut::Time { .. } => candidates
            .into_iter()
            .next_back()
            .ok_or_else(|| outside(survey, cut, now)),
        Cut::Lsn { lsn, .. } => {
            let mut candidates = candidates.into_iter();
            let choice = candidates
                .next_back()
                .ok_or_else(|| outside(survey, cut, now))?;
            let others = candidates.filter(|other| other.lineage != choice.lineage);
            let mut lineages: Vec<LineageId> = others.map(|other| other.lineage).collect();
            if lineages.is_empty() {
                return Ok(choice);
            }
            lineages.push(choice.lineage);
            Err(Error::AmbiguousLsn { lsn, lineages })
        }
    }
}

fn within_reach(reach: &Reach, cut: Cut, only: Option<BaseId>) -> Option<Choice> {
    let bases = reach.bases.iter().rev();
    let base = bases
        .filter(|base| only.is_none_or(|id| id == base.id))
        .find(|base| match cut {
            Cut::Latest => true,
            // Every commit below the consistent point has a time at or before the snapshot's.
            Cut::Time { time, inclusive } => within(base.snapshot_time, time, inclusive),
            // What committed at an LSN is in a base from right behind it.
            Cut::Lsn { lsn, inclusive } => match inclusive {
                true => base.point <= lsn.behind(),
                false => base.point <= lsn,
            },
        })?;
    let point = base.point;
    let from = reach.run.partition_point(|segment| segment.end <= point);
    let run = reach.run.get(from..).unwrap_or_default();
    let lent = reach.lent.iter().filter(|segment| {
        let is_needed_anyway = run
            .first()
            .is_some_and(|first| first.start <= segment.start);
        segment.end > base.rows_from && segment.start < point && !is_needed_anyway
    });
    let before = match base.lenders.is_empty() {
        true => Vec::new(),
        false => lent.copied().collect(),
    };
    let inside = run.iter().position(|segment| cut.falls_within(segment));
    let observed = run.iter().filter_map(|segment| segment.observed_through);
    let observed = observed.max();
    let reached = match cut {
        Cut::Latest => true,
        // Nothing is past the time yet: only the server's clock can say that nothing will be.
        Cut::Time { time, inclusive } => match reach.ends_before {
            Some(change) => !within(change.time, time, inclusive),
            None => inside.is_some() || observed >= Some(time),
        },
        // The next commit record may start just at the end of the run.
        Cut::Lsn { lsn, inclusive } => within(lsn, reach.window.to.lsn, !inclusive),
    };
    let (needed, following) = run.split_at(inside.map_or(run.len(), |at| at + 1));
    reached.then(|| Choice {
        lineage: reach.window.lineage,
        base: base.clone(),
        before,
        needed: needed.to_vec(),
        following: following.to_vec(),
        observed,
    })
}

fn is_future(cut: Cut, now: PgTimestamp) -> bool {
    let limit = now.as_micros().saturating_add(CLOCK_SLACK_MICROS);
    matches!(cut, Cut::Time { time, .. } if time.as_micros() > limit)
}

/// "Latest" would quietly be old if segments stand behind a hole that no base bridges.
fn beyond_a_hole(survey: &Survey, choice: &Choice) -> Option<Error> {
    let run = choice.needed.iter().chain(&choice.following);
    let end = run
        .map(|segment| segment.end)
        .next_back()
        .unwrap_or(choice.base.point);
    let lineage = survey.listing.lineage(choice.lineage)?;
    let beyond = lineage.orphans.iter().find(|orphan| orphan.start > end)?;
    Some(Error::SegmentsMissing {
        lineage: choice.lineage,
        from: end,
        to: beyond.start,
    })
}

/// Nor if what was captured last is in no window yet.
fn beyond_the_windows(survey: &Survey, choice: &Choice) -> Option<Error> {
    let newest = survey.listing.newest()?;
    let reached = choice.needed.last().map(|segment| segment.end);
    let at = reached
        .map(|end| end.min(choice.base.reach))
        .max(Some(choice.base.point))
        .unwrap_or_default();
    let why = match newest.id == choice.lineage {
        true => {
            // Also what stands behind a hole.
            let captured = newest.segments.iter().chain(&newest.orphans);
            captured.map(|segment| segment.end).find(|end| *end > at)?;
            let change = survey.change_at(newest.id, at, choice.base.reach < at);
            format!(
                "{}, and no base was taken since",
                change.as_deref().unwrap_or("a base is missing")
            )
        }
        false => format!(
            "lineage {}, which was begun later, has no base yet",
            newest.id
        ),
    };
    Some(Error::LatestNotRecoverable { at, why })
}

/// Why the cut lies in no window.
pub(crate) fn outside(survey: &Survey, cut: Cut, now: PgTimestamp) -> Error {
    let reaches = reaches(survey);
    let windows = survey.windows();
    let before = |reach: &&Reach| match cut {
        Cut::Latest => false,
        Cut::Time { time, .. } => reach.window.from.time <= time,
        Cut::Lsn { lsn, .. } => reach.window.from.lsn <= lsn,
    };
    let earlier = reaches.iter().rfind(before).map(|reach| reach.window);
    let later = reaches
        .iter()
        .find(|reach| !before(reach))
        .map(|reach| reach.window);
    let reason = earlier.and_then(|window| survey.why_ended(&window, later.as_ref()));
    let ends =
        |window: &Window| matches!(cut, Cut::Lsn { lsn, inclusive: true } if lsn == window.to.lsn);
    let why = match (cut, earlier, later) {
        _ if is_future(cut, now) => Outside::Future,
        _ if windows.iter().any(ends) && reason.is_none() => Outside::AtEnd,
        (_, None, _) => Outside::BeforeFirst,
        (_, Some(_), None) if reason.is_some() => Outside::NotYetBased,
        (_, Some(_), None) => Outside::NotYetDurable,
        (_, Some(_), Some(_)) => Outside::InGap,
    };
    let mut nearest: Vec<Window> = earlier.into_iter().chain(later).collect();
    if why == Outside::Future {
        // A clock that was ahead has not made the future recoverable.
        for window in &mut nearest {
            window.to.time = window.to.time.min(now);
        }
    }
    let after = matches!(why, Outside::InGap | Outside::NotYetBased);
    Error::OutsideWindows {
        why,
        reason: reason.filter(|_| after),
        nearest,
        windows,
    }
}

#[cfg(test)]
mod tests;
