//! An interpreter that waits in the place of the task's process, and takes its program: see [`crate::image::Prepare`].

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::process::Pid;

use super::hand_over::{environment, process_limits};
use super::host::pid_of;
use super::{ContainerError, Created, First, Result, Running, at, io_of, late, pipe, set_up_failed};
use crate::artifact::Artifact;
use crate::frame;
use crate::image::{Prepare, WORKSPACE};
use crate::sandbox::init::MadeCell;
use crate::sandbox::init::wire::{Command, Notice, Request, Rusage};
use crate::sandbox::outcome::Io;
use crate::sandbox::streams::Links;
use crate::sandbox::watch::{SET_UP, readable_within};
use crate::task::{Limits, MergeOutput, Task};

/// What an interpreter may have beside a task's limit. Bytes.
const ROOM: u64 = 1 << 30;

/// Started, and perhaps not ready yet.
pub struct Interpreter {
    pid: Pid,
    /// The end of its standard input that it is told its program by.
    input: File,
    /// So many bytes it can be told at once.
    room: usize,
    /// The limits it was started under.
    limits: Limits,
    /// What the group had of its own before it was started, and has with it once it is ready. Bytes.
    memory: (u64, Option<u64>),
}

/// A program that waits to be handed over.
pub struct Program {
    input: File,
    said: Vec<u8>,
    /// Bytes of memory that were there before it.
    pub held: u64,
}

impl Interpreter {
    /// Bytes of memory that it had before it was told its program.
    pub fn held(&self) -> u64 {
        self.memory.1.unwrap_or(0).saturating_sub(self.memory.0)
    }

    /// Whether it is what it would be if it had been started under these limits: it has the stack that it was started with, and its
    /// threads.
    fn is_for(&self, prepare: &Prepare, limits: &Limits) -> bool {
        limits.cpus.is_none()
            && process_limits(limits, true).stack <= process_limits(&self.limits, true).stack
            && limits.processes >= self.limits.processes
            && (!prepare.same_memory || limits.memory == self.limits.memory)
    }

    /// Whether it can take the task. What is looked at once, when a program starts, has to be what it was then.
    fn takes(&self, prepare: &Prepare, task: &Task<Artifact>, links: &Links) -> bool {
        let Task { command, args, env, limits, output, .. } = task;
        let has_own_path = !task.is_images && env.contains_key("PATH");
        let are_its_streams = links.stdin.is_none()
            && links.outputs.iter().flatten().all(|outlet| outlet.record)
            && output.terminal.is_none()
            && output.merge != MergeOutput::Into;
        task.prepared
            && !has_own_path
            && are_its_streams
            && !limits.count_descriptors
            && self.is_for(prepare, limits)
            && prepare.fits(command, args, env)
            && said(task).is_some_and(|said| said.len() <= self.room)
    }
}

impl Program {
    /// The interpreter goes on: when that was.
    pub fn start(mut self) -> Instant {
        let now = Instant::now();
        // It fits: nothing was written before. An interpreter that is gone is seen by who watches.
        let _ = self.input.write_all(&self.said);
        now
    }
}

/// What an interpreter is told of a task, its standard input included; None if that is in a file.
fn said(task: &Task<Artifact>) -> Option<Vec<u8>> {
    let input: &[u8] = match &task.stdin {
        None => &[],
        Some(Artifact::Bytes(bytes)) => bytes,
        Some(Artifact::File(_)) => return None,
    };
    let mut words = Vec::new();
    let count = (1 + task.args.len()).to_string();
    for word in [&count, &task.command].into_iter().chain(&task.args) {
        words.extend_from_slice(word.as_bytes());
        words.push(0);
    }
    for (name, value) in &task.env {
        words.extend_from_slice(format!("{name}={value}\0").as_bytes());
    }
    let mut said = format!("{}\n", words.len()).into_bytes();
    said.append(&mut words);
    said.extend_from_slice(input);
    Some(said)
}

impl Created {
    /// Whether an interpreter could wait in it, and none does.
    pub fn can_prepare(&self) -> bool {
        let Self { container, interpreter, in_force, .. } = self;
        interpreter.is_none()
            && container.group.enforces()
            && container.image.prepare.as_ref().is_some_and(|prepare| !prepare.same_memory || in_force.is_some())
    }

    /// Whether one waits.
    pub fn is_prepared(&self) -> bool {
        self.interpreter.is_some()
    }

    /// Whether one waits for a task with these limits.
    pub fn is_prepared_for(&self, limits: &Limits) -> bool {
        let prepare = self.container.image.prepare.as_ref();
        self.interpreter.as_ref().zip(prepare).is_some_and(|(interpreter, prepare)| interpreter.is_for(prepare, limits))
    }

    /// Has the image's interpreter wait for a program of a task with these limits; it is on its way then.
    ///
    /// # Errors
    /// When the container has come to its end.
    pub fn prepare(&mut self, limits: &Limits) -> Result<()> {
        let image = self.container.image.clone();
        let Some(prepare) = &image.prepare else { return Ok(()) };
        if let (Some(limits), false) = (self.in_force, prepare.same_memory) {
            // What it imports is not held to what the next task may have.
            let wider = limits.with_memory(limits.memory() + ROOM);
            self.container.limit(&wider)?;
            self.in_force = Some(wider);
        }
        let before = self.container.group.memory().map_err(ContainerError::Figures)?.own;
        let (stdin, input) = self.container.input_pipe()?;
        // An ordinary user's may be cut to a page (pipe(7)).
        let room = rustix::pipe::fcntl_getpipe_size(&input).map_err(at("size a pipe"))?;
        let [stdout, stderr] = self.container.new_outputs()?;
        let command = Command {
            argv: prepare.run.clone(),
            env: environment(&image),
            path: image.path.clone(),
            is_own_path: false,
            directory: image.workdir.clone().unwrap_or_else(|| WORKSPACE.into()),
            limits: process_limits(limits, true),
            count_descriptors: false,
            of_its_own: None,
            processors: Vec::new(),
            replaced: Vec::new(),
            merged: false,
            terminal: false,
        };
        // As the process that waits for a command has it, from when its init was made.
        self.container.score(1000)?;
        let control = &self.container.control;
        frame::send_with(control, &Request::Prepare(command), &[stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])
            .map_err(at("have an interpreter wait"))?;
        if !readable_within(control, SET_UP) {
            return Err(late());
        }
        let handle = match frame::receive_with::<MadeCell>(control).map_err(at("have an interpreter wait"))? {
            Some((MadeCell(Ok(())), mut handles)) => handles.pop().ok_or(ContainerError::NoInit)?,
            Some((MadeCell(Err(errno)), _)) => return Err(at("fork")(io::Error::from_raw_os_error(errno))),
            None => return Err(ContainerError::NoInit),
        };
        let pid = pid_of(&handle).map_err(at("look up the interpreter"))?;
        self.container.score(0)?;
        let (limits, memory) = (limits.clone(), (before, None));
        self.interpreter = Some(Interpreter { pid, input, room, limits, memory });
        Ok(())
    }

    /// Whether an interpreter waits that can take the task, and is ready. One that is not is not waited for: the task may not need what
    /// it imports.
    pub fn has_an_interpreter_for(&self, task: &Task<Artifact>, links: &Links) -> bool {
        let (Some(interpreter), Some(prepare)) = (&self.interpreter, &self.container.image.prepare) else {
            return false;
        };
        let stdout = self.container.outputs.as_ref().map(|[stdout, _]| stdout);
        stdout.is_some_and(|stdout| readable_within(stdout, Duration::ZERO)) && interpreter.takes(prepare, task, links)
    }

    /// Waits until the interpreter is ready.
    ///
    /// # Errors
    /// When it ends, or takes too long.
    pub fn wait_for_interpreter(&self) -> Result<()> {
        match self.container.outputs.as_ref().is_some_and(|[stdout, _]| readable_within(stdout, SET_UP)) {
            true => Ok(()),
            false => Err(late()),
        }
    }

    /// Has the interpreter, if there is one, held to the task's limits; it is ready, and can take it.
    ///
    /// # Errors
    /// When it has ended by itself: the container is of no use any more.
    pub fn settle(&mut self, task: &Task<Artifact>) -> Result<()> {
        let Some(interpreter) = &mut self.interpreter else { return Ok(()) };
        self.container.hear_the_interpreter()?;
        interpreter.memory.1 = Some(self.container.group.memory().map_err(ContainerError::Figures)?.own);
        let limits = process_limits(&task.limits, true);
        frame::send(&self.container.control, &Request::Limit(limits)).map_err(at("hold the interpreter to limits"))?;
        match self.container.next_notice(None)? {
            First::Notice(Notice::Placed) => {
                self.before = self.container.baseline()?;
                Ok(())
            }
            First::Notice(notice) => Err(set_up_failed(Some(notice))),
            First::InitGone | First::Cancelled => Err(ContainerError::NoInit),
            First::Late => Err(late()),
        }
    }

    /// The program of an interpreter that is to take the task: what both have used up to now is not the task's.
    pub(super) fn program(&mut self, task: &Task<Artifact>) -> Result<Option<Program>> {
        let Some(interpreter) = self.interpreter.take() else { return Ok(None) };
        let held = interpreter.held();
        // As of the init: where it cannot be read it is not taken off.
        let io = io_of(interpreter.pid).unwrap_or_default();
        self.before.io = Io { read: self.before.io.read + io.read, write: self.before.io.write + io.write };
        self.before.used = used_by(interpreter.pid);
        Ok(said(task).map(|said| Program { input: interpreter.input, said, held }))
    }
}

impl Running {
    /// Pipes in the place of those for stdout and stderr: our ends are kept, the others are for who writes.
    fn new_outputs(&mut self) -> Result<[OwnedFd; 2]> {
        let (stdout, inner_stdout) = pipe(self.owner)?;
        let (stderr, inner_stderr) = pipe(self.owner)?;
        self.outputs = Some([stdout, stderr]);
        Ok([inner_stdout, inner_stderr])
    }

    /// Takes the byte by which an interpreter says that it is ready.
    fn hear_the_interpreter(&mut self) -> Result<()> {
        let Some([stdout, _]) = &mut self.outputs else { return Err(ContainerError::NoInit) };
        match stdout.read(&mut [0]) {
            Ok(1..) => Ok(()),
            Ok(0) => Err(ContainerError::NoInit),
            Err(error) => Err(at("hear the interpreter")(error)),
        }
    }
}

/// What a process has used, as far as the sums of its parent will have it (proc_pid_stat(5), proc_pid_status(5)).
fn used_by(process: Pid) -> Rusage {
    let dir = format!("/proc/{}", process.as_raw_nonzero());
    let stat = fs::read_to_string(format!("{dir}/stat")).unwrap_or_default();
    let field = |number: usize| {
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields);
        fields.split_whitespace().nth(number).and_then(|field| field.parse().ok()).unwrap_or(0)
    };
    let threads = fs::read_dir(format!("{dir}/task")).into_iter().flatten().flatten();
    let switches = threads.map(|thread| {
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        ["voluntary_ctxt_switches:", "nonvoluntary_ctxt_switches:"].map(|name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().parse::<u64>().ok()).unwrap_or(0)
        })
    });
    let [voluntary_switches, involuntary_switches] =
        switches.fold([0, 0], |[all, unwanted], [one, two]| [all + one, unwanted + two]);
    // Fields 10 and 12, of which the third is the first after the name.
    Rusage { minor_faults: field(7), major_faults: field(9), voluntary_switches, involuntary_switches }
}
