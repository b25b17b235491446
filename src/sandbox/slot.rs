//! A slot: the fixed place for one task at a time. What is dear and carries nothing from task to task is made
//! here once: the uid range, the namespaces, the root file systems, the compiled filter.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::cgroup::{CgroupError, Cover, GroupLimits, Lack, Tree};
use super::container::{ContainerError, Created, Host};
use super::ids::{IdError, UidRange};
use super::init::{Masks, Purpose};
use super::kernel;
use super::namespaces::{NamespaceError, Namespaces};
use super::rootfs::{self, Apart, RootfsError, Shown};
use super::seccomp::Filter;
use super::spec;
use super::view::View;
use crate::artifact::Spool;
use crate::image::{Image, InUse, Root, Store, StoreError, User};
use crate::task::{Cpus, ImageId, ImageName, Limits, Resources};

#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    #[error(transparent)]
    Ids(#[from] IdError),
    #[error(transparent)]
    Namespaces(#[from] NamespaceError),
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("create {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("make what tasks find at /sys")]
    View(#[source] io::Error),
    #[error("look through /proc")]
    Masks(#[source] io::Error),
    #[error("give up the supplementary groups")]
    Groups(#[source] nix::Error),
    #[error("the image's user or group {0} is beyond the subordinate ids that there are here for each slot")]
    NoId(u32),
    #[error("take the image {name}")]
    Image { name: ImageName, source: StoreError },
}

/// The owner of everything a runner's containers share. All of it goes with the process.
pub struct Slot {
    pub(super) instance: String,
    pub(super) name: String,
    pub(super) tree: Tree,
    _cover: Cover,
    pub(super) namespaces: Namespaces,
    pub(super) filter: Rc<Filter>,
    /// Its two parts, for containers with cells.
    pub(super) filters: (Rc<Filter>, Rc<Filter>),
    pub(super) masks: Rc<Masks>,
    /// What its tasks find at /sys.
    pub(super) view: Rc<RefCell<View>>,
    /// Descriptors of this process that its containers' inits close first.
    pub(super) foreign: Vec<RawFd>,
    pub(super) ids: UidRange,
    pub(super) dir: PathBuf,
    store: Store,
    devices: Apart,
    /// Keeps where links of the machine's /usr lead.
    links: PathBuf,
    /// The images whose root file systems are in place.
    bundles: BTreeMap<ImageName, Bundle>,
    /// Containers made so far: their names never repeat.
    made: u64,
    /// What the last task's group was limited to.
    limits: Option<GroupLimits>,
    /// What each container may use of the processors at once.
    pub(super) cpus: Option<Cpus>,
    /// Where what tasks leave goes.
    pub(super) spool: Rc<Spool>,
}

const INODES: Lack = Lack {
    what: "overlay over ID-mapped files (Linux 5.19), or over devices",
    instead: "a lock on a file of an image, or a watch of it, reaches other tasks of that image",
};

/// Where a slot is.
#[derive(Debug, Clone, Copy)]
pub struct SlotPlace<'a> {
    /// Where the machine's uid ranges are shared out.
    pub run_dir: &'a Path,
    /// Its own directory, which is empty.
    pub dir: &'a Path,
    pub instance: &'a str,
    pub name: &'a str,
}

/// An image's place in the slot.
struct Bundle {
    image: Rc<Image>,
    dir: PathBuf,
    apart: Apart,
    /// The tree stays in the store as long as it is mounted here.
    _tree: Option<InUse>,
}

impl Slot {
    /// Makes a slot in its place, with the images of `store`. Changes the calling process: its mounts, its groups.
    pub fn claim(
        SlotPlace { run_dir, dir, instance, name }: SlotPlace<'_>,
        store: Store,
        foreign: Vec<RawFd>,
        resources: Resources,
        spool: Spool,
    ) -> Result<Self, SlotError> {
        kernel::ready_for_forks();
        // libcontainer clears no supplementary groups, so there must be none to inherit.
        nix::unistd::setgroups(&[]).map_err(SlotError::Groups)?;
        let tree = Tree::detect(resources.groups)?;
        let ids = UidRange::claim(&tree.claims_of_ids(&run_dir.join("uid-ranges")))?;
        let namespaces = Namespaces::create(&ids)?;
        rootfs::enter_private_mounts()?;
        create_dir(dir)?;
        rootfs::mount_scratch(dir)?;
        let devices = rootfs::keep_devices_apart(&dir.join("scratch"))?;
        let processors = run_dir.join("processors");
        let view = View::make(&dir.join("view"), &tree, processors, resources.cpus).map_err(SlotError::View)?;
        let (outer, inner) = Filter::in_two();
        let (tree, cover) = tree.keep_to_ourselves(&dir.join("cgroup"))?;
        Ok(Self {
            instance: instance.to_owned(),
            name: name.to_owned(),
            tree,
            _cover: cover,
            namespaces,
            filter: Rc::new(Filter::compile()),
            filters: (Rc::new(outer), Rc::new(inner)),
            masks: Rc::new(Masks::find().map_err(SlotError::Masks)?),
            view: Rc::new(RefCell::new(view)),
            foreign,
            ids,
            dir: dir.to_owned(),
            store,
            devices,
            links: run_dir.join("links-to-etc"),
            bundles: BTreeMap::new(),
            made: 0,
            limits: None,
            cpus: resources.cpus,
            spool: Rc::new(spool),
        })
    }

    /// A container of the image, waiting for a task.
    pub fn create(&mut self, id: &ImageId) -> Result<Created, ContainerError> {
        let (image, bundle) = self.bundle(id)?;
        let user = image.user;
        self.container(&bundle, image, Purpose::Task(user))
    }

    /// The next containers will most likely run under these limits, too. A share of the processors stays one task's own.
    pub fn expect(&mut self, limits: &Limits) {
        if limits.cpus.is_none() {
            self.limits = Some(limits.into());
        }
    }

    /// A container with the root file system that is in place in `bundle`.
    pub(super) fn container(
        &mut self,
        bundle: &Path,
        image: Rc<Image>,
        purpose: Purpose,
    ) -> Result<Created, ContainerError> {
        let name = self.next_name();
        Created::create(self, &name, bundle, image, purpose, self.limits)
    }

    /// A container of the image for the tasks of one request.
    pub fn host(&mut self, id: &ImageId) -> Result<Host, ContainerError> {
        let (image, bundle) = self.bundle(id)?;
        let name = self.next_name();
        Host::create(self, &name, &bundle, image)
    }

    /// A cell of it, waiting for a task.
    pub fn cell(&mut self, host: &Host) -> Result<Created, ContainerError> {
        let name = self.next_name();
        host.cell(self, &name, self.limits)
    }

    fn next_name(&mut self) -> String {
        self.made += 1;
        format!("{}-{}", self.name, self.made)
    }

    /// Who a container's user and group are on the machine.
    pub(super) fn ids_of(&self, User { uid, gid }: User) -> Result<(u32, u32), SlotError> {
        let outside = |id| self.ids.outside(id).ok_or(SlotError::NoId(id));
        Ok((outside(uid)?, outside(gid)?))
    }

    /// What tasks share here, of the images and devices in place, that this kernel or this place cannot keep apart.
    pub fn lacking(&self) -> Option<Lack> {
        let all = self.bundles.values().map(|bundle| bundle.apart).fold(self.devices, Apart::and);
        (all == Apart::No).then_some(INODES)
    }

    /// For what mounting takes.
    fn scratch(&self) -> PathBuf {
        self.dir.join("scratch")
    }

    /// Where libcontainer keeps its containers' state.
    pub(super) fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// The image and its bundle directory, with its root file system in place. One of the same name that is not the same
    /// any more is given up.
    fn bundle(&mut self, id: &ImageId) -> Result<(Rc<Image>, PathBuf), SlotError> {
        let known = self.bundles.get(&id.name).filter(|bundle| bundle.image.digest == id.digest);
        if known.is_none() {
            if let Some(old) = self.bundles.remove(&id.name) {
                // With what is shown in it.
                let _ = rustix::mount::unmount(old.dir.join(spec::ROOTFS), rustix::mount::UnmountFlags::DETACH);
            }
            let bundle = self.mount(id)?;
            self.bundles.insert(id.name.clone(), bundle);
        }
        let Bundle { image, dir, .. } = &self.bundles[&id.name];
        Ok((image.clone(), dir.clone()))
    }

    fn mount(&self, id: &ImageId) -> Result<Bundle, SlotError> {
        let dir = self.dir.join(format!("{}-{}", id.name, &id.digest.hex()[..12]));
        let root = dir.join(spec::ROOTFS);
        create_dir(&root)?;
        let scratch = self.scratch();
        let shown = Shown { user_namespace: self.namespaces.user(), scratch: &scratch };
        let host = Image::host();
        if let (true, Root::Machine(machine)) = (host.digest == id.digest, &host.root) {
            let apart = rootfs::from_machine(&root, (machine, &host.path), &self.links, &self.ids, shown)?;
            self.view.borrow().show(&root).map_err(SlotError::View)?;
            return Ok(Bundle { image: Rc::new(host), dir, apart, _tree: None });
        }
        let held = self.store.hold(&id.digest).map_err(|source| SlotError::Image { name: id.name.clone(), source })?;
        let apart = rootfs::from_tree(&root, &held.rootfs, shown)?;
        self.view.borrow().show(&root).map_err(SlotError::View)?;
        Ok(Bundle { image: Rc::new(held.image.clone()), dir, apart, _tree: Some(held) })
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
