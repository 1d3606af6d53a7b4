//! The rows of large tables, in parts: ranges of a table's blocks under one snapshot, each read by COPY in a
//! session of ours. So several sessions read one table, and the largest does not decide when a base is done.
//!
//! A part is a script of one COPY as `pg_restore` would print it: a line that names table and columns, the rows, the
//! line `\.`.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use futures::TryStreamExt as _;
use lastgood_pg::dump::SCATTERED;
use lastgood_pg::{Session, quote};
use lastgood_proto::key::ArchiveName;
use lastgood_proto::manifest::{Archive, TableEntry};
use lastgood_proto::{Oid, encoding};
use tokio::sync::Semaphore;
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;

use super::archive::{CHUNK_BYTES, Place};
use crate::error::Error;

/// Of one table. Each is an object, and stands in the manifest.
const PARTS_MAX: u64 = 256;
/// The first major that finds a range of blocks without reading all others.
const RANGES_SINCE: u32 = 140_000;

/// Columns as `pg_dump` has them. Rows of some partitions are loaded through their root. Only in a heap are blocks
/// what a row's `ctid` says.
const TABLES: &str = "
SELECT c.oid, quote_ident(n.nspname) || '.' || quote_ident(c.relname),
       (SELECT quote_ident(rn.nspname) || '.' || quote_ident(r.relname)
          FROM pg_class r JOIN pg_namespace rn ON rn.oid = r.relnamespace
         WHERE r.oid = pg_partition_root(c.oid) AND {SCATTERED}),
       ARRAY (SELECT quote_ident(a.attname) FROM pg_attribute a
               WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
               ORDER BY a.attnum),
       CASE WHEN m.amname = 'heap' THEN pg_relation_size(c.oid) / current_setting('block_size')::int8 ELSE 0 END
  FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am m ON m.oid = c.relam
 WHERE c.oid = ANY ($1)";

/// A part of a table's rows, to be read.
#[derive(Debug)]
pub(super) struct Part {
    name: ArchiveName,
    pub(super) table: (String, String),
    /// In the encoding of the rows.
    head: Vec<u8>,
    query: String,
}

/// Parts that wait for a session.
pub(super) type Queue = Arc<Mutex<VecDeque<Part>>>;

/// The parts of these tables, those of the largest first: it decides when the base is done. `client` sees them as the
/// base has them.
pub(super) async fn parts(
    client: &Client,
    server_version: u32,
    mut tables: Vec<TableEntry>,
    part_bytes: u64,
    sent_in: &str,
) -> Result<VecDeque<Part>, Error> {
    tables.sort_by_key(|entry| std::cmp::Reverse(entry.bytes));
    let oids: Vec<u32> = tables.iter().map(|entry| entry.oid.get()).collect();
    let sql = TABLES.replace("{SCATTERED}", SCATTERED);
    let rows = client.query(&sql, &[&oids]).await;
    let rows = rows.map_err(Error::sql("reading the columns of large tables"))?;
    let mut parts = VecDeque::new();
    for entry in tables {
        let is_it = |row: &&tokio_postgres::Row| Oid::new(row.get(0)) == entry.oid;
        let row = rows.iter().find(is_it).ok_or(Error::CatalogMoved)?;
        let from: String = row.get(1);
        let into: Option<String> = row.get(2);
        let columns: Vec<String> = row.get(3);
        let columns = columns.join(", ");
        let into = into.as_ref().unwrap_or(&from);
        let head = match columns.as_str() {
            "" => format!("COPY {into}  FROM stdin;\n"),
            columns => format!("COPY {into} ({columns}) FROM stdin;\n"),
        };
        let head = encoding::encode(sent_in, &head);
        let head = head.ok_or_else(|| Error::Task(format!("{into} has no name in {sent_in}")))?;
        let blocks = match server_version >= RANGES_SINCE {
            true => row.get(4),
            false => 0,
        };
        let count = entry.bytes.div_ceil(part_bytes.max(1)).min(PARTS_MAX);
        for (number, range) in (0..).zip(ranges(blocks, count)) {
            let name = ArchiveName::Rows(entry.oid, number);
            let encoding = quote::literal(sent_in);
            let query = format!(
                "COPY (SELECT {columns} FROM ONLY {from}{range}) TO STDOUT (ENCODING {encoding})"
            );
            parts.push_back(Part {
                name,
                table: (entry.schema.clone(), entry.name.clone()),
                head: head.clone(),
                query,
            });
        }
    }
    Ok(parts)
}

/// Conditions for so many parts of a table, or fewer. The last one has no end: a row may have come into a block that
/// was not there when they were counted.
fn ranges(blocks: i64, count: u64) -> Vec<String> {
    let count = i64::try_from(count).unwrap_or(1).min(blocks).max(1);
    let start = |part: i64| blocks / count * part + (blocks % count).min(part);
    let range = |part: i64| {
        let from = (part > 0).then(|| format!("ctid >= '({},0)'", start(part)));
        let to = (part + 1 < count).then(|| format!("ctid < '({},0)'", start(part + 1)));
        match (from, to) {
            (None, None) => String::new(),
            (Some(only), None) | (None, Some(only)) => format!(" WHERE {only}"),
            (Some(from), Some(to)) => format!(" WHERE {from} AND {to}"),
        }
    };
    (0..count).map(range).collect()
}

/// Makes archives in one session until the queue is empty; then the session ends, with its locks.
pub(super) fn spawn(
    place: &Place,
    jobs: &Arc<Semaphore>,
    session: Session,
    queue: &Queue,
) -> AbortOnDropHandle<Result<Vec<Archive>, Error>> {
    let (place, jobs, queue) = (place.clone(), Arc::clone(jobs), Arc::clone(queue));
    AbortOnDropHandle::new(tokio::spawn(async move {
        let mut archives = Vec::new();
        loop {
            let _job = jobs.acquire().await;
            let part = queue.lock().ok().and_then(|mut queue| queue.pop_front());
            let Some(part) = part else {
                session.close().await;
                return Ok(archives);
            };
            archives.push(part.write(&place, session.client()).await?);
        }
    }))
}

impl Part {
    async fn write(self, place: &Place, client: &Client) -> Result<Archive, Error> {
        let mut sink = place.sink(self.name).await?;
        let copied = async {
            let failed = |error| Error::sql("reading a large table")(error);
            let rows = client.copy_out(&self.query).await.map_err(failed)?;
            let mut rows = pin!(rows);
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            chunk.extend_from_slice(&self.head);
            while let Some(row) = rows.try_next().await.map_err(failed)? {
                if chunk.len() + row.len() > CHUNK_BYTES {
                    sink.write(&chunk).await?;
                    chunk.clear();
                }
                match row.len() > CHUNK_BYTES {
                    true => sink.write(&row).await?,
                    false => chunk.extend_from_slice(&row),
                }
            }
            chunk.extend_from_slice(b"\\.\n");
            sink.write(&chunk).await
        };
        match copied.await {
            Ok(()) => sink.finish(Some(self.table)).await,
            Err(error) => {
                sink.abort().await;
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_block_is_in_one_range() {
        assert_eq!(ranges(0, 7), [""]);
        assert_eq!(ranges(7, 0), [""]);
        assert_eq!(
            ranges(5, 2),
            [" WHERE ctid < '(3,0)'", " WHERE ctid >= '(3,0)'"]
        );
        assert_eq!(
            ranges(7, 3),
            [
                " WHERE ctid < '(3,0)'",
                " WHERE ctid >= '(3,0)' AND ctid < '(5,0)'",
                " WHERE ctid >= '(5,0)'"
            ]
        );
        assert_eq!(ranges(3, 256).len(), 3);
    }
}
