//! Net changes of a table whose rows have a key.

use std::collections::HashMap;

use foldhash::fast::RandomState;

use super::{HOLE, Image};
use crate::rows::Unusable;

type Text = Box<[u8]>;

/// By key: what became of the base's row that had it, and which row has it in the end.
#[derive(Default)]
pub(crate) struct Keyed {
    entries: HashMap<Text, Entry, RandomState>,
    rows: Vec<Option<Row>>,
    /// Numbers of rows that are no more.
    free: Vec<usize>,
}

struct Entry {
    base: Base,
    /// Number of the row that has this key now.
    now: Option<usize>,
}

/// The base's row with a key.
#[derive(Clone, Copy)]
enum Base {
    /// There is none: the key came in later. Or it has come by already.
    None,
    /// It was deleted.
    Gone,
    /// It became the row of this number.
    Became(usize),
}

/// A row that differs from the base's, or that the base does not have.
struct Row {
    image: Text,
    /// Which row of the base it was, if it was one.
    base: Option<Text>,
}

const NO_ROW: Unusable = Unusable("there is no such row");
const SECOND: Unusable = Unusable("another row has its key");

impl Keyed {
    pub(super) fn insert(&mut self, key: Vec<u8>, image: Vec<u8>) -> Result<(), Unusable> {
        let number = self.row(Row {
            image: image.into_boxed_slice(),
            base: None,
        });
        let entry = self.entries.entry(key.into_boxed_slice());
        let entry = entry.or_insert(Entry {
            base: Base::None,
            now: None,
        });
        match entry.now.replace(number) {
            None => Ok(()),
            Some(_) => Err(SECOND),
        }
    }

    /// The row keeps its key.
    pub(super) fn update(
        &mut self,
        key: Vec<u8>,
        image: Image,
        truncated: bool,
    ) -> Result<(), Unusable> {
        match self.entries.get(key.as_slice()) {
            None if truncated => Err(NO_ROW),
            None => {
                self.of_base(key, image.text);
                Ok(())
            }
            Some(entry) => {
                let number = entry.now.ok_or(NO_ROW)?;
                self.overwrite(number, image)
            }
        }
    }

    /// The row gets another key.
    pub(super) fn rename(
        &mut self,
        from: Vec<u8>,
        to: Vec<u8>,
        image: Image,
        truncated: bool,
    ) -> Result<(), Unusable> {
        let number = match self.entries.get_mut(from.as_slice()) {
            None if truncated => return Err(NO_ROW),
            None => {
                let number = self.of_base(from.clone(), image.text);
                if let Some(entry) = self.entries.get_mut(from.as_slice()) {
                    entry.now = None;
                }
                number
            }
            Some(entry) => {
                let number = entry.now.take().ok_or(NO_ROW)?;
                self.overwrite(number, image)?;
                number
            }
        };
        let entry = self.entries.entry(to.into_boxed_slice());
        let entry = entry.or_insert(Entry {
            base: Base::None,
            now: None,
        });
        match entry.now.replace(number) {
            None => Ok(()),
            Some(_) => Err(SECOND),
        }
    }

    pub(super) fn delete(&mut self, key: Vec<u8>, truncated: bool) -> Result<(), Unusable> {
        let Some(entry) = self.entries.get_mut(key.as_slice()) else {
            if truncated {
                return Err(NO_ROW);
            }
            let gone = Entry {
                base: Base::Gone,
                now: None,
            };
            self.entries.insert(key.into_boxed_slice(), gone);
            return Ok(());
        };
        let number = entry.now.take().ok_or(NO_ROW)?;
        if matches!(entry.base, Base::None) {
            self.entries.remove(key.as_slice());
        }
        let row = self.rows.get_mut(number).and_then(Option::take);
        self.free.push(number);
        if let Some(base) = row.ok_or(NO_ROW)?.base
            && let Some(entry) = self.entries.get_mut(&base)
        {
            entry.base = Base::Gone;
        }
        Ok(())
    }

    /// A row of the base changes for the first time.
    fn of_base(&mut self, key: Vec<u8>, image: Vec<u8>) -> usize {
        let key = key.into_boxed_slice();
        let number = self.row(Row {
            image: image.into_boxed_slice(),
            base: Some(key.clone()),
        });
        let entry = Entry {
            base: Base::Became(number),
            now: Some(number),
        };
        self.entries.insert(key, entry);
        number
    }

    /// The number of a new row.
    fn row(&mut self, row: Row) -> usize {
        match self.free.pop() {
            Some(number) => {
                if let Some(place) = self.rows.get_mut(number) {
                    *place = Some(row);
                }
                number
            }
            None => {
                self.rows.push(Some(row));
                self.rows.len() - 1
            }
        }
    }

    fn overwrite(&mut self, number: usize, image: Image) -> Result<(), Unusable> {
        let row = self.rows.get_mut(number).and_then(Option::as_mut);
        let row = row.ok_or(NO_ROW)?;
        let text = match image.has_holes {
            false => image.text,
            true => filled(&image.text, &row.image),
        };
        row.image = text.into_boxed_slice();
        Ok(())
    }

    pub(super) fn bytes(&self, entry_bytes: usize) -> usize {
        let keys: usize = self.entries.keys().map(|key| key.len() + entry_bytes).sum();
        let rows = self.rows.iter().flatten();
        let images = rows.map(|row| row.image.len() + row.base.as_ref().map_or(0, |key| key.len()));
        let places = self.rows.len() * size_of::<Option<Row>>();
        keys + images.sum::<usize>() + places
    }

    /// Rows of the base that must come by.
    pub(crate) fn awaited(&self) -> usize {
        let bases = self.entries.values().map(|entry| entry.base);
        bases.filter(|base| !matches!(base, Base::None)).count()
    }

    /// A row of the base comes by.
    pub(crate) fn meet(&mut self, key: &[u8]) -> Met<'_> {
        let Some(entry) = self.entries.get_mut(key) else {
            return Met::Untouched;
        };
        match std::mem::replace(&mut entry.base, Base::None) {
            // Also if it has come by before: then the base has it twice.
            Base::None => Met::Unexpected,
            Base::Gone => Met::Gone,
            Base::Became(number) => match self.rows.get(number) {
                Some(Some(row)) => Met::Became(&row.image),
                _ => Met::Gone,
            },
        }
    }

    /// The key of a row of the base that has not come by.
    pub(crate) fn missing(&self) -> Option<&[u8]> {
        let mut entries = self.entries.iter();
        let missing = entries.find(|(_, entry)| !matches!(entry.base, Base::None));
        missing.map(|(key, _)| &**key)
    }

    /// Rows that the base does not have.
    pub(crate) fn new_rows(&self) -> impl Iterator<Item = &[u8]> {
        let rows = self.rows.iter().flatten();
        rows.filter(|row| row.base.is_none()).map(|row| &*row.image)
    }
}

/// What is to become of a row of the base.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Met<'a> {
    Untouched,
    Gone,
    /// This is written in its place, with its own values in the holes.
    Became(&'a [u8]),
    /// The changes say that there is no such row.
    Unexpected,
}

/// The values of `image`, and where it has holes, those of `row`.
pub(crate) fn filled(image: &[u8], row: &[u8]) -> Vec<u8> {
    let mut filled = Vec::with_capacity(image.len().max(row.len()));
    let own = image.split(|byte| *byte == b'\t');
    for (at, (value, before)) in own.zip(row.split(|byte| *byte == b'\t')).enumerate() {
        if at > 0 {
            filled.push(b'\t');
        }
        filled.extend_from_slice(if value == HOLE { before } else { value });
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> Image {
        let text = text.replace('?', "\0");
        Image {
            has_holes: text.contains('\0'),
            text: text.into_bytes(),
        }
    }

    /// Plays `k:op` on a base of `a`, `b` and `c`, and answers the rows that come out, sorted.
    fn check(operations: &[(&str, &str, &str)], expect: Result<&[&str], &str>) {
        let mut net = Keyed::default();
        let played: Result<(), Unusable> = operations.iter().try_for_each(|(op, key, new)| {
            let key = key.as_bytes().to_vec();
            match *op {
                "insert" => net.insert(key, new.as_bytes().to_vec()),
                "update" => net.update(key, image(new), false),
                "delete" => net.delete(key, false),
                to => net.rename(key, to.as_bytes().to_vec(), image(new), false),
            }
        });
        let rows = played.map(|()| {
            let mut rows = Vec::new();
            let mut awaited = net.awaited();
            for row in ["a\t1\tx", "b\t2\ty", "c\t3\tz"] {
                let met = net.meet(&row.as_bytes()[..1]);
                awaited -= usize::from(met != Met::Untouched);
                match met {
                    Met::Untouched => rows.push(row.as_bytes().to_vec()),
                    Met::Gone => {}
                    Met::Became(image) => rows.push(filled(image, row.as_bytes())),
                    Met::Unexpected => panic!("{row}"),
                }
            }
            assert_eq!((awaited, net.missing()), (0, None));
            rows.extend(net.new_rows().map(<[u8]>::to_vec));
            rows.sort();
            let text = rows.into_iter().map(|row| String::from_utf8(row).unwrap());
            text.collect::<Vec<_>>()
        });
        let expect = expect.map(|rows| rows.iter().map(ToString::to_string).collect());
        assert_eq!(
            rows,
            expect.map_err(|why: &str| Unusable(Box::leak(why.into())))
        );
    }

    #[test]
    fn only_the_end_counts() {
        check(&[], Ok(&["a\t1\tx", "b\t2\ty", "c\t3\tz"]));
        check(
            &[("update", "a", "a\t5\t?"), ("update", "a", "a\t6\t?")],
            Ok(&["a\t6\tx", "b\t2\ty", "c\t3\tz"]),
        );
        check(
            &[
                ("update", "a", "a\t5\tlong"),
                ("update", "a", "a\t6\t?"),
                ("delete", "b", ""),
                ("insert", "d", "d\t4\tw"),
                ("update", "d", "d\t?\tv"),
            ],
            Ok(&["a\t6\tlong", "c\t3\tz", "d\t4\tv"]),
        );
        // Came and went; went and came.
        check(
            &[
                ("insert", "d", "d\t4\tw"),
                ("delete", "d", ""),
                ("delete", "a", ""),
                ("insert", "a", "a\t9\tq"),
            ],
            Ok(&["a\t9\tq", "b\t2\ty", "c\t3\tz"]),
        );
    }

    #[test]
    fn rows_take_their_values_along_under_another_key() {
        // Two rows change places; what was not sent comes from where the row was.
        check(
            &[
                ("t", "a", "t\t1\t?"),
                ("a", "b", "a\t2\t?"),
                ("b", "t", "b\t1\t?"),
            ],
            Ok(&["a\t2\ty", "b\t1\tx", "c\t3\tz"]),
        );
        // Moved on and deleted; another one takes the place.
        check(
            &[
                ("d", "a", "d\t1\t?"),
                ("delete", "d", ""),
                ("a", "b", "a\t7\t?"),
                ("insert", "b", "b\t8\tn"),
            ],
            Ok(&["a\t7\ty", "b\t8\tn", "c\t3\tz"]),
        );
        // There and back.
        check(
            &[("d", "a", "d\t1\t?"), ("a", "d", "a\t1\t?")],
            Ok(&["a\t1\tx", "b\t2\ty", "c\t3\tz"]),
        );
    }

    #[test]
    fn what_comes_and_goes_takes_no_room() {
        let mut net = Keyed::default();
        for _ in 0..1000 {
            net.insert(b"d".to_vec(), b"d\t1".to_vec()).unwrap();
            net.delete(b"d".to_vec(), false).unwrap();
            net.delete(b"a".to_vec(), false).unwrap_or(());
            net.insert(b"a".to_vec(), b"a\t1".to_vec()).unwrap();
        }
        assert!(net.rows.len() < 3 && net.entries.len() == 1);
    }

    #[test]
    fn what_cannot_be() {
        check(
            &[("delete", "a", ""), ("update", "a", "a\t1\tx")],
            Err(NO_ROW.0),
        );
        check(&[("delete", "a", ""), ("delete", "a", "")], Err(NO_ROW.0));
        check(&[("d", "a", "d\t1\tx"), ("delete", "a", "")], Err(NO_ROW.0));
        let twice = [("insert", "d", "d\t1\tx"), ("insert", "d", "d\t1\tx")];
        check(&twice, Err(SECOND.0));
        check(
            &[("insert", "d", "d\t1\tx"), ("d", "a", "d\t1\tx")],
            Err(SECOND.0),
        );
        let mut truncated = Keyed::default();
        assert!(
            truncated
                .update(b"a".to_vec(), image("a\t1\tx"), true)
                .is_err()
        );
        assert!(truncated.delete(b"a".to_vec(), true).is_err());
    }

    #[test]
    fn a_base_that_does_not_fit_is_noticed() {
        let mut net = Keyed::default();
        net.insert(b"a".to_vec(), b"a\t1".to_vec()).unwrap();
        assert_eq!(net.meet(b"a"), Met::Unexpected);
        net.update(b"b".to_vec(), image("b\t1"), false).unwrap();
        assert_eq!((net.awaited(), net.missing()), (1, Some(&b"b"[..])));
        assert_eq!(net.meet(b"b"), Met::Became(b"b\t1"));
        assert_eq!((net.awaited(), net.missing()), (0, None));
        assert_eq!(net.meet(b"b"), Met::Unexpected);
    }
}
