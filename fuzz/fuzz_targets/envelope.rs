//! Any bytes as a stored object, in clear and encrypted, and a good one with a small change: it
//! opens to what was sealed or does not open.
#![no_main]

use std::sync::{Arc, LazyLock};

use futures::executor::block_on;
use lastgood_proto::SourceId;
use lastgood_proto::key::SourceObject;
use lastgood_store::{Backend, Encryption, MasterKey, Repository, SourceStore};
use libfuzzer_sys::fuzz_target;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

struct Fixture {
    objects: Arc<InMemory>,
    store: SourceStore,
    path: Path,
    /// Whole, as stored.
    good: Vec<u8>,
    encrypted: bool,
}

const CONTENT: &[u8] = b"{\"v\":1,\"name\":\"shop\"}";

static CLEAR: LazyLock<Fixture> = LazyLock::new(|| Fixture::new(Encryption::Off));
static SEALED: LazyLock<Fixture> =
    LazyLock::new(|| Fixture::new(Encryption::On(MasterKey::generate().expect("random bytes"))));

impl Fixture {
    fn new(encryption: Encryption) -> Self {
        let encrypted = matches!(encryption, Encryption::On(_));
        block_on(async {
            let objects = Arc::new(InMemory::new());
            let store: Arc<dyn ObjectStore> = Arc::clone(&objects) as _;
            let backend = Backend::from_object_store(store, "");
            let repository = Repository::create_or_open_on(backend, encryption)
                .await
                .expect("a new repository");
            let source = SourceId::from_bytes([1; 8]);
            let store = repository.create_source(source).await.expect("a source");
            let object = SourceObject::Source;
            let mut writer = store.put_stream(&object).await.expect("a writer");
            writer.write(CONTENT).await.expect("memory takes it");
            writer.finish().await.expect("memory takes it");
            let path = Path::from(store.path(&object));
            let got = objects.get(&path).await.expect("it is there");
            let good = got.bytes().await.expect("it is there").to_vec();
            Self {
                objects,
                store,
                path,
                good,
                encrypted,
            }
        })
    }

    /// What the object opens to, if it opens to its end.
    fn open(&self, stored: Vec<u8>) -> Option<Vec<u8>> {
        block_on(async {
            let stored = stored.into();
            self.objects.put(&self.path, stored).await.expect("memory");
            let mut reader = self.store.open(&SourceObject::Source).await.ok()?;
            let mut content = Vec::new();
            while let Some(chunk) = reader.next_chunk().await.ok()? {
                content.extend_from_slice(&chunk);
                // A zstd bomb is the caller's to bound; here it only costs time.
                if content.len() > 8 << 20 {
                    return None;
                }
            }
            Some(content)
        })
    }
}

fuzz_target!(|data: &[u8]| {
    CLEAR.open(data.to_vec());
    assert_eq!(SEALED.open(data.to_vec()), None);
    let Some((&[at, mask, cut], _)) = data.split_first_chunk::<3>() else {
        return;
    };
    for fixture in [&*CLEAR, &*SEALED] {
        let mut stored = fixture.good.clone();
        stored.truncate(stored.len() - usize::from(cut).min(stored.len()));
        let length = stored.len().max(1);
        if let Some(byte) = stored.get_mut(usize::from(at) % length) {
            *byte ^= mask;
        }
        let same = stored == fixture.good;
        let opened = fixture.open(stored);
        if same {
            assert_eq!(opened.as_deref(), Some(CONTENT));
        } else if let Some(opened) = opened {
            // In clear, a bit of the frame's header may change nothing.
            assert!(!fixture.encrypted && opened == CONTENT);
        }
    }
});
