//! The init of a session's container: it forks a leader for each run.
//!
//! A **leader** is to its run what an init is to a task: it enters the run's own group, forks what becomes the command, takes files,
//! passes signals on, tells of the end. Unlike an init it is no PID 1: what its run leaves behind stays when it ends, as the session's, and
//! what is to end with the run is found in the run's group.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use rustix::process::PidfdFlags;

use super::wire::{Notice, Request, Step, nanoseconds};
use super::{Failure, Init, MadeCell, at, notify, owned, seal};
use crate::frame;
use crate::sandbox::kernel;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::ClockId;

/// How long nothing is done while processes end.
const PAUSE: Duration = Duration::from_millis(1);
/// What one look at a group's processes may read.
const MEMBERS: usize = 64 << 10;

impl Init {
    /// Serves runs until the runner's end is closed. The process that waited for a command is not needed any more.
    pub(super) fn lead_runs(&self, task: Pid, control: &UnixStream) {
        let _ = kill(task, Signal::SIGKILL);
        while !matches!(kernel::reap(true), Ok(Some((pid, _))) if pid == task) {}
        notify(control, Notice::Ready);
        loop {
            while let Ok(Some(_)) = kernel::reap(false) {}
            let mut fds = [nix::poll::PollFd::new(control.as_fd(), nix::poll::PollFlags::POLLIN)];
            match nix::poll::ppoll(&mut fds, None, Some(SigSet::empty())) {
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(_) => return,
            }
            match frame::receive_with::<Request>(control) {
                Ok(Some((Request::Files(files), descriptors))) => self.place(&files, &descriptors, control),
                Ok(Some((Request::Run, descriptors))) => {
                    let led = self.fork_leader(&descriptors);
                    let errno = |error: &io::Error| error.raw_os_error().unwrap_or(libc::EINVAL);
                    let answer = MadeCell(led.as_ref().map(drop).map_err(errno));
                    let handle: Vec<_> = led.iter().map(AsFd::as_fd).collect();
                    if frame::send_with(control, &answer, &handle).is_err() {
                        return;
                    }
                }
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    fn fork_leader(&self, descriptors: &[OwnedFd]) -> io::Result<OwnedFd> {
        let [control, commands, stdout, stderr, members, entrances @ ..] = descriptors else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let leader = kernel::fork(|| {
            let init = Init {
                control: control.as_raw_fd(),
                commands: commands.as_raw_fd(),
                entrances: entrances.iter().map(AsRawFd::as_raw_fd).collect(),
                ..self.clone()
            };
            let redirected = rustix::stdio::dup2_stdout(stdout).and_then(|()| rustix::stdio::dup2_stderr(stderr));
            let led = redirected.map_err(|errno| at(Step::Redirect)(errno.into())).and_then(|()| init.lead(members));
            i32::from(led.is_err())
        })?;
        let pid = rustix::process::Pid::from_raw(leader.as_raw()).ok_or(io::ErrorKind::NotFound)?;
        Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
    }

    /// Leads one run.
    fn lead(&self, members: &OwnedFd) -> Result<(), Failure> {
        let entered = rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .map_err(|errno| at(Step::Fork)(errno.into()))
            .and_then(|()| seal::enter(&self.entrances));
        kernel::close_from(3, &mut [self.control, self.commands, members.as_raw_fd()]);
        // SAFETY: both are open, and nothing else in this forked process uses them as its own.
        let (control, commands) = unsafe { (owned(self.control), owned(self.commands)) };
        let (control, commands) = (UnixStream::from(control), UnixStream::from(commands));
        let forked = entered.and_then(|()| self.fork_task(&control, commands));
        let task = match forked {
            Ok(task) => task,
            Err(failure) => {
                notify(&control, Notice::Failed { step: failure.step, errno: failure.errno });
                return Err(failure);
            }
        };
        let _ = rustix::stdio::dup2_stdout(rustix::stdio::stdin())
            .and_then(|()| rustix::stdio::dup2_stderr(rustix::stdio::stdin()));
        let mut task = task;
        let status = match self.wait_for_end(&mut task, &control) {
            super::End::Exited(status) => Some(status),
            super::End::Told | super::End::Host => end_members(members, task),
        };
        let (at, used) = (nanoseconds(ClockId::Monotonic), kernel::used_by_children());
        match status {
            Some(status) => notify(&control, Notice::Exited { at, status, alone: true, used }),
            None => notify(&control, Notice::Alone { used }),
        }
        let mut closed = [PollFd::new(&control, PollFlags::empty())];
        while matches!(poll(&mut closed, None), Err(rustix::io::Errno::INTR)) {}
        Ok(())
    }
}

/// SIGKILL to every process of the run's group but this one, until there is none; the status of the task's if it was among them.
fn end_members(members: &OwnedFd, task: Pid) -> Option<i32> {
    let Ok(members) = members.try_clone().map(File::from) else { return None };
    let (own, mut ended) = (std::process::id() as i32, None);
    loop {
        let others: Vec<i32> = processes(&members).into_iter().filter(|pid| *pid > 0 && *pid != own).collect();
        others.iter().for_each(|pid| _ = kill(Pid::from_raw(*pid), Signal::SIGKILL));
        while let Ok(Some((pid, status))) = kernel::reap(false) {
            if pid == task {
                ended = Some(status);
            }
        }
        if others.is_empty() {
            return ended;
        }
        std::thread::sleep(PAUSE);
    }
}

/// As this process sees them (cgroups(7)).
fn processes(members: &File) -> Vec<i32> {
    let (mut bytes, mut length) = (vec![0; MEMBERS], 0);
    while let Ok(read @ 1..) = members.read_at(&mut bytes[length..], length as u64) {
        length += read;
    }
    let text = String::from_utf8_lossy(&bytes[..length]);
    text.lines().filter_map(|line| line.parse().ok()).collect()
}
