//! Names that clients of other systems have for blobs. They are in memory, bounded for each owner: the one that was not used for
//! longest goes first, and a restart forgets them all. The bytes are in the owner's account, for as long as blobs are.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lru::LruCache;

use crate::api::App;
use crate::api::blobs::is_there;
use crate::api::error::ApiError;
use crate::task::Digest;

/// Bytes that the names of one owner may take: some ten thousand.
const MOST: usize = 4 << 20;
/// What a name takes beside its text.
const ENTRY: usize = 256;

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Kept<V> {
    pub blob: Digest,
    pub value: V,
}

pub(super) struct Names<V>(Mutex<HashMap<String, Owned<V>>>);

/// The names of one owner. Owners are the operator's keys, so there are few.
struct Owned<V> {
    entries: LruCache<String, (Kept<V>, usize)>,
    bytes: usize,
}

impl<V: Clone> Names<V> {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::default()))
    }

    fn owners(&self) -> MutexGuard<'_, HashMap<String, Owned<V>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `size`: bytes of what the value has outside of itself.
    pub fn insert(&self, owner: &str, name: String, kept: Kept<V>, size: usize) {
        let mut owners = self.owners();
        let owned =
            owners.entry(owner.to_owned()).or_insert_with(|| Owned { entries: LruCache::unbounded(), bytes: 0 });
        let bytes = ENTRY + name.len() + size;
        let before = owned.entries.put(name, (kept, bytes));
        owned.bytes = owned.bytes + bytes - before.map_or(0, |(_, bytes)| bytes);
        while owned.bytes > MOST
            && let Some((_, (_, bytes))) = owned.entries.pop_lru()
        {
            owned.bytes -= bytes;
        }
    }

    /// Counts as a use.
    pub fn get(&self, owner: &str, name: &str) -> Option<Kept<V>> {
        self.owners().get_mut(owner)?.entries.get(name).map(|(kept, _)| kept.clone())
    }

    pub fn remove(&self, owner: &str, name: &str) -> Option<Kept<V>> {
        let mut owners = self.owners();
        let owned = owners.get_mut(owner)?;
        let (kept, bytes) = owned.entries.pop(name)?;
        owned.bytes -= bytes;
        Some(kept)
    }

    /// All that begin so, the one that was not used for longest first.
    pub fn beginning(&self, owner: &str, with: &str) -> Vec<(String, Kept<V>)> {
        let owners = self.owners();
        let entries = owners.get(owner).into_iter().flat_map(|owned| owned.entries.iter());
        let mut found: Vec<_> = entries
            .filter(|(name, _)| name.starts_with(with))
            .map(|(name, (kept, _))| (name.clone(), kept.clone()))
            .collect();
        found.reverse();
        found
    }

    /// Whether another name of the owner stands for the same bytes.
    pub fn has(&self, owner: &str, blob: &Digest) -> bool {
        let owners = self.owners();
        owners.get(owner).is_some_and(|owned| owned.entries.iter().any(|(_, (kept, _))| kept.blob == *blob))
    }

    /// What a name stands for, if its bytes are still here. Waits for the disk.
    pub fn find(&self, app: &App, owner: &str, name: &str) -> Result<Option<Kept<V>>, ApiError> {
        let Some(kept) = self.get(owner, name) else { return Ok(None) };
        if is_there(app, &kept.blob)? {
            return Ok(Some(kept));
        }
        self.remove(owner, name);
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(byte: u8) -> Kept<()> {
        Kept { blob: Digest::new([byte; 32]), value: () }
    }

    #[test]
    fn names_are_an_owners_and_bounded() {
        let names = Names::new();
        names.insert("a", "1".into(), kept(1), 0);
        names.insert("a", "2".into(), kept(2), 0);
        assert_eq!((names.get("a", "1"), names.get("b", "1"), names.remove("b", "1")), (Some(kept(1)), None, None));
        let beginning = |owner: &str| names.beginning(owner, "").into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!((beginning("a"), beginning("b")), (vec!["2".to_owned(), "1".to_owned()], vec![]));
        assert_eq!((names.beginning("a", "2").len(), names.beginning("a", "21").len()), (1, 0));
        assert!(names.has("a", &kept(1).blob) && !names.has("a", &kept(3).blob) && !names.has("b", &kept(1).blob));
        // Half of what there is room for, twice, beside what was there: that goes, and a name that is used again stays.
        names.insert("a", "large".into(), kept(3), MOST / 2);
        assert!(names.get("a", "1").is_some());
        names.insert("a", "larger".into(), kept(4), MOST / 2);
        let of = |name: &str| names.get("a", name).map(|kept| kept.blob);
        assert_eq!([of("1"), of("2"), of("large"), of("larger")], [Some(kept(1).blob), None, None, Some(kept(4).blob)]);
        // A name in place of itself takes its room once.
        for _ in 0..3 {
            names.insert("a", "larger".into(), kept(4), MOST / 2);
        }
        names.insert("a", "third".into(), kept(5), MOST / 3);
        assert_eq!([of("1"), of("larger"), of("third")], [1, 4, 5].map(|byte| Some(kept(byte).blob)));
        assert_eq!((names.remove("a", "third"), of("third")), (Some(kept(5)), None));
    }
}
