//! Segments of a source, from the catalog's index.

use axum::Json;
use axum::extract::{Path, State};
use lastgood_proto::key::SegmentKind;
use lastgood_proto::{LineageId, Lsn};
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{Page, PageQuery, Params};
use super::openapi::{BadQuery, Common, Missing};
use super::problem::Problem;
use crate::app::Shared;
use crate::catalog::SegmentRow;

/// A segment: the whole transactions of one LSN range.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Segment)]
pub(super) struct SegmentView {
    lineage: String,
    #[schema(example = "0/16B3748")]
    start: String,
    #[schema(example = "0/16B37C0")]
    end: String,
    /// Null: it holds no transaction.
    max_commit_time: Option<String>,
    observed_through: Option<String>,
    /// It was made of smaller ones.
    merged: bool,
    stored_bytes: Option<u64>,
}

impl From<SegmentRow> for SegmentView {
    fn from(row: SegmentRow) -> Self {
        Self {
            lineage: row.lineage.to_string(),
            start: row.key.start.to_string(),
            end: row.key.end.to_string(),
            max_commit_time: row.key.max_commit_time.map(|time| time.to_string()),
            observed_through: row.key.observed_through.map(|time| time.to_string()),
            merged: row.key.kind == SegmentKind::Merged,
            stored_bytes: row.stored_bytes,
        }
    }
}

/// List segments in LSN order
#[utoipa::path(
    get,
    path = "/api/v1/sources/{source}/segments",
    operation_id = "segment_list",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name"), PageQuery),
    responses((status = 200, body = Page<SegmentView>), Common, Missing, BadQuery)
)]
pub(super) async fn list(
    State(app): State<Shared>,
    Path(source): Path<String>,
    Params(page): Params<PageQuery>,
) -> Result<Json<Page<SegmentView>>, Problem> {
    let row = app.source(&source).await?;
    let limit = page.limit()?;
    let after = page.after_pair::<LineageId, Lsn>()?;
    let rows = app.catalog.segments(row.id, after, limit + 1).await?;
    let cursor = |row: &SegmentRow| format!("{}~{}", row.lineage, row.key.start);
    Ok(Json(Page::cut(rows, limit, cursor, SegmentView::from)))
}
