//! A root file system as the store keeps it: made from a tar archive, without what tasks never need, with one digest over
//! all of it. Files are kept once by their content and attributes, and linked into every tree that has them, so images
//! share disk and page cache wherever they have the same file.
//!
//! An archive may be anybody's. Names are resolved below the tree and never through a link; devices, setuid bits and
//! names that lead out do not come in.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, chownat, fchmod, fchown, futimens, linkat,
    mkdirat, openat2, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tar::{Entry, EntryType};

use super::{MOUNT_POINTS, SKELETON};
use crate::task::Digest;

/// What a tree is made like. A change here makes every definition another one.
pub const FORM: &str = "2";

/// Documentation, caches and what only the package manager needs: below these nothing comes in.
const LEFT_OUT: [&str; 25] = [
    "boot",
    "dev",
    "home",
    "media",
    "mnt",
    "proc",
    "root",
    "run",
    "srv",
    "sys",
    "tmp",
    "var/cache/apt",
    "var/cache/debconf",
    "var/cache/man",
    "var/lib/apt",
    "var/lib/dpkg",
    "var/log",
    "usr/share/bug",
    "usr/share/doc",
    "usr/share/doc-base",
    "usr/share/info",
    "usr/share/lintian",
    "usr/share/locale",
    "usr/share/man",
    "etc/shadow",
];
/// Where Debian keeps the list of its packages (dpkg(1)).
const PACKAGES: &str = "var/lib/dpkg/status";
/// No list of packages is larger.
const PACKAGES_BYTES: u64 = 64 << 20;
/// What an archive may hold at most: beyond it is no root file system, but a bomb.
const BYTES: u64 = 32 << 30;
const ENTRIES: usize = 4_000_000;

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("read the archive")]
    Archive(#[source] io::Error),
    #[error("{step} {path}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("the archive holds {0:?}, which leads out of the tree")]
    LeadsOut(PathBuf),
    #[error("the archive holds more than a root file system may: {0}")]
    TooLarge(&'static str),
}

type Result<T> = std::result::Result<T, TreeError>;

fn at<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl Fn(E) -> TreeError {
    move |error| TreeError::Io { step, path: path.to_owned(), source: error.into() }
}

/// What came of an archive.
#[derive(Debug)]
pub struct Unpacked {
    pub digest: Digest,
    /// Bytes of all its files.
    pub size: u64,
    pub packages: BTreeMap<String, String>,
}

/// Unpacks `archive` into the empty directory `tree`. Files are shared with those in `files`, on the same file system.
pub fn unpack(archive: impl Read, tree: &Path, files: &Path, progress: &dyn Fn(u64)) -> Result<Unpacked> {
    let root = open_directory(tree)?;
    let mut unpacking = Unpacking {
        root,
        files,
        hash: Sha256::new(),
        size: 0,
        packages: BTreeMap::new(),
        directories: BTreeMap::new(),
        progress,
    };
    let mut archive = tar::Archive::new(archive);
    for (count, entry) in archive.entries().map_err(TreeError::Archive)?.enumerate() {
        if count >= ENTRIES {
            return Err(TreeError::TooLarge("entries"));
        }
        unpacking.entry(entry.map_err(TreeError::Archive)?)?;
    }
    // What follows the end mark is padding; whoever writes the archive is heard to its end.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(TreeError::Archive)?;
    unpacking.skeleton()?;
    unpacking.set_times()?;
    let Unpacking { hash, size, packages, .. } = unpacking;
    Ok(Unpacked { digest: Digest::new(hash.finalize().into()), size, packages })
}

struct Unpacking<'a> {
    root: OwnedFd,
    files: &'a Path,
    hash: Sha256,
    size: u64,
    packages: BTreeMap<String, String>,
    /// Each directory and its time, which every new entry in it changes.
    directories: BTreeMap<PathBuf, u64>,
    progress: &'a dyn Fn(u64),
}

/// What all kinds of entries have.
struct Attributes {
    mode: u32,
    uid: u32,
    gid: u32,
    modified: u64,
}

impl Unpacking<'_> {
    fn entry(&mut self, mut entry: Entry<'_, impl Read>) -> Result<()> {
        let path = normal(&entry.path().map_err(TreeError::Archive)?)?;
        if path == Path::new(PACKAGES) {
            let mut text = String::new();
            entry.by_ref().take(PACKAGES_BYTES).read_to_string(&mut text).map_err(TreeError::Archive)?;
            self.packages = packages(&text);
            return Ok(());
        }
        if path.as_os_str().is_empty() || LEFT_OUT.iter().any(|left_out| path.starts_with(left_out)) {
            return Ok(());
        }
        let header = entry.header();
        let number = |value: io::Result<u64>| value.map_err(TreeError::Archive);
        let attributes = Attributes {
            // No setuid, setgid: they would be without effect, and nobody is to wonder.
            mode: header.mode().map_err(TreeError::Archive)? & 0o1777,
            uid: id(number(header.uid())?),
            gid: id(number(header.gid())?),
            modified: number(header.mtime())?,
        };
        let link = entry.link_name().map_err(TreeError::Archive)?.map(|link| link.into_owned());
        match (entry.header().entry_type(), link) {
            (EntryType::Directory, _) => self.directory(&path, &attributes),
            (EntryType::Symlink, Some(target)) => self.symlink(&path, &target, &attributes),
            (EntryType::Link, Some(target)) => self.hard_link(&path, &normal(&target)?),
            (EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse, _) => {
                let size = entry.size();
                self.file(&path, size, &mut entry, &attributes)
            }
            // Devices and sockets are the runtime's to make.
            _ => Ok(()),
        }
    }

    /// Faber's own part: the mount points, and an /etc that every image has.
    fn skeleton(&mut self) -> Result<()> {
        let attributes = Attributes { mode: 0o755, uid: 0, gid: 0, modified: 0 };
        for name in MOUNT_POINTS {
            self.directory(Path::new(name), &attributes)?;
        }
        let readable = Attributes { mode: 0o644, ..attributes };
        for (name, content) in SKELETON {
            let path = Path::new("etc").join(name);
            let parent = self.parent(&path)?;
            match unlinkat(&parent.0, parent.1.as_os_str(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(at("replace", &path)(errno)),
            }
            self.file(&path, content.len() as u64, &mut content.as_bytes(), &readable)?;
        }
        Ok(())
    }

    fn set_times(&self) -> Result<()> {
        self.directories.iter().try_for_each(|(path, modified)| {
            let directory = beneath(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(at("open", path))?;
            futimens(&directory, &times(*modified)).map_err(at("set the time of", path))
        })
    }

    fn note(&mut self, kind: &str, path: &Path, attributes: &Attributes, content: &[u8]) {
        let Attributes { mode, uid, gid, modified } = attributes;
        let path = path.as_os_str().as_bytes();
        self.hash.update(format!("{kind} {mode:o} {uid} {gid} {modified} {} {} ", path.len(), content.len()));
        self.hash.update(path);
        self.hash.update(content);
    }

    fn directory(&mut self, path: &Path, attributes: &Attributes) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        match mkdirat(&parent, name.as_os_str(), Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(at("create", path)(errno)),
        }
        let directory = beneath(&self.root, path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(at("open", path))?;
        set(directory.as_fd(), attributes).map_err(at("set the attributes of", path))?;
        self.directories.insert(path.to_owned(), attributes.modified);
        self.note("directory", path, attributes, b"");
        Ok(())
    }

    fn symlink(&mut self, path: &Path, target: &Path, attributes: &Attributes) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        self.make_room(&parent, &name, path)?;
        symlinkat(target, &parent, name.as_os_str()).map_err(at("link", path))?;
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        chownat(&parent, name.as_os_str(), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(at("chown", path))?;
        utimensat(&parent, name.as_os_str(), &times(attributes.modified), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(at("set the time of", path))?;
        self.note("symlink", path, attributes, target.as_os_str().as_bytes());
        Ok(())
    }

    fn hard_link(&mut self, path: &Path, target: &Path) -> Result<()> {
        let (parent, name) = self.parent(path)?;
        let (from, file) = self.parent(target)?;
        self.make_room(&parent, &name, path)?;
        match linkat(&from, file.as_os_str(), &parent, name.as_os_str(), AtFlags::empty()) {
            // It was left out.
            Err(Errno::NOENT) => return Ok(()),
            done => done.map_err(at("link", path))?,
        }
        let attributes = Attributes { mode: 0, uid: 0, gid: 0, modified: 0 };
        self.note("link", path, &attributes, target.as_os_str().as_bytes());
        Ok(())
    }

    /// Writes the content beside the shared files; there it stays if it is the first of its kind, and is linked to here.
    fn file(&mut self, path: &Path, size: u64, content: &mut dyn Read, attributes: &Attributes) -> Result<()> {
        if self.size.saturating_add(size) > BYTES {
            return Err(TreeError::TooLarge("bytes"));
        }
        let staged = tempfile::NamedTempFile::new_in(self.files).map_err(at("create a file in", self.files))?;
        let hash = copy(content, size, staged.as_file()).map_err(at("write", path))?;
        self.size += size;
        (self.progress)(self.size);
        set(staged.as_file().as_fd(), attributes).map_err(at("set the attributes of", path))?;
        self.note("file", path, attributes, &hash);
        let (parent, name) = self.parent(path)?;
        self.make_room(&parent, &name, path)?;
        let shared = self.share(&staged, size, &hash, attributes)?;
        match linkat(rustix::fs::CWD, &shared, &parent, name.as_os_str(), AtFlags::empty()) {
            // The file system allows no more links to it: this tree gets its own.
            Err(Errno::MLINK) => linkat(rustix::fs::CWD, staged.path(), &parent, name.as_os_str(), AtFlags::empty()),
            done => done,
        }
        .map_err(at("link", path))
    }

    fn share(
        &self,
        staged: &tempfile::NamedTempFile,
        size: u64,
        hash: &[u8],
        attributes: &Attributes,
    ) -> Result<PathBuf> {
        // Empty files are many, and there is nothing in them to share.
        if size == 0 {
            return Ok(staged.path().to_owned());
        }
        let Attributes { mode, uid, gid, modified } = attributes;
        let key = Sha256::digest(format!("{mode:o} {uid} {gid} {modified} {hash:02x?}"));
        let digest = Digest::new(key.into());
        let (first, rest) = digest.hex().split_at(2);
        let directory = self.files.join(first);
        fs::create_dir_all(&directory).map_err(at("create", &directory))?;
        let shared = directory.join(rest);
        match fs::hard_link(staged.path(), &shared) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(at("link", &shared)(error)),
            _ => Ok(shared),
        }
    }

    /// The directory `path` is in, made if an archive names a file before its directory, and the last name.
    fn parent(&mut self, path: &Path) -> Result<(OwnedFd, PathBuf)> {
        let name = path.file_name().map(PathBuf::from).ok_or_else(|| TreeError::LeadsOut(path.to_owned()))?;
        let directory = path.parent().unwrap_or(Path::new(""));
        if directory.as_os_str().is_empty() {
            return Ok((self.root.try_clone().map_err(at("open", path))?, name));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        match beneath(&self.root, directory, flags) {
            Ok(fd) => Ok((fd, name)),
            Err(Errno::NOENT) => {
                let attributes = Attributes { mode: 0o755, uid: 0, gid: 0, modified: 0 };
                self.directory(directory, &attributes)?;
                Ok((beneath(&self.root, directory, flags).map_err(at("open", directory))?, name))
            }
            // A link on the way, or a file.
            Err(Errno::LOOP | Errno::XDEV | Errno::NOTDIR) => Err(TreeError::LeadsOut(path.to_owned())),
            Err(errno) => Err(at("open", directory)(errno)),
        }
    }

    /// A later entry of the same name takes the place of an earlier one.
    fn make_room(&self, parent: &OwnedFd, name: &Path, path: &Path) -> Result<()> {
        match unlinkat(parent, name.as_os_str(), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(at("replace", path)(errno)),
        }
    }
}

fn open_directory(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(at("open", path))
}

fn beneath(root: &OwnedFd, path: &Path, flags: OFlags) -> std::result::Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    openat2(root, path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), resolve)
}

/// Without `.`, and without leaving the tree.
fn normal(path: &Path) -> Result<PathBuf> {
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

/// Ids beyond what a container has become nobody's.
fn id(number: u64) -> u32 {
    const NOBODY: u32 = 65_534;
    u32::try_from(number).ok().filter(|id| *id < NOBODY).unwrap_or(NOBODY)
}

fn times(seconds: u64) -> Timestamps {
    let time = Timespec { tv_sec: i64::try_from(seconds).unwrap_or(0), tv_nsec: 0 };
    Timestamps { last_access: time, last_modification: time }
}

/// Owner first: a change of owner clears bits of the mode.
fn set(file: std::os::fd::BorrowedFd<'_>, attributes: &Attributes) -> rustix::io::Result<()> {
    fchown(file, Some(Uid::from_raw(attributes.uid)), Some(Gid::from_raw(attributes.gid)))?;
    fchmod(file, Mode::from_raw_mode(attributes.mode))?;
    futimens(file, &times(attributes.modified))
}

/// Exactly `size` bytes, and their hash.
fn copy(from: &mut dyn Read, size: u64, mut to: &File) -> io::Result<[u8; 32]> {
    let (mut hash, mut left) = (Sha256::new(), size);
    let mut chunk = vec![0; 128 << 10];
    while left > 0 {
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(chunk.len());
        let length = from.read(&mut chunk[..most])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hash.update(&chunk[..length]);
        to.write_all(&chunk[..length])?;
        left -= length as u64;
    }
    Ok(hash.finalize().into())
}

/// Names and versions of what is installed (deb-control(5) paragraphs).
fn packages(status: &str) -> BTreeMap<String, String> {
    let field = |paragraph: &str, name: &str| {
        paragraph.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ")).map(str::to_owned)
    };
    let paragraphs = status.split("\n\n");
    let installed = paragraphs.filter(|p| field(p, "Status").is_some_and(|status| status.ends_with(" installed")));
    installed.filter_map(|p| Some((field(p, "Package")?, field(p, "Version")?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use tempfile::TempDir;

    struct Archive(tar::Builder<Vec<u8>>);

    impl Archive {
        fn new() -> Self {
            Self(tar::Builder::new(Vec::new()))
        }

        /// An entry as it is given: names are not looked at, as the tar crate would by itself.
        fn add(mut self, kind: EntryType, name: &str, link: &str, mode: u32, content: &[u8]) -> Self {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            let gnu = header.as_gnu_mut().unwrap();
            gnu.name[..name.len()].copy_from_slice(name.as_bytes());
            gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_mode(mode);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1);
            header.set_size(content.len() as u64);
            header.set_cksum();
            self.0.append(&header, content).unwrap();
            self
        }

        fn file(self, name: &str, content: &[u8]) -> Self {
            self.add(EntryType::Regular, name, "", 0o644, content)
        }

        fn symlink(self, name: &str, target: &str) -> Self {
            self.add(EntryType::Symlink, name, target, 0o777, b"")
        }

        fn bytes(self) -> Vec<u8> {
            self.0.into_inner().unwrap()
        }
    }

    fn unpack_into(dir: &TempDir, name: &str, bytes: &[u8]) -> Result<Unpacked> {
        let (tree, files) = (dir.path().join(name), dir.path().join("files"));
        fs::create_dir_all(&files).unwrap();
        fs::create_dir(&tree).unwrap();
        unpack(bytes, &tree, &files, &|_| {})
    }

    /// What an archive becomes, and that nothing beside tree and files was made.
    fn unpacked(archive: Archive) -> (TempDir, Result<Unpacked>) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("outside"), "untouched").unwrap();
        let result = unpack_into(&dir, "tree", &archive.bytes());
        assert_eq!(fs::read_to_string(dir.path().join("outside")).unwrap(), "untouched");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        (dir, result)
    }

    #[test]
    fn names_that_lead_out_are_refused() {
        let out = |archive: Archive| {
            let (_dir, result) = unpacked(archive);
            let error = result.unwrap_err();
            assert!(matches!(error, TreeError::LeadsOut(_)), "{error:?}");
        };
        out(Archive::new().file("../outside", b"x"));
        out(Archive::new().file("a/../../outside", b"x"));
        out(Archive::new().symlink("a", "..").file("a/outside", b"x"));
        out(Archive::new().symlink("a", "/").file("a/outside", b"x"));
        out(Archive::new().symlink("a", "..").add(EntryType::Directory, "a/b", "", 0o755, b""));
        out(Archive::new().add(EntryType::Link, "a", "../outside", 0o644, b""));
        out(Archive::new().symlink("a", "..").add(EntryType::Link, "b", "a/outside", 0o644, b""));
    }

    #[test]
    fn absolute_names_and_links_stay_inside() {
        let archive = Archive::new().file("/usr/a", b"a").symlink("b", "/outside").symlink("usr/a2", "../../outside");
        let (dir, result) = unpacked(archive);
        result.unwrap();
        let tree = dir.path().join("tree");
        assert_eq!(fs::read(tree.join("usr/a")).unwrap(), b"a");
        // A link may say anything: it is the task's root that it is followed in.
        assert_eq!(fs::read_link(tree.join("b")).unwrap(), Path::new("/outside"));
    }

    #[test]
    fn a_link_is_replaced_and_not_written_through() {
        let (dir, result) = unpacked(Archive::new().symlink("a", "../outside").file("a", b"new"));
        result.unwrap();
        assert_eq!(fs::read(dir.path().join("tree/a")).unwrap(), b"new");
    }

    #[test]
    fn devices_and_setuid_bits_do_not_come_in() {
        let archive = Archive::new()
            .add(EntryType::Block, "etc/disk", "", 0o666, b"")
            .add(EntryType::Fifo, "etc/fifo", "", 0o666, b"")
            .add(EntryType::Regular, "su", "", 0o6755, b"x")
            .file("usr/share/doc/x", b"x")
            .file("etc/shadow", b"x");
        let (dir, result) = unpacked(archive);
        result.unwrap();
        let tree = dir.path().join("tree");
        assert_eq!(fs::metadata(tree.join("su")).unwrap().mode() & 0o7777, 0o755);
        for name in ["etc/disk", "etc/fifo", "usr/share/doc", "etc/shadow"] {
            assert!(fs::symlink_metadata(tree.join(name)).is_err(), "{name}");
        }
        let etc: Vec<String> = SKELETON.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert!(etc.iter().all(|name| tree.join("etc").join(name).is_file()));
    }

    #[test]
    fn what_is_cut_or_lies_about_its_size_is_an_error() {
        let whole = Archive::new().file("a", &[7; 5000]).bytes();
        let dir = tempfile::tempdir().unwrap();
        assert!(unpack_into(&dir, "cut", &whole[..2048]).is_err());
        let mut bomb = tar::Header::new_gnu();
        bomb.set_entry_type(EntryType::Regular);
        bomb.set_path("a").unwrap();
        bomb.set_size(BYTES + 1);
        bomb.set_mode(0o644);
        bomb.set_uid(0);
        bomb.set_gid(0);
        bomb.set_mtime(0);
        bomb.set_cksum();
        assert!(matches!(unpack_into(&dir, "bomb", bomb.as_bytes()), Err(TreeError::TooLarge("bytes"))));
        assert!(unpack_into(&dir, "noise", &[0xff; 2048]).is_err());
    }

    #[test]
    fn the_same_archive_is_the_same_tree_and_equal_files_are_kept_once() {
        let dir = tempfile::tempdir().unwrap();
        let one = || Archive::new().file("usr/a", b"same").file("usr/b", b"same").file("usr/empty", b"");
        let first = unpack_into(&dir, "first", &one().bytes()).unwrap();
        let second = unpack_into(&dir, "second", &one().bytes()).unwrap();
        assert_eq!(
            (&first.digest, first.size),
            (&second.digest, 8 + SKELETON.iter().map(|(_, c)| c.len() as u64).sum::<u64>())
        );
        let inode = |name: &str| fs::metadata(dir.path().join(name)).unwrap().ino();
        assert_eq!(inode("first/usr/a"), inode("second/usr/b"));
        assert_eq!(fs::metadata(dir.path().join("first/usr/a")).unwrap().mtime(), 1);
        for (name, other) in [("third", one().file("c", b"")), ("fourth", Archive::new().file("usr/a", b"other"))] {
            assert_ne!(unpack_into(&dir, name, &other.bytes()).unwrap().digest, first.digest);
        }
    }

    #[test]
    fn installed_packages_are_read() {
        let status = "Package: a\nStatus: install ok installed\nVersion: 1\n\nPackage: b\nStatus: deinstall ok config-files\nVersion: 2\n";
        assert_eq!(packages(status), BTreeMap::from([("a".to_owned(), "1".to_owned())]));
    }
}
