//! Archives on their way into a tree: each entry at its place, the later in place of the earlier.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid, chownat, futimens, linkat, mkdirat, symlinkat, utimensat,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tar::{Entry, EntryType};

use super::attributes::{Attributes, DIRECTORY, times};
use super::content::Staged;
use super::guard::{DEPTH, Used};
use super::whiteout::Whiteout;
use super::{Kind, Place, Result, TreeError, Unpacked, at, below, packages};
use crate::task::Digest;

pub struct Unpacking<'a> {
    pub(super) root: OwnedFd,
    /// The root's name at the kernel's.
    name: PathBuf,
    pub(super) kind: Kind,
    place: &'a Place<'a>,
    hash: Sha256,
    used: Used,
    size: u64,
    pub(super) packages: BTreeMap<String, String>,
    /// Each directory and its time, which every new entry in it changes.
    directories: BTreeMap<PathBuf, u64>,
    /// What the archive that is being read has brought: its whiteouts are for the ones before it.
    added: BTreeSet<PathBuf>,
}

/// Where an entry goes.
pub(super) struct Spot {
    pub parent: OwnedFd,
    pub name: PathBuf,
    /// Without the links that its archive may have named it by.
    pub path: PathBuf,
}

impl<'a> Unpacking<'a> {
    /// Into the empty directory of `place`.
    pub fn new(kind: Kind, place: &'a Place<'a>) -> Result<Self> {
        let root = rustix::fs::open(place.tree, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(at("open", place.tree))?;
        let name = std::fs::canonicalize(place.tree).map_err(at("look at", place.tree))?;
        let mut unpacking = Self {
            root,
            name,
            kind,
            place,
            hash: Sha256::new(),
            used: Used::default(),
            size: 0,
            packages: BTreeMap::new(),
            directories: BTreeMap::new(),
            added: BTreeSet::new(),
        };
        if kind == Kind::Layers {
            // Links may lead to them.
            unpacking.mount_points()?;
        }
        Ok(unpacking)
    }

    /// Unpacks one archive over what is there.
    pub fn archive(&mut self, archive: impl Read) -> Result<()> {
        for path in std::mem::take(&mut self.added) {
            self.used.release(&path);
        }
        let (guarded, allowance) = self.used.guard(archive);
        let mut archive = tar::Archive::new(guarded);
        let mut entries = archive.entries().map_err(TreeError::Archive)?;
        loop {
            allowance.headers();
            let Some(entry) = entries.next() else { break };
            let mut entry = entry.map_err(TreeError::Archive)?;
            self.used.entry(entry.size(), entry.path_bytes().len())?;
            allowance.content();
            self.entry(&mut entry)?;
            io::copy(&mut entry, &mut io::sink()).map_err(TreeError::Archive)?;
        }
        allowance.headers();
        // What follows the end mark is padding; whoever writes the archive is heard to its end.
        io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(TreeError::Archive)?;
        Ok(())
    }

    /// Faber's own part, and the times of directories.
    pub fn finish(mut self) -> Result<Unpacked> {
        self.skeleton()?;
        self.set_times()?;
        let Self { hash, size, packages, .. } = self;
        Ok(Unpacked { digest: Digest::new(hash.finalize().into()), size, packages })
    }

    fn entry(&mut self, entry: &mut Entry<'_, impl Read>) -> Result<()> {
        let path = below::normal(&entry.path().map_err(TreeError::Archive)?)?;
        if self.kind == Kind::Packages && path == Path::new(packages::FILE) {
            let mut text = String::new();
            entry.by_ref().take(packages::BYTES).read_to_string(&mut text).map_err(TreeError::Archive)?;
            self.packages = packages::packages(&text);
            return Ok(());
        }
        if path.as_os_str().is_empty() || self.kind.leaves_out(&path) {
            return Ok(());
        }
        refuse_sparse(entry, &path)?;
        let spot = self.spot(&path)?;
        if self.kind.leaves_out(&spot.path) {
            return Ok(());
        }
        if let (Kind::Layers, Some(whiteout)) = (self.kind, Whiteout::parse(&spot.name, &path)?) {
            return self.whiteout(&whiteout, spot);
        }
        self.put(entry, spot)
    }

    fn put(&mut self, entry: &mut Entry<'_, impl Read>, spot: Spot) -> Result<()> {
        let attributes = Attributes::of(entry.header()).map_err(TreeError::Archive)?;
        let link = entry.link_name().map_err(TreeError::Archive)?.map(|link| link.into_owned());
        let path = spot.path.clone();
        match (entry.header().entry_type(), link) {
            (EntryType::Directory, _) => self.directory(spot, &attributes)?,
            (EntryType::Symlink, Some(target)) => self.symlink(spot, &target, &attributes)?,
            (EntryType::Link, Some(target)) => self.hard_link(spot, &below::normal(&target)?)?,
            (EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse, _) => {
                let size = entry.size();
                self.file(spot, size, entry, &attributes)?;
            }
            // Devices and sockets are the runtime's to make.
            _ => return Ok(()),
        }
        if self.kind == Kind::Layers && !self.added.contains(&path) {
            self.used.hold(&path)?;
            self.added.insert(path);
        }
        Ok(())
    }

    fn whiteout(&mut self, whiteout: &Whiteout, spot: Spot) -> Result<()> {
        let added = &self.added;
        let stays =
            |path: &Path| added.range(path.to_owned()..).next().is_some_and(|next: &PathBuf| next.starts_with(path));
        let path = match whiteout {
            Whiteout::Of(name) => {
                let path = spot.path.with_file_name(name);
                below::remove(spot.parent.as_fd(), name, &path, &stays).map_err(at("remove", &path))?;
                path
            }
            Whiteout::Everything => {
                let path = spot.path.parent().unwrap_or(Path::new("")).to_owned();
                let directory = match path.as_os_str().is_empty() {
                    true => self.root.try_clone().map_err(at("open", &path))?,
                    false => below::directory(&self.root, &path).map_err(at("open", &path))?,
                };
                below::empty(directory, &path, &stays).map_err(at("empty", &path))?;
                path
            }
            Whiteout::Other => return Ok(()),
        };
        self.note("whiteout", &path, &DIRECTORY, whiteout.name());
        Ok(())
    }

    fn set_times(&self) -> Result<()> {
        self.directories.iter().try_for_each(|(path, modified)| match below::directory(&self.root, path) {
            Ok(directory) => futimens(&directory, &times(*modified)).map_err(at("set the time of", path)),
            // A later layer took it away, or put something else there.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if self.kind == Kind::Layers => Ok(()),
            Err(errno) => Err(at("open", path)(errno)),
        })
    }

    fn note(&mut self, kind: &str, path: &Path, attributes: &Attributes, content: &[u8]) {
        let Attributes { mode, uid, gid, modified } = attributes;
        let path = path.as_os_str().as_bytes();
        self.hash.update(format!("{kind} {mode:o} {uid} {gid} {modified} {} {} ", path.len(), content.len()));
        self.hash.update(path);
        self.hash.update(content);
    }

    pub(super) fn directory(&mut self, spot: Spot, attributes: &Attributes) -> Result<()> {
        let Spot { parent, name, path } = &spot;
        match mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {}
            Err(Errno::EXIST) => self.room_for_directory(&spot)?,
            Err(errno) => return Err(at("create", path)(errno)),
        }
        let directory = below::directory(parent, name).map_err(at("open", path))?;
        attributes.set(directory.as_fd()).map_err(at("set the attributes of", path))?;
        if self.directories.insert(path.clone(), attributes.modified).is_none() {
            self.used.hold(path)?;
        }
        self.note("directory", path, attributes, b"");
        Ok(())
    }

    /// A directory that is there stays; what is none goes.
    fn room_for_directory(&self, spot: &Spot) -> Result<()> {
        let Spot { parent, name, path } = spot;
        match below::directory(parent, name) {
            Ok(_) => Ok(()),
            Err(Errno::NOTDIR | Errno::LOOP) => {
                self.make_room(spot)?;
                mkdirat(parent, name, Mode::from_raw_mode(0o755)).map_err(at("create", path))
            }
            Err(errno) => Err(at("open", path)(errno)),
        }
    }

    fn symlink(&mut self, spot: Spot, target: &Path, attributes: &Attributes) -> Result<()> {
        self.make_room(&spot)?;
        let Spot { parent, name, path } = &spot;
        symlinkat(target, parent, name).map_err(at("link", path))?;
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map_err(at("chown", path))?;
        utimensat(parent, name, &times(attributes.modified), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(at("set the time of", path))?;
        self.note("symlink", path, attributes, target.as_os_str().as_bytes());
        Ok(())
    }

    fn hard_link(&mut self, spot: Spot, target: &Path) -> Result<()> {
        let from = self.spot(target)?;
        if from.path == spot.path {
            return Ok(());
        }
        self.make_room(&spot)?;
        let Spot { parent, name, path } = &spot;
        match linkat(&from.parent, &from.name, parent, name, AtFlags::empty()) {
            // It was left out.
            Err(Errno::NOENT) => return Ok(()),
            done => done.map_err(at("link", path))?,
        }
        let attributes = Attributes { mode: 0, ..DIRECTORY };
        self.note("link", path, &attributes, from.path.as_os_str().as_bytes());
        Ok(())
    }

    pub(super) fn file(
        &mut self,
        spot: Spot,
        size: u64,
        content: &mut dyn Read,
        attributes: &Attributes,
    ) -> Result<()> {
        let staged = Staged::write(self.place, &spot.path, size, content, attributes)?;
        self.size += size;
        (self.place.progress)(self.size);
        self.note("file", &spot.path, attributes, &staged.hash);
        self.make_room(&spot)?;
        staged.link(spot.parent.as_fd(), &spot.name, &spot.path)
    }

    /// The place of `path`: its directory, made if an archive names a file before that, and its last name.
    pub(super) fn spot(&mut self, path: &Path) -> Result<Spot> {
        let name = path.file_name().map(PathBuf::from).ok_or_else(|| TreeError::LeadsOut(path.to_owned()))?;
        let directory = path.parent().unwrap_or(Path::new(""));
        if directory.as_os_str().is_empty() {
            let parent = self.root.try_clone().map_err(at("open", path))?;
            return Ok(Spot { parent, path: name.clone(), name });
        }
        let parent = self.parent(directory, path)?;
        let real = match self.kind {
            Kind::Packages => directory.to_owned(),
            Kind::Layers => below::name_of(parent.as_fd(), &self.name).map_err(at("look at", directory))?,
        };
        if real.components().count() >= DEPTH {
            return Err(TreeError::TooLarge("directories in directories"));
        }
        Ok(Spot { parent, path: real.join(&name), name })
    }

    fn parent(&mut self, directory: &Path, path: &Path) -> Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match below::open(&self.root, directory, flags | self.kind.last(), self.kind.resolve()) {
            Ok(fd) => Ok(fd),
            Err(Errno::NOENT) => {
                let spot = self.spot(directory)?;
                // A link to what is not there stands where the directory would.
                if rustix::fs::statat(&spot.parent, &spot.name, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
                    return Err(TreeError::LeadsNowhere(path.to_owned()));
                }
                let real = spot.path.clone();
                self.directory(spot, &DIRECTORY)?;
                below::open(&self.root, &real, flags, ResolveFlags::BENEATH).map_err(at("open", directory))
            }
            Err(Errno::LOOP | Errno::NOTDIR) if self.kind == Kind::Layers => {
                Err(TreeError::LeadsNowhere(path.to_owned()))
            }
            // A link on the way, or a file.
            Err(Errno::LOOP | Errno::XDEV | Errno::NOTDIR) => Err(TreeError::LeadsOut(path.to_owned())),
            Err(errno) => Err(at("open", directory)(errno)),
        }
    }

    /// A later entry of the same name takes the place of an earlier one.
    pub(super) fn make_room(&self, spot: &Spot) -> Result<()> {
        below::remove(spot.parent.as_fd(), &spot.name, &spot.path, &|_| false).map_err(at("replace", &spot.path))
    }
}

/// The newer forms of sparse files look like plain ones to who does not know them.
fn refuse_sparse(entry: &mut Entry<'_, impl Read>, path: &Path) -> Result<()> {
    let Some(extensions) = entry.pax_extensions().map_err(TreeError::Archive)? else { return Ok(()) };
    let mut keys = extensions.flatten().map(|extension| extension.key_bytes().to_owned());
    if keys.any(|key| key.starts_with(b"GNU.sparse")) { Err(TreeError::Sparse(path.to_owned())) } else { Ok(()) }
}
