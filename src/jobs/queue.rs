//! Which job is next: the oldest of each owner's, owners in turns. Ids only: bodies stay in the store.

use std::collections::{HashMap, VecDeque};

use super::job::JobId;

#[derive(Default)]
pub(super) struct Queue {
    owners: HashMap<String, Line>,
    /// Those who have something waiting, each once.
    turns: VecDeque<String>,
    /// Jobs that were handed out and have not ended.
    running: usize,
}

/// One owner's jobs.
#[derive(Default)]
struct Line {
    /// Oldest first.
    waiting: VecDeque<JobId>,
    running: usize,
}

/// How many jobs are handed out at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Most {
    pub of_one: usize,
    pub of_all: usize,
}

impl Queue {
    /// Puts a job at its place, which is by its age.
    pub fn put(&mut self, owner: &str, id: JobId) {
        let line = self.owners.entry(owner.to_owned()).or_default();
        if line.waiting.is_empty() {
            self.turns.push_back(owner.to_owned());
        }
        if let Err(at) = line.waiting.binary_search(&id) {
            line.waiting.insert(at, id);
        }
    }

    /// Takes a job out; whether it was there.
    pub fn remove(&mut self, owner: &str, id: JobId) -> bool {
        let Some(line) = self.owners.get_mut(owner) else { return false };
        let found = line.waiting.binary_search(&id).ok();
        found.map(|at| line.waiting.remove(at));
        self.tidy(owner);
        found.is_some()
    }

    /// How many jobs of the same owner are before it; None when it does not wait.
    pub fn position(&self, owner: &str, id: JobId) -> Option<usize> {
        self.owners.get(owner)?.waiting.binary_search(&id).ok()
    }

    /// Hands out the next job, if another may run.
    pub fn take(&mut self, most: Most) -> Option<(String, JobId)> {
        if self.running >= most.of_all {
            return None;
        }
        let is_free = |owner: &String| self.owners.get(owner).is_some_and(|line| line.running < most.of_one);
        let at = self.turns.iter().position(is_free)?;
        let owner = self.turns.remove(at)?;
        let line = self.owners.get_mut(&owner)?;
        let id = line.waiting.pop_front()?;
        line.running += 1;
        self.running += 1;
        if !line.waiting.is_empty() {
            self.turns.push_back(owner.clone());
        }
        Some((owner, id))
    }

    /// A job that was handed out is not running any more.
    pub fn give_back(&mut self, owner: &str) {
        self.running -= 1;
        if let Some(line) = self.owners.get_mut(owner) {
            line.running -= 1;
        }
        self.tidy(owner);
    }

    pub fn waiting(&self) -> usize {
        self.owners.values().map(|line| line.waiting.len()).sum()
    }

    pub fn running(&self) -> usize {
        self.running
    }

    /// Forgets who has nothing here.
    fn tidy(&mut self, owner: &str) {
        let Some(line) = self.owners.get(owner) else { return };
        if line.waiting.is_empty() {
            self.turns.retain(|turn| turn != owner);
            if line.running == 0 {
                self.owners.remove(owner);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Most = Most { of_one: 2, of_all: 3 };

    #[test]
    fn owners_take_turns_and_nobody_has_all() {
        let mut queue = Queue::default();
        (0..5).for_each(|id| queue.put("a", JobId(id)));
        queue.put("b", JobId(9));
        assert_eq!((queue.position("a", JobId(4)), queue.position("b", JobId(4))), (Some(4), None));
        let taken: Vec<_> = std::iter::from_fn(|| queue.take(MOST)).collect();
        let expected = [("a", 0), ("b", 9), ("a", 1)].map(|(owner, id)| (owner.to_owned(), JobId(id)));
        assert_eq!(taken, expected);
        queue.give_back("b");
        // Two of a's run.
        assert_eq!(queue.take(MOST), None);
        queue.give_back("a");
        queue.put("a", JobId(1));
        assert_eq!(queue.take(MOST), Some(("a".into(), JobId(1))));
        assert!(queue.remove("a", JobId(3)) && !queue.remove("a", JobId(3)));
        for id in [2, 4] {
            queue.give_back("a");
            assert_eq!(queue.take(MOST), Some(("a".into(), JobId(id))));
        }
        queue.give_back("a");
        queue.give_back("a");
        assert!(queue.owners.is_empty() && queue.turns.is_empty() && queue.running() == 0);
    }
}
