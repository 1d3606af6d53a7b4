//! What `ALTER DATABASE … SET` has set on the source: it belongs to the database, which no archive has.

use crate::sql::{literal, quoted};

/// Those whose value is a list of names, as it stands (`GUC_LIST_QUOTE` in `guc_tables.c`): in quotes it would be
/// one name.
const LISTS: &[&str] = &[
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "temp_tablespaces",
];

/// The statements that set it on another database; nobody but the operator knows whether it is meant there.
pub(crate) fn statements(settings: &[String], database: &str) -> impl Iterator<Item = String> {
    let settings = settings
        .iter()
        .filter_map(|setting| setting.split_once('='));
    settings.map(move |(name, value)| {
        let value = match LISTS.contains(&name) && !value.is_empty() {
            true => value.to_owned(),
            false => literal(value),
        };
        format!(
            "ALTER DATABASE {} SET {} TO {value}",
            quoted(database),
            name_of(name)
        )
    })
}

/// A setting of an extension has a dot between its two names.
fn name_of(setting: &str) -> String {
    let parts: Vec<String> = setting.split('.').map(quoted).collect();
    parts.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_as_it_was() {
        let settings = [
            "search_path=app2, \"Odd\"",
            "TimeZone=Asia/Tokyo",
            "my.text=it's = so",
            "search_path=",
        ];
        let settings = settings.map(str::to_owned);
        let expect = [
            r#"ALTER DATABASE "Shop" SET "search_path" TO app2, "Odd""#,
            r#"ALTER DATABASE "Shop" SET "TimeZone" TO 'Asia/Tokyo'"#,
            r#"ALTER DATABASE "Shop" SET "my"."text" TO 'it''s = so'"#,
            r#"ALTER DATABASE "Shop" SET "search_path" TO ''"#,
        ];
        let found: Vec<String> = statements(&settings, "Shop").collect();
        assert_eq!(found, expect);
    }
}
