//! A job as it is kept. Values only: no I/O, no clock.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::callback::Callback;
use crate::scheduler::Client;

/// A job's name: 32 hexadecimal digits. Those of later jobs are greater, and half of it is chance, so that nobody guesses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct JobId(pub(super) u128);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a job's id: 32 hexadecimal digits in lower case")]
pub struct NoId;

impl FromStr for JobId {
    type Err = NoId;
    fn from_str(text: &str) -> Result<Self, NoId> {
        let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if text.len() != 32 || !text.as_bytes().iter().all(is_digit) {
            return Err(NoId);
        }
        u128::from_str_radix(text, 16).map(Self).map_err(|_| NoId)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// ```text
/// queued ──> running ──> done
///   │  ▲        │├─────> cancelled
///   │  └────────┘└─────> lost
///   └──────────────────> cancelled
/// ```
/// A running job is queued again when nothing of it ran after all, or when it was lost and its `retry` allows another run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[schema(as = JobState)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It waits for its turn.
    Queued,
    /// Its tasks wait in the scheduler, or run.
    Running,
    /// There is a response.
    Done,
    /// Its client did not want it any more.
    Cancelled,
    /// Faber ended while it ran: nobody knows how far it came, and it is not run again.
    Lost,
}

impl State {
    /// Whether nothing more comes of it.
    pub fn is_over(self) -> bool {
        !matches!(self, Self::Queued | Self::Running)
    }
}

/// What its body is a body of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Execute,
    Judge,
}

/// What was sent with `Idempotency-Key`: SHA-256 of the key and of the body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Idempotency {
    pub key: [u8; 32],
    pub body: [u8; 32],
}

/// What is kept beside a job for whoever submitted it, under a name that says for what: bytes that jobs know nothing of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoteInfo {
    pub name: String,
    /// Bytes.
    pub size: u64,
}

/// All that is known of a job but its body, its note and its response. Fields that a later version adds need a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    pub id: JobId,
    /// Who may see it.
    pub owner: String,
    /// In whose name its tasks run.
    pub client: Client,
    pub kind: Kind,
    pub state: State,
    /// Milliseconds since 1970, as all times here.
    pub created: u64,
    /// When its last run began.
    #[serde(default)]
    pub started: Option<u64>,
    #[serde(default)]
    pub ended: Option<u64>,
    /// How many times more it may be run when a run of it is lost.
    pub retry: u32,
    /// How many runs of it have begun.
    pub runs: u32,
    /// Bytes.
    pub body_size: u64,
    /// Bytes; 0 without a response.
    #[serde(default)]
    pub response_size: u64,
    #[serde(default)]
    pub idempotency: Option<Idempotency>,
    #[serde(default)]
    pub callback: Option<Callback>,
    #[serde(default)]
    pub note: Option<NoteInfo>,
}

impl Job {
    /// Bytes that are kept for it, its own few hundred not counted. A body goes when its job is over.
    pub fn size(&self) -> u64 {
        let note = self.note.as_ref().map_or(0, |note| note.size);
        note + self.response_size + if self.state.is_over() { 0 } else { self.body_size }
    }

    /// Queued again.
    pub(super) fn queued(self) -> Self {
        Self { state: State::Queued, started: None, ..self }
    }

    pub(super) fn over(self, state: State, now: u64) -> Self {
        let callback = self.callback.map(|callback| Callback { due: Some(now), ..callback });
        Self { state, ended: Some(now), callback, ..self }
    }

    /// When its callback is to be tried next.
    pub(super) fn due(&self) -> Option<u64> {
        self.callback.as_ref()?.due
    }

    /// A run of it is lost: queued once more where `retry` allows that.
    pub(super) fn lost(self, now: u64) -> Self {
        if self.runs <= self.retry { self.queued() } else { self.over(State::Lost, now) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written_and_nothing_else_is() {
        let id = JobId(0x0123_4567_89ab_cdef << 64);
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in ["", "0", &"g".repeat(32), &"A".repeat(32), &"0".repeat(33), &format!("+{}", "0".repeat(31))] {
            assert_eq!(wrong.parse::<JobId>(), Err(NoId), "{wrong}");
        }
    }
}
