//! Writing an envelope: plain bytes in, the object's bytes out.

use std::io::{self, Write};

use zstd::stream::raw::CParameter;
use zstd::stream::write::Encoder;

use super::{CHUNK_BYTES, Header, ObjectCipher, SALT_BYTES, SEALED_CHUNK_BYTES};
use crate::error::{Error, Result};
use crate::keyring::DataKey;

/// Compresses what is written to it, encrypts it if the repository is encrypted, and passes the
/// result to `W`. Without [`Sealer::finish`] the result is cut off, and a reader refuses it.
pub struct Sealer<W: Write> {
    encoder: Encoder<'static, Stage<W>>,
}

impl<W: Write> Sealer<W> {
    /// In clear if there is no `key`. `level` is zstd's, held to 1 to 19: beyond, the window is
    /// larger than a reader grants.
    pub(crate) fn new(
        key: Option<&DataKey>,
        context: &str,
        mut sink: W,
        level: i32,
    ) -> Result<Self> {
        let spool = |source| Error::Spool {
            key: context.to_owned(),
            source,
        };
        let stage = match key {
            None => Stage::Clear(sink),
            Some(key) => {
                let mut salt = [0; SALT_BYTES];
                getrandom::fill(&mut salt).map_err(|_| Error::Random)?;
                let header = Header {
                    key_id: key.id(),
                    salt,
                };
                sink.write_all(&header.encode()).map_err(spool)?;
                Stage::Encrypted(Box::new(EncryptedStage {
                    sink,
                    cipher: ObjectCipher::new(key, &header, context),
                    chunk: Vec::with_capacity(SEALED_CHUNK_BYTES),
                }))
            }
        };
        let encoder = || {
            let mut encoder = Encoder::new(stage, level.clamp(1, 19))?;
            encoder.set_parameter(CParameter::ChecksumFlag(true))?;
            io::Result::Ok(encoder)
        };
        Ok(Self {
            encoder: encoder().map_err(spool)?,
        })
    }

    /// The sink, to see how much has reached it. What it is given must not be changed.
    pub fn sink(&self) -> &W {
        match self.encoder.get_ref() {
            Stage::Clear(sink) => sink,
            Stage::Encrypted(stage) => &stage.sink,
        }
    }

    /// For a sink that is drained as it fills.
    pub(crate) fn sink_mut(&mut self) -> &mut W {
        match self.encoder.get_mut() {
            Stage::Clear(sink) => sink,
            Stage::Encrypted(stage) => &mut stage.sink,
        }
    }

    /// Ends the frame and writes the last chunk.
    ///
    /// # Errors
    /// If the sink fails; what it holds then is no object.
    pub fn finish(self) -> io::Result<W> {
        match self.encoder.finish()? {
            Stage::Clear(sink) => Ok(sink),
            Stage::Encrypted(mut stage) => {
                stage.put_chunk(true)?;
                Ok(stage.sink)
            }
        }
    }
}

impl<W: Write> Write for Sealer<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.encoder.write(bytes)
    }

    /// Does nothing: nothing is durable before `finish`, and flushing would only compress worse.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// What the compressed bytes go through.
enum Stage<W> {
    Clear(W),
    Encrypted(Box<EncryptedStage<W>>),
}

struct EncryptedStage<W> {
    sink: W,
    cipher: ObjectCipher,
    /// Compressed bytes that are not sealed yet. A full chunk stays here until more comes, because
    /// only then is it known not to be the last.
    chunk: Vec<u8>,
}

impl<W: Write> EncryptedStage<W> {
    fn put_chunk(&mut self, last: bool) -> io::Result<()> {
        self.cipher.seal(&mut self.chunk, last);
        self.sink.write_all(&self.chunk)?;
        self.chunk.clear();
        Ok(())
    }
}

impl<W: Write> Write for Stage<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let stage = match self {
            Stage::Clear(sink) => return sink.write(bytes),
            Stage::Encrypted(stage) => stage,
        };
        if bytes.is_empty() {
            return Ok(0);
        }
        if stage.chunk.len() == CHUNK_BYTES {
            stage.put_chunk(false)?;
        }
        let taken = bytes.len().min(CHUNK_BYTES - stage.chunk.len());
        stage.chunk.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Stage::Clear(sink) => sink.flush(),
            Stage::Encrypted(stage) => stage.sink.flush(),
        }
    }
}
