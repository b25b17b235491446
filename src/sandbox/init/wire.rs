//! What the runner and the init say to each other over the init's inherited sockets.
//!
//! ```text
//! runner                         init (PID 1)                    child (the task to be)
//!   │ Command, files' contents ───▶ │ files written, forks ─────────▶ │ becomes the task's user, loads seccomp
//!   │ ◀──────────────────────────────────────────────── Prepared ──── │ waits
//!   │ (reads baselines, starts the clock)                             │
//!   │ one byte on `start` ──────────────────────────────────────────▶ │ execve
//!   │ ◀─────────────────────────────────────── Failed (only if so) ── │
//!   │ ◀──────────── Exited ──────── │ ◀──────────────── exit ──────── ┘
//!   │                               │ ends and reaps what is left, exits
//! ```
//! One byte on the control socket (or its end) tells the init to end everything at once.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::image::User;
use crate::task::WorkspacePath;

/// What to run; everything in it was looked at before. The contents of the files follow it, in their order, as they are:
/// the init never holds one in memory, which is the task's.
#[derive(Debug, Serialize, Deserialize)]
pub struct Command {
    pub argv: Vec<String>,
    pub env: BTreeMap<String, String>,
    /// Where a command without a slash is looked up.
    pub path: String,
    pub user: User,
    /// Where it starts.
    pub directory: String,
    /// Each file and how many bytes it has.
    pub files: Vec<(WorkspacePath, u64)>,
    pub file_descriptors: u64,
    /// Seconds; the kernel's own stop behind the runner's watch.
    pub cpu_seconds: u64,
}

/// What the init and its child report: fixed size, so that two writers of one socket cannot mix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// The child waits for its start, as the task's user and under its limits.
    Prepared,
    /// A step of the set-up failed; the task did not run.
    Failed { step: Step, errno: i32 },
    /// The command ended; the status is wait(2)'s.
    Exited { status: i32 },
}

/// Steps that can fail; the runner finds the words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Step {
    Receive = 1,
    Files,
    Fork,
    Session,
    Limits,
    User,
    Directory,
    Privileges,
    Seccomp,
    Exec,
}

impl Step {
    const ALL: [Self; 10] = [
        Self::Receive,
        Self::Files,
        Self::Fork,
        Self::Session,
        Self::Limits,
        Self::User,
        Self::Directory,
        Self::Privileges,
        Self::Seccomp,
        Self::Exec,
    ];

    pub fn words(self) -> &'static str {
        match self {
            Self::Receive => "receive the command",
            Self::Files => "write the task's files",
            Self::Fork => "fork the task's process",
            Self::Session => "make the task's session",
            Self::Limits => "set the task's resource limits",
            Self::User => "become the task's user",
            Self::Directory => "enter the image's working directory",
            Self::Privileges => "give up privileges",
            Self::Seccomp => "load the seccomp filter",
            Self::Exec => "execute the command",
        }
    }
}

impl Notice {
    pub const BYTES: usize = 12;

    pub fn encode(self) -> [u8; Self::BYTES] {
        let words = match self {
            Self::Prepared => [1, 0, 0],
            Self::Failed { step, errno } => [2, step as u32, errno as u32],
            Self::Exited { status } => [3, status as u32, 0],
        };
        let mut bytes = [0; Self::BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(4).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    pub fn decode(bytes: [u8; Self::BYTES]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        match (word(0), word(4), word(8)) {
            (1, 0, 0) => Some(Self::Prepared),
            (2, step, errno) => {
                let step = Step::ALL.into_iter().find(|known| *known as u32 == step)?;
                Some(Self::Failed { step, errno: errno as i32 })
            }
            (3, status, 0) => Some(Self::Exited { status: status as i32 }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_survive_the_wire() {
        let notices = [Notice::Prepared, Notice::Exited { status: 0x8b }];
        let failures = Step::ALL.map(|step| Notice::Failed { step, errno: 13 });
        for notice in notices.into_iter().chain(failures) {
            assert_eq!(Notice::decode(notice.encode()), Some(notice));
        }
        assert_eq!(Notice::decode([9; 12]), None);
    }
}
