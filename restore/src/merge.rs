//! A base's rows on their way to the target, with the net changes merged in: `pg_restore` prints what the main
//! archive holds, a large table's archives are such text themselves, each table's rows go into a COPY of ours, and a
//! row that has changed since is left out or replaced on the way. So the target never sees what is to be changed again.
//!
//! Every change must meet its row: one of the base that is awaited and does not come by, or one that comes
//! by and cannot be there, ends the restore.

use std::collections::HashMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes, BytesMut};
use lastgood_pg::dump::TocEntry;
use lastgood_proto::encoding;
use lastgood_proto::manifest::Archive;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio_postgres::Client;
use tokio_util::task::AbortOnDropHandle;

use crate::archive::{Archives, list_file};
use crate::columns::Altered;
use crate::lanes::{Copy, Lane, Lanes, PIECE_BYTES};
use crate::net::{Met, Net, NetRows, NetTable, fill};
use crate::relations::{Name, qualified};
use crate::selection::identifier;
use crate::sql::ends_statement;
use crate::{Error, sql};

/// Ends the rows of a table.
const END: &[u8] = b"\\.\n";
/// Of a large table's archives, what waits to be read.
const PIPE_BYTES: usize = 1 << 20;
/// How much of a row is shown as evidence.
const SHOWN_BYTES: usize = 1000;

/// Net changes that wait for their tables' rows, and columns that rows lack.
pub(crate) struct Waiting {
    net: Mutex<Net>,
    altered: HashMap<Name, Altered>,
    /// Of the base's text, and of every image.
    encoding: String,
}

impl Waiting {
    pub(crate) fn new(net: Net, altered: HashMap<Name, Altered>, encoding: String) -> Self {
        Self {
            net: Mutex::new(net),
            altered,
            encoding,
        }
    }

    fn net(&self) -> std::sync::MutexGuard<'_, Net> {
        self.net.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets back the sequences of tables that were truncated so. While the tables are empty.
    pub(crate) async fn restart(&self, client: &Client) -> Result<(), Error> {
        let restarted = std::mem::take(&mut self.net().restarted);
        for table in restarted {
            let sql = format!("TRUNCATE {table} RESTART IDENTITY");
            client.batch_execute(&sql).await?;
        }
        Ok(())
    }

    /// Loads the rows of these entries of the main archive; of a lender's, `names` says what its tables are called.
    /// `fed` counts the archive's bytes.
    pub(crate) async fn load(
        self: &Arc<Self>,
        archives: &Archives<'_>,
        lane: Lane,
        archive: &Archive,
        only: &[&TocEntry],
        names: Option<&Arc<HashMap<Name, Name>>>,
        fed: &Arc<AtomicU64>,
    ) -> Result<(), Error> {
        let list = list_file(only)?;
        let tool = archives.tools.rows(Some(list.path()))?;
        let feed = archives.feed(&[archive], tool.stdin, fed);
        let ended = self.read(lane, feed, tool.stdout, names).await;
        if matches!(ended, Ok(()) | Err(Error::RowsEnded)) {
            // If it has not printed all, it knows why.
            tool.process.wait().await?;
        }
        ended
    }

    /// Loads a large table's rows, as [`Waiting::load`] does.
    pub(crate) async fn load_parts(
        self: &Arc<Self>,
        archives: &Archives<'_>,
        lane: Lane,
        parts: &[&Archive],
        names: Option<&Arc<HashMap<Name, Name>>>,
        fed: &Arc<AtomicU64>,
    ) -> Result<(), Error> {
        let (to, script) = tokio::io::duplex(PIPE_BYTES);
        let feed = archives.feed(parts, to, fed);
        self.read(lane, feed, script, names).await
    }

    /// Both until their ends: what is fed is read to be verified, also what nobody wants of it. Whichever fails ends
    /// the other.
    async fn read(
        self: &Arc<Self>,
        lane: Lane,
        mut fed: AbortOnDropHandle<Result<(), Error>>,
        script: impl AsyncRead + Unpin + Send + 'static,
        names: Option<&Arc<HashMap<Name, Name>>>,
    ) -> Result<(), Error> {
        let (waiting, names) = (Arc::clone(self), names.cloned());
        let rows = async move { waiting.tables(&lane, script, names.as_deref()).await };
        let mut rows = AbortOnDropHandle::new(tokio::spawn(rows));
        tokio::select! {
            biased;
            // Rows that end too early may be all that an archive had.
            fed = &mut fed => match fed? {
                Ok(()) => rows.await?,
                failed => failed,
            },
            loaded = &mut rows => match loaded? {
                Ok(()) => fed.await?,
                // They may have ended because nothing more could be read, which then is the reason.
                Err(Error::RowsEnded) => fed.await?.and(Err(Error::RowsEnded)),
                failed => failed,
            },
        }
    }

    /// Tables whose rows are all new, and that no archive has.
    pub(crate) async fn load_rest(&self, lanes: &Arc<Lanes>) -> Result<(), Error> {
        let rest = std::mem::take(&mut self.net().tables);
        let lane = lanes.enter().await?;
        for (name, table) in rest {
            let written = &table.binding.written;
            let columns = written
                .iter()
                .map(|bound| table.binding.column(*bound).name.clone());
            let block = Block {
                columns: columns.collect(),
                name,
            };
            let mut merge = Merge::new(table, &block)?;
            let mut copy = block.copy(&lane, &self.encoding);
            merge.end(&mut copy).await?;
            copy.finish().await?;
        }
        Ok(())
    }

    async fn tables(
        &self,
        lane: &Lane,
        script: impl AsyncRead + Unpin,
        names: Option<&HashMap<Name, Name>>,
    ) -> Result<(), Error> {
        let mut script = Script {
            input: script,
            buffer: BytesMut::new(),
            searched: 0,
        };
        let (mut ends, mut wide) = (Vec::new(), Vec::new());
        let mut next = script.block(&self.encoding).await?;
        while let Some(found) = next.take() {
            let mut block = found.clone();
            let mut altered = None;
            if let Some(names) = names {
                let name = names.get(&block.name);
                block.name = name.cloned().ok_or_else(|| block.unexpected())?;
                altered = self.altered.get(&block.name);
            }
            if let Some(altered) = altered {
                if block.columns != altered.lent {
                    return Err(block.unexpected());
                }
                block.columns.clone_from(&altered.columns);
            }
            let mut copy = block.copy(lane, &self.encoding);
            let changed = self.net().tables.remove(&block.name);
            let mut merge = changed.map(|table| Merge::new(table, &block)).transpose()?;
            while let Some(mut rows) = script.rows_of(&found, &self.encoding, &mut next).await? {
                if merge.is_none() && altered.is_none() {
                    copy.send(rows).await?;
                    continue;
                }
                while let Some(end) = memchr::memchr(b'\n', &rows) {
                    let mut row = &rows[..end];
                    if let Some(altered) = altered {
                        if !altered.arrange(row, &mut ends, &mut wide) {
                            return Err(block.unexpected());
                        }
                        row = &wide;
                    }
                    match &mut merge {
                        Some(merge) => merge.row(row, &mut copy)?,
                        None => copy.push(row),
                    }
                    rows.advance(end + 1);
                    copy.send_full().await?;
                }
            }
            if let Some(merge) = &mut merge {
                merge.end(&mut copy).await?;
            }
            copy.finish().await?;
        }
        Ok(())
    }
}

/// A table whose rows follow.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Block {
    name: Name,
    /// In the order of the rows' fields.
    columns: Vec<String>,
}

impl Block {
    /// `COPY schema.table (column, …) FROM stdin;`
    fn parse(statement: &str) -> Option<Self> {
        let (name, rest) = qualified(statement.strip_prefix("COPY ")?)?;
        let mut columns = Vec::new();
        let mut rest = rest.trim_start();
        if let Some(mut list) = rest.strip_prefix('(') {
            loop {
                let (column, after) = identifier(list).ok()?;
                columns.push(column);
                match after.strip_prefix(", ") {
                    Some(more) => list = more,
                    None => {
                        rest = after.strip_prefix(')')?.trim_start();
                        break;
                    }
                }
            }
        }
        (rest.trim_end() == "FROM stdin;").then_some(Self { name, columns })
    }

    fn table(&self) -> String {
        sql::qualified(&self.name.0, &self.name.1)
    }

    fn copy<'a>(&self, lane: &'a Lane, encoding: &str) -> Copy<'a> {
        Copy::new(lane, self.table(), &self.columns, encoding)
    }

    fn unexpected(&self) -> Error {
        Error::OtherColumns {
            table: self.table(),
        }
    }
}

/// What `pg_restore` prints, or as a large table's archives are.
struct Script<R> {
    input: R,
    buffer: BytesMut,
    /// How much of it is known to have no line end.
    searched: usize,
}

impl<R: AsyncRead + Unpin> Script<R> {
    /// Passes over everything to the next table's rows; none if there are no more.
    async fn block(&mut self, archive_encoding: &str) -> Result<Option<Block>, Error> {
        while let Some(line) = self.line().await? {
            if !line.starts_with(b"COPY ") {
                continue;
            }
            let mut statement = encoding::decode(archive_encoding, &line);
            // A quoted name may hold a line break.
            while !ends_statement(statement.trim_end_matches('\n'))
                && let Some(more) = self.line().await?
            {
                statement.push_str(&encoding::decode(archive_encoding, &more));
            }
            let block = Block::parse(&statement);
            return block.map(Some).ok_or(Error::UnreadableRows { statement });
        }
        Ok(None)
    }

    async fn line(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(end) = memchr::memchr(b'\n', &self.buffer) {
                return Ok(Some(self.buffer.split_to(end + 1).freeze()));
            }
            if !self.more().await? {
                return Ok(None);
            }
        }
    }

    /// Some whole rows of the current table, each with its line end; none at the table's end.
    async fn rows(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if self.buffer.starts_with(END) {
                self.buffer.advance(END.len());
                self.searched = 0;
                return Ok(None);
            }
            // A long row comes in many pieces: what was searched has no line end.
            let fresh = self.buffer.get(self.searched..).unwrap_or_default();
            let end = match memchr::memmem::find(fresh, b"\n\\.\n") {
                Some(at) => Some(at),
                None => memchr::memrchr(b'\n', fresh),
            };
            if let Some(end) = end {
                let rows = self.buffer.split_to(self.searched + end + 1);
                self.searched = 0;
                return Ok(Some(rows.freeze()));
            }
            self.searched = self.buffer.len();
            if !self.more().await? {
                return Err(Error::RowsEnded);
            }
        }
    }

    /// As [`Script::rows`], also of the blocks behind this one that are more of it: a large table comes in parts.
    /// At their end, with the block that follows.
    async fn rows_of(
        &mut self,
        block: &Block,
        archive_encoding: &str,
        next: &mut Option<Block>,
    ) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(rows) = self.rows().await? {
                return Ok(Some(rows));
            }
            *next = self.block(archive_encoding).await?;
            if next.as_ref() != Some(block) {
                return Ok(None);
            }
        }
    }

    async fn more(&mut self) -> Result<bool, Error> {
        self.buffer.reserve(PIECE_BYTES);
        let read = self.input.read_buf(&mut self.buffer).await;
        Ok(read.map_err(Error::Scratch)? > 0)
    }
}

/// The changes of one table, against its rows in the base.
struct Merge {
    net: NetTable,
    table: String,
    /// The place of each written column among the row's fields, unless it is the same.
    order: Option<Vec<usize>>,
    /// Places of the key columns among the row's fields.
    key: Vec<usize>,
    awaited: usize,
    ends: Vec<usize>,
    /// A row's key, or a row in the order of the images.
    scratch: Vec<u8>,
    /// An image without holes.
    filled: Vec<u8>,
    new: Vec<u8>,
}

impl Merge {
    fn new(mut net: NetTable, block: &Block) -> Result<Self, Error> {
        let binding = &net.binding;
        let place = |bound: &crate::binding::Bound| {
            let name = &binding.column(*bound).name;
            block.columns.iter().position(|column| column == name)
        };
        let order: Option<Vec<usize>> = binding.written.iter().map(place).collect();
        let key: Option<Vec<usize>> = match &net.rows {
            NetRows::Keyed(_) => binding.find.columns().iter().map(place).collect(),
            NetRows::Whole(_) => Some(Vec::new()),
        };
        let fits = block.columns.len() == binding.written.len();
        let (Some(order), Some(key), true) = (order, key, fits) else {
            return Err(Error::OtherColumns {
                table: block.table(),
            });
        };
        let in_order = order.iter().enumerate().all(|(at, place)| at == *place);
        Ok(Self {
            table: block.table(),
            order: (!in_order).then_some(order),
            key,
            awaited: match &mut net.rows {
                NetRows::Keyed(rows) => {
                    rows.close();
                    rows.awaited()
                }
                NetRows::Whole(_) => 0,
            },
            net,
            ends: Vec::new(),
            scratch: Vec::new(),
            filled: Vec::new(),
            new: Vec::new(),
        })
    }

    /// A row of the base.
    fn row(&mut self, row: &[u8], copy: &mut Copy<'_>) -> Result<(), Error> {
        if self.net.truncated {
            return Ok(());
        }
        match &mut self.net.rows {
            NetRows::Whole(rows) => {
                let text = match &self.order {
                    None => row,
                    Some(order) => {
                        fields(row, order, &mut self.ends, &mut self.scratch);
                        &self.scratch
                    }
                };
                if !rows.meet(text) {
                    copy.push(row);
                }
                Ok(())
            }
            NetRows::Keyed(rows) => {
                fields(row, &self.key, &mut self.ends, &mut self.scratch);
                let image = match rows.meet(&self.scratch) {
                    Met::Untouched => {
                        copy.push(row);
                        return Ok(());
                    }
                    Met::Unexpected => {
                        return Err(Error::UnexpectedRow {
                            table: self.table.clone(),
                            key: shown(&self.scratch),
                        });
                    }
                    Met::Gone => None,
                    Met::Became(image) => Some(image),
                };
                self.awaited -= 1;
                let Some(image) = image else {
                    return Ok(());
                };
                match &self.order {
                    None => {
                        fill(image, row, &mut self.filled);
                        copy.push(&self.filled);
                    }
                    Some(order) => {
                        fields(row, order, &mut self.ends, &mut self.scratch);
                        fill(image, &self.scratch, &mut self.filled);
                        fields(&self.filled, &inverse(order), &mut self.ends, &mut self.new);
                        copy.push(&self.new);
                    }
                }
                Ok(())
            }
        }
    }

    /// All rows of the base have come by; now those that it does not have.
    async fn end(&mut self, copy: &mut Copy<'_>) -> Result<(), Error> {
        let missing = match &self.net.rows {
            _ if self.net.truncated => None,
            NetRows::Keyed(_) if self.awaited == 0 => None,
            NetRows::Keyed(rows) => rows.missing(),
            NetRows::Whole(rows) => rows.missing(),
        };
        if let Some(missing) = missing {
            return Err(Error::MissingRow {
                table: self.table.clone(),
                key: shown(missing),
            });
        }
        let inverse = self.order.as_deref().map(inverse);
        let rows: Box<dyn Iterator<Item = &[u8]> + Send + '_> = match &self.net.rows {
            NetRows::Keyed(rows) => Box::new(rows.new_rows()),
            NetRows::Whole(rows) => Box::new(rows.new_rows()),
        };
        for row in rows {
            match &inverse {
                None => copy.push(row),
                Some(order) => {
                    fields(row, order, &mut self.ends, &mut self.new);
                    copy.push(&self.new);
                }
            }
            copy.send_full().await?;
        }
        Ok(())
    }
}

/// Some fields of a row, in this order. No more of the row is read than that.
fn fields(row: &[u8], order: &[usize], ends: &mut Vec<usize>, out: &mut Vec<u8>) {
    out.clear();
    ends.clear();
    let mut tabs = memchr::memchr_iter(b'\t', row);
    for (at, place) in order.iter().enumerate() {
        if at > 0 {
            out.push(b'\t');
        }
        while ends.len() <= *place {
            ends.push(tabs.next().unwrap_or(row.len()));
        }
        let start = place.checked_sub(1).map_or(0, |before| ends[before] + 1);
        out.extend_from_slice(row.get(start..ends[*place]).unwrap_or_default());
    }
}

fn inverse(order: &[usize]) -> Vec<usize> {
    let mut inverse = vec![0; order.len()];
    for (at, place) in order.iter().enumerate() {
        if let Some(slot) = inverse.get_mut(*place) {
            *slot = at;
        }
    }
    inverse
}

fn shown(text: &[u8]) -> String {
    String::from_utf8_lossy(&text[..text.len().min(SHOWN_BYTES)]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_statement_names_its_table_and_columns() {
        let check = |statement: &str, expect: Option<(&str, &str, &[&str])>| {
            let expect = expect.map(|(schema, name, columns)| Block {
                name: (schema.to_owned(), name.to_owned()),
                columns: columns.iter().map(ToString::to_string).collect(),
            });
            assert_eq!(Block::parse(statement), expect, "{statement}");
        };
        let plain = "COPY public.users (id, \"Na\"\"me, x\") FROM stdin;\n";
        check(plain, Some(("public", "users", &["id", "Na\"me, x"])));
        let odd = "COPY \"a.b\".\"c\n (d) FROM stdin;\" (e) FROM stdin;\n";
        check(odd, Some(("a.b", "c\n (d) FROM stdin;", &["e"])));
        check(
            "COPY public.none  FROM stdin;\n",
            Some(("public", "none", &[])),
        );
        check("COPY public.users (id) TO stdout;\n", None);
        check("COPY users (id) FROM stdin;\n", None);
    }

    #[tokio::test]
    async fn a_script_is_read_table_by_table_however_it_comes() {
        let text = "SET a = 'b';\n-- Data for Name: a\n\nCOPY s.\"a\nb\" (x, y) FROM stdin;\n1\t\\\\.\n\\N\t2\n\\.\n\n\n\
                    COPY s.e (x) FROM stdin;\n\\.\n\nCOPY s.none  FROM stdin;\n\n\n\\.\n\n--\n";
        for piece in 1..text.len() {
            let pieces = text
                .as_bytes()
                .chunks(piece)
                .map(|piece| Ok::<_, std::io::Error>(Bytes::copy_from_slice(piece)));
            let input = tokio_util::io::StreamReader::new(futures::stream::iter(
                pieces.collect::<Vec<_>>(),
            ));
            let mut script = Script {
                input,
                buffer: BytesMut::new(),
                searched: 0,
            };
            let mut found = Vec::new();
            while let Some(block) = script.block("UTF8").await.unwrap() {
                let mut rows = Vec::new();
                while let Some(some) = script.rows().await.unwrap() {
                    rows.extend_from_slice(&some);
                }
                found.push((
                    block.name.1,
                    block.columns.len(),
                    String::from_utf8(rows).unwrap(),
                ));
            }
            let expect = [
                ("a\nb", 2, "1\t\\\\.\n\\N\t2\n"),
                ("e", 1, ""),
                ("none", 0, "\n\n"),
            ];
            let expect =
                expect.map(|(name, columns, rows)| (name.to_owned(), columns, rows.to_owned()));
            assert_eq!(found, expect, "in pieces of {piece}");
        }
        let cut = b"COPY s.e (x) FROM stdin;\n1\n".as_slice();
        let mut script = Script {
            input: cut,
            buffer: BytesMut::new(),
            searched: 0,
        };
        script.block("UTF8").await.unwrap();
        script.rows().await.unwrap();
        assert!(matches!(script.rows().await, Err(Error::RowsEnded)));
    }

    #[tokio::test]
    async fn a_table_in_parts_is_one() {
        let text = b"COPY s.a (x) FROM stdin;\n1\n\\.\nCOPY s.a (x) FROM stdin;\n\\.\nCOPY s.a (x) FROM stdin;\n2\n\\.\n\
                     COPY s.b (x) FROM stdin;\n3\n\\.\nCOPY s.a (x) FROM stdin;\n4\n\\.\n";
        let mut script = Script {
            input: text.as_slice(),
            buffer: BytesMut::new(),
            searched: 0,
        };
        let mut found = Vec::new();
        let mut next = script.block("UTF8").await.unwrap();
        while let Some(block) = next.take() {
            let mut all = Vec::new();
            while let Some(rows) = script.rows_of(&block, "UTF8", &mut next).await.unwrap() {
                all.extend_from_slice(&rows);
            }
            found.push((block.name.1, String::from_utf8(all).unwrap()));
        }
        let expect = [("a", "1\n2\n"), ("b", "3\n"), ("a", "4\n")];
        assert_eq!(
            found,
            expect.map(|(name, rows)| (name.to_owned(), rows.to_owned()))
        );
    }

    #[test]
    fn fields_in_another_order() {
        let mut out = Vec::new();
        let mut ends = Vec::new();
        fields(b"a\tb\t\\N\td", &[2, 0, 3], &mut ends, &mut out);
        assert_eq!(out, b"\\N\ta\td");
        let order = [2, 0, 1];
        fields(b"x\ty\tz", &order, &mut ends, &mut out);
        let mut back = Vec::new();
        fields(&out, &inverse(&order), &mut ends, &mut back);
        assert_eq!(back, b"x\ty\tz");
    }
}
