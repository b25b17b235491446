//! A container that has cells: one for each task of one request.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use rustix::process::Pid;

use super::{ContainerError, Created, InitProcess, Inside, Outside, RemoveOnFailure, Result, Running, at, late};
use crate::frame;
use crate::image::Image;
use crate::sandbox::cgroup::GroupLimits;
use crate::sandbox::init::{MadeCell, MakeCell, Purpose};
use crate::sandbox::slot::Slot;
use crate::sandbox::watch::{SET_UP, readable_within};
use crate::task::ImageId;

/// Dropping it removes it, with every cell that is left.
pub struct Host(Running);

impl Host {
    pub(in crate::sandbox) fn create(slot: &Slot, name: &str, bundle: &Path, image: Rc<Image>) -> Result<Self> {
        let purpose = Purpose::Cells(image.user);
        let (mut running, container) = Running::create(slot, name, bundle, image, purpose)?;
        running.start(container)?;
        // It only makes cells: nothing of that is written to pipes or read from them.
        running.outputs = None;
        Ok(Self(running))
    }

    /// The image it is of.
    pub fn image(&self) -> ImageId {
        self.0.image.id()
    }

    /// Whether its init has not come to an end.
    pub fn is_there(&self) -> bool {
        !readable_within(&self.0.init.handle, Duration::ZERO)
    }

    /// Makes a cell, up to its task's process waiting for a command.
    pub(in crate::sandbox) fn cell(&self, slot: &Slot, name: &str, expected: Option<GroupLimits>) -> Result<Created> {
        let image = self.0.image.clone();
        let (outside, inside) = Outside::make(slot, name, &image)?;
        let removed = RemoveOnFailure { group: Some(&*outside.group) };
        let handle = self.ask(inside)?;
        let pid = pid_of(&handle).map_err(at("look up the cell's init"))?;
        removed.not_needed();
        let init = InitProcess { pid, handle, is_child: false, ended: false };
        let running = outside.running(image, init, None)?;
        running.wait_until_ready()?;
        Created::waiting(running, expected)
    }

    fn ask(&self, Inside { control, commands, outputs: [stdout, stderr], entrances }: Inside) -> Result<OwnedFd> {
        let ends = [control.as_fd(), commands.as_fd(), stdout.as_fd(), stderr.as_fd()];
        let descriptors: Vec<BorrowedFd<'_>> = ends.into_iter().chain(entrances.iter().map(AsFd::as_fd)).collect();
        frame::send_with(&self.0.control, &MakeCell, &descriptors).map_err(at("ask for a cell"))?;
        if !readable_within(&self.0.control, SET_UP) {
            return Err(late());
        }
        let answer = frame::receive_with::<MadeCell>(&self.0.control).map_err(at("ask for a cell"))?;
        match answer {
            Some((MadeCell(Ok(())), mut handles)) => handles.pop().ok_or(ContainerError::NoInit),
            Some((MadeCell(Err(errno)), _)) => Err(at("make a cell")(io::Error::from_raw_os_error(errno))),
            None => Err(ContainerError::NoInit),
        }
    }
}

/// The process of a pidfd, as this process sees it (fdinfo in pidfd_open(2)).
pub(super) fn pid_of(handle: &OwnedFd) -> io::Result<Pid> {
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", handle.as_raw_fd()))?;
    let pid: Option<i32> = text.lines().find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok());
    // -1 of one that has ended.
    pid.filter(|pid| *pid > 0).and_then(Pid::from_raw).ok_or_else(|| io::ErrorKind::NotFound.into())
}
