//! Where built images are kept.
//!
//! ```text
//! <data dir>/images/NAME            -> ../trees/<digest>     a name, swapped in one rename
//! <data dir>/trees/<digest>/rootfs                           the files, hard links into files/
//! <data dir>/trees/<digest>/image.json                       what is told of it
//! <data dir>/trees/<digest>/image.lock                       what it was made of
//! <data dir>/files/xx/…                                      each file once, by content and attributes
//! <data dir>/locks/NAME/image.lock                           the lock of a definition that came with Faber's package
//! <data dir>/staging/…                                       what is being made; of no value
//! ```
//! A tree never changes once it has its name: a new build is a new tree. Who uses one holds a shared flock(2) on its
//! directory, which whoever removes it takes alone.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::tree::{Place, TreeError};
use super::{Image, Lock, LockError};
use crate::task::{Digest, ImageName};

const IMAGE_JSON: &str = "image.json";
/// What is told of an image is small.
const IMAGE_JSON_BYTES: u64 = 4 << 20;

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
    #[error(transparent)]
    Tree(#[from] TreeError),
    #[error(transparent)]
    Lock(#[from] LockError),
}

type Result<T> = std::result::Result<T, StoreError>;

fn at(step: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Io { step, path: path.to_owned(), source }
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
    _lock: File,
}

/// The right to change what is in the store; one at a time.
pub struct Writer<'a> {
    store: &'a Store,
    _lock: File,
}

impl Store {
    /// The store in `data_dir`, whether it is there yet or not.
    pub fn new(data_dir: &Path) -> Self {
        Self { dir: data_dir.to_owned() }
    }

    /// The directory that changes whenever an image does.
    pub(super) fn names(&self) -> PathBuf {
        self.dir.join("images")
    }

    fn trees(&self) -> PathBuf {
        self.dir.join("trees")
    }

    /// The directory for the lock of an image whose definition has no place for it.
    pub fn locks(&self, name: &ImageName) -> PathBuf {
        self.dir.join("locks").join(name.as_str())
    }

    /// A directory on the way to the images that not everybody may pass, if there is one.
    pub fn closed_to_others(&self) -> Option<PathBuf> {
        const READ_AND_PASS: u32 = 0o005;
        const PASS: u32 = 0o001;
        let names = self.names();
        let needs = |path: &Path| if path.starts_with(&self.dir) { READ_AND_PASS } else { PASS };
        let closed = |path: &&Path| fs::metadata(path).is_ok_and(|meta| meta.mode() & needs(path) != needs(path));
        names.ancestors().find(closed).map(Path::to_owned)
    }

    /// All images, by name. One that cannot be read is left out: it is being replaced, or is not Faber's.
    ///
    /// # Errors
    /// When the store is there but cannot be read.
    pub fn images(&self) -> Result<Vec<Image>> {
        let names = self.names();
        let entries = match fs::read_dir(&names) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(at("read", &names))?,
        };
        let mut images: Vec<Image> = entries.flatten().filter_map(|entry| read_image(&entry.path()).ok()).collect();
        images.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(images)
    }

    /// The image called `name`.
    ///
    /// # Errors
    /// `NoImage`, or when it cannot be read.
    pub fn image(&self, name: &ImageName) -> Result<Image> {
        let path = self.names().join(name.as_str());
        if !path.exists() {
            return Err(StoreError::NoImage(name.clone()));
        }
        read_image(&path)
    }

    /// What the image with this digest was made of.
    ///
    /// # Errors
    /// When its lock cannot be read.
    pub fn lock(&self, digest: &Digest) -> Result<Lock> {
        Ok(Lock::read(&self.trees().join(digest.hex()))?.unwrap_or_default())
    }

    /// The tree with this digest, held.
    ///
    /// # Errors
    /// When it is not there (any more).
    pub fn hold(&self, digest: &Digest) -> Result<InUse> {
        let tree = self.trees().join(digest.hex());
        let lock = File::open(&tree).map_err(at("open", &tree))?;
        lock.lock_shared().map_err(at("lock", &tree))?;
        // It may have been removed between the two.
        let image = read_image(&tree)?;
        Ok(InUse { image, rootfs: tree.join("rootfs"), _lock: lock })
    }

    /// The right to change the store, which is made if need be.
    ///
    /// # Errors
    /// `Busy` when another process has it.
    pub fn write(&self) -> Result<Writer<'_>> {
        for dir in [self.dir.clone(), self.names(), self.trees(), self.dir.join("files"), self.dir.join("staging")] {
            // Everybody may read: the front lists the images, and is nobody.
            fs::DirBuilder::new().recursive(true).mode(0o755).create(&dir).map_err(at("create", &dir))?;
        }
        let path = self.dir.join("lock");
        let lock = File::options().write(true).create(true).truncate(false).open(&path).map_err(at("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::Busy(self.dir.clone())),
            Err(TryLockError::Error(error)) => return Err(at("lock", &path)(error)),
        }
        let writer = Writer { store: self, _lock: lock };
        writer.clear_staging()?;
        Ok(writer)
    }
}

impl Writer<'_> {
    pub fn store(&self) -> &Store {
        self.store
    }

    /// What a killed build left.
    fn clear_staging(&self) -> Result<()> {
        let staging = self.store.dir.join("staging");
        for entry in fs::read_dir(&staging).map_err(at("read", &staging))?.flatten() {
            let path = entry.path();
            let removed = if path.is_symlink() { fs::remove_file(&path) } else { fs::remove_dir_all(&path) };
            removed.map_err(at("remove", &path))?;
        }
        Ok(())
    }

    /// Where what is made may keep what it needs meanwhile.
    pub fn scratch(&self) -> PathBuf {
        self.store.dir.join("staging")
    }

    /// A directory for what is being made; removed when dropped.
    pub fn stage(&self) -> Result<TempDir> {
        let staging = self.scratch();
        let staged = TempDir::new_in(&staging).map_err(at("create a directory in", &staging))?;
        fs::set_permissions(staged.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))
            .map_err(at("set the mode of", staged.path()))?;
        Ok(staged)
    }

    /// Has `fill` make the files of an image and say what is told of it and what it was made of, and gives it its name. Until
    /// then the old one stands; if anything fails, it stays. `progress` hears how many bytes are there.
    pub fn make<E: From<StoreError>>(
        &self,
        progress: &dyn Fn(u64),
        fill: impl FnOnce(&Place<'_>) -> std::result::Result<(Image, Option<Lock>), E>,
    ) -> std::result::Result<Image, E> {
        let staged = self.stage()?;
        let rootfs = staged.path().join("rootfs");
        fs::create_dir(&rootfs).map_err(at("create", &rootfs))?;
        let (image, lock) = fill(&Place { tree: &rootfs, files: &self.store.dir.join("files"), progress })?;
        let json = staged.path().join(IMAGE_JSON);
        let text =
            serde_json::to_vec_pretty(&image).map_err(|source| StoreError::Json { path: json.clone(), source })?;
        fs::write(&json, text).map_err(at("write", &json))?;
        lock.map_or(Ok(()), |lock| lock.write(staged.path())).map_err(StoreError::from)?;
        self.place(staged, &image)?;
        Ok(image)
    }

    /// The tree gets its place, then the name points at it.
    fn place(&self, staged: TempDir, image: &Image) -> Result<()> {
        let tree = self.store.trees().join(image.digest.hex());
        match fs::rename(staged.path(), &tree) {
            // The very same image was built before.
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {}
            done => {
                done.map_err(at("rename", &tree))?;
                // It is no temporary directory any more.
                let _ = staged.keep();
            }
        }
        let (new, name) = (
            self.store.dir.join("staging").join(format!("name-{}", image.name)),
            self.store.names().join(image.name.as_str()),
        );
        symlink(Path::new("../trees").join(image.digest.hex()), &new).map_err(at("link", &new))?;
        fs::rename(&new, &name).map_err(at("rename", &name))
    }

    /// Takes the name away; [`Writer::collect`] removes the files.
    ///
    /// # Errors
    /// `NoImage`; `InUse` when somebody holds its tree.
    pub fn remove(&self, name: &ImageName) -> Result<()> {
        let image = self.store.image(name)?;
        let tree = self.store.trees().join(image.digest.hex());
        if is_held(&tree)? {
            return Err(StoreError::InUse(name.clone()));
        }
        let path = self.store.names().join(name.as_str());
        fs::remove_file(&path).map_err(at("remove", &path))
    }

    /// Removes trees without a name that nobody holds, then files that are in no tree; the bytes that are free now.
    pub fn collect(&self) -> Result<u64> {
        let named: Vec<Digest> = self.store.images()?.into_iter().map(|image| image.digest).collect();
        let trees = self.store.trees();
        for entry in fs::read_dir(&trees).map_err(at("read", &trees))?.flatten() {
            let path = entry.path();
            let is_named = named.iter().any(|digest| entry.file_name() == digest.hex());
            if !is_named && !is_held(&path)? {
                fs::remove_dir_all(&path).map_err(at("remove", &path))?;
            }
        }
        let files = self.store.dir.join("files");
        let mut freed = 0;
        for directory in fs::read_dir(&files).map_err(at("read", &files))?.flatten() {
            let path = directory.path();
            // What is no directory is a file that a killed build was writing.
            let entries = if path.is_dir() {
                fs::read_dir(&path).map_err(at("read", &path))?.flatten().collect()
            } else {
                vec![directory]
            };
            for entry in entries {
                let meta = entry.metadata().map_err(at("look at", &entry.path()))?;
                if meta.is_file() && meta.nlink() == 1 {
                    fs::remove_file(entry.path()).map_err(at("remove", &entry.path()))?;
                    freed += meta.len();
                }
            }
        }
        Ok(freed)
    }
}

fn is_held(tree: &Path) -> Result<bool> {
    match File::open(tree).map_err(at("open", tree))?.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(at("lock", tree)(error)),
    }
}

fn read_image(tree: &Path) -> Result<Image> {
    let path = tree.join(IMAGE_JSON);
    let mut text = String::new();
    let file = File::open(&path).map_err(at("open", &path))?;
    io::Read::read_to_string(&mut io::Read::take(file, IMAGE_JSON_BYTES), &mut text).map_err(at("read", &path))?;
    serde_json::from_str(&text).map_err(|source| StoreError::Json { path, source })
}
