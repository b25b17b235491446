//! What keeper and front tell each other, over a stream socket; descriptors travel with the message they belong to.
//!
//! ```text
//! keeper: Start + [listening socket, spool, and the blobs' directory if there is one]
//! keeper: Runner + [socket]        for each runner, and again for each that takes a dead one's place
//! keeper: Drain                    finish, then end
//!
//! front:  one byte, once           it serves, and a container waits for a task
//! ```
//! The front is not trusted with more: of what it says nothing but that byte is read. A closed socket means that the other
//! is gone.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{RecvFlags, SendFlags};
use serde::{Deserialize, Serialize};

use crate::frame;

#[derive(Debug, Serialize, Deserialize)]
pub enum Message {
    /// The configuration, as JSON, the uid and gid to become, and where to read the tasks' memory pressure.
    Start {
        config: String,
        id: u32,
        memory_pressure: Option<PathBuf>,
    },
    Runner {
        slot: String,
    },
    Drain,
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

/// Says that tasks can be taken.
///
/// # Errors
/// send(2)'s.
pub fn say_ready(socket: &UnixStream) -> io::Result<()> {
    rustix::net::send(socket, &[1], SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Whether the other side has said so, once there is something to read; if not, it is gone.
///
/// # Errors
/// recv(2)'s.
pub fn is_ready(socket: &UnixStream) -> io::Result<bool> {
    match rustix::net::recv(socket, &mut [0; 1], RecvFlags::DONTWAIT) {
        Ok((_, said)) => Ok(said > 0),
        // It ended without reading all that it was told.
        Err(rustix::io::Errno::CONNRESET) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_front_that_is_gone_is_not_ready() {
        let (here, there) = UnixStream::pair().unwrap();
        say_ready(&there).unwrap();
        assert!(is_ready(&here).unwrap());
        drop(there);
        assert!(!is_ready(&here).unwrap());
        let (here, there) = UnixStream::pair().unwrap();
        send(&here, &Message::Drain, &[]).unwrap();
        drop(there);
        assert!(!is_ready(&here).unwrap());
    }
}
