//! Memory does not grow with an object. Alone in its process, because it measures the process.

use lastgood_proto::key::ArchiveName;
use lastgood_proto::{BaseId, LineageId, Lsn, SourceId};
use lastgood_store::{
    Encryption, MasterKey, Repository, RepositoryUrl, SourceObject, StorageOptions,
};

const OBJECT_BYTES: usize = 400 << 20;
const GROWTH_BYTES_MAX: u64 = 64 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_large_dump_goes_in_and_out_in_little_memory() {
    let folder = tempfile::tempdir().unwrap();
    let url = RepositoryUrl::local(folder.path());
    let options = StorageOptions::default();
    let encryption = Encryption::On(MasterKey::generate().unwrap());
    let repository = Repository::create_or_open(&url, &options, encryption)
        .await
        .unwrap();
    let store = repository
        .create_source(SourceId::from_bytes([1; 8]))
        .await
        .unwrap();
    let base = BaseId::new(Lsn::new(1), 1);
    let object = SourceObject::Archive(LineageId::new(1, 1), base, ArchiveName::Main);
    // Longer than zstd looks back, so it does not shrink.
    let mut noise = vec![0; 16 << 20];
    getrandom::fill(&mut noise).unwrap();

    let before = peak_bytes();
    let mut writer = store.put_stream(&object).await.unwrap();
    for _ in 0..OBJECT_BYTES / noise.len() {
        for piece in noise.chunks(64 * 1024) {
            writer.write(piece).await.unwrap();
        }
    }
    let stored = writer.finish().await.unwrap();
    assert!(stored >= OBJECT_BYTES as u64);

    let mut reader = store.open(&object).await.unwrap();
    let mut read = 0;
    while let Some(chunk) = reader.next_chunk().await.unwrap() {
        let start = read % noise.len();
        let first = chunk.len().min(noise.len() - start);
        assert_eq!(chunk[..first], noise[start..start + first]);
        read += chunk.len();
    }
    assert_eq!(read, OBJECT_BYTES);
    let growth = peak_bytes() - before;
    assert!(growth < GROWTH_BYTES_MAX, "memory grew by {growth} bytes");
}

/// The most memory this process ever had.
#[cfg(test)]
fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kilobytes = line.split_whitespace().nth(1).unwrap();
    kilobytes.parse::<u64>().unwrap() * 1024
}
