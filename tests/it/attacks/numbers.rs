//! System calls by their numbers here, for programs in Python.

macro_rules! numbers {
    ($($name:ident)*) => { [$((stringify!($name), libc::$name)),*] };
}

/// As a dictionary of Python's.
#[rustfmt::skip]
pub fn numbers() -> String {
    let known = numbers![
        SYS_acct SYS_add_key SYS_adjtimex SYS_bpf SYS_chroot SYS_clock_adjtime SYS_clock_settime SYS_clone SYS_clone3
        SYS_delete_module SYS_fanotify_init SYS_fanotify_mark SYS_finit_module SYS_fsconfig SYS_fsmount SYS_fsopen SYS_fspick
        SYS_get_mempolicy SYS_init_module SYS_io_cancel SYS_io_destroy SYS_io_getevents SYS_io_setup SYS_io_submit
        SYS_io_uring_enter SYS_io_uring_register SYS_io_uring_setup SYS_kcmp SYS_kexec_load SYS_keyctl
        SYS_lookup_dcookie SYS_mbind SYS_memfd_create SYS_memfd_secret SYS_migrate_pages SYS_mknodat SYS_mount
        SYS_mount_setattr SYS_move_mount SYS_move_pages SYS_name_to_handle_at SYS_nfsservctl SYS_open_by_handle_at
        SYS_open_tree SYS_perf_event_open SYS_personality SYS_pidfd_getfd SYS_pidfd_open SYS_pidfd_send_signal
        SYS_pivot_root SYS_process_madvise SYS_process_vm_readv SYS_process_vm_writev SYS_ptrace SYS_quotactl SYS_reboot
        SYS_request_key SYS_rt_sigqueueinfo SYS_rt_tgsigqueueinfo SYS_sched_setaffinity SYS_sched_setattr
        SYS_sched_setscheduler SYS_seccomp SYS_set_robust_list SYS_setdomainname SYS_setns SYS_sethostname SYS_settimeofday
        SYS_splice SYS_swapoff SYS_swapon SYS_syslog SYS_tee SYS_tgkill SYS_umount2 SYS_unshare SYS_userfaultfd
        SYS_vhangup SYS_vmsplice
    ];
    // Those that the libc crate does not name everywhere are the same everywhere.
    let later = [("quotactl_fd", 443), ("process_mrelease", 448)];
    let known = known.iter().map(|(name, number)| (name.trim_start_matches("SYS_"), *number));
    let pairs: Vec<String> = known.chain(later).map(|(name, number)| format!("'{name}': {number}")).collect();
    format!("{{{}}}", pairs.join(", "))
}
