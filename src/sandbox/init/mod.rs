//! The init: PID 1 of every container, Faber's own, run by libcontainer as the spec's process.
//!
//! It runs as root of the slot's user namespace with four capabilities, once [`seal`] is done; the task runs as its image's
//! [`User`] with none. So the task can neither signal nor inspect it. It is a fork of the single-threaded runner, without
//! exec: it may allocate, but must not log.

mod child;
mod host;
mod place;
mod seal;
mod session;
mod unrunnable;
pub mod wire;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::time::ClockId;

use super::cgroup::Sight;
use super::kernel;
use super::seccomp::Filter;
use crate::frame;
use crate::image::{User, WORKSPACE};
use child::Child;
pub use host::{MadeCell, MakeCell};
pub use seal::Masks;
use wire::{Command, Files, Notice, ProcessLimits, Request, Step, nanoseconds};

/// What a container is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purpose {
    /// To run a client's command: as this user without privileges, in the workspace, alone on its network.
    Task(User),
    /// To have cells, each for a task of one request: `host` says how.
    Cells(User),
    /// To make an image: as root of the user namespace, with a root that it may change and with the machine's network.
    /// `files` of the machine are there read-only, each under its name in the container.
    BuildStep { files: Vec<(String, String)> },
}

/// A set-up step that failed: two numbers, because a forked process has no words to spare.
#[derive(Debug)]
pub struct Failure {
    step: Step,
    errno: i32,
}

fn at(step: Step) -> impl Fn(io::Error) -> Failure {
    move |error| Failure { step, errno: error.raw_os_error().unwrap_or(libc::EINVAL) }
}

/// libcontainer's executor. The descriptors are numbers: they name the runner's descriptors in its forked children.
#[derive(Clone)]
pub struct Init {
    /// Files in, notices out.
    pub control: RawFd,
    /// The command, for the task's process.
    pub commands: RawFd,
    /// Its control group's, to be written to once.
    pub entrances: Vec<RawFd>,
    /// The runner's own descriptors, of no use here.
    pub foreign: Vec<RawFd>,
    /// For the task's process; for the init itself where that makes cells, of which each has what is `inner`.
    pub filter: Rc<Filter>,
    pub inner: Rc<Filter>,
    pub masks: Rc<Masks>,
    /// How its control group is shown in the container.
    pub sights: &'static [Sight],
    pub purpose: Purpose,
}

impl Executor for Init {
    /// Runs while the container is created, after pivot_root and with the init's final credentials.
    fn validate(&self, _: &Spec) -> Result<(), ExecutorValidationError> {
        for &fd in &self.foreign {
            let _ = nix::unistd::close(fd);
        }
        let failed = |error: io::Error| ExecutorValidationError::ArgValidationError(error.to_string());
        // Credentials no longer change from here on, which would clear it.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
            .map_err(|errno| failed(errno.into()))?;
        // The runner may have died before that: then its end is closed.
        if hung_up(self.control).map_err(failed)? {
            return Err(ExecutorValidationError::ArgValidationError("the runner is gone".into()));
        }
        Ok(())
    }

    fn setup_envs(&self, _: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        Ok(())
    }

    /// Never returns: an error from here would be written to a closed descriptor.
    fn exec(&self, _: &Spec) -> Result<(), ExecutorError> {
        std::panic::set_hook(Box::new(|_| {}));
        let status = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| match &self.purpose {
            Purpose::Cells(user) => self.host(*user, &self.inner),
            Purpose::Task(_) | Purpose::BuildStep { .. } => self.serve(Place::Container),
        }));
        kernel::exit_now(if matches!(status, Ok(Ok(()))) { 0 } else { 1 })
    }
}

/// What ends the wait for a task.
enum End {
    /// Its process has, with this status (wait(2)).
    Exited(i32),
    /// The runner said stop.
    Told,
    /// There is to be no task, but runs.
    Host,
}

/// What an init has to itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Container,
    /// What is not yet there is /proc.
    Cell,
}

impl Init {
    fn serve(&self, place: Place) -> Result<(), Failure> {
        let entered = seal::enter(&self.entrances);
        kernel::close_from(3, &mut [self.control, self.commands]);
        // SAFETY: both are open, and nothing else in this forked process uses them as its own.
        let (control, commands) = unsafe { (owned(self.control), owned(self.commands)) };
        let (control, commands) = (UnixStream::from(control), UnixStream::from(commands));
        match entered.and_then(|()| self.fork(place, &control, commands)) {
            Ok(task) => {
                self.tend(task, &control);
                Ok(())
            }
            Err(failure) => {
                notify(&control, Notice::Failed { step: failure.step, errno: failure.errno });
                Err(failure)
            }
        }
    }

    /// The user the task's process becomes; None if it stays root.
    fn user(&self) -> Option<User> {
        match &self.purpose {
            Purpose::Task(user) | Purpose::Cells(user) => Some(*user),
            Purpose::BuildStep { .. } => None,
        }
    }

    fn fork(&self, place: Place, control: &UnixStream, commands: UnixStream) -> Result<Pid, Failure> {
        if place == Place::Cell {
            seal::mount_proc().map_err(at(Step::Mount))?;
        }
        seal::seal(self.user(), self.sights, &self.masks)?;
        self.fork_task(control, commands)
    }

    /// Forks what waits for the command.
    fn fork_task(&self, control: &UnixStream, commands: UnixStream) -> Result<Pid, Failure> {
        kernel::catch_sigchld();
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&Signal::SIGCHLD.into()), None)
            .map_err(|e| at(Step::Fork)(e.into()))?;
        kernel::fork(|| self.child().run(control.as_fd(), commands)).map_err(at(Step::Fork))
    }

    fn child(&self) -> Child<'_> {
        Child { user: self.user(), filter: &self.filter }
    }

    /// Places files when told to, and reaps until the task's process has ended or the runner says stop; then ends whatever
    /// is left. All children are reaped here: only so their I/O is in the init's own sums (proc_pid_io(5)), which the
    /// runner reads last.
    fn tend(&self, task: Pid, control: &UnixStream) {
        // A task that closes its output is at its end for who reads it: no other copy may stay open here.
        let _ = rustix::stdio::dup2_stdout(rustix::stdio::stdin())
            .and_then(|()| rustix::stdio::dup2_stderr(rustix::stdio::stdin()));
        let mut task = task;
        match self.wait_for_end(&mut task, control) {
            End::Host => return self.lead_runs(task, control),
            // At once: what is left to end is not the task's time.
            End::Exited(status) => {
                let at = nanoseconds(ClockId::Monotonic);
                let alone = !has_children();
                notify(control, Notice::Exited { at, status, alone, used: kernel::used_by_children() });
                if !alone {
                    end_all(task);
                    notify(control, Notice::Alone { used: kernel::used_by_children() });
                }
            }
            End::Told => {
                let status = end_all(task);
                let used = kernel::used_by_children();
                match status {
                    Some(status) => {
                        let at = nanoseconds(ClockId::Monotonic);
                        notify(control, Notice::Exited { at, status, alone: true, used });
                    }
                    None => notify(control, Notice::Alone { used }),
                }
            }
        }
        // What the end of this process takes is not what the runner's answer waits for, and of a zombie not every kernel tells what
        // it has read. The other end is shut for stop, and closed when nothing is wanted any more: that is POLLHUP (poll(2)).
        let mut closed = [PollFd::new(control, PollFlags::empty())];
        while matches!(poll(&mut closed, None), Err(rustix::io::Errno::INTR)) {}
    }

    /// `task` is whoever waits to become it, or has.
    fn wait_for_end(&self, task: &mut Pid, control: &UnixStream) -> End {
        loop {
            loop {
                match kernel::reap(false) {
                    Ok(Some((pid, status))) if pid == *task => return End::Exited(status),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => break,
                }
            }
            // SIGCHLD is blocked but for this call, so none is missed between the look and the wait.
            let mut fds = [nix::poll::PollFd::new(control.as_fd(), nix::poll::PollFlags::POLLIN)];
            match nix::poll::ppoll(&mut fds, None, Some(SigSet::empty())) {
                Ok(_) => match frame::receive_with::<Request>(control) {
                    Ok(Some((Request::Files(files), descriptors))) => self.place(&files, &descriptors, control),
                    // It may have ended in this moment.
                    Ok(Some((Request::Signal(signal), _))) => kernel::signal_group(*task, signal),
                    Ok(Some((Request::Prepare(command), descriptors))) => {
                        self.prepare(task, command, &descriptors, control);
                    }
                    Ok(Some((Request::Limit(limits), _))) => notify(control, limit(*task, limits)),
                    Ok(Some((Request::Host | Request::Run, _))) => return End::Host,
                    Ok(None) | Err(_) => return End::Told,
                },
                Err(nix::errno::Errno::EINTR) => {}
                Err(_) => return End::Told,
            }
        }
    }

    /// Has an interpreter take the place of whoever waits. It has the same pid: what waited before is nothing that can be seen.
    fn prepare(&self, task: &mut Pid, command: Command, descriptors: &[OwnedFd], control: &UnixStream) {
        end_all(*task);
        let forked = kernel::fork_as(*task, || self.child().interpret(command, descriptors));
        let handle = forked.and_then(|pid| {
            *task = pid;
            let pid = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::NotFound)?;
            Ok(rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?)
        });
        let answer = MadeCell(handle.as_ref().map(drop).map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL)));
        let handles: Vec<_> = handle.iter().map(AsFd::as_fd).collect();
        let _ = frame::send_with(control, &answer, &handles);
    }

    /// Writes the task's files as its user.
    fn place(&self, files: &Files, descriptors: &[OwnedFd], control: &UnixStream) {
        if let Some(User { uid, gid }) = self.user() {
            kernel::set_fs_ids(uid, gid);
        }
        let placed = place::files(WORKSPACE, files, descriptors, control).map_err(at(Step::Files));
        kernel::set_fs_ids(0, 0);
        let notice = match placed {
            Ok(()) => Notice::Placed,
            Err(Failure { step, errno }) => Notice::Failed { step, errno },
        };
        notify(control, notice);
    }
}

/// Holds another process to these limits.
fn limit(task: Pid, limits: ProcessLimits) -> Notice {
    match child::limit(rustix::process::Pid::from_raw(task.as_raw()), limits).map_err(at(Step::Limits)) {
        Ok(()) => Notice::Placed,
        Err(Failure { step, errno }) => Notice::Failed { step, errno },
    }
}

/// # Safety
/// The descriptor is open, and nobody else in this process owns it.
unsafe fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller's promise.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Whether anything is left in the PID namespace: all of it descends from the init. Reaps what has ended.
fn has_children() -> bool {
    loop {
        match kernel::reap(false) {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(error) => return error.raw_os_error() != Some(libc::ECHILD),
        }
    }
}

/// SIGKILL to everything but ourselves until nothing is left to reap; the status of the task's process if it was among
/// them.
fn end_all(task: Pid) -> Option<i32> {
    let mut ended = None;
    loop {
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        match kernel::reap(true) {
            Ok(Some((pid, status))) if pid == task => ended = Some(status),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return ended,
        }
    }
}

/// send(2), not write(2): only the latter counts as I/O of the task's tree.
fn notify(control: impl AsFd, notice: Notice) {
    let _ = rustix::net::send(control, &notice.encode(), rustix::net::SendFlags::NOSIGNAL);
}

fn hung_up(fd: RawFd) -> io::Result<bool> {
    // SAFETY: the number names a descriptor that stays open for this call.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, Some(&rustix::time::Timespec { tv_sec: 0, tv_nsec: 0 }))?;
    Ok(fds[0].revents().contains(rustix::event::PollFlags::HUP))
}
