//! One pass of retention over a source: gives up what no promise needs, and deletes what was given
//! up long enough ago.
//!
//! Two phases, both safe to stop anywhere. What is given up is written down first, as an object of its own:
//! from then on no plan uses it. After the grace period it is deleted, if still nothing needs it; a policy
//! that has come to need it again takes it back.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{TryStreamExt, stream};
use lastgood_proto::key::SourceObject;
use lastgood_proto::listing::{LineageListing, Listing};
use lastgood_proto::manifest::{RetiredFile, Version1};
use lastgood_proto::{BaseId, LineageId, PgTimestamp, Retention};
use lastgood_store::{ObjectEntry, SourceStore};
use serde::Serialize;

use super::{GivenUp, Unneeded, unneeded};
use crate::Error;
use crate::survey::{Survey, read_retired};
use crate::window::Window;

/// Deletions under way at the same time.
const DELETIONS: usize = 16;

/// What a pass did, or would do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pass {
    /// Given up now.
    pub given_up: Held,
    /// Given up, now or before, and waiting for the end of the grace period.
    pub pending: Vec<Pending>,
    /// Taken back, because the policy has changed.
    pub taken_back: Held,
    /// Deleted now.
    pub deleted: Held,
    /// What can be restored afterwards.
    pub windows: Vec<Window>,
    /// The objects that were deleted, for an index of them.
    #[serde(skip)]
    pub gone: Vec<SourceObject>,
}

/// Bases and segments, and what they take.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Held {
    pub bases: Vec<BaseId>,
    pub segments: u64,
    pub stored_bytes: u64,
}

/// Given up by an earlier pass or this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Pending {
    pub given_up: PgTimestamp,
    /// The first pass after this deletes it.
    pub delete_after: PgTimestamp,
    #[serde(flatten)]
    pub held: Held,
}

/// A record of a pass, as it stands in the repository.
#[derive(Debug)]
struct Record {
    lineage: LineageId,
    time: PgTimestamp,
    given: GivenUp,
}

/// Runs a pass, or with `dry_run` only says what it would do.
///
/// # Errors
/// If the repository cannot be read or does not allow to delete; [`Error::RetentionBroken`].
pub async fn pass(
    store: &SourceStore,
    policy: &Retention,
    grace: Duration,
    now: PgTimestamp,
    dry_run: bool,
) -> Result<Pass, Error> {
    let objects = Objects::of(store.objects().await?);
    let survey = Survey::read_all(store, objects.listing.clone()).await?;
    let unneeded = unneeded(&survey, policy, now)?;
    let files = read_retired(store, &objects.listing).await?;
    let records = files.into_iter().map(|(lineage, file)| Record {
        lineage,
        time: file.time,
        given: file.into(),
    });
    let (mut records, back): (Vec<Record>, Vec<Record>) = records.partition(|record| {
        let given = unneeded.get(&record.lineage);
        given.is_some_and(|given| given.contains(&record.given))
    });
    let new = missing(&unneeded, &records, now);
    if !dry_run {
        for record in &back {
            store.delete(&record.object()).await?;
        }
        for record in &new {
            let file = RetiredFile {
                v: Version1,
                time: record.time,
                before: record.given.before,
                bases: record.given.bases.iter().copied().collect(),
            };
            store.put_json(&record.object(), &file).await?;
        }
    }
    let mut pass = Pass {
        given_up: objects.held(&new),
        pending: Vec::new(),
        taken_back: objects.held(&back),
        deleted: Held::default(),
        windows: survey.without(&unneeded).windows(),
        gone: Vec::new(),
    };
    records.extend(new);
    let grace = i64::try_from(grace.as_micros()).unwrap_or(i64::MAX);
    let end =
        |record: &Record| PgTimestamp::from_micros(record.time.as_micros().saturating_add(grace));
    let (due, waiting): (Vec<Record>, Vec<Record>) =
        records.into_iter().partition(|record| end(record) <= now);
    for record in &waiting {
        pass.pending.push(Pending {
            given_up: record.time,
            delete_after: end(record),
            held: objects.held(std::slice::from_ref(record)),
        });
    }
    pass.deleted = objects.held(&due);
    if !dry_run {
        pass.gone = delete(store, &objects, &due).await?;
    }
    Ok(pass)
}

impl Record {
    fn object(&self) -> SourceObject {
        SourceObject::Retired(self.lineage, self.time)
    }
}

/// What is not written down yet.
fn missing(unneeded: &Unneeded, records: &[Record], now: PgTimestamp) -> Vec<Record> {
    let mut new = Vec::new();
    for (lineage, given) in unneeded {
        let mut known = GivenUp::default();
        for record in records.iter().filter(|record| record.lineage == *lineage) {
            known.add(&record.given);
        }
        if !known.contains(given) {
            new.push(Record {
                lineage: *lineage,
                time: now,
                given: GivenUp {
                    bases: given.bases.difference(&known.bases).copied().collect(),
                    before: given.before,
                },
            });
        }
    }
    new
}

async fn delete(
    store: &SourceStore,
    objects: &Objects,
    due: &[Record],
) -> Result<Vec<SourceObject>, Error> {
    let mut deleted = Vec::new();
    let mut given = Unneeded::new();
    for record in due {
        given.entry(record.lineage).or_default().add(&record.given);
    }
    for (id, given) in &given {
        let Some(lineage) = objects.listing.lineage(*id) else {
            continue;
        };
        // Without its manifest a base is none, so no half of one is ever seen.
        let manifests = given.bases.iter();
        let manifests = manifests
            .map(|base| SourceObject::Manifest(*id, *base))
            .collect();
        let held = objects.of_lineage(*id).filter(|object| match object {
            SourceObject::Archive(_, base, _) => given.bases.contains(base),
            SourceObject::Segment(_, segment) => given.has(segment),
            _ => false,
        });
        let held = held.cloned().collect();
        let newest = objects
            .listing
            .newest()
            .is_some_and(|newest| newest.id == *id);
        let rest = match is_empty_without(lineage, given) && !newest {
            true => objects.of_lineage(*id).cloned().collect(),
            false => outdated(lineage, given, due),
        };
        // Its records last: until then they say what is missing, and why.
        let (records, rest): (Vec<SourceObject>, Vec<SourceObject>) = rest
            .into_iter()
            .partition(|object| matches!(object, SourceObject::Retired(..)));
        for objects in [manifests, held, rest, records] {
            remove(store, &objects).await?;
            deleted.extend(objects);
        }
    }
    Ok(deleted)
}

fn is_empty_without(lineage: &LineageListing, given: &GivenUp) -> bool {
    lineage.bases.iter().all(|base| given.bases.contains(base))
        && super::segments(lineage).all(|segment| given.has(segment))
}

/// Points that can be restored no longer, and records that a later one has made superfluous.
fn outdated(lineage: &LineageListing, given: &GivenUp, due: &[Record]) -> Vec<SourceObject> {
    let mut bases = lineage
        .bases
        .iter()
        .filter(|base| !given.bases.contains(base));
    let points = lineage.points.iter().filter(|point| {
        point.lsn < given.before && !bases.any(|base| base.consistent_point() == point.lsn)
    });
    let points = points.map(|point| SourceObject::Point(lineage.id, point.clone()));
    let mut records: Vec<&Record> = due
        .iter()
        .filter(|record| record.lineage == lineage.id)
        .collect();
    records.sort_by_key(|record| (record.given.before, record.time));
    records.pop();
    points
        .chain(records.into_iter().map(Record::object))
        .collect()
}

async fn remove(store: &SourceStore, objects: &[SourceObject]) -> Result<(), Error> {
    stream::iter(objects.iter().map(Ok))
        .try_for_each_concurrent(DELETIONS, |object| async move {
            store.delete(object).await?;
            tracing::debug!(object = store.path(object), "deleted");
            Ok(())
        })
        .await
}

/// The source's objects with their sizes.
struct Objects {
    entries: Vec<ObjectEntry>,
    listing: Listing,
}

impl Objects {
    fn of(entries: Vec<ObjectEntry>) -> Self {
        let listing = Listing::from_objects(entries.iter().map(|entry| entry.object.clone()));
        Self { entries, listing }
    }

    fn of_lineage(&self, id: LineageId) -> impl Iterator<Item = &SourceObject> {
        let objects = self.entries.iter().map(|entry| &entry.object);
        objects.filter(move |object| object.lineage() == Some(id))
    }

    /// What of these records is there.
    fn held(&self, records: &[Record]) -> Held {
        let mut given: BTreeMap<LineageId, GivenUp> = BTreeMap::new();
        for record in records {
            given.entry(record.lineage).or_default().add(&record.given);
        }
        let mut held = Held::default();
        for entry in &self.entries {
            let Some(given) = entry.object.lineage().and_then(|id| given.get(&id)) else {
                continue;
            };
            match &entry.object {
                SourceObject::Manifest(_, base) if given.bases.contains(base) => {
                    held.bases.push(*base)
                }
                SourceObject::Archive(_, base, _) if given.bases.contains(base) => {}
                SourceObject::Segment(_, segment) if given.has(segment) => held.segments += 1,
                _ => continue,
            }
            held.stored_bytes += entry.bytes;
        }
        held
    }
}
