//! Seeded randomness: every random test prints its seed, and `LASTGOOD_SEED` replays one.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// `LASTGOOD_SEED`, if set.
pub fn given() -> Option<u64> {
    std::env::var("LASTGOOD_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
}

/// The seed of a test: the given one, else a new one. Printed, so that a failure can be replayed.
pub fn choose(test: &str) -> u64 {
    let seed = given().unwrap_or_else(|| u64::from(rand::random::<u32>()));
    eprintln!("{test}: LASTGOOD_SEED={seed}");
    seed
}

/// A generator whose sequence depends on the seed and the name only.
pub fn rng(seed: u64, name: &str) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (slot, byte) in key
        .iter_mut()
        .zip(seed.to_le_bytes().iter().chain(name.as_bytes()))
    {
        *slot = *byte;
    }
    ChaCha8Rng::from_seed(key)
}
