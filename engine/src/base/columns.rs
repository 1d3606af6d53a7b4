//! What may become of a table's columns without its rows being written anew, so that they can still be borrowed: they
//! are renamed, dropped, added, become NOT NULL or get checks.
//!
//! A column keeps its number for life, and the stream and archives have columns in the order of their numbers, but
//! without them. So what must be sure is which columns a row has that was captured between two bases, whatever was done
//! in between and in which order; where it is not, the table is dumped.

use std::collections::BTreeMap;

use lastgood_proto::Lsn;
use lastgood_proto::manifest::{AlteredTable, ColumnEntry, Layout, TableEntry, Told};

use super::borrow::Mark;

/// What rows have in columns that they lack, by number.
pub(super) type Missing = BTreeMap<u32, Option<String>>;

/// From one base to the next.
pub(super) struct Step {
    /// None if the columns are as they were.
    told: Option<Told>,
    /// Numbers of those that were not there.
    pub(super) new: Vec<u32>,
}

fn find(columns: &[ColumnEntry], number: u32) -> Option<&ColumnEntry> {
    columns.iter().find(|column| column.number == number)
}

impl Step {
    /// None if rows were touched, or if the columns of rows in between cannot be told.
    pub(super) fn between(before: &TableEntry, mark: &Mark) -> Option<Self> {
        if before.unaltered.as_ref() != Some(&mark.unaltered) {
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
        if kept.is_empty() {
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
        Some(Self { told, new })
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
        altered.unchecked =
            mark.checks.is_some() && (altered.unchecked || before.checks != mark.checks);
        let is_looser = altered.unchecked || !altered.nullable.is_empty();
        let is_identity = |number: &u32| mark.identities.contains(number);
        // Such a column cannot be loosened.
        if altered.nullable.iter().any(is_identity) {
            return None;
        }
        missing.retain(|number, _| find(&mark.columns, *number).is_some());
        altered.missing = missing.into_iter().collect();
        if let Some(until_next) = self.told {
            let columns = before.columns.iter();
            altered.layouts.push(Layout {
                at,
                columns: columns
                    .map(|column| (column.number, column.name.clone()))
                    .collect(),
                until_next,
            });
        }
        let is_altered = is_looser || !altered.layouts.is_empty();
        Some(is_altered.then_some(altered))
    }
}
