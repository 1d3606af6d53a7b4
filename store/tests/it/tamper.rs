//! Objects that are altered, cut off, swapped or gone; keys that are wrong or gone.

use std::sync::Arc;

use bytes::Bytes;
use futures::TryStreamExt;
use lastgood_proto::SourceId;
use lastgood_proto::key::Key;
use lastgood_proto::manifest::SourceFile;
use lastgood_store::{
    Backend, Class, Encryption, Error, MasterKey, Repository, SourceObject, SourceStore,
};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

use crate::support::{
    archive, body, encrypted, noise, read, seal, segment, source_file, source_id,
};

/// A repository whose bytes can be got at.
struct Exposed {
    raw: Arc<InMemory>,
    backend: Backend,
    master: MasterKey,
    store: SourceStore,
}

impl Exposed {
    async fn new() -> Self {
        let raw = Arc::new(InMemory::new());
        let shared: Arc<dyn ObjectStore> = Arc::<InMemory>::clone(&raw);
        let backend = Backend::from_object_store(shared, "some/prefix");
        let (master, store) = encrypted(&backend).await;
        Self {
            raw,
            backend,
            master,
            store,
        }
    }

    fn path(key: &str) -> Path {
        Path::parse(format!("some/prefix/{key}")).unwrap()
    }

    async fn get(&self, key: &str) -> Bytes {
        let got = self.raw.get(&Self::path(key)).await.unwrap();
        got.bytes().await.unwrap()
    }

    async fn set(&self, key: &str, bytes: impl Into<Bytes>) {
        let bytes: Bytes = bytes.into();
        self.raw.put(&Self::path(key), bytes.into()).await.unwrap();
    }

    async fn remove(&self, key: &str) {
        self.raw.delete(&Self::path(key)).await.unwrap();
    }

    async fn keys(&self) -> Vec<String> {
        let prefix = Self::path("keys");
        let listed: Vec<_> = self.raw.list(Some(&prefix)).try_collect().await.unwrap();
        let cut = "some/prefix/".len();
        listed
            .iter()
            .map(|meta| meta.location.as_ref()[cut..].to_owned())
            .collect()
    }

    async fn open(&self, master: &MasterKey) -> Result<Repository, Error> {
        Repository::open_on(self.backend.clone(), Encryption::On(master.clone())).await
    }
}

fn assert_corrupt(error: &Error, what: &str) {
    assert!(matches!(error, Error::Corrupt { .. }), "{what}: {error:?}");
    assert_eq!(error.class(), Class::Corrupt);
}

#[tokio::test]
async fn every_flipped_byte_and_every_truncation_is_an_error() {
    let exposed = Exposed::new().await;
    let key = exposed.store.path(&SourceObject::Source);
    let object = exposed.get(&key).await;
    let get = || exposed.store.get_json::<SourceFile>(&SourceObject::Source);
    for at in 0..object.len() {
        let mut altered = object.to_vec();
        altered[at] ^= 0x10;
        exposed.set(&key, altered).await;
        match get().await.unwrap_err() {
            // A flip in the key's id asks for a key that is not there.
            Error::DataKeyMissing { .. } if (16..24).contains(&at) => {}
            error => assert_corrupt(&error, &format!("byte {at}")),
        }
    }
    for length in 0..object.len() {
        exposed.set(&key, object.slice(..length)).await;
        assert_corrupt(&get().await.unwrap_err(), &format!("length {length}"));
    }
    exposed.set(&key, [&object[..], b"\n"].concat()).await;
    assert_corrupt(&get().await.unwrap_err(), "one more byte");
    exposed.set(&key, object).await;
    assert_eq!(get().await.unwrap(), source_file());
}

#[tokio::test]
async fn a_large_object_cut_at_any_chunk_is_an_error() {
    let exposed = Exposed::new().await;
    let object = archive(1);
    let plain = noise(9 << 20);
    let mut writer = exposed.store.put_stream(&object).await.unwrap();
    writer.write(&plain).await.unwrap();
    writer.finish().await.unwrap();
    let key = exposed.store.path(&object);
    let whole = exposed.get(&key).await;
    for chunk in 0..whole.len() / 65_552 {
        for around in [0, 1] {
            exposed
                .set(&key, whole.slice(..56 + chunk * 65_552 + around))
                .await;
            let error = read(&exposed.store, &object).await.unwrap_err();
            assert_corrupt(&error, &format!("chunk {chunk}"));
        }
    }
    exposed.set(&key, whole).await;
    assert_eq!(read(&exposed.store, &object).await.unwrap(), plain);
}

#[tokio::test]
async fn an_object_under_another_name_is_an_error() {
    let exposed = Exposed::new().await;
    let store = &exposed.store;
    for object in [segment(0x10, 0x20), segment(0x20, 0x30)] {
        let sealed = seal(store, &object, b"rows\n");
        store.put_sealed(&object, &body(&sealed)).await.unwrap();
    }
    let (first, second) = (
        store.path(&segment(0x10, 0x20)),
        store.path(&segment(0x20, 0x30)),
    );
    let (one, two) = (exposed.get(&first).await, exposed.get(&second).await);
    exposed.set(&first, two).await;
    exposed.set(&second, one.clone()).await;
    for object in [segment(0x10, 0x20), segment(0x20, 0x30)] {
        let error = read(store, &object).await.unwrap_err();
        assert_corrupt(&error, "swapped");
    }

    // Neither as an object of another kind, nor of another source.
    exposed.set(&store.path(&archive(1)), one.clone()).await;
    assert_corrupt(
        &read(store, &archive(1)).await.unwrap_err(),
        "as an archive",
    );
    let other = SourceId::from_bytes([9; 8]);
    let other = store.repository().create_source(other).await.unwrap();
    exposed.set(&other.path(&segment(0x10, 0x20)), one).await;
    let error = read(&other, &segment(0x10, 0x20)).await.unwrap_err();
    assert!(matches!(error, Error::Format { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Corrupt);
}

#[tokio::test]
async fn the_clear_form_is_never_taken_for_the_encrypted_one() {
    let exposed = Exposed::new().await;
    let clear = Repository::create_or_open_on(Backend::memory(), Encryption::Off)
        .await
        .unwrap();
    let clear = clear.create_source(source_id()).await.unwrap();
    let object = segment(0x10, 0x20);
    let sealed = seal(&clear, &object, b"rows\n");
    exposed.set(&clear.path(&object), sealed.clone()).await;
    assert!(exposed.store.list().await.unwrap().lineages.is_empty());
    exposed.set(&exposed.store.path(&object), sealed).await;
    let error = read(&exposed.store, &object).await.unwrap_err();
    assert_corrupt(&error, "clear bytes under an encrypted name");

    let text = exposed.get(&Key::Repository.path()).await;
    let text = String::from_utf8(text.to_vec()).unwrap();
    exposed
        .set("lastgood.json", text.replace("aes-256-gcm", "none"))
        .await;
    let error = exposed.open(&exposed.master).await.err().unwrap();
    assert!(matches!(error, Error::NotEncrypted), "{error:?}");
}

#[tokio::test]
async fn a_wrong_master_key_is_named_with_the_one_expected() {
    let exposed = Exposed::new().await;
    let wrong = MasterKey::generate().unwrap();
    let error = exposed.open(&wrong).await.err().unwrap();
    let text = error.to_string();
    assert!(
        text.contains(&exposed.master.fingerprint().to_string()),
        "{text}"
    );
    assert!(text.contains(&wrong.fingerprint().to_string()), "{text}");
    assert!(matches!(
        error,
        Error::WrongMasterKey { expected, given }
            if expected == exposed.master.fingerprint() && given == wrong.fingerprint()
    ));
}

#[tokio::test]
async fn a_missing_or_altered_key_object_is_an_error() {
    let exposed = Exposed::new().await;
    let keys = exposed.keys().await;
    let [key] = &keys[..] else {
        panic!("one key expected: {keys:?}")
    };
    let wrapped = exposed.get(key).await;
    exposed.remove(key).await;
    let repository = exposed.open(&exposed.master).await.unwrap();
    let error = repository.source(source_id()).await.err().unwrap();
    assert!(matches!(error, Error::DataKeyMissing { .. }), "{error:?}");
    assert_eq!(error.class(), Class::Corrupt);
    assert!(repository.sources().await.is_err());

    for at in 0..wrapped.len() {
        let mut altered = wrapped.to_vec();
        altered[at] ^= 0x01;
        // The line's end is the only byte that says nothing.
        if altered[at].is_ascii_whitespace() || at + 1 == wrapped.len() {
            continue;
        }
        exposed.set(key, altered).await;
        let repository = exposed.open(&exposed.master).await.unwrap();
        let opened = repository.source(source_id()).await;
        assert!(opened.is_err(), "byte {at}");
    }
    exposed.set(key, wrapped).await;
    let repository = exposed.open(&exposed.master).await.unwrap();
    assert_eq!(repository.sources().await.unwrap().len(), 1);
}

#[tokio::test]
async fn a_repository_of_a_newer_format_is_refused() {
    let exposed = Exposed::new().await;
    let text = exposed.get("lastgood.json").await;
    let text = String::from_utf8(text.to_vec()).unwrap();
    for (from, to) in [
        ("\"v\":1", "\"v\":2"),
        ("{", "{\"unknown\":1,"),
        ("aes-256-gcm", "aes-512"),
        ("}", ""),
    ] {
        exposed
            .set("lastgood.json", text.replacen(from, to, 1))
            .await;
        let error = exposed.open(&exposed.master).await.err().unwrap();
        assert!(matches!(error, Error::Format { .. }), "{error:?}");
    }
    exposed.set("lastgood.json", vec![b' '; 100_000]).await;
    let error = exposed.open(&exposed.master).await.err().unwrap();
    assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
}
