//! One line of log for each request, under an id that the answer carries too.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tracing::Instrument;
use tracing::field::Empty;

use super::App;
use super::client_address::client_address;
use super::connections::IsPing;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Longer ids of clients are not taken over.
const LONGEST_ID: usize = 64;

pub async fn log(
    State(app): State<Arc<App>>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    let id = request.headers().get(REQUEST_ID).filter(|id| is_plain(id)).cloned().unwrap_or_else(new_id);
    let client = client_address(peer.ip(), request.headers(), &app.settings().config.server.trusted_proxies);
    let path: String = request.uri().path().chars().take(100).collect();
    let span = tracing::info_span!(
        "request", id = id.to_str().unwrap_or_default(), method = %request.method(), path, %client, key = Empty, tasks = Empty
    );
    let is_ping = request.extensions().get::<IsPing>().is_some();
    let _in_flight = app.in_flight.enter();
    let started = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status().as_u16();
    let latency_ms = started.elapsed().as_secs_f64() * 1e3;
    span.in_scope(|| match is_ping {
        true => tracing::trace!(status, latency_ms, "answered"),
        false => tracing::info!(status, latency_ms, "answered"),
    });
    response.headers_mut().insert(REQUEST_ID, id);
    response
}

/// What can stand in a log without harm.
fn is_plain(id: &HeaderValue) -> bool {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=LONGEST_ID).contains(&id.len()) && id.as_bytes().iter().all(plain)
}

/// Unique in this process's life, and most likely on this machine: the start's nanoseconds and a count.
fn new_id() -> HeaderValue {
    static START: std::sync::LazyLock<u64> = std::sync::LazyLock::new(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        since.as_nanos() as u64
    });
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let id = format!("{:012x}-{:06x}", *START & 0xffff_ffff_ffff, COUNT.fetch_add(1, Ordering::Relaxed));
    HeaderValue::from_str(&id).unwrap_or(HeaderValue::from_static("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_ids_are_taken_over() {
        for (id, plain) in [("a-1_B.c", true), ("", false), ("a b", false), ("a\"b", false), (&"a".repeat(65), false)] {
            assert_eq!(is_plain(&HeaderValue::from_str(id).unwrap()), plain, "{id:?}");
        }
        assert_ne!(new_id(), new_id());
        assert!(is_plain(&new_id()));
    }
}
