//! The root file system of a slot's containers for one image: put together once, read-only, in the runner's own mount
//! namespace, so that it goes with the runner whatever becomes of it.
//!
//! A small tmpfs holds the mount points, Faber's own /etc and links; the image's directories are ID-mapped read-only
//! binds in it, so root's files are root's inside although the container's root is nobody on the machine.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, mount_remount, move_mount,
    open_tree,
};
use walkdir::{DirEntry, WalkDir};

use super::etc;
use super::ids::UidRange;
use super::kernel;
use super::view::SYS;
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
/// `links` is the file that keeps where links of /usr lead in /etc.
pub fn from_machine(
    root: &Path,
    (machine, path): (&Machine, &str),
    links: &Path,
    ids: &UidRange,
    shown: Shown<'_>,
) -> Result<Apart> {
    let linked = etc::linked(links).map_err(at("keep what /usr links to in", links))?;
    let mut builder = Builder { root, ids, shown, apart: Apart::Yes };
    builder.build(machine, &linked, path)?;
    Ok(builder.apart)
}

/// Shows the files below `tree`, which has every mount point, in the directory `root`, with a place for [`SYS`].
pub fn from_tree(root: &Path, tree: &Path, shown: Shown<'_>) -> Result<Apart> {
    shown.over(root, tree, OpenTreeFlags::AT_SYMLINK_NOFOLLOW, shown.directory("empty-root", Some(SYS))?)
}

/// Whether what is shown has inodes of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apart {
    Yes,
    /// A lock on a file, or a watch of it, is everybody's who has the file.
    No,
}

impl Apart {
    pub fn and(self, other: Self) -> Self {
        if self == Self::Yes { other } else { Self::No }
    }
}

/// How directories are shown in a root file system.
#[derive(Clone, Copy)]
pub struct Shown<'a> {
    pub user_namespace: BorrowedFd<'a>,
    /// A directory of the slot's own for what mounting takes.
    pub scratch: &'a Path,
}

impl Shown<'_> {
    /// Shows `source` at `target`, read-only, without setuid and devices, ID-mapped where the file system can be; through an
    /// overlay of one layer (filesystems/overlayfs.rst), if that can be: locks, leases and watches are on inodes, and those of
    /// an overlay are this slot's alone, while the pages of the files stay everybody's. `follow` says whether `source` may be a
    /// link.
    fn at(&self, target: &Path, source: &Path, follow: OpenTreeFlags) -> Result<Apart> {
        self.over(target, source, follow, self.directory("empty", None)?)
    }

    /// A directory of the scratch, with one in it; its name.
    fn directory(&self, name: &'static str, within: Option<&str>) -> Result<&'static str> {
        let dir = self.scratch.join(name).join(within.unwrap_or_default());
        fs::create_dir_all(&dir).map_err(at("create", &dir))?;
        Ok(name)
    }

    /// The same, where what the second layer has is there too.
    fn over(&self, target: &Path, source: &Path, follow: OpenTreeFlags, second: &str) -> Result<Apart> {
        let tree = self.clone(source, follow)?;
        let below = self.scratch.join(self.directory("below", None)?);
        let put = |place: &Path| {
            move_mount(tree.as_fd(), "", rustix::fs::CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .map_err(at("mount on", place))
        };
        put(&below)?;
        // What is mounted below it would not be seen through an overlay.
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        let laid = !has_mounts_below(&below)? && overlay(self.scratch, "below", second, target, flags).is_ok();
        if !laid {
            // To where it is to be, with all below it.
            rustix::mount::mount_move(&below, target).map_err(at("mount on", target))?;
            return Ok(Apart::No);
        }
        // The overlay keeps what it needs.
        rustix::mount::unmount(&below, rustix::mount::UnmountFlags::DETACH).map_err(at("unmount", &below))?;
        Ok(Apart::Yes)
    }

    fn clone(&self, source: &Path, follow: OpenTreeFlags) -> Result<std::os::fd::OwnedFd> {
        const READ_ONLY: u64 = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
        let clone = || {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
            open_tree(rustix::fs::CWD, source, flags | follow).map_err(at("clone the mount of", source))
        };
        let tree = clone()?;
        if kernel::mount_setattr(tree.as_fd(), READ_ONLY, Some(self.user_namespace)).is_ok() {
            return Ok(tree);
        }
        // Without the mapping root's files show as nobody's; what may be read stays the same.
        let tree = clone()?;
        kernel::mount_setattr(tree.as_fd(), READ_ONLY, None).map_err(at("make read-only", source))?;
        Ok(tree)
    }
}

/// By names without directories, in which tasks would read where the slot is; for a process of one thread.
fn overlay(scratch: &Path, below: &str, empty: &str, target: &Path, flags: MountFlags) -> io::Result<()> {
    let here = rustix::fs::open(".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    rustix::process::chdir(scratch)?;
    // Nothing that a file of the image says of itself leads anywhere else.
    let options = CString::new(format!("lowerdir={below}:{empty},redirect_dir=nofollow,metacopy=off"))?;
    let mounted = mount("faber", target, "overlay", flags, options.as_c_str());
    rustix::process::fchdir(here)?;
    Ok(mounted?)
}

/// Whether something is mounted below this mount point (proc_pid_mountinfo(5)).
fn has_mounts_below(point: &Path) -> Result<bool> {
    let mounts = Path::new("/proc/self/mountinfo");
    let text = fs::read_to_string(mounts).map_err(at("read", mounts))?;
    let below = format!("{}/", point.display());
    Ok(text.lines().filter_map(|line| line.split(' ').nth(4)).any(|mounted| mounted.starts_with(&below)))
}

/// Shows the machine's devices in their own places through an overlay, in this process' own mount namespace: libcontainer
/// passes them on to containers. `scratch` is a directory of the slot's own.
pub fn keep_devices_apart(scratch: &Path) -> Result<Apart> {
    const BELOW: &str = "devices";
    const EMPTY: &str = "empty";
    const DEV: &str = "/dev";
    let (devices, laid) = (scratch.join(BELOW), scratch.join("own-devices"));
    for dir in [&devices, &laid, &scratch.join(EMPTY)] {
        fs::create_dir_all(dir).map_err(at("create", dir))?;
    }
    // In a user namespace what is mounted below it cannot be left behind (mount_namespaces(7)), and there would be nothing to gain.
    if rustix::mount::mount_bind(DEV, &devices).is_err() {
        return Ok(Apart::No);
    }
    let is_laid = overlay(scratch, BELOW, EMPTY, &laid, MountFlags::NOSUID | MountFlags::NOEXEC).is_ok();
    rustix::mount::unmount(&devices, rustix::mount::UnmountFlags::DETACH).map_err(at("unmount", &devices))?;
    if !is_laid {
        return Ok(Apart::No);
    }
    // In a user namespace no device of a new file system can be opened (user_namespaces(7)).
    let is_open = fs::File::options().read(true).write(true).open(laid.join("null")).is_ok();
    if is_open {
        for name in ["null", "zero", "full", "random", "urandom", "tty"] {
            let place = Path::new(DEV).join(name);
            rustix::mount::mount_bind(laid.join(name), &place).map_err(at("mount on", &place))?;
        }
    }
    rustix::mount::unmount(&laid, rustix::mount::UnmountFlags::DETACH).map_err(at("unmount", &laid))?;
    Ok(if is_open { Apart::Yes } else { Apart::No })
}

/// Whether everybody may read what is at this place in /etc, and every directory on the way.
fn is_open_all_the_way(below: &Path) -> bool {
    let etc = Path::new("/etc");
    let mut ways = below.ancestors().filter(|path| !path.as_os_str().is_empty());
    ways.all(|path| {
        fs::metadata(etc.join(path))
            .is_ok_and(|meta| meta.mode() & 0o004 != 0 && (!meta.is_dir() || meta.mode() & 0o001 != 0))
    })
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
    shown: Shown<'a>,
    apart: Apart,
}

impl Builder<'_> {
    fn build(&mut self, machine: &Machine, linked: &BTreeSet<PathBuf>, path: &str) -> Result<()> {
        mount("faber", self.root, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755,size=16m"))
            .map_err(at("mount a tmpfs on", self.root))?;
        self.own(self.root)?;
        for name in MOUNT_POINTS.into_iter().chain([SYS]) {
            self.directory(Path::new(name))?;
        }
        for (name, content) in SKELETON {
            self.file(&Path::new("etc").join(name), content)?;
        }
        for source in &machine.binds {
            self.bind_or_link(Path::new(source))?;
        }
        for entry in machine.etc.iter().map(Path::new).chain(linked.iter().map(PathBuf::as_path)) {
            self.etc(entry)?;
        }
        for (name, stand_ins) in &machine.fallbacks {
            self.fallback(name, stand_ins, path)?;
        }
        let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::RDONLY;
        mount_remount(self.root, flags, "mode=755,size=16m").map_err(at("make read-only", self.root))
    }

    fn show(&mut self, source: &Path, target: &Path) -> Result<()> {
        self.apart = self.apart.and(self.shown.at(target, source, OpenTreeFlags::empty())?);
        Ok(())
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
    fn bind_or_link(&mut self, source: &Path) -> Result<()> {
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
                self.show(source, &target)
            }
        }
    }

    /// An entry of the machine's /etc, unless it is there already. Files are copied (they are small and may be replaced while we
    /// run), and so are directories with few of them; others are bound. Only what everybody may read: this runs as root, the
    /// task does not.
    fn etc(&mut self, below: &Path) -> Result<()> {
        const FEW: usize = 64;
        let source = Path::new("/etc").join(below);
        let is_there = fs::symlink_metadata(self.root.join("etc").join(below)).is_ok();
        if is_there || !is_open_all_the_way(below) {
            return Ok(());
        }
        if !source.is_dir() {
            return self.etc_file(&source);
        }
        let entries: Vec<_> = WalkDir::new(&source).into_iter().take(FEW + 1).collect();
        if entries.len() > FEW || etc::is_private(below) {
            let target = self.directory(&Path::new("etc").join(below))?;
            return self.show(&source, &target);
        }
        for entry in entries.into_iter().flatten() {
            // What is below a directory that is closed is not for everybody either.
            if entry.path().strip_prefix("/etc").is_ok_and(is_open_all_the_way) {
                self.etc_entry(&entry)?;
            }
        }
        Ok(())
    }

    fn etc_entry(&mut self, entry: &DirEntry) -> Result<()> {
        let below = entry.path().strip_prefix("/").unwrap_or(entry.path());
        let kind = entry.file_type();
        if kind.is_dir() {
            self.directory(below).map(drop)
        } else if kind.is_symlink() {
            let target = fs::read_link(entry.path()).map_err(at("read link", entry.path()))?;
            let link = self.root.join(below);
            symlink(&target, &link).map_err(at("link", &link))?;
            self.own(&link)
        } else {
            self.etc_file(entry.path())
        }
    }

    fn etc_file(&mut self, source: &Path) -> Result<()> {
        const LARGEST: u64 = 256 << 10;
        let below = source.strip_prefix("/").unwrap_or(source);
        let Ok(meta) = fs::metadata(source) else { return Ok(()) };
        if !meta.is_file() || meta.len() > LARGEST {
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
