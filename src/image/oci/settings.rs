//! What an image's config means for its tasks: ENV, WORKDIR and USER, as far as they are safe and can be.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use oci_spec::image::ImageConfiguration;

use super::Result;
use crate::image::tree::{self, Unpacking};
use crate::image::{MOUNT_POINTS, PATH, User, WORKSPACE};

/// No table of users is larger.
const TABLE_BYTES: u64 = 1 << 20;
/// Beyond it no program could be started (execve(2)).
const ENV_BYTES: usize = 128 << 10;

pub struct Settings {
    pub path: String,
    pub env: BTreeMap<String, String>,
    /// None: the workspace.
    pub workdir: Option<String>,
    pub user: User,
    /// What could not be kept.
    pub notes: Vec<String>,
    /// USER as it is written.
    wanted: String,
}

impl Settings {
    /// What can be known without the files; `workdir` is in place of the image's own.
    pub fn of(config: &ImageConfiguration, workdir: Option<&str>) -> Self {
        let config = config.config().clone().unwrap_or_default();
        let (mut env, mut notes) = (BTreeMap::new(), Vec::new());
        for line in config.env().iter().flatten() {
            match line.split_once('=') {
                Some((name, value)) if !name.is_empty() && !line.contains('\0') => {
                    env.insert(name.to_owned(), value.to_owned());
                }
                _ => notes.push(format!("ENV {line:?} is no variable")),
            }
        }
        if env.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > ENV_BYTES {
            env.clear();
            notes.push("ENV is larger than any program can be given: it is left out".into());
        }
        let path = env.remove("PATH").filter(|path| !path.is_empty()).unwrap_or_else(|| PATH.into());
        let workdir = workdir.map(str::to_owned).or_else(|| config.working_dir().clone()).and_then(|dir| clean(&dir));
        let wanted = config.user().clone().unwrap_or_default();
        Self { path, env, workdir, user: User::FABER, notes, wanted }
    }

    /// A directory that is missing is made, as container engines do.
    pub fn make_workdir(&self, unpacking: &mut Unpacking<'_>) -> Result<()> {
        match &self.workdir {
            Some(workdir) if mounted(workdir).is_none() => Ok(unpacking.make_directory(Path::new(workdir))?),
            _ => Ok(()),
        }
    }

    /// What the files of `tree` say of it.
    pub fn look(&mut self, tree: &Path) {
        match user(tree, &self.wanted) {
            Ok(user) => self.user = user,
            Err(reason) => self.notes.push(format!("USER {:?} {reason}: tasks run as Faber's own user", self.wanted)),
        }
        let Some(workdir) = &self.workdir else { return };
        if !mounted(workdir).unwrap_or_else(|| can_enter(tree, Path::new(workdir), self.user)) {
            self.notes.push(format!(
                "WORKDIR {workdir:?} is nothing that the task's user can enter: tasks start in {WORKSPACE}"
            ));
            self.workdir = None;
        }
    }
}

/// An absolute path without `.` and `..`; None for the root, which is what engines have where nothing is said.
fn clean(path: &str) -> Option<String> {
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    let clean = clean.to_str()?.to_owned();
    (clean != "/" && clean != WORKSPACE && !clean.contains('\0')).then_some(clean)
}

/// Whether a directory that the runtime mounts something on, or below, is there in a container; None for all others.
fn mounted(workdir: &str) -> Option<bool> {
    let below = MOUNT_POINTS.iter().any(|name| Path::new(workdir).starts_with(Path::new("/").join(name)));
    (below || workdir.starts_with("/sys")).then(|| ["/tmp", "/dev/shm"].contains(&workdir))
}

/// Whether every directory on the way lets `user` pass.
fn can_enter(tree: &Path, workdir: &Path, user: User) -> bool {
    let Ok(real) = tree::directory_in(tree, workdir) else { return false };
    let passes = |path: &Path| {
        let Ok(meta) = fs::symlink_metadata(tree.join(path)) else { return false };
        let bit = match () {
            () if meta.uid() == user.uid => 0o100,
            () if meta.gid() == user.gid => 0o010,
            () => 0o001,
        };
        meta.mode() & bit != 0
    };
    real.ancestors().all(passes)
}

/// USER as numbers (image-spec, config.md): a name or number, and a group's after a colon.
fn user(tree: &Path, wanted: &str) -> std::result::Result<User, &'static str> {
    let (name, group) = wanted.split_once(':').map_or((wanted, None), |(name, group)| (name, Some(group)));
    if matches!(name, "" | "0" | "root") {
        return Ok(User::FABER);
    }
    let accounts = table(tree, "etc/passwd");
    let account = accounts.iter().find(|line| line[0] == name || line.get(2).is_some_and(|uid| uid == name));
    let uid = account.and_then(|line| line.get(2)?.parse().ok()).or_else(|| name.parse().ok());
    let uid = uid.ok_or("is not in the image's /etc/passwd")?;
    let gid = match group {
        None => account.and_then(|line| line.get(3)?.parse().ok()).unwrap_or(0),
        Some(group) => {
            let groups = table(tree, "etc/group");
            let known = groups.iter().find(|line| line[0] == group).and_then(|line| line.get(2)?.parse().ok());
            known.or_else(|| group.parse().ok()).ok_or("names a group that is not in the image's /etc/group")?
        }
    };
    match uid {
        0 => Ok(User::FABER),
        // Nobody's task is in root's group either.
        _ => User::new(uid, if gid == 0 { User::FABER.gid } else { gid }).ok_or("is beyond the numbers of a container"),
    }
}

/// The lines of a table in /etc, with their fields.
fn table(tree: &Path, name: &str) -> Vec<Vec<String>> {
    let mut text = String::new();
    let file = tree::file_in(tree, Path::new(name));
    if file.and_then(|file| file.take(TABLE_BYTES).read_to_string(&mut text)).is_err() {
        return Vec::new();
    }
    text.lines().map(|line| line.split(':').map(str::to_owned).collect()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), "root:x:0:0::/:\napp:x:1000:1001::/app:\nlow:x:7:0::/:\n").unwrap();
        fs::write(dir.path().join("etc/group"), "root:x:0:\nstaff:x:50:app\n").unwrap();
        dir
    }

    #[test]
    fn users_are_numbers_and_never_root() {
        let tree = tree();
        let who = |wanted: &str| user(tree.path(), wanted).map(|user| (user.uid, user.gid));
        let faber = (User::FABER.uid, User::FABER.gid);
        for root in ["", "root", "0", "0:0", "root:staff", "00"] {
            assert_eq!(who(root), Ok(faber), "{root}");
        }
        assert_eq!([who("app"), who("1000"), who("app:staff")], [Ok((1000, 1001)), Ok((1000, 1001)), Ok((1000, 50))]);
        assert_eq!([who("7"), who("1234"), who("1234:9")], [Ok((7, faber.1)), Ok((1234, faber.1)), Ok((1234, 9))]);
        for wrong in ["nobody", "app:none", "70000", "4294967296", "-1", "1:70000"] {
            assert!(who(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_workdir_is_clean_or_none() {
        let some = |path: &str| Some(path.to_owned());
        assert_eq!([clean("/app"), clean("app/./x"), clean("/a/../b")], [some("/app"), some("/app/x"), some("/b")]);
        assert_eq!([clean(""), clean("/"), clean("../.."), clean("/workspace/")], [None, None, None, None]);
    }
}
