//! What a source holds, made of nothing but its object keys. Pure.
//!
//! Every segment holds what was committed in its range, so any of them that follow each other say the same:
//! a merged one and those it was made of, and what a service that was killed or taken over stored beside its
//! successor, which goes on from the end of what it has found while the other's last put may arrive at any
//! time. What matters is where they lead: the chain is the way that reaches furthest, by the longest steps.
//!
//! Invariant: `LineageListing::segments` is a contiguous chain from the lineage's start, or from what
//! retention has left, each segment beginning where the one before ends. What lies within the range of a
//! merged segment of it counts nowhere, so nothing depends on how much of that is still there.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use crate::key::{PointKey, SegmentKey, SegmentKind, ShapeKey, SourceObject};
use crate::manifest::RetiredFile;
use crate::{BaseId, LineageId, Lsn, PgTimestamp};

/// All lineages of one source, in the order of their making.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// `source.json` is there.
    pub described: bool,
    pub lineages: Vec<LineageListing>,
}

/// One unbroken run of captured changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineageListing {
    pub id: LineageId,
    /// `lineage.json` is there; without it the lineage was never begun.
    pub described: bool,
    /// `end.json` is there: nothing will be added.
    pub ended: bool,
    /// Finished bases (those with a manifest), by consistent point.
    pub bases: Vec<BaseId>,
    pub points: Vec<PointKey>,
    /// By LSN.
    pub shapes: Vec<ShapeKey>,
    /// Of which of these it is known where exactly they lie.
    pub ddl: Vec<ShapeKey>,
    /// When retention gave something up, oldest first.
    pub retired: Vec<PgTimestamp>,
    /// None of it is above or below.
    pub given_up: GivenUp,
    /// The contiguous chain, by LSN.
    pub segments: Vec<SegmentKey>,
    /// Segments behind the chain that do not join it, by LSN: something between is missing. Those that
    /// follow each other are a run of their own.
    pub orphans: Vec<SegmentKey>,
    /// Segments that lead nowhere, beside the chain or a run of orphans, by LSN.
    pub beside: Vec<SegmentKey>,
    /// Segments whose place a merged one has taken, by LSN.
    pub superseded: Vec<SegmentKey>,
}

/// What retention has given up of a lineage: no longer used, whether it is still there or not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GivenUp {
    pub bases: BTreeSet<BaseId>,
    /// Segments that end at or before it.
    pub before: Lsn,
}

impl GivenUp {
    #[must_use]
    pub fn has(&self, segment: &SegmentKey) -> bool {
        segment.end <= self.before
    }

    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        self.before >= other.before && self.bases.is_superset(&other.bases)
    }

    pub fn add(&mut self, other: &Self) {
        self.before = self.before.max(other.before);
        self.bases.extend(&other.bases);
    }
}

impl From<RetiredFile> for GivenUp {
    fn from(file: RetiredFile) -> Self {
        Self {
            bases: file.bases.into_iter().collect(),
            before: file.before,
        }
    }
}

impl Listing {
    /// Sorts the keys into lineages and joins the segments. The order of `objects` does not matter.
    #[must_use]
    pub fn from_objects(objects: impl IntoIterator<Item = SourceObject>) -> Self {
        let mut described = false;
        let mut parts: BTreeMap<LineageId, Parts> = BTreeMap::new();
        for object in objects {
            match object {
                SourceObject::Source => described = true,
                SourceObject::Numbered(..) => {}
                SourceObject::Lineage(id) => parts.entry(id).or_default().described = true,
                SourceObject::LineageEnd(id) => parts.entry(id).or_default().ended = true,
                SourceObject::Point(id, point) => {
                    parts.entry(id).or_default().points.insert(point);
                }
                SourceObject::Shape(id, shape) => {
                    parts.entry(id).or_default().shapes.insert(shape);
                }
                SourceObject::Ddl(id, shape) => {
                    parts.entry(id).or_default().ddl.insert(shape);
                }
                SourceObject::Manifest(id, base) => {
                    parts.entry(id).or_default().bases.insert(base);
                }
                SourceObject::Archive(id, ..) => {
                    parts.entry(id).or_default();
                }
                SourceObject::Segment(id, segment) => {
                    parts.entry(id).or_default().segments.insert(segment);
                }
                SourceObject::Retired(id, time) => {
                    parts.entry(id).or_default().retired.insert(time);
                }
            }
        }
        let lineages = parts.into_iter().map(|(id, parts)| parts.lineage(id));
        Self {
            described,
            lineages: lineages.collect(),
        }
    }

    /// What is left once this is given up: the segments that stay are joined anew, so nothing depends on
    /// how much of the others has been deleted.
    #[must_use]
    pub fn without(mut self, unneeded: &BTreeMap<LineageId, GivenUp>) -> Self {
        for lineage in &mut self.lineages {
            if let Some(given) = unneeded.get(&lineage.id) {
                lineage.give_up(given);
            }
        }
        self
    }

    /// The newest lineage that was begun.
    #[must_use]
    pub fn newest(&self) -> Option<&LineageListing> {
        self.lineages.iter().rev().find(|lineage| lineage.described)
    }

    /// The lineage of that id.
    #[must_use]
    pub fn lineage(&self, id: LineageId) -> Option<&LineageListing> {
        self.lineages.iter().find(|lineage| lineage.id == id)
    }
}

impl LineageListing {
    /// All segments but those whose place a merged one has taken.
    pub fn all_segments(&self) -> impl Iterator<Item = &SegmentKey> {
        let others = self.orphans.iter().chain(&self.beside);
        self.segments.iter().chain(others)
    }

    /// Whether it is in the chain, or in a run behind a missing segment.
    #[must_use]
    pub fn uses(&self, segment: &SegmentKey) -> bool {
        [&self.segments, &self.orphans]
            .iter()
            .any(|run| run.binary_search(segment).is_ok())
    }

    /// Every merged segment that is used, or in one that is; those in other merged ones first.
    #[must_use]
    pub fn merged(&self) -> Vec<SegmentKey> {
        let used = self.segments.iter().chain(&self.orphans);
        let all = used.chain(&self.superseded);
        let merged = all.filter(|segment| segment.kind == SegmentKind::Merged);
        let mut merged: Vec<SegmentKey> = merged.copied().collect();
        merged.sort_by_key(|segment| (Reverse(segment.start), segment.end));
        merged
    }

    /// What lies within the range of a merged segment and in no other merged one there, as far as it is
    /// still there: the segments it was made of, by LSN, and each other by itself.
    #[must_use]
    pub fn parts_of(&self, merged: &SegmentKey) -> Vec<Vec<SegmentKey>> {
        let from = self
            .superseded
            .partition_point(|segment| segment.start < merged.start);
        let within = self.superseded.iter().skip(from);
        let within = within.take_while(|segment| segment.start < merged.end);
        let within = within.filter(|segment| merged.replaces(segment)).copied();
        let joined = Joined::of(within.collect(), Lsn::default());
        let parts = [joined.chain, joined.orphans].concat();
        let others = joined.beside.into_iter().map(|other| vec![other]);
        let all = std::iter::once(parts).chain(others);
        all.filter(|parts| !parts.is_empty()).collect()
    }

    fn give_up(&mut self, given: &GivenUp) {
        self.given_up.add(given);
        self.bases.retain(|base| !given.bases.contains(base));
        let all = self.all_segments().chain(&self.superseded);
        let left = all.filter(|segment| !given.has(segment));
        let joined = Joined::of(left.copied().collect(), self.given_up.before);
        (self.segments, self.orphans) = (joined.chain, joined.orphans);
        (self.beside, self.superseded) = (joined.beside, joined.superseded);
    }

    /// End LSN of the contiguous durable run; none before the first segment.
    #[must_use]
    pub fn durable_lsn(&self) -> Option<Lsn> {
        self.segments.last().map(|segment| segment.end)
    }

    /// The latest commit time in the chain.
    #[must_use]
    pub fn latest_commit(&self) -> Option<PgTimestamp> {
        let segments = self.segments.iter();
        segments.filter_map(|segment| segment.max_commit_time).max()
    }

    /// The server's clock up to which every commit is in the chain.
    #[must_use]
    pub fn observed_through(&self) -> Option<PgTimestamp> {
        self.segments
            .iter()
            .filter_map(|segment| segment.observed_through)
            .max()
    }
}

#[derive(Default)]
struct Parts {
    described: bool,
    ended: bool,
    bases: BTreeSet<BaseId>,
    points: BTreeSet<PointKey>,
    shapes: BTreeSet<ShapeKey>,
    ddl: BTreeSet<ShapeKey>,
    retired: BTreeSet<PgTimestamp>,
    segments: BTreeSet<SegmentKey>,
}

impl Parts {
    fn lineage(self, id: LineageId) -> LineageListing {
        let joined = Joined::of(self.segments, Lsn::default());
        LineageListing {
            id,
            described: self.described,
            ended: self.ended,
            bases: self.bases.into_iter().collect(),
            points: self.points.into_iter().collect(),
            shapes: self.shapes.into_iter().collect(),
            ddl: self.ddl.into_iter().collect(),
            retired: self.retired.into_iter().collect(),
            given_up: GivenUp::default(),
            segments: joined.chain,
            orphans: joined.orphans,
            beside: joined.beside,
            superseded: joined.superseded,
        }
    }
}

struct Joined {
    chain: Vec<SegmentKey>,
    orphans: Vec<SegmentKey>,
    beside: Vec<SegmentKey>,
    superseded: Vec<SegmentKey>,
}

impl Joined {
    /// The chain begins with the first segment, or where one leads furthest that begins at or before
    /// `before`: what ends there or earlier may be gone or not.
    fn of(segments: BTreeSet<SegmentKey>, before: Lsn) -> Self {
        // By where they begin: how far the best way leads from there, and its first step.
        let mut ways: BTreeMap<Lsn, (Lsn, SegmentKey)> = BTreeMap::new();
        let rank = |(reach, step): (Lsn, SegmentKey)| {
            (reach, step.end, step.kind, step.observed_through, step)
        };
        for step in segments.iter().rev() {
            let reach = ways.get(&step.end).map_or(step.end, |on| on.0);
            let way = (reach, *step);
            let best = ways.entry(step.start).or_insert(way);
            if rank(way) > rank(*best) {
                *best = way;
            }
        }
        let least = segments.first().map_or(before, |first| first.start);
        let begins = ways.range(..=least.max(before));
        let mut next = begins.max_by_key(|(start, (reach, _))| (*reach, Reverse(**start)));
        let mut used = Vec::with_capacity(segments.len());
        while let Some((_, (_, step))) = next {
            used.push(*step);
            // Behind a hole as well.
            next = ways.range(step.end..).next();
        }
        let mut runs = used.chunk_by(|before, after| before.end == after.start);
        let (chain, orphans) = used.split_at(runs.next().map_or(0, <[SegmentKey]>::len));
        let mut joined = Self {
            chain: chain.to_vec(),
            orphans: orphans.to_vec(),
            beside: Vec::new(),
            superseded: Vec::new(),
        };
        for segment in segments {
            let covering = used.partition_point(|it| it.start <= segment.start);
            match covering.checked_sub(1).and_then(|at| used.get(at)) {
                Some(same) if *same == segment => {}
                Some(merged) if merged.replaces(&segment) => joined.superseded.push(segment),
                Some(_) | None => joined.beside.push(segment),
            }
        }
        joined
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segment(start: u64, end: u64) -> SegmentKey {
        SegmentKey {
            start: Lsn::new(start),
            end: Lsn::new(end),
            max_commit_time: None,
            observed_through: None,
            kind: SegmentKind::Captured,
        }
    }

    fn list(segments: &[SegmentKey]) -> Listing {
        let id = LineageId::new(1, 1);
        Listing::from_objects(
            segments
                .iter()
                .map(|segment| SourceObject::Segment(id, *segment)),
        )
    }

    proptest! {
        #[test]
        fn a_chain_is_found_in_any_order(
            steps in prop::collection::vec(1_u64..1000, 1..50), seed: u64,
        ) {
            let mut start = 7;
            let chain: Vec<_> = steps
                .iter()
                .map(|step| {
                    let next = segment(start, start + step);
                    start += step;
                    next
                })
                .collect();
            let mut shuffled = chain.clone();
            let middle = usize::try_from(seed % shuffled.len() as u64).unwrap();
            shuffled.rotate_left(middle);
            shuffled.reverse();
            let listing = list(&shuffled);
            prop_assert_eq!(&listing.lineages[0].segments, &chain);
            prop_assert!(listing.lineages[0].orphans.is_empty());
            prop_assert_eq!(listing.lineages[0].durable_lsn(), Some(Lsn::new(start)));
        }
    }

    /// One that takes the place of these.
    fn merged(parts: &[SegmentKey]) -> SegmentKey {
        let (first, last) = (parts[0], parts[parts.len() - 1]);
        SegmentKey {
            start: first.start,
            max_commit_time: parts.iter().filter_map(|part| part.max_commit_time).max(),
            kind: SegmentKind::Merged,
            ..last
        }
    }

    /// Groups of what follows each other, with one in the place of each: what is left of the chain,
    /// and what was made.
    fn merge(chain: &[SegmentKey], lengths: &[usize]) -> (Vec<SegmentKey>, Vec<SegmentKey>) {
        let (mut left, mut made, mut rest) = (Vec::new(), Vec::new(), chain);
        for length in lengths {
            let parts;
            (parts, rest) = rest.split_at((*length).min(rest.len()));
            match parts.len() {
                0 | 1 => left.extend(parts),
                _ => {
                    left.push(merged(parts));
                    made.push(merged(parts));
                }
            }
        }
        left.extend(rest);
        (left, made)
    }

    proptest! {
        /// Hours, then days of them, and any of what they replace deleted: the same is there.
        #[test]
        fn merged_segments_change_nothing(
            steps in prop::collection::vec((1_u64..1000, prop::option::of(0_i64..50)), 1..60),
            hours in prop::collection::vec(0_usize..8, 0..20),
            days in prop::collection::vec(0_usize..5, 0..8),
            gone in prop::collection::vec(any::<bool>(), 100),
            given_up: prop::sample::Index,
        ) {
            let (mut start, mut clock) = (7, None);
            let chain: Vec<SegmentKey> = steps
                .iter()
                .map(|(step, later)| {
                    clock = later.map(|later| clock.unwrap_or(0) + later).or(clock);
                    let next = SegmentKey {
                        observed_through: clock.map(PgTimestamp::from_micros),
                        ..segment(start, start + step)
                    };
                    start += step;
                    next
                })
                .collect();
            let before = &list(&chain).lineages[0];
            let (by_hour, made) = merge(&chain, &hours);
            let (by_day, more) = merge(&by_hour, &days);
            let there: BTreeSet<SegmentKey> = [&chain[..], &made, &more].concat().into_iter().collect();
            let whole = &list(&there.iter().copied().collect::<Vec<_>>()).lineages[0];
            prop_assert_eq!(&whole.segments, &by_day);
            let left: Vec<SegmentKey> = there
                .iter()
                .zip(gone.iter().chain(std::iter::repeat(&false)))
                .filter(|(segment, gone)| by_day.contains(segment) || !**gone)
                .map(|(segment, _)| *segment)
                .collect();
            let after = &list(&left).lineages[0];
            prop_assert_eq!(&after.segments, &by_day);
            prop_assert_eq!(&after.orphans, &[]);
            prop_assert_eq!(&after.beside, &[]);
            prop_assert_eq!(after.superseded.len(), left.len() - by_day.len());
            prop_assert_eq!(after.durable_lsn(), before.durable_lsn());
            prop_assert_eq!(after.observed_through(), before.observed_through());
            prop_assert_eq!(after.segments[0].start, before.segments[0].start);
            // What each was made of is right below it.
            for one in whole.merged() {
                let parts = whole.parts_of(&one);
                prop_assert_eq!(parts.len(), 1);
                prop_assert_eq!(merged(&parts[0]), one);
                prop_assert!(parts[0].windows(2).all(|pair| pair[0].end == pair[1].start));
            }
            // Retention sees no hole either.
            let before = given_up.get(&chain).end;
            let given = GivenUp { before, ..GivenUp::default() };
            let given = BTreeMap::from([(LineageId::new(1, 1), given)]);
            let after = list(&left).without(&given);
            let expected: Vec<_> = by_day.iter().filter(|segment| segment.end > before).copied().collect();
            prop_assert_eq!(&after.lineages[0].segments, &expected);
            prop_assert!(after.lineages[0].orphans.is_empty() && after.lineages[0].beside.is_empty());
        }
    }

    #[test]
    fn what_lies_across_the_border_of_a_merged_segment_lies_beside_it() {
        let whole = merged(&[segment(2, 4), segment(4, 6)]);
        let lineage = |segments: &[SegmentKey]| list(segments).lineages[0].clone();
        // A second writer's within it had no part in it, and counts no more than the others.
        let within = lineage(&[
            segment(1, 2),
            segment(2, 5),
            segment(2, 4),
            segment(4, 6),
            whole,
        ]);
        assert_eq!(within.segments, [segment(1, 2), whole]);
        assert_eq!(within.beside, []);
        let parts = within.parts_of(&whole);
        assert_eq!(
            parts,
            [vec![segment(2, 4), segment(4, 6)], vec![segment(2, 5)]]
        );
        for across in [segment(1, 3), segment(5, 7)] {
            let lineage = lineage(&[segment(0, 2), whole, across]);
            assert_eq!(lineage.segments, [segment(0, 2), whole]);
            assert_eq!((lineage.orphans, lineage.beside), (vec![], vec![across]));
        }
        // It is used for as long as the way through what is left of the parts reaches further; nothing is
        // deleted for one that is not in use.
        let across = segment(4, 9);
        let further = lineage(&[segment(1, 2), segment(2, 4), segment(4, 6), whole, across]);
        assert_eq!(further.segments, [segment(1, 2), segment(2, 4), across]);
        assert_eq!((further.merged(), further.superseded), (vec![], vec![]));
        // The same range with other times was made by somebody who saw other parts: either will do.
        let other = SegmentKey {
            observed_through: Some(PgTimestamp::from_micros(1)),
            ..whole
        };
        let twice = lineage(&[whole, other]);
        assert_eq!((twice.segments.len(), twice.beside.len()), (1, 1));
    }

    #[test]
    fn a_hole_ends_the_run() {
        let listing = list(&[segment(1, 2), segment(2, 3), segment(4, 5), segment(5, 6)]);
        assert_eq!(listing.lineages[0].durable_lsn(), Some(Lsn::new(3)));
        assert_eq!(listing.lineages[0].orphans, [segment(4, 5), segment(5, 6)]);
    }

    #[test]
    fn what_is_given_up_leaves_no_hole_however_much_of_it_is_gone() {
        let all = [
            segment(1, 2),
            segment(2, 3),
            segment(3, 4),
            segment(4, 5),
            segment(5, 6),
        ];
        let id = LineageId::new(1, 1);
        let given = GivenUp {
            before: Lsn::new(4),
            ..GivenUp::default()
        };
        for deleted in 0..8_usize {
            let there = |at: &usize| *at > 2 || deleted & (1 << at) == 0;
            let there = all.iter().enumerate().filter(|(at, _)| there(at));
            let there: Vec<SegmentKey> = there.map(|(_, segment)| *segment).collect();
            let left = list(&there).without(&BTreeMap::from([(id, given.clone())]));
            assert_eq!(left.lineages[0].segments, all[3..]);
            assert_eq!(left.lineages[0].orphans, []);
        }
    }

    proptest! {
        /// Services take over from each other at the end of what they find, and the last put of each may
        /// arrive at any time after: what is captured stays one chain.
        #[test]
        fn late_puts_take_nothing_away(
            turns in prop::collection::vec(
                (prop::collection::vec(1_u64..9, 1..5), prop::option::of(1_u64..30)), 1..6,
            ),
            lengths in prop::collection::vec(0_usize..5, 0..8),
            is_cleared: bool,
            given_up: prop::sample::Index,
        ) {
            let (mut start, mut chain, mut late) = (1, Vec::new(), Vec::new());
            for (steps, unfinished) in &turns {
                for step in steps {
                    chain.push(segment(start, start + step));
                    start += step;
                }
                late.extend(unfinished.map(|unfinished| segment(start, start + unfinished)));
            }
            // All but the newest may have been merged, and deleted, before the late ones arrive.
            let (last, older) = chain.split_last().unwrap();
            let (left, made) = merge(older, &lengths);
            let older = if is_cleared { left } else { [older, &made].concat() };
            let there = [&older[..], &[*last], &late].concat();
            let whole = &list(&there).lineages[0];
            // Nor does retention take what lies beside for the beginning.
            let before = given_up.get(&whole.segments).end;
            let given = GivenUp { before, ..GivenUp::default() };
            let given = BTreeMap::from([(LineageId::new(1, 1), given)]);
            let left = &list(&there).without(&given).lineages[0];
            for (lineage, from) in [(whole, Lsn::new(1)), (left, before)] {
                let segments = &lineage.segments;
                prop_assert!(segments.windows(2).all(|two| two[0].end == two[1].start));
                prop_assert!(segments.first().is_none_or(|first| first.start <= from));
                let end = lineage.durable_lsn().unwrap_or(from);
                prop_assert!(end >= Lsn::new(start), "{:?}", lineage);
                let all: BTreeSet<SegmentKey> = lineage.all_segments().chain(&lineage.superseded).copied().collect();
                let expected: BTreeSet<SegmentKey> = there.iter().filter(|it| it.end > from).copied().collect();
                prop_assert_eq!(all, expected);
            }
        }
    }

    #[test]
    fn the_way_that_leads_furthest_is_the_chain() {
        let lineage = |segments: &[SegmentKey]| list(segments).lineages[0].clone();
        let chain = [segment(1, 2), segment(2, 4), segment(4, 6)];
        // Both begin together, one leads on; the other reaches further for a while.
        let late = segment(2, 5);
        let found = lineage(&[&chain[..], &[late]].concat());
        assert_eq!(
            (&found.segments[..], &found.beside[..]),
            (&chain[..], &[late][..])
        );
        let found = lineage(&[chain[0], chain[1], late]);
        assert_eq!(
            (&found.segments[..], &found.beside[..]),
            (&[chain[0], late][..], &chain[1..2])
        );
        // Both lead on: the longest step, and of equal ones the one that has seen more.
        let found = lineage(&[&chain[..], &[segment(2, 3), segment(3, 4)]].concat());
        assert_eq!(found.segments, chain);
        let seen = SegmentKey {
            observed_through: Some(PgTimestamp::from_micros(1)),
            ..chain[1]
        };
        let found = lineage(&[&chain[..], &[seen]].concat());
        assert_eq!(found.segments, [chain[0], seen, chain[2]]);
        // Beside a run behind a hole.
        let found = lineage(&[segment(1, 2), segment(3, 4), segment(4, 6), segment(4, 5)]);
        assert_eq!(found.segments, [segment(1, 2)]);
        assert_eq!(found.orphans, [segment(3, 4), segment(4, 6)]);
        assert_eq!(found.beside, [segment(4, 5)]);
    }
}
