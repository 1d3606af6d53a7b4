//! A base: `pg_dump` archives taken under one exported snapshot, straight into the repository.
//!
//! The slot gives the consistent point and exports the snapshot, which lives only as long as its
//! connection idles. So a session of ours, the *keeper*, takes the snapshot over and exports it
//! again: from then on the slot's connection is free (to stream, or to go and take its temporary
//! slot along), and no WAL is held back for the dumps however long they run.
//!
//! A TRUNCATE or a rewriting ALTER TABLE between the consistent point and the locks of `pg_dump`
//! shows in the dump and comes again in the stream. So once an archive begins, and its tables are
//! locked, they are compared with what the snapshot says of them; if they differ, the base is given
//! up and taken again. The keeper itself locks nothing: a TRUNCATE that waits for it would make
//! `pg_dump` wait too, and no deadlock detector sees that the keeper waits for `pg_dump`.
//!
//! The manifest is written last. Without it there is no base.

mod archive;
mod catalog;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lastgood_pg::dump::PgTools;
use lastgood_pg::{
    ConnectionConfig, CreatedSlot, Purpose, ReplicationConnection, Session, SlotKind,
};
use lastgood_proto::key::SourceObject;
use lastgood_proto::listing::LineageListing;
use lastgood_proto::manifest::{BaseManifest, LineageFile, Version1};
use lastgood_proto::{BaseId, LineageId, Lsn, PgTimestamp};
use lastgood_store::SourceStore;
use tokio_util::sync::CancellationToken;

use crate::error::Error;
use crate::events::{Event, Events};
use crate::publication;
use crate::random;
use crate::shape;
use crate::source::{Source, make_slot, replication_options};

/// How often a base is begun whose tables are being altered or locked.
const ATTEMPTS: u32 = 8;
/// Before the second attempt, and that much longer before each one more.
const PAUSE: Duration = Duration::from_millis(500);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// Takes a base of the running lineage by a temporary slot, beside capture.
///
/// Tables that appeared since the last base are published first, so that the new one covers them.
///
/// # Errors
/// [`Error::NoLineage`] if nothing is captured; whatever keeps a slot, a dump or an upload from
/// succeeding. Archives of a failed base stay without a manifest, for retention to sweep up.
pub async fn take_base(
    source: &Source,
    store: &SourceStore,
    events: Events,
    cancel: CancellationToken,
) -> Result<BaseManifest, Error> {
    let result = tokio::select! {
        () = cancel.cancelled() => Err(Error::Cancelled),
        result = take(source, store, &events) => result,
    };
    if let Err(error) = &result {
        events.send(Event::BaseFailed {
            error: crate::error::chain(error),
        });
    }
    result
}

async fn take(
    source: &Source,
    store: &SourceStore,
    events: &Events,
) -> Result<BaseManifest, Error> {
    let mut attempt = 1;
    loop {
        let listing = store.list().await?;
        let lineage = listing
            .newest()
            .filter(|lineage| !lineage.ended)
            .ok_or(Error::NoLineage)?;
        let file: LineageFile = store.get_json(&SourceObject::Lineage(lineage.id)).await?;
        let (source, snapshot) = temporary_slot(source, &file).await?;
        match dump(&source, store, &file, snapshot, events).await {
            Err(Error::CatalogMoved | Error::TablesLocked) if attempt < ATTEMPTS => {
                tokio::time::sleep(PAUSE * attempt).await;
                attempt += 1;
            }
            result => return result,
        }
    }
}

async fn temporary_slot(source: &Source, file: &LineageFile) -> Result<(Source, Snapshot), Error> {
    let (session, source) = source.session(Purpose::Base).await?;
    let published = publication::ensure(&session, source.id, &source.settings).await?;
    if published.oid != file.publication_oid {
        // The worker will find out as well and end the lineage; a base of it would not fit.
        return Err(Error::NoLineage);
    }
    let options = replication_options(&source.settings, &file.server_encoding);
    let mut connection = ReplicationConnection::connect(&source.connection, &options).await?;
    let name = format!("lastgood_{}_tmp_{:08x}", source.id, random::u32()?);
    let slot = make_slot(
        &session,
        &mut connection,
        &name,
        SlotKind::Temporary,
        source.settings.wal_budget_bytes,
        |reason| tracing::warn!(reason, "a base cannot begin yet"),
    )
    .await?;
    let snapshot = Snapshot::keep(&source.connection, &slot).await?;
    // The temporary slot goes with its connection; the keeper has the snapshot.
    connection.close().await.ok();
    session.close().await;
    Ok((source, snapshot))
}

/// An exported snapshot in the keeper's hands.
pub(crate) struct Snapshot {
    keeper: Session,
    /// What importers name.
    name: String,
    consistent_point: Lsn,
    taken: PgTimestamp,
}

impl Snapshot {
    /// Takes over the snapshot that a slot exported. Once this returns, the slot's connection may
    /// do anything.
    pub(crate) async fn keep(
        connection: &ConnectionConfig,
        slot: &CreatedSlot,
    ) -> Result<Self, Error> {
        let keeper = Session::connect(connection, Purpose::Base).await?;
        // The server's own name, hexadecimal digits and dashes: safe inside quotes.
        let import = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '{}'",
            slot.snapshot
        );
        let client = keeper.client();
        client
            .batch_execute(&import)
            .await
            .map_err(Error::sql("taking the snapshot over"))?;
        let row = client
            .query_one(
                "SELECT pg_export_snapshot(),
                        (extract(epoch FROM clock_timestamp()) * 1000000)::int8",
                &[],
            )
            .await
            .map_err(Error::sql("exporting the snapshot again"))?;
        let (name, micros): (String, i64) = (row.get(0), row.get(1));
        Ok(Self {
            keeper,
            name,
            consistent_point: slot.consistent_point,
            taken: PgTimestamp::from_unix_micros(micros),
        })
    }
}

/// Dumps everything under the snapshot and writes the manifest.
pub(crate) async fn dump(
    source: &Source,
    store: &SourceStore,
    lineage: &LineageFile,
    snapshot: Snapshot,
    events: &Events,
) -> Result<BaseManifest, Error> {
    let base = BaseId::new(snapshot.consistent_point, random::u32()?);
    let tools = PgTools::for_dump(&PgTools::discover().await, lineage.server_version)
        .map_err(lastgood_pg::Error::from)?;
    events.send(Event::BaseStarted {
        lineage: lineage.id,
        base,
    });
    tracing::info!(%base, lineage = %lineage.id, "base started");
    let client = snapshot.keeper.client();
    let version = snapshot.keeper.server_version();
    let fresh = Session::connect(&source.connection, Purpose::Base).await?;
    let mut contents = catalog::read(
        client,
        fresh.client(),
        version,
        &source.settings,
        lineage.publication_oid,
    )
    .await?;
    let publication = publication::name(source.id);
    let shape = shape::read(client, version, &publication, &source.settings).await?;
    catalog::measure(fresh.client(), &mut contents).await?;
    let started = clock(fresh.client()).await?;
    let (contents, fresh) = (Arc::new(contents), Arc::new(fresh));

    let place = archive::Place {
        tools: Arc::new(tools),
        connection: source.connection.clone(),
        store: store.clone(),
        lineage: lineage.id,
        base,
        snapshot: snapshot.name.clone(),
        contents: Arc::clone(&contents),
        fresh: Arc::clone(&fresh),
        dumped_bytes: Arc::new(AtomicU64::new(0)),
    };
    let expected_bytes = contents.tables.iter().map(|(entry, _)| entry.bytes).sum();
    let dumped_bytes = Arc::clone(&place.dumped_bytes);
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    let archives = archive::all(&place, &source.settings);
    tokio::pin!(archives);
    let archives = loop {
        tokio::select! {
            archives = &mut archives => break archives?,
            _ = ticks.tick() => events.send(Event::BaseProgress {
                base,
                dumped_bytes: dumped_bytes.load(Ordering::Relaxed),
                expected_bytes,
            }),
        }
    };
    // The snapshot of a keeper that was lost on the way could not be imported any more.
    client
        .batch_execute("COMMIT")
        .await
        .map_err(Error::sql("letting the snapshot go"))?;
    still_open(store, lineage.id).await?;
    let manifest = BaseManifest {
        v: Version1,
        id: base,
        consistent_point: snapshot.consistent_point,
        fingerprint: shape.fingerprint(),
        snapshot_time: snapshot.taken,
        started,
        finished: clock(fresh.client()).await?,
        server_version: version,
        pg_dump_version: place.tools.version().to_owned(),
        database: source.connection.database().to_owned(),
        encoding: snapshot.keeper.server_encoding().to_owned(),
        archives,
        tables: contents
            .tables
            .iter()
            .map(|(entry, _)| entry.clone())
            .collect(),
        sequences: contents.sequences.clone(),
        large_objects: contents.large_objects,
    };
    store
        .put_json(&SourceObject::Manifest(lineage.id, base), &manifest)
        .await?;
    tracing::info!(%base, lineage = %lineage.id, "base finished");
    events.send(Event::BaseFinished {
        lineage: lineage.id,
        manifest: Box::new(manifest.clone()),
    });
    Ok(manifest)
}

/// A base of a lineage that has ended meanwhile would never be reached by a segment.
async fn still_open(store: &SourceStore, id: LineageId) -> Result<(), Error> {
    let listing = store.list().await?;
    let open = |lineage: &LineageListing| !lineage.ended;
    match listing.lineage(id).is_some_and(open) {
        true => Ok(()),
        false => Err(Error::NoLineage),
    }
}

async fn clock(client: &tokio_postgres::Client) -> Result<PgTimestamp, Error> {
    let row = client
        .query_one(crate::marks::CLOCK, &[])
        .await
        .map_err(Error::sql("reading the clock"))?;
    Ok(PgTimestamp::from_unix_micros(row.get(0)))
}
