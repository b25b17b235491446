//! Files that are put into the root file system from outside. What a step left there may be anything: names are
//! resolved inside the root, links included, and the last one is never followed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, fchmod, fchown, mkdirat, openat2, unlinkat};
use rustix::io::Errno;

use super::{BuilderError, Result, doing};
use crate::image::CopiedFile;
use crate::sandbox::Workshop;

/// A file that a step made is read as far as this.
const BYTES: u64 = 64 << 20;

/// Copies each file to its place.
pub fn files(workshop: &Workshop<'_>, copied: &[CopiedFile]) -> Result<()> {
    for CopiedFile { from, to, mode, digest: _ } in copied {
        doing(format!("copying {}", to.display()));
        let copy = || write(workshop, to, *mode, &mut File::open(from)?);
        copy().map_err(|source| BuilderError::Copy { path: from.clone(), source })?;
    }
    Ok(())
}

/// The root file system, to look names up in.
pub fn open_root(workshop: &Workshop<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::fs::open(workshop.root(), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Makes the file `path`, with its directories, in place of what was there.
pub fn write(workshop: &Workshop<'_>, path: &Path, mode: u32, content: &mut dyn Read) -> io::Result<()> {
    let path = path.strip_prefix("/").unwrap_or(path);
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let root = open_root(workshop)?;
    let owner = (Uid::from_raw(workshop.owner()), Gid::from_raw(workshop.owner()));
    let directory = directories(&root, path.parent().unwrap_or(Path::new("")), owner)?;
    match unlinkat(&directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno.into()),
    }
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut file = File::from(rustix::fs::openat(&directory, name, flags, Mode::from_raw_mode(0o600))?);
    io::copy(content, &mut file)?;
    fchown(file.as_fd(), Some(owner.0), Some(owner.1))?;
    fchmod(file.as_fd(), Mode::from_raw_mode(mode))?;
    file.flush()
}

pub fn read(workshop: &Workshop<'_>, path: &Path) -> io::Result<String> {
    let path = path.strip_prefix("/").unwrap_or(path);
    // Not to be kept waiting by a FIFO.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat2(open_root(workshop)?, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)?);
    let mut text = String::new();
    if file.take(BYTES).read_to_string(&mut text)? as u64 == BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(text)
}

fn directories(root: &OwnedFd, path: &Path, (uid, gid): (Uid, Gid)) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    };
    match open(path) {
        Err(Errno::NOENT) => {}
        other => return Ok(other?),
    }
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let above = directories(root, path.parent().unwrap_or(Path::new("")), (uid, gid))?;
    mkdirat(&above, name, Mode::from_raw_mode(0o755))?;
    chownat(&above, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(open(path)?)
}
