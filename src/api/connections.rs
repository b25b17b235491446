//! Connections: a bounded number, and a smaller one of each address, each with a time to send its requests' heads in, all of
//! them drained at the end.
//!
//! axum's own `serve` has none of these bounds: whoever opens connections and says nothing would hold every descriptor.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Uri, header};
use axum::response::Response;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use hyper_util::service::TowerToHyperService;
use rustix::net::SendFlags;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tower::ServiceExt;

use super::client_address::network;
use super::linger::{Linger, Unread};
use super::presence::{Presence, Socket};
use crate::config::Proxy;

/// How long a client may take for a request's head, however it comes, or say nothing between two requests.
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

/// How many connections each address has open.
pub struct Shares {
    /// Of one address.
    most: usize,
    /// Whoever stands for many.
    unbounded: Vec<Proxy>,
    open: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection in its address's share; given back when dropped.
pub struct Share(Arc<Shares>, Option<IpAddr>);

impl Shares {
    /// `most` of one address, and never so many that a few addresses could take all.
    pub fn new(most: u32, unbounded: &[Proxy]) -> Arc<Self> {
        let most = (most as usize).min(most_connections() / 4);
        Arc::new(Self { most, unbounded: unbounded.to_vec(), open: Mutex::default() })
    }

    /// None when the address has all that it may have.
    pub fn enter(self: &Arc<Self>, address: IpAddr) -> Option<Share> {
        if self.unbounded.iter().any(|proxy| proxy.contains(address.to_canonical())) {
            return Some(Share(self.clone(), None));
        }
        let address = network(address);
        let mut open = self.open();
        let count = open.entry(address).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share(self.clone(), Some(address)))
    }

    fn open(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Self(shares, Some(address)) = self else { return };
        let mut open = shares.open();
        if let Entry::Occupied(mut count) = open.entry(*address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

/// What a connection beyond its address's share is told; one that cannot take so much at once is told nothing.
const TOO_MANY: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nContent-Length: 91\r\nRetry-After: 1\r\n",
    "Connection: close\r\n\r\n",
    r#"{"error":"Service unavailable","details":"Your address has too many connections open here"}"#
);

/// The place of a connection, for what goes on with it when HTTP is over on it.
#[derive(Clone)]
pub struct Kept(#[expect(dead_code, reason = "held for its Drop")] Arc<(OwnedSemaphorePermit, Share)>);

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
    (shares, linger): (Arc<Shares>, Arc<Linger>),
    router: Router,
    mut pings: mpsc::Receiver<Ping>,
    shutdown: impl Future<Output = ()>,
    in_flight: InFlight,
) {
    let places = Arc::new(Semaphore::new(most_connections()));
    let drain = GracefulShutdown::new();
    tokio::pin!(shutdown);
    loop {
        // Beyond the bound clients wait in the kernel's queue.
        let accept = async { (places.clone().acquire_owned().await, listener.accept().await) };
        let (place, accepted) = tokio::select! {
            (Ok(place), accepted) = accept => (place, accepted),
            Some(ping) = pings.recv() => {
                tokio::spawn(answer(ping, router.clone()));
                continue;
            }
            () = &mut shutdown => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let Some(share) = shares.enter(peer.ip()) else {
                    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                    let _ = rustix::net::send(&stream, TOO_MANY.as_bytes(), flags);
                    tracing::debug!(client = %peer.ip(), "a connection beyond its address's share is refused");
                    let linger = linger.clone();
                    tokio::spawn(async move {
                        linger.close(stream, peer.ip()).await;
                        drop(place);
                    });
                    continue;
                };
                let presence = Presence::default();
                let gone = presence.gone(&stream);
                let kept = Kept(Arc::new((place, share)));
                let ways = (linger.clone(), router.clone());
                let connection = connection(stream, peer, presence, kept.clone(), ways);
                let watcher = drain.watcher();
                tokio::spawn(async move {
                    // A client's mistakes were answered, and its going away is its own affair.
                    tokio::select! {
                        _ = watcher.watch(connection) => {}
                        () = gone => {}
                    }
                    drop(kept);
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
    // What has become something else than HTTP is no connection any more, and still in flight.
    let drained = async {
        drain.shutdown().await;
        in_flight.none().await;
    };
    tokio::select! {
        () = drained => {}
        () = answered => {}
    }
}

fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    presence: Presence,
    kept: Kept,
    (linger, router): (Arc<Linger>, Router),
) -> impl GracefulConnection<Error: Send> + Send + 'static {
    // An answer is one write: nothing is gained by waiting for more.
    let _ = stream.set_nodelay(true);
    let _ = rustix::net::sockopt::set_tcp_user_timeout(&stream, READ_PATIENCE.as_millis() as u32);
    let (asked, answered) = (presence.clone(), presence.clone());
    let service = router
        .map_request(move |mut request: hyper::Request<Incoming>| {
            asked.asked();
            request.extensions_mut().insert(ConnectInfo(peer));
            request.extensions_mut().insert(kept.clone());
            trim_slash(request.uri_mut());
            let expects = request.headers().contains_key(header::EXPECT);
            request.map(|body| Body::new(Unread::new(body, expects, peer.ip(), linger.clone())))
        })
        .map_response(move |response: Response| {
            answered.answered();
            response
        });
    let mut builder = auto::Builder::new(TokioExecutor::new()).http1_only();
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_PATIENCE).half_close(true);
    let (socket, service) = (TokioIo::new(Socket::new(stream, presence)), TowerToHyperService::new(service));
    builder.serve_connection_with_upgrades(socket, service).into_owned()
}

/// A path with a slash at its end is the same path; but for the interactive documentation's, which is a directory of files.
fn trim_slash(uri: &mut Uri) {
    let path = uri.path();
    let trimmed = path.trim_end_matches('/');
    if trimmed.len() == path.len() || trimmed.is_empty() || trimmed == "/swagger-ui" {
        return;
    }
    let query = uri.query().map_or_else(String::new, |query| format!("?{query}"));
    let path_and_query = format!("{trimmed}{query}").parse().ok();
    let mut parts = std::mem::take(uri).into_parts();
    parts.path_and_query = path_and_query;
    *uri = Uri::from_parts(parts).unwrap_or_default();
}

/// Connections at once: a third of the descriptors this process may have, but for a few. Each takes two, and there are others.
fn most_connections() -> usize {
    let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(descriptors.saturating_sub(6) / 3).unwrap_or(usize::MAX).clamp(16, 8192)
}

fn is_the_clients(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_has_its_share_and_gets_it_back() {
        let proxy = Proxy::try_from("192.0.2.9".to_owned()).unwrap();
        let shares = Shares::new(2, &[proxy]);
        let enter = |address: &str| shares.enter(address.parse().unwrap());
        let held = (enter("2001:db8::1").unwrap(), enter("2001:db8::2").unwrap());
        assert!(enter("2001:db8::3").is_none());
        let others: Vec<_> = ["2001:db8:0:1::1", "192.0.2.1"].map(enter).into_iter().collect();
        assert!(others.iter().all(Option::is_some));
        let proxied: Vec<_> = (0..5).map(|_| enter("192.0.2.9")).collect();
        assert!(proxied.iter().all(Option::is_some));
        drop(held);
        assert!(enter("2001:db8::3").is_some());
        drop((others, proxied));
        assert!(shares.open().is_empty());
    }

    #[test]
    fn a_slash_at_the_end_is_no_part_of_a_path() {
        let trimmed = |uri: &str| {
            let mut uri = uri.parse().unwrap();
            trim_slash(&mut uri);
            uri.to_string()
        };
        assert_eq!(
            [trimmed("/execute/"), trimmed("/execute"), trimmed("/a//?b=/")],
            ["/execute", "/execute", "/a?b=/"]
        );
        assert_eq!([trimmed("/"), trimmed("/swagger-ui/"), trimmed("//")], ["/", "/swagger-ui/", "//"]);
        assert_eq!(trimmed("http://a/execute/"), "http://a/execute");
    }

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let (head, body) = TOO_MANY.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{}", body.len());
    }
}
