//! Sources: register, show, change, pause, resume, remove.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lastgood_engine::{NoIdentity, SourceSettings};
use lastgood_pg::ConnectionConfig;
use lastgood_proto::SourceId;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::extract::{Body, Page, PageQuery, Params};
use super::openapi::{BadBody, BadQuery, Clash, Common, Missing, Refused};
use super::probe::{Finding, Severity};
use super::problem::{Code, Problem, chain};
use crate::app::Shared;
use crate::catalog::{Desired, SourceRow};
use crate::clock::now;
use crate::supervisor::State as SourceState;

const NAME_BYTES_MAX: usize = 64;

/// Settings of a source, with their values.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Settings {
    /// Five-field crontab expression for new bases; null: only the first base is taken.
    #[schema(example = "0 4 * * *")]
    schedule: Option<String>,
    /// The zone the schedule is meant in.
    #[schema(example = "Europe/Berlin")]
    timezone: String,
    /// NDJSON bytes after which a segment is cut at the next commit.
    segment_bytes: u64,
    /// Seconds after which a segment that holds something is cut.
    segment_seconds: u32,
    /// Seconds between position marks while nothing is published.
    idle_seconds: u32,
    /// WAL the slot may hold back: alert at half, the slot is dropped at the whole.
    wal_budget_bytes: u64,
    /// After the budget took the slot: start a new lineage at once instead of waiting for `resume`.
    restart_after_budget: bool,
    /// What becomes of tables whose UPDATE and DELETE cannot be captured as they are.
    #[schema(inline)]
    no_identity: NoIdentityView,
    /// Tables to protect, `schema.table` with `*`; empty: all.
    include: Vec<String>,
    /// Tables to leave out of capture; wins over `include`.
    exclude: Vec<String>,
    /// Memory the source's walsender may use for one transaction.
    logical_decoding_work_mem_kb: u32,
    /// Dumps that run at the same time.
    base_jobs: u32,
    /// A table larger than this is an archive of its own.
    big_table_bytes: u64,
    /// Sealed bytes of the open segment past which reading waits for uploads.
    spool_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum NoIdentityView {
    /// They are in every base and in no segment.
    BaseOnly,
    /// `ALTER TABLE … REPLICA IDENTITY FULL` is run on them.
    Full,
}

impl From<SourceSettings> for Settings {
    fn from(settings: SourceSettings) -> Self {
        Self {
            schedule: settings.schedule,
            timezone: settings.timezone,
            segment_bytes: settings.segment_bytes,
            segment_seconds: settings.segment_seconds,
            idle_seconds: settings.idle_seconds,
            wal_budget_bytes: settings.wal_budget_bytes,
            restart_after_budget: settings.restart_after_budget,
            no_identity: match settings.no_identity {
                NoIdentity::BaseOnly => NoIdentityView::BaseOnly,
                NoIdentity::Full => NoIdentityView::Full,
            },
            include: settings.include,
            exclude: settings.exclude,
            logical_decoding_work_mem_kb: settings.logical_decoding_work_mem_kb,
            base_jobs: settings.base_jobs,
            big_table_bytes: settings.big_table_bytes,
            spool_bytes: settings.spool_bytes,
        }
    }
}

/// Two requests that differ in their own fields and share the settings, all of them optional.
macro_rules! with_settings {
    ($(#[$doc:meta])* struct $name:ident { $($(#[$meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $($(#[$meta])* $field: $type,)*
            /// Five-field crontab expression for new bases; null switches it off.
            #[serde(default, deserialize_with = "present")]
            #[schema(value_type = Option<String>, example = "0 4 * * *")]
            schedule: Option<Value>,
            timezone: Option<String>,
            segment_bytes: Option<u64>,
            segment_seconds: Option<u32>,
            idle_seconds: Option<u32>,
            wal_budget_bytes: Option<u64>,
            restart_after_budget: Option<bool>,
            #[schema(inline)]
            no_identity: Option<NoIdentityView>,
            include: Option<Vec<String>>,
            exclude: Option<Vec<String>>,
            logical_decoding_work_mem_kb: Option<u32>,
            base_jobs: Option<u32>,
            big_table_bytes: Option<u64>,
            spool_bytes: Option<u64>,
        }

        impl $name {
            /// `before` with what this request sets, checked.
            fn settings(&self, before: SourceSettings) -> Result<SourceSettings, Problem> {
                let given = serde_json::json!({
                    "timezone": self.timezone,
                    "segment_bytes": self.segment_bytes,
                    "segment_seconds": self.segment_seconds,
                    "idle_seconds": self.idle_seconds,
                    "wal_budget_bytes": self.wal_budget_bytes,
                    "restart_after_budget": self.restart_after_budget,
                    "no_identity": self.no_identity,
                    "include": self.include,
                    "exclude": self.exclude,
                    "logical_decoding_work_mem_kb": self.logical_decoding_work_mem_kb,
                    "base_jobs": self.base_jobs,
                    "big_table_bytes": self.big_table_bytes,
                    "spool_bytes": self.spool_bytes,
                });
                merge(before, given, self.schedule.as_ref())
            }
        }
    };
}

with_settings! {
    /// A new source. Settings that are left out get their defaults.
    struct CreateSource {
        /// 1 to 64 of `A-Z a-z 0-9 . _ -`.
        #[schema(example = "shop")]
        name: String,
        /// A connection string, as a URL or as `key=value` pairs; kept encrypted, never answered.
        #[schema(example = "postgresql://app:secret@db.example.org/shop?sslmode=verify-full")]
        connection: String,
        /// Take up a source this repository already holds, after the catalog was lost.
        id: Option<String>,
    }
}

with_settings! {
    /// What to change of a source; what is left out stays.
    struct UpdateSource {
        name: Option<String>,
        connection: Option<String>,
    }
}

/// Tells a null from an absent field.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Option::<String>::deserialize(deserializer)
        .map(|value| Some(value.map_or(Value::Null, Value::String)))
}

fn merge(
    before: SourceSettings,
    given: Value,
    schedule: Option<&Value>,
) -> Result<SourceSettings, Problem> {
    let internal =
        |error: serde_json::Error| Problem::new(Code::Internal).detail(error.to_string());
    let mut merged = serde_json::to_value(before).map_err(internal)?;
    if let (Value::Object(merged), Value::Object(given)) = (&mut merged, given) {
        merged.extend(given.into_iter().filter(|(_, value)| !value.is_null()));
        merged.extend(schedule.map(|value| ("schedule".to_owned(), value.clone())));
    }
    let settings: SourceSettings = serde_json::from_value(merged).map_err(internal)?;
    settings
        .validate()
        .map_err(|error| Problem::field(Code::InvalidSettings, error.field(), chain(&error)))?;
    Ok(settings)
}

/// A source.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct SourceView {
    #[schema(example = "0123456789abcdef")]
    id: String,
    name: String,
    /// The connection without its secrets.
    endpoint: String,
    status: SourceState,
    /// Why it is in this status, if that needs saying.
    reason: Option<String>,
    lineage: Option<String>,
    /// End of what is durable in the repository.
    #[schema(example = "0/16B3748")]
    durable_lsn: Option<String>,
    /// The source's clock up to which everything is durable.
    observed_through: Option<String>,
    lag_bytes: Option<u64>,
    lag_seconds: Option<u64>,
    /// WAL the source keeps for us.
    retained_wal_bytes: Option<u64>,
    /// Tables that no segment holds until the next base.
    uncovered: Vec<String>,
    /// When the newest complete base was begun.
    last_base: Option<String>,
    created: String,
    updated: String,
    #[serde(flatten)]
    settings: Settings,
}

/// A source that was just registered, with what its probe found.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CreatedSource {
    #[serde(flatten)]
    source: SourceView,
    findings: Vec<Finding>,
}

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

pub(super) async fn view(app: &Shared, row: SourceRow) -> Result<SourceView, Problem> {
    let snapshot = app.supervisor.snapshot(row.id);
    let indexed = app.catalog.last_segment(row.id).await?;
    let (_, last_base) = app.catalog.last_bases(row.id).await?;
    let settings: SourceSettings = serde_json::from_value(row.settings)
        .map_err(|error| Problem::new(Code::Internal).detail(error.to_string()))?;
    let text = |value: &dyn ToString| value.to_string();
    let snapshot = snapshot.as_ref();
    let durable_lsn = snapshot
        .and_then(|snapshot| snapshot.durable_lsn)
        .or(indexed.as_ref().map(|segment| segment.key.end));
    let observed_through = snapshot
        .and_then(|snapshot| snapshot.observed_through)
        .or(indexed
            .as_ref()
            .and_then(|segment| segment.key.observed_through));
    let lineage = snapshot
        .and_then(|snapshot| snapshot.lineage)
        .or(indexed.as_ref().map(|segment| segment.lineage));
    Ok(SourceView {
        id: row.id.to_string(),
        name: row.name,
        endpoint: row.endpoint,
        status: snapshot.map_or(SourceState::Starting, |snapshot| snapshot.state),
        reason: snapshot.and_then(|snapshot| snapshot.reason.clone()),
        lineage: lineage.map(|lineage| text(&lineage)),
        durable_lsn: durable_lsn.map(|lsn| text(&lsn)),
        observed_through: observed_through.map(|time| text(&time)),
        lag_bytes: snapshot.and_then(|snapshot| snapshot.lag_bytes),
        lag_seconds: snapshot.and_then(|snapshot| snapshot.lag_seconds),
        retained_wal_bytes: snapshot.and_then(|snapshot| snapshot.retained_wal_bytes),
        uncovered: snapshot.map_or(Vec::new(), |snapshot| snapshot.uncovered.clone()),
        last_base: last_base.map(|time| text(&time)),
        created: text(&row.created),
        updated: text(&row.updated),
        settings: settings.into(),
    })
}

fn check_name(name: &str) -> Result<(), Problem> {
    let plain = (1..=NAME_BYTES_MAX).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    // An id in the place of a name would be ambiguous.
    match plain && name.parse::<SourceId>().is_err() {
        true => Ok(()),
        false => Err(Problem::field(
            Code::InvalidName,
            "name",
            "a name is 1 to 64 of A-Z a-z 0-9 . _ - and not sixteen hexadecimal digits",
        )),
    }
}

pub(super) fn connection(text: &str) -> Result<ConnectionConfig, Problem> {
    text.parse::<ConnectionConfig>()
        .map_err(|error| Problem::field(Code::InvalidConnection, "connection", error.to_string()))
}

/// Probe, and refuse what cannot be protected.
async fn probe_or_refuse(
    connection: &ConnectionConfig,
    settings: &SourceSettings,
) -> Result<Vec<Finding>, Problem> {
    let findings = super::probe::findings(connection, settings).await;
    if findings
        .iter()
        .any(|finding| finding.severity == Severity::Blocker)
    {
        return Err(Problem::new(Code::ProbeBlocked)
            .detail("nothing was created; mend the findings of severity \"blocker\" first")
            .with("findings", findings));
    }
    Ok(findings)
}

/// Register a source
#[utoipa::path(
    post,
    path = "/api/v1/sources",
    operation_id = "source_create",
    tag = "sources",
    request_body = CreateSource,
    responses(
        (status = 201, body = CreatedSource, headers(("Location" = String, description = "Its address"))),
        Common, BadBody, Clash
    )
)]
pub(super) async fn create(
    State(app): State<Shared>,
    Body(request): Body<CreateSource>,
) -> Result<Response, Problem> {
    let task_app = Shared::clone(&app);
    let created = app
        .detached(async move { Box::pin(register(&task_app, request)).await })
        .await?;
    let location = format!("/api/v1/sources/{}", created.source.id);
    let mut response = (StatusCode::CREATED, Json(created)).into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

async fn register(app: &Shared, request: CreateSource) -> Result<CreatedSource, Problem> {
    check_name(&request.name)?;
    let config = connection(&request.connection)?;
    let settings = request.settings(SourceSettings::default())?;
    if app.catalog.source(&request.name).await?.is_some() {
        let detail = format!("a source named \"{}\" exists already", request.name);
        return Err(Problem::field(Code::DuplicateName, "name", detail));
    }
    let id = match &request.id {
        Some(id) => known_id(app, id).await?,
        None => crate::secrets::random_id()
            .map(SourceId::from_bytes)
            .map_err(|_| Problem::new(Code::Internal))?,
    };
    let findings = probe_or_refuse(&config, &settings).await?;
    let time = now();
    let row = SourceRow {
        id,
        name: request.name,
        endpoint: config.redacted(),
        settings: serde_json::to_value(&settings)
            .map_err(|error| Problem::new(Code::Internal).detail(error.to_string()))?,
        desired: Desired::Running,
        created: time,
        updated: time,
    };
    // The data key first: a source in the catalog can always be written.
    if request.id.is_none() {
        app.repository.create_source(id).await?;
    }
    app.catalog
        .insert_source(&app.seal, row.clone(), &request.connection)
        .await?;
    tracing::info!(source = %id, name = row.name, endpoint = row.endpoint, "registered");
    app.supervisor.adopt(&row, false);
    app.bases.changed();
    let source = view(app, row).await?;
    Ok(CreatedSource { source, findings })
}

/// The id of a source that the repository holds and the catalog does not.
async fn known_id(app: &Shared, id: &str) -> Result<SourceId, Problem> {
    let id: SourceId = id
        .parse()
        .map_err(|_| Problem::field(Code::InvalidValue, "id", "sixteen hexadecimal digits"))?;
    if app.catalog.source(&id.to_string()).await?.is_some() {
        return Err(Problem::field(
            Code::SourceKnown,
            "id",
            "a source with this id is registered already",
        ));
    }
    let held = app.repository.sources().await?;
    match held.iter().any(|(held, _)| *held == id) {
        true => Ok(id),
        false => Err(Problem::field(
            Code::InvalidValue,
            "id",
            "the repository holds no source with this id",
        )),
    }
}

/// List sources by name
#[utoipa::path(
    get,
    path = "/api/v1/sources",
    operation_id = "source_list",
    tag = "sources",
    params(PageQuery),
    responses((status = 200, body = Page<SourceView>), Common, BadQuery)
)]
pub(super) async fn list(
    State(app): State<Shared>,
    Params(page): Params<PageQuery>,
) -> Result<Json<Page<SourceView>>, Problem> {
    let limit = page.limit()?;
    let after = page.after().map(str::to_owned);
    let rows = app.catalog.sources(after, limit + 1).await?;
    let Page { items, next } = Page::cut(rows, limit, |row| row.name.clone(), |row| row);
    let mut views = Vec::with_capacity(items.len());
    for row in items {
        views.push(view(&app, row).await?);
    }
    Ok(Json(Page { items: views, next }))
}

/// Show a source
#[utoipa::path(
    get,
    path = "/api/v1/sources/{source}",
    operation_id = "source_show",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name")),
    responses((status = 200, body = SourceView), Common, Missing)
)]
pub(super) async fn show(
    State(app): State<Shared>,
    Path(source): Path<String>,
) -> Result<Json<SourceView>, Problem> {
    let row = app.source(&source).await?;
    view(&app, row).await.map(Json)
}

/// Change a source
#[utoipa::path(
    patch,
    path = "/api/v1/sources/{source}",
    operation_id = "source_update",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name")),
    request_body = UpdateSource,
    responses((status = 200, body = SourceView), Common, Missing, BadBody, Clash)
)]
pub(super) async fn update(
    State(app): State<Shared>,
    Path(source): Path<String>,
    Body(request): Body<UpdateSource>,
) -> Result<Json<SourceView>, Problem> {
    let task_app = Shared::clone(&app);
    app.detached(async move { Box::pin(change(&task_app, &source, request)).await })
        .await
        .map(Json)
}

async fn change(app: &Shared, source: &str, request: UpdateSource) -> Result<SourceView, Problem> {
    let before = app.source(source).await?;
    let _change = app.supervisor.exclusive(before.id).await;
    if let Some(name) = &request.name {
        check_name(name)?;
    }
    let old: SourceSettings = serde_json::from_value(before.settings.clone()).unwrap_or_default();
    let settings = request.settings(old)?;
    let endpoint = match &request.connection {
        Some(text) => {
            let config = connection(text)?;
            probe_or_refuse(&config, &settings).await?;
            config.redacted()
        }
        None => before.endpoint.clone(),
    };
    let row = SourceRow {
        name: request.name.unwrap_or_else(|| before.name.clone()),
        endpoint,
        settings: serde_json::to_value(&settings)
            .map_err(|error| Problem::new(Code::Internal).detail(error.to_string()))?,
        updated: now(),
        ..before.clone()
    };
    app.catalog
        .update_source(&app.seal, row.clone(), request.connection.as_deref())
        .await?;
    let is_new = request.connection.is_some() || row.settings != before.settings;
    if is_new {
        app.supervisor.restart(&row, false).await;
    }
    app.bases.changed();
    view(app, row).await
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
    app.bases.cancel(row.id);
    app.supervisor.forget(row.id).await;
    let removed = match clean_up(app, &row).await {
        Ok(removed) => removed,
        Err(error) if force => nothing_dropped(&row, &chain(&error)),
        Err(error) => {
            // A slot that nobody reads fills the source's disk: do not forget it quietly.
            app.supervisor.adopt(&row, false);
            let left = nothing_dropped(&row, &chain(&error)).left;
            let problem = match error {
                crate::supervisor::Error::Engine(error) => Problem::from(error),
                error => internal(error),
            };
            let hint = "nothing was removed; with ?force=true the source is forgotten all the same";
            return Err(problem.with("hint", hint).with("left", left));
        }
    };
    app.catalog.delete_source(row.id).await?;
    app.bases.changed();
    for left in &removed.left {
        let LeftObject { object, sql, .. } = left;
        tracing::warn!(source = %row.id, object, sql, "left behind");
    }
    tracing::info!(source = %row.id, name = row.name, "removed");
    Ok(removed)
}

async fn clean_up(
    app: &Shared,
    row: &SourceRow,
) -> Result<RemovedSource, crate::supervisor::Error> {
    let source = app.supervisor.source(row).await?;
    let removal = lastgood_engine::remove(&source).await?;
    Ok(RemovedSource {
        id: row.id.to_string(),
        name: row.name.clone(),
        dropped: removal.dropped,
        left: removal.left.into_iter().map(Into::into).collect(),
    })
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
        id: id.to_string(),
        name: row.name.clone(),
        dropped: Vec::new(),
        left: left
            .into_iter()
            .map(|(object, sql)| LeftObject {
                object,
                sql,
                error: error.to_owned(),
            })
            .collect(),
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
    app.detached(async move { Box::pin(hold(&task_app, &source, request.slot)).await })
        .await
        .map(Json)
}

async fn hold(app: &Shared, source: &str, slot: SlotFate) -> Result<SourceView, Problem> {
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
        let source = app.supervisor.source(&row).await.map_err(internal)?;
        let store = app.supervisor.store(row.id).await.map_err(internal)?;
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
    view(app, row).await
}

fn internal(error: crate::supervisor::Error) -> Problem {
    Problem::new(Code::Internal).detail(chain(&error))
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
        view(&task_app, row).await
    };
    app.detached(resumed).await.map(Json)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(text: &str) -> Result<SourceSettings, Problem> {
        let request: UpdateSource = serde_json::from_str(text).unwrap();
        let before = SourceSettings {
            schedule: Some("0 4 * * *".to_owned()),
            ..SourceSettings::default()
        };
        request.settings(before)
    }

    #[test]
    fn settings_change_only_where_they_are_named() {
        let same = update("{}").unwrap();
        assert_eq!(same.schedule.as_deref(), Some("0 4 * * *"));
        assert_eq!(update(r#"{"schedule":null}"#).unwrap().schedule, None);
        let changed = update(r#"{"segment_seconds":9,"no_identity":"full"}"#).unwrap();
        assert_eq!(changed.segment_seconds, 9);
        assert_eq!(changed.no_identity, NoIdentity::Full);
        assert_eq!(changed.schedule, same.schedule);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (body, field) in [
            (r#"{"schedule":"0 25 * * *"}"#, "schedule"),
            (r#"{"timezone":"Mars/Olympus"}"#, "timezone"),
            (r#"{"segment_seconds":0}"#, "segment_seconds"),
        ] {
            let problem = update(body).unwrap_err();
            assert_eq!(problem.code(), Code::InvalidSettings);
            assert!(format!("{problem:?}").contains(field), "{body}");
        }
    }

    #[test]
    fn names_are_plain() {
        for name in ["shop", "a", "shop.eu-1_x"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "a b", "a/b", "ä", "0123456789abcdef", &"x".repeat(65)] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn schedules_are_text_or_null() {
        let check = |text| serde_json::from_str::<UpdateSource>(text);
        assert!(check(r#"{"schedule":5}"#).is_err());
        assert!(check(r#"{"schedule":null}"#).is_ok());
    }
}
