//! Who has how many jobs, and how many bytes. Values only: no I/O.

use std::collections::HashMap;

use super::job::Job;
use super::{Bounds, SubmitError};

#[derive(Debug, Default)]
pub(super) struct Ledger {
    total: u64,
    accounts: HashMap<String, Account>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Account {
    jobs: u64,
    bytes: u64,
}

impl Ledger {
    /// Adds a new job, if there is room.
    pub fn take(&mut self, job: &Job, bounds: &Bounds) -> Result<(), SubmitError> {
        let Account { jobs, bytes } = self.accounts.get(&job.owner).copied().unwrap_or_default();
        let wanted = job.size();
        if jobs >= bounds.count {
            return Err(SubmitError::TooMany { have: jobs, most: bounds.count });
        }
        if bytes + wanted > bounds.per_owner {
            return Err(SubmitError::OwnerFull { used: bytes, wanted, most: bounds.per_owner });
        }
        if self.total + wanted > bounds.total {
            return Err(SubmitError::Full { used: self.total, wanted, most: bounds.total });
        }
        self.add(job);
        Ok(())
    }

    /// Adds one that is there, whatever the bounds.
    pub fn add(&mut self, job: &Job) {
        let account = self.accounts.entry(job.owner.clone()).or_default();
        account.jobs += 1;
        account.bytes += job.size();
        self.total += job.size();
    }

    pub fn remove(&mut self, job: &Job) {
        self.total = self.total.saturating_sub(job.size());
        let Some(account) = self.accounts.get_mut(&job.owner) else { return };
        account.jobs = account.jobs.saturating_sub(1);
        account.bytes = account.bytes.saturating_sub(job.size());
        if account.jobs == 0 {
            self.accounts.remove(&job.owner);
        }
    }
}
