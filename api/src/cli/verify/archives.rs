//! Archives of a base: the digest of what was written, and whether `pg_restore` can list it. Both in
//! one reading.

use lastgood_pg::PgTools;
use lastgood_pg::dump::ArchiveMaker;
use lastgood_proto::key::{ArchiveName, SourceObject};
use lastgood_proto::manifest::{Archive, BaseManifest};
use lastgood_proto::{BaseId, LineageId, Sha256};
use lastgood_store::SourceStore;
use tokio::io::AsyncWriteExt as _;

use crate::http::chain;

/// What the tool has not taken yet.
const PIPE_BYTES: usize = 128 << 10;

/// The tools of this machine.
pub(super) struct Lister {
    found: Vec<PgTools>,
}

/// What an archive turned out to be.
pub(super) enum Checked {
    Listed,
    /// SQL text, which nothing lists.
    Text,
    /// No tool here reads it, and why.
    NotListed(String),
}

impl Lister {
    pub(super) async fn new() -> Self {
        Self {
            found: PgTools::discover().await,
        }
    }

    /// Reads an archive to its end.
    pub(super) async fn check(
        &self,
        store: &SourceStore,
        (lineage, base): (LineageId, BaseId),
        manifest: &BaseManifest,
        archive: &Archive,
    ) -> Result<Checked, String> {
        let object = SourceObject::Archive(lineage, base, archive.name);
        let mut reader = store.open(&object).await.map_err(|error| chain(&error))?;
        let (mut pipe, mut listing) = (None, None);
        let checked = match (archive.name, self.tools(manifest)) {
            (ArchiveName::Globals | ArchiveName::Rows(..), _) => Checked::Text,
            (_, Err(why)) => Checked::NotListed(why),
            (_, Ok(tools)) => {
                let (feed, head) = tokio::io::duplex(PIPE_BYTES);
                pipe = Some(feed);
                let list = async move { tools.list(head).await.map(drop) };
                listing = Some(tokio::spawn(list));
                Checked::Listed
            }
        };
        let (mut digest, mut bytes) = (Sha256::new(), 0);
        while let Some(chunk) = reader.next_chunk().await.map_err(|error| chain(&error))? {
            digest.update(&chunk);
            bytes += chunk.len() as u64;
            // The tool leaves when it has seen enough, or there is none; the rest is read to be verified.
            if let Some(open) = &mut pipe
                && open.write_all(&chunk).await.is_err()
            {
                pipe = None;
            }
        }
        drop(pipe);
        if bytes != archive.bytes || digest.digest().to_string() != archive.sha256 {
            return Err("it is not the one that its manifest names".to_owned());
        }
        if let Some(listing) = listing {
            let listed = listing.await.map_err(|error| chain(&error))?;
            listed.map_err(|error| format!("it cannot be listed: {}", chain(&error)))?;
        }
        Ok(checked)
    }

    fn tools(&self, manifest: &BaseManifest) -> Result<PgTools, String> {
        let version = manifest.pg_dump_version.as_str();
        let end = version
            .find(|letter: char| !letter.is_ascii_digit())
            .unwrap_or(version.len());
        let maker = ArchiveMaker(version[..end].parse().unwrap_or(u32::MAX));
        PgTools::for_restore(&self.found, manifest.server_version, maker)
            .map_err(|error| chain(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lastgood_proto::manifest::Version1;
    use lastgood_proto::{Lsn, PgTimestamp, SourceId};
    use lastgood_store::{Backend, Encryption, Repository};

    /// A store with one archive, and a manifest that says what it is.
    async fn archive(content: &[u8]) -> (SourceStore, LineageId, BaseManifest) {
        let repository = Repository::create_or_open_on(Backend::memory(), Encryption::Off);
        let store = repository
            .await
            .unwrap()
            .create_source(SourceId::from_bytes([7; 8]))
            .await
            .unwrap();
        let (lineage, id) = (LineageId::new(1, 1), BaseId::new(Lsn::new(1), 1));
        let object = SourceObject::Archive(lineage, id, ArchiveName::Main);
        let mut writer = store.put_stream(&object).await.unwrap();
        writer.write(content).await.unwrap();
        let stored_bytes = writer.finish().await.unwrap();
        let manifest = BaseManifest {
            v: Version1,
            id,
            consistent_point: Lsn::new(1),
            fingerprint: String::new(),
            definitions: None,
            snapshot_time: PgTimestamp::from_micros(0),
            started: PgTimestamp::from_micros(0),
            finished: PgTimestamp::from_micros(0),
            server_version: 130_000,
            pg_dump_version: "13.1".to_owned(),
            database: "shop".to_owned(),
            encoding: "UTF8".to_owned(),
            locale: None,
            settings: Vec::new(),
            archives: vec![Archive {
                name: ArchiveName::Main,
                table: None,
                parts: None,
                bytes: content.len() as u64,
                stored_bytes,
                sha256: Sha256::of(content).to_string(),
            }],
            borrowed: Vec::new(),
            tables: Vec::new(),
            sequences: Vec::new(),
            large_objects: 0,
            snapshot_xmin: None,
        };
        (store, lineage, manifest)
    }

    async fn check(lister: &Lister, content: &[u8]) -> Result<Checked, String> {
        let (store, lineage, manifest) = archive(content).await;
        let place = (lineage, manifest.id);
        lister
            .check(&store, place, &manifest, &manifest.archives[0])
            .await
    }

    /// The digest is right, and still no restore would come of it.
    #[tokio::test]
    async fn what_no_pg_restore_lists_is_no_archive() {
        let lister = Lister::new().await;
        if lister.found.is_empty() {
            panic!("no pg_restore was found: run `make test`, or set LASTGOOD_PG_BIN_DIRS");
        }
        for content in [&b"PGDMP and then nothing of it"[..], &[0; 1 << 20]] {
            let refused = check(&lister, content).await;
            assert!(matches!(refused, Err(why) if why.contains("cannot be listed")));
        }
    }

    #[tokio::test]
    async fn without_a_pg_restore_it_is_said_to_be_unverified() {
        let lister = Lister { found: Vec::new() };
        let checked = check(&lister, b"whatever").await;
        assert!(matches!(checked, Ok(Checked::NotListed(why)) if why.contains("pg_restore")));
        // The digest is compared all the same.
        let (store, lineage, mut manifest) = archive(b"whatever").await;
        manifest.archives[0].sha256 = "00".repeat(32);
        let place = (lineage, manifest.id);
        let other = lister
            .check(&store, place, &manifest, &manifest.archives[0])
            .await;
        assert!(matches!(other, Err(why) if why.contains("manifest")));
    }
}
