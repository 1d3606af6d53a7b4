//! What a source holds, made of nothing but its object keys. Pure.
//!
//! Invariant: `LineageListing::segments` is a contiguous chain from the lineage's start, each
//! segment beginning where the one before ends. Two segments that begin at one LSN were made by two
//! writers; a listing with such a fork is an error, never a choice.

use std::collections::{BTreeMap, BTreeSet};

use crate::key::{PointKey, SegmentKey, ShapeKey, SourceObject};
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
    /// The contiguous chain, by LSN.
    pub segments: Vec<SegmentKey>,
    /// Segments that do not join the chain: something between is missing.
    pub orphans: Vec<SegmentKey>,
}

/// The keys contradict each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ListingError {
    /// Another service writes, or wrote, into the same lineage.
    #[error(
        "two segments of lineage {lineage} begin at {start}: one ends at {first_end}, the other \
         at {second_end}; two services have written here"
    )]
    Fork {
        lineage: LineageId,
        start: Lsn,
        first_end: Lsn,
        second_end: Lsn,
    },
    /// The same, seen where the segments do not begin together.
    #[error(
        "segments of lineage {lineage} overlap: one ends at {first_end}, the next begins at \
         {start} and ends at {second_end}; two services have written here"
    )]
    Overlap {
        lineage: LineageId,
        start: Lsn,
        first_end: Lsn,
        second_end: Lsn,
    },
    /// No such segment is ever written.
    #[error("a segment of lineage {lineage} ends at {end}, not after its start {start}")]
    Backwards {
        lineage: LineageId,
        start: Lsn,
        end: Lsn,
    },
}

impl Listing {
    /// Sorts the keys into lineages and joins the segments. The order of `objects` does not matter.
    ///
    /// # Errors
    /// On a fork, an overlap, or a segment that ends before it starts.
    pub fn from_objects(
        objects: impl IntoIterator<Item = SourceObject>,
    ) -> Result<Self, ListingError> {
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
            }
        }
        let lineages = parts.into_iter().map(|(id, parts)| parts.join(id));
        Ok(Self {
            described,
            lineages: lineages.collect::<Result<_, _>>()?,
        })
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
    segments: BTreeSet<SegmentKey>,
}

impl Parts {
    fn join(self, id: LineageId) -> Result<LineageListing, ListingError> {
        let mut chain: Vec<SegmentKey> = Vec::with_capacity(self.segments.len());
        let mut orphans: Vec<SegmentKey> = Vec::new();
        let mut before: Option<SegmentKey> = None;
        for segment in self.segments {
            if segment.end <= segment.start {
                let SegmentKey { start, end, .. } = segment;
                return Err(ListingError::Backwards {
                    lineage: id,
                    start,
                    end,
                });
            }
            if let Some(before) = before.filter(|before| before.start == segment.start) {
                return Err(ListingError::Fork {
                    lineage: id,
                    start: segment.start,
                    first_end: before.end,
                    second_end: segment.end,
                });
            }
            if let Some(before) = before.filter(|before| before.end > segment.start) {
                return Err(ListingError::Overlap {
                    lineage: id,
                    start: segment.start,
                    first_end: before.end,
                    second_end: segment.end,
                });
            }
            before = Some(segment);
            match chain.last() {
                Some(last) if last.end != segment.start => orphans.push(segment),
                Some(_) | None => chain.push(segment),
            }
        }
        Ok(LineageListing {
            id,
            described: self.described,
            ended: self.ended,
            bases: self.bases.into_iter().collect(),
            points: self.points.into_iter().collect(),
            shapes: self.shapes.into_iter().collect(),
            segments: chain,
            orphans,
        })
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

    fn list(segments: &[SegmentKey]) -> Result<Listing, ListingError> {
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
            let listing = list(&shuffled).unwrap();
            prop_assert_eq!(&listing.lineages[0].segments, &chain);
            prop_assert!(listing.lineages[0].orphans.is_empty());
            prop_assert_eq!(listing.lineages[0].durable_lsn(), Some(Lsn::new(start)));
        }
    }

    #[test]
    fn a_hole_ends_the_run() {
        let listing = list(&[segment(1, 2), segment(2, 3), segment(4, 5), segment(5, 6)]).unwrap();
        assert_eq!(listing.lineages[0].durable_lsn(), Some(Lsn::new(3)));
        assert_eq!(listing.lineages[0].orphans, [segment(4, 5), segment(5, 6)]);
    }

    #[test]
    fn a_fork_is_an_error() {
        assert!(matches!(
            list(&[segment(1, 3), segment(1, 2)]),
            Err(ListingError::Fork { .. })
        ));
        assert!(matches!(
            list(&[segment(2, 2)]),
            Err(ListingError::Backwards { .. })
        ));
        assert!(matches!(
            list(&[segment(1, 3), segment(2, 4), segment(4, 5)]),
            Err(ListingError::Overlap { .. })
        ));
    }
}
