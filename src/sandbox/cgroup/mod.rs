//! Control groups: where limits are put in force and usage is read.
//!
//! Faber's groups are `<root>/faber/<instance>/<container>`: every name says who made it, and nothing else is touched.
//! libcontainer creates a container's group and puts the init into it; limits, usage and removal are ours.
//! Sources: cgroups(7), admin-guide/cgroup-v1/*.rst, admin-guide/cgroup-v2.rst.

mod v1;
mod v2;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::task::Limits;

/// The top of everything Faber makes below a hierarchy's root.
const TOP: &str = "faber";

/// The init is Faber's: its place in pids.max is on top of the task's.
const INIT_PROCESSES: u64 = 1;

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("read {path}")]
    Read { path: PathBuf, source: io::Error },
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
    #[error("no {0} controller in any cgroup hierarchy: run `faber doctor`")]
    NoController(&'static str),
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
}

impl From<&Limits> for GroupLimits {
    fn from(&Limits { memory, processes, .. }: &Limits) -> Self {
        Self { memory, processes }
    }
}

/// The group of one container. Times in nanoseconds, sizes in bytes.
pub trait Cgroup {
    /// Puts the limits in force, whatever was in force before, and reads them back from the kernel.
    fn apply(&self, limits: &GroupLimits) -> Result<()>;
    /// Lets the peaks begin anew, where the kernel can, so that set-up is not charged to the task.
    fn reset_peaks(&self);
    /// CPU time of every process that was ever in the group.
    fn cpu_time(&self) -> Result<u64>;
    /// How often the kernel ended a process of the group for want of memory.
    fn oom_kills(&self) -> Result<u64>;
    /// Everything the group accounts for.
    fn measure(&self) -> Result<Measured>;
    /// The processes in the group now, the init among them; pids as this process sees them.
    fn processes(&self) -> Result<Vec<i32>>;
    /// Removes the group; every process in it has ended or is about to.
    fn remove(&self) -> Result<()>;
}

/// What a group accounts for since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Measured {
    pub cpu_time: u64,
    pub user_time: u64,
    pub system_time: u64,
    pub memory_peak: u64,
    pub memory_current: u64,
    /// Without the init; at least 1.
    pub processes: u64,
    /// A fork was refused by pids.max.
    pub forks_refused: bool,
}

/// Which of the two interfaces holds the controllers on this machine.
#[derive(Debug, Clone)]
pub enum Tree {
    V1(v1::Hierarchies),
    V2(v2::Root),
}

impl Tree {
    /// Looks at the mounted hierarchies: the unified one when it has a memory controller, else the v1 ones.
    pub fn detect() -> Result<Self> {
        let mounts = Mount::list()?;
        if let Some(root) = v2::Root::find(&mounts) {
            return Ok(Self::V2(root));
        }
        Ok(Self::V1(v1::Hierarchies::find(&mounts)?))
    }

    /// Takes out of the calling process' mount namespace, which is its own, the hierarchies without a controller of use here:
    /// libcontainer makes a group in each that it finds, and each costs it a tenth of a millisecond or two. One that cannot be
    /// taken out is used, and its groups are removed, as any other.
    pub fn leave_out_of_use() -> Result<()> {
        for mount in Mount::list()?.iter().filter(|mount| v1::is_out_of_use(mount)) {
            let _ = rustix::mount::unmount(&mount.point, rustix::mount::UnmountFlags::DETACH);
        }
        Ok(())
    }

    /// The path of a container's group inside its hierarchy, as the OCI spec's `cgroupsPath` wants it: absolute, unique.
    pub fn path(instance: &str, container: &str) -> PathBuf {
        Path::new("/").join(TOP).join(instance).join(container)
    }

    /// The group of a container that libcontainer has made at [`Tree::path`].
    pub fn group(&self, instance: &str, container: &str) -> Box<dyn Cgroup> {
        let below = Path::new(TOP).join(instance).join(container);
        match self {
            Self::V1(hierarchies) => Box::new(hierarchies.group(&below)),
            Self::V2(root) => Box::new(root.group(&below)),
        }
    }

    /// Prepares what the containers' groups need above them.
    pub fn prepare(&self, instance: &str) -> Result<()> {
        let below = Path::new(TOP).join(instance);
        match self {
            Self::V1(hierarchies) => hierarchies.prepare(&below),
            Self::V2(root) => root.delegate(&below),
        }
    }

    /// The instances that have groups here, alive or not.
    pub fn instances(&self) -> Vec<String> {
        let mut names: Vec<String> = self.tops().iter().flat_map(|top| directories(top)).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Ends every process in the groups of a dead instance, or of one dead runner's containers, and removes them.
    /// `prefix` is the start of the containers' names; "" means all of the instance.
    pub fn sweep(&self, instance: &str, prefix: &str) -> Result<()> {
        for top in self.tops() {
            let dir = top.join(instance);
            for name in directories(&dir).iter().filter(|name| name.starts_with(prefix)) {
                kill_all(&dir.join(name));
                remove_group(&dir.join(name))?;
            }
            if prefix.is_empty() {
                remove_group(&dir)?;
                // Others may have theirs below it.
                let _ = fs::remove_dir(&top);
            }
        }
        Ok(())
    }

    fn tops(&self) -> Vec<PathBuf> {
        self.roots().into_iter().map(|root| root.join(TOP)).collect()
    }

    fn roots(&self) -> Vec<&PathBuf> {
        match self {
            Self::V1(hierarchies) => hierarchies.roots().collect(),
            Self::V2(root) => vec![root.path()],
        }
    }

    /// Whether groups can be made: where a container engine mounts the hierarchies read-only, not even root may.
    pub fn check_writable(&self) -> Result<()> {
        use rustix::fs::{Access, access};
        self.roots().into_iter().try_for_each(|path| {
            access(path, Access::WRITE_OK)
                .map_err(|errno| CgroupError::ReadOnly { path: path.clone(), source: errno.into() })
        })
    }

    /// The counters that this kernel lacks and Faber has a next best for. The root group has none of these files, so they
    /// are looked for in a group of ours, where there is one, or in any other.
    pub fn lacking_counters(&self) -> Vec<&'static str> {
        match self {
            Self::V1(hierarchies) => hierarchies.lacking_counters(),
            Self::V2(root) => root.lacking_counters(),
        }
    }

    pub fn version(&self) -> &'static str {
        match self {
            Self::V1(_) => "v1",
            Self::V2(_) => "v2",
        }
    }
}

/// One line of /proc/self/mountinfo (proc_pid_mountinfo(5)), as far as it matters here.
pub struct Mount {
    pub point: PathBuf,
    pub fs_type: String,
    pub super_options: Vec<String>,
}

impl Mount {
    pub fn list() -> Result<Vec<Self>> {
        let text = fs::read_to_string("/proc/self/mountinfo").map_err(CgroupError::Mounts)?;
        Ok(text.lines().filter_map(Self::parse).collect())
    }

    fn parse(line: &str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let point = left.split(' ').nth(4)?;
        let mut right = right.split(' ');
        let fs_type = right.next()?.to_owned();
        let super_options = right.nth(1)?.split(',').map(str::to_owned).collect();
        Some(Self { point: PathBuf::from(point), fs_type, super_options })
    }
}

/// Which of `files` no group directly below `root` has; none when there is no group to look at.
fn lacking(root: &Path, files: &[&'static str]) -> Vec<&'static str> {
    let Some(group) = directories(root).first().map(|name| root.join(name)) else { return Vec::new() };
    files.iter().copied().filter(|file| !group.join(file).exists()).collect()
}

fn directories(dir: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// SIGKILL to every process of a group of ours; a process that cannot be ended now is seen again by the removal.
fn kill_all(group: &Path) {
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

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).map_err(|source| CgroupError::Read { path: path.to_owned(), source })
}

fn write(path: &Path, value: impl ToString) -> Result<()> {
    let value = value.to_string();
    fs::write(path, &value).map_err(|source| CgroupError::Write { path: path.to_owned(), value, source })
}

fn read_number(path: &Path) -> Result<u64> {
    let text = read(path)?;
    text.trim().parse().map_err(|_| CgroupError::Parse { path: path.to_owned(), text })
}

/// The value of `key` in a flat keyed file (`key value` lines); 0 where the kernel does not have the key.
fn read_keyed(path: &Path, key: &str) -> Result<u64> {
    let text = read(path)?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    match value.map(str::parse) {
        None => Ok(0),
        Some(Ok(number)) => Ok(number),
        Some(Err(_)) => Err(CgroupError::Parse { path: path.to_owned(), text }),
    }
}

fn read_pids(path: &Path) -> Result<Vec<i32>> {
    Ok(read(path)?.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Writes a number and proves that the kernel took it; memory limits are rounded to pages.
fn enforce(path: &Path, wanted: u64) -> Result<()> {
    const PAGE: u64 = 4096;
    write(path, wanted)?;
    let found = read(path)?;
    match found.trim().parse::<u64>() {
        Ok(number) if number <= wanted && wanted - number < PAGE => Ok(()),
        _ => Err(CgroupError::NotInForce { path: path.to_owned(), wanted, found: found.trim().to_owned() }),
    }
}

/// The same for small counts, where no rounding is allowed.
fn enforce_exactly(path: &Path, wanted: u64) -> Result<()> {
    write(path, wanted)?;
    let found = read(path)?;
    if found.trim() == wanted.to_string() {
        return Ok(());
    }
    Err(CgroupError::NotInForce { path: path.to_owned(), wanted, found: found.trim().to_owned() })
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

/// Shares `total` out in the proportion of two coarser figures, as the kernel's cputime_adjust() does for rusage.
fn proportion(total: u64, user: u64, system: u64) -> (u64, u64) {
    if system == 0 {
        return (total, 0);
    }
    let system = (u128::from(total) * u128::from(system) / (u128::from(user) + u128::from(system))) as u64;
    (total - system, system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_add_up_to_the_total() {
        assert_eq!(proportion(100, 0, 0), (100, 0));
        assert_eq!(proportion(100, 30, 10), (75, 25));
        assert_eq!(proportion(u64::MAX, 1, 1), (u64::MAX - u64::MAX / 2, u64::MAX / 2));
    }

    #[test]
    fn mountinfo_lines_are_read() {
        let line = "32 28 0:27 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory";
        let mount = Mount::parse(line).unwrap();
        assert_eq!(mount.point, Path::new("/sys/fs/cgroup/memory"));
        assert_eq!((mount.fs_type.as_str(), mount.super_options[1].as_str()), ("cgroup", "memory"));
    }
}
