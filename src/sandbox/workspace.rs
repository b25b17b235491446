//! A container's workspace as its runner has it: a descriptor of the directory, by which it is resized before the task
//! starts, and by which files are taken out of it when the task's last process is gone.
//!
//! The runner takes them, not the init: where memory ran out the init may be gone too, and its memory is the task's.
//! Nothing in there can change any more, and no name is followed through a link: every step is resolved by the kernel below
//! the directory (openat2(2), RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, RESOLVE_NO_MAGICLINKS). What is no regular file is never
//! opened.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Dir, FileType, Mode, OFlags, fstat, open};
use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fsconfig_set_string, fspick};

use super::kernel::open_beneath;
use crate::artifact::{Artifact, INLINE, Slice, Spool, read_only};
use crate::image::WORKSPACE;
use crate::task::{Bytes, Omitted, OutputGlob, Outputs, Taken, TakenFile, TransferBounds};

/// Directories below each other that are looked into.
const DEEPEST: usize = 64;
/// Files that are named among those that were left out.
const NAMED: usize = 20;
/// Bytes of the paths that are held while files are looked for: those beyond would not be taken anyway, and a workspace has room
/// for hundreds of megabytes of them.
const PATHS_BYTES: usize = 1 << 20;
const CHUNK: usize = 256 << 10;
const LISTED: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

pub struct Workspace(OwnedFd);

impl Workspace {
    /// Of the container with this init, in which no task runs yet.
    ///
    /// # Errors
    /// Those of the calls.
    pub fn of(init: i32) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(format!("/proc/{init}/root"), flags, Mode::empty())?;
        Ok(Self(open_beneath(&root, WORKSPACE.trim_start_matches('/'), flags, Mode::empty())?))
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
        let mut found = Found::new(&outputs.globs);
        if let Ok(top) = open_beneath(&self.0, ".", LISTED, Mode::empty()) {
            look(top, &mut Place { path: String::new(), is_text: true, depth: 0 }, &mut found)?;
        }
        let missing = found.missing();
        let mut taking = Taking::new(spool, outputs.bounds, found.omitted);
        for path in &found.paths {
            self.take_one(path, &mut taking)?;
        }
        Ok(Taken { missing, ..taking.finish()? })
    }

    fn take_one(&self, path: &str, taking: &mut Taking<'_>) -> io::Result<()> {
        // Looked at before it is opened: to open what is no file could block, or do something.
        let Ok(place) = open_beneath(&self.0, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
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

/// Adds what matches in a directory, and below it. A descriptor for each level is all that is held of the directories.
fn look(directory: OwnedFd, place: &mut Place, found: &mut Found<'_>) -> io::Result<()> {
    let mut directory = Dir::new(directory)?;
    while let Some(entry) = directory.read() {
        let entry = entry?;
        let bytes = entry.file_name().to_bytes();
        if matches!(bytes, b"." | b"..") {
            continue;
        }
        let outer = place.enter(bytes);
        match entry.file_type() {
            // One without permission to be read is its owner's wish; root may read it, unless root is a user's.
            FileType::Directory if place.depth <= DEEPEST => {
                if let Ok(inner) = open_beneath(directory.fd()?, entry.file_name(), LISTED, Mode::empty()) {
                    look(inner, place, found)?;
                }
            }
            FileType::RegularFile => found.add(place),
            _ => {}
        }
        place.leave(outer);
    }
    Ok(())
}

/// Where in the workspace something is.
struct Place {
    /// Lossy, if it is no text.
    path: String,
    is_text: bool,
    depth: usize,
}

impl Place {
    /// Goes on to a name; returns what [`Place::leave`] takes.
    fn enter(&mut self, name: &[u8]) -> (usize, bool) {
        let outer = (self.path.len(), self.is_text);
        if !self.path.is_empty() {
            self.path.push('/');
        }
        self.path.push_str(&String::from_utf8_lossy(name));
        self.is_text &= std::str::from_utf8(name).is_ok();
        self.depth += 1;
        outer
    }

    fn leave(&mut self, (length, is_text): (usize, bool)) {
        self.path.truncate(length);
        self.is_text = is_text;
        self.depth -= 1;
    }
}

/// The files that match, before any of them is opened.
struct Found<'a> {
    globs: &'a [OutputGlob],
    /// Which of the globs match anything.
    matched: Vec<bool>,
    /// The first of them, in their order.
    paths: BTreeSet<String>,
    /// Of the paths together.
    bytes: usize,
    omitted: Omitted,
}

impl<'a> Found<'a> {
    fn new(globs: &'a [OutputGlob]) -> Self {
        Self { globs, matched: vec![false; globs.len()], paths: BTreeSet::new(), bytes: 0, omitted: Omitted::default() }
    }

    fn add(&mut self, place: &Place) {
        let mut is_wanted = false;
        for (glob, matched) in self.globs.iter().zip(&mut self.matched) {
            if (!is_wanted || !*matched) && glob.matches(&place.path) {
                (is_wanted, *matched) = (true, true);
            }
        }
        if !is_wanted {
            return;
        }
        if !place.is_text {
            return omit(&mut self.omitted, &place.path, "its name is not UTF-8".into());
        }
        self.bytes += place.path.len();
        self.paths.insert(place.path.clone());
        while self.bytes > PATHS_BYTES {
            let Some(last) = self.paths.pop_last() else { break };
            self.bytes -= last.len();
            self.omitted.count += 1;
        }
    }

    fn missing(&self) -> Vec<String> {
        let globs = self.globs.iter().zip(&self.matched);
        let missing = globs.filter(|(glob, matched)| !glob.optional && !**matched);
        missing.map(|(glob, _)| glob.as_str().to_owned()).collect()
    }
}

fn omit(omitted: &mut Omitted, path: &str, reason: String) {
    omitted.count += 1;
    if omitted.files.len() < NAMED {
        omitted.files.insert(path.to_owned(), reason);
    }
}

/// What was taken up to now: small files as they are, up to [`INLINE`] in all, all others one after the other in one file of
/// the spool.
struct Taking<'a> {
    bounds: TransferBounds,
    /// Bytes that may still be taken.
    left: u64,
    spool: &'a Spool,
    file: Option<File>,
    end: u64,
    /// Bytes of the small ones.
    inline: u64,
    small: Vec<(String, u32, Vec<u8>)>,
    large: Vec<(String, u32, u64, u64)>,
    omitted: Omitted,
}

impl<'a> Taking<'a> {
    fn new(spool: &'a Spool, bounds: TransferBounds, omitted: Omitted) -> Self {
        let (small, large) = (Vec::new(), Vec::new());
        Self { bounds, left: bounds.total, spool, file: None, end: 0, inline: 0, small, large, omitted }
    }

    fn refuses(&self, size: u64) -> Option<String> {
        let TransferBounds { count, each, total } = self.bounds;
        match () {
            () if size > each => Some(format!("its {} are more than the {} a file may have", Bytes(size), Bytes(each))),
            () if size > self.left => Some(format!("with it all would have more than {}", Bytes(total))),
            () if self.small.len() + self.large.len() >= count as usize => {
                Some(format!("there are {count} files already, as many as a task may leave"))
            }
            () => None,
        }
    }

    fn omit(&mut self, path: &str, reason: String) {
        omit(&mut self.omitted, path, reason);
    }

    fn add(&mut self, path: &str, mode: u32, size: u64, file: File) -> io::Result<()> {
        self.left -= size;
        if self.inline + size <= INLINE {
            self.inline += size;
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
