//! A root file system as the store keeps it: made from tar archives, without what tasks cannot use, with one digest over
//! all that came in. Files are kept once by their content and attributes, and linked into every tree that has them, so
//! images share disk and page cache wherever they have the same file.
//!
//! An archive may be anybody's. Every name is resolved below the tree, by the kernel; devices, setuid bits and names that
//! lead out do not come in. The digest is over the entries in their order: the tree follows from them, and the same
//! archives are the same digest. Other layers that come to the same files have another one; those share all their files.

mod attributes;
mod below;
mod content;
mod guard;
mod packages;
mod skeleton;
mod unpacking;
mod whiteout;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, ResolveFlags};

pub use below::normal;
pub use guard::{BYTES, Used};
pub use unpacking::Unpacking;

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
/// What of an image's layers comes to lie under a mount, or is the runtime's to make.
const COVERED: [&str; 5] = ["dev", "proc", "sys", "tmp", "workspace"];

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("read the archive")]
    Archive(#[source] io::Error),
    #[error("{step} {path}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error("the archive holds {0:?}, which leads out of the tree")]
    LeadsOut(PathBuf),
    #[error("the archive holds {0:?}, below a link to what is not there")]
    LeadsNowhere(PathBuf),
    #[error("the archive holds {0:?}, a sparse file in a form that Faber does not read")]
    Sparse(PathBuf),
    #[error("the archive holds more than a root file system may: {0}")]
    TooLarge(&'static str),
}

impl From<guard::TooLarge> for TreeError {
    fn from(guard::TooLarge(what): guard::TooLarge) -> Self {
        Self::TooLarge(what)
    }
}

type Result<T> = std::result::Result<T, TreeError>;

fn at<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl Fn(E) -> TreeError {
    move |error| TreeError::Io { step, path: path.to_owned(), source: error.into() }
}

/// What the archives are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One archive of Debian's packages: what only people and the package manager need is left out, and no name goes
    /// through a link.
    Packages,
    /// The layers of an image, from the lowest: all of it that can be used. Whiteouts take away what is below them, and
    /// links on the way lead where they would in a container.
    Layers,
}

impl Kind {
    fn leaves_out(self, path: &Path) -> bool {
        let left_out: &[&str] = match self {
            Self::Packages => &LEFT_OUT,
            Self::Layers => &COVERED,
        };
        left_out.iter().any(|left_out| path.starts_with(left_out))
    }

    fn resolve(self) -> ResolveFlags {
        match self {
            Self::Packages => below::WITHOUT_LINKS,
            Self::Layers => below::INSIDE,
        }
    }

    /// Whether the last name on the way to a directory may be a link.
    fn last(self) -> OFlags {
        match self {
            Self::Packages => OFlags::NOFOLLOW,
            Self::Layers => OFlags::empty(),
        }
    }
}

/// Where a tree is made.
pub struct Place<'a> {
    /// An empty directory.
    pub tree: &'a Path,
    /// The shared files, on the same file system.
    pub files: &'a Path,
    /// Hears how many bytes are unpacked.
    pub progress: &'a dyn Fn(u64),
}

/// What came of the archives.
#[derive(Debug)]
pub struct Unpacked {
    pub digest: Digest,
    /// Bytes of all its files.
    pub size: u64,
    pub packages: BTreeMap<String, String>,
}

/// Unpacks the archive of a build.
pub fn unpack(archive: impl Read, place: &Place<'_>) -> Result<Unpacked> {
    let mut unpacking = Unpacking::new(Kind::Packages, place)?;
    unpacking.archive(archive)?;
    unpacking.finish()
}

/// The directory that `path` stands for in `tree`: its name without the links that lead there.
///
/// # Errors
/// When there is none.
pub fn directory_in(tree: &Path, path: &Path) -> io::Result<PathBuf> {
    let (root, name) = (File::open(tree)?, std::fs::canonicalize(tree)?);
    let directory = below::open(root, path, OFlags::PATH | OFlags::DIRECTORY, below::INSIDE)?;
    below::name_of(directory.as_fd(), &name)
}

/// The regular file that `path` stands for in `tree`, wherever links in it lead.
///
/// # Errors
/// When there is none.
pub fn file_in(tree: &Path, path: &Path) -> io::Result<File> {
    below::file(File::open(tree)?, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::SKELETON;
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use tar::EntryType;
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
        unpack(bytes, &Place { tree: &tree, files: &files, progress: &|_| {} })
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
}
