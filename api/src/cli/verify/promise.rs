//! What a retention promises, held against what can be restored.

use lastgood_proto::{PgTimestamp, Retention};
use lastgood_restore::{Survey, Window};
use serde_json::{Value, json};

const DAY_MICROS: i64 = 86_400_000_000;

/// The moments that are promised, and whether every one of them can be restored.
pub(super) struct Promise {
    retention: String,
    from: PgTimestamp,
    to: PgTimestamp,
    /// Stretches of them that cannot, and why, if that is known.
    missing: Vec<(PgTimestamp, PgTimestamp, Option<String>)>,
}

impl Promise {
    /// None if the retention promises no stretch of time, or if nothing can be restored at all.
    pub(super) fn of(survey: &Survey, retention: &Retention) -> Option<Self> {
        let windows = survey.windows();
        let to = windows.iter().map(|window| window.to.time).max()?;
        let first = windows.iter().map(|window| window.from.time).min()?;
        let by_days = retention.days.map(|days| {
            let micros = i64::from(days).saturating_mul(DAY_MICROS);
            let from = PgTimestamp::from_micros(to.as_micros().saturating_sub(micros));
            // Nobody promised what was before the first base, unless it was given up since.
            match was_given_up(survey) {
                true => from,
                false => from.max(first),
            }
        });
        let by_bases = retention.bases.and_then(|count| {
            let mut bases: Vec<PgTimestamp> =
                survey.bases.iter().map(|base| base.snapshot_time).collect();
            bases.sort_unstable();
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            bases.get(bases.len().saturating_sub(count)).copied()
        });
        let from = match (by_days, by_bases) {
            (Some(days), Some(bases)) => days.min(bases),
            (Some(from), None) | (None, Some(from)) => from,
            (None, None) => return None,
        };
        Some(Self {
            retention: retention.to_string(),
            from,
            to,
            missing: missing(survey, &windows, from),
        })
    }

    pub(super) fn is_kept(&self) -> bool {
        self.missing.is_empty()
    }

    pub(super) fn describe(&self) -> String {
        let mut text = format!(
            "promised by \"{}\": {} to {}: {}",
            self.retention,
            self.from,
            self.to,
            if self.is_kept() {
                "kept"
            } else {
                "NOT as a whole"
            }
        );
        for (from, to, why) in &self.missing {
            let why = why.as_deref().unwrap_or("segments or bases are missing");
            text.push_str(&format!("\n  not {from} to {to}\n      {why}"));
        }
        text
    }

    pub(super) fn to_json(&self) -> Value {
        let missing = self.missing.iter().map(|(from, to, why)| {
            json!({"from": from.to_string(), "to": to.to_string(), "reason": why})
        });
        json!({
            "retention": self.retention,
            "from": self.from.to_string(),
            "to": self.to.to_string(),
            "kept": self.is_kept(),
            "missing": missing.collect::<Vec<Value>>(),
        })
    }
}

fn was_given_up(survey: &Survey) -> bool {
    let mut lineages = survey.listing.lineages.iter();
    lineages.any(|lineage| !lineage.retired.is_empty())
}

fn missing(
    survey: &Survey,
    windows: &[Window],
    from: PgTimestamp,
) -> Vec<(PgTimestamp, PgTimestamp, Option<String>)> {
    let mut missing = Vec::new();
    if let Some(first) = windows.iter().map(|window| window.from.time).min()
        && first > from
    {
        missing.push((from, first, None));
    }
    let gaps = survey.gaps().into_iter();
    missing.extend(
        gaps.filter(|gap| gap.to.time > from)
            .map(|gap| (gap.from.time.max(from), gap.to.time, gap.reason)),
    );
    missing
}
