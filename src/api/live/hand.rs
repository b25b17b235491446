//! A task that is in its client's hands: what is typed into it, and what it is told.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use axum::body::Bytes;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe::Sender;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{Asking, Running};
use crate::api::App;
use crate::api::buffers::Held;
use crate::api::error::ApiError;
use crate::execution::{Hands, Planned};
use crate::task::Word;

/// Bytes of standard input that wait for a task, at most.
pub const TYPED: usize = 1 << 20;
/// Words that wait for its runner.
const WORDS: usize = 64;
/// What a terminal takes for the end of input, where the program lets it (termios(3), VEOF).
const END_OF_FILE: u8 = 4;

/// What a client has in hand of its task.
pub struct Hand {
    stdin: mpsc::UnboundedSender<Typed>,
    words: mpsc::Sender<Word>,
    cancel: Option<oneshot::Sender<()>>,
    /// Bytes of standard input that may still come before the task has read some.
    room: Arc<Semaphore>,
    has_terminal: bool,
}

enum Typed {
    Bytes(Bytes),
    End,
}

/// Starts a request of one task, which reads what comes by the hand.
///
/// # Errors
/// As [`Running::start`], and when there are no more descriptors.
pub async fn start_in_hand(
    app: &Arc<App>,
    asking: Asking,
    planned: Planned,
    held: Held,
    has_terminal: bool,
) -> Result<(Running, Hand), ApiError> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(|_| ApiError::Internal)?;
    // Its own to open, as /dev/stdin is.
    rustix::fs::fchmod(&reader, rustix::fs::Mode::from_raw_mode(0o666)).map_err(|_| ApiError::Internal)?;
    let (words, hears) = mpsc::channel(WORDS);
    let (cancel, cancelled) = oneshot::channel();
    let (stdin, typed) = mpsc::unbounded_channel();
    let room = Arc::new(Semaphore::new(TYPED));
    let hands = Hands { stdin: reader, words: hears, cancelled };
    let running = Running::start(app, asking, planned, held, Some(hands)).await?;
    tokio::spawn(type_in(writer, typed, room.clone(), has_terminal));
    Ok((running, Hand { stdin, words, cancel: Some(cancel), room, has_terminal }))
}

impl Hand {
    pub fn has_terminal(&self) -> bool {
        self.has_terminal
    }

    /// Gives the task more to read, at most [`TYPED`] bytes; waits while so much waits already. False when its input was ended before.
    pub async fn write(&mut self, bytes: Bytes) -> bool {
        let Ok(size) = u32::try_from(bytes.len()) else { return false };
        match self.room.acquire_many(size).await {
            Ok(room) => {
                room.forget();
                self.stdin.send(Typed::Bytes(bytes)).is_ok()
            }
            Err(_) => false,
        }
    }

    /// There is no more to read; a terminal is told so as by whoever types there.
    pub fn end_input(&self) {
        let _ = self.stdin.send(Typed::End);
    }

    /// A task that has ended hears nothing.
    pub async fn say(&self, word: Word) {
        let _ = self.words.send(word).await;
    }

    /// Ends it, or keeps it from starting.
    pub async fn cancel(&mut self) {
        self.cancel.take().map(|cancel| cancel.send(()));
        self.say(Word::Cancel).await;
    }
}

/// Writes what the client sends into the task's standard input, until the client or the task has enough.
async fn type_in(pipe: OwnedFd, mut typed: mpsc::UnboundedReceiver<Typed>, room: Arc<Semaphore>, has_terminal: bool) {
    let Ok(mut pipe) = Sender::from_owned_fd(pipe) else { return };
    // A task that reads no more is none the worse for it; what is sent then is dropped.
    let mut is_read = true;
    while let Some(typed) = typed.recv().await {
        match typed {
            Typed::Bytes(bytes) => {
                is_read = is_read && pipe.write_all(&bytes).await.is_ok();
                room.add_permits(bytes.len());
            }
            Typed::End if has_terminal => is_read = is_read && pipe.write_all(&[END_OF_FILE]).await.is_ok(),
            Typed::End => break,
        }
    }
}
