//! The one loop: output, limits, the client's going away, and the end, all in one poll(2).

use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};
use rustix::time::ClockId;

use super::caller::Caller;
use super::cgroup::{Cgroup, OutOfMemory};
use super::descriptors::Counter;
use super::init::wire::{Notice, Request, Rusage, nanoseconds};
use super::memory::{MemoryWatch, Seen};
use super::pace::{Pace, SAMPLE};
use super::streams::{Feed, Forward, Whole};
use super::terminal::Terminal;
use crate::frame;
use crate::task::{Figures, Limit, Limits, MergeOutput, OnOutputLimit, Output, Word, Written};

/// How long each step of the set-up may take.
pub const SET_UP: Duration = Duration::from_secs(10);
/// How long the init has to end and reap everything before the kernel does it for it.
const GRACE: Duration = Duration::from_secs(1);
/// How long a sample may look at descriptors, which took a step for each of them before Linux 6.2.
const LOOK: Duration = Duration::from_millis(2);
const CHUNK: usize = 64 << 10;
/// How often a caller who wants them is told figures.
const FIGURES: Duration = Duration::from_millis(500);
/// Of the two streams; the first is stdout.
const STDERR: usize = 1;

/// Why Faber ended a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Limit(Limit),
    Cancelled,
    /// There is no room for what another step is to take.
    NoRoom,
    /// The machine, or what Faber may use of it, has no memory left, and the task was within its own limit.
    MachineOutOfMemory,
}

/// How it ended: Faber's own reason first, and what the init said.
#[derive(Debug)]
pub struct Ended {
    pub stop: Option<Stop>,
    pub notice: Option<Notice>,
    /// Whether the command was executed, or tried to be.
    pub started: bool,
    /// CPU time that the set-up took after the baseline, in nanoseconds.
    pub set_up: u64,
    pub wall_time: Duration,
    /// When it was started.
    pub started_at: Instant,
    /// When it ended, or was told to.
    pub ended_at: Instant,
    /// What all of its processes used; None when that is not known.
    pub used: Option<Rusage>,
    /// What samples saw of its memory.
    pub memory: Seen,
}

/// What comes first in the set-up.
pub enum First {
    Notice(Notice),
    InitGone,
    Cancelled,
    Late,
}

/// Waits for the next notice.
pub fn next_notice(
    control: &UnixStream,
    init: BorrowedFd<'_>,
    cancel: Option<BorrowedFd<'_>>,
    patience: Duration,
) -> io::Result<First> {
    let never = PollFd::from_borrowed_fd(init, PollFlags::empty());
    let mut fds = [input(&control), input(&init), cancel.as_ref().map_or(never, input)];
    wait(&mut fds, Some(patience))?;
    Ok(match fds.map(|fd| !fd.revents().is_empty()) {
        [true, ..] => receive(control)?.map_or(First::InitGone, First::Notice),
        [_, true, _] => First::InitGone,
        [.., true] => First::Cancelled,
        _ => First::Late,
    })
}

/// One of the task's streams.
#[derive(Default)]
struct Captured {
    kept: Vec<u8>,
    /// Bytes in all.
    written: u64,
    whole: Option<Whole>,
    forward: Option<Forward>,
    /// None at its end; or when it is not read any more, of which the task then learns as of any pipe.
    pipe: Option<File>,
}

impl Captured {
    /// The end of a stream is end of file for who reads it, whether the task has ended or not.
    fn end_forward(&mut self) {
        if self.pipe.is_none() {
            self.forward.take_if(|forward| forward.is_free());
        }
    }
}

/// What was written, as far as it was kept.
#[derive(Default)]
pub struct Kept {
    pub streams: [Vec<u8>; 2],
    pub merged: Vec<u8>,
    pub written: Written,
    pub whole: [Option<Whole>; 2],
    /// More was written than was to be kept.
    pub exceeded: bool,
}

/// What a watch looks at of the init.
pub struct Ends<'a> {
    pub control: &'a UnixStream,
    pub init: BorrowedFd<'a>,
}

/// What a poll was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Output(usize),
    Control,
    Init,
    Caller,
    Feed,
    Forward(usize),
    Counter,
}

pub struct Watch<'a> {
    group: &'a dyn Cgroup,
    limits: &'a Limits,
    output: Output,
    init: i32,
    cpu_before: u64,
    /// When the command was handed over; as soon as it is known, when it was executed.
    started: Instant,
    executed: bool,
    set_up: u64,
    /// What the task's process had used when it was executed, and all of it at the end.
    used: (Rusage, Option<Rusage>),
    captured: [Captured; 2],
    merged: Vec<u8>,
    exceeded: bool,
    feed: Option<Feed>,
    terminal: Option<Terminal>,
    /// Others' memory counts towards a limit of all of them, too.
    is_run: bool,
    links: Vec<Link>,
    stop: Option<(Stop, Instant)>,
    ended: Option<(Notice, Instant)>,
    /// Nothing is left but the init.
    alone: bool,
    said_all: bool,
    pace: Pace,
    memory: MemoryWatch,
    file_descriptors: u64,
    counter: Option<Counter>,
    /// Whose descriptors are counted next.
    turn: Turn,
}

impl<'a> Watch<'a> {
    /// `pipes` are stdout and stderr, `init` the pid that is not the task's; `held` bytes were in the group before it.
    pub fn new(
        group: &'a dyn Cgroup,
        (limits, output): (&'a Limits, Output),
        pipes: [File; 2],
        init: i32,
        (cpu_before, held): (u64, u64),
    ) -> Self {
        Self {
            group,
            limits,
            output,
            init,
            cpu_before,
            started: Instant::now(),
            executed: false,
            set_up: 0,
            used: Default::default(),
            captured: pipes.map(|pipe| Captured { pipe: Some(pipe), ..Captured::default() }),
            merged: Vec::new(),
            exceeded: false,
            feed: None,
            terminal: None,
            is_run: false,
            links: Vec::new(),
            stop: None,
            ended: None,
            alone: false,
            said_all: false,
            pace: Pace::new(),
            memory: MemoryWatch::new(limits.memory, held),
            // Every task starts with three descriptors.
            file_descriptors: 3,
            counter: None,
            turn: Turn::default(),
        }
    }

    /// Fills the task's standard input while it runs.
    pub fn feed(&mut self, feed: Feed) {
        self.feed = Some(feed);
    }

    /// Reads what the task shows on a terminal in the place of its standard output.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn show(&mut self, terminal: Terminal) -> io::Result<()> {
        self.captured[0].pipe = Some(terminal.master()?);
        self.terminal = Some(terminal);
        Ok(())
    }

    /// The task is one of a session's: what it met may be the limit of all that runs there.
    pub fn within_session(&mut self) {
        self.is_run = true;
    }

    /// The task has begun at this time, as a process that had used so much.
    pub fn has_begun(&mut self, at: Instant, used: Rusage) {
        (self.started, self.executed, self.used.0) = (at, true, used);
    }

    /// Counts the task's descriptors exactly.
    pub fn count(&mut self, counter: Counter) {
        self.counter = Some(counter);
    }

    /// Holds the task's ends of pipes to other tasks until it has ended or closed them: so nobody learns of its end, and ends
    /// because of that, before the time of it is known. Which of two was first is not for the kernel's scheduler to say.
    pub fn hold(&mut self, links: Vec<OwnedFd>) {
        self.links = links.into_iter().map(|pipe| Link { pipe, without: Vec::new() }).collect();
    }

    /// Keeps all of a stream, beyond the output limit too.
    pub fn keep_whole(&mut self, stream: usize, whole: Whole) {
        self.captured[stream].whole = Some(whole);
    }

    /// Passes a stream on to another task.
    pub fn forward(&mut self, stream: usize, forward: Forward) {
        self.captured[stream].forward = Some(forward);
    }

    /// Returns when nothing is left in the container but the init, or not even that.
    pub fn until_end(&mut self, ends: &Ends<'_>, caller: &mut dyn Caller) -> Ended {
        let mut last_look = self.started;
        let mut next_figures = caller.wants_figures().then(|| Instant::now() + FIGURES);
        loop {
            let next = last_look + self.pace.wait();
            let ready = self.poll(ends, caller, next_figures.map_or(next, |figures| figures.min(next)));
            let has = |source| ready.contains(&source);
            for stream in [0, 1] {
                if has(Source::Forward(stream)) {
                    self.pass_on(stream);
                }
                if has(Source::Output(stream)) {
                    self.read(ends, stream);
                }
            }
            if has(Source::Control) {
                self.receive(ends.control);
            }
            if let (true, Some(counter)) = (has(Source::Counter), &mut self.counter) {
                counter.go_on();
            }
            if let (true, Some(feed)) = (has(Source::Feed), &mut self.feed) {
                feed.go_on();
            }
            if has(Source::Init) || self.alone {
                break;
            }
            if self.stop.is_none() && has(Source::Caller) {
                self.hear(ends, caller);
            }
            self.check_clock(ends.control, ends.init);
            if Instant::now() >= last_look + self.pace.wait() {
                self.sample(ends.control);
                last_look = Instant::now();
            }
            if next_figures.is_some_and(|due| Instant::now() >= due) {
                next_figures = Some(Instant::now() + FIGURES);
                self.tell_figures(caller);
            }
        }
        // What was written before the end and not read yet is in the pipes.
        while !self.said_all && self.receive(ends.control) {}
        self.feed = None;
        self.links.clear();
        self.read_rest(ends, caller);
        let end = self.ended.map_or_else(Instant::now, |(_, at)| at);
        Ended {
            stop: self.stop.map(|(stop, _)| stop),
            notice: self.ended.map(|(notice, _)| notice),
            started: self.executed,
            set_up: self.set_up,
            wall_time: end.saturating_duration_since(self.started),
            // What ends because of a task that was stopped may be ahead of that one's last process.
            ended_at: self.stop.map_or(end, |(_, at)| at.min(end)),
            started_at: self.started,
            used: self.used.1.map(|used| used.since(self.used.0)),
            memory: self.memory.seen(),
        }
    }

    /// What of all that is waited for came.
    fn poll(&self, ends: &Ends<'_>, caller: &dyn Caller, next_sample: Instant) -> Vec<Source> {
        let said = caller.socket();
        let mut sources = Vec::with_capacity(8);
        let mut fds = Vec::with_capacity(8);
        let mut add = |source, fd| {
            sources.push(source);
            fds.push(fd);
        };
        for (stream, captured) in self.captured.iter().enumerate() {
            // An end of file is always readable, so what has ended is no longer asked.
            if let (Some(pipe), true) = (&captured.pipe, captured.forward.as_ref().is_none_or(Forward::is_free)) {
                add(Source::Output(stream), input(pipe));
            }
            if let Some(wanted) = captured.forward.as_ref().and_then(Forward::wants) {
                add(Source::Forward(stream), wanted);
            }
        }
        if !self.said_all {
            add(Source::Control, input(&ends.control));
        }
        add(Source::Init, input(&ends.init));
        if self.stop.is_none() {
            add(Source::Caller, input(&said));
        }
        let listener = self.counter.as_ref().and_then(Counter::listener);
        if let Some(listener) = &listener {
            add(Source::Counter, input(listener));
        }
        if let Some(wanted) = self.feed.as_ref().and_then(Feed::wants) {
            add(Source::Feed, wanted);
        }
        let _ = wait(&mut fds, Some(self.patience(next_sample)));
        fds.iter().zip(sources).filter(|(fd, _)| !fd.revents().is_empty()).map(|(_, source)| source).collect()
    }

    /// Takes what is in the pipes of a task that has ended, and waits for who is to read it.
    fn read_rest(&mut self, ends: &Ends<'_>, caller: &mut dyn Caller) {
        for stream in [0, 1] {
            while self.captured[stream].pipe.as_ref().is_some_and(readable) {
                match self.captured[stream].forward.as_ref().is_none_or(Forward::is_free) {
                    true => self.read(ends, stream),
                    false if self.stop.is_some() || Instant::now() >= self.deadline() => break,
                    false => self.wait_to_pass_on(caller, stream),
                }
            }
            while self.captured[stream].forward.as_ref().is_some_and(|forward| !forward.is_free())
                && self.stop.is_none()
                && Instant::now() < self.deadline()
            {
                self.wait_to_pass_on(caller, stream);
            }
        }
    }

    fn wait_to_pass_on(&mut self, caller: &mut dyn Caller, stream: usize) {
        if let Some(wanted) = self.captured[stream].forward.as_ref().and_then(Forward::wants) {
            let _ = wait(&mut [wanted, input(&caller.socket())], Some(SAMPLE));
        }
        if readable(&caller.socket()) && caller.hear() == Word::Cancel {
            self.stop.get_or_insert((Stop::Cancelled, Instant::now()));
        }
        self.pass_on(stream);
    }

    fn pass_on(&mut self, stream: usize) {
        let captured = &mut self.captured[stream];
        if let Some(forward) = &mut captured.forward {
            forward.go_on();
            captured.pipe.take_if(|_| !forward.is_open());
        }
        captured.end_forward();
    }

    pub fn take_output(&mut self) -> Kept {
        let [stdout, stderr] = std::mem::take(&mut self.captured);
        Kept {
            written: Written { stdout: stdout.written, stderr: stderr.written },
            streams: [stdout.kept, stderr.kept],
            merged: std::mem::take(&mut self.merged),
            whole: [stdout.whole, stderr.whole],
            exceeded: self.exceeded,
        }
    }

    /// The most descriptors that were seen in one process, and whether it wanted more: as counted, or else whether a sample saw it
    /// have all it may have.
    pub fn file_descriptors(&self) -> (u64, bool) {
        match self.counter.as_ref().map(Counter::counted) {
            Some((most, refused)) => (self.file_descriptors.max(most), refused),
            None => (self.file_descriptors, self.file_descriptors >= self.limits.file_descriptors),
        }
    }

    /// What the caller says of a task that runs.
    fn hear(&mut self, ends: &Ends<'_>, caller: &mut dyn Caller) {
        match caller.hear() {
            Word::Cancel => self.stop(Stop::Cancelled, ends.control),
            Word::Resize(window) => _ = self.terminal.as_ref().map(|terminal| terminal.resize(window)),
            // Before, it would end what sets the task up.
            Word::Signal(signal) if self.executed && self.ended.is_none() => {
                let _ = frame::send(ends.control, &Request::Signal(signal));
            }
            Word::Signal(_) => {}
        }
    }

    /// Errors mean that the end is near.
    fn tell_figures(&self, caller: &mut dyn Caller) {
        if !self.executed || self.ended.is_some() {
            return;
        }
        let (Ok(cpu_time), Ok(memory)) = (self.group.cpu_time(), self.group.memory_charged()) else { return };
        let cpu_time = cpu_time.saturating_sub(self.cpu_before);
        let wall_time = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        caller.tell(Figures { cpu_time, memory, wall_time });
    }

    /// The first reason counts; once the command has ended by itself only its output can still be too much.
    fn stop(&mut self, reason: Stop, control: &UnixStream) {
        if self.stop.is_some() || (self.ended.is_some() && !matches!(reason, Stop::Limit(Limit::Output) | Stop::NoRoom))
        {
            return;
        }
        self.stop = Some((reason, Instant::now()));
        self.pace.hurry();
        let _ = control.shutdown(Shutdown::Write);
    }

    /// Takes what is there; what is kept of it is up to the limit.
    fn read(&mut self, ends: &Ends<'_>, stream: usize) {
        let mut chunk = [0; CHUNK];
        let Some(pipe) = &mut self.captured[stream].pipe else { return };
        let length = match pipe.read(&mut chunk) {
            Ok(length @ 1..) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => return,
            Ok(_) | Err(_) => {
                self.captured[stream].pipe = None;
                return self.captured[stream].end_forward();
            }
        };
        let chunk = &chunk[..length];
        let kept = &chunk[..length.min(self.room(stream))];
        if self.output.merge == MergeOutput::Beside {
            let most = self.most();
            self.merged.extend_from_slice(&kept[..kept.len().min(most.saturating_sub(self.merged.len()))]);
        }
        let captured = &mut self.captured[stream];
        captured.written += length as u64;
        captured.kept.extend_from_slice(kept);
        if let Some(forward) = &mut captured.forward {
            forward.pass(chunk);
            // Then the task is to learn that nobody reads: by a signal at its next write.
            captured.pipe.take_if(|_| !forward.is_open());
        }
        match captured.whole.as_mut().map(|whole| whole.write(chunk)) {
            Some(Ok(())) => {}
            Some(Err(error)) if error.kind() == io::ErrorKind::FileTooLarge => {
                self.stop(Stop::Limit(Limit::Output), ends.control);
            }
            Some(Err(_)) => self.stop(Stop::NoRoom, ends.control),
            None if self.counted() <= self.limits.output => {}
            None => {
                self.exceeded = true;
                if self.output.on_limit == OnOutputLimit::Kill {
                    self.stop(Stop::Limit(Limit::Output), ends.control);
                }
            }
        }
        self.make_room(1 - stream);
    }

    /// Bytes that were written of what is held to the output limit.
    fn counted(&self) -> u64 {
        self.captured.iter().filter(|captured| captured.whole.is_none()).map(|captured| captured.written).sum()
    }

    /// Bytes of both streams that are kept at most.
    fn most(&self) -> usize {
        usize::try_from(self.limits.output).unwrap_or(usize::MAX)
    }

    /// What of the limit is a stream's own, however much the other has written: half. Where that is less than a KiB stdout goes first.
    fn share(&self, stream: usize) -> usize {
        match (stream, self.most() / 2) {
            (STDERR, half) => half & !1023,
            (_, half) => half,
        }
    }

    /// How many bytes more of a stream may be kept: what the other leaves, or else up to its share. One that is handed on is not held to the limit, so that it takes only what the other leaves.
    fn room(&self, stream: usize) -> usize {
        let [own, other] = [&self.captured[stream], &self.captured[1 - stream]];
        let (others, share) = match (&own.whole, &other.whole) {
            (Some(_), _) => (other.kept.len(), 0),
            (None, Some(_)) => (0, 0),
            (None, None) => (other.kept.len(), self.share(stream)),
        };
        self.most().saturating_sub(others).max(share).saturating_sub(own.kept.len())
    }

    /// Forgets so much of a stream as the other one's bytes need: they are within that one's share.
    fn make_room(&mut self, stream: usize) {
        let left = self.most().saturating_sub(self.captured[1 - stream].kept.len());
        self.captured[stream].kept.truncate(left);
    }

    /// One notice; false when there will be no more.
    fn receive(&mut self, control: &UnixStream) -> bool {
        let Ok(Some(notice)) = receive(control) else {
            self.said_all = true;
            return false;
        };
        match notice {
            Notice::Started { at, set_up, used } => {
                self.started = instant(at);
                self.executed = true;
                self.set_up = set_up;
                self.cpu_before += set_up;
                self.used.0 = used;
            }
            Notice::Alone { used } => {
                self.alone = true;
                self.used.1 = Some(used);
            }
            Notice::Exited { at, alone, used, .. } => {
                self.alone = alone;
                self.pace.hurry();
                self.used.1 = Some(used);
                self.ended.get_or_insert((notice, instant(at)));
                self.links.clear();
            }
            _ => {
                self.ended.get_or_insert((notice, Instant::now()));
            }
        }
        true
    }

    fn check_clock(&mut self, control: &UnixStream, init: BorrowedFd<'_>) {
        if Instant::now() >= self.deadline() {
            self.stop(Stop::Limit(Limit::WallTime), control);
        }
        let told = self.stop.map(|(_, at)| at).or(self.ended.map(|(_, at)| at));
        if told.is_some_and(|at| at.elapsed() >= GRACE) {
            let _ = pidfd_send_signal(init, Signal::KILL);
        }
    }

    /// Errors here mean that the group is going away, which the init's end tells better.
    fn sample(&mut self, control: &UnixStream) {
        let Ok(used) = self.group.cpu_time() else { return };
        // Until the command is executed, what is used is the set-up's.
        let own = if self.executed { used.saturating_sub(self.cpu_before) } else { 0 };
        let left = self.limits.cpu_time.saturating_sub(own);
        // Without groups looks are what holds it to its limits, and CPU time is told too coarsely to go by.
        let is_urgent = self.stop.is_some() || self.ended.is_some() || !self.group.enforces();
        if is_urgent {
            self.pace.hurry();
        } else if !self.pace.has_run(used, left) {
            return;
        }
        if let Ok(OutOfMemory { kills: 1.., is_own }) = self.group.out_of_memory() {
            self.stop(
                if is_own || self.is_run { Stop::Limit(Limit::Memory) } else { Stop::MachineOutOfMemory },
                control,
            );
        }
        if self.memory.sample(self.group) {
            self.stop(Stop::Limit(Limit::Memory), control);
        }
        if own > self.limits.cpu_time {
            self.stop(Stop::Limit(Limit::CpuTime), control);
        }
        let mut processes = self.group.processes().unwrap_or_default();
        processes.retain(|pid| *pid != self.init);
        let until = Instant::now() + LOOK;
        // Without any the end is about to be told.
        if self.executed && !processes.is_empty() {
            self.links.retain_mut(|link| link.may_be_open(&processes, until));
        }
        let mut most = self.file_descriptors;
        self.turn.go_on(&processes, until, |pid| most = most.max(open_descriptors(pid).unwrap_or(0)));
        self.file_descriptors = most;
        if !is_urgent {
            self.pace.go_on(self.started.elapsed(), left, self.memory.is_tense());
        }
    }

    /// The task's time begins when its command is executed; before, it is the set-up's.
    fn deadline(&self) -> Instant {
        self.started + if self.executed { Duration::from_nanos(self.limits.wall_time) } else { SET_UP }
    }

    fn patience(&self, next_sample: Instant) -> Duration {
        let next = if self.stop.is_some() { next_sample } else { next_sample.min(self.deadline()) };
        next.saturating_duration_since(Instant::now())
    }
}

/// Goes through processes, over as many calls as it takes: there may be hundreds, with thousands of descriptors each, and no
/// limit is looked at meanwhile.
#[derive(Default)]
struct Turn(usize);

impl Turn {
    /// Looks at those whose turn it is: at one at least, and at each but once.
    fn go_on(&mut self, processes: &[i32], until: Instant, mut look: impl FnMut(i32)) {
        for _ in 0..processes.len() {
            look(processes[self.0 % processes.len()]);
            self.0 = (self.0 + 1) % processes.len();
            if Instant::now() >= until {
                break;
            }
        }
    }
}

/// A task's end of a pipe to another task.
struct Link {
    pipe: OwnedFd,
    /// Processes that were seen not to have it open. Who gets it from another after that is not seen.
    without: Vec<i32>,
}

impl Link {
    /// False when none of all the processes has it open any more. As long as not all were looked at it may be.
    fn may_be_open(&mut self, processes: &[i32], until: Instant) -> bool {
        for pid in processes {
            if self.without.contains(pid) {
                continue;
            }
            if has_open(*pid, &self.pipe) {
                return true;
            }
            self.without.push(*pid);
            if Instant::now() >= until {
                return true;
            }
        }
        false
    }
}

/// How many descriptors a process has open: the size of its fd directory since Linux 6.2 (proc_pid_fd(5)), else its entries.
pub fn open_descriptors(pid: i32) -> Option<u64> {
    let path = format!("/proc/{pid}/fd");
    match std::fs::metadata(&path).ok()?.size() {
        0 => Some(std::fs::read_dir(&path).ok()?.count() as u64),
        size => Some(size),
    }
}

/// Whether a process has a descriptor of this pipe (proc_pid_fd(5)). One whose main thread is at its end shows none, while
/// its other threads may still have them; its end is about to be told.
fn has_open(pid: i32, pipe: &OwnedFd) -> bool {
    let Ok(pipe) = rustix::fs::fstat(pipe) else { return false };
    let is_pipe =
        |path| std::fs::metadata(path).is_ok_and(|file| (file.dev(), file.ino()) == (pipe.st_dev, pipe.st_ino));
    let entries = std::fs::read_dir(format!("/proc/{pid}/fd"));
    entries.is_ok_and(|entries| entries.flatten().any(|entry| is_pipe(entry.path()))) || is_ending(pid)
}

/// PF_EXITING, of the flags in proc_pid_stat(5); one that is not there any more has ended.
fn is_ending(pid: i32) -> bool {
    const EXITING: u64 = 4;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let flags = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().nth(6)?.parse::<u64>().ok());
    flags.is_none_or(|flags| flags & EXITING != 0)
}

/// A time of CLOCK_MONOTONIC in nanoseconds, not in the future.
fn instant(at: u64) -> Instant {
    Instant::now() - Duration::from_nanos(nanoseconds(ClockId::Monotonic).saturating_sub(at))
}

fn input<'a>(fd: &'a impl AsFd) -> PollFd<'a> {
    PollFd::new(fd, PollFlags::IN)
}

/// Whether there is something to read, or will be in this time.
pub fn readable_within(fd: &impl AsFd, patience: Duration) -> bool {
    wait(&mut [input(fd)], Some(patience)).is_ok_and(|ready| ready > 0)
}

/// Waits for the end of a process, which is what makes its pidfd readable (pidfd_open(2)).
pub fn wait_for_end(process: &OwnedFd) {
    while matches!(wait(&mut [input(process)], None), Ok(0)) {}
}

fn readable(fd: &impl AsFd) -> bool {
    let mut fds = [input(fd)];
    wait(&mut fds, Some(Duration::ZERO)).is_ok_and(|ready| ready > 0)
}

fn wait(fds: &mut [PollFd<'_>], patience: Option<Duration>) -> io::Result<usize> {
    let timeout = patience
        .map(|patience| Timespec { tv_sec: patience.as_secs() as i64, tv_nsec: patience.subsec_nanos().into() });
    match poll(fds, timeout.as_ref()) {
        Err(rustix::io::Errno::INTR) => Ok(0),
        other => Ok(other?),
    }
}

/// One notice if one is there; None at the end of the stream.
fn receive(control: &UnixStream) -> io::Result<Option<Notice>> {
    let mut bytes = [0; Notice::BYTES];
    match rustix::net::recv(control, &mut bytes[..], rustix::net::RecvFlags::DONTWAIT) {
        Ok((_, Notice::BYTES)) => Ok(Notice::decode(bytes)),
        Ok(_) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_process_has_its_turn_however_little_time_there_is() {
        let (mut turn, mut seen) = (Turn::default(), Vec::new());
        for _ in 0..4 {
            turn.go_on(&[1, 2, 3], Instant::now(), |pid| seen.push(pid));
        }
        assert_eq!(seen, [1, 2, 3, 1]);
        let later = Instant::now() + Duration::from_secs(600);
        turn.go_on(&[1, 2, 3], later, |pid| seen.push(pid));
        assert_eq!(seen[4..], [2, 3, 1]);
        turn.go_on(&[], later, |_| panic!("there is none"));
        turn.go_on(&[7], later, |pid| assert_eq!(pid, 7));
    }

    #[test]
    fn a_link_is_let_go_when_nobody_has_it() {
        let (reader, _writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut link = Link { pipe: reader, without: Vec::new() };
        let now = Instant::now();
        let this = std::process::id() as i32;
        assert!(link.may_be_open(&[this], now), "this process has it");
        let mut children: Vec<_> =
            (0..2).map(|_| std::process::Command::new("sleep").arg("60").spawn().unwrap()).collect();
        let pids: Vec<i32> = children.iter().map(|child| child.id() as i32).collect();
        assert!(link.may_be_open(&pids, now), "there was no time for the second");
        assert!(link.may_be_open(&pids, now), "nor for anything after it");
        assert!(!link.may_be_open(&pids, now));
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
