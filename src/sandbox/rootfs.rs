//! The root file system of a slot's containers for one image: put together once, read-only, in the runner's own mount
//! namespace, so that it goes with the runner whatever becomes of it.
//!
//! A small tmpfs holds the mount points, Faber's own /etc and links; the image's directories are ID-mapped read-only
//! binds in it, so root's files are root's inside although the container's root is nobody on the machine.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, mount_remount, move_mount,
    open_tree,
};

use super::ids::UidRange;
use super::kernel;
use crate::image::{MOUNT_POINTS, Machine, SKELETON};

/// Where tasks find what an image stands in for.
const FALLBACKS: &str = "faber/bin";

#[derive(Debug, thiserror::Error)]
#[error("{step} {path}")]
pub struct RootfsError {
    step: &'static str,
    path: PathBuf,
    source: io::Error,
}

type Result<T> = std::result::Result<T, RootfsError>;

fn at<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl Fn(E) -> RootfsError {
    move |error| RootfsError { step, path: path.to_owned(), source: error.into() }
}

/// Leaves the machine's mount namespace: what is mounted from here on nobody else sees, and it ends with the process.
pub fn enter_private_mounts() -> Result<()> {
    let root = Path::new("/");
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(at("unshare mounts of", root))?;
    // Slave, not private: what the operator unmounts goes away here too.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(at("make a slave of", root))
}

/// A tmpfs of our own for the slot's files.
pub fn mount_scratch(dir: &Path) -> Result<()> {
    mount("faber", dir, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, Some(c"mode=711,size=8m"))
        .map_err(at("mount a tmpfs on", dir))
}

/// Puts the machine's own files together in the empty directory `root`; `path` is where commands are looked up.
pub fn from_machine(
    root: &Path,
    machine: &Machine,
    path: &str,
    ids: &UidRange,
    user_namespace: BorrowedFd<'_>,
) -> Result<()> {
    Builder { root, ids, user_namespace }.build(machine, path)
}

/// Shows the files below `tree`, which has every mount point, in the directory `root`.
pub fn from_tree(root: &Path, tree: &Path, user_namespace: BorrowedFd<'_>) -> Result<()> {
    bind(tree, OpenTreeFlags::AT_SYMLINK_NOFOLLOW, root, user_namespace)
}

/// Shows the directory `source` at `place`, to be written to.
pub fn show(source: &Path, place: &Path) -> Result<()> {
    rustix::mount::mount_bind(source, place).map_err(at("mount on", place))?;
    let flags = MountFlags::BIND | MountFlags::NOSUID | MountFlags::NODEV;
    mount_remount(place, flags, "").map_err(at("set the flags of", place))
}

struct Builder<'a> {
    root: &'a Path,
    ids: &'a UidRange,
    user_namespace: BorrowedFd<'a>,
}

impl Builder<'_> {
    fn build(&self, machine: &Machine, path: &str) -> Result<()> {
        mount("faber", self.root, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755,size=1m"))
            .map_err(at("mount a tmpfs on", self.root))?;
        self.own(self.root)?;
        for name in MOUNT_POINTS {
            self.directory(Path::new(name))?;
        }
        for (name, content) in SKELETON {
            self.file(&Path::new("etc").join(name), content)?;
        }
        for source in &machine.binds {
            self.bind_or_link(Path::new(source))?;
        }
        for entry in &machine.etc {
            self.etc(&Path::new("/etc").join(entry))?;
        }
        for (name, stand_ins) in &machine.fallbacks {
            self.fallback(name, stand_ins, path)?;
        }
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::RDONLY;
        mount_remount(self.root, flags, "mode=755,size=1m").map_err(at("make read-only", self.root))
    }

    fn own(&self, path: &Path) -> Result<()> {
        let base = Some(self.ids.base());
        std::os::unix::fs::lchown(path, base, base).map_err(at("chown", path))
    }

    /// A directory of the skeleton, with those above it.
    fn directory(&self, below: &Path) -> Result<PathBuf> {
        let mut path = self.root.to_owned();
        for name in below {
            path.push(name);
            match fs::DirBuilder::new().mode(0o755).create(&path) {
                Ok(()) => self.own(&path)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(at("create", &path)(error)),
            }
        }
        Ok(path)
    }

    fn file(&self, below: &Path, content: &str) -> Result<()> {
        if let Some(parent) = below.parent() {
            self.directory(parent)?;
        }
        let path = self.root.join(below);
        fs::write(&path, content).map_err(at("write", &path))?;
        let base = Some(self.ids.base());
        chown(&path, base, base).map_err(at("chown", &path))
    }

    /// One of the machine's top directories as it is there: a link stays a link, what is missing stays missing.
    fn bind_or_link(&self, source: &Path) -> Result<()> {
        let below = source.strip_prefix("/").unwrap_or(source);
        match fs::symlink_metadata(source) {
            Err(_) => Ok(()),
            Ok(meta) if meta.is_symlink() => {
                let target = fs::read_link(source).map_err(at("read link", source))?;
                let link = self.root.join(below);
                symlink(&target, &link).map_err(at("link", &link))?;
                self.own(&link)
            }
            Ok(_) => {
                let target = self.directory(below)?;
                bind(source, OpenTreeFlags::empty(), &target, self.user_namespace)
            }
        }
    }

    /// An entry of the machine's /etc: files are copied (they are small and may be replaced while we run), directories
    /// bound. Only what everybody may read: this runs as root, the task does not.
    fn etc(&self, source: &Path) -> Result<()> {
        const LARGEST: u64 = 256 << 10;
        let below = source.strip_prefix("/").unwrap_or(source);
        let Ok(meta) = fs::metadata(source) else { return Ok(()) };
        if meta.is_dir() {
            let target = self.directory(below)?;
            return bind(source, OpenTreeFlags::empty(), &target, self.user_namespace);
        }
        if !meta.is_file() || meta.mode() & 0o004 == 0 || meta.len() > LARGEST {
            return Ok(());
        }
        if let Some(parent) = below.parent() {
            self.directory(parent)?;
        }
        let path = self.root.join(below);
        fs::copy(source, &path).map_err(at("copy", source))?;
        self.own(&path)
    }

    fn fallback(&self, name: &str, stand_ins: &[String], path: &str) -> Result<()> {
        let find = |command: &str| {
            path.split(':')
                .map(|dir| Path::new(dir).join(command))
                .find(|file| fs::metadata(file).is_ok_and(|m| m.is_file()))
        };
        if find(name).is_some() {
            return Ok(());
        }
        let Some(stand_in) = stand_ins.iter().find_map(|command| find(command)) else { return Ok(()) };
        let link = self.directory(Path::new(FALLBACKS))?.join(name);
        symlink(stand_in, &link).map_err(at("link", &link))?;
        self.own(&link)
    }
}

/// A read-only bind without setuid and devices, ID-mapped where the file system can be; `follow` says whether `source` may be a
/// link.
fn bind(source: &Path, follow: OpenTreeFlags, target: &Path, user_namespace: BorrowedFd<'_>) -> Result<()> {
    const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    let clone = || {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        open_tree(rustix::fs::CWD, source, flags | follow).map_err(at("clone the mount of", source))
    };
    let mut tree = clone()?;
    if kernel::mount_setattr(tree.as_fd(), READ_ONLY, Some(user_namespace)).is_err() {
        // Without the mapping root's files show as nobody's; what may be read stays the same.
        tree = clone()?;
        kernel::mount_setattr(tree.as_fd(), READ_ONLY, None).map_err(at("make read-only", source))?;
    }
    move_mount(tree.as_fd(), "", rustix::fs::CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(at("mount on", target))
}
