//! Compaction: after retention every hour, and on request.

use std::time::Duration;

use lastgood_engine::SourceSettings;
use lastgood_proto::SourceId;
use lastgood_restore::{Compaction, CompactionOptions};

use crate::app::Shared;
use crate::clock::now;
use crate::http::{Code, Problem, chain};

/// Merged segments after which whoever else waits for the repository has a turn.
const MERGES_MAX: usize = 64;

/// Run a pass over a source, or only say what it would do; `more` says that another one has to follow.
///
/// # Errors
/// The repository cannot be read or written, or does not allow to delete.
pub(crate) async fn pass(
    app: &Shared,
    source: SourceId,
    dry_run: bool,
) -> Result<Compaction, Problem> {
    // Never twice at once, and not while retention deletes.
    let _one = app.upkeep.lock().await;
    let settings = settings(app, source).await?;
    if !dry_run {
        app.supervisor.check_writer(source).await?;
    }
    // For writing: sealed with the newest key.
    let store = app.supervisor.store(source).await?;
    let spool = app.spool_dir.as_path();
    std::fs::create_dir_all(spool).map_err(|error| {
        Problem::new(Code::Internal).detail(format!("{}: {error}", spool.display()))
    })?;
    let options = CompactionOptions {
        grace: Duration::from_secs(u64::from(settings.retention_grace_hours) * 3600),
        now: now(),
        dry_run,
        spool,
        merges_max: if dry_run { usize::MAX } else { MERGES_MAX },
    };
    let compaction = lastgood_restore::compact(&store, &options).await?;
    for made in &compaction.made {
        if let Some(stored_bytes) = made.stored_bytes {
            app.catalog
                .merge_segments(source, made.lineage, made.key, stored_bytes)
                .await?;
        }
    }
    if compaction.deleted.segments > 0 || (!dry_run && !compaction.made.is_empty()) {
        tracing::info!(
            %source, merged = compaction.made.len(), deleted = compaction.deleted.segments,
            segments = compaction.segments, dry_run, "segments were compacted"
        );
    }
    Ok(compaction)
}

/// Passes until there is nothing more to merge, unless the source's settings want none.
///
/// # Errors
/// As [`pass`].
pub(super) async fn passes(app: &Shared, source: SourceId) -> Result<(), Problem> {
    while settings(app, source).await?.compact && Box::pin(pass(app, source, false)).await?.more {}
    Ok(())
}

async fn settings(app: &Shared, source: SourceId) -> Result<SourceSettings, Problem> {
    let row = app.source(&source.to_string()).await?;
    serde_json::from_value(row.settings)
        .map_err(|error| Problem::field(Code::InvalidSettings, "compact", chain(&error)))
}
