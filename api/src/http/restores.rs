//! Plans and restores.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::Stream;
use lastgood_pg::ConnectionConfig;
use lastgood_proto::{BaseId, LineageId, ParseIdError, PgTimestamp};
use lastgood_restore::{Plan, PlanOptions, TableName};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::extract::{Body, Page, PageQuery, Params};
use super::openapi::{BadBody, BadQuery, Clash, Common, Missing};
use super::plan::PlanView;
use super::problem::{Code, Problem};
use super::report::{ProgressView, ReportView};
use super::sources::connection;
use super::target::TargetRequest;
use crate::app::Shared;
use crate::catalog::{ErrorClass, RestoreEventRow, RestoreRow, RestoreStatus, SourceRow};
use crate::clock::now;
use crate::execute::{self, JOBS_MAX, Order, Replay};
use crate::jobs;
use tokio::sync::OwnedSemaphorePermit;

/// Events that are read from the catalog at a time.
const EVENTS_AT_A_TIME: usize = 256;
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PlanRequest {
    target: TargetRequest,
    /// Only this lineage: for an LSN that is in several.
    lineage: Option<String>,
    /// Only this base.
    base: Option<String>,
    /// Only these tables and what belongs to them; every table if it is empty.
    #[serde(default)]
    #[schema(example = json!(["public.users"]))]
    tables: Vec<String>,
    /// Those tables come back under this new schema of a database that exists, whatever else it has:
    /// `into.connection`'s own. A scratch database on its server serves to make them.
    #[schema(example = "recovered")]
    into_schema: Option<String>,
    /// Where the restore will go, if that is known already.
    into: Option<IntoRequest>,
    /// Go on with the restore that was begun there: the plan starts from its base.
    #[serde(default)]
    resume: bool,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RestoreRequest {
    target: TargetRequest,
    into: IntoRequest,
    /// Only this lineage: for an LSN that is in several.
    lineage: Option<String>,
    /// Only this base; a restore that is resumed goes on from its own anyway.
    base: Option<String>,
    /// Only these tables and what belongs to them; every table if it is empty. A name is written as
    /// in SQL, with its schema.
    #[serde(default)]
    #[schema(example = json!(["public.users"]))]
    tables: Vec<String>,
    /// Those tables come back under this new schema of a database that exists, whatever else it has:
    /// `into.connection`'s own. A scratch database on its server serves to make them.
    #[schema(example = "recovered")]
    into_schema: Option<String>,
    /// Sessions that load rows and build indexes at once; 4 if nothing is said.
    #[schema(minimum = 1, maximum = 64)]
    jobs: Option<u32>,
    /// How changes are brought in.
    #[serde(default)]
    replay: Replay,
    /// What merged changes may take of memory, in bytes; what does not fit is replayed in order
    /// [default: 1 GiB].
    memory_bytes: Option<u64>,
    /// Go on with an earlier restore of the same target into the same database, from the base that it
    /// was begun from.
    #[serde(default)]
    resume: bool,
}

#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct IntoRequest {
    /// Where to restore; without `create_database`, its own database, which must be empty unless the
    /// request has `into_schema`.
    #[schema(example = "postgresql://app:secret@db2.example.org/postgres")]
    connection: String,
    /// Create this database and restore into it.
    create_database: Option<String>,
    /// Allow the source's own server and database as the target.
    #[serde(default)]
    allow_source: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = RestoreStatus)]
enum StatusView {
    Planned,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ErrorClass)]
enum ErrorClassView {
    Transient,
    NeedsOperator,
    Corrupt,
}

/// A restore.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Restore)]
pub(super) struct RestoreView {
    id: String,
    source: String,
    source_name: String,
    status: StatusView,
    /// What it is doing, or was doing when it ended.
    phase: Option<String>,
    /// How far the phase is.
    #[schema(value_type = Option<ProgressView>)]
    progress: Option<Value>,
    /// What came of it.
    #[schema(value_type = Option<ReportView>)]
    report: Option<Value>,
    error: Option<String>,
    /// What the error asks for: to try again, to change something first, or to look at the damage.
    error_class: Option<ErrorClassView>,
    /// What a restore that did not succeed left in the target.
    left_behind: Option<String>,
    /// As it was asked for, without secrets.
    #[schema(value_type = Object)]
    request: Value,
    #[schema(value_type = PlanView)]
    plan: Value,
    created: String,
    started: Option<String>,
    finished: Option<String>,
}

impl From<RestoreRow> for RestoreView {
    fn from(row: RestoreRow) -> Self {
        Self {
            id: row.id,
            source: row.source.to_string(),
            source_name: row.source_name,
            status: match row.status {
                RestoreStatus::Planned => StatusView::Planned,
                RestoreStatus::Running => StatusView::Running,
                RestoreStatus::Succeeded => StatusView::Succeeded,
                RestoreStatus::Failed => StatusView::Failed,
                RestoreStatus::Cancelled => StatusView::Cancelled,
            },
            phase: row.phase,
            progress: row.progress,
            report: row.report,
            error: row.error,
            error_class: row.error_class.map(|class| match class {
                ErrorClass::Transient => ErrorClassView::Transient,
                ErrorClass::NeedsOperator => ErrorClassView::NeedsOperator,
                ErrorClass::Corrupt => ErrorClassView::Corrupt,
            }),
            left_behind: row.left_behind,
            request: row.request,
            plan: row.plan,
            created: row.created.to_string(),
            started: row.started.map(|time| time.to_string()),
            finished: row.finished.map(|time| time.to_string()),
        }
    }
}

/// Show what a restore would do
#[utoipa::path(
    post,
    path = "/api/v1/sources/{source}/plan",
    operation_id = "plan",
    tag = "restores",
    params(("source" = String, Path, description = "Id or name")),
    request_body = PlanRequest,
    responses((status = 200, body = PlanView), Common, Missing, BadBody)
)]
pub(super) async fn plan(
    State(app): State<Shared>,
    Path(source): Path<String>,
    Body(request): Body<PlanRequest>,
) -> Result<Json<PlanView>, Problem> {
    let row = app.source(&source).await?;
    let into = request.into.as_ref().filter(|_| request.resume);
    let asked = (request.lineage, request.base);
    let (lineage, base) = begun_or(asked, into, request.into_schema.as_deref()).await?;
    let only = (lineage.as_deref(), base.as_deref());
    let tables = (request.tables.as_slice(), request.into_schema);
    let plan = make_plan(&app, &row, &request.target, only, tables).await?;
    let view = PlanView::from(&plan);
    Ok(Json(match &request.into {
        None => view,
        Some(into) => {
            let store = app.repository.source(row.id).await?;
            let roles = execute::missing_roles(&plan, &store, &into.connection()?).await?;
            view.with_missing_roles(roles)
        }
    }))
}

impl IntoRequest {
    fn connection(&self) -> Result<ConnectionConfig, Problem> {
        connection(&self.connection).map_err(|problem| problem.with("field", "into.connection"))
    }

    /// Lineage and base of the unfinished restore that is there, to be named in its plan.
    async fn begun_from(&self, schema: Option<&str>) -> Result<Option<Only>, Problem> {
        let database = self.create_database.as_deref();
        let begun = execute::begun_from(&self.connection()?, database, schema).await?;
        Ok(begun.map(|(lineage, base)| (Some(lineage.to_string()), Some(base.to_string()))))
    }
}

/// Lineage and base, if only one will do.
type Only = (Option<String>, Option<String>);

/// What a plan may start from: as asked, or if no base is, what the restore to be resumed began from.
async fn begun_or(
    asked: Only,
    resumed: Option<&IntoRequest>,
    schema: Option<&str>,
) -> Result<Only, Problem> {
    match resumed.filter(|_| asked.1.is_none()) {
        Some(into) => Ok(into.begun_from(schema).await?.unwrap_or(asked)),
        None => Ok(asked),
    }
}

async fn make_plan(
    app: &Shared,
    row: &SourceRow,
    target: &TargetRequest,
    (lineage, base): (Option<&str>, Option<&str>),
    (tables, into_schema): (&[String], Option<String>),
) -> Result<Plan, Problem> {
    let target = target.read()?;
    let bad =
        |field, error: ParseIdError| Problem::field(Code::InvalidValue, field, error.to_string());
    let lineage = lineage.map(str::parse::<LineageId>).transpose();
    let lineage = lineage.map_err(|error| bad("lineage", error))?;
    let base = base.map(str::parse::<BaseId>).transpose();
    let base = base.map_err(|error| bad("base", error))?;
    let store = app.repository.source(row.id).await?;
    let options = PlanOptions {
        now: now(),
        lineage,
        base,
        tables: tables
            .iter()
            .map(|name| TableName::parse(name))
            .collect::<Result<_, _>>()?,
        into_schema,
    };
    Ok(Box::pin(lastgood_restore::plan(&store, &target, &options)).await?)
}

/// Begin a restore
#[utoipa::path(
    post,
    path = "/api/v1/sources/{source}/restores",
    operation_id = "restore_start",
    tag = "restores",
    params(("source" = String, Path, description = "Id or name")),
    request_body = RestoreRequest,
    responses((status = 202, body = RestoreView), Common, Missing, BadBody)
)]
pub(super) async fn start(
    State(app): State<Shared>,
    Path(source): Path<String>,
    Body(request): Body<RestoreRequest>,
) -> Result<(StatusCode, Json<RestoreView>), Problem> {
    let task_app = Shared::clone(&app);
    let begun = async move { Box::pin(begin(&task_app, &source, request)).await };
    let view = app.detached(begun).await?;
    Ok((StatusCode::ACCEPTED, Json(view)))
}

async fn begin(
    app: &Shared,
    source: &str,
    request: RestoreRequest,
) -> Result<RestoreView, Problem> {
    let row = app.source(source).await?;
    if request.into_schema.is_some() && request.into.create_database.is_some() {
        return Err(Problem::field(
            Code::InvalidValue,
            "into.create_database",
            "into_schema is for a database that exists",
        ));
    }
    let into = request.into.connection()?;
    if request
        .jobs
        .is_some_and(|jobs| !(1..=JOBS_MAX).contains(&jobs))
    {
        return Err(Problem::field(
            Code::InvalidValue,
            "jobs",
            "jobs is from 1 to 64",
        ));
    }
    let resumed = request.resume.then_some(&request.into);
    let asked = (request.lineage.clone(), request.base.clone());
    let (lineage, base) = begun_or(asked, resumed, request.into_schema.as_deref()).await?;
    let only = (lineage.as_deref(), base.as_deref());
    let tables = (request.tables.as_slice(), request.into_schema.clone());
    let plan = make_plan(app, &row, &request.target, only, tables).await?;
    let shown = serde_json::json!({
        "target": plan.target,
        "into": {
            "connection": into.redacted(),
            "create_database": request.into.create_database,
            "allow_source": request.into.allow_source,
        },
        "lineage": request.lineage,
        "base": request.base,
        "tables": request.tables,
        "into_schema": request.into_schema,
        "jobs": request.jobs,
        "replay": request.replay,
        "memory_bytes": request.memory_bytes,
        "resume": request.resume,
    });
    let order = Order {
        plan,
        connection: into,
        create_database: request.into.create_database,
        allow_source: request.into.allow_source,
        jobs: request.jobs,
        replay: request.replay,
        memory_bytes: request.memory_bytes,
        resume: request.resume,
    };
    let store = app.repository.source(row.id).await?;
    execute::check(&order, &store).await?;
    let view = PlanView::from(&order.plan);
    let plan = serde_json::to_value(view).map_err(|_| Problem::new(Code::Internal))?;
    let row = jobs::restores::begin(app, &row, shown, plan, order).await?;
    Ok(row.into())
}

/// List restores, newest first
#[utoipa::path(
    get,
    path = "/api/v1/restores",
    operation_id = "restore_list",
    tag = "restores",
    params(PageQuery),
    responses((status = 200, body = Page<RestoreView>), Common, BadQuery)
)]
pub(super) async fn list(
    State(app): State<Shared>,
    Params(page): Params<PageQuery>,
) -> Result<Json<Page<RestoreView>>, Problem> {
    let limit = page.limit()?;
    let before = page.after_pair::<PgTimestamp, String>()?;
    let rows = app.catalog.restores(before, limit + 1).await?;
    let cursor = |row: &RestoreRow| format!("{}~{}", row.created, row.id);
    Ok(Json(Page::cut(rows, limit, cursor, RestoreView::from)))
}

async fn find(app: &Shared, id: &str) -> Result<RestoreRow, Problem> {
    app.catalog
        .restore(id)
        .await?
        .ok_or_else(|| Problem::new(Code::UnknownRestore))
}

/// Show a restore
#[utoipa::path(
    get,
    path = "/api/v1/restores/{id}",
    operation_id = "restore_show",
    tag = "restores",
    params(("id" = String, Path, description = "Id of the restore")),
    responses((status = 200, body = RestoreView), Common, Missing)
)]
pub(super) async fn show(
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<Json<RestoreView>, Problem> {
    find(&app, &id).await.map(|row| Json(row.into()))
}

/// Cancel a restore; what it leaves behind is told when it has ended
#[utoipa::path(
    post,
    path = "/api/v1/restores/{id}/cancel",
    operation_id = "restore_cancel",
    tag = "restores",
    params(("id" = String, Path, description = "Id of the restore")),
    responses((status = 202, body = RestoreView), Common, Missing, Clash)
)]
pub(super) async fn cancel(
    State(app): State<Shared>,
    Path(id): Path<String>,
) -> Result<(StatusCode, Json<RestoreView>), Problem> {
    let row = find(&app, &id).await?;
    if row.status.is_final() || !app.restores.cancel(&id) {
        return Err(Problem::new(Code::RestoreFinished));
    }
    Ok((StatusCode::ACCEPTED, Json(row.into())))
}

/// Follow a restore: server-sent events `status`, `phase` and `progress`, from the first or from
/// `Last-Event-ID` on; the stream ends with the restore
#[utoipa::path(
    get,
    path = "/api/v1/restores/{id}/events",
    operation_id = "restore_events",
    tag = "restores",
    params(
        ("id" = String, Path, description = "Id of the restore"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The last event that was seen")
    ),
    responses((status = 200, body = String, content_type = "text/event-stream"), Common, Missing)
)]
pub(super) async fn events(
    State(app): State<Shared>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    find(&app, &id).await?;
    let after = headers
        .get("last-event-id")
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let reader = EventReader {
        _place: app.restores.follow()?,
        changed: app.restores.subscribe(&id),
        app,
        id,
        after,
        waiting: Vec::new().into_iter(),
        ended: false,
    };
    let stream = futures::stream::unfold(reader, async |mut reader| {
        let event = reader.next().await?;
        Some((Ok(event), reader))
    });
    Ok(Sse::new(stream).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Reads events from the catalog, where they are kept, and waits for more while the job runs.
struct EventReader {
    _place: OwnedSemaphorePermit,
    app: Shared,
    id: String,
    after: u64,
    waiting: std::vec::IntoIter<RestoreEventRow>,
    /// None: the job has ended.
    changed: Option<tokio::sync::watch::Receiver<u64>>,
    ended: bool,
}

impl EventReader {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(row) = self.waiting.next() {
                self.after = row.seq;
                return Some(event(&row));
            }
            if self.ended {
                return None;
            }
            // Asked before reading, so that nothing falls between.
            let is_last_look = match &mut self.changed {
                Some(changed) => {
                    changed.mark_unchanged();
                    false
                }
                None => true,
            };
            let rows = self
                .app
                .catalog
                .restore_events(&self.id, self.after, EVENTS_AT_A_TIME)
                .await
                .ok()?;
            if rows.is_empty() {
                if is_last_look {
                    self.ended = true;
                    continue;
                }
                self.wait().await?;
            }
            self.waiting = rows.into_iter();
        }
    }

    /// Until there is more to read; none if the service ends first.
    async fn wait(&mut self) -> Option<()> {
        let changed = self.changed.as_mut()?;
        tokio::select! {
            () = self.app.shutdown.cancelled() => return None,
            changed = changed.changed() => {
                if changed.is_err() {
                    // The job is gone: what it wrote last is still to be read.
                    self.changed = None;
                }
            }
        }
        Some(())
    }
}

fn event(row: &RestoreEventRow) -> Event {
    let mut body = row.body.clone();
    if let Value::Object(body) = &mut body {
        body.insert("time".to_owned(), row.time.to_string().into());
    }
    Event::default()
        .id(row.seq.to_string())
        .event(&row.kind)
        .data(body.to_string())
}
