//! What an archive may make its reader do at most. Beyond it is no root file system, but a bomb.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::Path;
use std::rc::Rc;

/// Bytes of all files, as they would be unpacked.
pub const BYTES: u64 = 32 << 30;
pub const ENTRIES: usize = 4_000_000;
/// Bytes of all names in archives.
const NAMES: u64 = 256 << 20;
/// Bytes of the paths that are held in memory at a time: longer than the names they come from where links are on the way,
/// and more of them where a name makes the directories above it.
const PATHS: u64 = 256 << 20;
/// What a path takes beside its bytes: its place in a map, and in the allocator.
const PATH: u64 = 96;
/// Bytes of an entry's headers: longest names and attributes, which the tar crate holds in memory. And of what follows the
/// last entry, which is padding.
const HEADERS: u64 = 1 << 20;
/// Bytes of whole archives, headers and padding included.
const ARCHIVES: u64 = 2 * BYTES;
/// Directories in directories: a deeper tree could not be removed again without care.
pub const DEPTH: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TooLarge(pub &'static str);

/// What was used of it so far, by all archives of a tree together.
#[derive(Debug, Default)]
pub struct Used {
    bytes: u64,
    entries: usize,
    names: u64,
    paths: u64,
    archives: Rc<Cell<u64>>,
}

/// The memory of a path.
fn path_bytes(path: &Path) -> u64 {
    PATH + path.as_os_str().len() as u64
}

impl Used {
    pub fn entry(&mut self, size: u64, name: usize) -> Result<(), TooLarge> {
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > BYTES { Err(TooLarge("bytes")) } else { self.name(name) }
    }

    /// An entry whose content is not looked at.
    pub fn name(&mut self, length: usize) -> Result<(), TooLarge> {
        self.entries += 1;
        self.names += length as u64;
        match () {
            () if self.entries > ENTRIES => Err(TooLarge("entries")),
            () if self.names > NAMES => Err(TooLarge("names")),
            () => Ok(()),
        }
    }

    /// A path that is held in memory from now on.
    pub fn hold(&mut self, path: &Path) -> Result<(), TooLarge> {
        self.paths += path_bytes(path);
        if self.paths > PATHS { Err(TooLarge("bytes of paths")) } else { Ok(()) }
    }

    /// One that is not held any more.
    pub fn release(&mut self, path: &Path) {
        self.paths = self.paths.saturating_sub(path_bytes(path));
    }

    pub fn guard<R>(&self, archive: R) -> (Guarded<R>, Allowance) {
        let left = Rc::new(Cell::new(HEADERS));
        let guarded = Guarded { archive, left: left.clone(), archives: self.archives.clone() };
        (guarded, Allowance(left))
    }
}

/// How much may be read until more is allowed.
pub struct Allowance(Rc<Cell<u64>>);

impl Allowance {
    pub fn headers(&self) {
        self.0.set(HEADERS);
    }

    /// The content of an entry, whose size was looked at.
    pub fn content(&self) {
        self.0.set(u64::MAX);
    }
}

/// An archive that is not read beyond what is allowed.
pub struct Guarded<R> {
    archive: R,
    left: Rc<Cell<u64>>,
    archives: Rc<Cell<u64>>,
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.archive.read(buffer)? as u64;
        self.archives.set(self.archives.get() + length);
        let left = self.left.get().checked_sub(length);
        self.left.set(left.unwrap_or(0));
        if left.is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it holds headers or padding that are too large"));
        }
        if self.archives.get() > ARCHIVES {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "it has no end"));
        }
        Ok(length as usize)
    }
}

impl<R: io::Seek> io::Seek for Guarded<R> {
    fn seek(&mut self, position: io::SeekFrom) -> io::Result<u64> {
        self.archive.seek(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_bounded_by_the_memory_they_take_at_a_time() {
        let (long, short) = ("d/".repeat(2000), Path::new("d"));
        let held = |path: &Path| {
            let mut used = Used::default();
            (0..).take_while(|_| used.hold(path).is_ok()).count() as u64
        };
        assert_eq!([held(Path::new(&long)), held(short)], [PATHS / (PATH + 4000), PATHS / (PATH + 1)]);
        let mut used = Used::default();
        for _ in 0..2 * PATHS / (PATH + 1) {
            used.hold(short).unwrap();
            used.release(short);
        }
    }
}
