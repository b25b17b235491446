//! cgroup v2: one tree for all controllers (admin-guide/cgroup-v2.rst).
//!
//! Faber works below one group, its top: the one that was delegated to it, or an ordinary user's own, or else the root of
//! what is mounted.
//!
//! ```text
//! <top>/keeper                          Faber's own processes, where the top is not the machine's root: a group that
//!                                       hands controllers down may hold no processes itself
//! <top>/faber/<instance>/<container>    memory.max, memory.swap.max, memory.oom.group, pids.max
//! ```

use std::cell::OnceCell;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::task::Cpus;

use super::cover::MOUNT_POINT;
use super::file::{
    enforce, enforce_exactly, open_to_read, open_to_write, read, read_keyed, read_keys, read_number, read_pids, write,
};
use super::mount::Mount;
use super::{
    Cgroup, CgroupError, CpuTimes, GroupLimits, INIT_PROCESSES, Lack, Measured, Memory, OutOfMemory, PIDS_PEAK, Result,
    Sight, kill_all, processes_peak, remove_group,
};

/// The leaf of a session's init.
const INIT: &str = "init";
/// The leaf of Faber's own processes.
const OWN: &str = "keeper";
/// What limits take; accounting of CPU time needs no controller.
const NEEDED: [&str; 2] = ["memory", "pids"];
/// Read-only, and of the container's own group alone: its control group namespace begins there (cgroup_namespaces(7)).
pub const SIGHTS: &[Sight] = &[Sight { fs_type: c"cgroup2", place: c"/sys/fs/cgroup", options: c"" }];
/// Microseconds over which a share of the processors is kept: the kernel's own default.
const CPU_PERIOD: u64 = 100_000;
/// What a service manager marks the groups with that it leaves to others (systemd's cgroup delegation).
const MARKS: [&str; 2] = ["trusted.delegate", "user.delegate"];

const MEMORY_PEAK: Lack =
    Lack { what: "memory.peak (Linux 5.19)", instead: "the peak of memory is what is in use at the end" };
const RESET: Lack =
    Lack { what: "a reset of memory.peak (Linux 6.12)", instead: "the peak of memory is that of the set-up, too" };
const SWAP: Lack = Lack { what: "memory.swap.max (CONFIG_SWAP)", instead: "without swap there is nothing to limit" };
const KILL: Lack =
    Lack { what: "cgroup.kill (Linux 5.14)", instead: "what a dead Faber left running is ended one by one" };

#[derive(Debug, Clone)]
pub struct Root {
    top: PathBuf,
    /// The calling process' group, where the mount shows it.
    own: Option<PathBuf>,
}

impl Root {
    /// The unified tree; none where /sys/fs/cgroup is not one, which makes it v1's.
    ///
    /// # Errors
    /// When the group Faber would work below lacks a controller.
    pub fn find(mounts: &[Mount]) -> Result<Option<Self>> {
        // What was mounted last is what is seen.
        let Some(mount) = mounts.iter().rfind(|mount| mount.point == Path::new(MOUNT_POINT)) else { return Ok(None) };
        if mount.fs_type != "cgroup2" {
            return Ok(None);
        }
        let own = own_group(&fs::read_to_string("/proc/self/cgroup").map_err(CgroupError::Mounts)?, &mount.root);
        // In the group itself, or in the leaf beside what it is delegated for.
        let mut near = own.as_deref().into_iter().flat_map(|own| own.ancestors().take(2));
        let marked = near.find(|path| is_delegated(&below(&mount.point, path)));
        let path = marked.or_else(|| of_a_user(&mount.point, own.as_deref()?)).unwrap_or(Path::new("/"));
        let root = Self { top: below(&mount.point, path), own: own.clone() };
        let controllers = read(&root.top.join("cgroup.controllers"))?;
        match NEEDED.into_iter().find(|needed| !has(&controllers, needed)) {
            None => Ok(Some(root)),
            Some(controller) => Err(CgroupError::NotDelegated { controller, path: root.top }),
        }
    }

    /// What Faber's groups are below.
    pub fn top(&self) -> &PathBuf {
        &self.top
    }

    /// Whether it is the machine's root, which alone may hold processes and hand controllers down.
    fn is_machines(&self) -> bool {
        !self.top.join("cgroup.type").exists()
    }

    pub fn service_without_delegation(&self) -> Option<String> {
        let service = self.own.as_deref()?.components().next_back()?.as_os_str().to_str()?;
        (self.is_machines() && service.ends_with(".service")).then(|| service.to_owned())
    }

    /// Fails when processes other than the calling one keep the top from handing controllers down.
    pub fn check_unoccupied(&self) -> Result<()> {
        let enabled = read(&self.top.join("cgroup.subtree_control"))?;
        if self.is_machines() || NEEDED.iter().all(|needed| has(&enabled, needed)) {
            return Ok(());
        }
        let this = rustix::process::getpid().as_raw_nonzero().get();
        match read_pids(&self.top.join("cgroup.procs"))?.into_iter().filter(|pid| *pid != this).count() {
            0 => Ok(()),
            processes => Err(CgroupError::Occupied { path: self.top.clone(), processes }),
        }
    }

    /// Makes `below` and enables the controllers in every group from the top down to it, so that its children have them.
    pub fn prepare(&self, below: &Path, shares: bool) -> Result<()> {
        self.make_way()?;
        let controllers = NEEDED.into_iter().chain(shares.then_some("cpu"));
        let mut dir = self.top.clone();
        enable(&dir, controllers.clone())?;
        for name in below {
            dir.push(name);
            create(&dir)?;
            enable(&dir, controllers.clone())?;
        }
        Ok(())
    }

    /// Moves this process, when it is in the top itself, into the leaf.
    pub fn make_way(&self) -> Result<()> {
        let this = rustix::process::getpid().as_raw_nonzero().get();
        if self.is_machines() || !read_pids(&self.top.join("cgroup.procs"))?.contains(&this) {
            return Ok(());
        }
        let own = self.top.join(OWN);
        create(&own)?;
        write(&own.join("cgroup.procs"), this)
    }

    pub fn group(&self, below: &Path) -> Group {
        Group { dir: self.top.join(below), peak: OnceCell::new() }
    }
}

fn below(point: &Path, path: &Path) -> PathBuf {
    point.join(path.strip_prefix("/").unwrap_or(path))
}

/// The calling process' group as the mount with this root shows it, from proc_pid_cgroup(5); none when it does not.
fn own_group(text: &str, mount_root: &Path) -> Option<PathBuf> {
    let path = Path::new(text.lines().find_map(|line| line.strip_prefix("0::"))?);
    Some(Path::new("/").join(path.strip_prefix(mount_root).ok()?))
}

fn is_delegated(dir: &Path) -> bool {
    MARKS.iter().any(|mark| {
        let mut value = [0; 8];
        rustix::fs::getxattr(dir, *mark, &mut value[..]).is_ok_and(|length| value[..length] == *b"1")
    })
}

/// A user's own systemd marks nothing: a group is the user's who may change it, and may not change everybody's.
fn of_a_user<'a>(point: &Path, own: &'a Path) -> Option<&'a Path> {
    let may_change = |path: &Path| {
        rustix::fs::access(below(point, path).join("cgroup.subtree_control"), rustix::fs::Access::WRITE_OK).is_ok()
    };
    let group = if own.ends_with(OWN) { own.parent()? } else { own };
    (!may_change(Path::new("/")) && may_change(group)).then_some(group)
}

fn has(controllers: &str, wanted: &str) -> bool {
    controllers.split_whitespace().any(|controller| controller == wanted)
}

fn create(dir: &Path) -> Result<()> {
    match fs::create_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
            Err(CgroupError::Create { path: dir.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn enable(dir: &Path, controllers: impl Iterator<Item = &'static str>) -> Result<()> {
    let (available, file) = (read(&dir.join("cgroup.controllers"))?, dir.join("cgroup.subtree_control"));
    let enabled = read(&file)?;
    for controller in controllers.filter(|controller| !has(&enabled, controller)) {
        if !has(&available, controller) {
            return Err(CgroupError::NotDelegated { controller, path: dir.to_owned() });
        }
        write(&file, format_args!("+{controller}")).map_err(|error| occupied(dir, error))?;
    }
    Ok(())
}

/// EBUSY is how the kernel says that a group has processes of its own.
fn occupied(dir: &Path, error: CgroupError) -> CgroupError {
    match error {
        CgroupError::Write { source, .. } if source.kind() == io::ErrorKind::ResourceBusy => {
            let processes = read_pids(&dir.join("cgroup.procs")).map_or(0, |pids| pids.len());
            CgroupError::Occupied { path: dir.to_owned(), processes }
        }
        other => other,
    }
}

pub struct Group {
    dir: PathBuf,
    /// memory.peak, read by the descriptor that has reset it.
    peak: OnceCell<File>,
}

impl Group {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Puts a share of the processors in force, and reads it back.
    fn share(&self, Cpus(thousandths): Cpus) -> Result<()> {
        let (file, quota) = (self.file("cpu.max"), u64::from(thousandths.get()) * CPU_PERIOD / 1000);
        let wanted = format!("{quota} {CPU_PERIOD}");
        write(&file, &wanted)?;
        let found = read(&file)?;
        if found.trim() == wanted {
            return Ok(());
        }
        Err(CgroupError::NotInForce { path: file, wanted: quota, found: found.trim().to_owned() })
    }

    /// Has the cpu controller handed down to this group and its like: without a task that asks for a share nobody pays for it.
    fn hand_down_cpu(&self) -> Result<()> {
        // <top>/faber/<instance>/<container>
        let mut above: Vec<&Path> = self.dir.ancestors().skip(1).take(3).collect();
        above.reverse();
        // Written without a look: another runner may be at the same, which shows in the file before the groups below have
        // theirs; the write waits for it (cgroup_mutex), and changes nothing then.
        above.into_iter().try_for_each(|dir| write(&dir.join("cgroup.subtree_control"), "+cpu"))
    }

    /// Of the descriptor that has reset it (since 6.12), else of the group (since 5.19), else what is in use now.
    fn memory_peak(&self, current: u64) -> u64 {
        let since_reset = self.peak.get().and_then(|mut file| {
            let mut text = String::new();
            file.rewind().ok()?;
            file.read_to_string(&mut text).ok()?;
            text.trim().parse().ok()
        });
        since_reset.or_else(|| read_number(&self.file("memory.peak")).ok()).unwrap_or(current)
    }
}

impl Cgroup for Group {
    fn make(&self, cpus: Option<Cpus>) -> Result<()> {
        create(&self.dir)?;
        cpus.map_or(Ok(()), |cpus| self.share(cpus))
    }

    fn entrances(&self) -> Result<Vec<File>> {
        Ok(vec![open_to_write(&self.file("cgroup.procs"))?])
    }

    fn apply(&self, limits: &GroupLimits) -> Result<()> {
        enforce(&self.file("memory.max"), limits.memory)?;
        // Missing where the kernel has no swap.
        let swap = self.file("memory.swap.max");
        if swap.exists() {
            enforce_exactly(&swap, 0)?;
        }
        // A container that ran out of memory ends as a whole, not by whichever process the kernel finds largest.
        enforce_exactly(&self.file("memory.oom.group"), 1)?;
        enforce_exactly(&self.file("pids.max"), limits.processes + INIT_PROCESSES)?;
        let Some(cpus) = limits.cpus else { return Ok(()) };
        if !self.file("cpu.max").exists() {
            self.hand_down_cpu().map_err(|_| CgroupError::NoShares)?;
        }
        self.share(cpus)
    }

    fn reset_peaks(&self) {
        // Any text resets it, for the writing descriptor. A kernel that cannot (before 6.12) leaves the set-up in the figure.
        match self.peak.get() {
            Some(mut file) => _ = file.write_all(b"reset"),
            None => {
                let Ok(mut file) = File::options().read(true).write(true).open(self.file("memory.peak")) else {
                    return;
                };
                if file.write_all(b"reset").is_ok() {
                    let _ = self.peak.set(file);
                }
            }
        }
    }

    fn cpu_time(&self) -> Result<u64> {
        Ok(read_keyed(&self.file("cpu.stat"), "usage_usec")? * 1000)
    }

    fn out_of_memory(&self) -> Result<OutOfMemory> {
        // `oom` counts in the group that came to its limit, `oom_kill` in the one whose process was ended. There are no groups
        // below it, so this is memory.events.local.
        let [kills, own] = read_keys(&self.file("memory.events"), ["oom_kill", "oom"])?;
        Ok(OutOfMemory { kills, is_own: own > 0 })
    }

    fn cpu_times(&self) -> Result<CpuTimes> {
        let [total, user] = read_keys(&self.file("cpu.stat"), ["usage_usec", "user_usec"])?;
        Ok(CpuTimes { total: total * 1000, user: user * 1000 })
    }

    fn memory_charged(&self) -> Result<u64> {
        read_number(&self.file("memory.current"))
    }

    fn memory(&self) -> Result<Memory> {
        let keys = ["file", "shmem", "slab_reclaimable", "anon", "kernel", "workingset_refault_file"];
        let [file, shmem, slab, anon, kernel, refaults] = read_keys(&self.file("memory.stat"), keys)?;
        let charged = self.memory_charged()?;
        let one = charged.saturating_sub(file.saturating_sub(shmem) + slab);
        // `kernel` is new in 5.18.
        let other = if kernel == 0 { charged } else { anon + shmem + kernel.saturating_sub(slab) };
        Ok(Memory { charged, own: one.min(other), refaults })
    }

    fn widen(&self, memory: u64) -> Result<()> {
        enforce(&self.file("memory.max"), memory)
    }

    fn measure(&self) -> Result<Measured> {
        let memory = self.memory()?;
        Ok(Measured {
            cpu: self.cpu_times()?,
            memory_peak: self.memory_peak(memory.charged),
            memory,
            processes: processes_peak(&self.dir)?,
            forks_refused: read_keyed(&self.file("pids.events"), "max")?,
            // Only with the cpu controller.
            throttled: read_keyed(&self.file("cpu.stat"), "throttled_usec")
                .ok()
                .map(|microseconds| microseconds * 1000),
        })
    }

    fn processes(&self) -> Result<Vec<i32>> {
        read_pids(&self.file("cgroup.procs"))
    }

    /// A group that hands controllers down may hold no processes.
    fn host(&self, init: i32) -> Result<()> {
        let leaf = self.file(INIT);
        create(&leaf)?;
        write(&leaf.join("cgroup.procs"), init)?;
        enable(&self.dir, NEEDED.into_iter())?;
        // One run that is too much for all of them ends, not the session.
        enforce_exactly(&self.file("memory.oom.group"), 0)
    }

    fn members(&self) -> Result<File> {
        open_to_read(&self.file("cgroup.procs"))
    }

    fn end(&self) {
        kill_all(&self.dir);
    }

    fn remove(&self) -> Result<()> {
        remove_group(&self.dir)
    }

    fn lacking(&self) -> Vec<Lack> {
        let lacks =
            [("memory.peak", MEMORY_PEAK), ("memory.swap.max", SWAP), ("pids.peak", PIDS_PEAK), ("cgroup.kill", KILL)];
        let reset = (self.peak.get().is_none() && self.file("memory.peak").exists()).then_some(RESET);
        lacks.into_iter().filter(|(file, _)| !self.file(file).exists()).map(|(_, lack)| lack).chain(reset).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_seen_through_the_mount() {
        let own = |text: &str, root: &str| own_group(text, Path::new(root));
        let text = "1:cpu:/a\n0::/system.slice/faber.service/keeper\n";
        assert_eq!(own(text, "/").unwrap(), Path::new("/system.slice/faber.service/keeper"));
        assert_eq!(own(text, "/system.slice/faber.service").unwrap(), Path::new("/keeper"));
        assert_eq!(own("0::/\n", "/").unwrap(), Path::new("/"));
        assert_eq!(own(text, "/docker/1234"), None);
        assert_eq!(own("4:memory:/x\n", "/"), None);
    }
}
