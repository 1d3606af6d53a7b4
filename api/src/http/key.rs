//! The master key, as far as an answer may tell of it: never the key, and not its fingerprint before
//! an operator has shown to know it from a copy.

use axum::Json;
use axum::extract::{Path, State};
use lastgood_store::{DataKeyRotation, Fingerprint};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::extract::Body;
use super::openapi::{BadBody, Common, Missing};
use super::problem::{Code, Problem};
use crate::app::{KEY_WARNING, KeyState, Shared};

#[derive(Debug, Clone, Copy, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum KeyPlace {
    /// In a file beside the service.
    File,
    /// In the environment of the service.
    Environment,
    /// Encryption is switched off.
    None,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Key {
    kept_in: KeyPlace,
    /// Whether an operator has shown that a copy is kept elsewhere, or none need be.
    confirmed: bool,
    /// Told only once it is confirmed.
    fingerprint: Option<String>,
    warning: Option<String>,
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ConfirmKey {
    /// As `lastgood key show --key-file COPY` prints it.
    #[schema(example = "0123456789abcdef")]
    fingerprint: String,
}

/// Where the master key is kept
#[utoipa::path(
    get,
    path = "/api/v1/key",
    operation_id = "key_show",
    tag = "service",
    responses((status = 200, body = Key), Common)
)]
pub(super) async fn show(State(app): State<Shared>) -> Result<Json<Key>, Problem> {
    describe(&app).await.map(Json)
}

/// Confirm that a copy of the master key is kept elsewhere
#[utoipa::path(
    post,
    path = "/api/v1/key/confirm",
    operation_id = "key_confirm",
    tag = "service",
    request_body = ConfirmKey,
    responses((status = 200, body = Key), Common, BadBody)
)]
pub(super) async fn confirm(
    State(app): State<Shared>,
    Body(body): Body<ConfirmKey>,
) -> Result<Json<Key>, Problem> {
    let given: Option<Fingerprint> = body.fingerprint.trim().parse().ok();
    if let KeyState::File(fingerprint) | KeyState::Given(fingerprint) = app.key {
        if given != Some(fingerprint) {
            return Err(Problem::field(
                Code::WrongFingerprint,
                "fingerprint",
                "the copy is not of the key this service uses",
            ));
        }
        app.confirm_key(fingerprint).await?;
        tracing::info!("the master key is confirmed to be kept elsewhere");
    }
    describe(&app).await.map(Json)
}

/// A data key.
#[derive(Debug, Serialize, ToSchema)]
pub(crate) struct DataKey {
    /// Names its object below `keys/` in the repository.
    #[schema(example = "0123456789abcdef")]
    key: String,
    /// How often it has been rotated.
    number: u32,
}

impl From<DataKeyRotation> for DataKey {
    fn from(rotation: DataKeyRotation) -> Self {
        Self {
            key: rotation.key.to_string(),
            number: rotation.number,
        }
    }
}

/// Seal new objects of a source with a new data key; what is there stays readable
#[utoipa::path(
    post,
    path = "/api/v1/sources/{source}/key/rotate",
    operation_id = "data_key_rotate",
    tag = "sources",
    params(("source" = String, Path, description = "Id or name")),
    responses((status = 200, body = DataKey), Common, Missing)
)]
pub(super) async fn rotate_data(
    State(app): State<Shared>,
    Path(source): Path<String>,
) -> Result<Json<DataKey>, Problem> {
    let task_app = Shared::clone(&app);
    let rotated = async move {
        let row = task_app.source(&source).await?;
        let _change = task_app.supervisor.exclusive(row.id).await;
        task_app.supervisor.check_writer(row.id).await?;
        let rotation = task_app.repository.rotate_data_key(row.id).await?;
        tracing::info!(source = %row.id, key = %rotation.key, "new objects have a new data key");
        Ok(rotation)
    };
    Ok(Json(app.detached(rotated).await?.into()))
}

async fn describe(app: &Shared) -> Result<Key, Problem> {
    let confirmed = app.is_key_safe().await?;
    let (kept_in, fingerprint) = match app.key {
        KeyState::Unencrypted => (KeyPlace::None, None),
        KeyState::Given(fingerprint) => (KeyPlace::Environment, Some(fingerprint)),
        KeyState::File(fingerprint) => (KeyPlace::File, Some(fingerprint)),
    };
    Ok(Key {
        kept_in,
        confirmed,
        fingerprint: fingerprint
            .filter(|_| confirmed)
            .map(|fingerprint| fingerprint.to_string()),
        warning: (!confirmed).then(|| KEY_WARNING.to_owned()),
    })
}
