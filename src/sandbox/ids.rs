//! The host uid and gid range of a slot: one that nothing else on the machine and no other slot uses.
//!
//! systemd's list of ranges (uids-gids, systemd.io) leaves 0x7000_0000–0x7fff_ffff to local use, above everything
//! that user databases, subordinate ids and container managers hand out.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FIRST: u32 = 0x7000_0000;
const RANGES: u32 = 4096;
/// Ids in a range: all that a container's files and users may name.
pub const SIZE: u32 = 65_536;

/// A claimed range: container id n is host id `base + n`. Given back when dropped, or when the process ends.
#[derive(Debug)]
pub struct UidRange {
    base: u32,
    _lock: File,
}

#[derive(Debug, thiserror::Error)]
pub enum IdError {
    #[error("open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("lock {path}")]
    Lock { path: PathBuf, source: io::Error },
    #[error("all {RANGES} uid ranges are in use")]
    Exhausted,
}

impl UidRange {
    /// Claims the first free range of the machine by a lock on its byte in `file`. The lock belongs to the open file
    /// (F_OFD_SETLK, fcntl(2)), so the kernel gives it back whatever becomes of the process.
    pub fn claim(file: &Path) -> Result<Self, IdError> {
        let open = |source| IdError::Open { path: file.to_owned(), source };
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent).map_err(open)?;
        }
        let lock =
            File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(file).map_err(open)?;
        for range in 0..RANGES {
            if try_lock(&lock, range).map_err(|source| IdError::Lock { path: file.to_owned(), source })? {
                return Ok(Self { base: FIRST + range * SIZE, _lock: lock });
            }
        }
        Err(IdError::Exhausted)
    }

    pub fn base(&self) -> u32 {
        self.base
    }

    /// The line for uid_map and gid_map (user_namespaces(7)).
    pub fn map(&self) -> String {
        format!("0 {} {SIZE}", self.base)
    }
}

fn try_lock(file: &File, byte: u32) -> io::Result<bool> {
    let lock = nix::libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte.into(),
        l_len: 1,
        l_pid: 0,
    };
    match nix::fcntl::fcntl(file.as_raw_fd(), nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(true),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_claims_never_share_a_range_and_a_dropped_one_is_free_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("uid-ranges");
        let (first, second) = (UidRange::claim(&file).unwrap(), UidRange::claim(&file).unwrap());
        assert_eq!((first.base(), second.base()), (FIRST, FIRST + SIZE));
        drop(first);
        assert_eq!(UidRange::claim(&file).unwrap().base(), FIRST);
    }
}
