//! What a task finds at /sys, and in place of /proc/meminfo: what programs size themselves by. Plain files of the slot's own,
//! read-only for tasks, beside which the container's own control group is mounted ([`super::init`]). Nothing else of the
//! machine's /sys is there.
//!
//! ```text
//! /sys/fs/cgroup                                the container's own group (v2), or memory/ (v1)
//! /sys/devices/system/cpu                       which processors there are, as far as the task may use them
//! /sys/kernel/mm/transparent_hugepage           what allocators ask for
//! ```

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, mount_bind, move_mount, open_tree};

use super::cgroup::{GroupLimits, Placeholder, Tree};
use super::kernel;
use super::processors::{self, Chosen};
use crate::task::Cpus;

/// Where /proc/meminfo's content is found in a container.
pub const MEMINFO: &str = "/sys/kernel/mm/meminfo";
/// Where it is found in a root file system.
pub const SYS: &str = "sys";
/// Where the container's own group is.
const GROUPS: &str = "fs/cgroup";
const PROCESSORS: &str = "devices/system/cpu";
const ONLINE: &str = "devices/system/cpu/online";
/// Of more processors only how many there are is told: each takes some pages.
const MOST_TOLD: usize = 64;
const TOPOLOGY: [&str; 6] = [
    "core_id",
    "core_siblings",
    "core_siblings_list",
    "physical_package_id",
    "thread_siblings",
    "thread_siblings_list",
];
const HUGE_PAGES: [&str; 2] = ["enabled", "hpage_pmd_size"];

/// A slot's view. Its files tell of the limits that were [applied](View::apply) last.
pub struct View {
    dir: PathBuf,
    /// Memory and processors.
    told: Option<(u64, Vec<usize>)>,
    /// Where all runners share the processors out.
    processors: PathBuf,
    /// What each container may use of them at once.
    cpus: Option<Cpus>,
}

impl View {
    /// Makes it in the directory `dir`, which is not there yet, with what the machine says now and how groups in `tree` are
    /// shown. `processors` is the file by which all runners share them out, `cpus` what each container may use of them at once.
    ///
    /// # Errors
    /// What making files and mounts fails with.
    pub fn make(dir: &Path, tree: &Tree, processors: PathBuf, cpus: Option<Cpus>) -> io::Result<Self> {
        let view = Self { dir: dir.to_owned(), told: None, processors, cpus };
        fs::create_dir_all(view.place(GROUPS))?;
        for sight in tree.sights() {
            let place = sight.place.to_str().ok().and_then(|place| place.strip_prefix("/sys/"));
            fs::create_dir_all(view.place(place.unwrap_or(GROUPS)))?;
        }
        for Placeholder { name, source } in tree.placeholders() {
            let place = view.place(GROUPS).join(name);
            fs::create_dir(&place)?;
            mount_bind(&source, &place)?;
        }
        fs::create_dir_all(view.place("kernel/mm/transparent_hugepage"))?;
        for name in HUGE_PAGES {
            view.copy(&Path::new("kernel/mm/transparent_hugepage").join(name))?;
        }
        fs::create_dir_all(view.place(PROCESSORS))?;
        for name in ["possible", "present", "online", "offline", "kernel_max"] {
            view.copy(&Path::new(PROCESSORS).join(name))?;
        }
        for processor in (0..MOST_TOLD).map(|number| Path::new(PROCESSORS).join(format!("cpu{number}/topology"))) {
            if machines(&processor).is_dir() {
                fs::create_dir_all(view.dir.join(&processor))?;
                TOPOLOGY.iter().try_for_each(|name| view.copy(&processor.join(name)))?;
            }
        }
        fs::write(view.place("kernel/mm/meminfo"), "")?;
        Ok(view)
    }

    /// Shows it in a root file system, in a directory that is no link; not where there is none.
    ///
    /// # Errors
    /// mount_setattr(2)'s and move_mount(2)'s.
    pub fn show(&self, root: &Path) -> io::Result<()> {
        let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let no_link = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let Ok(place) = openat(&root, SYS, no_link, Mode::empty()) else { return Ok(()) };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(rustix::fs::CWD, &self.dir, flags)?;
        const SEALED: u64 =
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        kernel::mount_setattr(rustix::fd::AsFd::as_fd(&tree), SEALED, None)?;
        let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        Ok(move_mount(&tree, "", &place, "", both)?)
    }

    /// Tells of a task's limits, and chooses its processors.
    ///
    /// # Errors
    /// What writing fails with.
    pub fn apply(&mut self, limits: &GroupLimits) -> io::Result<Chosen> {
        let chosen = match limits.cpus().or(self.cpus) {
            Some(cpus) => Chosen::take(&self.processors, cpus)?,
            None => Chosen::all(),
        };
        let memory = limits.memory();
        if self.told.as_ref().is_none_or(|(told, of)| *told != memory || *of != chosen.processors) {
            // Who fails halfway tells anew.
            self.told = None;
            rewrite(&self.place("kernel/mm/meminfo"), &meminfo(memory))?;
            let online = if chosen.processors.is_empty() { &processors::here() } else { &chosen.processors };
            rewrite(&self.place(ONLINE), &format!("{}\n", ranges(online)))?;
            self.told = Some((memory, chosen.processors.clone()));
        }
        Ok(chosen)
    }

    fn place(&self, below: &str) -> PathBuf {
        self.dir.join(below)
    }

    /// A file of the machine's, if it has it.
    fn copy(&self, below: &Path) -> io::Result<()> {
        fs::read(machines(below)).map_or(Ok(()), |content| fs::write(self.dir.join(below), content))
    }
}

fn machines(below: &Path) -> PathBuf {
    Path::new("/sys").join(below)
}

/// In place, since it is shown as this file.
fn rewrite(path: &Path, content: &str) -> io::Result<()> {
    File::options().write(true).truncate(true).open(path)?.write_all(content.as_bytes())
}

/// proc_meminfo(5), as far as it is the task's: what it may use in all. What it uses its group tells.
fn meminfo(memory: u64) -> String {
    let lines = [("MemTotal", memory), ("MemFree", memory), ("MemAvailable", memory)].into_iter();
    let none = ["Buffers", "Cached", "SwapCached", "SwapTotal", "SwapFree"].map(|name| (name, 0));
    lines.chain(none).map(|(name, bytes)| format!("{:<16}{:>8} kB\n", format!("{name}:"), bytes >> 10)).collect()
}

/// A list as the kernel writes it: 0-3,8.
fn ranges(numbers: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let written = ranges.iter().map(|(first, last)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    });
    written.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_the_kernels() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[3]), "3");
        assert_eq!(ranges(&[0, 1, 2, 5, 7, 8]), "0-2,5,7-8");
    }

    #[test]
    fn meminfo_is_told_in_kilobytes() {
        let text = meminfo(256 << 20);
        assert!(text.starts_with("MemTotal:         262144 kB\nMemFree:          262144 kB\n"), "{text}");
        assert!(text.ends_with("SwapFree:              0 kB\n"), "{text}");
    }
}
