//! What a person reads: aligned, short, with units; and the JSON a program reads instead.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use serde_json::Value;

use super::failure::Failure;

pub(super) struct Output {
    json: bool,
}

impl Output {
    pub(super) const fn new(json: bool) -> Self {
        Self { json }
    }

    pub(super) const fn is_json(&self) -> bool {
        self.json
    }

    /// Whether a person looks at standard error: progress bars are for them.
    pub(super) fn is_watched(&self) -> bool {
        !self.json && std::io::stderr().is_terminal()
    }

    /// One line for people; nothing with `--json`.
    pub(super) fn line(&self, text: impl Display) {
        if !self.json {
            self.raw(format!("{text}\n").as_bytes());
        }
    }

    /// One line on standard error for people who follow along; nothing with `--json`.
    pub(super) fn note(&self, text: impl Display) {
        if !self.json {
            // Nobody to tell if standard error is closed.
            writeln!(std::io::stderr(), "{text}").unwrap_or_default();
        }
    }

    /// The answer as JSON, if that was asked for.
    pub(super) fn value(&self, value: &Value) {
        if self.json {
            self.raw(format!("{value:#}\n").as_bytes());
        }
    }

    pub(super) fn raw(&self, bytes: &[u8]) {
        // A closed pipe (`| head`) is no failure of ours.
        std::io::stdout().write_all(bytes).unwrap_or_default();
    }

    /// The answer, in whichever form was asked for.
    pub(super) fn answer(&self, value: &Value, text: impl FnOnce(&Value) -> String) {
        match self.json {
            true => self.value(value),
            false => self.raw(text(value).as_bytes()),
        }
    }

    pub(super) fn fail(&self, failure: &Failure) -> ExitCode {
        let text = match self.json {
            true => format!("{:#}\n", failure.to_json()),
            false => format!("lastgood: {}\n{}", failure.message, evidence(failure)),
        };
        std::io::stderr()
            .write_all(text.as_bytes())
            .unwrap_or_default();
        ExitCode::from(failure.exit)
    }
}

/// What a problem brings along that helps to mend it.
fn evidence(failure: &Failure) -> String {
    let Some(problem) = &failure.problem else {
        return String::new();
    };
    let mut text = String::new();
    if problem["findings"].is_array() {
        text.push('\n');
        text.push_str(&findings(&problem["findings"]));
    }
    let each = |name: &str| problem[name].as_array().cloned().unwrap_or_default();
    for left in each("left") {
        text.push_str(&format!(
            "  {}\n      {}\n",
            show(&left["object"]),
            show(&left["sql"])
        ));
    }
    text
}

/// Findings of a probe, most severe first, each with what mends it.
pub(super) fn findings(findings: &Value) -> String {
    let mut text = String::new();
    for finding in findings.as_array().into_iter().flatten() {
        text.push_str(&format!(
            "{:<8} {}  {}\n         {}\n",
            show(&finding["severity"]).to_uppercase(),
            show(&finding["code"]),
            show(&finding["object"]),
            show(&finding["message"]),
        ));
        if let Some(fix) = finding["fix"].as_str() {
            for line in fix.lines() {
                text.push_str(&format!("         > {line}\n"));
            }
        }
    }
    text
}

/// A JSON value as a person writes it; `-` for what is not there.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "-".to_owned(),
        Value::Array(items) => items.iter().map(show).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// A count of bytes with a unit.
pub(super) fn bytes(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), human_bytes)
}

pub(super) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    let mut size = bytes as f64 / 1000.0;
    let mut unit = 0;
    while size >= 999.95 && unit + 1 < UNITS.len() {
        size /= 1000.0;
        unit += 1;
    }
    format!("{size:.1} {}", UNITS[unit])
}

pub(super) fn human_seconds(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A number with its thousands apart.
pub(super) fn count(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".to_owned(), human_count)
}

pub(super) fn human_count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun, in the plural where there is not one.
pub(super) fn some(number: &Value, what: &str) -> String {
    let plural = if number.as_u64() == Some(1) { "" } else { "s" };
    format!("{} {what}{plural}", count(number))
}

/// Rows under headings, columns aligned.
pub(super) fn table(headings: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .chain([headings[column].chars().count()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut text = line(&mut headings.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// Names and values, one a line, values aligned.
pub(super) fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs
        .iter()
        .map(|(name, value)| format!("{name:<width$}  {value}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_units() {
        let sizes = [0, 999, 1000, 16_777_216, 999_999, 5_000_000_000];
        let texts: Vec<_> = sizes.into_iter().map(human_bytes).collect();
        assert_eq!(
            texts,
            ["0 B", "999 B", "1.0 kB", "16.8 MB", "1.0 MB", "5.0 GB"]
        );
        assert_eq!(human_count(1_234_567), "1,234,567");
        assert_eq!(human_count(123), "123");
        assert_eq!(some(&1.into(), "row"), "1 row");
        assert_eq!(some(&0.into(), "row"), "0 rows");
        assert_eq!(human_seconds(59), "59 s");
        assert_eq!(human_seconds(3700), "1 h 1 min");
    }

    #[test]
    fn tables_are_aligned() {
        let rows = [
            vec!["shop".to_owned(), "streaming".to_owned()],
            vec!["a-longer-name".to_owned(), "-".to_owned()],
        ];
        assert_eq!(
            table(&["NAME", "STATUS"], &rows),
            "NAME           STATUS\nshop           streaming\na-longer-name  -\n"
        );
    }
}
