//! Control groups: where limits are put in force and usage is read.
//!
//! Faber's groups are `<top>/faber/<instance>/<container>`: every name says who made it, and nothing else is touched.
//! libcontainer has no part in them ([`cover`]).
//! Sources: cgroups(7), admin-guide/cgroup-v1/*.rst, admin-guide/cgroup-v2.rst.

mod cover;
mod file;
mod mount;
mod v1;
mod v2;
mod without;

use std::ffi::CStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use cover::{Cover, PATH as PATH_SHOWN};

use crate::task::{Cpus, Groups, Limits};
use file::{read_number, read_pids};
use mount::Mount;

/// The name above everything that Faber makes for its containers.
const TOP: &str = "faber";

/// The group beside the instances' that stands for one in a hierarchy where containers have none: nothing is ever in it.
const EMPTY: &str = "empty";

/// The init is Faber's: its place in pids.max is on top of the task's.
const INIT_PROCESSES: u64 = 1;

const PIDS_PEAK: Lack = Lack { what: "pids.peak (Linux 6.1)", instead: "the count of processes is that at the end" };

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
    #[error("open {path}")]
    Open { path: PathBuf, source: io::Error },
    #[error("write {value:?} to {path}")]
    Write { path: PathBuf, value: String, source: io::Error },
    #[error("{path} holds {text:?}, which is not what the kernel documents")]
    Parse { path: PathBuf, text: String },
    #[error("{path} says {found} after {wanted} was written: the limit is not in force")]
    NotInForce { path: PathBuf, wanted: u64, found: String },
    #[error("create {path}")]
    Create { path: PathBuf, source: io::Error },
    #[error("remove {path}")]
    Remove { path: PathBuf, source: io::Error },
    #[error("execution.cpus: a share of the processors takes cgroup v2, and that is not used here")]
    NoShares,
    #[error("sessions take control groups, which are not used here")]
    NoSessions,
    #[error("no {0} controller in any cgroup hierarchy: run `faber doctor`")]
    NoController(&'static str),
    #[error("the {controller} controller is not handed down to the group {path}")]
    NotDelegated { controller: &'static str, path: PathBuf },
    #[error("{processes} processes are in the group {path}, which may hold none if it is to hand controllers down")]
    Occupied { path: PathBuf, processes: usize },
    #[error("cover {path}, where libcontainer looks for groups")]
    Cover { path: PathBuf, source: io::Error },
    #[error("{path} cannot be written to")]
    ReadOnly { path: PathBuf, source: io::Error },
    #[error("read /proc/self/mountinfo")]
    Mounts(#[source] io::Error),
}

type Result<T> = std::result::Result<T, CgroupError>;

/// What a group holds its container to. Bytes, and processes without the init.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupLimits {
    memory: u64,
    processes: u64,
    /// In place of the share that all containers have.
    cpus: Option<Cpus>,
}

impl GroupLimits {
    pub fn with_processes(self, processes: u64) -> Self {
        Self { processes, ..self }
    }

    pub fn with_memory(self, memory: u64) -> Self {
        Self { memory, ..self }
    }

    pub fn memory(&self) -> u64 {
        self.memory
    }

    pub fn cpus(&self) -> Option<Cpus> {
        self.cpus
    }
}

impl From<&Limits> for GroupLimits {
    fn from(&Limits { memory, processes, cpus, .. }: &Limits) -> Self {
        Self { memory, processes, cpus }
    }
}

/// How a container's own group is shown in it, once its process is in a control group namespace: what to mount where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sight {
    pub fs_type: &'static CStr,
    pub place: &'static CStr,
    pub options: &'static CStr,
}

/// A directory that stands for a group in a hierarchy in which the container has none of its own: `name` below /sys/fs/cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placeholder {
    pub name: &'static str,
    pub source: PathBuf,
}

/// The group of one container. Times in nanoseconds, sizes in bytes.
pub trait Cgroup {
    /// Makes the group, with this share of the processors.
    fn make(&self, cpus: Option<Cpus>) -> Result<()>;
    /// The files by which the init enters the group: it writes 0, itself, to each of them. All that comes of it is in the group
    /// then, too.
    fn entrances(&self) -> Result<Vec<File>>;
    /// Hears which process is the init; pids as this process sees them.
    fn adopt(&self, _init: i32) {}
    /// Whether the kernel itself holds the container to its limits; else its processes need what rlimits can do.
    fn enforces(&self) -> bool {
        true
    }
    /// Puts the limits in force, whatever was in force before, and reads them back from the kernel.
    fn apply(&self, limits: &GroupLimits) -> Result<()>;
    /// Lets the peaks begin anew, where the kernel can, so that set-up is not charged to the task.
    fn reset_peaks(&self);
    /// CPU time of every process that was ever in the group: the sum alone, which is quick to read.
    fn cpu_time(&self) -> Result<u64>;
    /// The same with its parts.
    fn cpu_times(&self) -> Result<CpuTimes>;
    /// What became of the group for want of memory.
    fn out_of_memory(&self) -> Result<OutOfMemory>;
    /// What is charged to the group now. Bytes.
    fn memory_charged(&self) -> Result<u64>;
    /// The same with its parts.
    fn memory(&self) -> Result<Memory>;
    /// Has the kernel stop the group at this many bytes, which is more than its limit.
    fn widen(&self, memory: u64) -> Result<()>;
    /// Everything the group accounts for.
    fn measure(&self) -> Result<Measured>;
    /// The processes in the group now, the init among them; pids as this process sees them.
    fn processes(&self) -> Result<Vec<i32>>;
    /// Makes ready for groups below it, each held to limits of its own; this init then is in one, if it has to be.
    fn host(&self, init: i32) -> Result<()>;
    /// The list of its processes, as whoever reads it sees them.
    fn members(&self) -> Result<File>;
    /// SIGKILL to every process in it.
    fn end(&self);
    /// Removes the group, with those below it; every process in it has ended or is about to.
    fn remove(&self) -> Result<()>;
    /// What this kernel does not have for the group, once its peaks were reset.
    fn lacking(&self) -> Vec<Lack>;
}

/// Processes that the kernel ended for want of memory, and whose.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OutOfMemory {
    pub kills: u64,
    /// Whether the group came to its own limit. Else there was no more in a group above it, or in the machine.
    pub is_own: bool,
}

/// A file that a kernel may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lack {
    /// The file, and what has it.
    pub what: &'static str,
    /// The next best.
    pub instead: &'static str,
}

/// What a group has of memory at a time. Bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    pub charged: u64,
    /// Of that what is no copy of a file on a disk, of which the kernel could let go: memory of programs, files in memory, and what
    /// the kernel has for them. Counters are behind, so it is the lower of two ways to know it.
    pub own: u64,
    /// How many pages of files were read again after they had to go; since the group was made.
    pub refaults: u64,
}

impl Memory {
    pub fn files(&self) -> u64 {
        self.charged.saturating_sub(self.own)
    }
}

/// CPU time as a whole, and what user space had of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuTimes {
    pub total: u64,
    pub user: u64,
}

/// What a group accounts for since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    pub cpu: CpuTimes,
    /// With files.
    pub memory_peak: u64,
    /// At the end.
    pub memory: Memory,
    /// Without the init; at least 1.
    pub processes: u64,
    /// How many forks were refused by pids.max.
    pub forks_refused: u64,
    /// Nanoseconds in which the share of the processors was used up, where there is one.
    pub throttled: Option<u64>,
}

/// Which of the two interfaces holds the controllers on this machine.
#[derive(Debug, Clone)]
pub enum Tree {
    V1(v1::Hierarchies),
    V2(v2::Root),
    /// No groups are made.
    Without,
}

impl Tree {
    /// Looks at the mounted hierarchies: the unified one where it is all there is, else the v1 ones.
    pub fn detect(groups: Groups) -> Result<Self> {
        if groups == Groups::Unused {
            return Ok(Self::Without);
        }
        let mounts = Mount::list()?;
        match v2::Root::find(&mounts)? {
            Some(root) => Ok(Self::V2(root)),
            None => Ok(Self::V1(v1::Hierarchies::find(&mounts)?)),
        }
    }

    /// Has libcontainer leave groups alone that the calling process makes from now on, by mounts in the process' own mount
    /// namespace; what has to make way for them is then below `dir`.
    pub fn keep_to_ourselves(self, dir: &Path) -> Result<(Self, Cover)> {
        let tree = match self {
            Self::V1(hierarchies) => Self::V1(hierarchies.moved(dir)?),
            other => other,
        };
        Ok((tree, Cover::lay()?))
    }

    /// The group of a container.
    pub fn group(&self, instance: &str, container: &str) -> Box<dyn Cgroup> {
        let below = Path::new(TOP).join(instance).join(container);
        match self {
            Self::V1(hierarchies) => Box::new(hierarchies.group(&below)),
            Self::V2(root) => Box::new(root.group(&below)),
            Self::Without => Box::new(without::Group::default()),
        }
    }

    /// Makes the group of an instance, and holds the proof that it lives: a lock (flock(2)) on its directory, which the kernel
    /// takes back whatever becomes of the process. It lies in what others sweep, so that whoever can remove the group also sees
    /// the proof, however far apart two Fabers are otherwise. None without groups.
    pub fn found(&self, instance: &str) -> Result<Option<File>> {
        const TRIES: u32 = 500;
        let Some(dir) = self.home().map(|home| home.join(TOP).join(instance)) else { return Ok(None) };
        let at = |source| CgroupError::Create { path: dir.clone(), source };
        for _ in 0..TRIES {
            match found(&dir) {
                Ok(Some(lock)) => return Ok(Some(lock)),
                // Somebody who has just looked took it for a dead one's.
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(at(error)),
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Err(at(io::ErrorKind::ResourceBusy.into()))
    }

    /// The right to sweep an instance that has groups here; None when it lives.
    pub fn claim_dead(&self, instance: &str) -> Option<Option<File>> {
        let dir = self.home()?.join(TOP).join(instance);
        match File::open(&dir) {
            // The rest of one: its own home is what is made first and goes first.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Some(None),
            other => other.ok().filter(|lock| lock.try_lock().is_ok()).map(Some),
        }
    }

    /// The file by which all Fabers on this tree share the machine's user ids out; `otherwise` where there is no tree.
    pub fn claims_of_ids(&self, otherwise: &Path) -> PathBuf {
        self.home().map_or_else(|| otherwise.to_owned(), |home| home.join(TOP).join("cgroup.procs"))
    }

    /// The hierarchy that has what is one for all of them.
    fn home(&self) -> Option<&Path> {
        match self {
            Self::V1(hierarchies) => Some(hierarchies.memory()),
            Self::V2(root) => Some(root.top()),
            Self::Without => None,
        }
    }

    /// Prepares what the containers' groups need above them; `cpus` when they are to have a share of the processors.
    pub fn prepare(&self, instance: &str, cpus: Option<Cpus>) -> Result<()> {
        let below = Path::new(TOP).join(instance);
        match (self, cpus) {
            (Self::V1(_) | Self::Without, Some(_)) => Err(CgroupError::NoShares),
            (Self::Without, None) => Ok(()),
            (Self::V1(hierarchies), None) => hierarchies.prepare(&below),
            (Self::V2(root), cpus) => root.prepare(&below, cpus.is_some()),
        }
    }

    /// The file that tells how long the processes of all of an instance's containers stalled for want of memory
    /// (accounting/psi.rst), where the kernel has it.
    pub fn memory_pressure(&self, instance: &str) -> Option<PathBuf> {
        match self {
            Self::V1(_) | Self::Without => None,
            Self::V2(root) => {
                Some(root.top().join(TOP).join(instance).join("memory.pressure")).filter(|file| file.exists())
            }
        }
    }

    /// How a container's group is shown in it.
    pub fn sights(&self) -> &'static [Sight] {
        match self {
            Self::V1(_) => v1::SIGHTS,
            Self::V2(_) => v2::SIGHTS,
            Self::Without => &[],
        }
    }

    /// What is shown beside it, the same to all containers.
    pub fn placeholders(&self) -> Vec<Placeholder> {
        match self {
            Self::V1(hierarchies) => hierarchies.placeholders(),
            Self::V2(_) | Self::Without => Vec::new(),
        }
    }

    /// The instances that have groups here, alive or not.
    pub fn instances(&self) -> Vec<String> {
        let mut names: Vec<String> = self.tops().iter().filter_map(|top| directories(top).ok()).flatten().collect();
        names.retain(|name| name != EMPTY);
        names.sort();
        names.dedup();
        names
    }

    /// Ends every process in the groups of a dead instance, or of one dead runner's containers, and removes them.
    /// `prefix` is the start of the containers' names; "" means all of the instance.
    pub fn sweep(&self, instance: &str, prefix: &str) -> Result<()> {
        for top in self.tops() {
            let dir = top.join(instance);
            for name in directories(&dir)?.iter().filter(|name| name.starts_with(prefix)) {
                kill_all(&dir.join(name));
                remove_group(&dir.join(name))?;
            }
            if prefix.is_empty() {
                remove_group(&dir)?;
            }
        }
        if prefix.is_empty() && self.instances().is_empty() {
            for top in self.tops() {
                let _ = fs::remove_dir(top.join(EMPTY));
                let _ = fs::remove_dir(top);
            }
        }
        Ok(())
    }

    fn tops(&self) -> Vec<PathBuf> {
        let beside = match self {
            Self::V1(hierarchies) => hierarchies.beside().collect(),
            Self::V2(_) | Self::Without => Vec::new(),
        };
        self.roots().into_iter().chain(beside).map(|root| root.join(TOP)).collect()
    }

    fn roots(&self) -> Vec<&PathBuf> {
        match self {
            Self::V1(hierarchies) => hierarchies.roots().collect(),
            Self::V2(root) => vec![root.top()],
            Self::Without => Vec::new(),
        }
    }

    /// What would keep groups from being made: where a container engine mounts the hierarchies read-only, not even root may;
    /// and where others are in the group that was delegated, it cannot hand controllers down.
    pub fn check(&self) -> Result<()> {
        use rustix::fs::{Access, access};
        for path in self.roots() {
            access(path, Access::WRITE_OK)
                .map_err(|errno| CgroupError::ReadOnly { path: path.clone(), source: errno.into() })?;
        }
        match self {
            Self::V1(_) | Self::Without => Ok(()),
            Self::V2(root) => root.check_unoccupied(),
        }
    }

    /// Moves this process out of the way of the groups to come, and with it all that it starts from now on.
    pub fn make_way(&self) -> Result<()> {
        match self {
            Self::V1(_) | Self::Without => Ok(()),
            Self::V2(root) => root.make_way(),
        }
    }

    /// The service this process is of, when its group was not delegated to it and groups are made beside everybody's.
    pub fn service_without_delegation(&self) -> Option<String> {
        match self {
            Self::V1(_) | Self::Without => None,
            Self::V2(root) => root.service_without_delegation(),
        }
    }

    pub fn version(&self) -> &'static str {
        match self {
            Self::V1(_) => "v1",
            Self::V2(_) => "v2",
            Self::Without => "none",
        }
    }
}

/// A group with its proof; None when somebody else holds or removes it.
fn found(dir: &Path) -> io::Result<Option<File>> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    fs::create_dir_all(dir)?;
    // Who may not read it cannot open it, and so not lock it either.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
    let lock = File::open(dir)?;
    if lock.try_lock().is_err() {
        return Ok(None);
    }
    let is_there = fs::metadata(dir)?.ino() == lock.metadata()?.ino();
    Ok(is_there.then_some(lock))
}

/// Those in a directory; none where it is not there.
fn directories(dir: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(|source| CgroupError::Read { path: dir.to_owned(), source })?,
    };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(directories.filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

/// SIGKILL to every process of a group of ours; a process that cannot be ended now is seen again by the removal.
fn kill_all(group: &Path) {
    // All at once, whatever they fork meanwhile (v2, since 5.14).
    if fs::write(group.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    directories(group).unwrap_or_default().iter().for_each(|name| kill_all(&group.join(name)));
    for pid in read_pids(&group.join("cgroup.procs")).unwrap_or_default() {
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

/// rmdir(2) on a group answers EBUSY until its last process is gone for good, which is soon after the SIGKILL.
fn remove_group(path: &Path) -> Result<()> {
    const TRIES: u32 = 200;
    for attempt in 0.. {
        if attempt == 1 {
            // Those of a session's runs.
            directories(path)?.iter().try_for_each(|name| remove_group(&path.join(name)))?;
        }
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && attempt < TRIES => {
                std::thread::sleep(Duration::from_millis(if attempt < 20 { 1 } else { 10 }));
            }
            Err(source) => return Err(CgroupError::Remove { path: path.to_owned(), source }),
        }
    }
    unreachable!("the loop only ends by returning")
}

/// The most tasks a group held, without the init: from pids.peak, or what the kernel's count says now where it is missing.
fn processes_peak(dir: &Path) -> Result<u64> {
    let peak = match read_number(&dir.join("pids.peak")) {
        Ok(peak) => peak,
        Err(CgroupError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            read_number(&dir.join("pids.current"))?
        }
        Err(error) => return Err(error),
    };
    Ok(peak.saturating_sub(INIT_PROCESSES).max(1))
}

/// The share of user space in `total`, in the proportion of two coarser figures, as the kernel's cputime_adjust() does for
/// rusage.
fn share(total: u64, user: u64, system: u64) -> CpuTimes {
    let system = match system {
        0 => 0,
        system => (u128::from(total) * u128::from(system) / (u128::from(user) + u128::from(system))) as u64,
    };
    CpuTimes { total, user: total - system }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_space_has_its_share() {
        assert_eq!(share(100, 0, 0).user, 100);
        assert_eq!(share(100, 30, 10).user, 75);
        assert_eq!(share(u64::MAX, 1, 1).user, u64::MAX - u64::MAX / 2);
    }
}
