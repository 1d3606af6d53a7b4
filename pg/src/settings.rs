//! The settings that every session of ours runs under, whatever the server, the database or the
//! role were given: text written under one set of them must read the same under another.
//!
//! Sent as startup options where PostgreSQL 13 knows the setting, by SET afterwards where only
//! later versions do (an unknown setting in the startup options refuses the connection).

/// Settings by name and value, in effect on the walsender, on SQL sessions and in child processes.
pub const PINNED_SETTINGS: &[(&str, &str)] = &[
    // How values are written and read.
    ("DateStyle", "ISO,MDY"),
    ("IntervalStyle", "postgres"),
    ("TimeZone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("lc_monetary", "C"),
    ("xmlbinary", "base64"),
    ("xmloption", "content"),
    ("array_nulls", "on"),
    ("quote_all_identifiers", "off"),
    // How our own SQL is understood.
    ("search_path", "pg_catalog"),
    ("standard_conforming_strings", "on"),
    ("transform_null_equals", "off"),
    ("default_transaction_isolation", "read committed"),
    ("default_transaction_read_only", "off"),
    ("default_transaction_deferrable", "off"),
    // A policy must make a read of ours fail, not come back short.
    ("row_security", "off"),
    // Work of ours takes as long as it takes; whoever waits for it has a limit of their own.
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
];

/// Settings that only later majors know: name, value, first major.
pub(crate) const LATER_SETTINGS: &[(&str, &str, u32)] = &[
    ("idle_session_timeout", "0", 14),
    ("transaction_timeout", "0", 17),
];

/// `-c name=value …` for the startup message and PGOPTIONS: the caller's options first, so that
/// ours win, then those of `extra`. Blanks and backslashes in a value are escaped.
pub(crate) fn options_string(given: Option<&str>, extra: &[(&str, String)]) -> String {
    let mut text = given.map(str::to_owned).unwrap_or_default();
    let pinned = PINNED_SETTINGS
        .iter()
        .map(|(name, value)| (*name, (*value).to_owned()));
    for (name, value) in pinned.chain(extra.iter().cloned()) {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str("-c ");
        text.push_str(name);
        text.push('=');
        for c in value.chars() {
            if c == '\\' || c.is_ascii_whitespace() {
                text.push('\\');
            }
            text.push(c);
        }
    }
    text
}

/// The statements that pin what a server of this version knows beyond [`PINNED_SETTINGS`]; empty
/// if there is nothing.
pub(crate) fn later_statements(server_version: u32) -> String {
    LATER_SETTINGS
        .iter()
        .filter(|(_, _, since)| server_version / 10_000 >= *since)
        .map(|(name, value, _)| format!("SET {name} = '{value}';"))
        .collect()
}

/// Tells whether the startup options took effect; there are poolers that accept and ignore them.
/// Two settings whose pinned values are nobody's defaults stand for all.
pub(crate) const IN_EFFECT_QUERY: &str = "\
    SELECT pg_catalog.current_setting('search_path') = 'pg_catalog' \
    AND pg_catalog.current_setting('extra_float_digits') = '3' AS in_effect";

/// What is said of a pooler that ignores them.
pub(crate) const NOT_IN_EFFECT: &str = "it ignores the startup options";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_come_last_and_blanks_are_escaped() {
        let text = options_string(
            Some("-c search_path=mine"),
            &[("logical_decoding_work_mem", "64kB".to_owned())],
        );
        assert!(text.starts_with("-c search_path=mine -c DateStyle=ISO,MDY "));
        assert!(text.contains("-c search_path=pg_catalog "));
        assert!(text.contains(r"default_transaction_isolation=read\ committed "));
        assert!(text.ends_with(" -c logical_decoding_work_mem=64kB"));
        assert_eq!(later_statements(130_023), "");
        assert_eq!(later_statements(140_000), "SET idle_session_timeout = '0';");
        assert!(later_statements(180_006).contains("transaction_timeout"));
    }
}
