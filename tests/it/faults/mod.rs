//! Broken machines and killed processes: every answer is true, nobody else is harmed, nothing is left.
//!
//! What takes minutes does a part of itself here, and all of it where the environment asks: `TEST_KILLS=500`, `TEST_SOAK=50000`.

mod builds;
pub mod kills;
mod machine;

/// How often, where the environment does not say.
pub fn times(variable: &str, otherwise: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Chance, the same for the same seed.
pub fn dice() -> fastrand::Rng {
    fastrand::Rng::with_seed(seed())
}

pub fn seed() -> u64 {
    let seed = times("TEST_SEED", std::process::id() as usize) as u64;
    println!("TEST_SEED={seed}");
    seed
}
