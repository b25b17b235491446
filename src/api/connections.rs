//! Connections: a bounded number, each with a time to send its requests' heads in, all of them drained at the end.
//!
//! axum's own `serve` has neither bound: whoever opens connections and says nothing would hold every descriptor.

use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tower::ServiceExt;

/// How long a client may take for a request's head, or say nothing between two requests.
const HEAD_PATIENCE: Duration = Duration::from_secs(30);
/// How long a client may leave an answer unread before the connection is given up (TCP_USER_TIMEOUT, tcp(7)).
const READ_PATIENCE: Duration = Duration::from_secs(60);
/// How long the last answers may take to be written.
const LAST_WRITES: Duration = Duration::from_secs(1);
/// After an error that is the machine's, such as no descriptors left.
const BREATH: Duration = Duration::from_millis(100);

/// How many requests are being answered.
#[derive(Clone, Default)]
pub struct InFlight(Arc<watch::Sender<usize>>);

/// One of them.
pub struct Entered(InFlight);

impl InFlight {
    pub fn enter(&self) -> Entered {
        self.0.send_modify(|requests| *requests += 1);
        Entered(self.clone())
    }

    async fn none(&self) {
        // The sender is here, so this ends only as it should.
        let _ = self.0.subscribe().wait_for(|requests| *requests == 0).await;
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.0.send_modify(|requests| *requests -= 1);
    }
}

/// Whoever asks whether requests are answered hears so by this, or by its being dropped that they are not.
pub type Ping = oneshot::Sender<()>;

/// Marks a request that is a [`Ping`].
#[derive(Clone, Copy)]
pub struct IsPing;

/// Has a request answered as any other, from behind its connection on.
async fn answer(ping: Ping, router: Router) {
    let local = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let request = axum::http::Request::get("/health").extension(ConnectInfo(local)).extension(IsPing);
    let Ok(request) = request.body(Body::empty()) else { return };
    let Ok(response) = router.oneshot(request).await;
    if response.status().is_success() {
        let _ = ping.send(());
    }
}

/// Serves until `shutdown` is done and every request that was begun is answered. Connections on which nothing is asked are
/// not waited for.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    mut pings: mpsc::Receiver<Ping>,
    shutdown: impl Future<Output = ()>,
    in_flight: InFlight,
) {
    let places = Arc::new(Semaphore::new(most()));
    let drain = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        // Beyond the bound clients wait in the kernel's queue.
        let accept = async { (places.clone().acquire_owned().await, listener.accept().await) };
        let (place, accepted) = tokio::select! {
            accepted = accept => accepted,
            Some(ping) = pings.recv() => {
                tokio::spawn(answer(ping, router.clone()));
                continue;
            }
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let gone = gone(&stream);
                let connection = drain.watch(connection(stream, peer, router.clone()));
                tokio::spawn(async move {
                    // A client's mistakes were answered, and its going away is its own affair.
                    tokio::select! {
                        _ = connection => {}
                        () = gone => {}
                    }
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
    let answered = async {
        in_flight.none().await;
        tokio::time::sleep(LAST_WRITES).await;
    };
    tokio::select! {
        () = drain.shutdown() => {}
        () = answered => {}
    }
}

fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
) -> impl GracefulConnection<Output: Send> + Send + 'static {
    // An answer is one write: nothing is gained by waiting for more.
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, READ_PATIENCE.as_millis() as u32);
    let service = router.map_request(move |mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        request
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_PATIENCE)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(service))
}

/// Ends when the client has closed its side. hyper sees that only when it has read everything before it, which it does not
/// while a request is being answered.
fn gone(stream: &TcpStream) -> impl Future<Output = ()> + Send + 'static {
    let watched = stream.as_fd().try_clone_to_owned();
    async move {
        let watched = watched.and_then(|fd| TcpStream::from_std(std::net::TcpStream::from(fd)));
        let Ok(watched) = watched else { return std::future::pending().await };
        while let Ok(ready) = watched.ready(Interest::READABLE).await {
            if ready.is_read_closed() {
                return;
            }
            // What came is hyper's to read; this only waits for the next event.
            let _ = watched.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
    }
}

/// Connections at once: a third of the descriptors this process may have, but for a few. Each takes two, and there are others.
fn most() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(descriptors.saturating_sub(6) / 3).unwrap_or(usize::MAX).clamp(16, 8192)
}

fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
