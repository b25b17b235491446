//! The system calls of Faber's own HTTP process: threads, files that it was given a directory of, and connections that were
//! accepted. It executes nothing, opens no socket, and becomes nobody else, whatever was made of it from outside.

use std::collections::BTreeMap;

use super::program::Rule;
use super::{Call, NAMESPACE_FLAGS, one_of};

/// All others answer EPERM.
pub fn rules() -> BTreeMap<u32, Rule> {
    let allowed = [CALLS, ARCHITECTURE].concat().into_iter().map(|call| (call.number, Rule::Allow));
    allowed.chain(conditional()).map(|(call, rule)| (call as u32, rule)).collect()
}

fn conditional() -> [(i64, Rule); 5] {
    use Rule::{Allow, Answer};
    let refused = || Answer(libc::EPERM);
    let no_namespaces =
        Rule::AnyBit { argument: 0, mask: NAMESPACE_FLAGS, then: Box::new(refused()), otherwise: Box::new(Allow) };
    let threads = Rule::AnyBit {
        argument: 0,
        mask: libc::CLONE_THREAD as u32,
        then: Box::new(no_namespaces),
        otherwise: Box::new(refused()),
    };
    let requests = [libc::FIONBIO, libc::FIOCLEX, libc::FIONREAD, libc::TCGETS, libc::TIOCGWINSZ].map(|r| r as i32);
    [
        (libc::SYS_clone, threads),
        // Its flags cannot be looked at: glibc then takes clone.
        (libc::SYS_clone3, Answer(libc::ENOSYS)),
        (libc::SYS_ioctl, one_of(1, &requests, Allow, Answer(libc::ENOTTY))),
        // Pairs, within the process.
        (libc::SYS_socketpair, one_of(0, &[libc::AF_UNIX], Allow, refused())),
        (
            libc::SYS_prctl,
            one_of(0, &[libc::PR_SET_NAME, libc::PR_GET_NAME, libc::PR_SET_VMA], Allow, Answer(libc::EINVAL)),
        ),
    ]
}

/// Those of the process that sends callbacks: it connects, and asks name servers.
pub fn rules_of_the_sender() -> BTreeMap<u32, Rule> {
    let internet = || one_of(0, &[libc::AF_INET, libc::AF_INET6], Rule::Allow, Rule::Answer(libc::EAFNOSUPPORT));
    let mut rules = rules();
    rules.insert(libc::SYS_socket as u32, internet());
    [libc::SYS_connect, libc::SYS_bind].into_iter().for_each(|call| drop(rules.insert(call as u32, Rule::Allow)));
    [libc::SYS_accept, libc::SYS_accept4].into_iter().for_each(|call| drop(rules.remove(&(call as u32))));
    rules
}

#[rustfmt::skip]
const CALLS: &[Call] = &calls![
    // files
    SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv SYS_pwritev SYS_openat SYS_openat2 SYS_close
    SYS_close_range SYS_lseek SYS_fstat SYS_newfstatat SYS_statx SYS_statfs SYS_fstatfs SYS_getdents64 SYS_readlinkat
    SYS_faccessat SYS_faccessat2 SYS_fchmod SYS_fchmodat SYS_ftruncate SYS_fallocate SYS_linkat SYS_unlinkat
    SYS_renameat SYS_renameat2 SYS_mkdirat SYS_utimensat SYS_fcntl SYS_flock SYS_dup SYS_dup3 SYS_pipe2 SYS_fsync
    SYS_fdatasync SYS_sync_file_range SYS_sendfile SYS_splice SYS_tee SYS_copy_file_range SYS_memfd_create SYS_getcwd
    SYS_fadvise64
    // memory
    SYS_brk SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise
    // threads
    SYS_exit SYS_exit_group SYS_getpid SYS_gettid SYS_tgkill SYS_set_tid_address SYS_set_robust_list SYS_rseq SYS_futex
    SYS_getrandom SYS_sched_yield SYS_sched_getaffinity SYS_getcpu SYS_getrusage SYS_prlimit64 SYS_getuid SYS_geteuid
    SYS_getgid SYS_getegid SYS_sysinfo SYS_uname SYS_membarrier
    // signals, time and events
    SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_sigaltstack SYS_restart_syscall SYS_nanosleep
    SYS_clock_nanosleep SYS_clock_gettime SYS_clock_getres SYS_gettimeofday SYS_timerfd_create SYS_timerfd_settime
    SYS_eventfd2 SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_ppoll
    // connections
    SYS_accept SYS_accept4 SYS_getsockname SYS_getpeername SYS_getsockopt SYS_setsockopt SYS_sendto SYS_recvfrom SYS_sendmsg
    SYS_recvmsg SYS_shutdown
];

/// What libraries still call where it is there.
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const ARCHITECTURE: &[Call] = &calls![
    SYS_open SYS_stat SYS_lstat SYS_access SYS_readlink SYS_unlink SYS_rename SYS_mkdir SYS_epoll_wait SYS_poll SYS_arch_prctl
    SYS_getrlimit SYS_time
];

#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &[Call] = &[];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_starts_no_program_and_opens_no_socket() {
        let rules = rules();
        let never = calls![
            SYS_execve SYS_execveat SYS_socket SYS_connect SYS_bind SYS_ptrace SYS_kill SYS_setuid SYS_setresuid SYS_capset
            SYS_mount SYS_unshare SYS_setns SYS_bpf SYS_process_vm_readv SYS_memfd_secret SYS_open_by_handle_at SYS_seccomp
        ];
        for call in never {
            assert_eq!(rules.get(&(call.number as u32)), None, "{}", call.name);
        }
        assert!(matches!(rules.get(&(libc::SYS_clone as u32)), Some(Rule::AnyBit { .. })));
        let rules = rules_of_the_sender();
        let more = ["SYS_socket", "SYS_connect", "SYS_bind"];
        for call in
            never.iter().filter(|call| !more.contains(&call.name)).chain(&calls![SYS_listen SYS_accept SYS_accept4])
        {
            assert_eq!(rules.get(&(call.number as u32)), None, "{}", call.name);
        }
    }
}
