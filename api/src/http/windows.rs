//! What can be restored, read from the repository at the moment of the question.

use axum::Json;
use axum::extract::{Path, State};
use lastgood_restore::{Gap, Moment, Survey, Window};
use serde::Serialize;
use utoipa::ToSchema;

use super::openapi::{Common, Missing, Refused};
use super::problem::Problem;
use crate::app::Shared;

/// A moment: the source's clock and the position in its WAL.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Moment)]
pub(super) struct MomentView {
    time: String,
    #[schema(example = "0/16B3748")]
    lsn: String,
}

/// Everything from `from` to `to` can be restored.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Window)]
pub(super) struct WindowView {
    lineage: String,
    from: MomentView,
    to: MomentView,
    /// Why it ends there, as where the schema was altered; absent if it goes on, or if a segment is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Nothing between these moments can be restored.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Gap)]
pub(super) struct GapView {
    from: MomentView,
    to: MomentView,
    reason: Option<String>,
}

/// What can be restored.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Windows)]
pub(crate) struct WindowsView {
    windows: Vec<WindowView>,
    gaps: Vec<GapView>,
    /// Why what was captured last cannot be restored yet; null if it can.
    latest_refused: Option<String>,
}

impl From<Moment> for MomentView {
    fn from(moment: Moment) -> Self {
        Self {
            time: moment.time.to_string(),
            lsn: moment.lsn.to_string(),
        }
    }
}

impl From<Window> for WindowView {
    fn from(window: Window) -> Self {
        (window, None).into()
    }
}

impl From<(Window, Option<String>)> for WindowView {
    fn from((window, reason): (Window, Option<String>)) -> Self {
        Self {
            lineage: window.lineage.to_string(),
            from: window.from.into(),
            to: window.to.into(),
            reason,
        }
    }
}

impl From<Gap> for GapView {
    fn from(gap: Gap) -> Self {
        Self {
            from: gap.from.into(),
            to: gap.to.into(),
            reason: gap.reason,
        }
    }
}

impl From<&Survey> for WindowsView {
    fn from(survey: &Survey) -> Self {
        Self {
            windows: survey.ends().into_iter().map(Into::into).collect(),
            gaps: survey.gaps().into_iter().map(Into::into).collect(),
            latest_refused: survey.latest_refused(),
        }
    }
}

/// Show what can be restored
#[utoipa::path(
    get,
    path = "/api/v1/sources/{source}/window",
    operation_id = "window",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name")),
    responses((status = 200, body = WindowsView), Common, Missing, Refused)
)]
pub(super) async fn window(
    State(app): State<Shared>,
    Path(source): Path<String>,
) -> Result<Json<WindowsView>, Problem> {
    let row = app.source(&source).await?;
    let store = app.repository.source(row.id).await?;
    let survey = Survey::read(&store).await?;
    Ok(Json(WindowsView::from(&survey)))
}
