//! Writing an object whose size is not known before its end: a dump from a pipe.
//!
//! Memory: the parts on their way and the one being filled.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;

use crate::envelope::Sealer;
use crate::error::{Error, Result};
use crate::objects::{Multipart, Objects, SealedBody};

/// Seals what it is given and stores it. The object exists once [`ObjectWriter::finish`] returned;
/// dropped before, nothing of it stays, or an incomplete upload that the store forgets by its own
/// rules.
pub struct ObjectWriter {
    objects: Arc<Objects>,
    key: String,
    sealer: Sealer<Vec<u8>>,
    upload: Option<Multipart>,
    stored_bytes: u64,
}

impl ObjectWriter {
    pub(crate) async fn start(
        objects: Arc<Objects>,
        key: String,
        sealer: Sealer<Vec<u8>>,
    ) -> Result<Self> {
        objects.probe().await?;
        if objects.head(&key).await?.is_some() {
            return Err(Error::Conflict { key });
        }
        Ok(Self {
            objects,
            key,
            sealer,
            upload: None,
            stored_bytes: 0,
        })
    }

    /// Takes all of `bytes`; waits while too many parts are on their way.
    ///
    /// Not cancel-safe: after a cancelled write the object must be given up.
    ///
    /// # Errors
    /// If a part cannot be stored. The object must be given up.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.sealer
            .write_all(bytes)
            .map_err(|source| self.spool(source))?;
        let part_bytes = self.part_bytes();
        while self.sealer.sink().len() >= part_bytes {
            let sealed = self.sealer.sink_mut();
            let rest = sealed.split_off(part_bytes);
            let part = std::mem::replace(sealed, rest);
            self.send(part.into()).await?;
        }
        Ok(())
    }

    /// Creates the object and returns its stored size.
    ///
    /// # Errors
    /// [`Error::Conflict`] if somebody else created it in the meantime.
    pub async fn finish(self) -> Result<u64> {
        let Self {
            objects,
            key,
            sealer,
            upload,
            stored_bytes,
        } = self;
        let rest = sealer.finish().map_err(|source| Error::Spool {
            key: key.clone(),
            source,
        })?;
        let rest = Bytes::from(rest);
        let total = stored_bytes + rest.len() as u64;
        match upload {
            None => {
                objects.put_new(&key, &SealedBody::Memory(rest)).await?;
            }
            Some(mut upload) => {
                if !rest.is_empty()
                    && let Err(error) = upload.add(rest).await
                {
                    upload.abort().await;
                    return Err(error);
                }
                upload.complete(&objects).await?;
            }
        }
        Ok(total)
    }

    /// Gives the object up.
    pub async fn abort(mut self) {
        if let Some(upload) = &mut self.upload {
            upload.abort().await;
        }
    }

    async fn send(&mut self, part: Bytes) -> Result<()> {
        self.stored_bytes += part.len() as u64;
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => {
                let upload = Multipart::start(&self.objects, &self.key).await?;
                self.upload.insert(upload)
            }
        };
        upload.add(part).await
    }

    fn part_bytes(&self) -> usize {
        let bytes = self
            .upload
            .as_ref()
            .map_or(Multipart::FIRST_PART_BYTES, Multipart::part_bytes);
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    fn spool(&self, source: std::io::Error) -> Error {
        Error::Spool {
            key: self.key.clone(),
            source,
        }
    }
}
