//! Which runners serve a request of which many tasks wait. Each of them makes one container for it, in which further tasks have a
//! cell each, and that costs as much as a container for one task does: so there are no more of them than tasks may run at
//! once, and the request's tasks go to them.

use std::collections::{HashMap, HashSet};

/// A request's number: no two have the same.
pub type RequestId = u64;
/// A runner's.
pub type RunnerId = u64;

#[derive(Debug, Default)]
pub struct Sharing {
    /// The runners of a request. Never empty sets.
    runners: HashMap<RequestId, HashSet<RunnerId>>,
    /// Whose task each runner had last.
    last: HashMap<RunnerId, RequestId>,
}

impl Sharing {
    /// Whether the runner may take a task of the request. One that is none of the request's leaves it to those, if there are as many as
    /// there may be and one of them is at it, or has nothing to do.
    pub fn may_take(&self, runner: RunnerId, request: RequestId, most: usize, idle: &HashSet<RunnerId>) -> bool {
        let Some(runners) = self.runners.get(&request) else { return true };
        let is_at_it = |one: &RunnerId| self.last.get(one) == Some(&request) || idle.contains(one);
        runners.contains(&runner) || runners.len() < most || !runners.iter().any(is_at_it)
    }

    /// Hears that the runner takes a task of the request, while so many more of its kind wait and so many other runners are idle.
    /// Whether it is to share a container with others; None when each is to have its own.
    pub fn take(
        &mut self,
        runner: RunnerId,
        request: RequestId,
        (waiting, idle): (usize, usize),
        most: usize,
    ) -> Option<Share> {
        self.last.insert(runner, request);
        let known = self.runners.get(&request).map_or(0, HashSet::len);
        let is_its = known > 0 && self.runners[&request].contains(&runner);
        if !is_its && (waiting <= idle || known >= most) {
            return None;
        }
        let more = waiting > 0;
        if more {
            self.runners.entry(request).or_default().insert(runner);
        } else {
            self.leave(runner, request);
        }
        Some(Share { more })
    }

    fn leave(&mut self, runner: RunnerId, request: RequestId) {
        if let Some(runners) = self.runners.get_mut(&request) {
            runners.remove(&runner);
            if runners.is_empty() {
                self.runners.remove(&request);
            }
        }
    }

    /// The request is over.
    pub fn end(&mut self, request: RequestId) {
        self.runners.remove(&request);
    }

    /// The runner is gone.
    pub fn lose(&mut self, runner: RunnerId) {
        self.last.remove(&runner);
        self.runners.retain(|_, runners| {
            runners.remove(&runner);
            !runners.is_empty()
        });
    }
}

/// A task that shares a container with others of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Whether another one waits that may follow it.
    pub more: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_tasks_have_a_container_each() {
        let mut sharing = Sharing::default();
        assert_eq!(sharing.take(1, 7, (2, 3), 2), None);
        assert_eq!(sharing.take(2, 7, (1, 2), 2), None);
        assert!(sharing.may_take(3, 7, 2, &HashSet::new()));
    }

    #[test]
    fn many_are_left_to_as_many_runners_as_there_are_places() {
        let mut sharing = Sharing::default();
        let all: HashSet<RunnerId> = [1, 2, 3, 4].into();
        let none = HashSet::new();
        assert_eq!(sharing.take(1, 7, (7, 3), 2), Some(Share { more: true }));
        assert!(sharing.may_take(2, 7, 2, &all));
        assert_eq!(sharing.take(2, 7, (7, 2), 2), Some(Share { more: true }));
        assert!(!sharing.may_take(3, 7, 2, &none), "the two are at it");
        assert!(sharing.may_take(3, 8, 2, &none), "another request's is free");
        assert_eq!(sharing.take(1, 8, (0, 2), 2), None);
        assert_eq!(sharing.take(2, 8, (0, 2), 2), None);
        assert!(sharing.may_take(3, 7, 2, &none), "both are at something else");
        assert_eq!(sharing.take(3, 7, (5, 1), 2), None, "no third container is made for it");
        assert!(!sharing.may_take(3, 7, 2, &[2].into()), "one of them has nothing to do");
        assert_eq!(sharing.take(1, 7, (0, 1), 2), Some(Share { more: false }));
        assert!(sharing.may_take(3, 7, 2, &all), "there may be another one");
        sharing.lose(2);
        assert!(sharing.runners.is_empty());
        assert_eq!(sharing.take(1, 7, (9, 1), 2), Some(Share { more: true }));
        sharing.end(7);
        assert!(sharing.runners.is_empty());
    }
}
