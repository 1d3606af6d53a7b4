//! How long to wait after a source failed: by the class of the error, growing, with jitter so that
//! sources that failed together do not come back together.

use std::time::Duration;

use lastgood_proto::Class;

const TRANSIENT_FIRST: Duration = Duration::from_secs(1);
const TRANSIENT_MAX: Duration = Duration::from_secs(60);
/// Only an operator helps, but nobody tells us when he has: look now and then.
const OPERATOR_FIRST: Duration = Duration::from_secs(15);
const OPERATOR_MAX: Duration = Duration::from_secs(300);
/// Having run this long, a source starts again from the shortest pause.
const HEALTHY: Duration = Duration::from_secs(60);

/// Failures in a row.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause before the next attempt; none: wait to be asked.
    ///
    /// `ran` is how long the attempt lasted, `random` any number.
    pub(super) fn after(&mut self, class: Class, ran: Duration, random: u32) -> Option<Duration> {
        if ran >= HEALTHY {
            self.failures = 0;
        }
        let (first, max) = match class {
            Class::Transient => (TRANSIENT_FIRST, TRANSIENT_MAX),
            Class::NeedsOperator => (OPERATOR_FIRST, OPERATOR_MAX),
            Class::Corrupt => return None,
        };
        let pause = first.saturating_mul(1 << self.failures.min(10)).min(max);
        self.failures = self.failures.saturating_add(1);
        // Between a half and the whole.
        let share = 0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX);
        Some(pause.mul_f64(share))
    }

    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_bound() {
        let mut backoff = Backoff::default();
        let mut next = |ran| backoff.after(Class::Transient, Duration::from_secs(ran), u32::MAX);
        let seconds = |pause: Option<Duration>| pause.unwrap().as_secs();
        let pauses: Vec<u64> = (0..8).map(|_| seconds(next(0))).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(seconds(next(61)), 1);
        assert_eq!(seconds(next(0)), 2);
    }

    #[test]
    fn jitter_keeps_at_least_half() {
        let mut backoff = Backoff::default();
        let least = backoff.after(Class::NeedsOperator, Duration::ZERO, 0);
        assert_eq!(least, Some(OPERATOR_FIRST / 2));
    }

    #[test]
    fn corruption_waits_for_somebody() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.after(Class::Corrupt, Duration::ZERO, 0), None);
    }
}
