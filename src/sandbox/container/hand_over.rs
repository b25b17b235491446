//! What a task starts with: its workspace, its standard descriptors, its files, its command.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::pipe::{PipeFlags, pipe_with};

use super::{ContainerError, Result, Running, at, own};
use crate::artifact::{Artifact, Slice};
use crate::frame;
use crate::image::{Image, WORKSPACE};
use crate::sandbox::descriptors::{self, Counter};
use crate::sandbox::init::wire::{Command, Files, OwnLimits, ProcessLimits, Request, Source};
use crate::sandbox::streams::{self, Feed, Forward, Inlet, Links, Outlet, Whole};
use crate::sandbox::terminal::Terminal;
use crate::sandbox::workspace::Workspace;
use crate::task::{Limits, MergeOutput, Node, Task, WORKSPACE_BYTES, Window};

/// What a pipe takes at once (pipe(7)).
const PIPE_BYTES: usize = 64 << 10;

/// What a task that can start starts with.
pub struct Ready {
    /// In place of standard descriptors of the container's: each with its number.
    pub replaced: Vec<(u8, OwnedFd)>,
    /// Those of them that lead to another task.
    pub links: Vec<OwnedFd>,
    pub feed: Option<Feed>,
    pub forwards: [Option<Forward>; 2],
    pub whole: [Option<Whole>; 2],
    /// When files are to be taken out of it.
    pub workspace: Option<Workspace>,
    /// In the place of pipes.
    pub terminal: Option<Terminal>,
}

impl Ready {
    /// Of a task without a terminal nothing comes of it.
    pub fn resize(&self, window: Window) {
        let _ = self.terminal.as_ref().map(|terminal| terminal.resize(window));
    }
}

impl Running {
    /// The task's workspace, as large as it is to be, if anything is to be done with it.
    pub fn workspace(&self, task: &Task<Artifact>) -> Result<Option<Workspace>> {
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

    /// Makes what the task's standard descriptors are to be, where that is not the container's own. An interpreter has its input.
    pub fn descriptors(
        &self,
        task: &Task<Artifact>,
        links: Links,
        workspace: Option<Workspace>,
        is_interpreted: bool,
    ) -> Result<Ready> {
        let (mut replaced, mut shared) = (Vec::new(), Vec::new());
        let mut feed = None;
        let mut share = |pipe: &OwnedFd| pipe.try_clone().map(|pipe| shared.push(pipe)).map_err(at("share a pipe"));
        let terminal = task.output.terminal.map(|window| self.terminal(window)).transpose()?;
        let (terminal, slave) = terminal.unzip();
        match (links.stdin, &task.stdin) {
            (Some(Inlet::Stream(stream)), _) if let Some(terminal) = &terminal => {
                feed = Some(Feed::new(stream, terminal.master().map_err(at("share a terminal"))?));
            }
            (Some(Inlet::Pipe(pipe)), _) => {
                share(&pipe)?;
                replaced.push((0, pipe));
            }
            (Some(Inlet::Stream(stream)), _) => {
                let (reader, writer) = self.input_pipe()?;
                replaced.push((0, reader));
                feed = Some(Feed::new(stream, writer));
            }
            (None, Some(artifact)) if !is_interpreted => replaced.push((0, self.input(artifact)?)),
            (None, _) => {}
        }
        for place in 0..3 {
            let slave = slave.as_ref().map(OwnedFd::try_clone).transpose().map_err(at("share a terminal"))?;
            slave.into_iter().for_each(|slave| replaced.push((place, slave)));
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
        Ok(Ready { replaced, links: shared, feed, forwards, whole, workspace, terminal })
    }

    /// A terminal, with the task's end of it.
    fn terminal(&self, window: Window) -> Result<(Terminal, OwnedFd)> {
        let init = self.init.pid.as_raw_nonzero().get();
        let (terminal, slave) = Terminal::open(init, window).map_err(at("open a terminal"))?;
        own(&slave, self.owner)?;
        Ok((terminal, slave))
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
    pub fn input_pipe(&self) -> Result<(OwnedFd, File)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(at("make a pipe"))?;
        own(&reader, self.owner)?;
        rustix::io::ioctl_fionbio(&writer, true).map_err(at("make a pipe non-blocking"))?;
        Ok((reader, writer.into()))
    }

    pub fn hand_over_files(&mut self, task: &Task<Artifact>) -> io::Result<()> {
        let (mut files, mut sources, mut follow) = (Files::new(), Vec::<&Arc<File>>::new(), Vec::new());
        for (path, node) in &task.files {
            let node = match node {
                Node::Directory => Node::Directory,
                Node::Symlink(target) => Node::Symlink(target.clone()),
                Node::File { content: Artifact::Bytes(bytes), mode } => {
                    follow.push(bytes);
                    Node::File { content: Source::Follows(bytes.len() as u64), mode: *mode }
                }
                Node::File { content: Artifact::File(Slice { file, offset, size }), mode } => {
                    // All that an archive holds is in one file.
                    let known = sources.iter().rposition(|known| Arc::ptr_eq(known, file));
                    let index = known.unwrap_or_else(|| {
                        sources.push(file);
                        sources.len() - 1
                    }) as u32;
                    Node::File { content: Source::File { index, offset: *offset, size: *size }, mode: *mode }
                }
            };
            files.push((path.clone(), node));
        }
        let descriptors: Vec<BorrowedFd<'_>> = sources.into_iter().map(|source| source.as_fd()).collect();
        frame::send_with(&self.control, &Request::Files(files), &descriptors)?;
        follow.into_iter().try_for_each(|bytes| frame::send_all(&self.control, bytes))
    }

    /// Sends the command with its descriptors, which are then the task's alone; the counter of those that it opens, if they are to be
    /// counted.
    pub fn hand_over(&self, task: Task<Artifact>, replaced: Vec<(u8, OwnedFd)>) -> Option<Counter> {
        let counted = task.limits.count_descriptors.then_some(task.limits.file_descriptors);
        let places = replaced.iter().map(|(place, _)| *place).collect();
        let processors = self.chosen.processors.clone();
        let command = Command { processors, ..command(task, &self.image, self.group.enforces(), places) };
        let brought: Vec<BorrowedFd<'_>> = replaced.iter().map(|(_, descriptor)| descriptor.as_fd()).collect();
        // A process that cannot take it any more has come to an end, which the watch sees.
        let _ = frame::send_with(&self.commands, &command, &brought);
        counted.and_then(|limit| Some(Counter::new(descriptors::receive(&self.commands)?, limit)))
    }
}

/// What a task of the image has in its environment, whatever it asks for.
pub fn environment(image: &Image) -> BTreeMap<String, String> {
    let mut env = image.env.clone();
    env.entry("PATH".into()).or_insert_with(|| image.path.clone());
    env.entry("HOME".into()).or_insert_with(|| WORKSPACE.into());
    env
}

/// `enforced`: whether the kernel holds the container as a whole to its limits. `replaced` are the standard descriptors that
/// others take the place of.
fn command(task: Task<Artifact>, image: &Image, enforced: bool, replaced: Vec<u8>) -> Command {
    let mut env = environment(image);
    // As for docker and podman: a command is found in the PATH that it gets.
    let own_path = task.env.get("PATH").filter(|_| !task.is_images).cloned();
    let terminal = task.output.terminal.is_some();
    if terminal {
        // What every terminal of today can do.
        env.entry("TERM".into()).or_insert_with(|| "xterm-256color".into());
    }
    env.extend(task.env);
    Command {
        argv: [task.command].into_iter().chain(task.args).collect(),
        env,
        is_own_path: own_path.is_some(),
        path: own_path.unwrap_or_else(|| image.path.clone()),
        directory: image.workdir.clone().unwrap_or_else(|| WORKSPACE.into()),
        limits: process_limits(&task.limits, enforced),
        count_descriptors: task.limits.count_descriptors,
        of_its_own: (!enforced).then_some(OwnLimits { processes: task.limits.processes, memory: task.limits.memory }),
        processors: Vec::new(),
        replaced,
        merged: task.output.merge == MergeOutput::Into,
        terminal,
    }
}

pub fn process_limits(limits: &Limits, enforced: bool) -> ProcessLimits {
    ProcessLimits {
        file_descriptors: limits.file_descriptors,
        // Far enough behind the watch's limit for the kernel's coarser clock never to be first.
        cpu_seconds: limits.cpu_time.div_ceil(1_000_000_000) * 3 / 2 + 5,
        stack: stack(limits, enforced),
        file_size: limits.file_size,
    }
}

/// Without a group each thread's stack counts in what a process may ask for, so there it is the usual one.
fn stack(limits: &Limits, enforced: bool) -> u64 {
    const USUAL: u64 = 8 << 20;
    limits.stack.unwrap_or(if enforced { limits.memory } else { limits.memory.min(USUAL) })
}
