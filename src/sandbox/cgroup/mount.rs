//! The mounted hierarchies.

use std::fs;
use std::path::PathBuf;

use super::{CgroupError, Result};

/// One line of /proc/self/mountinfo (proc_pid_mountinfo(5)), as far as it matters here.
pub struct Mount {
    /// The directory of the file system that is seen there.
    pub root: PathBuf,
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
        let mut left = left.split(' ').skip(3).map(PathBuf::from);
        let (root, point) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let fs_type = right.next()?.to_owned();
        let super_options = right.nth(1)?.split(',').map(str::to_owned).collect();
        Some(Self { root, point, fs_type, super_options })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn mountinfo_lines_are_read() {
        let line = "32 28 0:27 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory";
        let mount = Mount::parse(line).unwrap();
        assert_eq!((mount.root.as_path(), mount.point.as_path()), (Path::new("/"), Path::new("/sys/fs/cgroup/memory")));
        assert_eq!((mount.fs_type.as_str(), mount.super_options[1].as_str()), ("cgroup", "memory"));
    }
}
