//! Named restore points of a source.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use lastgood_proto::Lsn;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::{Body, Page, PageQuery, Params, bad_cursor};
use super::openapi::{BadBody, BadQuery, Clash, Common, Missing};
use super::problem::{Code, Problem, chain};
use crate::app::Shared;
use crate::catalog::PointRow;

/// A named restore point.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Point)]
pub(super) struct PointView {
    name: String,
    #[schema(example = "0/16B3748")]
    lsn: String,
    /// The source's clock when it was made.
    time: String,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct CreatePoint {
    /// 1 to 64 of `A-Z a-z 0-9 . _ -`.
    #[schema(example = "before-migration-42")]
    name: String,
}

impl From<PointRow> for PointView {
    fn from(row: PointRow) -> Self {
        Self {
            name: row.name,
            lsn: row.lsn.to_string(),
            time: row.time.to_string(),
        }
    }
}

/// List restore points in LSN order
#[utoipa::path(
    get,
    path = "/api/v1/sources/{source}/points",
    operation_id = "point_list",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name"), PageQuery),
    responses((status = 200, body = Page<PointView>), Common, Missing, BadQuery)
)]
pub(super) async fn list(
    State(app): State<Shared>,
    Path(source): Path<String>,
    Params(page): Params<PageQuery>,
) -> Result<Json<Page<PointView>>, Problem> {
    let row = app.source(&source).await?;
    let limit = page.limit()?;
    let after = page
        .after()
        .map(|text| text.parse::<Lsn>().map_err(|_| bad_cursor()))
        .transpose()?;
    let rows = app.catalog.points(row.id, after, limit + 1).await?;
    let cursor = |row: &PointRow| row.lsn.to_string();
    Ok(Json(Page::cut(rows, limit, cursor, PointView::from)))
}

/// Name this moment
#[utoipa::path(
    post,
    path = "/api/v1/sources/{source}/points",
    operation_id = "point_create",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name")),
    request_body = CreatePoint,
    responses((status = 201, body = PointView), Common, Missing, BadBody, Clash)
)]
pub(super) async fn create(
    State(app): State<Shared>,
    Path(source): Path<String>,
    Body(request): Body<CreatePoint>,
) -> Result<(StatusCode, Json<PointView>), Problem> {
    let task_app = Shared::clone(&app);
    let made = async move {
        let row = task_app.source(&source).await?;
        let internal =
            |error: crate::supervisor::Error| Problem::new(Code::Internal).detail(chain(&error));
        let source = task_app.supervisor.source(&row).await.map_err(internal)?;
        let store = task_app.supervisor.store(row.id).await.map_err(internal)?;
        let point = lastgood_engine::create_point(&source, &store, &request.name).await?;
        let point = PointRow {
            name: point.name,
            lsn: point.lsn,
            time: point.time,
        };
        task_app.catalog.insert_point(row.id, point.clone()).await?;
        Ok(PointView::from(point))
    };
    let point = app.detached(made).await?;
    Ok((StatusCode::CREATED, Json(point)))
}
