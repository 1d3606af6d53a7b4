//! Changes of one table on their way to the target: COPY text, in memory.
//!
//! New rows that come before any other change of the same batch go straight into the table; from
//! the first UPDATE or DELETE on, everything is staged, so that the order within the table holds.
//! Between tables no order is needed: while rows are replayed there is no foreign key, no trigger
//! and no rule.

use std::sync::Arc;

use lastgood_proto::segment::{Cell, Old};

use crate::binding::{Binding, Bound, Find, Layout};
use crate::copy_text::{array, field, null};

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
    /// COPY text for the staging table.
    pub(crate) staged: Vec<u8>,
    pub(crate) staged_rows: u64,
}

impl Rows {
    pub(crate) const fn new(binding: Arc<Binding>) -> Self {
        Self {
            binding,
            direct: Vec::new(),
            direct_numbers: Vec::new(),
            staged: Vec::new(),
            staged_rows: 0,
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.direct.len() + self.staged.len()
    }

    pub(crate) fn insert(&mut self, number: u64, new: &[Cell]) -> Result<(), Unusable> {
        if new.contains(&Cell::Unchanged) {
            return Err(Unusable("a new row lacks a value"));
        }
        if self.staged_rows == 0 {
            let Self {
                binding, direct, ..
            } = self;
            cells(&binding.written, new, direct)?;
            direct.push(b'\n');
            self.direct_numbers.push(number);
            return Ok(());
        }
        self.stage(number, b'i', None, Some(new))
    }

    pub(crate) fn update(&mut self, number: u64, old: &Old, new: &[Cell]) -> Result<(), Unusable> {
        let op = match new.contains(&Cell::Unchanged) {
            true => b'v',
            false => b'u',
        };
        let key = match old {
            // The key did not change, so the new row has it.
            Old::None => new,
            Old::Key(key) | Old::Full(key) => key,
        };
        self.stage(number, op, Some(key), Some(new))
    }

    pub(crate) fn delete(&mut self, number: u64, old: &Old) -> Result<(), Unusable> {
        match old {
            Old::None => Err(Unusable("a DELETE names no row")),
            Old::Key(key) | Old::Full(key) => self.stage(number, b'd', Some(key), None),
        }
    }

    fn stage(
        &mut self,
        number: u64,
        op: u8,
        old: Option<&[Cell]>,
        new: Option<&[Cell]>,
    ) -> Result<(), Unusable> {
        let Self {
            binding,
            staged: out,
            ..
        } = self;
        let find = binding.find.columns();
        if let Some(old) = old {
            if find.is_empty() {
                return Err(Unusable(
                    "an UPDATE or DELETE in a table without replica identity",
                ));
            }
            for bound in find {
                match (old.get(bound.sent), &binding.find) {
                    (None, _) => return Err(Unusable("a row is too short")),
                    (Some(Cell::Unchanged), _) | (Some(Cell::Null), Find::Key(_)) => {
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
                    Some(old) => cells(find, old, out)?,
                    None => nulls(find.len(), out),
                }
                if !find.is_empty() && !binding.written.is_empty() {
                    out.push(b'\t');
                }
                match new {
                    Some(new) => cells(&binding.written, new, out)?,
                    None => nulls(binding.written.len(), out),
                }
            }
            Layout::Arrays => {
                for (columns, row) in [(find, old), (&binding.written[..], new)] {
                    out.push(b'\t');
                    match row {
                        Some(row) => {
                            whole(columns, row)?;
                            array(columns.iter().filter_map(|bound| row.get(bound.sent)), out);
                        }
                        None => null(out),
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
fn cells(columns: &[Bound], row: &[Cell], out: &mut Vec<u8>) -> Result<(), Unusable> {
    for (at, bound) in columns.iter().enumerate() {
        if at > 0 {
            out.push(b'\t');
        }
        let cell = row.get(bound.sent);
        field(cell.ok_or(Unusable("a row is too short"))?, out);
    }
    Ok(())
}

fn whole(columns: &[Bound], row: &[Cell]) -> Result<(), Unusable> {
    let fits = columns.iter().all(|bound| bound.sent < row.len());
    fits.then_some(()).ok_or(Unusable("a row is too short"))
}

/// One bit a written column: 1 keeps the row's own value.
fn mask(binding: &Binding, new: &[Cell], out: &mut Vec<u8>) -> Result<(), Unusable> {
    for bound in &binding.written {
        match new.get(bound.sent) {
            Some(Cell::Unchanged) if binding.column(*bound).toastable => out.push(b'1'),
            Some(Cell::Unchanged) => {
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
