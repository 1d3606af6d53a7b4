//! The rows of large tables, in parts: ranges of a table's blocks under one snapshot, each read by COPY in a
//! session of ours. So several sessions read one table, and the largest does not decide when a base is done.
//!
//! A part is a script of one COPY as `pg_restore` would print it: a line that names table and columns, the rows, the
//! line `\.`.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::TryStreamExt as _;
use lastgood_pg::dump::SCATTERED;
use lastgood_pg::{Session, quote};
use lastgood_proto::key::ArchiveName;
use lastgood_proto::manifest::{Archive, TableEntry};
use lastgood_proto::{Oid, encoding};
use tokio::sync::Semaphore;
use tokio_postgres::{Client, CopyOutStream};
use tokio_util::task::AbortOnDropHandle;

use super::archive::{CHUNK_BYTES, Place, Sink};
use super::snapshot::refused;
use crate::error::Error;

/// Of one table, as long as none is larger than [`PART_BYTES_MAX`]. Each is an object, and stands in the manifest.
const PARTS_MAX: u64 = 256;
/// While a part is read, its indexes are locked: somebody who makes one of them anew waits, and queries wait for him.
const PART_BYTES_MAX: u64 = 1 << 30;
/// Of the locks that the server has room for, one in so many is ours to take in all sessions together.
const LOCKS_SHARE: i64 = 8;
/// Before a part is tried again whose indexes somebody has locked.
const PAUSE: Duration = Duration::from_millis(500);
/// What keeps a session from planning parts as anything but a walk through their blocks.
pub(super) const PLANNER: &str = "SET enable_tidscan = on; SET enable_seqscan = off; SET jit = off;
    SET max_parallel_workers_per_gather = 0; SET synchronize_seqscans = off";
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
    table: (String, String),
    /// How many the table has.
    of: u32,
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
    mut tables: Vec<&TableEntry>,
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
        let list = match columns.is_empty() {
            true => String::new(),
            false => format!(" ({columns})"),
        };
        let into = into.as_ref().unwrap_or(&from);
        let head = encoding::encode(sent_in, &format!("COPY {into}{list} FROM stdin;\n"));
        let head = head.ok_or_else(|| Error::Task(format!("{into} has no name in {sent_in}")))?;
        let blocks = match server_version >= RANGES_SINCE {
            true => row.get(4),
            false => 0,
        };
        let bytes = (entry.bytes / PARTS_MAX).min(PART_BYTES_MAX);
        let count = entry.bytes.div_ceil(bytes.max(part_bytes).max(1));
        let ranges = ranges(blocks, count);
        let of = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
        for (number, range) in (0..).zip(ranges) {
            let rows = match range.is_empty() {
                // Plans nothing, so it locks nothing but the table.
                true => format!("{from}{list}"),
                false => format!("(SELECT {columns} FROM ONLY {from}{range})"),
            };
            let encoding = quote::literal(sent_in);
            parts.push_back(Part {
                name: ArchiveName::Rows(entry.oid, number),
                table: (entry.schema.clone(), entry.name.clone()),
                of,
                head: head.clone(),
                query: format!("COPY {rows} TO STDOUT (ENCODING {encoding})"),
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

/// How many tables may be read so: every session holds all of them, and the room that a server has for locks is its
/// applications' as well.
pub(super) async fn tables_max(client: &Client, sessions: u32) -> Result<usize, Error> {
    let room = "SELECT current_setting('max_locks_per_transaction')::int8 * current_setting('max_connections')::int8";
    let room = client.query_one(room, &[]).await;
    let room: i64 = room
        .map_err(Error::sql("asking how many locks there may be"))?
        .get(0);
    Ok(usize::try_from(room / LOCKS_SHARE / i64::from(sessions.max(1))).unwrap_or(0))
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
            match part.write(&place, session.client()).await {
                Ok(archive) => archives.push(archive),
                // The table is ours, but not its indexes: others first.
                Err(Error::TablesLocked) => {
                    if let Ok(mut queue) = queue.lock() {
                        queue.push_back(part);
                    }
                    tokio::time::sleep(PAUSE).await;
                }
                Err(error) => return Err(error),
            }
        }
    }))
}

impl Part {
    /// # Errors
    /// [`Error::TablesLocked`] if an index is locked; then it may be tried again. After any other the session is not
    /// of use any more.
    async fn write(&self, place: &Place, client: &Client) -> Result<Archive, Error> {
        let (schema, name) = &self.table;
        let failed = |error| refused(format!("reading the table {schema}.{name}"))(error);
        let savepoint = client.batch_execute("SAVEPOINT part");
        savepoint.await.map_err(failed)?;
        let made = async {
            let rows = client.copy_out(&self.query).await.map_err(failed)?;
            let mut sink = place.sink(self.name).await?;
            match self.copy(rows, &mut sink, failed).await {
                Ok(()) => sink.finish().await,
                Err(error) => {
                    sink.abort().await;
                    Err(error)
                }
            }
        };
        let made = made.await;
        if matches!(made, Ok(_) | Err(Error::TablesLocked)) {
            // Gives back what the query has locked beside the table.
            let back = client.batch_execute("ROLLBACK TO part; RELEASE part");
            back.await.map_err(failed)?;
        }
        Ok(Archive {
            table: Some(self.table.clone()),
            parts: Some(self.of),
            ..made?
        })
    }

    async fn copy(
        &self,
        rows: CopyOutStream,
        sink: &mut Sink<'_>,
        failed: impl Fn(tokio_postgres::Error) -> Error,
    ) -> Result<(), Error> {
        let mut rows = pin!(rows);
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        chunk.extend_from_slice(&self.head);
        while let Some(row) = rows.try_next().await.map_err(&failed)? {
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lastgood_integration::{TestDatabase, wait};
    use lastgood_pg::{ConnectionConfig, PgTools, Purpose};
    use lastgood_proto::manifest::Protection;
    use lastgood_proto::{BaseId, LineageId, Lsn, SourceId};
    use lastgood_store::{Backend, Encryption, Repository};

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

    /// Somebody makes an index of a large table anew: its parts wait for him, and he for one of them at most.
    #[tokio::test]
    async fn a_part_waits_for_an_index_and_then_holds_none() {
        let database = TestDatabase::new(18).await.unwrap();
        let rows = "CREATE TABLE big(id int PRIMARY KEY, v text);
            INSERT INTO big SELECT i, repeat(md5(i::text), 10) FROM generate_series(1, 5000) i";
        database.execute(rows).await.unwrap();
        let (other, fresh) = (
            database.connect().await.unwrap(),
            database.connect().await.unwrap(),
        );
        let entry = "SELECT oid, pg_table_size(oid) FROM pg_class WHERE relname = 'big'";
        let entry = fresh.query_one(entry, &[]).await.unwrap();
        let entry = TableEntry {
            oid: Oid::new(entry.get(0)),
            schema: "public".to_owned(),
            name: "big".to_owned(),
            kind: 'r',
            protection: Protection::Full,
            identity_index: None,
            rows_estimate: None,
            bytes: u64::try_from(entry.get::<_, i64>(1)).unwrap(),
            unaltered: None,
            checks: None,
            attributes: None,
            columns: Vec::new(),
        };
        let connection: ConnectionConfig = database.url().parse().unwrap();
        let session = Session::connect(&connection, Purpose::Base).await.unwrap();
        let begin = "SET lock_timeout = '100ms'; BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
            LOCK TABLE public.big IN ACCESS SHARE MODE";
        session.client().batch_execute(begin).await.unwrap();
        let parts = parts(session.client(), 180_000, vec![&entry], 1 << 18, "UTF8");
        let parts = parts.await.unwrap();
        let count = parts.len();
        assert!(count > 3, "{count}");
        let repository = Repository::create_or_open_on(Backend::memory(), Encryption::Off);
        let store = repository.await.unwrap();
        let store = store
            .create_source(SourceId::from_bytes([7; 8]))
            .await
            .unwrap();
        let place = Place {
            tools: Arc::new(PgTools::for_dump(&PgTools::discover().await, 180_000).unwrap()),
            connection,
            store,
            lineage: LineageId::new(1, 1),
            base: BaseId::new(Lsn::new(1), 1),
            server_encoding: "UTF8".to_owned(),
            exclude_schemas: Vec::new(),
            dumped_bytes: Arc::default(),
        };
        other
            .batch_execute("BEGIN; REINDEX INDEX big_pkey")
            .await
            .unwrap();
        let first = parts.front().unwrap().write(&place, session.client()).await;
        assert!(matches!(first, Err(Error::TablesLocked)), "{first:?}");

        let queue = Arc::new(Mutex::new(parts));
        let made = spawn(&place, &Arc::new(Semaphore::new(1)), session, &queue);
        wait::until("the part to wait", async || {
            let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'big_pkey'::regclass";
            let waiting: i64 = fresh.query_one(waiting, &[]).await?.get(0);
            Ok((waiting > 0).then_some(()))
        })
        .await
        .unwrap();
        other.batch_execute("COMMIT").await.unwrap();
        let archives = made.await.unwrap().unwrap();
        assert_eq!(archives.len(), count);

        // Each of the locks that a query takes beside the table's is given back with its part.
        let session = Session::connect(&place.connection, Purpose::Base)
            .await
            .unwrap();
        session.client().batch_execute(begin).await.unwrap();
        let locks = "SELECT relation::regclass::text FROM pg_locks WHERE pid = pg_backend_pid() AND relation::regclass::text ~ 'big'";
        let part = Part {
            name: ArchiveName::Rows(Oid::new(1), 0),
            table: ("public".to_owned(), "big".to_owned()),
            of: 1,
            head: Vec::new(),
            query: "COPY (SELECT id FROM ONLY public.big WHERE ctid < '(9,0)') TO STDOUT"
                .to_owned(),
        };
        part.write(&place, session.client()).await.unwrap();
        let held = session.client().query(locks, &[]).await.unwrap();
        let held: Vec<String> = held.iter().map(|row| row.get(0)).collect();
        assert_eq!(held, ["public.big"]);
    }
}
