//! No control groups: the next best for a user to whom none were delegated.
//!
//! What a container uses is added up from its processes as they are seen, every few milliseconds; what they are held to
//! is seen to be exceeded, and then the container is ended. The kernel itself holds each process to RLIMIT_NPROC and
//! RLIMIT_DATA (getrlimit(2)). Sources: proc_pid_stat(5), smaps_rollup in filesystems/proc.rst.

use std::cell::Cell;
use std::fs::{self, File};
use std::path::Path;

use super::{Cgroup, CpuTimes, GroupLimits, Lack, Measured, Memory, OutOfMemory, Result};
use crate::task::Cpus;

const WITHOUT: Lack = Lack {
    what: "control groups (--no-cgroup)",
    instead: "memory and processes are looked at every 10 ms: a task may exceed its limits in between, I/O caches are not \
              counted, CPU time is counted in steps of 10 ms",
};

/// Where a task's files are memory: /proc/PID/root leads there, and none of these can be replaced by a task.
const FILES: [&str; 3] = ["workspace", "tmp", "dev/shm"];

#[derive(Default)]
pub struct Group {
    /// The init; 0 before it is known.
    init: Cell<i32>,
    limit: Cell<Option<u64>>,
    memory_peak: Cell<u64>,
    processes_peak: Cell<u64>,
    exceeded: Cell<bool>,
}

impl Group {
    /// Looks at memory and processes, and remembers the most. Bytes.
    fn look(&self) -> u64 {
        let processes = descendants(self.init.get());
        let root = format!("/proc/{}/root", self.init.get());
        let files = FILES.iter().filter_map(|dir| used(&Path::new(&root).join(dir))).sum::<u64>();
        let memory = files + processes.iter().filter_map(|pid| proportional_set(*pid)).sum::<u64>();
        self.memory_peak.set(self.memory_peak.get().max(memory));
        self.processes_peak.set(self.processes_peak.get().max(processes.len() as u64));
        if self.limit.get().is_some_and(|limit| memory > limit) {
            self.exceeded.set(true);
        }
        memory
    }
}

impl Cgroup for Group {
    fn make(&self, cpus: Option<Cpus>) -> Result<()> {
        if cpus.is_some() { Err(super::CgroupError::NoShares) } else { Ok(()) }
    }

    fn entrances(&self) -> Result<Vec<File>> {
        Ok(Vec::new())
    }

    fn adopt(&self, init: i32) {
        self.init.set(init);
    }

    fn enforces(&self) -> bool {
        false
    }

    fn apply(&self, limits: &GroupLimits) -> Result<()> {
        if limits.cpus.is_some() {
            return Err(super::CgroupError::NoShares);
        }
        self.limit.set(Some(limits.memory));
        Ok(())
    }

    fn reset_peaks(&self) {
        self.memory_peak.set(0);
        self.processes_peak.set(0);
    }

    fn cpu_time(&self) -> Result<u64> {
        Ok(self.cpu_times()?.total)
    }

    fn out_of_memory(&self) -> Result<OutOfMemory> {
        if !self.exceeded.get() {
            self.look();
        }
        Ok(OutOfMemory { kills: u64::from(self.exceeded.get()), is_own: true })
    }

    fn cpu_times(&self) -> Result<CpuTimes> {
        let (user, system) = times(self.init.get());
        Ok(CpuTimes { total: user + system, user })
    }

    fn memory_charged(&self) -> Result<u64> {
        Ok(self.look())
    }

    fn memory(&self) -> Result<Memory> {
        let own = self.look();
        Ok(Memory { charged: own, own, refaults: 0 })
    }

    fn widen(&self, _: u64) -> Result<()> {
        Ok(())
    }

    fn measure(&self) -> Result<Measured> {
        let memory = self.memory()?;
        Ok(Measured {
            cpu: self.cpu_times()?,
            memory_peak: self.memory_peak.get(),
            memory,
            processes: self.processes_peak.get().max(1),
            forks_refused: 0,
            throttled: None,
        })
    }

    fn processes(&self) -> Result<Vec<i32>> {
        Ok(descendants(self.init.get()))
    }

    fn host(&self, _: i32) -> Result<()> {
        Err(super::CgroupError::NoSessions)
    }

    fn members(&self) -> Result<File> {
        Err(super::CgroupError::NoSessions)
    }

    fn end(&self) {}

    fn remove(&self) -> Result<()> {
        Ok(())
    }

    fn lacking(&self) -> Vec<Lack> {
        vec![WITHOUT]
    }
}

/// Whatever a container's processes do, they stay below its init: who loses its parent becomes the init's child.
fn descendants(pid: i32) -> Vec<i32> {
    let mut found = Vec::new();
    let mut next = vec![pid];
    while let Some(pid) = next.pop() {
        let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { continue };
        for thread in threads.flatten() {
            let text = fs::read_to_string(thread.path().join("children")).unwrap_or_default();
            next.extend(text.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok()));
        }
        found.push(pid);
    }
    // Its own place is not the task's.
    found.split_off(1.min(found.len()))
}

/// Bytes that are a process' own, and its part of what it shares with others.
fn proportional_set(pid: i32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kilobytes: u64 =
        text.lines().find_map(|line| line.strip_prefix("Pss:"))?.trim().split(' ').next()?.parse().ok()?;
    Some(kilobytes << 10)
}

/// Bytes in use in the tmpfs at a place; a build step has some of them on the disk.
fn used(place: &Path) -> Option<u64> {
    let stat = rustix::fs::statfs(place).ok()?;
    (stat.f_type as i64 == libc::TMPFS_MAGIC).then(|| (stat.f_blocks - stat.f_bfree) * stat.f_bsize as u64)
}

/// User and system time in nanoseconds of an init, of all that it has reaped, and of what is still running below it.
fn times(init: i32) -> (u64, u64) {
    let own = ticks(init);
    let others = descendants(init).into_iter().map(ticks);
    let (user, system) = others.fold(own, |(user, system), (u, s)| (user + u, system + s));
    let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second();
    (user * tick, system * tick)
}

/// utime and stime of a process, with cutime and cstime, what it has reaped: fields 14 to 17.
fn ticks(pid: i32) -> (u64, u64) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').skip(11).map(str::parse::<u64>);
    let [user, system, ended_user, ended_system] =
        fields.take(4).filter_map(std::result::Result::ok).collect::<Vec<_>>()[..]
    else {
        return (0, 0);
    };
    (user + ended_user, system + ended_system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_seen() {
        let this = std::process::id() as i32;
        assert!(proportional_set(this).unwrap() > 4096);
        // Not this process' own time: qemu-user makes up what it says of itself.
        let mut child = std::process::Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let pid = child.id() as i32;
        assert!(descendants(this).contains(&pid));
        let begun = std::time::Instant::now();
        let mut used = false;
        while !used && begun.elapsed() < std::time::Duration::from_secs(60) {
            let (user, system) = times(pid);
            used = user + system > 0;
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(used);
    }
}
