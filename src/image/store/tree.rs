//! A tree's directory and the lock on it: who uses a tree shares the lock, who takes it away has it alone.

use std::fs::{self, File, TryLockError};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::{Result, at, open};

/// flock(2)ed.
const LOCK: &str = "lock";

/// A tree whose lock is held as long as this lives.
#[derive(Debug)]
pub struct Tree {
    pub path: PathBuf,
    _lock: File,
}

impl Tree {
    /// Makes the lock of a tree that is in the making.
    pub fn prepare(path: &Path) -> Result<()> {
        let lock = path.join(LOCK);
        open::lock_file(&lock).map(drop).map_err(at("create", &lock))
    }

    /// Holds the tree together with others; waits for who is about to take it away.
    pub fn share(path: PathBuf) -> Result<Self> {
        let there = path.join(LOCK);
        loop {
            let lock = open::file(&there).map_err(at("open", &there))?;
            lock.lock_shared().map_err(at("lock", &there))?;
            // Meanwhile the tree may be gone, or another one in its place.
            let meta = fs::symlink_metadata(&there).map_err(at("look at", &there))?;
            if lock.metadata().is_ok_and(|lock| (lock.dev(), lock.ino()) == (meta.dev(), meta.ino())) {
                return Ok(Self { path, _lock: lock });
            }
        }
    }

    /// Holds the tree alone; None where somebody uses it.
    pub fn take(path: PathBuf) -> Result<Option<Self>> {
        let lock = open::lock_file(&path.join(LOCK)).map_err(at("open the lock of", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { path, _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(at("lock", &path)(error)),
        }
    }
}
