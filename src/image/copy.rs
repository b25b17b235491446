//! Files that a definition brings along: found when it is read, so that an image is another one when they change.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::tree::open_below;
use crate::task::Digest;

/// What may be copied at most: definitions bring programs and small data.
const FILES: usize = 10_000;
const BYTES: u64 = 1 << 30;

/// As a definition says it: a file or directory beside it, and the place it has in the image.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Copy {
    from: PathBuf,
    to: PathBuf,
}

/// One regular file to be copied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopiedFile {
    pub from: PathBuf,
    /// Relative to the image's root, without `.` and `..`.
    pub to: PathBuf,
    /// 0755 for what its owner may execute, else 0644.
    pub mode: u32,
    pub digest: Digest,
}

/// The files that `copies` name below `directory`.
///
/// # Errors
/// A sentence: a name that leads out, a file that is not there or no regular one, too much.
pub fn find(directory: &Path, copies: &[Copy]) -> Result<Vec<CopiedFile>, String> {
    let mut found = Found { files: Vec::new(), bytes: 0 };
    for Copy { from, to } in copies {
        let inside = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
        if !inside(from) {
            return Err(format!("copy: {} leads out of the definition's directory", from.display()));
        }
        let Some(to) = to.strip_prefix("/").ok().filter(|to| inside(to) && !to.as_os_str().is_empty()) else {
            return Err(format!("copy: {} is no absolute path in the image", to.display()));
        };
        // Root would read whatever a link leads to.
        let beside = File::open(directory).map_err(|error| format!("copy: {}: {error}", directory.display()))?;
        let found_as = open_below(beside, from, OFlags::PATH | OFlags::NOFOLLOW);
        if found_as.is_err_and(|error| error.raw_os_error() == Some(Errno::LOOP.raw_os_error())) {
            return Err(format!("copy: {} leads over a link", from.display()));
        }
        found.add(&directory.join(from), to)?;
    }
    found.files.sort_by(|one, other| one.to.cmp(&other.to));
    Ok(found.files)
}

struct Found {
    files: Vec<CopiedFile>,
    bytes: u64,
}

impl Found {
    fn add(&mut self, from: &Path, to: &Path) -> Result<(), String> {
        let failed = |error: io::Error| format!("copy: {}: {error}", from.display());
        let meta = fs::symlink_metadata(from).map_err(failed)?;
        if meta.is_dir() {
            for entry in fs::read_dir(from).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                self.add(&entry.path(), &to.join(entry.file_name()))?;
            }
            return Ok(());
        }
        if !meta.is_file() {
            return Err(format!("copy: {} is neither a file nor a directory", from.display()));
        }
        self.bytes += meta.len();
        if self.files.len() >= FILES || self.bytes > BYTES {
            return Err(format!("copy: more than {FILES} files, or than {} MiB", BYTES >> 20));
        }
        let mode = if meta.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
        let digest = digest(from).map_err(failed)?;
        self.files.push(CopiedFile { from: from.to_owned(), to: to.to_owned(), mode, digest });
        Ok(())
    }
}

fn digest(path: &Path) -> io::Result<Digest> {
    let (mut file, mut hash, mut chunk) = (File::open(path)?, Sha256::new(), vec![0; 64 << 10]);
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(Digest::new(hash.finalize().into())),
            length => hash.update(&chunk[..length]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn nothing_is_copied_that_a_link_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, beside) = (dir.path().join("outside"), dir.path().join("beside"));
        for directory in [&outside, &beside] {
            fs::create_dir_all(directory.join("sub")).unwrap();
            fs::write(directory.join("sub/file"), "x").unwrap();
        }
        symlink(outside.join("sub"), beside.join("link")).unwrap();
        symlink(outside.join("sub/file"), beside.join("sub/leaf")).unwrap();
        let find = |from: &str| find(&beside, &[Copy { from: from.into(), to: "/to".into() }]);
        assert_eq!(find("sub/file").unwrap().len(), 1);
        assert_eq!(find("link/file").unwrap_err(), "copy: link/file leads over a link");
        for (from, expected) in [
            ("link", "neither a file nor"),
            ("sub", "leaf is neither"),
            ("../outside/sub/file", "leads out"),
            ("absent", "No such file"),
        ] {
            let said = find(from).unwrap_err();
            assert!(said.contains(expected), "{from}: {said}");
        }
    }
}
