//! What a restore will do, before it does anything.
//!
//! The choice of base and segments is pure (see `choose`); the segment the target falls into is
//! opened to say which transaction is the last one kept and which the first one discarded. Nothing
//! here connects to a server.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lastgood_proto::key::{ArchiveName, SegmentKey, SegmentKind, SourceObject};
use lastgood_proto::manifest::{Archive, BaseManifest, Protection, SourceFile, TableEntry};
use lastgood_proto::{BaseId, LineageId, Lsn, Oid, PgTimestamp, SourceId, Xid};
use lastgood_store::SourceStore;
use serde::{Deserialize, Serialize};

use crate::boundary::{self, Boundary, Transaction};
use crate::choose::{Choice, Cut, Only, choose, outside};
use crate::partial::{self, Partial};
use crate::relations::Name;
use crate::selection::TableName;
use crate::survey::Survey;
use crate::target::{Target, TargetKind};
use crate::window::reaches;
use crate::{Error, sql};

/// Segments behind the last one needed that are kept in the plan, to find a sample of the
/// sequences past the target: samples are taken at least as often as segments are cut.
const FOLLOWING_MAX: usize = 64;

/// How much older than its target a restore may be where nobody knows better: somewhat more than passes
/// between two moments that a source's capture knows, with the default settings.
const UNSURE_MAX_MICROS: i64 = 120_000_000;

/// What narrows or judges the choice.
#[derive(Debug, Clone)]
pub struct PlanOptions {
    /// The present moment: tells a target in the future from one that is not durable yet.
    pub now: PgTimestamp,
    /// Only this lineage: for an LSN that is in several.
    pub lineage: Option<LineageId>,
    /// Only this base: for a restore that is resumed after a newer base was taken.
    pub base: Option<BaseId>,
    /// Only these tables and what belongs to them; all if none is named.
    pub tables: Vec<TableName>,
    /// The tables come back under this schema, which is made in a database that exists.
    pub into_schema: Option<String>,
}

/// A restore, ready to be executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    pub source: SourceId,
    pub source_name: String,
    /// The source's database.
    pub database: String,
    pub target: Target,
    pub lineage: LineageId,
    pub base: PlannedBase,
    /// Read for their transactions, by LSN; contiguous.
    pub segments: Vec<PlannedSegment>,
    /// Read for a sample of the sequences, if there is none past the target before.
    pub following: Vec<PlannedSegment>,
    /// Of archives and segments, as stored.
    pub stored_bytes: u64,
    pub stop: Stop,
    pub not_covered: Vec<NotCovered>,
    /// Which tables, if not all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partial: Option<Partial>,
    /// A rough guess.
    pub expected_seconds: u64,
}

impl Plan {
    /// The new schema of an existing database, if that is where the tables go.
    #[must_use]
    pub fn schema(&self) -> Option<&str> {
        self.partial.as_ref()?.schema.as_deref()
    }
}

/// The base a plan starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedBase {
    pub id: BaseId,
    /// What committed below is not replayed, but on rows that it borrows. A base without rows of its own may serve from
    /// before its own consistent point.
    pub consistent_point: Lsn,
    pub snapshot_time: PgTimestamp,
    pub server_version: u32,
    /// Of the archives themselves.
    pub bytes: u64,
    pub stored_bytes: u64,
    /// Earlier bases that some of its rows are from; `segments` begin with what they need.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lenders: Vec<BaseId>,
}

/// A segment by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlannedSegment {
    pub start: Lsn,
    pub end: Lsn,
    pub max_commit_time: Option<PgTimestamp>,
    pub observed_through: Option<PgTimestamp>,
    #[serde(default)]
    pub kind: SegmentKind,
}

/// Where the restore stops, to the transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stop {
    /// None if everything kept is in the base.
    pub last_kept: Option<Transaction>,
    /// None if nothing durable comes after.
    pub first_discarded: Option<Transaction>,
    /// Of a time: what is restored was there at some moment from this one to the target. None if it was
    /// at the target itself, as far as commits have the order of their times.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<PgTimestamp>,
    /// Sequences are set as sampled at or after this position.
    pub sequences_at: Lsn,
}

/// What [`NotCovered`] calls definitions that no rows depend on.
pub(crate) const DEFINITIONS: &str = "definitions";

/// Something that is as fresh as the base, whatever the target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotCovered {
    /// The table, or "large objects", or "definitions".
    pub object: String,
    /// One sentence.
    pub why: String,
}

impl From<SegmentKey> for PlannedSegment {
    fn from(key: SegmentKey) -> Self {
        Self {
            start: key.start,
            end: key.end,
            max_commit_time: key.max_commit_time,
            observed_through: key.observed_through,
            kind: key.kind,
        }
    }
}

impl From<PlannedSegment> for SegmentKey {
    fn from(planned: PlannedSegment) -> Self {
        Self {
            start: planned.start,
            end: planned.end,
            max_commit_time: planned.max_commit_time,
            observed_through: planned.observed_through,
            kind: planned.kind,
        }
    }
}

/// Plans a restore of the source to `target`.
///
/// # Errors
/// If the target lies in no window, is ambiguous, or the repository cannot be read.
pub async fn plan(
    store: &SourceStore,
    target: &Target,
    options: &PlanOptions,
) -> Result<Plan, Error> {
    let survey = Survey::read(store).await?;
    let only = Only {
        lineage: options.lineage,
        base: options.base,
    };
    let (cut, only) = resolve(store, &survey, target, only).await?;
    let mut choice = choose(&survey, cut, only, options.now)?;
    let boundary = boundary::find(store, &mut choice, cut).await?;
    if !choice.reaches(cut, boundary.first_discarded.is_some()) {
        return Err(outside(&survey, cut, options.now));
    }
    let not_before = not_before(cut, &choice, &boundary)?;

    let base_object = SourceObject::Manifest(choice.lineage, choice.base.id);
    let manifest: BaseManifest = store.get_json(&base_object).await?;
    let source: SourceFile = store.get_json(&SourceObject::Source).await?;
    let stored: u64 = stored_bytes(store, &choice).await?;
    let schema = options.into_schema.as_deref();
    let partial = match (options.tables.as_slice(), schema) {
        ([], None) => None,
        ([], Some(schema)) => {
            return Err(Error::InvalidSchema {
                name: schema.to_owned(),
                why: "only tables that are named come back under a schema",
            });
        }
        (tables, _) => {
            let (lineage, base) = (choice.lineage, choice.base.id);
            Some(partial::select(store, lineage, base, &manifest, tables, schema).await?)
        }
    };
    let chosen = partial.as_ref().map(Partial::names);
    let (mut bytes, mut base_stored) = (0, 0);
    let mut count = |manifest: &BaseManifest, chosen: Option<&HashSet<Name>>| {
        let archives = manifest.archives.iter();
        for archive in archives.filter(|archive| is_needed(archive, manifest, chosen)) {
            bytes += archive.bytes;
            base_stored += archive.stored_bytes;
        }
    };
    count(&manifest, chosen.as_ref());
    for loan in lent(store, choice.lineage, &manifest, chosen.as_ref()).await? {
        count(&loan.manifest, Some(&loan.tables));
    }
    let needed = choice.before.iter().chain(&choice.needed);
    let segments: Vec<PlannedSegment> = needed.map(|key| (*key).into()).collect();
    let following = choice.following.iter().take(FOLLOWING_MAX);
    let following: Vec<PlannedSegment> = following.map(|key| (*key).into()).collect();
    let stop = stop(cut, &choice, boundary, not_before);
    let mut not_covered = not_covered(&manifest, chosen.as_ref());
    not_covered.extend(survey.redefined(&choice.base, stop.sequences_at));
    Ok(Plan {
        source: store.id(),
        source_name: source.name,
        database: manifest.database.clone(),
        target: target.clone(),
        lineage: choice.lineage,
        base: PlannedBase {
            id: choice.base.id,
            consistent_point: choice.base.point,
            snapshot_time: choice.base.snapshot_time,
            server_version: manifest.server_version,
            bytes,
            stored_bytes: base_stored,
            lenders: choice.base.lenders.clone(),
        },
        segments,
        following,
        stored_bytes: base_stored + stored,
        stop,
        not_covered,
        partial,
        expected_seconds: expected_seconds(bytes, stored),
    })
}

/// A transaction or a name becomes a position; with it, the lineage it was found in.
async fn resolve(
    store: &SourceStore,
    survey: &Survey,
    target: &Target,
    only: Only,
) -> Result<(Cut, Only), Error> {
    let inclusive = target.inclusive;
    Ok(match &target.kind {
        TargetKind::Latest => (Cut::Latest, only),
        TargetKind::Time(time) => (
            Cut::Time {
                time: *time,
                inclusive,
            },
            only,
        ),
        TargetKind::Lsn(lsn) => (
            Cut::Lsn {
                lsn: *lsn,
                inclusive,
            },
            only,
        ),
        TargetKind::Xid(xid) => {
            let (lineage, lsn) = find_xid(store, survey, *xid, only).await?;
            (
                Cut::Lsn { lsn, inclusive },
                Only {
                    lineage: Some(lineage),
                    ..only
                },
            )
        }
        TargetKind::Name(name) => {
            let (lineage, lsn) = find_point(store, survey, name, only).await?;
            (
                Cut::Lsn { lsn, inclusive },
                Only {
                    lineage: Some(lineage),
                    ..only
                },
            )
        }
    })
}

async fn find_xid(
    store: &SourceStore,
    survey: &Survey,
    xid: Xid,
    only: Only,
) -> Result<(LineageId, Lsn), Error> {
    let mut found = Vec::new();
    for reach in reaches(survey) {
        let window = reach.window;
        if only.lineage.is_some_and(|id| id != window.lineage) {
            continue;
        }
        let relevant = |key: &&SegmentKey| key.end > window.from.lsn && !key.is_empty();
        for key in reach.run.iter().filter(relevant) {
            for (lsn, time) in boundary::find_xid(store, window.lineage, *key, xid).await? {
                // What the oldest base holds already cannot be told apart from it any more.
                if lsn >= window.from.lsn {
                    found.push((window.lineage, lsn, time));
                }
            }
        }
    }
    // One window may end in the segment in which the next begins.
    found.sort();
    found.dedup();
    match found.as_slice() {
        [] => Err(Error::UnknownTransaction { xid }),
        [(lineage, lsn, _)] => Ok((*lineage, *lsn)),
        several => Err(Error::AmbiguousTransaction {
            xid,
            candidates: several.iter().map(|(_, lsn, time)| (*lsn, *time)).collect(),
        }),
    }
}

async fn find_point(
    store: &SourceStore,
    survey: &Survey,
    name: &str,
    only: Only,
) -> Result<(LineageId, Lsn), Error> {
    let mut found = Vec::new();
    for lineage in &survey.listing.lineages {
        let points = lineage.points.iter().filter(|point| point.name() == name);
        found.extend(points.map(|point| (lineage.id, point.lsn)));
    }
    if found.is_empty() {
        for reach in reaches(survey) {
            let lineage = reach.window.lineage;
            for key in &reach.run {
                let lsns = boundary::find_point(store, lineage, *key, name.to_owned()).await?;
                found.extend(lsns.into_iter().map(|lsn| (lineage, lsn)));
            }
        }
    }
    found.retain(|(lineage, _)| only.lineage.is_none_or(|id| id == *lineage));
    found.sort();
    found.dedup();
    match found.as_slice() {
        [] => Err(Error::UnknownPoint {
            name: name.to_owned(),
        }),
        [point] => Ok(*point),
        several => Err(Error::AmbiguousPoint {
            name: name.to_owned(),
            candidates: several.iter().map(|(_, lsn)| *lsn).collect(),
        }),
    }
}

/// Since when the state that is restored was there, if it is not known to be that of the target.
///
/// # Errors
/// If it may be much older.
fn not_before(
    cut: Cut,
    choice: &Choice,
    boundary: &Boundary,
) -> Result<Option<PgTimestamp>, Error> {
    let (Some(unsure), Cut::Time { time, .. }) = (&boundary.unsure, cut) else {
        return Ok(None);
    };
    // The base does not have it.
    let since = unsure.first.time.max(choice.base.snapshot_time);
    if time.as_micros() <= since.as_micros().saturating_add(UNSURE_MAX_MICROS) {
        return Ok(Some(since));
    }
    let discarded = boundary.first_discarded.as_ref();
    let surely_later = discarded.filter(|discarded| discarded.until.is_none());
    Err(Error::TimeUnknown {
        since,
        until: surely_later.map_or(unsure.until, |later| unsure.until.min(later.time)),
        lsn: unsure.first.commit_lsn,
    })
}

fn stop(cut: Cut, choice: &Choice, boundary: Boundary, not_before: Option<PgTimestamp>) -> Stop {
    let unsure = boundary.unsure.map(|unsure| unsure.first);
    let first_discarded = unsure.or(boundary.first_discarded);
    let point = choice.base.point;
    let end = choice.needed.last().map_or(point, |last| last.end);
    // The target is never later than the first discarded commit.
    let sequences_at = match (cut, &first_discarded) {
        (Cut::Lsn { lsn, .. }, _) => lsn,
        (Cut::Time { .. } | Cut::Latest, Some(discarded)) => discarded.commit_lsn,
        (Cut::Time { .. } | Cut::Latest, None) => end,
    };
    Stop {
        last_kept: boundary.last_kept,
        first_discarded,
        not_before,
        sequences_at,
    }
}

async fn stored_bytes(store: &SourceStore, choice: &Choice) -> Result<u64, Error> {
    let needed = || choice.before.iter().chain(&choice.needed);
    let Some(first) = needed().next() else {
        return Ok(0);
    };
    let mut entries = store.segments_from(choice.lineage, first.start).await?;
    entries.extend(store.merged_segments(choice.lineage).await?);
    let needed: HashSet<&SegmentKey> = needed().collect();
    let stored = entries.iter().filter(|entry| match &entry.object {
        SourceObject::Segment(_, key) => needed.contains(key),
        _ => false,
    });
    Ok(stored.map(|entry| entry.bytes).sum())
}

/// What another base gives to one that borrows.
pub(crate) struct Loan {
    pub(crate) manifest: BaseManifest,
    /// Whose rows come from it, by the names that it has for them; never empty.
    pub(crate) tables: HashSet<Name>,
    /// What the borrower calls these.
    pub(crate) names: Arc<HashMap<Name, Name>>,
}

/// Where the rows come from that a base borrows, as far as they are wanted.
pub(crate) async fn lent(
    store: &SourceStore,
    lineage: LineageId,
    manifest: &BaseManifest,
    chosen: Option<&HashSet<Name>>,
) -> Result<Vec<Loan>, Error> {
    let mut loans = Vec::new();
    for borrowed in &manifest.borrowed {
        let own = manifest.tables.iter();
        let own = own.filter(|table| borrowed.tables.contains(&table.oid));
        let own: HashMap<Oid, Name> = own
            .map(|table| (table.oid, (table.schema.clone(), table.name.clone())))
            .filter(|(_, name)| chosen.is_none_or(|chosen| chosen.contains(name)))
            .collect();
        if own.is_empty() {
            continue;
        }
        let lender = SourceObject::Manifest(lineage, borrowed.base);
        let manifest: BaseManifest = store.get_json(&lender).await?;
        let there = manifest.tables.iter().filter_map(|table| {
            let name = (table.schema.clone(), table.name.clone());
            Some((name, own.get(&table.oid)?.clone()))
        });
        let names: HashMap<Name, Name> = there.collect();
        loans.push(Loan {
            tables: names.keys().cloned().collect(),
            names: Arc::new(names),
            manifest,
        });
    }
    Ok(loans)
}

/// Whether rows are loaded from an archive: from a table's own ones if the table is chosen, from the
/// main one if one of the chosen tables has no other.
pub(crate) fn is_needed(
    archive: &Archive,
    manifest: &BaseManifest,
    chosen: Option<&HashSet<Name>>,
) -> bool {
    let Some(chosen) = chosen else {
        return archive.name != ArchiveName::Globals;
    };
    match (archive.name, &archive.table) {
        (ArchiveName::Globals, _) => false,
        (ArchiveName::Rows(..), table) => table.as_ref().is_some_and(|name| chosen.contains(name)),
        (ArchiveName::Main, _) => {
            let others = manifest.archives.iter();
            let apart: HashSet<&Name> = others.filter_map(|other| other.table.as_ref()).collect();
            let tables = manifest.tables.iter().filter(|table| table.kind == 'r');
            let tables = tables.filter(|table| manifest.lender(table.oid).is_none());
            let mut names = tables.map(|table| (table.schema.clone(), table.name.clone()));
            names.any(|name| chosen.contains(&name) && !apart.contains(&name))
        }
    }
}

fn not_covered(manifest: &BaseManifest, chosen: Option<&HashSet<Name>>) -> Vec<NotCovered> {
    let is_chosen = |table: &&TableEntry| {
        let name = || (table.schema.clone(), table.name.clone());
        chosen.is_none_or(|chosen| chosen.contains(&name()))
    };
    let tables = manifest.tables.iter().filter(is_chosen).filter_map(|table| {
        let why = match table.protection {
            Protection::Full | Protection::Derived => return None,
            Protection::NoIdentity => {
                "as fresh as the base: it has no usable replica identity, so its changes are not captured"
            }
            Protection::Excluded => "as fresh as the base: the source's settings leave it out",
            Protection::Unlogged => "as fresh as the base: it is unlogged",
            Protection::NotOwned => {
                "as fresh as the base: the capturing role does not own it, so it is not published"
            }
            Protection::Extension => {
                "as fresh as the base if its extension marks it as configuration, else as CREATE EXTENSION makes it"
            }
            Protection::Foreign => "only its definition: its rows live on another server",
        };
        Some(NotCovered {
            object: sql::qualified(&table.schema, &table.name),
            why: why.to_owned(),
        })
    });
    let large_objects = (manifest.large_objects > 0 && chosen.is_none()).then(|| NotCovered {
        object: "large objects".to_owned(),
        why: format!(
            "as fresh as the base: {} of them, whose changes are not decoded",
            manifest.large_objects
        ),
    });
    tables.chain(large_objects).collect()
}

/// About 60 MB of archive a second with its indexes, and 2 MB of stored segments, which is some
/// 15 MB of NDJSON.
const fn expected_seconds(archive_bytes: u64, segment_bytes: u64) -> u64 {
    1 + archive_bytes / 60_000_000 + segment_bytes / 2_000_000
}

#[cfg(test)]
mod tests;
