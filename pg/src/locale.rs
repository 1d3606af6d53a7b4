//! The locale of a database.

use lastgood_proto::manifest::Locale;

use crate::{Error, Session};

/// As JSON, because each major has other columns.
const LOCALE: &str = "
SELECT coalesce(d->>'datlocprovider', 'c'), d->>'datcollate', d->>'datctype',
       coalesce(d->>'datlocale', d->>'daticulocale'), d->>'daticurules'
  FROM (SELECT to_jsonb(d) AS d FROM pg_database d WHERE datname = current_database()) d";

impl Session {
    /// The locale of the database that the session is in.
    ///
    /// # Errors
    /// The server's.
    pub async fn locale(&self) -> Result<Locale, Error> {
        let row = self.client().query_one(LOCALE, &[]).await?;
        let provider: &str = row.try_get(0)?;
        Ok(Locale {
            provider: provider.chars().next().unwrap_or('c'),
            collate: row.try_get(1)?,
            ctype: row.try_get(2)?,
            name: row.try_get(3)?,
            icu_rules: row.try_get(4)?,
        })
    }
}
