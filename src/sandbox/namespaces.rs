//! A slot's user and network namespace, created together and joined by every container of the slot.
//!
//! A network namespace costs 0.5–0.9 ms to make, and one that another user namespace owns cannot be joined (EPERM),
//! so both are made once. A task's processes and sockets are gone before the next one's start, and what the kernel would
//! keep beyond them (closed connections, what it learned of their routes) is switched off; the counters of the
//! loopback device go on from task to task.
//!
//! The pair belongs to the slot's own user, not to root: what is used in a user namespace is also counted against
//! its owner (user_namespaces(7); kernel/ucount.c), and root's allowances are the machine's.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, getpid, setresgid, setresuid};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities};

use super::ids::UidRange;
use super::kernel;

#[derive(Debug)]
pub struct Namespaces {
    user: OwnedFd,
    network: OwnedFd,
}

#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("{step}")]
    Io { step: &'static str, source: io::Error },
    #[error("user and network namespaces cannot be made here (errno {0}): run `faber doctor`")]
    Child(i32),
}

fn at(step: &'static str) -> impl Fn(io::Error) -> NamespaceError {
    move |source| NamespaceError::Io { step, source }
}

/// Whether every kind of namespace can be made, tried in a child.
///
/// # Errors
/// fork(2)'s and unshare(2)'s.
pub fn probe() -> io::Result<()> {
    let every = [CloneFlags::CLONE_NEWNS, CloneFlags::CLONE_NEWPID, CloneFlags::CLONE_NEWNET, CloneFlags::CLONE_NEWIPC];
    let every =
        every.into_iter().chain([CloneFlags::CLONE_NEWUTS, CloneFlags::CLONE_NEWCGROUP]).collect::<CloneFlags>();
    attempt(|| unshare(CloneFlags::CLONE_NEWUSER | every).map_err(io::Error::from))
}

/// Whether a container can have a /proc of its own, tried in a child's child, which is in a PID namespace of its own.
///
/// # Errors
/// unshare(2)'s and mount(2)'s: EPERM where parts of /proc are covered.
pub fn probe_procfs() -> io::Result<()> {
    attempt(|| {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)?;
        attempt(|| Ok(rustix::mount::mount("proc", "/proc", "proc", rustix::mount::MountFlags::empty(), None)?))
    })
}

/// What comes of it in a child, which then ends.
fn attempt(step: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let child = kernel::fork(|| step().map_or_else(|error| error.raw_os_error().unwrap_or(libc::EINVAL), |()| 0))?;
    match waitpid(child, None)? {
        WaitStatus::Exited(_, 0) => Ok(()),
        WaitStatus::Exited(_, errno) => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::Error::other("the child was killed")),
    }
}

impl Namespaces {
    /// Makes the pair in a child process and keeps it by descriptors after the child is gone.
    pub fn create(ids: &UidRange) -> Result<Self, NamespaceError> {
        let (mut ready, sender) = pipe().map_err(at("pipe"))?;
        let child = kernel::fork({
            let parent = getpid();
            let sender = sender.as_fd();
            move || hold(ids.base(), parent, sender)
        })
        .map_err(at("fork"))?;
        drop(sender);
        let made = ready.read_exact(&mut [0]).is_ok();
        let pinned = made.then(|| pin(child, ids));
        let _ = kill(child, Signal::SIGKILL);
        match (pinned, waitpid(child, None)) {
            (Some(result), _) => result,
            (None, Ok(WaitStatus::Exited(_, status))) => Err(NamespaceError::Child(status)),
            (None, _) => Err(NamespaceError::Child(-1)),
        }
    }

    pub fn user(&self) -> BorrowedFd<'_> {
        self.user.as_fd()
    }

    /// Paths for the spec. They are opened by libcontainer's children, which inherit the descriptors.
    pub fn paths(&self) -> (PathBuf, PathBuf) {
        let path = |fd: &OwnedFd| PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        (path(&self.user), path(&self.network))
    }
}

fn pipe() -> io::Result<(File, File)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((reader.into(), writer.into()))
}

/// The child: makes the namespaces, says so, and waits for its end.
fn hold(owner: u32, parent: Pid, ready: BorrowedFd<'_>) -> i32 {
    let made = become_owner(owner)
        // After the change of user, which would clear it.
        .and_then(|()| kernel::end_with(parent))
        .and_then(|()| Ok(unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET)?))
        .and_then(|()| kernel::raise_loopback())
        // A port is free again at once for the slot's next task (ip-sysctl.rst).
        .and_then(|()| fs::write("/proc/sys/net/ipv4/tcp_max_tw_buckets", "0"))
        .and_then(|()| fs::write("/proc/sys/net/ipv4/tcp_no_metrics_save", "1"))
        .and_then(|()| Ok(rustix::io::write(ready, &[1])?));
    if let Err(error) = made {
        return error.raw_os_error().unwrap_or(1);
    }
    loop {
        nix::unistd::pause();
    }
}

/// Another user, with the one capability that making namespaces takes where only the privileged may
/// (kernel.apparmor_restrict_unprivileged_userns, kernel.unprivileged_userns_clone).
fn become_owner(owner: u32) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(owner), Gid::from_raw(owner));
    rustix::thread::set_keep_capabilities(true)?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    let only = CapabilitySet::SYS_ADMIN;
    let sets = CapabilitySets { effective: only, permitted: only, inheritable: CapabilitySet::empty() };
    Ok(set_capabilities(None, sets)?)
}

fn pin(child: Pid, ids: &UidRange) -> Result<Namespaces, NamespaceError> {
    for map in ["uid_map", "gid_map"] {
        let mut file = File::options().write(true).open(format!("/proc/{child}/{map}")).map_err(at("open uid_map"))?;
        file.write_all(ids.map().as_bytes()).map_err(at("write uid_map"))?;
    }
    let open = |name| File::open(format!("/proc/{child}/ns/{name}")).map(OwnedFd::from).map_err(at("open namespace"));
    Ok(Namespaces { user: open("user")?, network: open("net")? })
}
