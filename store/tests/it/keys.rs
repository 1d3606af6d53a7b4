//! Rotation of the master key, whole and interrupted.

use std::sync::Arc;

use lastgood_proto::SourceId;
use lastgood_proto::key::{Key, KeyId};
use lastgood_store::{
    Backend, Encryption, Error, MasterKey, Repository, Result, SourceObject, SourceStore,
};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::support::{body, encrypted, read, seal, segment, source_file, source_id};

async fn open(backend: &Backend, master: &MasterKey) -> Result<Repository> {
    Repository::open_on(backend.clone(), Encryption::On(master.clone())).await
}

async fn put(store: &SourceStore, start: u64, plain: &[u8]) {
    let object = segment(start, start + 1);
    let sealed = seal(store, &object, plain);
    store.put_sealed(&object, &body(&sealed)).await.unwrap();
}

#[tokio::test]
async fn after_a_rotation_only_the_new_key_opens() {
    let backend = Backend::memory();
    let (old, store) = encrypted(&backend).await;
    put(&store, 1, b"before").await;
    let second = SourceId::from_bytes([9; 8]);
    store.repository().create_source(second).await.unwrap();

    let new = MasterKey::generate().unwrap();
    let rotation = store
        .repository()
        .rotate_master_key(new.clone())
        .await
        .unwrap();
    assert_eq!(rotation.data_keys, 2);
    assert_eq!(
        (rotation.from, rotation.to),
        (old.fingerprint(), new.fingerprint())
    );
    assert_eq!(
        store.repository().master_fingerprint(),
        Some(new.fingerprint())
    );

    // The running service goes on, and its new sources are the new key's.
    put(&store, 2, b"after").await;
    let third = SourceId::from_bytes([10; 8]);
    store.repository().create_source(third).await.unwrap();

    let error = open(&backend, &old).await.err().unwrap();
    assert!(matches!(error, Error::WrongMasterKey { .. }), "{error:?}");
    let repository = open(&backend, &new).await.unwrap();
    let store = repository.source(source_id()).await.unwrap();
    assert_eq!(read(&store, &segment(1, 2)).await.unwrap(), b"before");
    assert_eq!(read(&store, &segment(2, 3)).await.unwrap(), b"after");
    repository.source(second).await.unwrap();
    repository.source(third).await.unwrap();

    // Again with the same key: nothing to do, nothing lost.
    let again = repository.rotate_master_key(new.clone()).await.unwrap();
    assert_eq!(again.data_keys, 3);
    open(&backend, &new)
        .await
        .unwrap()
        .source(third)
        .await
        .unwrap();
}

/// Interrupted at any point, a rotation leaves a repository that one of the keys opens, and is
/// finished by running it again.
#[tokio::test]
async fn an_interrupted_rotation_is_run_again() {
    let raw = Arc::new(InMemory::new());
    let shared: Arc<dyn ObjectStore> = Arc::<InMemory>::clone(&raw);
    let backend = Backend::from_object_store(shared, "");
    let (old, store) = encrypted(&backend).await;
    put(&store, 1, b"rows").await;
    let second = SourceId::from_bytes([9; 8]);
    let other = store.repository().create_source(second).await.unwrap();
    other
        .put_json(&SourceObject::Source, &source_file())
        .await
        .unwrap();
    let wraps = key_objects(&raw).await;
    assert_eq!(wraps.len(), 2);
    let new = MasterKey::generate().unwrap();
    store
        .repository()
        .rotate_master_key(new.clone())
        .await
        .unwrap();

    // As if it had stopped after the first deletion: one old wrap is back.
    for (path, content) in &wraps[..1] {
        raw.put(path, content.clone().into()).await.unwrap();
    }
    for master in [&old, &new] {
        let repository = open(&backend, master).await.unwrap();
        let rotation = repository.rotate_master_key(new.clone()).await.unwrap();
        assert_eq!(rotation.data_keys, 2);
        for (path, content) in &wraps[..1] {
            raw.put(path, content.clone().into()).await.unwrap();
        }
    }
    // As if it had stopped after the first new wrap: one of the new ones is missing again.
    for (path, content) in &wraps {
        raw.put(path, content.clone().into()).await.unwrap();
    }
    let newest = key_objects(&raw).await;
    let is_new = |path: &Path| {
        let key = Key::parse(path.as_ref());
        matches!(key, Ok(Key::DataKey(_, by)) if by == new.fingerprint())
    };
    let (path, _) = newest.iter().find(|(path, _)| is_new(path)).unwrap();
    raw.delete(path).await.unwrap();
    // The new key alone cannot go on from here, and says whose the rest is.
    let repository = open(&backend, &new).await.unwrap();
    let error = repository.rotate_master_key(new.clone()).await.unwrap_err();
    assert!(
        matches!(error, Error::WrongMasterKey { expected, .. } if expected == old.fingerprint()),
        "{error:?}"
    );
    let repository = open(&backend, &old).await.unwrap();
    repository.rotate_master_key(new.clone()).await.unwrap();
    let repository = open(&backend, &new).await.unwrap();
    let store = repository.source(source_id()).await.unwrap();
    assert_eq!(read(&store, &segment(1, 2)).await.unwrap(), b"rows");
    repository.source(second).await.unwrap();
    assert_eq!(key_objects(&raw).await.len(), 2);
}

async fn key_objects(raw: &InMemory) -> Vec<(Path, bytes::Bytes)> {
    use futures::TryStreamExt;

    let folder = Path::from("keys");
    let listed: Vec<_> = raw.list(Some(&folder)).try_collect().await.unwrap();
    let mut objects = Vec::new();
    for meta in listed {
        let content = raw.get(&meta.location).await.unwrap();
        objects.push((meta.location, content.bytes().await.unwrap()));
    }
    objects
}

/// Three of each, in turns: everything that was ever written is read, by whoever opens it last, and
/// each object is sealed with the data key of its time.
#[tokio::test]
async fn rotations_of_both_keys_leave_everything_readable() {
    let raw = Arc::new(InMemory::new());
    let shared: Arc<dyn ObjectStore> = Arc::<InMemory>::clone(&raw);
    let backend = Backend::from_object_store(shared, "");
    let (mut master, store) = encrypted(&backend).await;
    put(&store, 1, b"1").await;
    let mut start = 1;
    let mut sealed_with = vec![key_of(&raw, &store, 1).await];
    for round in 0..3 {
        // By the service while it runs, and with the repository alone.
        let service = open(&backend, &master).await.unwrap();
        let running = service.create_source(source_id()).await.unwrap();
        let rotating = match round {
            1 => open(&backend, &master).await.unwrap(),
            _ => service.clone(),
        };
        let rotation = rotating.rotate_data_key(source_id()).await.unwrap();
        assert_eq!(rotation.number, round + 1);
        let running = match round {
            1 => {
                let again = open(&backend, &master).await.unwrap();
                again.create_source(source_id()).await.unwrap()
            }
            _ => running,
        };
        start += 1;
        put(&running, start, start.to_string().as_bytes()).await;
        let key = key_of(&raw, &running, start).await;
        assert_eq!(key, rotation.key, "round {round}");
        assert!(!sealed_with.contains(&key));
        sealed_with.push(key);

        let new = MasterKey::generate().unwrap();
        let rotated = running.repository().rotate_master_key(new.clone()).await;
        let rotated = rotated.unwrap().data_keys;
        assert_eq!(rotated, sealed_with.len());
        let error = open(&backend, &master).await.err().unwrap().to_string();
        for fingerprint in [master.fingerprint(), new.fingerprint()] {
            assert!(error.contains(&fingerprint.to_string()), "{error}");
        }
        master = new;
        start += 1;
        put(&running, start, start.to_string().as_bytes()).await;
        assert_eq!(key_of(&raw, &running, start).await, key);
    }
    let repository = open(&backend, &master).await.unwrap();
    let store = repository.source(source_id()).await.unwrap();
    for at in 1..=start {
        let read = read(&store, &segment(at, at + 1)).await.unwrap();
        assert_eq!(read, at.to_string().as_bytes());
    }

    // Without its key an object is not read, and the error says which key is missing.
    let gone = sealed_with[1];
    let path = Key::DataKey(gone, master.fingerprint()).path();
    raw.delete(&Path::from(path)).await.unwrap();
    let store = repository.source(source_id()).await.unwrap();
    let error = read(&store, &segment(2, 3)).await.err().unwrap();
    assert!(matches!(error, Error::DataKeyMissing { id } if id == gone));
    assert!(error.to_string().contains(&gone.to_string()), "{error}");
    assert!(read(&store, &segment(4, 5)).await.is_ok());
}

/// The data key that the header of a stored segment names.
async fn key_of(raw: &InMemory, store: &SourceStore, start: u64) -> KeyId {
    let path = Path::from(store.path(&segment(start, start + 1)));
    let bytes = raw.get(&path).await.unwrap().bytes().await.unwrap();
    KeyId::from_bytes(bytes[16..24].try_into().unwrap())
}
