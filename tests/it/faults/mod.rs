//! Broken machines and killed processes: every answer is true, nobody else is harmed, nothing is left.
//!
//! What takes minutes does a part of itself here, and all of it where the environment asks: `TEST_KILLS=500`, `TEST_SOAK=50000`.

mod kills;
mod machine;

/// How often, where the environment does not say.
fn times(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Numbers by chance, the same for the same seed (a linear congruential generator; Knuth's MMIX constants).
struct Dice(u64);

impl Dice {
    fn new() -> Self {
        let seed = times("TEST_SEED", std::process::id() as usize) as u64;
        println!("TEST_SEED={seed}");
        Self(seed)
    }

    /// Below `sides`.
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}
