//! Lineages: opened, begun, ended.

use std::time::Duration;

use lastgood_pg::slot::{SlotInfo, drop_slot, slot_info, slots_with_prefix};
use lastgood_pg::{Purpose, ReplicationConnection, Session, SlotKind};
use lastgood_proto::key::SourceObject;
use lastgood_proto::listing::{LineageListing, Listing};
use lastgood_proto::manifest::{
    EndReason, LineageEnd, LineageFile, ShapeFile, SourceFile, Version1,
};
use lastgood_proto::{LineageId, Lsn, SystemId};
use lastgood_store::{SourceStore, failpoint};
use tokio::time::Instant;

use super::{Control, FirstBase, Opened, Source, goes_on, replication_options, slot};
use crate::base::Prepared;
use crate::error::{Error, chain};
use crate::events::{Event, Events, SourceStatus};
use crate::marks::clock;
use crate::overlap::Stored;
use crate::record::record_settings;
use crate::remove::{Removal, drop_slots};
use crate::resume::{Decision, ServerState, SlotState, decide, durable_end};
use crate::shape::Fingerprints;
use crate::{ddl, publication, random, resume};

/// How long a slot is waited for that somebody still reads from.
const SLOT_PATIENCE: Duration = Duration::from_secs(5);
const SLOT_POLL: Duration = Duration::from_millis(100);
/// How long a listing is taken to lag that does not show what the slot has confirmed.
const LISTING_PATIENCE: Duration = Duration::from_secs(10);
const LISTING_POLL: Duration = Duration::from_secs(1);

/// In words, if a server and database are not those on which the newest lineage was begun, and that has not ended:
/// then a capture from there would end it.
///
/// # Errors
/// If the repository cannot be read.
pub async fn elsewhere(
    store: &SourceStore,
    system_id: SystemId,
    database: &str,
) -> Result<Option<String>, Error> {
    let listing = store.list().await?;
    let Some(newest) = listing.newest().filter(|newest| !newest.ended) else {
        return Ok(None);
    };
    let file: LineageFile = store.get_json(&SourceObject::Lineage(newest.id)).await?;
    Ok(resume::elsewhere(&file, system_id, database))
}

/// Goes on with the newest lineage if nothing can have been missed, else begins a new one.
pub(super) async fn open(
    source: &Source,
    store: &SourceStore,
    control: Control,
    events: &Events,
) -> Result<Opened, Error> {
    // Before anything else, so that it is told while the other one streams.
    source.writer.may_claim(store, control.take_over).await?;
    let (session, source) = source.session(Purpose::Capture).await?;
    all_free(&session, &source).await?;
    let writer = source.writer.claim(store, control.take_over).await?;
    match record_settings(&source, store).await {
        Ok(()) => {}
        Err(error @ Error::TakenOver { .. }) => return Err(error),
        // No restore needs them.
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(error, "the settings are not in the repository");
        }
    }
    let options = replication_options(&source.settings, session.server_encoding());
    let mut connection = ReplicationConnection::connect(&source.connection, &options).await?;
    let listing = store.list().await?;
    let Some(newest) = listing.newest() else {
        return begin(
            &source, store, &session, connection, &listing, writer, events,
        )
        .await;
    };
    let file: LineageFile = store.get_json(&SourceObject::Lineage(newest.id)).await?;
    if newest.ended {
        let end: LineageEnd = store.get_json(&SourceObject::LineageEnd(newest.id)).await?;
        if !goes_on(end.reason, &source.settings, control) {
            return Err(Error::Ended {
                reason: end.reason,
                detail: end.detail,
            });
        }
        return begin(
            &source, store, &session, connection, &listing, writer, events,
        )
        .await;
    }
    // One that is made only now is noticed by the first look.
    ddl::ensure(&session, source.id, source.settings.ddl_trigger).await?;
    let server = server_state(&session, &mut connection, &file).await?;
    let (listing, decision) = decided(store, &file, &server, events).await?;
    let newest = still_open(&listing, &file)?;
    let (shape, ddl_trigger) = newest_shape(store, newest).await?;
    match decision {
        Decision::Resume { from, durable } => Ok(Opened {
            source,
            durable,
            stored: Stored {
                lineage: file.id,
                from,
                durable,
                segments: newest
                    .segments
                    .iter()
                    .filter(|it| it.end > from)
                    .copied()
                    .collect(),
            },
            observed_through: newest.observed_through(),
            latest_commit: newest.latest_commit(),
            shape,
            ddl_trigger,
            // The last segment may have been cut without a look, at a shutdown.
            looked_at: newest.segments.last().map_or(file.start, |last| last.start),
            connection,
            base: match newest.bases.is_empty() {
                true => FirstBase::Missing,
                false => FirstBase::Present,
            },
            file,
        }),
        Decision::Gap { reason, detail } => {
            let at = durable_end(newest, &file);
            end(store, newest, &file, at, reason, detail, events).await?;
            begin(
                &source, store, &session, connection, &listing, writer, events,
            )
            .await
        }
    }
}

/// What to do about the lineage by the listing of now. It is made after the slot was looked at: what was
/// confirmed by then is in the repository, and a position that was uploaded in between is not mistaken
/// for a gap. A store whose listings lag does not show it yet; it is looked at for a while.
async fn decided(
    store: &SourceStore,
    file: &LineageFile,
    server: &ServerState,
    events: &Events,
) -> Result<(Listing, Decision), Error> {
    let deadline = Instant::now() + LISTING_PATIENCE;
    loop {
        let listing = store.list().await?;
        let decision = decide(still_open(&listing, file)?, file, server);
        match decision {
            Decision::Gap {
                reason: EndReason::SlotAhead,
                detail,
            } if Instant::now() < deadline => {
                events.send(Event::Status(SourceStatus {
                    reason: Some(format!(
                        "{detail}; unless the listing of the object store lags: looking again"
                    )),
                    ..SourceStatus::starting()
                }));
                tokio::time::sleep(LISTING_POLL).await;
            }
            decision => return Ok((listing, decision)),
        }
    }
}

/// The lineage in a newer listing, unless another service was at work meanwhile.
fn still_open<'l>(listing: &'l Listing, file: &LineageFile) -> Result<&'l LineageListing, Error> {
    let newest = listing.newest();
    newest
        .filter(|newest| newest.id == file.id && !newest.ended)
        .ok_or_else(|| Error::Overtaken {
            lineage: file.id,
            listed: newest.map_or(file.start, |newest| durable_end(newest, file)),
        })
}

async fn server_state(
    session: &Session,
    connection: &mut ReplicationConnection,
    file: &LineageFile,
) -> Result<ServerState, Error> {
    let slot = free_slot(session, &file.slot).await?;
    let identity = connection.identify_system().await?;
    let slot = match slot {
        None => SlotState::Missing,
        Some(slot) if slot.is_lost() => SlotState::Unusable(
            slot.invalidation_reason
                .unwrap_or_else(|| "the WAL it needs was removed".to_owned()),
        ),
        Some(slot) if slot.plugin.as_deref() != Some("pgoutput") => {
            SlotState::Unusable("it is no slot of pgoutput".to_owned())
        }
        Some(slot) if slot.database.as_deref() != Some(identity.database.as_str()) => {
            SlotState::Unusable("it belongs to another database".to_owned())
        }
        Some(slot) => SlotState::Usable {
            confirmed: slot.confirmed_flush_lsn,
        },
    };
    Ok(ServerState {
        system_id: identity.system_id,
        timeline: identity.timeline,
        database: identity.database,
        wal_end: identity.flush_lsn,
        slot,
        publication: lastgood_pg::publication::oid(session, &file.publication).await?,
    })
}

/// The slot, once nobody reads from it: a reader of ours that died a moment ago is still being
/// noticed by the server. While one stays, nothing here is judged and nothing is written: it may be
/// another service, and healthy.
async fn free_slot(session: &Session, name: &str) -> Result<Option<SlotInfo>, Error> {
    let deadline = Instant::now() + SLOT_PATIENCE;
    loop {
        let slot = slot_info(session, name).await?;
        let Some(pid) = slot.as_ref().and_then(|slot| slot.active_pid) else {
            return Ok(slot);
        };
        if Instant::now() >= deadline {
            let slot = name.to_owned();
            return Err(Error::Busy { slot, pid });
        }
        tokio::time::sleep(SLOT_POLL).await;
    }
}

/// Nobody is robbed by accident: while somebody reads from a slot of this source, it is his.
async fn all_free(session: &Session, source: &Source) -> Result<(), Error> {
    let prefix = format!("lastgood_{}_", source.id);
    for slot in slots_with_prefix(session, &prefix).await? {
        if !slot.temporary {
            free_slot(session, &slot.name).await?;
        }
    }
    Ok(())
}

/// Publication, slot, snapshot, `lineage.json`, in this order.
async fn begin(
    source: &Source,
    store: &SourceStore,
    session: &Session,
    mut connection: ReplicationConnection,
    listing: &Listing,
    writer: u32,
    events: &Events,
) -> Result<Opened, Error> {
    let identity = connection.identify_system().await?;
    let mut now = clock(session.client()).await?;
    if !listing.described {
        let file = SourceFile {
            v: Version1,
            id: source.id,
            name: source.name.clone(),
            database: identity.database.clone(),
            system_id: identity.system_id,
            created: now,
        };
        store.put_json(&SourceObject::Source, &file).await?;
    }
    drop_stale_slots(session, source).await?;
    let published = publication::ensure(session, source.id, &source.settings).await?;
    ddl::ensure(session, source.id, source.settings.ddl_trigger).await?;
    for table in &published.busy {
        tracing::warn!(
            table,
            "a table is locked and will be captured from the next base on"
        );
    }
    let generation = listing
        .lineages
        .iter()
        .map(|lineage| lineage.id.generation())
        .max()
        .unwrap_or(0)
        .saturating_add(1);
    let id = LineageId::new(generation, random::u32()?);
    let slot = format!("lastgood_{}_{generation:08x}", source.id);
    // What keeps a base from beginning keeps nothing from being captured.
    let prepared = Prepared::new(source, session.server_version()).await;
    let created = slot::make(
        session,
        &mut connection,
        &slot,
        SlotKind::Permanent,
        source.settings.wal_budget_bytes,
        |reason| {
            events.send(Event::Status(SourceStatus {
                reason: Some(reason),
                ..SourceStatus::starting()
            }));
        },
    )
    .await?;
    failpoint!("lineage.slot");
    let held = async { prepared?.hold(&created).await };
    let base = match held.await {
        Ok(snapshot) => FirstBase::Snapshot(Box::new(snapshot)),
        Err(error) => {
            let error = chain(&error);
            tracing::warn!(error, "the first base does not begin with the capture");
            FirstBase::Missing
        }
    };
    now = now.max(clock(session.client()).await?);
    let file = LineageFile {
        v: Version1,
        id,
        system_id: identity.system_id,
        timeline: identity.timeline,
        slot,
        publication: publication::name(source.id),
        publication_oid: published.oid,
        server_version: session.server_version(),
        server_encoding: session.server_encoding().to_owned(),
        database: identity.database,
        start: created.consistent_point,
        created: now,
        writer: Some(writer),
    };
    store.put_json(&SourceObject::Lineage(id), &file).await?;
    failpoint!("lineage.file");
    tracing::info!(lineage = %id, start = %file.start, slot = file.slot, "lineage started");
    events.send(Event::LineageStarted {
        lineage: id,
        start: file.start,
    });
    Ok(Opened {
        source: source.clone(),
        durable: file.start,
        stored: Stored {
            lineage: id,
            from: file.start,
            durable: file.start,
            segments: Vec::new(),
        },
        observed_through: None,
        latest_commit: None,
        shape: None,
        ddl_trigger: None,
        looked_at: file.start,
        connection,
        base,
        file,
    })
}

/// Of the shape that was put on record last, and the event trigger that was there.
async fn newest_shape(
    store: &SourceStore,
    lineage: &LineageListing,
) -> Result<(Option<Fingerprints>, Option<String>), Error> {
    let Some(key) = lineage.shapes.iter().max_by_key(|key| key.to) else {
        return Ok((None, None));
    };
    let object = SourceObject::Shape(lineage.id, *key);
    let file: ShapeFile = store.get_json(&object).await?;
    let fingerprints = Fingerprints {
        shape: file.fingerprint,
        definitions: file.definitions,
    };
    Ok((Some(fingerprints), file.ddl_trigger))
}

/// Slots of lineages that ended, or were never begun: a start that died between making its slot
/// and writing `lineage.json` leaves one. A temporary slot belongs to a running base.
async fn drop_stale_slots(session: &Session, source: &Source) -> Result<(), Error> {
    let prefix = format!("lastgood_{}_", source.id);
    for slot in slots_with_prefix(session, &prefix).await? {
        if slot.temporary {
            continue;
        }
        free_slot(session, &slot.name).await?;
        tracing::info!(slot = slot.name, "dropping a slot of no open lineage");
        drop_slot(session, &slot.name).await?;
    }
    Ok(())
}

/// The lineage cannot be gone on with from what the stream has shown.
pub(super) async fn set_back(
    store: &SourceStore,
    file: &LineageFile,
    agreed: Lsn,
    detail: String,
    events: &Events,
) -> Result<(), Error> {
    let listing = store.list().await?;
    let Some(lineage) = listing.lineage(file.id).filter(|lineage| !lineage.ended) else {
        return Ok(());
    };
    let reason = EndReason::ServerBehind;
    end(store, lineage, file, agreed, reason, detail, events).await
}

/// Records the end, `at` which the lineage and the source part. The slot goes afterwards: a crash between the two leaves a stale slot, which
/// the next start drops, never a lineage that seems to go on.
pub(super) async fn end(
    store: &SourceStore,
    listing: &LineageListing,
    file: &LineageFile,
    at: Lsn,
    reason: EndReason,
    detail: String,
    events: &Events,
) -> Result<(), Error> {
    let end = LineageEnd {
        v: Version1,
        end: at,
        reason,
        detail: detail.clone(),
        // Of the source, as all times here: what was last seen of its clock.
        time: listing.observed_through().unwrap_or(file.created),
    };
    tracing::warn!(lineage = %file.id, ?reason, detail, "lineage ended");
    store
        .put_json(&SourceObject::LineageEnd(file.id), &end)
        .await?;
    failpoint!("lineage.end");
    events.send(Event::LineageEnded {
        lineage: file.id,
        end: end.end,
        reason,
        detail,
    });
    Ok(())
}

/// Drops the source's slots and ends the open lineage for `reason`, if there is one.
pub(super) async fn finish(
    source: &Source,
    store: &SourceStore,
    reason: EndReason,
    detail: String,
    events: &Events,
) -> Result<Removal, Error> {
    // The slot first: this is about the source's disk, and a lineage without its slot ends anyway.
    let session = Session::connect(&source.connection, Purpose::Capture).await?;
    let mut removal = Removal::default();
    drop_slots(&session, source, &mut removal).await?;
    let listing = store.list().await?;
    if let Some(newest) = listing.newest().filter(|lineage| !lineage.ended) {
        let file: LineageFile = store.get_json(&SourceObject::Lineage(newest.id)).await?;
        let at = durable_end(newest, &file);
        end(store, newest, &file, at, reason, detail, events).await?;
    }
    Ok(removal)
}
