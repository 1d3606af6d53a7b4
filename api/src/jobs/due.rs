//! Which sources need a new base now: a pure function of schedules, last attempts and the time.
//!
//! A schedule that was missed while the service was down is made up for once, not once for each
//! time missed. A failed attempt counts as one: it is tried again at the next time, or on request.

use chrono::{DateTime, Utc};
use lastgood_engine::schedule::Schedule;
use lastgood_proto::{PgTimestamp, SourceId};

/// A source with a schedule.
pub(crate) struct Candidate {
    pub(crate) source: SourceId,
    pub(crate) schedule: Schedule,
    /// When the newest attempt began; the source's registration if there was none.
    pub(crate) last: PgTimestamp,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Due {
    pub(crate) now: Vec<SourceId>,
    /// When the next of the others is due.
    pub(crate) next: Option<PgTimestamp>,
}

pub(crate) fn due(candidates: &[Candidate], now: PgTimestamp) -> Due {
    let mut due = Due {
        now: Vec::new(),
        next: None,
    };
    for candidate in candidates {
        let Some(at) = calendar(candidate.last)
            .and_then(|last| candidate.schedule.next_after(last))
            .map(|at| PgTimestamp::from_unix_micros(at.timestamp_micros()))
        else {
            continue;
        };
        if at <= now {
            due.now.push(candidate.source);
        } else {
            due.next = Some(due.next.map_or(at, |next| next.min(at)));
        }
    }
    due
}

fn calendar(time: PgTimestamp) -> Option<DateTime<Utc>> {
    DateTime::from_timestamp_micros(time.as_unix_micros())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> PgTimestamp {
        text.parse().unwrap()
    }

    fn candidate(number: u8, expression: &str, zone: &str, last: &str) -> Candidate {
        Candidate {
            source: SourceId::from_bytes([number; 8]),
            schedule: Schedule::parse(expression, zone).unwrap(),
            last: time(last),
        }
    }

    #[test]
    fn a_time_is_due_once() {
        let daily = |last| [candidate(1, "0 4 * * *", "UTC", last)];
        let one = SourceId::from_bytes([1; 8]);
        let now = time("2026-11-20T04:00:00Z");
        let tomorrow = Some(time("2026-11-21T04:00:00Z"));
        assert_eq!(due(&daily("2026-11-19T04:00:03Z"), now).now, [one]);
        let after = due(&daily("2026-11-20T04:00:00Z"), now);
        assert_eq!((after.now, after.next), (vec![], tomorrow));
        // A week without the service: one base, not seven.
        let late = due(&daily("2026-11-13T04:00:00Z"), now);
        assert_eq!(late.now, [one]);
        let before = due(
            &daily("2026-11-19T04:00:03Z"),
            time("2026-11-20T03:59:59.999999Z"),
        );
        assert_eq!(before.next, Some(time("2026-11-20T04:00:00Z")));
    }

    #[test]
    fn the_next_wakeup_is_the_nearest() {
        let candidates = [
            candidate(1, "0 4 * * *", "UTC", "2026-11-20T05:00:00Z"),
            candidate(2, "30 20 * * *", "Europe/Berlin", "2026-11-20T05:00:00Z"),
        ];
        let due = due(&candidates, time("2026-11-20T06:00:00Z"));
        assert_eq!(due.now, []);
        assert_eq!(due.next, Some(time("2026-11-20T19:30:00Z")));
    }

    #[test]
    fn nothing_is_due_without_candidates() {
        let due = due(&[], time("2026-11-20T06:00:00Z"));
        assert_eq!((due.now, due.next), (vec![], None));
    }
}
