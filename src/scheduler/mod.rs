//! Which task runs when: admission, the queue, the memory budget, and the pool as the front sees it.

use std::sync::Arc;
use std::time::Duration;

use crate::task::{Report, Task};

/// Shares the runners out among the tasks.
pub struct Scheduler {}

/// The queue is full: nothing of the request was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the queue is full")]
pub struct Saturated {
    pub retry_after: Duration,
}

/// The task waited for its turn longer than the queue's deadline and was never started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the task waited longer than {waited:?} for its turn")]
pub struct QueueTimeout {
    pub waited: Duration,
}

/// A task that was taken. Dropping it takes it out of the queue, or ends it when it already runs.
pub struct Pending {}

impl Scheduler {
    /// Takes all of `tasks` in order, or none of them.
    pub fn submit(self: &Arc<Self>, tasks: Vec<Task>) -> Result<Vec<Pending>, Saturated> {
        let _ = tasks;
        Err(Saturated { retry_after: Duration::from_secs(1) })
    }
}

impl Pending {
    /// Waits for the task's turn and for its end.
    pub async fn report(self) -> Result<Report, QueueTimeout> {
        Err(QueueTimeout { waited: Duration::ZERO })
    }
}
