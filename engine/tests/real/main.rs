//! The engine on real servers: capture, bases, probes, and what goes wrong with them.

mod base;
mod capture;
mod encodings;
mod kept;
mod rights;
mod running;
mod tables;
mod trouble;
mod writer;

/// Majors of the servers to test on.
fn majors() -> Vec<u32> {
    match std::env::var("LASTGOOD_TEST_MAJORS") {
        Ok(list) => list
            .split(',')
            .filter_map(|major| major.parse().ok())
            .collect(),
        Err(_) => vec![15, 18],
    }
}
