//! Object keys: where everything in a repository stands, formatter beside parser.
//!
//! LSNs and times are fixed-width hexadecimal, so a listing is sorted and a plan needs no object
//! opened. `Key::path` and `Key::parse` are inverse: a path that `parse` accepts is exactly what
//! `path` prints.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::ids::parse_hex;
use crate::{BaseId, LineageId, Lsn, PgTimestamp, SourceId};

/// How an object below `sources/` is stored, told by its suffix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Form {
    /// A zstd frame in clear: `.zst`.
    Zstd,
    /// A zstd frame inside authenticated encryption: `.zst.enc`.
    ZstdEncrypted,
}

impl Form {
    const fn suffix(self) -> &'static str {
        match self {
            Form::Zstd => ".zst",
            Form::ZstdEncrypted => ".zst.enc",
        }
    }
}

/// Names one data key. Sixteen hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 8]);

/// Tells one master key from another without revealing it. Sixteen hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint([u8; 8]);

macro_rules! eight_bytes {
    ($name:ident, $kind:literal) => {
        impl $name {
            #[must_use]
            pub const fn from_bytes(bytes: [u8; 8]) -> Self {
                Self(bytes)
            }

            #[must_use]
            pub const fn as_bytes(&self) -> &[u8; 8] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", u64::from_be_bytes(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = crate::ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                parse_hex(text, 16)
                    .map(|number| Self(number.to_be_bytes()))
                    .ok_or_else(|| crate::ParseIdError {
                        kind: $kind,
                        text: text.to_owned(),
                    })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

eight_bytes!(KeyId, "data key id");
eight_bytes!(Fingerprint, "master key fingerprint");

/// How a segment came to be.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum SegmentKind {
    /// Made of the stream.
    #[default]
    Captured,
    /// Made of segments that follow each other, whose place it takes.
    Merged,
}

impl SegmentKind {
    /// The folder of a lineage that segments of this kind stand in.
    const fn folder(self) -> &'static str {
        match self {
            SegmentKind::Captured => "segments",
            SegmentKind::Merged => "merged",
        }
    }
}

/// What a segment's key tells: its LSN range and the times a plan needs.
///
/// The segment holds the whole transactions with `start <= commit_lsn` and `end_lsn <= end`. In a
/// chain `start` is the `end` of the segment before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentKey {
    pub start: Lsn,
    pub end: Lsn,
    /// The latest commit time inside; none if no transaction is.
    pub max_commit_time: Option<PgTimestamp>,
    /// The server's clock up to which this segment and those before it hold every commit.
    pub observed_through: Option<PgTimestamp>,
    pub kind: SegmentKind,
}

impl SegmentKey {
    /// Whether it holds all that `other` does, and takes its place.
    #[must_use]
    pub fn replaces(&self, other: &Self) -> bool {
        let within = self.start <= other.start && other.end <= self.end;
        let same = self.start == other.start && self.end == other.end;
        // Two merged ones of one range are a contradiction, not a repetition.
        self.kind == SegmentKind::Merged && within && !(same && other.kind == self.kind)
    }

    /// No transaction inside: it only carries the position forward.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.max_commit_time.is_none()
    }
}

/// A named restore point: everything committed up to its LSN.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PointKey {
    pub lsn: Lsn,
    name: String,
}

impl PointKey {
    /// The longest name, in bytes.
    pub const NAME_BYTES_MAX: usize = 64;

    /// # Errors
    /// If `name` is not one to 64 of `A-Z a-z 0-9 . _ -`: it stands in a key and on a command line.
    pub fn new(lsn: Lsn, name: &str) -> Result<Self, ParseKeyError> {
        let plain = (1..=Self::NAME_BYTES_MAX).contains(&name.len())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
        match plain {
            true => Ok(Self {
                lsn,
                name: name.to_owned(),
            }),
            false => Err(ParseKeyError {
                path: name.to_owned(),
            }),
        }
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// A shape: what tables and publication look like, between two looks at them.
///
/// It was seen at `to`, and something else, or nothing, at `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShapeKey {
    pub from: Lsn,
    pub to: Lsn,
}

impl ShapeKey {
    fn file_name(self) -> String {
        format!("{}-{}.json", hex_lsn(self.from), hex_lsn(self.to))
    }

    fn of_file(name: &str) -> Option<Self> {
        let (from, to) = name.strip_suffix(".json")?.split_once('-')?;
        Some(Self {
            from: parse_lsn(from)?,
            to: parse_lsn(to)?,
        })
    }
}

/// One archive of a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ArchiveName {
    /// The `pg_dump -Fc` archive of everything but the rows that have archives of their own.
    Main,
    /// Rows of a large table, by its OID, and which part of them, counted from 0: a script of one COPY.
    Rows(crate::Oid, u32),
    /// The SQL text of `pg_dumpall --globals-only`.
    Globals,
}

impl fmt::Display for ArchiveName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ArchiveName::Main => f.write_str("main"),
            ArchiveName::Rows(oid, part) => write!(f, "rows-{oid}-{part}"),
            ArchiveName::Globals => f.write_str("globals"),
        }
    }
}

impl FromStr for ArchiveName {
    type Err = crate::ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let name = match text {
            "main" => Some(ArchiveName::Main),
            "globals" => Some(ArchiveName::Globals),
            _ => text
                .strip_prefix("rows-")
                .and_then(|rest| rest.split_once('-'))
                .and_then(|(oid, part)| {
                    Some(ArchiveName::Rows(oid.parse().ok()?, part.parse().ok()?))
                })
                .filter(|name| name.to_string() == text),
        };
        name.ok_or_else(|| crate::ParseIdError {
            kind: "archive name",
            text: text.to_owned(),
        })
    }
}

impl serde::Serialize for ArchiveName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for ArchiveName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Objects of a source that are numbered from 1 on, each created once: the one with the greatest
/// number counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Series {
    /// Who writes the source.
    Writers,
    /// What the service is to do with it.
    Settings,
    /// With which data key new objects are sealed.
    Keys,
}

impl Series {
    /// Its folder, which no lineage can have as its name.
    #[must_use]
    pub const fn folder(self) -> &'static str {
        match self {
            Series::Writers => "writers",
            Series::Settings => "settings",
            Series::Keys => "keys",
        }
    }

    fn of_folder(name: &str) -> Option<Self> {
        [Series::Writers, Series::Settings, Series::Keys]
            .into_iter()
            .find(|series| series.folder() == name)
    }
}

/// An object of one source, named within the source's folder.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceObject {
    Source,
    Numbered(Series, u32),
    Lineage(LineageId),
    LineageEnd(LineageId),
    Point(LineageId, PointKey),
    Shape(LineageId, ShapeKey),
    /// Where exactly a change of shape lies.
    Ddl(LineageId, ShapeKey),
    Archive(LineageId, BaseId, ArchiveName),
    Manifest(LineageId, BaseId),
    Segment(LineageId, SegmentKey),
    /// What retention gave up in the lineage, by the time of it.
    Retired(LineageId, PgTimestamp),
}

impl SourceObject {
    /// The path below `sources/<source>/`, without the form's suffix.
    fn stem(&self) -> String {
        match self {
            SourceObject::Source => "source.json".to_owned(),
            SourceObject::Numbered(series, number) => {
                format!("{}/{number:08x}.json", series.folder())
            }
            SourceObject::Lineage(lineage) => format!("{lineage}/lineage.json"),
            SourceObject::LineageEnd(lineage) => format!("{lineage}/end.json"),
            SourceObject::Point(lineage, point) => {
                format!(
                    "{lineage}/points/{}-{}.json",
                    hex_lsn(point.lsn),
                    point.name
                )
            }
            SourceObject::Shape(lineage, shape) => {
                format!("{lineage}/shapes/{}", shape.file_name())
            }
            SourceObject::Ddl(lineage, shape) => format!("{lineage}/ddl/{}", shape.file_name()),
            SourceObject::Archive(lineage, base, name) => {
                format!("{lineage}/bases/{base}/{name}.dump")
            }
            SourceObject::Manifest(lineage, base) => {
                format!("{lineage}/bases/{base}/manifest.json")
            }
            SourceObject::Segment(lineage, segment) => format!(
                "{lineage}/{}/{}-{}-{}-{}.ndjson",
                segment.kind.folder(),
                hex_lsn(segment.start),
                hex_lsn(segment.end),
                hex_time(segment.max_commit_time),
                hex_time(segment.observed_through),
            ),
            SourceObject::Retired(lineage, time) => {
                format!("{lineage}/retired/{}.json", hex_time(Some(*time)))
            }
        }
    }

    /// What the envelope binds an object's content to, so that no object can stand in for another.
    ///
    /// It is the path without the suffix; for a segment it ends at the start LSN, because the rest
    /// of its name is only known when its last byte is (a reader compares that rest with the
    /// segment's own header and footer).
    #[must_use]
    pub fn context(&self, source: SourceId) -> String {
        match self {
            SourceObject::Segment(lineage, segment) => {
                format!(
                    "sources/{source}/{lineage}/{}/{}",
                    segment.kind.folder(),
                    hex_lsn(segment.start)
                )
            }
            SourceObject::Source
            | SourceObject::Numbered(..)
            | SourceObject::Lineage(_)
            | SourceObject::LineageEnd(_)
            | SourceObject::Point(..)
            | SourceObject::Shape(..)
            | SourceObject::Ddl(..)
            | SourceObject::Archive(..)
            | SourceObject::Manifest(..)
            | SourceObject::Retired(..) => format!("sources/{source}/{}", self.stem()),
        }
    }

    /// The lineage it belongs to; none for what is the source's own.
    #[must_use]
    pub const fn lineage(&self) -> Option<LineageId> {
        match self {
            SourceObject::Source | SourceObject::Numbered(..) => None,
            SourceObject::Lineage(id)
            | SourceObject::LineageEnd(id)
            | SourceObject::Point(id, _)
            | SourceObject::Shape(id, _)
            | SourceObject::Ddl(id, _)
            | SourceObject::Archive(id, ..)
            | SourceObject::Manifest(id, _)
            | SourceObject::Segment(id, _)
            | SourceObject::Retired(id, _) => Some(*id),
        }
    }

    fn parse(stem: &str) -> Option<Self> {
        if stem == "source.json" {
            return Some(SourceObject::Source);
        }
        let (lineage, rest) = stem.split_once('/')?;
        if let Some(series) = Series::of_folder(lineage) {
            let number = parse_hex(rest.strip_suffix(".json")?, 8)?;
            return Some(SourceObject::Numbered(series, u32::try_from(number).ok()?));
        }
        let lineage: LineageId = lineage.parse().ok()?;
        match rest.split_once('/') {
            None if rest == "lineage.json" => Some(SourceObject::Lineage(lineage)),
            None if rest == "end.json" => Some(SourceObject::LineageEnd(lineage)),
            None => None,
            Some(("points", name)) => {
                let (lsn, name) = name.strip_suffix(".json")?.split_once('-')?;
                Some(SourceObject::Point(
                    lineage,
                    PointKey::new(parse_lsn(lsn)?, name).ok()?,
                ))
            }
            Some(("shapes", name)) => Some(SourceObject::Shape(lineage, ShapeKey::of_file(name)?)),
            Some(("ddl", name)) => Some(SourceObject::Ddl(lineage, ShapeKey::of_file(name)?)),
            Some(("bases", name)) => {
                let (base, name) = name.split_once('/')?;
                let base: BaseId = base.parse().ok()?;
                if name == "manifest.json" {
                    return Some(SourceObject::Manifest(lineage, base));
                }
                let archive = name.strip_suffix(".dump")?.parse().ok()?;
                Some(SourceObject::Archive(lineage, base, archive))
            }
            Some((folder @ ("segments" | "merged"), name)) => {
                let mut parts = name.strip_suffix(".ndjson")?.split('-');
                let segment = SegmentKey {
                    start: parse_lsn(parts.next()?)?,
                    end: parse_lsn(parts.next()?)?,
                    max_commit_time: parse_time(parts.next()?)?,
                    observed_through: parse_time(parts.next()?)?,
                    kind: match folder {
                        "merged" => SegmentKind::Merged,
                        _ => SegmentKind::Captured,
                    },
                };
                // None is ever written that ends where it starts.
                let whole = parts.next().is_none() && segment.start < segment.end;
                whole.then_some(SourceObject::Segment(lineage, segment))
            }
            Some(("retired", name)) => {
                let time = parse_time(name.strip_suffix(".json")?)??;
                Some(SourceObject::Retired(lineage, time))
            }
            Some(_) => None,
        }
    }
}

/// Any object of a repository.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// `lastgood.json`: format version and repository id.
    Repository,
    /// A data key wrapped by the master key with that fingerprint.
    DataKey(KeyId, Fingerprint),
    Source(SourceId, SourceObject, Form),
}

/// The path names no object of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{path}\" is not the name of an object of this repository's format")]
pub struct ParseKeyError {
    pub path: String,
}

impl Key {
    /// The path below the repository's prefix.
    #[must_use]
    pub fn path(&self) -> String {
        match self {
            Key::Repository => "lastgood.json".to_owned(),
            Key::DataKey(id, master) => format!("keys/{id}-{master}.json"),
            Key::Source(source, object, form) => {
                format!("sources/{source}/{}{}", object.stem(), form.suffix())
            }
        }
    }

    /// # Errors
    /// If `path` is not exactly what [`Key::path`] prints for some key.
    pub fn parse(path: &str) -> Result<Self, ParseKeyError> {
        Self::parse_inner(path).ok_or_else(|| ParseKeyError {
            path: path.to_owned(),
        })
    }

    fn parse_inner(path: &str) -> Option<Self> {
        if path == "lastgood.json" {
            return Some(Key::Repository);
        }
        match path.split_once('/')? {
            ("keys", name) => {
                let (id, master) = name.strip_suffix(".json")?.split_once('-')?;
                Some(Key::DataKey(id.parse().ok()?, master.parse().ok()?))
            }
            ("sources", rest) => {
                let (source, rest) = rest.split_once('/')?;
                let (stem, form) = match rest.strip_suffix(Form::ZstdEncrypted.suffix()) {
                    Some(stem) => (stem, Form::ZstdEncrypted),
                    None => (rest.strip_suffix(Form::Zstd.suffix())?, Form::Zstd),
                };
                Some(Key::Source(
                    source.parse().ok()?,
                    SourceObject::parse(stem)?,
                    form,
                ))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

fn hex_lsn(lsn: Lsn) -> String {
    format!("{:016x}", lsn.as_u64())
}

fn parse_lsn(text: &str) -> Option<Lsn> {
    parse_hex(text, 16).map(Lsn::new)
}

/// The sign bit flipped, so that the order of the text is the order of time; zeros for none.
fn hex_time(time: Option<PgTimestamp>) -> String {
    let micros = time.unwrap_or(PgTimestamp::MIN).as_micros();
    format!("{:016x}", micros.cast_unsigned() ^ (1 << 63))
}

fn parse_time(text: &str) -> Option<Option<PgTimestamp>> {
    let flipped = parse_hex(text, 16)?;
    let time = PgTimestamp::from_micros((flipped ^ (1 << 63)).cast_signed());
    Some((time != PgTimestamp::MIN).then_some(time))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Oid;
    use proptest::prelude::*;

    fn time() -> impl Strategy<Value = Option<PgTimestamp>> {
        any::<Option<i64>>().prop_map(|micros| {
            micros
                .map(PgTimestamp::from_micros)
                .filter(|time| *time != PgTimestamp::MIN)
        })
    }

    prop_compose! {
        fn segment()(
            start in 0..u64::MAX, length in 1..u64::MAX,
            max_commit_time in time(), observed_through in time(), merged: bool,
        ) -> SegmentKey {
            let (start, end) = (Lsn::new(start), Lsn::new(start.saturating_add(length)));
            let kind = if merged { SegmentKind::Merged } else { SegmentKind::Captured };
            SegmentKey { start, end, max_commit_time, observed_through, kind }
        }
    }

    fn object() -> impl Strategy<Value = SourceObject> {
        let lineage = || {
            any::<(u32, u32)>().prop_map(|(generation, nonce)| LineageId::new(generation, nonce))
        };
        let base =
            || any::<(u64, u32)>().prop_map(|(lsn, nonce)| BaseId::new(Lsn::new(lsn), nonce));
        let archive = prop_oneof![
            Just(ArchiveName::Main),
            Just(ArchiveName::Globals),
            any::<(u32, u32)>().prop_map(|(oid, part)| ArchiveName::Rows(Oid::new(oid), part)),
        ];
        prop_oneof![
            Just(SourceObject::Source),
            any::<u32>().prop_map(|number| SourceObject::Numbered(Series::Writers, number)),
            any::<u32>().prop_map(|number| SourceObject::Numbered(Series::Settings, number)),
            any::<u32>().prop_map(|number| SourceObject::Numbered(Series::Keys, number)),
            lineage().prop_map(SourceObject::Lineage),
            lineage().prop_map(SourceObject::LineageEnd),
            (lineage(), any::<u64>(), "[A-Za-z0-9._-]{1,64}").prop_map(|(lineage, lsn, name)| {
                SourceObject::Point(lineage, PointKey::new(Lsn::new(lsn), &name).unwrap())
            }),
            (lineage(), any::<(u64, u64, bool)>()).prop_map(|(lineage, (from, to, placed))| {
                let shape = ShapeKey {
                    from: Lsn::new(from),
                    to: Lsn::new(to),
                };
                match placed {
                    true => SourceObject::Ddl(lineage, shape),
                    false => SourceObject::Shape(lineage, shape),
                }
            }),
            (lineage(), base(), archive)
                .prop_map(|(lineage, base, name)| SourceObject::Archive(lineage, base, name)),
            (lineage(), base()).prop_map(|(lineage, base)| SourceObject::Manifest(lineage, base)),
            (lineage(), segment())
                .prop_map(|(lineage, segment)| SourceObject::Segment(lineage, segment)),
            (lineage(), time()).prop_map(|(lineage, time)| {
                SourceObject::Retired(lineage, time.unwrap_or(PgTimestamp::from_micros(0)))
            }),
        ]
    }

    fn key() -> impl Strategy<Value = Key> {
        let form = prop_oneof![Just(Form::Zstd), Just(Form::ZstdEncrypted)];
        prop_oneof![
            Just(Key::Repository),
            any::<([u8; 8], [u8; 8])>().prop_map(|(id, master)| Key::DataKey(
                KeyId::from_bytes(id),
                Fingerprint::from_bytes(master)
            )),
            (any::<[u8; 8]>(), object(), form).prop_map(|(source, object, form)| Key::Source(
                SourceId::from_bytes(source),
                object,
                form
            )),
        ]
    }

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_path(key in key()) {
            prop_assert_eq!(Key::parse(&key.path()), Ok(key));
        }

        #[test]
        fn what_parses_prints_the_same(path in "[a-f0-9/._-]{0,120}|sources/.{0,60}") {
            if let Ok(key) = Key::parse(&path) {
                prop_assert_eq!(key.path(), path);
            }
        }

        #[test]
        fn segments_sort_by_start_then_by_time(a in segment(), mut b in segment()) {
            b.kind = a.kind;
            let lineage = LineageId::new(1, 2);
            let stem = |segment| SourceObject::Segment(lineage, segment).stem();
            prop_assert_eq!(stem(a).cmp(&stem(b)), a.cmp(&b));
        }
    }

    #[test]
    fn a_key_looks_like_this() {
        let segment = SegmentKey {
            start: Lsn::new(0x16B_3748),
            end: Lsn::new(0x16B_37C0),
            max_commit_time: Some("2026-11-20T20:01:02.123456Z".parse().unwrap()),
            observed_through: None,
            kind: SegmentKind::Captured,
        };
        let key = |segment| {
            Key::Source(
                SourceId::from_bytes([0, 1, 2, 3, 4, 5, 6, 7]),
                SourceObject::Segment(LineageId::new(1, 0xC0FFEE), segment),
                Form::ZstdEncrypted,
            )
        };
        assert_eq!(
            key(segment).path(),
            "sources/0001020304050607/00000001-00c0ffee/segments/\
             00000000016b3748-00000000016b37c0-800303b978e33dc0-0000000000000000.ndjson.zst.enc"
        );
        let merged = SegmentKey {
            kind: SegmentKind::Merged,
            ..segment
        };
        assert_eq!(
            key(merged).path(),
            "sources/0001020304050607/00000001-00c0ffee/merged/\
             00000000016b3748-00000000016b37c0-800303b978e33dc0-0000000000000000.ndjson.zst.enc"
        );
    }

    #[test]
    fn refuses_what_is_no_key() {
        for path in [
            "",
            "lastgood.json.zst",
            "sources/0001020304050607/source.json",
            "sources/0001020304050607/source.json.enc",
            "sources/0001020304050607/../source.json.zst",
            "sources/0001020304050607/00000001-00c0ffee/bases/x/manifest.json.zst",
            "sources/0001020304050607/00000001-00c0ffee/bases/\
             0000000000000001-00000001/table-01.dump.zst",
            "keys/0001020304050607.json",
        ] {
            assert!(Key::parse(path).is_err(), "{path:?}");
        }
    }
}
