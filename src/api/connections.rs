//! Connections: a bounded number, each with a time to send its requests' heads in, all of them drained at the end.
//!
//! axum's own `serve` has neither bound: whoever opens connections and says nothing would hold every descriptor.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tower::ServiceExt;

/// How long a client may take for a request's head, or say nothing between two requests.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);
/// After an error that is the machine's, such as no descriptors left.
const BREATH: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is done and every request that was begun is answered.
pub async fn serve(listener: TcpListener, router: Router, shutdown: impl Future<Output = ()>) {
    let places = Arc::new(Semaphore::new(most()));
    let drain = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        // Beyond the bound clients wait in the kernel's queue.
        let accept = async { (places.clone().acquire_owned().await, listener.accept().await) };
        let (place, accepted) = tokio::select! {
            accepted = accept => accepted,
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let connection = drain.watch(connection(stream, peer, router.clone()));
                tokio::spawn(async move {
                    // A client's mistakes were answered, and its going away is its own affair.
                    let _ = connection.await;
                    drop(place);
                });
            }
            Err(error) if is_the_clients(&error) => {}
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
    drop(listener);
    drain.shutdown().await;
}

fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
) -> impl GracefulConnection<Output: Send> + Send + 'static {
    // An answer is one write: nothing is gained by waiting for more.
    let _ = stream.set_nodelay(true);
    let service = router.map_request(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
}

/// Half of the descriptors this process may have: the others are for runners and what else there is.
fn most() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(descriptors / 2).unwrap_or(usize::MAX).clamp(16, 8192)
}

fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
