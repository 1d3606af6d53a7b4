//! Net changes of a table whose rows have a key.

use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::pool::{Pool, Text};
use super::{HOLE, Image};
use crate::rows::Unusable;

/// By key: what became of the base's row that had it, and which row has it in the end.
#[derive(Default)]
pub(crate) struct Keyed {
    entries: HashTable<Entry>,
    hasher: RandomState,
    /// Keys and images.
    pool: Pool,
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
    /// Of its key, so that a table that grows need not read it again.
    hash: u64,
    key: Text,
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
    /// Which row of the base it was, if it was one: the key of that one's entry, which stays.
    base: Option<Text>,
}

/// Whether an entry is the one of a key.
fn is(pool: &Pool, hash: u64, key: &[u8]) -> impl Fn(&Entry) -> bool {
    move |entry| entry.hash == hash && pool.get(entry.key) == key
}

const NO_ROW: Unusable = Unusable("there is no such row");
const SECOND: Unusable = Unusable("another row has its key");

impl Keyed {
    fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    fn entry(&self, hash: u64, key: &[u8]) -> Option<&Entry> {
        self.entries.find(hash, is(&self.pool, hash, key))
    }

    fn entry_mut(&mut self, hash: u64, key: &[u8]) -> Option<&mut Entry> {
        self.entries.find_mut(hash, is(&self.pool, hash, key))
    }

    /// There is none with this key.
    fn add(&mut self, hash: u64, key: Text, base: Base, now: Option<usize>) {
        let entry = Entry {
            hash,
            key,
            base,
            now,
        };
        self.entries.insert_unique(hash, entry, |entry| entry.hash);
    }

    pub(super) fn insert(&mut self, key: &[u8], image: &[u8]) -> Result<(), Unusable> {
        let image = self.pool.put(image);
        let number = self.row(Row { image, base: None });
        self.take_key(key, number)
    }

    /// A row has this key from now on.
    fn take_key(&mut self, key: &[u8], number: usize) -> Result<(), Unusable> {
        let hash = self.hash(key);
        let Some(entry) = self.entry_mut(hash, key) else {
            let key = self.pool.put(key);
            self.add(hash, key, Base::None, Some(number));
            return Ok(());
        };
        match entry.now.replace(number) {
            None => Ok(()),
            Some(_) => Err(SECOND),
        }
    }

    /// The row keeps its key. Answers how long its image is, with what was not sent.
    pub(super) fn update(
        &mut self,
        key: &[u8],
        image: &Image,
        truncated: bool,
    ) -> Result<usize, Unusable> {
        let hash = self.hash(key);
        match self.entry(hash, key) {
            None if truncated => Err(NO_ROW),
            None => {
                self.of_base(hash, key, &image.text, true);
                Ok(image.text.len())
            }
            Some(entry) => {
                let number = entry.now.ok_or(NO_ROW)?;
                self.overwrite(number, image)
            }
        }
    }

    /// The row gets another key. Answers as [`Keyed::update`].
    pub(super) fn rename(
        &mut self,
        from: &[u8],
        to: &[u8],
        image: &Image,
        truncated: bool,
    ) -> Result<usize, Unusable> {
        let hash = self.hash(from);
        let (number, bytes) = match self.entry_mut(hash, from) {
            None if truncated => return Err(NO_ROW),
            None => {
                let number = self.of_base(hash, from, &image.text, false);
                (number, image.text.len())
            }
            Some(entry) => {
                let number = entry.now.take().ok_or(NO_ROW)?;
                (number, self.overwrite(number, image)?)
            }
        };
        self.take_key(to, number).map(|()| bytes)
    }

    pub(super) fn delete(&mut self, key: &[u8], truncated: bool) -> Result<(), Unusable> {
        let hash = self.hash(key);
        let found = self.entries.find_entry(hash, is(&self.pool, hash, key));
        let Ok(mut found) = found else {
            if truncated {
                return Err(NO_ROW);
            }
            let key = self.pool.put(key);
            self.add(hash, key, Base::Gone, None);
            return Ok(());
        };
        let number = found.get_mut().now.take().ok_or(NO_ROW)?;
        if matches!(found.get().base, Base::None) {
            let (entry, _) = found.remove();
            self.pool.take_out(entry.key);
        }
        let row = self.rows.get_mut(number).and_then(Option::take);
        let row = row.ok_or(NO_ROW)?;
        self.free.push(number);
        self.pool.take_out(row.image);
        if let Some(base) = row.base {
            let base = self.pool.get(base);
            let hash = self.hasher.hash_one(base);
            let entry = self.entries.find_mut(hash, is(&self.pool, hash, base));
            if let Some(entry) = entry {
                entry.base = Base::Gone;
            }
        }
        Ok(())
    }

    /// A row of the base changes for the first time, and keeps its key or not.
    fn of_base(&mut self, hash: u64, key: &[u8], image: &[u8], keeps: bool) -> usize {
        let (key, image) = (self.pool.put(key), self.pool.put(image));
        let base = Some(key);
        let number = self.row(Row { image, base });
        self.add(hash, key, Base::Became(number), keeps.then_some(number));
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

    fn overwrite(&mut self, number: usize, image: &Image) -> Result<usize, Unusable> {
        let row = self.rows.get_mut(number).and_then(Option::as_mut);
        let row = row.ok_or(NO_ROW)?;
        row.image = match image.has_holes {
            true => {
                let mut text = Vec::new();
                fill(&image.text, self.pool.get(row.image), &mut text);
                self.pool.replace(row.image, &text)
            }
            false => self.pool.replace(row.image, &image.text),
        };
        Ok(self.pool.get(row.image).len())
    }

    /// Gives back what rows have left behind, if that is most of what there is.
    pub(super) fn compact(&mut self) {
        if !self.pool.is_mostly_free() {
            return;
        }
        let old = std::mem::take(&mut self.pool);
        for row in self.rows.iter_mut().flatten() {
            row.image = self.pool.put(old.get(row.image));
        }
        for entry in &mut self.entries {
            entry.key = self.pool.put(old.get(entry.key));
            // Its row is there: one that goes makes it [`Base::Gone`].
            if let Base::Became(number) = entry.base
                && let Some(Some(row)) = self.rows.get_mut(number)
            {
                row.base = Some(entry.key);
            }
        }
    }

    /// What it takes.
    pub(super) fn bytes(&self) -> usize {
        let rows = self.rows.capacity() * size_of::<Option<Row>>();
        let free = self.free.capacity() * size_of::<usize>();
        self.entries.allocation_size() + rows + free + self.pool.bytes()
    }

    /// Rows of the base that must come by.
    pub(crate) fn awaited(&self) -> usize {
        let bases = self.entries.iter().map(|entry| entry.base);
        bases.filter(|base| !matches!(base, Base::None)).count()
    }

    /// All changes are in, and the base's rows come by.
    pub(crate) fn close(&mut self) {
        let hashes = self.entries.iter().map(|entry| entry.hash);
        self.sieve = Some(Sieve::of(hashes));
    }

    /// A row of the base comes by.
    pub(crate) fn meet(&mut self, key: &[u8]) -> Met<'_> {
        let hash = self.hash(key);
        if let Some(sieve) = &self.sieve
            && !sieve.passes(hash)
        {
            return Met::Untouched;
        }
        let Some(entry) = self.entry_mut(hash, key) else {
            return Met::Untouched;
        };
        match std::mem::replace(&mut entry.base, Base::None) {
            // Also if it has come by before: then the base has it twice.
            Base::None => Met::Unexpected,
            Base::Gone => Met::Gone,
            Base::Became(number) => match self.rows.get(number) {
                Some(Some(row)) => Met::Became(self.pool.get(row.image)),
                _ => Met::Gone,
            },
        }
    }

    /// The key of a row of the base that has not come by.
    pub(crate) fn missing(&self) -> Option<&[u8]> {
        let mut entries = self.entries.iter();
        let missing = entries.find(|entry| !matches!(entry.base, Base::None));
        missing.map(|entry| self.pool.get(entry.key))
    }

    /// Rows that the base does not have.
    pub(crate) fn new_rows(&self) -> impl Iterator<Item = &[u8]> {
        let rows = self.rows.iter().flatten();
        let new = rows.filter(|row| row.base.is_none());
        new.map(|row| self.pool.get(row.image))
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
                "update" => net.update(key, &image(new), false).map(drop),
                "delete" => net.delete(key, false),
                to => net.rename(key, to.as_bytes(), &image(new), false).map(drop),
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
            let hash = net.hash(&key(*number));
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
    fn what_grows_leaves_nothing_behind() {
        let mut net = Keyed::default();
        let text = |number: usize| number.to_string().into_bytes();
        for bytes in 1..1000 {
            for number in 0..200 {
                let image = image(&"x".repeat(bytes));
                net.update(&text(number), &image, false).unwrap();
            }
        }
        for number in 0..100 {
            net.rename(&text(number), &text(number + 500), &image("there"), false)
                .unwrap();
        }
        assert!(net.bytes() > 10_000_000);
        net.compact();
        assert!(net.bytes() < 400_000, "{}", net.bytes());
        // Each still knows which row of the base it was.
        for number in 500..550 {
            net.delete(&text(number), false).unwrap();
        }
        net.close();
        for number in 0..200 {
            let there = "x".repeat(999);
            let expect = match number {
                ..50 => Met::Gone,
                50..100 => Met::Became(b"there"),
                _ => Met::Became(there.as_bytes()),
            };
            assert_eq!(net.meet(&text(number)), expect);
        }
        assert_eq!((net.new_rows().count(), net.missing()), (0, None));
    }

    /// What a change adds is counted with what it did not send.
    #[test]
    fn holes_count_as_what_is_in_them() {
        let mut net = Keyed::default();
        let long = "x".repeat(1000);
        net.insert(b"a", long.as_bytes()).unwrap();
        assert_eq!(net.update(b"a", &image("?"), false), Ok(1000));
        assert_eq!(net.rename(b"a", b"b", &image("?"), false), Ok(1000));
        assert_eq!(net.update(b"c", &image("?\ty"), false), Ok(3));
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
