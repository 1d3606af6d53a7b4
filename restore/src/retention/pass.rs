//! One pass of retention over a source: gives up what no promise needs, and deletes what was given
//! up long enough ago.
//!
//! Two phases, both safe to stop anywhere. What is given up is written down first, as an object of its own:
//! from then on no plan uses it. After the grace period it is deleted, if still nothing needs it; a policy
//! that has come to need it again takes it back. The last record stays as long as its lineage, and says
//! why what came before is missing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lastgood_proto::key::SourceObject;
use lastgood_proto::listing::{GivenUp, LineageListing, Listing};
use lastgood_proto::manifest::{RetiredFile, Version1};
use lastgood_proto::{BaseId, LineageId, PgTimestamp, Retention};
use lastgood_store::{ObjectEntry, SourceStore};
use serde::Serialize;

use super::{Unneeded, unneeded};
use crate::Error;
use crate::deletion::remove;
use crate::survey::Survey;
use crate::window::Window;

/// After so long without a manifest, archives are those of a base that was cut short.
const ABANDONED_MICROS: i64 = 7 * super::DAY_MICROS;

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
    /// What is deleted, now or before, for an index of it.
    #[serde(skip)]
    pub gone: Unneeded,
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

/// Runs a pass, or with `dry_run` only says what it would do. Without a policy everything is wanted:
/// what was given up is taken back as far as it is there.
///
/// # Errors
/// If the repository cannot be read or does not allow to delete; [`Error::RetentionBroken`].
pub async fn pass(
    store: &SourceStore,
    policy: Option<&Retention>,
    grace: Duration,
    now: PgTimestamp,
    dry_run: bool,
) -> Result<Pass, Error> {
    let objects = Objects::of(store.objects().await?);
    let files = store.retired(&objects.listing).await?;
    let records: Vec<Record> = files
        .into_iter()
        .map(|(lineage, file)| Record {
            lineage,
            time: file.time,
            given: file.into(),
        })
        .collect();
    let survey = Survey::of(store, objects.listing.clone()).await?;
    let unneeded = match policy {
        Some(policy) => unneeded(&survey, policy, now)?,
        None => Unneeded::new(),
    };
    let (mut records, back): (Vec<Record>, Vec<Record>) = records
        .into_iter()
        .partition(|record| objects.is_unneeded(record, &unneeded));
    let new = missing(&unneeded, &records, now);
    let mut pass = Pass {
        given_up: objects.held(&new),
        pending: Vec::new(),
        taken_back: objects.held(&back),
        deleted: Held::default(),
        windows: survey.without(&unneeded).windows(),
        gone: Unneeded::new(),
    };
    if !dry_run {
        for record in &new {
            let file = RetiredFile {
                v: Version1,
                time: record.time,
                before: record.given.before,
                bases: record.given.bases.iter().copied().collect(),
            };
            store.put_json(&record.object(), &file).await?;
        }
        // Only now: what both name is never wanted in between.
        for record in &back {
            store.delete(&record.object()).await?;
        }
    }
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
    let abandoned = objects.abandoned(now);
    pass.deleted.stored_bytes += abandoned.iter().map(|entry| entry.bytes).sum::<u64>();
    pass.gone = together(&due);
    if !dry_run {
        delete(store, &objects, &pass.gone, &due).await?;
        let abandoned = abandoned.into_iter().map(|entry| entry.object.clone());
        remove(store, &abandoned.collect::<Vec<_>>()).await?;
    }
    Ok(pass)
}

impl Record {
    fn object(&self) -> SourceObject {
        SourceObject::Retired(self.lineage, self.time)
    }
}

/// All that records give up, by lineage.
fn together(records: &[Record]) -> Unneeded {
    let mut all = Unneeded::new();
    for record in records {
        all.entry(record.lineage).or_default().add(&record.given);
    }
    all
}

/// Whether an object of the lineage is given up, or a part of what is.
fn is_given_up(object: &SourceObject, given: &GivenUp) -> bool {
    match object {
        SourceObject::Manifest(_, base) | SourceObject::Archive(_, base, _) => {
            given.bases.contains(base)
        }
        SourceObject::Segment(_, segment) => given.has(segment),
        _ => false,
    }
}

/// What is not written down yet.
fn missing(unneeded: &Unneeded, records: &[Record], now: PgTimestamp) -> Vec<Record> {
    let (known, none) = (together(records), GivenUp::default());
    let mut new = Vec::new();
    for (lineage, given) in unneeded {
        let known = known.get(lineage).unwrap_or(&none);
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

/// Whatever of it is still there: an earlier pass may have come half-way.
async fn delete(
    store: &SourceStore,
    objects: &Objects,
    gone: &Unneeded,
    due: &[Record],
) -> Result<(), Error> {
    for (id, given) in gone {
        let Some(lineage) = objects.listing.lineage(*id) else {
            continue;
        };
        // Without its manifest a base is none, so no half of one is ever seen.
        let (manifests, held): (Vec<SourceObject>, Vec<SourceObject>) = objects
            .of_lineage(*id)
            .filter(|object| is_given_up(object, given))
            .cloned()
            .partition(|object| matches!(object, SourceObject::Manifest(..)));
        let newest = objects.listing.newest();
        let newest = newest.is_some_and(|newest| newest.id == *id);
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
        }
    }
    Ok(())
}

fn is_empty_without(lineage: &LineageListing, given: &GivenUp) -> bool {
    lineage.bases.iter().all(|base| given.bases.contains(base))
        && lineage.all_segments().all(|segment| given.has(segment))
}

/// Points that can be restored no longer, and records that a later one has made superfluous.
fn outdated(lineage: &LineageListing, given: &GivenUp, due: &[Record]) -> Vec<SourceObject> {
    let bases = lineage.bases.iter();
    let left = bases.filter(|base| !given.bases.contains(base));
    let moments: BTreeSet<_> = left.map(|base| base.consistent_point()).collect();
    let points = lineage.points.iter();
    let points = points.filter(|point| point.lsn < given.before && !moments.contains(&point.lsn));
    let points = points.map(|point| SourceObject::Point(lineage.id, point.clone()));
    let records = due.iter().filter(|record| record.lineage == lineage.id);
    let mut records: Vec<&Record> = records.collect();
    records.sort_by_key(|record| (record.given.before, record.time));
    records.pop();
    points
        .chain(records.into_iter().map(Record::object))
        .collect()
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

    /// Whether nothing that a record gives up and that is there is needed.
    fn is_unneeded(&self, record: &Record, unneeded: &Unneeded) -> bool {
        let Some(lineage) = self.listing.lineage(record.lineage) else {
            return true;
        };
        let none = GivenUp::default();
        let given = unneeded.get(&record.lineage).unwrap_or(&none);
        let mut bases = lineage
            .bases
            .iter()
            .filter(|base| record.given.bases.contains(base));
        let mut segments = lineage
            .all_segments()
            .filter(|segment| record.given.has(segment));
        bases.all(|base| given.bases.contains(base)) && segments.all(|segment| given.has(segment))
    }

    /// Archives of bases that never came to be.
    fn abandoned(&self, now: PgTimestamp) -> Vec<&ObjectEntry> {
        let lineages = self.listing.lineages.iter();
        let finished: BTreeSet<BaseId> = lineages
            .flat_map(|lineage| lineage.bases.iter().copied())
            .collect();
        let before = now.as_micros().saturating_sub(ABANDONED_MICROS);
        let mut newest: BTreeMap<BaseId, i64> = BTreeMap::new();
        for entry in &self.entries {
            if let SourceObject::Archive(_, base, _) = entry.object {
                let modified = newest.entry(base).or_insert(i64::MIN);
                *modified = entry.modified.as_micros().max(*modified);
            }
        }
        let is_abandoned = |entry: &&ObjectEntry| match entry.object {
            SourceObject::Archive(_, base, _) => {
                !finished.contains(&base)
                    && newest.get(&base).is_some_and(|modified| *modified < before)
            }
            _ => false,
        };
        self.entries.iter().filter(is_abandoned).collect()
    }

    /// What of these records is there.
    fn held(&self, records: &[Record]) -> Held {
        let given = together(records);
        let mut held = Held::default();
        for entry in &self.entries {
            let given = entry.object.lineage().and_then(|id| given.get(&id));
            if !given.is_some_and(|given| is_given_up(&entry.object, given)) {
                continue;
            }
            match &entry.object {
                SourceObject::Manifest(_, base) => held.bases.push(*base),
                SourceObject::Segment(..) => held.segments += 1,
                _ => {}
            }
            held.stored_bytes += entry.bytes;
        }
        held
    }
}
