//! Exact counting of a task's descriptors, for who asks for a limit: the kernel refuses what is beyond RLIMIT_NOFILE without
//! telling anybody else, and a look every few milliseconds sees what there is, not what was refused.
//!
//! A second seccomp filter has each call that takes a descriptor wait for this process (seccomp_unotify(2)), which looks how many
//! the caller has and lets it go on. It decides nothing, so that arguments may change meanwhile does not matter. It costs two
//! switches for each such call, which is why only tasks have it that name the limit.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::kernel::{self, Notified};
use super::watch::{self, SET_UP, open_descriptors};

/// Calls that take one descriptor, for a file that may not be there; one; or two.
const OPEN: &[i64] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_creat,
];
const ONE: &[i64] = &[
    libc::SYS_dup,
    libc::SYS_socket,
    libc::SYS_accept,
    libc::SYS_accept4,
    libc::SYS_epoll_create1,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_timerfd_create,
    libc::SYS_inotify_init1,
    libc::SYS_memfd_create,
    libc::SYS_pidfd_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_create,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_eventfd,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_inotify_init,
];
const TWO: &[i64] = &[
    libc::SYS_pipe2,
    libc::SYS_socketpair,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
];
/// fcntl(2), with which a descriptor can be copied.
pub const COPIES: [i32; 2] = [libc::F_DUPFD, libc::F_DUPFD_CLOEXEC];

/// The calls that are looked at, whatever their arguments.
pub fn calls() -> impl Iterator<Item = i64> {
    OPEN.iter().chain(ONE).chain(TWO).copied()
}

/// Counts a task's descriptors by the calls that ask for one.
pub struct Counter {
    /// None when there will be no more.
    listener: Option<OwnedFd>,
    limit: u64,
    most: u64,
    refused: bool,
}

impl Counter {
    /// `listener` is the filter's, `limit` what each process may have open.
    pub fn new(listener: OwnedFd, limit: u64) -> Self {
        kernel::take_turns(&listener);
        // Every task starts with three.
        Self { listener: Some(listener), limit, most: 3, refused: false }
    }

    /// Readable when a call waits.
    pub fn listener(&self) -> Option<BorrowedFd<'_>> {
        self.listener.as_ref().map(AsFd::as_fd)
    }

    /// Lets one waiting call go on.
    pub fn go_on(&mut self) {
        let Some(listener) = self.listener.take() else { return };
        let is_open = match kernel::notified(&listener) {
            Ok(call) => {
                self.count(&call);
                // Who was ended meanwhile needs no answer.
                let _ = kernel::let_go_on(&listener, &call);
                true
            }
            // It was ended while it waited.
            Err(error) => matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)),
        };
        self.listener = is_open.then_some(listener);
    }

    fn count(&mut self, call: &Notified) {
        let Some(open) = open_descriptors(call.thread) else { return };
        let wanted = if TWO.contains(&call.number) { 2 } else { 1 };
        // With fewer free than it takes the kernel refuses it (EMFILE).
        if open + wanted > self.limit {
            self.refused = true;
            self.most = self.limit;
        }
        // Whether a file is there is not known yet: the next call tells.
        let has = if OPEN.contains(&call.number) { open } else { open + wanted };
        self.most = self.most.max(has.min(self.limit));
    }

    /// The most that one process had open when it asked for another, and whether any was refused.
    pub fn counted(&self) -> (u64, bool) {
        (self.most, self.refused)
    }
}

/// Takes the listener from the task's process; None when that came to an end before.
pub fn receive(commands: &UnixStream) -> Option<OwnedFd> {
    let mut received = Vec::new();
    let came = watch::readable_within(commands, SET_UP);
    came.then(|| crate::frame::receive_batch(commands, &mut received).ok()).flatten()?;
    received.pop()
}
