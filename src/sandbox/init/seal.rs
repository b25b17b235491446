//! What is left of the set-up when libcontainer is done: it takes privileges, which end with it.
//!
//! Mounts and masks are not in the OCI spec: here each is one system call, while libcontainer looks after every step of a
//! path it does not trust, and so makes fifty for a mount and eight for a mask. Nothing of a task runs yet, and what the
//! image may have in a mount point's place is looked at first.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, mount, mount_bind, move_mount, unmount,
};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::wire::Step;
use super::{Failure, at};
use crate::image::{User, WORKSPACE};
use crate::sandbox::cgroup::Sight;
use crate::sandbox::view;
use crate::task::WORKSPACE_BYTES;

/// What a task may see of /proc beside processes and links: what programs size themselves by, or cannot do without. All else
/// tells of the machine and of others on it.
const SHOWN: [&str; 9] =
    ["cgroups", "cpuinfo", "filesystems", "meminfo", "stat", "sys", "sysvipc", "uptime", "version"];

/// What to mask of /proc, which is the same in every instance of it: found once, before there is a container.
#[derive(Debug, Clone, Default)]
pub struct Masks {
    files: Vec<CString>,
    directories: Vec<CString>,
}

impl Masks {
    /// # Errors
    /// When /proc cannot be read.
    pub fn find() -> io::Result<Self> {
        let mut masks = Self::default();
        for entry in std::fs::read_dir("/proc")? {
            let entry = entry?;
            let name = entry.file_name();
            let is_process = name.as_bytes().iter().all(u8::is_ascii_digit);
            if is_process || SHOWN.iter().any(|shown| name == *shown) {
                continue;
            }
            let kind = entry.file_type()?;
            // What only the machine's root may read is nobody's in a container, whose root is somebody else.
            if kind.is_file() && entry.metadata()?.mode() & 0o004 == 0 {
                continue;
            }
            let path = CString::new(entry.path().into_os_string().into_vec())?;
            match (kind.is_dir(), kind.is_symlink()) {
                (true, _) => masks.directories.push(path),
                // They lead to what a process has of its own.
                (_, true) => {}
                _ => masks.files.push(path),
            }
        }
        Ok(masks)
    }
}

/// Moves this process into its control group, by the group's files.
pub fn enter(entrances: &[RawFd]) -> Result<(), Failure> {
    entrances.iter().try_for_each(|&file| {
        // SAFETY: the runner opened it before it forked, and nothing in this process has closed it.
        let file = unsafe { BorrowedFd::borrow_raw(file) };
        rustix::io::write(file, b"0").map(drop).map_err(|errno| at(Step::Enter)(errno.into()))
    })
}

/// Makes the init's group the root of its control group namespace, mounts where a task may write, shows it what it may know of
/// its limits, masks what it must not see, and gives up what the init then has no use for. `user` is the task's; None for a
/// build step.
pub fn seal(user: Option<User>, sights: &[Sight], masks: &Masks) -> Result<(), Failure> {
    // Not libcontainer's, which would be rooted in the group that the container was made in.
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(|errno| at(Step::CgroupNamespace)(errno.into()))?;
    mount_writable(user).map_err(at(Step::Mount))?;
    mask(masks).map_err(at(Step::Mask))?;
    if user.is_some() && has_view() {
        show(sights).map_err(at(Step::Show))?;
    }
    give_up(CapabilitySet::SYS_ADMIN).map_err(at(Step::Privileges))
}

/// Every place a task can write to: a tmpfs with a limit on size and inodes, whose pages count against the
/// task's memory. A build step writes to its root, which is on disk.
fn mount_writable(user: Option<User>) -> io::Result<()> {
    make_directory("/dev/shm", 0o1777)?;
    tmpfs("/dev/shm", MountFlags::NOEXEC, "mode=1777,size=64m,nr_inodes=8k")?;
    terminals()?;
    if let Some(User { uid, gid }) = user {
        tmpfs("/tmp", MountFlags::empty(), "mode=1777,size=128m,nr_inodes=64k")?;
        let options = format!("mode=755,uid={uid},gid={gid},size={WORKSPACE_BYTES},nr_inodes=64k");
        tmpfs(WORKSPACE, MountFlags::empty(), &options)?;
        // The directory below it is no longer the one to be in.
        rustix::process::chdir(WORKSPACE)?;
    }
    Ok(())
}

/// Pseudo-terminals of the container's own (filesystems/devpts.rst), to which libcontainer's /dev/ptmx leads. All there are on the
/// machine share one bound. 5 is the group `tty`, as grantpt(3) of older C libraries wants it.
fn terminals() -> io::Result<()> {
    const PLACE: &str = "/dev/pts";
    make_directory(PLACE, 0o755)?;
    let options = c"newinstance,ptmxmode=0666,mode=0620,gid=5,max=64";
    Ok(mount("devpts", PLACE, "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, options)?)
}

/// In /dev, which is the container's; a cell before may have needed it.
fn make_directory(path: &str, mode: u32) -> io::Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A /proc of the cell's own PID namespace, like the container's, in whose place it is then: that one must still be there when it
/// is made (the kernel gives a user namespace none that shows more than one it sees), and is nobody's business afterwards.
pub fn mount_proc() -> io::Result<()> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), "source", "proc")?;
    fsconfig_set_string(context.as_fd(), "hidepid", "2")?;
    fsconfig_create(context.as_fd())?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
    unmount("/proc", UnmountFlags::DETACH)?;
    Ok(move_mount(proc.as_fd(), "", rustix::fs::CWD, "/proc", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// On a directory, which an image's link in its place is not.
fn tmpfs(place: &str, flags: MountFlags, options: &str) -> io::Result<()> {
    directory(place)?;
    let options = CString::new(options).map_err(|_| io::ErrorKind::InvalidInput)?;
    Ok(mount("tmpfs", place, "tmpfs", flags | MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())?)
}

fn directory(place: &str) -> io::Result<OwnedFd> {
    let no_link = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(place, no_link, Mode::empty())?)
}

/// Whether Faber's own /sys is there, in a directory and not in the place of an image's link.
fn has_view() -> bool {
    let Ok(sys) = directory("/sys") else { return false };
    rustix::fs::fstatfs(&sys).is_ok_and(|stat| stat.f_type == libc::TMPFS_MAGIC)
}

/// A hierarchy that cannot be mounted once more, as on some machines with v1, is not shown: a help for programs, which no limit
/// depends on.
fn show(sights: &[Sight]) -> io::Result<()> {
    for Sight { fs_type, place, options } in sights {
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
        let _ = mount(*fs_type, *place, *fs_type, flags, Some(*options));
    }
    Ok(mount_bind(view::MEMINFO, "/proc/meminfo")?)
}

fn mask(masks: &Masks) -> io::Result<()> {
    // Elsewhere all of them would be missing, and nothing masked.
    if rustix::fs::fstatfs(directory("/proc")?)?.f_type as i64 != libc::PROC_SUPER_MAGIC {
        return Err(io::ErrorKind::NotFound.into());
    }
    for file in &masks.files {
        unless_missing(mount_bind("/dev/null", file.as_c_str()))?;
    }
    let mut empty = None;
    for directory in &masks.directories {
        let directory = directory.as_c_str();
        let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        let masked = match empty {
            None => mount("tmpfs", directory, "tmpfs", flags, c"size=4k"),
            Some(empty) => mount_bind(empty, directory),
        };
        if unless_missing(masked)? {
            empty = Some(directory);
        }
    }
    Ok(())
}

/// Whether it was there to be masked.
fn unless_missing(masked: rustix::io::Result<()>) -> io::Result<bool> {
    match masked {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn give_up(capability: CapabilitySet) -> io::Result<()> {
    rustix::thread::remove_capability_from_bounding_set(capability)?;
    let sets = rustix::thread::capabilities(None)?;
    let left = CapabilitySets {
        effective: sets.effective - capability,
        permitted: sets.permitted - capability,
        inheritable: sets.inheritable - capability,
    };
    Ok(set_capabilities(None, left)?)
}
