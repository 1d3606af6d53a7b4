//! The catalog's index of a source: made equal to the repository at a start, kept so by events.

use lastgood_engine::Event;
use lastgood_proto::key::{SegmentKey, SourceObject};
use lastgood_proto::listing::Listing;
use lastgood_proto::manifest::{BaseManifest, PointFile};
use lastgood_proto::{LineageId, SourceId};
use lastgood_store::{SourceStore, failpoint};

use super::Error;
use crate::catalog::{
    BaseCause, Catalog, FinishedBase, PointRow, Result as CatalogResult, SegmentRow,
};
use crate::clock::now;

/// Read the repository's listing, and the manifests the catalog does not know.
pub(crate) async fn rebuild(catalog: &Catalog, store: &SourceStore) -> Result<(), Error> {
    let source = store.id();
    let objects = store.objects().await?;
    let listing = Listing::from_objects(objects.iter().map(|entry| entry.object.clone()));
    let mut segments = Vec::new();
    for entry in objects {
        match entry.object {
            SourceObject::Segment(lineage, key) => {
                let listed = listing.lineage(lineage);
                if listed.is_some_and(|listed| listed.uses(&key)) {
                    segments.push(SegmentRow {
                        lineage,
                        key,
                        stored_bytes: Some(entry.bytes),
                    });
                }
            }
            SourceObject::Manifest(lineage, base) => {
                if !catalog.is_base_known(source, lineage, base).await? {
                    let object = SourceObject::Manifest(lineage, base);
                    let manifest: BaseManifest = store.get_json(&object).await?;
                    let finished = finished(lineage, &manifest);
                    catalog.found_base(source, finished).await?;
                }
            }
            SourceObject::Point(lineage, point) => {
                let object = SourceObject::Point(lineage, point);
                let PointFile {
                    name, lsn, time, ..
                } = store.get_json(&object).await?;
                catalog
                    .insert_point(source, PointRow { name, lsn, time })
                    .await?;
            }
            SourceObject::Source
            | SourceObject::Numbered(..)
            | SourceObject::Lineage(_)
            | SourceObject::LineageEnd(_)
            | SourceObject::Shape(..)
            | SourceObject::Ddl(..)
            | SourceObject::Retired(..)
            | SourceObject::Archive(..) => {}
        }
    }
    catalog.replace_segments(source, segments).await?;
    Ok(())
}

pub(super) async fn note_segment(
    catalog: &Catalog,
    source: SourceId,
    lineage: LineageId,
    key: SegmentKey,
    stored_bytes: u64,
) -> Result<(), Error> {
    let row = SegmentRow {
        lineage,
        key,
        stored_bytes: Some(stored_bytes),
    };
    failpoint!("catalog.before");
    catalog.insert_segment(source, row).await?;
    failpoint!("catalog.after");
    Ok(())
}

/// Note an event of a base under its job; a base that no job asked for becomes one of its own.
pub(crate) async fn note_base(
    catalog: &Catalog,
    source: SourceId,
    job: &mut Option<String>,
    event: Event,
) -> CatalogResult<()> {
    match event {
        Event::BaseStarted {
            base,
            follows_change,
            ..
        } => {
            if job.is_none() {
                let id = base.to_string();
                *job = Some(id.clone());
                let cause = match follows_change {
                    true => BaseCause::Change,
                    false => BaseCause::First,
                };
                catalog.begin_base(id, source, cause, now()).await?;
            }
        }
        Event::BaseProgress { dumped_bytes, .. } => {
            if let Some(id) = job {
                catalog.base_progress(id.clone(), dumped_bytes).await?;
            }
        }
        Event::BaseFinished { lineage, manifest } => {
            let finished = finished(lineage, &manifest);
            match job.take() {
                Some(id) => catalog.finish_base(id, finished).await?,
                None => catalog.found_base(source, finished).await?,
            }
        }
        Event::BaseFailed { error } => {
            if let Some(id) = job.take() {
                catalog.fail_base(id, error, now()).await?;
            }
        }
        Event::Status(_)
        | Event::BaseWaits { .. }
        | Event::LineageStarted { .. }
        | Event::LineageEnded { .. }
        | Event::Segment { .. }
        | Event::WalBudgetHalf { .. }
        | Event::Idle { .. }
        | Event::Uncovered { .. } => {}
    }
    Ok(())
}

fn finished(lineage: LineageId, manifest: &BaseManifest) -> FinishedBase {
    let sum = |size: fn(&lastgood_proto::manifest::Archive) -> u64| {
        manifest.archives.iter().map(size).sum()
    };
    FinishedBase {
        lineage,
        base: manifest.id,
        bytes: sum(|archive| archive.bytes),
        stored_bytes: sum(|archive| archive.stored_bytes),
        started: manifest.started,
        finished: manifest.finished,
    }
}
