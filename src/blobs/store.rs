//! The directory on disk. Every name is resolved below its descriptor, and never through a link (openat2(2)).
//!
//! ```text
//! data/<2 digits>/<64 digits>       a blob, read-only; its modification time is its last use
//! owners/<64 digits>/<64 digits>    an empty file: this owner has put this blob
//! staging/<16 digits>               an upload, locked (flock(2)) by the process that writes it
//! ```
//!
//! Several processes may use one directory. What belongs together changes under a lock on the directory itself. A mark
//! is made before its blob and removed after it, so a crash between leaves at worst a mark without a blob, and
//! [`Locked::read`] removes those.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, FlockOperation, Mode, Stat, flock, fsync, openat, openat2};
use rustix::io::{Errno, retry_on_intr};

use super::BlobError;
use super::names::{
    DIRECTORY, FILE, NEW_FILE, WITHOUT_LINKS, directory, failed, hexadecimal, is_file, kind, make_directory, names_in,
    remove, stat,
};
use super::staged::{READ_ONLY, StageAs, Staged, set_used_now};

pub(super) struct Store {
    /// An open file description of its own: a descriptor that came from elsewhere may share its lock with others.
    root: OwnedFd,
    /// Held with the lock on `root`, which excludes other processes but not the threads of this one.
    threads: Mutex<()>,
    staging: Arc<OwnedFd>,
    pub(super) stage_as: StageAs,
}

/// The directory while no other process and no other thread changes names in it.
pub(super) struct Locked<'a> {
    store: &'a Store,
    _threads: MutexGuard<'a, ()>,
}

/// What there is under a blob's name.
pub(super) enum Place {
    Missing,
    Blob(Blob),
    /// No regular file.
    Foreign,
}

/// A blob, open for reading.
pub(super) struct Blob {
    pub file: File,
    pub size: u64,
    last_use: SystemTime,
}

/// A blob as [`Locked::read`] found it.
pub(super) struct Found {
    pub size: u64,
    pub last_use: SystemTime,
    pub owners: BTreeSet<String>,
}

impl Store {
    /// Makes the directories that are missing.
    pub fn open(dir: OwnedFd) -> Result<Self, BlobError> {
        let root = openat(&dir, ".", DIRECTORY, Mode::empty()).map_err(failed("open", "."))?;
        for name in ["data", "owners", "staging"] {
            make_directory(&root, name, name)?;
        }
        let staging = Arc::new(directory(&root, "staging")?);
        let store = Self { root, threads: Mutex::new(()), staging, stage_as: StageAs::Named };
        let data = directory(&store.root, "data")?;
        for name in shelves() {
            make_directory(&data, &name, &format!("data/{name}"))?;
        }
        fsync(&data).map_err(failed("sync", "data"))?;
        fsync(&store.root).map_err(failed("sync", "."))?;
        let names = store.lock()?;
        let stage_as = StageAs::probe(&store.staging)?;
        drop(names);
        Ok(Self { stage_as, ..store })
    }

    /// Waits until nobody else has the lock.
    pub fn lock(&self) -> Result<Locked<'_>, BlobError> {
        let threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        retry_on_intr(|| flock(&self.root, FlockOperation::LockExclusive)).map_err(failed("lock", "."))?;
        Ok(Locked { store: self, _threads: threads })
    }

    /// Opens what has the blob's name.
    pub fn find(&self, hex: &str) -> Result<Place, BlobError> {
        let path = data_path(hex);
        let file = match openat2(&self.root, &path, FILE, Mode::empty(), WITHOUT_LINKS) {
            Ok(file) => File::from(file),
            Err(Errno::NOENT) => return Ok(Place::Missing),
            // A link; a socket or a device without a driver.
            Err(Errno::LOOP | Errno::NXIO | Errno::NODEV) => return Ok(Place::Foreign),
            Err(errno) => return Err(failed("open", &path)(errno)),
        };
        let metadata = file.metadata().map_err(failed("inspect", &path))?;
        if !metadata.is_file() {
            return Ok(Place::Foreign);
        }
        let last_use = metadata.modified().map_err(failed("inspect", &path))?;
        Ok(Place::Blob(Blob { size: metadata.len(), last_use, file }))
    }

    /// The directory names of all who have put the blob.
    pub fn owners_of(&self, hex: &str) -> Result<BTreeSet<String>, BlobError> {
        let owners = directory(&self.root, "owners")?;
        let mut found = BTreeSet::new();
        for owner in names_in(&owners, "owners")?.iter().filter_map(|name| hexadecimal(name, 64)) {
            if self.has_put(owner, hex)? {
                found.insert(owner.to_owned());
            }
        }
        Ok(found)
    }

    fn has_put(&self, owner: &str, hex: &str) -> Result<bool, BlobError> {
        let path = owner_path(owner);
        match openat2(&self.root, &path, DIRECTORY, Mode::empty(), WITHOUT_LINKS) {
            Ok(directory) => Ok(is_file(stat(&directory, hex, &path)?.as_ref())),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(errno) => Err(failed("open", &path)(errno)),
        }
    }

    /// A new file for an upload.
    pub fn stage(&self) -> Result<Staged, BlobError> {
        // Nothing clears `staging` between the making and the locking of a file with a name.
        let _names = (self.stage_as == StageAs::Named).then(|| self.lock()).transpose()?;
        Staged::new(&self.staging, self.stage_as)
    }

    /// Makes a blob's name and its owner's mark survive a power cut.
    pub fn sync(&self, owner: &str, hex: &str) -> Result<(), BlobError> {
        for path in [shelf_path(hex), owner_path(owner), "owners".to_owned()] {
            match openat2(&self.root, &path, DIRECTORY, Mode::empty(), WITHOUT_LINKS) {
                Ok(directory) => fsync(directory).map_err(failed("sync", &path))?,
                // Gone already with the owner's last blob.
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed("open", &path)(errno)),
            }
        }
        Ok(())
    }
}

impl std::ops::Deref for Locked<'_> {
    type Target = Store;
    fn deref(&self) -> &Store {
        self.store
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        // Explicitly, not by closing: a process forked meanwhile has the same open file description.
        let _ = flock(&self.store.root, FlockOperation::Unlock);
    }
}

impl Locked<'_> {
    /// Marks the blob as put by the owner.
    pub fn enter(&self, owner: &str, hex: &str) -> Result<(), BlobError> {
        let path = owner_path(owner);
        make_directory(&directory(&self.root, "owners")?, owner, &path)?;
        let marks = directory(&self.root, &path)?;
        let made = match openat(&marks, hex, NEW_FILE, READ_ONLY) {
            Err(Errno::EXIST) if is_file(stat(&marks, hex, &path)?.as_ref()) => return Ok(()),
            Err(Errno::EXIST) => {
                remove(&marks, hex, &path)?;
                openat(&marks, hex, NEW_FILE, READ_ONLY)
            }
            made => made,
        };
        made.map(drop).map_err(failed("mark a blob in", &path))
    }

    /// Marks the blob as put by the owner and gives a sealed upload the blob's name, which must be free.
    pub fn add(&self, owner: &str, hex: &str, staged: &mut Staged) -> Result<(), BlobError> {
        self.enter(owner, hex)?;
        let added = directory(&self.root, &shelf_path(hex)).and_then(|shelf| staged.name(&shelf, hex, &data_path(hex)));
        if added.is_err() {
            // What remains of it goes with the next `read`.
            let _ = self.strike(owner, hex);
        }
        added
    }

    /// Removes the owner's mark, and the owner's directory with the last one. Tells whether it was there.
    pub fn strike(&self, owner: &str, hex: &str) -> Result<bool, BlobError> {
        if !self.has_put(owner, hex)? {
            return Ok(false);
        }
        let path = owner_path(owner);
        remove(&directory(&self.root, &path)?, hex, &path)?;
        remove(&directory(&self.root, "owners")?, owner, "owners")?;
        Ok(true)
    }

    /// Removes what has the blob's name, but none of its marks.
    pub fn remove_data(&self, hex: &str) -> Result<(), BlobError> {
        let path = shelf_path(hex);
        remove(&directory(&self.root, &path)?, hex, &path)
    }

    /// Removes the blob and all its marks.
    pub fn discard(&self, hex: &str) -> Result<(), BlobError> {
        self.remove_data(hex)?;
        self.owners_of(hex)?.iter().try_for_each(|owner| self.strike(owner, hex).map(drop))
    }

    /// Reads everything there is, and removes uploads that nobody writes, marks without a blob, and what is neither.
    /// Directories that are not empty stay, and so does what lies beside the directories named above.
    pub fn read(&self) -> Result<BTreeMap<String, Found>, BlobError> {
        self.clear_staging()?;
        let mut found = BTreeMap::new();
        for name in shelves() {
            self.read_shelf(&name, &mut found)?;
        }
        let owners = directory(&self.root, "owners")?;
        for owner in names_in(&owners, "owners")?.iter().filter_map(|name| hexadecimal(name, 64)) {
            if stat(&owners, owner, "owners")?.is_some_and(|stat| kind(&stat) == FileType::Directory) {
                self.read_marks(owner, &mut found)?;
            }
            // Stays if there are marks in it.
            remove(&owners, owner, "owners")?;
        }
        Ok(found)
    }

    fn clear_staging(&self) -> Result<(), BlobError> {
        for name in names_in(&self.staging, "staging")? {
            let is_upload = is_file(stat(&self.staging, &*name, "staging")?.as_ref());
            if !(is_upload && self.is_being_written(&name)?) {
                remove(&self.staging, &*name, "staging")?;
            }
        }
        Ok(())
    }

    fn is_being_written(&self, name: &CStr) -> Result<bool, BlobError> {
        let file = match openat(&self.staging, name, FILE, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(false),
            file => file.map_err(failed("open an upload in", "staging"))?,
        };
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(errno) => Err(failed("lock an upload in", "staging")(errno)),
        }
    }

    fn read_shelf(&self, shelf: &str, found: &mut BTreeMap<String, Found>) -> Result<(), BlobError> {
        let path = format!("data/{shelf}");
        let directory = directory(&self.root, &path)?;
        for name in names_in(&directory, &path)? {
            let Some(stat) = stat(&directory, &*name, &path)? else { continue };
            match hexadecimal(&name, 64).filter(|hex| hex.starts_with(shelf) && is_file(Some(&stat))) {
                Some(hex) => drop(found.insert(hex.to_owned(), Found::of(&stat))),
                None => remove(&directory, &*name, &path)?,
            }
        }
        Ok(())
    }

    fn read_marks(&self, owner: &str, found: &mut BTreeMap<String, Found>) -> Result<(), BlobError> {
        let path = owner_path(owner);
        let marks = directory(&self.root, &path)?;
        for name in names_in(&marks, &path)? {
            let is_mark = is_file(stat(&marks, &*name, &path)?.as_ref());
            match hexadecimal(&name, 64).and_then(|hex| found.get_mut(hex)).filter(|_| is_mark) {
                Some(blob) => drop(blob.owners.insert(owner.to_owned())),
                None => remove(&marks, &*name, &path)?,
            }
        }
        Ok(())
    }
}

impl Blob {
    /// Sets the last use to now, unless it was less than `interval` ago: one write instead of many.
    pub fn note_use(&self, interval: Duration) -> Result<(), BlobError> {
        if SystemTime::now().duration_since(self.last_use).is_ok_and(|age| age < interval) {
            return Ok(());
        }
        set_used_now(&self.file)
    }
}

impl Found {
    fn of(stat: &Stat) -> Self {
        let since = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
        #[allow(clippy::unnecessary_cast, reason = "signed on some architectures")]
        let nanoseconds = stat.st_mtime_nsec as u64;
        let last_use = UNIX_EPOCH.checked_add(since.saturating_add(Duration::from_nanos(nanoseconds)));
        Self {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            last_use: last_use.unwrap_or(UNIX_EPOCH),
            owners: BTreeSet::new(),
        }
    }
}

/// The names below `data`: the first two digits of the digests in each.
fn shelves() -> impl Iterator<Item = String> {
    (0..=u8::MAX).map(|byte| format!("{byte:02x}"))
}

fn shelf_path(hex: &str) -> String {
    format!("data/{}", hex.get(..2).unwrap_or_default())
}

fn data_path(hex: &str) -> String {
    format!("{}/{hex}", shelf_path(hex))
}

fn owner_path(owner: &str) -> String {
    format!("owners/{owner}")
}
