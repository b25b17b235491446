//! How the store's files and directories are opened and made: through no link, and with nobody else's hands on them.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use rustix::fs::OFlags;

const OTHERS_MAY_WRITE: u32 = 0o022;

/// A regular file, for reading; a FIFO in its place is not waited for (open(2), O_NONBLOCK).
pub fn file(path: &Path) -> io::Result<File> {
    let file = without_links(OFlags::NONBLOCK).read(true).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

pub fn directory(path: &Path) -> io::Result<File> {
    without_links(OFlags::DIRECTORY).read(true).open(path)
}

/// A file for flock(2), made if need be. Whoever can open a file can hold a lock on it, so its owner alone can.
pub fn lock_file(path: &Path) -> io::Result<File> {
    without_links(OFlags::NONBLOCK).read(true).write(true).create(true).mode(0o600).open(path)
}

fn without_links(flags: OFlags) -> OpenOptions {
    let mut options = File::options();
    options.custom_flags((OFlags::NOFOLLOW | flags).bits().cast_signed());
    options
}

/// Makes a directory of ours, or takes from one that is there what its mode has beyond `mode`.
///
/// # Errors
/// Those of the calls; `PermissionDenied` where it is somebody else's.
pub fn make_directory(path: &Path, mode: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => keep_directory(path, mode),
        done => done,
    }
}

/// The same for one that is there.
///
/// # Errors
/// Those of [`make_directory`].
pub fn keep_directory(path: &Path, mode: u32) -> io::Result<()> {
    let directory = directory(path)?;
    let meta = directory.metadata()?;
    if meta.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let kept = meta.mode() & mode;
    if meta.mode() & 0o7777 == kept { Ok(()) } else { directory.set_permissions(Permissions::from_mode(kept)) }
}

/// Whether somebody else could put things into the directory that `path` leads to, or take them away.
pub fn is_open_to_others(path: &Path) -> io::Result<bool> {
    let meta = fs::metadata(path)?;
    Ok(meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & OTHERS_MAY_WRITE != 0)
}

/// Has the names in a directory survive a power cut (fsync(2)).
pub fn sync_directory(path: &Path) -> io::Result<()> {
    directory(path)?.sync_all()
}

/// Has everything that was written so far to the file system of `path` survive a power cut: one call for any number of
/// files (syncfs(2)).
pub fn sync_file_system(path: &Path) -> io::Result<()> {
    Ok(rustix::fs::syncfs(directory(path)?)?)
}
