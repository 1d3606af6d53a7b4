//! The segment that is being filled: pgoutput messages in, one sealed body out.
//!
//! Owns what a cut needs to know: where a segment would end if it were cut now, the commit times
//! inside, the marks it covers. The writer below it is made at the first record, so an idle source
//! costs nothing; a segment without one is empty and only carries the position forward.
//!
//! Invariant: `end` is never past anything that was not written: it moves at a COMMIT, at a message
//! between transactions, at a keepalive between transactions.

use std::collections::{HashMap, HashSet, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lastgood_proto::copy_both::ReplicationMessage;
use lastgood_proto::key::{SegmentKey, SegmentKind, SourceObject};
use lastgood_proto::pgoutput::{self, Begin, Message, Relation};
use lastgood_proto::segment::{Header, SegmentWriter, SequenceSample, WriteError};
use lastgood_proto::{LineageId, Lsn, Oid, PgTimestamp, Xid};
use lastgood_store::{SealedBody, SealerBeside, SourceStore, Spool};
use tokio::time::Instant;

use crate::ddl::{self, Ddl, What};
use crate::error::Error;
use crate::marks::{CLOCK_SLACK_MICROS, Mark};

/// zstd's fastest ordinary one. Of NDJSON with narrow rows it makes less than its default, 3, does (1.81 MB
/// of 14.8 where that makes 2.00), of rows of 4 KB a tenth more, and takes a tenth to a quarter less time for it.
const COMPRESSION_LEVEL: i32 = 1;
/// Samples of the sequences that wait for the stream, the newest among them.
const HELD_SAMPLES_MAX: usize = 64;

/// One segment in the making.
pub(crate) struct OpenSegment {
    place: Place,
    /// End of the segment before.
    start: Lsn,
    /// Where it would end if it were cut now; never below `start`.
    end: Lsn,
    writing: Option<Writing>,
    /// A BEGIN whose transaction has shown nothing yet: before PostgreSQL 15 the walsender also
    /// sends transactions of which nothing is published.
    pending: Option<Begin>,
    in_transaction: bool,
    /// The open transaction came from another server; what is known of its commit time.
    replicated: Option<Replicated>,
    /// Carried from segment to segment: it only grows.
    observed_through: Option<PgTimestamp>,
    /// Those that no cut has covered.
    marks: VecDeque<Moment>,
    /// Marks' sequences whose position the stream has not reached.
    held_sequences: VecDeque<(Lsn, Vec<SequenceSample>)>,
    relations: HashMap<Oid, Relation>,
    types: HashMap<Oid, String>,
    /// What the open transaction has shown of DDL.
    altering: Option<What>,
    /// Relations that DDL which was told of has touched since they were described.
    touched: HashSet<u32>,
    xid: Option<Xid>,
    /// Transactions with DDL that have come and nobody has taken note of.
    ddl: Vec<Ddl>,
    /// Nothing that has come was committed later.
    latest: PgTimestamp,
}

/// What every segment of this lineage has in common.
pub(crate) struct Place {
    pub(crate) store: SourceStore,
    pub(crate) lineage: LineageId,
    pub(crate) server_version: u32,
    /// What the stream is sent in.
    pub(crate) encoding: String,
    pub(crate) spool_folder: PathBuf,
}

struct Writing {
    writer: SegmentWriter<SealerBeside<Spool>>,
    /// Relations whose current description is in this segment.
    described: HashSet<Oid>,
    /// The relation of the row before: rows come in runs.
    last_described: Option<Oid>,
    /// The spool's length; the spool itself is below writer and sealer.
    spooled: Arc<AtomicU64>,
    since: Instant,
}

/// What a mark says of the commits on both sides of its position.
struct Moment {
    lsn: Lsn,
    clock: PgTimestamp,
    until: PgTimestamp,
}

/// A transaction of another server was committed on this one between these two moments.
#[derive(Clone, Copy)]
struct Replicated {
    after: PgTimestamp,
    until: PgTimestamp,
}

/// A segment that is cut: it can only be uploaded.
pub(crate) struct SealedSegment {
    pub(crate) key: SegmentKey,
    pub(crate) body: SealedBody,
    pub(crate) transactions: u64,
    pub(crate) ndjson_bytes: u64,
    pub(crate) stored_bytes: u64,
}

impl OpenSegment {
    pub(crate) fn new(
        place: Place,
        start: Lsn,
        observed_through: Option<PgTimestamp>,
        latest: Option<PgTimestamp>,
    ) -> Self {
        Self {
            place,
            start,
            end: start,
            writing: None,
            pending: None,
            in_transaction: false,
            replicated: None,
            observed_through,
            marks: VecDeque::new(),
            held_sequences: VecDeque::new(),
            relations: HashMap::new(),
            types: HashMap::new(),
            altering: None,
            touched: HashSet::new(),
            xid: None,
            ddl: Vec::new(),
            latest: latest.unwrap_or(PgTimestamp::MIN),
        }
    }

    /// A mark's clock would count if it were cut now.
    pub(crate) fn covers_a_mark(&self) -> bool {
        self.marks.front().is_some_and(|mark| mark.lsn <= self.end)
    }

    pub(crate) fn start(&self) -> Lsn {
        self.start
    }

    pub(crate) fn end(&self) -> Lsn {
        self.end
    }

    /// It may be cut here: no transaction is open and the position has moved.
    pub(crate) fn can_cut(&self) -> bool {
        !self.in_transaction && self.end > self.start
    }

    pub(crate) fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// The transactions with DDL that have come since this was asked last.
    pub(crate) fn take_ddl(&mut self) -> impl Iterator<Item = Ddl> {
        self.ddl.drain(..)
    }

    /// NDJSON so far.
    pub(crate) fn ndjson_bytes(&self) -> u64 {
        self.writing
            .as_ref()
            .map_or(0, |writing| writing.writer.bytes())
    }

    /// Sealed bytes so far, in memory or on disk.
    pub(crate) fn spooled_bytes(&self) -> u64 {
        self.writing
            .as_ref()
            .map_or(0, |writing| writing.spooled.load(Ordering::Relaxed))
    }

    /// When the first record was written.
    pub(crate) fn since(&self) -> Option<Instant> {
        self.writing.as_ref().map(|writing| writing.since)
    }

    /// Takes one message of the walsender in.
    pub(crate) fn take(&mut self, message: &ReplicationMessage) -> Result<(), Error> {
        match message {
            ReplicationMessage::Keepalive { wal_end, .. } => {
                // Inside a transaction it says nothing: its rows came, its COMMIT did not.
                if !self.in_transaction {
                    self.end = self.end.max(*wal_end);
                }
                self.sequences()
            }
            ReplicationMessage::XLogData { data, clock, .. } => {
                let message = pgoutput::decode_in(data, &self.place.encoding)
                    .map_err(|error| Error::Stream(format!("pgoutput: {error}")))?;
                self.record(message, *clock)
            }
        }
    }

    fn record(&mut self, message: Message<'_>, sent: PgTimestamp) -> Result<(), Error> {
        match message {
            Message::Begin(begin) => {
                if self.in_transaction {
                    return Err(Error::Stream("BEGIN inside a transaction".to_owned()));
                }
                if begin.commit_lsn < self.start {
                    return Err(Error::Stream(format!(
                        "transaction {} committed at {}, before {}, which was asked for",
                        begin.xid, begin.commit_lsn, self.start
                    )));
                }
                self.in_transaction = true;
                self.xid = Some(begin.xid);
                self.pending = Some(begin);
                Ok(())
            }
            Message::Commit(mut commit) => {
                if !self.in_transaction {
                    return Err(Error::Stream("COMMIT outside a transaction".to_owned()));
                }
                self.in_transaction = false;
                let until = self.replicated.map(|replicated| replicated.until);
                if let Some(replicated) = self.replicated.take() {
                    commit.commit_time = replicated.after;
                } else {
                    let time = commit.commit_time.as_micros();
                    let observed = time.saturating_sub(CLOCK_SLACK_MICROS);
                    let observed = Some(PgTimestamp::from_micros(observed));
                    self.observed_through = self.observed_through.max(observed);
                }
                if self.pending.take().is_none() {
                    let writing = self.writing()?;
                    writing.writer.commit(&commit).map_err(broken)?;
                }
                self.latest = self.latest.max(until.unwrap_or(commit.commit_time));
                if let (Some(what), Some(xid)) = (self.altering.take(), self.xid) {
                    self.ddl.push(Ddl {
                        xid,
                        lsn: commit.commit_lsn,
                        time: commit.commit_time,
                        by: self.latest,
                        what,
                    });
                }
                self.end = self.end.max(commit.end_lsn);
                self.sequences()
            }
            Message::Origin(_) => {
                // The commit time of such a transaction is that of the server it came from, by
                // that server's clock, and no other is sent. What is known is the last moment
                // before it, and that it was committed when it was sent, or when a mark beyond it
                // was taken: a stream may lag.
                if let Some(begin) = &mut self.pending {
                    let marks = self.marks.iter();
                    let before = marks.clone().filter(|mark| mark.lsn <= begin.commit_lsn);
                    let known = before.map(|mark| mark.clock).max();
                    let known = known.max(self.observed_through);
                    let mut behind = marks.filter(|mark| mark.lsn > begin.commit_lsn);
                    let until = behind.next().map_or(sent, |mark| mark.until.min(sent));
                    // At the very begin of a lineage nothing is: then it is any moment before all others.
                    let after = known.unwrap_or(PgTimestamp::from_micros(0));
                    begin.commit_time = after;
                    let until = after.max(until);
                    self.replicated = Some(Replicated { after, until });
                }
                Ok(())
            }
            Message::Type(named) => {
                let name = format!("{}.{}", named.schema, named.name);
                self.types.insert(named.oid, name);
                Ok(())
            }
            Message::Relation(relation) => {
                if let Some(writing) = &mut self.writing {
                    writing.described.remove(&relation.oid);
                    writing.last_described = None;
                }
                let known = self.relations.get(&relation.oid);
                // Outside, it was only shown: what was in between has been left out.
                if self.in_transaction && known.is_some_and(|known| *known != relation) {
                    let is_told = self.touched.remove(&relation.oid.get());
                    let altering = self.altering.get_or_insert_default();
                    altering.untold |= !is_told;
                }
                self.relations.insert(relation.oid, relation);
                Ok(())
            }
            Message::Insert(insert) => {
                let writer = self.row(insert.relation)?;
                writer.insert(&insert).map_err(broken)
            }
            Message::Update(update) => {
                let writer = self.row(update.relation)?;
                writer.update(&update).map_err(broken)
            }
            Message::Delete(delete) => {
                let writer = self.row(delete.relation)?;
                writer.delete(&delete).map_err(broken)
            }
            Message::Truncate(truncate) => {
                for oid in &truncate.relations {
                    self.row(*oid)?;
                }
                self.begun()?.writer.truncate(&truncate).map_err(broken)
            }
            Message::Message(message) => {
                if message.transactional {
                    if message.prefix == ddl::PREFIX {
                        let touched = self.altering.get_or_insert_default().note(message.content);
                        let known = self.relations.keys().map(|oid| oid.get());
                        self.touched.extend(match touched {
                            Some(touched) => known
                                .filter(|oid| touched.contains(oid))
                                .collect::<Vec<_>>(),
                            None => known.collect(),
                        });
                    }
                    return self.begun()?.writer.message(&message).map_err(broken);
                }
                // One that belongs to no transaction comes between two of them. Its LSN is its
                // record's end (`logicalmsg_decode`), where the next COMMIT may begin.
                self.writing()?.writer.message(&message).map_err(broken)?;
                self.end = self.end.max(message.lsn);
                self.sequences()
            }
        }
    }

    /// A mark was taken: its clock counts as soon as a segment's end reaches its LSN.
    pub(crate) fn mark(&mut self, mark: Mark, sequences_changed: bool) -> Result<(), Error> {
        self.marks.push_back(Moment {
            lsn: mark.lsn,
            clock: mark.clock,
            until: mark.until,
        });
        if sequences_changed {
            // A restore compares neighbours to see that a sequence was set back, so as many are kept as
            // there is room for; a stream that lags further behind than that misses some.
            self.held_sequences.truncate(HELD_SAMPLES_MAX - 1);
            self.held_sequences.push_back((mark.lsn, mark.sequences));
        }
        self.sequences()
    }

    /// Writes the samples whose position is reached, between transactions. What [`Self::seal`] writes
    /// before is not enough: a base that is taken ahead of the stream makes a restore begin behind that
    /// segment, and what was sampled once is not written again while it stays so.
    fn sequences(&mut self) -> Result<(), Error> {
        while !self.in_transaction
            && let Some((lsn, samples)) = self
                .held_sequences
                .pop_front_if(|(lsn, _)| *lsn <= self.end)
        {
            let writing = self.writing()?;
            writing.writer.sequences(lsn, &samples).map_err(broken)?;
        }
        Ok(())
    }

    /// The writer, inside a begun transaction, with `relation` described.
    fn row(&mut self, relation: Oid) -> Result<&mut SegmentWriter<SealerBeside<Spool>>, Error> {
        self.begun()?;
        let described = self.writing.as_ref().is_some_and(|writing| {
            writing.last_described == Some(relation) || writing.described.contains(&relation)
        });
        if !described {
            let known = self.relations.get(&relation).ok_or_else(|| {
                Error::Stream(format!(
                    "a row of relation {relation}, which was never described"
                ))
            })?;
            let names: Vec<String> = known
                .columns
                .iter()
                .map(|column| self.type_name(column.type_oid))
                .collect();
            let known = known.clone();
            let writing = self.writing()?;
            writing.writer.relation(&known, &names).map_err(broken)?;
            writing.described.insert(relation);
        }
        let writing = self.writing()?;
        writing.last_described = Some(relation);
        Ok(&mut writing.writer)
    }

    fn type_name(&self, oid: Oid) -> String {
        match tokio_postgres::types::Type::from_oid(oid.get()) {
            Some(built_in) => built_in.name().to_owned(),
            None => self
                .types
                .get(&oid)
                .cloned()
                .unwrap_or_else(|| oid.to_string()),
        }
    }

    /// Inside a transaction whose B is written.
    fn begun(&mut self) -> Result<&mut Writing, Error> {
        if !self.in_transaction {
            return Err(Error::Stream("a change outside a transaction".to_owned()));
        }
        let pending = self.pending.take();
        let until = self.replicated.map(|replicated| replicated.until);
        let writing = self.writing()?;
        if let Some(begin) = pending {
            writing
                .writer
                .begin_between(&begin, until)
                .map_err(broken)?;
        }
        Ok(writing)
    }

    fn writing(&mut self) -> Result<&mut Writing, Error> {
        if self.writing.is_none() {
            self.writing = Some(self.place.open(self.start)?);
        }
        self.writing
            .as_mut()
            .ok_or_else(|| Error::Stream("no segment is open".to_owned()))
    }

    /// Cuts here and begins the next segment. Only when [`Self::can_cut`].
    pub(crate) fn seal(&mut self) -> Result<SealedSegment, Error> {
        let mut writing = match self.writing.take() {
            Some(writing) => writing,
            None => self.place.open(self.start)?,
        };
        // What a sequence gave for a row in here is in no sample of a position in here, and the one
        // that waits for the stream is gone if this process ends now. So it is written here as well.
        if let Some((lsn, samples)) = self.held_sequences.front() {
            writing.writer.sequences(*lsn, samples).map_err(broken)?;
        }
        while let Some(mark) = self.marks.pop_front_if(|mark| mark.lsn <= self.end) {
            self.observed_through = self.observed_through.max(Some(mark.clock));
        }
        let (sealer, footer) = writing
            .writer
            .finish(self.end, self.observed_through)
            .map_err(broken)?;
        let spool = sealer.finish().map_err(|error| self.place.spool(error))?;
        let body = spool.into_body();
        let key = SegmentKey {
            start: self.start,
            end: self.end,
            max_commit_time: footer.commit_times.map(|times| times.max),
            observed_through: self.observed_through,
            kind: SegmentKind::Captured,
        };
        self.start = self.end;
        Ok(SealedSegment {
            key,
            transactions: footer.transactions,
            ndjson_bytes: footer.bytes,
            stored_bytes: body.bytes(),
            body,
        })
    }
}

impl Place {
    fn open(&self, start: Lsn) -> Result<Writing, Error> {
        // Only lineage and start bind the body; the rest of its name is known when it is cut.
        let object = SourceObject::Segment(
            self.lineage,
            SegmentKey {
                start,
                end: start,
                max_commit_time: None,
                observed_through: None,
                kind: SegmentKind::Captured,
            },
        );
        let spool = Spool::new(self.spool_folder.clone());
        let spooled = spool.counter();
        let sealer = self.store.sealer(&object, spool, COMPRESSION_LEVEL)?;
        let header = Header {
            source: self.store.id(),
            lineage: self.lineage,
            start,
            server: self.server_version,
            encoding: Some(self.encoding.clone()),
        };
        Ok(Writing {
            writer: SegmentWriter::new(SealerBeside::new(sealer), &header).map_err(broken)?,
            described: HashSet::new(),
            last_described: None,
            spooled,
            since: Instant::now(),
        })
    }

    fn spool(&self, source: std::io::Error) -> Error {
        Error::Spool {
            folder: self.spool_folder.display().to_string(),
            source,
        }
    }
}

/// What the writer refuses is the stream's fault, unless the spool below it is full.
fn broken(error: WriteError) -> Error {
    match error {
        WriteError::Sink(source) => Error::Spool {
            folder: "the spool folder".to_owned(),
            source,
        },
        other => Error::Stream(other.to_string()),
    }
}
