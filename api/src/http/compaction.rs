//! Small segments become large ones.

use axum::Json;
use axum::extract::{Path, State};
use lastgood_restore::{Compaction, Made, Parts};
use serde::Serialize;
use utoipa::ToSchema;

use super::openapi::{Common, Missing, Refused};
use super::problem::{Code, Problem};
use crate::app::Shared;
use crate::jobs;

/// Segments that others take the place of, and what they take.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Replaced)]
pub(super) struct PartsView {
    segments: u64,
    stored_bytes: u64,
}

/// A merged segment, or a run of segments that would become one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Merged)]
struct MadeView {
    lineage: String,
    #[schema(example = "0/16B3748")]
    start: String,
    #[schema(example = "0/26B37C0")]
    end: String,
    /// What it was made of.
    parts: PartsView,
    /// Null: it is not made yet.
    stored_bytes: Option<u64>,
}

/// What a pass of compaction did, or would do.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Compaction)]
pub(crate) struct CompactionView {
    merged: Vec<MadeView>,
    /// Replaced, and not deleted yet: a restore that was planned before may read them.
    waiting: PartsView,
    deleted: PartsView,
    /// Objects of segments that are there afterwards.
    segments: u64,
    /// There is more to merge: the next pass goes on.
    more: bool,
}

impl From<Parts> for PartsView {
    fn from(parts: Parts) -> Self {
        Self {
            segments: parts.segments,
            stored_bytes: parts.stored_bytes,
        }
    }
}

impl From<Made> for MadeView {
    fn from(made: Made) -> Self {
        Self {
            lineage: made.lineage.to_string(),
            start: made.key.start.to_string(),
            end: made.key.end.to_string(),
            parts: made.parts.into(),
            stored_bytes: made.stored_bytes,
        }
    }
}

impl From<Compaction> for CompactionView {
    fn from(compaction: Compaction) -> Self {
        Self {
            merged: compaction.made.into_iter().map(Into::into).collect(),
            waiting: compaction.waiting.into(),
            deleted: compaction.deleted.into(),
            segments: compaction.segments,
            more: compaction.more,
        }
    }
}

/// Show what compaction would merge and delete now
#[utoipa::path(
    get,
    path = "/api/v1/sources/{source}/compaction",
    operation_id = "compaction_show",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name")),
    responses((status = 200, body = CompactionView), Common, Missing, Refused)
)]
pub(super) async fn show(
    State(app): State<Shared>,
    Path(source): Path<String>,
) -> Result<Json<CompactionView>, Problem> {
    pass(&app, &source, true).await
}

/// Merge segments that are settled and delete those that were replaced, now instead of at the next hour
#[utoipa::path(
    post,
    path = "/api/v1/sources/{source}/compaction",
    operation_id = "compaction_run",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name")),
    responses((status = 200, body = CompactionView), Common, Missing, Refused)
)]
pub(super) async fn run(
    State(app): State<Shared>,
    Path(source): Path<String>,
) -> Result<Json<CompactionView>, Problem> {
    pass(&app, &source, false).await
}

async fn pass(app: &Shared, source: &str, dry_run: bool) -> Result<Json<CompactionView>, Problem> {
    let source = app.source(source).await?.id;
    let app = Shared::clone(app);
    // It goes on if whoever asked has left.
    let task = app
        .tracker
        .clone()
        .spawn(async move { Box::pin(jobs::compaction::pass(&app, source, dry_run)).await });
    let compaction = task.await.map_err(|_| Problem::new(Code::Internal))??;
    Ok(Json(compaction.into()))
}
