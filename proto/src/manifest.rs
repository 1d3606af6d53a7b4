//! The small JSON files of a repository: what a source, a lineage, a base is.
//!
//! Every file names its version as `v`; a reader refuses any other and any unknown field, because
//! what it does not know it cannot restore.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::key::{ArchiveName, KeyId};
use crate::{BaseId, LineageId, Lsn, Oid, PgTimestamp, SourceId, SystemId, TimelineId, WriterId};

/// The version of every file here. A change that an older reader would misread raises it; a new
/// optional field does not, since an older reader refuses what it does not know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Version1;

impl Serialize for Version1 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(1)
    }
}

impl<'de> Deserialize<'de> for Version1 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match u32::deserialize(deserializer)? {
            1 => Ok(Version1),
            other => Err(serde::de::Error::custom(format!(
                "format version {other} is not known; a newer lastgood wrote this"
            ))),
        }
    }
}

/// `source.json`: which database this is. What may change of a source is in `settings/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceFile {
    pub v: Version1,
    pub id: SourceId,
    pub name: String,
    pub database: String,
    pub system_id: SystemId,
    pub created: PgTimestamp,
}

/// `writers/….json`: from here on this service writes the source, and no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WriterFile {
    pub v: Version1,
    /// One run of a service.
    pub writer: WriterId,
    /// Where it ran, for people.
    pub host: String,
    /// Of the service's clock.
    pub time: PgTimestamp,
}

/// `settings/….json`: what the service is to do with the source, for one that has lost its catalog.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SettingsFile {
    pub v: Version1,
    /// The source's name from then on.
    pub name: String,
    /// By the names they have in the API, and no secret among them.
    pub settings: serde_json::Map<String, serde_json::Value>,
    /// Of the service's clock.
    pub time: PgTimestamp,
}

/// `keys/….json` of a source: from here on new objects are sealed with this data key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFile {
    pub v: Version1,
    pub key: KeyId,
    /// Of the clock of whoever made it.
    pub time: PgTimestamp,
}

/// `lineage.json`: written once the slot exists, before anything is streamed from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LineageFile {
    pub v: Version1,
    pub id: LineageId,
    pub system_id: SystemId,
    pub timeline: TimelineId,
    pub slot: String,
    pub publication: String,
    /// A publication that was dropped and made anew has another OID: rows were missed between.
    pub publication_oid: Oid,
    /// As `server_version_num`: 180006.
    pub server_version: u32,
    pub server_encoding: String,
    pub database: String,
    /// The slot's consistent point; the first segment starts here.
    pub start: Lsn,
    pub created: PgTimestamp,
    /// Number of the writer that began it. May be there from 0.1.0 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<u32>,
}

/// `end.json`: the lineage's last word.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LineageEnd {
    pub v: Version1,
    /// The durable LSN when it ended; what the source committed past it is in no segment. If its
    /// storage was set back and wrote on: where its history and that of the segments part.
    pub end: Lsn,
    pub reason: EndReason,
    /// One sentence for the operator.
    pub detail: String,
    pub time: PgTimestamp,
}

/// Why a lineage ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndReason {
    /// The slot is gone, or another one bears its name.
    SlotMissing,
    /// The server removed WAL the slot needed, or invalidated it for another reason.
    SlotLost,
    /// The slot's confirmed position is beyond what is durable.
    SlotAhead,
    /// The publication was dropped or made anew.
    PublicationChanged,
    /// Another cluster answers: dump and restore, a clone, a major upgrade.
    SystemChanged,
    /// The source was promoted or itself restored.
    TimelineChanged,
    /// The server's WAL ends before what is durable, or is another below it: its storage was set
    /// back.
    ServerBehind,
    /// The slot held more WAL than the budget allows and was dropped to protect the source.
    BudgetExceeded,
    /// An operator paused the source and let the slot go, or removed the source.
    Stopped,
}

/// A named restore point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointFile {
    pub v: Version1,
    pub name: String,
    /// Every transaction whose commit record starts at or below it is before the point.
    pub lsn: Lsn,
    pub time: PgTimestamp,
}

/// `shapes/….json`: what the source looks like. The stream does not carry it, so it is looked at
/// before every segment is cut, and a change is written down before that segment is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShapeFile {
    pub v: Version1,
    /// The last look that saw another shape; the lineage's start for the first one.
    pub from: Lsn,
    /// The look that saw this one.
    pub to: Lsn,
    /// Of what rows depend on: tables, their columns and demands, types, the publication. Equal fingerprints,
    /// equal shapes.
    pub fingerprint: String,
    /// Of all other definitions: functions, views, indexes, grants and so on. May be there from 0.1.0 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definitions: Option<String>,
    /// One word for what tells of DDL in the stream, if anything did at `to`. May be there from 0.1.0 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ddl_trigger: Option<String>,
    /// What changed, in one sentence for the operator.
    pub detail: String,
    pub time: PgTimestamp,
}

impl ShapeFile {
    /// Whether changes cannot be replayed across this on a base with that consistent point and fingerprint.
    ///
    /// A shape equal to the base's came before its snapshot, or changed back after it, and then the
    /// change away from it is the one that counts.
    #[must_use]
    pub fn ends(&self, consistent_point: Lsn, fingerprint: &str) -> bool {
        self.to > consistent_point && self.fingerprint != fingerprint
    }
}

/// `ddl/….json`: which transactions made the change between two looks that the file of the same name in
/// `shapes/` is about. Only where every command that alters definitions leaves a message in the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DdlFile {
    pub v: Version1,
    pub from: Lsn,
    pub to: Lsn,
    /// By LSN, at least one. Up to the first, and without it, everything is as it was; behind the last one everything is
    /// as it was seen at `to`; between two of them nothing is altered.
    pub commits: Vec<DdlCommit>,
    /// Nothing that committed up to the last one has a later commit time.
    pub by: PgTimestamp,
    /// What they did, in one sentence for the operator.
    pub detail: String,
}

/// A transaction that altered definitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DdlCommit {
    /// Start of the commit record.
    pub lsn: Lsn,
    pub time: PgTimestamp,
}

/// `retired/….json`: what retention has given up in this lineage, written down before anything is deleted.
///
/// No plan uses what stands here, whether it has been deleted yet or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetiredFile {
    pub v: Version1,
    pub time: PgTimestamp,
    /// Segments that end at or before it are given up.
    pub before: Lsn,
    pub bases: Vec<BaseId>,
}

/// `manifest.json`: a finished base. Written last; without it there is no base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseManifest {
    pub v: Version1,
    pub id: BaseId,
    /// Transactions whose commit LSN is below are in the base; all others are not.
    pub consistent_point: Lsn,
    /// The shape under the snapshot. Changes are replayed on this base only while it stays so.
    pub fingerprint: String,
    /// Of all other definitions, see [`ShapeFile`]. May be there from 0.1.0 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definitions: Option<String>,
    /// The server's clock right after the snapshot was taken: the base is never newer.
    pub snapshot_time: PgTimestamp,
    pub started: PgTimestamp,
    pub finished: PgTimestamp,
    pub server_version: u32,
    /// As `pg_dump --version` prints it.
    pub pg_dump_version: String,
    pub database: String,
    pub encoding: String,
    /// May be there from 0.1.0 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<Locale>,
    /// Of the database for all roles, `name=value` as in `pg_db_role_setting`. May be there from 0.1.0 on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<String>,
    pub archives: Vec<Archive>,
    /// Tables whose rows are in archives of earlier bases of the lineage. May be there from 0.1.0 on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub borrowed: Vec<Borrowed>,
    pub tables: Vec<TableEntry>,
    pub sequences: Vec<SequenceEntry>,
    /// Number of large objects, which are as fresh as the base.
    pub large_objects: u64,
    /// `pg_snapshot_xmin` of the snapshot: what has a lesser transaction id was there. May be there from 0.1.0 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot_xmin: Option<u64>,
}

impl BaseManifest {
    /// The changes that a restore needs begin here: where the oldest of its rows are from.
    #[must_use]
    pub fn rows_from(&self) -> Lsn {
        let lenders = self.borrowed.iter().map(|borrowed| borrowed.base);
        let points = lenders.map(BaseId::consistent_point);
        points.min().map_or(self.consistent_point, |point| {
            point.min(self.consistent_point)
        })
    }

    /// In whose archives the rows of a table are, if not in its own.
    #[must_use]
    pub fn lender(&self, table: Oid) -> Option<BaseId> {
        let mut borrowed = self.borrowed.iter();
        let from = borrowed.find(|borrowed| borrowed.tables.contains(&table));
        from.map(|borrowed| borrowed.base)
    }

    /// What became of a borrowed table's columns; none if they are as they were in the lender.
    #[must_use]
    pub fn altered(&self, table: Oid) -> Option<&AlteredTable> {
        let mut altered = self.borrowed.iter().flat_map(|borrowed| &borrowed.altered);
        altered.find(|altered| altered.table == table)
    }
}

/// The parts of each large table, by their numbers.
pub fn parts<'a>(
    archives: impl IntoIterator<Item = &'a Archive>,
) -> BTreeMap<Oid, BTreeMap<u32, &'a Archive>> {
    let mut parts: BTreeMap<Oid, BTreeMap<u32, &Archive>> = BTreeMap::new();
    for archive in archives {
        if let ArchiveName::Rows(table, part) = archive.name {
            parts.entry(table).or_default().insert(part, archive);
        }
    }
    parts
}

/// A large table of which a base does not name all parts.
#[must_use]
pub fn cut_table(archives: &[Archive]) -> Option<&(String, String)> {
    let is_cut = |parts: &BTreeMap<u32, &Archive>| {
        let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let is_whole = parts.keys().copied().eq(0..count);
        !(is_whole && parts.values().all(|part| part.parts == Some(count)))
    };
    let cut = parts(archives).into_values().find(is_cut)?;
    cut.into_values().find_map(|part| part.table.as_ref())
}

/// Tables of a base whose rows stand in the archives of an earlier one, the lender: nothing but captured
/// changes has touched them since. With these changes, from the lender's consistent point on, they are
/// the rows of this base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Borrowed {
    /// Has the rows itself.
    pub base: BaseId,
    pub tables: Vec<Oid>,
    /// Those whose columns have been altered since.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub altered: Vec<AlteredTable>,
}

/// A borrowed table whose columns were altered since, without its rows being written anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlteredTable {
    pub table: Oid,
    /// By position; the first one is the lender's. The last one is the base's own, and stands with the table.
    pub layouts: Vec<Layout>,
    /// What rows have in columns that the lender's lack: the column's number, and text or null
    /// (`pg_attribute.attmissingval`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<(u32, Option<String>)>,
    /// Numbers of columns that are NOT NULL now; rows from before may have nulls there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nullable: Vec<u32>,
    /// Its checks are others now; rows from before need not satisfy them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unchecked: bool,
}

/// What the rows of a table consist of, as a base saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layout {
    /// Consistent point of that base.
    pub at: Lsn,
    /// In the order of the stream and of archives: number and name.
    pub columns: Vec<(u32, String)>,
    pub until_next: Told,
}

/// How columns of the stream are told between two layouts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Told {
    /// By their places: the number of columns says which of them are there.
    Places,
    /// By name, those that are in both layouts; whatever follows the last of them, by place, are the new ones.
    Names,
}

/// How a database compares and converts text unless told otherwise: generated columns, checks and
/// the order of keys depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Locale {
    /// `pg_database.datlocprovider`: `c` libc, `i` ICU, `b` builtin.
    pub provider: char,
    pub collate: String,
    pub ctype: String,
    /// Of ICU or the builtin provider.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icu_rules: Option<String>,
}

/// One archive of a base.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    pub name: ArchiveName,
    /// Schema and table, if the archive holds rows of one only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<(String, String)>,
    /// How many there are of that table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parts: Option<u32>,
    /// Of the archive itself, before compression.
    pub bytes: u64,
    pub stored_bytes: u64,
    /// SHA-256 of the archive itself, in hexadecimal.
    pub sha256: String,
}

/// A table as it was under the base's snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TableEntry {
    pub oid: Oid,
    pub schema: String,
    pub name: String,
    /// `pg_class.relkind`: `r` table, `p` partitioned table, `f` foreign table, `m` materialized view.
    pub kind: char,
    pub protection: Protection,
    /// The primary key, or the replica identity index: what a replay finds rows by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity_index: Option<String>,
    /// `pg_class.reltuples`, if ever analyzed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows_estimate: Option<u64>,
    pub bytes: u64,
    /// Equal in two bases of a lineage as long as nothing but captured changes has touched the rows. May be
    /// there from 0.1.0 on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unaltered: Option<String>,
    /// Digest of its checks. There with `unaltered`, if it has any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checks: Option<String>,
    /// What its rows consist of. There with `unaltered`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<ColumnEntry>,
    /// `pg_class.relnatts`, which counts dropped columns as well. There with `unaltered`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attributes: Option<u32>,
}

/// A column that is not dropped. Written as an array, there may be very many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "ColumnArray", into = "ColumnArray")]
pub struct ColumnEntry {
    /// `pg_attribute.attnum`.
    pub number: u32,
    pub name: String,
    /// Equal in two bases if its text means the same.
    pub meaning: String,
    /// `xmin` of its row in `pg_attribute`: equal in two bases if it was not altered in between.
    pub version: u32,
    pub not_null: bool,
    /// Archives do not have it, and segments may.
    pub generated: bool,
}

type ColumnArray = (u32, String, String, u32, bool, bool);

impl From<ColumnArray> for ColumnEntry {
    fn from((number, name, meaning, version, not_null, generated): ColumnArray) -> Self {
        Self {
            number,
            name,
            meaning,
            version,
            not_null,
            generated,
        }
    }
}

impl From<ColumnEntry> for ColumnArray {
    fn from(column: ColumnEntry) -> Self {
        let ColumnEntry {
            number,
            name,
            meaning,
            version,
            not_null,
            generated,
        } = column;
        (number, name, meaning, version, not_null, generated)
    }
}

/// How far a table is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// Every change is captured.
    Full,
    /// As fresh as the base: it has no usable replica identity.
    NoIdentity,
    /// As fresh as the base: the settings leave it out.
    Excluded,
    /// As fresh as the base: unlogged.
    Unlogged,
    /// As fresh as the base: the role does not own it, so it could not be published.
    NotOwned,
    /// It came with an extension: as fresh as the base if the extension marks it as configuration,
    /// else its rows are not kept.
    Extension,
    /// Only its definition is kept: its rows live elsewhere.
    Foreign,
    /// It has no rows of its own: a partitioned table, a materialized view.
    Derived,
}

/// A sequence that is there under the base's snapshot; its value was read after the consistent point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SequenceEntry {
    pub schema: String,
    pub name: String,
    /// Absent if the role may not read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_value: Option<String>,
    pub is_called: bool,
    pub increment: i64,
    /// Schema, table and column, if a column owns it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<(String, String, String)>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_of_a_table_are_named() {
        let part = |oid, part, parts| Archive {
            name: ArchiveName::Rows(Oid::new(oid), part),
            table: Some(("public".to_owned(), format!("t{oid}"))),
            parts,
            bytes: 0,
            stored_bytes: 0,
            sha256: String::new(),
        };
        let cut = |archives: &[Archive]| cut_table(archives).map(|(_, name)| name.clone());
        let whole = [
            part(1, 1, Some(2)),
            part(1, 0, Some(2)),
            part(2, 0, Some(1)),
        ];
        assert_eq!(cut(&whole), None);
        assert_eq!(cut(&[]), None);
        for (archives, name) in [
            ([part(1, 0, Some(1)), part(2, 1, Some(1))], "t2"),
            ([part(1, 0, Some(3)), part(1, 2, Some(3))], "t1"),
            ([part(1, 0, Some(3)), part(1, 1, Some(3))], "t1"),
            ([part(1, 0, Some(2)), part(1, 0, Some(2))], "t1"),
            ([part(1, 0, Some(1)), part(2, 0, None)], "t2"),
        ] {
            assert_eq!(cut(&archives).as_deref(), Some(name), "{archives:?}");
        }
    }

    #[test]
    fn another_version_or_field_is_refused() {
        let file = PointFile {
            v: Version1,
            name: "before".to_owned(),
            lsn: Lsn::new(0x16B_3748),
            time: PgTimestamp::from_micros(0),
        };
        let text = serde_json::to_string(&file).unwrap();
        assert_eq!(
            text,
            r#"{"v":1,"name":"before","lsn":"0/16B3748","time":"2000-01-01T00:00:00.000000Z"}"#
        );
        assert_eq!(serde_json::from_str::<PointFile>(&text).unwrap(), file);
        for wrong in [
            text.replace("\"v\":1", "\"v\":2"),
            text.replace("{", "{\"x\":1,"),
        ] {
            assert!(
                serde_json::from_str::<PointFile>(&wrong).is_err(),
                "{wrong}"
            );
        }
    }

    fn shape(from: u64, to: u64, fingerprint: &str) -> ShapeFile {
        ShapeFile {
            v: Version1,
            from: Lsn::new(from),
            to: Lsn::new(to),
            fingerprint: fingerprint.to_owned(),
            definitions: None,
            ddl_trigger: None,
            detail: String::new(),
            time: PgTimestamp::from_micros(0),
        }
    }

    #[test]
    fn a_base_reaches_to_the_first_other_shape() {
        let shapes = [shape(10, 12, "a"), shape(40, 45, "b"), shape(70, 75, "a")];
        let check = |at: u64, fingerprint, expect: Lsn| {
            let ends = shapes
                .iter()
                .filter(|shape| shape.ends(Lsn::new(at), fingerprint));
            let first = ends.map(|shape| shape.from).min();
            assert_eq!(first.unwrap_or(Lsn::MAX), expect, "{at} {fingerprint}");
        };
        check(10, "a", Lsn::new(40));
        // Taken before the first look, and something changed between: only its own moment.
        check(10, "x", Lsn::new(10));
        check(42, "b", Lsn::new(70));
        // Before the change that the look at 45 saw.
        check(42, "a", Lsn::new(40));
        check(50, "b", Lsn::new(70));
        check(80, "a", Lsn::MAX);
    }
}
