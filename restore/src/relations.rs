//! What a dump's own text says of how tables hang together: partitions, inheritance, foreign keys.
//!
//! The statements are those that `pg_restore` prints, every name with its schema; a quoted name may
//! hold anything, a line break included.

use crate::foreign_keys;
use crate::selection::identifier;

/// Schema and name.
pub(crate) type Name = (String, String);

/// A foreign key and the statement that makes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForeignKey {
    pub(crate) name: String,
    pub(crate) table: Name,
    pub(crate) references: Name,
    pub(crate) statement: String,
}

/// Child and parent, of partitions and of inheritance, from the definitions of tables.
pub(crate) fn children(script: &str) -> Vec<(Name, Name)> {
    let mut pairs = Vec::new();
    let mut table = None;
    let starts = script.match_indices('\n').map(|(at, _)| at + 1);
    for start in std::iter::once(0).chain(starts) {
        let line = &script[start..];
        if let Some(rest) = strip_any(line, &["CREATE TABLE ", "CREATE UNLOGGED TABLE "]) {
            table = qualified(rest).map(|(name, _)| name);
        } else if let Some(rest) = line.strip_prefix("INHERITS (")
            && let Some(child) = &table
        {
            let mut rest = rest;
            while let Some((parent, more)) = qualified(rest) {
                pairs.push((child.clone(), parent));
                rest = more.strip_prefix(", ").unwrap_or_default();
            }
        } else if let Some(rest) = line.strip_prefix("ALTER TABLE ONLY ")
            && let Some((parent, rest)) = qualified(rest)
            && let Some(rest) = rest.strip_prefix(" ATTACH PARTITION ")
            && let Some((child, _)) = qualified(rest)
        {
            pairs.push((child, parent));
        }
    }
    pairs
}

/// The foreign keys of a script that has nothing else; none if one cannot be read.
pub(crate) fn foreign_keys(script: &str) -> Option<Vec<ForeignKey>> {
    let statements = foreign_keys::statements(script).into_iter();
    statements.map(foreign_key).collect()
}

fn foreign_key(statement: String) -> Option<ForeignKey> {
    let rest = strip_any(&statement, &["ALTER TABLE ONLY ", "ALTER TABLE "])?;
    let (table, rest) = qualified(rest)?;
    let rest = rest.trim_start().strip_prefix("ADD CONSTRAINT ")?;
    let (name, rest) = identifier(rest).ok()?;
    // Columns may be called anything.
    let mut quoted = false;
    let at = rest.char_indices().find_map(|(at, letter)| {
        quoted ^= letter == '"';
        (!quoted && rest[at..].starts_with(" REFERENCES ")).then_some(at)
    })?;
    let (references, _) = qualified(&rest[at + " REFERENCES ".len()..])?;
    Some(ForeignKey {
        name,
        table,
        references,
        statement,
    })
}

pub(crate) fn strip_any<'t>(text: &'t str, prefixes: &[&str]) -> Option<&'t str> {
    prefixes.iter().find_map(|prefix| text.strip_prefix(prefix))
}

pub(crate) fn qualified(text: &str) -> Option<(Name, &str)> {
    let (schema, rest) = identifier(text).ok()?;
    let (name, rest) = identifier(rest.strip_prefix('.')?).ok()?;
    Some(((schema, name), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(schema: &str, name: &str) -> Name {
        (schema.to_owned(), name.to_owned())
    }

    #[test]
    fn partitions_and_inheritance() {
        let script = "--\nCREATE TABLE public.sale (\n    id integer\n)\nPARTITION BY RANGE (id);\n\n\
            CREATE TABLE public.\"sale\n2\" (\n    id integer\n);\n\n\
            ALTER TABLE ONLY public.sale ATTACH PARTITION public.\"sale\n2\" FOR VALUES FROM (1) TO (2);\n\n\
            CREATE UNLOGGED TABLE app.child (\n)\nINHERITS (public.sale, app.\"Other, one\");\n";
        assert_eq!(
            children(script),
            [
                (name("public", "sale\n2"), name("public", "sale")),
                (name("app", "child"), name("public", "sale")),
                (name("app", "child"), name("app", "Other, one")),
            ]
        );
    }

    #[test]
    fn keys() {
        let script = "ALTER TABLE ONLY public.c\n    ADD CONSTRAINT \"c fk\" FOREIGN KEY (p, \" REFERENCES \") REFERENCES app.\"P\"(id, \"x\") ON DELETE CASCADE;\n\n\
            ALTER TABLE public.root\n    ADD CONSTRAINT k FOREIGN KEY (a) REFERENCES public.c(id);\n";
        let found = foreign_keys(script).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].name, "c fk");
        assert_eq!(found[0].table, name("public", "c"));
        assert_eq!(found[0].references, name("app", "P"));
        assert_eq!(found[1].table, name("public", "root"));
        assert!(found[1].statement.starts_with("ALTER TABLE public.root"));
        assert_eq!(foreign_keys("ALTER TABLE nonsense;\n"), None);
    }
}
