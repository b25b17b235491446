//! The OCI runtime spec of a container (runtime-spec config.md, config-linux.md), by `oci-spec`'s builders.
//!
//! It does not depend on the task: the container is created before the task is known. Limits are not in it either:
//! they are written to the cgroup when they are known.

use std::collections::HashSet;
use std::path::PathBuf;

use libcontainer::oci_spec::OciSpecError;
use libcontainer::oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
    Mount, MountBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use super::cgroup;
use super::init::Purpose;
use crate::image::WORKSPACE;

/// The host name inside.
const HOSTNAME: &str = "faber";
/// The root file system, in the bundle.
pub const ROOTFS: &str = "rootfs";

/// The spec of a container for `purpose` in a slot with these namespaces. What the init does itself is not in it: control
/// groups, the places to write to, and masks over /proc.
///
/// `prepares`: whether its init may have an interpreter wait.
///
/// # Errors
/// When a builder misses a field, which would be a mistake here.
pub fn build(purpose: &Purpose, prepares: bool, (user, network): (PathBuf, PathBuf)) -> Result<Spec, OciSpecError> {
    let (is_task, cwd, network) = match purpose {
        Purpose::Task(_) | Purpose::Cells(_) => (true, WORKSPACE, Some(network)),
        Purpose::BuildStep { .. } => (false, "/", None),
    };
    SpecBuilder::default()
        .version("1.0.2")
        .hostname(HOSTNAME)
        .root(RootBuilder::default().path(ROOTFS).readonly(is_task).build()?)
        .mounts(mounts(purpose)?)
        .process(
            ProcessBuilder::default()
                .terminal(false)
                // Root of the slot's user namespace: only the init runs so; it gives all of it up for the task.
                .user(UserBuilder::default().uid(0u32).gid(0u32).additional_gids(Vec::new()).build()?)
                .args(vec!["faber-init".to_owned()])
                .env(Vec::new())
                .cwd(cwd)
                .capabilities(capabilities(purpose, prepares)?)
                // The builder's own default would cut everybody to 1024 descriptors: the task gets its limits from the init.
                .rlimits(Vec::new())
                .no_new_privileges(true)
                .build()?,
        )
        .linux(
            LinuxBuilder::default()
                .cgroups_path(cgroup::PATH_SHOWN)
                .namespaces(namespaces(user, network)?)
                .masked_paths(Vec::new())
                .readonly_paths(Vec::new())
                .build()?,
        )
        .build()
}

/// What the init needs to seal its container, to become the task and to end it; the task's own set is empty. A build step
/// keeps what installing packages takes: root over the files of its own user namespace, and nothing of the machine's. One that prepares an
/// interpreter gives it the pid of what waited before (clone3(2), set_tid), and its limits from without (prlimit(2)).
fn capabilities(
    purpose: &Purpose,
    prepares: bool,
) -> Result<libcontainer::oci_spec::runtime::LinuxCapabilities, OciSpecError> {
    use Capability::{CheckpointRestore, SysResource};
    use Capability::{Chown, DacOverride, Fowner, Fsetid, Kill, Setfcap, Setgid, Setpcap, Setuid, SysAdmin};
    let mut set: HashSet<_> = [Setuid, Setgid, Setpcap, Kill, SysAdmin].into();
    if prepares {
        set.extend([SysResource, CheckpointRestore]);
    }
    if let Purpose::BuildStep { .. } = purpose {
        set.extend([Chown, DacOverride, Fowner, Fsetid, Setfcap]);
    }
    LinuxCapabilitiesBuilder::default()
        .bounding(set.clone())
        .effective(set.clone())
        .permitted(set)
        .inheritable(HashSet::new())
        .ambient(HashSet::new())
        .build()
}

/// Without a network namespace of its own a container has the machine's.
fn namespaces(user: PathBuf, network: Option<PathBuf>) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    use LinuxNamespaceType::{Ipc, Mount, Network, Pid, User, Uts};
    let new = |typ| LinuxNamespaceBuilder::default().typ(typ).build();
    let joined = |typ, path: PathBuf| LinuxNamespaceBuilder::default().typ(typ).path(path).build();
    let network = network.map(|path| joined(Network, path)).transpose()?;
    let all = [joined(User, user)?, new(Pid)?, new(Mount)?, new(Ipc)?, new(Uts)?];
    Ok(all.into_iter().chain(network).collect())
}

/// What has to be there before the init leaves the machine's root behind (the kernel gives a user namespace no /proc that shows
/// more than one that is already there), what libcontainer puts devices into, and what a build step is shown of the machine.
fn mounts(purpose: &Purpose) -> Result<Vec<Mount>, OciSpecError> {
    let files = match purpose {
        Purpose::Task(_) | Purpose::Cells(_) => &[][..],
        Purpose::BuildStep { files } => files,
    };
    let shown = files.iter().map(|(source, destination)| mount("bind", source, destination, "bind,ro,nosuid,nodev"));
    let devices = mount("tmpfs", "tmpfs", "/dev", "nosuid,noexec,mode=755,size=64k,nr_inodes=64");
    // hidepid: a task sees its own processes, not the init. Read-only: all that can be set below it is the machine's, or else
    // what a system call sets, too.
    let proc = mount("proc", "proc", "/proc", "ro,nosuid,noexec,nodev,hidepid=2");
    [proc, devices].into_iter().chain(shown).collect()
}

fn mount(typ: &str, source: &str, destination: &str, options: &str) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .typ(typ)
        .source(source)
        .destination(destination)
        .options(options.split(',').map(str::to_owned).collect::<Vec<_>>())
        .build()
}
