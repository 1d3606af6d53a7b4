//! Rows as they are read: many in two pieces of memory, so that none costs an allocation.
//!
//! `Debug` of a value shows its size only: row values go into no log.

use std::fmt;
use std::ops::Range;

use crate::pgoutput::Value;

/// What the memory keeps when longer rows have passed.
const KEPT_BYTES: usize = 1 << 20;
const KEPT_VALUES: usize = 1 << 16;

/// Rows, one after another.
#[derive(Default)]
pub struct RowBuffer {
    /// Of all values.
    text: Vec<u8>,
    values: Vec<Place>,
}

/// Where a row is in the buffer it was read into.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowPlace(Range<usize>);

#[derive(Clone, Copy)]
enum Place {
    Null,
    Unchanged,
    Text { start: usize, end: usize },
}

impl RowBuffer {
    /// Another row. It is not whole, and has no place, before [`Building::end`].
    pub(super) fn build(&mut self) -> Building<'_> {
        Building {
            start: self.values.len(),
            rows: self,
        }
    }

    #[must_use]
    pub fn push<'v>(&mut self, values: impl IntoIterator<Item = Value<'v>>) -> RowPlace {
        let mut row = self.build();
        values.into_iter().for_each(|value| row.value(value));
        row.end()
    }

    /// One that was read into this buffer; of a place in another one, what is there.
    #[must_use]
    pub fn row(&self, place: &RowPlace) -> Row<'_> {
        Row {
            text: &self.text,
            values: self.values.get(place.0.clone()).unwrap_or_default(),
        }
    }

    pub fn clear(&mut self) {
        self.text.clear();
        self.values.clear();
        self.text.shrink_to(KEPT_BYTES);
        self.values.shrink_to(KEPT_VALUES);
    }

    /// What the rows in it take.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        // Both are in memory.
        self.text
            .len()
            .saturating_add(self.values.len().saturating_mul(size_of::<Place>()))
    }
}

/// A row in the making. One that comes to no end is taken back when the buffer is cleared.
pub(super) struct Building<'b> {
    rows: &'b mut RowBuffer,
    start: usize,
}

impl Building<'_> {
    pub(super) fn value(&mut self, value: Value<'_>) {
        match value {
            Value::Null => self.rows.values.push(Place::Null),
            Value::Unchanged => self.rows.values.push(Place::Unchanged),
            Value::Text(text) => {
                let start = self.rows.text.len();
                self.rows.text.extend_from_slice(text);
                self.place(start);
            }
        }
    }

    /// A text that `write` appends, if it can.
    pub(super) fn text<T>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Option<T>) -> Option<T> {
        let start = self.rows.text.len();
        let written = write(&mut self.rows.text)?;
        self.place(start);
        Some(written)
    }

    /// All that was appended since `start` is one text.
    fn place(&mut self, start: usize) {
        let end = self.rows.text.len();
        self.rows.values.push(Place::Text { start, end });
    }

    pub(super) fn end(self) -> RowPlace {
        RowPlace(self.start..self.rows.values.len())
    }
}

/// The values of a row, in the order of the relation's columns: PostgreSQL's text, in the encoding that the
/// segment's header names.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    text: &'a [u8],
    values: &'a [Place],
}

impl<'a> Row<'a> {
    /// How many columns it has.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.values.len()
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    #[must_use]
    pub fn get(&self, column: usize) -> Option<Value<'a>> {
        self.values.get(column).map(|place| self.value(*place))
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = Value<'a>> + use<'a> {
        let row = *self;
        self.values.iter().map(move |place| row.value(*place))
    }

    /// Whether a value was left out: see [`Value::Unchanged`].
    #[must_use]
    pub fn has_unchanged(&self) -> bool {
        let mut values = self.values.iter();
        values.any(|place| matches!(place, Place::Unchanged))
    }

    fn value(&self, place: Place) -> Value<'a> {
        match place {
            Place::Null => Value::Null,
            Place::Unchanged => Value::Unchanged,
            Place::Text { start, end } => Value::Text(self.text.get(start..end).unwrap_or(&[])),
        }
    }
}

impl PartialEq for Row<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Row<'_> {}

impl fmt::Debug for Row<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_lie_side_by_side() {
        let mut rows = RowBuffer::default();
        let first = [Value::Text(b"a"), Value::Null, Value::Text(b"")];
        let second = [Value::Unchanged, Value::Text(b"bcd")];
        let (a, none, b) = (rows.push(first), rows.push([]), rows.push(second));
        assert!(rows.row(&a).iter().eq(first));
        assert!(rows.row(&b).iter().eq(second));
        assert!(rows.row(&none).is_empty());
        assert_eq!(rows.row(&a).get(2), Some(Value::Text(b"")));
        assert_eq!(rows.row(&a).get(3), None);
        assert_eq!((rows.row(&a).len(), rows.row(&b).len()), (3, 2));
        assert!(rows.row(&b).has_unchanged() && !rows.row(&a).has_unchanged());
        assert!(rows.row(&a) != rows.row(&b));
        assert_eq!(format!("{:?}", rows.row(&b)), "[unchanged, 3 bytes]");
        let before = rows.bytes();
        let mut broken = rows.build();
        broken.value(Value::Null);
        assert_eq!(broken.text(|_| None::<()>), None);
        let c = rows.push(second);
        assert_eq!(rows.row(&c), rows.row(&b));
        assert!(rows.bytes() > before);
        rows.clear();
        assert_eq!(rows.bytes(), 0);
    }
}
