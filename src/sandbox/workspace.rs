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

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, fstat, open, readlinkat, statat, unlinkat};
use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fsconfig_set_string, fspick};

use super::kernel::open_beneath;
use crate::artifact::{Artifact, INLINE, Slice, Spool, read_only};
use crate::image::WORKSPACE;
use crate::task::{
    Bytes, Entry, FileRefusal, Kind, Omitted, OutputGlob, Outputs, Taken, TakenFile, TransferBounds, WorkspacePath,
};

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

/// Of a workspace in which others may be at work: nothing that was seen once is there for sure the next time.
impl Workspace {
    /// A file's permissions and bytes, copied.
    ///
    /// # Errors
    /// Why it cannot be read.
    pub fn read(&self, path: &str, most: u64, spool: &Spool) -> Result<(u32, Artifact), FileRefusal> {
        let place = open_beneath(&self.0, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(refusal)?;
        let stat = fstat(&place).map_err(|errno| refusal(errno.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(FileRefusal::Wrong(format!("{path:?} is no regular file")));
        }
        if stat.st_size as u64 > most {
            return Err(FileRefusal::Large(format!(
                "{path:?} has {}, more than {}",
                Bytes(stat.st_size as u64),
                Bytes(most)
            )));
        }
        let file = read_only(&place).map_err(refusal)?;
        let copied = spool.keep(file.take(most)).map_err(|error| no_room(&error))?;
        Ok((stat.st_mode & 0o7777, copied))
    }

    /// Removes a file, a link, or an empty directory.
    ///
    /// # Errors
    /// Why it cannot be removed.
    pub fn remove(&self, path: &str) -> Result<(), FileRefusal> {
        let (parent, name) = path.rsplit_once('/').unwrap_or((".", path));
        let parent = open_beneath(&self.0, parent, LISTED | OFlags::PATH, Mode::empty()).map_err(refusal)?;
        match unlinkat(&parent, name, AtFlags::empty()) {
            Err(rustix::io::Errno::ISDIR) => unlinkat(&parent, name, AtFlags::REMOVEDIR),
            other => other,
        }
        .map_err(|errno| refusal(errno.into()))
    }

    /// What is in a directory, by name; names that are no UTF-8 come as nearly as they can.
    ///
    /// # Errors
    /// Why it cannot be read; `Large` with more than `most` entries.
    pub fn list(&self, path: &str, most: usize) -> Result<Vec<Entry>, FileRefusal> {
        let directory = open_beneath(&self.0, path, LISTED, Mode::empty()).map_err(refusal)?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&directory).map_err(|errno| refusal(errno.into()))? {
            let entry = entry.map_err(|errno| refusal(errno.into()))?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            if entries.len() >= most {
                return Err(FileRefusal::Large(format!("{path:?} has more than {most} entries")));
            }
            // What is gone by now is not there.
            let Ok(stat) = statat(&directory, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let kind = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => Kind::File,
                FileType::Directory => Kind::Directory,
                FileType::Symlink => Kind::Symlink,
                _ => Kind::Other,
            };
            let name = String::from_utf8_lossy(entry.file_name().to_bytes()).into_owned();
            entries.push(Entry {
                name,
                kind,
                size: stat.st_size as u64,
                mode: format!("{:04o}", stat.st_mode & 0o7777),
            });
        }
        entries.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(entries)
    }

    /// All regular files, directories and links that lead nowhere else, as an archive.
    ///
    /// # Errors
    /// Why it cannot be made; `Large` with more than `most` bytes.
    pub fn pack(&self, most: u64, spool: &Spool) -> Result<Artifact, FileRefusal> {
        let file = spool.file().map_err(|error| no_room(&error))?;
        let mut archive = tar::Builder::new(io::BufWriter::new(file));
        let mut left = most;
        let top = open_beneath(&self.0, ".", LISTED, Mode::empty()).map_err(refusal)?;
        add_all(&top, "", 0, &mut archive, &mut left)?;
        let file = archive.into_inner().and_then(|buffered| buffered.into_inner().map_err(|error| error.into_error()));
        let file = file.map_err(|error| no_room(&error))?;
        Artifact::whole(Arc::new(read_only(&file).map_err(refusal)?)).map_err(refusal)
    }
}

fn add_all(
    directory: &OwnedFd,
    path: &str,
    depth: usize,
    archive: &mut tar::Builder<io::BufWriter<File>>,
    left: &mut u64,
) -> Result<(), FileRefusal> {
    for entry in Dir::read_from(directory).map_err(|errno| refusal(errno.into()))? {
        let entry = entry.map_err(|errno| refusal(errno.into()))?;
        let Ok(name) = entry.file_name().to_str() else { continue };
        if matches!(name, "." | "..") {
            continue;
        }
        let path = if path.is_empty() { name.to_owned() } else { format!("{path}/{name}") };
        let Ok(place) = open_beneath(directory, name, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
        else {
            continue;
        };
        let Ok(stat) = fstat(&place) else { continue };
        let mut header = tar::Header::new_gnu();
        header.set_mode(stat.st_mode & 0o777);
        header.set_size(0);
        *left = left.checked_sub(ENTRY_BYTES).ok_or_else(too_large)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if depth < DEEPEST => {
                header.set_entry_type(tar::EntryType::Directory);
                archive.append_data(&mut header, &path, io::empty()).map_err(|error| no_room(&error))?;
                if let Ok(inner) = open_beneath(directory, name, LISTED, Mode::empty()) {
                    add_all(&inner, &path, depth + 1, archive, left)?;
                }
            }
            FileType::RegularFile => {
                let Ok(file) = read_only(&place) else { continue };
                let size = stat.st_size as u64;
                *left = left.checked_sub(size).ok_or_else(too_large)?;
                header.set_entry_type(tar::EntryType::Regular);
                header.set_size(size);
                // What it has lost meanwhile is zeros.
                let whole = file.take(size).chain(io::repeat(0)).take(size);
                archive.append_data(&mut header, &path, whole).map_err(|error| no_room(&error))?;
            }
            FileType::Symlink => {
                let Ok(target) = readlinkat(directory, name, Vec::new()) else { continue };
                let Ok(target) = target.to_str() else { continue };
                header.set_entry_type(tar::EntryType::Symlink);
                // Those that lead out of the workspace could not be unpacked.
                if WorkspacePath::parse(&path).is_ok_and(|path| path.leads_inside(target)) {
                    archive.append_link(&mut header, &path, target).map_err(|error| no_room(&error))?;
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// What an entry takes in an archive beside its bytes.
const ENTRY_BYTES: u64 = 1024;

fn too_large() -> FileRefusal {
    FileRefusal::Large("the workspace has more than a snapshot may have (outputs.total)".into())
}

fn no_room(error: &io::Error) -> FileRefusal {
    FileRefusal::Failed(format!("there is no room for what is handed on (outputs.spool): {error}"))
}

fn refusal(error: io::Error) -> FileRefusal {
    match error.kind() {
        io::ErrorKind::NotFound => FileRefusal::Missing,
        io::ErrorKind::NotADirectory | io::ErrorKind::DirectoryNotEmpty => FileRefusal::Wrong(error.to_string()),
        // A link on the way (openat2(2), RESOLVE_NO_SYMLINKS).
        _ if error.raw_os_error() == Some(libc::ELOOP) => FileRefusal::Wrong("a link is on the way".into()),
        _ => FileRefusal::Failed(error.to_string()),
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
        match copy(file, size, spooled) {
            // Of a session's run, where others may be at work.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                io::Seek::seek(spooled, io::SeekFrom::Start(self.end))?;
                self.omit(path, "it changed while it was read".into());
                return Ok(());
            }
            copied => copied?,
        }
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
