//! A container that stays, and has runs one after the other and beside each other: a session's.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use super::{ContainerError, Created, First, InitProcess, Inside, Outside, RemoveOnFailure, Result, Running};
use super::{at, late, set_up_failed};
use crate::artifact::{Artifact, Slice};
use crate::frame;
use crate::sandbox::cgroup::GroupLimits;
use crate::sandbox::init::MadeCell;
use crate::sandbox::init::wire::{Files, Notice, Request, Source, Step};
use crate::sandbox::slot::Slot;
use crate::sandbox::watch::{SET_UP, readable_within};
use crate::sandbox::workspace::Workspace;
use crate::sandbox::{kernel, outcome};
use crate::task::{FileRefusal, Limits, Node, WorkspacePath};

/// Leaders that a session's group has room for beside its processes.
pub const RUNS: u64 = 16;

/// Dropping it ends everything in it and removes it.
pub struct Session {
    container: Running,
    name: String,
    made: u64,
}

impl Created {
    /// Makes a waiting container a session's, held to these limits as a whole.
    ///
    /// # Errors
    /// When the limits cannot be put in force, or its init does not answer.
    pub fn into_session(self, limits: &Limits) -> Result<Session> {
        let Self { container, .. } = self;
        let name = container.name.clone();
        let held = GroupLimits::from(limits).with_processes(limits.processes + RUNS);
        container.limit(&held)?;
        let workspace = Workspace::of(container.init.pid.as_raw_nonzero().get()).map_err(at("open the workspace"))?;
        workspace.resize(limits.workspace).map_err(ContainerError::NotInForce)?;
        frame::send(&container.control, &Request::Host).map_err(at("have the init lead runs"))?;
        container.wait_until_ready()?;
        // Nobody else is in it any more.
        container.group.host(container.init.pid.as_raw_nonzero().get())?;
        Ok(Session { container, name, made: 0 })
    }
}

impl Created {
    /// Forks a process to which it belongs from then on: `body` runs there, and says how that process ends.
    ///
    /// # Errors
    /// fork(2)'s; then it ends, as it is nobody's.
    pub fn watched_by(mut self, body: impl FnOnce(Self) -> i32) -> io::Result<()> {
        self.container.is_left = true;
        let parent = nix::unistd::getpid();
        let watcher = kernel::fork(move || {
            let mut created = self;
            created.container.is_left = false;
            match kernel::end_with(parent) {
                Ok(()) => body(created),
                Err(_) => 1,
            }
        });
        watcher.map(drop)
    }
}

impl Session {
    /// Readable when it has come to an end, which it never does by itself.
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.container.init.handle.as_fd()
    }

    /// # Errors
    /// Those of the calls.
    pub fn workspace(&self) -> io::Result<Workspace> {
        Workspace::of(self.container.init.pid.as_raw_nonzero().get())
    }

    /// A run, up to its process waiting for a command.
    ///
    /// # Errors
    /// When it cannot be made: the session has as many processes as it may have, or none.
    pub fn run(&mut self, slot: &Slot) -> Result<Created> {
        self.made += 1;
        let image = self.container.image.clone();
        let (outside, inside) = Outside::make(slot, &format!("{}/r{}", self.name, self.made), &image)?;
        let removed = RemoveOnFailure { group: Some(&*outside.group) };
        let members = outside.group.members()?;
        let Inside { control, commands, outputs: [stdout, stderr], entrances } = inside;
        let ends = [control.as_fd(), commands.as_fd(), stdout.as_fd(), stderr.as_fd(), members.as_fd()];
        let descriptors: Vec<BorrowedFd<'_>> = ends.into_iter().chain(entrances.iter().map(AsFd::as_fd)).collect();
        frame::send_with(&self.container.control, &Request::Run, &descriptors).map_err(at("ask for a run"))?;
        if !readable_within(&self.container.control, SET_UP) {
            return Err(late());
        }
        let answer = frame::receive_with::<MadeCell>(&self.container.control).map_err(at("ask for a run"))?;
        let handle = match answer {
            Some((MadeCell(Ok(())), mut handles)) => handles.pop().ok_or(ContainerError::NoInit)?,
            Some((MadeCell(Err(errno)), _)) => return Err(at("make a run")(io::Error::from_raw_os_error(errno))),
            None => return Err(ContainerError::NoInit),
        };
        let pid = super::host::pid_of(&handle).map_err(at("look up the run's leader"))?;
        removed.not_needed();
        let init = InitProcess { pid, handle, is_child: false, ended: false };
        let mut running = outside.running(image, init, None)?;
        running.is_run = true;
        running.wait_until_ready()?;
        running.score_others(1000)?;
        Created::waiting(running, None)
    }

    /// A file's permissions and bytes.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read(
        &self,
        workspace: &Workspace,
        path: &WorkspacePath,
        most: u64,
    ) -> std::result::Result<(u32, Artifact), FileRefusal> {
        workspace.read(path.as_str(), most, &self.container.spool)
    }

    /// All of the workspace, as an archive (tar).
    ///
    /// # Errors
    /// Why it cannot be made.
    pub fn pack(&self, workspace: &Workspace, most: u64) -> std::result::Result<Artifact, FileRefusal> {
        workspace.pack(most, &self.container.spool)
    }

    /// Writes files into the workspace, as the session's user, in the place of what is there.
    ///
    /// # Errors
    /// The outer one when the session cannot be asked; the inner one is why they could not be written.
    pub fn place(&self, nodes: &BTreeMap<WorkspacePath, Node<Artifact>>) -> Result<std::result::Result<(), String>> {
        let (mut files, mut sources) = (Files::new(), Vec::<Arc<File>>::new());
        for (path, node) in nodes {
            let node = match node {
                Node::Directory => Node::Directory,
                Node::Symlink(target) => Node::Symlink(target.clone()),
                Node::File { content, mode } => {
                    // Nothing but descriptors: what were left unread of bytes would be taken for the next request.
                    let kept = match content {
                        Artifact::Bytes(bytes) => {
                            self.container.spool.keep(&bytes[..]).map_err(ContainerError::NoRoom)?
                        }
                        file => file.clone(),
                    };
                    let Artifact::File(Slice { file, offset, size }) = kept else {
                        return Err(ContainerError::NoInit);
                    };
                    // All that an archive holds is in one file.
                    let known = sources.iter().rposition(|known| Arc::ptr_eq(known, &file));
                    let index = known.unwrap_or_else(|| {
                        sources.push(file);
                        sources.len() - 1
                    }) as u32;
                    Node::File { content: Source::File { index, offset, size }, mode: *mode }
                }
            };
            files.push((path.clone(), node));
        }
        let descriptors: Vec<BorrowedFd<'_>> = sources.iter().map(|source| source.as_fd()).collect();
        frame::send_with(&self.container.control, &Request::Files(files), &descriptors)
            .map_err(at("hand the files over"))?;
        match self.container.next_notice(None)? {
            First::Notice(Notice::Placed) => Ok(Ok(())),
            First::Notice(Notice::Failed { step: Step::Files, errno }) => Ok(Err(outcome::errno_text(errno))),
            First::Notice(notice) => Err(set_up_failed(Some(notice))),
            First::InitGone | First::Cancelled => Err(ContainerError::NoInit),
            First::Late => Err(late()),
        }
    }
}
