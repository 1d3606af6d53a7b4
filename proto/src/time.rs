//! PostgreSQL's timestamps: microseconds since 2000-01-01 00:00:00 UTC.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Datelike as _, Timelike as _, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Microseconds from the Unix epoch to PostgreSQL's (`timestamp.h`, `POSTGRES_EPOCH_JDATE`).
const EPOCH_UNIX_MICROS: i64 = 946_684_800_000_000;

/// A `timestamptz` as it stands on the wire: a commit time, a keepalive's clock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTimestamp(i64);

impl PgTimestamp {
    pub const MIN: PgTimestamp = PgTimestamp(i64::MIN);

    /// From microseconds since 2000-01-01 UTC.
    #[must_use]
    pub const fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    /// Microseconds since 2000-01-01 UTC.
    #[must_use]
    pub const fn as_micros(self) -> i64 {
        self.0
    }

    /// From microseconds since 1970-01-01 UTC; saturates at the ends of the range.
    #[must_use]
    pub const fn from_unix_micros(micros: i64) -> Self {
        Self(micros.saturating_sub(EPOCH_UNIX_MICROS))
    }

    /// Microseconds since 1970-01-01 UTC; saturates at the ends of the range.
    #[must_use]
    pub const fn as_unix_micros(self) -> i64 {
        self.0.saturating_add(EPOCH_UNIX_MICROS)
    }
}

impl fmt::Display for PgTimestamp {
    /// RFC 3339 in UTC with six digits: `2026-11-20T20:01:02.123456Z`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(time) = DateTime::<Utc>::from_timestamp_micros(self.as_unix_micros()) else {
            // Beyond the calendar's range: no server has such a clock, a corrupt object may.
            return write!(f, "{}us", self.0);
        };
        // As chrono's own form, which is made in a string first: there is one in each transaction.
        match time.year() {
            year @ 0..=9999 => write!(f, "{year:04}")?,
            year => write!(f, "{year:+05}")?,
        }
        write!(
            f,
            "-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
            time.month(),
            time.day(),
            time.hour(),
            time.minute(),
            time.second(),
            time.timestamp_subsec_micros()
        )
    }
}

impl fmt::Debug for PgTimestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is no RFC 3339 time with a zone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a time such as 2026-11-20T20:01:02Z (a zone, Z or +02:00, is needed)")]
pub struct ParseTimeError(pub String);

impl FromStr for PgTimestamp {
    type Err = ParseTimeError;

    /// RFC 3339 with any offset; digits past the microsecond are cut off.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        DateTime::parse_from_rfc3339(text)
            .map(|time| Self::from_unix_micros(time.timestamp_micros()))
            .map_err(|_| ParseTimeError(text.to_owned()))
    }
}

impl Serialize for PgTimestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PgTimestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use chrono::SecondsFormat;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_display(micros in 0_i64..250_000_000_000_000_000) {
            let time = PgTimestamp::from_micros(micros);
            prop_assert_eq!(time.to_string().parse::<PgTimestamp>(), Ok(time));
        }

        #[test]
        fn every_value_prints(micros: i64) {
            let time = PgTimestamp::from_micros(micros);
            let chrono = DateTime::<Utc>::from_timestamp_micros(time.as_unix_micros());
            let same = match chrono {
                Some(chrono) => chrono.to_rfc3339_opts(SecondsFormat::Micros, true),
                None => format!("{micros}us"),
            };
            prop_assert_eq!(time.to_string(), same);
        }
    }

    #[test]
    fn epoch_and_offsets() {
        assert_eq!(
            PgTimestamp::from_micros(0).to_string(),
            "2000-01-01T00:00:00.000000Z"
        );
        let berlin: PgTimestamp = "2026-11-20T22:00:00+02:00".parse().unwrap();
        assert_eq!(berlin.to_string(), "2026-11-20T20:00:00.000000Z");
        for text in ["", "2026-11-20", "2026-11-20T20:00:00", "yesterday"] {
            assert!(text.parse::<PgTimestamp>().is_err(), "{text:?}");
        }
    }
}
