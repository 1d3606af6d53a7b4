//! Lines on their way in: many at a time into one reused buffer, bounded, digested when done with.

use std::io::{self, BufRead};

use serde::{Deserialize, Serialize};

use super::LINE_BYTES_MAX;
use super::reader::ReadError;
use crate::{Digest, Sha256};

/// What is taken from the input at once.
const PIECE_BYTES: usize = 128 << 10;

/// What the buffer keeps when a longer line has passed.
const BUFFER_BYTES: usize = 1 << 20;

pub(super) struct Lines<R> {
    input: R,
    /// Where the line last read is, its end included: what is before it was read, what follows is still to be.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Its number, from 1.
    pub(super) number: u64,
    /// Of all that is in the buffer no more, as `bytes`: one line at a time would take twice as long.
    sha256: Sha256,
    bytes: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            buffer: Vec::new(),
            start: 0,
            end: 0,
            number: 0,
            sha256: Sha256::new(),
            bytes: 0,
        }
    }

    /// Reads the next line; there must be one, because only a footer ends a segment.
    pub(super) fn advance(&mut self) -> Result<(), ReadError> {
        self.number = self.number.saturating_add(1);
        self.start = self.end;
        // Up to here there is no end of a line.
        let mut looked = self.start;
        loop {
            let rest = self.buffer.get(looked..).unwrap_or_default();
            if let Some(at) = memchr::memchr(b'\n', rest) {
                self.end = looked.saturating_add(at).saturating_add(1);
                return self.bounded(self.end);
            }
            self.bounded(self.buffer.len())?;
            self.make_room();
            looked = self.buffer.len();
            let more = filled(&mut self.input)?;
            let more = more.get(..PIECE_BYTES).unwrap_or(more);
            if more.is_empty() {
                return Err(ReadError::Truncated { line: self.number });
            }
            self.buffer.extend_from_slice(more);
            let taken = more.len();
            self.input.consume(taken);
        }
    }

    /// An error if the line is too long that goes up to here at least.
    fn bounded(&self, end: usize) -> Result<(), ReadError> {
        match end.saturating_sub(self.start) as u64 > LINE_BYTES_MAX {
            true => Err(ReadError::LineTooLong { line: self.number }),
            false => Ok(()),
        }
    }

    /// Digests what is before the line that begins, and moves that to the front.
    fn make_room(&mut self) {
        let before = self.buffer.get(..self.start).unwrap_or_default();
        self.sha256.update(before);
        self.bytes = self.bytes.saturating_add(before.len() as u64);
        self.buffer.drain(..self.start);
        self.end = self.end.saturating_sub(self.start);
        self.start = 0;
        if self.buffer.len() <= BUFFER_BYTES {
            self.buffer.shrink_to(BUFFER_BYTES);
        }
    }

    /// The line last read, its end included.
    pub(super) fn line(&self) -> &[u8] {
        self.buffer.get(self.start..self.end).unwrap_or_default()
    }

    /// The letter of the record: `t` stands first, without spaces.
    pub(super) fn tag(&self) -> Option<u8> {
        let (letter, rest) = self.line().strip_prefix(b"{\"t\":\"")?.split_first()?;
        rest.starts_with(b"\"").then_some(*letter)
    }

    pub(super) fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ReadError> {
        serde_json::from_slice(self.line()).map_err(|error| ReadError::Malformed {
            line: self.number,
            column: error.column(),
        })
    }

    /// Whether the line is what the writer makes of this.
    pub(super) fn is(&self, value: &impl Serialize) -> bool {
        serde_json::to_vec(value).is_ok_and(|json| self.line().strip_suffix(b"\n") == Some(&json))
    }

    /// Length and SHA-256 of everything before the line last read.
    pub(super) fn digest(&mut self) -> (u64, Digest) {
        self.make_room();
        (self.bytes, self.sha256.digest())
    }

    /// The end of the input, right behind the line last read.
    pub(super) fn end(&mut self) -> Result<(), ReadError> {
        let follows = self.end < self.buffer.len() || !filled(&mut self.input)?.is_empty();
        match follows {
            true => Err(ReadError::Trailing),
            false => Ok(()),
        }
    }
}

/// Tries again where a signal came in between.
fn filled<R: BufRead>(input: &mut R) -> io::Result<&[u8]> {
    while let Err(error) = input.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    input.fill_buf()
}
