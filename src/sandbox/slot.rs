//! A slot: the fixed place for one container at a time. What is dear and carries nothing from task to task is made
//! here once: the uid range, the namespaces, the root file systems, the compiled filter.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::cgroup::{CgroupError, Tree};
use super::container::{ContainerError, Created};
use super::ids::{IdError, UidRange};
use super::init::{TASK_GID, TASK_UID};
use super::namespaces::{NamespaceError, Namespaces};
use super::rootfs::{self, RootfsError};
use super::seccomp::{Programs, SeccompError};
use super::spec;
use crate::image::Image;
use crate::task::ImageName;

#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    #[error(transparent)]
    Ids(#[from] IdError),
    #[error(transparent)]
    Namespaces(#[from] NamespaceError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("create {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("give up the supplementary groups")]
    Groups(#[source] nix::Error),
    #[error("this runner has no image {0}")]
    NoImage(ImageName),
}

/// The owner of everything a runner's containers share. All of it goes with the process.
pub struct Slot {
    pub(super) instance: String,
    pub(super) name: String,
    pub(super) tree: Tree,
    pub(super) namespaces: Namespaces,
    pub(super) programs: Rc<Programs>,
    /// Descriptors of this process that its containers' inits close first.
    pub(super) foreign: Vec<RawFd>,
    ids: UidRange,
    dir: PathBuf,
    images: Vec<Image>,
    built: BTreeSet<ImageName>,
    /// Containers made so far: their names never repeat.
    made: u64,
}

impl Slot {
    /// Makes the slot `name` of `instance` in the empty directory `dir`; `run_dir` is where the machine's uid ranges are
    /// shared out. Changes the calling process: its mounts, its groups.
    pub fn claim(
        run_dir: &Path,
        dir: &Path,
        instance: &str,
        name: &str,
        images: Vec<Image>,
        foreign: Vec<RawFd>,
    ) -> Result<Self, SlotError> {
        // libcontainer clears no supplementary groups, so there must be none to inherit.
        nix::unistd::setgroups(&[]).map_err(SlotError::Groups)?;
        let ids = UidRange::claim(&run_dir.join("uid-ranges"))?;
        let namespaces = Namespaces::create(&ids)?;
        rootfs::enter_private_mounts()?;
        create_dir(dir)?;
        rootfs::mount_scratch(dir)?;
        Ok(Self {
            instance: instance.to_owned(),
            name: name.to_owned(),
            tree: Tree::detect()?,
            namespaces,
            programs: Rc::new(Programs::compile()?),
            foreign,
            ids,
            dir: dir.to_owned(),
            images,
            built: BTreeSet::new(),
            made: 0,
        })
    }

    /// A container of `image`, with its init waiting for a task.
    pub fn create(&mut self, image: &ImageName) -> Result<Created, ContainerError> {
        let bundle = self.bundle(image)?;
        self.made += 1;
        let name = format!("{}-{}", self.name, self.made);
        Created::create(self, &name, &bundle)
    }

    pub fn image(&self, name: &ImageName) -> Result<&Image, SlotError> {
        self.images.iter().find(|image| image.name == *name).ok_or_else(|| SlotError::NoImage(name.clone()))
    }

    /// Whom the task's user and group are on the machine.
    pub(super) fn task_ids(&self) -> (u32, u32) {
        (self.ids.base() + TASK_UID, self.ids.base() + TASK_GID)
    }

    /// Where libcontainer keeps its containers' state.
    pub(super) fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The bundle directory of an image, with its root file system in place.
    fn bundle(&mut self, name: &ImageName) -> Result<PathBuf, SlotError> {
        let bundle = self.dir.join(name.as_str());
        if !self.built.contains(name) {
            let root = bundle.join(spec::ROOTFS);
            create_dir(&root)?;
            rootfs::build(&root, self.image(name)?, &self.ids, self.namespaces.user())?;
            self.built.insert(name.clone());
        }
        Ok(bundle)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // The mounts go with the process anyway; whoever removes the directory before that finds it free.
        let _ = rustix::mount::unmount(&self.dir, rustix::mount::UnmountFlags::DETACH);
    }
}

fn create_dir(path: &Path) -> Result<(), SlotError> {
    fs::create_dir_all(path).map_err(|source| SlotError::Directory { path: path.to_owned(), source })
}
