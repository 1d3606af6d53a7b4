//! An archive's table of contents, as `pg_restore --list` prints it.

use std::fmt;

use lastgood_proto::encoding;

/// One entry. Its text is kept as printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TocEntry {
    line: String,
    dump_id: u32,
    catalog_oid: u32,
    object_oid: u32,
    kind: String,
    rest: String,
}

/// Kinds whose name has blanks; any other is one word. Longer ones before their own beginnings.
const LONG_KINDS: &[&str] = &[
    "ACCESS METHOD",
    "BLOB METADATA",
    "CHECK CONSTRAINT",
    "DATABASE PROPERTIES",
    "DEFAULT ACL",
    "EVENT TRIGGER",
    "FK CONSTRAINT",
    "FOREIGN DATA WRAPPER",
    "FOREIGN SERVER",
    "FOREIGN TABLE",
    "INDEX ATTACH",
    "MATERIALIZED VIEW DATA",
    "MATERIALIZED VIEW",
    "OPERATOR CLASS",
    "OPERATOR FAMILY",
    "PROCEDURAL LANGUAGE",
    "PUBLICATION TABLES IN SCHEMA",
    "PUBLICATION TABLE",
    "ROW SECURITY",
    "SECURITY LABEL",
    "SEQUENCE OWNED BY",
    "SEQUENCE SET",
    "SHELL TYPE",
    "STATISTICS DATA",
    "SUBSCRIPTION TABLE",
    "TABLE ATTACH",
    "TABLE DATA",
    "TEXT SEARCH CONFIGURATION",
    "TEXT SEARCH DICTIONARY",
    "TEXT SEARCH PARSER",
    "TEXT SEARCH TEMPLATE",
    "USER MAPPING",
];

impl TocEntry {
    /// As printed, in UTF-8; for a list file, of which the tool takes the dump id only.
    #[must_use]
    pub fn line(&self) -> &str {
        &self.line
    }

    #[must_use]
    pub fn dump_id(&self) -> u32 {
        self.dump_id
    }

    /// The system catalog that the object stands in, by its OID; 0 for entries that are no object.
    #[must_use]
    pub fn catalog_oid(&self) -> u32 {
        self.catalog_oid
    }

    /// The object's OID on the server that was dumped; 0 if it is none.
    #[must_use]
    pub fn object_oid(&self) -> u32 {
        self.object_oid
    }

    /// Such as `TABLE DATA`, `CONSTRAINT`, `FK CONSTRAINT`, `INDEX`.
    #[must_use]
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// Schema (`-` if it has none), tag and owner, with blanks between. Names may hold blanks
    /// themselves, so this is not taken apart here.
    #[must_use]
    pub fn rest(&self) -> &str {
        &self.rest
    }

    /// Whether this is the entry of that schema and tag. For a constraint, a trigger or a policy
    /// the tag is the table's name and its own.
    #[must_use]
    pub fn is(&self, kind: &str, schema: &str, tag: &str) -> bool {
        self.kind == kind
            && self
                .rest
                .strip_prefix(&printed(schema))
                .and_then(|rest| rest.strip_prefix(' '))
                .and_then(|rest| rest.strip_prefix(&printed(tag)))
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(' '))
    }
}

/// The list is made of lines, so the tool prints a line break in a name as a blank.
fn printed(name: &str) -> String {
    name.replace(['\n', '\r'], " ")
}

impl fmt::Display for TocEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

/// The list as printed, its names in whatever the archive is in.
pub struct Contents(pub(super) Vec<u8>);

impl Contents {
    /// The entries in their order, of an archive in this encoding. Comments and empty lines are left
    /// out.
    #[must_use]
    pub fn entries(&self, encoding: &str) -> Vec<TocEntry> {
        let text = encoding::decode(encoding, &self.0);
        text.lines().filter_map(entry).collect()
    }
}

/// `3456; 1259 16385 TABLE public users owner`
fn entry(line: &str) -> Option<TocEntry> {
    let (dump_id, rest) = line.split_once("; ")?;
    let mut parts = rest.splitn(3, ' ');
    let (catalog, object, rest) = (parts.next()?, parts.next()?, parts.next()?);
    let kind = LONG_KINDS
        .iter()
        .copied()
        .find(|kind| {
            rest.strip_prefix(kind)
                .is_some_and(|rest| rest.starts_with(' '))
        })
        .or_else(|| rest.split(' ').next())?;
    Some(TocEntry {
        dump_id: dump_id.parse().ok()?,
        catalog_oid: catalog.parse().ok()?,
        object_oid: object.parse().ok()?,
        kind: kind.to_owned(),
        rest: rest.strip_prefix(kind)?.trim_start().to_owned(),
        line: line.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let text = "\
;
; Archive created at 2026-11-20 20:00:00 UTC
;
214; 1259 16385 TABLE public users postgres
3336; 0 16385 TABLE DATA public users postgres
3190; 2606 16391 CONSTRAINT public users users_pkey postgres
3191; 2606 16400 FK CONSTRAINT my schema odd name odd fk postgres
2; 3079 16500 EXTENSION - pgcrypto
";
        let entries = Contents(text.into()).entries("UTF8");
        assert_eq!(entries.len(), 5);
        assert_eq!(
            entries[0].line(),
            "214; 1259 16385 TABLE public users postgres"
        );
        assert!(entries[0].is("TABLE", "public", "users"));
        assert!(entries[1].is("TABLE DATA", "public", "users"));
        assert!(!entries[1].is("TABLE", "public", "users"));
        assert!(entries[2].is("CONSTRAINT", "public", "users users_pkey"));
        assert!(entries[3].is("FK CONSTRAINT", "my schema", "odd name odd fk"));
        assert_eq!(entries[3].object_oid(), 16400);
        assert_eq!(entries[4].kind(), "EXTENSION");
        assert!(entries[4].is("EXTENSION", "-", "pgcrypto"));
    }
}
