//! Faber of an ordinary user: root, but only of a user namespace of its own.
//!
//! The namespace has the user as root and the user's subordinate ids (subuid(5), subgid(5)) as everybody else; newuidmap(1)
//! and newgidmap(1) are what may write that down. All of Faber's processes are in it. What they make on the machine belongs
//! to the user or to a subordinate id.

use std::fs::{self, DirBuilder};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::sched::{CloneFlags, unshare};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MoveMountFlags, OpenTreeFlags, mount, move_mount, open_tree};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{ids, kernel, rootfs};

/// Where, in Faber's own mount namespace, its directories are shown: the user's own are closed to all others, and so to the
/// containers' users. The first that is there; nothing that a user would have Faber read is below them, if it can be helped.
const PLACES: [&str; 3] = ["/boot", "/srv", "/mnt"];
const RUN: &str = "run";
const DATA: &str = "data";
/// The environment variable that tells the second execution of itself, and where that is.
const ENTERED_BY: &str = "BEGUN_AGAIN_BY_FABER";

#[derive(Debug, thiserror::Error)]
pub enum RootlessError {
    #[error(
        "user namespaces are switched off for ordinary users: check the sysctls user.max_user_namespaces, \
         kernel.unprivileged_userns_clone (1) and kernel.apparmor_restrict_unprivileged_userns (0), or run this as root"
    )]
    Namespace(#[source] io::Error),
    #[error(
        "{name} has {found} subordinate ids in {file}, and {needed} are needed: \
         sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}"
    )]
    Ids { name: String, file: &'static str, found: u32, needed: u32 },
    #[error("the user namespace has no ids: {0}")]
    Map(String),
    #[error("{path} is not yours alone: remove it, or set XDG_RUNTIME_DIR")]
    NotOwn { path: PathBuf },
    #[error("none of {} is there, on which Faber could show its directories to its containers", PLACES.join(", "))]
    NoPlace,
    #[error("show {path} to the containers")]
    Show { path: PathBuf, source: io::Error },
    #[error("{step}")]
    Io { step: &'static str, source: io::Error },
    #[error(transparent)]
    Rootfs(#[from] rootfs::RootfsError),
}

type Result<T, E = RootlessError> = std::result::Result<T, E>;

fn at<E: Into<io::Error>>(step: &'static str) -> impl Fn(E) -> RootlessError {
    move |error| RootlessError::Io { step, source: error.into() }
}

/// Where an ordinary user's instances find each other, as all of Faber's processes see it.
static ENTERED: OnceLock<PathBuf> = OnceLock::new();

/// The directory in which the instances of this user find each other; none for root.
pub fn run_dir() -> Option<&'static Path> {
    ENTERED.get().map(PathBuf::as_path)
}

/// What a namespace for the user is made of.
struct Plan {
    uid: u32,
    gid: u32,
    uids: Subordinate,
    gids: Subordinate,
    run_dir: PathBuf,
}

/// A range of subordinate ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Subordinate {
    first: u32,
    count: u32,
}

/// Has the calling process, which has one thread, go on as root of a user namespace: of the user's own, where it is not
/// root. Returns where `data_dir` is then, so that the containers' users can get at it.
///
/// # Errors
/// When the machine does not let this user, with what helps.
pub fn enter(data_dir: &Path) -> Result<PathBuf> {
    match (rustix::process::geteuid().is_root(), std::env::var_os(ENTERED_BY).map(PathBuf::from)) {
        (true, Some(shown)) => {
            let _ = ENTERED.set(shown.join(RUN));
            Ok(shown.join(DATA))
        }
        (true, None) => Ok(data_dir.to_owned()),
        (false, _) => Err(begin_again(data_dir)),
    }
}

/// What the kernel lets others do with a process depends on the user namespace in which it was executed, so it is executed
/// once more; returns what went wrong.
fn begin_again(data_dir: &Path) -> RootlessError {
    match arrange(data_dir) {
        Ok(shown) => {
            let mut words = std::env::args_os();
            let name = words.next().unwrap_or_else(|| "faber".into());
            let error = Command::new("/proc/self/exe").arg0(name).args(words).env(ENTERED_BY, shown).exec();
            RootlessError::Io { step: "begin again as root of a user namespace", source: error }
        }
        Err(error) => error,
    }
}

/// Returns where the directories are shown.
fn arrange(data_dir: &Path) -> Result<&'static Path> {
    let plan = Plan::of_this_user()?;
    fs::create_dir_all(data_dir).map_err(at("create data_dir"))?;
    become_root(&plan)?;
    rootfs::enter_private_mounts()?;
    let shown = PLACES.map(Path::new).into_iter().find(|place| place.is_dir()).ok_or(RootlessError::NoPlace)?;
    // Before something is mounted on what they may be below.
    let directories =
        [(RUN, plan.run_dir.as_path()), (DATA, data_dir)].map(|(name, dir)| (name, dir, clone_mount(dir)));
    mount("faber", shown, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=755,size=64k"))
        .map_err(at("mount a tmpfs for Faber's directories"))?;
    for (name, dir, tree) in directories {
        let show = || {
            let place = shown.join(name);
            fs::create_dir(&place)?;
            move_mount(tree?, "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).map_err(io::Error::from)
        };
        show().map_err(|source| RootlessError::Show { path: dir.to_owned(), source })?;
    }
    Ok(shown)
}

fn clone_mount(dir: &Path) -> io::Result<OwnedFd> {
    Ok(open_tree(CWD, dir, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?)
}

impl Plan {
    fn of_this_user() -> Result<Self> {
        let (uid, gid) = (Uid::current(), Gid::current());
        let user = nix::unistd::User::from_uid(uid).ok().flatten();
        let name = user.map_or_else(|| uid.to_string(), |user| user.name);
        let range = |file: &'static str| {
            let text = fs::read_to_string(file).unwrap_or_default();
            let found = subordinate(&text, &name, uid.as_raw()).unwrap_or(Subordinate { first: 0, count: 0 });
            if found.count >= ids::LEAST {
                return Ok(found);
            }
            Err(RootlessError::Ids { name: name.clone(), file, found: found.count, needed: ids::LEAST })
        };
        Ok(Self {
            uid: uid.as_raw(),
            gid: gid.as_raw(),
            uids: range("/etc/subuid")?,
            gids: range("/etc/subgid")?,
            run_dir: make_run_dir(uid.as_raw())?,
        })
    }
}

/// The largest range of a user, by name or number, in the form of subuid(5): `name:first:count` lines.
fn subordinate(text: &str, name: &str, uid: u32) -> Option<Subordinate> {
    let ranges = text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let who = fields.next()?;
        let (first, count) = (fields.next()?.parse().ok()?, fields.next()?.trim().parse().ok()?);
        (who == name || who.parse() == Ok(uid)).then_some(Subordinate { first, count })
    });
    ranges.max_by_key(|range| range.count)
}

/// `$XDG_RUNTIME_DIR/faber`, or a directory of /tmp that is the user's alone.
fn make_run_dir(uid: u32) -> Result<PathBuf> {
    let path = match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if Path::new(&dir).is_absolute() => Path::new(&dir).join("faber"),
        _ => PathBuf::from(format!("/tmp/faber-{uid}")),
    };
    match DirBuilder::new().mode(0o711).create(&path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(at("create the runtime directory")(error));
        }
        _ => {}
    }
    let meta = fs::symlink_metadata(&path).map_err(at("look at the runtime directory"))?;
    let is_own = meta.is_dir() && meta.uid() == uid && meta.mode() & 0o022 == 0;
    if is_own { Ok(path) } else { Err(RootlessError::NotOwn { path }) }
}

/// user_namespaces(7): a child that stays outside has the maps written, since this process may not write more than itself
/// into them.
fn become_root(plan: &Plan) -> Result<()> {
    let (go, say_go) = pipe_with(PipeFlags::CLOEXEC).map_err(at("make a pipe"))?;
    let (told, tell) = pipe_with(PipeFlags::CLOEXEC).map_err(at("make a pipe"))?;
    let this = Pid::this();
    let child = kernel::fork(|| {
        if kernel::end_with(this).is_err() || rustix::io::read(&go, &mut [0u8]) != Ok(1) {
            return 1;
        }
        let written = write_map("newuidmap", this, plan.uid, plan.uids)
            .and_then(|()| write_map("newgidmap", this, plan.gid, plan.gids));
        let _ = written.as_ref().map_err(|error| rustix::io::write(&tell, error.as_bytes()));
        i32::from(written.is_err())
    })
    .map_err(at("fork"))?;
    drop(tell);
    let unshared = unshare(CloneFlags::CLONE_NEWUSER);
    if unshared.is_ok() {
        rustix::io::write(&say_go, &[1]).map_err(at("tell the child"))?;
    } else {
        let _ = nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL);
    }
    let ended = waitpid(child, None);
    unshared.map_err(|errno| RootlessError::Namespace(errno.into()))?;
    if !matches!(ended, Ok(WaitStatus::Exited(_, 0))) {
        let mut said = String::new();
        let _ = fs::File::from(told).read_to_string(&mut said);
        return Err(RootlessError::Map(said));
    }
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).map_err(at("become root's group"))?;
    setresuid(uid, uid, uid).map_err(at("become root"))?;
    setgroups(&[]).map_err(at("give up the supplementary groups"))
}

/// The user as root, and the subordinate ids from 1 on; in words what went wrong.
fn write_map(tool: &str, process: Pid, own: u32, Subordinate { first, count }: Subordinate) -> Result<(), String> {
    let map = [0, own, 1, 1, first, count].map(|number| number.to_string());
    let output = Command::new(tool).arg(process.to_string()).args(map).output();
    match output {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(format!("{tool} is missing, which gives a user's namespace its ids: sudo apt-get install uidmap"))
        }
        Err(error) => Err(format!("{tool} cannot be run: {error}")),
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_range_of_a_user_is_taken() {
        let text = "ann:100000:65536\nbob:1:2\n1001:200000:10\nbob:300000:65536\nbroken\n";
        assert_eq!(subordinate(text, "bob", 1001), Some(Subordinate { first: 300_000, count: 65_536 }));
        assert_eq!(subordinate(text, "carol", 1001), Some(Subordinate { first: 200_000, count: 10 }));
        assert_eq!(subordinate(text, "dora", 1002), None);
    }
}
