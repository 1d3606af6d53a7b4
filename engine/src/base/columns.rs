//! What may become of a table's columns without its rows being written anew, so that they can still be borrowed: they
//! are renamed, dropped, added, become NOT NULL or get checks.
//!
//! A column keeps its number for life, and the stream and archives have columns in the order of their numbers, but
//! without them. So what must be sure is which columns a row has that was captured between two bases, whatever was done
//! in between and in which order; where it is not, the table is dumped.

use std::collections::BTreeMap;

use lastgood_proto::Lsn;
use lastgood_proto::manifest::{AlteredTable, ColumnEntry, Layout, TableEntry, Told};

use super::mark::Mark;

/// What rows have in columns that they lack, by number.
pub(super) type Missing = BTreeMap<u32, Option<String>>;

/// From one base to the next.
pub(super) struct Step {
    /// None if the columns are as they were.
    told: Option<Told>,
    /// Numbers of those that were not there.
    pub(super) new: Vec<u32>,
    is_redefined: bool,
}

fn find(columns: &[ColumnEntry], number: u32) -> Option<&ColumnEntry> {
    columns.iter().find(|column| column.number == number)
}

impl Step {
    /// None if rows were touched, or if the columns of rows in between cannot be told. `is_redefined`: functions may be
    /// others.
    pub(super) fn between(before: &TableEntry, mark: &Mark, is_redefined: bool) -> Option<Self> {
        let is_touched = before.unaltered.as_ref() != Some(&mark.unaltered);
        if is_touched || mark.types_call && is_redefined {
            return None;
        }
        let attributes = before.attributes?;
        let (mut kept, mut gone, mut new) = (Vec::new(), Vec::new(), Vec::new());
        for column in &before.columns {
            match find(&mark.columns, column.number) {
                Some(now) if now.meaning != column.meaning => return None,
                Some(now) => kept.push((column, now)),
                None => gone.push(column.number),
            }
        }
        for column in &mark.columns {
            if find(&before.columns, column.number).is_none() {
                new.push(column.number);
            }
        }
        // A row that has nothing is no row.
        if kept.is_empty() && !(gone.is_empty() && new.is_empty()) {
            return None;
        }
        // Came and went.
        let others = mark.attributes.checked_sub(attributes)? as usize - new.len();
        let is_same = |(before, now): &(&ColumnEntry, &ColumnEntry)| {
            before.name == now.name
                && before.version == now.version
                && before.generated == now.generated
        };
        let same = kept.iter().all(is_same);
        let last_kept = kept.last().map_or(0, |(before, _)| before.number);
        let by_place = others == 0 && (gone.is_empty() || gone.len() == 1 && new.is_empty());
        let by_name = same
            && (new.is_empty() || others == 0 && gone.iter().all(|number| *number < last_kept));
        let told = match (by_place, by_name) {
            (true, true) if gone.is_empty() && new.is_empty() => None,
            // The stream may have them, which archives have not.
            _ if before
                .columns
                .iter()
                .chain(&mark.columns)
                .any(|it| it.generated) =>
            {
                return None;
            }
            (true, _) => Some(Told::Places),
            (false, true) => Some(Told::Names),
            (false, false) => return None,
        };
        Some(Self {
            told,
            new,
            is_redefined,
        })
    }

    /// What became of the table since its lender, given what had become of it at `at`. None if it cannot be borrowed.
    pub(super) fn take(
        self,
        at: Lsn,
        before: &TableEntry,
        mark: &Mark,
        mut missing: Missing,
        altered: Option<AlteredTable>,
    ) -> Option<Option<AlteredTable>> {
        if self.new.iter().any(|number| !missing.contains_key(number)) {
            return None;
        }
        let mut altered = altered.unwrap_or_else(|| AlteredTable {
            table: before.oid,
            layouts: Vec::new(),
            missing: Vec::new(),
            nullable: Vec::new(),
            unchecked: false,
        });
        missing.extend(std::mem::take(&mut altered.missing));
        let may_be_null = |column: &&ColumnEntry| {
            // Whatever it is now: it may have been NULL for a while.
            let held = match find(&before.columns, column.number) {
                Some(before) => before.not_null && before.version == column.version,
                None => false,
            };
            let held = held && !altered.nullable.contains(&column.number);
            column.not_null && !held && !mark.keys.contains(&column.number)
        };
        let nullable = mark.columns.iter().filter(may_be_null);
        altered.nullable = nullable.map(|column| column.number).collect();
        let may_differ = before.checks != mark.checks || mark.checks_call && self.is_redefined;
        altered.unchecked = mark.checks.is_some() && (altered.unchecked || may_differ);
        let is_looser = altered.unchecked || !altered.nullable.is_empty();
        let is_rigid = |number: &u32| mark.rigid.contains(number);
        // Such a column cannot be loosened.
        if altered.nullable.iter().any(is_rigid) {
            return None;
        }
        missing.retain(|number, _| find(&mark.columns, *number).is_some());
        altered.missing = missing.into_iter().collect();
        let columns = before.columns.iter();
        let columns: Vec<(u32, String)> = columns
            .map(|column| (column.number, column.name.clone()))
            .collect();
        // Nothing has become of them since: then that one says it.
        let is_known =
            |layout: &Layout| layout.columns == columns && layout.until_next == Told::Places;
        match self.told {
            None => {}
            Some(Told::Places) if altered.layouts.last().is_some_and(is_known) => {}
            Some(until_next) => altered.layouts.push(Layout {
                at,
                columns,
                until_next,
            }),
        }
        let is_altered = is_looser || !altered.layouts.is_empty();
        Some(is_altered.then_some(altered))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lastgood_proto::Oid;
    use lastgood_proto::manifest::Protection;

    /// A job that repeats its GRANT on a column leaves another version of it each time.
    #[test]
    fn what_alters_nothing_adds_no_layout() {
        let columns = |version| {
            vec![ColumnEntry {
                number: 1,
                name: "id".to_owned(),
                meaning: "23".to_owned(),
                version,
                not_null: false,
                generated: false,
            }]
        };
        let mut altered = None;
        for version in 1..9 {
            let before = TableEntry {
                oid: Oid::new(1),
                schema: "public".to_owned(),
                name: "t".to_owned(),
                kind: 'r',
                protection: Protection::Full,
                identity_index: None,
                rows_estimate: None,
                bytes: 0,
                unaltered: Some("x".to_owned()),
                checks: None,
                columns: columns(version),
                attributes: Some(1),
            };
            let mark = Mark {
                unaltered: "x".to_owned(),
                checks: None,
                attributes: 1,
                columns: columns(version + 1),
                rigid: Vec::new(),
                keys: Vec::new(),
                checks_call: false,
                types_call: false,
            };
            let step = Step::between(&before, &mark, false).unwrap();
            let at = Lsn::new(u64::from(version));
            let taken = step.take(at, &before, &mark, Missing::new(), altered);
            altered = taken.unwrap();
        }
        let layouts = altered.unwrap().layouts;
        assert_eq!(layouts.len(), 1);
        assert_eq!(layouts[0].at, Lsn::new(1));
    }
}
