//! What the directory holds and who has how much of it, in memory. Values only: no I/O.

use std::collections::{BTreeMap, BTreeSet};

use super::{BlobError, Bounds};

/// One blob: its size, and the directory names of those who put it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub size: u64,
    pub owners: BTreeSet<String>,
}

/// The blobs by the 64 digits of their digest, with the sums that the bounds are held against.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    blobs: BTreeMap<String, Entry>,
    stored: Account,
    /// Bytes of uploads that have not ended. They take room on disk already, whatever becomes of them.
    uploading: Account,
}

/// Bytes altogether, and of each owner who has any.
#[derive(Debug, Default, PartialEq, Eq)]
struct Account {
    total: u64,
    by_owner: BTreeMap<String, u64>,
}

impl Index {
    /// Puts an entry in, in place of the one there may be.
    pub fn set(&mut self, hex: &str, entry: Entry) {
        self.forget(hex);
        self.stored.total = self.stored.total.saturating_add(entry.size);
        entry.owners.iter().for_each(|owner| self.stored.charge(owner, entry.size));
        self.blobs.insert(hex.to_owned(), entry);
    }

    pub fn forget(&mut self, hex: &str) {
        let Some(entry) = self.blobs.remove(hex) else { return };
        self.stored.total = self.stored.total.saturating_sub(entry.size);
        entry.owners.iter().for_each(|owner| self.stored.credit(owner, entry.size));
    }

    /// Puts in `blobs` in place of all there were; uploads stay.
    pub fn replace(&mut self, blobs: impl IntoIterator<Item = (String, Entry)>) {
        self.blobs.clear();
        self.stored = Account::default();
        blobs.into_iter().for_each(|(hex, entry)| self.set(&hex, entry));
    }

    pub fn size(&self, hex: &str) -> Option<u64> {
        Some(self.blobs.get(hex)?.size)
    }

    /// Refuses what has no room, in the owner's account or in the whole.
    pub fn check(&self, owner: &str, wanted: u64, bounds: &Bounds) -> Result<(), BlobError> {
        let used = self.used_by(owner);
        if used.saturating_add(wanted) > bounds.per_owner {
            return Err(BlobError::OwnerFull { used, wanted, most: bounds.per_owner });
        }
        let used = self.stored.total.saturating_add(self.uploading.total);
        if used.saturating_add(wanted) > bounds.total {
            return Err(BlobError::Full { used, wanted, most: bounds.total });
        }
        Ok(())
    }

    /// Takes room for an upload, or refuses it.
    pub fn reserve(&mut self, owner: &str, wanted: u64, bounds: &Bounds) -> Result<(), BlobError> {
        self.check(owner, wanted, bounds)?;
        self.uploading.total = self.uploading.total.saturating_add(wanted);
        self.uploading.charge(owner, wanted);
        Ok(())
    }

    /// Gives back what [`Index::reserve`] took.
    pub fn release(&mut self, owner: &str, bytes: u64) {
        self.uploading.total = self.uploading.total.saturating_sub(bytes);
        self.uploading.credit(owner, bytes);
    }

    /// Stored and being uploaded.
    pub fn used_by(&self, owner: &str) -> u64 {
        self.stored.of(owner).saturating_add(self.uploading.of(owner))
    }

    pub fn count(&self) -> u64 {
        self.blobs.len() as u64
    }

    pub fn stored(&self) -> u64 {
        self.stored.total
    }

    pub fn uploading(&self) -> u64 {
        self.uploading.total
    }
}

impl Account {
    fn of(&self, owner: &str) -> u64 {
        self.by_owner.get(owner).copied().unwrap_or(0)
    }

    fn charge(&mut self, owner: &str, bytes: u64) {
        if bytes > 0 {
            let sum = self.by_owner.entry(owner.to_owned()).or_default();
            *sum = sum.saturating_add(bytes);
        }
    }

    fn credit(&mut self, owner: &str, bytes: u64) {
        let left = self.of(owner).saturating_sub(bytes);
        match self.by_owner.get_mut(owner) {
            Some(sum) if left > 0 => *sum = left,
            _ => drop(self.by_owner.remove(owner)),
        }
    }
}
