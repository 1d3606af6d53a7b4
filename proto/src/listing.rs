//! What a source holds, made of nothing but its object keys. Pure.
//!
//! Invariant: `LineageListing::segments` is a contiguous chain from the lineage's start, or from what
//! retention has left, each segment beginning where the one before ends. Segments that overlap were made by two
//! writers: the chain ends before such a fork, and none of what follows is ever chosen.

use std::collections::{BTreeMap, BTreeSet};

use crate::key::{PointKey, SegmentKey, ShapeKey, SourceObject};
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
    /// All segments that are there, in the chain or not.
    pub fn all_segments(&self) -> impl Iterator<Item = &SegmentKey> {
        let behind = self.fork.iter().flat_map(|fork| &fork.segments);
        self.segments.iter().chain(&self.orphans).chain(behind)
    }

    fn give_up(&mut self, given: &GivenUp) {
        self.given_up.add(given);
        self.bases.retain(|base| !given.bases.contains(base));
        let left = self.all_segments().filter(|segment| !given.has(segment));
        let joined = Joined::of(left.copied().collect());
        (self.segments, self.orphans, self.fork) = (joined.chain, joined.orphans, joined.fork);
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
        }
    }
}

struct Joined {
    chain: Vec<SegmentKey>,
    orphans: Vec<SegmentKey>,
    fork: Option<Fork>,
}

impl Joined {
    fn of(segments: BTreeSet<SegmentKey>) -> Self {
        let mut chain: Vec<SegmentKey> = Vec::with_capacity(segments.len());
        let mut orphans: Vec<SegmentKey> = Vec::new();
        let mut segments: Vec<SegmentKey> = segments.into_iter().collect();
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
        }
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
