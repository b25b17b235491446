//! A root file system as the store keeps it: made from tar archives, without what tasks cannot use, with one digest over
//! all that came in. Files are kept once by their content and attributes, and linked into every tree that has them, so
//! images share disk and page cache wherever they have the same file. One that is not any more what its name says is not shared.
//!
//! An archive may be anybody's. Every name is resolved below the tree, by the kernel; devices, names that lead out, setuid bits
//! and leave to write for others than the owner do not come in. The digest is over the entries in their order: the tree follows from them, and the same
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
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, ResolveFlags};

pub use below::{names_in, normal};
pub use guard::{BYTES, TooLarge, Used};
pub use unpacking::Unpacking;

use crate::task::Digest;

/// What a tree is made like. A change here makes every definition another one.
pub const FORM: &str = "3";

/// Documentation, caches and what only the package manager needs: below these nothing comes in.
const LEFT_OUT: [&str; 26] = [
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
    "var/cache/ldconfig",
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
    #[error("the archive holds {0:?}, below what is no directory")]
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
    /// For files that are being written, on the same file system.
    pub scratch: &'a Path,
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

/// What `path` below `directory` is, reached over no link.
///
/// # Errors
/// openat2(2)'s: ELOOP for a link on the way.
pub fn open_below(directory: impl AsFd, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(below::open(directory, path, flags, below::WITHOUT_LINKS)?)
}

#[cfg(test)]
mod tests;
