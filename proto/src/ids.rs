//! Identifiers: PostgreSQL's numbers and our names for sources, lineages and bases.
//!
//! Random ones are made elsewhere (this crate has no randomness) and come in as bytes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The text is no identifier of the kind named.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a {kind}")]
pub struct ParseIdError {
    pub kind: &'static str,
    pub text: String,
}

/// A number of PostgreSQL's, printed in decimal.
macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty), $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            #[must_use]
            pub const fn new(value: $inner) -> Self {
                Self(value)
            }

            #[must_use]
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
                digits
                    .then(|| text.parse().ok().map(Self))
                    .flatten()
                    .ok_or_else(|| ParseIdError { kind: $kind, text: text.to_owned() })
            }
        }
    };
}

number!(
    /// An object identifier: of a relation, a type, a publication.
    Oid(u32), "OID"
);
number!(
    /// A transaction id as the stream carries it: 32 bits, so it repeats every four billion.
    Xid(u32), "transaction id"
);
number!(
    /// A timeline of a cluster; promotion and point-in-time recovery start a new one.
    TimelineId(u32), "timeline"
);
number!(
    /// The system identifier of a cluster, made by `initdb`.
    SystemId(u64), "system identifier"
);

/// Serialize as the `Display` text, deserialize by `FromStr`.
macro_rules! text_serde {
    ($name:ident) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?
                    .parse()
                    .map_err(serde::de::Error::custom)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

/// Fixed-width lower-case hexadecimal, and nothing else.
pub(crate) fn parse_hex(text: &str, digits: usize) -> Option<u64> {
    let plain = text.len() == digits
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    plain.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(u64);

        impl $name {
            /// From eight random bytes.
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 8]) -> Self {
                Self(u64::from_be_bytes(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_hex(text, 16)
                    .map(Self)
                    .ok_or_else(|| ParseIdError { kind: $kind, text: text.to_owned() })
            }
        }

        text_serde!($name);
    };
}

random_id!(
    /// A source: one protected database. Sixteen hexadecimal digits.
    SourceId, "source id"
);
random_id!(
    /// A repository, made when its `lastgood.json` is. Sixteen hexadecimal digits.
    RepositoryId, "repository id"
);
random_id!(
    /// One run of a service, as the writer of a source. Sixteen hexadecimal digits.
    WriterId, "writer id"
);

/// A lineage: `<generation>-<nonce>`, eight hexadecimal digits each.
///
/// The generation counts up within a source, so lineages sort in the order of their making; the
/// nonce keeps two services that start one at the same moment apart.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LineageId {
    generation: u32,
    nonce: u32,
}

impl LineageId {
    #[must_use]
    pub const fn new(generation: u32, nonce: u32) -> Self {
        Self { generation, nonce }
    }

    #[must_use]
    pub const fn generation(self) -> u32 {
        self.generation
    }
}

impl fmt::Display for LineageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}-{:08x}", self.generation, self.nonce)
    }
}

impl FromStr for LineageId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once('-')
            .and_then(|(generation, nonce)| {
                Some(Self {
                    generation: u32::try_from(parse_hex(generation, 8)?).ok()?,
                    nonce: u32::try_from(parse_hex(nonce, 8)?).ok()?,
                })
            })
            .ok_or_else(|| ParseIdError {
                kind: "lineage id",
                text: text.to_owned(),
            })
    }
}

text_serde!(LineageId);

/// A base backup: `<consistent LSN>-<nonce>`, sixteen and eight hexadecimal digits, so bases sort
/// by their consistent point.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BaseId {
    consistent: crate::Lsn,
    nonce: u32,
}

impl BaseId {
    #[must_use]
    pub const fn new(consistent: crate::Lsn, nonce: u32) -> Self {
        Self { consistent, nonce }
    }

    /// The consistent point: transactions that commit below it are in the base, others are not.
    #[must_use]
    pub const fn consistent_point(self) -> crate::Lsn {
        self.consistent
    }
}

impl fmt::Display for BaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:08x}", self.consistent.as_u64(), self.nonce)
    }
}

impl FromStr for BaseId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once('-')
            .and_then(|(consistent, nonce)| {
                Some(Self {
                    consistent: crate::Lsn::new(parse_hex(consistent, 16)?),
                    nonce: u32::try_from(parse_hex(nonce, 8)?).ok()?,
                })
            })
            .ok_or_else(|| ParseIdError {
                kind: "base id",
                text: text.to_owned(),
            })
    }
}

text_serde!(BaseId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_display(number: u32, bytes: [u8; 8], lsn: u64, nonce: u32) {
            let oid = Oid::new(number);
            prop_assert_eq!(oid.to_string().parse(), Ok(oid));
            let source = SourceId::from_bytes(bytes);
            prop_assert_eq!(source.to_string().parse(), Ok(source));
            let lineage = LineageId::new(number, nonce);
            prop_assert_eq!(lineage.to_string().parse(), Ok(lineage));
            let base = BaseId::new(crate::Lsn::new(lsn), nonce);
            prop_assert_eq!(base.to_string().parse(), Ok(base));
        }
    }

    #[test]
    fn refuses_what_is_no_id() {
        assert!("".parse::<Oid>().is_err());
        assert!("+1".parse::<Oid>().is_err());
        assert!("4294967296".parse::<Xid>().is_err());
        assert!("0123456789ABCDEF".parse::<SourceId>().is_err());
        assert!("00000001".parse::<LineageId>().is_err());
        assert!("00000001-0000000g".parse::<LineageId>().is_err());
    }
}
