//! What the init's child does to become the task: everything is taken from it, then it waits for its start.

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{Gid, Uid, chdir, setgroups, setresgid, setresuid, setsid};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::CapabilitySet;

use super::wire::{Notice, Step};
use super::{Failure, at, notify};
use crate::image::User;
use crate::sandbox::kernel;
use crate::sandbox::seccomp::Programs;

/// Bytes of the main thread's stack, where the hard limit allows as much.
const STACK: u64 = 8 << 20;

/// The task's process to be; made before the fork, so that nothing is left to work out after it.
pub struct Child<'a> {
    pub candidates: Vec<CString>,
    pub argv: Vec<CString>,
    pub env: Vec<CString>,
    pub user: User,
    /// Where it starts: one path.
    pub directory: Vec<CString>,
    pub file_descriptors: u64,
    pub cpu_seconds: u64,
    pub programs: &'a Programs,
    /// Whether it gives up user and capabilities. A build step stays root of its user namespace.
    pub becomes_nobody: bool,
}

impl Child<'_> {
    /// Returns only when the task could not be started; the runner has been told why.
    pub fn run(&self, control: BorrowedFd<'_>, start: BorrowedFd<'_>) -> i32 {
        let failure = match self.prepare() {
            Ok(()) => self.start(control, start),
            Err(failure) => failure,
        };
        notify(control, Notice::Failed { step: failure.step, errno: failure.errno });
        1
    }

    fn prepare(&self) -> Result<(), Failure> {
        setsid().map_err(|errno| at(Step::Session)(errno.into()))?;
        kernel::default_signals();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
            .map_err(|errno| at(Step::Session)(errno.into()))?;
        self.limit().map_err(at(Step::Limits))?;
        if self.becomes_nobody {
            drop_bounding_set().map_err(at(Step::Privileges))?;
            // The kernel clears every other set when root becomes somebody else (capabilities(7)).
            become_user(self.user).map_err(|errno| at(Step::User)(errno.into()))?;
        }
        // As the user, who may not enter every directory.
        self.directory
            .iter()
            .try_for_each(|directory| chdir(directory.as_c_str()))
            .map_err(|e| at(Step::Directory)(e.into()))?;
        // Loading also sets no_new_privs.
        self.programs.load().map_err(|_| Failure { step: Step::Seccomp, errno: io_errno() })
    }

    fn limit(&self) -> io::Result<()> {
        let both = |value| Rlimit { current: Some(value), maximum: Some(value) };
        enforce(Resource::Nofile, both(self.file_descriptors))?;
        // Not 0: that does not hold for a program that cores are piped to, while 1 does (core(5)). Who started Faber may
        // have 0 for good, as sudo gives it.
        let core = getrlimit(Resource::Core).maximum.map_or(1, |maximum| maximum.min(1));
        enforce(Resource::Core, both(core))?;
        // SIGXCPU first, SIGKILL a second later (getrlimit(2)).
        let cpu = Rlimit { current: Some(self.cpu_seconds), maximum: Some(self.cpu_seconds + 1) };
        enforce(Resource::Cpu, cpu)?;
        // The same stack for every task, however Faber was started; a quarter of it is what execve(2) allows arguments.
        let stack = getrlimit(Resource::Stack);
        let size = stack.maximum.map_or(STACK, |maximum| maximum.min(STACK));
        enforce(Resource::Stack, Rlimit { current: Some(size), ..stack })
    }

    fn start(&self, control: BorrowedFd<'_>, start: BorrowedFd<'_>) -> Failure {
        notify(control, Notice::Prepared);
        // recv(2), not read(2): nothing before the exec is I/O of the task.
        match rustix::net::recv(start, &mut [0u8; 1][..], rustix::net::RecvFlags::empty()) {
            Ok((_, 1)) => {}
            _ => return Failure { step: Step::Receive, errno: libc::EPIPE },
        }
        let mut errno = libc::ENOENT;
        for candidate in &self.candidates {
            let error = kernel::execve(candidate, &self.argv, &self.env);
            match error.raw_os_error().unwrap_or(libc::EINVAL) {
                libc::ENOENT | libc::ENOTDIR => {}
                // Not allowed here; another directory may have one that is (execvp(3)).
                libc::EACCES => errno = libc::EACCES,
                other => return Failure { step: Step::Exec, errno: other },
            }
        }
        Failure { step: Step::Exec, errno }
    }
}

/// Sets a limit, and sees that the kernel has it.
fn enforce(resource: Resource, wanted: Rlimit) -> io::Result<()> {
    setrlimit(resource, wanted)?;
    if getrlimit(resource) == wanted { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}

fn io_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)
}

/// Empties the bounding set of what the init had, the capability to do so last.
fn drop_bounding_set() -> io::Result<()> {
    for capability in [CapabilitySet::SETUID, CapabilitySet::SETGID, CapabilitySet::KILL, CapabilitySet::SETPCAP] {
        rustix::thread::remove_capability_from_bounding_set(capability)?;
    }
    Ok(())
}

fn become_user(user: User) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}
