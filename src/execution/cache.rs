//! What steps left that need not be run again: by the content of everything they were given. Two that come at once run once.

use std::collections::HashMap;
use std::future::Future;
use std::io::Read;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sha2::{Digest, Sha256};

use super::End;
use super::bind::LONG_WORK;
use crate::artifact::Artifact;
use crate::scheduler::Finished;
use crate::task::{Outcome, Task};

/// What an entry takes beside its files.
const ENTRY_BYTES: u64 = 1 << 10;

type Key = [u8; 32];

/// The least recently used go first.
pub struct Cache {
    entries: Mutex<Entries>,
    /// Bytes of all entries.
    most: u64,
}

#[derive(Default)]
struct Entries {
    slots: HashMap<Key, Known>,
    /// Of those that are kept: bytes, and when they were used last, by a count.
    kept: HashMap<Key, (u64, u64)>,
    bytes: u64,
    uses: u64,
}

/// A step that is kept, or that somebody waits for.
#[derive(Default)]
struct Known {
    slot: Arc<Slot>,
    users: usize,
}

/// One step, which is run by whoever holds the lock.
#[derive(Default)]
struct Slot(tokio::sync::Mutex<Option<Box<Finished>>>);

impl Cache {
    /// `most`: bytes in all; 0 keeps nothing, but what comes at once is still run once.
    pub fn new(most: u64) -> Self {
        Self { entries: Mutex::default(), most }
    }

    /// What came of this task before, or else what comes of it now.
    pub async fn get_or<F>(&self, task: Task<Artifact>, run: impl FnOnce(Task<Artifact>) -> F) -> End
    where
        F: Future<Output = End>,
    {
        let Some((key, task)) = key(task).await else {
            return End::Refused("Faber failed to read the step's content".into());
        };
        let user = User::enter(self, key);
        // Whoever gives up in here leaves the lock, and the step, to the next.
        let mut value = user.slot.0.lock().await;
        if let Some(finished) = &*value {
            self.entries().touch(&key);
            return End::Ran { finished: finished.clone(), cached: true };
        }
        let end = run(task).await;
        if let Some(finished) = keepable(&end) {
            if size(&finished) <= self.most {
                self.entries().keep(key, size(&finished), self.most);
            }
            *value = Some(finished);
        }
        end
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whoever runs a step or waits for it: until then all use the same slot.
struct User<'a> {
    cache: &'a Cache,
    key: Key,
    slot: Arc<Slot>,
}

impl<'a> User<'a> {
    fn enter(cache: &'a Cache, key: Key) -> Self {
        let mut entries = cache.entries();
        let known = entries.slots.entry(key).or_default();
        known.users += 1;
        Self { cache, key, slot: known.slot.clone() }
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        let mut entries = self.cache.entries();
        if let Some(known) = entries.slots.get_mut(&self.key) {
            known.users -= 1;
        }
        entries.forget_unused(&self.key);
    }
}

impl Entries {
    fn touch(&mut self, key: &Key) {
        self.uses += 1;
        if let Some((_, used)) = self.kept.get_mut(key) {
            *used = self.uses;
        }
    }

    fn keep(&mut self, key: Key, size: u64, most: u64) {
        self.uses += 1;
        if let Some((before, _)) = self.kept.insert(key, (size, self.uses)) {
            self.bytes -= before;
        }
        self.bytes += size;
        while self.bytes > most {
            let oldest = self.kept.iter().min_by_key(|(_, (_, used))| *used).map(|(key, (size, _))| (*key, *size));
            let Some((oldest, size)) = oldest else { return };
            self.kept.remove(&oldest);
            self.bytes -= size;
            self.forget_unused(&oldest);
        }
    }

    fn forget_unused(&mut self, key: &Key) {
        if !self.kept.contains_key(key) && self.slots.get(key).is_some_and(|known| known.users == 0) {
            self.slots.remove(key);
        }
    }
}

/// Only a success whose files were all taken is as good as another run.
fn keepable(end: &End) -> Option<Box<Finished>> {
    match end {
        End::Ran { finished, .. }
            if finished.report.outcome == Outcome::Exited(0)
                && finished.taken.omitted.count == 0
                && !finished.report.hits.output =>
        {
            Some(finished.clone())
        }
        _ => None,
    }
}

fn size(finished: &Finished) -> u64 {
    let files = finished.taken.files.iter().map(|file| file.content.size());
    let streams = finished.taken.streams.iter().flatten().map(Artifact::size);
    let kept =
        [&finished.report.stdout, &finished.report.stderr, &finished.report.merged].map(|text| text.len() as u64);
    ENTRY_BYTES + files.chain(streams).chain(kept).sum::<u64>()
}

/// Over all that can matter: image, command, environment, files, input, limits, and what is taken.
async fn key(task: Task<Artifact>) -> Option<(Key, Task<Artifact>)> {
    if task.contents().map(Artifact::size).sum::<u64>() <= LONG_WORK {
        return digest(task);
    }
    tokio::task::spawn_blocking(move || digest(task)).await.ok().flatten()
}

fn digest(task: Task<Artifact>) -> Option<(Key, Task<Artifact>)> {
    let hashed = task.clone().try_map(|artifact| hash(&artifact)).ok()?;
    let bytes = postcard::to_stdvec(&hashed).ok()?;
    Some((Sha256::digest(bytes).into(), task))
}

fn hash(artifact: &Artifact) -> std::io::Result<Key> {
    let (mut hash, mut reader) = (Sha256::new(), artifact.reader());
    let mut chunk = vec![0; 64 << 10];
    loop {
        match reader.read(&mut chunk)? {
            0 => return Ok(hash.finalize().into()),
            length => hash.update(&chunk[..length]),
        }
    }
}
