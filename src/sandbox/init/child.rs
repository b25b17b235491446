//! The task's process: everything is taken from it before any task is known, then it waits for its command.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{Gid, Uid, chdir, setgroups, setresgid, setresuid, setsid};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};
use rustix::thread::{CapabilitySet, CpuSet, sched_setaffinity};
use rustix::time::ClockId;

use super::wire::{Command, Notice, OwnLimits, ProcessLimits, Step, nanoseconds};
use super::{Failure, at, notify, unrunnable};
use crate::frame;
use crate::image::User;
use crate::sandbox::kernel;
use crate::sandbox::seccomp::Filter;
use crate::sandbox::starter;

pub struct Child<'a> {
    /// Whom it becomes, without capabilities; None for a build step, which stays root of its user namespace.
    pub user: Option<User>,
    pub filter: &'a Filter,
}

impl Child<'_> {
    /// Returns only when the task could not be started; the runner has been told why.
    pub fn run(&self, control: BorrowedFd<'_>, commands: UnixStream) -> i32 {
        let failure = match self.prepare() {
            Ok(()) => {
                notify(control, Notice::Ready);
                start(control, commands)
            }
            Err(failure) => failure,
        };
        notify(control, Notice::Failed { step: failure.step, errno: failure.errno });
        1
    }

    /// Becomes an interpreter, to wait for its program; returns only when it cannot be started. `descriptors` are its standard ones.
    pub fn interpret(&self, command: Command, descriptors: &[OwnedFd]) -> i32 {
        let Command { argv, env, path, directory, limits, .. } = command;
        let prepared = self.prepare().is_ok()
            && standard(descriptors).is_ok()
            && limit_stack(None, limits.stack).is_ok()
            && chdir(directory.as_str()).is_ok();
        if prepared {
            let candidates = candidates(argv.first().map_or("", String::as_str), &path);
            execute(&candidates, &strings(argv), &environment(env));
        }
        1
    }

    fn prepare(&self) -> Result<(), Failure> {
        setsid().map_err(|errno| at(Step::Session)(errno.into()))?;
        kernel::default_signals();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)
            .map_err(|errno| at(Step::Session)(errno.into()))?;
        limit_what_never_changes().map_err(at(Step::Limits))?;
        if let Some(user) = self.user {
            drop_bounding_set().map_err(at(Step::Privileges))?;
            // The kernel clears every other set when root becomes somebody else (capabilities(7)).
            become_user(user).map_err(|errno| at(Step::User)(errno.into()))?;
        }
        // Loading also sets no_new_privs.
        self.filter.load().map_err(|_| Failure { step: Step::Seccomp, errno: io_errno() })
    }
}

/// Waits for the command and becomes it. What this takes of the CPU is the set-up's, not the task's.
fn start(control: BorrowedFd<'_>, commands: UnixStream) -> Failure {
    let ready = nanoseconds(ClockId::ProcessCPUTime);
    // recv(2), not read(2): nothing before the exec is I/O of the task.
    let (command, descriptors): (Command, _) = match frame::receive_with(&commands) {
        Ok(Some(received)) => received,
        Ok(None) => return Failure { step: Step::Receive, errno: libc::EPIPE },
        Err(error) => return at(Step::Receive)(error),
    };
    if let Err(error) = replace(&command, &descriptors) {
        return at(Step::Redirect)(error);
    }
    let own = command.of_its_own;
    if let Err(error) = limit(None, command.limits).and_then(|()| own.map_or(Ok(()), limit_by_itself)) {
        return at(Step::Limits)(error);
    }
    if let Err(errno) = run_on(&command.processors) {
        return at(Step::Limits)(errno.into());
    }
    let Command { argv, env, path, is_own_path, directory, count_descriptors: is_counted, .. } = command;
    // As the user, who may not enter every directory.
    if let Err(errno) = chdir(directory.as_str()) {
        return at(Step::Directory)(errno.into());
    }
    let candidates = candidates(argv.first().map_or("", String::as_str), &path);
    let argv = strings(argv);
    let env = environment(env);
    if is_counted && let Err(error) = count_descriptors(&commands) {
        return at(Step::Seccomp)(error);
    }
    let set_up = nanoseconds(ClockId::ProcessCPUTime).saturating_sub(ready);
    let used = kernel::used_by_itself();
    notify(control, Notice::Started { at: nanoseconds(ClockId::Monotonic), set_up, used });
    let failure = execute(&candidates, &argv, &env);
    let searched = path.as_str();
    let searched = (is_own_path && !argv.first().is_some_and(has_slash)).then_some(searched);
    let _ = frame::send(&commands, &unrunnable::explain(&candidates, searched, failure.errno));
    failure
}

/// From here on the runner looks at each call that takes a descriptor.
fn count_descriptors(commands: &UnixStream) -> io::Result<()> {
    let listener = Filter::of_descriptors().load_with_listener()?;
    frame::send_batch(commands, &[listener.as_fd()])
}

fn has_slash(command: &CString) -> bool {
    command.as_bytes().contains(&b'/')
}

/// Tries one path after the other; returns only when none could be executed.
fn execute(candidates: &[CString], argv: &[CString], env: &[CString]) -> Failure {
    let mut errno = libc::ENOENT;
    for candidate in candidates {
        let error = kernel::execve(candidate, argv, env);
        match error.raw_os_error().unwrap_or(libc::EINVAL) {
            libc::ENOENT | libc::ENOTDIR => {}
            // Not allowed here; another directory may have one that is (execvp(3)).
            libc::EACCES => errno = libc::EACCES,
            other => return Failure { step: Step::Exec, errno: other },
        }
    }
    Failure { step: Step::Exec, errno }
}

/// The paths to try, in order, as execvp(3) does; a command with a slash is a path already. What is relative, or empty, is so to
/// where the task starts.
fn candidates(command: &str, path: &str) -> Vec<CString> {
    if command.contains('/') {
        return strings([command.to_owned()]);
    }
    strings(path.split(':').map(|dir| format!("{}/{command}", if dir.is_empty() { "." } else { dir })))
}

/// NUL bytes were refused when the task was parsed; what holds one all the same is left out.
fn strings(strings: impl IntoIterator<Item = String>) -> Vec<CString> {
    strings.into_iter().filter_map(|string| CString::new(string).ok()).collect()
}

fn environment(env: BTreeMap<String, String>) -> Vec<CString> {
    strings(env.into_iter().map(|(name, value)| format!("{name}={value}")))
}

/// Takes stdin, stdout and stderr; all else is close-on-exec.
fn standard(descriptors: &[OwnedFd]) -> io::Result<()> {
    let [stdin, stdout, stderr] = descriptors else { return Err(io::ErrorKind::InvalidInput.into()) };
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    Ok(rustix::stdio::dup2_stderr(stderr)?)
}

/// What every task has alike, whatever started Faber: what a hard limit below it leaves (getrlimit(2)).
fn limit_what_never_changes() -> io::Result<()> {
    const ALIKE: [(Resource, Option<u64>); 13] = [
        // Not 0: that does not hold for a program that cores are piped to, while 1 does (core(5)). Who started Faber may
        // have 0 for good, as sudo gives it.
        (Resource::Core, Some(1)),
        // The group holds memory and processes; these would hold each process by itself.
        (Resource::As, None),
        (Resource::Data, None),
        (Resource::Rss, None),
        (Resource::Nproc, None),
        (Resource::Fsize, None),
        (Resource::Locks, None),
        (Resource::Rttime, None),
        (Resource::Memlock, Some(starter::MEMLOCK)),
        (Resource::Msgqueue, Some(starter::MSGQUEUE)),
        (Resource::Sigpending, Some(starter::SIGPENDING)),
        // No process gets ahead of others.
        (Resource::Nice, Some(0)),
        (Resource::Rtprio, Some(0)),
    ];
    ALIKE.iter().try_for_each(|&(resource, wanted)| {
        let limit = least(wanted, getrlimit(resource).maximum);
        enforce(resource, Rlimit { current: limit, maximum: limit })
    })
}

/// The lower of two limits; None is none.
fn least(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    [one, other].into_iter().flatten().min()
}

/// Puts what came with the command in the place of its standard descriptors; all others are close-on-exec.
fn replace(command: &Command, descriptors: &[OwnedFd]) -> io::Result<()> {
    for (descriptor, place) in descriptors.iter().zip(&command.replaced) {
        match place {
            0 => rustix::stdio::dup2_stdin(descriptor)?,
            1 => rustix::stdio::dup2_stdout(descriptor)?,
            _ => rustix::stdio::dup2_stderr(descriptor)?,
        }
    }
    if command.terminal {
        // It leads its session already (setsid(2)); ioctl_tty(2), TIOCSCTTY.
        rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
    }
    if command.merged {
        rustix::stdio::dup2_stderr(rustix::stdio::stdout())?;
    }
    Ok(())
}

/// So that programs see how many there are for them: sched_setaffinity(2).
fn run_on(processors: &[usize]) -> rustix::io::Result<()> {
    if processors.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    processors.iter().for_each(|processor| set.set(*processor));
    sched_setaffinity(None, &set)
}

/// Of this process, or of another one.
pub fn limit(of: Option<Pid>, limits: ProcessLimits) -> io::Result<()> {
    enforce_of(of, Resource::Nofile, both(limits.file_descriptors))?;
    limit_stack(of, limits.stack)?;
    if let Some(size) = limits.file_size {
        enforce_of(of, Resource::Fsize, both(size))?;
    }
    // SIGXCPU first, SIGKILL a second later (getrlimit(2)).
    let (soft, hard) = (Some(limits.cpu_seconds), Some(limits.cpu_seconds + 1));
    enforce_of(of, Resource::Cpu, Rlimit { current: soft, maximum: hard })
}

/// The same stack for every task, however Faber was started; a quarter of it is what execve(2) allows arguments.
fn limit_stack(of: Option<Pid>, bytes: u64) -> io::Result<()> {
    // No process has changed what it was started with.
    let stack = getrlimit(Resource::Stack);
    enforce_of(of, Resource::Stack, Rlimit { current: least(Some(bytes), stack.maximum), ..stack })
}

/// Behind the watch, which is to be first to see too much memory: its limit is on what is used, this on what is asked for.
fn limit_by_itself(OwnLimits { processes, memory }: OwnLimits) -> io::Result<()> {
    enforce(Resource::Nproc, both(processes))?;
    enforce(Resource::Data, both(memory * 2))
}

fn both(value: u64) -> Rlimit {
    Rlimit { current: Some(value), maximum: Some(value) }
}

fn enforce(resource: Resource, wanted: Rlimit) -> io::Result<()> {
    enforce_of(None, resource, wanted)
}

/// Sets a limit, and sees that the kernel has it. The largest number is the kernel's word for none (RLIM_INFINITY).
fn enforce_of(of: Option<Pid>, resource: Resource, Rlimit { current, maximum }: Rlimit) -> io::Result<()> {
    let finite = |limit: Option<u64>| limit.filter(|&limit| limit != libc::RLIM_INFINITY);
    let wanted = Rlimit { current: finite(current), maximum: finite(maximum) };
    let found = match of {
        None => {
            setrlimit(resource, wanted)?;
            getrlimit(resource)
        }
        Some(_) => {
            prlimit(of, resource, wanted)?;
            // What was in force before the second call is what the first one set.
            prlimit(of, resource, wanted)?
        }
    };
    if found == wanted { Ok(()) } else { Err(io::Error::from_raw_os_error(libc::EINVAL)) }
}

fn io_errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)
}

/// Empties the bounding set of what the init had, the capability to do so last.
fn drop_bounding_set() -> io::Result<()> {
    use CapabilitySet as Set;
    // The first two are an init's that prepares interpreters; for another's child it is nothing to drop them.
    let all = [Set::SYS_RESOURCE, Set::CHECKPOINT_RESTORE, Set::SETUID, Set::SETGID, Set::KILL, Set::SETPCAP];
    all.into_iter().try_for_each(|one| Ok(rustix::thread::remove_capability_from_bounding_set(one)?))
}

fn become_user(user: User) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    setgroups(&[])?;
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)
}
