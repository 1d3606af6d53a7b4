//! When a base is due: a five-field crontab expression in a time zone.
//!
//! The meaning is crontab(5)'s: Sunday is 0 and 7, a day matches if day of month *or* day of week
//! does when both are restricted (neither begins with `*`) and if both do otherwise. The `cron`
//! crate finds the occurrences; its own numbering and its rule for days differ, so each field is
//! expanded here to the numbers that crate means, and a day of the month and a day of the week that
//! join by "or" become two schedules.
//!
//! Occurrences are found on the calendar and then placed in the zone, as Debian's cron does it: a
//! time that a clock change skips runs right after the change, a time that comes twice runs at the
//! first. Only an expression for every hour (`*` or `*/n`) follows the clock: nothing is made up
//! for the hour that is missing, and it runs in both of the hours that bear one name.

use std::str::FromStr;

use chrono::{DateTime, Duration, LocalResult, NaiveDateTime, TimeZone, Utc};
use chrono_tz::Tz;

/// A parsed crontab expression with its time zone.
#[derive(Debug, Clone)]
pub struct Schedule {
    calendars: Vec<cron::Schedule>,
    zone: Tz,
    every_hour: bool,
}

/// The expression or the zone is not understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    #[error(
        "\"{0}\" is no schedule: five fields are needed (minute hour day-of-month month \
         day-of-week) or one of @hourly @daily @weekly @monthly @yearly"
    )]
    Fields(String),
    #[error("\"{text}\" is no {field} of a schedule ({low} to {high}, lists, ranges and steps)")]
    Field {
        field: &'static str,
        text: String,
        low: u32,
        high: u32,
    },
    #[error("\"{0}\" names a day that no month has")]
    Never(String),
    #[error("\"{0}\" is no time zone such as Europe/Berlin")]
    Zone(String),
}

impl Schedule {
    /// # Errors
    /// If the expression is not five crontab(5) fields, can never come due, or the zone is unknown
    /// to the IANA database.
    pub fn parse(expression: &str, zone: &str) -> Result<Self, ScheduleError> {
        let zone = Tz::from_str(zone).map_err(|_| ScheduleError::Zone(zone.to_owned()))?;
        let plain = match expression.trim() {
            "@hourly" => "0 * * * *",
            "@daily" | "@midnight" => "0 0 * * *",
            "@weekly" => "0 0 * * 0",
            "@monthly" => "0 0 1 * *",
            "@yearly" | "@annually" => "0 0 1 1 *",
            plain => plain,
        };
        let texts: Vec<&str> = plain.split_ascii_whitespace().collect();
        let [minute, hour, day, month, weekday] = texts[..] else {
            return Err(ScheduleError::Fields(expression.to_owned()));
        };
        let minutes = MINUTE.expand(minute)?;
        let hours = HOUR.expand(hour)?;
        let days = DAY.expand(day)?;
        let months = MONTH.expand(month)?;
        // The cron crate counts from Sunday = 1.
        let mut weekdays: Vec<u32> = WEEKDAY
            .expand(weekday)?
            .into_iter()
            .map(|number| number % 7 + 1)
            .collect();
        weekdays.sort_unstable();
        weekdays.dedup();

        let calendar = |days: &str, weekdays: &str| {
            let text = format!(
                "0 {} {} {days} {} {weekdays}",
                list(&minutes),
                list(&hours),
                list(&months)
            );
            cron::Schedule::from_str(&text)
                .map_err(|_| ScheduleError::Fields(expression.to_owned()))
        };
        let either = !day.starts_with('*') && !weekday.starts_with('*');
        let mut calendars = if either {
            vec![
                calendar(&list(&days), "*")?,
                calendar("*", &list(&weekdays))?,
            ]
        } else {
            vec![calendar(&list(&days), &list(&weekdays))?]
        };
        // Four years hold every day that exists, a leap day included.
        let start = DateTime::from_timestamp(946_684_800, 0).unwrap_or_default();
        calendars.retain(|calendar| calendar.after(&start).next().is_some());
        if calendars.is_empty() {
            return Err(ScheduleError::Never(expression.to_owned()));
        }
        Ok(Self {
            calendars,
            zone,
            every_hour: hour.starts_with('*'),
        })
    }

    /// The first occurrence after `time`; none past the year 2100, where the calendar ends.
    #[must_use]
    pub fn next_after(&self, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        self.calendars
            .iter()
            .filter_map(|calendar| self.next_of(calendar, time))
            .min()
    }

    fn next_of(&self, calendar: &cron::Schedule, time: DateTime<Utc>) -> Option<DateTime<Utc>> {
        // Clock changes are less than three hours everywhere, so a calendar time that far back can
        // still lie ahead, and one that far past the best found cannot come before it.
        let reach = Duration::hours(3);
        let from = time.with_timezone(&self.zone).naive_local() - reach;
        let mut best: Option<(DateTime<Utc>, NaiveDateTime)> = None;
        for candidate in calendar.after(&from.and_utc()) {
            let candidate = candidate.naive_utc();
            if best.is_some_and(|(_, found)| candidate > found + reach) {
                break;
            }
            for instant in self.place(candidate) {
                if instant > time && best.is_none_or(|(earliest, _)| instant < earliest) {
                    best = Some((instant, candidate));
                }
            }
        }
        best.map(|(instant, _)| instant)
    }

    /// The instants at which a calendar time runs.
    fn place(&self, calendar: NaiveDateTime) -> Vec<DateTime<Utc>> {
        match self.zone.from_local_datetime(&calendar) {
            LocalResult::Single(time) => vec![time.to_utc()],
            LocalResult::Ambiguous(first, second) if self.every_hour => {
                vec![first.to_utc(), second.to_utc()]
            }
            LocalResult::Ambiguous(first, _) => vec![first.to_utc()],
            LocalResult::None if self.every_hour => Vec::new(),
            LocalResult::None => (1..=180)
                .find_map(|minutes| {
                    let later = calendar + Duration::minutes(minutes);
                    self.zone.from_local_datetime(&later).earliest()
                })
                .map(|time| time.to_utc())
                .into_iter()
                .collect(),
        }
    }
}

fn list(numbers: &[u32]) -> String {
    let texts: Vec<String> = numbers.iter().map(u32::to_string).collect();
    texts.join(",")
}

/// One field's range and names.
struct Field {
    name: &'static str,
    low: u32,
    high: u32,
    names: &'static [&'static str],
}

const MINUTE: Field = Field {
    name: "minute",
    low: 0,
    high: 59,
    names: &[],
};
const HOUR: Field = Field {
    name: "hour",
    low: 0,
    high: 23,
    names: &[],
};
const DAY: Field = Field {
    name: "day of month",
    low: 1,
    high: 31,
    names: &[],
};
const MONTH: Field = Field {
    name: "month",
    low: 1,
    high: 12,
    names: &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ],
};
const WEEKDAY: Field = Field {
    name: "day of week",
    low: 0,
    high: 7,
    names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
};

impl Field {
    /// All numbers of a comma list of `*`, `a`, `a-b`, each but `a` with an optional `/step`.
    fn expand(&self, text: &str) -> Result<Vec<u32>, ScheduleError> {
        let wrong = || ScheduleError::Field {
            field: self.name,
            text: text.to_owned(),
            low: self.low,
            high: self.high,
        };
        let mut numbers = Vec::new();
        for part in text.split(',') {
            let (range, step) = match part.split_once('/') {
                Some((range, step)) => (range, Some(digits(step).ok_or_else(wrong)?)),
                None => (part, None),
            };
            let (first, last) = if range == "*" {
                // 7 is Sunday's other name; a step over `*` counts from 0 to 6.
                (self.low, if self.high == 7 { 6 } else { self.high })
            } else if let Some((first, last)) = range.split_once('-') {
                let first = self.number(first).ok_or_else(wrong)?;
                let last = self.number(last).ok_or_else(wrong)?;
                // `fri-sun` is `5-7`: Sunday ends the week when it ends a range.
                let last = if self.high == 7 && last == 0 && first > 0 {
                    7
                } else {
                    last
                };
                (first, last)
            } else if step.is_some() {
                return Err(wrong());
            } else {
                let number = self.number(range).ok_or_else(wrong)?;
                (number, number)
            };
            let step = step.unwrap_or(1);
            if first > last || step == 0 {
                return Err(wrong());
            }
            let step = usize::try_from(step).map_err(|_| wrong())?;
            numbers.extend((first..=last).step_by(step));
        }
        numbers.sort_unstable();
        numbers.dedup();
        Ok(numbers)
    }

    fn number(&self, text: &str) -> Option<u32> {
        let named = self
            .names
            .iter()
            .position(|name| name.eq_ignore_ascii_case(text))
            .and_then(|position| u32::try_from(position).ok())
            // Months count from 1, weekdays from 0: as the range does.
            .map(|position| position + self.low);
        named
            .or_else(|| digits(text))
            .filter(|number| (self.low..=self.high).contains(number))
    }
}

/// Plain digits: no sign, no blank.
fn digits(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(expression: &str, zone: &str, after: &str, expect: &[&str]) {
        let schedule = Schedule::parse(expression, zone).unwrap();
        let mut time = DateTime::parse_from_rfc3339(after).unwrap().to_utc();
        for expect in expect {
            time = schedule.next_after(time).unwrap();
            let expect = DateTime::parse_from_rfc3339(expect).unwrap().to_utc();
            assert_eq!(time, expect, "{expression} in {zone}");
        }
    }

    #[test]
    fn five_fields_mean_what_crontab_says() {
        // 2026-11-20 is a Friday.
        let now = "2026-11-20T10:30:00Z";
        check(
            "0 4 * * *",
            "UTC",
            now,
            &["2026-11-21T04:00:00Z", "2026-11-22T04:00:00Z"],
        );
        for sunday in ["0", "7", "sun", "SUN"] {
            let expression = format!("15 3 * * {sunday}");
            check(
                &expression,
                "UTC",
                now,
                &["2026-11-22T03:15:00Z", "2026-11-29T03:15:00Z"],
            );
        }
        check("0 0 * * 1", "UTC", now, &["2026-11-23T00:00:00Z"]);
        check(
            "0 0 * * mon-wed",
            "UTC",
            now,
            &["2026-11-23T00:00:00Z", "2026-11-24T00:00:00Z"],
        );
        check(
            "0 0 * * fri-sun",
            "UTC",
            now,
            &[
                "2026-11-21T00:00:00Z",
                "2026-11-22T00:00:00Z",
                "2026-11-27T00:00:00Z",
            ],
        );
        check(
            "0 0 * * 6,7",
            "UTC",
            now,
            &["2026-11-21T00:00:00Z", "2026-11-22T00:00:00Z"],
        );
        check(
            "*/20 10-11 * * *",
            "UTC",
            now,
            &["2026-11-20T10:40:00Z", "2026-11-20T11:00:00Z"],
        );
        check(
            "5-59/25 * * * *",
            "UTC",
            now,
            &["2026-11-20T10:55:00Z", "2026-11-20T11:05:00Z"],
        );
        check("0 0 1 JAN *", "UTC", now, &["2027-01-01T00:00:00Z"]);
        check("0 0 29 2 *", "UTC", now, &["2028-02-29T00:00:00Z"]);
        check("@daily", "UTC", now, &["2026-11-21T00:00:00Z"]);
        check("@weekly", "UTC", now, &["2026-11-22T00:00:00Z"]);
        check("@hourly", "UTC", now, &["2026-11-20T11:00:00Z"]);
    }

    #[test]
    fn day_of_month_or_day_of_week() {
        let now = "2026-11-20T10:30:00Z";
        // Both restricted: the 1st, the 15th, and every Monday.
        check(
            "0 0 1,15 * 1",
            "UTC",
            now,
            &[
                "2026-11-23T00:00:00Z",
                "2026-11-30T00:00:00Z",
                "2026-12-01T00:00:00Z",
                "2026-12-07T00:00:00Z",
            ],
        );
        // A field that begins with `*` does not count as restricted: both must match.
        check(
            "0 0 */2 * 1",
            "UTC",
            now,
            &["2026-11-23T00:00:00Z", "2026-12-07T00:00:00Z"],
        );
        // One half that never comes leaves the other.
        check(
            "0 0 31 2 1",
            "UTC",
            "2026-02-01T12:00:00Z",
            &["2026-02-02T00:00:00Z"],
        );
    }

    #[test]
    fn clock_changes() {
        // Berlin springs forward on 2026-03-29 at 02:00 and falls back on 2026-10-25 at 03:00.
        check(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-03-28T12:00:00Z",
            &["2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"],
        );
        check(
            "30 2 * * *",
            "Europe/Berlin",
            "2026-10-24T12:00:00Z",
            &["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"],
        );
        check(
            "30 * * * *",
            "Europe/Berlin",
            "2026-10-24T23:45:00Z",
            &[
                "2026-10-25T00:30:00Z",
                "2026-10-25T01:30:00Z",
                "2026-10-25T02:30:00Z",
            ],
        );
        check(
            "30 * * * *",
            "Europe/Berlin",
            "2026-03-29T00:15:00Z",
            &["2026-03-29T00:30:00Z", "2026-03-29T01:30:00Z"],
        );
        check(
            "0 4 * * *",
            "Asia/Kolkata",
            "2026-11-20T10:30:00Z",
            &["2026-11-20T22:30:00Z"],
        );
    }

    #[test]
    fn refuses_what_is_no_schedule() {
        for text in [
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "* * * * 8",
            "*/0 * * * *",
            "5/10 * * * *",
            "-1 * * * *",
            "+1 * * * *",
            "a * * * *",
            "5-1 * * * *",
            "1, * * * *",
            "@reboot",
            "0 0 30 2 *",
            "* * * mon *",
            "1-2-3 * * * *",
        ] {
            assert!(Schedule::parse(text, "UTC").is_err(), "{text:?}");
        }
        assert_eq!(
            Schedule::parse("* * * * *", "Mars/Base").unwrap_err(),
            ScheduleError::Zone("Mars/Base".to_owned())
        );
    }
}
