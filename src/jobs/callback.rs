//! Whom to tell of a job's end. Values only: no I/O, no clock.

use serde::{Deserialize, Serialize};

use crate::callbacks::{Refusal, Secret};

/// A URL that is told of a job's end, and how far that has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Callback {
    pub url: String,
    /// What it is signed with; None: it is told in the form of whoever submitted the job, which knows no signatures.
    pub secret: Option<Secret>,
    /// How many times it was tried.
    pub attempts: u32,
    /// When it is to be tried next, in milliseconds since 1970.
    pub due: Option<u64>,
    /// When it was taken.
    pub delivered: Option<u64>,
    /// What came of the last attempt, unless it was taken.
    pub error: Option<String>,
}

/// ```text
/// waiting ──the job ends──> pending ──> delivered
///                             └──> failed
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum CallbackState {
    /// The job has not ended.
    Waiting,
    /// It is to be sent, or sent again.
    Pending,
    /// It was answered with a status of 2xx.
    Delivered,
    /// It was tried as often as it is tried, and is not sent any more.
    Failed,
}

/// Seconds after the first, second, … attempt; the last stands for all later ones.
const DELAYS: [u64; 7] = [5, 30, 120, 600, 1800, 7200, 21_600];

impl Callback {
    pub fn new(url: String, secret: Option<Secret>) -> Self {
        Self { url, secret, attempts: 0, due: None, delivered: None, error: None }
    }

    pub fn state(&self) -> CallbackState {
        match (self.delivered, self.due, self.attempts) {
            (Some(_), ..) => CallbackState::Delivered,
            (None, Some(_), _) => CallbackState::Pending,
            (None, None, 0) => CallbackState::Waiting,
            (None, None, _) => CallbackState::Failed,
        }
    }

    /// It was tried once more. `spread`, up to a tenth of the delay, keeps what failed together from being tried together.
    pub(super) fn tried(self, result: Result<(), Refusal>, now: u64, most: u32, spread: u64) -> Self {
        let attempts = self.attempts + 1;
        match result {
            Ok(()) => Self { attempts, due: None, delivered: Some(now), error: None, ..self },
            Err(Refusal { reason, is_final }) => {
                let delay = 1000 * DELAYS[DELAYS.len().min(attempts as usize) - 1];
                let due = (!is_final && attempts < most).then(|| now + delay + delay * (spread % 10) / 100);
                Self { attempts, due, error: Some(reason), ..self }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_tried_ever_later_and_then_not_any_more() {
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".parse().ok();
        let mut callback = Callback { due: Some(0), ..Callback::new("http://x/".into(), secret) };
        let refused = |is_final| Err(Refusal { reason: "no".into(), is_final });
        let mut delays = Vec::new();
        for _ in 0..8 {
            assert_eq!(callback.state(), CallbackState::Pending);
            callback = callback.tried(refused(false), 1000, 9, 0);
            delays.push((callback.due.unwrap() - 1000) / 1000);
        }
        assert_eq!(delays, [5, 30, 120, 600, 1800, 7200, 21_600, 21_600]);
        assert_eq!(callback.clone().tried(Ok(()), 7, 9, 0).state(), CallbackState::Delivered);
        assert_eq!(callback.tried(refused(false), 1000, 9, 0).state(), CallbackState::Failed);
        let callback = Callback::new("http://x/".into(), None);
        assert_eq!(callback.state(), CallbackState::Waiting);
        assert_eq!(callback.tried(refused(true), 0, 9, 0).state(), CallbackState::Failed);
    }
}
