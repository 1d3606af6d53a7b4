//! The catalog made again from the repository: all of it but connection strings, the record of restores
//! and of jobs that failed.

use lastgood_engine::recorded_settings;
use lastgood_proto::SourceId;
use lastgood_restore::{Survey, Window};
use lastgood_store::Repository;
use serde::Serialize;

use crate::catalog::{Catalog, Desired, Seal, SourceRow};
use crate::clock::now;
use crate::http::{NAME_BYTES_MAX, chain};
use crate::supervisor::index;

/// A source of the repository, as it is in the catalog now.
#[derive(Debug, Serialize)]
pub(crate) struct Found {
    pub(crate) id: SourceId,
    pub(crate) name: String,
    /// It was not in the catalog.
    added: bool,
    /// Its settings came from the repository; else it has the defaults.
    settings: bool,
    needs_connection: bool,
    windows: Vec<Window>,
    /// What keeps it from being read.
    error: Option<String>,
}

/// Add what the catalog does not know, and make the index of every source anew. One whose bases or
/// segments cannot be read keeps no other from being found.
pub(crate) async fn rebuild(
    catalog: &Catalog,
    seal: &Seal,
    repository: &Repository,
) -> Result<Vec<Found>, crate::supervisor::Error> {
    let mut all = Vec::new();
    for (id, file) in repository.sources().await? {
        let known = catalog.source(&id.to_string()).await?;
        let known = known.filter(|row| row.id == id);
        let mut found = Found {
            id,
            name: file.name,
            added: known.is_none(),
            settings: false,
            needs_connection: known.as_ref().is_none_or(|row| !row.is_connected),
            windows: Vec::new(),
            error: None,
        };
        if let Some(row) = known {
            found.name = row.name;
        } else {
            let store = repository.source(id).await?;
            let recorded = match recorded_settings(&store).await {
                Ok(recorded) => recorded,
                Err(error) => {
                    found.error = Some(chain(&error));
                    None
                }
            };
            found.settings = recorded.is_some();
            let (name, settings) =
                recorded.unwrap_or_else(|| (found.name.clone(), Default::default()));
            found.name = free_name(catalog, name, id).await?;
            let row = SourceRow {
                id,
                name: found.name.clone(),
                endpoint: String::new(),
                is_connected: false,
                settings: serde_json::to_value(&settings)?,
                desired: Desired::Running,
                created: now(),
                updated: now(),
            };
            catalog.insert_source(seal, row, None).await?;
        }
        match look(catalog, repository, id).await {
            Ok(windows) => found.windows = windows,
            Err(error) => found.error = Some(error),
        }
        all.push(found);
    }
    Ok(all)
}

async fn look(
    catalog: &Catalog,
    repository: &Repository,
    id: SourceId,
) -> Result<Vec<Window>, String> {
    let text = |error: &dyn std::error::Error| chain(error);
    let store = repository.source(id).await.map_err(|error| text(&error))?;
    let cleared = catalog.clear_index(id).await;
    cleared.map_err(|error| text(&error))?;
    let indexed = index::rebuild(catalog, &store).await;
    indexed.map_err(|error| text(&error))?;
    let survey = Survey::read(&store).await.map_err(|error| text(&error))?;
    Ok(survey.windows())
}

/// A repository may hold two sources of one name; a catalog may not.
async fn free_name(
    catalog: &Catalog,
    name: String,
    id: SourceId,
) -> Result<String, crate::catalog::Error> {
    if catalog.source(&name).await?.is_none() {
        return Ok(name);
    }
    let id = format!("-{id}");
    let kept: String = name.chars().take(NAME_BYTES_MAX - id.len()).collect();
    Ok(kept + &id)
}
