//! Lines on their way out: gathered in one reused buffer, digested and handed on in large pieces.
//!
//! A value is never copied whole into the buffer, so its size does not matter to memory.

use std::io::{self, Write};

use base64::engine::general_purpose::STANDARD;
use base64::write::EncoderWriter;
use serde::Serialize;

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

/// The inside of a JSON string. `text` may begin or end within a character: what is escaped is
/// ASCII.
fn escape(text: &[u8], out: &mut Vec<u8>) {
    let mut rest = text;
    loop {
        let (plain, special) = rest
            .split_at_checked(plain_bytes(rest))
            .unwrap_or((rest, &[]));
        out.extend_from_slice(plain);
        let Some((byte, after)) = special.split_first() else {
            return;
        };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => {
                out.extend_from_slice(b"\\u00");
                out.extend_from_slice(&[hex(control >> 4), hex(control & 0xF)]);
            }
        }
        rest = after;
    }
}

/// How many bytes at the front need no escape. Eight at a time: most values have none that does.
fn plain_bytes(text: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = u64::from_ne_bytes([0x80; 8]);
    // The high bit of each byte below `limit`; the lowest one set is exact, those above it may not
    // be (a borrow), which does not matter to a search for the first.
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES.wrapping_mul(limit)) & !word & HIGH;
    let equal = |word: u64, byte: u8| below(word ^ u64::from_ne_bytes([byte; 8]), 1);

    let (words, tail) = text.as_chunks::<8>();
    let mut plain = 0_usize;
    for word in words {
        let word = u64::from_le_bytes(*word);
        let found = below(word, 0x20) | equal(word, b'"') | equal(word, b'\\');
        if found != 0 {
            let bytes = found.trailing_zeros() / 8;
            return plain.saturating_add(bytes as usize);
        }
        plain = plain.saturating_add(8);
    }
    let special = |byte: &u8| matches!(byte, 0..0x20 | b'"' | b'\\');
    plain.saturating_add(tail.iter().position(special).unwrap_or(tail.len()))
}

const fn hex(nibble: u8) -> u8 {
    match nibble {
        0..=9 => b'0'.wrapping_add(nibble),
        _ => b'a'.wrapping_sub(10).wrapping_add(nibble),
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

        #[test]
        fn the_first_special_byte_is_found(text: Vec<u8>) {
            let slow = text.iter().take_while(|b| !matches!(b, 0..0x20 | b'"' | b'\\')).count();
            prop_assert_eq!(plain_bytes(&text), slow);
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
    fn escapes() {
        assert_eq!(
            written(b"a\"b\\c\nd\re\tf\x08\x00\x1f\x7f"),
            b"\"a\\\"b\\\\c\\nd\\re\\tf\\u0008\\u0000\\u001f\x7f\""
        );
        assert_eq!(written(b""), b"\"\"");
        assert_eq!(written(b"\xFF"), b"{\"b64\":\"/w==\"}");
    }
}
