//! Texts by the million in few pieces of memory. One allocation for each would cost more than all else that is
//! done with it, and as much again when they are given back.
//!
//! What was taken out makes room for the next text of its size, so rows that come and go take no more than those
//! that are there at a time.

/// A text's place is a multiple of this.
const UNIT_BYTES: usize = 8;
/// What is longer has an allocation of its own. Most rows are not, and an allocation for each of those that are as
/// long as a page would go to the kernel.
const SHORT_BYTES_MAX: usize = 16 << 10;
const PIECE_BYTES: usize = 1 << 20;

/// One text in its pool, which alone can read it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text {
    /// Of a short one where it begins, counted through all pieces; of a long one its number.
    at: usize,
    bytes: usize,
}

impl Text {
    pub(super) const fn len(self) -> usize {
        self.bytes
    }

    const fn is_short(self) -> bool {
        self.bytes <= SHORT_BYTES_MAX
    }

    /// What a short one takes.
    fn room(self) -> usize {
        self.units() * UNIT_BYTES
    }

    /// How many units a short one takes: which of those that were taken out it can replace. One without bytes has
    /// a place as well, for it could be one behind the end.
    fn units(self) -> usize {
        self.bytes.max(1).div_ceil(UNIT_BYTES)
    }

    const fn piece(self) -> (usize, usize) {
        (self.at / PIECE_BYTES, self.at % PIECE_BYTES)
    }
}

#[derive(Default)]
pub(super) struct Pool {
    /// Each of [`PIECE_BYTES`]; the first grows up to that, as most tables have little.
    pieces: Vec<Vec<u8>>,
    /// Places of short texts that were taken out, by their number of units.
    free: Vec<Vec<usize>>,
    long: Vec<Box<[u8]>>,
    /// Numbers of long texts that were taken out.
    free_long: Vec<usize>,
    /// What the places of short texts come to that were taken out.
    free_bytes: usize,
}

const OTHERS: &str = "a text is read by the pool that holds it";

impl Pool {
    pub(super) fn get(&self, text: Text) -> &[u8] {
        if !text.is_short() {
            return self.long.get(text.at).expect(OTHERS);
        }
        let (piece, at) = text.piece();
        let piece = self.pieces.get(piece).expect(OTHERS);
        piece.get(at..at + text.bytes).expect(OTHERS)
    }

    pub(super) fn put(&mut self, bytes: &[u8]) -> Text {
        let mut text = Text {
            at: 0,
            bytes: bytes.len(),
        };
        if !text.is_short() {
            text.at = self.free_long.pop().unwrap_or(self.long.len());
            match self.long.get_mut(text.at) {
                Some(place) => *place = bytes.into(),
                None => self.long.push(bytes.into()),
            }
            return text;
        }
        if let Some(at) = self.free.get_mut(text.units()).and_then(Vec::pop) {
            text.at = at;
            self.free_bytes -= text.room();
            self.place(text).copy_from_slice(bytes);
            return text;
        }
        let room = text.room();
        if (self.pieces.last()).is_none_or(|piece| piece.len() + room > PIECE_BYTES) {
            self.pieces.push(match self.pieces.is_empty() {
                true => Vec::new(),
                false => Vec::with_capacity(PIECE_BYTES),
            });
        }
        let number = self.pieces.len() - 1;
        if let Some(piece) = self.pieces.last_mut() {
            text.at = number * PIECE_BYTES + piece.len();
            let end = piece.len() + room;
            piece.extend_from_slice(bytes);
            piece.resize(end, 0);
        }
        text
    }

    /// What `text` is from now on.
    pub(super) fn replace(&mut self, text: Text, bytes: &[u8]) -> Text {
        let new = Text {
            at: text.at,
            bytes: bytes.len(),
        };
        if text.is_short() && new.is_short() && text.units() == new.units() {
            self.place(new).copy_from_slice(bytes);
            return new;
        }
        self.take_out(text);
        self.put(bytes)
    }

    /// Nobody reads it any more.
    pub(super) fn take_out(&mut self, text: Text) {
        if !text.is_short() {
            *self.long.get_mut(text.at).expect(OTHERS) = Box::default();
            self.free_long.push(text.at);
            return;
        }
        let units = text.units();
        if self.free.len() <= units {
            self.free.resize_with(units + 1, Vec::new);
        }
        self.free.get_mut(units).expect(OTHERS).push(text.at);
        self.free_bytes += text.room();
    }

    /// Texts that grow bit by bit leave places behind that fit nobody. Whether to put all into a new pool.
    pub(super) fn is_mostly_free(&self) -> bool {
        self.free_bytes > self.short_bytes() / 2
    }

    /// What it takes, with the places of what was taken out.
    pub(super) fn bytes(&self) -> usize {
        let long: usize = self.long.iter().map(|text| text.len()).sum();
        let lists = self.free.iter().chain([&self.free_long]);
        let lists: usize = lists.map(Vec::capacity).sum();
        let of_lists = self.free.capacity() * size_of::<Vec<usize>>();
        self.short_bytes() + long + lists * size_of::<usize>() + of_lists
    }

    fn short_bytes(&self) -> usize {
        self.pieces.iter().map(Vec::capacity).sum()
    }

    /// Where a short text stands.
    fn place(&mut self, text: Text) -> &mut [u8] {
        let (piece, at) = text.piece();
        let piece = self.pieces.get_mut(piece).expect(OTHERS);
        piece.get_mut(at..at + text.bytes).expect(OTHERS)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Put, replaced and taken out in any order, each text stays what it is.
        #[test]
        fn texts_stay_what_they_are(steps in prop::collection::vec(
            (0..3_u8, any::<prop::sample::Index>(), prop_oneof![
                0..40_usize,
                SHORT_BYTES_MAX - 10..SHORT_BYTES_MAX + 10,
                0..40_000_usize,
            ]),
            0..300,
        )) {
            let mut pool = Pool::default();
            let mut held: Vec<(Text, Vec<u8>)> = Vec::new();
            for (number, (what, which, bytes)) in steps.into_iter().enumerate() {
                let bytes = vec![u8::try_from(number % 251).unwrap(); bytes];
                if what == 0 || held.is_empty() {
                    held.push((pool.put(&bytes), bytes));
                    continue;
                }
                let which = which.index(held.len());
                if what == 1 {
                    pool.take_out(held.swap_remove(which).0);
                } else {
                    let text = pool.replace(held[which].0, &bytes);
                    held[which] = (text, bytes);
                }
                for (text, bytes) in &held {
                    prop_assert!(pool.get(*text) == bytes);
                }
            }
        }
    }

    #[test]
    fn what_comes_and_goes_takes_no_room() {
        let mut pool = Pool::default();
        let kept = pool.put(b"kept");
        for bytes in [
            0,
            1,
            8,
            9,
            100,
            SHORT_BYTES_MAX,
            SHORT_BYTES_MAX + 1,
            1 << 20,
        ] {
            let text = pool.put(&vec![b'x'; bytes]);
            pool.take_out(text);
            let taken = pool.bytes();
            for _ in 0..100 {
                let text = pool.put(&vec![b'y'; bytes]);
                let text = pool.replace(text, &vec![b'z'; bytes]);
                pool.take_out(text);
                assert_eq!(pool.bytes(), taken);
            }
        }
        assert_eq!(pool.get(kept), b"kept");
        assert!(pool.long.iter().all(|text| text.is_empty()));
    }

    #[test]
    fn an_empty_text_behind_a_full_piece() {
        let mut pool = Pool::default();
        for _ in 0..PIECE_BYTES / UNIT_BYTES {
            pool.put(b"12345678");
        }
        let empty = pool.put(b"");
        assert_eq!(pool.get(empty), b"");
        let text = pool.replace(empty, b"a");
        assert_eq!(pool.get(text), b"a");
    }

    #[test]
    fn pieces_are_many() {
        let mut pool = Pool::default();
        let text = |number: usize| number.to_string().repeat(number % 300).into_bytes();
        let texts: Vec<Text> = (0..10_000).map(|number| pool.put(&text(number))).collect();
        assert!(pool.pieces.len() > 3);
        let held = texts.iter().map(|text| pool.get(*text).to_vec());
        assert!(held.eq((0..10_000).map(text)));
    }
}
