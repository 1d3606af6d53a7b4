//! The OpenAPI document: made from the handlers' declarations, served at `/api/v1/openapi.json`.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::{Extension, Json};
use serde_json::Value;
use utoipa::openapi::response::Response;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, ResponseBuilder};
use utoipa::{IntoResponses, Modify, OpenApi};

use super::problem::ProblemBody;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "lastgood",
        description = "Point-in-time recovery for any PostgreSQL that you can connect to.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    components(schemas(ProblemBody)),
    modifiers(&Bearer),
    security(("token" = [])),
)]
pub(super) struct Document;

struct Bearer;

impl Modify for Bearer {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let scheme = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The token in admin.token, made at the first start."))
            .build();
        document
            .components
            .get_or_insert_default()
            .add_security_scheme("token", SecurityScheme::Http(scheme));
    }
}

/// Problems every route may answer with.
pub(super) struct Common;
/// A route that takes a JSON body.
pub(super) struct BadBody;
/// A route that takes a query.
pub(super) struct BadQuery;
/// A route below a resource that may not exist.
pub(super) struct Missing;
/// A route that may clash with the state of things.
pub(super) struct Clash;
/// A route that asks PostgreSQL or the repository for something it may refuse.
pub(super) struct Refused;

macro_rules! problems {
    ($name:ident: $($status:literal $text:literal),+) => {
        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<Response>> {
                BTreeMap::from([$(($status.to_owned(), problem($text))),+])
            }
        }
    };
}

problems!(Common: "401" "No token, or one that is not known", "500" "Something is wrong in the service", "503" "PostgreSQL or the repository does not answer");
problems!(BadBody: "400" "The body is not JSON", "413" "The body is larger than 1 MiB", "415" "The body is not application/json", "422" "A field is unknown, missing, or not what it takes");
problems!(BadQuery: "400" "The query is not understood");
problems!(Missing: "404" "There is no such resource");
problems!(Clash: "409" "It clashes with the present state");
problems!(Refused: "422" "PostgreSQL or the repository refused, or the target cannot be reached");

fn problem(description: &str) -> RefOr<Response> {
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Problem")))
        .build();
    ResponseBuilder::new()
        .description(description)
        .content("application/problem+json", content)
        .build()
        .into()
}

/// This document
#[utoipa::path(
    get,
    path = "/api/v1/openapi.json",
    tag = "service",
    responses((status = 200, body = Value, description = "OpenAPI 3.1"), Common)
)]
pub(super) async fn document(Extension(document): Extension<Arc<Value>>) -> Json<Value> {
    Json(Value::clone(&document))
}

/// Make the document available to its handler.
pub(super) fn extension(document: &utoipa::openapi::OpenApi) -> Extension<Arc<Value>> {
    let value = serde_json::to_value(document).expect("an OpenAPI document is JSON");
    Extension(Arc::new(value))
}
