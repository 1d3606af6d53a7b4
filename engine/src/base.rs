//! A base: a dump under one exported snapshot, straight into the repository. `pg_dump` makes the archive of all
//! definitions and of small tables, and large tables are read by COPY, in parts (`rows`).
//!
//! The slot gives the consistent point and exports the snapshot, which lives only as long as its
//! connection idles. So sessions of ours that wait for it take it over, and with it lock the tables
//! ([`Snapshot`]): from then on the slot's connection is free (to stream, or to go and take its
//! temporary slot along), and no WAL is held back for the dumps however long they run. One is lent to the tools,
//! in the others tables are read.
//!
//! What came in the few milliseconds between the consistent point and the locks is noticed: the
//! tables are compared with what the snapshot says of them; if they differ, the base is given up and
//! taken again.
//!
//! The manifest is written last. Without it there is no base.

mod archive;
mod borrow;
mod catalog;
mod columns;
mod mark;
mod rows;
mod snapshot;
mod waits;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use lastgood_pg::publication::TableName;
use lastgood_pg::{Purpose, ReplicationConnection, SlotKind};
use lastgood_proto::key::SourceObject;
use lastgood_proto::manifest::{BaseManifest, Borrowed, LineageFile, TableEntry, Version1};
use lastgood_proto::{BaseId, LineageId, encoding};
use lastgood_store::{SourceStore, failpoint};
use tokio_util::sync::CancellationToken;

pub(crate) use borrow::is_usable;
pub(crate) use snapshot::{Prepared, Snapshot};

use crate::ddl;
use crate::definitions;
use crate::error::Error;
use crate::events::{Event, Events};
use crate::marks::clock;
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
    take_rows(source, store, Rows::All, events, cancel).await
}

/// Which rows a base has in its own archives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    All,
    /// Those of tables that were altered, or that are not captured; the others are borrowed from earlier
    /// bases of the lineage, as far as that spares much. It is taken in the midst of a migration as a rule: if it gives
    /// way, it ends as soon as somebody waits for it.
    Altered {
        gives_way: bool,
    },
}

/// As [`take_base`].
pub(crate) async fn take_rows(
    source: &Source,
    store: &SourceStore,
    rows: Rows,
    events: Events,
    cancel: CancellationToken,
) -> Result<BaseManifest, Error> {
    let result = tokio::select! {
        () = cancel.cancelled() => Err(Error::Cancelled),
        result = take(source, store, rows, &events) => result,
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
    rows: Rows,
    events: &Events,
) -> Result<BaseManifest, Error> {
    let mut attempt = 1;
    loop {
        // The last one does not: one has to be taken at last.
        let rows = match rows {
            Rows::Altered { .. } if attempt == ATTEMPTS => Rows::Altered { gives_way: false },
            rows => rows,
        };
        match Box::pin(attempt_once(source, store, rows, events)).await {
            Err(Error::CatalogMoved | Error::TablesLocked) if attempt < ATTEMPTS => {
                tokio::time::sleep(PAUSE * attempt).await;
                attempt += 1;
            }
            result => return result,
        }
    }
}

async fn attempt_once(
    source: &Source,
    store: &SourceStore,
    rows: Rows,
    events: &Events,
) -> Result<BaseManifest, Error> {
    source.writer.check(store).await?;
    let listing = store.list().await?;
    let lineage = listing
        .newest()
        .filter(|lineage| !lineage.ended)
        .ok_or(Error::NoLineage)?;
    let file: LineageFile = store.get_json(&SourceObject::Lineage(lineage.id)).await?;
    let (source, snapshot) = temporary_slot(source, &file, events).await?;
    dump(&source, store, &file, snapshot, rows, events).await
}

async fn temporary_slot(
    source: &Source,
    file: &LineageFile,
    events: &Events,
) -> Result<(Source, Snapshot), Error> {
    let (session, source) = source.session(Purpose::Base).await?;
    let published = publication::ensure(&session, source.id, &source.settings).await?;
    if published.oid != file.publication_oid {
        // The worker will find out as well and end the lineage; a base of it would not fit.
        return Err(Error::NoLineage);
    }
    let options = replication_options(&source.settings, &file.server_encoding);
    let mut connection = ReplicationConnection::connect(&source.connection, &options).await?;
    let name = format!("lastgood_{}_tmp_{:08x}", source.id, random::u32()?);
    let prepared = Prepared::new(&source, session.server_version()).await?;
    let slot = make_slot(
        &session,
        &mut connection,
        &name,
        SlotKind::Temporary,
        source.settings.wal_budget_bytes,
        |reason| {
            tracing::warn!(reason, "a base cannot begin yet");
            events.send(Event::BaseWaits { reason });
        },
    )
    .await?;
    failpoint!("base.slot");
    let snapshot = prepared.hold(&slot).await?;
    failpoint!("base.snapshot");
    // The temporary slot goes with its connection.
    connection.close().await.ok();
    session.close().await;
    Ok((source, snapshot))
}

/// Dumps under the snapshot and writes the manifest.
pub(crate) async fn dump(
    source: &Source,
    store: &SourceStore,
    lineage: &LineageFile,
    snapshot: Snapshot,
    rows: Rows,
    events: &Events,
) -> Result<BaseManifest, Error> {
    let base = BaseId::new(snapshot.consistent_point, random::u32()?);
    let tools = snapshot.tools.map_err(lastgood_pg::Error::from)?;
    events.send(Event::BaseStarted {
        lineage: lineage.id,
        base,
        follows_change: matches!(rows, Rows::Altered { .. }),
    });
    tracing::info!(%base, lineage = %lineage.id, "base started");
    let (keeper, fresh) = (snapshot.keeper, snapshot.fresh);
    let version = keeper.server_version();
    let encoding = keeper.server_encoding().to_owned();
    let mut contents = catalog::read(
        keeper.client(),
        fresh.client(),
        version,
        &source.settings,
        lineage.publication_oid,
        &snapshot.locked,
    )
    .await?;
    catalog::unchanged(fresh.client(), &contents).await?;
    for entry in &mut contents.tables {
        entry.bytes = snapshot.sizes.get(&entry.oid).copied().unwrap_or(0);
    }
    let publication = publication::name(source.id);
    let shape = shape::read(keeper.client(), version, &publication, &source.settings).await?;
    let definitions = definitions::under_snapshot(keeper.client()).await?;
    let fingerprints = shape.with(definitions).fingerprints();
    let newest = match rows {
        Rows::All => None,
        Rows::Altered { .. } => borrow::newest(store, lineage.id).await,
    };
    let mut borrowed = Vec::new();
    if let Some(newest) = newest {
        let now = borrow::Now {
            changes_bytes: borrow::changes_bytes(store, lineage.id, &newest).await?,
            client: keeper.client(),
            marks: &contents.marks,
            server_version: version,
            pg_dump_version: tools.version(),
            encoding: &encoding,
            snapshot_xmin: contents.snapshot_xmin,
            definitions: &fingerprints.definitions,
        };
        borrowed = now.borrows(&newest, &contents.tables).await?;
    }
    let started = clock(fresh.client()).await?;

    let is_borrowed = |entry: &&TableEntry| {
        let mut borrowed = borrowed.iter();
        borrowed.any(|lent| lent.tables.binary_search(&entry.oid).is_ok())
    };
    let (elsewhere, own): (Vec<&TableEntry>, Vec<&TableEntry>) =
        contents.tables.iter().partition(is_borrowed);
    let expected_bytes = own.iter().map(|entry| entry.bytes).sum();
    let big = own.into_iter();
    let big = big.filter(|entry| snapshot.big.contains(&entry.oid));
    let big: Vec<&TableEntry> = big.collect();
    let apart = big.iter().chain(&elsewhere);
    let apart = apart.map(|entry| TableName::new(&entry.schema, &entry.name));
    let apart = apart.collect();
    if !elsewhere.is_empty() {
        tracing::info!(%base, tables = elsewhere.len(), "borrows the rows of tables that were not altered");
    }
    let parts = rows::parts(
        keeper.client(),
        version,
        big,
        source.settings.big_table_bytes,
        encoding::sent_in(&encoding),
    );
    let parts = parts.await?;
    let main_pid = waits::pid(&keeper).await?;
    let mut hand_pids = Vec::new();
    let mut sessions = archive::Sessions {
        main: keeper.lend().await?,
        hands: Vec::new(),
    };
    for hand in snapshot.hands {
        hand_pids.push(waits::pid(&hand).await?);
        sessions.hands.push(hand);
    }
    let place = archive::Place {
        tools: Arc::new(tools),
        connection: source.connection.clone(),
        store: store.clone(),
        lineage: lineage.id,
        base,
        server_encoding: encoding.clone(),
        exclude_schemas: ddl::schemas(fresh.client()).await?,
        dumped_bytes: Arc::new(AtomicU64::new(0)),
    };
    let dumped_bytes = Arc::clone(&place.dumped_bytes);
    let mut ticks = tokio::time::interval(PROGRESS_INTERVAL);
    let archives = archive::all(&place, sessions, parts, apart, &source.settings);
    let gives_way = matches!(rows, Rows::Altered { gives_way: true });
    let waiting = waits::until_one_waits(fresh.client(), main_pid, &hand_pids, gives_way);
    tokio::pin!(archives, waiting);
    let archives = loop {
        // What is left of the archives ends with the sessions that it is made in.
        tokio::select! {
            archives = &mut archives => break archives?,
            error = &mut waiting => return Err(error),
            _ = ticks.tick() => events.send(Event::BaseProgress {
                base,
                dumped_bytes: dumped_bytes.load(Ordering::Relaxed),
                expected_bytes,
            }),
        }
    };
    failpoint!("base.archives");
    still_open(store, lineage.id, &borrowed).await?;
    let manifest = BaseManifest {
        v: Version1,
        id: base,
        consistent_point: snapshot.consistent_point,
        fingerprint: fingerprints.shape,
        definitions: fingerprints.definitions,
        snapshot_time: snapshot.taken,
        started,
        finished: clock(fresh.client()).await?,
        server_version: version,
        pg_dump_version: place.tools.version().to_owned(),
        database: source.connection.database().to_owned(),
        encoding,
        locale: Some(fresh.locale().await?),
        settings: catalog::settings(fresh.client()).await?,
        archives,
        borrowed,
        tables: contents.tables,
        sequences: contents.sequences,
        large_objects: contents.large_objects,
        snapshot_xmin: Some(contents.snapshot_xmin),
    };
    store
        .put_json(&SourceObject::Manifest(lineage.id, base), &manifest)
        .await?;
    failpoint!("base.manifest");
    tracing::info!(%base, lineage = %lineage.id, "base finished");
    events.send(Event::BaseFinished {
        lineage: lineage.id,
        manifest: Box::new(manifest.clone()),
    });
    Ok(manifest)
}

/// A base of a lineage that has ended meanwhile would never be reached by a segment; one whose lender has been
/// given up meanwhile, for a newer base, is taken again.
async fn still_open(store: &SourceStore, id: LineageId, lent: &[Borrowed]) -> Result<(), Error> {
    let listing = store.list().await?;
    let lineage = listing.lineage(id).filter(|lineage| !lineage.ended);
    let lineage = lineage.ok_or(Error::NoLineage)?;
    match borrow::has_lenders(lent, lineage) {
        true => Ok(()),
        false => Err(Error::CatalogMoved),
    }
}
