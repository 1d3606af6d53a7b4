//! Retention, every hour and on request: one source at a time.

use std::time::Duration;

use lastgood_engine::SourceSettings;
use lastgood_restore::Pass;

use crate::app::Shared;
use crate::catalog::SourceRow;
use crate::clock::now;
use crate::http::{Code, Problem, chain};

const INTERVAL: Duration = Duration::from_secs(3600);
/// A service that has just started has more urgent things to do.
const FIRST: Duration = Duration::from_secs(60);

/// Run a pass over a source, or only say what it would do; none if its settings keep everything.
///
/// # Errors
/// The repository cannot be read or does not allow to delete.
pub(crate) async fn pass(
    app: &Shared,
    row: &SourceRow,
    dry_run: bool,
) -> Result<Option<Pass>, Problem> {
    let unreadable = |error: &dyn std::error::Error| {
        Problem::field(Code::InvalidSettings, "retention", chain(error))
    };
    let settings: SourceSettings =
        serde_json::from_value(row.settings.clone()).map_err(|error| unreadable(&error))?;
    let policy = settings.retention().map_err(|error| unreadable(&error))?;
    let Some(policy) = policy else {
        return Ok(None);
    };
    // A request and the hour may meet.
    let _one = app.retention.lock().await;
    let store = app.repository.source(row.id).await?;
    let grace = Duration::from_secs(u64::from(settings.retention_grace_hours) * 3600);
    let mut pass = lastgood_restore::pass(&store, &policy, grace, now(), dry_run).await?;
    let gone = std::mem::take(&mut pass.gone);
    if !gone.is_empty() {
        tracing::info!(
            source = %row.id, bases = pass.deleted.bases.len(), segments = pass.deleted.segments,
            stored_bytes = pass.deleted.stored_bytes, "retention has deleted what was given up"
        );
        app.catalog.forget_objects(row.id, gone).await?;
    }
    Ok(Some(pass))
}

/// A pass over every source, every hour, until the service ends.
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
        for row in rows {
            if let Err(problem) = Box::pin(pass(&app, &row, false)).await {
                tracing::warn!(source = %row.id, ?problem, "retention failed; nothing is lost by it");
            }
        }
    }
}
