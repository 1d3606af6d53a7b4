//! Lines on their way out: gathered in one reused buffer, digested and handed on in large pieces.
//!
//! A value is never copied whole into the buffer, so its size does not matter to memory.

use std::io::{self, Write};

use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;
use serde::Serialize;

use super::string::escape;
use crate::{Digest, Sha256};

/// The buffer is handed on when it holds this much.
const BUFFER_BYTES: usize = 64 << 10;

/// A value is escaped in pieces of this size: divisible by three, so that base64 of the pieces is
/// base64 of the whole.
const PIECE_BYTES: usize = 48 << 10;

pub(super) struct LineSink<W> {
    sink: W,
    buffer: Vec<u8>,
    sha256: Sha256,
    /// Handed on already.
    written: u64,
}

impl<W: Write> LineSink<W> {
    pub(super) fn new(sink: W) -> Self {
        Self {
            sink,
            buffer: Vec::with_capacity(BUFFER_BYTES.saturating_mul(2)),
            sha256: Sha256::new(),
            written: 0,
        }
    }

    /// Bytes of NDJSON so far.
    pub(super) fn bytes(&self) -> u64 {
        // A buffer's length fits: usize has at most 64 bits.
        self.written.saturating_add(self.buffer.len() as u64)
    }

    pub(super) fn raw(&mut self, text: &[u8]) {
        self.buffer.extend_from_slice(text);
    }

    /// As [`Self::raw`], of any length.
    pub(super) fn copy(&mut self, text: &[u8]) -> io::Result<()> {
        for piece in text.chunks(PIECE_BYTES) {
            self.raw(piece);
            self.hand_on()?;
        }
        Ok(())
    }

    pub(super) fn json(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.buffer, value).map_err(io::Error::from)
    }

    /// A string, or `{"b64":"…"}` if the bytes are no UTF-8.
    pub(super) fn text(&mut self, text: &[u8]) -> io::Result<()> {
        if std::str::from_utf8(text).is_ok() {
            self.raw(b"\"");
            for piece in text.chunks(PIECE_BYTES) {
                escape(piece, &mut self.buffer);
                self.hand_on()?;
            }
            self.raw(b"\"");
        } else {
            self.raw(b"{\"b64\":\"");
            for piece in text.chunks(PIECE_BYTES) {
                let mut encoder = EncoderWriter::new(&mut self.buffer, &STANDARD);
                encoder.write_all(piece)?;
                encoder.finish()?;
                drop(encoder);
                self.hand_on()?;
            }
            self.raw(b"\"}");
        }
        Ok(())
    }

    pub(super) fn end_line(&mut self) -> io::Result<()> {
        self.raw(b"\n");
        self.hand_on()
    }

    /// SHA-256 of everything so far.
    pub(super) fn digest(&self) -> Digest {
        let mut sha256 = self.sha256.clone();
        sha256.update(&self.buffer);
        sha256.digest()
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.sink.write_all(&self.buffer)?;
        Ok(self.sink)
    }

    fn hand_on(&mut self) -> io::Result<()> {
        if self.buffer.len() >= BUFFER_BYTES {
            self.sha256.update(&self.buffer);
            self.sink.write_all(&self.buffer)?;
            self.written = self.bytes();
            self.buffer.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(text: &[u8]) -> Vec<u8> {
        let mut sink = LineSink::new(Vec::new());
        sink.text(text).unwrap();
        let (bytes, digest) = (sink.bytes(), sink.digest());
        let out = sink.finish().unwrap();
        assert_eq!(bytes, out.len() as u64);
        assert_eq!(digest, Sha256::of(&out));
        out
    }

    proptest! {
        #[test]
        fn a_string_is_json(text in "(?s)[ -~\\x00-\\x7f]{0,40}|(?s).{0,20}") {
            let json: String = serde_json::from_slice(&written(text.as_bytes())).unwrap();
            prop_assert_eq!(json, text);
        }
    }

    #[test]
    fn long_values_go_out_in_pieces() {
        let text = "ä\n\"\u{1F418}".repeat(50_000);
        let json: String = serde_json::from_slice(&written(text.as_bytes())).unwrap();
        assert_eq!(json, text);

        let mut bytes = text.into_bytes();
        bytes.push(0xFF);
        let json: serde_json::Value = serde_json::from_slice(&written(&bytes)).unwrap();
        let decoded = base64::Engine::decode(&STANDARD, json["b64"].as_str().unwrap()).unwrap();
        assert!(decoded == bytes);
    }

    #[test]
    fn what_is_no_utf8_is_base64() {
        assert_eq!(written(b""), b"\"\"");
        assert_eq!(written(b"\xFF"), b"{\"b64\":\"/w==\"}");
    }
}
