//! Sources: register, list, show, change.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use lastgood_engine::SourceSettings;
use lastgood_engine::probe::{ALREADY_CAPTURED, Report, ServerFacts, probe};
use lastgood_pg::ConnectionConfig;
use lastgood_proto::SourceId;
use serde::Serialize;
use utoipa::ToSchema;

use super::extract::{Body, Page, PageQuery, Params};
use super::lifecycle::leave;
use super::openapi::{BadBody, BadQuery, Clash, Common, Missing};
use super::plan::NotCoveredView;
use super::probe::{Finding, Severity};
use super::problem::{Code, Problem, chain};
use super::settings::{CreateSource, Settings, UpdateSource};
use crate::app::Shared;
use crate::catalog::{Desired, SourceRow};
use crate::clock::now;
use crate::supervisor::{Error, Snapshot, State as SourceState};

/// The longest name, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 64;
/// Each has a task, sessions, a spool and a slot.
const SOURCES_MAX: usize = 1000;
/// Of a connection string: beyond this it is something else.
const CONNECTION_BYTES_MAX: usize = 16 << 10;

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
    /// The command to go on with, if it waits for somebody.
    #[schema(example = "lastgood source resume shop")]
    next: Option<String>,
    /// Tables that are as old as a base, whatever the target.
    not_covered: Vec<NotCoveredView>,
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
    let next = match row.is_connected {
        true => snapshot.and_then(|snapshot| next_command(snapshot, &row.name)),
        false => Some(connect_command(&row.name)),
    };
    Ok(SourceView {
        id: row.id.to_string(),
        name: row.name,
        endpoint: row.endpoint,
        status: snapshot.map_or(SourceState::Starting, |snapshot| snapshot.state),
        reason: snapshot.and_then(reason),
        lineage: lineage.map(|lineage| text(&lineage)),
        durable_lsn: durable_lsn.map(|lsn| text(&lsn)),
        observed_through: observed_through.map(|time| text(&time)),
        lag_bytes: snapshot.and_then(|snapshot| snapshot.lag_bytes),
        lag_seconds: snapshot.and_then(|snapshot| snapshot.lag_seconds),
        retained_wal_bytes: snapshot.and_then(|snapshot| snapshot.retained_wal_bytes),
        next,
        not_covered: snapshot.map_or(Vec::new(), |snapshot| {
            snapshot.uncovered.iter().map(Into::into).collect()
        }),
        last_base: last_base.map(|time| text(&time)),
        created: text(&row.created),
        updated: text(&row.updated),
        settings: settings.into(),
    })
}

fn reason(snapshot: &Snapshot) -> Option<String> {
    let base = snapshot.base_waits.as_ref();
    let base = base.map(|reason| format!("a base cannot begin yet: {reason}"));
    snapshot.reason.clone().or(base)
}

/// What somebody has to run who has done what the reason asks for.
fn next_command(snapshot: &Snapshot, name: &str) -> Option<String> {
    match snapshot.state {
        SourceState::Failed | SourceState::Paused => Some(format!("lastgood source resume {name}")),
        _ if snapshot.uncovered_counts().0 > 0 => Some(format!("lastgood base take {name}")),
        _ => None,
    }
}

fn connect_command(name: &str) -> String {
    format!("lastgood source set {name} --connection CONNECTION")
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
    if text.len() > CONNECTION_BYTES_MAX {
        let detail = format!("a connection string is at most {CONNECTION_BYTES_MAX} bytes long");
        return Err(Problem::field(
            Code::InvalidConnection,
            "connection",
            detail,
        ));
    }
    text.parse::<ConnectionConfig>()
        .map_err(|error| Problem::field(Code::InvalidConnection, "connection", error.to_string()))
}

/// Probe for the source `id`, and refuse what cannot be protected.
async fn probe_or_refuse(
    app: &Shared,
    id: SourceId,
    connection: &ConnectionConfig,
    settings: &SourceSettings,
) -> Result<(Vec<Finding>, Option<ServerFacts>), Problem> {
    let Report { findings, server } = Box::pin(probe(connection, settings)).await;
    let mut findings: Vec<Finding> = findings.into_iter().map(Into::into).collect();
    let id = id.to_string();
    findings.retain(|finding| finding.code != ALREADY_CAPTURED || finding.object != id);
    for finding in &mut findings {
        if finding.code == ALREADY_CAPTURED
            && let Some(other) = app.catalog.source(&finding.object).await?
        {
            finding.message = format!("source \"{}\": {}", other.name, finding.message);
        }
    }
    if findings
        .iter()
        .any(|finding| finding.severity == Severity::Blocker)
    {
        return Err(Problem::new(Code::ProbeBlocked)
            .detail("nothing was created; mend the findings of severity \"blocker\" first")
            .with("findings", findings));
    }
    Ok((findings, server))
}

/// In words, if a server and database are not the source's: its lineage would end, and its slot be left behind.
async fn elsewhere(
    app: &Shared,
    id: SourceId,
    server: Option<ServerFacts>,
) -> Result<Option<String>, Error> {
    let Some((server, system_id)) = server.and_then(|it| it.system_id.map(|id| (it, id))) else {
        return Ok(None);
    };
    let store = app.supervisor.store(id).await?;
    Ok(lastgood_engine::elsewhere(&store, system_id, &server.database).await?)
}

const MOVED: &str = "nothing was changed; if it has moved there for good, say so (--moved, \"moved\": true): a new lineage \
    begins there with a new base, and what is ours on the old server is removed if that can be reached";

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
    let waiting = waiting(app, request.id.as_deref()).await?;
    let defaults = waiting.as_ref().map_or_else(
        || Ok(SourceSettings::default()),
        |row| serde_json::from_value(row.settings.clone()),
    );
    let settings = request.settings(defaults.unwrap_or_default())?;
    let namesake = app.catalog.source(&request.name).await?;
    let namesake = namesake.filter(|row| waiting.as_ref().is_none_or(|it| it.id != row.id));
    if let Some(row) = namesake {
        if !row.is_connected {
            return Err(Problem::field(
                Code::SourceInRepository,
                "name",
                format!(
                    "a source named \"{}\" waits for its connection string",
                    row.name
                ),
            )
            .with("ids", [row.id.to_string()])
            .with(
                "hint",
                format!("to go on with it: {}", connect_command(&row.name)),
            ));
        }
        let detail = format!("a source named \"{}\" exists already", request.name);
        return Err(Problem::field(Code::DuplicateName, "name", detail));
    }
    let id = match (&waiting, &request.id) {
        (Some(row), _) => row.id,
        (None, Some(id)) => known_id(app, id).await?,
        (None, None) => {
            if !request.new {
                refuse_second(app, &request.name).await?;
            }
            crate::secrets::random_id()
                .map(SourceId::from_bytes)
                .map_err(|_| Problem::new(Code::Internal))?
        }
    };
    if waiting.is_none() && app.catalog.sources(None, SOURCES_MAX).await?.len() >= SOURCES_MAX {
        let detail = format!("{SOURCES_MAX} at most: give others to a service of their own");
        return Err(Problem::new(Code::TooManySources).detail(detail));
    }
    let (findings, _) = probe_or_refuse(app, id, &config, &settings).await?;
    let time = now();
    let row = SourceRow {
        id,
        name: request.name,
        endpoint: config.redacted(),
        is_connected: true,
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
    let (seal, connection) = (&app.seal, Some(request.connection.as_str()));
    match waiting {
        Some(_) => {
            let updated = app.catalog.update_source(seal, row.clone(), connection);
            updated.await?;
        }
        None => {
            let inserted = app.catalog.insert_source(seal, row.clone(), connection);
            inserted.await?;
        }
    }
    tracing::info!(source = %id, name = row.name, endpoint = row.endpoint, "registered");
    app.supervisor.adopt(&row, false);
    app.bases.changed();
    let source = view(app, row).await?;
    Ok(CreatedSource { source, findings })
}

/// Refuse a name that stands in the repository already: whoever gives it after a host was lost means
/// that source, and a second one would begin without its past.
async fn refuse_second(app: &Shared, name: &str) -> Result<(), Problem> {
    let held = app.repository.sources().await?;
    let ids: Vec<String> = held
        .iter()
        .filter(|(_, file)| file.name == name)
        .map(|(id, _)| id.to_string())
        .collect();
    let Some(id) = ids.last() else {
        return Ok(());
    };
    let detail = format!(
        "the repository holds a source named \"{name}\" ({}) that is not registered here",
        ids.join(", ")
    );
    let hint = format!(
        "to go on with it: lastgood source add {name} --id {id}; to begin another of the same name: \
         lastgood source add {name} --new"
    );
    Err(Problem::field(Code::SourceInRepository, "name", detail)
        .with("ids", ids)
        .with("hint", hint))
}

/// A source of that id that was found in the repository and waits for its connection string.
async fn waiting(app: &Shared, id: Option<&str>) -> Result<Option<SourceRow>, Problem> {
    let Some(id) = id else {
        return Ok(None);
    };
    let found = app.catalog.source(id).await?;
    Ok(found.filter(|row| !row.is_connected && row.id.to_string() == id))
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
    let changed = async move { Box::pin(change(&task_app, &source, request)).await };
    let row = app.detached(changed).await?;
    app.supervisor.settle(row.id).await;
    view(&app, row).await.map(Json)
}

async fn change(app: &Shared, source: &str, request: UpdateSource) -> Result<SourceRow, Problem> {
    let before = app.source(source).await?;
    let _change = app.supervisor.exclusive(before.id).await;
    if let Some(name) = &request.name {
        check_name(name)?;
    }
    let old: SourceSettings = serde_json::from_value(before.settings.clone()).unwrap_or_default();
    let settings = request.settings(old.clone())?;
    let endpoint = match &request.connection {
        Some(text) => {
            let config = connection(text)?;
            let (_, server) = probe_or_refuse(app, before.id, &config, &settings).await?;
            if let Some(detail) = elsewhere(app, before.id, server).await? {
                if !request.moved {
                    let other = Problem::field(Code::OtherDatabase, "connection", detail);
                    return Err(other.with("hint", MOVED));
                }
                if before.is_connected {
                    leave(app, &before).await;
                }
            }
            config.redacted()
        }
        None => before.endpoint.clone(),
    };
    let row = SourceRow {
        name: request.name.unwrap_or_else(|| before.name.clone()),
        endpoint,
        is_connected: before.is_connected || request.connection.is_some(),
        settings: serde_json::to_value(&settings)
            .map_err(|error| Problem::new(Code::Internal).detail(error.to_string()))?,
        updated: now(),
        ..before.clone()
    };
    app.catalog
        .update_source(&app.seal, row.clone(), request.connection.as_deref())
        .await?;
    if request.connection.is_some() || !settings.captures_like(&old) {
        app.supervisor.restart(&row, false).await;
    } else if row.is_connected {
        // Should it fail, the next start of the capture makes up for it.
        let recorded = app.supervisor.record_settings(&row).await;
        if let Err(error) = recorded {
            let error = chain(&error);
            tracing::warn!(source = %row.id, error, "the settings are not in the repository yet");
        }
    }
    app.bases.changed();
    Ok(row)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_is_bounded() {
        let padded =
            |bytes: usize| format!("host=db user=u dbname=d application_name={:x<bytes$}", "");
        assert!(connection(&padded(100)).is_ok());
        let problem = connection(&padded(CONNECTION_BYTES_MAX)).unwrap_err();
        assert_eq!(problem.code(), Code::InvalidConnection);
        assert!(format!("{problem:?}").contains("16384"), "{problem:?}");
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
}
