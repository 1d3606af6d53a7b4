//! Tables by name: as an operator writes them, against what a base has.
//!
//! Names are written as `pg_dump --table` takes them, folded to lower case unless quoted, but they
//! are exact: no patterns.

use std::fmt;

use lastgood_proto::manifest::TableEntry;

use crate::Error;

/// A table as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableName {
    /// Without it, the one table of that name in any schema.
    pub schema: Option<String>,
    pub table: String,
}

/// The names of a list: commas part them, outside quotes.
#[must_use]
pub fn split_list(list: &str) -> Vec<&str> {
    let (mut names, mut from, mut quoted) = (Vec::new(), 0, false);
    for (at, letter) in list.char_indices() {
        match letter {
            '"' => quoted = !quoted,
            ',' if !quoted => {
                names.push(&list[from..at]);
                from = at + 1;
            }
            _ => {}
        }
    }
    names.push(&list[from..]);
    names
}

impl TableName {
    /// # Errors
    /// [`Error::InvalidTable`] if it is no name, or has more than two parts.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let invalid = |why| Error::InvalidTable {
            name: text.to_owned(),
            why,
        };
        let mut rest = text.trim();
        let mut parts = Vec::new();
        loop {
            let part;
            (part, rest) = identifier(rest).map_err(invalid)?;
            parts.push(part);
            match rest.strip_prefix('.') {
                Some(next) => rest = next,
                None if rest.is_empty() => break,
                None => return Err(invalid("what follows a name is a dot or a comma")),
            }
        }
        let mut parts = parts.into_iter();
        match (parts.next(), parts.next(), parts.next()) {
            (Some(table), None, _) => Ok(Self {
                schema: None,
                table,
            }),
            (Some(schema), Some(table), None) => Ok(Self {
                schema: Some(schema),
                table,
            }),
            _ => Err(invalid("a name is schema.table")),
        }
    }

    pub(crate) fn is(&self, schema: &str, table: &str) -> bool {
        self.table == table && self.schema.as_ref().is_none_or(|own| own == schema)
    }

    /// The table of that name.
    ///
    /// # Errors
    /// [`Error::UnknownTable`] with those that are similar, [`Error::AmbiguousTable`].
    pub(crate) fn find<'t>(&self, tables: &'t [TableEntry]) -> Result<&'t TableEntry, Error> {
        let found: Vec<&TableEntry> = tables
            .iter()
            .filter(|table| self.is(&table.schema, &table.name))
            .collect();
        match found.as_slice() {
            [table] if matches!(table.kind, 'r' | 'p') => Ok(table),
            [_] => Err(Error::InvalidTable {
                name: self.to_string(),
                why: "it is a view or a foreign table, which has no rows to bring back",
            }),
            [] => Err(Error::UnknownTable {
                name: self.to_string(),
                near: self.near(tables),
            }),
            several => Err(Error::AmbiguousTable {
                name: self.to_string(),
                candidates: several.iter().map(|table| printed(table)).collect(),
            }),
        }
    }

    fn near(&self, tables: &[TableEntry]) -> Vec<String> {
        const SHOWN_MAX: usize = 5;
        let wanted = self.table.to_lowercase();
        let mut near: Vec<(usize, String)> = tables
            .iter()
            .filter(|table| matches!(table.kind, 'r' | 'p'))
            .map(|table| (distance(&wanted, &table.name.to_lowercase()), table))
            .filter(|(distance, _)| *distance <= 2.min(wanted.chars().count() / 2))
            .map(|(distance, table)| (distance, printed(table)))
            .collect();
        near.sort();
        near.truncate(SHOWN_MAX);
        near.into_iter().map(|(_, name)| name).collect()
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(schema) = &self.schema {
            write!(f, "{}.", plain(schema))?;
        }
        f.write_str(&plain(&self.table))
    }
}

/// A table's name as it is written, and read again by [`TableName::parse`].
pub(crate) fn printed(table: &TableEntry) -> String {
    written(&table.schema, &table.name)
}

#[must_use]
pub fn written(schema: &str, name: &str) -> String {
    format!("{}.{}", plain(schema), plain(name))
}

/// Quoted only where it must be.
fn plain(name: &str) -> String {
    let bare = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
    match bare {
        true => name.to_owned(),
        false => crate::sql::quoted(name),
    }
}

/// One identifier from the front, and what follows.
pub(crate) fn identifier(text: &str) -> Result<(String, &str), &'static str> {
    if let Some(mut rest) = text.strip_prefix('"') {
        let mut name = String::new();
        loop {
            let end = rest.find('"').ok_or("a quoted name does not end")?;
            name.push_str(&rest[..end]);
            rest = &rest[end + 1..];
            match rest.strip_prefix('"') {
                Some(more) => {
                    name.push('"');
                    rest = more;
                }
                None if name.is_empty() => return Err("a name is empty"),
                None => return Ok((name, rest)),
            }
        }
    }
    let word = |c: char| c.is_alphanumeric() || c == '_' || c == '$';
    let end = text.find(|c| !word(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    match (name.is_empty(), rest.chars().next()) {
        (true, Some('*' | '?')) | (false, Some('*' | '?')) => Err("names are exact, not patterns"),
        (true, _) => Err("a name is empty, or needs double quotes"),
        (false, None | Some('.' | '(' | ',' | ')' | ';' | ' ' | '\n')) => {
            Ok((name.to_ascii_lowercase(), rest))
        }
        (false, Some(_)) => Err("a name with other signs than letters needs double quotes"),
    }
}

/// Letters to change, add or leave out to come from one to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, letter) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, other) in b.iter().enumerate() {
            let changed = diagonal + usize::from(letter != *other);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use lastgood_proto::Oid;
    use lastgood_proto::manifest::Protection;

    fn table(schema: &str, name: &str, kind: char) -> TableEntry {
        TableEntry {
            oid: Oid::new(1),
            schema: schema.to_owned(),
            name: name.to_owned(),
            kind,
            protection: Protection::Full,
            identity_index: None,
            rows_estimate: None,
            bytes: 0,
            unaltered: None,
            checks: None,
            columns: Vec::new(),
            attributes: None,
        }
    }

    #[test]
    fn names() {
        let check = |text: &str, expect: Option<(Option<&str>, &str)>| {
            let parsed = TableName::parse(text).ok();
            let parts = parsed
                .as_ref()
                .map(|name| (name.schema.as_deref(), name.table.as_str()));
            assert_eq!(parts, expect, "{text}");
            if let Some(name) = &parsed {
                assert_eq!(TableName::parse(&name.to_string()).unwrap(), *name);
            }
        };
        check("users", Some((None, "users")));
        check(" Public.Users ", Some((Some("public"), "users")));
        check(
            "public.\"My \"\"Table\"\", x\"",
            Some((Some("public"), "My \"Table\", x")),
        );
        check("\"a.b\".c", Some((Some("a.b"), "c")));
        check("größe.t", Some((Some("größe"), "t")));
        for wrong in [
            "", ".", "a.", "a.b.c", "a b", "a*", "\"a", "a\"b\"", "\"\"", "a-b",
        ] {
            check(wrong, None);
        }
        assert_eq!(split_list("a,\"b,\"\"c\", d"), ["a", "\"b,\"\"c\"", " d"]);
    }

    #[test]
    fn finding() {
        let tables = [
            table("public", "users", 'r'),
            table("public", "Users", 'r'),
            table("app", "orders", 'p'),
            table("public", "orders", 'r'),
            table("public", "summary", 'm'),
        ];
        let find = |text: &str| TableName::parse(text).unwrap().find(&tables);
        assert_eq!(find("public.users").unwrap().name, "users");
        assert_eq!(find("\"Users\"").unwrap().name, "Users");
        assert_eq!(find("app.orders").unwrap().kind, 'p');
        assert!(matches!(find("orders"), Err(Error::AmbiguousTable { .. })));
        assert!(matches!(find("summary"), Err(Error::InvalidTable { .. })));
        let near = |text: &str| match find(text) {
            Err(Error::UnknownTable { near, .. }) => near,
            other => panic!("{other:?}"),
        };
        assert_eq!(near("public.user"), ["public.\"Users\"", "public.users"]);
        assert_eq!(near("sales.orders"), ["app.orders", "public.orders"]);
        assert_eq!(near("x"), Vec::<String>::new());
    }
}
