//! Under which names this service has written a source.

use futures::FutureExt;
use futures::future::BoxFuture;
use lastgood_engine::{Error, Memory};
use lastgood_proto::{SourceId, WriterId};
use rusqlite::params;

use super::{Catalog, all, parsed};
use crate::http::chain;

impl Memory for Catalog {
    fn recall(&self, source: SourceId) -> BoxFuture<'_, Result<Vec<WriterId>, Error>> {
        let found = self.transact(move |transaction| {
            all(
                transaction,
                "SELECT name FROM writer WHERE source = ?1",
                [source.to_string()],
                |row| parsed(row, "name"),
            )
        });
        async { found.await.map_err(memory) }.boxed()
    }

    fn keep(&self, source: SourceId, names: Vec<WriterId>) -> BoxFuture<'_, Result<(), Error>> {
        let kept = self.transact(move |transaction| {
            let source = source.to_string();
            transaction.execute("DELETE FROM writer WHERE source = ?1", [&source])?;
            for name in names {
                transaction.execute(
                    "INSERT INTO writer (source, name) VALUES (?1, ?2)",
                    params![source, name.to_string()],
                )?;
            }
            Ok(())
        });
        async { kept.await.map_err(memory) }.boxed()
    }
}

fn memory(error: super::Error) -> Error {
    Error::Memory(chain(&error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Seal;
    use crate::catalog::sources::tests::source;

    #[tokio::test]
    async fn names_are_kept_with_their_source() {
        let (catalog, seal) = (Catalog::in_memory(), Seal::new(&[1; 32]));
        let id = source(1, "shop").id;
        let names = [WriterId::from_bytes([1; 8]), WriterId::from_bytes([2; 8])];
        catalog
            .insert_source(&seal, source(1, "shop"), Some("host=db"))
            .await
            .unwrap();
        assert_eq!(catalog.recall(id).await.unwrap(), []);
        for names in [&names[..], &names[1..]] {
            catalog.keep(id, names.to_vec()).await.unwrap();
            assert_eq!(catalog.recall(id).await.unwrap(), names);
        }
        catalog.delete_source(id).await.unwrap();
        assert_eq!(catalog.recall(id).await.unwrap(), []);
    }
}
