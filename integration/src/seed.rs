//! Seeded randomness: every random test prints its seed, and `LASTGOOD_SEED` replays one.

use rand::SeedableRng;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;

use crate::tools;

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

/// The majors of a long test: the oldest, the newest, and one between that is drawn. All of them with
/// `LASTGOOD_MAJORS=all`, and of several others those that it names: `LASTGOOD_MAJORS=14,16`.
pub fn majors(test: &str) -> Vec<u32> {
    let all = tools::MAJORS;
    match std::env::var("LASTGOOD_MAJORS").as_deref() {
        Ok("all") => all.to_vec(),
        Ok(named) => {
            let named: Vec<&str> = named.split(',').collect();
            let is_named = |major: &u32| named.contains(&major.to_string().as_str());
            all.into_iter().filter(is_named).collect()
        }
        Err(_) => {
            let [oldest, between @ .., newest] = all;
            let drawn = between.choose(&mut rng(choose(test), "majors"));
            [oldest]
                .into_iter()
                .chain(drawn.copied())
                .chain([newest])
                .collect()
        }
    }
}

/// Whether all of them are wanted: then a test that has a share only does all of its own, too.
pub fn all_majors() -> bool {
    std::env::var("LASTGOOD_MAJORS").is_ok_and(|majors| majors == "all")
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
