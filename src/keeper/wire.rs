//! What keeper and front tell each other, over a stream socket; descriptors travel with the message they belong to.
//!
//! ```text
//! keeper: Start + [listening socket, spool, and the directories of blobs and of jobs, as far as there are any]
//! keeper: Runner + [socket]        for each runner, and again for each that takes a dead one's place
//! keeper: Sender + [socket]        if there are callbacks, the same of the process that sends them
//! keeper: Renew                    the configuration was read again
//! keeper: Ping                     now and then: does it serve?
//! keeper: Drain                    finish, then end
//!
//! front:  Ready, once              it serves, and a container waits for a task
//! front:  Serving                  to a Ping: a request has gone the way of any request, and was answered
//! front:  More, Fewer              a session has taken a runner out of the pool, or has ended: so many are to run beside the others
//! ```
//! The front is not trusted with more: its words are one byte each. A closed socket means that the other is gone.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{RecvFlags, SendFlags};
use serde::{Deserialize, Serialize};

use crate::frame;

#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// The configuration, as JSON, the uid and gid to become, where to read the tasks' memory pressure, and which directories come
    /// along.
    Start {
        config: String,
        id: u32,
        memory_pressure: Option<PathBuf>,
        has_blobs: bool,
        has_jobs: bool,
    },
    Runner {
        slot: String,
    },
    Sender,
    /// Another configuration, as JSON, with the same of all that takes a restart.
    Renew {
        config: String,
    },
    Ping,
    Drain,
}

/// What a front says, a byte each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Word {
    Ready = 1,
    Serving = 2,
    More = 3,
    Fewer = 4,
}

/// Sends one message and the descriptors that belong to it.
///
/// # Errors
/// sendmsg(2)'s.
pub fn send(socket: &UnixStream, message: &Message, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    frame::send_with(socket, message, fds)
}

/// Receives one message and its descriptors; None when the other side is gone.
///
/// # Errors
/// recvmsg(2)'s; `InvalidData` for what is not a message.
pub fn receive(socket: &UnixStream) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
    frame::receive_with(socket)
}

/// Says one word.
///
/// # Errors
/// send(2)'s.
pub fn say(socket: &UnixStream, word: Word) -> io::Result<()> {
    rustix::net::send(socket, &[word as u8], SendFlags::NOSIGNAL)?;
    Ok(())
}

/// What the other side has said, once there is something to read; None for what is no word. Nothing: it is gone.
///
/// # Errors
/// recv(2)'s.
pub fn words(socket: &UnixStream) -> io::Result<Vec<Option<Word>>> {
    let mut bytes = [0; 16];
    match rustix::net::recv(socket, &mut bytes, RecvFlags::DONTWAIT) {
        Ok((_, said)) => Ok(bytes[..said.min(bytes.len())].iter().map(|byte| word(*byte)).collect()),
        // It ended without reading all that it was told.
        Err(rustix::io::Errno::CONNRESET) => Ok(Vec::new()),
        Err(errno) => Err(errno.into()),
    }
}

fn word(byte: u8) -> Option<Word> {
    [Word::Ready, Word::Serving, Word::More, Word::Fewer].into_iter().find(|word| *word as u8 == byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_that_is_gone_says_nothing() {
        let (here, there) = UnixStream::pair().unwrap();
        say(&there, Word::Ready).unwrap();
        say(&there, Word::Serving).unwrap();
        rustix::net::send(&there, &[9], SendFlags::NOSIGNAL).unwrap();
        assert_eq!(words(&here).unwrap(), [Some(Word::Ready), Some(Word::Serving), None]);
        drop(there);
        assert_eq!(words(&here).unwrap(), []);
        let (here, there) = UnixStream::pair().unwrap();
        send(&here, &Message::Drain, &[]).unwrap();
        drop(there);
        assert_eq!(words(&here).unwrap(), []);
    }
}
