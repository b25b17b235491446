//! How slowly a body may come: 30 seconds for nothing, and at least 32 KiB/s on average beside that. Only the time in which the
//! client was waited for counts.

use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;

use super::error::ApiError;

const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes a second.
const SLOWEST: u64 = 32 << 10;

#[derive(Default)]
pub struct Pace {
    waited: Duration,
    received: u64,
}

impl Pace {
    /// The body's next bytes; None at its end.
    ///
    /// # Errors
    /// `Late` when it comes too slowly, `Invalid` when it ends early.
    pub async fn next(&mut self, body: &mut Body) -> Result<Option<Bytes>, ApiError> {
        loop {
            let begun = Instant::now();
            let frame = tokio::time::timeout(self.left(), body.frame()).await.map_err(|_| ApiError::Late)?;
            self.waited += begun.elapsed();
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame.map_err(|_| ApiError::Invalid("the body ended early".into()))?;
            // What is no data is the trailers, which nobody asks for.
            if let Ok(bytes) = frame.into_data() {
                self.received += bytes.len() as u64;
                return Ok(Some(bytes));
            }
        }
    }

    fn left(&self) -> Duration {
        (PATIENCE + Duration::from_millis(self.received * 1000 / SLOWEST)).saturating_sub(self.waited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_gives_time_and_waiting_takes_it() {
        let pace = |waited, received| Pace { waited: Duration::from_secs(waited), received }.left().as_secs();
        assert_eq!([pace(0, 0), pace(10, 0), pace(31, 0), pace(40, 10 * SLOWEST)], [30, 20, 0, 0]);
        assert_eq!(pace(40, 100 * SLOWEST), 90);
    }
}
