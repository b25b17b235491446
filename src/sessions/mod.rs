//! Sessions: containers that stay, whose they are, how long they live, and why they ended.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::scheduler::{Client, Hosted, Scheduler};
use crate::task::{ImageId, Limits, ResourceLimits};

/// How long it is told why a session ended.
const REMEMBERED: Duration = Duration::from_secs(60 * 60);

/// A session's name, which nobody can guess.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId(u128);

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for SessionId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        u128::from_str_radix(text, 16).ok().filter(|_| is_hex).map(Self).ok_or(())
    }
}

/// How many there may be, and how much memory they may take of the server's.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub count: usize,
    pub per_owner: usize,
    /// Bytes.
    pub memory: u64,
}

/// What a session is to be.
pub struct Opening {
    pub owner: String,
    pub client: Client,
    pub image: ImageId,
    /// Of the whole.
    pub limits: Limits,
    /// Of each run, where that says nothing itself.
    pub defaults: ResourceLimits,
    pub env: BTreeMap<String, String>,
    pub idle_timeout: Duration,
    pub lifetime: Duration,
}

/// One that is there.
pub struct Session {
    pub id: SessionId,
    pub opening: Opening,
    pub created_at: SystemTime,
    pub hosted: Arc<Hosted>,
    expires: Instant,
    use_: Mutex<Use>,
    changed: Notify,
}

/// Who is at work in it.
struct Use {
    busy: usize,
    since: Instant,
}

/// Somebody at work in a session; it is not idle as long as this lives.
pub struct Busy(Arc<Session>);

impl std::ops::Deref for Busy {
    type Target = Session;
    fn deref(&self) -> &Session {
        &self.0
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut used = self.0.used();
        used.busy -= 1;
        used.since = Instant::now();
        drop(used);
        self.0.changed.notify_waiters();
    }
}

impl Session {
    fn used(&self) -> MutexGuard<'_, Use> {
        self.use_.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it ends if nothing is done in it, and why.
    fn deadline(&self) -> (Instant, Reason) {
        let used = self.used();
        let idle = used.since + self.opening.idle_timeout;
        match used.busy == 0 && idle < self.expires {
            true => (idle, Reason::Idle(self.opening.idle_timeout)),
            false => (self.expires, Reason::Old(self.opening.lifetime)),
        }
    }

    /// When it ends whatever is done.
    pub fn expires_at(&self) -> SystemTime {
        self.created_at + self.opening.lifetime
    }
}

/// Why a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    Deleted,
    Idle(Duration),
    Old(Duration),
    Lost,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |span: &Duration| humantime::format_duration(*span).to_string();
        match self {
            Self::Deleted => f.write_str("it was deleted"),
            Self::Idle(span) => write!(f, "nothing was done in it for {}", time(span)),
            Self::Old(span) => write!(f, "its lifetime of {} is over", time(span)),
            Self::Lost => f.write_str("Faber lost it"),
        }
    }
}

/// What is known of an id.
pub enum Found {
    Here(Busy),
    Ended(Reason),
}

/// Why there is no room for another session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    #[error("you have {0} sessions, as many as you may (sessions.per_key); end one, or let it end")]
    Owner(usize),
    #[error("there are {0} sessions, as many as there may be (sessions.count)")]
    All(usize),
    #[error(
        "the sessions' memory limits add up to the half of execution.memory_budget that they may have: ask for less memory_limit, or later"
    )]
    Memory,
}

enum Entry {
    /// Its container is being made.
    Opening {
        owner: String,
        memory: u64,
    },
    Open(Arc<Session>),
    Ended {
        owner: String,
        reason: Reason,
        at: Instant,
    },
}

impl Entry {
    fn owner(&self) -> &str {
        match self {
            Self::Opening { owner, .. } | Self::Ended { owner, .. } => owner,
            Self::Open(session) => &session.opening.owner,
        }
    }

    /// What it takes; None for one that has ended.
    fn memory(&self) -> Option<u64> {
        match self {
            Self::Opening { memory, .. } => Some(*memory),
            Self::Open(session) => Some(session.opening.limits.memory),
            Self::Ended { .. } => None,
        }
    }
}

/// Has so many more runners, or fewer.
pub type Pool = dyn Fn(Change) + Send + Sync;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    More,
    Fewer,
}

pub struct Sessions {
    bounds: Bounds,
    scheduler: Arc<Scheduler>,
    pool: Box<Pool>,
    entries: Mutex<HashMap<SessionId, Entry>>,
}

/// A place for a session that is being made; given back when dropped.
pub struct Reserved {
    sessions: Arc<Sessions>,
    id: SessionId,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        let mut entries = self.sessions.entries();
        if matches!(entries.get(&self.id), Some(Entry::Opening { .. })) {
            entries.remove(&self.id);
        }
    }
}

impl Sessions {
    pub fn new(bounds: Bounds, scheduler: Arc<Scheduler>, pool: Box<Pool>) -> Arc<Self> {
        Arc::new(Self { bounds, scheduler, pool, entries: Mutex::default() })
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<SessionId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for another session of the owner's, with so much memory.
    ///
    /// # Errors
    /// When there is none, or no chance to be had for its name.
    pub fn reserve(self: &Arc<Self>, owner: &str, memory: u64) -> Result<Reserved, Full> {
        let mut chance = [0; 16];
        getrandom::fill(&mut chance).map_err(|_| Full::Memory)?;
        let id = SessionId(u128::from_le_bytes(chance));
        let mut entries = self.entries();
        entries.retain(|_, entry| !matches!(entry, Entry::Ended { at, .. } if at.elapsed() > REMEMBERED));
        let open = entries.values().filter_map(|entry| Some((entry.owner(), entry.memory()?)));
        let (count, own, held) = open.fold((0, 0, 0_u64), |(count, own, held), (of, memory)| {
            (count + 1, own + usize::from(of == owner), held.saturating_add(memory))
        });
        match () {
            () if own >= self.bounds.per_owner => return Err(Full::Owner(own)),
            () if count >= self.bounds.count => return Err(Full::All(count)),
            () if held.saturating_add(memory) > self.bounds.memory => return Err(Full::Memory),
            () => {}
        }
        entries.insert(id, Entry::Opening { owner: owner.to_owned(), memory });
        drop(entries);
        Ok(Reserved { sessions: self.clone(), id })
    }

    /// Begins a session in the place that was taken for it.
    pub fn begin(self: &Arc<Self>, reserved: &Reserved, opening: Opening, hosted: Hosted) -> Busy {
        (self.pool)(Change::More);
        let now = Instant::now();
        let session = Arc::new(Session {
            id: reserved.id,
            expires: now + opening.lifetime,
            opening,
            created_at: SystemTime::now(),
            hosted: Arc::new(hosted),
            use_: Mutex::new(Use { busy: 1, since: now }),
            changed: Notify::new(),
        });
        self.entries().insert(reserved.id, Entry::Open(session.clone()));
        tokio::spawn(self.clone().tend(session.clone()));
        Busy(session)
    }

    /// Ends a session when its time has come, or when it is lost.
    async fn tend(self: Arc<Self>, session: Arc<Session>) {
        loop {
            let changed = session.changed.notified();
            let (deadline, reason) = session.deadline();
            let reason = tokio::select! {
                () = session.hosted.lost() => Reason::Lost,
                () = tokio::time::sleep_until(deadline) => reason,
                () = changed => continue,
            };
            if reason == Reason::Lost || session.deadline().0 <= Instant::now() {
                self.end(&session, reason);
                return;
            }
        }
    }

    /// Ends it, and everything in it. False when it had ended before.
    fn end(&self, session: &Session, reason: Reason) -> bool {
        let mut entries = self.entries();
        if !matches!(entries.get(&session.id), Some(Entry::Open(_))) {
            return false;
        }
        let owner = session.opening.owner.clone();
        entries.insert(session.id, Entry::Ended { owner, reason, at: Instant::now() });
        drop(entries);
        tracing::info!(session = %session.id, %reason, "a session ended");
        (self.pool)(Change::Fewer);
        if reason == Reason::Lost {
            // Its runner was replaced by one that is not needed any more.
            self.scheduler.retire_one();
        }
        session.hosted.end();
        session.changed.notify_waiters();
        true
    }

    /// One of the owner's as it is, which is no work in it.
    pub fn look(&self, owner: &str, id: SessionId) -> Option<Result<Arc<Session>, Reason>> {
        match self.entries().get(&id).filter(|entry| entry.owner() == owner)? {
            Entry::Opening { .. } => None,
            Entry::Ended { reason, .. } => Some(Err(*reason)),
            Entry::Open(session) => Some(Ok(session.clone())),
        }
    }

    /// One of the owner's, to be at work in; None when there never was one, or it is another's.
    pub fn find(&self, owner: &str, id: SessionId) -> Option<Found> {
        let entries = self.entries();
        match entries.get(&id).filter(|entry| entry.owner() == owner)? {
            Entry::Opening { .. } => None,
            Entry::Ended { reason, .. } => Some(Found::Ended(*reason)),
            Entry::Open(session) => {
                session.used().busy += 1;
                Some(Found::Here(Busy(session.clone())))
            }
        }
    }

    /// Ends one of the owner's. False when there is none.
    pub fn delete(&self, owner: &str, id: SessionId) -> bool {
        match self.find(owner, id) {
            Some(Found::Here(session)) => self.end(&session, Reason::Deleted),
            _ => false,
        }
    }

    /// The owner's, the newest first.
    pub fn list(&self, owner: &str) -> Vec<Arc<Session>> {
        let entries = self.entries();
        let open = entries.values().filter_map(|entry| match entry {
            Entry::Open(session) if session.opening.owner == owner => Some(session.clone()),
            _ => None,
        });
        let mut open: Vec<Arc<Session>> = open.collect();
        open.sort_by_key(|session| std::cmp::Reverse(session.created_at));
        open
    }
}
