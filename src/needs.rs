//! What Faber needs of a machine: each need looked at, with what was found and what helps.

use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::chain::chain;
use crate::sandbox::cgroup::{CgroupError, Tree};
use crate::sandbox::confine::{self, Confined, USED, Used};
use crate::sandbox::{probe_namespaces, probe_procfs, rootless};
use crate::task::Groups;

/// ID-mapped mounts (mount_setattr(2)); openat2, pidfds and close_range are older.
const KERNEL: (u32, u32) = (5, 12);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Ok,
    /// Faber works without it, less well.
    Warning,
    Missing,
}

const NO_GROUP: &str = "have a group delegated: `systemd-run --user --scope -p Delegate=yes faber ...`, where a user's own \
                        systemd has memory and pids to give (Delegate= of user@.service); with weaker limits it runs with \
                        --no-cgroup";

/// One need.
#[derive(Debug, Clone, Serialize)]
pub struct Need {
    pub name: String,
    pub state: State,
    pub found: String,
    /// What to do about it.
    pub fix: Option<String>,
}

#[derive(Debug, thiserror::Error)]
#[error("{name}: {found}; {fix} (`faber doctor` looks at everything)")]
pub struct Unmet {
    name: String,
    found: String,
    fix: String,
}

impl Need {
    pub fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Ok, found: found.into(), fix: None }
    }

    pub fn missing(name: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Missing, found: found.into(), fix: Some(fix.into()) }
    }

    pub fn warning(name: impl Into<String>, found: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { state: State::Warning, ..Self::missing(name, found, fix) }
    }
}

/// Every need, without changing anything. The process must be single-threaded: some are tried in a child.
pub fn check(groups: Groups) -> Vec<Need> {
    let mut needs = vec![kernel(), architecture()];
    needs.push(capabilities());
    needs.push(namespaces());
    needs.extend([procfs(), cgroups(groups), seccomp(), landlock(), overlay(), run_dir()]);
    let host = "tasks in the host image see what /usr has";
    needs.extend([program("python3", host), program("bash", host)]);
    let build = "`faber image build` needs it";
    needs.extend(["mmdebstrap", "nsenter", "setpriv", "unshare", "tar"].map(|name| program(name, build)));
    needs
}

/// Fails with the first need that is missing.
///
/// # Errors
/// With what was found and what helps.
pub fn require(groups: Groups) -> Result<(), Unmet> {
    match check(groups).into_iter().find(|need| need.state == State::Missing) {
        Some(Need { name, found, fix, .. }) => Err(Unmet { name, found, fix: fix.unwrap_or_default() }),
        None => Ok(()),
    }
}

fn kernel() -> Need {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    match version(&release) {
        Some(version) if version >= KERNEL => Need::ok("kernel", release),
        _ => Need::missing("kernel", release, format!("use Linux {}.{} or newer", KERNEL.0, KERNEL.1)),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn architecture() -> Need {
    match std::env::consts::ARCH {
        arch @ ("x86_64" | "aarch64") => Need::ok("architecture", arch),
        arch => Need::missing("architecture", arch, "use x86_64 or aarch64"),
    }
}

fn capabilities() -> Need {
    let name = "privileges";
    if !rustix::process::geteuid().is_root() {
        return Need::missing(name, "not root", "run it as root, with sudo");
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let lacking = lacking(effective(&status).unwrap_or(0));
    if lacking.is_empty() {
        return Need::ok(
            name,
            match rootless::run_dir() {
                None => "root, with every capability needed",
                Some(_) => "an ordinary user's, root of a user namespace of its own",
            },
        );
    }
    Need::missing(
        name,
        format!("root without {}", lacking.join(", ")),
        "give the service or container these capabilities",
    )
}

/// The effective set, from proc_pid_status(5).
fn effective(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

fn lacking(mask: u64) -> Vec<String> {
    let absent = USED.iter().filter(|used| mask & used.capability.bits() == 0);
    absent.map(|Used { name, what_for, .. }| format!("{name} ({what_for})")).collect()
}

fn namespaces() -> Need {
    let name = "namespaces";
    match probe_namespaces() {
        Ok(()) => Need::ok(name, "user, mount, pid, network, ipc, uts and cgroup can be made"),
        Err(error) => Need::missing(
            name,
            format!("cannot be made: {error}"),
            "check the sysctls user.max_user_namespaces and kernel.apparmor_restrict_unprivileged_userns, and what this \
             runs in: a container engine needs --privileged",
        ),
    }
}

/// A container engine covers parts of /proc. The kernel may then let no user namespace mount one that shows more
/// (mount_too_revealing() in fs/namespace.c), and a slot's settings below a covered /proc/sys cannot be made.
fn procfs() -> Need {
    let name = "/proc";
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let covered = covered(&mounts);
    let settings = covered.iter().any(|point| point.starts_with("/proc/sys"));
    match probe_procfs() {
        Ok(()) if !settings => Need::ok(name, "can be mounted in a container"),
        _ if covered.is_empty() => {
            Need::missing(name, "cannot be mounted in a container", "see what mounts it: findmnt -R /proc")
        }
        _ => Need::missing(
            name,
            format!("covered in places ({}), so that containers cannot have their own", covered.join(", ")),
            "start the container with --security-opt unmask=/proc/* (podman) or --privileged",
        ),
    }
}

/// The mount points below /proc, from mountinfo; those that the kernel keeps empty for the purpose do not matter.
fn covered(mountinfo: &str) -> Vec<&str> {
    let points = mountinfo.lines().filter_map(|line| line.split(' ').nth(4));
    let meant = ["/proc/sys/fs/binfmt_misc", "/proc/fs/nfsd", "/proc/openprom", "/proc/xen"];
    points.filter(|point| point.starts_with("/proc/") && !meant.contains(point)).collect()
}

fn cgroups(groups: Groups) -> Need {
    let name = "cgroups";
    if groups == Groups::Unused {
        let found = "not used, as --no-cgroup asks: limits are watched for, not enforced";
        return match rootless::run_dir() {
            Some(_) => Need::warning(name, found, NO_GROUP),
            None => Need::missing(name, "not used, as --no-cgroup asks", "root has them: leave --no-cgroup out"),
        };
    }
    let tree = match Tree::detect(groups).and_then(|tree| tree.check().map(|()| tree)) {
        Ok(tree) => tree,
        Err(error) => return Need::missing(name, chain(&error), cgroup_fix(&error)),
    };
    match tree.service_without_delegation() {
        None => Need::ok(name, format!("{} with memory, pids and cpu accounting", tree.version())),
        Some(service) => Need::warning(
            name,
            format!(
                "{}, but {service} has no group of its own to divide: Faber's are beside all others",
                tree.version()
            ),
            format!("put Delegate=yes under [Service] (systemctl edit {service}), so that systemd leaves them alone"),
        ),
    }
}

fn cgroup_fix(error: &CgroupError) -> &'static str {
    match error {
        CgroupError::Occupied { .. } => {
            "start Faber as the first and only process of its container (without --init) or unit; or give the unit \
             DelegateSubgroup=keeper"
        }
        CgroupError::ReadOnly { .. } if rootless::run_dir().is_none() => {
            "the container that this is in was started so: start that with --privileged, or with its cgroups to be written to"
        }
        CgroupError::NotDelegated { .. } | CgroupError::ReadOnly { .. } if rootless::run_dir().is_some() => NO_GROUP,
        CgroupError::NotDelegated { .. } | CgroupError::ReadOnly { .. } => {
            "have the group delegated: in a systemd unit Delegate=yes"
        }
        _ => "mount cgroup v2 at /sys/fs/cgroup with the memory and pids controllers (systemd does)",
    }
}

fn seccomp() -> Need {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.split_whitespace().any(|action| action == "errno") {
        return Need::ok("seccomp", "filters can be loaded");
    }
    Need::missing("seccomp", "the kernel has no filters", "use a kernel with CONFIG_SECCOMP_FILTER")
}

fn landlock() -> Need {
    const FIX: &str = "nothing to do: the HTTP process is nobody, in a filter of system calls, all the same";
    match confine::probe() {
        Ok(Confined::Fully) => Need::ok("landlock", "the HTTP process can open what it is given, and nothing else"),
        Ok(Confined::Partly) => Need::warning("landlock", "this kernel has a part of it", FIX),
        Ok(Confined::WithoutLandlock) | Err(_) => {
            Need::warning("landlock", "not in this kernel (5.13), or not in use", FIX)
        }
    }
}

fn overlay() -> Need {
    let filesystems = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if has_filesystem(&filesystems, "overlay") {
        return Need::ok("overlayfs", "there");
    }
    Need::warning("overlayfs", "not there yet", "modprobe overlay; the host image works without it")
}

fn has_filesystem(filesystems: &str, name: &str) -> bool {
    filesystems.lines().any(|line| line.split_whitespace().next_back() == Some(name))
}

/// Where instances find each other, or where that would be made.
fn run_dir() -> Need {
    use rustix::fs::{Access, access};
    if let Some(dir) = rootless::run_dir() {
        return Need::ok("runtime directory", dir.display().to_string());
    }
    let dir = if Path::new("/run/faber").exists() { "/run/faber" } else { "/run" };
    match access(dir, Access::WRITE_OK) {
        Ok(()) => Need::ok(dir, "writable"),
        Err(errno) => Need::missing(dir, format!("not writable: {errno}"), "mount a tmpfs on /run"),
    }
}

fn program(name: &str, purpose: &str) -> Need {
    let found =
        ["/usr/bin", "/bin", "/usr/local/bin"].iter().map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
    match found {
        Some(path) => Need::ok(name, path.display().to_string()),
        None => {
            let fix = format!("apt-get install {name}; {purpose}");
            Need::warning(name, "not in /usr/bin", fix)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_compared_as_numbers() {
        assert_eq!(version("6.1.0-18-amd64"), Some((6, 1)));
        assert_eq!(version("5.9-rc1"), Some((5, 9)));
        assert_eq!(version("none"), None);
        assert!(version("5.9.16") < Some(KERNEL) && version("5.12") >= Some(KERNEL));
    }

    #[test]
    fn absent_capabilities_are_named() {
        assert_eq!(effective("Name:\tx\nCapEff:\t000001ffffffffff\n"), Some(0x1ff_ffff_ffff));
        assert!(lacking(u64::MAX).is_empty());
        assert_eq!(lacking(!(1 << 21)), ["CAP_SYS_ADMIN (namespaces and mounts)"]);
    }

    #[test]
    fn what_covers_proc_is_found() {
        let mount = |point: &str| format!("40 39 0:5 / {point} ro,nosuid - proc proc rw\n");
        let text = ["/proc", "/proc/sys", "/proc/sys/fs/binfmt_misc", "/processes"].map(mount).concat();
        assert_eq!(covered(&text), ["/proc/sys"]);
    }

    #[test]
    fn filesystems_are_found_with_and_without_nodev() {
        let text = "nodev\tproc\nnodev\toverlay\n\text4\n";
        assert!(has_filesystem(text, "overlay") && has_filesystem(text, "ext4") && !has_filesystem(text, "over"));
    }
}
