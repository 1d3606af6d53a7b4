//! Single values and tokens.

use lastgood_proto::PgTimestamp;
use rusqlite::params;

use super::{Catalog, Result, all, first, unreadable};

impl Catalog {
    pub(crate) async fn setting(&self, name: &'static str) -> Result<Option<String>> {
        self.transact(move |transaction| {
            first(
                transaction,
                "SELECT value FROM setting WHERE name = ?1",
                [name],
                |row| Ok(row.get("value")?),
            )
        })
        .await
    }

    pub(crate) async fn set_setting(&self, name: &'static str, value: String) -> Result<()> {
        self.transact(move |transaction| {
            transaction.execute(
                "INSERT INTO setting (name, value) VALUES (?1, ?2)
                 ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                params![name, value],
            )?;
            Ok(())
        })
        .await
    }

    /// Set the hash of the token called `name`.
    pub(crate) async fn set_token(
        &self,
        name: &'static str,
        sha256: [u8; 32],
        now: PgTimestamp,
    ) -> Result<()> {
        self.transact(move |transaction| {
            transaction.execute(
                "INSERT INTO token (name, sha256, created) VALUES (?1, ?2, ?3)
                 ON CONFLICT (name) DO UPDATE
                 SET sha256 = excluded.sha256, created = excluded.created
                 WHERE sha256 <> excluded.sha256",
                params![name, sha256, now.as_unix_micros()],
            )?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn token_hashes(&self) -> Result<Vec<[u8; 32]>> {
        self.transact(|transaction| {
            all(transaction, "SELECT sha256 FROM token", [], |row| {
                let hash: Vec<u8> = row.get("sha256")?;
                <[u8; 32]>::try_from(hash).map_err(|_| unreadable("sha256", "its length"))
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn values_and_tokens_are_replaced() {
        let catalog = Catalog::in_memory();
        assert_eq!(catalog.setting("x").await.unwrap(), None);
        catalog.set_setting("x", "1".to_owned()).await.unwrap();
        catalog.set_setting("x", "2".to_owned()).await.unwrap();
        assert_eq!(catalog.setting("x").await.unwrap().as_deref(), Some("2"));
        let now = PgTimestamp::from_micros(0);
        catalog.set_token("admin", [1; 32], now).await.unwrap();
        catalog.set_token("admin", [2; 32], now).await.unwrap();
        assert_eq!(catalog.token_hashes().await.unwrap(), [[2; 32]]);
    }
}
