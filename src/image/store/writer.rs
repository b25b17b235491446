//! Who changes the store: one at a time, and whatever ends it leaves the old image or the new one.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use tempfile::{NamedTempFile, TempDir};

use super::{IMAGE_JSON, READABLE, ROOTFS, Result, Store, StoreError, Tree, at, open, read_image};
use crate::image::tree::Place;
use crate::image::{Image, Lock};
use crate::task::{Digest, ImageName};

/// The right to change what is in the store; one at a time.
pub struct Writer<'a> {
    store: &'a Store,
    _lock: File,
}

impl<'a> Writer<'a> {
    pub(super) fn claim(store: &'a Store) -> Result<Self> {
        let path = store.own().join("lock");
        let lock = open::lock_file(&path).map_err(at("open", &path))?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { store, _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StoreError::Busy(store.dir.clone())),
            Err(TryLockError::Error(error)) => Err(at("lock", &path)(error)),
        }
    }

    pub fn store(&self) -> &'a Store {
        self.store
    }

    /// What somebody who was killed left.
    pub(super) fn clear_staging(&self) -> Result<()> {
        let staging = self.scratch();
        for entry in fs::read_dir(&staging).map_err(at("read", &staging))?.flatten() {
            let path = entry.path();
            let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed = if is_directory { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.map_err(at("remove", &path))?;
        }
        Ok(())
    }

    /// Where what is made may keep what it needs meanwhile.
    pub fn scratch(&self) -> PathBuf {
        self.store.staging()
    }

    /// A directory for what is being made; removed when dropped.
    pub fn stage(&self) -> Result<TempDir> {
        let staging = self.scratch();
        TempDir::new_in(&staging).map_err(at("create a directory in", &staging))
    }

    /// Has `fill` make the files of an image and say what is told of it and what it was made of, and gives it its name. Until
    /// then the old one stands; if anything fails, it stays. `progress` hears how many bytes are there.
    pub fn make<E: From<StoreError>>(
        &self,
        progress: &dyn Fn(u64),
        fill: impl FnOnce(&Place<'_>) -> std::result::Result<(Image, Option<Lock>), E>,
    ) -> std::result::Result<Image, E> {
        let staged = self.stage()?;
        Tree::prepare(staged.path())?;
        let rootfs = staged.path().join(ROOTFS);
        // The root of containers, where anybody passes.
        DirBuilder::new().mode(READABLE).create(&rootfs).map_err(at("create", &rootfs))?;
        let (files, scratch) = (self.store.files(), self.scratch());
        let (image, lock) = fill(&Place { tree: &rootfs, files: &files, scratch: &scratch, progress })?;
        let json = staged.path().join(IMAGE_JSON);
        fs::write(&json, text(&image, &json)?).map_err(at("write", &json))?;
        lock.map_or(Ok(()), |lock| lock.write(staged.path())).map_err(StoreError::from)?;
        self.place(staged, &image)?;
        Ok(image)
    }

    /// The tree gets its place, then the name says so: each step is on the disk before the next one.
    fn place(&self, staged: TempDir, image: &Image) -> Result<()> {
        open::sync_file_system(staged.path()).map_err(at("write out", staged.path()))?;
        // Another thread of this process may collect what has no name yet.
        let _held = Tree::share(staged.path().to_owned())?;
        let (trees, tree) = (self.store.trees(), self.store.tree(&image.digest));
        match fs::rename(staged.path(), &tree) {
            Err(error) if matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) => {
                replace(staged, &tree)?;
            }
            done => {
                done.map_err(at("rename", &tree))?;
                // It is no temporary directory any more.
                let _ = staged.keep();
            }
        }
        open::sync_directory(&trees).map_err(at("write out", &trees))?;
        self.store.name(image)
    }

    /// Takes the name away; [`Writer::collect`] removes the files. One that cannot be read goes too.
    ///
    /// # Errors
    /// `NoImage`; `InUse` when somebody holds its tree.
    pub fn remove(&self, name: &ImageName) -> Result<()> {
        let path = self.store.names().join(name.as_str());
        // Until the name is gone.
        let _alone = match self.store.image(name) {
            Err(StoreError::NoImage(name)) => return Err(StoreError::NoImage(name)),
            Ok(image) if self.store.tree(&image.digest).exists() => {
                Some(Tree::take(self.store.tree(&image.digest))?.ok_or_else(|| StoreError::InUse(name.clone()))?)
            }
            _ => None,
        };
        fs::remove_file(&path).map_err(at("remove", &path))
    }

    /// Removes trees without a name that nobody holds, then files that are in no tree; the bytes that are free now.
    ///
    /// # Errors
    /// Also when a name cannot be read: nobody knows which tree is its own.
    pub fn collect(&self) -> Result<u64> {
        let named = self.store.entries()?.into_iter().map(|path| Ok(read_image(&path)?.digest));
        let named: Vec<Digest> = named.collect::<Result<_>>()?;
        let trees = self.store.trees();
        for entry in fs::read_dir(&trees).map_err(at("read", &trees))?.flatten() {
            let is_named = named.iter().any(|digest| entry.file_name() == digest.hex());
            let alone = if is_named { None } else { Tree::take(entry.path())? };
            alone.map_or(Ok(()), |tree| self.discard(tree))?;
        }
        self.collect_files()
    }

    /// It has no place any more before its files go: no half of it is ever found there.
    fn discard(&self, tree: Tree) -> Result<()> {
        let gone = self.stage()?;
        let place = gone.path().join("tree");
        fs::rename(&tree.path, &place).map_err(at("remove", &tree.path))?;
        gone.close().map_err(at("remove", &tree.path))
    }

    fn collect_files(&self) -> Result<u64> {
        let mut freed = 0;
        for directory in entries(&self.store.files())? {
            for path in entries(&directory)? {
                let meta = fs::symlink_metadata(&path).map_err(at("look at", &path))?;
                if meta.is_file() && meta.nlink() == 1 {
                    fs::remove_file(&path).map_err(at("remove", &path))?;
                    freed += meta.len();
                }
            }
        }
        Ok(freed)
    }
}

impl Store {
    /// Has the image's name stand for it from now on. Its tree is there.
    pub(super) fn name(&self, image: &Image) -> Result<()> {
        let (names, path) = (self.names(), self.names().join(image.name.as_str()));
        let mut file = NamedTempFile::new_in(self.staging()).map_err(at("create a file in", &self.staging()))?;
        file.write_all(&text(image, &path)?).map_err(at("write", &path))?;
        file.as_file().set_permissions(Permissions::from_mode(0o644)).map_err(at("set the mode of", &path))?;
        file.as_file().sync_all().map_err(at("write out", &path))?;
        file.persist(&path).map_err(|error| at("rename", &path)(error.error))?;
        open::sync_directory(&names).map_err(at("write out", &names))
    }
}

fn text(image: &Image, path: &Path) -> Result<Vec<u8>> {
    serde_json::to_vec_pretty(image).map_err(|source| StoreError::Json { path: path.to_owned(), source })
}

/// The very same image was built before. If nobody uses it, the new one takes its place in one step, whatever has become of
/// the old one's files. Not every file system can do that (renameat2(2)): then the old one stays.
fn replace(staged: TempDir, tree: &Path) -> Result<()> {
    let Some(_alone) = Tree::take(tree.to_owned())? else { return Ok(()) };
    match renameat_with(CWD, staged.path(), CWD, tree, RenameFlags::EXCHANGE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => Ok(()),
        done => done.map_err(at("rename", tree)),
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).map_err(at("read", directory))?;
    entries.map(|entry| Ok(entry.map_err(at("read", directory))?.path())).collect()
}
