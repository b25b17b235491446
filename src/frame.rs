//! Length-prefixed messages between Faber's own processes: four bytes of length and four of how many descriptors come along
//! (little-endian), one byte for each batch of descriptors (SCM_RIGHTS, unix(7)), then postcard.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, recv,
    recvmsg, send as send_bytes, sendmsg,
};
use serde::{Serialize, de::DeserializeOwned};

/// No message is larger: requests, arguments and output are bounded well below it.
const LARGEST: u32 = 256 << 20;
/// No message brings more descriptors.
pub const MOST_FDS: usize = 4096;
/// So many fit into one control message (SCM_MAX_FD is 253).
const BATCH: usize = 250;

/// So much of a message there is room for before any of it has come.
const AT_ONCE: usize = 1 << 20;

/// Bytes before a message, or before its descriptors.
pub const PREFIX: usize = 8;

/// The bytes of one message without its descriptors' batches, which go between prefix and body.
///
/// # Errors
/// `InvalidInput` when the message is larger than the other side would take.
pub fn encode(message: &impl Serialize, fds: usize) -> io::Result<Vec<u8>> {
    let mut bytes = postcard::to_extend(message, vec![0; PREFIX]).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len() - PREFIX).ok().filter(|length| *length <= LARGEST);
    let length = length.filter(|_| fds <= MOST_FDS);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "message too large"))?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4..PREFIX].copy_from_slice(&(fds as u32).to_le_bytes());
    Ok(bytes)
}

/// How many bytes and descriptors follow a prefix.
///
/// # Errors
/// `InvalidData` for more than any message has.
pub fn lengths(prefix: [u8; PREFIX]) -> io::Result<(usize, usize)> {
    let (words, _) = prefix.as_chunks();
    match [words[0], words[1]].map(u32::from_le_bytes) {
        [length, fds] if length <= LARGEST && fds as usize <= MOST_FDS => Ok((length as usize, fds as usize)),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "message too large")),
    }
}

/// The message that `bytes`, all that follows a prefix, hold.
///
/// # Errors
/// `InvalidData` when they are not one.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> io::Result<T> {
    postcard::from_bytes(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// How descriptors are batched: each batch goes with one byte.
pub fn batches<'a>(fds: &'a [BorrowedFd<'a>]) -> impl Iterator<Item = &'a [BorrowedFd<'a>]> {
    fds.chunks(BATCH)
}

/// Sends one batch of descriptors.
///
/// # Errors
/// sendmsg(2)'s; `WouldBlock` on a non-blocking socket.
pub fn send_batch(socket: impl AsFd, batch: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    control.push(SendAncillaryMessage::ScmRights(batch));
    sendmsg(socket, &[IoSlice::new(&[0])], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Takes one batch of descriptors, which are close-on-exec.
///
/// # Errors
/// recvmsg(2)'s; `WouldBlock` on a non-blocking socket; `UnexpectedEof` at the end of the stream; `InvalidData` when there were
/// none, or this process has no room for them.
pub fn receive_batch(socket: impl AsFd, fds: &mut Vec<OwnedFd>) -> io::Result<()> {
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(BATCH))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let before = fds.len();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(some) = message {
            fds.extend(some);
        }
    }
    if fds.len() == before { Err(io::Error::new(io::ErrorKind::InvalidData, "no descriptors came")) } else { Ok(()) }
}

/// Sends one message. By send(2): what the task's process says and hears before its command is not I/O of the task.
///
/// # Errors
/// The socket's, and [`encode`]'s.
pub fn send(socket: impl AsFd, message: &impl Serialize) -> io::Result<()> {
    send_with(socket, message, &[])
}

/// Sends one message with descriptors.
///
/// # Errors
/// The socket's, and [`encode`]'s.
pub fn send_with(socket: impl AsFd, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let bytes = encode(message, fds.len())?;
    if fds.is_empty() {
        return send_all(&socket, &bytes);
    }
    send_all(&socket, &bytes[..PREFIX])?;
    batches(fds).try_for_each(|batch| send_batch(&socket, batch))?;
    send_all(&socket, &bytes[PREFIX..])
}

/// Sends bytes that belong to no message.
///
/// # Errors
/// send(2)'s.
pub fn send_all(socket: impl AsFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match send_bytes(&socket, bytes, SendFlags::NOSIGNAL) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Receives one message that comes without descriptors; None at the end of the stream.
///
/// # Errors
/// The socket's; `InvalidData` when it is not a message.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<T>> {
    Ok(receive_with(socket)?.map(|(message, _)| message))
}

/// Receives one message with its descriptors; None at the end of the stream.
///
/// # Errors
/// The socket's; `InvalidData` when it is not a message.
pub fn receive_with<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut prefix = [0; PREFIX];
    match receive_all(&socket, &mut prefix)? {
        0 => return Ok(None),
        PREFIX => {}
        _ => return Err(io::ErrorKind::UnexpectedEof.into()),
    }
    let (length, expected) = lengths(prefix)?;
    let mut fds = Vec::new();
    while fds.len() < expected {
        receive_batch(&socket, &mut fds)?;
    }
    let mut bytes = Vec::new();
    while bytes.len() < length {
        let start = bytes.len();
        bytes.resize(length.min(start + AT_ONCE), 0);
        if receive_all(&socket, &mut bytes[start..])? != bytes.len() - start {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(Some((decode(&bytes)?, fds)))
}

/// Fills `bytes`; fewer only at the end of the stream.
fn receive_all(socket: impl AsFd, bytes: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match recv(&socket, &mut bytes[filled..], RecvFlags::WAITALL) {
            Ok((_, 0)) => break,
            Ok((_, received)) => filled += received,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_message_that_is_cut_or_too_large_is_an_error() {
        let whole = encode(&"hello", 0).unwrap();
        let heard = |bytes: &[u8]| {
            let (mut here, there) = UnixStream::pair().unwrap();
            here.write_all(bytes).unwrap();
            drop(here);
            receive::<String>(&there)
        };
        assert_eq!(heard(&whole).unwrap().as_deref(), Some("hello"));
        assert!(heard(&whole[..6]).is_err());
        assert!(heard(&whole[..10]).is_err());
        assert!(heard(&[255; 8]).is_err());
        assert!(heard(&[]).unwrap().is_none());
    }

    #[test]
    fn descriptors_come_with_their_message_however_many_there_are() {
        let (here, there) = UnixStream::pair().unwrap();
        let files: Vec<File> = (0..600).map(|_| File::open("/dev/null").unwrap()).collect();
        let borrowed: Vec<BorrowedFd<'_>> = files.iter().map(AsFd::as_fd).collect();
        send_with(&here, &"some", &borrowed).unwrap();
        send(&here, &"none").unwrap();
        send_with(&here, &"one", &borrowed[..1]).unwrap();
        let counts: Vec<(String, usize)> =
            (0..3).map(|_| receive_with::<String>(&there).unwrap().map(|(m, fds)| (m, fds.len())).unwrap()).collect();
        assert_eq!(counts, [("some".into(), 600), ("none".into(), 0), ("one".into(), 1)]);
    }
}
