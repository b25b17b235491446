//! When to start or make again what ended before its time: at once after a healthy life, else after a delay that doubles.

use std::time::{Duration, Instant};

/// Whoever lived shorter than this has its restart delayed.
const HEALTHY: Duration = Duration::from_secs(5);
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

pub struct Restart {
    delay: Duration,
    due: Instant,
}

impl Restart {
    /// Nothing has been started yet.
    pub fn new() -> Self {
        Self { delay: Duration::ZERO, due: Instant::now() }
    }

    pub fn due(&self) -> Instant {
        self.due
    }

    /// After a life of this length, none if it could not be started. Returns how long the next start waits.
    pub fn ended(&mut self, lived: Duration) -> Duration {
        self.delay = if lived >= HEALTHY { Duration::ZERO } else { (self.delay * 2).clamp(SHORTEST, LONGEST) };
        self.due = Instant::now() + self.delay;
        self.delay
    }

    /// It was ended, and nothing is wrong with it.
    pub fn at_once(&mut self) {
        self.due = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_to_a_bound_and_a_healthy_life_ends_them() {
        let mut restart = Restart::new();
        let delays: Vec<u128> = (0..8).map(|_| restart.ended(Duration::ZERO).as_millis()).collect();
        assert_eq!(delays, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
        assert_eq!(restart.ended(HEALTHY), Duration::ZERO);
        assert_eq!(restart.ended(Duration::ZERO), SHORTEST);
    }
}
