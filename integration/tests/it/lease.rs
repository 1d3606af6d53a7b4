//! Two services that want one source: the repository says who writes, and the other one stops.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use lastgood_integration::history::{self, History};
use lastgood_integration::{Proxy, Service, Storage, TestDatabase, seed, wait};
use reqwest::Method;
use serde_json::{Value, json};

const TAKEN_OVER: &str = "took this source over";

async fn wait_status(service: &Service, name: &str, status: &str, reason: &str) -> Result<Value> {
    let is = |source: &Value| {
        source["status"] == status && source["reason"].as_str().unwrap_or("").contains(reason)
    };
    let what = format!("{status} ({reason})");
    let found = wait::until_value(&what, || service.source(name), is).await;
    found.with_context(|| service.log())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_loses_its_connection_is_taken_over_and_takes_back_when_asked() -> Result<()> {
    let storage = Storage::local()?;
    let seed = seed::choose("who_loses_its_connection_is_taken_over_and_takes_back_when_asked");
    let first = Service::start(&storage).await?;
    let mut history = History::start(&first, TestDatabase::new(18).await?, seed).await?;
    let name = history.name.clone();
    let (url, port) = (history.database.url(), history.database.server.port());
    let proxy = Proxy::start(("127.0.0.1", port)).await?;
    let through = url.replace(&format!(":{port}/"), &format!(":{}/", proxy.port()));
    let path = format!("/api/v1/sources/{name}");
    let moved = json!({"connection": through});
    let moved = first.request(Method::PATCH, &path, Some(&moved)).await?;
    let id = moved.ok()?["id"].clone();
    wait_status(&first, &name, "streaming", "").await?;
    history.advance().await?;
    history.record_loud().await?;

    // Nobody is robbed: while the first one reads, the second one waits.
    let second = Service::builder()
        .storage(&storage)
        .key(&first.key_file())
        .start()
        .await?;
    let mut settings = history::settings();
    settings["id"] = id;
    second.add_source(&name, &url, settings).await?;
    wait_status(&second, &name, "degraded", "is being read").await?;
    proxy.set(|network| network.refuse = true);
    proxy.cut();
    wait_status(&second, &name, "streaming", "").await?;
    history.advance().await?;
    history.record_loud().await?;
    proxy.set(|network| network.refuse = false);
    let source = wait_status(&first, &name, "failed", TAKEN_OVER).await?;
    ensure!(
        source["next"] == format!("lastgood source resume {name}"),
        "{source:#}"
    );

    // It touches nothing any more, also after a restart.
    first.terminate().await?;
    first.start_again().await?;
    wait_status(&first, &name, "failed", TAKEN_OVER).await?;
    for (method, path) in [
        (Method::DELETE, path.clone()),
        (Method::POST, format!("{path}/retention")),
        (Method::POST, format!("{path}/points")),
    ] {
        let body = path.ends_with("points").then(|| json!({"name": "here"}));
        let refused = first.request(method, &path, body.as_ref()).await?;
        ensure!(refused.code() == "source_taken_over", "{path}: {refused:?}");
    }
    history.advance().await?;
    history.record_quiet(Some(&second)).await?;

    // Taken back, in so many words.
    ensure!(second.terminate().await?.success(), "{}", second.log());
    first.post(&format!("{path}/resume"), json!({})).await?;
    wait_status(&first, &name, "streaming", "").await?;
    second.start_again().await?;
    wait_status(&second, &name, "failed", TAKEN_OVER).await?;
    history.advance().await?;
    history.record_loud().await?;
    let finished = history.finish(&first).await?;
    let window = first.get(&format!("{path}/window")).await?;
    ensure!(window["gaps"] == json!([]), "{window:#}");
    history::verify(&first, &storage, &name).await?;
    // It can be forgotten here, and nothing of the first one's is dropped.
    let forgotten = format!("{path}?force=true");
    let forgotten = second.request(Method::DELETE, &forgotten, None).await?;
    ensure!(forgotten.ok()?["dropped"] == json!([]));
    wait_status(&first, &name, "streaming", "").await?;
    finished.thinned(4).check(&first).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_copies_of_a_data_folder_one_goes_on() -> Result<()> {
    let storage = Storage::local()?;
    let one = Service::start(&storage).await?;
    let database = TestDatabase::new(18).await?;
    database
        .execute("CREATE TABLE t (id serial PRIMARY KEY, a text)")
        .await?;
    one.add_source("shop", &database.url(), history::settings())
        .await?;
    one.wait_protected("shop").await?;
    ensure!(one.terminate().await?.success(), "{}", one.log());
    let two = Service::builder().storage(&storage).prepare()?;
    let copied = Command::new("cp")
        .arg("-a")
        .args([one.data_dir().join("."), two.data_dir()])
        .status()?;
    ensure!(copied.success());

    // At the same moment.
    let (started, also) = tokio::join!(one.start_again(), two.start_again());
    started.and(also)?;
    let settled = async || {
        let states = [one.source("shop").await?, two.source("shop").await?];
        let is = |at: usize, status: &str| states[at]["status"] == status;
        let won = (0..2).find(|&at| is(at, "streaming") && is(1 - at, "failed"));
        Ok(won.map(|won| (won, states[1 - won]["reason"].clone())))
    };
    let (won, reason) = wait::until("one of them to go on", settled).await?;
    let (winner, loser) = if won == 0 { (&one, &two) } else { (&two, &one) };
    ensure!(
        reason.as_str().unwrap_or("").contains(TAKEN_OVER),
        "{reason}"
    );
    // A restart asks nobody, and does not turn it round.
    ensure!(loser.terminate().await?.success(), "{}", loser.log());
    ensure!(winner.terminate().await?.success(), "{}", winner.log());
    loser.start_again().await?;
    wait_status(loser, "shop", "failed", TAKEN_OVER).await?;
    winner.start_again().await?;
    wait_status(winner, "shop", "streaming", "").await?;
    database.execute("INSERT INTO t (a) VALUES ('a')").await?;
    history::check_latest(winner, "shop", &database).await?;
    let window = winner.get("/api/v1/sources/shop/window").await?;
    ensure!(window["gaps"] == json!([]), "{window:#}");
    Ok(())
}
