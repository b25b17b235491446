//! What requests hold in the front's memory: bodies as they come, what is parsed of them, and the output that their tasks may
//! write. Bounded together, and for each client: it may hold as much as it leaves free to others. So one alone has half at most,
//! two have a third each, and a newcomer finds room however greedy the others are (the buffers of switches are shared out so:
//! Choudhury and Hahne, Dynamic Queue Length Thresholds). Given back when the answer is written.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::ApiError;
use crate::scheduler::{Client, RETRY_AFTER};
use crate::task::Bytes;

pub struct Buffers {
    /// Bytes of all clients together.
    most: u64,
    shares: Mutex<Shares>,
}

#[derive(Default)]
struct Shares {
    held: u64,
    of: HashMap<Client, u64>,
}

/// Why there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoRoom {
    /// For one client there never is more than so much.
    Ever {
        most: u64,
    },
    Now,
}

/// A request's part of its client's share; given back when dropped.
pub struct Held {
    buffers: Arc<Buffers>,
    client: Client,
    bytes: u64,
}

impl Buffers {
    pub fn new(bytes: u64) -> Arc<Self> {
        Arc::new(Self { most: bytes, shares: Mutex::default() })
    }

    /// Nothing yet.
    pub fn hold(self: &Arc<Self>, client: Client) -> Held {
        Held { buffers: self.clone(), client, bytes: 0 }
    }

    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Takes room for `bytes` more.
    ///
    /// # Errors
    /// When others, or the client's other requests, hold it now; or when it is more than there ever is.
    pub fn more(&mut self, bytes: u64) -> Result<(), NoRoom> {
        self.could_have(bytes)?;
        let mut shares = self.buffers.shares();
        let own = shares.of.get(&self.client).copied().unwrap_or(0) + bytes;
        let all = shares.held + bytes;
        if own > self.buffers.most.saturating_sub(all) {
            return Err(NoRoom::Now);
        }
        shares.held = all;
        shares.of.insert(self.client, own);
        drop(shares);
        self.bytes += bytes;
        Ok(())
    }

    /// # Errors
    /// When so much more is more than there ever is.
    pub fn could_have(&self, bytes: u64) -> Result<(), NoRoom> {
        let most = self.buffers.most / 2;
        if self.bytes.saturating_add(bytes) > most { Err(NoRoom::Ever { most }) } else { Ok(()) }
    }

    /// Gives back so much of it.
    pub fn less(&mut self, bytes: u64) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        let mut shares = self.buffers.shares();
        shares.held -= bytes;
        if let Entry::Occupied(mut own) = shares.of.entry(self.client) {
            *own.get_mut() -= bytes;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.less(self.bytes);
    }
}

impl From<NoRoom> for ApiError {
    fn from(lack: NoRoom) -> Self {
        match lack {
            NoRoom::Ever { most } => Self::TooLargeFor(format!(
                "Reading the request takes more memory than the {} that this server has for one client",
                Bytes(most)
            )),
            NoRoom::Now => Self::Saturated { retry_after: RETRY_AFTER },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_bounded_and_given_back() {
        let buffers = Buffers::new(20);
        let mut held = buffers.hold(Client::Key(1));
        held.more(4).unwrap();
        held.more(6).unwrap();
        assert_eq!(held.more(1), Err(NoRoom::Ever { most: 10 }));
        let mut second = buffers.hold(Client::Key(1));
        assert_eq!(second.more(1), Err(NoRoom::Now));
        held.less(2);
        assert_eq!((second.more(1), second.more(2)), (Ok(()), Err(NoRoom::Now)));
        drop((held, second));
        assert!(buffers.shares().of.is_empty() && buffers.shares().held == 0);
    }

    #[test]
    fn a_newcomer_finds_room_however_greedy_others_are() {
        let buffers = Buffers::new(1000);
        let take_all = |client| {
            let mut held = buffers.hold(Client::Key(client));
            while held.more(1).is_ok() {}
            held
        };
        let held: Vec<Held> = (0..5).map(take_all).collect();
        assert_eq!(held.iter().map(|held| held.bytes).collect::<Vec<_>>(), [500, 250, 125, 62, 31]);
        assert!(take_all(6).bytes > 0);
    }
}
