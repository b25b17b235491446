//! The front's end of the sender.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};

use tokio::sync::oneshot;

use super::wire::{Headers, Method, Post, Posted, Refusal};
use crate::frame;

/// Sends by whichever sender there is: the keeper starts another when one ends.
#[derive(Default)]
pub struct Sender(Mutex<State>);

#[derive(Default)]
struct State {
    /// To the thread that writes to the sender.
    to_write: Option<mpsc::Sender<Post>>,
    /// Those that were sent to this one, by their numbers.
    sent: HashMap<u64, oneshot::Sender<Result<(), Refusal>>>,
    last: u64,
    /// How many senders there were.
    senders: u64,
}

impl Sender {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a new sender's socket in place of the one before.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn adopt(self: &Arc<Self>, socket: OwnedFd) -> io::Result<()> {
        let socket = Arc::new(UnixStream::from(socket));
        let (to_write, posts) = mpsc::channel::<Post>();
        let this_one = {
            let mut state = self.state();
            // What the one before had will not be answered any more.
            state.sent.clear();
            state.to_write = Some(to_write);
            state.senders += 1;
            state.senders
        };
        let reads = socket.clone();
        std::thread::Builder::new().name("callbacks out".into()).spawn(move || {
            posts.iter().take_while(|post| frame::send(&*socket, post).is_ok()).for_each(drop);
            let _ = socket.shutdown(std::net::Shutdown::Both);
        })?;
        let this = self.clone();
        std::thread::Builder::new().name("callbacks in".into()).spawn(move || {
            while let Ok(Some(Posted { number, result })) = frame::receive(&*reads) {
                if let Some(answer) = this.state().sent.remove(&number) {
                    let _ = answer.send(result);
                }
            }
            let _ = reads.shutdown(std::net::Shutdown::Both);
            let mut state = this.state();
            if state.senders == this_one {
                state.sent.clear();
                state.to_write = None;
            }
        })?;
        Ok(())
    }

    /// Sends a request, and waits what becomes of it. None: the sender ended, and nobody knows.
    pub async fn post(
        &self,
        method: Method,
        url: &str,
        headers: Headers,
        body: Vec<u8>,
    ) -> Option<Result<(), Refusal>> {
        let answered = {
            let mut state = self.state();
            state.last += 1;
            let number = state.last;
            state.to_write.as_ref()?.send(Post { number, method, url: url.to_owned(), headers, body }).ok()?;
            let (answer, answered) = oneshot::channel();
            // Not answered before: that takes this lock.
            state.sent.insert(number, answer);
            answered
        };
        answered.await.ok()
    }
}
