//! Restores as jobs, with their events.

use lastgood_proto::{Class, PgTimestamp, SourceId};
use rusqlite::{Row, Transaction, params};
use serde_json::Value;

use super::{Catalog, Result, all, count, first, maybe, maybe_time, number, parsed, time, words};

words! {
    RestoreStatus {
        Planned = "planned",
        Running = "running",
        Succeeded = "succeeded",
        Failed = "failed",
        Cancelled = "cancelled",
    }
}

words! {
    /// What the error of a failed restore asks for.
    ErrorClass {
        Transient = "transient",
        NeedsOperator = "needs_operator",
        Corrupt = "corrupt",
    }
}

impl From<Class> for ErrorClass {
    fn from(class: Class) -> Self {
        match class {
            Class::Transient => ErrorClass::Transient,
            Class::NeedsOperator => ErrorClass::NeedsOperator,
            Class::Corrupt => ErrorClass::Corrupt,
        }
    }
}

impl RestoreStatus {
    /// Nothing will change any more.
    pub(crate) const fn is_final(self) -> bool {
        match self {
            RestoreStatus::Planned | RestoreStatus::Running => false,
            RestoreStatus::Succeeded | RestoreStatus::Failed | RestoreStatus::Cancelled => true,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RestoreRow {
    pub(crate) id: String,
    pub(crate) source: SourceId,
    pub(crate) source_name: String,
    /// As it was asked for, without secrets.
    pub(crate) request: Value,
    pub(crate) plan: Value,
    pub(crate) status: RestoreStatus,
    pub(crate) phase: Option<String>,
    pub(crate) progress: Option<Value>,
    pub(crate) report: Option<Value>,
    pub(crate) error: Option<String>,
    pub(crate) error_class: Option<ErrorClass>,
    pub(crate) left_behind: Option<String>,
    pub(crate) created: PgTimestamp,
    pub(crate) started: Option<PgTimestamp>,
    pub(crate) finished: Option<PgTimestamp>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RestoreEventRow {
    pub(crate) seq: u64,
    pub(crate) time: PgTimestamp,
    /// `status`, `phase` or `progress`.
    pub(crate) kind: String,
    pub(crate) body: Value,
}

/// How a restore ended.
pub(crate) enum Ending {
    Succeeded {
        report: Value,
    },
    Failed {
        error: String,
        class: ErrorClass,
        left_behind: Option<String>,
    },
    Cancelled {
        left_behind: Option<String>,
    },
}

impl Catalog {
    pub(crate) async fn insert_restore(&self, row: RestoreRow) -> Result<()> {
        self.transact(move |transaction| {
            transaction.execute(
                "INSERT INTO restore (id, source, name, request, plan, status, created)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)",
                params![
                    row.id,
                    row.source.to_string(),
                    row.source_name,
                    row.request.to_string(),
                    row.plan.to_string(),
                    row.status.as_str(),
                    row.created.as_unix_micros(),
                ],
            )?;
            let body = status_body(row.status, None);
            put_event(transaction, &row.id, row.created, "status", &body)
        })
        .await
    }

    pub(crate) async fn start_restore(&self, id: String, now: PgTimestamp) -> Result<()> {
        self.transact(move |transaction| {
            transaction.execute(
                "UPDATE restore SET status = 'running', started = ?2
                 WHERE id = ?1 AND status = 'planned'",
                params![id, now.as_unix_micros()],
            )?;
            let body = status_body(RestoreStatus::Running, None);
            put_event(transaction, &id, now, "status", &body)
        })
        .await
    }

    /// Note where a restore is; a change of phase is an event of its own kind.
    pub(crate) async fn restore_progress(
        &self,
        id: String,
        phase: String,
        progress: Value,
        now: PgTimestamp,
    ) -> Result<()> {
        self.transact(move |transaction| {
            let before: Option<String> =
                transaction.query_row("SELECT phase FROM restore WHERE id = ?1", [&id], |row| {
                    row.get(0)
                })?;
            transaction.execute(
                "UPDATE restore SET phase = ?2, progress = ?3 WHERE id = ?1",
                params![id, phase, progress.to_string()],
            )?;
            let kind = match before.as_deref() == Some(phase.as_str()) {
                true => "progress",
                false => "phase",
            };
            put_event(transaction, &id, now, kind, &progress)
        })
        .await
    }

    pub(crate) async fn end_restore(
        &self,
        id: String,
        ending: Ending,
        now: PgTimestamp,
    ) -> Result<()> {
        self.transact(move |transaction| end(transaction, &id, &ending, now))
            .await
    }

    pub(crate) async fn restore(&self, id: &str) -> Result<Option<RestoreRow>> {
        let id = id.to_owned();
        self.transact(move |transaction| {
            first(
                transaction,
                "SELECT * FROM restore WHERE id = ?1",
                [id],
                restore_row,
            )
        })
        .await
    }

    /// Restores, newest first, made before `before`.
    pub(crate) async fn restores(
        &self,
        before: Option<(PgTimestamp, String)>,
        limit: usize,
    ) -> Result<Vec<RestoreRow>> {
        let (time, id) = before.map_or((i64::MAX, String::new()), |(time, id)| {
            (time.as_unix_micros(), id)
        });
        self.transact(move |transaction| {
            all(
                transaction,
                "SELECT * FROM restore WHERE (created, id) < (?1, ?2)
                 ORDER BY created DESC, id DESC LIMIT ?3",
                params![time, id, count(limit as u64)],
                restore_row,
            )
        })
        .await
    }

    /// How many restores there are in each status.
    pub(crate) async fn restore_counts(&self) -> Result<Vec<(RestoreStatus, u64)>> {
        self.transact(|transaction| {
            all(
                transaction,
                "SELECT status, count(*) AS restores FROM restore GROUP BY status",
                [],
                |row| Ok((parsed(row, "status")?, number(row, "restores")?)),
            )
        })
        .await
    }

    pub(crate) async fn restore_events(
        &self,
        id: &str,
        after: u64,
        limit: usize,
    ) -> Result<Vec<RestoreEventRow>> {
        let id = id.to_owned();
        self.transact(move |transaction| {
            all(
                transaction,
                "SELECT seq, time, kind, body FROM restore_event
                 WHERE restore = ?1 AND seq > ?2 ORDER BY seq LIMIT ?3",
                params![id, count(after), count(limit as u64)],
                |row| {
                    Ok(RestoreEventRow {
                        seq: number(row, "seq")?,
                        time: time(row, "time")?,
                        kind: row.get("kind")?,
                        body: parsed(row, "body")?,
                    })
                },
            )
        })
        .await
    }

    /// A restore that ran when the service ended does not go on by itself; says what it left.
    pub(crate) async fn fail_interrupted_restores(&self, now: PgTimestamp) -> Result<Vec<String>> {
        self.transact(move |transaction| {
            let running: Vec<(String, RestoreStatus, Value)> = all(
                transaction,
                "SELECT id, status, request FROM restore WHERE status IN ('planned', 'running')",
                [],
                |row| Ok((row.get("id")?, parsed(row, "status")?, parsed(row, "request")?)),
            )?;
            for (id, status, request) in &running {
                let left = match request["into_schema"].as_str() {
                    None => "the target database, partly restored: drop it, or ask for the same \
                             restore with \"resume\": true",
                    Some(_) => "a scratch database lastgood_scratch_… on the target's server; the schema is \
                                complete or not there: ask for the same restore with \"resume\": true, and \
                                it goes on with it or names it",
                };
                let left_behind = (*status == RestoreStatus::Running).then(|| left.to_owned());
                let ending = Ending::Failed {
                    error: "the service ended while this restore ran".to_owned(),
                    class: ErrorClass::Transient,
                    left_behind,
                };
                end(transaction, id, &ending, now)?;
            }
            Ok(running.into_iter().map(|(id, ..)| id).collect())
        })
        .await
    }
}

fn end(transaction: &Transaction<'_>, id: &str, ending: &Ending, now: PgTimestamp) -> Result<()> {
    let (status, report, error, class, left_behind) = match ending {
        Ending::Succeeded { report } => (RestoreStatus::Succeeded, Some(report), None, None, None),
        Ending::Failed {
            error,
            class,
            left_behind,
        } => {
            let left_behind = left_behind.as_ref();
            (
                RestoreStatus::Failed,
                None,
                Some(error),
                Some(*class),
                left_behind,
            )
        }
        Ending::Cancelled { left_behind } => (
            RestoreStatus::Cancelled,
            None,
            None,
            None,
            left_behind.as_ref(),
        ),
    };
    transaction.execute(
        "UPDATE restore SET status = ?2, report = ?3, error = ?4, left_behind = ?5, finished = ?6, error_class = ?7
         WHERE id = ?1",
        params![
            id,
            status.as_str(),
            report.map(Value::to_string),
            error,
            left_behind,
            now.as_unix_micros(),
            class.map(ErrorClass::as_str),
        ],
    )?;
    let body = status_body(status, error.map(String::as_str));
    put_event(transaction, id, now, "status", &body)
}

fn status_body(status: RestoreStatus, error: Option<&str>) -> Value {
    match error {
        Some(error) => serde_json::json!({"status": status.as_str(), "error": error}),
        None => serde_json::json!({"status": status.as_str()}),
    }
}

fn put_event(
    transaction: &Transaction<'_>,
    restore: &str,
    now: PgTimestamp,
    kind: &str,
    body: &Value,
) -> Result<()> {
    transaction.execute(
        "INSERT INTO restore_event (restore, seq, time, kind, body)
         SELECT ?1, coalesce(max(seq), 0) + 1, ?2, ?3, ?4
         FROM restore_event WHERE restore = ?1",
        params![restore, now.as_unix_micros(), kind, body.to_string()],
    )?;
    Ok(())
}

fn restore_row(row: &Row<'_>) -> Result<RestoreRow> {
    Ok(RestoreRow {
        id: row.get("id")?,
        source: parsed(row, "source")?,
        source_name: row.get("name")?,
        request: parsed(row, "request")?,
        plan: parsed(row, "plan")?,
        status: parsed(row, "status")?,
        phase: row.get("phase")?,
        progress: maybe(row, "progress")?,
        report: maybe(row, "report")?,
        error: row.get("error")?,
        error_class: maybe(row, "error_class")?,
        left_behind: row.get("left_behind")?,
        created: time(row, "created")?,
        started: maybe_time(row, "started")?,
        finished: maybe_time(row, "finished")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, seconds: i64) -> RestoreRow {
        RestoreRow {
            id: id.to_owned(),
            source: SourceId::from_bytes([1; 8]),
            source_name: "shop".to_owned(),
            request: serde_json::json!({"target": "latest"}),
            plan: serde_json::json!({}),
            status: RestoreStatus::Planned,
            phase: None,
            progress: None,
            report: None,
            error: None,
            error_class: None,
            left_behind: None,
            created: PgTimestamp::from_unix_micros(seconds),
            started: None,
            finished: None,
        }
    }

    #[tokio::test]
    async fn a_restore_is_told_in_events() {
        let catalog = Catalog::in_memory();
        let now = PgTimestamp::from_unix_micros(9);
        catalog.insert_restore(row("a", 1)).await.unwrap();
        catalog.start_restore("a".to_owned(), now).await.unwrap();
        for done in [1, 2] {
            let progress = serde_json::json!({"done": done});
            catalog
                .restore_progress("a".to_owned(), "data".to_owned(), progress, now)
                .await
                .unwrap();
        }
        let report = serde_json::json!({"rows": 3});
        catalog
            .end_restore("a".to_owned(), Ending::Succeeded { report }, now)
            .await
            .unwrap();
        let events = catalog.restore_events("a", 1, 10).await.unwrap();
        let kinds: Vec<_> = events
            .iter()
            .map(|event| (event.seq, event.kind.as_str()))
            .collect();
        assert_eq!(
            kinds,
            [(2, "status"), (3, "phase"), (4, "progress"), (5, "status")]
        );
        let found = catalog.restore("a").await.unwrap().unwrap();
        assert_eq!(found.status, RestoreStatus::Succeeded);
        assert_eq!(found.report, Some(serde_json::json!({"rows": 3})));
    }

    #[tokio::test]
    async fn a_restart_ends_what_ran() {
        let catalog = Catalog::in_memory();
        let now = PgTimestamp::from_unix_micros(9);
        for (id, seconds) in [("a", 1), ("b", 2), ("c", 3)] {
            catalog.insert_restore(row(id, seconds)).await.unwrap();
        }
        catalog.start_restore("a".to_owned(), now).await.unwrap();
        let ending = Ending::Cancelled { left_behind: None };
        catalog
            .end_restore("c".to_owned(), ending, now)
            .await
            .unwrap();
        let mut ended = catalog.fail_interrupted_restores(now).await.unwrap();
        ended.sort();
        assert_eq!(ended, ["a", "b"]);
        let a = catalog.restore("a").await.unwrap().unwrap();
        assert_eq!(a.status, RestoreStatus::Failed);
        assert!(a.left_behind.unwrap().contains("drop it"));
        let page = catalog.restores(None, 2).await.unwrap();
        let ids: Vec<_> = page.iter().map(|row| row.id.as_str()).collect();
        assert_eq!(ids, ["c", "b"]);
        let before = Some((page[1].created, page[1].id.clone()));
        assert_eq!(catalog.restores(before, 2).await.unwrap()[0].id, "a");
    }
}
