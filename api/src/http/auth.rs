//! Bearer tokens, and one log line a request.

use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::{Code, Problem};
use crate::app::Shared;
use crate::secrets;

/// The one path that answers without a token.
const OPEN_PATH: &str = "/api/v1/health";

/// Let only requests with a known token through: closed unless named open.
pub(super) async fn require_token(
    State(app): State<Shared>,
    request: Request,
    next: Next,
) -> Response {
    if request.uri().path() == OPEN_PATH {
        return next.run(request).await;
    }
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim());
    match token {
        Some(token) if secrets::is_known(token, &app.token_hashes) => next.run(request).await,
        Some(_) => Problem::new(Code::Unauthorized)
            .detail("the token is not known")
            .into_response(),
        None => Problem::new(Code::Unauthorized)
            .detail("send the header Authorization: Bearer <token>; it stands in admin.token")
            .into_response(),
    }
}

/// Method, path, status and duration; never a header, a query or a body.
pub(super) async fn log(request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let begun = Instant::now();
    let response = next.run(request).await;
    let status = response.status().as_u16();
    let elapsed_ms = begun.elapsed().as_millis();
    match response.status().is_server_error() {
        true => tracing::warn!(%method, path, status, elapsed_ms, "request"),
        false => tracing::debug!(%method, path, status, elapsed_ms, "request"),
    }
    response
}
