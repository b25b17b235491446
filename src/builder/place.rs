//! Files that go into the root file system, and those that are read back. What a package or a step left there may be
//! anything: what is written has its name resolved inside the root, links included, and the last one is never followed; what
//! is read is reached over no link at all, is a regular file, and no longer than it may be.

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
fn open_root(workshop: &Workshop<'_>) -> io::Result<OwnedFd> {
    open_directory(&workshop.root())
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
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

/// The text of a file in the root.
///
/// # Errors
/// `NotFound`; where a link is on the way, where it is no regular file, longer than 64 MiB, or no text.
pub fn read(workshop: &Workshop<'_>, path: &Path) -> io::Result<String> {
    read_below(open_root(workshop)?, path.strip_prefix("/").unwrap_or(path))
}

/// The same for a file beside the root, which programs of the machine wrote as the namespace's root: a package's script is
/// no less.
///
/// # Errors
/// Those of [`read`].
pub fn read_beside(workshop: &Workshop<'_>, name: &str) -> io::Result<String> {
    read_below(open_directory(workshop.beside())?, Path::new(name))
}

fn read_below(directory: OwnedFd, path: &Path) -> io::Result<String> {
    // A FIFO is not waited for (open(2), O_NONBLOCK).
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let without_links = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let file = File::from(openat2(directory, path, flags, Mode::empty(), without_links)?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn only_a_regular_file_that_no_link_leads_to_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("below");
        fs::create_dir_all(below.join("directory")).unwrap();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        fs::write(below.join("file"), "text").unwrap();
        fs::write(below.join("directory/file"), "deep").unwrap();
        symlink("../secret", below.join("out")).unwrap();
        symlink("file", below.join("inside")).unwrap();
        symlink("directory", below.join("over")).unwrap();
        symlink("/proc/self/root", below.join("magic")).unwrap();
        nix::unistd::mkfifo(&below.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        File::create(below.join("large")).unwrap().set_len(BYTES).unwrap();
        fs::write(below.join("binary"), [0xff]).unwrap();
        let read = |name: &str| {
            read_below(open_directory(&below).unwrap(), Path::new(name)).map_err(|error| error.to_string())
        };
        assert_eq!([read("file"), read("directory/file")], [Ok("text".to_owned()), Ok("deep".to_owned())]);
        let refused = [
            "out",
            "inside",
            "over/file",
            "magic/etc/passwd",
            "../secret",
            "fifo",
            "directory",
            "large",
            "binary",
            "absent",
        ];
        let taken: Vec<_> = refused.into_iter().filter(|name| read(name).is_ok()).collect();
        assert_eq!(taken, [] as [&str; 0]);
        // Who writes to it keeps nobody waiting either.
        let _writer = File::options().read(true).write(true).open(below.join("fifo")).unwrap();
        assert_eq!(read("fifo").unwrap_err(), "it is no regular file");
    }
}
