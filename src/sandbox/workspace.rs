//! A container's workspace as its runner has it: a descriptor of the directory, by which it is resized before the task
//! starts, and by which files are taken out of it when the task's last process is gone.
//!
//! The runner takes them, not the init: where memory ran out the init may be gone too, and its memory is the task's.
//! Nothing in there can change any more, and no name is followed through a link: every step is resolved by the kernel below
//! the directory (openat2(2), RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_MAGICLINKS). What is no regular file is never
//! opened.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Dir, FileType, Mode, OFlags, ResolveFlags, fstat, open, openat2};
use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fsconfig_set_string, fspick};

use crate::artifact::{Artifact, INLINE, Slice, Spool, read_only};
use crate::image::WORKSPACE;
use crate::task::{Omitted, Outputs, Taken, TakenFile, TransferBounds};

/// Directories below each other that are looked into.
const DEEPEST: usize = 64;
/// Files that are named among those that were left out.
const NAMED: usize = 20;
const CHUNK: usize = 256 << 10;

pub struct Workspace(OwnedFd);

impl Workspace {
    /// Of the container with this init, in which no task runs yet.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn of(init: i32) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(format!("/proc/{init}/root"), flags, Mode::empty())?;
        Ok(Self(beneath(&root, WORKSPACE.trim_start_matches('/'), flags)?))
    }

    /// Gives it room for so many bytes. (fspick(2), tmpfs(5))
    ///
    /// # Errors
    /// Those of the calls.
    pub fn resize(&self, bytes: u64) -> io::Result<()> {
        let context = fspick(&self.0, "", FsPickFlags::FSPICK_EMPTY_PATH | FsPickFlags::FSPICK_CLOEXEC)?;
        fsconfig_set_string(context.as_fd(), "size", bytes.to_string())?;
        Ok(fsconfig_reconfigure(context.as_fd())?)
    }

    /// Takes the files that `outputs` names into the spool.
    ///
    /// # Errors
    /// When the workspace cannot be read, or the spool is full.
    pub fn take(&self, outputs: &Outputs, spool: &Spool) -> io::Result<Taken<Artifact>> {
        let found = self.find(outputs)?;
        let mut taking = Taking { bounds: outputs.bounds, left: outputs.bounds.total, ..Taking::new(spool) };
        for (path, matched) in &found {
            match matched {
                Ok(()) => self.take_one(path, &mut taking)?,
                Err(reason) => taking.omit(path, (*reason).to_owned()),
            }
        }
        let is_missing =
            |glob: &&crate::task::OutputGlob| !glob.optional && !found.keys().any(|path| glob.matches(path));
        let missing = outputs.globs.iter().filter(is_missing).map(|glob| glob.as_str().to_owned()).collect();
        Ok(Taken { missing, ..taking.finish()? })
    }

    /// The paths that match, each with the reason if it cannot be taken.
    fn find(&self, outputs: &Outputs) -> io::Result<BTreeMap<String, Result<(), &'static str>>> {
        let mut found = BTreeMap::new();
        let mut directories = VecDeque::from([(String::new(), 0)]);
        while let Some((path, depth)) = directories.pop_front() {
            let name = if path.is_empty() { "." } else { &path };
            // One without permission to be read is its owner's wish; root may read it, unless root is a user's.
            let Ok(directory) = beneath(&self.0, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC) else {
                continue;
            };
            for entry in Dir::new(directory)? {
                let entry = entry?;
                let bytes = entry.file_name().to_bytes();
                if matches!(bytes, b"." | b"..") {
                    continue;
                }
                let name = String::from_utf8_lossy(bytes);
                let below = if path.is_empty() { name.clone().into_owned() } else { format!("{path}/{name}") };
                match entry.file_type() {
                    FileType::Directory if depth < DEEPEST => directories.push_back((below, depth + 1)),
                    FileType::RegularFile if outputs.globs.iter().any(|glob| glob.matches(&below)) => {
                        let is_text = std::str::from_utf8(bytes).is_ok();
                        found.insert(below, if is_text { Ok(()) } else { Err("its name is not UTF-8") });
                    }
                    _ => {}
                }
            }
        }
        Ok(found)
    }

    fn take_one(&self, path: &str, taking: &mut Taking<'_>) -> io::Result<()> {
        // Looked at before it is opened: to open what is no file could block, or do something.
        let Ok(place) = beneath(&self.0, path, OFlags::PATH | OFlags::CLOEXEC) else {
            taking.omit(path, "it cannot be opened".into());
            return Ok(());
        };
        let stat = fstat(&place)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Ok(());
        }
        let (size, mode) = (stat.st_size as u64, stat.st_mode & 0o777);
        if let Some(reason) = taking.refuses(size) {
            taking.omit(path, reason);
            return Ok(());
        }
        match read_only(&place) {
            Ok(file) => taking.add(path, mode, size, file),
            Err(_) => {
                taking.omit(path, "it cannot be opened".into());
                Ok(())
            }
        }
    }
}

fn beneath(root: &OwnedFd, path: &str, flags: OFlags) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(root, path, flags, Mode::empty(), resolve)?)
}

/// What was taken up to now: small files as they are, all others one after the other in one file of the spool.
struct Taking<'a> {
    bounds: TransferBounds,
    /// Bytes that may still be taken.
    left: u64,
    spool: &'a Spool,
    file: Option<File>,
    end: u64,
    small: Vec<(String, u32, Vec<u8>)>,
    large: Vec<(String, u32, u64, u64)>,
    omitted: Omitted,
}

impl<'a> Taking<'a> {
    fn new(spool: &'a Spool) -> Self {
        Self {
            bounds: TransferBounds { count: 0, each: 0, total: 0 },
            left: 0,
            spool,
            file: None,
            end: 0,
            small: Vec::new(),
            large: Vec::new(),
            omitted: Omitted::default(),
        }
    }

    fn refuses(&self, size: u64) -> Option<String> {
        let TransferBounds { count, each, total } = self.bounds;
        match () {
            () if size > each => Some(format!("its {size} bytes are more than the {each} a file may have")),
            () if size > self.left => Some(format!("with it all would have more than {total} bytes")),
            () if self.small.len() + self.large.len() >= count as usize => {
                Some(format!("there are {count} files already, as many as a task may leave"))
            }
            () => None,
        }
    }

    fn omit(&mut self, path: &str, reason: String) {
        self.omitted.count += 1;
        if self.omitted.files.len() < NAMED {
            self.omitted.files.insert(path.to_owned(), reason);
        }
    }

    fn add(&mut self, path: &str, mode: u32, size: u64, file: File) -> io::Result<()> {
        self.left -= size;
        if size <= INLINE {
            let mut bytes = Vec::new();
            file.take(size).read_to_end(&mut bytes)?;
            self.small.push((path.to_owned(), mode, bytes));
            return Ok(());
        }
        let spooled = match &mut self.file {
            Some(spooled) => spooled,
            none => none.insert(self.spool.file()?),
        };
        copy(file, size, spooled)?;
        self.large.push((path.to_owned(), mode, self.end, size));
        self.end += size;
        Ok(())
    }

    fn finish(self) -> io::Result<Taken<Artifact>> {
        let mut files: Vec<TakenFile<Artifact>> =
            self.small.into_iter().map(|(path, mode, bytes)| TakenFile { path, mode, content: bytes.into() }).collect();
        if let Some(file) = &self.file {
            let file = Arc::new(read_only(file)?);
            files.extend(self.large.into_iter().map(|(path, mode, offset, size)| {
                let content = Artifact::File(Slice { file: file.clone(), offset, size });
                TakenFile { path, mode, content }
            }));
        }
        files.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(Taken { files, omitted: self.omitted, ..Taken::default() })
    }
}

/// Exactly so many bytes: holes are read as zeros, without becoming memory of the task's.
fn copy(mut from: File, size: u64, to: &mut File) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    let mut left = size;
    while left > 0 {
        let length = chunk.len().min(usize::try_from(left).unwrap_or(CHUNK));
        from.read_exact(&mut chunk[..length])?;
        io::Write::write_all(to, &chunk[..length])?;
        left -= length as u64;
    }
    Ok(())
}
