//! Reads a tar stream with the tar crate, which unpacks nothing here: it only parses the headers.

use std::io::{self, Read};

use ::tar::{Archive, Entry, EntryType};

use super::entries::{Entries, Found, refused};
use super::guard::{Allowance, Guarded};
use super::{ArchiveError, Bounds, Failure, Refusal};

/// Bytes between the contents of two files: long names and attributes, which the tar crate holds in memory, and entries
/// that are skipped. And of what follows the end mark, which is padding.
const HEADERS: u64 = 1 << 20;
/// Bytes of an entry's headers and padding, on the average: what counts for the stream as a whole.
const ENTRY: u64 = 4 << 10;
const TOO_LARGE: &str = "it has headers or padding that are too large";

/// Reads the stream to its end: what follows the end mark has to be readable too, because a checksum may be there.
pub fn unpack(stream: &mut dyn Read, entries: &mut Entries<'_>) -> Result<(), Failure> {
    let (total, headers) = (Allowance::new(longest(entries.bounds), TOO_LARGE), Allowance::new(HEADERS, TOO_LARGE));
    let mut archive = Archive::new(Guarded::new(Guarded::new(stream, &total), &headers));
    for entry in archive.entries()? {
        headers.set(u64::MAX);
        add(&mut entry?, entries)?;
        headers.set(HEADERS);
    }
    if headers.ended() {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has no end mark, so it may be cut short").into());
    }
    headers.set(HEADERS);
    io::copy(&mut archive.into_inner(), &mut io::sink())?;
    Ok(())
}

/// Bytes of the whole stream.
fn longest(bounds: Bounds) -> u64 {
    bounds.bytes.saturating_add((bounds.entries as u64).saturating_mul(ENTRY)).saturating_add(HEADERS)
}

fn add(entry: &mut Entry<'_, impl Read>, entries: &mut Entries<'_>) -> Result<(), ArchiveError> {
    let name = entry.path_bytes().into_owned();
    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
    let found = match entry.header().entry_type() {
        // What git writes first: a comment for all entries.
        EntryType::XGlobalHeader => return Ok(()),
        EntryType::Directory => Found::Directory,
        EntryType::Symlink => Found::Symlink(target),
        EntryType::Link => Found::HardLink(target),
        EntryType::Regular | EntryType::Continuous => {
            let mode = plain_mode(entry).map_err(|reason| refused(&name, reason))?;
            Found::File { mode, size: entry.size(), content: entry }
        }
        other => return Err(refused(&name, Refusal::Kind(kind(other)))),
    };
    entries.add(&name, found)
}

/// The mode of a file that is not sparse: the newer forms of sparse files look like plain ones to who does not know
/// them.
fn plain_mode(entry: &mut Entry<'_, impl Read>) -> Result<u32, Refusal> {
    if let Some(extensions) = entry.pax_extensions().map_err(Refusal::Unreadable)? {
        let mut keys = extensions.flatten();
        if keys.any(|extension| extension.key_bytes().starts_with(b"GNU.sparse")) {
            return Err(Refusal::Kind(kind(EntryType::GNUSparse)));
        }
    }
    entry.header().mode().map_err(Refusal::Unreadable)
}

fn kind(entry: EntryType) -> &'static str {
    match entry {
        EntryType::Char | EntryType::Block => "a device",
        EntryType::Fifo => "a FIFO",
        EntryType::GNUSparse => "a sparse file",
        _ => "of an unknown kind",
    }
}
