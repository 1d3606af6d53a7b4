//! A source is paused, resumed and removed.

use axum::Json;
use axum::extract::{Path, State};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::extract::{Body, Params};
use super::openapi::{BadBody, BadQuery, Common, Missing, Refused};
use super::problem::{Code, Problem, chain};
use super::sources::{SourceView, view};
use crate::app::Shared;
use crate::catalog::{Desired, SourceRow};
use crate::supervisor::Error;

const FORCE: &str =
    "nothing was removed; with --force (?force=true) the source is forgotten all the same";

#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PauseSource {
    /// `keep`: the server keeps WAL for us, within the budget. `drop`: it does not; resuming starts
    /// a new lineage with a new base, and what lies between is a gap.
    #[serde(default)]
    slot: SlotFate,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum SlotFate {
    #[default]
    Keep,
    Drop,
}

/// What a removal did on the source. The repository's objects are kept.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RemovedSource {
    id: String,
    name: String,
    dropped: Vec<String>,
    /// What could not be dropped, with the SQL that does.
    left: Vec<LeftObject>,
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct RemoveQuery {
    /// Forget the source even if nothing can be dropped there now.
    #[serde(default)]
    force: bool,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LeftObject {
    object: String,
    sql: String,
    error: String,
}

impl From<lastgood_engine::Left> for LeftObject {
    fn from(left: lastgood_engine::Left) -> Self {
        Self {
            object: left.object,
            sql: left.sql,
            error: left.error,
        }
    }
}

/// Remove a source; its backups stay in the repository
#[utoipa::path(
    delete,
    path = "/api/v1/sources/{source}",
    operation_id = "source_remove",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name"), RemoveQuery),
    responses((status = 200, body = RemovedSource), Common, Missing, BadQuery, Refused)
)]
pub(super) async fn remove(
    State(app): State<Shared>,
    Path(source): Path<String>,
    Params(query): Params<RemoveQuery>,
) -> Result<Json<RemovedSource>, Problem> {
    let task_app = Shared::clone(&app);
    app.detached(async move { Box::pin(take_away(&task_app, &source, query.force)).await })
        .await
        .map(Json)
}

async fn take_away(app: &Shared, source: &str, force: bool) -> Result<RemovedSource, Problem> {
    let row = app.source(source).await?;
    let _change = app.supervisor.exclusive(row.id).await;
    // What stands on the source may be another service's by now.
    let checked = app.supervisor.check_writer(row.id).await;
    let taken_over = checked.as_ref().is_err_and(Error::is_taken_over);
    if let Err(error) = checked
        && !force
    {
        return Err(Problem::from(error).with("hint", FORCE));
    }
    app.bases.cancel(row.id);
    app.supervisor.forget(row.id).await;
    let cleaned = match taken_over {
        true => Ok(RemovedSource::nothing(&row)),
        false => clean_up(app, &row).await,
    };
    let removed = match cleaned {
        Ok(removed) => removed,
        Err(error) if force => nothing_dropped(&row, &chain(&error)),
        Err(error) => {
            // A slot that nobody reads fills the source's disk: do not forget it quietly.
            app.supervisor.adopt(&row, false);
            let left = nothing_dropped(&row, &chain(&error)).left;
            return Err(Problem::from(error).with("hint", FORCE).with("left", left));
        }
    };
    app.catalog.delete_source(row.id).await?;
    app.bases.changed();
    removed.warn(&row);
    tracing::info!(source = %row.id, name = row.name, "removed");
    Ok(removed)
}

/// Take what is ours away from where a source was, while its connection is still the old one.
pub(super) async fn leave(app: &Shared, row: &SourceRow) {
    // What stands there may be another service's by now.
    if let Err(error) = app.supervisor.check_writer(row.id).await {
        let error = chain(&error);
        tracing::warn!(source = %row.id, endpoint = row.endpoint, error, "nothing was removed there");
        return;
    }
    app.bases.cancel(row.id);
    app.supervisor.stop(row.id).await;
    let removed = clean_up(app, row).await;
    let removed = removed.unwrap_or_else(|error| nothing_dropped(row, &chain(&error)));
    removed.warn(row);
}

async fn clean_up(app: &Shared, row: &SourceRow) -> Result<RemovedSource, Error> {
    let source = app.supervisor.source(row).await?;
    let removal = lastgood_engine::remove(&source).await?;
    Ok(RemovedSource {
        id: row.id.to_string(),
        name: row.name.clone(),
        dropped: removal.dropped,
        left: removal.left.into_iter().map(Into::into).collect(),
    })
}

impl RemovedSource {
    fn warn(&self, row: &SourceRow) {
        for LeftObject { object, sql, error } in &self.left {
            tracing::warn!(source = %row.id, endpoint = row.endpoint, object, sql, error, "left behind");
        }
    }

    fn nothing(row: &SourceRow) -> Self {
        Self {
            id: row.id.to_string(),
            name: row.name.clone(),
            dropped: Vec::new(),
            left: Vec::new(),
        }
    }
}

/// What a source that cannot be reached may still hold of ours.
fn nothing_dropped(row: &SourceRow, error: &str) -> RemovedSource {
    let id = row.id;
    let left = [
        (
            format!("slots lastgood_{id}_*"),
            format!(
                "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                 WHERE starts_with(slot_name, 'lastgood_{id}_');"
            ),
        ),
        (
            format!("publication lastgood_{id}"),
            format!("DROP PUBLICATION IF EXISTS lastgood_{id};"),
        ),
    ];
    RemovedSource {
        left: left
            .into_iter()
            .map(|(object, sql)| LeftObject {
                object,
                sql,
                error: error.to_owned(),
            })
            .collect(),
        ..RemovedSource::nothing(row)
    }
}

/// Stop capturing a source
#[utoipa::path(
    post,
    path = "/api/v1/sources/{source}/pause",
    operation_id = "source_pause",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name")),
    request_body = PauseSource,
    responses((status = 200, body = SourceView), Common, Missing, BadBody)
)]
pub(super) async fn pause(
    State(app): State<Shared>,
    Path(source): Path<String>,
    Body(request): Body<PauseSource>,
) -> Result<Json<SourceView>, Problem> {
    let task_app = Shared::clone(&app);
    let held = async move { Box::pin(hold(&task_app, &source, request.slot)).await };
    let row = app.detached(held).await?;
    view(&app, row).await.map(Json)
}

async fn hold(app: &Shared, source: &str, slot: SlotFate) -> Result<SourceRow, Problem> {
    let mut row = app.source(source).await?;
    let _change = app.supervisor.exclusive(row.id).await;
    app.bases.cancel(row.id);
    row.desired = match (slot, row.desired) {
        // A slot that is gone does not come back by asking to keep it.
        (SlotFate::Keep, Desired::PausedWithoutSlot) => Desired::PausedWithoutSlot,
        (SlotFate::Keep, Desired::Running | Desired::Paused) => Desired::Paused,
        (SlotFate::Drop, _) => Desired::PausedWithoutSlot,
    };
    app.supervisor.stop(row.id).await;
    if slot == SlotFate::Drop {
        let source = app.supervisor.source(&row).await?;
        let store = app.supervisor.store(row.id).await?;
        let refused = match Box::pin(lastgood_engine::release_slot(&source, &store)).await {
            Ok(removal) if removal.left.is_empty() => None,
            Ok(removal) => {
                let left: Vec<LeftObject> = removal.left.into_iter().map(Into::into).collect();
                let problem = Problem::new(Code::SourceRefused).detail("its slot is not dropped");
                Some(problem.with("left", left))
            }
            Err(error) => Some(error.into()),
        };
        if let Some(problem) = refused {
            // Not paused after all: the slot is still there and holds WAL back.
            let row = app.source(&row.id.to_string()).await?;
            app.supervisor.adopt(&row, false);
            return Err(problem);
        }
    }
    app.catalog.set_desired(row.id, row.desired).await?;
    app.supervisor.adopt(&row, false);
    app.bases.changed();
    tracing::info!(source = %row.id, desired = row.desired.as_str(), "paused");
    Ok(row)
}

/// Capture a source again, or try again now
#[utoipa::path(
    post,
    path = "/api/v1/sources/{source}/resume",
    operation_id = "source_resume",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name")),
    responses((status = 200, body = SourceView), Common, Missing)
)]
pub(super) async fn resume(
    State(app): State<Shared>,
    Path(source): Path<String>,
) -> Result<Json<SourceView>, Problem> {
    let task_app = Shared::clone(&app);
    let resumed = async move {
        let mut row = task_app.source(&source).await?;
        let _change = task_app.supervisor.exclusive(row.id).await;
        row.desired = Desired::Running;
        task_app.catalog.set_desired(row.id, row.desired).await?;
        // Asked for in so many words: where a lineage has ended, a new one may begin.
        task_app.supervisor.restart(&row, true).await;
        task_app.bases.changed();
        tracing::info!(source = %row.id, "resumed");
        Ok(row)
    };
    let row = app.detached(resumed).await?;
    app.supervisor.settle(row.id).await;
    view(&app, row).await.map(Json)
}
