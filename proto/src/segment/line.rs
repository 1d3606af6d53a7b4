//! The lines as serde types. `t` comes first, so that a reader knows the record before it parses
//! it; unknown and missing fields are errors.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error as _, MapAccess, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::record::{ColumnRecord, CommitTimes, Footer, RowCounts};
use super::row::{RowBuffer, RowPlace};
use super::string::nibble;
use crate::pgoutput::{ReplicaIdentity, Value};
use crate::{Digest, LineageId, Lsn, Oid, PgTimestamp, SourceId, Xid};

/// The letter in `t`.
pub(super) struct Tag<const T: char>;

impl<const T: char> Serialize for Tag<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_char(T)
    }
}

impl<'de, const T: char> Deserialize<'de> for Tag<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match char::deserialize(deserializer)? {
            letter if letter == T => Ok(Self),
            letter => Err(D::Error::invalid_value(
                Unexpected::Char(letter),
                &"the letter of this record",
            )),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeaderLine {
    pub(super) t: Tag<'H'>,
    pub(super) v: u32,
    pub(super) source: SourceId,
    pub(super) lineage: LineageId,
    pub(super) start: Lsn,
    pub(super) server: u32,
    /// Since version 2.
    #[serde(
        default,
        deserialize_with = "named",
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) encoding: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RelationLine {
    pub(super) t: Tag<'R'>,
    pub(super) rel: Oid,
    pub(super) schema: String,
    pub(super) table: String,
    pub(super) identity: ReplicaIdentity,
    pub(super) columns: Vec<ColumnRecord>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BeginLine {
    pub(super) t: Tag<'B'>,
    pub(super) xid: Xid,
    pub(super) lsn: Lsn,
    pub(super) time: PgTimestamp,
    /// Since version 3.
    #[serde(
        default,
        deserialize_with = "present",
        skip_serializing_if = "Option::is_none"
    )]
    pub(super) until: Option<PgTimestamp>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InsertLine<'a> {
    #[serde(rename = "t")]
    _t: Tag<'I'>,
    pub(super) rel: Oid,
    #[serde(borrow)]
    pub(super) new: Values<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateLine<'a> {
    #[serde(rename = "t")]
    _t: Tag<'U'>,
    pub(super) rel: Oid,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(super) key: Option<Values<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(super) old: Option<Values<'a>>,
    #[serde(borrow)]
    pub(super) new: Values<'a>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DeleteLine<'a> {
    #[serde(rename = "t")]
    _t: Tag<'D'>,
    pub(super) rel: Oid,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(super) key: Option<Values<'a>>,
    #[serde(borrow, default, deserialize_with = "present")]
    pub(super) old: Option<Values<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TruncateLine {
    pub(super) t: Tag<'T'>,
    pub(super) rels: Vec<Oid>,
    pub(super) cascade: bool,
    pub(super) restart_identity: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MessageLine {
    #[serde(rename = "t")]
    _t: Tag<'M'>,
    pub(super) transactional: bool,
    pub(super) lsn: Lsn,
    pub(super) prefix: Payload,
    pub(super) content: Payload,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SequencesLine {
    pub(super) t: Tag<'S'>,
    pub(super) lsn: Lsn,
    /// Schema, name, last value, is called.
    pub(super) sequences: Vec<(String, String, String, bool)>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CommitLine {
    pub(super) t: Tag<'C'>,
    pub(super) lsn: Lsn,
    pub(super) end: Lsn,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FooterLine {
    pub(super) t: Tag<'F'>,
    pub(super) end: Lsn,
    pub(super) transactions: u64,
    // Named to serde so that null is needed where there is nothing, and absence is an error.
    #[serde(deserialize_with = "Option::deserialize")]
    pub(super) commit_times: Option<CommitTimes>,
    #[serde(deserialize_with = "Option::deserialize")]
    pub(super) observed_through: Option<PgTimestamp>,
    pub(super) rows: BTreeMap<Oid, RowCounts>,
    pub(super) bytes: u64,
    pub(super) sha256: Digest,
}

impl From<&Footer> for FooterLine {
    fn from(footer: &Footer) -> Self {
        Self {
            t: Tag,
            end: footer.end,
            transactions: footer.transactions,
            commit_times: footer.commit_times,
            observed_through: footer.observed_through,
            rows: footer.rows.clone(),
            bytes: footer.bytes,
            sha256: footer.sha256,
        }
    }
}

/// A field that may be absent but not null.
fn named<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    String::deserialize(deserializer).map(Some)
}

/// As `named`.
fn present<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    T::deserialize(deserializer).map(Some)
}

/// Text or bytes, never null: a string, or `{"b64":"…"}` for what is no UTF-8.
pub(super) struct Payload(pub(super) Vec<u8>);

impl<'de> Deserialize<'de> for Payload {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Cell::deserialize(deserializer)? {
            Cell::Text(text) => Ok(Self(text.into_owned().into_bytes())),
            Cell::Bytes(bytes) => Ok(Self(bytes)),
            Cell::Null | Cell::Unchanged => Err(D::Error::custom("a text is missing")),
        }
    }
}

/// A row's values.
#[derive(Deserialize)]
#[serde(transparent)]
pub(super) struct Values<'a>(#[serde(borrow)] Vec<Cell<'a>>);

impl Values<'_> {
    pub(super) fn put(&self, rows: &mut RowBuffer) -> RowPlace {
        rows.push(self.0.iter().map(|cell| match cell {
            Cell::Null => Value::Null,
            Cell::Unchanged => Value::Unchanged,
            Cell::Text(text) => Value::Text(text.as_bytes()),
            Cell::Bytes(bytes) => Value::Text(bytes),
        }))
    }
}

enum Cell<'a> {
    Null,
    Unchanged,
    Text(Cow<'a, str>),
    Bytes(Vec<u8>),
}

impl<'de: 'a, 'a> Deserialize<'de> for Cell<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CellVisitor)
    }
}

struct CellVisitor;

impl<'de> Visitor<'de> for CellVisitor {
    type Value = Cell<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, null, false, or an object with b64")
    }

    fn visit_unit<E>(self) -> Result<Cell<'de>, E> {
        Ok(Cell::Null)
    }

    fn visit_bool<E: serde::de::Error>(self, value: bool) -> Result<Cell<'de>, E> {
        if value {
            return Err(E::invalid_value(Unexpected::Bool(true), &self));
        }
        Ok(Cell::Unchanged)
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Cell<'de>, E> {
        Ok(Cell::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Cell<'de>, E> {
        Ok(Cell::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Cell<'de>, A::Error> {
        let Some(Encoded::B64) = map.next_key()? else {
            return Err(A::Error::missing_field("b64"));
        };
        let text: Cow<'_, str> = map.next_value()?;
        let bytes = STANDARD
            .decode(text.as_bytes())
            .map_err(|_| A::Error::custom("not base64"))?;
        if map.next_key::<Encoded>()?.is_some() {
            return Err(A::Error::duplicate_field("b64"));
        }
        Ok(Cell::Bytes(bytes))
    }
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Encoded {
    B64,
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_digest(&text).ok_or_else(|| D::Error::custom("not 64 hexadecimal digits"))
    }
}

fn parse_digest(text: &str) -> Option<Digest> {
    let mut digest = [0; 32];
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != digest.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in digest.iter_mut().zip(pairs) {
        *byte = nibble(*high)? << 4 | nibble(*low)?;
    }
    Some(Digest(digest))
}
