//! Net changes of a table whose rows are told apart by all they have: how many more or fewer there are of
//! each. Which one of several equal rows a change hit, nobody can see.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use crate::rows::Unusable;

#[derive(Default)]
pub(crate) struct Whole {
    counts: HashMap<Box<[u8]>, i64, RandomState>,
}

impl Whole {
    pub(super) fn count(
        &mut self,
        row: &[u8],
        count: i64,
        truncated: bool,
    ) -> Result<(), Unusable> {
        let Some(counted) = self.counts.get_mut(row) else {
            if truncated && count < 0 {
                return Err(Unusable("there is no such row"));
            }
            self.counts.insert(row.into(), count);
            return Ok(());
        };
        *counted += count;
        if *counted == 0 {
            self.counts.remove(row);
        }
        Ok(())
    }

    pub(super) fn bytes(&self, entry_bytes: usize) -> usize {
        self.counts.keys().map(|row| row.len() + entry_bytes).sum()
    }

    /// Whether a row of the base that comes by is one of those that went.
    pub(crate) fn meet(&mut self, row: &[u8]) -> bool {
        match self.counts.get_mut(row) {
            Some(count) if *count < 0 => {
                *count += 1;
                true
            }
            _ => false,
        }
    }

    /// A row that went and has not come by.
    pub(crate) fn missing(&self) -> Option<&[u8]> {
        let mut counts = self.counts.iter();
        counts.find(|(_, count)| **count < 0).map(|(row, _)| &**row)
    }

    /// Rows that are added.
    pub(crate) fn new_rows(&self) -> impl Iterator<Item = &[u8]> {
        self.counts.iter().flat_map(|(row, count)| {
            let times = usize::try_from(*count).unwrap_or(0);
            std::iter::repeat_n(&**row, times)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_rows_are_counted() {
        let mut net = Whole::default();
        let mut count = |row: &str, count| net.count(row.as_bytes(), count, false).unwrap();
        count("a", 1);
        count("a", -1);
        count("b", -1);
        count("b", -1);
        count("c", 1);
        count("c", 1);
        assert_eq!(
            [net.meet(b"a"), net.meet(b"b"), net.meet(b"c")],
            [false, true, false]
        );
        assert_eq!(net.missing(), Some(&b"b"[..]));
        assert_eq!([net.meet(b"b"), net.meet(b"b")], [true, false]);
        assert_eq!(net.missing(), None);
        assert_eq!(net.new_rows().collect::<Vec<_>>(), [b"c", b"c"]);
        assert!(Whole::default().count(b"a", -1, true).is_err());
    }
}
