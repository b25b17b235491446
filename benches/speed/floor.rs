//! What the kernel takes for a container at least: the same namespaces, mounts and forks by plain calls, from a process that is small and
//! has nothing else to do. No limits, no figures, no filter, no server, nothing that looks whether all is well.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

use crate::ways::{Took, Way};

/// A process that makes such containers.
pub struct Floor {
    socket: UnixStream,
}

/// Where tasks may write, and what they see of themselves.
const MOUNTS: [(&str, &str); 5] =
    [("proc", "proc"), ("tmpfs", "dev/shm"), ("tmpfs", "tmp"), ("tmpfs", "workspace"), ("devpts", "dev/pts")];

impl Floor {
    /// To be called while the process has one thread.
    pub fn start() -> Self {
        let (socket, theirs) = UnixStream::pair().unwrap();
        // SAFETY: there is no other thread.
        if let ForkResult::Child = unsafe { fork() }.unwrap() {
            drop(socket);
            serve(theirs);
            std::process::exit(0);
        }
        Self { socket }
    }
}

impl Way for std::rc::Rc<Floor> {
    fn name(&self) -> &'static str {
        self.as_ref().name()
    }

    fn once(&self) -> Took {
        self.as_ref().once()
    }
}

impl Way for Floor {
    fn name(&self) -> &'static str {
        "floor"
    }

    fn once(&self) -> Took {
        let started = Instant::now();
        (&self.socket).write_all(&[0]).unwrap();
        let mut cpu = [0; 8];
        (&self.socket).read_exact(&mut cpu).unwrap();
        let cpu = Duration::from_nanos(u64::from_le_bytes(cpu));
        assert_ne!(cpu, Duration::ZERO, "a container of the floor failed");
        Took { wall: started.elapsed(), cpu }
    }
}

/// One container for each byte, until there are no more; the answer is the CPU time it took, in nanoseconds, 0 when it failed.
fn serve(mut socket: UnixStream) {
    let dir = tempfile::tempdir().unwrap();
    for (_, place) in MOUNTS {
        std::fs::create_dir_all(dir.path().join(place)).unwrap();
    }
    let mut byte = [0];
    while socket.read_exact(&mut byte).is_ok() {
        let before = spent();
        // SAFETY: this process has one thread.
        let status = match unsafe { fork() }.unwrap() {
            ForkResult::Parent { child } => waitpid(child, None).unwrap(),
            ForkResult::Child => std::process::exit(i32::from(container(dir.path()).is_none())),
        };
        let is_well = matches!(status, nix::sys::wait::WaitStatus::Exited(_, 0));
        let cpu = if is_well { (spent() - before).as_nanos() as u64 } else { 0 };
        socket.write_all(&cpu.to_le_bytes()).unwrap();
    }
}

fn spent() -> Duration {
    use nix::sys::resource::{UsageWho, getrusage};
    let of = |who| {
        let usage = getrusage(who).unwrap();
        let time = |value: nix::sys::time::TimeVal| Duration::new(value.tv_sec() as u64, value.tv_usec() as u32 * 1000);
        time(usage.user_time()) + time(usage.system_time())
    };
    of(UsageWho::RUSAGE_SELF) + of(UsageWho::RUSAGE_CHILDREN)
}

/// In a process of its own, which then is no good for anything else.
fn container(dir: &std::path::Path) -> Option<()> {
    unshare(
        CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP,
    )
    .ok()?;
    // SAFETY: this process has one thread.
    match unsafe { fork() }.ok()? {
        ForkResult::Parent { child } => {
            matches!(waitpid(child, None), Ok(nix::sys::wait::WaitStatus::Exited(_, 0))).then_some(())
        }
        ForkResult::Child => {
            let ended = init(dir);
            std::process::exit(i32::from(ended.is_none()));
        }
    }
}

fn init(dir: &std::path::Path) -> Option<()> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).ok()?;
    for (kind, place) in MOUNTS {
        mount("floor", dir.join(place), kind, MountFlags::NOSUID, None).ok()?;
    }
    let mut command = Command::new("/usr/bin/true");
    // SAFETY: setsid(2) is one system call.
    unsafe { command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(Into::into)) };
    command.stdin(Stdio::null()).status().ok().filter(std::process::ExitStatus::success).map(drop)
}
