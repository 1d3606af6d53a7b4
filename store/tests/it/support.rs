//! What every test here needs: names, bodies, repositories.

use std::io::Write;

use bytes::Bytes;
use lastgood_proto::key::{ArchiveName, SegmentKey, SegmentKind};
use lastgood_proto::manifest::{SourceFile, Version1};
use lastgood_proto::{BaseId, LineageId, Lsn, PgTimestamp, SourceId, SystemId};
use lastgood_store::{
    Backend, Encryption, MasterKey, Repository, Result, SealedBody, SourceObject, SourceStore,
};

pub(crate) fn source_id() -> SourceId {
    SourceId::from_bytes([0, 1, 2, 3, 4, 5, 6, 7])
}

pub(crate) fn lineage() -> LineageId {
    LineageId::new(1, 0xC0FFEE)
}

pub(crate) fn segment(start: u64, end: u64) -> SourceObject {
    let key = SegmentKey {
        start: Lsn::new(start),
        end: Lsn::new(end),
        max_commit_time: Some(PgTimestamp::from_micros(1)),
        observed_through: None,
        kind: SegmentKind::Captured,
    };
    SourceObject::Segment(lineage(), key)
}

pub(crate) fn archive(nonce: u32) -> SourceObject {
    SourceObject::Archive(
        lineage(),
        BaseId::new(Lsn::new(16), nonce),
        ArchiveName::Main,
    )
}

pub(crate) fn source_file() -> SourceFile {
    SourceFile {
        v: Version1,
        id: source_id(),
        name: "shop".to_owned(),
        database: "shop".to_owned(),
        system_id: SystemId::new(7),
        created: PgTimestamp::from_micros(0),
    }
}

/// Bytes that do not compress.
pub(crate) fn noise(bytes: usize) -> Vec<u8> {
    let mut noise = vec![0; bytes];
    getrandom::fill(&mut noise).unwrap();
    noise
}

/// An encrypted repository on `backend` with one described source in it.
pub(crate) async fn encrypted(backend: &Backend) -> (MasterKey, SourceStore) {
    let master = MasterKey::generate().unwrap();
    let repository = Repository::create_or_open_on(backend.clone(), Encryption::On(master.clone()))
        .await
        .unwrap();
    let store = repository.create_source(source_id()).await.unwrap();
    store
        .put_json(&SourceObject::Source, &source_file())
        .await
        .unwrap();
    (master, store)
}

pub(crate) fn seal(store: &SourceStore, object: &SourceObject, plain: &[u8]) -> Bytes {
    let mut sealer = store.sealer(object, Vec::new(), 3).unwrap();
    sealer.write_all(plain).unwrap();
    sealer.finish().unwrap().into()
}

pub(crate) fn body(bytes: &Bytes) -> SealedBody {
    SealedBody::Memory(bytes.clone())
}

pub(crate) async fn read(store: &SourceStore, object: &SourceObject) -> Result<Vec<u8>> {
    let mut reader = store.open(object).await?;
    let mut plain = Vec::new();
    while let Some(chunk) = reader.next_chunk().await? {
        plain.extend_from_slice(&chunk);
    }
    Ok(plain)
}
