//! Files that clients send before the tasks that need them: bytes kept once under their SHA-256, in a directory that
//! this process has by descriptor only.
//!
//! Whoever puts a blob becomes one of its owners and has its size in his account; the whole counts it once. It goes
//! when its last owner removes it, or when it was not used for a while. Without owners, which only a hand or a crash
//! can bring about, it stays until then. Knowing a digest is enough to read.
//!
//! The sums are in memory and the directory is the truth: [`Blobs::open`] and [`Blobs::sweep`] read it whole, everything
//! else looks at the one blob in question. So several processes can share it; what another one has put counts towards
//! the bounds here as soon as it is asked for, or with the next sweep.
//!
//! A blob has its name only after its bytes were hashed, and they are not hashed again when it is read. One whose size
//! has changed since is not served, and removed.

mod index;
mod names;
mod staged;
mod store;
#[cfg(test)]
mod tests;
mod upload;

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use index::{Entry, Index};
use sha2::{Digest as _, Sha256};
use store::{Place, Store};
pub use upload::{Stored, Upload};

use crate::task::{Bytes, Digest, part_of};

/// How long a use may go unrecorded, to spare the disk.
const USE_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of one blob.
    pub each: u64,
    /// Bytes of all blobs and of all uploads that have begun.
    pub total: u64,
    /// Of these, the bytes of one owner.
    pub per_owner: u64,
    /// How long a blob stays after its last use. A use is recorded once a minute at most (or once a tenth of this), and
    /// a blob may go so much earlier.
    pub lifetime: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("a blob may have {}, and this one has more", Bytes(*most))]
    TooLarge { most: u64 },
    #[error("no room for {}: all blobs together have {}", Bytes(*wanted), part_of(*used, *most))]
    Full { used: u64, wanted: u64, most: u64 },
    #[error("no room for {}: your blobs have {}", Bytes(*wanted), part_of(*used, *most))]
    OwnerFull { used: u64, wanted: u64, most: u64 },
    #[error("expected {expected}, but the bytes are {found}")]
    Mismatch { expected: Digest, found: Digest },
    /// The disk, or the quota that this process has on it.
    #[error("{step} {path}: the disk is full")]
    DiskFull { step: &'static str, path: String, source: io::Error },
    /// `path` is below the directory.
    #[error("{step} {path}")]
    Io { step: &'static str, path: String, source: io::Error },
}

/// What there is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub blobs: u64,
    /// Of all blobs, each counted once.
    pub bytes: u64,
    /// Of uploads that have not ended.
    pub uploading: u64,
}

/// All blobs of one directory. Its calls block; any number of threads may make them.
pub struct Blobs {
    store: Store,
    bounds: Bounds,
    /// Locked before the directory, and together with it, so that both change at once.
    index: Mutex<Index>,
}

impl Blobs {
    /// Takes the directory, makes what is missing in it and reads what is there. Removes uploads that were broken off,
    /// but not those of another process that lives, and what does not belong there.
    ///
    /// # Errors
    /// `DiskFull` or `Io`.
    pub fn open(dir: OwnedFd, bounds: Bounds) -> Result<Self, BlobError> {
        let store = Store::open(dir)?;
        let mut index = Index::default();
        let found = store.lock()?.read()?;
        index.replace(found.into_iter().map(|(hex, found)| (hex, found.into())));
        Ok(Self { store, bounds, index: Mutex::new(index) })
    }

    /// Begins an upload. `declared` is its size if that is known: what cannot fit is refused before the first byte. The
    /// room is taken as the bytes come, and all of them need it, known or not.
    ///
    /// # Errors
    /// `TooLarge`, `OwnerFull`, `Full`; `DiskFull` or `Io` if the file cannot be made.
    pub fn begin(self: &Arc<Self>, owner: &str, declared: Option<u64>) -> Result<Upload, BlobError> {
        Upload::begin(self, directory_name(owner), declared)
    }

    /// Opens a blob, with its size. The file is read-only, has a position of its own, and stays readable when the blob
    /// is removed. Counts as a use. None if there is none with this digest.
    ///
    /// # Errors
    /// `DiskFull` or `Io`.
    pub fn get(&self, digest: &Digest) -> Result<Option<(File, u64)>, BlobError> {
        let hex = digest.hex();
        let mut index = self.index();
        let mut place = self.store.find(hex)?;
        if is_damaged(&place, index.size(hex)) {
            let names = self.store.lock()?;
            // Again, as another process may have replaced it meanwhile.
            place = names.find(hex)?;
            if is_damaged(&place, index.size(hex)) {
                names.discard(hex)?;
                place = Place::Missing;
            }
        }
        let Place::Blob(blob) = place else {
            index.forget(hex);
            return Ok(None);
        };
        if index.size(hex).is_none() {
            index.set(hex, Entry { size: blob.size, owners: self.store.owners_of(hex)? });
        }
        blob.note_use(self.bounds.use_interval())?;
        Ok(Some((blob.file, blob.size)))
    }

    /// Takes a blob out of the owner's account; the bytes go with the last owner. False if the owner has no such blob.
    ///
    /// # Errors
    /// `DiskFull` or `Io`.
    pub fn remove(&self, owner: &str, digest: &Digest) -> Result<bool, BlobError> {
        let (owner, hex) = (directory_name(owner), digest.hex());
        if !self.strike(&owner, hex)? {
            return Ok(false);
        }
        self.store.sync(&owner, hex)?;
        Ok(true)
    }

    fn strike(&self, owner: &str, hex: &str) -> Result<bool, BlobError> {
        let mut index = self.index();
        let names = self.store.lock()?;
        let mut owners = names.owners_of(hex)?;
        let is_owner = owners.remove(owner);
        if is_owner && owners.is_empty() {
            index.forget(hex);
            names.remove_data(hex)?;
        }
        names.strike(owner, hex)?;
        match names.find(hex)? {
            Place::Blob(blob) => index.set(hex, Entry { size: blob.size, owners }),
            Place::Missing | Place::Foreign => index.forget(hex),
        }
        Ok(is_owner)
    }

    /// Removes the blobs that were not used for their lifetime, and what uploads of dead processes have left. Reads the
    /// whole directory, so the sums are exact again. Returns how many blobs went, and their bytes.
    ///
    /// # Errors
    /// `DiskFull` or `Io`; what was removed until then stays removed.
    pub fn sweep(&self) -> Result<(u64, u64), BlobError> {
        let mut index = self.index();
        let names = self.store.lock()?;
        let now = SystemTime::now();
        // A last use in the future, after the clock was set back, is no age.
        let expired = |last_use| now.duration_since(last_use).is_ok_and(|age| age >= self.bounds.lifetime);
        let found = names.read()?;
        let old: Vec<String> =
            found.iter().filter(|(_, found)| expired(found.last_use)).map(|(hex, _)| hex.clone()).collect();
        index.replace(found.into_iter().map(|(hex, found)| (hex, found.into())));
        let (mut count, mut bytes) = (0, 0);
        for hex in old {
            names.discard(&hex)?;
            bytes += index.size(&hex).unwrap_or(0);
            count += 1;
            index.forget(&hex);
        }
        Ok((count, bytes))
    }

    pub fn usage(&self) -> Usage {
        let index = self.index();
        Usage { blobs: index.count(), bytes: index.stored(), uploading: index.uploading() }
    }

    /// The bytes in the owner's account, those of uploads that have not ended among them.
    pub fn usage_of(&self, owner: &str) -> u64 {
        self.index().used_by(&directory_name(owner))
    }

    fn check_size(&self, size: u64) -> Result<(), BlobError> {
        let most = self.bounds.each;
        if size > most { Err(BlobError::TooLarge { most }) } else { Ok(()) }
    }

    /// Also after a panic elsewhere: the directory is the truth, and no sum is changed half way.
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bounds {
    fn use_interval(&self) -> Duration {
        USE_INTERVAL.min(self.lifetime / 10)
    }
}

impl BlobError {
    fn io(step: &'static str, path: &str, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { step, path, source },
            _ => Self::Io { step, path, source },
        }
    }
}

impl From<store::Found> for Entry {
    fn from(found: store::Found) -> Self {
        Self { size: found.size, owners: found.owners }
    }
}

/// Whether what is there cannot be the blob of this size, if one is known.
fn is_damaged(place: &Place, size: Option<u64>) -> bool {
    match place {
        Place::Missing => false,
        Place::Blob(blob) => size.is_some_and(|size| size != blob.size),
        Place::Foreign => true,
    }
}

/// An owner may be called anything; a directory may not.
fn directory_name(owner: &str) -> String {
    Digest::new(Sha256::digest(owner.as_bytes()).into()).hex().to_owned()
}
