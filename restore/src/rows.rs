//! Changes of one table on their way to the target: COPY text, in memory.
//!
//! New rows that come before any other change of the same batch go straight into the table; from
//! the first UPDATE or DELETE on, everything is staged, so that the order within the table holds.
//! Between tables no order is needed: while rows are replayed there is no foreign key, no trigger
//! and no rule.
//!
//! An UPDATE that leaves the key alone and sends every value that an earlier one of the same row in the
//! same batch sent makes that one needless, so it is left out. Within one transaction the server cannot prune
//! the versions of a row, and a counter that is updated ten thousand times would be searched through
//! as many versions each time.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use lastgood_proto::pgoutput::Value;
use lastgood_proto::segment::{Old, Row};

use crate::binding::{Binding, Bound, Find, Layout};
use crate::copy_text::{array, composite, field, null};

/// A change that cannot be put into a row: one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unusable(pub(crate) &'static str);

/// A batch of one table.
#[derive(Debug, Clone)]
pub(crate) struct Rows {
    pub(crate) binding: Arc<Binding>,
    /// COPY text of rows for the table itself.
    pub(crate) direct: Vec<u8>,
    /// The number of the change in each line of `direct`.
    pub(crate) direct_numbers: Vec<u64>,
    /// COPY text for the staging table, with lines that are left out.
    staged: Vec<u8>,
    left_out: Vec<Range<usize>>,
    staged_rows: u64,
    /// The UPDATEs of each row that still stand, by key, if nothing else happened to that row since.
    updates: HashMap<Vec<u8>, Vec<Update>>,
}

/// An UPDATE that a later one may make needless.
#[derive(Debug, Clone)]
struct Update {
    line: Range<usize>,
    /// The places of the values that were not sent, in order.
    unchanged: Vec<usize>,
}

impl Update {
    /// Sends whatever `earlier` sent.
    fn covers(&self, earlier: &Self) -> bool {
        let kept = |at: &usize| earlier.unchanged.binary_search(at).is_ok();
        self.unchanged.iter().all(kept)
    }
}

impl Rows {
    pub(crate) fn new(binding: Arc<Binding>) -> Self {
        Self {
            binding,
            direct: Vec::new(),
            direct_numbers: Vec::new(),
            staged: Vec::new(),
            left_out: Vec::new(),
            staged_rows: 0,
            updates: HashMap::new(),
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.direct.len() + self.staged.len()
    }

    pub(crate) fn insert(&mut self, number: u64, new: Row<'_>) -> Result<(), Unusable> {
        if new.has_unchanged() {
            return Err(Unusable("a new row lacks a value"));
        }
        if self.staged_rows == 0 {
            let Self {
                binding, direct, ..
            } = self;
            fields(&binding.written, new, direct)?;
            direct.push(b'\n');
            self.direct_numbers.push(number);
            return Ok(());
        }
        self.stage(number, b'i', None, Some(new))
    }

    pub(crate) fn update(
        &mut self,
        number: u64,
        old: Old<Row<'_>>,
        new: Row<'_>,
    ) -> Result<(), Unusable> {
        let places = new.iter().enumerate();
        let unchanged: Vec<usize> = places
            .filter_map(|(at, value)| (value == Value::Unchanged).then_some(at))
            .collect();
        let op = match unchanged.is_empty() {
            true => b'u',
            false => b'v',
        };
        let key = match old {
            // The key did not change, so the new row has it.
            Old::None => new,
            Old::Key(key) | Old::Full(key) => key,
        };
        let start = self.staged.len();
        self.stage(number, op, Some(key), Some(new))?;
        match (old, &self.binding.find) {
            (Old::None, Find::Key(columns)) => {
                let mut found_by = Vec::new();
                fields(columns, key, &mut found_by)?;
                let line = start..self.staged.len();
                let update = Update { line, unchanged };
                let standing = self.updates.entry(found_by).or_default();
                while let Some(earlier) = standing.pop_if(|earlier| update.covers(earlier)) {
                    self.left_out.push(earlier.line);
                }
                standing.push(update);
            }
            // Another row may have this one's key from here on.
            (Old::Key(_) | Old::Full(_), _) | (Old::None, Find::Row(_)) => self.updates.clear(),
        }
        Ok(())
    }

    pub(crate) fn delete(&mut self, number: u64, old: Old<Row<'_>>) -> Result<(), Unusable> {
        match old {
            Old::None => Err(Unusable("a DELETE names no row")),
            Old::Key(key) | Old::Full(key) => {
                self.stage(number, b'd', Some(key), None)?;
                let mut found_by = Vec::new();
                fields(self.binding.find.columns(), key, &mut found_by)?;
                self.updates.remove(&found_by);
                Ok(())
            }
        }
    }

    pub(crate) const fn is_staged(&self) -> bool {
        self.staged_rows > 0
    }

    /// The lines for the staging table.
    pub(crate) fn into_staged(mut self) -> Vec<u8> {
        self.left_out.sort_by_key(|line| line.start);
        if self.left_out.is_empty() {
            return self.staged;
        }
        let mut kept = Vec::with_capacity(self.staged.len());
        let mut from = 0;
        for line in self.left_out {
            kept.extend_from_slice(&self.staged[from..line.start]);
            from = line.end;
        }
        kept.extend_from_slice(&self.staged[from..]);
        kept
    }

    fn stage(
        &mut self,
        number: u64,
        op: u8,
        old: Option<Row<'_>>,
        new: Option<Row<'_>>,
    ) -> Result<(), Unusable> {
        let Self {
            binding,
            staged: out,
            ..
        } = self;
        let find = binding.find.columns();
        if let Some(old) = old {
            // A whole row without columns is like every other one; an empty key finds nothing.
            if matches!(&binding.find, Find::Key(columns) if columns.is_empty()) {
                return Err(Unusable(
                    "an UPDATE or DELETE in a table without replica identity",
                ));
            }
            for bound in find {
                match (old.get(bound.sent), &binding.find) {
                    (None, _) => return Err(Unusable("a row is too short")),
                    (Some(Value::Unchanged), _) | (Some(Value::Null), Find::Key(_)) => {
                        return Err(Unusable("a value of the replica identity was not sent"));
                    }
                    (Some(_), _) => {}
                }
            }
        }
        out.extend_from_slice(number.to_string().as_bytes());
        out.extend_from_slice(&[b'\t', op, b'\t']);
        match new.filter(|_| op == b'v') {
            Some(new) => mask(binding, new, out)?,
            None => null(out),
        }
        match binding.layout {
            Layout::Columns => {
                if !find.is_empty() || !binding.written.is_empty() {
                    out.push(b'\t');
                }
                let nulls = |count: usize, out: &mut Vec<u8>| {
                    for at in 0..count {
                        if at > 0 {
                            out.push(b'\t');
                        }
                        null(out);
                    }
                };
                match old {
                    Some(old) => fields(find, old, out)?,
                    None => nulls(find.len(), out),
                }
                if !find.is_empty() && !binding.written.is_empty() {
                    out.push(b'\t');
                }
                match new {
                    Some(new) => fields(&binding.written, new, out)?,
                    None => nulls(binding.written.len(), out),
                }
            }
            Layout::Rows => {
                let typed = matches!(binding.find, Find::Key(_));
                for (columns, row, typed) in [(find, old, typed), (&binding.written[..], new, true)]
                {
                    out.push(b'\t');
                    let Some(row) = row else {
                        null(out);
                        continue;
                    };
                    whole(columns, row)?;
                    let values = columns.iter().filter_map(|bound| row.get(bound.sent));
                    match typed {
                        true => composite(values, out),
                        false => array(values, out),
                    }
                }
            }
        }
        out.push(b'\n');
        self.staged_rows += 1;
        Ok(())
    }
}

/// Fields separated by tabs.
fn fields(columns: &[Bound], row: Row<'_>, out: &mut Vec<u8>) -> Result<(), Unusable> {
    for (at, bound) in columns.iter().enumerate() {
        if at > 0 {
            out.push(b'\t');
        }
        let value = row.get(bound.sent);
        field(value.ok_or(Unusable("a row is too short"))?, out);
    }
    Ok(())
}

fn whole(columns: &[Bound], row: Row<'_>) -> Result<(), Unusable> {
    let fits = columns.iter().all(|bound| bound.sent < row.len());
    fits.then_some(()).ok_or(Unusable("a row is too short"))
}

/// One bit a written column: 1 keeps the row's own value.
fn mask(binding: &Binding, new: Row<'_>, out: &mut Vec<u8>) -> Result<(), Unusable> {
    for bound in &binding.written {
        match new.get(bound.sent) {
            Some(Value::Unchanged) if binding.column(*bound).toastable => out.push(b'1'),
            Some(Value::Unchanged) => {
                return Err(Unusable(
                    "a value that is never stored out of line was not sent",
                ));
            }
            Some(_) => out.push(b'0'),
            None => return Err(Unusable("a row is too short")),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::binding::tests::{relation, target_column, target_table};
    use lastgood_proto::pgoutput::ReplicaIdentity;
    use lastgood_proto::segment::RowBuffer;

    fn rows() -> Rows {
        let relation = relation(
            ReplicaIdentity::Default,
            &[("id", 20, true), ("v", 25, false)],
        );
        let table = target_table(vec![
            target_column("id", 20, "bigint"),
            target_column("v", 25, "text"),
        ]);
        Rows::new(Arc::new(Binding::new(&relation, &table).unwrap()))
    }

    fn of(values: &[Value<'_>]) -> Row<'static> {
        let buffer: &mut RowBuffer = Box::leak(Box::default());
        let place = buffer.push(values.iter().copied());
        buffer.row(&place)
    }

    fn row(id: u32, value: Option<&str>) -> Row<'static> {
        let value = value.map_or(Value::Unchanged, |text| Value::Text(text.as_bytes()));
        of(&[Value::Text(id.to_string().as_bytes()), value])
    }

    fn key() -> Old<Row<'static>> {
        Old::Key(of(&[Value::Text(b"1"), Value::Null]))
    }

    fn check(rows: Rows, expect: &[&str]) {
        let text = String::from_utf8(rows.into_staged()).unwrap();
        assert_eq!(text.lines().collect::<Vec<_>>(), expect);
    }

    #[test]
    fn only_an_update_that_says_as_much_stands_for_an_earlier_one() {
        let updates = |values: &[(u32, Option<&str>)]| {
            let mut rows = rows();
            for (number, (id, value)) in (0..).zip(values) {
                rows.update(number, Old::None, row(*id, *value)).unwrap();
            }
            rows
        };
        let all = [
            (1, Some("a")),
            (2, Some("b")),
            (1, Some("c")),
            (1, None),
            (1, None),
        ];
        check(
            updates(&all),
            &[
                "1\tu\t\\N\t2\t2\tb",
                "2\tu\t\\N\t1\t1\tc",
                "4\tv\t01\t1\t1\t\\N",
            ],
        );
        let all = [all.as_slice(), &[(1, Some("d"))]].concat();
        check(updates(&all), &["1\tu\t\\N\t2\t2\tb", "5\tu\t\\N\t1\t1\td"]);

        // The row in between is another one.
        let mut two = rows();
        two.update(0, Old::None, row(1, Some("a"))).unwrap();
        two.delete(1, Old::Key(row(1, None))).unwrap_or(());
        two.delete(1, key()).unwrap();
        two.insert(2, row(1, Some("b"))).unwrap();
        two.update(3, Old::None, row(1, Some("c"))).unwrap();
        assert_eq!(
            two.into_staged()
                .iter()
                .filter(|byte| **byte == b'\n')
                .count(),
            5
        );

        let mut three = rows();
        three.update(0, Old::None, row(1, Some("a"))).unwrap();
        three.update(1, key(), row(2, Some("a"))).unwrap();
        three.update(2, key(), row(1, Some("a"))).unwrap();
        three.update(3, Old::None, row(1, Some("b"))).unwrap();
        assert_eq!(
            three
                .into_staged()
                .iter()
                .filter(|byte| **byte == b'\n')
                .count(),
            4
        );
    }

    #[test]
    fn rows_before_any_other_change_go_straight_in() {
        let mut rows = rows();
        rows.insert(7, row(1, Some("a\tb"))).unwrap();
        assert_eq!(rows.direct, b"1\ta\\tb\n");
        rows.delete(8, key()).unwrap();
        rows.insert(9, row(1, Some("c"))).unwrap();
        assert_eq!(rows.direct_numbers, [7]);
        check(rows, &["8\td\t\\N\t1\t\\N\t\\N", "9\ti\t\\N\t\\N\t1\tc"]);
    }

    #[test]
    fn what_cannot_be() {
        let mut rows = rows();
        assert!(rows.insert(0, row(1, None)).is_err());
        assert!(rows.delete(0, Old::None).is_err());
        let unsent = of(&[Value::Unchanged, Value::Null]);
        assert!(rows.update(0, Old::None, unsent).is_err());
        assert!(rows.update(0, Old::None, of(&[Value::Null])).is_err());
    }
}
