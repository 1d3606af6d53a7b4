//! Sealing beside the one who writes: what is long is compressed and encrypted on a thread of its own,
//! so that reading a stream and compressing it take the time of the longer of the two and not of both.
//!
//! What is short is sealed where it is written: the segment of a quiet second costs no thread.

use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use crate::envelope::Sealer;

/// A write below this, before any above it, is sealed at once.
const SHORT_BYTES: usize = 32 << 10;
/// Writes that wait for the thread. One more blocks the writer, so memory is bounded by these.
const WAITING_MAX: usize = 8;

/// A [`Sealer`] that may have gone to a thread. Dropped before [`SealerBeside::finish`], the thread ends
/// with what it has been given.
pub struct SealerBeside<W: Write + Send + 'static> {
    place: Place<W>,
}

enum Place<W: Write + Send + 'static> {
    Here(Sealer<W>),
    Beside(Thread<W>),
    /// After an error, which has been told.
    Lost,
}

struct Thread<W: Write + Send + 'static> {
    writes: SyncSender<Vec<u8>>,
    /// Buffers to be used again.
    spare: Receiver<Vec<u8>>,
    sealing: JoinHandle<io::Result<Sealer<W>>>,
}

impl<W: Write + Send + 'static> SealerBeside<W> {
    #[must_use]
    pub fn new(sealer: Sealer<W>) -> Self {
        Self {
            place: Place::Here(sealer),
        }
    }

    /// Waits for the thread, ends the frame and writes the last chunk.
    ///
    /// # Errors
    /// If the sink fails or has failed; what it holds then is no object.
    pub fn finish(self) -> io::Result<W> {
        match self.place {
            Place::Here(sealer) => sealer.finish(),
            Place::Beside(thread) => thread.join()?.finish(),
            Place::Lost => Err(lost()),
        }
    }
}

impl<W: Write + Send + 'static> Write for SealerBeside<W> {
    /// An error of the sink comes with a later write, or with [`SealerBeside::finish`].
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let thread = match std::mem::replace(&mut self.place, Place::Lost) {
            Place::Here(mut sealer) if bytes.len() < SHORT_BYTES => {
                sealer.write_all(bytes)?;
                self.place = Place::Here(sealer);
                return Ok(bytes.len());
            }
            Place::Here(sealer) => Thread::start(sealer)?,
            Place::Beside(thread) => thread,
            Place::Lost => return Err(lost()),
        };
        let mut buffer = thread.spare.try_recv().unwrap_or_default();
        buffer.extend_from_slice(bytes);
        if thread.writes.send(buffer).is_err() {
            // It ends before its time by an error only.
            return thread.join().and_then(|_| Err(lost()));
        }
        self.place = Place::Beside(thread);
        Ok(bytes.len())
    }

    /// Does nothing, as of a [`Sealer`].
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<W: Write + Send + 'static> Thread<W> {
    fn start(mut sealer: Sealer<W>) -> io::Result<Self> {
        let (writes, queue) = sync_channel::<Vec<u8>>(WAITING_MAX);
        let (used, spare) = sync_channel(WAITING_MAX + 1);
        let sealing = move || {
            for mut buffer in queue {
                sealer.write_all(&buffer)?;
                buffer.clear();
                // Where there is no room or nobody, it is dropped.
                let _ = used.try_send(buffer);
            }
            Ok(sealer)
        };
        let sealing = thread::Builder::new()
            .name("seal".to_owned())
            .spawn(sealing)?;
        Ok(Self {
            writes,
            spare,
            sealing,
        })
    }

    fn join(self) -> io::Result<Sealer<W>> {
        drop(self.writes);
        let ended = self.sealing.join();
        ended.map_err(|_| io::Error::other("the thread that seals has panicked"))?
    }
}

fn lost() -> io::Error {
    io::Error::other("sealing was given up after an earlier error")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fails at so many bytes.
    struct Full(usize);

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self.0.checked_sub(bytes.len()) {
                Some(left) => self.0 = left,
                None => return Err(io::ErrorKind::StorageFull.into()),
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn beside<W: Write + Send + 'static>(sink: W) -> SealerBeside<W> {
        SealerBeside::new(Sealer::new(None, "test", sink, 1).unwrap())
    }

    fn noise(bytes: usize) -> Vec<u8> {
        let mut noise = vec![0; bytes];
        getrandom::fill(&mut noise).unwrap();
        noise
    }

    #[test]
    fn pieces_of_any_length_come_out_in_order() {
        let mut sealer = beside(Vec::new());
        let mut all = Vec::new();
        for length in [1, 100, SHORT_BYTES, 7, 200_000, 0, SHORT_BYTES - 1].repeat(20) {
            let piece = noise(length);
            sealer.write_all(&piece).unwrap();
            all.extend(piece);
        }
        assert!(matches!(sealer.place, Place::Beside(_)));
        let sealed = sealer.finish().unwrap();
        assert!(zstd::decode_all(&sealed[..]).unwrap() == all);
    }

    #[test]
    fn what_is_short_takes_no_thread() {
        let mut sealer = beside(Vec::new());
        sealer.write_all(b"short").unwrap();
        assert!(matches!(sealer.place, Place::Here(_)));
        let sealed = sealer.finish().unwrap();
        assert_eq!(zstd::decode_all(&sealed[..]).unwrap(), b"short");
    }

    #[test]
    fn the_sinks_error_comes_back_once_and_stays() {
        let mut sealer = beside(Full(1 << 20));
        let failed = (0..100).find_map(|_| sealer.write_all(&noise(256 << 10)).err());
        assert_eq!(failed.unwrap().kind(), io::ErrorKind::StorageFull);
        assert!(sealer.write_all(b"x").is_err());
        assert!(sealer.finish().is_err());

        let mut sealer = beside(Full(10));
        sealer.write_all(&noise(256 << 10)).unwrap();
        assert_eq!(
            sealer.finish().err().unwrap().kind(),
            io::ErrorKind::StorageFull
        );
    }
}
