//! A child process of the keeper's: this same program in another role, with one socket as its standard input.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitStatus, Stdio};

pub struct Child {
    process: std::process::Child,
}

impl Child {
    /// Starts `role` in a process group of its own: what a terminal sends is for the keeper alone, which says what
    /// follows from it. The environment stays behind.
    pub fn start(role: &str, socket: UnixStream) -> io::Result<Self> {
        let process = Command::new("/proc/self/exe")
            .arg0("faber")
            .arg(role)
            .env_clear()
            .stdin(Stdio::from(OwnedFd::from(socket)))
            .stdout(Stdio::null())
            .process_group(0)
            .current_dir("/")
            .spawn()?;
        Ok(Self { process })
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().ok().flatten()
    }

    /// SIGKILL; its end is still to be awaited.
    pub fn kill(&mut self) {
        let _ = self.process.kill();
    }
}
