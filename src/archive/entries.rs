//! The entries of an archive as they are read, whatever its format: each is checked against those before it, counted,
//! and listed.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::ops::Bound::{Excluded, Included, Unbounded};

use super::{ArchiveError, BUFFER, Bounds, Entry, Kind, Refusal};
use crate::task::WorkspacePath;

/// The longest target of a symbolic link (`PATH_MAX` with its NUL).
pub const TARGET_BYTES: usize = 4095;

/// An entry as its archive tells it. Its name and the targets of links are not looked at yet.
pub enum Found<'a> {
    /// `size` is what the header says: `content` has to have as much.
    File {
        mode: u32,
        size: u64,
        content: &'a mut dyn Read,
    },
    Directory,
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
}

pub struct Entries<'a> {
    below: Option<&'a WorkspacePath>,
    pub bounds: Bounds,
    contents: &'a mut dyn Write,
    written: u64,
    /// How much more the files may have.
    left: u64,
    pub list: Vec<Entry>,
    /// What is at which path, by [`key`].
    places: BTreeMap<String, Place>,
    buffer: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Directory,
    Symlink,
    File { mode: u32, offset: u64, size: u64 },
}

/// Why an entry is not taken: for what it is, or for what it would be together with those before it.
enum Stop {
    Refused(Refusal),
    Error(ArchiveError),
}

impl<E: Into<Refusal>> From<E> for Stop {
    fn from(refusal: E) -> Self {
        Self::Refused(refusal.into())
    }
}

/// The error for the entry called `name`.
pub fn refused(name: &[u8], reason: Refusal) -> ArchiveError {
    ArchiveError::Entry { name: String::from_utf8_lossy(name).chars().take(100).collect(), reason }
}

impl<'a> Entries<'a> {
    pub fn new(below: Option<&'a WorkspacePath>, bounds: Bounds, contents: &'a mut dyn Write) -> Self {
        let (list, places, buffer) = (Vec::new(), BTreeMap::new(), vec![0; BUFFER]);
        Self { below, bounds, contents, written: 0, left: bounds.bytes, list, places, buffer }
    }

    /// Takes the next entry of the archive: a file's bytes go into the contents.
    pub fn add(&mut self, name: &[u8], found: Found<'_>) -> Result<(), ArchiveError> {
        self.check_and_add(name, found).map_err(|stop| match stop {
            Stop::Refused(reason) => refused(name, reason),
            Stop::Error(error) => error,
        })
    }

    fn check_and_add(&mut self, name: &[u8], found: Found<'_>) -> Result<(), Stop> {
        let name = utf8(name)?;
        match found {
            Found::Directory => self.directory(name),
            // Old tars know no other directories, and zips only these.
            Found::File { .. } if name.ends_with('/') => self.directory(name),
            Found::File { mode, size, content } => {
                let path = self.new_path(name)?;
                let kind = self.file(mode, size, content)?;
                self.put(path, kind)
            }
            Found::Symlink(target) => {
                let path = self.new_path(name)?;
                let target = checked_target(&path, &target)?;
                self.put(path, Kind::Symlink { target })
            }
            Found::HardLink(target) => {
                let path = self.new_path(name)?;
                let kind = self.hard_link(&target)?;
                self.put(path, kind)
            }
        }
    }

    fn directory(&mut self, name: &str) -> Result<(), Stop> {
        if is_top(name) {
            return Ok(());
        }
        let path = self.path(without_ending(name))?;
        if self.places.get(&key(&path)) == Some(&Place::Directory) {
            return Ok(());
        }
        self.check_place(&path)?;
        self.put(path, Kind::Directory)
    }

    /// Copies `content`; the bound is looked at before each write, so that a bomb ends here.
    fn file(&mut self, mode: u32, declared: u64, content: &mut dyn Read) -> Result<Kind, Stop> {
        let offset = self.written;
        loop {
            let length = match content.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Refusal::Unreadable(error).into()),
            };
            self.count(length as u64)?;
            self.contents.write_all(&self.buffer[..length]).map_err(|error| Stop::Error(ArchiveError::Write(error)))?;
            self.written += length as u64;
        }
        let size = self.written - offset;
        match size == declared {
            true => Ok(Kind::File { mode: mode & 0o777 | 0o600, offset, size }),
            false => Err(Refusal::Size { declared, real: size }.into()),
        }
    }

    /// Another name for the same bytes. They count once more: placed, they may be a copy.
    fn hard_link(&mut self, target: &[u8]) -> Result<Kind, Stop> {
        let target = utf8(target)?;
        match self.places.get(&key(&self.path(target)?)) {
            Some(&Place::File { mode, offset, size }) => {
                self.count(size)?;
                Ok(Kind::File { mode, offset, size })
            }
            _ => Err(Refusal::HardLink(target.chars().take(100).collect()).into()),
        }
    }

    fn count(&mut self, bytes: u64) -> Result<(), Stop> {
        let too_large = Stop::Error(ArchiveError::Bytes(self.bounds.bytes));
        self.left = self.left.checked_sub(bytes).ok_or(too_large)?;
        Ok(())
    }

    /// The path of a file or link: nothing of the archive is at it or below it, and only directories are above.
    fn new_path(&self, name: &str) -> Result<WorkspacePath, Stop> {
        let path = self.path(name)?;
        self.check_place(&path)?;
        let key = key(&path);
        let next = self.places.range::<str, _>((Excluded(key.as_str()), Unbounded)).next();
        match next.is_some_and(|(next, _)| lies_below(next, &key)) {
            true => Err(Refusal::Twice.into()),
            false => Ok(path),
        }
    }

    fn path(&self, name: &str) -> Result<WorkspacePath, Refusal> {
        // On its own first: below a directory, an absolute name would be a relative one.
        let path = WorkspacePath::parse(name)?;
        let Some(below) = self.below else { return Ok(path) };
        Ok(WorkspacePath::parse(&format!("{}/{}", below.as_str(), path.as_str()))?)
    }

    /// Refuses a path that is taken, or lies below a file or link. One look is enough: nothing lies between such a
    /// file and what would be below it, because nothing was let there.
    fn check_place(&self, path: &WorkspacePath) -> Result<(), Stop> {
        if self.list.len() >= self.bounds.entries {
            return Err(Stop::Error(ArchiveError::Entries(self.bounds.entries)));
        }
        let key = key(path);
        match self.places.range::<str, _>((Unbounded, Included(key.as_str()))).next_back() {
            Some((before, _)) if *before == key => Err(Refusal::Twice.into()),
            Some((before, place)) if *place != Place::Directory && lies_below(&key, before) => {
                Err(Refusal::BelowFile(before.replace('\0', "/").chars().take(100).collect()).into())
            }
            _ => Ok(()),
        }
    }

    fn put(&mut self, path: WorkspacePath, kind: Kind) -> Result<(), Stop> {
        let place = match kind {
            Kind::File { mode, offset, size } => Place::File { mode, offset, size },
            Kind::Directory => Place::Directory,
            Kind::Symlink { .. } => Place::Symlink,
        };
        self.places.insert(key(&path), place);
        self.list.push(Entry { path, kind });
        Ok(())
    }
}

/// The path with NUL for '/'. No name has a byte below, so that what lies below a path sorts right behind it.
fn key(path: &WorkspacePath) -> String {
    path.as_str().replace('/', "\0")
}

fn lies_below(key: &str, above: &str) -> bool {
    key.strip_prefix(above).is_some_and(|rest| rest.starts_with('\0'))
}

fn utf8(bytes: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(bytes).map_err(|_| Refusal::NotUtf8)
}

/// Whether a directory's name is the top itself, which is there already.
fn is_top(name: &str) -> bool {
    name.starts_with('.') && name.split('/').all(|name| matches!(name, "" | "."))
}

/// A directory's name without what says that it is one: `a` for `a/`, `a//` and `a/.`.
fn without_ending(mut name: &str) -> &str {
    while let Some(rest) = name.strip_suffix('/').or_else(|| name.strip_suffix("/.")).filter(|rest| !rest.is_empty()) {
        name = rest;
    }
    name
}

/// Walks `target` from the directory of the link, name by name and without looking at what is there.
fn checked_target(link: &WorkspacePath, target: &[u8]) -> Result<String, Refusal> {
    let target = utf8(target)?;
    if target.is_empty() || target.len() > TARGET_BYTES || target.contains('\0') {
        return Err(Refusal::Target);
    }
    let mut names = target.split('/').filter(|name| !matches!(*name, "" | "."));
    let depth = names.try_fold(link.parents().count(), |depth, name| match name {
        ".." => depth.checked_sub(1),
        _ => Some(depth + 1),
    });
    match depth {
        Some(_) if !target.starts_with('/') => Ok(target.to_owned()),
        _ => Err(Refusal::LeadsOut(target.chars().take(100).collect())),
    }
}
