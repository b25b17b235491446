//! Names below a directory: opened, made, listed and removed, never through a link.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat, mkdirat, openat2, statat, unlinkat};
use rustix::io::Errno;

use super::BlobError;

pub(super) const WITHOUT_LINKS: ResolveFlags = ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS);
pub(super) const DIRECTORY: OFlags =
    OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);
/// Not waiting: what was planted in place of a file might be a pipe.
pub(super) const FILE: OFlags = OFlags::RDONLY.union(OFlags::NOFOLLOW).union(OFlags::NONBLOCK).union(OFlags::CLOEXEC);
pub(super) const NEW_FILE: OFlags =
    OFlags::WRONLY.union(OFlags::CREATE).union(OFlags::EXCL).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// The directory at `path`, a path below `root` without links.
pub(super) fn directory(root: &OwnedFd, path: &str) -> Result<OwnedFd, BlobError> {
    openat2(root, path, DIRECTORY, Mode::empty(), WITHOUT_LINKS).map_err(failed("open", path))
}

/// Makes `name` in `parent` a directory if it is none: what else has the name goes. `path` is what errors call it.
pub(super) fn make_directory(parent: &OwnedFd, name: &str, path: &str) -> Result<(), BlobError> {
    match mkdirat(parent, name, Mode::RWXU) {
        Err(Errno::EXIST) if stat(parent, name, path)?.is_some_and(|stat| kind(&stat) == FileType::Directory) => Ok(()),
        Err(Errno::EXIST) => {
            remove(parent, name, path)?;
            mkdirat(parent, name, Mode::RWXU).map_err(failed("make", path))
        }
        made => made.map_err(failed("make", path)),
    }
}

/// Removes a name in `parent`, links never followed. A directory goes only if it is empty.
pub(super) fn remove<P: rustix::path::Arg + Copy>(parent: &OwnedFd, name: P, path: &str) -> Result<(), BlobError> {
    let removed = match unlinkat(parent, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => unlinkat(parent, name, AtFlags::REMOVEDIR),
        removed => removed,
    };
    match removed {
        Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        removed => removed.map_err(failed("remove from", path)),
    }
}

/// None if there is nothing with the name.
pub(super) fn stat<P: rustix::path::Arg>(parent: &OwnedFd, name: P, path: &str) -> Result<Option<Stat>, BlobError> {
    match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => Ok(None),
        stat => stat.map(Some).map_err(failed("inspect in", path)),
    }
}

pub(super) fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

pub(super) fn is_file(stat: Option<&Stat>) -> bool {
    stat.is_some_and(|stat| kind(stat) == FileType::RegularFile)
}

/// All names, read before any of them is removed.
pub(super) fn names_in(directory: &OwnedFd, path: &str) -> Result<Vec<CString>, BlobError> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory).map_err(failed("read", path))? {
        let name = entry.map_err(failed("read", path))?.file_name().to_owned();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push(name);
        }
    }
    Ok(names)
}

/// The name as text, if it is so many lower-case hexadecimal digits.
pub(super) fn hexadecimal(name: &CStr, digits: usize) -> Option<&str> {
    let digit = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    name.to_str().ok().filter(|name| name.len() == digits && name.bytes().all(digit))
}

pub(super) fn failed<E: Into<io::Error>>(step: &'static str, path: &str) -> impl FnOnce(E) -> BlobError {
    move |source| BlobError::io(step, path, source.into())
}
