//! How a task ended and what it used, as the runner saw it. The API's fields are derived from this in `result.rs`.

use serde::{Deserialize, Serialize};

use super::units::{Bytes, Time};

/// Everything the runner says of one task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// An interpreter that waited took the program.
    pub prepared: bool,
    pub outcome: Outcome,
    #[serde(with = "serde_bytes")]
    pub stdout: Vec<u8>,
    #[serde(with = "serde_bytes")]
    pub stderr: Vec<u8>,
    /// Both as they arrived, where that was asked for.
    #[serde(with = "serde_bytes")]
    pub merged: Vec<u8>,
    pub written: Written,
    pub usage: Usage,
    pub hits: Hits,
    pub timings: Timings,
    pub counters: Counters,
    /// When the command ended, by CLOCK_MONOTONIC in nanoseconds: which of two ended first.
    pub ended_at: u64,
}

/// Bytes that a task wrote in all, beyond what was kept too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Written {
    pub stdout: u64,
    pub stderr: u64,
}

/// Where a task's time went in its runner, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Timings {
    /// From the order to the start of the command.
    pub setup: u64,
    /// From the start of the command to its end.
    pub run: u64,
    /// From there until everything was taken.
    pub collect: u64,
}

/// What the kernel counted; None where it does not tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counters {
    pub oom_kills: Option<u64>,
    pub forks_refused: Option<u64>,
    pub minor_faults: Option<u64>,
    pub major_faults: Option<u64>,
    pub voluntary_switches: Option<u64>,
    pub involuntary_switches: Option<u64>,
    /// Nanoseconds in which it had used up its share of the processors.
    pub throttled: Option<u64>,
}

/// What a task left that others take, or that is given back. `D` is how the bytes are at hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken<D> {
    /// By path, in order.
    pub files: Vec<TakenFile<D>>,
    /// Globs that had to match and did not.
    pub missing: Vec<String>,
    pub omitted: Omitted,
    /// The whole of stdout and of stderr, where they are handed on.
    pub streams: [Option<D>; 2],
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TakenFile<D> {
    pub path: String,
    pub mode: u32,
    pub content: D,
}

/// Files that matched and were not taken.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(example = json!({"count": 1, "files": {"core": "larger than the 67108864 bytes a file may have"}}))]
pub struct Omitted {
    /// How many.
    pub count: u64,
    /// The first of them, each with the reason.
    pub files: std::collections::BTreeMap<String, String>,
}

impl<D> Default for Taken<D> {
    fn default() -> Self {
        Self { files: Vec::new(), missing: Vec::new(), omitted: Omitted::default(), streams: [None, None] }
    }
}

impl<D> Taken<D> {
    /// The same with its bytes at hand in another form.
    ///
    /// # Errors
    /// The first one of `form`'s.
    pub fn try_map<E, F>(self, mut form: impl FnMut(D) -> Result<E, F>) -> Result<Taken<E>, F> {
        let mut files = Vec::new();
        for TakenFile { path, mode, content } in self.files {
            files.push(TakenFile { path, mode, content: form(content)? });
        }
        let [stdout, stderr] = self.streams;
        let streams = [stdout.map(&mut form).transpose()?, stderr.map(&mut form).transpose()?];
        Ok(Taken { files, missing: self.missing, omitted: self.omitted, streams })
    }
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

impl Limit {
    /// What is told of a task that was ended at this limit.
    pub fn exceeded(self, value: u64) -> String {
        match self {
            Self::Memory => format!("memory limit of {} exceeded", Bytes(value)),
            Self::CpuTime => format!("CPU time limit of {} exceeded", Time(value)),
            Self::WallTime => format!("wall time limit of {} exceeded", Time(value)),
            Self::Output => format!("output limit of {} exceeded", Bytes(value)),
        }
    }
}

/// Limits a task ran into without being ended for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Hits {
    /// A fork was refused by pids.max (pids.events, cgroup-v2.rst).
    pub processes: bool,
    /// A sample saw a process with its whole descriptor table in use.
    pub file_descriptors: bool,
    /// More was written than was to be kept.
    pub output: bool,
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
        Self {
            prepared: false,
            outcome,
            stdout: Vec::new(),
            stderr: Vec::new(),
            merged: Vec::new(),
            written: Written::default(),
            usage: Usage::default(),
            hits: Hits::default(),
            timings: Timings::default(),
            counters: Counters::default(),
            ended_at: 0,
        }
    }
}
