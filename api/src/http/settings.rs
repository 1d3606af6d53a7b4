//! Settings of a source, as they are answered and as they are asked for.
//!
//! A request names what it sets; everything else keeps its value, or its default in a new source.

use lastgood_engine::{NoIdentity, SourceSettings};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::problem::{Code, Problem, chain};

/// Settings of a source, with their values.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(crate) struct Settings {
    /// Five-field crontab expression for new bases; null: only the first base is taken.
    #[schema(example = "0 4 * * *")]
    schedule: Option<String>,
    /// The zone the schedule is meant in.
    #[schema(example = "Europe/Berlin")]
    timezone: String,
    /// NDJSON bytes after which a segment is cut at the next commit.
    segment_bytes: u64,
    /// Seconds after which a segment that holds something is cut.
    segment_seconds: u32,
    /// Seconds between position marks while nothing is published.
    idle_seconds: u32,
    /// WAL the slot may hold back: alert at half, the slot is dropped at the whole.
    wal_budget_bytes: u64,
    /// After the budget took the slot: start a new lineage at once instead of waiting for `resume`.
    restart_after_budget: bool,
    /// What becomes of tables whose UPDATE and DELETE cannot be captured as they are.
    #[schema(inline)]
    no_identity: NoIdentityView,
    /// Make an event trigger on the source that tells where DDL lies among the changes, where that is allowed.
    ddl_trigger: bool,
    /// Tables to protect, `schema.table` with `*`; empty: all.
    include: Vec<String>,
    /// Tables to leave out of capture; wins over `include`.
    exclude: Vec<String>,
    /// Memory the source's walsender may use for one transaction.
    logical_decoding_work_mem_kb: u32,
    /// Dumps that run at the same time.
    base_jobs: u32,
    /// A table larger than this is dumped by itself, in parts of about this size.
    big_table_bytes: u64,
    /// Sealed bytes of the open segment past which reading waits for uploads.
    spool_bytes: u64,
    /// What to keep: a number of `days`, `bases`, `hourly`, `daily`, `weekly`, `monthly`, `yearly`, with
    /// commas between; null keeps everything.
    #[schema(example = "30 days, 12 monthly")]
    retention: Option<String>,
    /// Bases to keep whatever `retention` says, by their ids.
    pinned: Vec<String>,
    /// Between giving something up, or merging it with others, and deleting it.
    retention_grace_hours: u32,
    /// Merge small segments into large ones, every hour.
    compact: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum NoIdentityView {
    /// They are in every base and in no segment.
    BaseOnly,
    /// `ALTER TABLE … REPLICA IDENTITY FULL` is run on them.
    Full,
}

impl From<SourceSettings> for Settings {
    fn from(settings: SourceSettings) -> Self {
        Self {
            schedule: settings.schedule,
            timezone: settings.timezone,
            segment_bytes: settings.segment_bytes,
            segment_seconds: settings.segment_seconds,
            idle_seconds: settings.idle_seconds,
            wal_budget_bytes: settings.wal_budget_bytes,
            restart_after_budget: settings.restart_after_budget,
            no_identity: match settings.no_identity {
                NoIdentity::BaseOnly => NoIdentityView::BaseOnly,
                NoIdentity::Full => NoIdentityView::Full,
            },
            ddl_trigger: settings.ddl_trigger,
            include: settings.include,
            exclude: settings.exclude,
            logical_decoding_work_mem_kb: settings.logical_decoding_work_mem_kb,
            base_jobs: settings.base_jobs,
            big_table_bytes: settings.big_table_bytes,
            spool_bytes: settings.spool_bytes,
            retention: settings.retention,
            pinned: settings.pinned,
            retention_grace_hours: settings.retention_grace_hours,
            compact: settings.compact,
        }
    }
}

/// Two requests that differ in their own fields and share the settings, all of them optional.
macro_rules! with_settings {
    ($(#[$doc:meta])* struct $name:ident { $($(#[$meta:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        pub(super) struct $name {
            $($(#[$meta])* pub(super) $field: $type,)*
            /// Five-field crontab expression for new bases; null switches it off.
            #[serde(default, deserialize_with = "present")]
            #[schema(value_type = Option<String>, example = "0 4 * * *")]
            schedule: Option<Value>,
            timezone: Option<String>,
            segment_bytes: Option<u64>,
            segment_seconds: Option<u32>,
            idle_seconds: Option<u32>,
            wal_budget_bytes: Option<u64>,
            restart_after_budget: Option<bool>,
            #[schema(inline)]
            no_identity: Option<NoIdentityView>,
            ddl_trigger: Option<bool>,
            include: Option<Vec<String>>,
            exclude: Option<Vec<String>>,
            logical_decoding_work_mem_kb: Option<u32>,
            base_jobs: Option<u32>,
            big_table_bytes: Option<u64>,
            spool_bytes: Option<u64>,
            /// What to keep; null keeps everything.
            #[serde(default, deserialize_with = "present")]
            #[schema(value_type = Option<String>, example = "30 days, 12 monthly")]
            retention: Option<Value>,
            pinned: Option<Vec<String>>,
            retention_grace_hours: Option<u32>,
            compact: Option<bool>,
        }

        impl $name {
            /// `before` with what this request sets, checked.
            pub(super) fn settings(&self, before: SourceSettings) -> Result<SourceSettings, Problem> {
                let given = serde_json::json!({
                    "timezone": self.timezone,
                    "segment_bytes": self.segment_bytes,
                    "segment_seconds": self.segment_seconds,
                    "idle_seconds": self.idle_seconds,
                    "wal_budget_bytes": self.wal_budget_bytes,
                    "restart_after_budget": self.restart_after_budget,
                    "no_identity": self.no_identity,
                    "ddl_trigger": self.ddl_trigger,
                    "include": self.include,
                    "exclude": self.exclude,
                    "logical_decoding_work_mem_kb": self.logical_decoding_work_mem_kb,
                    "base_jobs": self.base_jobs,
                    "big_table_bytes": self.big_table_bytes,
                    "spool_bytes": self.spool_bytes,
                    "pinned": self.pinned,
                    "retention_grace_hours": self.retention_grace_hours,
                    "compact": self.compact,
                });
                let nullable = [("schedule", &self.schedule), ("retention", &self.retention)];
                merge(before, given, nullable)
            }
        }
    };
}

with_settings! {
    /// A new source. Settings that are left out get their defaults.
    struct CreateSource {
        /// 1 to 64 of `A-Z a-z 0-9 . _ -`.
        #[schema(example = "shop")]
        name: String,
        /// A connection string, as a URL or as `key=value` pairs; kept encrypted, never answered.
        #[schema(example = "postgresql://app:secret@db.example.org/shop?sslmode=verify-full")]
        connection: String,
        /// Take up a source this repository already holds, after the catalog was lost.
        id: Option<String>,
        /// Begin another source although the repository holds one of this name.
        #[serde(default)]
        new: bool,
    }
}

with_settings! {
    /// What to change of a source; what is left out stays.
    struct UpdateSource {
        name: Option<String>,
        connection: Option<String>,
        /// The connection may lead to another server or database: a new lineage begins there, and what is
        /// ours is removed from the old one if that can be reached.
        #[serde(default)]
        moved: bool,
    }
}

/// Tells a null from an absent field.
fn present<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Value>, D::Error> {
    Option::<String>::deserialize(deserializer)
        .map(|value| Some(value.map_or(Value::Null, Value::String)))
}

fn merge(
    before: SourceSettings,
    given: Value,
    nullable: [(&str, &Option<Value>); 2],
) -> Result<SourceSettings, Problem> {
    let internal =
        |error: serde_json::Error| Problem::new(Code::Internal).detail(error.to_string());
    let mut merged = serde_json::to_value(before).map_err(internal)?;
    if let (Value::Object(merged), Value::Object(given)) = (&mut merged, given) {
        merged.extend(given.into_iter().filter(|(_, value)| !value.is_null()));
        let nullable = nullable.into_iter();
        merged.extend(nullable.filter_map(|(name, value)| Some((name.to_owned(), value.clone()?))));
    }
    let settings: SourceSettings = serde_json::from_value(merged).map_err(internal)?;
    settings
        .validate()
        .map_err(|error| Problem::field(Code::InvalidSettings, error.field(), chain(&error)))?;
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(text: &str) -> Result<SourceSettings, Problem> {
        let request: UpdateSource = serde_json::from_str(text).unwrap();
        let before = SourceSettings {
            schedule: Some("0 4 * * *".to_owned()),
            ..SourceSettings::default()
        };
        request.settings(before)
    }

    #[test]
    fn settings_change_only_where_they_are_named() {
        let same = update("{}").unwrap();
        assert_eq!(same.schedule.as_deref(), Some("0 4 * * *"));
        assert_eq!(update(r#"{"schedule":null}"#).unwrap().schedule, None);
        let changed = update(r#"{"segment_seconds":9,"no_identity":"full"}"#).unwrap();
        assert_eq!(changed.segment_seconds, 9);
        assert_eq!(changed.no_identity, NoIdentity::Full);
        assert_eq!(changed.schedule, same.schedule);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (body, field) in [
            (r#"{"schedule":"0 25 * * *"}"#, "schedule"),
            (r#"{"timezone":"Mars/Olympus"}"#, "timezone"),
            (r#"{"segment_seconds":0}"#, "segment_seconds"),
            (r#"{"retention":"soon"}"#, "retention"),
            (r#"{"pinned":["7"]}"#, "pinned"),
        ] {
            let problem = update(body).unwrap_err();
            assert_eq!(problem.code(), Code::InvalidSettings);
            assert!(format!("{problem:?}").contains(field), "{body}");
        }
    }

    #[test]
    fn schedules_are_text_or_null() {
        let check = |text| serde_json::from_str::<UpdateSource>(text);
        assert!(check(r#"{"schedule":5}"#).is_err());
        assert!(check(r#"{"schedule":null}"#).is_ok());
    }
}
