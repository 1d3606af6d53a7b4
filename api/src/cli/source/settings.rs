//! Settings of a source as options, by the names they have in the API.

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::super::size;

#[derive(Clone, Copy, ValueEnum)]
enum NoIdentity {
    BaseOnly,
    Full,
}

/// Each is left as it is, or at its default, unless it is given.
#[derive(Args)]
#[command(next_help_heading = "Settings")]
pub(super) struct Settings {
    /// When to take new bases: five-field crontab expression, or "off" [default: off]
    #[arg(long)]
    schedule: Option<String>,
    /// The zone the schedule is meant in [default: UTC]
    #[arg(long, value_name = "ZONE")]
    timezone: Option<String>,
    /// NDJSON after which a segment is cut, such as 16MiB [default: 16MiB]
    #[arg(long, value_name = "BYTES", value_parser = size::bytes)]
    segment_bytes: Option<u64>,
    /// Seconds after which a segment is cut [default: 5]
    #[arg(long, value_name = "SECONDS")]
    segment_seconds: Option<u32>,
    /// Seconds between position marks while nothing is published [default: 60]
    #[arg(long, value_name = "SECONDS")]
    idle_seconds: Option<u32>,
    /// WAL the slot may hold back; at half an alert, at the whole it is dropped [default: 10GiB]
    #[arg(long, value_name = "BYTES", value_parser = size::bytes)]
    wal_budget_bytes: Option<u64>,
    /// Start a new lineage at once after the budget took the slot [default: false]
    #[arg(long, value_name = "BOOL")]
    restart_after_budget: Option<bool>,
    /// Tables without a usable replica identity: only in bases, or ALTER TABLE … REPLICA IDENTITY
    /// FULL [default: base-only]
    #[arg(long, value_enum)]
    no_identity: Option<NoIdentity>,
    /// An event trigger on the source that tells where DDL lies, where that is allowed [default: true]
    #[arg(long, value_name = "BOOL")]
    ddl_trigger: Option<bool>,
    /// Tables to protect, schema.table with *; may be repeated; '' is all of them again [default: all]
    #[arg(long, value_name = "PATTERN")]
    include: Vec<String>,
    /// Tables to leave out; may be repeated; '' leaves none out again [default: none]
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// Memory of the source's walsender for one transaction, in kB [default: 262144]
    #[arg(long, value_name = "KB")]
    logical_decoding_work_mem_kb: Option<u32>,
    /// Dumps at the same time [default: 2]
    #[arg(long, value_name = "JOBS")]
    base_jobs: Option<u32>,
    /// A table larger than this is dumped by itself, in parts of about this size [default: 64MiB]
    #[arg(long, value_name = "BYTES", value_parser = size::bytes)]
    big_table_bytes: Option<u64>,
    /// Sealed bytes that may wait for an upload [default: 1GiB]
    #[arg(long, value_name = "BYTES", value_parser = size::bytes)]
    spool_bytes: Option<u64>,
    /// What to keep, such as "30 days, 12 monthly" (days, bases, hourly, daily, weekly, monthly,
    /// yearly), or "off": everything [default: off]
    #[arg(long)]
    retention: Option<String>,
    /// A base to keep whatever the retention says; may be repeated; '' pins none again [default: none]
    #[arg(long, value_name = "BASE")]
    pinned: Vec<String>,
    /// Hours between giving something up, or merging it with others, and deleting it [default: 24]
    #[arg(long, value_name = "HOURS")]
    retention_grace_hours: Option<u32>,
    /// Merge small segments into large ones, every hour [default: true]
    #[arg(long, value_name = "BOOL")]
    compact: Option<bool>,
}

impl Settings {
    /// What was given, as the API takes it.
    pub(super) fn body(&self) -> Map<String, Value> {
        let unless_off = |given: &Option<String>| {
            given.as_deref().map(|given| match given {
                "off" => Value::Null,
                text => text.into(),
            })
        };
        let no_identity = self.no_identity.map(|choice| match choice {
            NoIdentity::BaseOnly => "base-only",
            NoIdentity::Full => "full",
        });
        let given = [
            ("schedule", unless_off(&self.schedule)),
            ("timezone", self.timezone.as_deref().map(Value::from)),
            ("segment_bytes", self.segment_bytes.map(Value::from)),
            ("segment_seconds", self.segment_seconds.map(Value::from)),
            ("idle_seconds", self.idle_seconds.map(Value::from)),
            ("wal_budget_bytes", self.wal_budget_bytes.map(Value::from)),
            (
                "restart_after_budget",
                self.restart_after_budget.map(Value::from),
            ),
            ("no_identity", no_identity.map(Value::from)),
            ("ddl_trigger", self.ddl_trigger.map(Value::from)),
            ("include", patterns(&self.include)),
            ("exclude", patterns(&self.exclude)),
            (
                "logical_decoding_work_mem_kb",
                self.logical_decoding_work_mem_kb.map(Value::from),
            ),
            ("base_jobs", self.base_jobs.map(Value::from)),
            ("big_table_bytes", self.big_table_bytes.map(Value::from)),
            ("spool_bytes", self.spool_bytes.map(Value::from)),
            ("retention", unless_off(&self.retention)),
            ("pinned", patterns(&self.pinned)),
            (
                "retention_grace_hours",
                self.retention_grace_hours.map(Value::from),
            ),
            ("compact", self.compact.map(Value::from)),
        ];
        given
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect()
    }
}

/// An empty pattern empties the list.
fn patterns(given: &[String]) -> Option<Value> {
    let patterns: Vec<&String> = given.iter().filter(|text| !text.is_empty()).collect();
    (!given.is_empty()).then(|| json!(patterns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use lastgood_engine::SourceSettings;

    #[derive(clap::Parser)]
    struct Sample {
        #[command(flatten)]
        settings: Settings,
    }

    /// The default that an option's help names is the one there is.
    #[test]
    fn every_setting_is_an_option_that_names_its_default() {
        let Value::Object(defaults) = serde_json::to_value(SourceSettings::default()).unwrap()
        else {
            panic!("settings are an object");
        };
        let command = Sample::command();
        for (name, default) in defaults {
            let option = command
                .get_arguments()
                .find(|option| option.get_id().as_str() == name);
            let help = option.unwrap_or_else(|| panic!("no option {name}"));
            let help = help.get_help().unwrap().to_string();
            let (_, told) = help.rsplit_once("[default: ").unwrap();
            let told = told.trim_end_matches(']');
            match &default {
                Value::Number(number) => {
                    assert_eq!(size::bytes(told).ok(), number.as_u64(), "{name}")
                }
                Value::String(text) => assert_eq!(told, text, "{name}"),
                Value::Bool(flag) => assert_eq!(told, flag.to_string(), "{name}"),
                Value::Null => assert_eq!(told, "off", "{name}"),
                Value::Array(items) => {
                    assert!(
                        items.is_empty() && ["all", "none"].contains(&told),
                        "{name}"
                    );
                }
                Value::Object(_) => panic!("{name} is no simple value"),
            }
        }
    }

    #[test]
    fn lists_can_be_emptied() {
        assert_eq!(patterns(&[]), None);
        assert_eq!(patterns(&[String::new()]), Some(json!([])));
        assert_eq!(patterns(&["a.*".to_owned()]), Some(json!(["a.*"])));
    }
}
