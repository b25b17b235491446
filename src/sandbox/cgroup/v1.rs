//! cgroup v1: a hierarchy for each controller (admin-guide/cgroup-v1/{memory,pids,cpuacct}.rst).

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::task::Cpus;

use super::file::{
    enforce, enforce_exactly, open_to_read, open_to_write, read_keyed, read_keys, read_number, read_pids, write,
};
use super::mount::Mount;
use super::{
    Cgroup, CgroupError, CpuTimes, EMPTY, GroupLimits, INIT_PROCESSES, Lack, Measured, Memory, OutOfMemory, PIDS_PEAK,
    Placeholder, Result, Sight, TOP, kill_all, processes_peak, remove_group, share,
};

/// What limits and usage need.
const NEEDED: [&str; 3] = ["memory", "pids", "cpuacct"];

/// What a task's connections may hold on their way, beside its memory: senders wait beyond it.
const TCP_BYTES: u64 = 8 << 20;

/// The kernel ends processes for want of this many bytes at most: eight pages, PAGE_ALLOC_COSTLY_ORDER, or a stack's.
const LARGEST_CHARGE: u64 = 64 << 10;

/// A container's memory is told by its group; of the hierarchies in which it has none that is shown, the JVM and others want to see
/// that they are there before they believe any (cgroupSubsystem_linux.cpp).
pub const SIGHTS: &[Sight] = &[Sight { fs_type: c"cgroup", place: c"/sys/fs/cgroup/memory", options: c"memory" }];
const EXPECTED: [&str; 3] = ["cpu", "cpuacct", "cpuset"];

#[derive(Debug, Clone)]
pub struct Hierarchies {
    roots: BTreeMap<&'static str, PathBuf>,
    /// Of what is only shown.
    expected: BTreeMap<&'static str, PathBuf>,
}

impl Hierarchies {
    pub fn find(mounts: &[Mount]) -> Result<Self> {
        let root = |controller: &&str| {
            let has = |mount: &&Mount| mount.super_options.iter().any(|option| option == controller);
            mounts.iter().filter(|mount| mount.fs_type == "cgroup").find(has).map(|mount| mount.point.clone())
        };
        let found = |controller: &'static str| {
            root(&controller).map(|root| (controller, root)).ok_or(CgroupError::NoController(controller))
        };
        let expected = EXPECTED.into_iter().filter_map(|name| root(&name).map(|root| (name, root))).collect();
        Ok(Self { roots: NEEDED.into_iter().map(found).collect::<Result<_>>()?, expected })
    }

    /// The same, mounted below `dir`.
    pub fn moved(&self, dir: &Path) -> Result<Self> {
        let moved = |(&controller, root): (&&'static str, &PathBuf)| {
            // One hierarchy may have several of the controllers, and is one place then.
            let name = self.roots.iter().find(|(_, other)| *other == root).map_or(controller, |(first, _)| first);
            let point = dir.join(name);
            if !point.exists() {
                fs::create_dir_all(&point).map_err(|source| CgroupError::Create { path: point.clone(), source })?;
                rustix::mount::mount_bind(root, &point)
                    .map_err(|errno| CgroupError::Cover { path: root.clone(), source: errno.into() })?;
            }
            Ok((controller, point))
        };
        // Nothing is done with the others any more.
        Ok(Self { roots: self.roots.iter().map(moved).collect::<Result<_>>()?, expected: BTreeMap::new() })
    }

    /// The root of each hierarchy once, however many controllers share it.
    pub fn roots(&self) -> impl Iterator<Item = &PathBuf> {
        let mut roots: Vec<&PathBuf> = self.roots.values().collect();
        roots.sort();
        roots.dedup();
        roots.into_iter()
    }

    /// The root of the memory controller's.
    pub fn memory(&self) -> &Path {
        &self.roots["memory"]
    }

    /// The hierarchies in which there is nothing but what is shown.
    pub fn beside(&self) -> impl Iterator<Item = &PathBuf> {
        self.expected.values().filter(|root| !self.roots.values().any(|used| used == *root))
    }

    pub fn prepare(&self, below: &Path) -> Result<()> {
        for root in self.expected.values() {
            // A help for programs, which nothing else depends on.
            let _ = fs::create_dir_all(root.join(TOP).join(EMPTY));
        }
        self.roots()
            .map(|root| root.join(below))
            .try_for_each(|path| fs::create_dir_all(&path).map_err(|source| CgroupError::Create { path, source }))
    }

    pub fn placeholders(&self) -> Vec<Placeholder> {
        let empty = |(&name, root): (&&'static str, &PathBuf)| Placeholder { name, source: root.join(TOP).join(EMPTY) };
        self.expected.iter().map(empty).filter(|placeholder| placeholder.source.is_dir()).collect()
    }

    pub fn group(&self, below: &Path) -> Group {
        Group {
            memory: self.roots["memory"].join(below),
            pids: self.roots["pids"].join(below),
            cpuacct: self.roots["cpuacct"].join(below),
            applied: Cell::default(),
            all: self.roots().map(|root| root.join(below)).collect(),
        }
    }
}

pub struct Group {
    memory: PathBuf,
    pids: PathBuf,
    cpuacct: PathBuf,
    /// The memory limit of the task, which a group that was widened no longer has.
    applied: Cell<Option<u64>>,
    all: Vec<PathBuf>,
}

impl Group {
    /// Memory and swap together: no swap. Without swap accounting, none unless the machine itself runs out of memory.
    fn limit(&self, memory: u64) -> Result<()> {
        let with_swap = self.memory.join("memory.memsw.limit_in_bytes");
        let has_swap = with_swap.exists();
        if has_swap {
            // Neither may ever be above the other.
            write(&with_swap, -1)?;
        }
        enforce(&self.memory.join("memory.limit_in_bytes"), memory)?;
        if has_swap { enforce(&with_swap, memory) } else { enforce_exactly(&self.memory.join("memory.swappiness"), 0) }
    }
}

impl Cgroup for Group {
    fn make(&self, cpus: Option<Cpus>) -> Result<()> {
        if cpus.is_some() {
            return Err(CgroupError::NoShares);
        }
        self.all.iter().try_for_each(|path| {
            fs::create_dir(path).map_err(|source| CgroupError::Create { path: path.clone(), source })
        })
    }

    fn entrances(&self) -> Result<Vec<File>> {
        // A process of one thread that moves itself by `tasks` takes no lock of the whole machine's; any other move now and
        // then waits 15 ms for it, and all that make or remove groups with it (cgroup_procs_write_start(), since 5.5).
        self.all.iter().map(|group| open_to_write(&group.join("tasks"))).collect()
    }

    fn apply(&self, limits: &GroupLimits) -> Result<()> {
        if limits.cpus.is_some() {
            return Err(CgroupError::NoShares);
        }
        self.limit(limits.memory)?;
        self.applied.set(Some(limits.memory));
        // Buffers of TCP are counted apart from memory here; without a limit they have all of the machine's.
        let tcp = self.memory.join("memory.kmem.tcp.limit_in_bytes");
        if tcp.exists() {
            enforce(&tcp, limits.memory.min(TCP_BYTES))?;
        }
        enforce_exactly(&self.pids.join("pids.max"), limits.processes + INIT_PROCESSES)
    }

    fn reset_peaks(&self) {
        // Any number written sets the peak to the usage of now; a refusal only leaves the set-up in the figure.
        let _ = write(&self.memory.join("memory.max_usage_in_bytes"), 0);
    }

    fn cpu_time(&self) -> Result<u64> {
        read_number(&self.cpuacct.join("cpuacct.usage"))
    }

    fn out_of_memory(&self) -> Result<OutOfMemory> {
        let kills = read_keyed(&self.memory.join("memory.oom_control"), "oom_kill")?;
        // failcnt is not to be relied on: on some kernels (6.18) it stays 0. Who was at the limit met it; cached pages count
        // here, so a kill may be taken for the group's own that is not, never the other way round. The limit is the task's: a
        // group that was widened between the kill and now met that one.
        let limit = match self.applied.get() {
            Some(limit) => limit,
            None => read_number(&self.memory.join("memory.limit_in_bytes"))?,
        };
        let is_own =
            kills > 0 && read_number(&self.memory.join("memory.max_usage_in_bytes"))? + LARGEST_CHARGE >= limit;
        Ok(OutOfMemory { kills, is_own })
    }

    fn cpu_times(&self) -> Result<CpuTimes> {
        let user = read_number(&self.cpuacct.join("cpuacct.usage_user"))?;
        let system = read_number(&self.cpuacct.join("cpuacct.usage_sys"))?;
        Ok(share(self.cpu_time()?, user, system))
    }

    fn memory_charged(&self) -> Result<u64> {
        read_number(&self.memory.join("memory.usage_in_bytes"))
    }

    fn memory(&self) -> Result<Memory> {
        let keys = ["cache", "shmem", "rss", "workingset_refault_file"];
        let [cache, shmem, rss, refaults] = read_keys(&self.memory.join("memory.stat"), keys)?;
        let (charged, kernel) = (self.memory_charged()?, read_number(&self.memory.join("memory.kmem.usage_in_bytes")));
        // What the kernel itself has for files is not told apart here.
        let one = charged.saturating_sub(cache.saturating_sub(shmem));
        let other = kernel.map_or(charged, |kernel| rss + shmem + kernel);
        Ok(Memory { charged, own: one.min(other), refaults })
    }

    fn widen(&self, memory: u64) -> Result<()> {
        self.limit(memory)
    }

    fn measure(&self) -> Result<Measured> {
        Ok(Measured {
            cpu: self.cpu_times()?,
            memory_peak: read_number(&self.memory.join("memory.max_usage_in_bytes"))?,
            memory: self.memory()?,
            processes: processes_peak(&self.pids)?,
            forks_refused: read_keyed(&self.pids.join("pids.events"), "max")?,
            throttled: None,
        })
    }

    fn processes(&self) -> Result<Vec<i32>> {
        read_pids(&self.pids.join("cgroup.procs"))
    }

    /// Every group may have others below it, and limits hold for those, too.
    fn host(&self, _: i32) -> Result<()> {
        Ok(())
    }

    fn members(&self) -> Result<File> {
        open_to_read(&self.pids.join("cgroup.procs"))
    }

    fn end(&self) {
        kill_all(&self.pids);
    }

    fn remove(&self) -> Result<()> {
        self.all.iter().try_for_each(|group| remove_group(group))
    }

    fn lacking(&self) -> Vec<Lack> {
        let swap = Lack {
            what: "memory.memsw.limit_in_bytes (swapaccount=1)",
            instead: "tasks are swapped out when the machine itself has no memory left",
        };
        let lacks = [(self.memory.join("memory.memsw.limit_in_bytes"), swap), (self.pids.join("pids.peak"), PIDS_PEAK)];
        lacks.into_iter().filter(|(file, _)| !file.exists()).map(|(_, lack)| lack).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The watch gives room while the kernel ends the group for want of it.
    #[test]
    fn a_kill_at_the_limit_stays_the_groups_own_when_it_is_widened_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = || dir.path().to_owned();
        let group = Group { memory: path(), pids: path(), cpuacct: path(), applied: Cell::default(), all: Vec::new() };
        let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        for file in ["memory.limit_in_bytes", "memory.swappiness", "pids.max"] {
            put(file, "");
        }
        put("memory.oom_control", "oom_kill 1\n");
        put("memory.max_usage_in_bytes", &(128u64 << 20).to_string());
        group.apply(&GroupLimits { memory: 128 << 20, processes: 1, cpus: None }).unwrap();
        assert!(group.out_of_memory().unwrap().is_own);
        group.widen(132 << 20).unwrap();
        assert!(group.out_of_memory().unwrap().is_own);
        // Of a group that never was at its limit it is the machine's.
        put("memory.max_usage_in_bytes", &(100u64 << 20).to_string());
        assert!(!group.out_of_memory().unwrap().is_own);
    }
}
