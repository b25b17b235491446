//! What one client may hold of the machine at once, and what each holds.

use std::collections::{BTreeMap, HashMap};

use super::queue::Client;
use crate::task::{ClientShare as Share, Cpus, Limits};

/// Each client's share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shares {
    /// Of the keys, by id.
    pub keys: BTreeMap<u64, Share>,
    /// Of whoever has no key.
    pub others: Share,
}

impl Default for Shares {
    fn default() -> Self {
        Self::ALL
    }
}

impl Shares {
    /// Everything for everybody.
    pub const ALL: Self = Self { keys: BTreeMap::new(), others: Share::ALL };

    pub fn of(&self, client: Client) -> Share {
        match client {
            Client::Key(key) => self.keys.get(&key).copied().unwrap_or(self.others),
            Client::Address(_) => self.others,
        }
    }
}

/// What tasks take of a share.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    pub places: usize,
    pub memory: u64,
    /// Thousandths; of those tasks that have a limit on it.
    pub cpus: u64,
}

impl Held {
    pub fn by(limits: &Limits) -> Self {
        Self { places: 1, memory: limits.memory, cpus: limits.cpus.map_or(0, |Cpus(cpus)| cpus.get().into()) }
    }

    pub fn and(self, more: Self) -> Self {
        Self {
            places: self.places + more.places,
            memory: self.memory.saturating_add(more.memory),
            cpus: self.cpus + more.cpus,
        }
    }

    fn without(self, less: Self) -> Self {
        Self { places: self.places - less.places, memory: self.memory - less.memory, cpus: self.cpus - less.cpus }
    }

    fn within(self, share: &Share) -> bool {
        let cpus = share.cpus.is_none_or(|Cpus(cpus)| self.cpus <= cpus.get().into());
        self.places <= share.places && self.memory <= share.memory && cpus
    }
}

/// What each client's running tasks hold, and all of them.
#[derive(Debug, Default)]
pub struct Ledger {
    all: Held,
    /// Of those that run something.
    clients: HashMap<Client, Held>,
}

impl Ledger {
    pub fn all(&self) -> Held {
        self.all
    }

    pub fn of(&self, client: Client) -> Held {
        self.clients.get(&client).copied().unwrap_or_default()
    }

    /// Whether somebody runs more than one task.
    pub fn somebody_has_several(&self) -> bool {
        self.clients.values().any(|held| held.places > 1)
    }

    /// Whether the client may have so much more: a client that has nothing may have its first whatever its share is.
    pub fn allows(&self, client: Client, share: &Share, more: Held) -> bool {
        let own = self.of(client);
        own.places == 0 || own.and(more).within(share)
    }

    pub fn add(&mut self, client: Client, more: Held) {
        self.all = self.all.and(more);
        let own = self.clients.entry(client).or_default();
        *own = own.and(more);
    }

    pub fn give_back(&mut self, client: Client, less: Held) {
        self.all = self.all.without(less);
        let Some(own) = self.clients.get_mut(&client) else { return };
        *own = own.without(less);
        // Sessions hold memory, and no place.
        if *own == Held::default() {
            self.clients.remove(&client);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Client = Client::Key(0);
    const OTHER: Client = Client::Key(1);

    fn held(places: usize, memory: u64, cpus: u64) -> Held {
        Held { places, memory, cpus }
    }

    #[test]
    fn a_share_is_held_to_but_for_the_first() {
        let cpus = std::num::NonZeroU32::new(1500).map(Cpus);
        let share = Share { places: 2, memory: 100, cpus };
        let mut ledger = Ledger::default();
        assert!(ledger.allows(ONE, &share, held(1, 200, 9000)), "its first");
        ledger.add(ONE, held(1, 60, 1000));
        assert!(ledger.allows(ONE, &share, held(1, 40, 500)));
        for more in [held(1, 41, 0), held(2, 0, 0), held(1, 0, 501)] {
            assert!(!ledger.allows(ONE, &share, more), "{more:?}");
            assert!(ledger.allows(OTHER, &share, more), "{more:?}");
            assert!(ledger.allows(ONE, &Share::ALL, more), "{more:?}");
        }
        assert!(!ledger.somebody_has_several());
        ledger.add(ONE, held(1, 10, 0));
        ledger.add(OTHER, held(1, 5, 0));
        assert!(ledger.somebody_has_several());
        assert_eq!(ledger.all(), held(3, 75, 1000));
        ledger.give_back(ONE, held(1, 60, 1000));
        ledger.give_back(ONE, held(1, 10, 0));
        ledger.give_back(OTHER, held(1, 5, 0));
        assert_eq!((ledger.all(), ledger.of(ONE)), (Held::default(), Held::default()));
        assert!(ledger.clients.is_empty());
    }

    #[test]
    fn who_has_no_key_has_the_others_share() {
        let some = Share { places: 1, ..Share::ALL };
        let shares = Shares { keys: BTreeMap::from([(0, some)]), others: Share::ALL };
        assert_eq!((shares.of(ONE), shares.of(OTHER)), (some, Share::ALL));
        assert_eq!(shares.of(Client::Address([127, 0, 0, 1].into())), Share::ALL);
    }
}
