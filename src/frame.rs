//! Length-prefixed messages between Faber's own processes: four bytes of length (little-endian), then postcard.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};

/// No message is larger: requests, arguments and output are bounded well below it.
const LARGEST: u32 = 256 << 20;

/// So much of a message there is room for before any of it has come.
const AT_ONCE: usize = 1 << 20;

/// The bytes of one message.
///
/// # Errors
/// `InvalidInput` when the message is larger than the other side would take.
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = postcard::to_extend(message, vec![0; 4]).map_err(io::Error::other)?;
    let length = u32::try_from(bytes.len() - 4).ok().filter(|length| *length <= LARGEST);
    let length = length.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "message too large"))?;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    Ok(bytes)
}

/// How many bytes follow a prefix.
///
/// # Errors
/// `InvalidData` for more than any message has.
pub fn length(prefix: [u8; 4]) -> io::Result<usize> {
    match u32::from_le_bytes(prefix) {
        length if length <= LARGEST => Ok(length as usize),
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

/// Writes one message.
///
/// # Errors
/// The writer's, and [`encode`]'s.
pub fn send(writer: &mut impl Write, message: &impl Serialize) -> io::Result<()> {
    writer.write_all(&encode(message)?)
}

/// Reads one message; None at the end of the stream.
///
/// # Errors
/// The reader's; `InvalidData` when it is not a message.
pub fn receive<T: DeserializeOwned>(reader: &mut impl Read) -> io::Result<Option<T>> {
    let mut prefix = [0; 4];
    match reader.read_exact(&mut prefix) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    }
    let length = length(prefix)?;
    let mut bytes = Vec::with_capacity(length.min(AT_ONCE));
    reader.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() != length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    decode(&bytes).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_cut_or_too_large_is_an_error() {
        let mut bytes = Vec::new();
        send(&mut bytes, &"hello").unwrap();
        assert_eq!(receive::<String>(&mut bytes.as_slice()).unwrap().as_deref(), Some("hello"));
        assert!(receive::<String>(&mut &bytes[..6]).is_err());
        assert!(receive::<String>(&mut [255u8; 8].as_slice()).is_err());
        assert!(receive::<String>(&mut [0u8; 0].as_slice()).unwrap().is_none());
    }
}
