//! A model history against the choice: every kept commit is in the base or in exactly one needed
//! segment, and nothing that is discarded comes before the place where the cut falls.

use lastgood_proto::Lsn;
use lastgood_proto::key::SegmentKind;
use proptest::prelude::*;

use super::*;
use crate::boundary::{Splitter, Verdict};
use crate::survey::tests::{base, lineage, segment, survey, time};

#[derive(Debug, Clone, Copy)]
struct Commit {
    lsn: u64,
    end: u64,
    time: i64,
}

#[derive(Debug, Clone)]
struct History {
    start: u64,
    commits: Vec<Commit>,
    segments: Vec<SegmentKey>,
    bases: Vec<BaseInfo>,
}

/// Commits 10 to 40 LSNs apart, times that go back by up to 30, segments cut at random commits
/// with idle ones between, bases at random places with the clock of that moment.
fn history() -> impl Strategy<Value = History> {
    let commit = (1_u64..30, 5_u64..10, -30_i64..40, any::<bool>(), 0_u64..8);
    (
        prop::collection::vec(commit, 0..60),
        prop::collection::vec(any::<prop::sample::Index>(), 1..4),
    )
        .prop_map(|(steps, base_places)| {
            let start = 1000;
            let (mut lsn, mut clock) = (start, 5000_i64);
            let (mut commits, mut segments): (Vec<Commit>, Vec<SegmentKey>) =
                (Vec::new(), Vec::new());
            let (mut open_from, mut open_max, mut seen) = (start, None::<i64>, None::<i64>);
            let mut bases = vec![(start, clock)];
            for (gap, length, jitter, cut, idle) in steps {
                let commit = Commit {
                    lsn: lsn + gap,
                    end: lsn + gap + length,
                    time: clock + jitter,
                };
                commits.push(commit);
                (lsn, clock) = (commit.end, clock + 40);
                open_max = open_max.max(Some(commit.time));
                seen = seen.max(open_max);
                if cut {
                    let end = lsn + idle;
                    segments.push(SegmentKey {
                        start: Lsn::new(open_from),
                        end: Lsn::new(end),
                        max_commit_time: open_max.map(time),
                        observed_through: seen.map(time),
                        kind: SegmentKind::Captured,
                    });
                    (lsn, open_from, open_max) = (end, end, None);
                }
                bases.push((lsn, clock));
            }
            // What the last open segment would hold is not durable.
            let durable = open_from;
            commits.retain(|commit| commit.end <= durable);
            bases.retain(|(lsn, _)| *lsn <= durable);
            let chosen = base_places.iter().map(|place| place.get(&bases));
            let mut bases: Vec<BaseInfo> = chosen
                .map(|(lsn, clock)| BaseInfo {
                    snapshot_time: time(*clock),
                    ..base(1, u32::try_from(*lsn).unwrap())
                })
                .collect();
            bases.sort_by_key(|base| base.id);
            bases.dedup_by_key(|base| base.id);
            History {
                start,
                commits,
                segments,
                bases,
            }
        })
}

fn survey_of(history: &History) -> Survey {
    let segments: Vec<_> = history
        .segments
        .iter()
        .map(|key| (lineage(1), *key))
        .collect();
    survey(&segments, &history.bases)
}

/// What PostgreSQL's recovery would keep: the whole prefix before the first commit past the cut.
fn expected(history: &History, cut: Cut) -> Vec<u64> {
    let kept = history
        .commits
        .iter()
        .take_while(|commit| cut.keeps(Lsn::new(commit.lsn), time(commit.time)));
    kept.map(|commit| commit.lsn).collect()
}

fn check(history: &History, cut: Cut) -> Result<(), TestCaseError> {
    let survey = survey_of(history);
    let oldest = &history.bases[0];
    match choose(&survey, cut, Only::default(), time(i64::MAX)) {
        Ok(choice) => {
            let point = choice.base.id.consistent_point();
            for pair in choice.needed.windows(2) {
                prop_assert_eq!(pair[0].end, pair[1].start);
            }
            if let Some(first) = choice.needed.first() {
                prop_assert!(first.start <= point && point < first.end);
            }
            let below = history
                .commits
                .iter()
                .filter(|commit| commit.lsn < point.as_u64());
            let mut kept: Vec<u64> = below.map(|commit| commit.lsn).collect();
            let mut splitter = Splitter::new(point, cut);
            let mut discarded = false;
            for segment in choice.needed.iter().chain(&choice.following) {
                let inside = history.commits.iter().filter(|commit| {
                    segment.start.as_u64() <= commit.lsn && commit.end <= segment.end.as_u64()
                });
                for commit in inside {
                    match splitter.admit(Lsn::new(commit.lsn), time(commit.time), None) {
                        Verdict::InBase => {}
                        Verdict::Kept => {
                            prop_assert!(choice.needed.contains(segment));
                            prop_assert!(!discarded);
                            kept.push(commit.lsn);
                        }
                        Verdict::Discarded | Verdict::Unsure => discarded = true,
                    }
                }
            }
            prop_assert_eq!(kept, expected(history, cut));
        }
        Err(Error::OutsideWindows { .. }) => match cut {
            Cut::Latest => prop_assert!(false, "latest is always there"),
            Cut::Lsn { lsn, inclusive } => {
                let durable = history
                    .segments
                    .last()
                    .map_or(history.start, |last| last.end.as_u64());
                let reached = within(lsn, Lsn::new(durable), !inclusive);
                prop_assert!(lsn < oldest.id.consistent_point() || !reached);
            }
            Cut::Time {
                time: target,
                inclusive,
            } => {
                let before = !within(oldest.snapshot_time, target, inclusive);
                let observed = history
                    .segments
                    .iter()
                    .filter_map(|key| key.observed_through)
                    .max();
                prop_assert!(before || observed < Some(target));
            }
        },
        Err(other) => prop_assert!(false, "{}", other),
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_commit_exactly_once(history in history(), at in 0_u64..2500, inclusive: bool) {
        check(&history, Cut::Latest)?;
        check(&history, Cut::Lsn { lsn: Lsn::new(900 + at), inclusive })?;
        let target = time(4900 + i64::try_from(at).unwrap());
        check(&history, Cut::Time { time: target, inclusive })?;
    }

    #[test]
    fn exactly_at_a_commit(history in history(), which: prop::sample::Index, inclusive: bool) {
        if !history.commits.is_empty() {
            let commit = which.get(&history.commits);
            check(&history, Cut::Lsn { lsn: Lsn::new(commit.lsn), inclusive })?;
            check(&history, Cut::Time { time: time(commit.time), inclusive })?;
        }
    }
}

fn chosen(
    cut: Cut,
    segments: &[(LineageId, SegmentKey)],
    bases: &[BaseInfo],
) -> Result<Choice, Error> {
    choose(
        &survey(segments, bases),
        cut,
        Only::default(),
        time(1_000_000),
    )
}

const fn at(lsn: u64) -> Cut {
    Cut::Lsn {
        lsn: Lsn::new(lsn),
        inclusive: true,
    }
}

#[test]
fn the_newest_base_that_reaches_is_taken() {
    let segments = [segment(1, 10, 20), segment(1, 20, 30), segment(1, 30, 40)];
    let bases = [base(1, 10), base(1, 25), base(1, 40)];
    let point = |lsn| {
        chosen(at(lsn), &segments, &bases)
            .unwrap()
            .base
            .id
            .consistent_point()
    };
    // What is kept up to the position before is what is below it.
    assert_eq!(point(23), Lsn::new(10));
    assert_eq!(point(24), Lsn::new(25));
    assert_eq!(point(25), Lsn::new(25));
    assert_eq!(point(38), Lsn::new(25));
}

#[test]
fn the_error_says_why_and_what_is_near() {
    let segments = [segment(1, 10, 20), segment(2, 50, 60)];
    let bases = [base(1, 12), base(2, 50)];
    let why = |cut| match chosen(cut, &segments, &bases) {
        Err(Error::OutsideWindows {
            why,
            nearest,
            windows,
            ..
        }) => {
            assert_eq!(windows.len(), 2);
            (why, nearest.len())
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(why(at(10)), (Outside::BeforeFirst, 1));
    assert_eq!(why(at(30)), (Outside::InGap, 2));
    assert_eq!(why(at(70)), (Outside::NotYetDurable, 1));
    assert_eq!(why(at(60)).0, Outside::AtEnd);
    let future = Cut::Time {
        time: time(12_000_000),
        inclusive: true,
    };
    assert_eq!(why(future), (Outside::Future, 1));
}

#[test]
fn latest_does_not_hide_a_hole() {
    let segments = [segment(1, 10, 20), segment(1, 30, 40)];
    assert!(matches!(
        chosen(Cut::Latest, &segments, &[base(1, 10)]),
        Err(Error::SegmentsMissing { .. })
    ));
    let bridged = chosen(Cut::Latest, &segments, &[base(1, 10), base(1, 35)]).unwrap();
    assert_eq!(bridged.base.id.consistent_point(), Lsn::new(35));
}

/// A service that was taken over stored one more segment: nothing that follows is out of reach.
#[test]
fn a_late_put_takes_nothing_away() {
    let chain = [segment(1, 10, 20), segment(1, 20, 30), segment(1, 30, 40)];
    let late = segment(1, 20, 35);
    let segments = [&chain[..], &[late]].concat();
    for bases in [&[base(1, 10)][..], &[base(1, 10), base(1, 32)]] {
        for target in [at(19), at(33), at(38), Cut::Latest] {
            let found = chosen(target, &segments, bases).unwrap();
            let expected = chosen(target, &chain, bases).unwrap();
            assert_eq!(found.base.id, expected.base.id);
            assert_eq!(found.needed, expected.needed);
        }
    }
}

#[test]
fn one_lsn_in_two_lineages_is_ambiguous() {
    let segments = [segment(1, 10, 20), segment(2, 10, 20)];
    assert!(matches!(
        chosen(at(15), &segments, &[base(1, 10), base(2, 10)]),
        Err(Error::AmbiguousLsn { .. })
    ));
}

#[test]
fn nothing_to_restore_from() {
    assert!(matches!(
        chosen(Cut::Latest, &[segment(1, 10, 20)], &[]),
        Err(Error::NothingRecoverable)
    ));
}

#[test]
fn latest_is_never_quietly_old() {
    let mut survey = survey(
        &[segment(1, 10, 20), segment(1, 20, 30), segment(1, 30, 45)],
        &[BaseInfo {
            reach: Lsn::new(30),
            ..base(1, 15)
        }],
    );
    survey.listing.lineages[0].described = true;
    let error = choose(&survey, Cut::Latest, Only::default(), time(100)).unwrap_err();
    assert!(
        matches!(error, Error::LatestNotRecoverable { at, .. } if at == Lsn::new(30)),
        "{error}"
    );
    let at = Cut::Lsn {
        lsn: Lsn::new(30),
        inclusive: false,
    };
    let choice = choose(&survey, at, Only::default(), time(100)).unwrap();
    assert_eq!(choice.needed.last().unwrap().end, Lsn::new(30));
    let beyond = Cut::Lsn {
        lsn: Lsn::new(40),
        inclusive: true,
    };
    assert!(choose(&survey, beyond, Only::default(), time(100)).is_err());
}
