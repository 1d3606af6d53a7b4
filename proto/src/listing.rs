//! What a source holds, made of nothing but its object keys. Pure.
//!
//! Invariant: `LineageListing::segments` is a contiguous chain from the lineage's start, or from what
//! retention has left, each segment beginning where the one before ends. A merged segment takes the place of
//! all that lie within its range, which count nowhere from then on, so nothing depends on how many of them are
//! still there. Segments that overlap otherwise were made by two writers: the chain ends before such a fork,
//! and none of what follows is ever chosen.

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
    /// When retention gave something up, oldest first.
    pub retired: Vec<PgTimestamp>,
    /// None of it is above or below.
    pub given_up: GivenUp,
    /// The contiguous chain, by LSN.
    pub segments: Vec<SegmentKey>,
    /// Segments that do not join the chain: something between is missing.
    pub orphans: Vec<SegmentKey>,
    pub fork: Option<Fork>,
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

/// Where two services wrote into one lineage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fork {
    /// Where the first of two that overlap begins; mostly both do.
    pub start: Lsn,
    /// From there on, by LSN: which of them go together cannot be told.
    pub segments: Vec<SegmentKey>,
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
    /// All segments that count, in the chain or not.
    pub fn all_segments(&self) -> impl Iterator<Item = &SegmentKey> {
        let behind = self.fork.iter().flat_map(|fork| &fork.segments);
        self.segments.iter().chain(&self.orphans).chain(behind)
    }

    /// Every merged segment that is there, those in other merged ones first.
    #[must_use]
    pub fn merged(&self) -> Vec<SegmentKey> {
        let all = self.all_segments().chain(&self.superseded);
        let merged = all.filter(|segment| segment.kind == SegmentKind::Merged);
        let mut merged: Vec<SegmentKey> = merged.copied().collect();
        merged.sort_by_key(|segment| (Reverse(segment.start), segment.end));
        merged
    }

    /// What a merged segment was made of, as far as it is still there, by LSN.
    #[must_use]
    pub fn parts_of(&self, merged: &SegmentKey) -> Vec<SegmentKey> {
        let from = self
            .superseded
            .partition_point(|segment| segment.start < merged.start);
        let within = self.superseded.iter().skip(from);
        let within = within.take_while(|segment| segment.start < merged.end);
        let within = within.filter(|segment| merged.replaces(segment)).copied();
        unreplaced(within.collect()).0
    }

    fn give_up(&mut self, given: &GivenUp) {
        self.given_up.add(given);
        self.bases.retain(|base| !given.bases.contains(base));
        let all = self.all_segments().chain(&self.superseded);
        let left = all.filter(|segment| !given.has(segment));
        let joined = Joined::of(left.copied().collect());
        (self.segments, self.orphans, self.fork) = (joined.chain, joined.orphans, joined.fork);
        self.superseded = joined.superseded;
    }

    /// End LSN of the contiguous durable run; none before the first segment.
    #[must_use]
    pub fn durable_lsn(&self) -> Option<Lsn> {
        self.segments.last().map(|segment| segment.end)
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
    retired: BTreeSet<PgTimestamp>,
    segments: BTreeSet<SegmentKey>,
}

impl Parts {
    fn lineage(self, id: LineageId) -> LineageListing {
        let joined = Joined::of(self.segments);
        LineageListing {
            id,
            described: self.described,
            ended: self.ended,
            bases: self.bases.into_iter().collect(),
            points: self.points.into_iter().collect(),
            shapes: self.shapes.into_iter().collect(),
            retired: self.retired.into_iter().collect(),
            given_up: GivenUp::default(),
            segments: joined.chain,
            orphans: joined.orphans,
            fork: joined.fork,
            superseded: joined.superseded,
        }
    }
}

struct Joined {
    chain: Vec<SegmentKey>,
    orphans: Vec<SegmentKey>,
    fork: Option<Fork>,
    superseded: Vec<SegmentKey>,
}

impl Joined {
    fn of(segments: BTreeSet<SegmentKey>) -> Self {
        let (mut segments, superseded) = unreplaced(segments);
        let mut chain: Vec<SegmentKey> = Vec::with_capacity(segments.len());
        let mut orphans: Vec<SegmentKey> = Vec::new();
        let forked = segments
            .iter()
            .zip(segments.iter().skip(1))
            .position(|(segment, next)| next.start < segment.end);
        let behind = segments.split_off(forked.unwrap_or(segments.len()));
        for segment in segments {
            match chain.last() {
                Some(last) if last.end != segment.start => orphans.push(segment),
                Some(_) | None => chain.push(segment),
            }
        }
        Self {
            chain,
            orphans,
            fork: behind.first().map(|first| Fork {
                start: first.start,
                segments: behind.clone(),
            }),
            superseded,
        }
    }
}

/// Those that no merged one among them replaces, and those that one does, by LSN.
fn unreplaced(segments: BTreeSet<SegmentKey>) -> (Vec<SegmentKey>, Vec<SegmentKey>) {
    let mut segments: Vec<SegmentKey> = segments.into_iter().collect();
    // Whatever replaces a segment comes before it.
    segments.sort_by_key(|segment| (segment.start, Reverse(segment.end), Reverse(segment.kind)));
    // The merged one that reaches furthest: if any before replaces a segment, this one does.
    let mut furthest: Option<SegmentKey> = None;
    let (mut replaced, mut left): (Vec<SegmentKey>, Vec<SegmentKey>) =
        segments.into_iter().partition(|segment| {
            let replaced = furthest.is_some_and(|merged| merged.replaces(segment));
            let further = furthest.is_none_or(|merged| merged.end < segment.end);
            if segment.kind == SegmentKind::Merged && further {
                furthest = Some(*segment);
            }
            replaced
        });
    left.sort();
    replaced.sort();
    (left, replaced)
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
            prop_assert_eq!(&after.fork, &None);
            prop_assert_eq!(after.superseded.len(), left.len() - by_day.len());
            prop_assert_eq!(after.durable_lsn(), before.durable_lsn());
            prop_assert_eq!(after.observed_through(), before.observed_through());
            prop_assert_eq!(after.segments[0].start, before.segments[0].start);
            // What each was made of is right below it.
            for one in whole.merged() {
                let parts = whole.parts_of(&one);
                prop_assert_eq!(merged(&parts), one);
                prop_assert!(parts.windows(2).all(|pair| pair[0].end == pair[1].start));
            }
            // Retention sees no hole either.
            let before = given_up.get(&chain).end;
            let given = GivenUp { before, ..GivenUp::default() };
            let given = BTreeMap::from([(LineageId::new(1, 1), given)]);
            let after = list(&left).without(&given);
            let expected: Vec<_> = by_day.iter().filter(|segment| segment.end > before).copied().collect();
            prop_assert_eq!(&after.lineages[0].segments, &expected);
            prop_assert!(after.lineages[0].orphans.is_empty() && after.lineages[0].fork.is_none());
        }
    }

    #[test]
    fn what_lies_across_the_border_of_a_merged_segment_is_a_fork() {
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
        assert_eq!(within.fork, None);
        let overlap = within.parts_of(&whole);
        assert_eq!(overlap, [segment(2, 4), segment(2, 5), segment(4, 6)]);
        for across in [
            segment(1, 3),
            segment(5, 7),
            merged(&[segment(5, 6), segment(6, 7)]),
        ] {
            let forked = lineage(&[segment(0, 1), whole, across]);
            assert_eq!(forked.segments, [segment(0, 1)]);
            let first = whole.start.min(across.start);
            assert_eq!(forked.fork.map(|fork| fork.start), Some(first));
        }
        // The same range with other times was made by somebody who saw other parts.
        let other = SegmentKey {
            observed_through: Some(PgTimestamp::from_micros(1)),
            ..whole
        };
        assert!(lineage(&[whole, other]).fork.is_some());
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

    #[test]
    fn a_fork_ends_the_chain_and_nothing_behind_it_counts() {
        let forked = [segment(2, 3), segment(2, 4), segment(3, 5), segment(4, 6)];
        let listing = list(&[&[segment(1, 2)], &forked[..]].concat());
        let lineage = &listing.lineages[0];
        assert_eq!(lineage.segments, [segment(1, 2)]);
        assert_eq!(lineage.orphans, []);
        let fork = Fork {
            start: Lsn::new(2),
            segments: forked.to_vec(),
        };
        assert_eq!(lineage.fork, Some(fork));
        // Behind a hole as well, and from the first segment on.
        let listing = list(&[segment(1, 2), segment(3, 4), segment(4, 5), segment(4, 6)]);
        assert_eq!(listing.lineages[0].orphans, [segment(3, 4)]);
        let listing = list(&[segment(1, 3), segment(1, 2)]);
        assert_eq!(listing.lineages[0].durable_lsn(), None);
        // Where they do not begin together.
        let listing = list(&[segment(0, 1), segment(1, 3), segment(2, 4), segment(4, 5)]);
        assert_eq!(listing.lineages[0].durable_lsn(), Some(Lsn::new(1)));
    }
}
