//! Bases, and attempts at one: running, succeeded, failed.

use lastgood_proto::{BaseId, LineageId, Lsn, PgTimestamp, SourceId};
use rusqlite::{Row, params};

use super::{
    Catalog, Result, all, count, first, lsn_text, maybe, maybe_time, number, parsed, time, words,
};

words! {
    /// Why a base was begun.
    BaseCause {
        First = "first",
        Change = "change",
        Schedule = "schedule",
        Request = "request",
        Found = "found",
    }
}

words! {
    BaseStatus { Running = "running", Succeeded = "succeeded", Failed = "failed" }
}

/// One base, or one attempt at one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BaseRow {
    /// The job's id.
    pub(crate) id: String,
    pub(crate) source: SourceId,
    pub(crate) cause: BaseCause,
    pub(crate) status: BaseStatus,
    pub(crate) lineage: Option<LineageId>,
    /// Known once it has succeeded.
    pub(crate) base: Option<BaseId>,
    pub(crate) consistent_point: Option<Lsn>,
    /// Of the dumps, before compression; grows while it runs.
    pub(crate) bytes: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) error: Option<String>,
    pub(crate) started: PgTimestamp,
    pub(crate) finished: Option<PgTimestamp>,
}

/// A base as its manifest tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FinishedBase {
    pub(crate) lineage: LineageId,
    pub(crate) base: BaseId,
    pub(crate) bytes: u64,
    pub(crate) stored_bytes: u64,
    pub(crate) started: PgTimestamp,
    pub(crate) finished: PgTimestamp,
}

impl Catalog {
    /// Forget what the repository says of a source; what failed there, it does not say.
    pub(crate) async fn clear_index(&self, source: SourceId) -> Result<()> {
        self.transact(move |transaction| {
            let source = source.to_string();
            for sql in [
                "DELETE FROM base WHERE source = ?1 AND status <> 'failed'",
                "DELETE FROM segment WHERE source = ?1",
                "DELETE FROM point WHERE source = ?1",
            ] {
                transaction.execute(sql, [&source])?;
            }
            Ok(())
        })
        .await
    }

    /// Note that a base has begun.
    pub(crate) async fn begin_base(
        &self,
        id: String,
        source: SourceId,
        cause: BaseCause,
        started: PgTimestamp,
    ) -> Result<()> {
        self.transact(move |transaction| {
            transaction.execute(
                "INSERT INTO base (id, source, cause, status, started)
                 VALUES (?1, ?2, ?3, ?4, ?5)",
                params![
                    id,
                    source.to_string(),
                    cause.as_str(),
                    BaseStatus::Running.as_str(),
                    started.as_unix_micros()
                ],
            )?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn base_progress(&self, id: String, bytes: u64) -> Result<()> {
        self.transact(move |transaction| {
            transaction.execute(
                "UPDATE base SET bytes = ?2 WHERE id = ?1 AND status = 'running'",
                params![id, count(bytes)],
            )?;
            Ok(())
        })
        .await
    }

    /// Note how the job `id` went well.
    pub(crate) async fn finish_base(&self, id: String, base: FinishedBase) -> Result<()> {
        self.transact(move |transaction| {
            // A listing may have found it between its manifest and this note.
            transaction.execute(
                "DELETE FROM base WHERE base = ?2 AND lineage = ?3 AND id <> ?1",
                params![id, base.base.to_string(), base.lineage.to_string()],
            )?;
            transaction.execute(
                "UPDATE base
                 SET status = 'succeeded', lineage = ?2, base = ?3, consistent_point = ?4,
                     bytes = ?5, stored_bytes = ?6, finished = ?7, error = NULL
                 WHERE id = ?1",
                params![
                    id,
                    base.lineage.to_string(),
                    base.base.to_string(),
                    lsn_text(base.base.consistent_point()),
                    count(base.bytes),
                    count(base.stored_bytes),
                    base.finished.as_unix_micros(),
                ],
            )?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn fail_base(
        &self,
        id: String,
        error: String,
        finished: PgTimestamp,
    ) -> Result<()> {
        self.transact(move |transaction| {
            transaction.execute(
                "UPDATE base SET status = 'failed', error = ?2, finished = ?3
                 WHERE id = ?1 AND status = 'running'",
                params![id, error, finished.as_unix_micros()],
            )?;
            Ok(())
        })
        .await
    }

    /// Note a base that a listing found; says nothing new of one that is known.
    pub(crate) async fn found_base(&self, source: SourceId, base: FinishedBase) -> Result<()> {
        self.transact(move |transaction| {
            transaction.execute(
                "INSERT OR IGNORE INTO base (id, source, cause, status, started)
                 VALUES (?1, ?2, 'found', 'running', ?3)",
                params![
                    base.base.to_string(),
                    source.to_string(),
                    base.started.as_unix_micros()
                ],
            )?;
            // Also where the service ended between the manifest and its note: a base it is.
            transaction.execute(
                "UPDATE OR IGNORE base
                 SET status = 'succeeded', lineage = ?2, base = ?1, consistent_point = ?3,
                     bytes = ?4, stored_bytes = ?5, finished = ?6, error = NULL
                 WHERE id = ?1 AND status <> 'succeeded'",
                params![
                    base.base.to_string(),
                    base.lineage.to_string(),
                    lsn_text(base.base.consistent_point()),
                    count(base.bytes),
                    count(base.stored_bytes),
                    base.finished.as_unix_micros(),
                ],
            )?;
            // A job of another id has noted it meanwhile.
            transaction.execute(
                "DELETE FROM base WHERE id = ?1 AND status = 'running'",
                [base.base.to_string()],
            )?;
            Ok(())
        })
        .await
    }

    pub(crate) async fn is_base_known(
        &self,
        source: SourceId,
        lineage: LineageId,
        base: BaseId,
    ) -> Result<bool> {
        self.transact(move |transaction| {
            let known = first(
                transaction,
                "SELECT 1 FROM base WHERE source = ?1 AND lineage = ?2 AND base = ?3",
                params![source.to_string(), lineage.to_string(), base.to_string()],
                |_| Ok(()),
            )?;
            Ok(known.is_some())
        })
        .await
    }

    /// Bases and attempts, newest first, begun before `before`.
    pub(crate) async fn bases(
        &self,
        source: SourceId,
        before: Option<(PgTimestamp, String)>,
        limit: usize,
    ) -> Result<Vec<BaseRow>> {
        let (time, id) = before.map_or((i64::MAX, String::new()), |(time, id)| {
            (time.as_unix_micros(), id)
        });
        self.transact(move |transaction| {
            all(
                transaction,
                "SELECT * FROM base WHERE source = ?1 AND (started, id) < (?2, ?3)
                 ORDER BY started DESC, id DESC LIMIT ?4",
                params![source.to_string(), time, id, count(limit as u64)],
                base_row,
            )
        })
        .await
    }

    /// When the newest attempt at a base of any outcome began, and when the newest success did.
    pub(crate) async fn last_bases(
        &self,
        source: SourceId,
    ) -> Result<(Option<PgTimestamp>, Option<PgTimestamp>)> {
        self.transact(move |transaction| {
            let times = first(
                transaction,
                "SELECT max(started) AS attempt,
                        max(CASE status WHEN 'succeeded' THEN started END) AS success
                 FROM base WHERE source = ?1",
                [source.to_string()],
                |row| Ok((maybe_time(row, "attempt")?, maybe_time(row, "success")?)),
            )?;
            Ok(times.unwrap_or_default())
        })
        .await
    }

    /// A base that was running when the service ended will not go on.
    pub(crate) async fn fail_interrupted_bases(&self, now: PgTimestamp) -> Result<usize> {
        self.transact(move |transaction| {
            Ok(transaction.execute(
                "UPDATE base SET status = 'failed', error = 'the service ended while it ran',
                                 finished = ?1
                 WHERE status = 'running'",
                [now.as_unix_micros()],
            )?)
        })
        .await
    }
}

fn base_row(row: &Row<'_>) -> Result<BaseRow> {
    Ok(BaseRow {
        id: row.get("id")?,
        source: parsed(row, "source")?,
        cause: parsed(row, "cause")?,
        status: parsed(row, "status")?,
        lineage: maybe(row, "lineage")?,
        base: maybe(row, "base")?,
        consistent_point: maybe::<BaseId>(row, "base")?.map(BaseId::consistent_point),
        bytes: number(row, "bytes")?,
        stored_bytes: number(row, "stored_bytes")?,
        error: row.get("error")?,
        started: time(row, "started")?,
        finished: maybe_time(row, "finished")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::Seal;
    use crate::catalog::sources::tests::source;

    #[tokio::test]
    async fn a_base_runs_and_ends() {
        let catalog = Catalog::in_memory();
        let row = source(1, "shop");
        let id = row.id;
        catalog
            .insert_source(&Seal::new(&[1; 32]), row, Some("host=db"))
            .await
            .unwrap();
        let at = |seconds: i64| PgTimestamp::from_unix_micros(seconds * 1_000_000);
        for (name, time) in [("a", 1), ("b", 2), ("c", 3)] {
            catalog
                .begin_base(name.to_owned(), id, BaseCause::Request, at(time))
                .await
                .unwrap();
        }
        let finished = FinishedBase {
            lineage: LineageId::new(1, 2),
            base: BaseId::new(Lsn::new(0x1000), 7),
            bytes: 100,
            stored_bytes: 10,
            started: at(1),
            finished: at(4),
        };
        catalog.found_base(id, finished).await.unwrap();
        catalog.finish_base("a".to_owned(), finished).await.unwrap();
        catalog.found_base(id, finished).await.unwrap();
        assert_eq!(catalog.bases(id, None, 9).await.unwrap().len(), 3);
        catalog
            .fail_base("b".to_owned(), "no".to_owned(), at(5))
            .await
            .unwrap();
        assert_eq!(catalog.fail_interrupted_bases(at(6)).await.unwrap(), 1);

        let page = catalog.bases(id, None, 2).await.unwrap();
        let statuses: Vec<_> = page
            .iter()
            .map(|row| (row.id.as_str(), row.status))
            .collect();
        assert_eq!(
            statuses,
            [("c", BaseStatus::Failed), ("b", BaseStatus::Failed)]
        );
        let before = Some((page[1].started, page[1].id.clone()));
        let rest = catalog.bases(id, before, 9).await.unwrap();
        assert_eq!(rest.len(), 1);
        assert_eq!(rest[0].status, BaseStatus::Succeeded);
        assert_eq!(rest[0].consistent_point, Some(Lsn::new(0x1000)));
        assert_eq!(
            catalog.last_bases(id).await.unwrap(),
            (Some(at(3)), Some(at(1)))
        );
    }

    #[tokio::test]
    async fn a_base_whose_end_was_not_noted_is_found() {
        let catalog = Catalog::in_memory();
        let row = source(1, "shop");
        let id = row.id;
        catalog
            .insert_source(&Seal::new(&[1; 32]), row, Some("host=db"))
            .await
            .unwrap();
        let time = PgTimestamp::from_unix_micros(1);
        let finished = FinishedBase {
            lineage: LineageId::new(1, 2),
            base: BaseId::new(Lsn::new(0x1000), 7),
            bytes: 100,
            stored_bytes: 10,
            started: time,
            finished: time,
        };
        let job = finished.base.to_string();
        catalog
            .begin_base(job, id, BaseCause::First, time)
            .await
            .unwrap();
        catalog.fail_interrupted_bases(time).await.unwrap();
        catalog.found_base(id, finished).await.unwrap();
        let bases = catalog.bases(id, None, 9).await.unwrap();
        assert_eq!(bases.len(), 1);
        assert_eq!(bases[0].status, BaseStatus::Succeeded);
        assert_eq!(bases[0].cause, BaseCause::First);
    }
}
