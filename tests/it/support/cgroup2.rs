//! Groups of cgroup v2 that a test gives to a Faber.

use std::fs;
use std::path::{Path, PathBuf};

use super::eventually;

pub const TREE: &str = "/sys/fs/cgroup";

/// Whether there is cgroup v2 here; where there is none, the test says that it has looked at nothing.
pub fn unified(test: &str) -> bool {
    let unified = Path::new(TREE).join("cgroup.controllers").exists();
    if !unified {
        eprintln!(
            "NOT CHECKED: {test} needs cgroup v2, and this machine has v1: scripts/test looks at it in its virtual machine"
        );
    }
    unified
}

/// A group of the test's own. Dropping it removes it, with the leaf that stays of whoever worked below it.
pub struct Delegated(pub PathBuf);

impl Delegated {
    /// With memory and pids handed down from the machine's root.
    pub fn new(name: &str) -> Self {
        hand_down(Path::new(TREE));
        let path = Path::new(TREE).join(name);
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Left to others, as systemd says it.
    pub fn marked(self) -> Self {
        rustix::fs::setxattr(&self.0, "user.delegate", b"1", rustix::fs::XattrFlags::empty()).unwrap();
        self
    }

    pub fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }

    /// What a shell does to be in the group.
    pub fn enter(&self) -> String {
        format!("echo $$ > {}/cgroup.procs", self.path())
    }

    /// The same, and to see nothing of the tree but the group and what is below it.
    pub fn enclose(&self) -> String {
        format!(
            "{}\nset -- unshare --cgroup --mount sh -c 'mount -t cgroup2 cgroup2 {TREE} && exec \"$@\"' sh \"$@\"",
            self.enter()
        )
    }

    pub fn groups(&self) -> Vec<String> {
        let mut found = Vec::new();
        walk(&self.0, &mut |path| {
            if path != self.0 {
                found.push(path.strip_prefix(&self.0).unwrap().to_str().unwrap().to_owned());
            }
        });
        found.sort();
        found
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        // A process is in its group until it is reaped.
        if !std::thread::panicking() {
            eventually("the end of all in the group", || {
                let mut empty = true;
                walk(&self.0, &mut |path| {
                    empty &= fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|pids| pids.is_empty());
                });
                empty
            });
        }
        walk(&self.0, &mut |path| _ = fs::remove_dir(path));
    }
}

pub fn hand_down(group: &Path) {
    for controller in ["+memory", "+pids"] {
        fs::write(group.join("cgroup.subtree_control"), controller).unwrap();
    }
}

/// Children first.
fn walk(dir: &Path, see: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(dir).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        walk(&entry.path(), see);
    }
    see(dir);
}
