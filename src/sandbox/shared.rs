//! A directory of root's that one unprivileged process may write to, by descriptor: shown ID-mapped, so that its files stay
//! root's on the disk whoever that process is this time.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::Path;

use rustix::mount::{OpenTreeFlags, open_tree};

use super::ids::UidRange;
use super::kernel;
use super::namespaces::Namespaces;

/// A directory that a process may write to that has its descriptor.
pub struct Shared {
    pub directory: OwnedFd,
    /// Held where the directory was given away: only one may have it then.
    _lock: Option<File>,
}

/// Makes the directory, which is nobody else's, and opens it for the first user of `ids`. (mount_setattr(2))
///
/// Where it cannot be ID-mapped, it is given to that user, unless another Faber that lives has it.
///
/// # Errors
/// Those of the calls; `WouldBlock` when another has it.
pub fn share_directory(path: &Path, ids: &UidRange) -> io::Result<Shared> {
    match DirBuilder::new().recursive(true).mode(0o755).create(path.parent().unwrap_or(path)) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => keep_closed(path)?,
        done => done?,
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let namespaces = Namespaces::create(ids).map_err(io::Error::other)?;
    let mapped = open_tree(rustix::fs::CWD, path, flags).map_err(io::Error::from).and_then(|tree| {
        const PLAIN: u64 = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        kernel::mount_setattr(tree.as_fd(), PLAIN, Some(namespaces.user())).map(|()| tree)
    });
    match mapped {
        Ok(directory) => Ok(Shared { directory, _lock: None }),
        Err(_) => give(path, ids.base()),
    }
}

/// One that is there: no link, and whatever it was, nobody else gets in from now on.
fn keep_closed(path: &Path) -> io::Result<()> {
    let directory = open(path)?;
    if directory.metadata()?.mode() & 0o077 == 0 {
        return Ok(());
    }
    directory.set_permissions(fs::Permissions::from_mode(0o700))
}

fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

/// The lock is beside the directory, which has locks of its own.
fn give(path: &Path, id: u32) -> io::Result<Shared> {
    let mut lock = File::options();
    lock.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    let lock = lock.open(path.with_extension("lock"))?;
    lock.try_lock().map_err(io::Error::from)?;
    give_all(path, id)?;
    Ok(Shared { directory: open(path)?.into(), _lock: Some(lock) })
}

/// Two levels of directories and the files in them, none of which is a link.
fn give_all(path: &Path, id: u32) -> io::Result<()> {
    lchown(path, Some(id), Some(id))?;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => give_all(&entry.path(), id)?,
            false => lchown(entry.path(), Some(id), Some(id))?,
        }
    }
    Ok(())
}
