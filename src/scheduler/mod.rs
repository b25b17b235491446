//! Which task runs when: admission, the queue, the memory budget, and the pool as the front sees it.
//!
//! Runners pull: one that holds a created container takes the first task of the queue as soon as there is a free place
//! and the sum of the running tasks' memory limits stays in the budget. The head of the queue is never overtaken, so a
//! large task cannot starve; and clients take turns, so that nobody's many tasks are ahead of another's one.

mod handle;
mod queue;
mod stall;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;

use crate::task::{Report, Task};
pub use queue::Client;
use queue::Queue;
pub use stall::Stall;

/// How long a client is asked to wait when there is no room for its tasks.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// When to look again whether tasks still stall.
const STALLED: Duration = Duration::from_secs(1);

/// What the tasks share.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    /// Tasks that may run at once.
    pub concurrency: usize,
    /// Bytes: the sum of the running tasks' memory limits.
    pub memory: u64,
    /// Tasks of one client that may wait beyond those that can run.
    pub queue_length: usize,
    /// How long a task may wait for its turn.
    pub queue_timeout: Duration,
}

/// Shares the runners out among the tasks.
pub struct Scheduler {
    capacity: Capacity,
    stall: Option<Stall>,
    state: Mutex<State>,
    /// The queue or what is free has changed.
    changed: Notify,
    /// True once everything is to end.
    cancelled: watch::Sender<bool>,
    /// True once a container has waited for a task.
    ready: watch::Sender<bool>,
}

#[derive(Default)]
struct State {
    queue: Queue<Job>,
    running: usize,
    memory: u64,
    runners: usize,
}

/// A task that was taken, on its way to a runner.
struct Job {
    task: Task,
    started: oneshot::Sender<()>,
    reply: oneshot::Sender<Report>,
    /// The request's, so that what is logged of the task carries the request's id.
    span: tracing::Span,
}

/// Too many of the client's tasks wait: nothing of the request was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many of the client's tasks wait")]
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
pub struct Pending {
    started: oneshot::Receiver<()>,
    reply: oneshot::Receiver<Report>,
    queued: Instant,
    patience: Duration,
}

/// The place of a running task; given back when dropped.
struct Place<'a> {
    scheduler: &'a Scheduler,
    memory: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.scheduler.state();
        state.running -= 1;
        state.memory -= self.memory;
        drop(state);
        self.scheduler.changed.notify_waiters();
    }
}

impl Scheduler {
    /// `stall` says when tasks have to wait for others' memory although there is room.
    pub fn new(capacity: Capacity, stall: Option<Stall>) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            stall,
            state: Mutex::default(),
            changed: Notify::new(),
            cancelled: watch::Sender::new(false),
            ready: watch::Sender::new(false),
        })
    }

    /// Takes all of the client's `tasks` in order, or none of them.
    pub fn submit(self: &Arc<Self>, client: Client, tasks: Vec<Task>) -> Result<Vec<Pending>, Saturated> {
        let mut state = self.state();
        // Those whose client went away no longer count.
        state.queue.retain(|job| !job.reply.is_closed());
        let free = self.capacity.concurrency.saturating_sub(state.running);
        if state.queue.of(client) + tasks.len() > self.capacity.queue_length + free || *self.cancelled.borrow() {
            return Err(Saturated { retry_after: RETRY_AFTER });
        }
        let pending = tasks.into_iter().map(|task| self.enqueue(&mut state, client, task)).collect();
        drop(state);
        self.changed.notify_waiters();
        Ok(pending)
    }

    /// Waits until a runner holds a container for the first time.
    pub async fn ready(&self) {
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Ends every task: a running one is answered as cancelled, a waiting one as not executed. No task is taken any more.
    pub fn cancel_all(&self) {
        let waiting = self.state().queue.take();
        self.cancelled.send_replace(true);
        for job in waiting {
            let _ = job.reply.send(Report::not_executed("the server is stopping"));
        }
    }

    fn enqueue(&self, state: &mut State, client: Client, task: Task) -> Pending {
        let (started, has_started) = oneshot::channel();
        let (reply, report) = oneshot::channel();
        state.queue.push(client, Job { task, started, reply, span: tracing::Span::current() });
        let patience = self.capacity.queue_timeout;
        Pending { started: has_started, reply: report, queued: Instant::now(), patience }
    }

    /// The next task whose turn it is, with its place. Waits for one.
    async fn next(&self) -> (Job, Place<'_>) {
        loop {
            let changed = self.changed.notified();
            let stalled = !self.state().queue.is_empty() && self.stall.as_ref().is_some_and(Stall::is_over);
            if let Some(taken) = self.take(stalled) {
                return taken;
            }
            if stalled {
                let _ = tokio::time::timeout(STALLED, changed).await;
            } else {
                changed.await;
            }
        }
    }

    /// While tasks stall one may begin only where none runs: so there is always an end to wait for.
    fn take(&self, stalled: bool) -> Option<(Job, Place<'_>)> {
        let mut state = self.state();
        if stalled && state.running > 0 {
            return None;
        }
        if state.queue.first()?.reply.is_closed() {
            state.queue.retain(|job| !job.reply.is_closed());
        }
        let memory = state.queue.first()?.task.limits.memory;
        if state.running >= self.capacity.concurrency || state.memory + memory > self.capacity.memory {
            return None;
        }
        state.running += 1;
        state.memory += memory;
        let job = state.queue.pop()?;
        Some((job, Place { scheduler: self, memory }))
    }

    /// A runner cannot make containers. While another one can, the queue waits for that; else waiting is in vain.
    fn runner_failed(&self) {
        let mut state = self.state();
        if state.runners > 1 {
            return;
        }
        for job in state.queue.take() {
            let _ = job.reply.send(Report::fault("Faber could not make a container"));
        }
    }

    /// The lock is held for a few assignments only, so nobody can panic with it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Pending {
    /// Waits for the task's turn and for its end.
    pub async fn report(mut self) -> Result<Report, QueueTimeout> {
        let deadline = self.queued + self.patience;
        tokio::select! {
            biased;
            report = &mut self.reply => return Ok(report.unwrap_or_else(|_| gone())),
            _ = &mut self.started => {}
            () = tokio::time::sleep_until(deadline) => return Err(QueueTimeout { waited: self.queued.elapsed() }),
        }
        Ok(self.reply.await.unwrap_or_else(|_| gone()))
    }
}

fn gone() -> Report {
    Report::lost("Faber lost the task")
}
