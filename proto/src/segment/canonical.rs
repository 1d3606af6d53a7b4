//! Transactions in the form that the writer gives them, to the byte: most lines of a segment, read several times
//! as fast as any JSON. What looks otherwise is left to the parser that takes all of it.

#[cfg(test)]
mod tests;

use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::ledger::Kind;
use super::record::{Old, Record};
use super::row::{RowBuffer, RowPlace};
use super::string::unescape;
use crate::pgoutput::Value;
use crate::{Oid, Xid};

/// Of every line.
const END: &[u8] = b"}\n";

/// None if the line is no I, U, D, B or C as the writer makes it, which says nothing of what it is. The buffer may
/// then hold part of a row that nobody has the place of.
pub(super) fn record(line: &[u8], rows: &mut RowBuffer) -> Option<Record<RowPlace>> {
    // A string is UTF-8; to look at all of the line once is quicker than at each.
    if !line.is_ascii() {
        str::from_utf8(line).ok()?;
    }
    match line.strip_prefix(b"{\"t\":\"")? {
        [b'B', b'"', rest @ ..] => begin(rest),
        [b'C', b'"', rest @ ..] => commit(rest),
        [tag, b'"', rest @ ..] => change(*tag, rest, rows),
        _ => None,
    }
}

/// Of a line that begins as the writer begins a row's: which kind of change it is, of which relation.
pub(super) fn row_of(line: &[u8]) -> Option<(Kind, Oid)> {
    let (kind, rest) = match line.strip_prefix(b"{\"t\":\"")? {
        [b'I', rest @ ..] => (Kind::Insert, rest),
        [b'U', rest @ ..] => (Kind::Update, rest),
        [b'D', rest @ ..] => (Kind::Delete, rest),
        _ => return None,
    };
    let (rel, rest) = number(rest.strip_prefix(b"\",\"rel\":")?)?;
    rest.starts_with(b",").then_some((kind, Oid::new(rel)))
}

fn begin(text: &[u8]) -> Option<Record<RowPlace>> {
    let (xid, rest) = number(text.strip_prefix(b",\"xid\":")?)?;
    let (lsn, rest) = quoted(rest.strip_prefix(b",\"lsn\":\"")?)?;
    let (time, rest) = quoted(rest.strip_prefix(b",\"time\":\"")?)?;
    (rest == END).then_some(Record::Begin {
        xid: Xid::new(xid),
        lsn,
        time,
        until: None,
    })
}

fn commit(text: &[u8]) -> Option<Record<RowPlace>> {
    let (lsn, rest) = quoted(text.strip_prefix(b",\"lsn\":\"")?)?;
    let (end, rest) = quoted(rest.strip_prefix(b",\"end\":\"")?)?;
    (rest == END).then_some(Record::Commit { lsn, end })
}

fn change(tag: u8, text: &[u8], rows: &mut RowBuffer) -> Option<Record<RowPlace>> {
    let (rel, rest) = number(text.strip_prefix(b",\"rel\":")?)?;
    let rel = Oid::new(rel);
    let (old, rest) = match rest.strip_prefix(b",\"") {
        Some([b'k', b'e', b'y', b'"', b':', rest @ ..]) => {
            let (key, rest) = row(rest, rows)?;
            (Old::Key(key), rest)
        }
        Some([b'o', b'l', b'd', b'"', b':', rest @ ..]) => {
            let (full, rest) = row(rest, rows)?;
            (Old::Full(full), rest)
        }
        _ => (Old::None, rest),
    };
    let (new, rest) = match rest.strip_prefix(b",\"new\":") {
        Some(rest) => {
            let (new, rest) = row(rest, rows)?;
            (Some(new), rest)
        }
        None => (None, rest),
    };
    if rest != END {
        return None;
    }
    match (tag, old, new) {
        (b'I', Old::None, Some(new)) => Some(Record::Insert { rel, new }),
        (b'U', old, Some(new)) => Some(Record::Update { rel, old, new }),
        (b'D', old, None) => Some(Record::Delete { rel, old }),
        _ => None,
    }
}

fn number(text: &[u8]) -> Option<(u32, &[u8])> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (digits, rest) = text.split_at_checked(digits)?;
    let leads_with_zero = digits.first() == Some(&b'0') && digits.len() > 1;
    let number = str::from_utf8(digits).ok()?.parse().ok()?;
    (!leads_with_zero).then_some((number, rest))
}

/// Up to the quote that ends a string without escapes.
fn quoted<T: FromStr>(text: &[u8]) -> Option<(T, &[u8])> {
    let end = text.iter().position(|byte| *byte == b'"')?;
    let (inside, rest) = text.split_at_checked(end)?;
    let value = str::from_utf8(inside).ok()?.parse().ok()?;
    Some((value, rest.split_first()?.1))
}

fn row<'t>(text: &'t [u8], rows: &mut RowBuffer) -> Option<(RowPlace, &'t [u8])> {
    let mut row = rows.build();
    let mut rest = text.strip_prefix(b"[")?;
    if let Some(rest) = rest.strip_prefix(b"]") {
        return Some((row.end(), rest));
    }
    loop {
        rest = match rest {
            [b'"', rest @ ..] => row.text(|text| unescape(rest, text))?,
            [b'n', b'u', b'l', b'l', rest @ ..] => {
                row.value(Value::Null);
                rest
            }
            [b'f', b'a', b'l', b's', b'e', rest @ ..] => {
                row.value(Value::Unchanged);
                rest
            }
            _ => {
                let rest = rest.strip_prefix(b"{\"b64\":\"")?;
                let (encoded, rest) = rest.split_at_checked(memchr::memchr(b'"', rest)?)?;
                row.text(|text| STANDARD.decode_vec(encoded, text).ok())?;
                rest.strip_prefix(b"\"}")?
            }
        };
        rest = match rest {
            [b',', rest @ ..] => rest,
            [b']', rest @ ..] => return Some((row.end(), rest)),
            _ => return None,
        };
    }
}
