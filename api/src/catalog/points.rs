//! The index of named restore points.

use lastgood_proto::{Lsn, PgTimestamp, SourceId};
use rusqlite::params;

use super::{Catalog, Result, all, count, lsn, lsn_text, time};

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PointRow {
    pub(crate) name: String,
    pub(crate) lsn: Lsn,
    pub(crate) time: PgTimestamp,
}

impl Catalog {
    pub(crate) async fn insert_point(&self, source: SourceId, point: PointRow) -> Result<()> {
        self.transact(move |transaction| {
            transaction.execute(
                "INSERT OR REPLACE INTO point (source, name, lsn, time) VALUES (?1, ?2, ?3, ?4)",
                params![
                    source.to_string(),
                    point.name,
                    lsn_text(point.lsn),
                    point.time.as_unix_micros()
                ],
            )?;
            Ok(())
        })
        .await
    }

    /// Points in the order of their LSN, after `after`.
    pub(crate) async fn points(
        &self,
        source: SourceId,
        after: Option<Lsn>,
        limit: usize,
    ) -> Result<Vec<PointRow>> {
        self.transact(move |transaction| {
            all(
                transaction,
                "SELECT name, lsn, time FROM point
                 WHERE source = ?1 AND (?2 IS NULL OR lsn > ?2) ORDER BY lsn LIMIT ?3",
                params![source.to_string(), after.map(lsn_text), count(limit as u64)],
                |row| {
                    Ok(PointRow {
                        name: row.get("name")?,
                        lsn: lsn(row, "lsn")?,
                        time: time(row, "time")?,
                    })
                },
            )
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Seal;
    use crate::catalog::sources::tests::source;

    #[tokio::test]
    async fn points_page_by_lsn() {
        let catalog = Catalog::in_memory();
        let row = source(1, "shop");
        let id = row.id;
        catalog
            .insert_source(&Seal::new(&[1; 32]), row, Some("host=db"))
            .await
            .unwrap();
        let point = |name: &str, lsn| PointRow {
            name: name.to_owned(),
            lsn: Lsn::new(lsn),
            time: PgTimestamp::from_micros(0),
        };
        for row in [point("b", 0x100), point("a", 0x20)] {
            catalog.insert_point(id, row).await.unwrap();
        }
        let first = catalog.points(id, None, 1).await.unwrap();
        assert_eq!(first, [point("a", 0x20)]);
        let rest = catalog.points(id, Some(first[0].lsn), 9).await.unwrap();
        assert_eq!(rest, [point("b", 0x100)]);
    }
}
