//! Sources: what is protected, and how.

use lastgood_proto::{PgTimestamp, SourceId};
use rusqlite::{Row, Transaction, params};
use zeroize::Zeroizing;

use super::{Catalog, Error, Result, Seal, all, first, parsed, time, words};

words! {
    /// What the operator wants of a source; it survives a restart.
    Desired { Running = "running", Paused = "paused", PausedWithoutSlot = "paused_without_slot" }
}

/// A source as it stands in the catalog, without its connection string.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SourceRow {
    pub(crate) id: SourceId,
    pub(crate) name: String,
    /// The connection without its secrets.
    pub(crate) endpoint: String,
    /// Whether its connection string is known: not so of one that was found in the repository.
    pub(crate) is_connected: bool,
    pub(crate) settings: serde_json::Value,
    pub(crate) desired: Desired,
    pub(crate) created: PgTimestamp,
    pub(crate) updated: PgTimestamp,
}

impl Catalog {
    /// Without a connection it waits for one.
    ///
    /// # Errors
    /// `DuplicateName` if a source has this name.
    pub(crate) async fn insert_source(
        &self,
        seal: &Seal,
        row: SourceRow,
        connection: Option<&str>,
    ) -> Result<()> {
        let sealed = connection
            .map(|connection| seal.seal(&context(row.id), connection))
            .transpose()?
            .unwrap_or_default();
        self.transact(move |transaction| {
            if id_of_name(transaction, &row.name)?.is_some() {
                return Err(Error::DuplicateName(row.name));
            }
            transaction.execute(
                "INSERT INTO source
                     (id, name, connection, endpoint, settings, desired, created, updated)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                params![
                    row.id.to_string(),
                    row.name,
                    sealed,
                    row.endpoint,
                    row.settings.to_string(),
                    row.desired.as_str(),
                    row.created.as_unix_micros(),
                    row.updated.as_unix_micros(),
                ],
            )?;
            Ok(())
        })
        .await
    }

    /// Write what may change of a source: name, endpoint, settings; and the connection if given.
    ///
    /// # Errors
    /// `DuplicateName` if another source has this name.
    pub(crate) async fn update_source(
        &self,
        seal: &Seal,
        row: SourceRow,
        connection: Option<&str>,
    ) -> Result<()> {
        let sealed = connection
            .map(|connection| seal.seal(&context(row.id), connection))
            .transpose()?;
        self.transact(move |transaction| {
            let holder = id_of_name(transaction, &row.name)?;
            if holder.is_some_and(|holder| holder != row.id.to_string()) {
                return Err(Error::DuplicateName(row.name));
            }
            transaction.execute(
                "UPDATE source
                 SET name = ?2, endpoint = ?3, settings = ?4, updated = ?5,
                     connection = coalesce(?6, connection)
                 WHERE id = ?1",
                params![
                    row.id.to_string(),
                    row.name,
                    row.endpoint,
                    row.settings.to_string(),
                    row.updated.as_unix_micros(),
                    sealed,
                ],
            )?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn set_desired(&self, id: SourceId, desired: Desired) -> Result<()> {
        self.transact(move |transaction| {
            transaction.execute(
                "UPDATE source SET desired = ?2 WHERE id = ?1",
                params![id.to_string(), desired.as_str()],
            )?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn delete_source(&self, id: SourceId) -> Result<()> {
        self.transact(move |transaction| {
            transaction.execute("DELETE FROM source WHERE id = ?1", [id.to_string()])?;
            Ok(())
        })
        .await
    }

    /// The source with this id, or else with this name.
    pub(crate) async fn source(&self, id_or_name: &str) -> Result<Option<SourceRow>> {
        let wanted = id_or_name.to_owned();
        self.transact(move |transaction| {
            first(
                transaction,
                "SELECT * FROM source WHERE id = ?1 OR name = ?1 ORDER BY id <> ?1 LIMIT 1",
                [wanted],
                source_row,
            )
        })
        .await
    }

    /// Sources in the order of their names, after the name `after`.
    pub(crate) async fn sources(
        &self,
        after: Option<String>,
        limit: usize,
    ) -> Result<Vec<SourceRow>> {
        self.transact(move |transaction| {
            all(
                transaction,
                "SELECT * FROM source WHERE ?1 IS NULL OR name > ?1 ORDER BY name LIMIT ?2",
                params![after, super::count(limit as u64)],
                source_row,
            )
        })
        .await
    }

    pub(crate) async fn connection(&self, seal: &Seal, id: SourceId) -> Result<Zeroizing<String>> {
        let sealed: Vec<u8> = self
            .transact(move |transaction| {
                Ok(transaction.query_row(
                    "SELECT connection FROM source WHERE id = ?1",
                    [id.to_string()],
                    |row| row.get(0),
                )?)
            })
            .await?;
        match sealed.is_empty() {
            true => Err(Error::NoConnection),
            false => seal.open(&context(id), &sealed),
        }
    }

    /// Seal every connection string anew, in one transaction.
    pub(crate) async fn reseal(&self, old: Seal, new: Seal) -> Result<()> {
        self.transact(move |transaction| {
            let rows: Vec<(SourceId, Vec<u8>)> = all(
                transaction,
                "SELECT id, connection FROM source",
                [],
                |row| Ok((parsed(row, "id")?, row.get("connection")?)),
            )?;
            for (id, sealed) in rows {
                let context = context(id);
                // A rotation that was cut short may have been here before.
                if sealed.is_empty() || new.open(&context, &sealed).is_ok() {
                    continue;
                }
                let plain = old.open(&context, &sealed)?;
                transaction.execute(
                    "UPDATE source SET connection = ?2 WHERE id = ?1",
                    params![id.to_string(), new.seal(&context, &plain)?],
                )?;
            }
            Ok(())
        })
        .await
    }
}

fn context(id: SourceId) -> String {
    format!("connection of source {id}")
}

fn id_of_name(transaction: &Transaction<'_>, name: &str) -> Result<Option<String>> {
    first(
        transaction,
        "SELECT id FROM source WHERE name = ?1",
        [name],
        |row| Ok(row.get("id")?),
    )
}

fn source_row(row: &Row<'_>) -> Result<SourceRow> {
    Ok(SourceRow {
        id: parsed(row, "id")?,
        name: row.get("name")?,
        endpoint: row.get("endpoint")?,
        is_connected: !row
            .get_ref("connection")?
            .as_blob()
            .unwrap_or_default()
            .is_empty(),
        settings: parsed(row, "settings")?,
        desired: parsed(row, "desired")?,
        created: time(row, "created")?,
        updated: time(row, "updated")?,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::catalog) fn source(number: u8, name: &str) -> SourceRow {
        let time = PgTimestamp::from_micros(0);
        SourceRow {
            id: SourceId::from_bytes([number; 8]),
            name: name.to_owned(),
            endpoint: "postgresql://app@db/shop".to_owned(),
            is_connected: true,
            settings: serde_json::json!({}),
            desired: Desired::Running,
            created: time,
            updated: time,
        }
    }

    #[tokio::test]
    async fn a_name_is_taken_once() {
        let (catalog, seal) = (Catalog::in_memory(), Seal::new(&[1; 32]));
        let insert = |row: SourceRow| catalog.insert_source(&seal, row, Some("host=db"));
        insert(source(1, "shop")).await.unwrap();
        assert!(matches!(
            insert(source(2, "shop")).await,
            Err(Error::DuplicateName(name)) if name == "shop"
        ));
        insert(source(2, "crm")).await.unwrap();
        let renamed = SourceRow {
            name: "shop".to_owned(),
            ..source(2, "crm")
        };
        assert!(matches!(
            catalog.update_source(&seal, renamed, None).await,
            Err(Error::DuplicateName(_))
        ));
        let names: Vec<_> = catalog.sources(None, 10).await.unwrap();
        assert_eq!(names[0].name, "crm");
        let rest = catalog.sources(Some("crm".to_owned()), 10).await.unwrap();
        assert_eq!(rest, [source(1, "shop")]);
    }

    #[tokio::test]
    async fn a_source_is_found_by_id_and_by_name() {
        let (catalog, seal) = (Catalog::in_memory(), Seal::new(&[1; 32]));
        let row = source(1, "shop");
        catalog
            .insert_source(&seal, row.clone(), Some("host=db password=hunter2"))
            .await
            .unwrap();
        for key in ["shop", "0101010101010101"] {
            assert_eq!(catalog.source(key).await.unwrap(), Some(row.clone()));
        }
        assert_eq!(catalog.source("nope").await.unwrap(), None);
        catalog.set_desired(row.id, Desired::Paused).await.unwrap();
        let found = catalog.source("shop").await.unwrap().unwrap();
        assert_eq!(found.desired, Desired::Paused);
        catalog.delete_source(row.id).await.unwrap();
        assert_eq!(catalog.source("shop").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_source_may_wait_for_its_connection() {
        let (catalog, seal, new) = (
            Catalog::in_memory(),
            Seal::new(&[1; 32]),
            Seal::new(&[2; 32]),
        );
        let mut row = source(1, "shop");
        row.is_connected = false;
        let found = catalog.insert_source(&seal, row.clone(), None).await;
        found.unwrap();
        assert_eq!(catalog.source("shop").await.unwrap(), Some(row.clone()));
        let connection = catalog.connection(&seal, row.id).await;
        assert!(matches!(connection, Err(Error::NoConnection)));
        catalog.reseal(seal, new.clone()).await.unwrap();
        row.is_connected = true;
        let given = catalog.update_source(&new, row.clone(), Some("host=db"));
        given.await.unwrap();
        assert_eq!(catalog.source("shop").await.unwrap(), Some(row.clone()));
        let connection = catalog.connection(&new, row.id).await.unwrap();
        assert_eq!(connection.as_str(), "host=db");
    }

    #[tokio::test]
    async fn connections_are_sealed_and_resealed() {
        let (catalog, old, new) = (
            Catalog::in_memory(),
            Seal::new(&[1; 32]),
            Seal::new(&[2; 32]),
        );
        let row = source(1, "shop");
        let id = row.id;
        catalog
            .insert_source(&old, row, Some("password=hunter2"))
            .await
            .unwrap();
        assert!(catalog.connection(&new, id).await.is_err());
        for _ in 0..2 {
            catalog.reseal(old.clone(), new.clone()).await.unwrap();
        }
        assert_eq!(
            catalog.connection(&new, id).await.unwrap().as_str(),
            "password=hunter2"
        );
    }
}
