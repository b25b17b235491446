//! Reads a client's archive (tar, tar.gz, tar.zst, zip): what it holds, and the bytes of its files.
//!
//! The archive is hostile until read to its end. Nothing here touches the file system: the names become
//! [`WorkspacePath`]s, the bytes go into one stream, and whoever places them has plain values to work with.
//! Invariants: no header is believed about a size, memory and time are bounded by [`Bounds`] and the length of the
//! source, and no file lies below another file or below a symbolic link of the same archive.

mod entries;
mod guard;
mod tar;
#[cfg(test)]
mod tests;
mod zip;

use std::io::{self, BufReader, Read, Seek, Write};

use flate2::bufread::MultiGzDecoder;

use crate::task::{ArchiveFormat as Format, PathRefusal, WorkspacePath};
use entries::Entries;

/// The largest window of a tar.zst, as a power of two: 8 MiB, what `zstd -19` uses. Larger ones are memory for the
/// asking.
const ZSTD_WINDOW: u32 = 23;
const BUFFER: usize = 64 << 10;

/// The most an archive may hold.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub entries: usize,
    /// Unpacked bytes of all files together; a hard link counts as a file of its own.
    pub bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub path: WorkspacePath,
    pub kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `mode` has permission bits only, and the owner may always read and write. The file's bytes lie in the
    /// contents, at `offset`; hard links to one file share them.
    File {
        mode: u32,
        offset: u64,
        size: u64,
    },
    Directory,
    /// `target` is relative and leads, name by name, to a place in the workspace. Through another link it may lead
    /// elsewhere: whoever follows links has to stay below the workspace by himself (`openat2` with
    /// `RESOLVE_BENEATH`).
    Symlink {
        target: String,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("entry {name:?}: {reason}")]
    Entry { name: String, reason: Refusal },
    #[error("more than {0} entries")]
    Entries(usize),
    #[error("unpacked it is more than {0} bytes")]
    Bytes(u64),
    #[error("not a {format}: {reason}")]
    Unreadable { format: Format, reason: io::Error },
    /// The contents could not be written: nothing the archive can help.
    #[error("write the files of the archive: {0}")]
    Write(io::Error),
}

/// Why an entry, and the archive with it, was refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Path(#[from] PathRefusal),
    #[error("its name or the target of its link is not UTF-8")]
    NotUtf8,
    #[error("the archive has something else at its path")]
    Twice,
    #[error("it lies below {0:?}, which is a file or a symbolic link of the archive")]
    BelowFile(String),
    #[error("a symbolic link to {0:?} leads out of the workspace")]
    LeadsOut(String),
    #[error("the target of a symbolic link has 1 to {max} bytes and no NUL", max = entries::TARGET_BYTES)]
    Target,
    #[error("a hard link to {0:?}, which is no file before it in the archive")]
    HardLink(String),
    #[error("it is {0}; files, directories and links are read")]
    Kind(&'static str),
    #[error("it is encrypted")]
    Encrypted,
    #[error("it has {real} bytes, and {declared} by its header")]
    Size { declared: u64, real: u64 },
    #[error("{0}")]
    Unreadable(io::Error),
}

/// Reads an archive from its beginning: what it holds, and the files' bytes one after the other into `contents`.
///
/// `below` is the directory that all names are put below; without it they are below the top. Directories that are
/// only named by what lies in them are not listed. After an error, what `contents` received is of no use.
///
/// # Errors
/// When the archive, or anything in it, is refused; when `contents` cannot be written.
pub fn unpack(
    format: Format,
    mut source: impl Read + Seek,
    below: Option<&WorkspacePath>,
    bounds: Bounds,
    contents: &mut impl Write,
) -> Result<Vec<Entry>, ArchiveError> {
    let unreadable = |reason| ArchiveError::Unreadable { format, reason };
    source.rewind().map_err(unreadable)?;
    let mut source = BufReader::with_capacity(BUFFER, source);
    let mut entries = Entries::new(below, bounds, contents);
    match format {
        Format::Tar => tar::unpack(&mut source, &mut entries),
        Format::TarGz => tar::unpack(&mut MultiGzDecoder::new(source), &mut entries),
        Format::TarZst => tar::unpack(&mut zstd(source).map_err(unreadable)?, &mut entries),
        Format::Zip => zip::unpack(&mut source, &mut entries),
    }
    .map_err(|failure| failure.of(format))?;
    Ok(entries.list)
}

fn zstd<R: io::BufRead>(source: R) -> io::Result<zstd::Decoder<'static, R>> {
    let mut decoder = zstd::Decoder::with_buffer(source)?;
    decoder.window_log_max(ZSTD_WINDOW)?;
    Ok(decoder)
}

/// An error of a reader, which need not know the name of its format.
enum Failure {
    Unreadable(io::Error),
    Error(ArchiveError),
}

impl Failure {
    fn of(self, format: Format) -> ArchiveError {
        match self {
            Self::Unreadable(reason) => ArchiveError::Unreadable { format, reason },
            Self::Error(error) => error,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(reason: io::Error) -> Self {
        Self::Unreadable(reason)
    }
}

impl From<ArchiveError> for Failure {
    fn from(error: ArchiveError) -> Self {
        Self::Error(error)
    }
}
