//! The init of a container that has cells: one for each task of one request.
//!
//! A cell is a PID, a mount and an IPC namespace of its own within the container, made by a fork of this init, which has seen no
//! task. It is sealed as a container is, has a control group as a container has, and its first process is an init like a
//! container's: whoever runs a task in it sees no difference, and neither does the task. What it has in common with the
//! request's other cells is what all containers of a slot have in common, one after the other: user and network namespace, root
//! file system, devices; and the host name, which no task may set.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::rc::Rc;

use rustix::mount::{MountPropagationFlags, mount_change};
use serde::{Deserialize, Serialize};

use super::wire::{Notice, Step};
use super::{Failure, Init, Place, Purpose, at, notify, seal};
use crate::frame;
use crate::image::User;
use crate::sandbox::kernel;
use crate::sandbox::seccomp::Filter;

/// What the runner wants. With it come the init's ends of the two sockets, the task's stdout and stderr, and the files by which
/// its group is entered.
#[derive(Debug, Serialize, Deserialize)]
pub struct MakeCell;

/// The answer: the cell's init, as the descriptor that comes with it (pidfd_open(2)); or why there is none.
#[derive(Debug, Serialize, Deserialize)]
pub struct MadeCell(pub Result<(), i32>);

impl Init {
    /// Makes cells until the runner's end is closed.
    pub(super) fn host(&self, user: User, inner: &Rc<Filter>) -> Result<(), Failure> {
        let entered = seal::enter(&self.entrances);
        kernel::close_from(3, &mut [self.control]);
        // SAFETY: it is open, and nothing else in this forked process uses it as its own.
        let control = UnixStream::from(unsafe { super::owned(self.control) });
        let ready = entered.and_then(|()| {
            // What cells mount is theirs alone.
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
                .map_err(|errno| at(Step::Mount)(errno.into()))
        });
        // What it goes on with, so do its cells.
        let ready = ready.and_then(|()| self.filter.load().map_err(|_| at(Step::Seccomp)(io::Error::last_os_error())));
        if let Err(Failure { step, errno }) = ready {
            notify(&control, Notice::Failed { step, errno });
            return ready;
        }
        notify(&control, Notice::Ready);
        while let Ok(Some((MakeCell, descriptors))) = frame::receive_with(&control) {
            // Those that have ended; until then their figures were there to be read.
            while let Ok(Some(_)) = kernel::reap(false) {}
            let made = self.cell(user, inner, &descriptors);
            let answer =
                MadeCell(made.as_ref().map(drop).map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL)));
            let handle: Vec<_> = made.iter().map(AsFd::as_fd).collect();
            if frame::send_with(&control, &answer, &handle).is_err() {
                break;
            }
        }
        Ok(())
    }

    fn cell(&self, user: User, inner: &Rc<Filter>, descriptors: &[OwnedFd]) -> io::Result<OwnedFd> {
        let [control, commands, stdout, stderr, entrances @ ..] = descriptors else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        kernel::clone_with_namespaces(|| {
            let redirected = rustix::stdio::dup2_stdout(stdout).and_then(|()| rustix::stdio::dup2_stderr(stderr));
            let init = Init {
                control: control.as_raw_fd(),
                commands: commands.as_raw_fd(),
                entrances: entrances.iter().map(AsRawFd::as_raw_fd).collect(),
                purpose: Purpose::Task(user),
                filter: inner.clone(),
                ..self.clone()
            };
            let served =
                redirected.map_err(|errno| at(Step::Redirect)(errno.into())).and_then(|()| init.serve(Place::Cell));
            i32::from(served.is_err())
        })
    }
}
