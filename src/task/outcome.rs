//! How a task ended and what it used, as the runner saw it. The API's fields are derived from this in `result.rs`.

use serde::{Deserialize, Serialize};

/// Everything the runner says of one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub outcome: Outcome,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub usage: Usage,
    pub hits: Hits,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// The command ended by itself with this exit status.
    Exited(u8),
    /// A signal that Faber did not send ended the command (signal(7) numbers).
    Signalled(i32),
    /// Faber or the kernel ended it because it went past a limit; the number is the limit's value in the API's unit.
    Stopped(Limit, u64),
    /// The command is not in the image, or cannot be executed: 127 and 126 as in POSIX's shell (2.8.2).
    CannotRun { exit_code: u8, reason: String },
    /// It never started, for a reason of its own.
    NotExecuted { reason: String },
    /// It never started because Faber failed; the operator finds the cause in the log.
    Fault { reason: String },
    /// It started, and Faber lost it: nothing is known of how it ended.
    Lost { reason: String },
    /// The client went away or the server is stopping.
    Cancelled,
}

/// A limit that ends a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Limit {
    Memory,
    CpuTime,
    WallTime,
    Output,
}

/// Limits a task ran into without being ended for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hits {
    /// A fork was refused by pids.max (pids.events, cgroup-v2.rst).
    pub processes: bool,
    /// A sample saw a process with its whole descriptor table in use.
    pub file_descriptors: bool,
}

/// What the whole container used. Times in nanoseconds, sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    pub cpu_time: u64,
    pub user_time: u64,
    pub system_time: u64,
    pub wall_time: u64,
    pub memory_peak: u64,
    pub memory_current: u64,
    /// The most processes and threads alive at once.
    pub processes: u64,
    /// The most descriptors a sample saw open in one process.
    pub file_descriptors: u64,
    /// Bytes moved by read(2) and its kin, terminal and pipe I/O included (proc_pid_io(5), `rchar`).
    pub io_read: u64,
    /// Bytes moved by write(2) and its kin (`wchar`).
    pub io_write: u64,
}

impl Report {
    /// The report of a task that never started.
    pub fn not_executed(reason: impl Into<String>) -> Self {
        Self::bare(Outcome::NotExecuted { reason: reason.into() })
    }

    /// The report of a task that Faber could not start.
    pub fn fault(reason: impl Into<String>) -> Self {
        Self::bare(Outcome::Fault { reason: reason.into() })
    }

    /// The report of a task whose runner was lost while it ran.
    pub fn lost(reason: impl Into<String>) -> Self {
        Self::bare(Outcome::Lost { reason: reason.into() })
    }

    fn bare(outcome: Outcome) -> Self {
        Self { outcome, stdout: Vec::new(), stderr: Vec::new(), usage: Usage::default(), hits: Hits::default() }
    }
}
