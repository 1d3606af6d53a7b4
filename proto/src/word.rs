//! Eight bytes at once, as one word: to search a text for what most texts have not.

const ONES: u64 = u64::from_ne_bytes([1; 8]);
const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);

/// The high bit of each byte below `limit`, which is at most 0x80. The lowest one set is exact, those above it may
/// not be (a borrow), which does not matter to a search for the first.
#[inline]
#[must_use]
pub const fn below(word: u64, limit: u8) -> u64 {
    word.wrapping_sub(ONES.wrapping_mul(limit as u64)) & !word & HIGH
}

/// As [`below`], of each byte that is this one.
#[inline]
#[must_use]
pub const fn equal(word: u64, byte: u8) -> u64 {
    below(word ^ u64::from_ne_bytes([byte; 8]), 1)
}
