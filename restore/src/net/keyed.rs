//! Net changes of a table whose rows have a key.

use std::collections::HashMap;
use std::hash::BuildHasher as _;

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
    /// Once all changes are in.
    sieve: Option<Sieve>,
}

/// Which keys may have an entry: most rows of a base have none, and to look for one where entries by the hundred
/// thousand are is to wait for memory.
struct Sieve {
    bits: Vec<u64>,
    /// Of a hash to its bit.
    shift: u32,
}

/// One key in so many that have no entry is looked for all the same.
const SIEVE_BITS: usize = 16;

impl Sieve {
    fn of(hashes: impl ExactSizeIterator<Item = u64>) -> Self {
        let bits = (hashes.len() * SIEVE_BITS).next_power_of_two().max(64);
        let mut sieve = Self {
            bits: vec![0; bits / 64],
            shift: u64::BITS - bits.trailing_zeros(),
        };
        for hash in hashes {
            let (word, bit) = sieve.place(hash);
            if let Some(word) = sieve.bits.get_mut(word) {
                *word |= bit;
            }
        }
        sieve
    }

    fn passes(&self, hash: u64) -> bool {
        let (word, bit) = self.place(hash);
        self.bits.get(word).is_some_and(|word| word & bit > 0)
    }

    fn place(&self, hash: u64) -> (usize, u64) {
        let at = hash >> self.shift;
        let word = usize::try_from(at / 64).unwrap_or(usize::MAX);
        (word, 1 << (at % 64))
    }
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
    pub(super) fn insert(&mut self, key: &[u8], image: &[u8]) -> Result<(), Unusable> {
        let number = self.row(Row {
            image: image.into(),
            base: None,
        });
        self.take_key(key, number)
    }

    /// A row has this key from now on.
    fn take_key(&mut self, key: &[u8], number: usize) -> Result<(), Unusable> {
        let Some(entry) = self.entries.get_mut(key) else {
            let entry = Entry {
                base: Base::None,
                now: Some(number),
            };
            self.entries.insert(key.into(), entry);
            return Ok(());
        };
        match entry.now.replace(number) {
            None => Ok(()),
            Some(_) => Err(SECOND),
        }
    }

    /// The row keeps its key.
    pub(super) fn update(
        &mut self,
        key: &[u8],
        image: &Image,
        truncated: bool,
    ) -> Result<(), Unusable> {
        match self.entries.get(key) {
            None if truncated => Err(NO_ROW),
            None => {
                self.of_base(key, &image.text);
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
        from: &[u8],
        to: &[u8],
        image: &Image,
        truncated: bool,
    ) -> Result<(), Unusable> {
        let number = match self.entries.get_mut(from) {
            None if truncated => return Err(NO_ROW),
            None => {
                let number = self.of_base(from, &image.text);
                if let Some(entry) = self.entries.get_mut(from) {
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
        self.take_key(to, number)
    }

    pub(super) fn delete(&mut self, key: &[u8], truncated: bool) -> Result<(), Unusable> {
        let Some(entry) = self.entries.get_mut(key) else {
            if truncated {
                return Err(NO_ROW);
            }
            let gone = Entry {
                base: Base::Gone,
                now: None,
            };
            self.entries.insert(key.into(), gone);
            return Ok(());
        };
        let number = entry.now.take().ok_or(NO_ROW)?;
        if matches!(entry.base, Base::None) {
            self.entries.remove(key);
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
    fn of_base(&mut self, key: &[u8], image: &[u8]) -> usize {
        let number = self.row(Row {
            image: image.into(),
            base: Some(key.into()),
        });
        let entry = Entry {
            base: Base::Became(number),
            now: Some(number),
        };
        self.entries.insert(key.into(), entry);
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

    fn overwrite(&mut self, number: usize, image: &Image) -> Result<(), Unusable> {
        let row = self.rows.get_mut(number).and_then(Option::as_mut);
        let row = row.ok_or(NO_ROW)?;
        match image.has_holes {
            true => {
                let mut text = Vec::new();
                fill(&image.text, &row.image, &mut text);
                row.image = text.into_boxed_slice();
            }
            false if row.image.len() == image.text.len() => row.image.copy_from_slice(&image.text),
            false => row.image = image.text.as_slice().into(),
        }
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

    /// All changes are in, and the base's rows come by.
    pub(crate) fn close(&mut self) {
        let hasher = self.entries.hasher();
        let hashes = self.entries.keys().map(|key| hasher.hash_one(&**key));
        self.sieve = Some(Sieve::of(hashes));
    }

    /// A row of the base comes by.
    pub(crate) fn meet(&mut self, key: &[u8]) -> Met<'_> {
        if let Some(sieve) = &self.sieve
            && !sieve.passes(self.entries.hasher().hash_one(key))
        {
            return Met::Untouched;
        }
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
pub(crate) fn fill(image: &[u8], row: &[u8], filled: &mut Vec<u8>) {
    filled.clear();
    if memchr::memchr(HOLE[0], image).is_none() {
        filled.extend_from_slice(image);
        return;
    }
    let own = image.split(|byte| *byte == b'\t');
    for (at, (value, before)) in own.zip(row.split(|byte| *byte == b'\t')).enumerate() {
        if at > 0 {
            filled.push(b'\t');
        }
        filled.extend_from_slice(if value == HOLE { before } else { value });
    }
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
            let key = key.as_bytes();
            match *op {
                "insert" => net.insert(key, new.as_bytes()),
                "update" => net.update(key, &image(new), false),
                "delete" => net.delete(key, false),
                to => net.rename(key, to.as_bytes(), &image(new), false),
            }
        });
        let rows = played.map(|()| {
            let mut rows = Vec::new();
            let mut awaited = net.awaited();
            let mut text = Vec::new();
            net.close();
            for row in ["a\t1\tx", "b\t2\ty", "c\t3\tz"] {
                let met = net.meet(&row.as_bytes()[..1]);
                awaited -= usize::from(met != Met::Untouched);
                match met {
                    Met::Untouched => rows.push(row.as_bytes().to_vec()),
                    Met::Gone => {}
                    Met::Became(image) => {
                        fill(image, row.as_bytes(), &mut text);
                        rows.push(text.clone());
                    }
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
    fn the_sieve_holds_back_most_keys_and_none_that_is_there() {
        let mut net = Keyed::default();
        let key = |number: u32| number.to_string().into_bytes();
        for number in 0..5000 {
            net.update(&key(number), &image("x"), false).unwrap();
        }
        net.close();
        let passes = |number: &u32| {
            let hash = net.entries.hasher().hash_one(key(*number).as_slice());
            net.sieve.as_ref().is_some_and(|sieve| sieve.passes(hash))
        };
        assert!((0..5000).all(|number| passes(&number)));
        let others = (5000..15_000).filter(passes).count();
        assert!(others < 1000, "{others} of 10000");
        assert!((0..5000).all(|number| net.meet(&key(number)) == Met::Became(b"x")));
        assert_eq!(net.meet(&key(5000)), Met::Untouched);
    }

    #[test]
    fn what_comes_and_goes_takes_no_room() {
        let mut net = Keyed::default();
        for _ in 0..1000 {
            net.insert(b"d", b"d\t1").unwrap();
            net.delete(b"d", false).unwrap();
            net.delete(b"a", false).unwrap_or(());
            net.insert(b"a", b"a\t1").unwrap();
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
        assert!(truncated.update(b"a", &image("a\t1\tx"), true).is_err());
        assert!(truncated.delete(b"a", true).is_err());
    }

    #[test]
    fn a_base_that_does_not_fit_is_noticed() {
        let mut net = Keyed::default();
        net.insert(b"a", b"a\t1").unwrap();
        assert_eq!(net.meet(b"a"), Met::Unexpected);
        net.update(b"b", &image("b\t1"), false).unwrap();
        assert_eq!((net.awaited(), net.missing()), (1, Some(&b"b"[..])));
        assert_eq!(net.meet(b"b"), Met::Became(b"b\t1"));
        assert_eq!((net.awaited(), net.missing()), (0, None));
        assert_eq!(net.meet(b"b"), Met::Unexpected);
    }
}
