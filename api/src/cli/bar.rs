//! The progress of a restore on a terminal; one line a phase where nobody watches.

use std::sync::Mutex;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;

use super::output::{Output, human_bytes, human_count};

/// Phases in their order, in words for people; the last one only under a schema of an existing database.
const PHASES: [(&str, &str); 9] = [
    ("prepare", "checking the target"),
    ("schema", "creating tables"),
    ("changes", "reading changes"),
    ("data", "loading the base"),
    ("keys", "building keys"),
    ("replay", "replaying changes"),
    ("constraints", "building indexes and constraints"),
    ("finish", "setting sequences and owners"),
    ("transfer", "copying into the existing database"),
];

pub(super) struct Bar {
    /// None: nobody watches.
    bar: Option<ProgressBar>,
    quiet: bool,
    /// The phase shown, and whether its size is known.
    shown: Mutex<Option<(usize, bool)>>,
}

impl Bar {
    pub(super) fn new(output: &Output) -> Self {
        let bar = output.is_watched().then(|| {
            let bar = ProgressBar::new(0);
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        Self {
            bar,
            quiet: output.is_json(),
            shown: Mutex::new(None),
        }
    }

    /// Show a step as the service and `lastgood_restore` tell it.
    pub(super) fn take(&self, step: &Value) {
        let Some(number) = PHASES.iter().position(|(phase, _)| step["phase"] == *phase) else {
            return;
        };
        let (_, words) = PHASES[number];
        let last = (number + 1).max(PHASES.len() - 1);
        let title = format!("[{}/{last}] {words}", number + 1);
        let (done, total) = (
            step["done"].as_u64().unwrap_or(0),
            step["total"].as_u64().unwrap_or(0),
        );
        let before = self
            .shown
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .replace((number, total > 0));
        let Some(bar) = &self.bar else {
            let is_new_phase = before.is_none_or(|(before, _)| before != number);
            if is_new_phase && !self.quiet {
                Output::new(false).note(&title);
            }
            return;
        };
        let is_new = before != Some((number, total > 0));
        if is_new {
            let template = match total {
                0 => "{msg} {spinner} {elapsed}",
                _ => "{msg} {wide_bar} {percent}% {eta} left",
            };
            // A template that does not parse would only look plainer.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.reset_eta();
        }
        bar.set_length(total);
        bar.set_position(done);
        bar.set_message(format!("{title}{}", detail(step, done)));
    }

    pub(super) fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn detail(step: &Value, done: u64) -> String {
    match step["phase"].as_str() {
        Some("data" | "transfer") => format!(" ({})", human_bytes(done)),
        Some("changes" | "replay") => format!(
            " ({} transactions, {} rows)",
            human_count(step["transactions"].as_u64().unwrap_or(0)),
            human_count(step["rows"].as_u64().unwrap_or(0))
        ),
        _ => String::new(),
    }
}
