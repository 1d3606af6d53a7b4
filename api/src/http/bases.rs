//! Bases of a source, and attempts at one.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use lastgood_proto::PgTimestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{Page, PageQuery, Params};
use super::openapi::{BadQuery, Clash, Common, Missing};
use super::problem::Problem;
use crate::app::Shared;
use crate::catalog::{BaseCause, BaseRow, BaseStatus};
use crate::jobs;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum BaseStatusView {
    Running,
    Succeeded,
    Failed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum BaseCauseView {
    /// The first of its lineage.
    First,
    /// The schema was altered.
    Change,
    Schedule,
    Request,
    /// In the repository when the service looked.
    Found,
}

/// A base, or an attempt at one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Base)]
pub(super) struct BaseView {
    /// Of the job.
    id: String,
    cause: BaseCauseView,
    status: BaseStatusView,
    lineage: Option<String>,
    base: Option<String>,
    #[schema(example = "0/16B3748")]
    consistent_point: Option<String>,
    /// Of the dumps; grows while it runs.
    bytes: u64,
    stored_bytes: u64,
    error: Option<String>,
    started: String,
    finished: Option<String>,
}

/// A job that was begun.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Begun {
    id: String,
}

impl From<BaseRow> for BaseView {
    fn from(row: BaseRow) -> Self {
        Self {
            id: row.id,
            cause: match row.cause {
                BaseCause::First => BaseCauseView::First,
                BaseCause::Change => BaseCauseView::Change,
                BaseCause::Schedule => BaseCauseView::Schedule,
                BaseCause::Request => BaseCauseView::Request,
                BaseCause::Found => BaseCauseView::Found,
            },
            status: match row.status {
                BaseStatus::Running => BaseStatusView::Running,
                BaseStatus::Succeeded => BaseStatusView::Succeeded,
                BaseStatus::Failed => BaseStatusView::Failed,
            },
            lineage: row.lineage.map(|id| id.to_string()),
            base: row.base.map(|id| id.to_string()),
            consistent_point: row.consistent_point.map(|lsn| lsn.to_string()),
            bytes: row.bytes,
            stored_bytes: row.stored_bytes,
            error: row.error,
            started: row.started.to_string(),
            finished: row.finished.map(|time| time.to_string()),
        }
    }
}

/// List bases and attempts, newest first
#[utoipa::path(
    get,
    path = "/api/v1/sources/{source}/bases",
    operation_id = "base_list",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name"), PageQuery),
    responses((status = 200, body = Page<BaseView>), Common, Missing, BadQuery)
)]
pub(super) async fn list(
    State(app): State<Shared>,
    Path(source): Path<String>,
    Params(page): Params<PageQuery>,
) -> Result<Json<Page<BaseView>>, Problem> {
    let row = app.source(&source).await?;
    let limit = page.limit()?;
    let before = page.after_pair::<PgTimestamp, String>()?;
    let rows = app.catalog.bases(row.id, before, limit + 1).await?;
    let cursor = |row: &BaseRow| format!("{}~{}", row.started, row.id);
    Ok(Json(Page::cut(rows, limit, cursor, BaseView::from)))
}

/// Take a new base now
#[utoipa::path(
    post,
    path = "/api/v1/sources/{source}/bases",
    operation_id = "base_take",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name")),
    responses((status = 202, body = Begun), Common, Missing, Clash)
)]
pub(super) async fn take(
    State(app): State<Shared>,
    Path(source): Path<String>,
) -> Result<(StatusCode, Json<Begun>), Problem> {
    let row = app.source(&source).await?;
    let id = jobs::bases::begin(&app, row, BaseCause::Request).await?;
    Ok((StatusCode::ACCEPTED, Json(Begun { id })))
}
