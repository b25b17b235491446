//! Where built images are kept.
//!
//! ```text
//! <data dir>/images/NAME                     what is told of an image, its tree's digest above all; swapped in one rename
//! <data dir>/locks/NAME/image.lock           the lock of a definition that came with Faber's package
//! <data dir>/store/                          Faber's alone (0700):
//!     lock                                   who has this may change the store
//!     trees/<digest>/rootfs                  the files, hard links into files/
//!     trees/<digest>/image.json              what is told of it
//!     trees/<digest>/image.lock              what it was made of
//!     trees/<digest>/lock                    who uses the tree shares this, who removes it has it alone
//!     files/xx/…                             each file once, by content and attributes
//!     staging/…                              what is being made or removed; of no value
//! ```
//! The front, which is nobody, reads `images` and nothing else. What lies below `store` has all the modes and owners that
//! images want: nobody of the machine gets there, containers have it through mounts. A tree never changes once it has its
//! name: a new build is a new tree. All of it is on the disk before a name leads there.

mod open;
#[cfg(test)]
mod tests;
mod tree;
mod upgrade;
mod writer;

use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::tree::TreeError;
use super::{Image, Lock, LockError};
use crate::task::{Digest, ImageName};
use tree::Tree;
pub use writer::Writer;

const IMAGE_JSON: &str = "image.json";
/// What is told of an image is small.
const IMAGE_JSON_BYTES: u64 = 4 << 20;
const ROOTFS: &str = "rootfs";

/// Of what everybody may read.
const READABLE: u32 = 0o755;
/// Of what is Faber's alone.
const OWN: u32 = 0o700;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{step} {path}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is not what Faber writes")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error("there is no image {0} in the store")]
    NoImage(ImageName),
    #[error("the image {0} is in use")]
    InUse(ImageName),
    #[error("another faber is building or removing images in {0}")]
    Busy(PathBuf),
    #[error("data_dir: others may write to {0}: chown it to who runs Faber, chmod go-w {0}")]
    Open(PathBuf),
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Lock(#[from] LockError),
}

type Result<T> = std::result::Result<T, StoreError>;

fn at<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl Fn(E) -> StoreError {
    move |error| StoreError::Io { step, path: path.to_owned(), source: error.into() }
}

#[derive(Debug, Clone)]
pub struct Store {
    dir: PathBuf,
}

/// A tree that cannot be removed as long as this lives.
#[derive(Debug)]
pub struct InUse {
    pub image: Image,
    pub rootfs: PathBuf,
    _tree: Tree,
}

impl InUse {
    /// The directory of its files, which is no link.
    ///
    /// # Errors
    /// open(2)'s.
    pub fn root(&self) -> io::Result<OwnedFd> {
        Ok(open::directory(&self.rootfs)?.into())
    }
}

impl Store {
    /// The store in `data_dir`, whether it is there yet or not.
    pub fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.to_owned() }
    }

    /// The directory that changes whenever an image does.
    pub fn names(&self) -> PathBuf {
        self.dir.join("images")
    }

    fn own(&self) -> PathBuf {
        self.dir.join("store")
    }

    fn trees(&self) -> PathBuf {
        self.own().join("trees")
    }

    fn tree(&self, digest: &Digest) -> PathBuf {
        self.trees().join(digest.hex())
    }

    fn files(&self) -> PathBuf {
        self.own().join("files")
    }

    fn staging(&self) -> PathBuf {
        self.own().join("staging")
    }

    /// The directory for the lock of an image whose definition has no place for it.
    pub fn locks(&self, name: &ImageName) -> PathBuf {
        self.dir.join("locks").join(name.as_str())
    }

    /// A directory on the way to the names that the front may not pass, or the names' own if it may not read that.
    pub fn closed_to_others(&self) -> Option<PathBuf> {
        const READ_AND_PASS: u32 = 0o005;
        const PASS: u32 = 0o001;
        let names = self.names();
        let needs = |path: &Path| if path == names { READ_AND_PASS } else { PASS };
        let closed = |path: &&Path| fs::metadata(path).is_ok_and(|meta| meta.mode() & needs(path) != needs(path));
        names.ancestors().find(closed).map(Path::to_owned)
    }

    /// For who runs images and makes none: nobody else may change what is there, and what a former version made is
    /// brought to its places of today.
    ///
    /// # Errors
    /// `Open`, and [`Store::write`]'s where there is something to move.
    pub fn check(&self) -> Result<()> {
        if !self.dir.exists() {
            return Ok(());
        }
        if self.is_of_a_former_version() {
            return self.claim().map(drop);
        }
        self.check_owner()?;
        for (path, mode) in [(self.names(), READABLE), (self.own(), OWN)] {
            match open::keep_directory(&path, mode) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(at("keep to ourselves", &path)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Whether nobody else may change what is there, if anything is.
    ///
    /// # Errors
    /// `Open`, which says what to do.
    pub fn check_owner(&self) -> Result<()> {
        if !self.dir.exists() {
            return Ok(());
        }
        match open::is_open_to_others(&self.dir).map_err(at("look at", &self.dir))? {
            true => Err(StoreError::Open(self.dir.clone())),
            false => Ok(()),
        }
    }

    /// All images, by name. One that cannot be read is left out: it is not Faber's.
    ///
    /// # Errors
    /// When the store is there but cannot be read.
    pub fn images(&self) -> Result<Vec<Image>> {
        let mut images: Vec<Image> = self.entries()?.iter().filter_map(|path| read_image(path).ok()).collect();
        images.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(images)
    }

    /// What there is in the directory of the names.
    fn entries(&self) -> Result<Vec<PathBuf>> {
        let names = self.names();
        match fs::read_dir(&names) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            entries => Ok(entries.map_err(at("read", &names))?.flatten().map(|entry| entry.path()).collect()),
        }
    }

    /// The image called `name`.
    ///
    /// # Errors
    /// `NoImage`, or when it cannot be read.
    pub fn image(&self, name: &ImageName) -> Result<Image> {
        match read_image(&self.names().join(name.as_str())) {
            Err(StoreError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::NoImage(name.clone()))
            }
            other => other,
        }
    }

    /// What the image with this digest was made of.
    ///
    /// # Errors
    /// When its lock cannot be read.
    pub fn lock(&self, digest: &Digest) -> Result<Lock> {
        Ok(Lock::read(&self.tree(digest))?.unwrap_or_default())
    }

    /// The tree with this digest, held.
    ///
    /// # Errors
    /// When it is not there (any more).
    pub fn hold(&self, digest: &Digest) -> Result<InUse> {
        let tree = Tree::share(self.tree(digest))?;
        let image = read_image(&tree.path.join(IMAGE_JSON))?;
        Ok(InUse { image, rootfs: tree.path.join(ROOTFS), _tree: tree })
    }

    /// The right to change the store, which is made if need be.
    ///
    /// # Errors
    /// `Busy` when another process has it; `Open` where others could change the store too.
    pub fn write(&self) -> Result<Writer<'_>> {
        let writer = self.claim()?;
        writer.clear_staging()?;
        Ok(writer)
    }

    fn claim(&self) -> Result<Writer<'_>> {
        DirBuilder::new().recursive(true).mode(READABLE).create(&self.dir).map_err(at("create", &self.dir))?;
        self.check_owner()?;
        for (path, mode) in [(self.names(), READABLE), (self.own(), OWN)] {
            open::make_directory(&path, mode).map_err(at("create", &path))?;
        }
        let writer = Writer::claim(self)?;
        for path in [self.trees(), self.files(), self.staging()] {
            open::make_directory(&path, OWN).map_err(at("create", &path))?;
        }
        if self.is_of_a_former_version() {
            self.upgrade()?;
        }
        Ok(writer)
    }
}

fn read_image(path: &Path) -> Result<Image> {
    let mut text = String::new();
    let file = open::file(path).map_err(at("open", path))?;
    file.take(IMAGE_JSON_BYTES).read_to_string(&mut text).map_err(at("read", path))?;
    serde_json::from_str(&text).map_err(|source| StoreError::Json { path: path.to_owned(), source })
}
