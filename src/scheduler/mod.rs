//! Which task runs when: admission, the queue, the memory budget, and the pool as the front sees it.
//!
//! Runners pull: one that holds a created container takes the next task as soon as there is a free place and the sum of the
//! running tasks' memory limits stays in the budget. Clients take turns, so that nobody's many tasks are ahead of another's
//! one, and each has a share of what runs ([`share`]). A task that waits for more room than there is may be passed by others,
//! but not by more than [`PASSES`], so that it cannot starve. Who runs nothing need not wait for one who runs several: there
//! are some places beyond all others for that ([`Capacity::guests`]).

mod gate;
mod handle;
mod queue;
mod session;
mod share;
mod sharing;
mod stall;

use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, oneshot, watch};
use tokio::time::Instant;

use crate::artifact::Artifact;
use crate::task::{Bytes, Figures, Report, Taken, Task, Time, Word};
use gate::{Gate, Ticket};
pub use queue::Client;
use queue::Queue;
pub use session::Hosted;
pub use share::Shares;
use share::{Held, Ledger};
use sharing::{RequestId, RunnerId, Share, Sharing};
pub use stall::Stall;

/// How long a client is asked to wait when there is no room for its tasks.
pub const RETRY_AFTER: Duration = Duration::from_secs(1);

/// How many tasks may pass one that waits for room; then all wait until there is.
const PASSES: u32 = 16;
/// At how many of one client's waiting tasks it is looked whether they could start now.
const SEEN: usize = 32;

/// When to look again whether tasks still stall.
const STALLED: Duration = Duration::from_secs(1);

/// What the tasks share.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    /// Tasks that may run at once.
    pub concurrency: usize,
    /// Runners: connected tasks may be as many, when nothing else runs.
    pub slots: usize,
    /// Bytes: the sum of the running tasks' memory limits.
    pub memory: u64,
    /// Tasks of one client that may wait beyond those that can run.
    pub queue_length: usize,
    /// How long a task may wait for its turn.
    pub queue_timeout: Duration,
}

impl Capacity {
    /// Places beyond all others, for clients that run nothing while another runs several. One that holds all places for long
    /// keeps nobody from the machine, which then has so much more to do at once.
    fn guests(&self) -> usize {
        (self.concurrency / 2).max(1).min(self.slots.saturating_sub(self.concurrency))
    }
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
    /// Changes when the runners are to be new ones.
    renewed: watch::Sender<()>,
}

#[derive(Default)]
struct State {
    queue: Queue<Unit>,
    /// Of a unit whose turn it was: each takes the next idle runner.
    handed_out: VecDeque<Job>,
    /// Tasks that were admitted and are not in the queue yet.
    promised: HashMap<Client, usize>,
    running: Ledger,
    shares: Shares,
    runners: usize,
    /// How many of them are to end when they have nothing to do.
    retired: usize,
    /// Runners that wait for a task.
    idle: HashSet<RunnerId>,
    sharing: Sharing,
    /// Requests and runners that there have been.
    numbers: u64,
}

impl State {
    /// A number that nothing else has.
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

/// Tasks that start together; most units are one.
struct Unit {
    jobs: Vec<Job>,
    /// How many have passed it while it waited for room.
    passed: u32,
}

/// A task that was taken, on its way to a runner.
struct Job {
    client: Client,
    request: RequestId,
    submission: Submission,
    /// To be told that its turn has come.
    started: Option<oneshot::Sender<()>>,
    reply: oneshot::Sender<Finished>,
    /// Where others start together with it.
    ticket: Option<Ticket>,
    /// The request's, so that what is logged of the task carries the request's id.
    span: tracing::Span,
}

/// A task to run, with what takes the place of its standard descriptors, and with who follows it.
pub struct Submission {
    pub task: Task<Artifact>,
    pub pipes: Piped,
    pub live: Option<Live>,
    /// There is no task, but a session: whoever is told of it then has it.
    hosting: Option<oneshot::Sender<Hosted>>,
}

impl Submission {
    /// One that is answered at its end.
    pub fn plain(task: Task<Artifact>) -> Self {
        Self { task, pipes: Piped::default(), live: None, hosting: None }
    }
}

/// What passes between a task that runs and whoever follows it.
pub struct Live {
    /// What it has used; figures for which there is no room are left out.
    pub figures: mpsc::Sender<Figures>,
    /// What it is to be told.
    pub words: mpsc::Receiver<Word>,
}

/// The ends of pipes to other tasks, or to whoever follows this one.
#[derive(Default)]
pub struct Piped {
    pub stdin: Option<OwnedFd>,
    /// For stdout and stderr; true: what passes is kept, too.
    pub outputs: [Option<(OwnedFd, bool)>; 2],
}

/// A task's end.
#[derive(Debug, Clone)]
pub struct Finished {
    pub report: Report,
    pub taken: Taken<Artifact>,
    /// How long it waited for its turn.
    pub queued: Duration,
}

impl Finished {
    /// What is told of it; what others may take of it stays here, and its output is in one of the two alone.
    pub fn take_told(&mut self) -> Self {
        let report = &mut self.report;
        let [stdout, stderr, merged] = [&mut report.stdout, &mut report.stderr, &mut report.merged].map(std::mem::take);
        let mut told = self.clone();
        (told.report.stdout, told.report.stderr, told.report.merged) = (stdout, stderr, merged);
        told
    }
}

impl From<Report> for Finished {
    /// Of a task that left nothing.
    fn from(report: Report) -> Self {
        Self { report, taken: Taken::default(), queued: Duration::ZERO }
    }
}

impl Unit {
    fn needs(&self) -> Held {
        self.jobs.iter().map(Job::needs).fold(Held::default(), Held::and)
    }

    /// Whether nobody waits for it any more.
    fn is_given_up(&self) -> bool {
        self.jobs.iter().any(|job| job.reply.is_closed())
    }
}

impl Job {
    fn needs(&self) -> Held {
        Held::by(&self.submission.task.limits)
    }

    /// Whether it is another task of the same request, in a container of the same image.
    fn is_like(&self, other: &Self) -> bool {
        self.request == other.request && self.submission.task.image == other.submission.task.image
    }
}

/// Who wants tasks run, and how long they may wait for their turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asker {
    pub client: Client,
    pub patience: Patience,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Patience {
    /// The queue's own, [`Capacity::queue_timeout`].
    Queue,
    /// Nobody holds a connection open for them.
    Endless,
}

/// Ten years: a deadline has to be a time that there is.
const ENDLESS: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

impl From<Client> for Asker {
    fn from(client: Client) -> Self {
        Self { client, patience: Patience::Queue }
    }
}

/// Too many of the client's tasks wait: nothing of the request was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many of the client's tasks wait")]
pub struct Saturated {
    pub retry_after: Duration,
}

/// Why there is no container for a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoSession {
    Later {
        retry_after: Duration,
    },
    Refused(String),
    /// The operator finds the cause in the log.
    Failed,
}

/// The task waited for its turn longer than the queue's deadline and was never started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the task waited longer than {} for its turn", Time(waited.as_nanos() as u64))]
pub struct QueueTimeout {
    pub waited: Duration,
}

/// A task that was taken. Dropping it takes it out of the queue, or ends it when it already runs.
pub struct Pending {
    started: oneshot::Receiver<()>,
    reply: oneshot::Receiver<Finished>,
    queued: Instant,
    patience: Duration,
}

/// The right of a client to submit so many tasks. What is left of it is given back when dropped.
pub struct Admission {
    scheduler: Arc<Scheduler>,
    client: Client,
    patience: Patience,
    request: RequestId,
    left: std::sync::atomic::AtomicUsize,
    /// Where they run, if not wherever a place is free.
    session: Option<Arc<Hosted>>,
}

/// The place of a running task; given back when dropped.
struct Place<'a> {
    scheduler: &'a Scheduler,
    client: Client,
    held: Held,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.scheduler.state().running.give_back(self.client, self.held);
        self.scheduler.changed.notify_waiters();
    }
}

impl Scheduler {
    /// `stall` says when tasks have to wait for others' memory although there is room.
    pub fn new(capacity: Capacity, shares: Shares, stall: Option<Stall>) -> Arc<Self> {
        Arc::new(Self {
            capacity,
            stall,
            state: Mutex::new(State { shares, ..State::default() }),
            changed: Notify::new(),
            cancelled: watch::Sender::new(false),
            ready: watch::Sender::new(false),
            renewed: watch::Sender::new(()),
        })
    }

    /// Lets the client submit so many tasks, now or later, if there is room for all of them.
    pub fn admit(self: &Arc<Self>, asker: impl Into<Asker>, tasks: usize) -> Result<Admission, Saturated> {
        let Asker { client, patience } = asker.into();
        let mut state = self.state();
        // Those whose client went away no longer count.
        state.queue.retain(|unit| !unit.is_given_up());
        let free = self.capacity.concurrency.saturating_sub(state.running.all().places);
        let waiting: usize = state.queue.of(client).map(|unit| unit.jobs.len()).sum();
        let promised = state.promised.get(&client).copied().unwrap_or(0);
        if waiting + promised + tasks > self.capacity.queue_length + free || *self.cancelled.borrow() {
            return Err(Saturated { retry_after: RETRY_AFTER });
        }
        *state.promised.entry(client).or_default() += tasks;
        let request = state.number();
        Ok(Admission { scheduler: self.clone(), client, patience, request, left: tasks.into(), session: None })
    }

    /// The right to submit tasks that run in a session: they do not wait.
    pub fn admit_to(self: &Arc<Self>, client: Client, session: Arc<Hosted>) -> Admission {
        let request = self.state().number();
        let patience = Patience::Queue;
        Admission { scheduler: self.clone(), client, patience, request, left: 0.into(), session: Some(session) }
    }

    /// Takes a container for a session out of the pool: `task` says of which image, and within which limits.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn host(self: &Arc<Self>, client: Client, task: Task<Artifact>) -> Result<Hosted, NoSession> {
        let admission = self.admit(client, 1).map_err(|Saturated { retry_after }| NoSession::Later { retry_after })?;
        let (hosting, mut hosted) = oneshot::channel();
        let submission = Submission { hosting: Some(hosting), ..Submission::plain(task) };
        let Some(pending) = admission.submit(vec![submission]).pop() else { return Err(NoSession::Failed) };
        match pending.finished().await {
            Ok(Finished { report, .. }) => hosted.try_recv().map_err(|_| match report.outcome {
                crate::task::Outcome::NotExecuted { reason } => NoSession::Refused(reason),
                _ => NoSession::Failed,
            }),
            Err(_) => Err(NoSession::Later { retry_after: RETRY_AFTER }),
        }
    }

    /// Lets go of one runner that has nothing to do: another one has taken its place.
    pub fn retire_one(&self) {
        self.state().retired += 1;
        self.changed.notify_waiters();
    }

    /// Why so many tasks can never run together, if so.
    pub fn cannot_run_together(&self, tasks: usize, memory: u64) -> Option<String> {
        let Capacity { slots, memory: budget, .. } = self.capacity;
        if tasks > slots {
            return Some(format!(
                "{tasks} connected tasks are more than the {slots} that this server can run together"
            ));
        }
        (memory > budget).then(|| {
            format!(
                "the memory limits of connected tasks add up to {}, and this server has {}",
                Bytes(memory),
                Bytes(budget)
            )
        })
    }

    /// Holds clients to these shares from now on.
    pub fn share(&self, shares: Shares) {
        self.state().shares = shares;
        self.changed.notify_waiters();
    }

    /// Lets go of every runner when it has nothing to do, so that another takes its place.
    pub fn renew_runners(&self) {
        self.renewed.send_replace(());
    }

    /// Waits until a runner holds a container for the first time.
    pub async fn ready(&self) {
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// Ends every task: a running one is answered as cancelled, a waiting one as not executed. No task is taken any more.
    pub fn cancel_all(&self) {
        let mut state = self.state();
        let waiting: Vec<Job> = state
            .queue
            .take()
            .flat_map(|unit| unit.jobs)
            .chain(state.handed_out.drain(..).collect::<Vec<_>>())
            .collect();
        drop(state);
        self.cancelled.send_replace(true);
        for job in waiting {
            let _ = job.reply.send(Report::not_executed("the server is stopping").into());
        }
    }

    /// The next task whose turn it is and that is for this runner, with its place. Waits for one.
    /// None when the runner is to end.
    async fn next(&self, runner: RunnerId) -> Option<(Job, Option<Share>, Place<'_>)> {
        let _idle = Idle::enter(self, runner);
        loop {
            let changed = self.changed.notified();
            if self.take_retirement() {
                return None;
            }
            let stalled = !self.state().queue.is_empty() && self.stall.as_ref().is_some_and(Stall::is_over);
            if let Some(taken) = self.take(stalled, runner) {
                return Some(taken);
            }
            if stalled {
                let _ = tokio::time::timeout(STALLED, changed).await;
            } else {
                changed.await;
            }
        }
    }

    fn take_retirement(&self) -> bool {
        let mut state = self.state();
        let is_one = state.retired > 0;
        state.retired -= usize::from(is_one);
        is_one
    }

    /// While tasks stall one may begin only where none runs: so there is always an end to wait for.
    fn take(&self, stalled: bool, runner: RunnerId) -> Option<(Job, Option<Share>, Place<'_>)> {
        let mut state = self.state();
        if let Some(job) = state.handed_out.pop_front() {
            let (job, place) = self.place(job);
            return Some((job, None, place));
        }
        if stalled && state.running.all().places > 0 {
            return None;
        }
        let first = state.queue.turns().next()?.1.front()?;
        if first.is_given_up() {
            state.queue.retain(|unit| !unit.is_given_up());
        }
        let Next { client, index, passed } = self.next_of(&state, runner)?;
        for (client, index) in passed {
            state.queue.get_mut(client, index).into_iter().for_each(|unit| unit.passed += 1);
        }
        let unit = state.queue.take_one(client, index)?;
        state.running.add(client, unit.needs());
        let mut jobs = unit.jobs.into_iter();
        let first = jobs.next()?;
        state.handed_out.extend(jobs);
        let share = match state.handed_out.is_empty() {
            true => self.share_of(&mut state, &first, runner),
            false => {
                self.changed.notify_waiters();
                None
            }
        };
        let (job, place) = self.place(first);
        Some((job, share, place))
    }

    /// Whether the task is to share a container with others of its request.
    fn share_of(&self, state: &mut State, job: &Job, runner: RunnerId) -> Option<Share> {
        let alone = state.queue.of(job.client).filter_map(|unit| <&[Job; 1]>::try_from(&unit.jobs[..]).ok());
        let waiting = alone.take(SEEN).filter(|[other]| other.is_like(job)).count();
        let idle = state.idle.iter().filter(|other| **other != runner).count();
        state.sharing.take(runner, job.request, (waiting, idle), self.capacity.concurrency)
    }

    /// What can start now and is first of what can.
    fn next_of(&self, state: &State, runner: RunnerId) -> Option<Next> {
        let Capacity { concurrency, slots, memory, .. } = self.capacity;
        let all = state.running.all();
        let mut passed = Vec::new();
        for (client, waiting) in state.queue.turns() {
            let share = state.shares.of(client);
            let own = state.running.of(client);
            let is_guest = own.places == 0
                && state.running.somebody_has_several()
                && all.places < concurrency + self.capacity.guests();
            for (index, unit) in waiting.iter().enumerate().take(SEEN) {
                // It holds nobody up; what is given up is taken out when it is first, or when somebody is admitted.
                if unit.is_given_up() {
                    continue;
                }
                if let [job] = &unit.jobs[..]
                    && !state.sharing.may_take(runner, job.request, concurrency, &state.idle)
                {
                    continue;
                }
                let needs = unit.needs();
                if !state.running.allows(client, &share, needs) {
                    // Its own tasks are what it waits for: that is nobody else's affair.
                    if own.places >= share.places || unit.passed >= PASSES {
                        break;
                    }
                    passed.push((client, index));
                    continue;
                }
                // Connected tasks can be more than may run at once: alone they may.
                let has_place = all.places + needs.places <= concurrency || all.places == 0 && needs.places <= slots;
                let has_room = all.memory.saturating_add(needs.memory) <= memory && needs.places <= state.idle.len();
                if has_room && (has_place || is_guest && needs.places == 1) {
                    return Some(Next { client, index, passed });
                }
                if all.places >= concurrency {
                    // Places are what is waited for, and one is like the other.
                    break;
                }
                if unit.passed >= PASSES {
                    return None;
                }
                passed.push((client, index));
            }
        }
        None
    }

    /// The place of a job that is counted already.
    fn place(&self, job: Job) -> (Job, Place<'_>) {
        let (client, held) = (job.client, job.needs());
        (job, Place { scheduler: self, client, held })
    }

    /// A runner cannot make containers. While another one can, the queue waits for that; else waiting is in vain.
    fn runner_failed(&self) {
        let mut state = self.state();
        if state.runners > 1 {
            return;
        }
        for job in state.queue.take().flat_map(|unit| unit.jobs) {
            let _ = job.reply.send(Report::fault("Faber could not make a container").into());
        }
    }

    /// The lock is held for a few assignments only, so nobody can panic with it.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Where in the queue what starts next is, and what it passes.
struct Next {
    client: Client,
    index: usize,
    passed: Vec<(Client, usize)>,
}

/// Counts a runner as idle while it lives.
struct Idle<'a>(&'a Scheduler, RunnerId);

impl<'a> Idle<'a> {
    fn enter(scheduler: &'a Scheduler, runner: RunnerId) -> Self {
        let mut state = scheduler.state();
        state.idle.insert(runner);
        // Connected tasks may have waited for it.
        let awaited = !state.queue.is_empty();
        drop(state);
        if awaited {
            scheduler.changed.notify_waiters();
        }
        Self(scheduler, runner)
    }
}

impl Drop for Idle<'_> {
    fn drop(&mut self) {
        self.0.state().idle.remove(&self.1);
    }
}

impl Admission {
    /// Submits tasks that start together: in most cases one.
    pub fn submit(&self, mut unit: Vec<Submission>) -> Vec<Pending> {
        if let Some(share) = self.scheduler.state().shares.of(self.client).cpus {
            unit.iter_mut().for_each(|submission| submission.task.limits.hold_to(share));
        }
        let mut tickets = if unit.len() > 1 { Gate::tickets(unit.len()) } else { Vec::new() };
        let mut state = self.scheduler.state();
        self.give_back(&mut state, unit.len());
        if *self.scheduler.cancelled.borrow() {
            drop(state);
            return unit.iter().map(|_| Pending::ended(Report::not_executed("the server is stopping"))).collect();
        }
        let (mut jobs, mut pending) = (Vec::new(), Vec::new());
        for submission in unit {
            let (started, has_started) = oneshot::channel();
            let (reply, finished) = oneshot::channel();
            let span = tracing::Span::current();
            jobs.push(Job {
                client: self.client,
                request: self.request,
                submission,
                started: Some(started),
                reply,
                ticket: tickets.pop(),
                span,
            });
            let patience = match self.patience {
                Patience::Queue => self.scheduler.capacity.queue_timeout,
                Patience::Endless => ENDLESS,
            };
            pending.push(Pending { started: has_started, reply: finished, queued: Instant::now(), patience });
        }
        if let Some(session) = &self.session {
            drop(state);
            jobs.into_iter().for_each(|job| _ = tokio::spawn(session.clone().run(job)));
            return pending;
        }
        state.queue.push(self.client, Unit { jobs, passed: 0 });
        drop(state);
        self.scheduler.changed.notify_waiters();
        pending
    }

    /// How many tasks wait.
    pub fn position(&self) -> usize {
        let state = self.scheduler.state();
        state.queue.turns().flat_map(|(_, units)| units).map(|unit| unit.jobs.len()).sum()
    }

    /// So many of its tasks are promised no more.
    fn give_back(&self, state: &mut State, tasks: usize) {
        use std::sync::atomic::Ordering::Relaxed;
        // Only ever changed with the state locked.
        let tasks = tasks.min(self.left.load(Relaxed));
        self.left.fetch_sub(tasks, Relaxed);
        if let Some(promised) = state.promised.get_mut(&self.client) {
            *promised -= tasks;
            if *promised == 0 {
                state.promised.remove(&self.client);
            }
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let left = self.left.load(std::sync::atomic::Ordering::Relaxed);
        let mut state = self.scheduler.state();
        self.give_back(&mut state, left);
        state.sharing.end(self.request);
    }
}

impl Pending {
    /// One that will not be run.
    fn ended(report: Report) -> Self {
        let (_, started) = oneshot::channel();
        let (reply, finished) = oneshot::channel();
        let _ = reply.send(report.into());
        Self { started, reply: finished, queued: Instant::now(), patience: Duration::ZERO }
    }

    /// Waits for the task's turn and for its end.
    pub async fn finished(self) -> Result<Finished, QueueTimeout> {
        self.finished_after(|| ()).await
    }

    /// The same; says when its turn has come.
    pub async fn finished_after(mut self, started: impl Fn()) -> Result<Finished, QueueTimeout> {
        let deadline = self.queued + self.patience;
        tokio::select! {
            biased;
            finished = &mut self.reply => {
                if self.started.try_recv().is_ok() {
                    started();
                }
                Ok(finished.unwrap_or_else(|_| gone()))
            }
            turn = &mut self.started => {
                // Without a word it is gone, which the reply says.
                let queued = turn.map(|()| {
                    started();
                    self.queued.elapsed()
                });
                let queued = queued.unwrap_or_default();
                let finished = self.reply.await.unwrap_or_else(|_| gone());
                Ok(Finished { queued, ..finished })
            }
            () = tokio::time::sleep_until(deadline) => {
                // From here on it cannot start; it may have in this very moment.
                self.started.close();
                match self.started.try_recv() {
                    Ok(()) => {
                        started();
                        let queued = self.queued.elapsed();
                        let finished = self.reply.await.unwrap_or_else(|_| gone());
                        Ok(Finished { queued, ..finished })
                    }
                    Err(_) => Err(QueueTimeout { waited: self.queued.elapsed() }),
                }
            }
        }
    }
}

fn gone() -> Finished {
    Report::lost("Faber lost the task").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pending(patience: Duration) -> (oneshot::Sender<()>, oneshot::Sender<Finished>, Pending) {
        let ((start, started), (reply, finished)) = (oneshot::channel(), oneshot::channel());
        (start, reply, Pending { started, reply: finished, queued: Instant::now(), patience })
    }

    #[tokio::test]
    async fn what_was_told_as_never_started_cannot_start() {
        let (start, _reply, waiting) = pending(Duration::ZERO);
        assert!(waiting.finished().await.is_err());
        assert!(start.send(()).is_err());
    }

    #[tokio::test]
    async fn what_starts_at_the_last_moment_is_told_as_it_ends() {
        let (start, reply, waiting) = pending(Duration::ZERO);
        start.send(()).unwrap();
        let ended = async { reply.send(Report::lost("x").into()).unwrap() };
        let (finished, ()) = tokio::join!(waiting.finished(), ended);
        assert!(matches!(finished.unwrap().report.outcome, crate::task::Outcome::Lost { .. }));
    }
}
