//! The inside of JSON strings, there and back.

use crate::word::{below, equal};

/// `text` may begin or end within a character: what is escaped is ASCII.
pub(super) fn escape(text: &[u8], out: &mut Vec<u8>) {
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

/// Up to the quote that ends the string; answers what follows it. None if there is no such quote, or an
/// escape that [`escape`] does not make.
pub(super) fn unescape<'t>(text: &'t [u8], out: &mut Vec<u8>) -> Option<&'t [u8]> {
    let mut rest = text;
    loop {
        let (plain, special) = rest.split_at_checked(plain_bytes(rest))?;
        out.extend_from_slice(plain);
        let (byte, after) = special.split_first()?;
        rest = match (byte, after) {
            (b'"', after) => return Some(after),
            (b'\\', [escaped, after @ ..]) => match escaped {
                b'"' | b'\\' => {
                    out.push(*escaped);
                    after
                }
                b'n' => {
                    out.push(b'\n');
                    after
                }
                b'r' => {
                    out.push(b'\r');
                    after
                }
                b't' => {
                    out.push(b'\t');
                    after
                }
                b'u' => match after {
                    [b'0', b'0', high @ (b'0' | b'1'), low, after @ ..] => {
                        out.push(nibble(*high)? << 4 | nibble(*low)?);
                        after
                    }
                    _ => return None,
                },
                _ => return None,
            },
            _ => return None,
        }
    }
}

/// How many bytes at the front need no escape. Eight at a time: most values have none that does.
fn plain_bytes(text: &[u8]) -> usize {
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

/// The value of a hexadecimal digit in lower case.
pub(super) const fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit.wrapping_sub(b'0')),
        b'a'..=b'f' => Some(digit.wrapping_sub(b'a').wrapping_add(10)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn escaped(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        escape(text, &mut out);
        out
    }

    proptest! {
        #[test]
        fn what_is_escaped_is_json_and_comes_back(text in "(?s)[ -~\\x00-\\x7f]{0,40}|(?s).{0,20}", rest: Vec<u8>) {
            let inside = escaped(text.as_bytes());
            let mut json = [b"\"", &inside[..], b"\""].concat();
            let read: String = serde_json::from_slice(&json).unwrap();
            prop_assert_eq!(&read, &text);
            json.extend(&rest);
            let mut back = b"x".to_vec();
            prop_assert_eq!(unescape(&json[1..], &mut back), Some(&rest[..]));
            prop_assert_eq!(&back[1..], text.as_bytes());
        }

        /// What it takes, a parser takes too, for the same.
        #[test]
        fn whatever_comes_back_is_json(inside in "([a-f0-9xnrtu\"\\\\/ü]|\\\\u00[01][0-9a-f]|\\\\u00[01]|\\\\[nrt\"\\\\]|\n){0,12}") {
            let mut back = Vec::new();
            if let Some(rest) = unescape(inside.as_bytes(), &mut back) {
                let json = format!("\"{}", &inside[..inside.len() - rest.len()]);
                let read: String = serde_json::from_str(&json).unwrap();
                prop_assert_eq!(read.as_bytes(), &back);
            }
        }

        #[test]
        fn the_first_special_byte_is_found(text: Vec<u8>) {
            let slow = text.iter().take_while(|b| !matches!(b, 0..0x20 | b'"' | b'\\')).count();
            prop_assert_eq!(plain_bytes(&text), slow);
        }
    }

    #[test]
    fn escapes() {
        assert_eq!(
            escaped(b"a\"b\\c\nd\re\tf\x08\x00\x1f\x7f"),
            b"a\\\"b\\\\c\\nd\\re\\tf\\u0008\\u0000\\u001f\x7f"
        );
        assert_eq!(escaped(b""), b"");
        for inside in [
            "a",
            "\\",
            "\\x\"",
            "\\u0020\"",
            "\\u001\"",
            "a\nb\"",
            "\\u00",
        ] {
            assert_eq!(
                unescape(inside.as_bytes(), &mut Vec::new()),
                None,
                "{inside:?}"
            );
        }
    }
}
