//! What of the machine's /etc belongs to what is installed below /usr: what links there lead to, and what the image names.
//!
//! Packages keep their settings in /etc and link to them (Java's `conf`, groff's macros, Python's sitecustomize), so that without
//! these whatever is installed would not run. What is found is kept in a file, since looking through all of /usr takes a second
//! or more while none of it is in memory.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};
use walkdir::WalkDir;

/// What changes with what is installed: package managers' own records, and the directories that others install to.
const RECORDS: [&str; 11] = [
    "/var/lib/dpkg/status",
    "/var/lib/rpm",
    "/usr/lib/sysimage/rpm",
    "/lib/apk/db/installed",
    "/var/lib/pacman/local",
    "/usr",
    "/usr/bin",
    "/usr/lib",
    "/usr/share",
    "/usr/local/bin",
    "/usr/local/lib",
];
/// The machine's own, whatever leads there.
const PRIVATE: [&str; 14] = [
    "ssl/private",
    "ssh",
    "shadow",
    "gshadow",
    "sudoers",
    "sudoers.d",
    "security",
    "pam.d",
    "machine-id",
    "hostname",
    "fstab",
    "resolv.conf",
    "environment",
    "default",
];
/// Links are followed so often, and so many of their targets are shown: more is a mistake, or an attack on who starts next.
const MOST: usize = 512;

/// What is kept of a look through /usr.
#[derive(Serialize, Deserialize)]
struct Found {
    /// Of each record its time and inode.
    key: Vec<(i64, i64, u64)>,
    links: BTreeSet<PathBuf>,
}

/// The paths in /etc to which links below /usr lead, without /etc: what everybody may read, and nothing private. `kept` is the
/// file by which all look but once; it is made.
///
/// # Errors
/// When the file cannot be opened or written.
pub fn linked(kept: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut file = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(kept)?;
    // Who comes second waits for what the first one finds.
    file.lock()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let key = RECORDS.iter().map(|path| fs::metadata(path).map_or((0, 0, 0), |m| (m.mtime(), m.mtime_nsec(), m.ino())));
    let key: Vec<_> = key.collect();
    if let Ok(found) = serde_json::from_str::<Found>(&text)
        && found.key == key
    {
        return Ok(found.links);
    }
    let links = look(Path::new("/usr"));
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(&serde_json::to_vec(&Found { key, links: links.clone() })?)?;
    Ok(links)
}

/// Without what is below another one of them.
fn look(usr: &Path) -> BTreeSet<PathBuf> {
    let entries = WalkDir::new(usr).into_iter().flatten().filter(|entry| entry.path_is_symlink());
    let targets = entries.filter_map(|entry| {
        let target = fs::read_link(entry.path()).ok()?;
        in_etc(entry.path().parent()?, &target)
    });
    let all: BTreeSet<PathBuf> = targets.take(MOST * 8).collect();
    let is_below = |path: &PathBuf| path.ancestors().skip(1).any(|above| all.contains(above));
    all.iter().filter(|path| !is_below(path)).take(MOST).cloned().collect()
}

/// Where a link in the directory `from` leads below /etc, if it does, and may.
fn in_etc(from: &Path, target: &Path) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for component in from.join(target).components() {
        match component {
            Component::ParentDir => _ = path.pop(),
            component => path.push(component),
        }
    }
    let below = path.strip_prefix("/etc").ok()?;
    let is_shown = below.components().next().is_some() && !is_private(below);
    is_shown.then(|| below.to_owned())
}

/// Whether a path in /etc is not for tasks, or has something below it that is not.
pub fn is_private(below: &Path) -> bool {
    PRIVATE.iter().map(Path::new).any(|private| below.starts_with(private) || private.starts_with(below))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_to_etc_and_to_nothing_private() {
        let check = |from: &str, target: &str| in_etc(Path::new(from), Path::new(target));
        assert_eq!(check("/usr/lib/jvm/conf", "/etc/java/net.properties"), Some("java/net.properties".into()));
        assert_eq!(check("/usr/share/x", "../../../etc/x/y"), Some("x/y".into()));
        for target in
            ["/etc", "/etc/", "/etc/ssl", "/etc/ssl/private/key", "/etc/shadow", "/etc/x/../ssh/key", "/var/x"]
        {
            assert_eq!(check("/usr/lib", target), None, "{target}");
        }
    }

    #[test]
    fn what_is_below_another_is_not_named_again() {
        let usr = tempfile::tempdir().unwrap();
        for (name, target) in [("a", "/etc/r"), ("b", "/etc/r/conf"), ("c", "/etc/q/one"), ("d", "/usr/bin/x")] {
            symlink(target, usr.path().join(name)).unwrap();
        }
        assert_eq!(look(usr.path()), ["q/one", "r"].map(PathBuf::from).into());
    }

    #[test]
    fn a_second_look_reads_what_the_first_one_kept() {
        let dir = tempfile::tempdir().unwrap();
        let kept = dir.path().join("links");
        let found = linked(&kept).unwrap();
        assert_eq!(linked(&kept).unwrap(), found);
        let mut stale: Found = serde_json::from_slice(&fs::read(&kept).unwrap()).unwrap();
        stale.links = [PathBuf::from("nonsense")].into();
        fs::write(&kept, serde_json::to_vec(&stale).unwrap()).unwrap();
        assert_eq!(linked(&kept).unwrap(), stale.links, "nothing was installed meanwhile");
        stale.key[0].0 += 1;
        fs::write(&kept, serde_json::to_vec(&stale).unwrap()).unwrap();
        assert_eq!(linked(&kept).unwrap(), found);
        fs::write(&kept, "half a").unwrap();
        assert_eq!(linked(&kept).unwrap(), found);
    }
}
