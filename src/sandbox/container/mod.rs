//! One container from its making to its removal. The steps consume: what was run is never run again.

mod hand_over;
mod host;
mod prepared;
mod run;
mod session;

use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::error::LibcontainerError;
use libcontainer::oci_spec::OciSpecError;
use libcontainer::syscall::syscall::SyscallType;
use rustix::fs::{Gid, Uid};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};

use super::caller::Caller;
use super::cgroup::{Cgroup, CgroupError, GroupLimits, Lack, OutOfMemory};
use super::init::wire::{Notice, Rusage, Step};
use super::init::{Init, Purpose};
use super::outcome::{self, Baseline, Io};
use super::processors::Chosen;
use super::slot::{Slot, SlotError};
use super::spec;
use super::streams::Links;
use super::view::View;
use super::watch::{self, First, SET_UP};
use crate::artifact::{Artifact, Spool};
use crate::image::Image;
use crate::task::{ImageId, Limit, Outcome, Report, Taken, Task, Word};
use hand_over::Ready;
pub use host::Host;
use prepared::{Interpreter, Program};
pub use session::Session;

#[derive(Debug, thiserror::Error)]
pub enum ContainerError {
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error("build the OCI spec")]
    Spec(#[from] OciSpecError),
    #[error("libcontainer: {step}")]
    Libcontainer { step: &'static str, source: LibcontainerError },
    #[error("the container's process is gone")]
    NoInit,
    #[error("{step}")]
    Io { step: &'static str, source: io::Error },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("put the task's limits in force")]
    NotInForce(#[source] io::Error),
    #[error(
        "the machine, or the control group that Faber is in, has no memory left for tasks that are within their limits: \
         lower execution.memory_budget, or give it more"
    )]
    MachineOutOfMemory,
    #[error("read what the task used")]
    Figures(#[source] CgroupError),
    #[error("the spool has no room: outputs.spool is too small for what is on its way")]
    NoRoom(#[source] io::Error),
}

type Result<T> = std::result::Result<T, ContainerError>;

fn at<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> ContainerError {
    move |error| ContainerError::Io { step, source: error.into() }
}

/// A container whose task's process waits for its command. Dropping it removes it.
pub struct Created {
    container: Running,
    /// What the set-up has used.
    before: Baseline,
    /// The group's limits, put in force ahead of the task: most likely what it asks.
    in_force: Option<GroupLimits>,
    /// What waits in the place of the task's process, if anything.
    interpreter: Option<Interpreter>,
}

/// A started container: everything that has to be given back. Dropping it removes it.
struct Running {
    image: Rc<Image>,
    init: InitProcess,
    control: UnixStream,
    commands: UnixStream,
    /// stdout and stderr, until a task is watched.
    outputs: Option<[File; 2]>,
    spool: Rc<Spool>,
    /// Who the task is on the machine.
    owner: (u32, u32),
    /// The mount namespace, kept beyond the init's end: taking the mounts down is not what the answer waits for. None once
    /// it is given back.
    mounts: Option<OwnedFd>,
    group: Box<dyn Cgroup>,
    /// What it sees of its limits, and which processors it was given.
    view: Rc<RefCell<View>>,
    chosen: Chosen,
    /// libcontainer's, if it is one of its own and no cell.
    state: Option<PathBuf>,
    /// Its own name, that of its group.
    name: String,
    /// A session's: what it leaves behind stays.
    is_run: bool,
    /// Of a run: it was ended, and so is all that it has left.
    is_stopped: bool,
    /// Somebody else's process watches it.
    is_left: bool,
}

/// A task's end. Dropping `remains` removes the container; the caller may send the report first.
pub struct Ran {
    pub report: Report,
    pub taken: Taken<Artifact>,
    /// What kept the task from starting, or from being told of as it should be: for the operator.
    pub fault: Option<ContainerError>,
    pub remains: Remains,
}

/// What is told of a task.
struct Told {
    report: Report,
    taken: Taken<Artifact>,
    fault: Option<ContainerError>,
}

impl Told {
    /// Of a task that left nothing.
    fn only(report: Report) -> Self {
        Self { report, taken: Taken::default(), fault: None }
    }
}

/// A container whose task has ended. Dropping it removes it.
pub struct Remains(#[expect(dead_code, reason = "held for its Drop")] Running);

/// The init as the runner holds it: the handle that cannot come to mean another process, and the pid to look up in /proc.
struct InitProcess {
    pid: Pid,
    handle: OwnedFd,
    /// Whether it is for this process to reap; a cell's is its host's.
    is_child: bool,
    ended: bool,
}

impl InitProcess {
    fn open(pid: Pid) -> io::Result<Self> {
        Ok(Self { pid, handle: pidfd_open(pid, PidfdFlags::empty())?, is_child: true, ended: false })
    }

    fn mounts(&self) -> io::Result<OwnedFd> {
        Ok(File::open(format!("/proc/{}/ns/mnt", self.pid.as_raw_nonzero()))?.into())
    }

    /// Ends the init, and with it everything in its PID namespace, and waits for that.
    fn end(&mut self) {
        if self.ended {
            return;
        }
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
        if self.is_child {
            let _ = waitpid(Some(self.pid), WaitOptions::empty());
        } else {
            watch::wait_for_end(&self.handle);
        }
        self.ended = true;
    }
}

impl Created {
    /// Makes and starts a container of `image`, up to its task's process waiting for a command.
    pub(super) fn create(
        slot: &Slot,
        name: &str,
        bundle: &Path,
        image: Rc<Image>,
        purpose: Purpose,
        expected: Option<GroupLimits>,
    ) -> Result<Self> {
        let (mut started, container) = Running::create(slot, name, bundle, image, purpose)?;
        started.start(container)?;
        Self::waiting(started, expected)
    }

    /// One whose task's process is ready.
    fn waiting(started: Running, expected: Option<GroupLimits>) -> Result<Self> {
        started.score(0)?;
        if let Some(limits) = &expected {
            started.limit(limits)?;
        }
        let before = started.baseline()?;
        Ok(Self { container: started, before, in_force: expected, interpreter: None })
    }

    /// The image it is of.
    pub fn image(&self) -> ImageId {
        self.container.image.id()
    }

    /// What this kernel lacks for it.
    pub fn lacking(&self) -> Vec<Lack> {
        self.container.group.lacking()
    }

    /// Each of them is readable when the container has come to an end, which a waiting one never does by itself.
    pub fn ends(&self) -> [BorrowedFd<'_>; 2] {
        [self.container.init.handle.as_fd(), self.container.control.as_fd()]
    }

    /// Whether it has not come to an end.
    pub fn is_waiting(&self) -> bool {
        !self.ends().iter().any(|end| watch::readable_within(end, Duration::ZERO))
    }

    /// Runs `task` to its end, or until the caller cancels it. What keeps it from starting is in the report for the client, and
    /// in the fault for the operator.
    pub fn run(mut self, task: Task<Artifact>, links: Links, caller: &mut dyn Caller) -> Ran {
        let ordered = Instant::now();
        let ran = self.make_ready(&task, links, caller).and_then(|start| match start {
            Start::Refused(outcome) => Ok(Told::only(Report { outcome, ..Report::not_executed("") })),
            Start::Ready(ready, program) => match caller.may_start().map_err(at("wait for the word to start"))? {
                true => self.container.run(task, (*ready, program), &self.before, caller, ordered),
                false => Ok(Told::only(Report { outcome: cancelled(), ..Report::not_executed("") })),
            },
        });
        let Told { report, taken, fault } = ran.unwrap_or_else(|error| {
            let told = Told::only(Report::fault(reason(&error)));
            Told { fault: Some(error), ..told }
        });
        Ran { report, taken, fault, remains: Remains(self.container) }
    }

    /// What is left to do before the clock runs: the task's limits in force, its files in the workspace, its standard
    /// descriptors made. The outcome says that it cannot run.
    fn make_ready(&mut self, task: &Task<Artifact>, links: Links, caller: &mut dyn Caller) -> Result<Start> {
        let limits = GroupLimits::from(&task.limits);
        let held = self.interpreter.as_ref().map_or(0, Interpreter::held);
        if self.in_force.as_ref() != Some(&limits) || held > 0 {
            match self.container.group.apply(&limits.with_memory(limits.memory() + held)) {
                Err(CgroupError::NoShares) => {
                    let reason = "cpus takes cgroup v2 with the cpu controller, which this server does not have".into();
                    return Ok(Start::Refused(Outcome::NotExecuted { reason }));
                }
                applied => applied.map_err(|error| ContainerError::NotInForce(io::Error::other(error)))?,
            }
        }
        let chosen = self.container.view.borrow_mut().apply(&limits);
        self.container.chosen = chosen.map_err(at("tell the task its limits"))?;
        let workspace = self.container.workspace(task)?;
        let is_interpreted = self.interpreter.is_some();
        let ready = self.container.descriptors(task, links, workspace, is_interpreted)?;
        if task.files.is_empty() {
            return Ok(Start::Ready(ready.into(), self.program(task)?));
        }
        // What the init does not take shows in what it says or does not say next.
        let _ = self.container.hand_over_files(task);
        let first = loop {
            match self.container.next_notice(Some(caller.socket()))? {
                First::Cancelled => match caller.hear() {
                    Word::Cancel => break First::Cancelled,
                    Word::Resize(window) => ready.resize(window),
                    // There is nobody yet who could get it.
                    Word::Signal(_) => {}
                },
                first => break first,
            }
        };
        let refused = match first {
            First::Notice(Notice::Placed) => {
                self.before = self.container.baseline()?;
                return Ok(Start::Ready(ready.into(), self.program(task)?));
            }
            First::Notice(Notice::Failed { step: Step::Files, errno }) => {
                Outcome::NotExecuted { reason: format!("files: {}", outcome::errno_text(errno)) }
            }
            First::Cancelled => cancelled(),
            // The files are the task's memory: so was the process that the kernel ended for it.
            First::Notice(Notice::Exited { .. }) | First::InitGone => match self.container.group.out_of_memory()? {
                OutOfMemory { kills: 0, .. } => return Err(ContainerError::NoInit),
                OutOfMemory { is_own: true, .. } => Outcome::Stopped(Limit::Memory, task.limits.memory),
                OutOfMemory { is_own: false, .. } => return Err(ContainerError::MachineOutOfMemory),
            },
            First::Notice(notice) => return Err(set_up_failed(Some(notice))),
            First::Late => return Err(late()),
        };
        Ok(Start::Refused(refused))
    }
}

/// How far a task came on its way to be started.
enum Start {
    Refused(Outcome),
    /// With the program of an interpreter that waits.
    Ready(Box<Ready>, Option<Program>),
}

/// What a container or cell is made with: its group, and our ends of what leads into it.
struct Outside<'a> {
    group: Box<dyn Cgroup>,
    control: UnixStream,
    commands: UnixStream,
    outputs: [File; 2],
    owner: (u32, u32),
    slot: &'a Slot,
    name: String,
}

/// The init's ends, and by what it enters its group.
struct Inside {
    control: UnixStream,
    commands: UnixStream,
    outputs: [OwnedFd; 2],
    entrances: Vec<File>,
}

impl<'a> Outside<'a> {
    fn make(slot: &'a Slot, name: &str, image: &Image) -> Result<(Self, Inside)> {
        let group = slot.tree.group(&slot.instance, name);
        let (control, init_control) = UnixStream::pair().map_err(at("make a socket pair"))?;
        let (commands, init_commands) = UnixStream::pair().map_err(at("make a socket pair"))?;
        let owner = slot.ids_of(image.user)?;
        let (stdout, init_stdout) = pipe(owner)?;
        let (stderr, init_stderr) = pipe(owner)?;
        let removed = RemoveOnFailure { group: Some(&*group) };
        group.make(slot.cpus)?;
        let entrances = group.entrances()?;
        removed.not_needed();
        let inside =
            Inside { control: init_control, commands: init_commands, outputs: [init_stdout, init_stderr], entrances };
        Ok((Self { group, control, commands, outputs: [stdout, stderr], owner, slot, name: name.to_owned() }, inside))
    }

    /// With the init that is inside now.
    fn running(self, image: Rc<Image>, init: InitProcess, state: Option<PathBuf>) -> Result<Running> {
        let Self { group, control, commands, outputs, owner, slot, name } = self;
        let removed = RemoveOnFailure { group: Some(&*group) };
        group.adopt(init.pid.as_raw_nonzero().get());
        let mounts = init.mounts().map_err(at("open the container's mount namespace"))?;
        removed.not_needed();
        let (spool, view) = (slot.spool.clone(), slot.view.clone());
        let (outputs, mounts, chosen) = (Some(outputs), Some(mounts), Chosen::all());
        let (is_run, is_stopped, is_left) = (false, false, false);
        Ok(Running {
            image,
            init,
            control,
            commands,
            outputs,
            spool,
            owner,
            mounts,
            group,
            view,
            chosen,
            state,
            name,
            is_run,
            is_stopped,
            is_left,
        })
    }
}

impl Running {
    fn create(slot: &Slot, name: &str, bundle: &Path, image: Rc<Image>, purpose: Purpose) -> Result<(Self, Container)> {
        let prepares = matches!(purpose, Purpose::Task(_)) && image.prepare.is_some();
        spec::build(&purpose, prepares, slot.namespaces.paths())?.save(bundle.join("config.json"))?;
        let (outside, Inside { control, commands, outputs: [stdout, stderr], entrances }) =
            Outside::make(slot, name, &image)?;
        let removed = RemoveOnFailure { group: Some(&*outside.group) };
        let own = [&outside.control, &outside.commands].map(AsRawFd::as_raw_fd);
        let init = Init {
            control: control.as_raw_fd(),
            commands: commands.as_raw_fd(),
            entrances: entrances.iter().map(AsRawFd::as_raw_fd).collect(),
            foreign: own.into_iter().chain(slot.foreign.iter().copied()).collect(),
            filter: if matches!(purpose, Purpose::Cells(_)) { &slot.filters.0 } else { &slot.filter }.clone(),
            inner: slot.filters.1.clone(),
            masks: slot.masks.clone(),
            sights: slot.tree.sights(),
            purpose,
        };
        let container = ContainerBuilder::new(name.to_owned(), SyscallType::default())
            .with_root_path(slot.state_dir())
            .map_err(|source| ContainerError::Libcontainer { step: "set the state directory", source })?
            .with_executor(init)
            .with_stdin(File::open("/dev/null").map_err(at("open /dev/null"))?)
            .with_stdout(stdout)
            .with_stderr(stderr)
            .as_init(bundle)
            .with_systemd(false)
            .build()
            .map_err(|source| ContainerError::Libcontainer { step: "create the container", source })?;
        let pid = container.pid().and_then(|pid| Pid::from_raw(pid.as_raw())).ok_or(ContainerError::NoInit)?;
        let init = InitProcess::open(pid).map_err(at("open the init's pidfd"))?;
        removed.not_needed();
        let state = slot.state_dir().join(name);
        Ok((outside.running(image, init, Some(state))?, container))
    }

    /// Starts the init, and waits until it is ready: for the task's process, if there is to be one.
    fn start(&mut self, mut container: Container) -> Result<()> {
        // The task's processes are the first to go when memory runs out, not the init: it forks with this score.
        self.score(1000)?;
        container.start().map_err(|source| ContainerError::Libcontainer { step: "start the container", source })?;
        self.wait_until_ready()
    }

    fn wait_until_ready(&self) -> Result<()> {
        match self.next_notice(None)? {
            First::Notice(Notice::Ready) => Ok(()),
            First::Notice(notice) => Err(set_up_failed(Some(notice))),
            First::InitGone | First::Cancelled => Err(ContainerError::NoInit),
            First::Late => Err(late()),
        }
    }

    fn next_notice(&self, cancel: Option<BorrowedFd<'_>>) -> Result<First> {
        watch::next_notice(&self.control, self.init.handle.as_fd(), cancel, SET_UP).map_err(at("wait for the init"))
    }

    fn limit(&self, limits: &GroupLimits) -> Result<()> {
        self.group.apply(limits).map_err(|error| ContainerError::NotInForce(io::Error::other(error)))
    }

    /// What has been used up to now; peaks begin anew.
    fn baseline(&self) -> Result<Baseline> {
        self.group.reset_peaks();
        let io = self.io().unwrap_or_default();
        Ok(Baseline { cpu: self.group.cpu_times()?, io, used: Rusage::default() })
    }

    /// proc_pid_oom_score_adj(5): raising is free, and so is going back to what it was.
    fn score(&self, score: u32) -> Result<()> {
        fs::write(format!("/proc/{}/oom_score_adj", self.init.pid.as_raw_nonzero()), score.to_string())
            .map_err(at("set the OOM score"))
    }

    /// The same of all but the init that are in the group.
    fn score_others(&self, score: u32) -> Result<()> {
        let init = self.init.pid.as_raw_nonzero().get();
        for pid in self.group.processes()?.into_iter().filter(|pid| *pid != init) {
            fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()).map_err(at("set the OOM score"))?;
        }
        Ok(())
    }

    fn io(&self) -> io::Result<Io> {
        io_of(self.init.pid)
    }
}

/// What a process has read and written, with those that it has reaped (proc_pid_io(5)).
fn io_of(process: Pid) -> io::Result<Io> {
    let text = fs::read_to_string(format!("/proc/{}/io", process.as_raw_nonzero()))?;
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    Ok(Io { read: field("rchar:").unwrap_or(0), write: field("wchar:").unwrap_or(0) })
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        if self.is_stopped {
            self.group.end();
        }
        self.init.end();
        self.mounts = None;
        // What a run has left is the session's, and its group with it.
        if self.is_run && !self.is_stopped && self.group.processes().is_ok_and(|left| !left.is_empty()) {
            return;
        }
        // What cannot be removed now, the next sweep finds by its name.
        let _ = self.group.remove();
        if let Some(state) = &self.state {
            let _ = fs::remove_dir_all(state);
        }
    }
}

/// The group is made before anything else may fail.
struct RemoveOnFailure<'a> {
    group: Option<&'a dyn Cgroup>,
}

impl RemoveOnFailure<'_> {
    fn not_needed(mut self) {
        self.group = None;
    }
}

impl Drop for RemoveOnFailure<'_> {
    fn drop(&mut self) {
        if let Some(group) = self.group {
            let _ = group.remove();
        }
    }
}

/// A pipe for output. It is the task's own, so that /dev/stdout and /dev/stderr can be opened.
fn pipe(owner: (u32, u32)) -> Result<(File, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(at("make a pipe"))?;
    own(&writer, owner)?;
    rustix::io::ioctl_fionbio(&reader, true).map_err(at("make a pipe non-blocking"))?;
    Ok((reader.into(), writer))
}

/// Gives the task a pipe.
fn own(pipe: &OwnedFd, (uid, gid): (u32, u32)) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::fs::fchown(pipe, Some(uid), Some(gid)).map_err(at("give the task a pipe"))
}

fn cancelled() -> Outcome {
    Outcome::NotExecuted { reason: "cancelled before it started".into() }
}

fn late() -> ContainerError {
    at("wait for the container to be set up")(io::Error::from(io::ErrorKind::TimedOut))
}

fn set_up_failed(notice: Option<Notice>) -> ContainerError {
    match notice {
        Some(Notice::Failed { step: Step::Limits, errno }) => {
            ContainerError::NotInForce(io::Error::from_raw_os_error(errno))
        }
        Some(Notice::Failed { step, errno }) => at(step.words())(io::Error::from_raw_os_error(errno)),
        _ => ContainerError::NoInit,
    }
}

/// What the client is told; the operator gets the whole chain.
fn reason(error: &ContainerError) -> String {
    match error {
        ContainerError::NotInForce(_) => "a resource limit could not be put in force".into(),
        ContainerError::MachineOutOfMemory => "the server's machine has run out of memory".into(),
        ContainerError::NoRoom(_) => "Faber has no room for what is handed on (outputs.spool)".into(),
        _ => "the container could not be started".into(),
    }
}
