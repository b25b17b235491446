//! What requests hold in memory, together: their bodies, and the output their tasks may write. Bounded, so that no number
//! of clients can make the front grow beyond it; what is held is given back when the answer is written.

use std::sync::Arc;

use axum::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::ApiError;
use crate::scheduler::RETRY_AFTER;

const UNIT: u64 = 1 << 10;

pub struct Buffers {
    free: Arc<Semaphore>,
    units: u32,
}

/// A share of the memory; given back when dropped.
pub struct Held(OwnedSemaphorePermit);

impl Buffers {
    pub fn new(bytes: u64) -> Self {
        let units = u32::try_from(bytes / UNIT).unwrap_or(u32::MAX);
        Self { free: Arc::new(Semaphore::new(units as usize)), units }
    }

    /// Takes room for `bytes`.
    ///
    /// # Errors
    /// `Saturated` when others hold it now; `Invalid` when it is more than there ever is.
    pub fn hold(&self, bytes: u64) -> Result<Held, ApiError> {
        self.take(bytes, 0).map(Held)
    }

    fn take(&self, bytes: u64, already: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).ok();
        let units = units.filter(|units| already + *units as usize <= self.units as usize).ok_or_else(|| {
            let most = u64::from(self.units) * UNIT;
            ApiError::Invalid(format!(
                "Invalid tasks: their output limits add up to {bytes} bytes, and this server holds {most} at most"
            ))
        })?;
        let permit = self.free.clone().try_acquire_many_owned(units);
        permit.map_err(|_| ApiError::Saturated { retry_after: RETRY_AFTER })
    }
}

impl Held {
    /// Takes room for `bytes` more.
    ///
    /// # Errors
    /// [`Buffers::hold`]'s.
    pub fn more(&mut self, buffers: &Buffers, bytes: u64) -> Result<(), ApiError> {
        self.0.merge(buffers.take(bytes, self.0.num_permits())?);
        Ok(())
    }

    /// The bytes of an answer, which keep what is held until they are written or of no use any more.
    pub fn answer(self, bytes: Vec<u8>) -> Bytes {
        struct Answer {
            bytes: Vec<u8>,
            _held: Held,
        }
        impl AsRef<[u8]> for Answer {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        Bytes::from_owner(Answer { bytes, _held: self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_given_back_with_the_answer() {
        let buffers = Buffers::new(10 << 10);
        let mut held = buffers.hold(4 << 10).unwrap();
        held.more(&buffers, 6 << 10).unwrap();
        assert!(matches!(held.more(&buffers, 1), Err(ApiError::Invalid(_))));
        assert!(matches!(buffers.hold(1), Err(ApiError::Saturated { .. })));
        assert!(matches!(buffers.hold(11 << 10), Err(ApiError::Invalid(_))));
        let answer = held.answer(b"{}".to_vec());
        let part = answer.slice(1..);
        drop(answer);
        assert!(buffers.hold(1).is_err(), "a part is still to be written");
        drop(part);
        assert!(buffers.hold(10 << 10).is_ok());
    }
}
