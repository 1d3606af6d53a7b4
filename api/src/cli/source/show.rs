//! Sources for people.

use lastgood_engine::SourceSettings;
use serde_json::{Value, json};

use super::super::output::{bytes, human_seconds, pairs, show, table};

pub(super) fn list(sources: &Value) -> String {
    let rows: Vec<Vec<String>> = sources["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|source| {
            let not_covered = match source["not_covered"].as_array().map_or(0, Vec::len) {
                0 => "-".to_owned(),
                1 => "1 table".to_owned(),
                tables => format!("{tables} tables"),
            };
            vec![
                show(&source["name"]),
                show(&source["status"]),
                lag(source),
                show(&source["observed_through"]),
                show(&source["last_base"]),
                not_covered,
                show(&source["reason"]),
            ]
        })
        .collect();
    if rows.is_empty() {
        return "no source is registered yet: lastgood source add NAME CONNECTION\n".to_owned();
    }
    let headings = [
        "NAME",
        "STATUS",
        "LAG",
        "DURABLE THROUGH",
        "LAST BASE",
        "NOT COVERED",
        "REASON",
    ];
    table(&headings, &rows)
}

/// What a repository says of its sources.
pub(super) fn held(sources: &Value) -> String {
    let rows: Vec<Vec<String>> = sources["items"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|source| {
            vec![
                show(&source["id"]),
                show(&source["name"]),
                show(&source["newest"]["from"]["time"]),
                show(&source["newest"]["to"]["time"]),
            ]
        })
        .collect();
    if rows.is_empty() {
        return "the repository holds no source\n".to_owned();
    }
    table(&["ID", "NAME", "RECOVERABLE FROM", "TO"], &rows)
}

fn lag(source: &Value) -> String {
    match (source["lag_seconds"].as_u64(), source["lag_bytes"].as_u64()) {
        (Some(seconds), Some(_)) => {
            format!(
                "{}, {}",
                human_seconds(seconds),
                bytes(&source["lag_bytes"])
            )
        }
        _ => "-".to_owned(),
    }
}

pub(super) fn describe(source: &Value) -> String {
    let budget = format!(
        "{} of {}",
        bytes(&source["retained_wal_bytes"]),
        bytes(&source["wal_budget_bytes"])
    );
    let mut text = pairs(&[
        ("name", show(&source["name"])),
        ("id", show(&source["id"])),
        ("database", show(&source["endpoint"])),
        ("status", show(&source["status"])),
        ("reason", show(&source["reason"])),
        ("next", show(&source["next"])),
        ("durable through", show(&source["observed_through"])),
        ("durable LSN", show(&source["durable_lsn"])),
        ("lag", lag(source)),
        ("WAL kept for us", budget),
        ("lineage", show(&source["lineage"])),
        ("last base", show(&source["last_base"])),
        ("registered", show(&source["created"])),
    ]);
    let not_covered = source["not_covered"].as_array();
    if let Some(tables) = not_covered.filter(|tables| !tables.is_empty()) {
        text.push_str("not covered\n");
        for entry in tables {
            let (object, why) = (show(&entry["object"]), show(&entry["why"]));
            text.push_str(&format!("  {object}: {why}\n"));
        }
    }
    text.push_str("settings\n");
    text.push_str(&settings(source));
    text
}

/// Every setting, and its default where it has another value.
fn settings(source: &Value) -> String {
    let defaults = json!(SourceSettings::default());
    let rows = defaults.as_object().into_iter().flatten();
    let rows: Vec<(String, String)> = rows
        .map(|(name, default)| {
            let value = &source[name];
            let shown = setting(name, value);
            let text = match value == default {
                true => shown,
                false => format!("{shown}   (default {})", setting(name, default)),
            };
            (format!("  {}", name.replace('_', "-")), text)
        })
        .collect();
    let rows: Vec<(&str, String)> = rows
        .iter()
        .map(|(name, value)| (name.as_str(), value.clone()))
        .collect();
    pairs(&rows)
}

fn setting(name: &str, value: &Value) -> String {
    match (name, value) {
        (_, Value::Null) => "off".to_owned(),
        ("include", Value::Array(items)) if items.is_empty() => "all".to_owned(),
        ("exclude", Value::Array(items)) if items.is_empty() => "none".to_owned(),
        (_, Value::Number(number)) if name.ends_with("_bytes") => {
            let exact = number.as_u64().unwrap_or(0);
            match binary(exact) {
                Some(text) => text,
                None => format!("{exact} ({})", bytes(value)),
            }
        }
        _ => show(value),
    }
}

/// As the option takes it, if it is a whole number of a unit.
fn binary(bytes: u64) -> Option<String> {
    [("GiB", 30), ("MiB", 20), ("KiB", 10)]
        .into_iter()
        .find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift)
        .map(|(unit, shift)| format!("{}{unit}", bytes >> shift))
}

pub(super) fn removal(removed: &Value) -> String {
    let mut text = format!("removed {}; its backups are kept\n", show(&removed["name"]));
    for dropped in removed["dropped"].as_array().into_iter().flatten() {
        text.push_str(&format!("  dropped {}\n", show(dropped)));
    }
    let left = removed["left"].as_array().cloned().unwrap_or_default();
    if !left.is_empty() {
        text.push_str("STILL THERE, and to be dropped by hand (a slot fills the server's disk):\n");
    }
    for left in left {
        text.push_str(&format!(
            "  {}: {}\n      {}\n",
            show(&left["object"]),
            show(&left["error"]),
            show(&left["sql"])
        ));
    }
    text
}
