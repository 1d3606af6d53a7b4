//! Whether the service works: the one answer that needs no token.

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::problem::Problem;
use crate::app::{KEY_WARNING, Shared};
use crate::supervisor::State as SourceState;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum HealthStatus {
    /// Everything that should run runs.
    Ok,
    /// The service works, a source does not.
    Degraded,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    status: HealthStatus,
    version: &'static str,
    /// When this process started.
    started: String,
    sources: SourceCounts,
    /// What an operator should do something about.
    warnings: Vec<String>,
}

#[derive(Debug, Default, Serialize, ToSchema)]
struct SourceCounts {
    running: usize,
    degraded: usize,
    failed: usize,
}

/// Whether the service works
#[utoipa::path(
    get,
    path = "/api/v1/health",
    tag = "service",
    security(()),
    responses((status = 200, body = Health))
)]
pub(super) async fn health(State(app): State<Shared>) -> Result<Json<Health>, Problem> {
    let mut sources = SourceCounts::default();
    let (mut waiting, mut base_only) = (0, 0);
    for snapshot in app.supervisor.snapshots() {
        match snapshot.state {
            SourceState::Starting | SourceState::BaseBackup | SourceState::Streaming => {
                sources.running += 1;
            }
            SourceState::Degraded => sources.degraded += 1,
            SourceState::Failed => sources.failed += 1,
            // Paused as it was asked for, until its slot needs somebody.
            SourceState::Paused if snapshot.is_slot_heavy => sources.degraded += 1,
            SourceState::Paused => {}
        }
        let (more_waiting, more_base_only) = snapshot.uncovered_counts();
        waiting += more_waiting;
        base_only += more_base_only;
    }
    let status = match sources.degraded + sources.failed {
        0 => HealthStatus::Ok,
        _ => HealthStatus::Degraded,
    };
    let mut warnings = Vec::new();
    if !app.is_key_safe().await? {
        warnings.push(KEY_WARNING.to_owned());
    }
    // Their names are for those who have the token.
    for (tables, what) in [
        (waiting, "in no segment until the next base"),
        (base_only, "only in bases, so as old as the last one"),
    ] {
        if tables > 0 {
            warnings.push(format!(
                "tables whose changes are {what}: {tables}; `lastgood source show` names them"
            ));
        }
    }
    Ok(Json(Health {
        status,
        version: env!("CARGO_PKG_VERSION"),
        started: app.started.to_string(),
        sources,
        warnings,
    }))
}
