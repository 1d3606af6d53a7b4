//! The same suite on a real S3 server as on local files, and on older servers the smoke of it.

use anyhow::Result;
use lastgood_integration::{Storage, seed};

#[tokio::test(flavor = "multi_thread")]
async fn a_history_on_s3() -> Result<()> {
    let Some(storage) = Storage::s3() else {
        return Ok(());
    };
    super::oracle::history(17, seed::choose("a_history_on_s3"), &storage, 5).await
}

/// On the oldest server, and one of those between; the newest is everywhere.
#[tokio::test(flavor = "multi_thread")]
async fn histories_on_older_servers() -> Result<()> {
    let name = "histories_on_older_servers";
    for major in seed::majors(name) {
        if major < 18 {
            super::oracle::history(major, seed::choose(name), &Storage::local()?, 4).await?;
        }
    }
    Ok(())
}
