//! The HTTP API: the only module that knows axum. It turns requests into tasks and reports into answers, and nothing else.
//!
//! ```text
//! every request: log (id, span) > panics caught > route
//! POST /execute: rate limit by address > key > rate limit by key > body > tasks > scheduler > results
//! ```

mod admission;
mod answer;
mod auth;
mod blobs;
mod buffers;
mod client_address;
mod connections;
mod error;
mod execute;
mod health;
mod images;
mod judge;
mod log;
mod openapi;
mod pace;
mod rate_limit;

use std::future::Future;
use std::sync::Arc;

use axum::Router;
use axum::middleware;
use tokio::sync::mpsc;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_swagger_ui::SwaggerUi;

use crate::config::Config;
use crate::execution::Engine;
use crate::image::Catalog;
use buffers::Buffers;
pub use connections::Ping;
use connections::{InFlight, Shares};
pub use error::ErrorBody;
pub use execute::{ExecuteRequest, ExecuteResponse};
pub use health::Health;
pub use openapi::document;

/// What every request needs to know.
struct App {
    config: Config,
    catalog: Catalog,
    engine: Arc<Engine>,
    rate_limits: Option<rate_limit::RateLimits>,
    buffers: Arc<Buffers>,
    in_flight: InFlight,
}

/// Whose blobs a request's are.
#[derive(Debug, Clone)]
struct Owner(String);

/// Serves until `shutdown` is done and every request that was taken is answered; answers pings until `shutdown` is done.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve(
    listener: std::net::TcpListener,
    config: Config,
    catalog: Catalog,
    engine: Arc<Engine>,
    pings: mpsc::Receiver<Ping>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let rate_limits = config.rate_limit.enabled.then(|| rate_limit::RateLimits::new(&config.rate_limit));
    let buffers = Buffers::new(config.buffers());
    let in_flight = InFlight::default();
    let shares = Shares::new(config.server.connections_per_ip.get(), &config.server.trusted_proxies);
    let app = App { config, catalog, engine, rate_limits, buffers, in_flight: in_flight.clone() };
    connections::serve(listener, shares, router(Arc::new(app)), pings, shutdown, in_flight).await;
    Ok(())
}

fn router(app: Arc<App>) -> Router {
    let admitted = openapi::execute_route().layer(middleware::from_fn_with_state(app.clone(), admission::admit));
    let (router, document) = openapi::routes(admitted);
    let swagger = app.config.server.swagger;
    let mut router = router.with_state(app.clone());
    if swagger {
        router = router.merge(SwaggerUi::new("/swagger-ui").url("/api-docs/openapi.json", document));
    }
    router
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(middleware::from_fn_with_state(app, log::log))
}
