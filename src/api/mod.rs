//! The HTTP API: the only module that knows axum. It turns requests into tasks and reports into answers, and nothing else.
//!
//! ```text
//! every request: log (id, span) > CORS > panics caught > route
//! POST /execute: rate limit by address > key > rate limit by key > body > tasks > scheduler > results
//! ```

mod admission;
mod answer;
mod auth;
mod blobs;
mod buffers;
mod client_address;
mod compat;
mod connections;
mod cors;
mod error;
mod execute;
mod health;
mod images;
mod jobs;
mod judge;
mod linger;
mod live;
mod log;
mod mcp;
mod openapi;
mod pace;
mod presence;
mod rate_limit;
mod sessions;

use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::middleware;
use tokio::sync::mpsc;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_swagger_ui::SwaggerUi;

use crate::callbacks::Sender;
use crate::config::Config;
use crate::execution::Engine;
use crate::image::Catalog;
pub use crate::jobs::Jobs;
pub use crate::sessions::Sessions;
use buffers::Buffers;
pub use connections::Ping;
use connections::{InFlight, Shares};
pub use error::ErrorBody;
pub use execute::{ExecuteRequest, ExecuteResponse};
pub use health::Health;
use linger::Linger;
pub use openapi::document;
use rate_limit::RateLimits;
use tower_http::cors::CorsLayer;

/// What every request needs to know.
struct App {
    live: Live,
    catalog: Catalog,
    engine: Arc<Engine>,
    buffers: Arc<Buffers>,
    in_flight: InFlight,
    /// None where there is no place for them.
    jobs: Option<Arc<Jobs>>,
    sessions: Arc<Sessions>,
}

impl App {
    fn settings(&self) -> Arc<Settings> {
        self.live.now()
    }
}

/// What is in force, and may be changed while requests are answered: each has what it was when it came.
#[derive(Clone)]
pub struct Live(Arc<RwLock<Arc<Settings>>>);

struct Settings {
    config: Config,
    rate_limits: Option<Arc<RateLimits>>,
    /// None where pages of other origins may not ask.
    cors: Option<CorsLayer>,
}

impl Live {
    pub fn new(config: Config) -> Self {
        let rate_limits = RateLimits::of(&config.rate_limit);
        let cors = cors::layer(&config.server.cors_origins);
        Self(Arc::new(RwLock::new(Arc::new(Settings { config, rate_limits, cors }))))
    }

    /// What was asked within other limits than now counts no more.
    pub fn renew(&self, config: Config) {
        let now = self.now();
        let is_same = now.config.rate_limit == config.rate_limit;
        let rate_limits = if is_same { now.rate_limits.clone() } else { RateLimits::of(&config.rate_limit) };
        let cors = cors::layer(&config.server.cors_origins);
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(Settings { config, rate_limits, cors });
    }

    fn now(&self) -> Arc<Settings> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Whose blobs a request's are.
#[derive(Debug, Clone)]
struct Owner(String);

/// What a server has beside what runs tasks.
pub struct Beside {
    /// With who sends their callbacks. None where there is no place for them.
    pub jobs: Option<(Arc<Jobs>, Arc<Sender>)>,
    pub sessions: Arc<Sessions>,
}

/// Jobs come with who sends their callbacks. Serves until `shutdown` is done, every request that was taken is answered, and no job runs; answers pings until `shutdown` is done.
///
/// # Errors
/// When the listener cannot be used.
pub async fn serve(
    listener: std::net::TcpListener,
    live: Live,
    catalog: Catalog,
    engine: Arc<Engine>,
    Beside { jobs, sessions }: Beside,
    pings: mpsc::Receiver<Ping>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let settings = live.now();
    let config = &settings.config;
    let buffers = Buffers::new(config.buffers());
    let in_flight = InFlight::default();
    let proxies = &config.server.trusted_proxies;
    let shares = (Shares::new(config.server.connections_per_ip.get(), proxies), Linger::new(proxies));
    let (jobs, sender) = jobs.unzip();
    let app = App { live, catalog, engine, buffers, in_flight: in_flight.clone(), jobs, sessions };
    let app = Arc::new(app);
    if let (Some(jobs), Some(sender)) = (app.jobs.clone(), sender) {
        tokio::spawn(jobs::run(app.clone(), jobs.clone()));
        // Those of a server that may send none any more stay as they are.
        if !config.jobs.callback_hosts.is_empty() {
            tokio::spawn(jobs::call_back(app.clone(), jobs, sender));
        }
    }
    let stop = {
        let jobs = app.jobs.clone();
        async move {
            shutdown.await;
            jobs.inspect(|jobs| jobs.stop());
        }
    };
    connections::serve(listener, shares, router(app.clone()), pings, stop, in_flight).await;
    if let Some(jobs) = &app.jobs {
        jobs.idle().await;
    }
    Ok(())
}

fn router(app: Arc<App>) -> Router {
    let admitted = openapi::execute_route().layer(middleware::from_fn_with_state(app.clone(), admission::admit));
    let (router, document) = openapi::routes(admitted);
    let swagger = app.settings().config.server.swagger;
    let mut router = router.merge(compat::routes(&app)).merge(mcp::routes(&app)).with_state(app.clone());
    if swagger {
        router = router.merge(SwaggerUi::new("/swagger-ui").url("/api-docs/openapi.json", document));
    }
    router
        .fallback(error::not_found)
        .method_not_allowed_fallback(error::method_not_allowed)
        .layer(CatchPanicLayer::custom(error::panicked))
        .layer(middleware::from_fn_with_state(app.clone(), cors::cors))
        .layer(middleware::from_fn_with_state(app, log::log))
}
