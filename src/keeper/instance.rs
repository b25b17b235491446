//! One running Faber, by name: what it makes carries the name, and locks say whether it lives.
//!
//! `<run dir>/<instance>/lock` and its control group's directory are held with flock(2) as long as the instance lives; the
//! kernel lets go of them whatever happens to the process. Whoever starts next removes what the dead left, and nobody else's:
//! what is in the run directory by the one lock, groups by the other. Two Fabers may well see the same groups and not the same
//! run directory, such as two containers that were given the machine's groups.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::chain::chain;
use crate::sandbox::cgroup::{CgroupError, Tree};
use crate::sandbox::rootless;
use crate::task::Resources;

/// Where the Faber instances of a machine find each other.
const RUN_DIR: &str = "/run/faber";

/// The directory in which the instances of this machine, or of this user, find each other.
pub fn run_dir() -> &'static Path {
    rootless::run_dir().unwrap_or(Path::new(RUN_DIR))
}

const LOCK: &str = "lock";
/// Where user ids are shared out if not in the tree of groups.
const IDS: &str = "uid-ranges";
/// How long others may take to come or go: each only removes what the dead left.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(2);

#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    #[error("{step} {path}")]
    Io { step: &'static str, path: PathBuf, source: io::Error },
    #[error(
        "{path} has been held by another Faber for {waited:?}: `fuser {path}` tells which, and ending that is safe"
    )]
    Busy { path: PathBuf, waited: Duration },
    #[error("draw a name for this instance")]
    Name(#[source] io::Error),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

type Result<T> = std::result::Result<T, InstanceError>;

fn at(step: &'static str, path: &Path) -> impl Fn(io::Error) -> InstanceError {
    move |source| InstanceError::Io { step, path: path.to_owned(), source }
}

/// This instance. Dropping it removes its groups and its directory.
pub struct Instance {
    name: String,
    run_dir: PathBuf,
    tree: Tree,
    _lock: File,
    _group: Option<File>,
}

impl Instance {
    /// Removes what dead instances left, and founds a new one.
    pub fn found(resources: Resources) -> Result<Self> {
        let run_dir = run_dir();
        DirBuilder::new().recursive(true).mode(0o711).create(run_dir).map_err(at("create", run_dir))?;
        let tree = Tree::detect(resources.groups)?;
        // One at a time: a directory whose lock nobody holds yet must not be taken for a dead one's.
        let all = lock_all(run_dir)?;
        sweep_dead(run_dir, &tree)?;
        let name = draw_name().map_err(InstanceError::Name)?;
        let dir = run_dir.join(&name);
        DirBuilder::new().mode(0o711).create(&dir).map_err(at("create", &dir))?;
        let path = dir.join(LOCK);
        let lock = open(&path)?;
        lock.try_lock().map_err(|error| at("lock", &path)(error.into()))?;
        let group = tree.found(&name)?;
        let instance = Self { name, run_dir: run_dir.to_owned(), tree, _lock: lock, _group: group };
        let prepared = instance.tree.prepare(&instance.name, resources.cpus);
        // An instance that is given up takes the lock itself.
        drop(all);
        prepared?;
        Ok(instance)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    /// The file by which user ids are shared out.
    pub fn claims_of_ids(&self) -> PathBuf {
        self.tree.claims_of_ids(&self.run_dir.join(IDS))
    }

    /// Where to read how long tasks stall for want of memory.
    pub fn memory_pressure(&self) -> Option<PathBuf> {
        self.tree.memory_pressure(&self.name)
    }

    /// Whether tasks can be given shares of the processors.
    pub fn has_shares_of_processors(&self) -> bool {
        matches!(self.tree, Tree::V2(_))
    }

    /// The directory of one slot; the slot makes it.
    pub fn slot_dir(&self, slot: &str) -> PathBuf {
        self.run_dir.join(&self.name).join(slot)
    }

    /// Removes what the dead runner of `slot` left.
    pub fn sweep_slot(&self, slot: &str) -> Result<()> {
        self.tree.sweep(&self.name, &format!("{slot}-"))?;
        remove_dir(&self.slot_dir(slot))
    }

    fn remove(&self) -> Result<()> {
        let _all = lock_all(&self.run_dir)?;
        self.tree.sweep(&self.name, "")?;
        remove_dir(&self.run_dir.join(&self.name))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            tracing::warn!(error = chain(&error), "something of this instance is left for the next start");
        }
    }
}

fn sweep_dead(run_dir: &Path, tree: &Tree) -> Result<()> {
    let mut live = Vec::new();
    for entry in fs::read_dir(run_dir).map_err(at("read", run_dir))?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let dir = entry.path();
        if !dir.is_dir() {
            continue;
        }
        if is_alive(&dir)? {
            live.push(name);
            continue;
        }
        tracing::info!(instance = name, "removing what a dead instance left");
        left(&name, remove_dir(&dir));
    }
    // One that lives in another run directory is seen by its group.
    for name in tree.instances().iter().filter(|name| !live.contains(name)) {
        let Some(_held) = tree.claim_dead(name) else { continue };
        left(name, tree.sweep(name, "").map_err(InstanceError::from));
    }
    Ok(())
}

/// What cannot be removed now is no reason not to start: the next start finds it again.
fn left(instance: &str, swept: Result<()>) {
    if let Err(error) = swept {
        tracing::warn!(instance, error = chain(&error), "something of a dead instance cannot be removed yet");
    }
}

fn is_alive(dir: &Path) -> Result<bool> {
    let path = dir.join(LOCK);
    let lock = match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        other => other.map_err(at("open", &path))?,
    };
    match lock.try_lock() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(at("lock", &path)(error)),
    }
}

/// The lock under which instances come and go.
fn lock_all(run_dir: &Path) -> Result<File> {
    let path = run_dir.join(LOCK);
    let lock = open(&path)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match lock.try_lock() {
            Ok(()) => return Ok(lock),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(RETRY),
            Err(TryLockError::WouldBlock) => return Err(InstanceError::Busy { path, waited: PATIENCE }),
            Err(TryLockError::Error(source)) => return Err(at("lock", &path)(source)),
        }
    }
}

fn open(path: &Path) -> Result<File> {
    File::options().write(true).create(true).truncate(false).mode(0o600).open(path).map_err(at("open", path))
}

fn remove_dir(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// Eight hexadecimal digits of the kernel's randomness.
fn draw_name() -> io::Result<String> {
    let mut bytes = [0; 4];
    io::Read::read_exact(&mut File::open("/dev/urandom")?, &mut bytes)?;
    Ok(format!("{:08x}", u32::from_le_bytes(bytes)))
}
