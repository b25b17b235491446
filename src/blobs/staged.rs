//! The file of an upload until it has a blob's name.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{
    AtFlags, CWD, FlockOperation, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, fchmod, flock, futimens,
    linkat, openat, renameat, unlinkat,
};
use rustix::io::Errno;

use super::BlobError;
use super::names::{NEW_FILE, failed};

pub(super) const READ_ONLY: Mode = Mode::from_raw_mode(0o444);
const OWN: Mode = Mode::RUSR.union(Mode::WUSR);

/// What an upload is while it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StageAs {
    /// A file without a name (`O_TMPFILE`), which the kernel removes whatever happens.
    Unnamed,
    /// A file in `staging`, where the file system or a missing /proc leaves no other way.
    Named,
}

/// The file of an upload. Dropping it removes the file, unless [`Staged::name`] has given it a blob's name.
pub(super) struct Staged {
    file: File,
    staging: Arc<OwnedFd>,
    /// In `staging`.
    name: Option<String>,
}

impl Staged {
    /// A new file in `staging`. A named one is locked for as long as it is open; nobody may clear `staging` meanwhile.
    pub fn new(staging: &Arc<OwnedFd>, stage_as: StageAs) -> Result<Self, BlobError> {
        match stage_as {
            StageAs::Unnamed => {
                let file = unnamed(staging).map_err(failed("make a file in", "staging"))?;
                Ok(Self { file: file.into(), staging: staging.clone(), name: None })
            }
            StageAs::Named => {
                let (file, name) = named(staging)?;
                let staged = Self { file, staging: staging.clone(), name: Some(name) };
                flock(&staged.file, FlockOperation::NonBlockingLockExclusive).map_err(failed("lock in", "staging"))?;
                Ok(staged)
            }
        }
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    /// Ends the content at `size`, makes it read-only, and waits until it is on disk.
    pub fn seal(&self, size: u64) -> Result<(), BlobError> {
        self.file.set_len(size).map_err(failed("end an upload in", "staging"))?;
        fchmod(&self.file, READ_ONLY).map_err(failed("make read-only an upload in", "staging"))?;
        set_used_now(&self.file)?;
        self.file.sync_all().map_err(failed("sync an upload in", "staging"))
    }

    /// Moves it into `shelf`, under a name that is free.
    pub fn name(&mut self, shelf: &OwnedFd, hex: &str, path: &str) -> Result<(), BlobError> {
        match &self.name {
            None => link(&self.file, shelf, hex).map_err(failed("name an upload", path)),
            Some(name) => {
                renameat(&self.staging, name, shelf, hex).map_err(failed("name an upload", path))?;
                self.name = None;
                Ok(())
            }
        }
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // If it fails, the next `read` of any process removes it: the lock goes with the file.
            let _ = unlinkat(&self.staging, name, AtFlags::empty());
        }
    }
}

impl StageAs {
    /// Whether a file without a name can be made in `staging` and given one. Nobody may clear `staging` meanwhile.
    pub fn probe(staging: &OwnedFd) -> Result<Self, BlobError> {
        let Ok(file) = unnamed(staging) else { return Ok(Self::Named) };
        let name = random_name();
        match link(&file, staging, &name) {
            Ok(()) => {
                unlinkat(staging, &name, AtFlags::empty()).map_err(failed("remove from staging", &name))?;
                Ok(Self::Unnamed)
            }
            Err(_) => Ok(Self::Named),
        }
    }
}

fn unnamed(staging: &OwnedFd) -> Result<OwnedFd, Errno> {
    openat(staging, ".", OFlags::WRONLY | OFlags::TMPFILE | OFlags::CLOEXEC, OWN)
}

fn named(staging: &OwnedFd) -> Result<(File, String), BlobError> {
    loop {
        let name = random_name();
        match openat(staging, &name, NEW_FILE, OWN) {
            Err(Errno::EXIST) => {}
            file => return Ok((file.map_err(failed("make a file in", "staging"))?.into(), name)),
        }
    }
}

/// Gives a file without a name one. Through /proc, because the way without it (`AT_EMPTY_PATH`) wants a capability.
fn link(file: impl AsFd, directory: &OwnedFd, name: &str) -> Result<(), Errno> {
    linkat(CWD, format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()), directory, name, AtFlags::SYMLINK_FOLLOW)
}

/// Sets a blob's last use.
pub(super) fn set_used_now(file: &File) -> Result<(), BlobError> {
    let at = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
    let times = Timestamps { last_access: at(UTIME_OMIT), last_modification: at(UTIME_NOW) };
    futimens(file, &times).map_err(failed("note the use of", "a blob"))
}

/// Not secret, only unlikely to be taken: the standard library seeds its hashers from the kernel.
fn random_name() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}
