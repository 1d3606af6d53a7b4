//! Named restore points.

use lastgood_pg::{Purpose, Session};
use lastgood_proto::Lsn;
use lastgood_proto::key::{PointKey, SourceObject};
use lastgood_proto::manifest::{PointFile, Version1};
use lastgood_store::SourceStore;

use crate::error::Error;
use crate::marks::{clock, wal_position};
use crate::source::Source;

/// Names this moment. Everything that has committed is before the point.
///
/// The name also goes into the source's WAL as a logical message, where the server decodes them
/// (14+), so that a restore finds it even if the point's own object is lost. It can be restored to
/// once the source's durable LSN has passed it.
///
/// # Errors
/// [`Error::PointName`], [`Error::NoLineage`], or whatever keeps the server or storage away.
pub async fn create_point(
    source: &Source,
    store: &SourceStore,
    name: &str,
) -> Result<PointFile, Error> {
    // Checked before anything is written anywhere.
    PointKey::new(Lsn::INVALID, name).map_err(|_| Error::PointName(name.to_owned()))?;
    source.writer.check(store).await?;
    let listing = store.list().await?;
    let lineage = listing
        .newest()
        .filter(|lineage| !lineage.ended)
        .ok_or(Error::NoLineage)?;
    let session = Session::connect(&source.connection, Purpose::Capture).await?;
    let client = session.client();
    client
        .execute(
            "SELECT pg_logical_emit_message(true, 'lastgood.point', $1::text)",
            &[&name],
        )
        .await
        .map_err(Error::sql("naming a restore point"))?;
    let time = clock(client).await?;
    // The next commit record may begin exactly at the end of the WAL, and it is after the point.
    let next = wal_position(client).await?;
    let lsn = Lsn::new(next.as_u64().saturating_sub(1));
    session.close().await;
    let file = PointFile {
        v: Version1,
        name: name.to_owned(),
        lsn,
        time,
    };
    let key = PointKey::new(lsn, name).map_err(|_| Error::PointName(name.to_owned()))?;
    store
        .put_json(&SourceObject::Point(lineage.id, key), &file)
        .await?;
    Ok(file)
}
