//! Bodies that are answered before all of them is read. Many clients read the answer only when they have sent everything, and a
//! connection that is closed before, with bytes unread, is reset and takes the answer along (RFC 9112 section 9.6). So what is
//! left of such a body is read and dropped: for a time, up to a size, and for so many at once that it is no attack.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::connections::{Share, Shares};
use crate::config::Proxy;

/// How long the rest of one body is read, at most; and as long as nothing comes.
const LINGER: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(5);
/// Bytes a second by which that grows.
const SLOWEST: u64 = 256 << 10;
/// Bytes of it.
const BYTES: u64 = 256 << 20;
/// How many at once, and of one address.
const PLACES: usize = 64;
const OF_ONE: u32 = 16;

/// Who lingers at the moment.
pub struct Linger {
    places: Arc<Semaphore>,
    shares: Arc<Shares>,
}

impl Linger {
    /// `proxies` stand for many addresses.
    pub fn new(proxies: &[Proxy]) -> Arc<Self> {
        Arc::new(Self { places: Arc::new(Semaphore::new(PLACES)), shares: Shares::new(OF_ONE, proxies) })
    }

    fn enter(&self, from: IpAddr) -> Option<(Share, OwnedSemaphorePermit)> {
        self.shares.enter(from).zip(self.places.clone().try_acquire_owned().ok())
    }

    fn rest(&self, mut body: Incoming, from: IpAddr) {
        let (Some(place), Ok(runtime)) = (self.enter(from), Handle::try_current()) else { return };
        runtime.spawn(async move {
            let (begun, mut read) = (Instant::now(), 0);
            while read < BYTES {
                let patience = (PATIENCE + Duration::from_millis(read * 1000 / SLOWEST)).min(LINGER);
                let Ok(Some(Ok(frame))) = timeout(patience.saturating_sub(begun.elapsed()), body.frame()).await else {
                    break;
                };
                read += frame.data_ref().map_or(0, Bytes::len) as u64;
            }
            drop(place);
        });
    }

    /// Closes a connection on which an answer was written and nothing read.
    pub async fn close(&self, mut stream: TcpStream, from: IpAddr) {
        let Some(place) = self.enter(from) else { return };
        let read = async {
            stream.shutdown().await?;
            tokio::io::copy(&mut stream.take(BYTES), &mut tokio::io::sink()).await
        };
        let _ = timeout(PATIENCE, read).await;
        drop(place);
    }
}

/// A request's body, whose rest is read when it is dropped.
pub struct Unread {
    body: Option<Incoming>,
    /// The client waits for a word before it sends the body, which it gets when the first byte is asked for.
    waits: bool,
    from: IpAddr,
    linger: Arc<Linger>,
}

impl Unread {
    /// `expects`: with `Expect: 100-continue`.
    pub fn new(body: Incoming, expects: bool, from: IpAddr, linger: Arc<Linger>) -> Self {
        Self { body: Some(body), waits: expects, from, linger }
    }
}

impl Body for Unread {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.waits = false;
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let frame = std::task::ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        if let Some(body) = self.body.take().filter(|body| !self.waits && !body.is_end_stream()) {
            self.linger.rest(body, self.from);
        }
    }
}
