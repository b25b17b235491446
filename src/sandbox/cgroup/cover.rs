//! What libcontainer sees of control groups: a tree that takes every process, and does nothing with it.
//!
//! libcontainer cannot be told to leave groups alone. On v1 it makes one in each hierarchy, for which it reads the mount
//! table two dozen times; on any version it puts the container there before its set-up, which is then in the figures of the
//! task. So in a runner's own mount namespace its place for processes leads to /dev/null, and the init moves itself.

use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, mount_bind, unmount};

use super::{CgroupError, Result};

/// Where libcontainer looks for groups, and systemd mounts them.
pub const MOUNT_POINT: &str = "/sys/fs/cgroup";
/// Where below it systemd mounts cgroup2 beside the hierarchies of v1.
const UNIFIED: &str = "unified";
/// The group, as the OCI spec's `cgroupsPath`, that it is told: the root, which is always there.
pub const PATH: &str = "/";
/// What it writes to: to start a container, and when that has failed.
const FILES: [&str; 2] = ["cgroup.procs", "cgroup.kill"];

/// The covers of a process that makes containers. Dropping it shows the groups again.
pub struct Cover(Vec<PathBuf>);

impl Cover {
    /// Covers them in the calling process' mount namespace, which is its own.
    ///
    /// # Errors
    /// mount(2)'s.
    pub fn lay() -> Result<Self> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |errno: rustix::io::Errno| CgroupError::Cover { path, source: errno.into() }
        };
        let point = Path::new(MOUNT_POINT);
        let mut cover = Self(Vec::new());
        // libcontainer takes whatever is cgroup2 there for the only tree.
        if rustix::fs::statfs(point).map_err(failed(point))?.f_type as i64 != libc::CGROUP2_SUPER_MAGIC {
            let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
            // Who is root of a user namespace alone may not mount it, but show where the machine has it beside v1.
            mount("faber", point, "cgroup2", flags, None)
                .or_else(|errno| mount_bind(point.join(UNIFIED), point).map_err(|_| errno))
                .map_err(failed(point))?;
            cover.0.push(point.to_owned());
        }
        for file in FILES.map(|name| point.join(name)).into_iter().filter(|file| file.exists()) {
            mount_bind("/dev/null", &file).map_err(failed(&file))?;
            cover.0.push(file);
        }
        Ok(cover)
    }
}

impl Drop for Cover {
    fn drop(&mut self) {
        for point in self.0.iter().rev() {
            let _ = unmount(point, UnmountFlags::DETACH);
        }
    }
}
