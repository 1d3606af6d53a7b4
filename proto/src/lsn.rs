//! Log sequence numbers, printed as PostgreSQL prints them (`pg_lsn.c`).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A byte position in the write-ahead log.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(u64);

impl Lsn {
    /// `0/0`, PostgreSQL's invalid LSN.
    pub const INVALID: Lsn = Lsn(0);
    /// The greatest LSN; no record can begin here.
    pub const MAX: Lsn = Lsn(u64::MAX);

    #[must_use]
    pub const fn new(position: u64) -> Self {
        Self(position)
    }

    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The position right behind this one: what is below that includes this.
    #[must_use]
    pub const fn behind(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// Bytes of WAL from `earlier` to `self`; zero if `earlier` is not earlier.
    #[must_use]
    pub const fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no LSN: two hexadecimal halves of at most eight digits with a slash between.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not an LSN such as 0/16B3748")]
pub struct ParseLsnError(pub String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut halves = text.splitn(2, '/').map(half);
        match (halves.next().flatten(), halves.next().flatten()) {
            (Some(high), Some(low)) => Ok(Lsn(high << 32 | low)),
            _ => Err(ParseLsnError(text.to_owned())),
        }
    }
}

fn half(digits: &str) -> Option<u64> {
    let fits = (1..=8).contains(&digits.len());
    let mut digits = digits.chars().map(|digit| digit.to_digit(16));
    let value = digits.try_fold(0, |value, digit| Some(value << 4 | u64::from(digit?)));
    value.filter(|_| fits)
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_display(position: u64) {
            let lsn = Lsn::new(position);
            prop_assert_eq!(lsn.to_string().parse::<Lsn>(), Ok(lsn));
        }
    }

    #[test]
    fn prints_as_postgresql_does() {
        assert_eq!(Lsn::new(0x1_6B37_4800_0000).to_string(), "16B37/48000000");
        assert_eq!(Lsn::new(0x16B_3748).to_string(), "0/16B3748");
    }

    #[test]
    fn refuses_what_is_no_lsn() {
        for text in [
            "",
            "/",
            "0/",
            "/0",
            "0",
            "0/0/0",
            "g/0",
            "+1/0",
            "0/123456789",
            " 0/0",
        ] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }
}
