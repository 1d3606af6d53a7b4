//! Batches of changes → the target, over one session.
//!
//! A batch is one COPY or two for each table and one call of its function: the number of round
//! trips does not depend on the number of rows. What belongs to one target transaction is committed
//! together with the progress row that names its last source transaction, so that a restore that is
//! cut off knows exactly where it stands.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures::SinkExt;
use lastgood_proto::{Lsn, Oid, Xid};
use tokio_postgres::Client;

use crate::Error;
use crate::binding::{Binding, Bound, Find};
use crate::error::Place;
use crate::progress_table;
use crate::rows::Rows;
use crate::sql::{literal, qualified, quoted};
use crate::statements::{
    HINT_MARK, NOT_ONE_ROW, Names, Probe, copy_into_stage, copy_into_table, create_function,
    create_stage,
};

/// COPY data goes out in pieces of this size.
const PIECE_BYTES: usize = 256 << 10;

/// The name of a lookup index of ours, with the relation's OID behind it.
pub(crate) const LOOKUP_INDEX: &str = "lastgood_restore_lookup_";

/// Changes that are sent together.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) tables: Vec<Rows>,
    /// Of the rows' bytes, by PostgreSQL's name.
    pub(crate) encoding: Arc<str>,
    /// The number of the first change of each source transaction in it.
    pub(crate) index: Vec<Mark>,
    /// Comes after the rows.
    pub(crate) truncate: Option<Truncate>,
    /// Commits the target's transaction: no source transaction is open.
    pub(crate) commit: Option<Replayed>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Mark {
    pub(crate) first_number: u64,
    pub(crate) xid: Xid,
    pub(crate) commit_lsn: Lsn,
}

#[derive(Debug)]
pub(crate) struct Truncate {
    pub(crate) tables: Vec<Arc<Binding>>,
    pub(crate) restart_identity: bool,
}

/// How far the target is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Replayed {
    /// End LSN of the last transaction in it.
    pub(crate) through: Lsn,
    pub(crate) transactions: u64,
    pub(crate) rows: u64,
}

/// What must hold in the session that replays: plans by index even while a table is still empty,
/// and made once; no wait for the disk at each commit, since nothing depends on the target yet.
pub(crate) const SESSION: &str = "SET synchronous_commit = off; SET jit = off; \
     SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan; \
     SET synchronize_seqscans = off; SET row_security = off";

pub(crate) struct Applier<'a> {
    client: &'a Client,
    prepared: HashMap<Oid, Prepared>,
    made: usize,
    open: bool,
    /// What the progress row says.
    replayed: Replayed,
}

struct Prepared {
    binding: Arc<Binding>,
    names: Names,
    staged: bool,
}

impl<'a> Applier<'a> {
    /// The session must have [`SESSION`] set and belong to this applier alone. It goes on from
    /// `replayed`.
    pub(crate) fn new(client: &'a Client, replayed: Replayed) -> Self {
        Self {
            client,
            prepared: HashMap::new(),
            made: 0,
            open: false,
            replayed,
        }
    }

    /// # Errors
    /// On the first change that does not fit; the target's transaction is then to be given up.
    pub(crate) async fn apply(&mut self, batch: Batch) -> Result<(), Error> {
        if !self.open {
            self.client.batch_execute("BEGIN").await?;
            self.open = true;
        }
        let last = batch.commit.is_some();
        for rows in batch.tables {
            self.table(rows, &batch.encoding, &batch.index, last)
                .await?;
        }
        if let Some(truncate) = &batch.truncate {
            self.truncate(truncate, &batch.index).await?;
        }
        if let Some(replayed) = &batch.commit {
            let progress = progress_table::replayed_sql(&self.replayed, replayed);
            let commit = format!("{progress}; COMMIT");
            let committed = self.client.batch_execute(&commit).await;
            committed.map_err(|error| match error.code() {
                Some(code) if code.code() == progress_table::MOVED => Error::ProgressMoved {
                    expected: self.replayed.through,
                },
                _ => error.into(),
            })?;
            self.open = false;
            self.replayed = *replayed;
        }
        Ok(())
    }

    async fn table(
        &mut self,
        mut rows: Rows,
        encoding: &str,
        index: &[Mark],
        last: bool,
    ) -> Result<(), Error> {
        let binding = Arc::clone(&rows.binding);
        if !rows.direct_numbers.is_empty() {
            let direct = std::mem::take(&mut rows.direct);
            let sql = copy_into_table(&binding, encoding);
            let copied = copy(self.client, &sql, direct).await;
            copied.map_err(|error| {
                let number = copy_line(&error)
                    .and_then(|line| rows.direct_numbers.get(line.checked_sub(1)?).copied());
                failed(
                    error,
                    &binding,
                    index,
                    number.map(|number| (number, 'i', String::new())),
                )
            })?;
        }
        if rows.is_staged() {
            self.prepare(&binding).await?;
            let Some(prepared) = self.prepared.get(&binding.rel) else {
                return Ok(());
            };
            let sql = copy_into_stage(&prepared.names, encoding);
            let copied = copy(self.client, &sql, rows.into_staged()).await;
            copied.map_err(|error| failed(error, &binding, index, None))?;
            let mut sql = format!("SELECT {}()", prepared.names.function);
            if !last {
                sql.push_str(&format!("; TRUNCATE {}", prepared.names.stage));
            }
            let applied = self.client.batch_execute(&sql).await;
            applied.map_err(|error| {
                let hint = error.as_db_error().and_then(|error| error.hint());
                let place = hint.and_then(parse_hint);
                failed(error, &binding, index, place)
            })?;
        }
        Ok(())
    }

    /// Staging table and function, made when a table is first changed.
    async fn prepare(&mut self, binding: &Arc<Binding>) -> Result<(), Error> {
        let known = self.prepared.get(&binding.rel);
        if known.is_some_and(|known| Arc::ptr_eq(&known.binding, binding) && known.staged) {
            return Ok(());
        }
        let probe = self.probe(binding).await?;
        self.made += 1;
        let names = Names::new(self.made);
        let stage = create_stage(binding, &names);
        self.client.batch_execute(&stage).await?;
        let function = create_function(binding, &names, &probe);
        self.client.batch_execute(&function).await?;
        let prepared = Prepared {
            binding: Arc::clone(binding),
            names,
            staged: true,
        };
        self.prepared.insert(binding.rel, prepared);
        Ok(())
    }

    /// What finds whole rows faster than comparing them all: an identity index the table has
    /// anyway, else a lookup index on the column that tells rows apart best.
    async fn probe(&self, binding: &Binding) -> Result<Probe, Error> {
        let Find::Row(columns) = &binding.find else {
            return Ok(Probe::None);
        };
        let indexed = |bound: &&Bound| binding.column(**bound).equality.is_some();
        let identity: Vec<Bound> = columns.iter().filter(indexed).copied().collect();
        if !identity.is_empty() {
            return Ok(Probe::Identity(identity));
        }
        let table = &binding.table;
        self.client
            .batch_execute(&format!("ANALYZE {}", table.sql()))
            .await?;
        let distinct = self
            .client
            .query(
                "SELECT s.attname::text FROM pg_stats s, pg_class c
                  WHERE s.schemaname = $1 AND s.tablename = $2 AND c.oid = $3::text::regclass
                  ORDER BY (1 - s.null_frac) * CASE WHEN s.n_distinct < 0
                           THEN -s.n_distinct * greatest(c.reltuples, 1) ELSE s.n_distinct END DESC",
                &[&table.schema, &table.name, &table.sql()],
            )
            .await?;
        let mut best = Vec::new();
        for row in distinct {
            let name: String = row.try_get(0)?;
            let named = |bound: &&Bound| binding.column(**bound).name == name;
            best.extend(columns.iter().find(named).copied());
        }
        // An empty table has no statistics: then the first column that can carry an index.
        best.extend(columns);
        let hashable = |bound: &Bound| binding.column(*bound).hash_equality.is_some();
        let Some(bound) = best.into_iter().find(hashable) else {
            return Ok(Probe::None);
        };
        let column = binding.column(bound).sql();
        let name = format!("{LOOKUP_INDEX}{}", binding.rel);
        let sql = format!(
            "DROP INDEX IF EXISTS {}; CREATE INDEX {} ON ONLY {} USING hash ({column})",
            qualified(&table.schema, &name),
            quoted(&name),
            table.sql()
        );
        self.client.batch_execute(&sql).await?;
        Ok(Probe::Column(bound))
    }

    /// The stream names every table that was emptied, also those reached by CASCADE.
    async fn truncate(&self, truncate: &Truncate, index: &[Mark]) -> Result<(), Error> {
        let Some(first) = truncate.tables.first() else {
            return Ok(());
        };
        let each = truncate.tables.iter();
        let tables: Vec<String> = each
            .map(|binding| binding.table.sql_for_truncate())
            .collect();
        let restart = match truncate.restart_identity {
            true => " RESTART IDENTITY",
            false => "",
        };
        let sql = format!("TRUNCATE {}{restart}", tables.join(", "));
        let number = index
            .last()
            .map(|mark| (mark.first_number, 't', String::new()));
        let truncated = self.client.batch_execute(&sql).await;
        truncated.map_err(|error| failed(error, first, index, number))
    }
}

/// Drops the lookup indexes.
pub(crate) async fn drop_lookup_indexes(client: &Client) -> Result<(), Error> {
    let pattern = literal(&format!("^{LOOKUP_INDEX}[0-9]+$"));
    let sql = format!(
        "SELECT n.nspname::text, c.relname::text FROM pg_class c
           JOIN pg_namespace n ON n.oid = c.relnamespace
          WHERE c.relkind = 'i' AND c.relname ~ {pattern}"
    );
    for row in client.query(&sql, &[]).await? {
        let (schema, name): (String, String) = (row.try_get(0)?, row.try_get(1)?);
        let drop = format!("DROP INDEX {}", qualified(&schema, &name));
        client.batch_execute(&drop).await?;
    }
    Ok(())
}

async fn copy(client: &Client, sql: &str, data: Vec<u8>) -> Result<(), tokio_postgres::Error> {
    let mut data = Bytes::from(data);
    let mut sink = pin!(client.copy_in::<_, Bytes>(sql).await?);
    while !data.is_empty() {
        let piece = data.split_to(PIECE_BYTES.min(data.len()));
        sink.feed(piece).await?;
    }
    sink.finish().await?;
    Ok(())
}

/// The line of a COPY that failed: `COPY t, line 7, column c: "x"`.
fn copy_line(error: &tokio_postgres::Error) -> Option<usize> {
    let context = error.as_db_error()?.where_()?;
    let (_, after) = context.split_once(", line ")?;
    let digits = after.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// `lastgood replay <number> <op> <key>`.
fn parse_hint(hint: &str) -> Option<(u64, char, String)> {
    let rest = hint.strip_prefix(HINT_MARK)?.strip_prefix(' ')?;
    let mut parts = rest.splitn(3, ' ');
    let number = parts.next()?.parse().ok()?;
    let op = parts.next()?.chars().next()?;
    Some((number, op, parts.next().unwrap_or_default().to_owned()))
}

fn failed(
    error: tokio_postgres::Error,
    binding: &Binding,
    index: &[Mark],
    place: Option<(u64, char, String)>,
) -> Error {
    let Some((number, op, key)) = place else {
        return Error::from(error);
    };
    let at = index.partition_point(|mark| mark.first_number <= number);
    let Some(mark) = at.checked_sub(1).and_then(|at| index.get(at)) else {
        return Error::from(error);
    };
    let place = Box::new(Place {
        xid: mark.xid,
        commit_lsn: mark.commit_lsn,
        table: binding.table.sql(),
        operation: match op {
            'i' => "INSERT",
            'd' => "DELETE",
            't' => "TRUNCATE",
            _ => "UPDATE",
        },
        key,
    });
    match error.as_db_error() {
        Some(raised) if raised.code().code() == NOT_ONE_ROW => Error::NotOneRow {
            place,
            found: raised.message().to_owned(),
        },
        Some(_) | None => Error::Change {
            place,
            source: error,
        },
    }
}

#[cfg(test)]
mod tests;
