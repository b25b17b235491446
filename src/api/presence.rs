//! Whether a client that has ended its side of a connection is still there. One that has closed it, and whose tasks are to end,
//! looks the same as one that only says it has sent everything (shutdown(2)) and waits for its answer: until something is sent
//! to it, which the kernel of the first refuses. So the answer's beginning, which is the same for every answer, is sent ahead,
//! byte by byte.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// How every answer begins; the version's last digit is that of the request.
const BEGINNING: &[u8] = b"HTTP/1.";
/// Until a client is looked for again: this, and twice as long each time.
const PAUSE: Duration = Duration::from_secs(1);
/// As long as nothing can be sent ahead.
const SOON: Duration = Duration::from_millis(10);

/// What a connection is at.
#[derive(Default)]
struct Exchange {
    /// A request was taken, and there is no answer yet.
    is_asked: bool,
    /// Not all of what was written before is with the kernel.
    is_writing: bool,
    /// Bytes of the next answer that were sent ahead.
    ahead: usize,
}

#[derive(Clone, Default)]
pub struct Presence(Arc<Mutex<Exchange>>);

impl Presence {
    pub fn asked(&self) {
        self.exchange().is_asked = true;
    }

    pub fn answered(&self) {
        self.exchange().is_asked = false;
    }

    fn exchange(&self) -> MutexGuard<'_, Exchange> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the answer's next byte ahead, if it is due and one that is known; whether it did.
    fn send_ahead(&self, stream: &TcpStream) -> bool {
        let mut exchange = self.exchange();
        let next = BEGINNING.get(exchange.ahead..=exchange.ahead).filter(|_| exchange.is_asked && !exchange.is_writing);
        let is_sent = next.is_some_and(|byte| matches!(stream.try_write(byte), Ok(1)));
        exchange.ahead += usize::from(is_sent);
        is_sent
    }

    /// Ends when the client is gone. hyper sees that only when it has read everything before it, which it does not while a
    /// request is being answered.
    pub fn gone(&self, stream: &TcpStream) -> impl Future<Output = ()> + Send + 'static {
        let (watched, presence) = (stream.as_fd().try_clone_to_owned(), self.clone());
        async move {
            let watched = watched.and_then(|fd| TcpStream::from_std(std::net::TcpStream::from(fd)));
            let Ok(watched) = watched else { return std::future::pending().await };
            while let Ok(ready) = watched.ready(Interest::READABLE).await {
                if ready.is_read_closed() {
                    break;
                }
                // What came is hyper's to read; this only waits for the next event.
                let _ = watched.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
            }
            let mut next = PAUSE;
            loop {
                let pause = if presence.send_ahead(&watched) { next } else { SOON };
                tokio::select! {
                    _ = watched.ready(Interest::ERROR) => return,
                    () = tokio::time::sleep(pause) => {}
                }
                next = next.max(pause * 2);
            }
        }
    }
}

/// The stream as hyper has it: what was sent ahead is left out of what is written.
pub struct Socket {
    stream: TcpStream,
    presence: Presence,
}

impl Socket {
    pub fn new(stream: TcpStream, presence: Presence) -> Self {
        Self { stream, presence }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Self { stream, presence } = self.get_mut();
        let mut exchange = presence.exchange();
        exchange.is_writing = true;
        let skipped = exchange.ahead.min(bytes.len());
        let rest = &bytes[skipped..];
        let written = if rest.is_empty() { 0 } else { ready!(Pin::new(stream).poll_write(cx, rest))? };
        exchange.ahead -= skipped;
        Poll::Ready(Ok(skipped + written))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.presence.exchange().ahead > 0 {
            let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
            return self.poll_write(cx, first);
        }
        self.presence.exchange().is_writing = true;
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// hyper flushes when it has nothing more to write.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, presence } = self.get_mut();
        let flushed = ready!(Pin::new(stream).poll_flush(cx));
        presence.exchange().is_writing = false;
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
