//! Reads a zip with the zip crate. What its central directory says is what it holds; the local headers are only
//! stepped over.

use std::io::{self, Read, Seek, SeekFrom};

use ::zip::ZipArchive;
use ::zip::read::{ArchiveOffset, Config, ZipFile};
use ::zip::result::ZipError;

use super::entries::{Entries, Found, TARGET_BYTES, refused};
use super::guard::{Allowance, Guarded};
use super::{ArchiveError, Failure, Refusal};

/// The most entries that a directory without zip64 can declare.
const ENTRIES: u64 = u16::MAX as u64;
/// Bytes of the central directory and of the search for it: for each entry on the average, and on top. The zip crate
/// holds all of it in memory.
const ENTRY_BYTES: u64 = 512;
const DIRECTORY_BYTES: u64 = 1 << 20;
/// Where the end record is looked for: at the end, with the longest comment behind it and the zip64 locator before.
const TAIL: u64 = 66 << 10;

/// The bits of a mode that tell what it is the mode of (inode(7)).
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const S_IFDIR: u32 = 0o040_000;
const S_IFLNK: u32 = 0o120_000;

pub fn unpack(source: &mut (impl Read + Seek), entries: &mut Entries<'_>) -> Result<(), Failure> {
    refuse_zip64(source)?;
    let length = source.seek(SeekFrom::End(0))?;
    let largest = (entries.bounds.entries as u64).min(ENTRIES) * ENTRY_BYTES + DIRECTORY_BYTES;
    let directory = Allowance::new(largest, "its directory is too large");
    // Each byte is read once at most, unless entries share bytes: many could have the same ones read over and over.
    let shared = Allowance::new(u64::MAX, "its entries overlap");
    let mut archive = open(Guarded::new(Guarded::new(source, &directory), &shared))?;
    if archive.len() > entries.bounds.entries {
        return Err(ArchiveError::Entries(entries.bounds.entries).into());
    }
    directory.set(u64::MAX);
    shared.set(length);
    (0..archive.len()).try_for_each(|index| add(&mut archive, index, entries))
}

/// The entries, by the directory that is where the end record says: nothing is searched for, nothing may be put before.
fn open<R: Read + Seek>(source: R) -> io::Result<ZipArchive<R>> {
    let archive =
        ZipArchive::with_config(Config { archive_offset: ArchiveOffset::Known(0) }, source).map_err(reason)?;
    match archive.has_duplicate_names() {
        true => Err(invalid("a name is in its directory twice")),
        false => Ok(archive),
    }
}

fn add(archive: &mut ZipArchive<impl Read + Seek>, index: usize, entries: &mut Entries<'_>) -> Result<(), Failure> {
    let entry = archive.by_index_data(index).map_err(reason)?;
    let name = entry.name_raw().to_vec();
    if entry.encrypted() {
        return Err(refused(&name, Refusal::Encrypted).into());
    }
    let mut file = archive.by_index(index).map_err(|error| refused(&name, Refusal::Unreadable(reason(error))))?;
    // Without a mode it was not written by a Unix.
    let mode = file.unix_mode().unwrap_or(0o644);
    let found = match mode & S_IFMT {
        S_IFDIR => Found::Directory,
        S_IFLNK => Found::Symlink(target(&mut file).map_err(|reason| refused(&name, reason))?),
        // Python writes no type.
        0 | S_IFREG => Found::File { mode, size: file.size(), content: &mut file },
        _ => return Err(refused(&name, Refusal::Kind("a device, FIFO or socket")).into()),
    };
    Ok(entries.add(&name, found)?)
}

/// The target of a symbolic link, which is its content.
fn target(file: &mut ZipFile<'_, impl Read>) -> Result<Vec<u8>, Refusal> {
    let mut target = Vec::new();
    let (declared, most) = (file.size(), TARGET_BYTES as u64 + 1);
    file.take(most).read_to_end(&mut target).map_err(Refusal::Unreadable)?;
    match target.len() as u64 {
        real if real < most && real != declared => Err(Refusal::Size { declared, real }),
        _ => Ok(target),
    }
}

/// The zip crate allocates for as many entries as the end record declares. That of zip64 may declare any number, the
/// old one 65535; the new one is only needed by archives with more entries, or of more than 4 GiB.
fn refuse_zip64(source: &mut (impl Read + Seek)) -> io::Result<()> {
    let length = source.seek(SeekFrom::End(0))?;
    source.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    source.take(TAIL).read_to_end(&mut tail)?;
    // A locator has 20 bytes and lies right before the old end record.
    let mut windows = tail.windows(24);
    match windows.any(|bytes| bytes.starts_with(b"PK\x06\x07") && bytes.ends_with(b"PK\x05\x06")) {
        true => Err(invalid("its directory is one of zip64, for more than 65535 entries or 4 GiB")),
        false => Ok(()),
    }
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

fn reason(error: ZipError) -> io::Error {
    match error {
        ZipError::Io(error) => error,
        ZipError::InvalidArchive(text) => invalid(text),
        ZipError::UnsupportedArchive(text) => invalid(text),
        other => invalid(other.to_string()),
    }
}
