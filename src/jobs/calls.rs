//! Which callback is next: whichever has been due for longest, of owners that have not too many under way. Ids only.

use std::collections::{BTreeSet, HashMap};

use super::job::JobId;

/// Callbacks of one owner that are under way at a time: a server that does not answer delays nobody else's.
const OF_ONE: usize = 4;

#[derive(Default)]
pub(super) struct Calls(HashMap<String, Account>);

#[derive(Default)]
struct Account {
    /// With the times, in milliseconds since 1970.
    due: BTreeSet<(u64, JobId)>,
    under_way: usize,
}

impl Calls {
    pub fn put(&mut self, owner: &str, at: u64, id: JobId) {
        self.0.entry(owner.to_owned()).or_default().due.insert((at, id));
    }

    pub fn remove(&mut self, owner: &str, at: u64, id: JobId) {
        if let Some(account) = self.0.get_mut(owner) {
            account.due.remove(&(at, id));
            self.forget_idle(owner);
        }
    }

    /// Takes one that is due, to be given back.
    ///
    /// # Errors
    /// When none is: when the next one will be, if there is any.
    pub fn take(&mut self, now: u64) -> Result<(String, JobId), Option<u64>> {
        let ready = self.0.iter_mut().filter(|(_, account)| account.under_way < OF_ONE);
        let next = ready
            .filter_map(|(owner, account)| Some((*account.due.first()?, owner, account)))
            .min_by_key(|next| next.0);
        let Some(((at, id), owner, account)) = next else { return Err(None) };
        if at > now {
            return Err(Some(at));
        }
        account.due.remove(&(at, id));
        account.under_way += 1;
        Ok((owner.clone(), id))
    }

    pub fn give_back(&mut self, owner: &str) {
        if let Some(account) = self.0.get_mut(owner) {
            account.under_way = account.under_way.saturating_sub(1);
            self.forget_idle(owner);
        }
    }

    fn forget_idle(&mut self, owner: &str) {
        if self.0.get(owner).is_some_and(|account| account.under_way == 0 && account.due.is_empty()) {
            self.0.remove(owner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_has_some_under_way_and_no_more() {
        let mut calls = Calls::default();
        for n in 0..9 {
            calls.put("greedy", n, JobId(n.into()));
        }
        calls.put("other", 20, JobId(20));
        for n in 0..4 {
            assert_eq!(calls.take(10), Ok(("greedy".into(), JobId(n))));
        }
        assert_eq!(calls.take(10), Err(Some(20)));
        assert_eq!(calls.take(20), Ok(("other".into(), JobId(20))));
        assert_eq!(calls.take(30), Err(None));
        calls.give_back("greedy");
        calls.remove("greedy", 4, JobId(4));
        assert_eq!(calls.take(30), Ok(("greedy".into(), JobId(5))));
        calls.give_back("other");
        assert_eq!(calls.0.len(), 1);
    }
}
