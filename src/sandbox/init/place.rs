//! Puts a task's files into its workspace, before anything of the task runs.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, open, openat2};

use crate::task::WorkspacePath;

/// Makes `files`, each of which has so many of the next bytes of `contents`.
///
/// # Errors
/// The first file that could not be made: ENOSPC when the workspace is full.
pub fn files(workspace: &str, files: &[(WorkspacePath, u64)], mut contents: impl Read) -> io::Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    let root = open(workspace, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for (path, length) in files {
        for parent in path.parents() {
            directory(&root, parent)?;
        }
        // 0755: a script may be run at once, as one that was checked out would be.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mut file = File::from(beneath(&root, path.as_str(), flags, Mode::from_raw_mode(0o755))?);
        if io::copy(&mut contents.by_ref().take(*length), &mut file)? != *length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

fn directory(root: &OwnedFd, path: &str) -> io::Result<()> {
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    let parent = beneath(root, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn beneath(root: &OwnedFd, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(root, path, flags, mode, resolve)?)
}
