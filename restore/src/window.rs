//! The recoverable windows of a source and the gaps between them. Pure.
//!
//! A window is a run of contiguous segments together with the bases that can start from it: from
//! the oldest such base's consistent point to the end of the run. A base that is ahead of the
//! durable run (its segments are still on their way, or the lineage ended first) is a window of one
//! moment. One that borrows rows needs the run from its lenders' consistent points to its own, or it is none.
//! No base, no window.

use lastgood_proto::key::SegmentKey;
use lastgood_proto::listing::LineageListing;
use lastgood_proto::{LineageId, Lsn, PgTimestamp};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::choose::{Cut, Only, choose};
use crate::survey::{BaseInfo, Survey};

/// A position with the server's clock there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    pub time: PgTimestamp,
    pub lsn: Lsn,
}

/// Everything from `from` to `to`, both included, can be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    pub lineage: LineageId,
    pub from: Moment,
    pub to: Moment,
}

/// Nothing between these two moments can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gap {
    pub from: Moment,
    pub to: Moment,
    /// What ended the lineage before it, in one sentence; none if a segment is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A window with what it is made of.
#[derive(Debug, Clone)]
pub(crate) struct Reach {
    pub(crate) window: Window,
    /// By consistent point; never empty.
    pub(crate) bases: Vec<BaseInfo>,
    /// Contiguous; empty if the only base stands beyond every segment. The last one may go on past the window's
    /// end.
    pub(crate) run: Vec<SegmentKey>,
    /// What a transaction that would be in the window must not be past, if that is known: the one that changed the shape.
    pub(crate) ends_before: Option<Moment>,
    /// As much of it as borrowed rows need to become those of the newest base: where that reaches no further
    /// than itself, the run ends before its consistent point.
    pub(crate) lent: Vec<SegmentKey>,
}

/// The windows of all lineages, oldest first.
pub(crate) fn reaches(survey: &Survey) -> Vec<Reach> {
    let mut reaches = Vec::new();
    for lineage in &survey.listing.lineages {
        let mut bases: Vec<BaseInfo> = survey
            .bases
            .iter()
            .filter(|base| base.lineage == lineage.id)
            .filter(|base| {
                base.lenders
                    .iter()
                    .all(|lender| lineage.bases.contains(lender))
            })
            .cloned()
            .collect();
        bases.sort_by_key(|base| (base.id.consistent_point(), base.id));
        for run in runs(lineage) {
            let (start, end) = match (run.first(), run.last()) {
                (Some(first), Some(last)) => (first.start, last.end),
                _ => continue,
            };
            let inside: Vec<BaseInfo>;
            (inside, bases) = bases
                .into_iter()
                .partition(|base| (start..=end).contains(&base.id.consistent_point()));
            let inside: Vec<BaseInfo> = inside
                .into_iter()
                .filter(|base| start <= base.rows_from)
                .collect();
            // Bases that reach equally far are one window; a change of shape begins another.
            for alike in inside.chunk_by(|before, after| before.reach == after.reach) {
                reaches.extend(reach(lineage.id, alike, &run));
            }
        }
        for base in bases.into_iter().filter(|base| base.lenders.is_empty()) {
            let (from, to) = (moment(&base), moment(&base));
            reaches.push(Reach {
                window: Window {
                    lineage: lineage.id,
                    from,
                    to,
                },
                bases: vec![base],
                run: Vec::new(),
                ends_before: None,
                lent: Vec::new(),
            });
        }
    }
    reaches.sort_by_key(|reach| (reach.window.lineage, reach.window.from.lsn));
    reaches
}

/// The window of bases that reach equally far, along a run.
fn reach(lineage: LineageId, bases: &[BaseInfo], run: &[SegmentKey]) -> Option<Reach> {
    let oldest = bases.first()?;
    let earliest = bases.iter().min_by_key(|base| base.point)?;
    let borrow = bases.iter().filter(|base| !base.lenders.is_empty());
    let (first, last) = borrow.fold((Lsn::MAX, Lsn::INVALID), |(first, last), base| {
        (
            first.min(base.rows_from),
            last.max(base.id.consistent_point()),
        )
    });
    let lent = run.iter();
    let lent = lent.filter(|segment| segment.end > first && segment.start < last);
    let lent: Vec<SegmentKey> = lent.copied().collect();
    // Up to the very transaction if that is known, else up to what was cut before it.
    let within = run.iter().take_while(|segment| match oldest.reach_time {
        Some(_) => segment.start < oldest.reach,
        None => segment.end <= oldest.reach,
    });
    let run: Vec<SegmentKey> = within.copied().collect();
    let end = run.last().map(|segment| segment.end);
    // That transaction is durable, so whatever is earlier is as well.
    let ends_before = oldest.reach_time.filter(|_| end > Some(oldest.reach));
    let ends_before = ends_before.map(|time| Moment {
        time,
        lsn: oldest.reach,
    });
    let observed = run.iter().filter_map(|segment| segment.observed_through);
    let observed = match ends_before {
        Some(change) => Some(PgTimestamp::from_micros(change.time.as_micros() - 1)),
        None => observed.max(),
    };
    let newest_base = bases.iter().map(|base| base.snapshot_time);
    let window = Window {
        lineage,
        from: moment(earliest),
        to: Moment {
            time: newest_base
                .chain(observed)
                .max()
                .unwrap_or(oldest.snapshot_time),
            lsn: end
                .map(|end| end.min(oldest.reach))
                .max(Some(oldest.id.consistent_point()))
                .unwrap_or_default(),
        },
    };
    Some(Reach {
        window,
        bases: bases.to_vec(),
        run,
        ends_before,
        lent,
    })
}

/// The contiguous runs of a lineage: its chain, and whatever stands behind a missing segment.
fn runs(lineage: &LineageListing) -> Vec<Vec<SegmentKey>> {
    let mut runs: Vec<Vec<SegmentKey>> = Vec::new();
    for segment in lineage.segments.iter().chain(&lineage.orphans) {
        match runs.last_mut() {
            Some(run) if run.last().is_some_and(|last| last.end == segment.start) => {
                run.push(*segment);
            }
            Some(_) | None => runs.push(vec![*segment]),
        }
    }
    runs
}

const fn moment(base: &BaseInfo) -> Moment {
    Moment {
        time: base.snapshot_time,
        lsn: base.point,
    }
}

impl Survey {
    /// What can be restored, oldest first.
    #[must_use]
    pub fn windows(&self) -> Vec<Window> {
        reaches(self)
            .into_iter()
            .map(|reach| reach.window)
            .collect()
    }

    /// Why what was captured last cannot be restored yet; none if it can, or if there is no window.
    #[must_use]
    pub fn latest_refused(&self) -> Option<String> {
        // The clock does not matter to the latest.
        let chosen = choose(
            self,
            Cut::Latest,
            Only::default(),
            PgTimestamp::from_micros(0),
        );
        match chosen {
            Err(error @ (Error::LatestNotRecoverable { .. } | Error::SegmentsMissing { .. })) => {
                Some(error.to_string())
            }
            Ok(_) | Err(_) => None,
        }
    }

    /// What changed the shape of the source after `lsn`, if that is why no replay goes further.
    pub(crate) fn change_at(
        &self,
        lineage: LineageId,
        lsn: Lsn,
        is_moment: bool,
    ) -> Option<String> {
        let changes = self.changes.get(&lineage)?;
        changes.iter().find_map(|change| change.at(lsn, is_moment))
    }

    /// Whether what followed a window is gone because nobody wanted it kept.
    fn given_up(&self, window: &Window) -> Option<String> {
        let given = &self.listing.lineage(window.lineage)?.given_up;
        (window.to.lsn < given.before)
            .then(|| "the source's retention does not keep what is between".to_owned())
    }

    /// Whether a base is ahead of the segments, which are still on their way.
    fn not_yet(&self, window: &Window) -> Option<String> {
        let newest = self.listing.newest()?;
        let on_its_way = newest.id == window.lineage
            && !newest.ended
            && newest.orphans.is_empty()
            && newest.durable_lsn() <= Some(window.to.lsn);
        on_its_way.then(|| "what was committed between is not durable yet".to_owned())
    }

    /// Why nothing right after a window can be restored; none if a segment is missing, or if nothing
    /// came after it.
    pub(crate) fn why_ended(&self, window: &Window, next: Option<&Window>) -> Option<String> {
        let is_moment = window.from.lsn == window.to.lsn;
        let change = || self.change_at(window.lineage, window.to.lsn, is_moment);
        let Some(next) = next else {
            return change();
        };
        self.given_up(window)
            .or_else(|| match next.lineage == window.lineage {
                true => change().or_else(|| self.not_yet(window)),
                false => Some(self.ends.get(&window.lineage)?.detail.clone()),
            })
    }

    /// The windows, and why each ends where it does: none if a segment is missing, or if nothing came after it.
    #[must_use]
    pub fn ends(&self) -> Vec<(Window, Option<String>)> {
        let windows = self.windows();
        let next = windows.iter().skip(1).map(Some).chain([None]);
        let ends = windows.iter().zip(next);
        ends.map(|(window, next)| (*window, self.why_ended(window, next)))
            .collect()
    }

    /// What lies between the windows. A single transaction that ends one and begins the next is nothing.
    #[must_use]
    pub fn gaps(&self) -> Vec<Gap> {
        let ends = self.ends();
        let pairs = ends.iter().zip(ends.iter().skip(1));
        pairs
            .filter(|((before, _), (after, _))| {
                before.lineage != after.lineage || before.to.lsn.behind() < after.from.lsn
            })
            .map(|((before, reason), (after, _))| Gap {
                from: before.to,
                to: after.from,
                reason: reason.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::survey::tests::{base, borrowing, lineage, segment, survey, time};

    #[test]
    fn no_base_no_window() {
        let survey = survey(&[segment(1, 10, 20)], &[]);
        assert_eq!(survey.windows(), []);
        assert_eq!(survey.gaps(), []);
    }

    #[test]
    fn a_window_begins_at_the_oldest_base_and_ends_with_the_run() {
        let survey = survey(
            &[segment(1, 10, 20), segment(1, 20, 30), segment(1, 30, 45)],
            &[base(1, 15), base(1, 32)],
        );
        let windows = survey.windows();
        assert_eq!(windows.len(), 1);
        assert_eq!(windows[0].from.lsn, Lsn::new(15));
        assert_eq!(windows[0].from.time, time(15));
        assert_eq!(windows[0].to.lsn, Lsn::new(45));
        assert_eq!(windows[0].to.time, time(45));
        assert_eq!(survey.gaps(), []);
    }

    #[test]
    fn a_missing_segment_splits_and_a_later_base_starts_anew() {
        let survey = survey(
            &[segment(1, 10, 20), segment(1, 30, 40)],
            &[base(1, 10), base(1, 35)],
        );
        let spans: Vec<_> = survey
            .windows()
            .iter()
            .map(|window| (window.from.lsn.as_u64(), window.to.lsn.as_u64()))
            .collect();
        assert_eq!(spans, [(10, 20), (35, 40)]);
        assert_eq!(survey.gaps().len(), 1);
        assert_eq!(survey.gaps()[0].reason, None);
    }

    #[test]
    fn a_change_of_shape_splits_the_window() {
        let before = BaseInfo {
            reach: Lsn::new(30),
            ..base(1, 15)
        };
        let survey = survey(
            &[
                segment(1, 10, 20),
                segment(1, 20, 30),
                segment(1, 30, 45),
                segment(1, 45, 60),
            ],
            &[before, base(1, 50)],
        );
        let spans: Vec<_> = survey
            .windows()
            .iter()
            .map(|window| (window.from.lsn.as_u64(), window.to.lsn.as_u64()))
            .collect();
        assert_eq!(spans, [(15, 30), (50, 60)]);
        assert_eq!(survey.gaps().len(), 1);
    }

    /// Where it is known which transaction changed the shape, the window ends right before it, in the midst of a
    /// segment.
    #[test]
    fn a_change_that_is_placed_ends_the_window_within_its_segment() {
        let before = BaseInfo {
            reach: Lsn::new(33),
            reach_time: Some(time(36)),
            ..base(1, 15)
        };
        let segments = [(10, 20), (20, 30), (30, 45), (45, 60)];
        let segments = segments.map(|(start, end)| segment(1, start, end));
        let all = survey(&segments, &[before.clone(), base(1, 50)]);
        let far = PgTimestamp::from_micros(i64::MAX);
        let windows = all.windows();
        assert_eq!(
            (windows[0].to.lsn, windows[0].to.time),
            (Lsn::new(33), time(35))
        );
        let base_of = |cut| {
            let choice = choose(&all, cut, Only::default(), far);
            choice
                .ok()
                .map(|choice| choice.base.id.consistent_point().as_u64())
        };
        let at = |time| Cut::Time {
            time,
            inclusive: true,
        };
        assert_eq!(base_of(at(time(35))), Some(15));
        assert_eq!(base_of(at(time(36))), None);
        assert_eq!(
            base_of(Cut::Time {
                time: time(36),
                inclusive: false
            }),
            Some(15)
        );
        assert_eq!(base_of(at(time(51))), Some(50));
        let lsn = |lsn, inclusive| Cut::Lsn {
            lsn: Lsn::new(lsn),
            inclusive,
        };
        assert_eq!(base_of(lsn(32, true)), Some(15));
        assert_eq!(base_of(lsn(33, true)), None);
        assert_eq!(base_of(lsn(33, false)), Some(15));
        assert_eq!(base_of(lsn(34, false)), None);
        assert_eq!(base_of(Cut::Latest), Some(50));

        // No base since: what was captured last is not quietly left out.
        let mut alone = survey(&segments, std::slice::from_ref(&before));
        alone.listing.lineages[0].described = true;
        let latest = choose(&alone, Cut::Latest, Only::default(), far);
        let latest = latest.unwrap_err();
        assert!(
            matches!(latest, Error::LatestNotRecoverable { at, .. } if at == Lsn::new(33)),
            "{latest:?}"
        );
        // The run ends before: then it is the run that ends the window.
        let short = survey(&segments[..2], &[before]);
        assert_eq!(short.windows()[0].to.lsn, Lsn::new(30));
        assert_eq!(short.windows()[0].to.time, time(30));
    }

    /// What it borrows comes with the changes since, or not at all.
    #[test]
    fn a_base_that_borrows_needs_its_lenders_and_the_way_from_them() {
        let check = |segments: &[(u32, u32)], bases: &[BaseInfo], expect: &[(u64, u64)]| {
            let segments = segments.iter().map(|(start, end)| segment(1, *start, *end));
            let survey = survey(&segments.collect::<Vec<_>>(), bases);
            let windows = survey.windows();
            let spans = windows
                .iter()
                .map(|window| (window.from.lsn.as_u64(), window.to.lsn.as_u64()));
            assert_eq!(spans.collect::<Vec<_>>(), expect);
        };
        let lender = BaseInfo {
            reach: Lsn::new(20),
            ..base(1, 15)
        };
        let borrows = borrowing(1, 32, &[15]);
        let both = [lender.clone(), borrows.clone()];
        let all = [(10, 20), (20, 30), (30, 45)];
        check(&all, &both, &[(15, 20), (32, 45)]);
        // Nothing is at its own moment yet: what is borrowed is older.
        check(&all[..2], &both, &[(15, 20)]);
        // The lender is gone, or something between is missing.
        check(&all, &[borrows], &[]);
        check(&[(10, 20), (30, 45)], &both, &[(15, 20)]);
    }

    /// Another change in the segment that a base falls into: it has its own moment, and what makes the borrowed
    /// rows those of that moment lies in that segment.
    #[test]
    fn the_way_from_a_lender_goes_on_to_the_very_moment() {
        let at_once = BaseInfo {
            reach: Lsn::new(30),
            ..borrowing(1, 50, &[15])
        };
        let lender = BaseInfo {
            reach: Lsn::new(20),
            ..base(1, 15)
        };
        let segments = [(10, 20), (20, 30), (30, 45), (45, 60), (60, 70)];
        let segments = segments.map(|(start, end)| segment(1, start, end));
        let survey = survey(&segments, &[lender, at_once]);
        let cut = Cut::Lsn {
            lsn: Lsn::new(50),
            inclusive: false,
        };
        let far = PgTimestamp::from_micros(i64::MAX);
        let choice = choose(&survey, cut, Only::default(), far).unwrap();
        let ends = choice.before.iter().chain(&choice.needed);
        let ends: Vec<u64> = ends.map(|segment| segment.end.as_u64()).collect();
        assert_eq!(ends, [20, 30, 45, 60]);
    }

    #[test]
    fn a_gap_that_is_about_to_close_says_so() {
        let mut survey = survey(&[segment(1, 10, 20)], &[base(1, 10), base(1, 25)]);
        assert_eq!(survey.gaps()[0].reason, None);
        survey.listing.lineages[0].described = true;
        let reason = survey.gaps()[0].reason.clone();
        assert!(reason.is_some_and(|reason| reason.contains("not durable yet")));
        // Nothing more will come.
        survey.listing.lineages[0].ended = true;
        assert_eq!(survey.gaps()[0].reason, None);
    }

    #[test]
    fn a_base_ahead_of_the_run_is_a_moment() {
        let survey = survey(
            &[segment(1, 10, 20)],
            &[base(1, 10), base(1, 25), base(2, 50)],
        );
        let spans: Vec<_> = survey
            .windows()
            .iter()
            .map(|window| {
                (
                    window.lineage,
                    window.from.lsn.as_u64(),
                    window.to.lsn.as_u64(),
                )
            })
            .collect();
        assert_eq!(
            spans,
            [
                (lineage(1), 10, 20),
                (lineage(1), 25, 25),
                (lineage(2), 50, 50)
            ]
        );
    }
}
