//! Server encodings: what text of a source is asked for in, and names in UTF-8 whatever that is.
//!
//! A value must come back as it was. PostgreSQL converts some encodings to UTF-8 and back without
//! a difference; in the others a server also stores codes that it cannot send as UTF-8, and of some
//! characters it has two codes and sends the same for both. Text of those is asked for in the
//! server's own encoding, so that nothing is converted on the way, and only names are: segments,
//! plans and reports have them in UTF-8.
//!
//! The files in `encoding/` list the codes of each such encoding that PostgreSQL sends as UTF-8 and
//! takes back as the same code; those below 0x80 are ASCII everywhere. A line has the first code, in
//! hexadecimal, and the texts of it and the codes that follow, which count up in the last byte:
//! a character, `\u{…}` for one that would not show, `[…]` around several. PostgreSQL 13 and 18 were
//! asked for every code; the test `every_code_of_every_encoding` of the engine asks them again.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::text;

/// Every code comes back from UTF-8 as it was.
const ONE_TO_ONE: &[&str] = &[
    "ISO_8859_5",
    "KOI8R",
    "KOI8U",
    "LATIN1",
    "LATIN10",
    "LATIN2",
    "LATIN4",
    "LATIN5",
    "LATIN6",
    "LATIN7",
    "LATIN8",
    "LATIN9",
    "UTF8",
    "WIN1256",
    "WIN866",
];

macro_rules! tables {
    ($($name:literal)*) => {
        static TABLES: [(&str, LazyLock<Table>); 18] = [
            $(($name, LazyLock::new(|| Table::read(include_str!(concat!("encoding/", $name, ".txt")))))),*
        ];
    };
}

tables! {
    "EUC_CN" "EUC_JIS_2004" "EUC_JP" "EUC_KR" "EUC_TW" "ISO_8859_6" "ISO_8859_7" "ISO_8859_8" "LATIN3"
    "WIN1250" "WIN1251" "WIN1252" "WIN1253" "WIN1254" "WIN1255" "WIN1257" "WIN1258" "WIN874"
}

/// The longest text of one code, in characters.
const CHARACTERS_MAX: usize = 2;

/// What text of a database in this encoding is asked for in: UTF8 if that is the same, else the
/// encoding itself. Names as `pg_encoding_to_char` has them.
#[must_use]
pub fn sent_in(server_encoding: &str) -> &str {
    match ONE_TO_ONE.contains(&server_encoding) {
        true => "UTF8",
        false => server_encoding,
    }
}

/// The text, with `\xNN` for every byte that is none or that another code stands for as well.
#[must_use]
pub fn decode(encoding: &str, bytes: &[u8]) -> String {
    if matches!(encoding, "UTF8" | "SQL_ASCII") {
        return text::escaped(bytes);
    }
    let table = table(encoding);
    let mut text = String::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(first) = rest.first() {
        let length = code_bytes(encoding, *first).min(rest.len());
        let (code, after) = rest.split_at(length);
        rest = after;
        match table.and_then(|table| table.texts.get(code)) {
            Some(known) => text.push_str(known),
            None if first.is_ascii() => text.push(char::from(*first)),
            None => code
                .iter()
                .for_each(|byte| text.push_str(&format!("\\x{byte:02x}"))),
        }
    }
    text
}

/// Bytes that [`decode`] to this text; none if there is a character that the encoding has not.
#[must_use]
pub fn encode(encoding: &str, text: &str) -> Option<Vec<u8>> {
    if text.is_ascii() || matches!(encoding, "UTF8" | "SQL_ASCII") {
        return Some(text.as_bytes().to_vec());
    }
    let table = table(encoding)?;
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let known = (1..=CHARACTERS_MAX).rev().find_map(|count| {
            let end = rest
                .char_indices()
                .nth(count)
                .map_or(rest.len(), |(at, _)| at);
            let (taken, after) = rest.split_at_checked(end)?;
            Some((table.codes.get(taken)?, after))
        });
        if first.is_ascii() {
            bytes.push(u8::try_from(first).ok()?);
            rest = rest.get(1..)?;
        } else {
            let (code, after) = known?;
            bytes.extend_from_slice(code);
            rest = after;
        }
    }
    Some(bytes)
}

/// The texts of one encoding's codes.
struct Table {
    texts: HashMap<Vec<u8>, String>,
    codes: HashMap<String, Vec<u8>>,
}

fn table(encoding: &str) -> Option<&'static Table> {
    let found = TABLES.iter().find(|(name, _)| *name == encoding);
    found.map(|(_, table)| &**table)
}

/// How many bytes the code has that begins with this one (`wchar.c`).
fn code_bytes(encoding: &str, first: u8) -> usize {
    match (encoding.starts_with("EUC_"), first) {
        (false, _) | (true, ..0x80) => 1,
        (true, 0x8e) if encoding == "EUC_TW" => 4,
        (true, 0x8f) if encoding != "EUC_TW" => 3,
        (true, _) => 2,
    }
}

impl Table {
    fn read(file: &str) -> Self {
        let mut texts = HashMap::new();
        for line in file.split('\n') {
            let Some((first, characters)) = line.split_once(' ') else {
                continue;
            };
            let (digits, _) = first.as_bytes().as_chunks::<2>();
            let digits = digits.iter().filter_map(|pair| str::from_utf8(pair).ok());
            let mut code: Vec<u8> = digits
                .filter_map(|pair| u8::from_str_radix(pair, 16).ok())
                .collect();
            for text in texts_of(characters) {
                texts.insert(code.clone(), text);
                if let Some(last) = code.last_mut() {
                    *last = last.wrapping_add(1);
                }
            }
        }
        let codes = texts.iter();
        let codes = codes.map(|(code, text)| (text.clone(), code.clone()));
        Self {
            codes: codes.collect(),
            texts,
        }
    }
}

fn texts_of(characters: &str) -> Vec<String> {
    let mut texts: Vec<String> = Vec::new();
    let mut several: Option<String> = None;
    let mut rest = characters.chars();
    while let Some(first) = rest.next() {
        let character = match first {
            '[' => {
                several = Some(String::new());
                continue;
            }
            ']' => {
                texts.extend(several.take());
                continue;
            }
            '\\' => {
                let digits: String = rest.by_ref().skip(2).take_while(|c| *c != '}').collect();
                u32::from_str_radix(&digits, 16)
                    .ok()
                    .and_then(char::from_u32)
            }
            shown => Some(shown),
        };
        match &mut several {
            Some(text) => text.extend(character),
            None => texts.extend(character.map(String::from)),
        }
    }
    texts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_other_encodings() {
        let check = |encoding: &str, bytes: &[u8], text: &str| {
            assert_eq!(decode(encoding, bytes), text, "{encoding} {bytes:x?}");
            assert_eq!(
                encode(encoding, text).as_deref(),
                Some(bytes),
                "{encoding} {text}"
            );
        };
        check(
            "EUC_JP",
            b"t\xc6\xfc\xcb\xdc\x8e\xb1\x8f\xb0\xa1.x",
            "t日本ｱ丂.x",
        );
        check("EUC_TW", b"\xa4\xa4\x8e\xa2\xa1\xa1", "３乂");
        check("EUC_KR", b"\xc7\xd1\xb1\xb9", "한국");
        // One code, two characters.
        check("EUC_JIS_2004", b"\xa4\xf7\xa4\xab", "か゚か");
        check("WIN1252", b"gr\xfc\xdfe \x80", "grüße €");
        check("WIN1255", b"\xf9\xec\xed\xa0", "שלם\u{a0}");
        check("UTF8", "日本".as_bytes(), "日本");
    }

    /// What would not come back is told apart from all that does.
    #[test]
    fn codes_that_do_not_come_back_are_escaped() {
        // The second of two codes for one character.
        assert_eq!(decode("EUC_JP", b"\xa2\xe2\xad\xf0"), "≒\\xad\\xf0");
        assert_eq!(decode("EUC_JP", b"a\x8f\xa1\xa1b"), "a\\x8f\\xa1\\xa1b");
        assert_eq!(decode("EUC_JP", b"a\xa2"), "a\\xa2");
        assert_eq!(decode("WIN1252", b"\x81"), "\\x81");
        assert_eq!(decode("SQL_ASCII", b"\xc3\xa9\xff"), "é\\xff");
        // Not known to us: nothing is taken for UTF-8.
        assert_eq!(decode("MULE_INTERNAL", b"a\xc3\xa9"), "a\\xc3\\xa9");
        assert_eq!(encode("EUC_JP", "é한"), None);
    }

    #[test]
    fn every_code_of_the_tables_comes_back() {
        for (encoding, table) in &TABLES {
            assert_eq!(table.codes.len(), table.texts.len(), "{encoding}");
            for (code, text) in &table.texts {
                assert_eq!(decode(encoding, code), *text, "{encoding} {code:x?}");
                assert_eq!(
                    encode(encoding, text).as_ref(),
                    Some(code),
                    "{encoding} {text}"
                );
            }
        }
    }

    #[test]
    fn what_is_the_same_in_utf8_is_asked_for_so() {
        assert_eq!(sent_in("LATIN1"), "UTF8");
        assert_eq!(sent_in("UTF8"), "UTF8");
        for encoding in ["EUC_JP", "WIN1252", "SQL_ASCII", "MULE_INTERNAL"] {
            assert_eq!(sent_in(encoding), encoding);
        }
    }
}
