//! What may be merged, as a choice over names; and that no window, no plan and no restore can tell.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt as _, stream};
use lastgood_proto::key::{SegmentKind, ShapeKey, SourceObject};
use lastgood_proto::listing::{GivenUp, Listing};
use lastgood_proto::manifest::{BaseManifest, LineageFile, SourceFile, Version1};
use lastgood_proto::pgoutput;
use lastgood_proto::segment::{Header, SegmentWriter, SequenceSample};
use lastgood_proto::{BaseId, LineageId, Lsn, Oid, SourceId, SystemId, TimelineId, Xid};
use lastgood_store::{Backend, Encryption, MasterKey, Repository, SealedBody, SourceStore};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult,
};
use proptest::prelude::*;

use super::*;
use crate::boundary::{Splitter, Verdict};
use crate::choose::{Cut, Only, choose, outside};
use crate::survey::tests::{base, lineage, survey, time};
use crate::survey::{BaseInfo, Survey};
use crate::target::{Target, TargetKind};
use crate::{Error, PlanOptions, plan};

const LINEAGE: LineageId = LineageId::new(1, 0);
const HOUR_MICROS: i64 = 60 * MINUTE_MICROS;
const DAY_MICROS: i64 = 24 * HOUR_MICROS;

fn key(start: u64, end: u64, observed: i64) -> SegmentKey {
    SegmentKey {
        start: Lsn::new(start),
        end: Lsn::new(end),
        max_commit_time: Some(time(observed)),
        observed_through: Some(time(observed)),
        kind: SegmentKind::Captured,
    }
}

/// The segment that these become.
fn merged(parts: &[SegmentKey]) -> SegmentKey {
    SegmentKey {
        start: parts[0].start,
        max_commit_time: parts.iter().filter_map(|part| part.max_commit_time).max(),
        kind: SegmentKind::Merged,
        ..parts[parts.len() - 1]
    }
}

fn listed(segments: &[SegmentKey], shapes: &[u64]) -> LineageListing {
    let segments = segments
        .iter()
        .map(|key| SourceObject::Segment(LINEAGE, *key));
    let shapes = shapes.iter().map(|from| {
        let (from, to) = (Lsn::new(*from), Lsn::new(from + 1));
        SourceObject::Shape(LINEAGE, ShapeKey { from, to })
    });
    Listing::from_objects(segments.chain(shapes)).lineages[0].clone()
}

fn sizes(lineage: &LineageListing, each: u64) -> HashMap<SegmentKey, u64> {
    let all = lineage.all_segments();
    all.map(|key| match key.kind {
        SegmentKind::Captured => (*key, each),
        SegmentKind::Merged => (*key, each * (key.end.as_u64() - key.start.as_u64())),
    })
    .collect()
}

/// Passes until there is nothing more to merge, by names alone; every object there was by then.
fn merge_all(segments: &[SegmentKey], shapes: &[u64], ended: bool, each: u64) -> Vec<SegmentKey> {
    merge_from(segments, Lsn::default(), shapes, ended, each)
}

/// The same for who knows that retention has given up what is `before`.
fn merge_from(
    segments: &[SegmentKey],
    before: Lsn,
    shapes: &[u64],
    ended: bool,
    each: u64,
) -> Vec<SegmentKey> {
    let mut there: BTreeSet<SegmentKey> = segments.iter().copied().collect();
    let given_up = GivenUp {
        before,
        ..GivenUp::default()
    };
    loop {
        let all: Vec<SegmentKey> = there.iter().copied().collect();
        let lineage = LineageListing {
            ended,
            given_up: given_up.clone(),
            ..listed(&all, shapes)
        };
        let groups = groups(&lineage, &sizes(&lineage, each));
        if groups.is_empty() {
            return all;
        }
        there.extend(groups.iter().map(|group| merged(group)));
    }
}

/// One of each five seconds.
fn every_five_seconds(days: i64) -> Vec<SegmentKey> {
    let ends = (0_u64..).zip(1..=days * 17_280);
    ends.map(|(at, step)| key(at, at + 1, step * 5_000_000 - 1))
        .collect()
}

#[test]
fn hours_then_days_once_they_are_well_behind() {
    let captured = every_five_seconds(1);
    let count = |seconds: usize, ended| {
        let segments = &captured[..seconds / 5];
        let lineage = LineageListing {
            ended,
            ..listed(segments, &[])
        };
        groups(&lineage, &sizes(&lineage, 1))
            .iter()
            .map(Vec::len)
            .collect::<Vec<_>>()
    };
    let settled = 15 * 60;
    assert_eq!(count(3600 + settled, false), [] as [usize; 0]);
    assert_eq!(count(3600 + settled + 5, false), [720]);
    assert_eq!(count(7200 + settled, false), [720]);
    assert_eq!(count(7200 + settled + 5, false), [720, 720]);
    // Nothing more comes of it.
    assert_eq!(count(7200, true), [1440]);
}

/// The figure: a month at five seconds.
#[test]
fn a_month_at_five_seconds_is_a_few_hundred_objects() {
    let captured = every_five_seconds(30);
    let begun = std::time::Instant::now();
    let before = listed(&captured, &[]);
    let listing_took = begun.elapsed();
    let sizes = sizes(&before, 100);
    let begun = std::time::Instant::now();
    let groups = groups(&before, &sizes);
    let choice_took = begun.elapsed();
    let parts: usize = groups.iter().map(Vec::len).sum();
    let made = groups.iter().map(|group| merged(group));
    let left: Vec<SegmentKey> = made.chain(captured[parts..].iter().copied()).collect();
    let begun = std::time::Instant::now();
    let after = listed(&left, &[]);
    let after_took = begun.elapsed();
    println!(
        "a month at 5 s: {} segments become {}; joining the names takes {listing_took:?} before and \
         {after_took:?} after, choosing what to merge {choice_took:?}",
        captured.len(),
        left.len()
    );
    assert_eq!((captured.len(), groups.len()), (518_400, 29 + 23));
    // The last hour is too new.
    assert_eq!(after.segments.len(), 29 + 23 + 720);
    assert_eq!(after.durable_lsn(), before.durable_lsn());
    assert_eq!(after.observed_through(), before.observed_through());
}

/// No object is larger than it may be, and one that is large already is left alone.
#[test]
fn no_more_is_merged_than_one_object_is_to_hold() {
    let captured = every_five_seconds(2);
    for (each, parts_max) in [
        (MERGED_BYTES_MAX, 1),
        (MERGED_BYTES_MAX / 12, 12),
        (1000, 17_280),
    ] {
        let lineage = listed(&captured, &[]);
        let groups = groups(&lineage, &sizes(&lineage, each));
        let most = groups.iter().map(Vec::len).max().unwrap_or(1);
        assert_eq!(most, parts_max, "{each} bytes each");
        let there = merge_all(&captured, &[], false, each);
        let all = listed(&there, &[]);
        let largest = all
            .segments
            .iter()
            .map(|key| key.end.as_u64() - key.start.as_u64());
        let largest = largest.max().unwrap();
        assert!(largest == 1 || largest * each <= MERGED_BYTES_MAX);
    }
}

#[derive(Debug, Clone)]
struct History {
    segments: Vec<SegmentKey>,
    /// LSN and time.
    commits: Vec<(u64, i64)>,
    shapes: Vec<u64>,
    bases: Vec<BaseInfo>,
}

/// Segments of minutes to hours, commits whose times step back, changes of shape anywhere, bases before
/// and after.
fn history() -> impl Strategy<Value = History> {
    let step = (1_i64..90, 3_u64..30, -20_i64..5, 0_u8..10, 0_u8..8);
    prop::collection::vec(step, 1..40).prop_map(|steps| {
        let (mut lsn, mut clock) = (1000_u64, 0_i64);
        let (mut segments, mut commits, mut shapes) = (Vec::new(), Vec::new(), Vec::new());
        let mut points = vec![(lsn, clock)];
        for (minutes, length, disorder, changed, taken) in steps {
            clock += minutes * MINUTE_MICROS;
            let commit = clock + disorder * MINUTE_MICROS;
            commits.push((lsn + 1, commit));
            segments.push(SegmentKey {
                max_commit_time: Some(time(commit)),
                ..key(lsn, lsn + length, clock)
            });
            if taken == 0 {
                points.push((lsn + length / 2, clock));
            }
            lsn += length;
            if changed < 2 {
                // At its end, or within it.
                shapes.push(lsn - u64::from(changed));
            }
        }
        let bases = points.into_iter().map(|(point, clock)| BaseInfo {
            snapshot_time: time(clock),
            reach: shapes
                .iter()
                .find(|from| **from >= point)
                .map_or(Lsn::MAX, |from| Lsn::new(*from)),
            ..base(1, u32::try_from(point).unwrap())
        });
        History {
            bases: bases.collect(),
            segments,
            commits,
            shapes,
        }
    })
}

impl History {
    fn survey(&self, segments: &[SegmentKey]) -> Survey {
        let segments: Vec<_> = segments.iter().map(|key| (lineage(1), *key)).collect();
        survey(&segments, &self.bases)
    }

    /// Base, last kept and first discarded, or why not.
    fn outcome(
        &self,
        survey: &Survey,
        cut: Cut,
    ) -> Result<(BaseId, Vec<u64>, Option<u64>), String> {
        let choice = choose(survey, cut, Only::default(), time(i64::MAX))
            .map_err(|error| error.to_string())?;
        let mut splitter = Splitter::new(choice.base.id.consistent_point(), cut);
        let (mut kept, mut discarded) = (Vec::new(), None);
        for segment in choice.needed.iter().chain(&choice.following) {
            let within: Range<u64> = segment.start.as_u64()..segment.end.as_u64();
            for (lsn, at) in self.commits.iter().filter(|(lsn, _)| within.contains(lsn)) {
                match splitter.admit(Lsn::new(*lsn), time(*at), None) {
                    Verdict::InBase => {}
                    Verdict::Kept => {
                        assert!(discarded.is_none());
                        kept.push(*lsn);
                    }
                    Verdict::Discarded | Verdict::Unsure => {
                        discarded = discarded.or(Some(*lsn));
                    }
                }
            }
        }
        if !choice.reaches(cut, discarded.is_some()) {
            return Err(outside(survey, cut, time(i64::MAX)).to_string());
        }
        Ok((choice.base.id, kept, discarded))
    }
}

proptest! {
    #[test]
    fn no_window_and_no_target_changes(
        history in history(), ended: bool, each in prop_oneof![Just(1_u64), Just(MERGED_BYTES_MAX / 40)],
        gone: bool,
    ) {
        let before = history.survey(&history.segments);
        let mut there = merge_all(&history.segments, &history.shapes, ended, each);
        if gone {
            there = listed(&there, &[]).segments;
        }
        let after = history.survey(&there);
        prop_assert_eq!(before.windows(), after.windows());
        prop_assert_eq!(before.gaps(), after.gaps());
        let mut cuts = vec![Cut::Latest];
        for inclusive in [true, false] {
            for segment in &history.segments {
                cuts.push(Cut::Lsn { lsn: segment.end, inclusive });
            }
            for (lsn, at) in &history.commits {
                cuts.push(Cut::Lsn { lsn: Lsn::new(*lsn), inclusive });
                cuts.push(Cut::Time { time: time(*at), inclusive });
                cuts.push(Cut::Time { time: time(at + MINUTE_MICROS / 2), inclusive });
            }
        }
        for cut in cuts {
            prop_assert_eq!(history.outcome(&before, cut), history.outcome(&after, cut), "{:?}", cut);
        }
    }

    /// Two services may list at different times, see other sizes, and miss what retention took.
    #[test]
    fn two_services_never_fork(
        history in history(), sizes in (1_u64..3_000_000, 1_u64..3_000_000),
        seen: (prop::sample::Index, prop::sample::Index), ended: (bool, bool),
    ) {
        let merged = |index: prop::sample::Index, ended, each| {
            let part = &history.segments[index.index(history.segments.len())..];
            let first = history.segments[0].start;
            let before = part[0].start;
            let before = if before == first { Lsn::default() } else { before };
            merge_from(part, before, &history.shapes, ended, each)
        };
        let mut there = merged(seen.0, ended.0, sizes.0);
        there.extend(merged(seen.1, ended.1, sizes.1));
        there.extend(&history.segments);
        let lineage = listed(&there, &history.shapes);
        prop_assert_eq!(&lineage.beside, &[]);
        prop_assert_eq!(&lineage.orphans, &[]);
        prop_assert_eq!(lineage.durable_lsn(), history.segments.last().map(|last| last.end));
    }
}

/// A store that is killed at its nth change: nothing of it is done from then on, or it is done and
/// nobody is told.
#[derive(Debug)]
struct Mortal {
    inner: InMemory,
    left: AtomicUsize,
    answers_last: bool,
}

impl Mortal {
    fn new(answers_last: bool) -> Arc<Self> {
        Arc::new(Self {
            inner: InMemory::new(),
            left: AtomicUsize::new(usize::MAX),
            answers_last,
        })
    }

    /// Whether a change is done, and whether it is answered.
    fn fate(&self) -> (bool, bool) {
        let take =
            |left: usize| (left > 0).then(|| if left == usize::MAX { left } else { left - 1 });
        match self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take)
        {
            Ok(1) => (true, self.answers_last),
            Ok(_) => (true, true),
            Err(_) => (false, false),
        }
    }

    fn dead() -> object_store::Error {
        // Not one that is tried again.
        object_store::Error::PermissionDenied {
            path: String::new(),
            source: "killed".into(),
        }
    }
}

impl fmt::Display for Mortal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("mortal")
    }
}

#[async_trait]
impl ObjectStore for Mortal {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> object_store::Result<PutResult> {
        let (done, answered) = self.fate();
        if !done {
            return Err(Self::dead());
        }
        let result = self.inner.put_opts(path, payload, options).await;
        if answered { result } else { Err(Self::dead()) }
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> object_store::Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> object_store::Result<GetResult> {
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, object_store::Result<Path>>,
    ) -> BoxStream<'static, object_store::Result<Path>> {
        let (done, answered) = self.fate();
        if !done {
            return stream::once(async { Err(Self::dead()) }).boxed();
        }
        let deleted = self.inner.delete_stream(paths);
        match answered {
            true => deleted,
            false => deleted.map(|_| Err(Self::dead())).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> object_store::Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(
        &self,
        from: &Path,
        to: &Path,
        options: CopyOptions,
    ) -> object_store::Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

/// A source with a base at its start and three days of a segment every ten minutes, each with two
/// transactions, rows, a description, and a sample of the sequences; the server's version changes once.
async fn source(backend: Backend) -> SourceStore {
    let key = MasterKey::generate().unwrap();
    let repository = Repository::create_or_open_on(backend, Encryption::On(key))
        .await
        .unwrap();
    let id = SourceId::from_bytes([7; 8]);
    let store = repository.create_source(id).await.unwrap();
    let file = SourceFile {
        v: Version1,
        id,
        name: "shop".to_owned(),
        database: "shop".to_owned(),
        system_id: SystemId::new(7),
        created: time(0),
    };
    store.put_json(&SourceObject::Source, &file).await.unwrap();
    let file = LineageFile {
        v: Version1,
        id: LINEAGE,
        system_id: SystemId::new(7),
        timeline: TimelineId::new(1),
        slot: "s".to_owned(),
        publication: "p".to_owned(),
        publication_oid: Oid::new(1),
        server_version: 180_000,
        server_encoding: "UTF8".to_owned(),
        database: "shop".to_owned(),
        start: Lsn::new(100),
        created: time(0),
        writer: None,
    };
    store
        .put_json(&SourceObject::Lineage(LINEAGE), &file)
        .await
        .unwrap();
    let base = BaseId::new(Lsn::new(100), 1);
    let manifest = BaseManifest {
        v: Version1,
        id: base,
        consistent_point: Lsn::new(100),
        fingerprint: String::new(),
        definitions: None,
        snapshot_time: time(0),
        started: time(0),
        finished: time(0),
        server_version: 180_000,
        pg_dump_version: "18".to_owned(),
        database: "shop".to_owned(),
        encoding: "UTF8".to_owned(),
        locale: None,
        settings: Vec::new(),
        archives: Vec::new(),
        borrowed: Vec::new(),
        tables: Vec::new(),
        sequences: Vec::new(),
        large_objects: 0,
        snapshot_xmin: None,
    };
    store
        .put_json(&SourceObject::Manifest(LINEAGE, base), &manifest)
        .await
        .unwrap();
    for number in 0..3 * 144_u64 {
        put_segment(&store, number, if number < 200 { 180_000 } else { 180_001 }).await;
    }
    store
}

async fn put_segment(store: &SourceStore, number: u64, server: u32) {
    let start = 100 + number * 10;
    put_range(store, start..start + 10, server).await;
}

async fn put_range(store: &SourceStore, range: Range<u64>, server: u32) {
    let (start, end) = (range.start, range.end);
    let clock = |at: u64| i64::try_from((at - 100) / 10 + 1).unwrap() * 10 * MINUTE_MICROS - 1;
    let header = Header {
        source: store.id(),
        lineage: LINEAGE,
        start: Lsn::new(start),
        server,
        encoding: Some("UTF8".to_owned()),
    };
    let object = SourceObject::Segment(LINEAGE, key(start, start, 0));
    let sealer = store.sealer(&object, Vec::new(), 1).unwrap();
    let mut writer = SegmentWriter::new(sealer, &header).unwrap();
    let relation = pgoutput::Relation {
        oid: Oid::new(16_385),
        schema: "public".to_owned(),
        table: "t".to_owned(),
        identity: pgoutput::ReplicaIdentity::Full,
        columns: vec![pgoutput::Column {
            name: "a".to_owned(),
            type_oid: Oid::new(25),
            type_modifier: -1,
            key: true,
        }],
    };
    writer.relation(&relation, &["text".to_owned()]).unwrap();
    for at in range.filter(|at| [2, 6].contains(&(at % 10)) && at + 2 <= end) {
        let begin = pgoutput::Begin {
            commit_lsn: Lsn::new(at),
            commit_time: time(clock(at) - 1000),
            xid: Xid::new(u32::try_from(at).unwrap()),
        };
        writer.begin(&begin).unwrap();
        let text = at.to_string();
        let row = pgoutput::TupleBuf::new([pgoutput::Value::Text(text.as_bytes())]).unwrap();
        let (relation, new) = (relation.oid, row.as_tuple());
        writer.insert(&pgoutput::Insert { relation, new }).unwrap();
        let commit = pgoutput::Commit {
            commit_lsn: begin.commit_lsn,
            end_lsn: Lsn::new(at + 2),
            commit_time: begin.commit_time,
        };
        writer.commit(&commit).unwrap();
    }
    let sample = SequenceSample {
        schema: "public".to_owned(),
        name: "s".to_owned(),
        last_value: end.to_string(),
        is_called: true,
    };
    writer.sequences(Lsn::new(end), &[sample]).unwrap();
    let observed = Some(time(clock(end - 1)));
    let (sealer, footer) = writer.finish(Lsn::new(end), observed).unwrap();
    let object = SourceObject::Segment(LINEAGE, footer.key(Lsn::new(start)));
    let body = SealedBody::Memory(sealer.finish().unwrap().into());
    store.put_sealed(&object, &body).await.unwrap();
}

async fn pass(store: &SourceStore, grace: Duration, dry_run: bool) -> Result<Compaction, Error> {
    let spool = std::env::temp_dir();
    let options = CompactionOptions {
        grace,
        now: PgTimestamp::from_unix_micros(chrono::Utc::now().timestamp_micros()),
        dry_run,
        spool: &spool,
        merges_max: usize::MAX,
    };
    compact(store, &options).await
}

const NEVER: Duration = Duration::from_secs(3600);

/// Passes until nothing is left to do.
async fn settle(store: &SourceStore) {
    for _ in 0..10 {
        let done = pass(store, Duration::ZERO, false).await.unwrap();
        if done.made.is_empty() && done.deleted == Parts::default() {
            return;
        }
    }
    panic!("it does not come to an end");
}

async fn objects(store: &SourceStore) -> Vec<String> {
    let entries = store.objects().await.unwrap();
    entries
        .iter()
        .map(|entry| store.path(&entry.object))
        .collect()
}

/// What plans say to targets of all kinds; without names and sizes of segments, which may differ.
async fn plans(store: &SourceStore) -> BTreeMap<String, Result<String, String>> {
    let mut targets = vec![TargetKind::Latest];
    for lsn in (90..4500).step_by(397) {
        targets.push(TargetKind::Lsn(Lsn::new(lsn)));
    }
    for number in (0..3 * DAY_MICROS + HOUR_MICROS).step_by(21_600_000_001) {
        targets.push(TargetKind::Time(time(number)));
    }
    for xid in [102, 106, 2006, 4412, 5000] {
        targets.push(TargetKind::Xid(Xid::new(xid)));
    }
    let mut plans = BTreeMap::new();
    for kind in targets {
        for inclusive in [true, false] {
            let target = Target::new(kind.clone(), inclusive);
            let options = PlanOptions {
                now: time(10 * DAY_MICROS),
                lineage: None,
                base: None,
                tables: Vec::new(),
                into_schema: None,
            };
            let planned = plan(store, &target, &options).await;
            let planned = planned
                .map(|plan| format!("{:?} {:?} {:?}", plan.base.id, plan.stop, plan.lineage));
            plans.insert(
                target.to_string(),
                planned.map_err(|error| error.to_string()),
            );
        }
    }
    plans
}

/// What a service that was taken over stored beside its successor says the same, and goes with the rest.
#[tokio::test(flavor = "multi_thread")]
async fn what_came_late_changes_nothing() {
    let store = source(Backend::memory()).await;
    let before = plans(&store).await;
    // Within a segment, over some of them, and over the end of a day.
    let across = 1500..1555;
    for range in [200..205, 300..325, across.clone()] {
        put_range(&store, range, 180_000).await;
    }
    assert_eq!(plans(&store).await, before);
    settle(&store).await;
    assert_eq!(plans(&store).await, before);
    let lineage = &store.list().await.unwrap().lineages[0];
    assert_eq!(lineage.superseded, []);
    let beside = lineage
        .beside
        .iter()
        .map(|it| it.start.as_u64()..it.end.as_u64());
    assert_eq!(beside.collect::<Vec<_>>(), [across]);
}

#[tokio::test(flavor = "multi_thread")]
async fn three_days_are_merged_and_nothing_else_changes() {
    let store = source(Backend::memory()).await;
    let (before, windows) = (
        plans(&store).await,
        Survey::read(&store).await.unwrap().windows(),
    );
    let would = pass(&store, NEVER, true).await.unwrap();
    assert_eq!(
        objects(&store).await.len(),
        3 + 432,
        "a dry run writes nothing"
    );
    let done = pass(&store, NEVER, false).await.unwrap();
    // Two days and the hours of the third; the day of the change of version in two.
    assert_eq!((would.made.len(), done.made.len()), (2 + 23, 3 + 23));
    assert_eq!(
        done.made
            .iter()
            .map(|made| made.parts.segments)
            .sum::<u64>(),
        288 + 138
    );
    assert_eq!((done.waiting.segments, done.deleted.segments), (426, 0));
    // A restore that was planned before still finds what it needs.
    assert_eq!(objects(&store).await.len(), 3 + 432 + 26);
    assert_eq!(plans(&store).await, before);
    assert_eq!(pass(&store, NEVER, false).await.unwrap().made, []);
    let deleted = pass(&store, Duration::ZERO, false).await.unwrap().deleted;
    assert_eq!(deleted.segments, 426);
    assert_eq!(objects(&store).await.len(), 3 + 26 + 6);
    assert_eq!(plans(&store).await, before);
    assert_eq!(Survey::read(&store).await.unwrap().windows(), windows);
    // The third day ends.
    for number in 432..436 {
        put_segment(&store, number, 180_001).await;
    }
    settle(&store).await;
    let left = store.list().await.unwrap().lineages[0].segments.len();
    assert_eq!(
        left,
        2 + 1 + 1 + 4,
        "day one, two halves of day two, day three, what is new"
    );
    assert_eq!(objects(&store).await.len(), 3 + left);
}

/// Killed at each change it makes, answered or not: whatever is there then restores the same, and the
/// next pass ends where an undisturbed one does.
#[tokio::test(flavor = "multi_thread")]
async fn a_pass_may_be_killed_anywhere() {
    let undisturbed = source(Backend::memory()).await;
    settle(&undisturbed).await;
    let ends: Vec<SegmentKey> = undisturbed.list().await.unwrap().lineages[0]
        .segments
        .clone();
    for answers_last in [true, false] {
        let mortal = Mortal::new(answers_last);
        let store = source(Backend::from_object_store(Arc::clone(&mortal) as _, "")).await;
        let before = store.list().await.unwrap().lineages[0].clone();
        let expected = plans(&store).await;
        let mut kills = 0;
        // In steps that are no divisor of anything, so that every kind of place is met.
        for changes in (1..).map(|kill| 1 + kill * 7 % 41) {
            mortal.left.store(changes, Ordering::SeqCst);
            let done = pass(&store, Duration::ZERO, false).await;
            mortal.left.store(usize::MAX, Ordering::SeqCst);
            let now = store.list().await.unwrap().lineages[0].clone();
            assert_eq!(now.durable_lsn(), before.durable_lsn());
            assert_eq!(now.observed_through(), before.observed_through());
            assert!(
                now.orphans.is_empty() && now.beside.is_empty(),
                "after {changes}"
            );
            kills += usize::from(done.is_err());
            if done.is_ok_and(|done| done.made.is_empty() && done.deleted == Parts::default()) {
                break;
            }
        }
        assert!(kills > 10, "{kills} kills");
        assert_eq!(store.list().await.unwrap().lineages[0].segments, ends);
        assert_eq!(plans(&store).await, expected);
        assert_eq!(
            objects(&store).await.len(),
            objects(&undisturbed).await.len()
        );
    }
}

/// What a merged segment replaces is not deleted before it was read whole and says the same.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_deleted_for_a_merged_segment_that_says_something_else() {
    let memory = Arc::new(InMemory::new());
    let store = source(Backend::from_object_store(Arc::clone(&memory) as _, "")).await;
    pass(&store, NEVER, false).await.unwrap();
    let lineage = store.list().await.unwrap().lineages[0].clone();
    let one = *lineage.merged().last().unwrap();
    let parts = lineage.parts_of(&one).concat();
    same_content(&store, LINEAGE, one, &parts).await.unwrap();
    // A deletion that was cut short leaves some: they are compared too.
    same_content(&store, LINEAGE, one, &parts[3..7])
        .await
        .unwrap();
    let elsewhere = lineage.parts_of(lineage.merged().first().unwrap());
    let elsewhere = elsewhere.concat();
    for others in [&elsewhere[..], &parts[..parts.len() - 1]] {
        let all = [others, &elsewhere[..1]].concat();
        let differs = same_content(&store, LINEAGE, one, &all).await;
        assert!(matches!(differs, Err(Error::Merged { .. })), "{differs:?}");
    }
    // A flipped bit.
    let path = Path::parse(store.path(&SourceObject::Segment(LINEAGE, one))).unwrap();
    let mut bytes = memory
        .get_opts(&path, GetOptions::default())
        .await
        .unwrap()
        .bytes()
        .await
        .unwrap()
        .to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    memory
        .put_opts(&path, bytes.into(), PutOptions::default())
        .await
        .unwrap();
    let before = objects(&store).await;
    let refused = pass(&store, Duration::ZERO, false).await.unwrap_err();
    assert_eq!(refused.class(), lastgood_proto::Class::Corrupt, "{refused}");
    let after = objects(&store).await;
    for part in &parts {
        assert!(after.contains(&store.path(&SourceObject::Segment(LINEAGE, *part))));
    }
    assert!(after.len() < before.len(), "others are not in its way");
    // It can be made again: the parts are there.
    store
        .delete(&SourceObject::Segment(LINEAGE, one))
        .await
        .unwrap();
    settle(&store).await;
    assert!(store.list().await.unwrap().lineages[0].orphans.is_empty());
}
