//! One pass of compaction over a source: deletes what was replaced long enough ago, then merges what
//! is due.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use lastgood_proto::key::{SegmentKey, SourceObject};
use lastgood_proto::listing::{LineageListing, Listing};
use lastgood_proto::{LineageId, PgTimestamp};
use lastgood_store::{ObjectEntry, SourceStore};
use serde::Serialize;

use super::groups;
use super::merge::{merge, same_content};
use crate::Error;
use crate::deletion::remove;

/// How a pass is made.
#[derive(Debug, Clone)]
pub struct CompactionOptions<'a> {
    /// Between making a merged segment and deleting what it replaces.
    pub grace: Duration,
    pub now: PgTimestamp,
    /// Only say what would be done.
    pub dry_run: bool,
    /// For what does not fit into memory, sealed.
    pub spool: &'a Path,
    /// Merged segments after which a pass ends; what is left is for the next one.
    pub merges_max: usize,
}

/// What a pass did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Compaction {
    /// Merged segments that were made, and of what.
    pub made: Vec<Made>,
    /// Replaced, and waiting for the end of the grace period.
    pub waiting: Parts,
    /// Deleted now.
    pub deleted: Parts,
    /// Objects of segments that are left.
    pub segments: u64,
    /// There is more to merge.
    pub more: bool,
}

/// A merged segment, or a group that would become one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Made {
    pub lineage: LineageId,
    #[serde(skip)]
    pub key: SegmentKey,
    pub parts: Parts,
    /// None if it is not made yet.
    pub stored_bytes: Option<u64>,
}

/// Segments that a merged one takes the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Parts {
    pub segments: u64,
    pub stored_bytes: u64,
}

impl Parts {
    fn add(&mut self, other: Self) {
        self.segments += other.segments;
        self.stored_bytes += other.stored_bytes;
    }
}

/// Runs a pass, or with `dry_run` only says what it would do.
///
/// # Errors
/// If the repository cannot be read or written, or does not allow to delete; [`Error::Merged`].
/// Nothing is lost by any of them: the next pass goes on.
pub async fn compact(
    store: &SourceStore,
    options: &CompactionOptions<'_>,
) -> Result<Compaction, Error> {
    let entries = store.objects().await?;
    let listing = store.listing(&entries).await?;
    // With what retention has given up and not deleted yet: it is compared as well.
    let all = Listing::from_objects(entries.iter().map(|entry| entry.object.clone()));
    let mut compaction = Compaction {
        made: Vec::new(),
        waiting: Parts::default(),
        deleted: Parts::default(),
        segments: 0,
        more: false,
    };
    let mut stored: HashMap<LineageId, HashMap<SegmentKey, &ObjectEntry>> = HashMap::new();
    for entry in &entries {
        if let SourceObject::Segment(lineage, key) = entry.object {
            stored.entry(lineage).or_default().insert(key, entry);
            compaction.segments += 1;
        }
    }
    for (lineage, all) in listing.lineages.iter().zip(&all.lineages) {
        let stored = stored.remove(&lineage.id).unwrap_or_default();
        Pass {
            store,
            options,
            lineage,
            all,
            stored,
        }
        .run(&mut compaction)
        .await?;
    }
    compaction.segments -= compaction.deleted.segments;
    Ok(compaction)
}

/// A pass over one lineage.
struct Pass<'a> {
    store: &'a SourceStore,
    options: &'a CompactionOptions<'a>,
    lineage: &'a LineageListing,
    all: &'a LineageListing,
    stored: HashMap<SegmentKey, &'a ObjectEntry>,
}

impl Pass<'_> {
    async fn run(&self, compaction: &mut Compaction) -> Result<(), Error> {
        let mut wrong = None;
        for merged in self.lineage.merged() {
            match self.clear(merged, compaction).await {
                // It keeps its parts, and nothing else from being merged.
                Err(error @ Error::Merged { .. }) => wrong = wrong.or(Some(error)),
                cleared => cleared?,
            }
        }
        let bytes = self.stored.iter().map(|(key, entry)| (*key, entry.bytes));
        for group in groups(self.lineage, &bytes.collect()) {
            if compaction.made.len() >= self.options.merges_max {
                compaction.more = true;
                break;
            }
            self.merge(&group, compaction).await?;
        }
        wrong.map_or(Ok(()), Err)
    }

    /// Deletes what a merged segment replaces, once its grace period is over.
    async fn clear(&self, merged: SegmentKey, compaction: &mut Compaction) -> Result<(), Error> {
        let parts = self.all.parts_of(&merged);
        let (false, Some(entry)) = (parts.is_empty(), self.stored.get(&merged)) else {
            return Ok(());
        };
        let all = parts.concat();
        let grace = i64::try_from(self.options.grace.as_micros()).unwrap_or(i64::MAX);
        let end = entry.modified.as_micros().saturating_add(grace);
        if end > self.options.now.as_micros() {
            compaction.waiting.add(self.held(&all));
            return Ok(());
        }
        if !self.options.dry_run {
            for parts in &parts {
                same_content(self.store, self.lineage.id, merged, parts).await?;
            }
            let objects = all
                .iter()
                .map(|key| SourceObject::Segment(self.lineage.id, *key));
            remove(self.store, &objects.collect::<Vec<_>>()).await?;
        }
        compaction.deleted.add(self.held(&all));
        Ok(())
    }

    async fn merge(&self, group: &[SegmentKey], compaction: &mut Compaction) -> Result<(), Error> {
        let lineage = self.lineage.id;
        let (Some(first), Some(last)) = (group.first(), group.last()) else {
            return Ok(());
        };
        if self.options.dry_run {
            compaction.made.push(Made {
                lineage,
                key: SegmentKey {
                    start: first.start,
                    ..*last
                },
                parts: self.held(group),
                stored_bytes: None,
            });
            return Ok(());
        }
        for merged in merge(self.store, lineage, group, self.options.spool).await? {
            merged.store(self.store, lineage).await?;
            let path = self.store.path(&SourceObject::Segment(lineage, merged.key));
            tracing::debug!(merged = path, parts = merged.parts.len(), "merged");
            let parts = self.held(&merged.parts);
            compaction.waiting.add(parts);
            compaction.segments += 1;
            compaction.made.push(Made {
                lineage,
                key: merged.key,
                parts,
                stored_bytes: Some(merged.stored_bytes()),
            });
        }
        Ok(())
    }

    fn held(&self, keys: &[SegmentKey]) -> Parts {
        let entries = keys.iter().filter_map(|key| self.stored.get(key));
        Parts {
            segments: keys.len() as u64,
            stored_bytes: entries.map(|entry| entry.bytes).sum(),
        }
    }
}
