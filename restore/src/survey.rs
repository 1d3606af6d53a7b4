//! What a source's folder holds, as far as a plan needs it: the listing and the small files that
//! say when each base was taken and why each lineage ended.

use std::collections::BTreeMap;

use lastgood_proto::key::SourceObject;
use lastgood_proto::listing::Listing;
use lastgood_proto::manifest::{BaseManifest, DdlFile, LineageEnd, Protection, ShapeFile};
use lastgood_proto::{BaseId, LineageId, Lsn, PgTimestamp};
use lastgood_store::SourceStore;

use crate::Error;
use crate::plan::{DEFINITIONS, NotCovered};
use crate::retention::Unneeded;

/// A finished base and the server's clock right after its snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseInfo {
    pub lineage: LineageId,
    pub id: BaseId,
    /// What committed below is in the base. Its consistent point, or an earlier position: see [`reaches_back`].
    pub point: Lsn,
    /// Nothing that committed below `point` has a later commit time.
    pub snapshot_time: PgTimestamp,
    /// Up to here the tables and the publication were as they were under its snapshot: nothing at or past
    /// it is replayed on this base.
    pub reach: Lsn,
    /// When the transaction that begins there was committed, where it is known to have made the change.
    pub reach_time: Option<PgTimestamp>,
    /// Fingerprint of the definitions that rows do not depend on.
    pub definitions: Option<String>,
    /// Where the oldest of its rows are from: its own consistent point, unless it borrows some.
    pub rows_from: Lsn,
    /// The bases that it borrows rows from.
    pub lenders: Vec<BaseId>,
}

/// A change of the source's shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    pub shape: ShapeFile,
    /// Where exactly it lies, if that is known.
    pub ddl: Option<DdlFile>,
}

impl Change {
    /// What it consists of.
    fn detail(&self) -> &str {
        match &self.ddl {
            Some(ddl) => &ddl.detail,
            None => &self.shape.detail,
        }
    }

    /// Where of what is at `point` or behind something is altered first, and when that was committed: nothing of the change
    /// lies between.
    fn after(&self, point: Lsn) -> (Lsn, Option<PgTimestamp>) {
        let mut commits = self.ddl.iter().flat_map(|ddl| &ddl.commits);
        match commits.find(|commit| commit.lsn >= point) {
            Some(commit) => (commit.lsn, Some(commit.time)),
            None => (self.shape.from, None),
        }
    }

    /// Everything before is as it was.
    fn begin(&self) -> Lsn {
        self.after(Lsn::INVALID).0
    }

    /// What commits at or past it finds everything as it was seen then, and what committed below had done so by that
    /// time.
    fn end(&self) -> (Lsn, PgTimestamp) {
        let placed = self.ddl.as_ref();
        let placed = placed.and_then(|ddl| Some((ddl.commits.last()?.lsn.behind(), ddl.by)));
        placed.unwrap_or((self.shape.to, self.shape.time))
    }

    /// In words, if this is what lies at `lsn`, where the reach of a base ends; or around it, if that base is a moment for
    /// itself, taken in the midst of the change.
    pub(crate) fn at(&self, lsn: Lsn, is_moment: bool) -> Option<String> {
        let (shape, detail) = (&self.shape, &self.shape.detail);
        let mut commits = self.ddl.iter().flat_map(|ddl| &ddl.commits);
        let commit = commits.find(|commit| commit.lsn == lsn);
        if let (Some(commit), Some(ddl)) = (commit, &self.ddl) {
            let (time, told) = (commit.time, &ddl.detail);
            return Some(format!(
                "{detail} from {time} on ({told}, committed at {lsn})"
            ));
        }
        let is_here = self.begin() == lsn || is_moment && (self.begin()..shape.to).contains(&lsn);
        is_here.then(|| format!("{detail} between {} and {}", shape.from, shape.to))
    }
}

/// The input of every choice: pure data, read once.
#[derive(Debug, Clone)]
pub struct Survey {
    pub listing: Listing,
    pub bases: Vec<BaseInfo>,
    pub ends: BTreeMap<LineageId, LineageEnd>,
    pub changes: BTreeMap<LineageId, Vec<Change>>,
}

impl Survey {
    /// Lists the source's objects and reads each base's manifest and each lineage's end.
    ///
    /// # Errors
    /// If the repository cannot be read, or its keys contradict each other.
    pub async fn read(store: &SourceStore) -> Result<Self, Error> {
        Self::of(store, store.list().await?).await
    }

    /// Reads what a listing names.
    pub(crate) async fn of(store: &SourceStore, listing: Listing) -> Result<Self, Error> {
        let mut bases = Vec::new();
        let mut ends = BTreeMap::new();
        let mut changes: BTreeMap<LineageId, Vec<Change>> = BTreeMap::new();
        for lineage in &listing.lineages {
            let seen = changes.entry(lineage.id).or_default();
            for key in &lineage.shapes {
                let object = SourceObject::Shape(lineage.id, *key);
                let shape = store.get_json(&object).await?;
                let ddl = match lineage.ddl.contains(key) {
                    true => Some(store.get_json(&SourceObject::Ddl(lineage.id, *key)).await?),
                    false => None,
                };
                seen.push(Change { shape, ddl });
            }
            for id in &lineage.bases {
                let object = SourceObject::Manifest(lineage.id, *id);
                let manifest: BaseManifest = store.get_json(&object).await?;
                let point = id.consistent_point();
                let ends = seen.iter();
                let ends = ends.filter(|change| change.shape.ends(point, &manifest.fingerprint));
                let ends = ends.map(|change| change.after(point));
                let end = ends.min_by_key(|(lsn, _)| *lsn);
                let (reach, reach_time) = end.unwrap_or((Lsn::MAX, None));
                let is_looked_at = lineage.durable_lsn() >= Some(point);
                let back = match is_looked_at && borrows_all(&manifest) {
                    true => reaches_back(&manifest, seen, &bases),
                    false => None,
                };
                let (point, snapshot_time) = back.unwrap_or((point, manifest.snapshot_time));
                bases.push(BaseInfo {
                    lineage: lineage.id,
                    id: *id,
                    point,
                    snapshot_time,
                    reach,
                    reach_time,
                    definitions: manifest.definitions.clone(),
                    rows_from: manifest.rows_from(),
                    lenders: manifest.borrowed.iter().map(|one| one.base).collect(),
                });
            }
            if lineage.ended {
                let end = store
                    .get_json(&SourceObject::LineageEnd(lineage.id))
                    .await?;
                ends.insert(lineage.id, end);
            }
        }
        Ok(Self {
            listing,
            bases,
            ends,
            changes,
        })
    }

    /// Definitions that rows do not depend on come back as the base has them; whether they were others at
    /// `lsn`, or may have been.
    pub(crate) fn redefined(&self, base: &BaseInfo, lsn: Lsn) -> Option<NotCovered> {
        let definitions = base.definitions.as_ref()?;
        let point = base.point;
        let changes = self.changes.get(&base.lineage)?.iter();
        let since: Vec<&Change> = changes
            .filter(|change| change.shape.to > point && change.shape.from < lsn)
            .filter(|change| change.shape.definitions.as_ref() != Some(definitions))
            .collect();
        let last = since.last()?;
        let details: Vec<&str> = since.iter().map(|change| change.detail()).collect();
        Some(NotCovered {
            object: DEFINITIONS.to_owned(),
            why: format!(
                "what holds no rows (views, functions, grants, indexes and the like) is as it was at {}; until {} \
                 something was altered: {}",
                base.snapshot_time,
                last.shape.time,
                details.join("; ")
            ),
        })
    }

    /// What it will be once all of this is given up.
    pub(crate) fn without(&self, unneeded: &Unneeded) -> Self {
        let mut left = self.clone();
        left.listing = left.listing.without(unneeded);
        left.bases.retain(|base| {
            let given = unneeded.get(&base.lineage);
            given.is_none_or(|given| !given.bases.contains(&base.id))
        });
        left
    }
}

/// Whether no rows are in its own archives: all that are kept come with the changes since, as of whatever moment. (What
/// an extension marks as its configuration is no application's.)
fn borrows_all(manifest: &BaseManifest) -> bool {
    let tables = || manifest.tables.iter().filter(|table| table.kind == 'r');
    let mut own = tables().filter(|table| manifest.lender(table.oid).is_none());
    manifest.large_objects == 0
        && !manifest.borrowed.is_empty()
        && own.all(|table| table.protection == Protection::Extension)
}

/// A base that has no rows itself, only definitions, serves from where on these have held: right behind the last
/// change before it, or from the look that saw that. Only if everything between has been looked at.
fn reaches_back(
    manifest: &BaseManifest,
    changes: &[Change],
    bases: &[BaseInfo],
) -> Option<(Lsn, PgTimestamp)> {
    let point = manifest.consistent_point;
    let before = || changes.iter().filter(|change| change.begin() < point);
    let last = before().max_by_key(|change| change.shape.to)?;
    let is_last = last.shape.fingerprint == manifest.fingerprint
        && manifest.definitions.is_some()
        && last.shape.definitions == manifest.definitions;
    let lenders = manifest.borrowed.iter().map(|borrowed| {
        let mut bases = bases.iter();
        let lender = bases.find(|base| base.id == borrowed.base)?;
        Some((borrowed.base.consistent_point(), lender.snapshot_time))
    });
    let moments = lenders.chain([Some(last.end())]);
    let (from, time) = moments.collect::<Option<Vec<_>>>()?.into_iter().fold(
        (Lsn::INVALID, PgTimestamp::MIN),
        |(from, time), (lsn, by)| (from.max(lsn), time.max(by)),
    );
    (is_last && from < point).then_some((from, time))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use lastgood_proto::key::{SegmentKey, SegmentKind};

    pub(crate) fn lineage(generation: u32) -> LineageId {
        LineageId::new(generation, 0)
    }

    pub(crate) fn time(micros: i64) -> PgTimestamp {
        PgTimestamp::from_micros(micros)
    }

    /// A base taken at `lsn`; its clock reads the same number.
    pub(crate) fn base(generation: u32, lsn: u32) -> BaseInfo {
        BaseInfo {
            lineage: lineage(generation),
            id: BaseId::new(Lsn::new(u64::from(lsn)), 7),
            point: Lsn::new(u64::from(lsn)),
            snapshot_time: time(i64::from(lsn)),
            reach: Lsn::MAX,
            reach_time: None,
            definitions: None,
            rows_from: Lsn::new(u64::from(lsn)),
            lenders: Vec::new(),
        }
    }

    /// As [`base`], with rows of earlier ones.
    pub(crate) fn borrowing(generation: u32, lsn: u32, lenders: &[u32]) -> BaseInfo {
        let lenders = lenders.iter().map(|lender| base(generation, *lender));
        let lenders: Vec<BaseInfo> = lenders.collect();
        let own = base(generation, lsn);
        BaseInfo {
            rows_from: lenders
                .iter()
                .map(|lender| lender.rows_from)
                .fold(own.rows_from, Lsn::min),
            lenders: lenders.into_iter().map(|lender| lender.id).collect(),
            ..own
        }
    }

    /// A segment `(start, end]` observed through its end, with a commit at its end's time.
    pub(crate) fn segment(generation: u32, start: u32, end: u32) -> (LineageId, SegmentKey) {
        let key = SegmentKey {
            start: Lsn::new(u64::from(start)),
            end: Lsn::new(u64::from(end)),
            max_commit_time: Some(time(i64::from(end))),
            observed_through: Some(time(i64::from(end))),
            kind: SegmentKind::Captured,
        };
        (lineage(generation), key)
    }

    pub(crate) fn survey(segments: &[(LineageId, SegmentKey)], bases: &[BaseInfo]) -> Survey {
        let objects = segments
            .iter()
            .map(|(lineage, key)| SourceObject::Segment(*lineage, *key));
        let manifests = bases
            .iter()
            .map(|base| SourceObject::Manifest(base.lineage, base.id));
        Survey {
            listing: Listing::from_objects(objects.chain(manifests)),
            bases: bases.to_vec(),
            ends: BTreeMap::new(),
            changes: BTreeMap::new(),
        }
    }
}

#[cfg(test)]
mod placed {
    use super::tests::{base, time};
    use super::*;
    use lastgood_proto::manifest::{DdlCommit, Version1};

    fn change(from: u64, to: u64, fingerprint: &str, ddl: Option<(u64, u64)>) -> Change {
        let commit = |lsn| DdlCommit {
            lsn: Lsn::new(lsn),
            time: time(i64::try_from(lsn).unwrap()),
        };
        let (from, to) = (Lsn::new(from), Lsn::new(to));
        Change {
            shape: ShapeFile {
                v: Version1,
                from,
                to,
                fingerprint: fingerprint.to_owned(),
                definitions: Some("d".to_owned()),
                ddl_trigger: None,
                detail: String::new(),
                time: time(i64::try_from(to.as_u64()).unwrap()),
            },
            ddl: ddl.map(|(first, last)| DdlFile {
                v: Version1,
                from,
                to,
                commits: vec![commit(first), commit(last)],
                by: commit(last).time,
                detail: String::new(),
            }),
        }
    }

    /// Taken at 50, with rows of a base of 10.
    fn manifest() -> BaseManifest {
        let (id, lender) = (BaseId::new(Lsn::new(50), 7), BaseId::new(Lsn::new(10), 7));
        let json = serde_json::json!({
            "v": 1, "id": id, "consistent_point": Lsn::new(50), "fingerprint": "b", "definitions": "d",
            "snapshot_time": time(50), "started": time(50), "finished": time(50), "server_version": 180_000,
            "pg_dump_version": "18", "database": "d", "encoding": "UTF8", "archives": [],
            "borrowed": [{"base": lender, "tables": [1]}], "tables": [table(1)], "sequences": [],
            "large_objects": 0,
        });
        serde_json::from_value(json).unwrap()
    }

    fn table(oid: u32) -> serde_json::Value {
        let name = format!("t{oid}");
        serde_json::json!({
            "oid": oid, "schema": "public", "name": name, "kind": "r", "protection": "full", "bytes": 8192,
        })
    }

    #[test]
    fn a_base_without_rows_serves_from_the_last_change_on() {
        let first = change(0, 12, "a", None);
        let lender = base(1, 10);
        let from = |changes: &[Change], bases: &[BaseInfo]| {
            let back = reaches_back(&manifest(), changes, bases);
            back.map(|(lsn, time)| (lsn.as_u64(), time.as_micros()))
        };
        let bases = std::slice::from_ref(&lender);
        let last = change(20, 40, "b", Some((25, 30)));
        assert_eq!(from(&[first.clone(), last.clone()], bases), Some((31, 30)));
        let unplaced = change(20, 40, "b", None);
        assert_eq!(from(&[first.clone(), unplaced], bases), Some((40, 40)));
        // What the last one was is something else, or may have come after the base.
        let other = change(20, 40, "c", None);
        assert_eq!(from(&[first.clone(), other], bases), None);
        let later = |fingerprint, ddl| change(40, 60, fingerprint, ddl);
        let both = |later| from(&[first.clone(), last.clone(), later], bases);
        assert_eq!(both(later("b", Some((45, 46)))), Some((47, 46)));
        assert_eq!(both(later("b", Some((45, 58)))), None);
        assert_eq!(both(later("c", Some((57, 58)))), Some((31, 30)));
        assert_eq!(both(later("b", None)), None);
        let behind = change(55, 60, "c", None);
        let both = [first.clone(), last.clone(), behind];
        assert_eq!(from(&both, bases), Some((31, 30)));
        let mut redefined = last.clone();
        redefined.shape.definitions = Some("e".to_owned());
        assert_eq!(from(&[first.clone(), redefined], bases), None);
        // One that is gone lends nothing.
        assert_eq!(from(&[first, last], &[]), None);
    }

    /// One that was taken between two transactions of a change holds until the next.
    #[test]
    fn a_base_in_the_midst_of_a_change_reaches_up_to_what_follows() {
        let placed = change(20, 40, "c", Some((25, 35)));
        let after = |point| placed.after(Lsn::new(point)).0.as_u64();
        assert_eq!([22, 25, 26, 35, 36].map(after), [25, 25, 35, 35, 20]);
        let at = |lsn, is_moment| placed.at(Lsn::new(lsn), is_moment).is_some();
        assert!(at(25, false) && at(35, false) && !at(30, false));
        assert!(at(30, true) && !at(40, true) && !at(20, true));
        let unplaced = change(20, 40, "c", None);
        assert!(unplaced.at(Lsn::new(20), false).is_some());
        assert!(unplaced.at(Lsn::new(30), true).is_some());
    }

    #[test]
    fn rows_of_its_own_are_of_its_own_moment() {
        let mut manifest = manifest();
        assert!(borrows_all(&manifest));
        manifest
            .tables
            .push(serde_json::from_value(table(2)).unwrap());
        assert!(!borrows_all(&manifest));
        manifest.tables[1].protection = Protection::NoIdentity;
        assert!(!borrows_all(&manifest));
        manifest.tables[1].protection = Protection::Extension;
        assert!(borrows_all(&manifest));
        manifest.large_objects = 1;
        assert!(!borrows_all(&manifest));
    }
}
