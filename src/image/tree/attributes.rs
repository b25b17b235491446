//! What all kinds of entries have beside their content.

use std::fs::Metadata;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Gid, Mode, Timespec, Timestamps, Uid, fchmod, fchown, futimens};
use tar::Header;

/// Ids beyond what a container has become nobody's.
const NOBODY: u32 = 65_534;

#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub modified: u64,
}

/// A directory that no archive names.
pub const DIRECTORY: Attributes = Attributes { mode: 0o755, uid: 0, gid: 0, modified: 0 };
/// A file of Faber's own.
pub const READABLE: Attributes = Attributes { mode: 0o644, ..DIRECTORY };

impl Attributes {
    pub fn of(header: &Header) -> io::Result<Self> {
        Ok(Self {
            // No setuid, setgid, sticky bits and no writing for group and others: a root is read-only, so they would be without
            // effect there, and should a tree ever be seen elsewhere, nobody can use them.
            mode: header.mode()? & 0o755,
            uid: id(header.uid()?),
            gid: id(header.gid()?),
            modified: header.mtime()?,
        })
    }

    /// Whether a file has them.
    pub fn are_of(&self, meta: &Metadata) -> bool {
        let Self { mode, uid, gid, modified } = *self;
        let seconds = i64::try_from(modified).unwrap_or(0);
        (meta.mode() & 0o7777, meta.uid(), meta.gid(), meta.mtime()) == (mode, uid, gid, seconds)
    }

    /// Owner first: a change of owner clears bits of the mode.
    pub fn set(&self, file: BorrowedFd<'_>) -> rustix::io::Result<()> {
        fchown(file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        fchmod(file, Mode::from_raw_mode(self.mode))?;
        futimens(file, &times(self.modified))
    }
}

fn id(number: u64) -> u32 {
    u32::try_from(number).ok().filter(|id| *id < NOBODY).unwrap_or(NOBODY)
}

pub fn times(seconds: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}
