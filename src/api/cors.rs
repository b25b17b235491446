//! Which pages of other origins may ask, from a browser (Fetch standard, CORS): none, unless the operator names them.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use tower::{Layer, ServiceExt};
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::App;
use super::error::ApiError;
use crate::config::CorsOrigin;

const METHODS: [Method; 5] = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::DELETE];
/// What a browser does not let a page send, or read, by itself.
const SENT: [HeaderName; 8] = [
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::RANGE,
    HeaderName::from_static("x-request-id"),
    // A key for other systems' endpoints.
    HeaderName::from_static("x-api-key"),
    // What POST /mcp is asked with.
    HeaderName::from_static("mcp-protocol-version"),
    HeaderName::from_static("mcp-method"),
    HeaderName::from_static("mcp-name"),
];
const READ: [HeaderName; 8] = [
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
    header::RETRY_AFTER,
    header::CONTENT_RANGE,
    header::ACCEPT_RANGES,
    header::ETAG,
];
/// How long a browser need not ask again; most take no longer.
const REMEMBERED: Duration = Duration::from_secs(2 * 60 * 60);

/// None where there is no origin.
pub fn layer(origins: &[CorsOrigin]) -> Option<CorsLayer> {
    let allowed = match origins.iter().any(|origin| origin.as_str() == "*") {
        true => AllowOrigin::any(),
        false => AllowOrigin::list(origins.iter().filter_map(|origin| HeaderValue::from_str(origin.as_str()).ok())),
    };
    let layer = CorsLayer::new().allow_origin(allowed).allow_methods(METHODS).allow_headers(SENT);
    (!origins.is_empty()).then(|| layer.expose_headers(READ).max_age(REMEMBERED))
}

/// Refuses a page of another origin where no browser keeps it away, so that no name that is resolved to this address lets it in
/// (DNS rebinding).
///
/// # Errors
/// `WrongOrigin`.
pub fn check_origin(app: &App, headers: &HeaderMap) -> Result<(), ApiError> {
    let settings = app.settings();
    let allowed = &settings.config.server.cors_origins;
    let is_allowed = |origin: &HeaderValue| {
        allowed.iter().any(|allowed| allowed.as_str() == "*" || allowed.as_str().as_bytes() == origin.as_bytes())
    };
    let all = headers.get_all(header::ORIGIN).iter().all(is_allowed);
    if all { Ok(()) } else { Err(ApiError::WrongOrigin) }
}

/// Answers what a browser asks before a page's request, and tells it in every answer what the page may have.
pub async fn cors(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let layer = app.settings().cors.clone();
    // Whoever is no browser gets the answer of the path.
    match layer.filter(|_| request.headers().contains_key(header::ORIGIN)) {
        None => next.run(request).await,
        Some(layer) => layer.layer(next).oneshot(request).await.into_response(),
    }
}
