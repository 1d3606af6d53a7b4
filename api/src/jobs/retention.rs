//! Retention, every hour and on request, then compaction: one source at a time.

use std::time::Duration;

use lastgood_engine::SourceSettings;
use lastgood_proto::SourceId;
use lastgood_restore::Pass;

use super::compaction;
use crate::app::Shared;
use crate::clock::now;
use crate::http::{Code, Problem, chain};

const INTERVAL: Duration = Duration::from_secs(3600);
/// A service that has just started has more urgent things to do.
const FIRST: Duration = Duration::from_secs(60);

/// Run a pass over a source, or only say what it would do.
///
/// # Errors
/// The repository cannot be read or does not allow to delete, or another service writes the source.
pub(crate) async fn pass(app: &Shared, source: SourceId, dry_run: bool) -> Result<Pass, Problem> {
    let unreadable = |error: &dyn std::error::Error| {
        Problem::field(Code::InvalidSettings, "retention", chain(error))
    };
    // A request and the hour may meet; and what is set before one of them counts.
    let _one = app.upkeep.lock().await;
    let row = app.source(&source.to_string()).await?;
    let settings: SourceSettings =
        serde_json::from_value(row.settings).map_err(|error| unreadable(&error))?;
    let policy = settings.retention().map_err(|error| unreadable(&error))?;
    if !dry_run {
        app.supervisor.check_writer(source).await?;
    }
    // For writing: records are sealed with the newest key.
    let store = app.supervisor.store(source).await?;
    let grace = Duration::from_secs(u64::from(settings.retention_grace_hours) * 3600);
    let pass = lastgood_restore::pass(&store, policy.as_ref(), grace, now(), dry_run).await?;
    if !dry_run {
        if pass.deleted.stored_bytes > 0 {
            tracing::info!(
                %source, bases = pass.deleted.bases.len(), segments = pass.deleted.segments,
                stored_bytes = pass.deleted.stored_bytes, "retention has deleted what was given up"
            );
        }
        for (lineage, gone) in pass.gone.clone() {
            app.catalog.forget_given_up(source, lineage, gone).await?;
        }
    }
    Ok(pass)
}

/// A pass of both over every source, every hour, until the service ends.
pub(crate) async fn keep(app: Shared) {
    let mut pause = FIRST;
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        pause = INTERVAL;
        let rows = match app.catalog.sources(None, usize::MAX).await {
            Ok(rows) => rows,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "retention cannot read the catalog");
                continue;
            }
        };
        // One that waits for its connection string has not been taken up yet.
        for row in rows.into_iter().filter(|row| row.is_connected) {
            let source = row.id;
            tokio::select! {
                () = app.shutdown.cancelled() => return,
                passed = Box::pin(pass(&app, source, false)) => {
                    if let Err(problem) = passed {
                        tracing::warn!(%source, ?problem, "retention failed; nothing is lost by it");
                    }
                }
            }
            tokio::select! {
                () = app.shutdown.cancelled() => return,
                passed = Box::pin(compaction::passes(&app, source)) => {
                    if let Err(problem) = passed {
                        tracing::warn!(%source, ?problem, "compaction failed; nothing is lost by it");
                    }
                }
            }
        }
    }
}
