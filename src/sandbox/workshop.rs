//! Where an image's root file system is made: a directory of the slot's own ids, which programs of the machine fill and
//! build steps change. Nobody here is root of the machine: what a package's script or a build step does, it does as root
//! of the slot's user namespace.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use super::container::{ContainerError, Ran};
use super::init::Purpose;
use super::slot::{Slot, SlotError};
use super::streams::Links;
use super::{rootfs, spec};
use crate::artifact::Artifact;
use crate::image::Image;
use crate::task::{Report, Task};

/// A root file system in the making. Its files are below the directory it was opened on; here it is shown in the slot's
/// own directory, which the namespace's root may pass, wherever the store is.
pub struct Workshop<'a> {
    slot: &'a mut Slot,
    bundle: PathBuf,
}

#[derive(Debug, thiserror::Error)]
pub enum WorkshopError {
    #[error("prepare {path}")]
    Directory { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Slot(#[from] SlotError),
}

impl<'a> Workshop<'a> {
    /// Takes the directory `root`, which becomes the namespace's own.
    ///
    /// # Errors
    /// When it cannot be given away or shown.
    pub fn open(slot: &'a mut Slot, root: &Path) -> Result<Self, WorkshopError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| WorkshopError::Directory { path, source }
        };
        let bundle = slot.dir.join("build");
        let place = bundle.join(spec::ROOTFS);
        fs::create_dir_all(&place).map_err(at(&place))?;
        let base = Some(slot.ids.base());
        for path in [root, &bundle] {
            chown(path, base, base).map_err(at(path))?;
        }
        rootfs::show(root, &place).map_err(SlotError::from)?;
        Ok(Self { slot, bundle })
    }

    /// Where the root is, for [`Workshop::program`]s.
    pub fn root(&self) -> PathBuf {
        self.bundle.join(spec::ROOTFS)
    }

    /// A directory of the namespace's own beside the root: for files that go to or come from a program.
    pub fn beside(&self) -> &Path {
        &self.bundle
    }

    /// The id on the machine of the namespace's root.
    pub fn owner(&self) -> u32 {
        self.slot.ids.base()
    }

    /// A program of the machine as root of the slot's user namespace, with mounts and processes of its own, which all end
    /// when it or this process does. (nsenter(1), setpriv(1), unshare(1))
    pub fn program(&self, name: &str) -> Command {
        let namespace =
            format!("--user=/proc/{}/fd/{}", std::process::id(), self.slot.namespaces.user().as_fd().as_raw_fd());
        let mut command = Command::new("nsenter");
        command.args([namespace.as_str(), "--setuid", "0", "--setgid", "0", "setpriv", "--pdeathsig", "KILL"]);
        command.args(["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--", name]);
        command
    }

    /// Runs `task` in the root, as its root and with the machine's network; `files` of the machine are there under other
    /// names. `image` says the environment.
    ///
    /// # Errors
    /// When it could not be started; how it ended is in the report.
    pub fn step(
        &mut self,
        image: Rc<Image>,
        files: Vec<(String, String)>,
        task: Task<Artifact>,
        cancel: std::os::fd::BorrowedFd<'_>,
    ) -> Result<Report, ContainerError> {
        let bundle = self.bundle.clone();
        let created = self.slot.container(&bundle, image, Purpose::BuildStep { files })?;
        let Ran { report, fault, remains, .. } = created.run(task, Links::default(), &mut { cancel });
        drop(remains);
        fault.map_or(Ok(report), Err)
    }
}

impl Drop for Workshop<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.root(), rustix::mount::UnmountFlags::DETACH);
    }
}
