//! The oracle test: random histories on real servers, restored to random moments, must give exactly
//! what PostgreSQL's own exported snapshots said about those moments.
//!
//! `make oracle SEEDS=n` runs more of them; `LASTGOOD_SEED` replays one.

use anyhow::{Context, Result};
use lastgood_integration::history::History;
use lastgood_integration::{Service, Storage, TestDatabase, seed};

/// One history: six moments in the middle of everything, two quiet ones in all their names, the end.
/// Restores to `restores` of them.
pub(crate) async fn history(
    major: u32,
    seed: u64,
    storage: &Storage,
    restores: usize,
) -> Result<()> {
    let service = Service::start(storage).await?;
    let database = TestDatabase::new(major).await?;
    let mut history = History::start(&service, database, seed).await?;
    for number in 0..8 {
        history.advance().await?;
        match number {
            2 | 6 => history.record_quiet(Some(&service)).await?,
            _ => history.record_loud().await?,
        }
        if number == 4 {
            // From here on, restores begin at a later base that was taken without stopping capture.
            let path = format!("/api/v1/sources/{}/bases", history.name);
            service.post(&path, serde_json::json!({})).await?;
            service.wait_bases(&history.name, 2).await?;
        }
    }
    let finished = history.finish(&service).await?;
    finished.thinned(restores).check(&service).await?;
    service.terminate().await?;
    Ok(())
}

async fn histories(major: u32) -> Result<()> {
    let count = std::env::var("LASTGOOD_ORACLE_SEEDS")
        .ok()
        .and_then(|count| count.parse().ok());
    for number in 0..count.unwrap_or(1) {
        let seed = seed::choose(&format!("oracle {number} on PostgreSQL {major}"));
        let storage = match number % 4 {
            3 => Storage::s3().map_or_else(Storage::local, Ok)?,
            _ => Storage::local()?,
        };
        history(major, seed, &storage, usize::MAX)
            .await
            .with_context(|| format!("PostgreSQL {major}, LASTGOOD_SEED={seed}"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn oracle_on_15() -> Result<()> {
    histories(15).await
}

#[tokio::test(flavor = "multi_thread")]
async fn oracle_on_18() -> Result<()> {
    histories(18).await
}
