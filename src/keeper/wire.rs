//! What keeper and front tell each other, over a stream socket; descriptors travel with the message they belong to.
//!
//! ```text
//! keeper: Start + [listening socket]
//! keeper: Runner + [socket]        for each runner, and again for each that takes a dead one's place
//! keeper: Drain                    finish, then end
//!
//! front:  one byte, once           it serves, and a container waits for a task
//! ```
//! The front is not trusted with more: of what it says nothing but that byte is read. A closed socket means that the other
//! is gone.

use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
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

/// Sends one message and the descriptor that belongs to it.
///
/// # Errors
/// sendmsg(2)'s.
pub fn send(socket: &UnixStream, message: &Message, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let bytes = frame::encode(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    // The descriptor belongs to the first bytes; the rest follows as on any stream.
    let sent = sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
    let mut rest = &bytes[sent..];
    while !rest.is_empty() {
        let sent = rustix::net::send(socket, rest, SendFlags::NOSIGNAL)?;
        rest = &rest[sent..];
    }
    Ok(())
}

/// Receives one message and its descriptor; None when the other side is gone.
///
/// # Errors
/// recvmsg(2)'s; `InvalidData` for what is not a message.
pub fn receive(socket: &mut UnixStream) -> io::Result<Option<(Message, Option<OwnedFd>)>> {
    let mut prefix = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        &*socket,
        &mut [IoSliceMut::new(&mut prefix)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL,
    )?;
    if received.bytes < prefix.len() {
        return Ok(None);
    }
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let mut bytes = vec![0; frame::length(prefix)?];
    socket.read_exact(&mut bytes)?;
    Ok(Some((frame::decode(&bytes)?, fd)))
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
    use std::os::fd::AsFd;

    #[test]
    fn a_descriptor_arrives_with_its_own_message() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let (one, _other) = UnixStream::pair().unwrap();
        send(&here, &Message::Drain, None).unwrap();
        send(&here, &Message::Runner { slot: "s1".into() }, Some(one.as_fd())).unwrap();
        send(&here, &Message::Drain, None).unwrap();
        drop(here);
        assert!(matches!(receive(&mut there), Ok(Some((Message::Drain, None)))));
        assert!(matches!(receive(&mut there), Ok(Some((Message::Runner { slot }, Some(_)))) if slot == "s1"));
        assert!(matches!(receive(&mut there), Ok(Some((Message::Drain, None)))));
        assert!(receive(&mut there).unwrap().is_none());
    }

    #[test]
    fn a_front_that_is_gone_is_not_ready() {
        let (here, there) = UnixStream::pair().unwrap();
        say_ready(&there).unwrap();
        assert!(is_ready(&here).unwrap());
        drop(there);
        assert!(!is_ready(&here).unwrap());
        let (here, there) = UnixStream::pair().unwrap();
        send(&here, &Message::Drain, None).unwrap();
        drop(there);
        assert!(!is_ready(&here).unwrap());
    }
}
