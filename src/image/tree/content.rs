//! The content of files: kept once by itself and its attributes, and linked into every tree that has it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, OFlags, linkat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::attributes::Attributes;
use super::{Place, Result, at};
use crate::task::Digest;

const CHUNK: usize = 128 << 10;

/// A file's content beside the shared files, one of which it becomes if it is the first of its kind.
pub struct Staged<'a> {
    files: &'a Path,
    file: NamedTempFile,
    size: u64,
    pub hash: [u8; 32],
    attributes: Attributes,
}

impl<'a> Staged<'a> {
    /// Writes the next `size` bytes of `content`; `path` is for the error.
    pub fn write(
        place: &Place<'a>,
        path: &Path,
        size: u64,
        content: &mut dyn Read,
        attributes: &Attributes,
    ) -> Result<Self> {
        let file = NamedTempFile::new_in(place.scratch).map_err(at("create a file in", place.scratch))?;
        let hash = copy(content, size, file.as_file()).map_err(at("write", path))?;
        attributes.set(file.as_file().as_fd()).map_err(at("set the attributes of", path))?;
        Ok(Self { files: place.files, file, size, hash, attributes: *attributes })
    }

    /// Links it into `parent`, where no `name` is.
    pub fn link(self, parent: BorrowedFd<'_>, name: &Path, path: &Path) -> Result<()> {
        let link = |file: &Path| linkat(CWD, file, parent, name, AtFlags::empty());
        // Empty files are many, and there is nothing in them to share.
        if self.size == 0 {
            return link(self.file.path()).map_err(at("link", path));
        }
        let shared = self.shared()?;
        match fs::hard_link(self.file.path(), &shared) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            first => {
                first.map_err(at("link", &shared))?;
                return link(self.file.path()).map_err(at("link", path));
            }
        }
        if self.is_the_same(&shared).map_err(at("read", &shared))? {
            match link(&shared) {
                // The file system allows no more links to it, or it was collected just now: this tree gets its own.
                Err(Errno::MLINK | Errno::NOENT) => link(self.file.path()),
                done => done,
            }
            .map_err(at("link", path))
        } else {
            // Damaged, or forged: from here on the true one is shared. Trees that have the other one keep it.
            link(self.file.path()).map_err(at("link", path))?;
            self.file.persist(&shared).map(drop).map_err(|error| at("replace", &shared)(error.error))
        }
    }

    /// Its name among the shared files.
    fn shared(&self) -> Result<PathBuf> {
        let (Attributes { mode, uid, gid, modified }, hash) = (&self.attributes, &self.hash);
        let key = Sha256::digest(format!("{mode:o} {uid} {gid} {modified} {hash:02x?}"));
        let digest = Digest::new(key.into());
        let (first, rest) = digest.hex().split_at(2);
        let directory = self.files.join(first);
        fs::create_dir_all(&directory).map_err(at("create", &directory))?;
        Ok(directory.join(rest))
    }

    /// Whether the file `shared` still is what it was shared as: its bytes are read, since a name promises nothing.
    fn is_the_same(&self, shared: &Path) -> io::Result<bool> {
        let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
        let shared = match File::options().read(true).custom_flags(flags).open(shared) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => return Ok(false),
            other => other?,
        };
        let meta = shared.metadata()?;
        if !meta.is_file() || meta.len() != self.size || !self.attributes.are_of(&meta) {
            return Ok(false);
        }
        have_the_same(self.file.as_file(), &shared, self.size)
    }
}

/// Whether both begin with the same `size` bytes.
fn have_the_same(one: &File, other: &File, size: u64) -> io::Result<bool> {
    let chunk = usize::try_from(size).unwrap_or(usize::MAX).min(CHUNK);
    let (mut at, mut a, mut b) = (0, vec![0; chunk], vec![0; chunk]);
    while at < size {
        let length = usize::try_from(size - at).unwrap_or(usize::MAX).min(chunk);
        one.read_exact_at(&mut a[..length], at)?;
        match other.read_exact_at(&mut b[..length], at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            done => done?,
        }
        if a[..length] != b[..length] {
            return Ok(false);
        }
        at += length as u64;
    }
    Ok(true)
}

/// Exactly `size` bytes, and their hash.
fn copy(from: &mut dyn Read, size: u64, mut to: &File) -> io::Result<[u8; 32]> {
    let (mut hash, mut left) = (Sha256::new(), size);
    let mut chunk = vec![0; usize::try_from(size).unwrap_or(usize::MAX).min(CHUNK)];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        let length = from.read(&mut chunk[..most])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hash.update(&chunk[..length]);
        to.write_all(&chunk[..length])?;
        left -= length as u64;
    }
    Ok(hash.finalize().into())
}
