//! Random histories and policies: whatever was promised and could be restored still can, by the very
//! choice a plan makes.

use lastgood_proto::Lsn;
use lastgood_proto::key::{SegmentKey, SegmentKind};
use proptest::prelude::*;

use super::*;
use crate::choose::{Cut, Only, choose};
use crate::survey::tests::{base, lineage, segment, survey, time};

const HOUR: i64 = 3_600_000_000;

/// Lineages of hourly segments with bases here and there, some of them beyond a change of shape;
/// clocks that step back; a hole. Of the bases two in three borrow rows of the one before.
fn history() -> impl Strategy<Value = Survey> {
    let step = (1_u32..50, -2_i64..40, 0_u8..8, 0_u8..20, 0_u8..12);
    prop::collection::vec(prop::collection::vec(step, 0..60), 1..4).prop_map(|lineages| {
        let (mut segments, mut bases) = (Vec::new(), Vec::new());
        let (mut lsn, mut clock) = (1000_u32, 0_i64);
        for (generation, steps) in (1_u32..).zip(lineages) {
            let mut of_lineage = vec![(lsn, clock)];
            let mut changes = Vec::new();
            for (length, hours, taken, missing, changed) in steps {
                let (_, mut key) = segment(generation, lsn, lsn + length);
                clock += hours * HOUR;
                key.max_commit_time = Some(time(clock));
                key.observed_through = Some(time(clock));
                if missing > 0 {
                    segments.push((lineage(generation), key));
                }
                if taken == 0 {
                    of_lineage.push((lsn + length / 2, clock - 1));
                }
                lsn += length;
                if changed == 0 {
                    changes.push(lsn);
                }
            }
            let mut before: Option<BaseInfo> = None;
            bases.extend(of_lineage.iter().map(|(lsn, clock)| {
                let own = base(generation, *lsn);
                let lender = before.take().filter(|_| lsn % 3 > 0);
                let mut lenders: Vec<BaseId> = Vec::new();
                let mut rows_from = own.rows_from;
                for lender in lender.iter().filter(|lender| lender.id != own.id) {
                    rows_from = rows_from.min(lender.rows_from);
                    lenders.extend(&lender.lenders);
                    lenders.push(lender.id);
                }
                let later = changes.iter().filter(|change| *change > lsn);
                let reach = later.min().map(|change| Lsn::new(u64::from(*change)));
                let info = BaseInfo {
                    snapshot_time: time(*clock),
                    reach: reach.unwrap_or(Lsn::MAX),
                    rows_from,
                    lenders,
                    ..own
                };
                before.insert(info).clone()
            }));
            lsn += 10;
        }
        bases.dedup_by_key(|base| base.id);
        let mut survey = survey(&segments, &bases);
        for lineage in &mut survey.listing.lineages {
            lineage.described = true;
        }
        survey
    })
}

fn policy() -> impl Strategy<Value = Retention> {
    let few = || prop::option::of(1_u32..6);
    let periods = || prop::option::weighted(0.25, 1_u32..5);
    (few(), few(), periods(), periods(), periods()).prop_map(
        |(days, bases, hourly, daily, weekly)| Retention {
            days,
            bases,
            hourly,
            daily,
            weekly,
            ..Retention::default()
        },
    )
}

proptest! {
    #[test]
    fn what_is_promised_can_be_restored_as_before(
        survey in history(), policy in policy(), ago in 0_i64..100, targets in prop::collection::vec(0_i64..400, 20),
    ) {
        let windows = survey.windows();
        let latest = windows.iter().map(|window| window.to.time).max();
        let Some(latest) = latest else { return Ok(()) };
        let now = PgTimestamp::from_micros(latest.as_micros() + ago * HOUR);
        let unneeded = unneeded(&survey, &policy, now).unwrap();
        let after = survey.without(&unneeded);

        let choose = |survey: &Survey, cut| {
            let far = time(i64::MAX);
            choose(survey, cut, Only::default(), far).ok().map(|choice| {
                (choice.lineage, choice.base.id, choice.before, choice.needed, choice.following)
            })
        };
        prop_assert_eq!(choose(&survey, Cut::Latest), choose(&after, Cut::Latest));
        if let Some(cutoff) = cutoff(&reaches(&survey), &policy, now) {
            for back in targets {
                let micros = now.as_micros() - back * HOUR / 3;
                for (time, inclusive) in [(time(micros), true), (time(micros), false)] {
                    if time >= cutoff {
                        let cut = Cut::Time { time, inclusive };
                        prop_assert_eq!(choose(&survey, cut), choose(&after, cut), "{}", time);
                    }
                }
            }
        }
        // Each base that is left restores at least its own moment; one that borrows, if it did before.
        for base in &after.bases {
            let had = |reach: &Reach| reach.bases.contains(base);
            if !base.lenders.is_empty() && !reaches(&survey).iter().any(had) {
                continue;
            }
            let cut = Cut::Lsn { lsn: base.id.consistent_point(), inclusive: false };
            let only = Only { lineage: Some(base.lineage), base: Some(base.id) };
            prop_assert!(super::super::choose::choose(&after, cut, only, time(i64::MAX)).is_ok());
        }
        // Another pass finds nothing more.
        prop_assert_eq!(super::unneeded(&after, &policy, now).unwrap(), Unneeded::new());
    }

    /// Else each hour's merge would take back one segment more, and none were ever deleted.
    #[test]
    fn merging_what_is_left_takes_nothing_back(
        survey in history(), policy in policy(), hours in 0_i64..300, parts in 2_usize..5,
    ) {
        let latest = survey.windows().iter().map(|window| window.to.time).max();
        let Some(latest) = latest else { return Ok(()) };
        let now = PgTimestamp::from_micros(latest.as_micros() + hours * HOUR);
        let given = unneeded(&survey, &policy, now).unwrap();
        let mut segments = Vec::new();
        for lineage in &survey.listing.lineages {
            segments.extend(lineage.all_segments().map(|key| (lineage.id, *key)));
        }
        for lineage in survey.without(&given).listing.lineages {
            // No merge crosses what ends a window.
            let reached = |key: &SegmentKey| {
                let bases = survey.bases.iter().filter(|base| base.lineage == lineage.id);
                bases.filter(|base| base.reach < key.end).count()
            };
            let alike = lineage.segments.chunk_by(|a, b| reached(a) == reached(b));
            let runs = alike.flat_map(|alike| alike.chunks(parts));
            for run in runs.filter(|run| run.len() > 1) {
                let merged = SegmentKey {
                    start: run[0].start,
                    kind: SegmentKind::Merged,
                    ..run[run.len() - 1]
                };
                segments.push((lineage.id, merged));
            }
        }
        let mut merged = crate::survey::tests::survey(&segments, &survey.bases);
        for lineage in &mut merged.listing.lineages {
            lineage.described = true;
        }
        let still = unneeded(&merged, &policy, now).unwrap();
        for (id, given) in given {
            let there = merged.listing.lineage(id).into_iter().flat_map(|lineage| lineage.all_segments());
            for segment in there.filter(|segment| given.has(segment)) {
                prop_assert!(still.get(&id).is_some_and(|still| still.has(segment)), "{:?}", segment);
            }
        }
    }

    #[test]
    fn time_gives_up_more_and_takes_nothing_back(
        survey in history(), policy in policy(), hours in (0_i64..300, 0_i64..300),
    ) {
        let latest = survey.windows().iter().map(|window| window.to.time).max();
        let Some(latest) = latest else { return Ok(()) };
        let at = |hours: i64| PgTimestamp::from_micros(latest.as_micros() + hours * HOUR);
        let early = unneeded(&survey, &policy, at(hours.0)).unwrap();
        let late = unneeded(&survey, &policy, at(hours.0 + hours.1)).unwrap();
        for (lineage, given) in &early {
            prop_assert!(late.get(lineage).is_some_and(|late| late.contains(given)));
        }
    }
}

/// One lineage, a segment and a base each day, at noon.
fn daily(days: u32) -> Survey {
    let (mut segments, mut bases) = (Vec::new(), Vec::new());
    for day in 0..days {
        let noon = time(i64::from(day) * DAY_MICROS + DAY_MICROS / 2);
        let (id, mut key) = segment(1, day * 10, day * 10 + 10);
        key.observed_through = Some(time(i64::from(day) * DAY_MICROS + DAY_MICROS));
        segments.push((id, key));
        bases.push(BaseInfo {
            snapshot_time: noon,
            ..base(1, day * 10 + 5)
        });
    }
    let mut survey = survey(&segments, &bases);
    survey.listing.lineages[0].described = true;
    survey
}

/// Of `daily(400)` at its end: the days whose bases are left, and the LSN from which segments are.
fn left(policy: &Retention) -> (Vec<u64>, u64) {
    let survey = daily(400);
    let now = time(400 * DAY_MICROS);
    let after = survey.without(&unneeded(&survey, policy, now).unwrap());
    let days = after
        .bases
        .iter()
        .map(|base| base.id.consistent_point().as_u64() / 10);
    (
        days.collect(),
        after.listing.lineages[0].segments[0].start.as_u64(),
    )
}

#[test]
fn policies_say_what_is_kept() {
    // 2000-01-01 was a Saturday and is day 0; day 399 is 2001-02-03, a Saturday again.
    let cases: [(&str, &[u64], u64); 8] = [
        ("3 days", &[396, 397, 398, 399], 396),
        ("400 days, 1 base", &(0..400).collect::<Vec<u64>>(), 0),
        ("2 bases", &[398, 399], 398),
        ("3 daily", &[397, 398, 399], 399),
        // Sundays, and the week that is not over.
        ("3 weekly", &[386, 393, 399], 399),
        // The last of December, of January, and the month that is not over.
        ("3 monthly", &[365, 396, 399], 399),
        ("9 yearly", &[365, 399], 399),
        ("2 days, 3 monthly", &[365, 396, 397, 398, 399], 397),
    ];
    for (policy, days, day) in cases {
        let kept = left(&policy.parse().unwrap());
        assert_eq!(kept, (days.to_vec(), day * 10), "{policy}");
    }
    let pinned = Retention {
        bases: Some(1),
        pinned: [base(1, 75).id].into(),
        ..Retention::default()
    };
    assert_eq!(left(&pinned), (vec![7, 399], 3990));
}

#[test]
fn an_old_lineage_goes_whole_and_the_newest_stays() {
    let mut survey = survey(&[segment(1, 10, 20), segment(2, 30, 40)], &[base(1, 15)]);
    for lineage in &mut survey.listing.lineages {
        lineage.described = true;
    }
    let policy: Retention = "1 base".parse().unwrap();
    let now = time(100 * DAY_MICROS);
    // Its base is the only one.
    assert_eq!(unneeded(&survey, &policy, now).unwrap(), Unneeded::new());
    let newer = BaseInfo { ..base(2, 35) };
    survey.listing.lineages[1].bases.push(newer.id);
    survey.bases.push(newer);
    let given = GivenUp {
        bases: [base(1, 15).id].into(),
        before: Lsn::MAX,
    };
    let expected = Unneeded::from([(lineage(1), given)]);
    assert_eq!(unneeded(&survey, &policy, now).unwrap(), expected);
}
