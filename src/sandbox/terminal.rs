//! A task's terminal: a pseudo-terminal of the container's own (devpts), so that its program finds it by its name and nobody
//! else's is among them. The master is the runner's: what is typed goes in, what is shown comes out.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::task::Window;

pub struct Terminal {
    master: File,
}

impl Terminal {
    /// Opens one in the container of this init; pty(7), ioctl_tty(2). The other end is the task's.
    ///
    /// # Errors
    /// When the container has as many as it may have, or the kernel's.
    pub fn open(init: i32, window: Window) -> io::Result<(Self, OwnedFd)> {
        let path = format!("/proc/{init}/root/dev/pts/ptmx");
        let flags = libc::O_NOCTTY | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let master = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
        unlockpt(&master)?;
        let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        let terminal = Self { master };
        terminal.resize(window)?;
        Ok((terminal, slave))
    }

    /// The kernel tells the foreground processes by SIGWINCH.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resize(&self, Window { rows, columns }: Window) -> io::Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        Ok(tcsetwinsize(&self.master, size)?)
    }

    /// Another descriptor of the master, non-blocking as this one is.
    ///
    /// # Errors
    /// When there are no more descriptors.
    pub fn master(&self) -> io::Result<File> {
        self.master.try_clone()
    }
}
