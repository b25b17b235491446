//! Who gets as far as the body: rate limit by address, key, rate limit by key; in this order, so that guessing keys is
//! limited too.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::auth::authenticate;
use super::client_address::{client_address, network};
use super::error::ApiError;
use super::rate_limit::Allowance;
use super::{App, Owner};
use crate::scheduler::Client;

/// Whose blobs those of requests without a key are.
pub const OPEN: &str = "open";

pub async fn admit(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    mut request: Request,
    next: Next,
) -> Response {
    let settings = app.settings();
    let address = client_address(peer.ip(), request.headers(), &settings.config.server.trusted_proxies);
    let limits = settings.rate_limits.as_ref();
    let by_address = limits.map(|limits| limits.address(address));
    let admitted = pass(by_address).and_then(|()| authenticate(&settings.config.auth, request.headers()));
    let by_key = match (limits, &admitted) {
        (Some(limits), Ok(Some(key))) => Some(limits.key(key.hash.id())),
        _ => None,
    };
    let mut response = match admitted.and_then(|key| pass(by_key).map(|()| key)) {
        Ok(key) => {
            let name = key.map(|key| key.name.as_str());
            // The log gets the key's name, never the key.
            name.inspect(|name| _ = tracing::Span::current().record("key", name));
            request.extensions_mut().insert(Owner(name.map_or_else(|| OPEN.into(), |name| format!("key {name}"))));
            let client = key.map_or(Client::Address(network(address)), |key| Client::Key(key.hash.id()));
            request.extensions_mut().insert(client);
            next.run(request).await
        }
        Err(error) => error.into_response(),
    };
    if let Some(by_address) = by_address {
        by_address.tighter(by_key).write(response.headers_mut());
    }
    response
}

fn pass(allowance: Option<Allowance>) -> Result<(), ApiError> {
    match allowance.and_then(|allowance| allowance.retry_after) {
        Some(retry_after) => Err(ApiError::RateLimited { retry_after }),
        None => Ok(()),
    }
}
