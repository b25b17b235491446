//! The system calls a task may make: an allowlist in the spirit of the container engines' default profile, without
//! what a task never needs. Compiled to BPF once by the runner, loaded in every task. (seccomp(2), classic BPF)
//!
//! What is not on the list answers EPERM. ENOSYS is the answer of what libraries then do in another way: clone3, whose flags
//! lie behind a pointer no filter can read (clone's are looked at), and asynchronous I/O, whose contexts are counted for the
//! whole machine (fs.aio-max-nr). Calls that only act on the machine's caches do nothing, successfully.

mod program;

use std::collections::BTreeMap;

use seccompiler::BpfProgram;

use program::{Rule, compile};

/// The compiled filter.
#[derive(Clone)]
pub struct Filter(BpfProgram);

#[derive(Debug, thiserror::Error)]
#[error("load the seccomp filter")]
pub struct SeccompError(#[from] seccompiler::Error);

/// Makes a list of system call numbers from their names.
macro_rules! numbers {
    ($($name:ident)*) => { [$(libc::$name),*] };
}

impl Filter {
    pub fn compile() -> Self {
        Self(compile(&rules(), &Rule::Answer(libc::EPERM)))
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
    let allowed = [COMMON, RECENT, ARCHITECTURE].concat().into_iter().map(|call| (call, Rule::Allow));
    let absent = NOT_THERE.iter().map(|&call| (call, Rule::Answer(libc::ENOSYS)));
    allowed.chain(absent).chain(conditional()).chain(without_effect()).map(|(call, rule)| (call as u32, rule)).collect()
}

fn one_of(argument: u8, values: &[i32], then: Rule, otherwise: Rule) -> Rule {
    let values = values.iter().map(|&value| value as u32).collect();
    Rule::OneOf { argument, values, then: Box::new(then), otherwise: Box::new(otherwise) }
}

/// Calls that are allowed for some arguments.
fn conditional() -> [(i64, Rule); 5] {
    use Rule::{Allow, Answer};
    let refused = || Answer(libc::EPERM);
    // Libraries list addresses through it; no other protocol of its is of use.
    let netlink = one_of(2, &[libc::NETLINK_ROUTE], Allow, refused());
    let other_families = one_of(0, &[libc::AF_NETLINK], netlink, refused());
    // What personality(2) is called for: asking, Linux as usual, address randomisation off.
    let personas = [0, 0x0008, 0x0002_0000, 0x0002_0008, 0x0004_0000, -1];
    let no_namespaces =
        Rule::AnyBit { argument: 0, mask: NAMESPACE_FLAGS, then: Box::new(refused()), otherwise: Box::new(Allow) };
    [
        (libc::SYS_clone, no_namespaces),
        // Nobody types for others.
        (libc::SYS_ioctl, one_of(1, &[libc::TIOCSTI as i32, libc::TIOCLINUX as i32], refused(), Allow)),
        (libc::SYS_socket, one_of(0, &[libc::AF_UNIX, libc::AF_INET, libc::AF_INET6], Allow, other_families)),
        (libc::SYS_socketpair, one_of(0, &[libc::AF_UNIX], Allow, refused())),
        (libc::SYS_personality, one_of(0, &personas, Allow, refused())),
    ]
}

/// Writing back and forgetting what is cached works on all of the machine's, or on the files of everybody.
fn without_effect() -> [(i64, Rule); 3] {
    let nothing = || Rule::Answer(0);
    [
        (libc::SYS_sync, nothing()),
        (libc::SYS_syncfs, nothing()),
        (libc::SYS_fadvise64, one_of(3, &[libc::POSIX_FADV_DONTNEED], nothing(), Rule::Allow)),
    ]
}

const NOT_THERE: &[i64] =
    &numbers![SYS_clone3 SYS_io_setup SYS_io_submit SYS_io_getevents SYS_io_cancel SYS_io_destroy];

const NAMESPACE_FLAGS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | 0x80) as u32; // CLONE_NEWTIME

#[rustfmt::skip]
const COMMON: &[i64] = &numbers![
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
    SYS_brk SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise SYS_mincore SYS_msync SYS_mlock SYS_mlock2
    SYS_munlock SYS_mlockall SYS_munlockall SYS_membarrier SYS_pkey_alloc SYS_pkey_free
    SYS_pkey_mprotect SYS_remap_file_pages SYS_get_mempolicy SYS_set_mempolicy SYS_mbind SYS_mseal
    SYS_shmget SYS_shmat SYS_shmdt SYS_shmctl SYS_semget SYS_semop SYS_semtimedop SYS_semctl
    SYS_msgget SYS_msgsnd SYS_msgrcv SYS_msgctl
    SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive SYS_mq_notify SYS_mq_getsetattr
    // processes and threads
    SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_getpid SYS_getppid SYS_gettid SYS_getpgid
    SYS_setpgid SYS_getsid SYS_setsid SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getresuid SYS_getresgid
    SYS_getgroups SYS_setuid SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setgroups SYS_setfsuid
    SYS_setfsgid SYS_capget SYS_capset SYS_prctl SYS_seccomp SYS_set_tid_address SYS_set_robust_list SYS_get_robust_list
    SYS_rseq SYS_futex SYS_futex_waitv SYS_getrlimit SYS_setrlimit
    SYS_prlimit64 SYS_getrusage SYS_getpriority SYS_setpriority SYS_ioprio_get SYS_ioprio_set SYS_sched_yield
    SYS_sched_getaffinity SYS_sched_setaffinity SYS_sched_getparam SYS_sched_setparam SYS_sched_getscheduler
    SYS_sched_setscheduler SYS_sched_getattr SYS_sched_setattr SYS_sched_get_priority_max SYS_sched_get_priority_min
    SYS_sched_rr_get_interval SYS_getcpu SYS_pidfd_open SYS_pidfd_send_signal
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

/// Calls the libc crate does not name on every architecture yet; numbers from 424 on are the same on all: cachestat,
/// fchmodat2, map_shadow_stack, futex_wake, futex_wait, futex_requeue.
const RECENT: &[i64] = &[451, 452, 453, 454, 455, 456];

#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ARCHITECTURE: &[i64] = &numbers![
    SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_getdents SYS_readlink SYS_chmod SYS_chown SYS_lchown SYS_link
    SYS_symlink SYS_unlink SYS_rename SYS_mkdir SYS_rmdir SYS_mknod SYS_utime SYS_utimes SYS_futimesat SYS_dup2 SYS_pipe
    SYS_inotify_init SYS_fork SYS_vfork SYS_getpgrp SYS_arch_prctl SYS_signalfd SYS_eventfd SYS_epoll_create
    SYS_epoll_wait SYS_poll SYS_select SYS_alarm SYS_pause SYS_time
];

/// arm64 came after the calls that others replaced: what there is, is in the common list.
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &[i64] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_dangerous_is_allowed_whatever_its_arguments() {
        let rules = rules();
        let never = numbers![
            SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_unshare SYS_setns SYS_ptrace SYS_bpf SYS_keyctl SYS_add_key
            SYS_request_key SYS_perf_event_open SYS_userfaultfd SYS_io_uring_setup SYS_io_uring_enter SYS_kexec_load
            SYS_init_module SYS_finit_module SYS_reboot SYS_process_vm_readv SYS_process_vm_writev SYS_open_by_handle_at
            SYS_name_to_handle_at SYS_syslog SYS_acct SYS_swapon SYS_quotactl SYS_kcmp SYS_open_tree SYS_move_mount
            SYS_fsopen SYS_mount_setattr SYS_pidfd_getfd SYS_socket SYS_clone SYS_process_madvise SYS_fanotify_init
        ];
        for call in never {
            assert_ne!(rules.get(&(call as u32)), Some(&Rule::Allow), "system call {call}");
        }
    }
}
