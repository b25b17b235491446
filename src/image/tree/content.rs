//! The content of files: kept once by itself and its attributes, and linked into every tree that has it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, linkat};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::attributes::Attributes;
use super::{Result, at};
use crate::task::Digest;

/// A file's content beside the shared files: there it stays if it is the first of its kind.
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
        files: &'a Path,
        path: &Path,
        size: u64,
        content: &mut dyn Read,
        attributes: &Attributes,
    ) -> Result<Self> {
        let file = NamedTempFile::new_in(files).map_err(at("create a file in", files))?;
        let hash = copy(content, size, file.as_file()).map_err(at("write", path))?;
        attributes.set(file.as_file().as_fd()).map_err(at("set the attributes of", path))?;
        Ok(Self { files, file, size, hash, attributes: *attributes })
    }

    /// Links it into `parent`, where no `name` is.
    pub fn link(self, parent: BorrowedFd<'_>, name: &Path, path: &Path) -> Result<()> {
        let shared = self.share()?;
        match linkat(CWD, &shared, parent, name, AtFlags::empty()) {
            // The file system allows no more links to it: this tree gets its own.
            Err(Errno::MLINK) => linkat(CWD, self.file.path(), parent, name, AtFlags::empty()),
            done => done,
        }
        .map_err(at("link", path))
    }

    fn share(&self) -> Result<PathBuf> {
        // Empty files are many, and there is nothing in them to share.
        if self.size == 0 {
            return Ok(self.file.path().to_owned());
        }
        let (Attributes { mode, uid, gid, modified }, hash) = (&self.attributes, &self.hash);
        let key = Sha256::digest(format!("{mode:o} {uid} {gid} {modified} {hash:02x?}"));
        let digest = Digest::new(key.into());
        let (first, rest) = digest.hex().split_at(2);
        let directory = self.files.join(first);
        fs::create_dir_all(&directory).map_err(at("create", &directory))?;
        let shared = directory.join(rest);
        match fs::hard_link(self.file.path(), &shared) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at("link", &shared)(error)),
            _ => Ok(shared),
        }
    }
}

/// Exactly `size` bytes, and their hash.
fn copy(from: &mut dyn Read, size: u64, mut to: &File) -> io::Result<[u8; 32]> {
    let (mut hash, mut left) = (Sha256::new(), size);
    let mut chunk = vec![0; 128 << 10];
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
