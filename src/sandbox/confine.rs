//! What keeps Faber's own processes from the machine. Keeper and runners have the capabilities that they use and no others;
//! the HTTP process has none, can open what it is given and nothing else (Landlock, userspace-api/landlock.rst), and can make
//! no system call that it has no use for.

use std::io;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

use rustix::thread::{CapabilitySet, CapabilitySets};

use super::seccomp::{Filter, SeccompError};

/// A capability that keeper and runners use (capabilities(7)).
#[derive(Debug, Clone, Copy)]
pub struct Used {
    pub name: &'static str,
    pub capability: CapabilitySet,
    pub what_for: &'static str,
    /// Whether a runner still uses it when its slot is made.
    pub throughout: bool,
}

/// All of them. Whoever executes a program as root is bounded by them too.
pub const USED: [Used; 8] = [
    used("CAP_SYS_ADMIN", CapabilitySet::SYS_ADMIN, "namespaces and mounts", true),
    used("CAP_CHOWN", CapabilitySet::CHOWN, "files of tasks", true),
    used("CAP_SETUID", CapabilitySet::SETUID, "user namespaces, and the front's own user", false),
    used("CAP_SETGID", CapabilitySet::SETGID, "user namespaces, and the front's own group", false),
    used("CAP_SETPCAP", CapabilitySet::SETPCAP, "taking capabilities away", false),
    used("CAP_SYS_PTRACE", CapabilitySet::SYS_PTRACE, "reading what a task used", true),
    used("CAP_DAC_OVERRIDE", CapabilitySet::DAC_OVERRIDE, "cgroups and mount points", true),
    used("CAP_KILL", CapabilitySet::KILL, "ending tasks", true),
];

const fn used(name: &'static str, capability: CapabilitySet, what_for: &'static str, throughout: bool) -> Used {
    Used { name, capability, what_for, throughout }
}

/// Gives up every capability that neither keeper nor runners use, for good.
///
/// # Errors
/// prctl(2)'s and capset(2)'s.
pub fn keep_what_is_used() -> io::Result<()> {
    keep(USED.iter().fold(CapabilitySet::empty(), |all, used| all | used.capability))
}

/// Gives up what a runner needs no more once its slot is made.
///
/// # Errors
/// prctl(2)'s and capset(2)'s.
pub fn keep_what_containers_take() -> io::Result<()> {
    let throughout = USED.iter().filter(|used| used.throughout);
    keep(throughout.fold(CapabilitySet::empty(), |all, used| all | used.capability))
}

fn keep(only: CapabilitySet) -> io::Result<()> {
    use rustix::thread::{capabilities, capability_is_in_bounding_set, remove_capability_from_bounding_set};
    for number in 0..u64::BITS {
        let capability = CapabilitySet::from_bits_retain(1 << number);
        // Beyond the last one there is EINVAL.
        let Ok(has) = capability_is_in_bounding_set(capability) else { break };
        if has && !only.contains(capability) {
            remove_capability_from_bounding_set(capability)?;
        }
    }
    rustix::thread::clear_ambient_capability_set()?;
    let CapabilitySets { effective, permitted, .. } = capabilities(None)?;
    let sets = CapabilitySets {
        effective: effective & only,
        permitted: permitted & only,
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// What is known of Landlock here; a kernel that knows less enforces less of it.
const KNOWN: ABI = ABI::V6;

#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("Landlock")]
    Landlock(#[from] RulesetError),
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
}

/// What the process may still open.
pub struct Reach<'a> {
    /// Files, and directories with all below them. What is not there yet is reached by the nearest directory that is.
    pub readable: &'a [PathBuf],
    /// Directories to read, write, make and remove files in.
    pub writable: &'a [BorrowedFd<'a>],
}

/// How much of it is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confined {
    Fully,
    /// The kernel knows less of Landlock than there is to hold.
    Partly,
    /// The kernel has no Landlock (5.13), or does not use it.
    WithoutLandlock,
}

/// Confines the calling thread and all that it starts, for good. To be called before there is any other.
///
/// # Errors
/// Landlock's and seccomp(2)'s; not that the kernel lacks Landlock.
pub fn confine(reach: &Reach<'_>) -> Result<Confined, ConfineError> {
    let status = restrict(reach, AccessNet::from_all(KNOWN))?;
    Filter::of_the_front().load()?;
    Ok(status)
}

/// Confines the calling thread as the process that sends callbacks: it may connect, and open nothing.
///
/// # Errors
/// As of [`confine`].
pub fn confine_sender() -> Result<Confined, ConfineError> {
    let status = restrict(&Reach { readable: &[], writable: &[] }, AccessNet::BindTcp.into())?;
    Filter::of_the_sender().load()?;
    Ok(status)
}

fn restrict(reach: &Reach<'_>, net: BitFlags<AccessNet>) -> Result<Confined, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(KNOWN))?
        .handle_access(net)?
        .scope(Scope::from_all(KNOWN))?
        .create()?;
    for path in reach.readable {
        ruleset = readable(ruleset, path)?;
    }
    let write = AccessFs::ReadFile
        | AccessFs::ReadDir
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir
        | AccessFs::Refer;
    for directory in reach.writable {
        ruleset = ruleset.add_rule(PathBeneath::new(directory, write))?;
    }
    Ok(match ruleset.restrict_self()?.ruleset {
        RulesetStatus::FullyEnforced => Confined::Fully,
        RulesetStatus::PartiallyEnforced => Confined::Partly,
        RulesetStatus::NotEnforced => Confined::WithoutLandlock,
    })
}

fn readable(ruleset: RulesetCreated, path: &Path) -> Result<RulesetCreated, RulesetError> {
    let Some(found) = path.ancestors().find(|path| path.exists()) else { return Ok(ruleset) };
    let Ok(handle) = PathFd::new(found) else { return Ok(ruleset) };
    let access: BitFlags<AccessFs> =
        if found.is_dir() { AccessFs::ReadFile | AccessFs::ReadDir } else { AccessFs::ReadFile.into() };
    ruleset.add_rule(PathBeneath::new(handle, access))
}

/// What this kernel would enforce, tried in a child.
///
/// # Errors
/// fork(2)'s.
pub fn probe() -> io::Result<Confined> {
    let child =
        super::kernel::fork(|| match restrict(&Reach { readable: &[], writable: &[] }, AccessNet::from_all(KNOWN)) {
            Ok(Confined::Fully) => 0,
            Ok(Confined::Partly) => 1,
            _ => 2,
        })?;
    Ok(match nix::sys::wait::waitpid(child, None)? {
        nix::sys::wait::WaitStatus::Exited(_, 0) => Confined::Fully,
        nix::sys::wait::WaitStatus::Exited(_, 1) => Confined::Partly,
        _ => Confined::WithoutLandlock,
    })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_was_not_given_is_out_of_reach() {
        let (shown, own, other) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let [readable, secret] = [&shown, &other].map(|dir| dir.path().join("file"));
        for path in [&readable, &secret] {
            fs::write(path, "content").unwrap();
        }
        // Both hold for the thread that calls, and what it starts.
        let confined = std::thread::spawn(move || {
            let directory = File::open(own.path()).unwrap();
            let reach = Reach { readable: &[shown.path().to_owned()], writable: &[directory.as_fd()] };
            let confined = confine(&reach).unwrap();
            assert_eq!(fs::read_to_string(&readable).unwrap(), "content");
            fs::write(own.path().join("new"), "mine").unwrap();
            fs::remove_file(own.path().join("new")).unwrap();
            if confined != Confined::WithoutLandlock {
                assert_eq!(fs::read(&secret).unwrap_err().kind(), io::ErrorKind::PermissionDenied);
                assert_eq!(fs::write(&readable, "forged").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
                assert_eq!(fs::read("/etc/passwd").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            }
            let refused = |error: io::Error| assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
            refused(std::net::TcpListener::bind("127.0.0.1:0").unwrap_err());
            refused(std::net::TcpStream::connect("127.0.0.1:9").unwrap_err());
            refused(std::os::unix::net::UnixDatagram::unbound().unwrap_err());
            refused(std::process::Command::new("/bin/true").spawn().unwrap_err());
            refused(
                rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::CONT)
                    .unwrap_err()
                    .into(),
            );
            std::thread::spawn(|| 7).join().unwrap();
            confined
        });
        let confined = confined.join().unwrap();
        if confined == Confined::WithoutLandlock {
            eprintln!("NOT CHECKED: this kernel has no Landlock, or does not use it");
        }
        drop(other);
    }

    #[test]
    fn the_sender_connects_and_opens_nothing() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let confined = confine_sender().unwrap();
            std::net::TcpStream::connect(address).unwrap();
            if confined != Confined::WithoutLandlock {
                assert_eq!(fs::read("/etc/passwd").unwrap_err().kind(), io::ErrorKind::PermissionDenied);
            }
            let refused = |error: io::Error, errno| assert_eq!(error.raw_os_error(), Some(errno), "{error}");
            // By Landlock when it is bound, else when it would listen.
            let without = confined == Confined::WithoutLandlock;
            refused(
                std::net::TcpListener::bind("127.0.0.1:0").unwrap_err(),
                if without { libc::EPERM } else { libc::EACCES },
            );
            refused(std::os::unix::net::UnixDatagram::unbound().unwrap_err(), libc::EAFNOSUPPORT);
            refused(std::process::Command::new("/bin/true").spawn().unwrap_err(), libc::EPERM);
        })
        .join()
        .unwrap();
    }
}
