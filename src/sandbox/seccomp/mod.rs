//! The system calls a task may make: an allowlist in the spirit of the container engines' default profile, without
//! what a task never needs. Compiled to BPF once by the runner, loaded in every task. (seccomp(2), classic BPF)
//!
//! What is on no list answers ENOSYS, as a kernel does that does not have it: libraries then do without. So do clone3, whose
//! flags lie behind a pointer no filter can read (clone's are looked at), and asynchronous I/O, whose contexts are counted for
//! the whole machine (fs.aio-max-nr). EPERM is the answer to what takes privileges or reaches other processes, as programs
//! know it from root's absence. Calls that only act on the machine's caches do nothing, successfully.

/// Makes a list of system calls from their names.
macro_rules! calls {
    ($($name:ident)*) => { [$(Call { name: stringify!($name), number: libc::$name }),*] };
}

/// A system call, as libc names it.
#[derive(Debug, Clone, Copy)]
struct Call {
    #[cfg_attr(not(test), expect(dead_code, reason = "told in SECURITY.md, which a test holds against the lists"))]
    name: &'static str,
    number: i64,
}

mod front;
mod program;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;

use seccompiler::BpfProgram;

use super::{descriptors, kernel};
use program::{Rule, compile};

/// The compiled filter.
#[derive(Clone)]
pub struct Filter(BpfProgram);

#[derive(Debug, thiserror::Error)]
#[error("load the seccomp filter")]
pub struct SeccompError(#[from] seccompiler::Error);

impl Filter {
    pub fn compile() -> Self {
        Self(compile(&rules(), &Rule::Answer(libc::ENOSYS)))
    }

    /// The same in two parts, for a process that makes cells: what it loads itself, which leaves it the calls that take, and what is
    /// loaded in each cell for those alone. Loading all of it takes as long as a fork.
    pub fn in_two() -> (Self, Self) {
        let (mut outer, mut inner) = (rules(), BTreeMap::new());
        for call in FOR_CELLS {
            let number = call.number as u32;
            inner.extend(outer.insert(number, Rule::Allow).map(|rule| (number, rule)));
        }
        (Self(compile(&outer, &Rule::Answer(libc::ENOSYS))), Self(compile(&inner, &Rule::Allow)))
    }

    /// The one of the HTTP process.
    pub fn of_the_front() -> Self {
        Self(compile(&front::rules(), &Rule::Answer(libc::EPERM)))
    }

    /// The one of the process that sends callbacks.
    pub fn of_the_sender() -> Self {
        Self(compile(&front::rules_of_the_sender(), &Rule::Answer(libc::EPERM)))
    }

    /// One in which every call that takes a descriptor waits for whoever has the listener.
    pub fn of_descriptors() -> Self {
        let mut rules: BTreeMap<u32, Rule> = descriptors::calls().map(|number| (number as u32, Rule::Wait)).collect();
        rules.insert(libc::SYS_fcntl as u32, one_of(1, &descriptors::COPIES, Rule::Wait, Rule::Allow));
        Self(compile(&rules, &Rule::Allow))
    }

    /// Loads the filter beside those there are, and returns its listener (seccomp_unotify(2)).
    ///
    /// # Errors
    /// seccomp(2)'s.
    pub fn load_with_listener(&self) -> io::Result<OwnedFd> {
        kernel::load_filter_with_listener(&self.0)
    }

    /// Loads the filter into the calling thread, for it and everything it becomes. Sets no_new_privs.
    ///
    /// # Errors
    /// prctl(2)'s and seccomp(2)'s.
    pub fn load(&self) -> Result<(), SeccompError> {
        Ok(seccompiler::apply_filter(&self.0)?)
    }
}

fn rules() -> BTreeMap<u32, Rule> {
    listed().into_iter().map(|(call, rule)| (call.number as u32, rule)).collect()
}

/// Every call that is on a list, with what becomes of it.
fn listed() -> Vec<(Call, Rule)> {
    let allowed = [COMMON, RECENT, ARCHITECTURE].concat().into_iter().map(|call| (call, Rule::Allow));
    let refused = [REFUSED, RECENTLY_REFUSED, ARCHITECTURE_REFUSED].concat();
    let refused = refused.into_iter().map(|call| (call, Rule::Answer(libc::EPERM)));
    allowed.chain(refused).chain(conditional()).chain(without_effect()).collect()
}

const fn call(name: &'static str, number: i64) -> Call {
    Call { name, number }
}

fn one_of(argument: u8, values: &[i32], then: Rule, otherwise: Rule) -> Rule {
    let values = values.iter().map(|&value| value as u32).collect();
    Rule::OneOf { argument, values, then: Box::new(then), otherwise: Box::new(otherwise) }
}

/// Calls that are allowed for some arguments.
fn conditional() -> Vec<(Call, Rule)> {
    use Rule::{Allow, Answer};
    let refused = || Answer(libc::EPERM);
    // What personality(2) is called for: asking, Linux as usual, address randomisation off.
    let personas = [0, 0x0008, 0x0002_0000, 0x0002_0008, 0x0004_0000, -1];
    let no_namespaces =
        Rule::AnyBit { argument: 0, mask: NAMESPACE_FLAGS, then: Box::new(refused()), otherwise: Box::new(Allow) };
    let rules = [
        no_namespaces,
        // Nobody types for others.
        one_of(1, &[libc::TIOCSTI as i32, libc::TIOCLINUX as i32], refused(), Allow),
        socket(),
        one_of(0, &[libc::AF_UNIX], Allow, refused()),
        one_of(0, &personas, Allow, refused()),
        // As a kernel answers that does not know the option.
        one_of(0, PRCTL, Allow, Answer(libc::EINVAL)),
        // Pages that are merged with equal ones of others tell of these by the time a write takes.
        one_of(2, &[libc::MADV_MERGEABLE], Answer(libc::EINVAL), Allow),
    ];
    let calls = calls![SYS_clone SYS_ioctl SYS_socket SYS_socketpair SYS_personality SYS_prctl SYS_madvise];
    calls.into_iter().zip(rules).collect()
}

/// Local sockets; TCP and UDP, and nothing else of the Internet's: every other protocol is more of the kernel, often a module
/// that the call alone would load (SCTP, DCCP, UDP-Lite, MPTCP, L2TP). The answers are those of a kernel without it.
fn socket() -> Rule {
    use Rule::{Allow, Answer};
    let flags = [0, libc::SOCK_NONBLOCK, libc::SOCK_CLOEXEC, libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC];
    let of = |kind: i32, protocols: &[i32], otherwise| {
        let protocol = one_of(2, protocols, Allow, Answer(libc::EPROTONOSUPPORT));
        one_of(1, &flags.map(|flags| kind | flags), protocol, otherwise)
    };
    let datagram = of(libc::SOCK_DGRAM, &[0, libc::IPPROTO_UDP], Answer(libc::EPERM));
    let internet = of(libc::SOCK_STREAM, &[0, libc::IPPROTO_TCP], datagram);
    // Libraries list addresses through it; no other protocol of its is of use.
    let netlink = one_of(2, &[libc::NETLINK_ROUTE], Allow, Answer(libc::EPERM));
    let other_families = one_of(0, &[libc::AF_NETLINK], netlink, Answer(libc::EPERM));
    one_of(0, &[libc::AF_UNIX], Allow, one_of(0, &[libc::AF_INET, libc::AF_INET6], internet, other_families))
}

/// Writing back and forgetting what is cached works on all of the machine's, or on the files of everybody.
fn without_effect() -> Vec<(Call, Rule)> {
    let nothing = || Rule::Answer(0);
    let forgetting = one_of(3, &[libc::POSIX_FADV_DONTNEED], nothing(), Rule::Allow);
    calls![SYS_sync SYS_syncfs SYS_fadvise64].into_iter().zip([nothing(), nothing(), forgetting]).collect()
}

/// What privileges are for, and what reaches processes of others. All else that is on no list is not there.
#[rustfmt::skip]
const REFUSED: &[Call] = &calls![
    SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_unshare SYS_setns SYS_open_tree SYS_move_mount SYS_fsopen
    SYS_fsconfig SYS_fsmount SYS_fspick SYS_mount_setattr
    SYS_process_madvise SYS_kcmp SYS_pidfd_getfd SYS_migrate_pages SYS_move_pages
    SYS_keyctl SYS_add_key SYS_request_key SYS_bpf SYS_perf_event_open SYS_userfaultfd SYS_fanotify_init
    SYS_fanotify_mark SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register SYS_name_to_handle_at
    SYS_open_by_handle_at
    SYS_swapon SYS_swapoff SYS_reboot SYS_sethostname SYS_setdomainname SYS_init_module SYS_finit_module
    SYS_delete_module SYS_kexec_load SYS_acct SYS_quotactl SYS_syslog SYS_settimeofday
    SYS_clock_settime SYS_clock_adjtime SYS_adjtimex SYS_vhangup
];

/// Not named by the libc crate on every architecture.
const RECENTLY_REFUSED: &[Call] = &[call("quotactl_fd", 443), call("process_mrelease", 448)];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE_REFUSED: &[Call] = &calls![SYS_iopl SYS_ioperm SYS_kexec_file_load];

#[cfg(target_arch = "aarch64")]
const ARCHITECTURE_REFUSED: &[Call] = &[call("kexec_file_load", 294)];

/// What a program may set and ask of itself (prctl(2)). Not here is what needs privileges, what is shared with others
/// (merging of pages, core scheduling), and what would take a mitigation away.
#[rustfmt::skip]
const PRCTL: &[i32] = &[
    libc::PR_SET_PDEATHSIG, libc::PR_GET_PDEATHSIG, libc::PR_SET_DUMPABLE, libc::PR_GET_DUMPABLE,
    libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_KEEPCAPS, libc::PR_GET_KEEPCAPS,
    libc::PR_SET_CHILD_SUBREAPER, libc::PR_GET_CHILD_SUBREAPER, libc::PR_GET_TID_ADDRESS,
    libc::PR_SET_NO_NEW_PRIVS, libc::PR_GET_NO_NEW_PRIVS, libc::PR_SET_SECCOMP, libc::PR_GET_SECCOMP,
    libc::PR_CAPBSET_READ, libc::PR_CAPBSET_DROP, libc::PR_CAP_AMBIENT, libc::PR_GET_SECUREBITS, libc::PR_SET_SECUREBITS,
    libc::PR_SET_TIMERSLACK, libc::PR_GET_TIMERSLACK, libc::PR_SET_TIMING, libc::PR_GET_TIMING,
    libc::PR_SET_THP_DISABLE, libc::PR_GET_THP_DISABLE, libc::PR_SET_PTRACER, libc::PR_SET_VMA,
    libc::PR_SET_TSC, libc::PR_GET_TSC, libc::PR_GET_SPECULATION_CTRL, libc::PR_SET_MDWE, libc::PR_GET_MDWE,
    // PR_SET_FP_MODE and PR_GET_FP_MODE; of arm64 PR_SVE_*, PR_PAC_*, PR_SET and PR_GET_TAGGED_ADDR_CTRL, PR_SME_*;
    // PR_SET_SYSCALL_USER_DISPATCH, PR_GET_AUXV.
    45, 46, 50, 51, 54, 55, 56, 63, 64, 59, 60, 61, 0x4155_5856,
];

/// What making a cell and its mounts takes.
const FOR_CELLS: &[Call] =
    &calls![SYS_clone SYS_unshare SYS_mount SYS_umount2 SYS_fsopen SYS_fsconfig SYS_fsmount SYS_move_mount];

const NAMESPACE_FLAGS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | 0x80) as u32; // CLONE_NEWTIME

#[rustfmt::skip]
const COMMON: &[Call] = &calls![
    // files
    SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev SYS_preadv2 SYS_pwritev2
    SYS_openat SYS_openat2 SYS_close SYS_close_range SYS_lseek SYS_fstat SYS_newfstatat SYS_statx SYS_statfs SYS_fstatfs
    SYS_getdents64 SYS_readlinkat SYS_faccessat SYS_faccessat2 SYS_fchmod SYS_fchmodat SYS_fchown
    SYS_fchownat SYS_ftruncate SYS_truncate SYS_fallocate SYS_readahead SYS_linkat SYS_symlinkat
    SYS_unlinkat SYS_renameat SYS_renameat2 SYS_mkdirat SYS_mknodat SYS_utimensat SYS_umask SYS_chdir SYS_fchdir
    SYS_getcwd SYS_fcntl SYS_flock SYS_dup SYS_dup3 SYS_pipe2 SYS_fsync SYS_fdatasync
    SYS_sync_file_range SYS_sendfile SYS_splice SYS_tee SYS_vmsplice SYS_copy_file_range SYS_memfd_create
    SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr SYS_flistxattr SYS_setxattr SYS_lsetxattr
    SYS_fsetxattr SYS_removexattr SYS_lremovexattr SYS_fremovexattr SYS_inotify_init1 SYS_inotify_add_watch
    SYS_inotify_rm_watch
    SYS_landlock_create_ruleset SYS_landlock_add_rule SYS_landlock_restrict_self
    // memory
    SYS_brk SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_mincore SYS_msync SYS_mlock SYS_mlock2
    SYS_munlock SYS_mlockall SYS_munlockall SYS_membarrier SYS_pkey_alloc SYS_pkey_free
    SYS_pkey_mprotect SYS_remap_file_pages SYS_get_mempolicy SYS_set_mempolicy SYS_mbind SYS_mseal
    SYS_shmget SYS_shmat SYS_shmdt SYS_shmctl SYS_semget SYS_semop SYS_semtimedop SYS_semctl
    SYS_msgget SYS_msgsnd SYS_msgrcv SYS_msgctl
    SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive SYS_mq_notify SYS_mq_getsetattr
    // processes and threads
    SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_getpid SYS_getppid SYS_gettid SYS_getpgid
    SYS_setpgid SYS_getsid SYS_setsid SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid
    SYS_getgroups SYS_setuid SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setgroups SYS_setfsuid
    SYS_setfsgid SYS_capget SYS_capset SYS_seccomp SYS_set_tid_address SYS_set_robust_list SYS_get_robust_list
    SYS_rseq SYS_futex SYS_futex_waitv SYS_getrlimit SYS_setrlimit
    SYS_prlimit64 SYS_getrusage SYS_getpriority SYS_setpriority SYS_ioprio_get SYS_ioprio_set SYS_sched_yield
    SYS_sched_getaffinity SYS_sched_setaffinity SYS_sched_getparam SYS_sched_setparam SYS_sched_getscheduler
    SYS_sched_setscheduler SYS_sched_getattr SYS_sched_setattr SYS_sched_get_priority_max SYS_sched_get_priority_min
    SYS_sched_rr_get_interval SYS_getcpu SYS_pidfd_open SYS_pidfd_send_signal
    // debuggers: of the task's own processes alone, since all others are somebody else's (ptrace(2), access mode checks), and no
    // way around this filter since Linux 4.8
    SYS_ptrace SYS_process_vm_readv SYS_process_vm_writev
    // signals, time and events
    SYS_kill SYS_tkill SYS_tgkill SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigpending SYS_rt_sigreturn
    SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_sigaltstack SYS_signalfd4
    SYS_restart_syscall SYS_nanosleep SYS_clock_nanosleep SYS_clock_gettime SYS_clock_getres SYS_gettimeofday SYS_times
    SYS_getitimer SYS_setitimer SYS_timer_create SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun
    SYS_timer_delete SYS_timerfd_create SYS_timerfd_settime SYS_timerfd_gettime SYS_eventfd2 SYS_epoll_create1
    SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_ppoll SYS_pselect6
    // sockets: families are chosen below
    SYS_bind SYS_connect SYS_listen SYS_accept SYS_accept4 SYS_getsockname SYS_getpeername SYS_getsockopt SYS_setsockopt
    SYS_sendto SYS_recvfrom SYS_sendmsg SYS_recvmsg SYS_sendmmsg SYS_recvmmsg SYS_shutdown
    // the machine, as far as the namespaces show it
    SYS_uname SYS_sysinfo SYS_getrandom
];

/// Calls the libc crate does not name on every architecture yet; numbers from 424 on are the same on all.
const RECENT: &[Call] = &[
    call("cachestat", 451),
    call("fchmodat2", 452),
    call("map_shadow_stack", 453),
    call("futex_wake", 454),
    call("futex_wait", 455),
    call("futex_requeue", 456),
];

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ARCHITECTURE: &[Call] = &calls![
    SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_getdents SYS_readlink SYS_chmod SYS_chown SYS_lchown SYS_link
    SYS_symlink SYS_unlink SYS_rename SYS_mkdir SYS_rmdir SYS_mknod SYS_utime SYS_utimes SYS_futimesat SYS_dup2 SYS_pipe
    SYS_inotify_init SYS_fork SYS_vfork SYS_getpgrp SYS_arch_prctl SYS_signalfd SYS_eventfd SYS_epoll_create
    SYS_epoll_wait SYS_poll SYS_select SYS_alarm SYS_pause SYS_time
];

/// arm64 came after the calls that others replaced: what there is, is in the common list.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &[Call] = &[];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nothing_dangerous_is_allowed_whatever_its_arguments() {
        let rules = rules();
        let never = calls![
            SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_unshare SYS_setns SYS_bpf SYS_keyctl SYS_add_key
            SYS_request_key SYS_perf_event_open SYS_userfaultfd SYS_io_uring_setup SYS_io_uring_enter SYS_kexec_load
            SYS_init_module SYS_finit_module SYS_reboot SYS_open_by_handle_at
            SYS_name_to_handle_at SYS_syslog SYS_acct SYS_swapon SYS_quotactl SYS_kcmp SYS_open_tree SYS_move_mount
            SYS_fsopen SYS_mount_setattr SYS_pidfd_getfd SYS_socket SYS_clone SYS_process_madvise SYS_fanotify_init
        ];
        for call in never {
            assert_ne!(rules.get(&(call.number as u32)), Some(&Rule::Allow), "{}", call.name);
        }
    }

    #[test]
    fn two_parts_come_to_the_whole() {
        use program::tests::answer;
        let ((outer, inner), whole) = (Filter::in_two(), Filter::compile());
        let arguments = [0, 1, 2, 3, 16, 17, 0x80, 0x2000_0000, 0x5412, 0x0802_0000, u64::MAX];
        for number in (0..1000).chain([u32::MAX, 1 << 30]) {
            for (first, second) in
                arguments.iter().flat_map(|first| arguments.iter().map(move |second| (*first, *second)))
            {
                let ask = |filter: &Filter| answer(&filter.0, number, [first, second, second, first, 0, 0]);
                // The action that is more severe counts, which is the lower number (seccomp(2)): errors come before what is allowed.
                assert_eq!(ask(&outer).min(ask(&inner)), ask(&whole), "system call {number} {first} {second}");
            }
        }
        assert!(inner.0.len() * 8 < whole.0.len(), "{} of {}", inner.0.len(), whole.0.len());
    }

    #[test]
    fn no_call_is_on_two_lists() {
        assert_eq!(listed().len(), rules().len());
    }

    /// The tables of SECURITY.md are what the lists come to.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn security_md_tells_every_difference_to_the_engines_default() {
        const ENGINES: &str = include_str!("engines.txt");
        let engines: BTreeSet<&str> = ENGINES.lines().filter(|line| !line.starts_with('#')).collect();
        let bare = |call: &Call| call.name.trim_start_matches("SYS_");
        let listed = listed();
        let named = |is: fn(&Rule) -> bool| -> BTreeSet<&str> {
            listed.iter().filter(|(_, rule)| is(rule)).map(|(call, _)| bare(call)).collect()
        };
        let reached = named(|rule| !matches!(rule, Rule::Answer(errno) if *errno != 0));
        let looked_at = named(|rule| !matches!(rule, Rule::Allow | Rule::Answer(libc::EPERM)));
        let text = include_str!("../../../SECURITY.md");
        assert_eq!(told(text, "Less than they allow"), engines.difference(&reached).copied().collect());
        assert_eq!(told(text, "More than they allow"), reached.difference(&engines).copied().collect());
        assert_eq!(told(text, "Allowed by their arguments"), looked_at);
    }

    /// The names in the first column of the table below a heading.
    fn told<'a>(text: &'a str, heading: &str) -> BTreeSet<&'a str> {
        let (_, section) = text.split_once(&format!("### {heading}\n")).unwrap_or_else(|| panic!("{heading}"));
        let rows = section.split("\n#").next().unwrap().lines().filter(|line| line.starts_with("| `"));
        let names = rows.flat_map(|row| row.split('|').nth(1).unwrap_or_default().split('`').skip(1).step_by(2));
        names.collect()
    }
}
