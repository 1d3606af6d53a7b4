//! The HTTP API: one file a resource, wire types of its own, and the OpenAPI document from the same
//! declarations that make the routes.
//!
//! Everything but `/api/v1/health` needs a bearer token. Errors are RFC 9457 problems. Work that
//! changes something runs to its end whether or not the client waits for it.

mod auth;
mod bases;
mod compaction;
mod extract;
mod health;
mod key;
mod lifecycle;
mod metrics;
mod openapi;
mod plan;
mod points;
mod probe;
mod problem;
mod report;
mod restores;
mod retention;
mod segments;
mod settings;
mod sources;
mod target;
mod transactions;
mod windows;

use std::any::Any;

use axum::Router;
use axum::response::{IntoResponse, Response};
use tower_http::catch_panic::CatchPanicLayer;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::Shared;
pub(crate) use compaction::CompactionView;
pub(crate) use key::DataKey as DataKeyView;
pub(crate) use plan::PlanView;
pub(crate) use probe::ReportView as ProbeView;
pub(crate) use problem::{Code, Problem, ProblemBody, chain};
pub(crate) use report::{ProgressView, ReportView};
pub(crate) use sources::NAME_BYTES_MAX;
pub(crate) use transactions::TransactionsView;
pub(crate) use windows::WindowsView;

/// The whole service behind one address.
pub(crate) fn router(app: Shared) -> Router {
    let (router, document) = routes().split_for_parts();
    router
        .layer(openapi::extension(&document))
        .fallback(|| async { Problem::new(Code::NotFound) })
        .method_not_allowed_fallback(|| async { Problem::new(Code::MethodNotAllowed) })
        .layer(axum::middleware::from_fn_with_state(
            Shared::clone(&app),
            auth::require_token,
        ))
        .layer(axum::middleware::map_response(problem::only_problems))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(axum::middleware::from_fn(auth::log))
        .with_state(app)
}

fn routes() -> OpenApiRouter<Shared> {
    OpenApiRouter::with_openapi(openapi::Document::openapi())
        .routes(routes!(health::health))
        .routes(routes!(probe::probe))
        .routes(routes!(sources::create, sources::list))
        .routes(routes!(sources::show, sources::update, lifecycle::remove))
        .routes(routes!(lifecycle::pause))
        .routes(routes!(lifecycle::resume))
        .routes(routes!(bases::list, bases::take))
        .routes(routes!(segments::list))
        .routes(routes!(windows::window))
        .routes(routes!(retention::show, retention::run))
        .routes(routes!(compaction::show, compaction::run))
        .routes(routes!(transactions::list))
        .routes(routes!(points::list, points::create))
        .routes(routes!(restores::plan))
        .routes(routes!(restores::start))
        .routes(routes!(restores::list))
        .routes(routes!(restores::show))
        .routes(routes!(restores::events))
        .routes(routes!(restores::cancel))
        .routes(routes!(key::show))
        .routes(routes!(key::confirm))
        .routes(routes!(key::rotate_data))
        .routes(routes!(metrics::metrics))
        .routes(routes!(openapi::document))
}

fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let message = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    tracing::error!(message, "a request handler panicked");
    Problem::new(Code::Internal).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_operation_is_documented() {
        let document = serde_json::to_value(routes().into_openapi()).unwrap();
        let paths = document["paths"].as_object().unwrap();
        assert!(paths.len() >= 18, "{:?}", paths.keys());
        let mut ids = std::collections::BTreeSet::new();
        for (path, operations) in paths {
            for (method, operation) in operations.as_object().unwrap() {
                let name = format!("{method} {path}");
                let id = operation["operationId"].as_str().unwrap();
                assert!(ids.insert(id.to_owned()), "{name}: {id} twice");
                assert!(
                    operation["summary"]
                        .as_str()
                        .is_some_and(|text| !text.is_empty()),
                    "{name}"
                );
                let responses = operation["responses"].as_object().unwrap();
                assert!(
                    responses.keys().any(|status| status.starts_with('2')),
                    "{name}"
                );
                let open = path == "/api/v1/health";
                assert_eq!(responses.contains_key("401"), !open, "{name}");
            }
        }
    }
}
