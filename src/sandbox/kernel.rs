//! The system calls that need `unsafe`: each in one small function with what makes it sound.
//!
//! All of this is for single-threaded processes: after a fork the child may then use everything the parent could.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::unistd::{ForkResult, Pid};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::path::Arg;

use super::init::wire::Rusage;

/// Opens what is below `root` (openat2(2)): no step leads out, or over a link, whatever a task has made of it.
///
/// # Errors
/// openat2(2)'s.
pub fn open_beneath(root: impl AsFd, path: impl Arg, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(root.as_fd(), path, flags, mode, resolve)?)
}

/// Forks; the child runs `body` and ends with the status it returns, never coming back into the caller's code.
///
/// # Errors
/// fork(2)'s.
pub fn fork(body: impl FnOnce() -> i32) -> io::Result<Pid> {
    // SAFETY: the process has one thread, so no lock can be held by somebody who does not exist in the child.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => exit_now(std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101)),
    }
}

/// As [`fork`]; the child has this pid where it may be chosen (clone3(2), set_tid) and is free, else any.
///
/// # Errors
/// fork(2)'s.
pub fn fork_as(pid: Pid, body: impl FnOnce() -> i32) -> io::Result<Pid> {
    let wanted = pid.as_raw();
    // SAFETY: all-zero bytes are a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.exit_signal = libc::SIGCHLD as u64;
    arguments.set_tid = &raw const wanted as u64;
    arguments.set_tid_size = 1;
    // SAFETY: as for fork(2): the process has one thread, the child has a copy of its memory and goes on on a copy of its stack; the
    // structure and what it points to outlive the call.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) } {
        -1 => fork(body),
        0 => exit_now(std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101)),
        child => Ok(Pid::from_raw(child as i32)),
    }
}

/// In a child: it ends when its parent does, which made it (PR_SET_PDEATHSIG(2const)). To be called after a change of user, which
/// would undo it.
///
/// # Errors
/// prctl(2)'s; ESRCH when the parent had ended before.
pub fn end_with(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    if nix::unistd::getppid() == parent { Ok(()) } else { Err(rustix::io::Errno::SRCH.into()) }
}

/// Forks into PID, mount and IPC namespaces of its own; the child's pidfd (clone(2)). The child runs `body` as in [`fork`]. Not
/// clone3(2), which not every container that Faber may be in has.
///
/// # Errors
/// clone(2)'s.
pub fn clone_with_namespaces(body: impl FnOnce() -> i32) -> io::Result<OwnedFd> {
    const NEW: libc::c_int = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC;
    let flags = libc::c_long::from(NEW | libc::CLONE_PIDFD | libc::SIGCHLD);
    let mut handle: libc::c_int = -1;
    // SAFETY: as for fork(2): the process has one thread, the child has a copy of its memory and goes on on a copy of its stack.
    // The third argument, in which all architectures agree, is where the parent finds the pidfd; the last two are of no use.
    let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut handle, 0, 0) };
    match child {
        -1 => Err(io::Error::last_os_error()),
        0 => exit_now(std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).unwrap_or(101)),
        // SAFETY: the kernel has just made this descriptor for the caller.
        _ => Ok(unsafe { OwnedFd::from_raw_fd(handle) }),
    }
}

/// _exit(2): no destructors, no atexit handlers, no flushing of buffers that belong to the parent.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(status) }
}

/// Marks every descriptor from `first` on, `keep` excepted, as closed. (close_range(2))
pub fn close_from(first: RawFd, keep: &mut [RawFd]) {
    keep.sort_unstable();
    let mut from = first;
    for &kept in keep.iter().filter(|&&fd| fd >= first) {
        close_range(from, kept - 1);
        from = kept + 1;
    }
    close_range(from, RawFd::MAX);
}

fn close_range(first: RawFd, last: RawFd) {
    if first <= last {
        // SAFETY: the callers are freshly forked processes that never again use what they close here.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// mount_setattr(2) on a detached mount and everything below it.
///
/// # Errors
/// As the manual page says; EINVAL also where the file system cannot be ID-mapped.
pub fn mount_setattr(mount: BorrowedFd<'_>, set: u64, id_map: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set | id_map.map_or(0, |_| libc::MOUNT_ATTR_IDMAP),
        attr_clr: 0,
        propagation: 0,
        userns_fd: id_map.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    // SAFETY: the path is a NUL-terminated empty string, `attributes` outlives the call and its size is the one given.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Brings `lo` up in the caller's network namespace (netdevice(7), SIOCSIFFLAGS).
///
/// # Errors
/// socket(2)'s and ioctl(2)'s.
pub fn raise_loopback() -> io::Result<()> {
    use rustix::net::{AddressFamily, SocketType, socket};
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: all-zero bytes are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(c"lo".to_bytes()) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the kernel reads one ifreq, which lives until the call is over.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The credentials that file-system checks use become `uid` and `gid`, until set back. (setfsuid(2), setfsgid(2))
pub fn set_fs_ids(uid: u32, gid: u32) {
    // SAFETY: takes numbers; what it could not change shows as EACCES at the first file.
    unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
    }
}

/// Signals all processes of a group (killpg(3)); one that is gone gets none.
pub fn signal_group(group: Pid, signal: i32) {
    // SAFETY: takes numbers.
    let _ = unsafe { libc::kill(-group.as_raw(), signal) };
}

/// execve(2); returns only when it failed.
pub fn execve(program: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end in null and point to NUL-terminated strings that outlive the call.
    unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Readies this process for being forked over and over: what it has allocated and freed is the kernel's again, or each child
/// would have its page tables copied; and what Rust asks the processor once, it asks here, since in a virtual machine each
/// question goes to the machine's owner.
pub fn ready_for_forks() {
    give_back_large_blocks();
    #[cfg(target_arch = "x86_64")]
    std::hint::black_box(std::arch::is_x86_feature_detected!("avx2"));
}

/// From now on large blocks of memory are the kernel's again as soon as they are freed (mallopt(3)).
pub fn give_back_large_blocks() {
    // SAFETY: sets a number of the allocator's; the default, but no longer raised by every large block that is freed.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10) };
}

/// Puts every signal back to its default action: a Rust process ignores SIGPIPE, and execve(2) keeps what is ignored. Also glibc's
/// own two, which its posix_spawn(3) leaves ignored and its signal(2) does not touch.
pub fn default_signals() {
    /// The kernel's struct sigaction: SIG_DFL, no flags, no restorer, an empty mask of eight bytes.
    const DEFAULT: [u64; 4] = [0; 4];
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: DEFAULT outlives the call, and SIG_DFL needs no handler code; SIGKILL and SIGSTOP are refused, which is fine.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, DEFAULT.as_ptr(), std::ptr::null::<u64>(), 8) };
    }
}

/// Children that end wait to be reaped, and no signal is blocked, whatever the parent had set.
pub fn expect_children() {
    // SAFETY: SIG_DFL needs no handler code; an all-zero set is an empty one after sigemptyset(3), which cannot fail.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// The kernel's default of whatever else of scheduling, memory and execution a process hands on (sched_setscheduler(2),
/// ioprio_set(2), set_mempolicy(2), personality(2), PR_SET_TIMERSLACK(2const), PR_SET_THP_DISABLE(2const)). What may not be
/// set stays as it is.
pub fn schedule_as_usual() {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    const MPOL_DEFAULT: libc::c_int = 0;
    const TIMER_SLACK: libc::c_ulong = 50_000;
    let usual = libc::sched_param { sched_priority: 0 };
    // SAFETY: numbers, and one structure that outlives its call.
    unsafe {
        libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const usual);
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, 0);
        libc::syscall(libc::SYS_set_mempolicy, MPOL_DEFAULT, std::ptr::null::<libc::c_ulong>(), 0);
        libc::personality(0);
        libc::prctl(libc::PR_SET_TIMERSLACK, TIMER_SLACK);
        libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0);
    }
}

/// A handler that does nothing, so that SIGCHLD interrupts ppoll(2) instead of being discarded.
pub fn catch_sigchld() {
    extern "C" fn nothing(_: libc::c_int) {}
    // SAFETY: the handler is async-signal-safe: it has no body.
    unsafe { libc::signal(libc::SIGCHLD, nothing as *const () as libc::sighandler_t) };
}

/// Locks one byte of a file for whoever has it open (F_OFD_SETLK, fcntl(2)); false when somebody else has.
///
/// # Errors
/// fcntl(2)'s.
pub fn try_lock(file: &File, byte: u64) -> io::Result<bool> {
    let lock = nix::libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte as libc::off_t,
        l_len: 1,
        l_pid: 0,
    };
    match nix::fcntl::fcntl(file.as_raw_fd(), nix::fcntl::FcntlArg::F_OFD_SETLK(&lock)) {
        Ok(_) => Ok(true),
        Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Loads a filter beside those there are, and returns its listener (seccomp(2), SECCOMP_FILTER_FLAG_NEW_LISTENER): calls that wait for
/// it are begun once, if the kernel can (Linux 5.19), and not again after each signal.
///
/// # Errors
/// seccomp(2)'s; EINVAL for a filter that is too long.
pub fn load_filter_with_listener(filter: &[seccompiler::sock_filter]) -> io::Result<OwnedFd> {
    let length = u16::try_from(filter.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    // The structure has the layout of linux/filter.h's, which the kernel only reads.
    let program = libc::sock_fprog { len: length, filter: filter.as_ptr().cast_mut().cast() };
    let load = |flags: libc::c_ulong| {
        // SAFETY: `program` and the instructions it points to outlive the call.
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program) }
    };
    let mut listener = load(libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV);
    if listener < 0 {
        listener = load(libc::SECCOMP_FILTER_FLAG_NEW_LISTENER);
    }
    if listener < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for the caller.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as RawFd) })
}

/// Has who waits for a filter's listener, and who answers, take turns on one processor, where the kernel can (Linux 6.6): each switch is
/// then the quickest there is.
pub fn take_turns(listener: &OwnedFd) {
    const SYNC_WAKE_UP: u64 = 1;
    // SAFETY: takes a number.
    unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS, SYNC_WAKE_UP) };
}

/// A call that waits (struct seccomp_notif).
pub struct Notified {
    id: u64,
    /// As this process sees it.
    pub thread: i32,
    pub number: i64,
}

/// The next call that waits for a filter's listener.
///
/// # Errors
/// ioctl(2)'s: ENOENT when it was ended while it waited.
pub fn notified(listener: &OwnedFd) -> io::Result<Notified> {
    // SAFETY: all-zero bytes are a valid seccomp_notif, as which the kernel wants them; it writes one while it lives.
    let (done, call) = unsafe {
        let mut call: libc::seccomp_notif = std::mem::zeroed();
        let done = libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, &raw mut call);
        (done, call)
    };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Notified { id: call.id, thread: call.pid as i32, number: call.data.nr.into() })
}

/// Lets a call that waits go on, as if there were no filter.
///
/// # Errors
/// ioctl(2)'s: ENOENT when it was ended meanwhile.
pub fn let_go_on(listener: &OwnedFd, call: &Notified) -> io::Result<()> {
    let flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
    let mut response = libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags };
    // SAFETY: the kernel reads one structure, which lives until the call is over.
    let done = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, &raw mut response) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Reaps any child that has ended: its pid and its status as wait(2) has it, None where none has yet and `wait` is false.
/// Not nix's: that has no name for real-time signals, and loses the status of who died of one.
///
/// # Errors
/// waitpid(2)'s: ECHILD without children, EINTR.
pub fn reap(wait: bool) -> io::Result<Option<(Pid, i32)>> {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call, which writes one int to it.
        match unsafe { libc::waitpid(-1, &raw mut status, if wait { 0 } else { libc::WNOHANG }) } {
            -1 => return Err(io::Error::last_os_error()),
            0 => return Ok(None),
            pid if libc::WIFSTOPPED(status) => let_go(pid, libc::WSTOPSIG(status)),
            pid => return Ok(Some((Pid::from_raw(pid), status))),
        }
    }
}

/// Traces a child no longer that has asked its parent to (PTRACE_TRACEME, ptrace(2)), and hands it the signal that it stopped for;
/// SIGTRAP is what tracing itself stops with.
fn let_go(pid: i32, signal: i32) {
    let signal = if signal == libc::SIGTRAP { 0 } else { signal };
    // SAFETY: takes numbers: the address is not used.
    unsafe { libc::ptrace(libc::PTRACE_DETACH, pid, std::ptr::null_mut::<libc::c_void>(), libc::c_long::from(signal)) };
}

/// What this process has used.
pub fn used_by_itself() -> Rusage {
    used_by(libc::RUSAGE_SELF)
}

/// What the children that this process has waited for have used, with theirs.
pub fn used_by_children() -> Rusage {
    used_by(libc::RUSAGE_CHILDREN)
}

fn used_by(who: libc::c_int) -> Rusage {
    // SAFETY: all-zero bytes are a valid rusage, to which the call writes while it lives.
    let used = unsafe {
        let mut used: libc::rusage = std::mem::zeroed();
        libc::getrusage(who, &raw mut used);
        used
    };
    Rusage {
        minor_faults: used.ru_minflt as u64,
        major_faults: used.ru_majflt as u64,
        voluntary_switches: used.ru_nvcsw as u64,
        involuntary_switches: used.ru_nivcsw as u64,
    }
}
