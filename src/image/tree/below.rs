//! Names in a tree: how one is resolved without ever leaving it, and how what it stands for is removed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, openat, openat2, statat, unlinkat};
use rustix::io::Errno;

use super::TreeError;

/// Links on the way lead where they lead in a container: at most to the root.
pub const INSIDE: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
/// No link may be on the way.
pub const WITHOUT_LINKS: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Opens `path` below `root`, and not through a link where it says so itself.
pub fn open(root: impl AsFd, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    loop {
        match openat2(&root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // Something was renamed or mounted on this machine while the kernel went up by a `..` (openat2(2)).
            Err(Errno::AGAIN) => {}
            done => return done,
        }
    }
}

/// A directory, not reached through a link.
pub fn directory(root: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    open(root, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, WITHOUT_LINKS)
}

/// A regular file, wherever links in the tree lead; its content is not waited for.
pub fn file(root: impl AsFd, path: &Path) -> io::Result<File> {
    let file = File::from(open(root, path, OFlags::RDONLY | OFlags::NONBLOCK, INSIDE)?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

/// Without `.`, and without leaving the tree.
pub fn normal(path: &Path) -> Result<PathBuf, TreeError> {
    let mut normal = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(TreeError::LeadsOut(path.to_owned())),
        }
    }
    Ok(normal)
}

/// The name that an open directory has in the tree whose root is called `root`.
pub fn name_of(directory: BorrowedFd<'_>, root: &Path) -> io::Result<PathBuf> {
    let link = rustix::fs::readlink(format!("/proc/self/fd/{}", directory.as_raw_fd()), Vec::new())?;
    let path = Path::new(std::ffi::OsStr::from_bytes(link.as_bytes()));
    path.strip_prefix(root).map(Path::to_owned).map_err(|_| io::ErrorKind::NotFound.into())
}

/// Removes what `name` in `parent` stands for, with everything below it, except what `stays` names; links are removed,
/// never followed. `path` is its name in the tree.
pub fn remove(parent: BorrowedFd<'_>, name: &Path, path: &Path, stays: &dyn Fn(&Path) -> bool) -> Result<(), Errno> {
    let stat = match statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        stat => stat?,
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return if stays(path) { Ok(()) } else { unlinkat(parent, name, AtFlags::empty()) };
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    empty(openat(parent, name, flags, Mode::empty())?, path, stays)?;
    if stays(path) { Ok(()) } else { unlinkat(parent, name, AtFlags::REMOVEDIR) }
}

/// Removes everything in `directory`, except what `stays` names.
pub fn empty(directory: OwnedFd, path: &Path, stays: &dyn Fn(&Path) -> bool) -> Result<(), Errno> {
    names_in(&directory)?.iter().try_for_each(|name| remove(directory.as_fd(), name, &path.join(name), stays))
}

/// The names of what is in `directory`.
pub fn names_in(directory: &OwnedFd) -> Result<Vec<PathBuf>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(PathBuf::from(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes())));
        }
    }
    Ok(names)
}
