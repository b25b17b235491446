//! What is left of the set-up when the container's init is in its control group: it takes privileges, which end with it.

use std::io;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, mount, mount_bind};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::wire::Step;
use super::{Failure, at};

/// Files and directories that a task must not see of /proc: the lists of the container engines, and more that tells of the
/// machine and of others on it. Not every kernel has them.
const FILES: [&str; 14] = [
    "/proc/cmdline",
    "/proc/diskstats",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/locks",
    "/proc/modules",
    "/proc/partitions",
    "/proc/sched_debug",
    "/proc/swaps",
    "/proc/timer_list",
    "/proc/timer_stats",
];
const DIRECTORIES: [&str; 3] = ["/proc/acpi", "/proc/asound", "/proc/scsi"];

/// Makes the init's group the root of its control group namespace, masks what a task must not see, and gives up what the
/// init then has no use for.
pub fn seal() -> Result<(), Failure> {
    // Not libcontainer's, which would be rooted in the group that the container was made in.
    unshare(CloneFlags::CLONE_NEWCGROUP).map_err(|errno| at(Step::CgroupNamespace)(errno.into()))?;
    mask().map_err(at(Step::Mask))?;
    give_up(CapabilitySet::SYS_ADMIN).map_err(at(Step::Privileges))
}

/// Not in the OCI spec's `maskedPaths`: a mask is one system call here, and eight there.
fn mask() -> io::Result<()> {
    is_procfs()?;
    for file in FILES {
        unless_missing(mount_bind("/dev/null", file))?;
    }
    let mut empty = None;
    for directory in DIRECTORIES {
        let masked = match empty {
            None => mount(
                "tmpfs",
                directory,
                "tmpfs",
                MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV,
                c"size=4k",
            ),
            Some(empty) => mount_bind(empty, directory),
        };
        if unless_missing(masked)? {
            empty = Some(directory);
        }
    }
    Ok(())
}

/// An image's link in place of /proc would have the masks somewhere else.
fn is_procfs() -> io::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
    if rustix::fs::fstatfs(&proc)?.f_type == libc::PROC_SUPER_MAGIC {
        Ok(())
    } else {
        Err(io::ErrorKind::NotFound.into())
    }
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
