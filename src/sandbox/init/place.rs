//! Puts a task's files into its workspace, before anything of the task runs.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Mode, OFlags, fchmod, mkdirat, open, symlinkat, unlinkat};

use super::wire::{Files, Source};
use crate::sandbox::kernel::open_beneath;
use crate::task::{FILE_MODE, Node};

const CHUNK: usize = 256 << 10;

/// Makes `files`; the bytes of some are the next of `contents`, those of others in one of `descriptors`.
///
/// # Errors
/// The first file that could not be made: ENOSPC when the workspace is full.
pub fn files(workspace: &str, files: &Files, descriptors: &[OwnedFd], mut contents: impl Read) -> io::Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    let root = open(workspace, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for (path, node) in files {
        for parent in path.parents() {
            directory(&root, parent)?;
        }
        // Of a session, where it takes the place of what is there. What others put there meanwhile is an error.
        if !matches!(node, Node::Directory) {
            let (parent, name) = parent(&root, path.as_str())?;
            let _ = unlinkat(parent, name, AtFlags::empty());
        }
        match node {
            Node::Directory => directory(&root, path.as_str())?,
            Node::Symlink(target) => {
                let (parent, name) = parent(&root, path.as_str())?;
                symlinkat(target.as_str(), parent, name)?;
            }
            Node::File { content, mode } => {
                let mode = Mode::from_raw_mode(mode.unwrap_or(FILE_MODE));
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mut file = File::from(open_beneath(&root, path.as_str(), flags, mode)?);
                match *content {
                    Source::Follows(length) => {
                        if io::copy(&mut contents.by_ref().take(length), &mut file)? != length {
                            return Err(io::ErrorKind::UnexpectedEof.into());
                        }
                    }
                    Source::File { index, offset, size } => {
                        let source = descriptors.get(index as usize).ok_or(io::ErrorKind::InvalidInput)?;
                        copy(source, offset, size, &file)?;
                    }
                }
                // What was asked for, whatever the umask.
                fchmod(&file, mode)?;
            }
        }
    }
    Ok(())
}

/// By pread(2): others read the same open file, whose position is theirs too.
fn copy(source: &OwnedFd, offset: u64, size: u64, to: &File) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK.min(usize::try_from(size).unwrap_or(CHUNK))];
    let mut at = 0;
    while at < size {
        let length = chunk.len().min(usize::try_from(size - at).unwrap_or(CHUNK));
        let read = rustix::io::pread(source, &mut chunk[..length], offset + at)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        to.write_all_at(&chunk[..read], at)?;
        at += read as u64;
    }
    Ok(())
}

fn directory(root: &OwnedFd, path: &str) -> io::Result<()> {
    let (parent, name) = parent(root, path)?;
    match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The directory that a path is in, and its name there.
fn parent<'a>(root: &OwnedFd, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
    let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
    Ok((open_beneath(root, parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?, name))
}
