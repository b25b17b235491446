//! Requests that are answered later: accepted once they are on the disk, run in turns, kept with their answers for a time.
//!
//! ```text
//! submit ──> Store (fsync) ──> 202
//!               │
//!             Queue, ids only ──next──> begin (fsync) ──> it runs ──> finish (fsync) ──> whoever waits is woken
//! ```
//! What is on the disk is the truth; what is in memory (who waits, who has how much) is made of it by [`Jobs::open`]. A run is
//! begun on the disk before anything of it runs, so that no crash makes it run twice, and a response is on the disk before
//! anybody is told that there is one.

mod callback;
mod calls;
mod embedded;
mod job;
mod ledger;
mod queue;
mod store;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::{Notify, oneshot, watch};

pub use callback::{Callback, CallbackState};
use calls::Calls;
use embedded::Embedded;
pub use embedded::OpenError;
pub use job::{Idempotency, Job, JobId, Kind, NoId, NoteInfo, State};
use ledger::Ledger;
use queue::{Most, Queue};
pub use store::StoreError;
use store::{Change, Store};

use crate::callbacks::Refusal;
use crate::scheduler::Client;
use crate::task::{Bytes, part_of};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Jobs of one owner, the ended among them.
    pub count: u64,
    /// Bytes of the bodies, notes and responses of one owner's jobs.
    pub per_owner: u64,
    /// Bytes of those of all.
    pub total: u64,
    /// How long a job is kept after its end.
    pub lifetime: Duration,
    /// Jobs of one owner that run at a time; of all owners, eight times as many.
    pub running: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error("no room for another job: you have {have} of {most}, the ended among them; DELETE /jobs/ID forgets one")]
    TooMany { have: u64, most: u64 },
    #[error("no room for {}: your jobs have {}", Bytes(*wanted), part_of(*used, *most))]
    OwnerFull { used: u64, wanted: u64, most: u64 },
    #[error("no room for {}: all jobs together have {}", Bytes(*wanted), part_of(*used, *most))]
    Full { used: u64, wanted: u64, most: u64 },
    #[error("this Idempotency-Key was sent before, with another body: it stands for job {0}")]
    OtherBody(JobId),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A job that was not there before.
pub struct Submission {
    pub owner: String,
    pub client: Client,
    pub kind: Kind,
    pub retry: u32,
    pub idempotency: Option<Idempotency>,
    pub callback: Option<Callback>,
    pub note: Option<Note>,
}

/// Bytes that whoever submits a job wants back with it, kept until it is forgotten, under a name that says for what they are.
pub struct Note {
    pub name: &'static str,
    pub bytes: Vec<u8>,
}

/// What became of a job that its owner does not want any more.
#[derive(Debug, PartialEq, Eq)]
pub enum Removed {
    /// It had not ended.
    Cancelled(Box<Job>),
    /// It had.
    Forgotten,
}

/// All jobs of one data directory. Calls that are not asynchronous block, but for those that say so.
pub struct Jobs {
    store: Box<dyn Store>,
    bounds: Bounds,
    live: Mutex<Live>,
    /// Another job may be handed out, or one has ended.
    changed: Notify,
    phase: watch::Sender<Phase>,
}

/// What is in memory.
#[derive(Default)]
struct Live {
    queue: Queue,
    ledger: Ledger,
    calls: Calls,
    /// Dropped to end a run.
    running: HashMap<JobId, oneshot::Sender<()>>,
    /// Dropped at a job's end.
    waiting: HashMap<JobId, Vec<oneshot::Sender<()>>>,
    /// When the last job was made, in microseconds since 1970.
    last: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Serving,
    /// No job is begun any more.
    Stopping,
    /// Those that run are given up.
    Abandoned,
}

/// A job whose turn it is. Dropping this lets another one run.
pub struct Turn {
    jobs: Arc<Jobs>,
    owner: String,
    pub id: JobId,
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.jobs.live().queue.give_back(&self.owner);
        self.jobs.changed.notify_waiters();
    }
}

/// A job whose callback is due. Dropping this lets another one be sent.
pub struct Call {
    jobs: Arc<Jobs>,
    owner: String,
    pub id: JobId,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.jobs.live().calls.give_back(&self.owner);
        self.jobs.changed.notify_waiters();
    }
}

impl Jobs {
    /// Opens the jobs in this directory. Queued ones wait for their turn; those that ran when Faber ended are queued once more if
    /// their `retry` allows it, and lost otherwise.
    ///
    /// # Errors
    /// When another process has them, another version wrote them, or the disk fails.
    pub fn open(directory: &OwnedFd, bounds: Bounds) -> Result<Self, OpenError> {
        Ok(Self::new(Box::new(Embedded::open(directory)?), bounds)?)
    }

    fn new(store: Box<dyn Store>, bounds: Bounds) -> Result<Self, StoreError> {
        let (mut live, mut ran) = (Live::default(), Vec::new());
        store.each(&mut |job| {
            live.ledger.add(&job);
            live.last = live.last.max((job.id.0 >> 64) as u64);
            if let Some(due) = job.due() {
                live.calls.put(&job.owner, due, job.id);
            }
            match job.state {
                State::Queued => live.queue.put(&job.owner, job.id),
                State::Running => ran.push(job.id),
                _ => {}
            }
        })?;
        if !ran.is_empty() {
            let now = now();
            let changed = store.change(&ran, &mut |job| Change::Set(job.clone().lost(now)))?;
            changed.iter().flatten().for_each(|(before, after)| live.changed(before, after.as_ref()));
            tracing::warn!(jobs = ran.len(), "jobs ran when Faber ended: they are lost, unless they may be run again");
        }
        let phase = watch::Sender::new(Phase::Serving);
        Ok(Self { store, bounds, live: Mutex::new(live), changed: Notify::new(), phase })
    }

    /// Takes a job: it is on the disk when this returns. The one that its key stands for, if there is one.
    ///
    /// # Errors
    /// Without room for it; `OtherBody` when its key stands for another; those of the store.
    pub fn submit(&self, submission: Submission, body: &[u8]) -> Result<Job, SubmitError> {
        let Submission { owner, client, kind, retry, idempotency, callback, note } = submission;
        let id = self.new_id()?;
        let (state, body_size) = (State::Queued, body.len() as u64);
        let (created, started, ended, runs, response_size) = (now(), None, None, 0, 0);
        let noted = note.as_ref().map(|note| NoteInfo { name: note.name.into(), size: note.bytes.len() as u64 });
        let job = Job {
            id,
            owner,
            client,
            kind,
            state,
            created,
            started,
            ended,
            retry,
            runs,
            body_size,
            response_size,
            idempotency,
            callback,
            note: noted,
        };
        let taken = self.live().ledger.take(&job, &self.bounds);
        let added = match taken {
            Ok(()) => self.store.add(&job, body, note.as_ref().map(|note| &*note.bytes)),
            // One that is known needs no room.
            Err(lack) => match self.known(&job)? {
                Some(known) => return same_body(known, &job),
                None => return Err(lack),
            },
        };
        if !matches!(added, Ok(None)) {
            self.live().ledger.remove(&job);
        }
        if let Some(known) = added? {
            return same_body(known, &job);
        }
        self.live().queue.put(&job.owner, id);
        self.changed.notify_waiters();
        Ok(job)
    }

    fn known(&self, job: &Job) -> Result<Option<Job>, StoreError> {
        match &job.idempotency {
            Some(Idempotency { key, .. }) => self.store.keyed(&job.owner, key),
            None => Ok(None),
        }
    }

    fn new_id(&self) -> Result<JobId, StoreError> {
        let mut chance = [0; 8];
        getrandom::fill(&mut chance)
            .map_err(|error| StoreError { step: "read the kernel's randomness", source: Box::new(error) })?;
        let mut live = self.live();
        live.last = micros().max(live.last + 1);
        Ok(JobId(u128::from(live.last) << 64 | u128::from(u64::from_ne_bytes(chance))))
    }

    /// A job of this owner's.
    ///
    /// # Errors
    /// The store's.
    pub fn find(&self, owner: &str, id: JobId) -> Result<Option<Job>, StoreError> {
        Ok(self.store.job(id)?.filter(|job| job.owner == owner))
    }

    /// # Errors
    /// The store's.
    pub fn body(&self, id: JobId) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.body(id)
    }

    /// # Errors
    /// The store's.
    pub fn response(&self, id: JobId) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.response(id)
    }

    /// What was kept beside a job.
    ///
    /// # Errors
    /// The store's.
    pub fn note(&self, id: JobId) -> Result<Option<Vec<u8>>, StoreError> {
        self.store.note(id)
    }

    /// At most so many of this owner's jobs, newest first, of those that are older than `before`.
    ///
    /// # Errors
    /// The store's.
    pub fn list(&self, owner: &str, before: Option<JobId>, most: usize) -> Result<Vec<Job>, StoreError> {
        self.store.list(owner, before, most)
    }

    /// How many jobs of its owner are to be begun before this one; None when it does not wait. Does not block.
    pub fn position(&self, job: &Job) -> Option<usize> {
        self.live().queue.position(&job.owner, job.id)
    }

    /// Done when the job has ended, or when Faber stops; to be taken before the job is looked at. Does not block.
    pub fn ended(&self, id: JobId) -> impl Future<Output = ()> + Send + use<> {
        let (ended, has_ended) = oneshot::channel();
        let mut phase = self.phase.subscribe();
        let mut live = self.live();
        let waiting = live.waiting.entry(id).or_default();
        // Those that went away meanwhile.
        waiting.retain(|waiting| !waiting.is_closed());
        waiting.push(ended);
        drop(live);
        async move {
            tokio::select! {
                _ = has_ended => {}
                _ = phase.wait_for(|phase| *phase > Phase::Serving) => {}
            }
        }
    }

    /// Cancels a job that has not ended, and forgets one that has; None where the owner has none.
    ///
    /// # Errors
    /// The store's.
    pub fn remove(&self, owner: &str, id: JobId) -> Result<Option<Removed>, StoreError> {
        // Ids are never used again: what is another's now stays so.
        if self.find(owner, id)?.is_none() {
            return Ok(None);
        }
        let now = now();
        let changed = self.change(id, &mut |job| match job.state.is_over() {
            true => Change::Remove,
            false => Change::Set(job.clone().over(State::Cancelled, now)),
        })?;
        Ok(match changed {
            Some((_, Some(after))) => Some(Removed::Cancelled(after.into())),
            Some((_, None)) => Some(Removed::Forgotten),
            None => None,
        })
    }

    /// How many jobs wait for their turn, and how many were handed out. Does not block.
    pub fn load(&self) -> (usize, usize) {
        let live = self.live();
        (live.queue.waiting(), live.queue.running())
    }

    /// The next job that may run. None once Faber stops.
    pub async fn next(self: &Arc<Self>) -> Option<Turn> {
        let most = Most { of_one: self.bounds.running, of_all: self.bounds.running * 8 };
        let mut phase = self.phase.subscribe();
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if *phase.borrow() > Phase::Serving {
                return None;
            }
            if let Some((owner, id)) = self.live().queue.take(most) {
                return Some(Turn { jobs: self.clone(), owner, id });
            }
            tokio::select! {
                () = changed => {}
                _ = phase.changed() => {}
            }
        }
    }

    /// The job whose turn it is, unless it was cancelled meanwhile.
    ///
    /// # Errors
    /// The store's.
    pub fn look_at(&self, turn: &Turn) -> Result<Option<Job>, StoreError> {
        Ok(self.store.job(turn.id)?.filter(|job| job.state == State::Queued))
    }

    /// Begins a run. What comes of the receiver: the run is to end. None when the job was cancelled meanwhile.
    ///
    /// # Errors
    /// The store's: then it was not begun.
    pub fn begin(&self, turn: &Turn) -> Result<Option<oneshot::Receiver<()>>, StoreError> {
        let (end, is_to_end) = oneshot::channel();
        // Before it is on the disk: who cancels it from then on finds this.
        self.live().running.insert(turn.id, end);
        let now = now();
        let changed = self.change(turn.id, &mut |job| match job.state {
            State::Queued => {
                Change::Set(Job { state: State::Running, started: Some(now), runs: job.runs + 1, ..job.clone() })
            }
            _ => Change::Keep,
        });
        let is_begun = matches!(&changed, Ok(Some((Job { state: State::Queued, .. }, _))));
        if !is_begun {
            self.live().running.remove(&turn.id);
        }
        changed.map(|_| is_begun.then_some(is_to_end))
    }

    /// Puts a job back that was not begun. Does not block.
    pub fn put_back(&self, turn: Turn) {
        self.live().queue.put(&turn.owner, turn.id);
    }

    /// Queues a job again of which nothing ran.
    ///
    /// # Errors
    /// The store's.
    pub fn unbegin(&self, turn: &Turn) -> Result<(), StoreError> {
        self.end_run(turn, &mut |job| Change::Set(Job { runs: job.runs - 1, ..job.clone().queued() }))
    }

    /// Ends a run with its response.
    ///
    /// # Errors
    /// The store's.
    pub fn finish(&self, turn: &Turn, response: &[u8]) -> Result<(), StoreError> {
        let now = now();
        let response_size = response.len() as u64;
        self.end_run(turn, &mut |job| {
            Change::Answer(Job { response_size, ..job.clone().over(State::Done, now) }, response)
        })
    }

    /// A run came to nothing by Faber's own fault.
    ///
    /// # Errors
    /// The store's.
    pub fn lose(&self, turn: &Turn) -> Result<(), StoreError> {
        let now = now();
        self.end_run(turn, &mut |job| Change::Set(job.clone().lost(now)))
    }

    fn end_run<'a>(&self, turn: &Turn, change: &mut dyn FnMut(&Job) -> Change<'a>) -> Result<(), StoreError> {
        // One that was cancelled meanwhile stays so.
        self.change(turn.id, &mut |job| if job.state == State::Running { change(job) } else { Change::Keep })?;
        Ok(())
    }

    /// The next callback that is due. None once Faber stops.
    pub async fn next_call(self: &Arc<Self>) -> Option<Call> {
        /// The clock may be set meanwhile.
        const LONGEST: u64 = 60_000;
        let mut phase = self.phase.subscribe();
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if *phase.borrow() > Phase::Serving {
                return None;
            }
            let now = now();
            let taken = self.live().calls.take(now);
            let sleep = match taken {
                Ok((owner, id)) => return Some(Call { jobs: self.clone(), owner, id }),
                Err(next) => next.map_or(LONGEST, |at| at.saturating_sub(now)).min(LONGEST),
            };
            tokio::select! {
                () = changed => {}
                _ = phase.changed() => {}
                () = tokio::time::sleep(Duration::from_millis(sleep)) => {}
            }
        }
    }

    /// The job whose callback is due, unless it was forgotten meanwhile.
    ///
    /// # Errors
    /// The store's.
    pub fn call(&self, call: &Call) -> Result<Option<Job>, StoreError> {
        Ok(self.store.job(call.id)?.filter(|job| job.due().is_some()))
    }

    /// Puts on the disk what came of an attempt; there are at most so many.
    ///
    /// # Errors
    /// The store's: then it is as if it had not been tried.
    pub fn called(&self, call: &Call, result: &Result<(), Refusal>, most: u32) -> Result<(), StoreError> {
        let now = now();
        self.change(call.id, &mut |job| {
            let callback = job.callback.clone().filter(|callback| callback.due.is_some());
            let Some(callback) = callback else { return Change::Keep };
            let callback = callback.tried(result.clone(), now, most, job.id.0 as u64);
            Change::Set(Job { callback: Some(callback), ..job.clone() })
        })
        .map(drop)
    }

    /// Puts a callback back that could not be tried, for some seconds. Does not block.
    pub fn put_off(&self, call: &Call) {
        const SOME: u64 = 3000;
        self.live().calls.put(&call.owner, now() + SOME, call.id);
        self.changed.notify_waiters();
    }

    /// Changes a job on the disk, then what is in memory of it.
    fn change<'a>(&self, id: JobId, decide: &mut dyn FnMut(&Job) -> Change<'a>) -> Result<store::Changed, StoreError> {
        let changed = self.store.change(&[id], decide)?.pop().flatten();
        if let Some((before, after)) = &changed {
            self.live().changed(before, after.as_ref());
            self.changed.notify_waiters();
        }
        Ok(changed)
    }

    /// Forgets what ended before its lifetime; how many.
    ///
    /// # Errors
    /// The store's; what was forgotten until then stays so.
    pub fn sweep(&self) -> Result<usize, StoreError> {
        const AT_ONCE: usize = 500;
        let then = now().saturating_sub(self.bounds.lifetime.as_millis() as u64);
        let mut count = 0;
        loop {
            let old = self.store.ended_before(then, AT_ONCE)?;
            let changed = match old.is_empty() {
                true => return Ok(count),
                false => self.store.change(&old, &mut |_| Change::Remove)?,
            };
            let mut live = self.live();
            changed.iter().flatten().for_each(|(before, after)| live.changed(before, after.as_ref()));
            count += old.len();
        }
    }

    /// Begins no more jobs, and answers those who wait. Does not block.
    pub fn stop(&self) {
        self.phase.send_replace(Phase::Stopping);
    }

    /// Gives up what runs: it is as if Faber had ended now. Does not block.
    pub fn abandon(&self) {
        self.phase.send_replace(Phase::Abandoned);
    }

    /// Done when what runs is given up.
    pub async fn abandoned(&self) {
        let _ = self.phase.subscribe().wait_for(|phase| *phase == Phase::Abandoned).await;
    }

    /// Waits until no job runs.
    pub async fn idle(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.live().queue.running() == 0 {
                return;
            }
            changed.await;
        }
    }

    /// How long what has ended is kept.
    pub fn lifetime(&self) -> Duration {
        self.bounds.lifetime
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Live {
    /// A job is on the disk as `after` now.
    fn changed(&mut self, before: &Job, after: Option<&Job>) {
        self.ledger.remove(before);
        if let Some(after) = after {
            self.ledger.add(after);
        }
        let (was_due, is_due) = (before.due(), after.and_then(Job::due));
        if was_due != is_due {
            was_due.inspect(|at| self.calls.remove(&before.owner, *at, before.id));
            is_due.inspect(|at| self.calls.put(&before.owner, *at, before.id));
        }
        match after.map(|after| after.state) {
            Some(State::Queued) if before.state == State::Running => {
                self.running.remove(&before.id);
                self.queue.put(&before.owner, before.id);
            }
            Some(State::Queued | State::Running) => {}
            _ => {
                self.queue.remove(&before.owner, before.id);
                self.running.remove(&before.id);
                self.waiting.remove(&before.id);
            }
        }
    }
}

fn same_body(known: Job, sent: &Job) -> Result<Job, SubmitError> {
    let body = |job: &Job| job.idempotency.as_ref().map(|idempotency| idempotency.body);
    if body(&known) == body(sent) { Ok(known) } else { Err(SubmitError::OtherBody(known.id)) }
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Milliseconds since 1970.
fn now() -> u64 {
    since_1970().as_millis() as u64
}

fn micros() -> u64 {
    since_1970().as_micros() as u64
}
