//! The same suite on a real S3 server as on local files, and on every major the smoke of it.

use anyhow::Result;
use lastgood_integration::{Storage, seed};

#[tokio::test(flavor = "multi_thread")]
async fn a_history_on_s3() -> Result<()> {
    let Some(storage) = Storage::s3() else {
        return Ok(());
    };
    super::oracle::history(17, seed::choose("a_history_on_s3"), &storage, 9).await
}

/// The oldest server, and those that no other test restores.
#[tokio::test(flavor = "multi_thread")]
async fn a_history_on_13() -> Result<()> {
    super::oracle::history(13, seed::choose("a_history_on_13"), &Storage::local()?, 5).await
}

#[tokio::test(flavor = "multi_thread")]
async fn histories_on_14_and_16() -> Result<()> {
    for major in [14, 16] {
        let seed = seed::choose("histories_on_14_and_16");
        super::oracle::history(major, seed, &Storage::local()?, 5).await?;
    }
    Ok(())
}
