//! Compaction of a real source: the same moments come back from merged segments, with their parts and
//! without; and what is wrong with merged ones is found.

use std::fs;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use lastgood_integration::history::History;
use lastgood_integration::{Service, Storage, TestDatabase, seed, wait};
use reqwest::Method;
use serde_json::{Value, json};

struct Compacted {
    storage: Storage,
    service: Service,
    name: String,
}

impl Compacted {
    async fn set(&self, settings: Value) -> Result<()> {
        let path = format!("/api/v1/sources/{}", self.name);
        let changed = self.service.request(Method::PATCH, &path, Some(&settings));
        changed.await?.ok()?;
        Ok(())
    }

    async fn listed(&self) -> Result<Vec<Value>> {
        let path = format!("/api/v1/sources/{}/segments", self.name);
        let listed = self.service.get(&path).await?;
        Ok(listed["items"].as_array().context("segments")?.clone())
    }

    async fn compact(&self) -> Result<Value> {
        let path = format!("/api/v1/sources/{}/compaction", self.name);
        self.service.post(&path, json!({})).await
    }

    /// Objects whose path has this in it, on any storage.
    async fn objects(&self, part: &str) -> Result<usize> {
        let key = self.service.key_file().display().to_string();
        let list = [
            "--json",
            "cat",
            "--repository",
            self.storage.url(),
            "--key-file",
            &key,
        ];
        let output = self.service.cli(&list).await?;
        let paths: Value = serde_json::from_slice(&output.stdout)?;
        let paths = paths["items"].as_array().context("paths")?.iter();
        Ok(paths
            .filter(|path| path.as_str().is_some_and(|path| path.contains(part)))
            .count())
    }

    /// On the repository alone.
    async fn cli(&self, command: &str, arguments: &[&str]) -> Result<Output> {
        let key = self.service.key_file().display().to_string();
        let repository = ["--repository", self.storage.url(), "--key-file", &key];
        let all = [&["--json", command, &self.name], &repository[..], arguments].concat();
        self.service.cli(&all).await
    }

    async fn verify(&self, arguments: &[&str]) -> Result<(Option<i32>, Value)> {
        let output = self.cli("verify", arguments).await?;
        let answer: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
        Ok((output.status.code(), answer["items"][0].clone()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_moment_comes_back_from_merged_segments() -> Result<()> {
    let it = compacted(Storage::local()?, 18, 2).await?;
    damages_are_found(&it).await?;
    // By another program, as it were: the index is made again.
    it.service.start_again().await?;
    let listed = it.listed().await?;
    ensure!(
        listed.iter().all(|segment| segment["merged"] == true),
        "{listed:#?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn merged_on_s3() -> Result<()> {
    if let Some(storage) = Storage::s3() {
        compacted(storage, 15, 1).await?;
    }
    Ok(())
}

/// A history whose lineage has ended, merged, with the parts deleted; the service has ended as well.
async fn compacted(storage: Storage, major: u32, rounds: usize) -> Result<Compacted> {
    let service = Service::start(&storage).await?;
    let seed = seed::choose("every_moment_comes_back_from_merged_segments");
    let mut history = History::start(&service, TestDatabase::new(major).await?, seed).await?;
    for _ in 0..rounds {
        history.advance().await?;
        history.record_loud().await?;
        let lsn = history.last_lsn.clone();
        service.wait_durable(&history.name, &lsn).await?;
    }
    history.record_quiet(Some(&service)).await?;
    let finished = history.finish(&service).await?.thinned(rounds + 1);
    let it = Compacted {
        name: finished.name.clone(),
        storage,
        service,
    };
    // What is captured now is too new to be merged.
    let early = it.compact().await?;
    ensure!(early["merged"] == json!([]), "{early:#}");

    // The lineage ends: nothing more will come.
    let pause = format!("/api/v1/sources/{}/pause", it.name);
    it.service.post(&pause, json!({"slot": "drop"})).await?;
    let ended = async || Ok((it.objects("/end.json").await? == 1).then_some(()));
    wait::until("the lineage to end", ended).await?;
    let captured = it.objects("/segments/").await?;
    ensure!(captured > 2, "{captured} segments");
    let would = it.cli("compact", &["--dry-run"]).await?;
    let would: Value = serde_json::from_slice(&would.stdout)?;
    let parts = would["merged"].as_array().context("groups")?.iter();
    let parts: u64 = parts
        .filter_map(|one| one["parts"]["segments"].as_u64())
        .sum();
    ensure!(usize::try_from(parts)? == captured, "{would:#}");
    ensure!(it.objects("/merged/").await? == 0, "a dry run has written");
    let windows = format!("/api/v1/sources/{}/window", it.name);
    let before = it.service.get(&windows).await?;
    let done = it.compact().await?;
    ensure!(done["waiting"]["segments"] == captured, "{done:#}");
    let merged = it.objects("/merged/").await?;
    // Two if midnight has passed.
    ensure!((1..=2).contains(&merged), "{merged} merged");
    let listed = it.listed().await?;
    ensure!(
        listed.len() == merged && listed[0]["merged"] == true,
        "{listed:#?}"
    );
    ensure!(
        it.service.get(&windows).await? == before,
        "the window has changed"
    );
    finished.check(&it.service).await?;
    let (exit, verified) = it.verify(&["--retention", "1 day"]).await?;
    ensure!(
        exit == Some(0) && verified["merged_compared"] == merged,
        "{verified:#}"
    );
    ensure!(verified["promise"]["kept"] == true, "{verified:#}");
    ensure!(
        verified["archives_listed"].as_u64() > Some(0),
        "{verified:#}"
    );

    // A plan that was made before still reads the parts; once they are gone, only the merged ones.
    it.set(json!({"retention_grace_hours": 0})).await?;
    let done = it.compact().await?;
    ensure!(done["deleted"]["segments"] == captured, "{done:#}");
    ensure!(it.objects("/segments/").await? == 0, "parts are left");
    ensure!(
        it.service.get(&windows).await? == before,
        "the window has changed"
    );
    finished.check(&it.service).await?;
    let ended = it.service.terminate().await?;
    ensure!(ended.success(), "{}", it.service.log());
    Ok(it)
}

/// With the parts gone there is nothing else to restore from.
async fn damages_are_found(it: &Compacted) -> Result<()> {
    let merged = it.storage.files(|path| path.contains("/merged/"))?;
    let path = merged.first().context("a merged segment")?;
    let whole = fs::read(path)?;
    let damaged = |content: &[u8]| -> Result<()> {
        // An immutable object may be read-only.
        fs::remove_file(path)?;
        Ok(fs::write(path, content)?)
    };
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for content in [&flipped[..], &whole[..whole.len() - 1], &[]] {
        damaged(content)?;
        let (exit, verified) = it.verify(&[]).await?;
        ensure!(exit == Some(4), "{} bytes: {verified:#}", content.len());
        let named = verified["problems"][0]["object"]
            .as_str()
            .unwrap_or_default();
        ensure!(named.contains("/merged/"), "{verified:#}");
        // Only a share: none of the segments, then all.
        let (exit, verified) = it.verify(&["--sample", "0", "--seed", "7"]).await?;
        ensure!(exit == Some(0) && verified["segments"] == 0, "{verified:#}");
        ensure!(
            verified["bases"] == 1 && verified["seed"] == 7,
            "{verified:#}"
        );
        let (exit, verified) = it.verify(&["--sample", "100%"]).await?;
        ensure!(exit == Some(4), "{verified:#}");
    }
    fs::remove_file(path)?;
    // By its name alone, so by any share.
    let (exit, verified) = it.verify(&["--sample", "0"]).await?;
    ensure!(exit == Some(4), "a missing merged segment: {verified:#}");
    fs::write(path, &whole)?;
    let (exit, verified) = it.verify(&[]).await?;
    ensure!(exit == Some(0), "{verified:#}");
    Ok(())
}
