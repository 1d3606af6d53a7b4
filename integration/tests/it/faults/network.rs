//! Between the service and the server.

use anyhow::{Context, Result, ensure};
use lastgood_integration::history::{self, History};
use lastgood_integration::{Proxy, Service, Storage, TestDatabase, seed, wait};
use rand::Rng;
use serde_json::{Value, json};

use super::{no_gap, shop, wait_reason, write};

async fn opened_more(proxy: &Proxy, than: u64) -> Result<()> {
    let more = async || Ok((proxy.opened() > than).then_some(()));
    wait::until("another connection", more).await
}

/// In a frame, in a transaction, in an answer, wherever the byte is at which it happens.
#[tokio::test(flavor = "multi_thread")]
async fn connections_are_cut_at_any_byte() -> Result<()> {
    let seed = seed::choose("connections_are_cut_at_any_byte");
    let mut rng = seed::rng(seed, "cuts");
    let service = Service::start(&Storage::local()?).await?;
    let database = TestDatabase::new(17).await?;
    let proxy = Proxy::start(("127.0.0.1", database.server.port())).await?;
    let url = database.url_by(proxy.port());
    let mut history =
        History::start_by(&service, database, &url, history::settings(), seed).await?;
    for _ in 0..3 {
        let (before, limit) = (proxy.opened(), rng.random_range(500..20_000));
        proxy.set(|network| network.cut_after = Some(limit));
        proxy.cut();
        // A connection is only cut if enough is written, and what is enough is drawn.
        let mut turns = 0..100;
        while proxy.opened() <= before + 2 && turns.next().is_some() {
            history.advance().await?;
        }
        opened_more(&proxy, before + 2).await?;
        history.record_loud().await?;
        proxy.set(|network| network.cut_after = None);
        history.advance().await?;
    }
    // One transaction that no connection can carry: it is begun again until one can.
    let database = TestDatabase {
        server: std::sync::Arc::clone(&history.database.server),
        name: history.database.name.clone(),
    };
    proxy.set(|network| network.cut_after = Some(300_000));
    proxy.cut();
    let before = proxy.opened();
    let rows = "INSERT INTO marks (what) SELECT md5(n::text) FROM generate_series(1, 40000) n";
    database.execute(rows).await?;
    opened_more(&proxy, before + 2).await?;
    proxy.set(|network| network.cut_after = None);
    history.record_quiet(None).await?;
    let name = history.name.clone();
    let finished = history.finish(&service).await?;
    no_gap(&service, &name).await?;
    finished.thinned(4).check(&service).await
}

/// The base fails and says so, capture goes on, the next one succeeds; of the first nothing is restored.
#[tokio::test(flavor = "multi_thread")]
async fn a_dump_is_cut_in_the_middle() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = TestDatabase::new(16).await?;
    let proxy = Proxy::start(("127.0.0.1", database.server.port())).await?;
    let ballast = "CREATE TABLE ballast (id int PRIMARY KEY, a text);
        INSERT INTO ballast SELECT n, md5(n::text) || md5((-n)::text) FROM generate_series(1, 40000) n";
    database.execute(ballast).await?;
    shop(&service, &database, &database.url_by(proxy.port())).await?;
    let path = "/api/v1/sources/shop/bases";
    proxy.set(|network| network.bytes_per_second = Some(500_000));
    let id = service.post(path, json!({})).await?["id"].clone();
    let this = |bases: &Value| -> Value {
        let items = bases["items"].as_array().cloned().unwrap_or_default();
        let found = items.into_iter().find(|base| base["id"] == id);
        found.unwrap_or_default()
    };
    let begun = |bases: &Value| this(bases)["bytes"].as_u64() > Some(0);
    wait::until_value("the dump to be under way", || service.get(path), begun).await?;
    write(&database, "while it is dumped").await?;
    proxy.set(|network| network.bytes_per_second = None);
    proxy.cut();
    let failed = |bases: &Value| this(bases)["status"] == "failed";
    let bases = wait::until_value("its end", || service.get(path), failed).await?;
    ensure!(this(&bases)["error"].is_string(), "{bases:#}");
    service.wait_protected("shop").await?;
    let again = async || Ok(Some(service.post(path, json!({})).await?));
    wait::until("another base", again).await?;
    service.wait_bases("shop", 2).await?;
    write(&database, "after").await?;
    // Until all is durable, the base may be ahead of the segments.
    history::check_latest(&service, "shop", &database).await?;
    no_gap(&service, "shop").await
}

/// Nothing comes, nothing is closed: for the time it lasts, and for good on the connections of before.
#[tokio::test(flavor = "multi_thread")]
async fn silence_is_told_and_a_forgotten_connection_is_given_up() -> Result<()> {
    let service = Service::start(&Storage::local()?).await?;
    let database = TestDatabase::new(18).await?;
    let proxy = Proxy::start(("127.0.0.1", database.server.port())).await?;
    let url = format!("{}?connect_timeout=2", database.url_by(proxy.port()));
    shop(&service, &database, &url).await?;

    proxy.set(|network| network.blackhole = true);
    write(&database, "in the silence").await?;
    // That it cannot be watched, or not be looked at, if a segment was about to be cut.
    wait_reason(&service, "shop", "the source ").await?;
    proxy.set(|network| network.blackhole = false);
    service.wait_protected("shop").await?;
    history::check_latest(&service, "shop", &database).await?;

    // The server has long given the walsender up; its farewell never arrives.
    proxy.freeze();
    let end = "SELECT count(pg_terminate_backend(active_pid)) FROM pg_replication_slots
               WHERE database = current_database() AND active";
    let ended: i64 = database.connect().await?.query_one(end, &[]).await?.get(0);
    ensure!(ended == 1, "{ended} walsenders");
    write(&database, "on a connection that nobody remembers").await?;
    history::check_latest(&service, "shop", &database)
        .await
        .with_context(|| service.log())?;
    no_gap(&service, "shop").await
}
