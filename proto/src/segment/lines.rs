//! Lines on their way in: one at a time into one reused buffer, bounded, digested when done with.

use std::io::{BufRead, Read as _};

use serde::{Deserialize, Serialize};

use super::LINE_BYTES_MAX;
use super::reader::ReadError;
use crate::{Digest, Sha256};

/// What the buffer keeps when a longer line has passed.
const BUFFER_BYTES: usize = 1 << 20;

pub(super) struct Lines<R> {
    input: R,
    /// The line last read, its end included.
    line: Vec<u8>,
    /// Its number, from 1.
    pub(super) number: u64,
    /// Of the lines before it, as `bytes`.
    sha256: Sha256,
    bytes: u64,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Self {
            input,
            line: Vec::new(),
            number: 0,
            sha256: Sha256::new(),
            bytes: 0,
        }
    }

    /// Reads the next line; there must be one, because only a footer ends a segment.
    pub(super) fn advance(&mut self) -> Result<(), ReadError> {
        self.sha256.update(&self.line);
        self.bytes = self.bytes.saturating_add(self.line.len() as u64);
        self.number = self.number.saturating_add(1);
        self.line.clear();
        self.line.shrink_to(BUFFER_BYTES);
        let read = self
            .input
            .by_ref()
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut self.line)?;
        let line = self.number;
        match self.line.last() {
            Some(b'\n') => Ok(()),
            _ if read as u64 == LINE_BYTES_MAX => Err(ReadError::LineTooLong { line }),
            _ => Err(ReadError::Truncated { line }),
        }
    }

    /// The line last read, its end included.
    pub(super) fn line(&self) -> &[u8] {
        &self.line
    }

    /// The letter of the record: `t` stands first, without spaces.
    pub(super) fn tag(&self) -> Option<u8> {
        let (letter, rest) = self.line.strip_prefix(b"{\"t\":\"")?.split_first()?;
        rest.starts_with(b"\"").then_some(*letter)
    }

    pub(super) fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, ReadError> {
        serde_json::from_slice(&self.line).map_err(|error| ReadError::Malformed {
            line: self.number,
            column: error.column(),
        })
    }

    /// Whether the line is what the writer makes of this.
    pub(super) fn is(&self, value: &impl Serialize) -> bool {
        serde_json::to_vec(value).is_ok_and(|json| self.line.strip_suffix(b"\n") == Some(&json))
    }

    /// Length and SHA-256 of everything before the line last read.
    pub(super) fn digest(&self) -> (u64, Digest) {
        (self.bytes, self.sha256.digest())
    }

    /// The end of the input, right behind the line last read.
    pub(super) fn end(&mut self) -> Result<(), ReadError> {
        match self.input.by_ref().take(1).read_to_end(&mut Vec::new())? {
            0 => Ok(()),
            _ => Err(ReadError::Trailing),
        }
    }
}
