//! Segments, decoded on a thread of their own, ahead of whoever takes the records.
//!
//! To fetch, decrypt, inflate, hash and parse a row costs as much as to do something with it. Memory: what
//! is decoded ahead is at most two batches, or one record that is larger than those.

use std::vec::IntoIter;

use lastgood_proto::segment::{Footer, Header, ReadError, Record};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::Error;
use crate::segments::Segments;

/// A batch ends at either; a longer record is one of its own.
const BATCH_RECORDS: usize = 512;
const BATCH_BYTES: usize = 256 << 10;

/// Segments one after another, for a thread that may block.
pub(crate) struct DecodedSegments {
    state: State,
    runtime: Handle,
}

enum State {
    /// Nothing is fetched before the first is asked for.
    Waiting(Segments),
    /// Ends by itself when nobody takes its pieces any more.
    Decoding {
        pieces: mpsc::Receiver<Piece>,
        thread: Option<JoinHandle<Result<(), Error>>>,
    },
    Failed,
}

/// Of each segment in this order; records any number of times.
enum Piece {
    Header(Header),
    Records(Vec<Record>),
    End(Footer),
}

/// A segment whose header has been read.
pub(crate) struct Decoded<'a> {
    segments: &'a mut DecodedSegments,
    header: Header,
    records: IntoIter<Record>,
    footer: Option<Footer>,
}

impl DecodedSegments {
    /// Must be called within a runtime.
    pub(crate) fn new(segments: Segments) -> Self {
        Self {
            state: State::Waiting(segments),
            runtime: Handle::current(),
        }
    }

    /// The next segment; none after the last. The one before must have been read to its end. Blocks.
    pub(crate) fn next(&mut self) -> Result<Option<Decoded<'_>>, Error> {
        match self.piece()? {
            None => Ok(None),
            Some(Piece::Header(header)) => Ok(Some(Decoded {
                segments: self,
                header,
                records: Vec::new().into_iter(),
                footer: None,
            })),
            Some(Piece::Records(_) | Piece::End(_)) => Err(ReadError::Unusable.into()),
        }
    }

    fn piece(&mut self) -> Result<Option<Piece>, Error> {
        if let State::Waiting(_) = self.state
            && let State::Waiting(segments) = std::mem::replace(&mut self.state, State::Failed)
        {
            let (sender, pieces) = mpsc::channel(1);
            let runtime = self.runtime.clone();
            let decode = move || decode(segments, &runtime, &sender);
            let thread = Some(self.runtime.spawn_blocking(decode));
            self.state = State::Decoding { pieces, thread };
        }
        let State::Decoding { pieces, thread } = &mut self.state else {
            return Err(ReadError::Unusable.into());
        };
        if let Some(piece) = pieces.blocking_recv() {
            return Ok(Some(piece));
        }
        // What it was given up for, once.
        if let Some(thread) = thread.take() {
            let ended = self.runtime.block_on(thread);
            if !matches!(ended, Ok(Ok(()))) {
                self.state = State::Failed;
            }
            ended??;
        }
        Ok(None)
    }
}

impl Decoded<'_> {
    pub(crate) const fn header(&self) -> &Header {
        &self.header
    }

    /// The next record; none at the end, where the segment agrees with its footer. Blocks.
    pub(crate) fn next(&mut self) -> Result<Option<Record>, Error> {
        while self.footer.is_none() {
            if let Some(record) = self.records.next() {
                return Ok(Some(record));
            }
            match self.segments.piece()? {
                Some(Piece::Records(records)) => self.records = records.into_iter(),
                Some(Piece::End(footer)) => self.footer = Some(footer),
                Some(Piece::Header(_)) | None => return Err(ReadError::Unusable.into()),
            }
        }
        Ok(None)
    }

    /// Once [`Self::next`] has returned `None`.
    pub(crate) const fn footer(&self) -> Option<&Footer> {
        self.footer.as_ref()
    }
}

/// A piece that nobody takes is the end of it, and no error.
fn decode(
    mut segments: Segments,
    runtime: &Handle,
    sender: &mpsc::Sender<Piece>,
) -> Result<(), Error> {
    while let Some(mut segment) = segments.next()? {
        let header = segment.header().clone();
        if sender.blocking_send(Piece::Header(header)).is_err() {
            return Ok(());
        }
        let (mut records, mut bytes) = (Vec::new(), 0);
        while let Some(record) = segment.next()? {
            records.push(record);
            bytes += segment.line_bytes();
            if records.len() < BATCH_RECORDS && bytes < BATCH_BYTES {
                continue;
            }
            let batch = Piece::Records(std::mem::take(&mut records));
            if sender.blocking_send(batch).is_err() {
                return Ok(());
            }
            // A record of hundreds of megabytes has to be taken before the next is read.
            if bytes > 4 * BATCH_BYTES && runtime.block_on(sender.reserve()).is_err() {
                return Ok(());
            }
            bytes = 0;
        }
        let footer = segment.into_footer().ok_or(ReadError::Unusable)?;
        for piece in [Piece::Records(records), Piece::End(footer)] {
            if sender.blocking_send(piece).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
