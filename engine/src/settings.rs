//! What may be set for one source. The API stores these as JSON; nothing else lives in them.
//!
//! Every field has a default that is written down here once. `validate` names the field that is
//! out of range; a value that was accepted is used as it stands, never quietly corrected.

use std::time::Duration;

use lastgood_proto::{BaseId, ParseRetentionError, Retention};
use serde::{Deserialize, Serialize};

use crate::schedule::{Schedule, ScheduleError};

/// Settings of one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceSettings {
    /// Five-field crontab expression for new bases; none takes only the first base.
    pub schedule: Option<String>,
    /// IANA name of the zone the schedule is meant in.
    pub timezone: String,
    /// NDJSON bytes after which a segment is cut at the next commit.
    pub segment_bytes: u64,
    /// Seconds after which a segment that holds something is cut.
    pub segment_seconds: u32,
    /// Seconds between position marks while nothing is published.
    pub idle_seconds: u32,
    /// WAL the slot may hold back; at half an alert, at the whole the slot is dropped.
    pub wal_budget_bytes: u64,
    /// After the budget took the slot: start a new lineage at once instead of waiting to be asked.
    pub restart_after_budget: bool,
    /// What to do with tables whose UPDATE and DELETE cannot be captured as they are.
    pub no_identity: NoIdentity,
    /// Make an event trigger that tells where DDL lies among the changes, where that is allowed.
    pub ddl_trigger: bool,
    /// Tables to protect, as `schema.table` with `*` for any run of characters; empty means all.
    pub include: Vec<String>,
    /// Tables to leave out of capture; wins over `include`.
    pub exclude: Vec<String>,
    /// Memory the source's walsender may use to hold one transaction before it spills to its disk.
    pub logical_decoding_work_mem_kb: u32,
    /// Dumps that run at the same time.
    pub base_jobs: u32,
    /// A table larger than this is dumped by itself, in parts of about this size.
    pub big_table_bytes: u64,
    /// Sealed bytes of the open segment past which reading waits for a running upload.
    pub spool_bytes: u64,
    /// What to keep, such as `30 days, 12 monthly`; none keeps everything.
    pub retention: Option<String>,
    /// Bases to keep whatever `retention` says, by their ids.
    pub pinned: Vec<String>,
    /// Between giving something up, or merging it with others, and deleting it: the time to change one's
    /// mind, and for restores that have begun to end.
    pub retention_grace_hours: u32,
    /// Merge small segments into large ones.
    pub compact: bool,
}

/// What becomes of tables without a usable replica identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NoIdentity {
    /// They are in every base and in no segment.
    BaseOnly,
    /// `ALTER TABLE … REPLICA IDENTITY FULL` is run on them.
    Full,
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

impl Default for SourceSettings {
    fn default() -> Self {
        Self {
            schedule: None,
            timezone: "UTC".to_owned(),
            segment_bytes: 16 * MIB,
            segment_seconds: 5,
            idle_seconds: 60,
            wal_budget_bytes: 10 * GIB,
            restart_after_budget: false,
            no_identity: NoIdentity::BaseOnly,
            ddl_trigger: true,
            include: Vec::new(),
            exclude: Vec::new(),
            logical_decoding_work_mem_kb: 256 << 10,
            base_jobs: 2,
            big_table_bytes: 64 * MIB,
            spool_bytes: GIB,
            retention: None,
            pinned: Vec::new(),
            retention_grace_hours: 24,
            compact: true,
        }
    }
}

/// A setting is out of range.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("{field} is {value}; it must be from {low} to {high}")]
    Range {
        field: &'static str,
        value: u64,
        low: u64,
        high: u64,
    },
    #[error(
        "{field} has \"{pattern}\"; a table is named as schema.table, with * for any characters"
    )]
    Pattern {
        field: &'static str,
        pattern: String,
    },
    #[error("pinned has \"{0}\", which is not the id of a base")]
    Pinned(String),
    #[error(transparent)]
    Retention(#[from] ParseRetentionError),
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}

impl SettingsError {
    /// The field to blame.
    #[must_use]
    pub fn field(&self) -> &'static str {
        match self {
            Self::Range { field, .. } | Self::Pattern { field, .. } => field,
            Self::Pinned(_) => "pinned",
            Self::Retention(_) => "retention",
            Self::Schedule(ScheduleError::Zone(_)) => "timezone",
            Self::Schedule(_) => "schedule",
        }
    }
}

impl SourceSettings {
    /// # Errors
    /// On the first field that is out of range or not understood.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let range = |field, value: u64, low, high| {
            (low..=high)
                .contains(&value)
                .then_some(())
                .ok_or(SettingsError::Range {
                    field,
                    value,
                    low,
                    high,
                })
        };
        range("segment_bytes", self.segment_bytes, 4 << 10, GIB)?;
        range("segment_seconds", self.segment_seconds.into(), 1, 3600)?;
        range("idle_seconds", self.idle_seconds.into(), 1, 86_400)?;
        range("wal_budget_bytes", self.wal_budget_bytes, 64 * MIB, 1 << 50)?;
        // PostgreSQL's own least value is 64 kB.
        let memory = self.logical_decoding_work_mem_kb.into();
        range("logical_decoding_work_mem_kb", memory, 64, 16 << 20)?;
        range("base_jobs", self.base_jobs.into(), 1, 32)?;
        range("big_table_bytes", self.big_table_bytes, 8 << 10, 1 << 50)?;
        range("spool_bytes", self.spool_bytes, MIB, 1 << 50)?;
        for (field, patterns) in [("include", &self.include), ("exclude", &self.exclude)] {
            for pattern in patterns {
                let shaped = pattern.contains('.') || pattern == "*";
                if !shaped || pattern.contains('\0') {
                    return Err(SettingsError::Pattern {
                        field,
                        pattern: pattern.clone(),
                    });
                }
            }
        }
        range(
            "retention_grace_hours",
            self.retention_grace_hours.into(),
            0,
            8760,
        )?;
        self.retention()?;
        self.schedule()?;
        Ok(())
    }

    /// The schedule, if one is set.
    ///
    /// # Errors
    /// If the expression or the zone is not understood; the zone is checked even without a schedule.
    pub fn schedule(&self) -> Result<Option<Schedule>, ScheduleError> {
        let never = "@daily";
        let expression = self.schedule.as_deref();
        let parsed = Schedule::parse(expression.unwrap_or(never), &self.timezone)?;
        Ok(expression.map(|_| parsed))
    }

    /// What is to be kept, if not everything.
    ///
    /// # Errors
    /// If it is not understood, or a pinned base has no proper id.
    pub fn retention(&self) -> Result<Option<Retention>, SettingsError> {
        let pinned = self.pinned.iter().map(|id| {
            let parsed = id.parse::<BaseId>();
            parsed.map_err(|_| SettingsError::Pinned(id.clone()))
        });
        let pinned = pinned.collect::<Result<_, _>>()?;
        let Some(text) = &self.retention else {
            return Ok(None);
        };
        let promised: Retention = text.parse()?;
        Ok(Some(Retention { pinned, ..promised }))
    }

    /// Whether a running capture works the same under both: schedules, retention and compaction are
    /// others' business.
    #[must_use]
    pub fn captures_like(&self, other: &Self) -> bool {
        let captured = |settings: &Self| Self {
            schedule: None,
            timezone: String::new(),
            retention: None,
            pinned: Vec::new(),
            retention_grace_hours: 0,
            compact: true,
            ..settings.clone()
        };
        captured(self) == captured(other)
    }

    /// Whether the settings want this table captured.
    #[must_use]
    pub fn wants(&self, schema: &str, table: &str) -> bool {
        let name = format!("{schema}.{table}");
        let any = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, &name));
        (self.include.is_empty() || any(&self.include)) && !any(&self.exclude)
    }

    /// What is to be captured and is not there.
    pub(crate) fn unmatched<'t>(
        &self,
        tables: impl Iterator<Item = (&'t str, &'t str)>,
    ) -> Vec<String> {
        let mut unmatched = self.include.clone();
        for (schema, table) in tables {
            let name = format!("{schema}.{table}");
            unmatched.retain(|pattern| !matches(pattern, &name));
        }
        unmatched
    }

    #[must_use]
    pub(crate) fn segment_age(&self) -> Duration {
        Duration::from_secs(self.segment_seconds.into())
    }

    #[must_use]
    pub(crate) fn idle_interval(&self) -> Duration {
        Duration::from_secs(self.idle_seconds.into())
    }
}

/// `*` stands for any run of characters, everything else for itself.
fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|head| name.strip_prefix(head)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_unknown_fields_are_refused() {
        let settings: SourceSettings = serde_json::from_str("{}").unwrap();
        assert_eq!(settings, SourceSettings::default());
        settings.validate().unwrap();
        assert!(serde_json::from_str::<SourceSettings>(r#"{"segment_byte":1}"#).is_err());
        assert!(serde_json::from_str::<SourceSettings>(r#"{"segment_bytes":"1"}"#).is_err());
    }

    #[test]
    fn names_the_field_that_is_wrong() {
        for (json, field) in [
            (r#"{"segment_seconds":0}"#, "segment_seconds"),
            (r#"{"segment_bytes":1}"#, "segment_bytes"),
            (r#"{"schedule":"0 4 * *"}"#, "schedule"),
            (r#"{"timezone":"Nowhere"}"#, "timezone"),
            (r#"{"include":["users"]}"#, "include"),
            (r#"{"base_jobs":0}"#, "base_jobs"),
        ] {
            let settings: SourceSettings = serde_json::from_str(json).unwrap();
            assert_eq!(settings.validate().unwrap_err().field(), field);
        }
    }

    #[test]
    fn patterns() {
        let check = |include: &[&str], exclude: &[&str], table: &str, expect: bool| {
            let settings = SourceSettings {
                include: include.iter().map(|text| (*text).to_owned()).collect(),
                exclude: exclude.iter().map(|text| (*text).to_owned()).collect(),
                ..SourceSettings::default()
            };
            assert_eq!(
                settings.wants("public", table),
                expect,
                "{include:?} {exclude:?} {table}"
            );
        };
        check(&[], &[], "users", true);
        check(&["public.*"], &[], "users", true);
        check(&["public.users"], &[], "users2", false);
        check(&["*.users"], &[], "users", true);
        check(&["app.*"], &[], "users", false);
        check(&[], &["*.log_*"], "log_2026", false);
        check(&[], &["public.*_tmp"], "a_tmp", false);
        check(&[], &["public.*_tmp"], "a_tmp2", true);
        check(&["*"], &["public.users"], "users", false);
        check(&["public.a*b*c"], &[], "axxbyyc", true);
        check(&["public.a*b*c"], &[], "axxbyy", false);
        check(&["public.ab*ab"], &[], "ab", false);
    }
}
