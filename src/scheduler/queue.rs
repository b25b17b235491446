//! The tasks that wait: each client's in order, the clients in turns.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Who waits: clients take turns, however many tasks each has waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Client {
    /// The id of an API key.
    Key(u64),
    /// Without keys, where the request came from.
    Address(IpAddr),
}

/// First in, first out for each client; between clients round robin.
pub struct Queue<T> {
    /// Never empty lists.
    waiting: HashMap<Client, VecDeque<T>>,
    /// Every client that waits, once. The first is next, and stays it until it has had its turn.
    turns: VecDeque<Client>,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        Self { waiting: HashMap::new(), turns: VecDeque::new() }
    }
}

impl<T> Queue<T> {
    pub fn push(&mut self, client: Client, item: T) {
        let waiting = self.waiting.entry(client).or_insert_with(|| {
            self.turns.push_back(client);
            VecDeque::new()
        });
        waiting.push_back(item);
    }

    /// What of the client's waits.
    pub fn of(&self, client: Client) -> impl Iterator<Item = &T> {
        self.waiting.get(&client).into_iter().flatten()
    }

    pub fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }

    /// What waits, client by client as their turns come, each client's in order.
    pub fn turns(&self) -> impl Iterator<Item = (Client, &VecDeque<T>)> {
        self.turns.iter().filter_map(|client| Some((*client, self.waiting.get(client)?)))
    }

    /// One of those of a client that wait.
    pub fn get_mut(&mut self, client: Client, index: usize) -> Option<&mut T> {
        self.waiting.get_mut(&client)?.get_mut(index)
    }

    /// Takes one of those of a client, which is the last then.
    pub fn take_one(&mut self, client: Client, index: usize) -> Option<T> {
        let waiting = self.waiting.get_mut(&client)?;
        let item = waiting.remove(index)?;
        let is_done = waiting.is_empty();
        self.turns.retain(|other| *other != client);
        if is_done {
            self.waiting.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        Some(item)
    }

    pub fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.waiting.retain(|_, items| {
            items.retain(&keep);
            !items.is_empty()
        });
        self.turns.retain(|client| self.waiting.contains_key(client));
    }

    /// Everything, in no order that matters.
    pub fn take(&mut self) -> impl Iterator<Item = T> + use<T> {
        self.turns.clear();
        std::mem::take(&mut self.waiting).into_values().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(items: &[(u64, u64)]) -> Queue<(u64, u64)> {
        let mut queue = Queue::default();
        for &item in items {
            queue.push(Client::Key(item.0), item);
        }
        queue
    }

    fn next(queue: &mut Queue<(u64, u64)>) -> Option<(u64, u64)> {
        let (client, waiting) = queue.turns().next()?;
        let first = waiting[0];
        assert_eq!(queue.get_mut(client, 0).copied(), Some(first));
        assert_eq!(queue.take_one(client, 0), Some(first));
        Some(first)
    }

    fn drained(mut queue: Queue<(u64, u64)>) -> Vec<(u64, u64)> {
        std::iter::from_fn(|| {
            let next = next(&mut queue);
            assert!(next.is_some() || queue.is_empty());
            next
        })
        .collect()
    }

    #[test]
    fn clients_take_turns_and_each_keeps_its_order() {
        let flood = [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (3, 1), (2, 2)];
        assert_eq!(drained(queue(&flood)), [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2), (1, 3), (1, 4)]);
    }

    #[test]
    fn whoever_comes_does_not_change_what_is_next() {
        let mut queue = queue(&[(1, 1), (1, 2), (2, 1)]);
        next(&mut queue);
        queue.push(Client::Key(3), (3, 1));
        assert_eq!(drained(queue), [(2, 1), (1, 2), (3, 1)]);
    }

    #[test]
    fn one_behind_others_can_be_taken_and_costs_its_client_the_turn() {
        let mut queue = queue(&[(1, 1), (1, 2), (2, 1), (1, 3)]);
        assert_eq!(queue.take_one(Client::Key(1), 1), Some((1, 2)));
        assert_eq!(queue.take_one(Client::Key(1), 7), None);
        assert_eq!(queue.take_one(Client::Key(9), 0), None);
        assert_eq!(drained(queue), [(2, 1), (1, 1), (1, 3)]);
    }

    #[test]
    fn what_is_given_up_takes_no_turn() {
        let mut queue = queue(&[(1, 1), (2, 1), (2, 2), (1, 2)]);
        queue.retain(|&(client, item)| client != 1 && item != 1);
        assert_eq!((queue.of(Client::Key(1)).count(), queue.of(Client::Key(2)).count()), (0, 1));
        assert_eq!(drained(queue), [(2, 2)]);
    }
}
