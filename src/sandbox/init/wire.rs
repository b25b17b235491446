//! What the runner and a container's processes say to each other over two inherited sockets.
//!
//! ```text
//! runner                         init (PID 1)                    the task's process
//!   │                               │ forks ────────────────────────▶ │ becomes the task's user, loads seccomp
//!   │ ◀───────────────────────────────────────────────── Ready ────── │ waits
//!   │ (reads baselines; the container waits for a task)               │
//!   │ Files, their contents ──────▶ │ writes them                     │
//!   │ ◀─────────── Placed ───────── │                                 │
//!   │ Command ──────────────────────────────────────────────────────▶ │ takes its limits
//!   │ ◀───────────────────────────────────────────────── Started ──── │ execve
//!   │ ◀──────────────────────────── Unrunnable, Failed (only if so) ─ │
//!   │ ◀──────────── Exited ──────── │ ◀──────────────── exit ──────── ┘
//!   │ ◀──────────── Alone ───────── │ (when others had to be ended and reaped first)
//! ```
//! A task whose descriptors are counted sends a listener for that before *Started*. Files are sent only if there are any; what is large comes as a descriptor, and so does what is to be the command's standard
//! input or output in place of the container's own.
//!
//! An interpreter that is prepared takes the place of the process that waits. It is told its program by its standard input, and says
//! by its standard output that it waits; when it was *Prepared*, the answer is its pidfd. While the command runs the init may be asked to signal it. The end of the runner's side of the init's socket tells it to end everything at once.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::task::{Node, WorkspacePath};

/// The files of a task, in an order in which directories come before what is in them. The bytes of those that are not in a
/// file follow, in this order, as they are: the init never holds one in memory, which is the task's.
pub type Files = Vec<(WorkspacePath, Node<Source>)>;

/// What the init is asked for.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// To write the task's files; their bytes, or the descriptors of files that hold them, come with it.
    Files(Files),
    /// To send the task's process group a signal.
    Signal(i32),
    /// To lead runs from now on; the process that waits for a command is ended.
    Host,
    /// To have an interpreter wait in the place of the process that waits for a command. With it come its standard descriptors.
    Prepare(Command),
    /// To hold the interpreter to these limits.
    Limit(ProcessLimits),
    /// Of one that leads runs: to fork the leader of another one. With it come its ends of the two sockets, stdout and stderr, the list of
    /// its group's processes, and the files by which that is entered.
    Run,
}

/// Where a file's bytes are.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Source {
    /// The next so many on the socket.
    Follows(u64),
    /// In the file of the message's descriptor with this index.
    File { index: u32, offset: u64, size: u64 },
}

/// What to run; everything in it was looked at before.
#[derive(Debug, Serialize, Deserialize)]
pub struct Command {
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Where a command without a slash is looked up.
    pub path: String,
    /// Whether that is of the task's own environment.
    pub is_own_path: bool,
    /// Where it starts.
    pub directory: String,
    pub limits: ProcessLimits,
    /// Whether to load the filter by which descriptors are counted, and to send its listener.
    pub count_descriptors: bool,
    /// Where no group holds the container to them.
    pub of_its_own: Option<OwnLimits>,
    /// The processors it may run on; all there are if it is empty.
    pub processors: Vec<usize>,
    /// Which of its standard descriptors each descriptor that came with the message replaces.
    pub replaced: Vec<u8>,
    /// Standard error goes where standard output goes.
    pub merged: bool,
    /// Its standard input is to be the terminal of its session.
    pub terminal: bool,
}

/// What each of a task's processes is held to by itself (getrlimit(2)). Sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessLimits {
    pub file_descriptors: u64,
    /// Seconds; the kernel's own stop behind the runner's watch.
    pub cpu_seconds: u64,
    pub stack: u64,
    pub file_size: Option<u64>,
}

/// Why a command could not be executed: sent back by the socket on which it came, before `Failed` is said.
#[derive(Debug, Serialize, Deserialize)]
pub struct Unrunnable {
    pub exit_code: u8,
    pub reason: String,
}

/// What a process can be held to by itself.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct OwnLimits {
    /// All of the task's user.
    pub processes: u64,
    /// Bytes, for each process.
    pub memory: u64,
}

/// What the init and the task's process report: fixed size, so that two writers of one socket cannot mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The task's process waits for its command, as the task's user.
    Ready,
    /// The task's files are in the workspace.
    Placed,
    /// The command is executed next: at this time of CLOCK_MONOTONIC, and after so much of this process' CPU time since
    /// it was ready; both in nanoseconds.
    Started { at: u64, set_up: u64, used: Rusage },
    /// A step of the set-up failed; the task did not run.
    Failed { step: Step, errno: i32 },
    /// The command ended, at this time of CLOCK_MONOTONIC in nanoseconds; the status is wait(2)'s. `alone` when nothing else is
    /// left but the init.
    Exited { at: u64, status: i32, alone: bool, used: Rusage },
    /// Nothing is left but the init.
    Alone { used: Rusage },
}

/// What all children that were waited for have used (getrusage(2)).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rusage {
    pub minor_faults: u64,
    pub major_faults: u64,
    pub voluntary_switches: u64,
    pub involuntary_switches: u64,
}

impl Rusage {
    /// What was used since `before`.
    pub fn since(self, before: Self) -> Self {
        Self {
            minor_faults: self.minor_faults.saturating_sub(before.minor_faults),
            major_faults: self.major_faults.saturating_sub(before.major_faults),
            voluntary_switches: self.voluntary_switches.saturating_sub(before.voluntary_switches),
            involuntary_switches: self.involuntary_switches.saturating_sub(before.involuntary_switches),
        }
    }

    fn words(self) -> [u64; 4] {
        [self.minor_faults, self.major_faults, self.voluntary_switches, self.involuntary_switches]
    }

    fn of([minor_faults, major_faults, voluntary_switches, involuntary_switches]: [u64; 4]) -> Self {
        Self { minor_faults, major_faults, voluntary_switches, involuntary_switches }
    }
}

/// What a clock says now, in nanoseconds.
pub fn nanoseconds(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Steps that can fail; the runner finds the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Step {
    Receive = 1,
    Enter,
    CgroupNamespace,
    Mount,
    Mask,
    Show,
    Files,
    Fork,
    Session,
    Limits,
    User,
    Directory,
    Privileges,
    Seccomp,
    Redirect,
    Exec,
}

impl Step {
    const ALL: [Self; 16] = [
        Self::Receive,
        Self::Enter,
        Self::CgroupNamespace,
        Self::Mount,
        Self::Mask,
        Self::Show,
        Self::Files,
        Self::Fork,
        Self::Session,
        Self::Limits,
        Self::User,
        Self::Directory,
        Self::Privileges,
        Self::Seccomp,
        Self::Redirect,
        Self::Exec,
    ];

    pub fn words(self) -> &'static str {
        match self {
            Self::Receive => "receive the command",
            Self::Enter => "enter the control group",
            Self::CgroupNamespace => "make the control group namespace",
            Self::Mount => "mount the places to write to",
            Self::Mask => "mask parts of /proc",
            Self::Show => "show the container its control group",
            Self::Files => "write the task's files",
            Self::Fork => "fork the task's process",
            Self::Session => "make the task's session",
            Self::Limits => "set the task's resource limits",
            Self::User => "become the task's user",
            Self::Directory => "enter the image's working directory",
            Self::Privileges => "give up privileges",
            Self::Seccomp => "load the seccomp filter",
            Self::Redirect => "set the command's standard descriptors",
            Self::Exec => "execute the command",
        }
    }
}

impl Notice {
    pub const BYTES: usize = 56;

    pub fn encode(self) -> [u8; Self::BYTES] {
        let none = Rusage::default();
        let (head, used) = match self {
            Self::Ready => ([1, 0, 0], none),
            Self::Placed => ([2, 0, 0], none),
            Self::Started { at, set_up, used } => ([3, at, set_up], used),
            Self::Failed { step, errno } => ([4, step as u64, u64::from(errno as u32)], none),
            Self::Exited { at, status, alone, used } => {
                ([5, u64::from(status as u32) | u64::from(alone) << 32, at], used)
            }
            Self::Alone { used } => ([6, 0, 0], used),
        };
        let mut bytes = [0; Self::BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(head.into_iter().chain(used.words())) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub fn decode(bytes: [u8; Self::BYTES]) -> Option<Self> {
        let (words, _) = bytes.as_chunks();
        let [kind, first, second] = [0, 1, 2].map(|at| u64::from_le_bytes(words[at]));
        let used = Rusage::of([3, 4, 5, 6].map(|at| u64::from_le_bytes(words[at])));
        Some(match kind {
            1 => Self::Ready,
            2 => Self::Placed,
            3 => Self::Started { at: first, set_up: second, used },
            4 => {
                let step = Step::ALL.into_iter().find(|known| *known as u64 == first)?;
                Self::Failed { step, errno: second as i32 }
            }
            5 => Self::Exited { at: second, status: first as i32, alone: first >> 32 != 0, used },
            6 => Self::Alone { used },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_survive_the_wire() {
        let used = Rusage::of([1, 2, 3, u64::MAX]);
        let exited = [true, false].map(|alone| Notice::Exited { at: u64::MAX, status: 0x8b, alone, used });
        let started = Notice::Started { at: u64::MAX, set_up: 7, used };
        let notices = [Notice::Ready, Notice::Placed, started, Notice::Alone { used }];
        let failures = Step::ALL.map(|step| Notice::Failed { step, errno: 13 });
        for notice in notices.into_iter().chain(exited).chain(failures) {
            assert_eq!(Notice::decode(notice.encode()), Some(notice));
        }
        assert_eq!(Notice::decode([9; Notice::BYTES]), None);
    }
}
