//! The one loop: output, limits, the client's going away, and the end, all in one poll(2).

use std::fs::File;
use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Signal, pidfd_send_signal};
use rustix::time::ClockId;

use super::cgroup::Cgroup;
use super::init::wire::{Notice, nanoseconds};
use crate::task::{Limit, Limits};

/// How long each step of the set-up may take.
pub const SET_UP: Duration = Duration::from_secs(10);
/// How often what the kernel does not tell is looked at.
const SAMPLE: Duration = Duration::from_millis(10);
/// How long the init has to end and reap everything before the kernel does it for it.
const GRACE: Duration = Duration::from_secs(1);
const CHUNK: usize = 64 << 10;

/// Why Faber ended a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Limit(Limit),
    Cancelled,
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

pub struct Watch<'a> {
    group: &'a dyn Cgroup,
    limits: &'a Limits,
    init: i32,
    cpu_before: u64,
    /// When the command was handed over; as soon as it is known, when it was executed.
    started: Instant,
    executed: bool,
    set_up: u64,
    output: [Vec<u8>; 2],
    stop: Option<(Stop, Instant)>,
    ended: Option<(Notice, Instant)>,
    /// Nothing is left but the init.
    alone: bool,
    file_descriptors: u64,
}

impl<'a> Watch<'a> {
    /// `init` is the pid that is not the task's.
    pub fn new(group: &'a dyn Cgroup, limits: &'a Limits, init: i32, cpu_before: u64) -> Self {
        Self {
            group,
            limits,
            init,
            cpu_before,
            started: Instant::now(),
            executed: false,
            set_up: 0,
            output: Default::default(),
            stop: None,
            ended: None,
            alone: false,
            // Every task starts with three descriptors.
            file_descriptors: 3,
        }
    }

    /// Returns when nothing is left in the container but the init, or not even that.
    pub fn until_end(
        &mut self,
        stdout: &File,
        stderr: &File,
        control: &UnixStream,
        init: BorrowedFd<'_>,
        cancel: BorrowedFd<'_>,
    ) -> Ended {
        let mut open = [true, true, true];
        let mut next_sample = self.started + SAMPLE;
        loop {
            // An end of file is always readable, so what has ended is no longer asked.
            let mut fds = [input(&stdout), input(&stderr), input(&control), input(&init), input(&cancel)];
            for (fd, open) in fds.iter_mut().zip(open) {
                if !open {
                    *fd = PollFd::from_borrowed_fd(init, PollFlags::empty());
                }
            }
            if self.stop.is_some() {
                fds[4] = PollFd::from_borrowed_fd(init, PollFlags::empty());
            }
            let _ = wait(&mut fds, Some(self.patience(next_sample)));
            let [out, err, said, gone, cancelled] = fds.map(|fd| !fd.revents().is_empty());
            if open[0] && out {
                open[0] = self.read(stdout, 0, control);
            }
            if open[1] && err {
                open[1] = self.read(stderr, 1, control);
            }
            if open[2] && said {
                open[2] = self.hear(control);
            }
            if gone || self.alone {
                break;
            }
            if self.stop.is_none() && cancelled {
                self.stop(Stop::Cancelled, control);
            }
            self.check_clock(control, init);
            if Instant::now() >= next_sample {
                self.sample(control);
                next_sample = Instant::now() + SAMPLE;
            }
        }
        // What was written before the end and not read yet is in the pipes.
        while open[2] && self.hear(control) {}
        for (at, pipe) in [stdout, stderr].into_iter().enumerate() {
            while open[at] && self.read(pipe, at, control) && readable(pipe) {}
        }
        let end = self.ended.map_or_else(Instant::now, |(_, at)| at);
        Ended {
            stop: self.stop.map(|(stop, _)| stop),
            notice: self.ended.map(|(notice, _)| notice),
            started: self.executed,
            set_up: self.set_up,
            wall_time: end.saturating_duration_since(self.started),
        }
    }

    pub fn take_output(&mut self) -> (Vec<u8>, Vec<u8>) {
        let [stdout, stderr] = std::mem::take(&mut self.output);
        (stdout, stderr)
    }

    /// The most descriptors a sample saw in one process.
    pub fn file_descriptors(&self) -> u64 {
        self.file_descriptors
    }

    /// The first reason counts; once the command has ended by itself only its output can still be too much.
    fn stop(&mut self, reason: Stop, control: &UnixStream) {
        if self.stop.is_some() || (self.ended.is_some() && reason != Stop::Limit(Limit::Output)) {
            return;
        }
        self.stop = Some((reason, Instant::now()));
        let _ = control.shutdown(Shutdown::Write);
    }

    /// Takes what is there, up to the limit; false at the end of the pipe.
    fn read(&mut self, mut pipe: &File, at: usize, control: &UnixStream) -> bool {
        let mut chunk = [0; CHUNK];
        let length = match pipe.read(&mut chunk) {
            Ok(0) => return false,
            Ok(length) => length,
            Err(error) => return matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
        };
        let left = self.limits.output.saturating_sub((self.output[0].len() + self.output[1].len()) as u64);
        let kept = length.min(usize::try_from(left).unwrap_or(usize::MAX));
        self.output[at].extend_from_slice(&chunk[..kept]);
        if kept < length {
            self.stop(Stop::Limit(Limit::Output), control);
        }
        true
    }

    /// One notice; false when there will be no more.
    fn hear(&mut self, control: &UnixStream) -> bool {
        let Ok(Some(notice)) = receive(control) else { return false };
        match notice {
            Notice::Started { at, set_up } => {
                self.started = instant(at);
                self.executed = true;
                self.set_up = set_up;
                self.cpu_before += set_up;
            }
            Notice::Alone => self.alone = true,
            Notice::Exited { alone, .. } => {
                self.alone = alone;
                self.ended.get_or_insert((notice, Instant::now()));
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
        if self.group.oom_kills().is_ok_and(|kills| kills > 0) {
            self.stop(Stop::Limit(Limit::Memory), control);
        }
        // Until the command is executed, what is used is the set-up's.
        if self.executed
            && self.group.cpu_time().is_ok_and(|used| used.saturating_sub(self.cpu_before) > self.limits.cpu_time)
        {
            self.stop(Stop::Limit(Limit::CpuTime), control);
        }
        let processes = self.group.processes().unwrap_or_default().into_iter().filter(|pid| *pid != self.init);
        let most = processes.filter_map(open_descriptors).max();
        self.file_descriptors = self.file_descriptors.max(most.unwrap_or(0));
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

/// How many descriptors a process has open: the size of its fd directory since Linux 6.2 (proc_pid_fd(5)), else its entries.
fn open_descriptors(pid: i32) -> Option<u64> {
    let path = format!("/proc/{pid}/fd");
    match std::fs::metadata(&path).ok()?.size() {
        0 => Some(std::fs::read_dir(&path).ok()?.count() as u64),
        size => Some(size),
    }
}

/// A time of CLOCK_MONOTONIC in nanoseconds, not in the future.
fn instant(at: u64) -> Instant {
    Instant::now() - Duration::from_nanos(nanoseconds(ClockId::Monotonic).saturating_sub(at))
}

fn input<'a>(fd: &'a impl AsFd) -> PollFd<'a> {
    PollFd::new(fd, PollFlags::IN)
}

fn readable(fd: &File) -> bool {
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
