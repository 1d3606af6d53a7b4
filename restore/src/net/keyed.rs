//! Net changes of a table whose rows have a key.

#[cfg(test)]
mod tests;

use std::hash::BuildHasher as _;

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::pool::{Pool, Text};
use super::{HOLE, Image};
use crate::rows::Unusable;

/// By key: what became of the base's row that had it, and which row has it in the end.
///
/// Most changes hit a key at random among hundreds of thousands, and each piece of memory that one looks at is
/// waited for. So what is looked at lies together: an entry has its key and its row in one cache line.
#[derive(Default)]
pub(crate) struct Keyed {
    /// Where the entries of keys are.
    table: HashTable<Slot>,
    hasher: RandomState,
    entries: Vec<Entry>,
    /// Numbers of entries that are no more.
    free: Vec<Number>,
    /// Images, and keys that are too long for their entries.
    pool: Pool,
    /// Once all changes are in.
    sieve: Option<Sieve>,
}

/// Of an entry.
type Number = u32;

struct Slot {
    /// Of the key, so that a table that grows need not read it again.
    hash: u64,
    number: Number,
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

#[derive(Default)]
#[repr(align(64))]
struct Entry {
    key: Key,
    base: Base,
    /// The row that has this key now.
    now: Option<Row>,
}

enum Key {
    Short {
        length: u8,
        bytes: [u8; SHORT_KEY_BYTES_MAX],
    },
    Long(Text),
}

const SHORT_KEY_BYTES_MAX: usize = 22;

/// The base's row with a key.
#[derive(Clone, Copy, Default)]
enum Base {
    /// There is none: the key came in later. Or it has come by already.
    #[default]
    None,
    /// It was deleted.
    Gone,
    /// It became the row of this entry.
    Became(Number),
}

/// A row that differs from the base's, or that the base does not have.
struct Row {
    image: Text,
    /// Which row of the base it was, if it was one: the entry with the key of that one, which stays.
    base: Option<Number>,
}

impl Key {
    fn new(key: &[u8], pool: &mut Pool) -> Self {
        let mut bytes = [0; SHORT_KEY_BYTES_MAX];
        match (bytes.get_mut(..key.len()), u8::try_from(key.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(key);
                Self::Short { length, bytes }
            }
            _ => Self::Long(pool.put(key)),
        }
    }

    fn get<'k>(&'k self, pool: &'k Pool) -> &'k [u8] {
        match self {
            Self::Short { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or_default(),
            Self::Long(text) => pool.get(*text),
        }
    }
}

impl Default for Key {
    fn default() -> Self {
        Self::Short {
            length: 0,
            bytes: [0; SHORT_KEY_BYTES_MAX],
        }
    }
}

const NO_ROW: Unusable = Unusable("there is no such row");
const SECOND: Unusable = Unusable("another row has its key");

/// Of a number: [`super::Gatherer`] holds no more entries than it can count.
const ENTRIES: &str = "an entry has a number";

impl Keyed {
    fn hash(&self, key: &[u8]) -> u64 {
        self.hasher.hash_one(key)
    }

    fn entry(&self, number: Number) -> &Entry {
        self.entries.get(number as usize).expect(ENTRIES)
    }

    fn entry_mut(&mut self, number: Number) -> &mut Entry {
        self.entries.get_mut(number as usize).expect(ENTRIES)
    }

    /// The entry of a key.
    fn find(&self, hash: u64, key: &[u8]) -> Option<Number> {
        let is =
            |slot: &Slot| slot.hash == hash && self.entry(slot.number).key.get(&self.pool) == key;
        self.table.find(hash, is).map(|slot| slot.number)
    }

    /// Another entry; there is none with its key.
    fn add(&mut self, hash: u64, key: &[u8], base: Base, now: Option<Row>) -> Number {
        let key = Key::new(key, &mut self.pool);
        let entry = Entry { key, base, now };
        let number = match self.free.pop() {
            Some(number) => {
                *self.entry_mut(number) = entry;
                number
            }
            None => {
                self.entries.push(entry);
                Number::try_from(self.entries.len() - 1).expect(ENTRIES)
            }
        };
        let slot = Slot { hash, number };
        self.table.insert_unique(hash, slot, |slot| slot.hash);
        number
    }

    /// A row of the base changes for the first time.
    fn add_of_base(&mut self, hash: u64, key: &[u8], image: &[u8]) -> Number {
        let image = self.pool.put(image);
        let number = self.add(hash, key, Base::None, None);
        let entry = self.entry_mut(number);
        entry.base = Base::Became(number);
        entry.now = Some(Row {
            image,
            base: Some(number),
        });
        number
    }

    pub(super) fn insert(&mut self, key: &[u8], image: &[u8]) -> Result<(), Unusable> {
        let image = self.pool.put(image);
        self.settle(key, Row { image, base: None })
    }

    /// A row has this key from now on.
    fn settle(&mut self, key: &[u8], row: Row) -> Result<(), Unusable> {
        let hash = self.hash(key);
        let base = row.base;
        let number = match self.find(hash, key) {
            None => self.add(hash, key, Base::None, Some(row)),
            Some(number) => match self.entry_mut(number).now.replace(row) {
                None => number,
                Some(_) => return Err(SECOND),
            },
        };
        if let Some(base) = base {
            self.entry_mut(base).base = Base::Became(number);
        }
        Ok(())
    }

    /// An entry that says nothing any more.
    fn remove(&mut self, hash: u64, number: Number) {
        let entry = std::mem::take(self.entry_mut(number));
        if let Key::Long(text) = entry.key {
            self.pool.take_out(text);
        }
        if let Ok(slot) = self.table.find_entry(hash, |slot| slot.number == number) {
            slot.remove();
        }
        self.free.push(number);
    }

    /// The row keeps its key. Answers how long its image is, with what was not sent.
    pub(super) fn update(
        &mut self,
        key: &[u8],
        image: &Image,
        truncated: bool,
    ) -> Result<usize, Unusable> {
        let hash = self.hash(key);
        match self.find(hash, key) {
            None if truncated => Err(NO_ROW),
            None => {
                self.add_of_base(hash, key, &image.text);
                Ok(image.text.len())
            }
            Some(number) => self.overwrite(number, image),
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
        let (number, bytes) = match self.find(hash, from) {
            None if truncated => return Err(NO_ROW),
            None => {
                let number = self.add_of_base(hash, from, &image.text);
                (number, image.text.len())
            }
            Some(number) => (number, self.overwrite(number, image)?),
        };
        // The entry stays: the base must not have such a row, nor is there one to be changed.
        let row = self.entry_mut(number).now.take().ok_or(NO_ROW)?;
        self.settle(to, row).map(|()| bytes)
    }

    pub(super) fn delete(&mut self, key: &[u8], truncated: bool) -> Result<(), Unusable> {
        let hash = self.hash(key);
        let Some(number) = self.find(hash, key) else {
            if truncated {
                return Err(NO_ROW);
            }
            self.add(hash, key, Base::Gone, None);
            return Ok(());
        };
        let entry = self.entry_mut(number);
        let row = entry.now.take().ok_or(NO_ROW)?;
        // What comes and goes takes no room.
        if matches!(entry.base, Base::None) {
            self.remove(hash, number);
        }
        self.pool.take_out(row.image);
        if let Some(base) = row.base {
            self.entry_mut(base).base = Base::Gone;
        }
        Ok(())
    }

    fn overwrite(&mut self, number: Number, image: &Image) -> Result<usize, Unusable> {
        let Self { entries, pool, .. } = self;
        let entry = entries.get_mut(number as usize).expect(ENTRIES);
        let row = entry.now.as_mut().ok_or(NO_ROW)?;
        row.image = match image.has_holes {
            true => {
                let mut text = Vec::new();
                fill(&image.text, pool.get(row.image), &mut text);
                pool.replace(row.image, &text)
            }
            false => pool.replace(row.image, &image.text),
        };
        Ok(row.image.len())
    }

    /// Gives back what rows have left behind, if that is most of what there is.
    pub(super) fn compact(&mut self) {
        if !self.pool.is_mostly_free() {
            return;
        }
        let old = std::mem::take(&mut self.pool);
        for entry in &mut self.entries {
            if let Key::Long(key) = &mut entry.key {
                *key = self.pool.put(old.get(*key));
            }
            if let Some(row) = &mut entry.now {
                row.image = self.pool.put(old.get(row.image));
            }
        }
    }

    /// What it takes.
    pub(super) fn bytes(&self) -> usize {
        let entries = self.entries.capacity() * size_of::<Entry>();
        let free = self.free.capacity() * size_of::<Number>();
        self.table.allocation_size() + entries + free + self.pool.bytes()
    }

    /// Rows of the base that must come by.
    pub(crate) fn awaited(&self) -> usize {
        let bases = self.entries.iter().map(|entry| entry.base);
        bases.filter(|base| !matches!(base, Base::None)).count()
    }

    /// All changes are in, and the base's rows come by.
    pub(crate) fn close(&mut self) {
        let hashes = self.table.iter().map(|slot| slot.hash);
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
        let Some(number) = self.find(hash, key) else {
            return Met::Untouched;
        };
        match std::mem::take(&mut self.entry_mut(number).base) {
            // Also if it has come by before: then the base has it twice.
            Base::None => Met::Unexpected,
            Base::Gone => Met::Gone,
            Base::Became(number) => match &self.entry(number).now {
                Some(row) => Met::Became(self.pool.get(row.image)),
                // It would say that it was deleted.
                None => Met::Unexpected,
            },
        }
    }

    /// The key of a row of the base that has not come by.
    pub(crate) fn missing(&self) -> Option<&[u8]> {
        let mut entries = self.entries.iter();
        let missing = entries.find(|entry| !matches!(entry.base, Base::None));
        missing.map(|entry| entry.key.get(&self.pool))
    }

    /// Rows that the base does not have.
    pub(crate) fn new_rows(&self) -> impl Iterator<Item = &[u8]> {
        let rows = self.entries.iter().filter_map(|entry| entry.now.as_ref());
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
    for (at, (value, before)) in fields(image).zip(fields(row)).enumerate() {
        if at > 0 {
            filled.push(b'\t');
        }
        filled.extend_from_slice(if value == HOLE { before } else { value });
    }
}

/// Of a row, which may be long.
fn fields(row: &[u8]) -> impl Iterator<Item = &[u8]> {
    let ends = memchr::memchr_iter(b'\t', row).chain([row.len()]);
    let mut start = 0;
    ends.map(move |end| {
        let field = row.get(start..end).unwrap_or_default();
        start = end + 1;
        field
    })
}
