//! Segments decoded ahead: each on a thread of its own, and handed over in their order.
//!
//! To fetch, decrypt, inflate, hash and parse a row costs as much as to do something with it, and no
//! segment depends on another for that. Memory: of each thread what an object's reader takes, and two
//! batches of records.

use std::collections::VecDeque;
use std::num::NonZero;
use std::vec::IntoIter;

use lastgood_proto::LineageId;
use lastgood_proto::key::{SegmentKey, SourceObject};
use lastgood_proto::segment::{Footer, Header, ReadError, Record, SegmentReader};
use lastgood_store::SourceStore;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::Error;
use crate::segments::open;

/// A batch ends at either; a longer record is one of its own.
const BATCH_RECORDS: usize = 512;
const BATCH_BYTES: usize = 256 << 10;
/// Beyond so many threads, whoever takes the records is what limits.
const THREADS_MAX: usize = 4;

/// Segments one after another, for a thread that may block.
pub(crate) struct DecodedSegments {
    store: SourceStore,
    lineage: LineageId,
    keys: VecDeque<SegmentKey>,
    decoding: VecDeque<Decoding>,
    threads: usize,
    runtime: Handle,
}

/// Ends by itself when nobody takes its pieces any more.
struct Decoding {
    pieces: mpsc::Receiver<Result<Piece, Error>>,
    thread: JoinHandle<()>,
}

/// In this order; records any number of times.
enum Piece {
    Header(Header),
    Records(Vec<Record>),
    End(Footer),
}

/// A segment whose header has been read.
pub(crate) struct Decoded {
    decoding: Decoding,
    header: Header,
    records: IntoIter<Record>,
    footer: Option<Footer>,
    runtime: Handle,
}

impl DecodedSegments {
    /// Must be called within a runtime.
    pub(crate) fn new(
        store: SourceStore,
        lineage: LineageId,
        keys: impl IntoIterator<Item = SegmentKey>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        Self {
            store,
            lineage,
            keys: keys.into_iter().collect(),
            decoding: VecDeque::new(),
            threads: cores.clamp(2, THREADS_MAX),
            runtime: Handle::current(),
        }
    }

    /// The next segment; none after the last. Blocks.
    pub(crate) fn next(&mut self) -> Result<Option<Decoded>, Error> {
        while self.decoding.len() < self.threads
            && let Some(key) = self.keys.pop_front()
        {
            let decoding = self.decode(key);
            self.decoding.push_back(decoding);
        }
        let Some(mut decoding) = self.decoding.pop_front() else {
            return Ok(None);
        };
        match decoding.next(&self.runtime)? {
            Piece::Header(header) => Ok(Some(Decoded {
                decoding,
                header,
                records: Vec::new().into_iter(),
                footer: None,
                runtime: self.runtime.clone(),
            })),
            Piece::Records(_) | Piece::End(_) => Err(ReadError::Unusable.into()),
        }
    }

    fn decode(&self, key: SegmentKey) -> Decoding {
        let (store, lineage, runtime) = (self.store.clone(), self.lineage, self.runtime.clone());
        let (sender, pieces) = mpsc::channel(1);
        let thread = self.runtime.spawn_blocking(move || {
            // A piece that nobody takes is the end of it, and no error.
            if let Err(Stopped::Failed(error)) = decode(&store, lineage, key, &runtime, &sender) {
                let _nobody = sender.blocking_send(Err(error));
            }
        });
        Decoding { pieces, thread }
    }
}

impl Decoding {
    fn next(&mut self, runtime: &Handle) -> Result<Piece, Error> {
        match self.pieces.blocking_recv() {
            Some(piece) => piece,
            None => {
                runtime.block_on(&mut self.thread)?;
                Err(ReadError::Unusable.into())
            }
        }
    }
}

impl Decoded {
    pub(crate) const fn header(&self) -> &Header {
        &self.header
    }

    /// The next record; none at the end, where the segment agrees with its footer. Blocks.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, Error> {
        while self.footer.is_none() {
            if let Some(record) = self.records.next() {
                return Ok(Some(record));
            }
            match self.decoding.next(&self.runtime)? {
                Piece::Records(records) => self.records = records.into_iter(),
                Piece::End(footer) => self.footer = Some(footer),
                Piece::Header(_) => return Err(ReadError::Unusable.into()),
            }
        }
        Ok(None)
    }

    /// Once [`Self::next`] has returned `None`.
    pub(crate) const fn footer(&self) -> Option<&Footer> {
        self.footer.as_ref()
    }
}

enum Stopped {
    Unwanted,
    Failed(Error),
}

impl<E: Into<Error>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

fn decode(
    store: &SourceStore,
    lineage: LineageId,
    key: SegmentKey,
    runtime: &Handle,
    sender: &mpsc::Sender<Result<Piece, Error>>,
) -> Result<(), Stopped> {
    let send = |piece| {
        sender
            .blocking_send(Ok(piece))
            .map_err(|_| Stopped::Unwanted)
    };
    let object = SourceObject::Segment(lineage, key);
    let object = runtime.block_on(open(store, &object))?;
    let expect = Some((store.id(), lineage, &key));
    let mut segment = SegmentReader::open(object.into_blocking(), expect)?;
    send(Piece::Header(segment.header().clone()))?;
    let (mut records, mut bytes) = (Vec::new(), 0);
    while let Some(record) = segment.next()? {
        records.push(record);
        bytes += segment.line_bytes();
        if records.len() == BATCH_RECORDS || bytes >= BATCH_BYTES {
            send(Piece::Records(std::mem::take(&mut records)))?;
            bytes = 0;
        }
    }
    send(Piece::Records(records))?;
    match segment.into_footer() {
        Some(footer) => send(Piece::End(footer)),
        None => Err(ReadError::Unusable.into()),
    }
}
