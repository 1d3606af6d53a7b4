//! Two services that want one source: one writes, and the other says so and touches nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use lastgood_engine::{
    Control, Error, Events, create_point, release_slot, take_base, watch_paused,
};
use lastgood_integration::TestDatabase;
use lastgood_proto::key::{Series, SourceObject};
use lastgood_proto::manifest::{LineageFile, Version1, WriterFile};
use lastgood_proto::{PgTimestamp, WriterId};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::kept::{Kept, writer};
use crate::running::{Fixture, Running, quick, wal_end};

const TABLE: &str = "CREATE TABLE t(id bigserial PRIMARY KEY, v text)";

async fn started() -> Result<(TestDatabase, tokio_postgres::Client, Fixture, Running)> {
    let database = TestDatabase::new(18).await?;
    let client = database.connect().await?;
    client.batch_execute(TABLE).await?;
    let mut fixture = Fixture::new(&database.url(), quick()).await?;
    let look = Duration::from_millis(100);
    fixture.source.writer = fixture.source.writer.clone().looking_every(look);
    let mut running = fixture.start();
    running.base().await?;
    Ok((database, client, fixture, running))
}

async fn taken_over(running: Running) -> Result<()> {
    let ended = running.ended().await?;
    ensure!(matches!(ended, Err(Error::TakenOver { .. })), "{ended:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_taken_over_stops_and_touches_nothing() -> Result<()> {
    let (_database, client, fixture, running) = started().await?;
    let number = fixture.store.newest(Series::Writers).await?;
    assert_eq!(number, Some(1));
    let id = fixture.newest().await?.id;
    let file: LineageFile = fixture.store.get_json(&SourceObject::Lineage(id)).await?;
    assert_eq!(file.writer, number);

    let other = WriterFile {
        v: Version1,
        writer: WriterId::from_bytes([7; 8]),
        host: "elsewhere".to_owned(),
        time: PgTimestamp::from_micros(0),
    };
    let object = SourceObject::Numbered(Series::Writers, 2);
    fixture.store.put_json(&object, &other).await?;
    // While it streams, and whenever it is started again.
    taken_over(running).await?;
    taken_over(fixture.start()).await?;
    let before = fixture.store.objects().await?;
    let (sender, _events) = mpsc::channel(10);
    let (source, store) = (&fixture.source, &fixture.store);
    let events = Events::new(sender);
    let cancel = CancellationToken::new();
    let refused = [
        release_slot(source, store).await.err(),
        create_point(source, store, "now").await.err(),
        take_base(source, store, events.clone(), cancel.clone())
            .await
            .err(),
        watch_paused(source, store, &events, &cancel).await.err(),
    ];
    for error in refused {
        let Some(error @ Error::TakenOver { .. }) = error else {
            anyhow::bail!("{error:?}");
        };
        ensure!(error.to_string().contains("elsewhere"), "{error}");
    }
    assert_eq!(fixture.store.objects().await?, before);
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE NOT temporary
                 AND database = current_database()";
    let slots: i64 = client.query_one(slots, &[]).await?.get(0);
    assert_eq!(slots, 1);

    // Asked to, it takes the source back, in the lineage that is there.
    let mut running = fixture.start_with(Control {
        take_over: true,
        ..Control::default()
    });
    client
        .batch_execute("INSERT INTO t(v) VALUES ('back')")
        .await?;
    running.durable(wal_end(&client).await?).await?;
    running.stop().await?;
    assert_eq!(fixture.store.newest(Series::Writers).await?, Some(3));
    let lineages = fixture.lineages().await?;
    ensure!(lineages.len() == 1 && !lineages[0].ended, "{lineages:?}");
    assert_eq!(
        crate::capture::inserted(&fixture.records(&lineages[0]).await?),
        ["1"]
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_goes_on_and_a_copy_of_its_folder_does_not() -> Result<()> {
    let (_database, client, mut fixture, running) = started().await?;
    running.stop().await?;
    let folder = Arc::new(Kept::default());
    let asked = Control {
        take_over: true,
        ..Control::default()
    };
    // From here on the folder is known.
    fixture.source.writer = writer(&folder);
    fixture.start_with(asked).stop_streaming().await?;
    let copy = Arc::new(Kept::clone(&folder));
    for _ in 0..2 {
        fixture.source.writer = writer(&folder);
        fixture.start().stop_streaming().await?;
    }
    fixture.source.writer = writer(&copy);
    taken_over(fixture.start()).await?;
    // A copy that comes first is the writer, and the original is not.
    let copy = Arc::new(Kept::clone(&folder));
    fixture.source.writer = writer(&copy);
    fixture.start().stop_streaming().await?;
    fixture.source.writer = writer(&folder);
    taken_over(fixture.start()).await?;
    fixture.source.writer = writer(&copy);
    let mut running = fixture.start();
    client
        .batch_execute("INSERT INTO t(v) VALUES ('a')")
        .await?;
    running.durable(wal_end(&client).await?).await?;
    running.stop().await?;
    ensure!(fixture.lineages().await?.len() == 1);
    Ok(())
}
