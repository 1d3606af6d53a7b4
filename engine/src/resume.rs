//! Go on, or admit a gap: the decision at every start, as a pure function of what the repository
//! and the server say.
//!
//! A lineage may go on only if nothing can have been missed since its last durable segment: the
//! same cluster on the same timeline, with WAL that reaches past what is durable; the same slot,
//! not invalidated, whose confirmed position is not beyond what is durable; the same publication.
//! Anything else ends the lineage, with the reason on record. Nothing here papers over.
//!
//! A slot that has confirmed less than is durable is no gap by itself: the server crashed, or the
//! service did before it could confirm; or the source's storage was set back. The stream tells, see
//! [`crate::overlap`].

use lastgood_proto::listing::LineageListing;
use lastgood_proto::manifest::{EndReason, LineageFile};
use lastgood_proto::{Lsn, Oid, SystemId, TimelineId};

/// What the server says of itself and of what the lineage depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerState {
    pub system_id: SystemId,
    pub timeline: TimelineId,
    pub database: String,
    /// End of the flushed WAL.
    pub wal_end: Lsn,
    pub slot: SlotState,
    /// The publication's OID, if it exists.
    pub publication: Option<Oid>,
}

/// The lineage's slot on the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotState {
    Missing,
    /// It bears the name and is something else, or the server has invalidated it.
    Unusable(String),
    Usable {
        /// The server never sends again what commits below; none before the slot was first used.
        confirmed: Option<Lsn>,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Stream from `from`: what was confirmed, or the end of what is durable if that is the same.
    Resume { from: Lsn, durable: Lsn },
    /// The lineage ends here; a new one starts with a new base.
    Gap { reason: EndReason, detail: String },
}

/// In words, if it is another server or database that answers than a lineage was begun on.
pub(crate) fn elsewhere(file: &LineageFile, system_id: SystemId, database: &str) -> Option<String> {
    if system_id != file.system_id {
        return Some(format!(
            "system identifier {system_id} answers, the lineage was begun on {}",
            file.system_id
        ));
    }
    (database != file.database).then(|| {
        format!(
            "database \"{database}\" answers, the lineage was begun on \"{}\"",
            file.database
        )
    })
}

/// Compares a lineage with the server. `listing` is the lineage's own, `file` its `lineage.json`.
#[must_use]
pub fn decide(listing: &LineageListing, file: &LineageFile, server: &ServerState) -> Decision {
    let gap = |reason, detail: String| Decision::Gap { reason, detail };
    let durable = durable_end(listing, file);

    if let Some(detail) = elsewhere(file, server.system_id, &server.database) {
        return gap(EndReason::SystemChanged, detail);
    }
    if server.timeline != file.timeline {
        return gap(
            EndReason::TimelineChanged,
            format!(
                "the server is on timeline {}, the lineage was begun on {}",
                server.timeline, file.timeline
            ),
        );
    }
    if server.wal_end < durable {
        return gap(
            EndReason::ServerBehind,
            format!(
                "the server's WAL ends at {}, before {durable}, which is durable: its storage was \
                 set back",
                server.wal_end
            ),
        );
    }
    match server.publication {
        Some(oid) if oid == file.publication_oid => {}
        Some(oid) => {
            return gap(
                EndReason::PublicationChanged,
                format!(
                    "publication \"{}\" was made anew: its OID is {oid}, not {}",
                    file.publication, file.publication_oid
                ),
            );
        }
        None => {
            return gap(
                EndReason::PublicationChanged,
                format!("publication \"{}\" is gone", file.publication),
            );
        }
    }
    match &server.slot {
        SlotState::Missing => gap(
            EndReason::SlotMissing,
            format!("slot \"{}\" is gone", file.slot),
        ),
        SlotState::Unusable(why) => gap(
            EndReason::SlotLost,
            format!("slot \"{}\" cannot be used: {why}", file.slot),
        ),
        SlotState::Usable {
            confirmed: Some(confirmed),
        } if *confirmed > durable => gap(
            EndReason::SlotAhead,
            format!(
                "slot \"{}\" has confirmed {confirmed}, beyond {durable}, which is durable: it was \
                 recreated, or somebody else reads from it",
                file.slot
            ),
        ),
        SlotState::Usable { confirmed } => {
            // What was deleted from the head of the chain cannot be compared.
            let stored = listing.segments.first().map_or(file.start, |it| it.start);
            let from = confirmed.unwrap_or(durable).max(stored);
            Decision::Resume { from, durable }
        }
    }
}

/// End of the contiguous durable run, the lineage's start before its first segment.
///
/// A chain that does not begin at the lineage's start lost its head to retention or by hand; its
/// end is where capture goes on all the same.
#[must_use]
pub fn durable_end(listing: &LineageListing, file: &LineageFile) -> Lsn {
    listing.durable_lsn().unwrap_or(file.start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lastgood_proto::key::{SegmentKey, SegmentKind};
    use lastgood_proto::listing::GivenUp;
    use lastgood_proto::manifest::Version1;
    use lastgood_proto::{LineageId, PgTimestamp};

    fn fixture(segments: &[(u64, u64)]) -> (LineageListing, LineageFile, ServerState) {
        let id = LineageId::new(1, 7);
        let listing = LineageListing {
            id,
            described: true,
            ended: false,
            bases: Vec::new(),
            points: Vec::new(),
            retired: Vec::new(),
            given_up: GivenUp::default(),
            shapes: Vec::new(),
            ddl: Vec::new(),
            segments: segments
                .iter()
                .map(|(start, end)| SegmentKey {
                    start: Lsn::new(*start),
                    end: Lsn::new(*end),
                    max_commit_time: None,
                    observed_through: None,
                    kind: SegmentKind::Captured,
                })
                .collect(),
            orphans: Vec::new(),
            beside: Vec::new(),
            superseded: Vec::new(),
        };
        let file = LineageFile {
            v: Version1,
            id,
            system_id: SystemId::new(42),
            timeline: TimelineId::new(1),
            slot: "lastgood_x_00000001".to_owned(),
            publication: "lastgood_x".to_owned(),
            publication_oid: Oid::new(16400),
            server_version: 150_018,
            server_encoding: "UTF8".to_owned(),
            database: "shop".to_owned(),
            start: Lsn::new(100),
            created: PgTimestamp::from_micros(0),
            writer: None,
        };
        let server = ServerState {
            system_id: file.system_id,
            timeline: file.timeline,
            database: file.database.clone(),
            wal_end: Lsn::new(1000),
            slot: SlotState::Usable {
                confirmed: Some(Lsn::new(100)),
            },
            publication: Some(file.publication_oid),
        };
        (listing, file, server)
    }

    #[track_caller]
    fn check(
        segments: &[(u64, u64)],
        change: impl FnOnce(&mut ServerState),
    ) -> Result<(u64, u64), EndReason> {
        let (listing, file, mut server) = fixture(segments);
        change(&mut server);
        match decide(&listing, &file, &server) {
            Decision::Resume { from, durable } => Ok((from.as_u64(), durable.as_u64())),
            Decision::Gap { reason, detail } => {
                assert!(!detail.is_empty());
                Err(reason)
            }
        }
    }

    fn confirmed(lsn: u64) -> SlotState {
        SlotState::Usable {
            confirmed: Some(Lsn::new(lsn)),
        }
    }

    #[test]
    fn goes_on_from_the_durable_end() {
        assert_eq!(check(&[], |_| {}), Ok((100, 100)));
        let segments = [(100, 300)];
        let whole = Ok((300, 300));
        assert_eq!(check(&segments, |s| s.slot = confirmed(300)), whole);
        assert_eq!(
            check(&segments, |s| s.slot =
                SlotState::Usable { confirmed: None }),
            whole
        );
        assert_eq!(
            check(&segments, |s| s.wal_end = Lsn::new(300)),
            Ok((100, 300))
        );
    }

    #[test]
    fn what_is_sent_again_is_compared() {
        let segments = [(100, 200), (200, 300)];
        assert_eq!(
            check(&segments, |s| s.slot = confirmed(200)),
            Ok((200, 300))
        );
        // A chain without its head.
        let segments = [(200, 300)];
        assert_eq!(
            check(&segments, |s| s.slot = confirmed(100)),
            Ok((200, 300))
        );
    }

    #[test]
    fn a_slot_ahead_is_a_gap() {
        assert_eq!(
            check(&[], |s| s.slot = confirmed(101)),
            Err(EndReason::SlotAhead)
        );
        assert_eq!(
            check(&[(100, 300)], |s| s.slot = confirmed(301)),
            Err(EndReason::SlotAhead)
        );
    }

    #[test]
    fn every_other_change_is_a_gap() {
        let segments = [(100, 300)];
        let gap = |change: fn(&mut ServerState)| check(&segments, change).unwrap_err();
        assert_eq!(gap(|s| s.slot = SlotState::Missing), EndReason::SlotMissing);
        assert_eq!(
            gap(|s| s.slot = SlotState::Unusable("wal_removed".to_owned())),
            EndReason::SlotLost
        );
        assert_eq!(gap(|s| s.publication = None), EndReason::PublicationChanged);
        assert_eq!(
            gap(|s| s.publication = Some(Oid::new(16401))),
            EndReason::PublicationChanged
        );
        assert_eq!(
            gap(|s| s.system_id = SystemId::new(43)),
            EndReason::SystemChanged
        );
        assert_eq!(
            gap(|s| s.database = "other".to_owned()),
            EndReason::SystemChanged
        );
        assert_eq!(
            gap(|s| s.timeline = TimelineId::new(2)),
            EndReason::TimelineChanged
        );
        assert_eq!(gap(|s| s.wal_end = Lsn::new(299)), EndReason::ServerBehind);
        // The deeper cause is named first: a new cluster has no slot either.
        assert_eq!(
            gap(|s| {
                s.system_id = SystemId::new(43);
                s.slot = SlotState::Missing;
                s.publication = None;
            }),
            EndReason::SystemChanged
        );
    }
}
