//! Bytes on their way in: hashed and counted as they come, given their name when all of them are there.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use super::staged::Staged;
use super::store::Place;
use super::{BlobError, Blobs};
use crate::task::Digest;

/// An upload that has begun. Dropping it removes what was written and gives the room back.
pub struct Upload {
    /// Before `room`, as fields are dropped in order: the file goes first.
    staged: Staged,
    room: Room,
    hash: Sha256,
    size: u64,
}

/// A blob that is stored for its owner, for good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub digest: Digest,
    pub size: u64,
    /// Its bytes were here before.
    pub known: bool,
}

/// The bytes an upload has taken from the bounds; dropping it gives them back.
struct Room {
    blobs: Arc<Blobs>,
    /// The owner's directory name.
    owner: String,
    reserved: u64,
}

impl Upload {
    pub(super) fn begin(blobs: &Arc<Blobs>, owner: String, declared: Option<u64>) -> Result<Self, BlobError> {
        let wanted = declared.unwrap_or(0);
        blobs.check_size(wanted)?;
        blobs.index().check(&owner, wanted, &blobs.bounds)?;
        let staged = blobs.store.stage()?;
        let room = Room { blobs: blobs.clone(), owner, reserved: 0 };
        Ok(Self { staged, room, hash: Sha256::new(), size: 0 })
    }

    /// Adds bytes at the end. After an error it is as if they had not been given.
    ///
    /// # Errors
    /// `TooLarge`, `OwnerFull` or `Full` if they have no room, `DiskFull` or `Io` if they cannot be written.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let more = bytes.len() as u64;
        self.room.blobs.check_size(self.size.saturating_add(more))?;
        self.room.reserve(more)?;
        // At its offset, so that the rest of a write that failed half way is overwritten or cut off.
        if let Err(source) = self.staged.file().write_all_at(bytes, self.size) {
            self.room.release(more);
            return Err(BlobError::io("write an upload in", "staging", source));
        }
        self.hash.update(bytes);
        self.size += more;
        Ok(())
    }

    /// Stores what was written under its digest, in the owner's account. Once this returns, a power cut does not undo
    /// it.
    ///
    /// # Errors
    /// `Mismatch` if it is not what was `expected`, and nothing is stored. `DiskFull` or `Io`: nothing is stored either,
    /// unless it was the last step that failed; then it is, but a power cut may undo it.
    pub fn finish(mut self, expected: Option<&Digest>) -> Result<Stored, BlobError> {
        let digest = Digest::new(std::mem::take(&mut self.hash).finalize().into());
        if let Some(expected) = expected.filter(|&expected| *expected != digest) {
            return Err(BlobError::Mismatch { expected: expected.clone(), found: digest });
        }
        // The content is on disk before it has a name: no crash leaves a name with half the bytes.
        self.staged.seal(self.size)?;
        let known = self.publish(digest.hex())?;
        self.room.blobs.store.sync(&self.room.owner, digest.hex())?;
        Ok(Stored { digest, size: self.size, known })
    }

    /// Enters the owner, and gives the bytes their name unless they are there already; tells whether they were.
    fn publish(&mut self, hex: &str) -> Result<bool, BlobError> {
        let (blobs, owner) = (&self.room.blobs, &self.room.owner);
        let mut index = blobs.index();
        let names = blobs.store.lock()?;
        let known = match names.find(hex)? {
            Place::Blob(blob) if blob.size == self.size => {
                blob.note_use(blobs.bounds.use_interval())?;
                names.enter(owner, hex)?;
                true
            }
            Place::Missing => {
                names.add(owner, hex, &mut self.staged)?;
                false
            }
            Place::Blob(_) | Place::Foreign => {
                names.remove_data(hex)?;
                names.add(owner, hex, &mut self.staged)?;
                false
            }
        };
        index.set(hex, super::Entry { size: self.size, owners: names.owners_of(hex)? });
        index.release(owner, std::mem::take(&mut self.room.reserved));
        Ok(known)
    }
}

impl Room {
    fn reserve(&mut self, bytes: u64) -> Result<(), BlobError> {
        self.blobs.index().reserve(&self.owner, bytes, &self.blobs.bounds)?;
        self.reserved += bytes;
        Ok(())
    }

    fn release(&mut self, bytes: u64) {
        self.blobs.index().release(&self.owner, bytes);
        self.reserved -= bytes;
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.release(self.reserved);
    }
}
