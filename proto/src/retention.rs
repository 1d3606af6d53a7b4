//! What of a source is promised to be kept, as an operator says it: `30 days, 12 monthly`.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use crate::BaseId;

/// Promises add up: what any of them needs is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Retention {
    /// Every moment of the last so many days, as far as it was ever recoverable.
    pub days: Option<u32>,
    /// Every moment since the oldest of the newest so many bases.
    pub bases: Option<u32>,
    /// The last base of each of so many hours that have one, for its own moment alone.
    pub hourly: Option<u32>,
    /// The same for days, in UTC.
    pub daily: Option<u32>,
    /// The same for weeks, which begin on Monday.
    pub weekly: Option<u32>,
    pub monthly: Option<u32>,
    pub yearly: Option<u32>,
    /// Bases that are kept for their own moment, whatever else is said.
    pub pinned: BTreeSet<BaseId>,
}

/// The text is no retention.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no retention such as \"30 days, 12 monthly\": a number and one of days, bases, \
     hourly, daily, weekly, monthly, yearly, each once, with commas between"
)]
pub struct ParseRetentionError(pub String);

/// The most of anything: nobody means more.
const MOST: u32 = 100_000;

impl Retention {
    fn promises(&mut self) -> [(&'static str, &mut Option<u32>); 7] {
        [
            ("days", &mut self.days),
            ("bases", &mut self.bases),
            ("hourly", &mut self.hourly),
            ("daily", &mut self.daily),
            ("weekly", &mut self.weekly),
            ("monthly", &mut self.monthly),
            ("yearly", &mut self.yearly),
        ]
    }

    fn read(text: &str) -> Option<Self> {
        let mut retention = Self::default();
        for promise in text.split(',') {
            let (number, word) = promise.trim().split_once(' ')?;
            let number: u32 = number.parse().ok()?;
            let word = match word.trim() {
                "day" => "days",
                "base" => "bases",
                word => word,
            };
            let mut promises = retention.promises().into_iter();
            let (_, count) = promises.find(|(name, _)| *name == word)?;
            let fits = count.is_none() && (1..=MOST).contains(&number);
            fits.then(|| *count = Some(number))?;
        }
        Some(retention)
    }
}

impl FromStr for Retention {
    type Err = ParseRetentionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::read(text).ok_or_else(|| ParseRetentionError(text.to_owned()))
    }
}

impl fmt::Display for Retention {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut copy = self.clone();
        let promises = copy.promises().into_iter();
        let mut between = "";
        for (word, count) in promises {
            if let Some(count) = count {
                write!(f, "{between}{count} {word}")?;
                between = ", ";
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_and_printed() {
        let retention: Retention = "30 days,1 base, 12 monthly".parse().unwrap();
        let expected = Retention {
            days: Some(30),
            bases: Some(1),
            monthly: Some(12),
            ..Retention::default()
        };
        assert_eq!(retention, expected);
        assert_eq!(retention.to_string(), "30 days, 1 bases, 12 monthly");
        assert_eq!(retention.to_string().parse(), Ok(retention));
        for text in [
            "",
            "days",
            "30",
            "30days",
            "-1 days",
            "0 days",
            "1 days, 2 days",
            "1 decades",
            "1 days,",
            "1.5 days",
            "99999999 days",
        ] {
            assert!(text.parse::<Retention>().is_err(), "{text:?}");
        }
    }
}
