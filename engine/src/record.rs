//! What the service is to do with a source, written into the repository: so that losing the catalog
//! does not lose what was promised.

use lastgood_proto::PgTimestamp;
use lastgood_proto::key::{Series, SourceObject};
use lastgood_proto::manifest::{SettingsFile, Version1};
use lastgood_store::SourceStore;
use serde_json::{Map, Value};

use crate::error::{Error, chain};
use crate::settings::SourceSettings;
use crate::source::Source;

/// Older ones are for people who want to know what it was before.
const KEPT: u32 = 16;

/// Writes down name and settings, unless the newest record says the same. To be called by who writes
/// the source.
///
/// # Errors
/// If another service is the writer, or storage does not take it.
pub async fn record_settings(source: &Source, store: &SourceStore) -> Result<(), Error> {
    source.writer.check(store).await?;
    let Ok(Value::Object(settings)) = serde_json::to_value(&source.settings) else {
        return Err(Error::Task("settings are an object".to_owned()));
    };
    let newest = store.newest(Series::Settings).await?;
    if let Some(number) = newest {
        match read(store, number).await {
            Ok(file) if file.name == source.name && file.settings == settings => return Ok(()),
            Ok(_) => {}
            // What cannot be read is no record: a new one is written beside it.
            Err(error) if error.class() == lastgood_proto::Class::Corrupt => {}
            Err(error) => return Err(error),
        }
    }
    let file = SettingsFile {
        v: Version1,
        name: source.name.clone(),
        settings,
        time: PgTimestamp::from_unix_micros(chrono::Utc::now().timestamp_micros()),
    };
    let number = newest.unwrap_or(0).saturating_add(1);
    let object = SourceObject::Numbered(Series::Settings, number);
    store.put_json(&object, &file).await?;
    if let Err(error) = store.prune(Series::Settings, KEPT).await {
        let error = chain(&error);
        tracing::warn!(error, "old objects below settings/ are not deleted");
    }
    Ok(())
}

/// Name and settings as they were written down last; none by builds before 0.1.0.
///
/// # Errors
/// If they cannot be read. Settings that this version does not know are left out, and logged.
pub async fn recorded_settings(
    store: &SourceStore,
) -> Result<Option<(String, SourceSettings)>, Error> {
    let Some(number) = store.newest(Series::Settings).await? else {
        return Ok(None);
    };
    let file = read(store, number).await?;
    Ok(Some((file.name, understood(file.settings))))
}

/// Each setting that is known and valid together with those before it.
fn understood(recorded: Map<String, Value>) -> SourceSettings {
    let mut settings = SourceSettings::default();
    for (name, value) in recorded {
        let with = |settings: &SourceSettings| -> Option<SourceSettings> {
            let mut all = serde_json::to_value(settings).ok()?;
            all.as_object_mut()?.insert(name.clone(), value.clone());
            let all: SourceSettings = serde_json::from_value(all).ok()?;
            all.validate().ok().map(|()| all)
        };
        match with(&settings) {
            Some(with) => settings = with,
            None => tracing::warn!(name, %value, "a recorded setting is not understood"),
        }
    }
    settings
}

async fn read(store: &SourceStore, number: u32) -> Result<SettingsFile, Error> {
    let object = SourceObject::Numbered(Series::Settings, number);
    Ok(store.get_json(&object).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_understood_is_left_out_alone() {
        let Value::Object(recorded) = serde_json::json!({
            "retention": "30 days", "segment_seconds": 0, "of_tomorrow": true,
            "schedule": "0 4 * * *", "timezone": "Europe/Berlin", "no_identity": "full",
            "exclude": ["public.log"],
        }) else {
            panic!("an object");
        };
        let expected = SourceSettings {
            retention: Some("30 days".to_owned()),
            schedule: Some("0 4 * * *".to_owned()),
            timezone: "Europe/Berlin".to_owned(),
            no_identity: crate::NoIdentity::Full,
            exclude: vec!["public.log".to_owned()],
            ..SourceSettings::default()
        };
        assert_eq!(understood(recorded), expected);
    }
}
