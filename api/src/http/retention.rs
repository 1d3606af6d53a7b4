//! What retention gives up, and deletes.

use axum::Json;
use axum::extract::{Path, State};
use lastgood_restore::{Held, Pass, Pending};
use serde::Serialize;
use utoipa::ToSchema;

use super::openapi::{Common, Missing, Refused};
use super::problem::{Code, Problem};
use super::windows::WindowView;
use crate::app::Shared;
use crate::jobs;

/// Bases and segments, and what they take.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Held)]
struct HeldView {
    bases: Vec<String>,
    segments: u64,
    stored_bytes: u64,
}

/// Given up, and not deleted yet.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Pending)]
struct PendingView {
    given_up: String,
    /// The first pass after it deletes them.
    delete_after: String,
    bases: Vec<String>,
    segments: u64,
    stored_bytes: u64,
}

/// What a pass of retention did, or would do.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Retention)]
pub(super) struct RetentionView {
    given_up: HeldView,
    /// Given up, now or before; a policy that needs them again takes them back.
    pending: Vec<PendingView>,
    taken_back: HeldView,
    deleted: HeldView,
    /// What can be restored afterwards.
    windows: Vec<WindowView>,
}

impl From<Held> for HeldView {
    fn from(held: Held) -> Self {
        Self {
            bases: held.bases.iter().map(ToString::to_string).collect(),
            segments: held.segments,
            stored_bytes: held.stored_bytes,
        }
    }
}

impl From<Pending> for PendingView {
    fn from(pending: Pending) -> Self {
        let held = HeldView::from(pending.held);
        Self {
            given_up: pending.given_up.to_string(),
            delete_after: pending.delete_after.to_string(),
            bases: held.bases,
            segments: held.segments,
            stored_bytes: held.stored_bytes,
        }
    }
}

impl From<Pass> for RetentionView {
    fn from(pass: Pass) -> Self {
        Self {
            given_up: pass.given_up.into(),
            pending: pass.pending.into_iter().map(Into::into).collect(),
            taken_back: pass.taken_back.into(),
            deleted: pass.deleted.into(),
            windows: pass.windows.into_iter().map(Into::into).collect(),
        }
    }
}

/// Show what retention would give up and delete now
#[utoipa::path(
    get,
    path = "/api/v1/sources/{source}/retention",
    operation_id = "retention_show",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name")),
    responses((status = 200, body = RetentionView), Common, Missing, Refused)
)]
pub(super) async fn show(
    State(app): State<Shared>,
    Path(source): Path<String>,
) -> Result<Json<RetentionView>, Problem> {
    pass(&app, &source, true).await
}

/// Give up and delete what no promise needs, now instead of at the next hour
#[utoipa::path(
    post,
    path = "/api/v1/sources/{source}/retention",
    operation_id = "retention_run",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name")),
    responses((status = 200, body = RetentionView), Common, Missing, Refused)
)]
pub(super) async fn run(
    State(app): State<Shared>,
    Path(source): Path<String>,
) -> Result<Json<RetentionView>, Problem> {
    pass(&app, &source, false).await
}

async fn pass(app: &Shared, source: &str, dry_run: bool) -> Result<Json<RetentionView>, Problem> {
    let source = app.source(source).await?.id;
    let app = Shared::clone(app);
    // It goes on if whoever asked has left.
    let task = app
        .tracker
        .clone()
        .spawn(async move { Box::pin(jobs::retention::pass(&app, source, dry_run)).await });
    let pass = task.await.map_err(|_| Problem::new(Code::Internal))??;
    Ok(Json(pass.into()))
}
