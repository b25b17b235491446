//! One container from its making to its removal. The steps consume: what was run is never run again.

use std::fs::{self, File};
use std::io::{self, Write};
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
use rustix::time::ClockId;

use super::cgroup::{Cgroup, CgroupError, GroupLimits, Lack, Measured};
use super::init::wire::{Command, Files, Notice, OwnLimits, Source, Step, nanoseconds};
use super::init::{Init, Purpose};
use super::outcome::{self, Baseline, Io, outcome};
use super::slot::{Slot, SlotError};
use super::spec;
use super::streams::{self, Feed, Forward, Inlet, Links, Outlet, Whole};
use super::watch::{self, Ends, First, Kept, SET_UP, Stop, Watch};
use super::workspace::Workspace;
use crate::artifact::{Artifact, Slice, Spool};
use crate::frame;
use crate::image::{Image, WORKSPACE};
use crate::task::{
    Counters, Hits, ImageId, Limit, Limits, MergeOutput, Node, Outcome, Report, Taken, Task, Timings, WORKSPACE_BYTES,
};

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
    #[error("the spool has no room: outputs.spool is too small for what is on its way")]
    NoRoom(#[source] io::Error),
}

/// What a pipe takes at once (pipe(7)).
const PIPE_BYTES: usize = 64 << 10;

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
    state: PathBuf,
}

/// A task's end. Dropping `remains` removes the container; the caller may send the report first.
pub struct Ran {
    pub report: Report,
    pub taken: Taken<Artifact>,
    /// What kept the task from starting, for the operator.
    pub fault: Option<ContainerError>,
    pub remains: Remains,
}

/// A container whose task has ended. Dropping it removes it.
pub struct Remains(#[expect(dead_code, reason = "held for its Drop")] Running);

/// The init as the runner holds it: the handle that cannot come to mean another process, and the pid to look up in /proc.
struct InitProcess {
    pid: Pid,
    handle: OwnedFd,
    reaped: bool,
}

impl InitProcess {
    fn open(pid: Pid) -> io::Result<Self> {
        Ok(Self { pid, handle: pidfd_open(pid, PidfdFlags::empty())?, reaped: false })
    }

    fn mounts(&self) -> io::Result<OwnedFd> {
        Ok(File::open(format!("/proc/{}/ns/mnt", self.pid.as_raw_nonzero()))?.into())
    }

    /// Ends the init, and with it everything in its PID namespace, and reaps it.
    fn end(&mut self) {
        if !self.reaped {
            let _ = pidfd_send_signal(&self.handle, Signal::KILL);
            let _ = waitpid(Some(self.pid), WaitOptions::empty());
            self.reaped = true;
        }
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
        if let Some(limits) = &expected {
            started.limit(limits)?;
        }
        let before = started.baseline()?;
        Ok(Self { container: started, before, in_force: expected })
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

    /// Runs `task` to its end; `cancel` becoming readable ends it early. What keeps it from starting is in the report
    /// for the client, and in the fault for the operator. When it could start, `go` says whether it is to.
    pub fn run(
        mut self,
        task: Task<Artifact>,
        links: Links,
        cancel: BorrowedFd<'_>,
        go: &mut dyn FnMut() -> io::Result<bool>,
    ) -> Ran {
        let ordered = Instant::now();
        let ran = self.prepare(&task, links, cancel).and_then(|prepared| match prepared {
            Prepared::Refused(outcome) => Ok((Report { outcome, ..Report::not_executed("") }, Taken::default())),
            Prepared::Ready(ready) => match go().map_err(at("wait for the word to start"))? {
                true => self.container.run(task, ready, &self.before, cancel, ordered),
                false => Ok((Report { outcome: cancelled(), ..Report::not_executed("") }, Taken::default())),
            },
        });
        let ((report, taken), fault) = match ran {
            Ok(ended) => (ended, None),
            Err(error) => ((Report::fault(reason(&error)), Taken::default()), Some(error)),
        };
        Ran { report, taken, fault, remains: Remains(self.container) }
    }

    /// What is left to do before the clock runs: the task's limits in force, its files in the workspace, its standard
    /// descriptors made. The outcome says that it cannot run.
    fn prepare(&mut self, task: &Task<Artifact>, links: Links, cancel: BorrowedFd<'_>) -> Result<Prepared> {
        let limits = GroupLimits::from(&task.limits);
        if self.in_force.as_ref() != Some(&limits) {
            match self.container.group.apply(&limits) {
                Err(CgroupError::NoShares) => {
                    let reason = "cpus takes cgroup v2 with the cpu controller, which this server does not have".into();
                    return Ok(Prepared::Refused(Outcome::NotExecuted { reason }));
                }
                applied => applied.map_err(|error| ContainerError::NotInForce(io::Error::other(error)))?,
            }
        }
        let workspace = self.container.workspace(task)?;
        let ready = self.container.descriptors(task, links, workspace)?;
        if task.files.is_empty() {
            return Ok(Prepared::Ready(ready));
        }
        // What the init does not take shows in what it says or does not say next.
        let _ = self.container.hand_over_files(task);
        let refused = match self.container.next_notice(Some(cancel))? {
            First::Notice(Notice::Placed) => {
                self.before = self.container.baseline()?;
                return Ok(Prepared::Ready(ready));
            }
            First::Notice(Notice::Failed { step: Step::Files, errno }) => {
                Outcome::NotExecuted { reason: format!("files: {}", outcome::errno_text(errno)) }
            }
            First::Cancelled => cancelled(),
            // The files are the task's memory: so was the process that the kernel ended for it.
            First::Notice(Notice::Exited { .. }) | First::InitGone if self.container.group.oom_kills()? > 0 => {
                Outcome::Stopped(Limit::Memory, task.limits.memory)
            }
            First::InitGone => return Err(ContainerError::NoInit),
            First::Notice(notice) => return Err(set_up_failed(Some(notice))),
            First::Late => return Err(late()),
        };
        Ok(Prepared::Refused(refused))
    }
}

/// How far the preparation of a task came.
enum Prepared {
    Refused(Outcome),
    Ready(Ready),
}

/// What a task that can start starts with.
struct Ready {
    /// In place of standard descriptors of the container's: each with its number.
    replaced: Vec<(u8, OwnedFd)>,
    /// Those of them that lead to another task.
    links: Vec<OwnedFd>,
    feed: Option<Feed>,
    forwards: [Option<Forward>; 2],
    whole: [Option<Whole>; 2],
    /// When files are to be taken out of it.
    workspace: Option<Workspace>,
}

impl Running {
    fn create(slot: &Slot, name: &str, bundle: &Path, image: Rc<Image>, purpose: Purpose) -> Result<(Self, Container)> {
        let group = slot.tree.group(&slot.instance, name);
        spec::build(&purpose, slot.namespaces.paths())?.save(bundle.join("config.json"))?;
        let (control, init_control) = UnixStream::pair().map_err(at("make a socket pair"))?;
        let (commands, init_commands) = UnixStream::pair().map_err(at("make a socket pair"))?;
        let owner = slot.ids_of(image.user)?;
        let (stdout, init_stdout) = pipe(owner)?;
        let (stderr, init_stderr) = pipe(owner)?;
        let removed = RemoveOnFailure { group: Some(&*group) };
        group.make(slot.cpus)?;
        let entrances = group.entrances()?;
        let foreign = [&control, &commands].map(AsRawFd::as_raw_fd).into_iter().chain(slot.foreign.iter().copied());
        let init = Init {
            control: init_control.as_raw_fd(),
            commands: init_commands.as_raw_fd(),
            entrances: entrances.iter().map(AsRawFd::as_raw_fd).collect(),
            foreign: foreign.collect(),
            filter: slot.filter.clone(),
            purpose,
        };
        let container = ContainerBuilder::new(name.to_owned(), SyscallType::default())
            .with_root_path(slot.state_dir())
            .map_err(|source| ContainerError::Libcontainer { step: "set the state directory", source })?
            .with_executor(init)
            .with_stdin(File::open("/dev/null").map_err(at("open /dev/null"))?)
            .with_stdout(init_stdout)
            .with_stderr(init_stderr)
            .as_init(bundle)
            .with_systemd(false)
            .build()
            .map_err(|source| ContainerError::Libcontainer { step: "create the container", source })?;
        let pid = container.pid().and_then(|pid| Pid::from_raw(pid.as_raw())).ok_or(ContainerError::NoInit)?;
        let init = InitProcess::open(pid).map_err(at("open the init's pidfd"))?;
        group.adopt(pid.as_raw_nonzero().get());
        let mounts = init.mounts().map_err(at("open the container's mount namespace"))?;
        removed.not_needed();
        let state = slot.state_dir().join(name);
        let outputs = Some([stdout, stderr]);
        let spool = slot.spool.clone();
        let created =
            Self { image, init, control, commands, outputs, spool, owner, mounts: Some(mounts), group, state };
        Ok((created, container))
    }

    /// Starts the init, and waits for the task's process.
    fn start(&mut self, mut container: Container) -> Result<()> {
        // The task's processes are the first to go when memory runs out, not the init: it forks with this score.
        self.score(1000)?;
        container.start().map_err(|source| ContainerError::Libcontainer { step: "start the container", source })?;
        match self.next_notice(None)? {
            First::Notice(Notice::Ready) => self.score(0),
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
        Ok(Baseline { cpu: self.group.cpu_times()?, io: self.io().unwrap_or_default() })
    }

    /// The task's workspace, as large as it is to be, if anything is to be done with it.
    fn workspace(&self, task: &Task<Artifact>) -> Result<Option<Workspace>> {
        let is_usual = task.limits.workspace == WORKSPACE_BYTES;
        if is_usual && task.outputs.globs.is_empty() {
            return Ok(None);
        }
        let workspace = Workspace::of(self.init.pid.as_raw_nonzero().get()).map_err(at("open the workspace"))?;
        if !is_usual {
            workspace.resize(task.limits.workspace).map_err(ContainerError::NotInForce)?;
        }
        Ok(Some(workspace))
    }

    /// Makes what the task's standard descriptors are to be, where that is not the container's own.
    fn descriptors(&self, task: &Task<Artifact>, links: Links, workspace: Option<Workspace>) -> Result<Ready> {
        let (mut replaced, mut shared) = (Vec::new(), Vec::new());
        let mut feed = None;
        let mut share = |pipe: &OwnedFd| pipe.try_clone().map(|pipe| shared.push(pipe)).map_err(at("share a pipe"));
        match (links.stdin, &task.stdin) {
            (Some(Inlet::Pipe(pipe)), _) => {
                share(&pipe)?;
                replaced.push((0, pipe));
            }
            (Some(Inlet::Stream(stream)), _) => {
                let (reader, writer) = self.input_pipe()?;
                replaced.push((0, reader));
                feed = Some(Feed::new(stream, writer));
            }
            (None, Some(artifact)) => replaced.push((0, self.input(artifact)?)),
            (None, None) => {}
        }
        let mut forwards = [None, None];
        for (stream, outlet) in links.outputs.into_iter().enumerate() {
            match outlet {
                Some(Outlet { pipe, record: true }) => {
                    forwards[stream] = Some(Forward::new(pipe).map_err(at("make a pipe non-blocking"))?);
                }
                Some(Outlet { pipe, record: false }) => {
                    share(&pipe)?;
                    replaced.push((1 + stream as u8, pipe));
                }
                None => {}
            }
        }
        let most = task.outputs.bounds.total;
        let whole = |wanted: bool| wanted.then(|| Whole::new(&self.spool, most)).transpose();
        let [stdout, stderr] = task.output.handed_on;
        let whole = [whole(stdout).map_err(ContainerError::NoRoom)?, whole(stderr).map_err(ContainerError::NoRoom)?];
        Ok(Ready { replaced, links: shared, feed, forwards, whole, workspace })
    }

    /// A task's standard input with these bytes: a pipe if it takes them at once, else a file.
    fn input(&self, artifact: &Artifact) -> Result<OwnedFd> {
        if let Artifact::Bytes(bytes) = artifact {
            let (reader, mut writer) = self.input_pipe()?;
            // Where a user's pipes are cut to a page, the rest would not be written.
            if bytes.len() <= PIPE_BYTES && (bytes.is_empty() || writer.write(bytes).is_ok_and(|n| n == bytes.len())) {
                return Ok(reader);
            }
        }
        Ok(streams::input_file(artifact, &self.spool).map_err(ContainerError::NoRoom)?.into())
    }

    /// A pipe for standard input: the task's end, its own like those of its output, and ours, non-blocking.
    fn input_pipe(&self) -> Result<(OwnedFd, File)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(at("make a pipe"))?;
        own(&reader, self.owner)?;
        rustix::io::ioctl_fionbio(&writer, true).map_err(at("make a pipe non-blocking"))?;
        Ok((reader, writer.into()))
    }

    fn hand_over_files(&mut self, task: &Task<Artifact>) -> io::Result<()> {
        let (mut files, mut descriptors, mut follow) = (Files::new(), Vec::new(), Vec::new());
        for (path, node) in &task.files {
            let node = match node {
                Node::Directory => Node::Directory,
                Node::Symlink(target) => Node::Symlink(target.clone()),
                Node::File { content: Artifact::Bytes(bytes), mode } => {
                    follow.push(bytes);
                    Node::File { content: Source::Follows(bytes.len() as u64), mode: *mode }
                }
                Node::File { content: Artifact::File(Slice { file, offset, size }), mode } => {
                    descriptors.push(file.as_fd());
                    let index = descriptors.len() as u32 - 1;
                    Node::File { content: Source::File { index, offset: *offset, size: *size }, mode: *mode }
                }
            };
            files.push((path.clone(), node));
        }
        frame::send_with(&self.control, &files, &descriptors)?;
        follow.into_iter().try_for_each(|bytes| frame::send_all(&self.control, bytes))
    }

    /// Hands the command over and watches it to its end.
    fn run(
        &mut self,
        task: Task<Artifact>,
        ready: Ready,
        before: &Baseline,
        cancel: BorrowedFd<'_>,
        ordered: Instant,
    ) -> Result<(Report, Taken<Artifact>)> {
        let (limits, outputs) = (task.limits.clone(), task.outputs.clone());
        let pipes = self.outputs.take().ok_or(ContainerError::NoInit)?;
        let init = self.init.pid.as_raw_nonzero().get();
        let mut watch = Watch::new(&*self.group, (&limits, task.output), pipes, init, before.cpu.total);
        let Ready { replaced, links, feed, forwards, whole, workspace } = ready;
        for (stream, (forward, whole)) in forwards.into_iter().zip(whole).enumerate() {
            forward.into_iter().for_each(|forward| watch.forward(stream, forward));
            whole.into_iter().for_each(|whole| watch.keep_whole(stream, whole));
        }
        feed.into_iter().for_each(|feed| watch.feed(feed));
        watch.hold(links);
        self.hand_over(task, replaced);
        let ends = Ends { control: &self.control, init: self.init.handle.as_fd(), cancel };
        let ended = watch.until_end(&ends);
        let finished = Instant::now();
        let kept = watch.take_output();
        // Everything but the init is reaped, or the init is a zombie: its sums are complete, and still there to be read.
        let io = self.io().unwrap_or(before.io);
        let after = self.group.measure().unwrap_or(Measured { cpu: before.cpu, ..Measured::default() });
        let oom_kills = self.group.oom_kills().unwrap_or(0);
        if !ended.started && oom_kills == 0 {
            return match ended.stop {
                None => Err(set_up_failed(ended.notice)),
                Some(Stop::Cancelled) => {
                    Ok((Report { outcome: cancelled(), ..Report::not_executed("") }, Taken::default()))
                }
                Some(Stop::Limit(_) | Stop::NoRoom) => Err(late()),
            };
        }
        let usage = before.usage(&after, io, &ended, watch.file_descriptors());
        let Kept { streams: [stdout, stderr], merged, written, whole, exceeded } = kept;
        let hits = Hits {
            processes: after.forks_refused > 0,
            file_descriptors: watch.file_descriptors() >= limits.file_descriptors,
            output: exceeded,
        };
        let outcome = outcome(&ended, &limits, &usage, oom_kills > 0);
        let taken = match self.take(workspace, &outputs, whole) {
            Ok(taken) => taken,
            // The command has run, but nobody can have what it left.
            Err(error) => {
                let lost = Report::lost("Faber has no room for what the task left (outputs.spool)");
                return Ok((Report { usage, ..lost }, Err(error).or_else(no_room)?));
            }
        };
        let counters = Counters {
            oom_kills: self.group.enforces().then_some(oom_kills),
            forks_refused: self.group.enforces().then_some(after.forks_refused),
            minor_faults: ended.used.map(|used| used.minor_faults),
            major_faults: ended.used.map(|used| used.major_faults),
            voluntary_switches: ended.used.map(|used| used.voluntary_switches),
            involuntary_switches: ended.used.map(|used| used.involuntary_switches),
            throttled: after.throttled,
        };
        let timings = Timings {
            setup: nanos(ended.started_at.saturating_duration_since(ordered)),
            run: usage.wall_time,
            collect: nanos(finished.elapsed()),
        };
        let ended_at =
            nanoseconds(ClockId::Monotonic).saturating_sub(nanos((ended.started_at + ended.wall_time).elapsed()));
        let report = Report { outcome, stdout, stderr, merged, written, usage, hits, timings, counters, ended_at };
        Ok((report, taken))
    }

    /// Sends the command with its descriptors, which are then the task's alone.
    fn hand_over(&self, task: Task<Artifact>, replaced: Vec<(u8, OwnedFd)>) {
        let places = replaced.iter().map(|(place, _)| *place).collect();
        let command = command(task, &self.image, self.group.enforces(), places);
        let descriptors: Vec<BorrowedFd<'_>> = replaced.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
        // A process that cannot take it any more has come to an end, which the watch sees.
        let _ = frame::send_with(&self.commands, &command, &descriptors);
    }

    /// What the task left, once its last process is gone.
    fn take(
        &self,
        workspace: Option<Workspace>,
        outputs: &crate::task::Outputs,
        whole: [Option<Whole>; 2],
    ) -> io::Result<Taken<Artifact>> {
        let taken = match workspace.filter(|_| !outputs.globs.is_empty()) {
            Some(workspace) => workspace.take(outputs, &self.spool)?,
            None => Taken::default(),
        };
        let [stdout, stderr] = whole.map(|whole| whole.map(Whole::finish).transpose());
        Ok(Taken { streams: [stdout?, stderr?], ..taken })
    }

    /// proc_pid_oom_score_adj(5): raising is free, and so is going back to what it was.
    fn score(&self, score: u32) -> Result<()> {
        fs::write(format!("/proc/{}/oom_score_adj", self.init.pid.as_raw_nonzero()), score.to_string())
            .map_err(at("set the OOM score"))
    }

    fn io(&self) -> io::Result<Io> {
        let text = fs::read_to_string(format!("/proc/{}/io", self.init.pid.as_raw_nonzero()))?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        Ok(Io { read: field("rchar:").unwrap_or(0), write: field("wchar:").unwrap_or(0) })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.init.end();
        self.mounts = None;
        // What cannot be removed now, the next sweep finds by its name.
        let _ = self.group.remove();
        let _ = fs::remove_dir_all(&self.state);
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

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// `enforced`: whether the kernel holds the container as a whole to its limits. `replaced` are the standard descriptors that
/// others take the place of.
fn command(task: Task<Artifact>, image: &Image, enforced: bool, replaced: Vec<u8>) -> Command {
    let mut env = image.env.clone();
    env.entry("PATH".into()).or_insert_with(|| image.path.clone());
    env.entry("HOME".into()).or_insert_with(|| WORKSPACE.into());
    env.extend(task.env);
    Command {
        argv: [task.command].into_iter().chain(task.args).collect(),
        env,
        path: image.path.clone(),
        directory: image.workdir.clone().unwrap_or_else(|| WORKSPACE.into()),
        file_descriptors: task.limits.file_descriptors,
        of_its_own: (!enforced).then_some(OwnLimits { processes: task.limits.processes, memory: task.limits.memory }),
        // Far enough behind the watch's limit for the kernel's coarser clock never to be first.
        cpu_seconds: task.limits.cpu_time.div_ceil(1_000_000_000) * 3 / 2 + 5,
        stack: stack(&task.limits, enforced),
        file_size: task.limits.file_size,
        replaced,
        merged: task.output.merge == MergeOutput::Into,
    }
}

/// Without a group each thread's stack counts in what a process may ask for, so there it is the usual one.
fn stack(limits: &Limits, enforced: bool) -> u64 {
    const USUAL: u64 = 8 << 20;
    limits.stack.unwrap_or(if enforced { limits.memory } else { limits.memory.min(USUAL) })
}

fn no_room<T: Default>(error: io::Error) -> Result<T> {
    match error.kind() {
        io::ErrorKind::StorageFull => Ok(T::default()),
        _ => Err(at("take what the task left")(error)),
    }
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
        ContainerError::NoRoom(_) => "Faber has no room for what is handed on (outputs.spool)".into(),
        _ => "the container could not be started".into(),
    }
}
