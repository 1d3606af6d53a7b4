//! Compaction: many small segments become a few large ones, so that a month is thousands of objects.
//!
//! What is merged is a pure choice over a listing: all segments of a *span*, a stretch of the server's
//! clock on a fixed grid, once it lies well behind what was captured last. An hour is merged when it is
//! over, a day again when it is. A span with more in it than one object is to hold is halved, down to a
//! minute. A finer span never reaches across the border of a coarser one, and only whole ones are
//! merged, so whatever two services see of a lineage, they make segments that lie within each other or
//! apart.
//!
//! Nothing is merged across a change of the source's shape: there windows end, exactly (see `window`).
//!
//! Safe to stop anywhere. A merged segment is created like any other, once all its parts were read to
//! their verified ends; it is read back and compared with them at once, and again right before they are
//! deleted. That is a grace period after it was made, so that a restore which was planned before still
//! finds them. From its creation on every listing takes it for its parts, however many are left.

use std::collections::HashMap;

use lastgood_proto::key::SegmentKey;
use lastgood_proto::listing::LineageListing;
use lastgood_proto::{Lsn, PgTimestamp};

mod merge;
mod pass;

pub use merge::same_content;
pub use pass::{Compaction, CompactionOptions, Made, Parts, compact};

const MINUTE_MICROS: i64 = 60_000_000;
/// Minutes of spans, coarse to fine. Each is a multiple of the next.
const SPANS: [i64; 9] = [1440, 720, 360, 180, HOUR, 30, 15, 5, 1];
const HOUR: i64 = 60;
/// A span is merged when so much was captured after its end: a resume compares what is newest.
const SETTLED_MICROS: i64 = 15 * MINUTE_MICROS;
/// Stored bytes of one merged segment, some 300 MiB of NDJSON. Whoever looks for one moment reads one
/// to its end.
const MERGED_BYTES_MAX: u64 = 32 << 20;

/// Runs of segments that are to become one each, by LSN. `bytes` are stored ones.
fn groups(lineage: &LineageListing, bytes: &HashMap<SegmentKey, u64>) -> Vec<Vec<SegmentKey>> {
    let newest = lineage
        .observed_through()
        .map_or(i64::MIN, PgTimestamp::as_micros);
    let over = |run: &[SegmentKey], minutes: i64| {
        let width = minutes * MINUTE_MICROS;
        let end = run.first().and_then(|first| {
            let next = span(first, minutes).checked_add(1)?;
            next.checked_mul(width)?.checked_add(SETTLED_MICROS)
        });
        // Nothing more will come.
        lineage.ended || end.is_some_and(|end| end <= newest)
    };
    let [day, within_day @ ..] = SPANS;
    // Of the day in which retention has left off, only a part is seen.
    let cut = (lineage.given_up.before > Lsn::default()).then(|| lineage.segments.first());
    let cut = cut.flatten().map(|first| span(first, day));
    let mut groups = Vec::new();
    for alike in lineage
        .segments
        .chunk_by(|a, b| changes(lineage, a) == changes(lineage, b))
    {
        for run in alike.chunk_by(|a, b| span(a, day) == span(b, day)) {
            if run.first().map(|first| span(first, day)) == cut {
                continue;
            }
            if over(run, day) {
                divide(run, &within_day, bytes, &mut groups);
                continue;
            }
            for run in run.chunk_by(|a, b| span(a, HOUR) == span(b, HOUR)) {
                if over(run, HOUR) {
                    let within_hour = SPANS.iter().filter(|minutes| **minutes < HOUR);
                    let within_hour: Vec<i64> = within_hour.copied().collect();
                    divide(run, &within_hour, bytes, &mut groups);
                }
            }
        }
    }
    groups
}

/// One group if it is not too much for one object, else what its finer spans make.
fn divide(
    run: &[SegmentKey],
    finer: &[i64],
    bytes: &HashMap<SegmentKey, u64>,
    groups: &mut Vec<Vec<SegmentKey>>,
) {
    if run.len() < 2 {
        return;
    }
    let stored = run.iter().map(|key| bytes.get(key).copied().unwrap_or(0));
    if stored.fold(0, u64::saturating_add) <= MERGED_BYTES_MAX {
        groups.push(run.to_vec());
    } else if let Some((minutes, finer)) = finer.split_first() {
        for run in run.chunk_by(|a, b| span(a, *minutes) == span(b, *minutes)) {
            divide(run, finer, bytes, groups);
        }
    }
}

/// The number of the span that a segment lies in: by the clock it was observed through, which never
/// goes back within a lineage. Before the first look at a clock there is none; those lie in the first.
fn span(segment: &SegmentKey, minutes: i64) -> i64 {
    let observed = segment.observed_through.unwrap_or(PgTimestamp::MIN);
    observed.as_micros().div_euclid(minutes * MINUTE_MICROS)
}

/// How many changes of shape a segment reaches beyond. A window ends with the last one that reaches
/// beyond none.
fn changes(lineage: &LineageListing, segment: &SegmentKey) -> usize {
    lineage
        .shapes
        .partition_point(|shape| shape.from < segment.end)
}

#[cfg(test)]
mod tests;
