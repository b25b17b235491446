//! The tasks that wait: each client's in order, the clients in turns.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;

/// Who waits: clients take turns, however many tasks each has waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Client {
    /// The index of an API key.
    Key(u32),
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

    /// What is next.
    pub fn first(&self) -> Option<&T> {
        self.waiting.get(self.turns.front()?)?.front()
    }

    /// Takes what is next; its client is the last then.
    pub fn pop(&mut self) -> Option<T> {
        let client = self.turns.pop_front()?;
        let waiting = self.waiting.get_mut(&client)?;
        let item = waiting.pop_front();
        if waiting.is_empty() {
            self.waiting.remove(&client);
        } else {
            self.turns.push_back(client);
        }
        item
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

    fn queue(items: &[(u32, u32)]) -> Queue<(u32, u32)> {
        let mut queue = Queue::default();
        for &item in items {
            queue.push(Client::Key(item.0), item);
        }
        queue
    }

    fn drained(mut queue: Queue<(u32, u32)>) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| {
            let first = queue.first().copied();
            assert_eq!(first.is_none(), queue.is_empty());
            let popped = queue.pop();
            assert_eq!(first, popped);
            popped
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
        queue.pop();
        queue.push(Client::Key(3), (3, 1));
        assert_eq!(queue.first(), Some(&(2, 1)));
        assert_eq!(drained(queue), [(2, 1), (1, 2), (3, 1)]);
    }

    #[test]
    fn what_is_given_up_takes_no_turn() {
        let mut queue = queue(&[(1, 1), (2, 1), (2, 2), (1, 2)]);
        queue.retain(|&(client, item)| client != 1 && item != 1);
        assert_eq!((queue.of(Client::Key(1)).count(), queue.of(Client::Key(2)).count()), (0, 1));
        assert_eq!(drained(queue), [(2, 2)]);
    }
}
