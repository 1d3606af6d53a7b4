//! Plans over repositories made by hand: clocks that step, targets at an edge.

use lastgood_proto::manifest::Version1;
use lastgood_proto::pgoutput;
use lastgood_proto::segment::{Header, SegmentWriter};
use lastgood_proto::{SystemId, TimelineId};
use lastgood_store::{Backend, Encryption, Repository, SealedBody};

use super::*;
use crate::error::Outside;

const LINEAGE: LineageId = LineageId::new(1, 1);

fn time(at: i64) -> PgTimestamp {
    PgTimestamp::from_micros(at * 1_000_000)
}

fn lsn(at: u64) -> Lsn {
    Lsn::new(at)
}

/// End, observed time, and commits: LSN and time.
type Sealed<'a> = (u64, i64, &'a [(u64, i64)]);

/// A commit: LSN, time, and until when it was made if that is not known.
type Commit = (u64, i64, Option<i64>);

/// A commit whose time is its own.
fn own((lsn, time): &(u64, i64)) -> Commit {
    (*lsn, *time, None)
}

/// A source with one base at LSN 15, whose clock then read `base_time`, and segments. The first
/// one starts at 10.
async fn source(base_time: i64, segments: &[Sealed<'_>]) -> SourceStore {
    let own = |(end, observed, commits): &Sealed<'_>| {
        (*end, *observed, commits.iter().map(own).collect())
    };
    let segments: Vec<_> = segments.iter().map(own).collect();
    receiving(base_time, &segments).await
}

/// As [`source`], of one that receives from another server: some commits have a moment until when they
/// were made.
async fn receiving(base_time: i64, segments: &[(u64, i64, Vec<Commit>)]) -> SourceStore {
    let repository = Repository::create_or_open_on(Backend::memory(), Encryption::Off)
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
    let lineage = lastgood_proto::manifest::LineageFile {
        v: Version1,
        id: LINEAGE,
        system_id: SystemId::new(7),
        timeline: TimelineId::new(1),
        slot: "s".to_owned(),
        publication: "p".to_owned(),
        publication_oid: lastgood_proto::Oid::new(1),
        server_version: 180_000,
        server_encoding: "UTF8".to_owned(),
        database: "shop".to_owned(),
        start: lsn(10),
        created: time(0),
        writer: None,
    };
    let object = SourceObject::Lineage(LINEAGE);
    store.put_json(&object, &lineage).await.unwrap();
    let base = BaseId::new(lsn(15), 1);
    let manifest = BaseManifest {
        v: Version1,
        id: base,
        consistent_point: lsn(15),
        fingerprint: String::new(),
        definitions: None,
        snapshot_time: time(base_time),
        started: time(base_time),
        finished: time(base_time),
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
    let object = SourceObject::Manifest(LINEAGE, base);
    store.put_json(&object, &manifest).await.unwrap();
    let mut start = lsn(10);
    for (end, observed, commits) in segments {
        let key = SegmentKey {
            start,
            end: lsn(*end),
            max_commit_time: None,
            observed_through: None,
            kind: SegmentKind::Captured,
        };
        let object = SourceObject::Segment(LINEAGE, key);
        let header = Header {
            source: id,
            lineage: LINEAGE,
            start,
            server: 180_000,
            encoding: Some("UTF8".to_owned()),
        };
        let sealer = store.sealer(&object, Vec::new(), 1).unwrap();
        let mut writer = SegmentWriter::new(sealer, &header).unwrap();
        for (commit_lsn, commit_time, until) in commits {
            let begin = pgoutput::Begin {
                commit_lsn: lsn(*commit_lsn),
                commit_time: time(*commit_time),
                xid: Xid::new(u32::try_from(*commit_lsn).unwrap()),
            };
            writer.begin_between(&begin, until.map(time)).unwrap();
            let commit = pgoutput::Commit {
                commit_lsn: begin.commit_lsn,
                end_lsn: lsn(commit_lsn + 1),
                commit_time: begin.commit_time,
            };
            writer.commit(&commit).unwrap();
        }
        let (sealer, footer) = writer.finish(lsn(*end), Some(time(*observed))).unwrap();
        let object = SourceObject::Segment(LINEAGE, footer.key(start));
        let body = SealedBody::Memory(sealer.finish().unwrap().into());
        store.put_sealed(&object, &body).await.unwrap();
        start = lsn(*end);
    }
    store
}

async fn planned(store: &SourceStore, kind: TargetKind, inclusive: bool) -> Result<Plan, Error> {
    let options = PlanOptions {
        now: time(100),
        lineage: None,
        base: None,
        tables: Vec::new(),
        into_schema: None,
    };
    plan(store, &Target::new(kind, inclusive), &options).await
}

/// The LSNs of the last transaction kept and the first one discarded.
fn edges(plan: &Plan) -> (Option<u64>, Option<u64>) {
    let at = |edge: &Option<Transaction>| edge.as_ref().map(|edge| edge.commit_lsn.as_u64());
    (at(&plan.stop.last_kept), at(&plan.stop.first_discarded))
}

fn why(planned: Result<Plan, Error>) -> Outside {
    match planned {
        Err(Error::OutsideWindows { why, .. }) => why,
        other => panic!("{other:?}"),
    }
}

/// A commit that the base has reads 50; then the clock was set back, and the base's own reads 30.
#[tokio::test]
async fn a_clock_set_back_before_the_base_stops_nothing_early() {
    let first: &[(u64, i64)] = &[(12, 50), (17, 31)];
    let check = async |segments: &[Sealed<'_>], at, edges_expected, needed| {
        let store = source(30, segments).await;
        let plan = planned(&store, TargetKind::Time(time(at)), true)
            .await
            .unwrap();
        assert_eq!(edges(&plan), edges_expected, "{segments:?} {at}");
        assert_eq!(plan.segments.len(), needed, "{segments:?} {at}");
        let kept_in = plan.stop.last_kept.map(|kept| kept.end_lsn);
        assert!(kept_in <= plan.segments.last().map(|segment| segment.end));
    };
    let mut segments = vec![
        (20, 50, first),
        (25, 50, &[] as &[(u64, i64)]),
        (30, 50, &[(22, 32), (27, 40)]),
        (40, 60, &[(33, 44), (35, 46), (37, 41)]),
    ];
    segments.remove(1);
    check(&segments, 45, (Some(33), Some(35)), 3).await;
    check(&segments, 40, (Some(27), Some(33)), 2).await;
    check(&segments, 31, (Some(17), Some(22)), 1).await;
    // An idle segment between, and one behind what is kept.
    let idle: &[(u64, i64)] = &[];
    let segments = [
        (20, 50, first),
        (22, 50, idle),
        (30, 50, &[(27, 40)]),
        (33, 50, idle),
        (40, 60, &[(35, 46)]),
    ];
    check(&segments, 45, (Some(27), Some(35)), 3).await;
    check(&segments, 39, (Some(17), Some(27)), 1).await;
    // Nothing durable is past it, and the clock has been.
    check(&segments, 55, (Some(35), None), 5).await;
}

/// The base's commit alone says nothing about what is durable after the base.
#[tokio::test]
async fn a_commit_within_the_base_makes_no_time_reachable() {
    let store = source(30, &[(20, 35, &[(12, 50), (17, 31)])]).await;
    let at = |at| planned(&store, TargetKind::Time(time(at)), true);
    assert_eq!(why(at(40).await), Outside::NotYetDurable);
    assert_eq!(edges(&at(35).await.unwrap()), (Some(17), None));
}

/// A source's clock was an hour ahead when it was looked at: its future is still ahead.
#[tokio::test]
async fn the_future_is_refused_whatever_was_observed() {
    let store = source(30, &[(20, 3600, &[(17, 31)])]).await;
    let at = |at| planned(&store, TargetKind::Time(time(at)), true);
    let Err(Error::OutsideWindows { why, nearest, .. }) = at(200).await else {
        panic!("planned");
    };
    assert_eq!(why, Outside::Future);
    // What can be had now, not what was claimed.
    assert_eq!(nearest[0].to.time, time(100));
    // Two clocks never agree to the second.
    assert_eq!(edges(&at(105).await.unwrap()), (Some(17), None));
}

/// The next commit record may start just where the run ends.
#[tokio::test]
async fn an_inclusive_lsn_at_the_very_end_is_not_known_yet() {
    let store = source(30, &[(20, 35, &[(17, 31)])]).await;
    let at = |at, inclusive| planned(&store, TargetKind::Lsn(lsn(at)), inclusive);
    assert_eq!(why(at(20, true).await), Outside::AtEnd);
    assert_eq!(why(at(21, true).await), Outside::NotYetDurable);
    assert_eq!(why(at(21, false).await), Outside::NotYetDurable);
    assert_eq!(edges(&at(20, false).await.unwrap()), (Some(17), None));
    assert_eq!(edges(&at(19, true).await.unwrap()), (Some(17), None));
}

/// What another server sent while nobody captured: between 100 and 250 s here, and behind that.
#[tokio::test]
async fn a_time_among_what_was_replicated_is_told_or_refused() {
    let all = vec![
        (20, 50, Some(51)),
        (25, 100, None),
        (30, 100, Some(300)),
        (32, 100, Some(300)),
        (35, 250, None),
        (40, 250, Some(301)),
        (45, 302, None),
    ];
    // In one segment, and each in its own.
    let one = vec![(50, 310, all.clone())];
    let each = all
        .iter()
        .map(|commit| (commit.0 + 1, commit.1, vec![*commit]));
    let each: Vec<_> = each.collect();
    for segments in [one, each] {
        let store = receiving(10, &segments).await;
        let options = PlanOptions {
            now: time(1000),
            lineage: None,
            base: None,
            tables: Vec::new(),
            into_schema: None,
        };
        let at = async |at| {
            let target = Target::new(TargetKind::Time(time(at)), true);
            plan(&store, &target, &options).await
        };
        let told = async |moment| {
            let plan = at(moment).await.unwrap();
            let (kept, discarded) = edges(&plan);
            (kept, discarded, plan.stop.not_before)
        };
        assert_eq!(told(50).await, (None, Some(20), Some(time(50))));
        assert_eq!(told(51).await, (Some(20), Some(25), None));
        assert_eq!(told(100).await, (Some(25), Some(30), Some(time(100))));
        assert_eq!(told(220).await, (Some(25), Some(30), Some(time(100))));
        let Err(Error::TimeUnknown {
            since,
            until,
            lsn: first,
        }) = at(221).await
        else {
            panic!("planned");
        };
        assert_eq!((since, until, first), (time(100), time(250), lsn(30)));
        // What committed here later says that those before are kept.
        assert_eq!(told(250).await, (Some(35), Some(40), Some(time(250))));
        assert_eq!(told(301).await, (Some(40), Some(45), None));
        // An LSN is exact.
        let target = Target::new(TargetKind::Lsn(lsn(30)), true);
        let exact = plan(&store, &target, &options).await.unwrap();
        assert_eq!(edges(&exact), (Some(30), Some(32)));
        assert_eq!(exact.stop.not_before, None);
    }
}

/// Where nothing is known before, the base does not have it.
#[tokio::test]
async fn what_was_replicated_came_after_the_base() {
    let store = receiving(90, &[(30, 95, vec![(20, -1000, Some(94))])]).await;
    let at = |at| planned(&store, TargetKind::Time(time(at)), true);
    let early = at(92).await.unwrap();
    assert_eq!(edges(&early), (None, Some(20)));
    assert_eq!(early.stop.not_before, Some(time(90)));
    assert_eq!(edges(&at(94).await.unwrap()), (Some(20), None));
}
