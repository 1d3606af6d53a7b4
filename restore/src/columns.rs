//! Rows of a borrowed table from before its columns were altered: what the stream and the lender's archive have
//! becomes a row of the table as it is in the base.

use std::collections::HashMap;

use lastgood_proto::Lsn;
use lastgood_proto::manifest::{AlteredTable, BaseManifest, Layout, TableEntry, Told};
use lastgood_proto::pgoutput::Value;
use lastgood_proto::segment::{ColumnRecord, Old, RelationRecord, Row, RowBuffer, RowPlace};

use crate::Error;
use crate::binding::Mismatch;
use crate::catalog::TargetTable;
use crate::copy_text::field;

/// What became of a table's columns.
#[derive(Debug)]
pub(crate) struct Columns {
    /// By position.
    layouts: Vec<Layout>,
    /// Consistent point of the base that borrows: from there on it is as in the target.
    until: Lsn,
    /// Number and name, as in that base.
    now: Vec<(u32, String)>,
    /// What rows have in columns that the lender's lack, by number.
    missing: HashMap<u32, Option<String>>,
}

/// How a row becomes one of the table as it is: for each of its columns, where to take it from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Arrangement(Vec<From>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum From {
    /// The place among what there is.
    Place(usize),
    /// There is nothing.
    Value(Option<String>),
}

impl Columns {
    /// None if they are as they were in the lender.
    pub(crate) fn of(manifest: &BaseManifest, table: &TableEntry) -> Option<Self> {
        let altered: &AlteredTable = manifest.altered(table.oid)?;
        if altered.layouts.is_empty() {
            return None;
        }
        let now = table.columns.iter().filter(|column| !column.generated);
        let missing = altered.missing.iter();
        Some(Self {
            layouts: altered.layouts.clone(),
            until: manifest.consistent_point,
            now: now
                .map(|column| (column.number, column.name.clone()))
                .collect(),
            missing: missing
                .map(|(number, value)| (*number, value.clone()))
                .collect(),
        })
    }

    /// What the lender's archive calls them, and how its rows become rows of the table.
    ///
    /// # Errors
    /// If the manifest contradicts itself.
    fn lent(&self) -> Result<(Vec<&str>, Arrangement), Mismatch> {
        let lender = self.layouts.first().map_or(&[][..], |first| &first.columns);
        let names = lender.iter().map(|(_, name)| name.as_str());
        let numbers: Vec<Option<u32>> = lender.iter().map(|(number, _)| Some(*number)).collect();
        Ok((names.collect(), self.arrangement(&numbers)?))
    }

    /// The names they have in the base, in the order of an arrangement.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.now.iter().map(|(_, name)| name.as_str())
    }

    /// Where descriptions begin to say something else.
    pub(crate) fn boundaries(&self) -> impl Iterator<Item = Lsn> {
        let layouts = self.layouts.iter().map(|layout| layout.at);
        layouts.chain([self.until])
    }

    /// How rows that follow a description become rows of the table; none if they are.
    ///
    /// # Errors
    /// If its columns cannot be told.
    pub(crate) fn sent(
        &self,
        record: &RelationRecord,
        commit_lsn: Lsn,
    ) -> Result<Option<Arrangement>, Mismatch> {
        if commit_lsn >= self.until {
            return Ok(None);
        }
        let before = self
            .layouts
            .partition_point(|layout| layout.at <= commit_lsn);
        let at = before.saturating_sub(1);
        let Some(layout) = self.layouts.get(at) else {
            return Ok(None);
        };
        let next = self.layouts.get(at + 1);
        let next = next.map_or(&self.now, |next| &next.columns);
        let numbers = told(layout, next, record).ok_or_else(|| {
            let columns: Vec<&str> = record.columns.iter().map(|it| it.name.as_str()).collect();
            Mismatch(format!(
                "what has become of its columns {} is not known",
                columns.join(", ")
            ))
        })?;
        self.arrangement(&numbers).map(Some)
    }

    fn arrangement(&self, numbers: &[Option<u32>]) -> Result<Arrangement, Mismatch> {
        let from = self.now.iter().map(|(number, name)| {
            let place = numbers.iter().position(|sent| *sent == Some(*number));
            let value = || self.missing.get(number).cloned();
            let from = place.map(From::Place).or_else(|| value().map(From::Value));
            from.ok_or_else(|| Mismatch(format!("column \"{name}\" has no value in earlier rows")))
        });
        Ok(Arrangement(from.collect::<Result<_, _>>()?))
    }

    /// As it would be described now.
    pub(crate) fn described(
        &self,
        record: &RelationRecord,
        table: &TargetTable,
        arrangement: &Arrangement,
    ) -> Result<RelationRecord, Mismatch> {
        let columns = self
            .now
            .iter()
            .zip(&arrangement.0)
            .map(|((_, name), from)| {
                let mut own = table.columns.iter();
                let own = own.find(|own| own.name == *name).ok_or_else(|| {
                    Mismatch(format!(
                        "column \"{name}\" is in the base and not in the target"
                    ))
                })?;
                let sent = match from {
                    From::Place(place) => record.columns.get(*place),
                    From::Value(_) => None,
                };
                // It may have got another name and room since; another type prints its values otherwise.
                let type_oid = match sent {
                    Some(sent) if !(is_text(sent.type_oid) && is_text(own.type_oid)) => {
                        sent.type_oid
                    }
                    _ => own.type_oid,
                };
                Ok(ColumnRecord {
                    name: name.clone(),
                    type_name: sent
                        .map_or(&own.staged_type, |sent| &sent.type_name)
                        .clone(),
                    type_oid,
                    type_modifier: own.type_modifier,
                    key: sent.is_some_and(|sent| sent.key),
                })
            });
        Ok(RelationRecord {
            columns: columns.collect::<Result<_, _>>()?,
            ..record.clone()
        })
    }
}

/// The numbers of the columns that are described, between two layouts; none of one that is no more.
fn told(
    layout: &Layout,
    next: &[(u32, String)],
    record: &RelationRecord,
) -> Option<Vec<Option<u32>>> {
    let sent = &record.columns;
    let (before, next) = (&layout.columns, next);
    let is_in =
        |columns: &[(u32, String)], number: u32| columns.iter().any(|(other, _)| *other == number);
    match layout.until_next {
        Told::Places => {
            let all_left = before.iter().all(|(number, _)| is_in(next, *number));
            // Some are added one after the other, or a single one is dropped.
            let fits = match all_left {
                true => (before.len()..=next.len()).contains(&sent.len()),
                false => sent.len() == next.len() || sent.len() == before.len(),
            };
            let columns = match sent.len() == before.len() {
                true => before.as_slice(),
                false => next,
            };
            let columns = columns.iter().take(sent.len());
            fits.then(|| columns.map(|(number, _)| Some(*number)).collect())
        }
        Told::Names => {
            let kept: Vec<&(u32, String)> = before
                .iter()
                .filter(|(number, _)| is_in(next, *number))
                .collect();
            let new = next.iter().filter(|(number, _)| !is_in(before, *number));
            let mut new = new.map(|(number, _)| *number);
            let mut left = kept.len();
            let numbers = sent.iter().map(|column| {
                if left == 0 {
                    return new.next();
                }
                let found = kept.iter().find(|(_, name)| *name == column.name);
                left -= usize::from(found.is_some());
                found.map(|(number, _)| *number)
            });
            let numbers: Vec<Option<u32>> = numbers.collect();
            (left == 0).then_some(numbers)
        }
    }
}

impl Arrangement {
    pub(crate) fn row(&self, row: Row<'_>, rows: &mut RowBuffer) -> RowPlace {
        self.arrange(row, rows, text)
    }

    pub(crate) fn old(&self, old: Old<Row<'_>>, rows: &mut RowBuffer) -> Old<RowPlace> {
        match old {
            Old::None => Old::None,
            // What is lacking is no part of a key.
            Old::Key(key) => Old::Key(self.arrange(key, rows, |_| Value::Null)),
            Old::Full(row) => Old::Full(self.row(row, rows)),
        }
    }

    fn arrange<'a>(
        &'a self,
        row: Row<'a>,
        rows: &mut RowBuffer,
        lacking: impl Fn(&'a Option<String>) -> Value<'a>,
    ) -> RowPlace {
        rows.push(self.0.iter().map(|from| match from {
            From::Place(place) => row.get(*place).unwrap_or(Value::Null),
            From::Value(value) => lacking(value),
        }))
    }
}

fn text(value: &Option<String>) -> Value<'_> {
    let text = value.as_ref().map(|text| Value::Text(text.as_bytes()));
    text.unwrap_or(Value::Null)
}

/// A table whose columns were altered after its rows were dumped.
pub(crate) struct Altered {
    /// As the lender's archive has them.
    pub(crate) lent: Vec<String>,
    /// As they are, in the order of the pieces.
    pub(crate) columns: Vec<String>,
    pieces: Vec<Piece>,
}

/// One field of a row.
enum Piece {
    /// The place among the lender's.
    Place(usize),
    /// COPY text.
    Text(Vec<u8>),
}

impl Altered {
    /// # Errors
    /// If the manifest contradicts itself.
    pub(crate) fn new(table: &str, columns: &Columns) -> Result<Self, Error> {
        let (lent, arrangement) = columns.lent().map_err(|_| Error::OtherColumns {
            table: table.to_owned(),
        })?;
        let pieces = arrangement.0.iter().map(|from| match from {
            From::Place(place) => Piece::Place(*place),
            From::Value(value) => {
                let mut copied = Vec::new();
                field(text(value), &mut copied);
                Piece::Text(copied)
            }
        });
        Ok(Self {
            lent: lent.into_iter().map(ToOwned::to_owned).collect(),
            columns: columns.names().map(ToOwned::to_owned).collect(),
            pieces: pieces.collect(),
        })
    }

    /// A row of the lender's, as one of the table; false if it has not as many fields.
    pub(crate) fn arrange(&self, row: &[u8], ends: &mut Vec<usize>, wide: &mut Vec<u8>) -> bool {
        ends.clear();
        ends.extend(memchr::memchr_iter(b'\t', row));
        ends.push(row.len());
        wide.clear();
        for (at, piece) in self.pieces.iter().enumerate() {
            if at > 0 {
                wide.push(b'\t');
            }
            match piece {
                Piece::Text(text) => wide.extend_from_slice(text),
                Piece::Place(place) => {
                    let start = place.checked_sub(1).and_then(|before| ends.get(before));
                    let start = start.map_or(0, |end| end + 1);
                    let end = ends.get(*place).copied().unwrap_or(0);
                    wide.extend_from_slice(row.get(start..end).unwrap_or_default());
                }
            }
        }
        ends.len() == self.lent.len()
    }
}

/// `text` and `varchar`, which become each other without a row being written.
fn is_text(oid: lastgood_proto::Oid) -> bool {
    matches!(oid.get(), 25 | 1043)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::apply::Replayed;
    use crate::binding::tests::{relation, target_column, target_table};
    use crate::changes::{BaseTables, BorrowedTable, Change, Changes, Range};
    use lastgood_proto::pgoutput::ReplicaIdentity;
    use lastgood_proto::segment::Record;
    use lastgood_proto::{PgTimestamp, Xid};
    use proptest::prelude::*;

    /// Number, name, and how often it was altered.
    type State = Vec<(u32, String, u32)>;

    #[derive(Debug, Clone)]
    enum Step {
        Add(u8),
        Drop(usize),
        Rename(usize, u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..5_u8).prop_map(Step::Add),
            (0..6_usize).prop_map(Step::Drop),
            (0..6_usize, 0..5_u8).prop_map(|(at, name)| Step::Rename(at, name)),
        ]
    }

    fn layout(state: &State) -> Vec<(u32, String)> {
        let columns = state.iter();
        columns
            .map(|(number, name, _)| (*number, name.clone()))
            .collect()
    }

    fn described(state: &State) -> RelationRecord {
        let columns: Vec<_> = state
            .iter()
            .map(|(_, name, _)| (name.as_str(), 20, false))
            .collect();
        relation(ReplicaIdentity::Default, &columns)
    }

    /// A column dropped and one made in its likeness: a merged segment describes the table once, for the descriptions
    /// are equal, and says both things with it.
    #[test]
    fn a_description_says_something_else_once_a_base_has_seen_other_columns() {
        let record = relation(
            ReplicaIdentity::Default,
            &[("id", 20, true), ("v", 20, false)],
        );
        let numbered = |columns: &[(u32, &str)]| -> Vec<(u32, String)> {
            columns
                .iter()
                .map(|(number, name)| (*number, (*name).to_owned()))
                .collect()
        };
        let layout = |at, columns| Layout {
            at: Lsn::new(at),
            columns,
            until_next: Told::Places,
        };
        let columns = Columns {
            layouts: vec![
                layout(10, numbered(&[(1, "id"), (2, "v")])),
                layout(30, numbered(&[(1, "id")])),
            ],
            until: Lsn::new(50),
            now: numbered(&[(1, "id"), (3, "v")]),
            missing: [(3, Some("new".to_owned()))].into(),
        };
        let name = (record.schema.clone(), record.table.clone());
        let table = target_table(vec![
            target_column("id", 20, "bigint"),
            target_column("v", 20, "bigint"),
        ]);
        let borrowed = BorrowedTable {
            from: Lsn::new(10),
            name: name.clone(),
            columns: Some(columns),
        };
        let base = BaseTables {
            only: None,
            oids: [(name.clone(), record.rel)].into(),
            borrowed: [(record.rel, borrowed)].into_iter().collect(),
            rows_from: Lsn::new(10),
        };
        let range = Range {
            from: Lsn::new(50),
            rows_from: Lsn::new(10),
            last_kept: Some(Lsn::new(60)),
            replayed: Replayed::default(),
        };
        let mut changes = Changes::new(range, Arc::new([(name, table)].into()), Arc::new(base));
        let mut said = |at: u64| {
            let at = Lsn::new(at);
            let begin = Record::Begin {
                xid: Xid::new(1),
                lsn: at,
                time: PgTimestamp::MIN,
                until: None,
            };
            let mut rows = RowBuffer::default();
            let values = [b"7".as_slice(), b"old"].map(Value::Text);
            let place = rows.push(values);
            let insert = Record::Insert {
                rel: record.rel,
                new: place,
            };
            let nothing = RowBuffer::default();
            changes.step(&begin, &nothing).unwrap();
            if at == Lsn::new(20) {
                changes
                    .step(&Record::Relation(Box::new(record.clone())), &nothing)
                    .unwrap();
            }
            let is_sent = match changes.step(&insert, &rows).unwrap() {
                crate::changes::Step::Row(_, _, Change::Insert { new }) => {
                    new.get(1) == Some(Value::Text(b"old"))
                }
                _ => panic!("no row"),
            };
            changes
                .step(&Record::Commit { lsn: at, end: at }, &nothing)
                .unwrap();
            is_sent
        };
        // What the column that is no more had is nothing to the one that came.
        assert_eq!([20, 25].map(&mut said), [false, false]);
        assert_eq!([30, 49, 50].map(said), [true, true, true]);
    }

    /// How columns may be told, by the rules of FORMAT.md.
    fn rules(before: &State, after: &State, came: usize) -> Vec<Told> {
        let find = |state: &State, number: u32| state.iter().find(|it| it.0 == number).cloned();
        let kept = before.iter().filter(|it| find(after, it.0).is_some());
        let kept: Vec<_> = kept.cloned().collect();
        let gone: Vec<_> = before
            .iter()
            .filter(|it| find(after, it.0).is_none())
            .collect();
        let new = after
            .iter()
            .filter(|it| find(before, it.0).is_none())
            .count();
        let passing = came - new;
        let same = kept.iter().all(|it| find(after, it.0).as_ref() == Some(it));
        let last = kept.last().map_or(0, |it| it.0);
        let places = passing == 0 && (gone.is_empty() || gone.len() == 1 && new == 0);
        let names = same && (new == 0 || passing == 0 && gone.iter().all(|it| it.0 < last));
        let told = [(places, Told::Places), (names, Told::Names)];
        let told = told.into_iter().filter(|(may, _)| *may && !kept.is_empty());
        told.map(|(_, told)| told).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// Whatever was done in between, a column that is still there is told for what it is.
        #[test]
        fn columns_are_told_between_two_layouts(count in 1..5_u32, steps in prop::collection::vec(step(), 0..6)) {
            let mut number = count;
            let mut state: State = (1..=count).map(|at| (at, format!("c{at}"), 0)).collect();
            let before = state.clone();
            let mut states = vec![before.clone()];
            for step in steps {
                let name = |name: u8| format!("c{name}");
                let is_free = |state: &State, name: &String| state.iter().all(|it| it.1 != *name);
                match step {
                    Step::Add(to) if is_free(&state, &name(to)) => {
                        number += 1;
                        state.push((number, name(to), 0));
                    }
                    Step::Drop(at) if at < state.len() => drop(state.remove(at)),
                    Step::Rename(at, to) if at < state.len() && is_free(&state, &name(to)) => {
                        state[at].1 = name(to);
                        state[at].2 += 1;
                    }
                    Step::Add(_) | Step::Drop(_) | Step::Rename(..) => {}
                }
                states.push(state.clone());
            }
            let came = usize::try_from(number - count).unwrap();
            for until_next in rules(&before, &state, came) {
                let first = Layout { at: Lsn::new(1), columns: layout(&before), until_next };
                for between in &states {
                    let found = told(&first, &layout(&state), &described(between));
                    let is_there = |number: u32| state.iter().any(|it| it.0 == number);
                    let truth = between.iter().map(|it| is_there(it.0).then_some(it.0));
                    // One that is no more may be known or not.
                    let found = found.map(|found| {
                        let found = found.into_iter();
                        found.map(|it| it.filter(|it| is_there(*it))).collect::<Vec<_>>()
                    });
                    prop_assert_eq!(found, Some(truth.collect::<Vec<_>>()), "{:?} {:?}", until_next, between);
                }
            }
        }
    }
}
