//! A checked reader over bytes from the network: the only code that takes bytes apart.
//!
//! Every read either yields what was asked for or an error; nothing panics, nothing is allocated,
//! nothing is skipped. Integers are big-endian, as everywhere in PostgreSQL's protocol.

use crate::Class;

/// Bytes that are no message of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the message ends {missing} bytes too early")]
    Truncated { missing: usize },
    #[error("{left} bytes follow the end of the message")]
    TrailingBytes { left: usize },
    #[error("a string has no terminating zero byte")]
    Unterminated,
    #[error("unknown {what} 0x{value:02x}")]
    Unknown { what: &'static str, value: u8 },
    #[error("{what} is out of range")]
    OutOfRange { what: &'static str },
}

impl DecodeError {
    /// The server speaks another protocol or bytes were lost: trying again reads the same bytes.
    #[must_use]
    pub const fn class(&self) -> Class {
        match self {
            Self::Truncated { .. }
            | Self::TrailingBytes { .. }
            | Self::Unterminated
            | Self::Unknown { .. }
            | Self::OutOfRange { .. } => Class::Corrupt,
        }
    }
}

/// Reads from the front of a slice.
#[derive(Clone, Copy)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read yet.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `count` bytes, borrowed from the input.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or_else(|| self.truncated(count))?;
        self.rest = rest;
        Ok(taken)
    }

    /// Bytes up to a zero byte, which is consumed and not returned.
    pub fn cstr(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self
            .rest
            .iter()
            .position(|byte| *byte == 0)
            .ok_or(DecodeError::Unterminated)?;
        let text = self.bytes(length)?;
        self.u8()?;
        Ok(text)
    }

    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_be_bytes)
    }

    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    pub fn i16(&mut self) -> Result<i16, DecodeError> {
        self.array().map(i16::from_be_bytes)
    }

    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    pub fn i32(&mut self) -> Result<i32, DecodeError> {
        self.array().map(i32::from_be_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_be_bytes)
    }

    /// The end of the message: an error if anything is left.
    pub const fn finish(self) -> Result<(), DecodeError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(DecodeError::TrailingBytes { left }),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| self.truncated(N))?;
        self.rest = rest;
        Ok(*taken)
    }

    const fn truncated(&self, wanted: usize) -> DecodeError {
        DecodeError::Truncated {
            missing: wanted.saturating_sub(self.rest.len()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_in_order_and_refuses_the_rest() {
        let mut cursor = Cursor::new(&[1, 0, 2, 0xFF, 0xFF, b'a', 0, 9]);
        assert_eq!(cursor.u8(), Ok(1));
        assert_eq!(cursor.u16(), Ok(2));
        assert_eq!(cursor.i16(), Ok(-1));
        assert_eq!(cursor.cstr(), Ok(&b"a"[..]));
        assert_eq!(cursor.finish(), Err(DecodeError::TrailingBytes { left: 1 }));
        assert_eq!(cursor.cstr(), Err(DecodeError::Unterminated));
        assert_eq!(cursor.u64(), Err(DecodeError::Truncated { missing: 7 }));
        assert_eq!(
            cursor.bytes(usize::MAX),
            Err(DecodeError::Truncated {
                missing: usize::MAX - 1
            })
        );
        assert_eq!(cursor.bytes(1), Ok(&[9][..]));
        assert_eq!(cursor.finish(), Ok(()));
    }
}
