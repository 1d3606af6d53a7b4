//! A relation of the stream bound to the table of the target that has its name.
//!
//! The two must agree column by column; where they do not, the schema changed inside the window and
//! the restore fails rather than guess. Generated columns are computed by the target and never
//! written, but may still help to find a row.

use lastgood_proto::Oid;
use lastgood_proto::pgoutput::ReplicaIdentity;
use lastgood_proto::segment::RelationRecord;

use crate::catalog::{TargetColumn, TargetTable};

/// OIDs below are the same on every server of every version (`transam.h`, FirstGenbkiObjectId).
const STABLE_OIDS_BELOW: u32 = 10_000;

/// Staging tables with more columns than this are laid out as two values. A row of up to a hundred
/// columns always fits a page, however its values are stored: none needs more than 64 bytes there.
const STAGED_COLUMNS_MAX: usize = 100;

/// How rows of one relation are written to its table.
#[derive(Debug, Clone)]
pub(crate) struct Binding {
    pub(crate) rel: Oid,
    pub(crate) table: TargetTable,
    /// The written columns: place in the stream's tuple, and in `table.columns`.
    pub(crate) written: Vec<Bound>,
    pub(crate) find: Find,
    pub(crate) layout: Layout,
}

/// One column on both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bound {
    pub(crate) sent: usize,
    pub(crate) column: usize,
}

/// How an UPDATE or DELETE finds its row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Find {
    /// By the columns of the replica identity; empty if it has none.
    Key(Vec<Bound>),
    /// By the whole row, REPLICA IDENTITY FULL.
    Row(Vec<Bound>),
}

/// The form of a staging table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// One typed column for each value.
    Columns,
    /// Old and new row as one value each: of a composite type, or as an array of text where they are
    /// compared as text.
    Rows,
}

/// Stream and target disagree: one sentence for the operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mismatch(pub(crate) String);

impl Find {
    pub(crate) fn columns(&self) -> &[Bound] {
        match self {
            Find::Key(columns) | Find::Row(columns) => columns,
        }
    }
}

impl Binding {
    /// # Errors
    /// If a column is missing on either side or has another type.
    pub(crate) fn new(relation: &RelationRecord, table: &TargetTable) -> Result<Self, Mismatch> {
        let mut written = Vec::new();
        let mut old = Vec::new();
        for (sent, column) in relation.columns.iter().enumerate() {
            let found = table.columns.iter().position(|own| own.name == column.name);
            let Some(at) = found else {
                return Err(Mismatch(format!(
                    "column \"{}\" is not in the base",
                    column.name
                )));
            };
            let own = &table.columns[at];
            let same_type = column.type_oid == own.type_oid
                || column.type_oid.get() >= STABLE_OIDS_BELOW
                    && own.type_oid.get() >= STABLE_OIDS_BELOW;
            if !same_type || column.type_modifier != own.type_modifier {
                return Err(Mismatch(format!(
                    "column \"{}\" is {} in the stream and {} in the base",
                    column.name, column.type_name, own.staged_type
                )));
            }
            let bound = Bound { sent, column: at };
            let whole = relation.identity == ReplicaIdentity::Full;
            if !own.generated {
                written.push(bound);
            }
            if whole && !own.generated || !whole && column.key {
                old.push(bound);
            }
        }
        let sent = |own: &TargetColumn| {
            relation
                .columns
                .iter()
                .any(|column| column.name == own.name)
        };
        let mut own = table.columns.iter();
        if let Some(missing) = own.find(|own| !own.generated && !sent(own)) {
            return Err(Mismatch(format!(
                "column \"{}\" is in the base and not in the stream",
                missing.name
            )));
        }
        let staged = written.len() + old.len() + 3;
        Ok(Self {
            rel: relation.rel,
            table: table.clone(),
            written,
            find: match relation.identity {
                ReplicaIdentity::Full => Find::Row(old),
                ReplicaIdentity::Default | ReplicaIdentity::Nothing | ReplicaIdentity::Index => {
                    Find::Key(old)
                }
            },
            layout: if staged <= STAGED_COLUMNS_MAX {
                Layout::Columns
            } else {
                Layout::Rows
            },
        })
    }

    pub(crate) fn column(&self, bound: Bound) -> &TargetColumn {
        &self.table.columns[bound.column]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use lastgood_proto::segment::ColumnRecord;

    pub(crate) fn target_column(name: &str, type_oid: u32, staged_type: &str) -> TargetColumn {
        TargetColumn {
            name: name.to_owned(),
            type_oid: Oid::new(type_oid),
            type_modifier: -1,
            staged_type: staged_type.to_owned(),
            generated: false,
            toastable: staged_type == "text",
            collation: None,
            equality: (name == "id").then(|| "OPERATOR(pg_catalog.=)".to_owned()),
            hash_equality: Some("OPERATOR(pg_catalog.=)".to_owned()),
        }
    }

    pub(crate) fn target_table(columns: Vec<TargetColumn>) -> TargetTable {
        TargetTable {
            schema: "public".to_owned(),
            name: "t".to_owned(),
            kind: 'r',
            is_scattered: false,
            columns,
        }
    }

    pub(crate) fn relation(
        identity: ReplicaIdentity,
        columns: &[(&str, u32, bool)],
    ) -> RelationRecord {
        RelationRecord {
            rel: Oid::new(16_400),
            schema: "public".to_owned(),
            table: "t".to_owned(),
            identity,
            columns: columns
                .iter()
                .map(|(name, type_oid, key)| ColumnRecord {
                    name: (*name).to_owned(),
                    type_name: format!("type {type_oid}"),
                    type_oid: Oid::new(*type_oid),
                    type_modifier: -1,
                    key: *key,
                })
                .collect(),
        }
    }

    fn check(columns: &[(&str, u32, bool)], expect: Result<(), &str>) {
        let mut generated = target_column("twice", 20, "bigint");
        generated.generated = true;
        let table = target_table(vec![
            target_column("id", 20, "bigint"),
            target_column("note", 25, "text"),
            generated,
            target_column("mood", 16_500, "public.mood"),
        ]);
        let relation = relation(ReplicaIdentity::Default, columns);
        let result = Binding::new(&relation, &table).map(|_| ());
        assert_eq!(result, expect.map_err(|text| Mismatch(text.to_owned())));
    }

    #[test]
    fn a_changed_schema_is_refused() {
        check(
            &[
                ("id", 20, true),
                ("note", 25, false),
                ("mood", 99_999, false),
            ],
            Ok(()),
        );
        // As 18 sends it with publish_generated_columns.
        check(
            &[
                ("id", 20, true),
                ("note", 25, false),
                ("twice", 20, false),
                ("mood", 99_999, false),
            ],
            Ok(()),
        );
        check(
            &[("id", 20, true), ("note", 25, false)],
            Err("column \"mood\" is in the base and not in the stream"),
        );
        check(
            &[
                ("id", 20, true),
                ("note", 25, false),
                ("mood", 1, false),
                ("more", 25, false),
            ],
            Err("column \"mood\" is type 1 in the stream and public.mood in the base"),
        );
        check(
            &[
                ("id", 20, true),
                ("note", 25, false),
                ("mood", 99_999, false),
                ("more", 25, false),
            ],
            Err("column \"more\" is not in the base"),
        );
        check(
            &[("id", 23, true)],
            Err("column \"id\" is type 23 in the stream and bigint in the base"),
        );
    }

    #[test]
    fn a_wide_table_is_staged_as_rows() {
        let layout = |count: usize, identity| {
            let names: Vec<String> = (0..count).map(|number| format!("c{number}")).collect();
            let columns: Vec<_> = names
                .iter()
                .map(|name| (name.as_str(), 20, false))
                .collect();
            let own = names.iter().map(|name| target_column(name, 20, "bigint"));
            let table = target_table(own.collect());
            Binding::new(&relation(identity, &columns), &table)
                .unwrap()
                .layout
        };
        assert_eq!(layout(97, ReplicaIdentity::Nothing), Layout::Columns);
        assert_eq!(layout(98, ReplicaIdentity::Nothing), Layout::Rows);
        assert_eq!(layout(49, ReplicaIdentity::Full), Layout::Rows);
    }
}
