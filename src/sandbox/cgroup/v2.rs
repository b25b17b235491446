//! cgroup v2: one tree for all controllers (admin-guide/cgroup-v2.rst).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{
    Cgroup, CgroupError, GroupLimits, INIT_PROCESSES, Measured, Mount, Result, enforce, enforce_exactly,
    processes_peak, read, read_keyed, read_number, read_pids, remove_group, write,
};

const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

#[derive(Debug, Clone)]
pub struct Root(PathBuf);

impl Root {
    /// The unified tree, when its root has the controllers; on a hybrid machine they are v1's and this is none.
    pub fn find(mounts: &[Mount]) -> Option<Self> {
        let point = &mounts.iter().find(|mount| mount.fs_type == "cgroup2")?.point;
        let controllers = fs::read_to_string(point.join("cgroup.controllers")).ok()?;
        let has = |wanted: &str| controllers.split_whitespace().any(|controller| controller == wanted);
        (has("memory") && has("pids")).then(|| Self(point.clone()))
    }

    pub fn path(&self) -> &PathBuf {
        &self.0
    }

    /// Makes `below` and enables the controllers in every group from the root down to it, so that its children have them.
    pub fn delegate(&self, below: &Path) -> Result<()> {
        let mut dir = self.0.clone();
        enable(&dir)?;
        for name in below {
            dir.push(name);
            match fs::create_dir(&dir) {
                Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(CgroupError::Write { path: dir, value: "a new group".into(), source });
                }
                _ => enable(&dir)?,
            }
        }
        Ok(())
    }

    pub fn lacking_counters(&self) -> Vec<&'static str> {
        super::lacking(&self.0, &["memory.peak", "memory.swap.max", "pids.peak", "cgroup.kill"])
    }

    pub fn group(&self, below: &Path) -> Group {
        Group(self.0.join(below))
    }
}

fn enable(dir: &Path) -> Result<()> {
    let file = dir.join("cgroup.subtree_control");
    let enabled = read(&file)?;
    for controller in CONTROLLERS {
        if !enabled.split_whitespace().any(|word| word == controller) {
            write(&file, format_args!("+{controller}"))?;
        }
    }
    Ok(())
}

pub struct Group(PathBuf);

impl Cgroup for Group {
    fn apply(&self, limits: &GroupLimits) -> Result<()> {
        enforce(&self.0.join("memory.max"), limits.memory)?;
        // Missing where the kernel has no swap.
        let swap = self.0.join("memory.swap.max");
        if swap.exists() {
            enforce_exactly(&swap, 0)?;
        }
        enforce_exactly(&self.0.join("pids.max"), limits.processes + INIT_PROCESSES)
    }

    fn reset_peaks(&self) {
        // A write to memory.peak counts for the writing descriptor alone (since 6.12), so the set-up stays in the figure.
    }

    fn cpu_time(&self) -> Result<u64> {
        Ok(read_keyed(&self.0.join("cpu.stat"), "usage_usec")? * 1000)
    }

    fn oom_kills(&self) -> Result<u64> {
        read_keyed(&self.0.join("memory.events"), "oom_kill")
    }

    fn measure(&self) -> Result<Measured> {
        let stat = self.0.join("cpu.stat");
        let memory_current = read_number(&self.0.join("memory.current"))?;
        Ok(Measured {
            cpu_time: self.cpu_time()?,
            user_time: read_keyed(&stat, "user_usec")? * 1000,
            system_time: read_keyed(&stat, "system_usec")? * 1000,
            // Since 5.19; before, the usage of now is the next best.
            memory_peak: read_number(&self.0.join("memory.peak")).unwrap_or(memory_current),
            memory_current,
            processes: processes_peak(&self.0)?,
            forks_refused: read_keyed(&self.0.join("pids.events"), "max")? > 0,
        })
    }

    fn processes(&self) -> Result<Vec<i32>> {
        read_pids(&self.0.join("cgroup.procs"))
    }

    fn remove(&self) -> Result<()> {
        remove_group(&self.0)
    }
}
