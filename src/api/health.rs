//! GET /health.

use std::time::SystemTime;

use axum::response::Json;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The service's state.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct Health {
    #[schema(example = "healthy")]
    pub status: String,
    /// The server's time, RFC 3339 in UTC.
    #[schema(example = "2024-01-01T12:00:00Z")]
    pub timestamp: String,
    #[schema(example = "0.1.0")]
    pub version: String,
}

/// Check if the Faber service is running.
#[utoipa::path(
    get,
    path = "/health",
    tag = "Health Check",
    security(()),
    responses((status = 200, description = "The service is running.", body = Health, example = json!({
        "status": "healthy", "timestamp": "2024-01-01T12:00:00Z", "version": "0.1.0"
    })))
)]
pub async fn health() -> Json<Health> {
    Json(Health {
        status: "healthy".into(),
        timestamp: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
    })
}
