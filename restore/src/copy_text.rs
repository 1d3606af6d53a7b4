//! PostgreSQL's COPY text format, and array and composite literals inside it (`copyto.c`,
//! `arrayfuncs.c`, `rowtypes.c`).

use lastgood_proto::pgoutput::Value;
use lastgood_proto::word::{below, equal};

/// One field of a row. Separators are the caller's.
pub(crate) fn field(value: Value<'_>, out: &mut Vec<u8>) {
    match value {
        Value::Text(text) => escaped(text, out),
        Value::Null | Value::Unchanged => null(out),
    }
}

/// What stands for a null.
const NULL: &[u8] = b"\\N";

pub(crate) fn null(out: &mut Vec<u8>) {
    out.extend_from_slice(NULL);
}

fn escaped(bytes: &[u8], out: &mut Vec<u8>) {
    let mut rest = bytes;
    while let Some(at) = first_special(rest) {
        let (plain, from) = rest.split_at(at);
        out.extend_from_slice(plain);
        if let Some((byte, after)) = from.split_first() {
            out.extend_from_slice(escape(*byte));
            rest = after;
        }
    }
    out.extend_from_slice(rest);
}

/// Piece by piece, which takes a few instructions each: most values have none.
fn first_special(bytes: &[u8]) -> Option<usize> {
    let (pieces, _) = bytes.as_chunks::<32>();
    let is_plain = |piece: &&[u8; 32]| !piece.iter().fold(false, |any, byte| any | special(*byte));
    let plain = pieces.iter().take_while(is_plain).count() * 32;
    // Short ones, and what is left of long ones.
    let (words, _) = bytes.get(plain..).unwrap_or_default().as_chunks::<8>();
    let is_plain = |word: &&[u8; 8]| !may_be_special(u64::from_le_bytes(**word));
    let plain = plain + words.iter().take_while(is_plain).count() * 8;
    let rest = bytes.get(plain..).unwrap_or_default();
    let at = rest.iter().position(|byte| special(*byte));
    at.map(|at| plain + at)
}

/// What `CopyAttributeOutText` escapes, no more and no less: rows of a base are compared with ours as
/// they stand.
const fn special(byte: u8) -> bool {
    matches!(byte, b'\\' | 0x08..=0x0d)
}

/// Whether one of eight bytes is, or is another of the first control characters.
const fn may_be_special(word: u64) -> bool {
    below(word, 0x0e) | equal(word, b'\\') != 0
}

const fn escape(byte: u8) -> &'static [u8] {
    match byte {
        b'\\' => b"\\\\",
        b'\t' => b"\\t",
        b'\n' => b"\\n",
        0x08 => b"\\b",
        0x0b => b"\\v",
        0x0c => b"\\f",
        _ => b"\\r",
    }
}

/// A `text[]` field; unchanged values are null in it.
pub(crate) fn array<'a>(values: impl Iterator<Item = Value<'a>>, out: &mut Vec<u8>) {
    elements(values, *b"{}", b"NULL", b"\\\\\"", out);
}

/// A composite field; unchanged values are null in it.
pub(crate) fn composite<'a>(values: impl Iterator<Item = Value<'a>>, out: &mut Vec<u8>) {
    elements(values, *b"()", b"", b"\"\"", out);
}

/// Elements in double quotes; `quote` stands for one inside, in COPY's form.
fn elements<'a>(
    values: impl Iterator<Item = Value<'a>>,
    [open, close]: [u8; 2],
    null: &[u8],
    quote: &[u8],
    out: &mut Vec<u8>,
) {
    out.push(open);
    for (at, value) in values.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        let Value::Text(text) = value else {
            out.extend_from_slice(null);
            continue;
        };
        out.push(b'"');
        for byte in text {
            match byte {
                // Once for the literal, and each of the two once for COPY.
                b'\\' => out.extend_from_slice(b"\\\\\\\\"),
                b'"' => out.extend_from_slice(quote),
                _ if special(*byte) => out.extend_from_slice(escape(*byte)),
                _ => out.push(*byte),
            }
        }
        out.push(b'"');
    }
    out.push(close);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &str) -> Value<'_> {
        Value::Text(value.as_bytes())
    }

    #[test]
    fn fields() {
        let check = |value: Value<'_>, expect: &str| {
            let mut out = Vec::new();
            field(value, &mut out);
            assert_eq!(out, expect.as_bytes());
        };
        check(Value::Null, "\\N");
        check(Value::Unchanged, "\\N");
        check(text(""), "");
        check(text("\\N"), "\\\\N");
        check(text("a\tb\nc\rd\\"), "a\\tb\\nc\\rd\\\\");
        check(text("\u{7}\u{8}\u{b}\u{c}\u{e}"), "\u{7}\\b\\v\\f\u{e}");
        check(Value::Text(b"x"), "x");
    }

    #[test]
    fn the_first_special_byte_is_found_wherever_it_is() {
        for length in [0, 1, 31, 32, 33, 64, 100] {
            for plain in *b"x\x00\x07\x0e\x5b\x5d\x7f\x80\xdc\xff" {
                let plain = vec![plain; length];
                assert_eq!(first_special(&plain), None);
                for at in 0..length {
                    for special in b"\\\x08\t\n\x0b\x0c\r" {
                        let mut text = plain.clone();
                        text[at..].fill(*special);
                        assert_eq!(first_special(&text), Some(at), "{plain:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn arrays() {
        let mut out = Vec::new();
        let values = [text("a\"b\\\n"), Value::Null, text("NULL"), text("")];
        array(values.into_iter(), &mut out);
        assert_eq!(out, br#"{"a\\"b\\\\\n",NULL,"NULL",""}"#);
    }

    #[test]
    fn composites() {
        let mut out = Vec::new();
        let values = [text("a\"b\\\n"), Value::Null, Value::Unchanged, text("")];
        composite(values.into_iter(), &mut out);
        assert_eq!(out, br#"("a""b\\\\\n",,,"")"#);
    }
}
