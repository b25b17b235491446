//! Errors as the API page has them: `{"error": …, "details": …}` with every status.

use std::any::Any;
use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoResponses, ToSchema};

use super::compat::ErrorText;

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The kind of error; the same for every error of a status.
    #[schema(example = "Validation error")]
    pub error: String,
    /// What was wrong with this request.
    #[schema(example = "Invalid command: command cannot be empty")]
    pub details: String,
}

/// What every operation but /health may answer in place of what it is for: the document's part of `api::admission`.
#[derive(IntoResponses)]
#[allow(dead_code, reason = "the document is made of the type alone")]
pub enum NotAdmitted {
    #[response(status = 401, description = "No API key, or a malformed header.",
        example = json!({"error": "Authentication required", "details": "API key is required for this endpoint"}))]
    NoKey(ErrorBody),
    #[response(status = 403, description = "An unknown API key.",
        example = json!({"error": "Access denied", "details": "Invalid API key"}))]
    WrongKey(ErrorBody),
    #[response(status = 429, description = "Too many requests from this address or with this key.",
        headers(("Retry-After" = u64, description = "Seconds to wait")),
        example = json!({"error": "Rate limit exceeded", "details": "Too many requests, please try again later"}))]
    RateLimited(ErrorBody),
    #[response(status = 500, description = "Faber itself failed, and nothing was done.",
        example = json!({"error": "Internal server error", "details": "Failed to execute task"}))]
    Internal(ErrorBody),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    #[error("{0}")]
    Invalid(String),
    #[error("API key is required for this endpoint")]
    NoKey,
    #[error("Invalid API key")]
    WrongKey,
    #[error("Pages of this origin may not ask: server.cors_origins has those that may")]
    WrongOrigin,
    #[error("There is nothing at this path")]
    NotFound,
    #[error("This path does not answer to this method")]
    MethodNotAllowed,
    #[error("The body did not arrive in time")]
    Late,
    #[error("Request body exceeds maximum size limit")]
    TooLarge,
    #[error("The Content-Type must be application/json")]
    NotJson,
    #[error("The body must come as it is, without a Content-Encoding")]
    Encoded,
    #[error("Too many requests, please try again later")]
    RateLimited { retry_after: Duration },
    #[error("Failed to execute task")]
    Internal,
    #[error("{0}")]
    TooLargeFor(String),
    #[error("{0}")]
    Missing(String),
    #[error("{0}")]
    OtherBody(String),
    #[error("{0}")]
    NoRoom(String),
    #[error("{0}")]
    Unsatisfiable(String),
    #[error("{0}")]
    NotHere(String),
    #[error("{0}")]
    Gone(String),
    #[error("{0}")]
    Quota(String),
    #[error("All capacity is in use, please try again later")]
    Saturated { retry_after: Duration },
}

impl ApiError {
    /// What its answer says.
    pub fn body(&self) -> ErrorBody {
        ErrorBody { error: self.kind().1.into(), details: self.to_string() }
    }

    fn kind(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Invalid(_) => (StatusCode::BAD_REQUEST, "Validation error"),
            Self::NoKey => (StatusCode::UNAUTHORIZED, "Authentication required"),
            Self::WrongKey | Self::WrongOrigin => (StatusCode::FORBIDDEN, "Access denied"),
            Self::NotFound => (StatusCode::NOT_FOUND, "Not found"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "Method not allowed"),
            Self::Late => (StatusCode::REQUEST_TIMEOUT, "Request timeout"),
            Self::TooLarge | Self::TooLargeFor(_) => (StatusCode::PAYLOAD_TOO_LARGE, "Request too large"),
            Self::NotJson | Self::Encoded => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "Unsupported media type"),
            Self::RateLimited { .. } | Self::Quota(_) => (StatusCode::TOO_MANY_REQUESTS, "Rate limit exceeded"),
            Self::Internal => (StatusCode::INTERNAL_SERVER_ERROR, "Internal server error"),
            Self::Missing(_) => (StatusCode::NOT_FOUND, "Not found"),
            Self::OtherBody(_) => (StatusCode::UNPROCESSABLE_ENTITY, "Idempotency conflict"),
            Self::NoRoom(_) => (StatusCode::INSUFFICIENT_STORAGE, "Insufficient storage"),
            Self::Unsatisfiable(_) => (StatusCode::RANGE_NOT_SATISFIABLE, "Range not satisfiable"),
            Self::Gone(_) => (StatusCode::GONE, "Gone"),
            Self::NotHere(_) => (StatusCode::SERVICE_UNAVAILABLE, "Service unavailable"),
            Self::Saturated { .. } => (StatusCode::SERVICE_UNAVAILABLE, "Service unavailable"),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = self.body();
        let text = ErrorText(body.details.clone());
        let mut response = (self.kind().0, Json(body)).into_response();
        response.extensions_mut().insert(text);
        let headers = response.headers_mut();
        match self {
            Self::RateLimited { retry_after } | Self::Saturated { retry_after } => {
                headers.insert(header::RETRY_AFTER, whole_seconds(retry_after).into());
            }
            Self::NoKey => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"faber\""));
            }
            _ => {}
        }
        response
    }
}

/// Rounded up, and never nothing: a client that waits so long is not early.
fn whole_seconds(time: Duration) -> u64 {
    (time.as_secs() + u64::from(time.subsec_nanos() > 0)).max(1)
}

pub async fn not_found() -> ApiError {
    ApiError::NotFound
}

pub async fn method_not_allowed() -> ApiError {
    ApiError::MethodNotAllowed
}

/// The panic's own text went to the log by the panic hook, with the place.
pub fn panicked(_: Box<dyn Any + Send>) -> Response {
    ApiError::Internal.into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_times_are_rounded_up() {
        let seconds = |millis| whole_seconds(Duration::from_millis(millis));
        assert_eq!((seconds(0), seconds(1), seconds(1000), seconds(1001)), (1, 1, 1, 2));
    }
}
