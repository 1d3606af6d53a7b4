//! Reading an envelope: the object's bytes are pushed in, plain bytes are taken out.
//!
//! Plain bytes come out before the last chunk has been seen, so whatever is made of them counts only
//! once [`Opened::End`] was returned.

use std::io;

use bytes::{Buf, BytesMut};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::{Header, ObjectCipher, SEALED_CHUNK_BYTES, TAG_BYTES, UnsealError, WINDOW_LOG_MAX};
use crate::keyring::DataKey;

/// What [`Opener::take`] came to.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Opened {
    /// That many plain bytes are in the buffer; more than none.
    Plain(usize),
    /// Nothing more without more of the object: `push`, or `end` if there is no more.
    Starved,
    /// The whole object was read and everything fitted.
    End,
}

pub(crate) struct Opener {
    /// Bytes of the object that were not looked at yet.
    pushed: BytesMut,
    ended: bool,
    cipher: Option<OpenCipher>,
    /// Compressed bytes that are authentic, or in clear, and not decompressed yet.
    compressed: Vec<u8>,
    consumed: usize,
    decoder: Decoder<'static>,
    /// The decoder filled the whole buffer, so it may hold more without further input.
    more_inside: bool,
    frame_ended: bool,
}

struct OpenCipher {
    cipher: ObjectCipher,
    last_seen: bool,
}

impl Opener {
    /// For an object in clear.
    pub(crate) fn clear() -> Result<Self, UnsealError> {
        Self::new(None)
    }

    /// For the bytes after `header`.
    pub(crate) fn encrypted(
        key: &DataKey,
        header: &Header,
        context: &str,
    ) -> Result<Self, UnsealError> {
        Self::new(Some(OpenCipher {
            cipher: ObjectCipher::new(key, header, context),
            last_seen: false,
        }))
    }

    fn new(cipher: Option<OpenCipher>) -> Result<Self, UnsealError> {
        let decoder = || {
            let mut decoder = Decoder::new()?;
            decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
            io::Result::Ok(decoder)
        };
        Ok(Self {
            pushed: BytesMut::new(),
            ended: false,
            cipher,
            compressed: Vec::new(),
            consumed: 0,
            decoder: decoder().map_err(UnsealError::Compression)?,
            more_inside: false,
            frame_ended: false,
        })
    }

    /// The next bytes of the object. Memory is bounded by pushing little and taking until starved.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        debug_assert!(!self.ended, "nothing is pushed after the end");
        self.pushed.extend_from_slice(bytes);
    }

    /// The object has no more bytes.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// Puts the next plain bytes into `out`, which must not be empty.
    pub(crate) fn take(&mut self, out: &mut [u8]) -> Result<Opened, UnsealError> {
        loop {
            let input = &self.compressed[self.consumed..];
            if self.frame_ended {
                if !input.is_empty() {
                    return Err(UnsealError::Trailing);
                }
            } else if !input.is_empty() || self.more_inside {
                let mut input = InBuffer::around(input);
                let mut output = OutBuffer::around(&mut *out);
                let hint = self
                    .decoder
                    .run(&mut input, &mut output)
                    .map_err(UnsealError::Compression)?;
                let written = output.pos();
                self.consumed += input.pos();
                self.frame_ended = hint == 0;
                self.more_inside = written == out.len();
                if written > 0 {
                    return Ok(Opened::Plain(written));
                }
                continue;
            }
            if !self.refill()? {
                return match (self.ended, self.frame_ended) {
                    (false, _) => Ok(Opened::Starved),
                    (true, true) => Ok(Opened::End),
                    (true, false) => Err(UnsealError::CutOff),
                };
            }
        }
    }

    /// Moves what was pushed to where it can be decompressed; false if there is nothing to move.
    fn refill(&mut self) -> Result<bool, UnsealError> {
        self.compressed.clear();
        self.consumed = 0;
        let Some(open) = &mut self.cipher else {
            self.compressed.extend_from_slice(&self.pushed);
            self.pushed.clear();
            return Ok(!self.compressed.is_empty());
        };
        if open.last_seen {
            debug_assert!(
                self.pushed.is_empty(),
                "the last chunk takes all that is left"
            );
            return Ok(false);
        }
        // Only a chunk with bytes after it is known not to be the last.
        let last = match self.pushed.len() > SEALED_CHUNK_BYTES {
            true => false,
            false if self.ended => true,
            false => return Ok(false),
        };
        let taken = self.pushed.len().min(SEALED_CHUNK_BYTES);
        if taken <= TAG_BYTES {
            return Err(UnsealError::CutOff);
        }
        self.compressed.extend_from_slice(&self.pushed[..taken]);
        self.pushed.advance(taken);
        open.cipher.open(&mut self.compressed, last)?;
        open.last_seen = last;
        Ok(true)
    }
}
