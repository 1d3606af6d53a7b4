//! Stores that ignore conditions, lose answers, or fail for a while.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use lastgood_store::{
    Backend, Class, ConditionalPut, Encryption, Error, Put, Repository, RepositoryUrl,
    SourceObject, SourceStore, StorageOptions,
};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

use crate::support::{body, noise, read, seal, segment, source_file, source_id};

/// What is wrong with puts.
#[derive(Debug, Clone, Copy)]
enum Fault {
    /// The condition is accepted and ignored.
    Careless,
    /// The condition is not known.
    Unknown,
    /// The next so many puts are done, and then reported as failed.
    LosesAnswers,
    /// The next so many puts fail.
    Fails,
}

#[derive(Debug)]
struct Faulty {
    inner: InMemory,
    fault: Fault,
    left: AtomicUsize,
}

impl Faulty {
    fn strikes(&self) -> bool {
        let take = |left: usize| left.checked_sub(1);
        let taken = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, take);
        taken.is_ok()
    }
}

fn broken() -> object_store::Error {
    object_store::Error::Generic {
        store: "faulty",
        source: "connection reset by peer".into(),
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {:?}", self.fault)
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        match (self.fault, &options.mode) {
            (Fault::Careless, PutMode::Create) => options.mode = PutMode::Overwrite,
            (Fault::Unknown, PutMode::Create) => {
                return Err(object_store::Error::Generic {
                    store: "faulty",
                    source: "Server returned non-2xx status code: 501 Not Implemented: ".into(),
                });
            }
            (Fault::Fails, _) if self.strikes() => return Err(broken()),
            (Fault::LosesAnswers, _) if self.strikes() => {
                self.inner.put_opts(path, payload, options).await?;
                return Err(broken());
            }
            _ => {}
        }
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

async fn on(fault: Fault) -> (Arc<Faulty>, SourceStore) {
    let faulty = Arc::new(Faulty {
        inner: InMemory::new(),
        fault,
        left: AtomicUsize::new(0),
    });
    let shared: Arc<dyn ObjectStore> = Arc::<Faulty>::clone(&faulty);
    let backend = Backend::from_object_store(shared, "");
    let repository = Repository::create_or_open_on(backend, Encryption::Off).await;
    let store = repository
        .unwrap()
        .create_source(source_id())
        .await
        .unwrap();
    (faulty, store)
}

#[tokio::test]
async fn an_ignored_condition_is_found_out_and_made_up_for() {
    for fault in [Fault::Careless, Fault::Unknown] {
        let (_, store) = on(fault).await;
        let conditional = store.repository().conditional_put();
        assert_eq!(conditional, Some(ConditionalPut::Ignored));
        let object = segment(0x10, 0x20);
        let first = seal(&store, &object, b"first");
        let put = |sealed| {
            let store = store.clone();
            async move { store.put_sealed(&segment(0x10, 0x20), &body(&sealed)).await }
        };
        assert_eq!(put(first.clone()).await.unwrap(), Put::Created);
        assert_eq!(put(first).await.unwrap(), Put::AlreadyThereSame);
        let second = put(seal(&store, &object, b"second")).await.unwrap_err();
        assert!(matches!(second, Error::Conflict { .. }), "{second:?}");
        assert_eq!(read(&store, &object).await.unwrap(), b"first");
        let same = store.put_json(&SourceObject::Source, &source_file()).await;
        assert_eq!(same.unwrap(), Put::Created);
        let same = store.put_json(&SourceObject::Source, &source_file()).await;
        assert_eq!(same.unwrap(), Put::AlreadyThereSame);
    }
}

#[tokio::test(start_paused = true)]
async fn a_put_whose_answer_is_lost_is_no_conflict() {
    let (faulty, store) = on(Fault::LosesAnswers).await;
    for (start, losses) in [(0x10, 1), (0x20, 2)] {
        let object = segment(start, start + 1);
        let sealed = seal(&store, &object, &noise(1_000));
        faulty.left.store(losses, Ordering::SeqCst);
        let put = store.put_sealed(&object, &body(&sealed)).await.unwrap();
        assert_eq!(put, Put::AlreadyThereSame);
        faulty.left.store(0, Ordering::SeqCst);
    }
}

#[tokio::test(start_paused = true)]
async fn trouble_that_passes_is_waited_out_and_trouble_that_stays_is_transient() {
    let (faulty, store) = on(Fault::Fails).await;
    let object = segment(0x10, 0x11);
    let sealed = seal(&store, &object, b"rows");
    faulty.left.store(2, Ordering::SeqCst);
    let put = store.put_sealed(&object, &body(&sealed)).await.unwrap();
    assert_eq!(put, Put::Created);

    let object = segment(0x20, 0x21);
    let sealed = seal(&store, &object, b"rows");
    faulty.left.store(1_000, Ordering::SeqCst);
    let error = store.put_sealed(&object, &body(&sealed)).await.unwrap_err();
    assert_eq!(error.class(), Class::Transient, "{error:?}");
    faulty.left.store(0, Ordering::SeqCst);
    let put = store.put_sealed(&object, &body(&sealed)).await.unwrap();
    assert_eq!(put, Put::Created);
}

/// With the clock paused, the timeouts of a hang pass at once.
#[tokio::test(start_paused = true)]
async fn a_server_that_never_answers_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let hang = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept().await {
            held.push(connection);
        }
    });
    let url: RepositoryUrl = "s3://bucket/prefix".parse().unwrap();
    let options = StorageOptions::from_pairs(
        [
            ("AWS_ENDPOINT_URL", endpoint.as_str()),
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    for create in [false, true] {
        let started = tokio::time::Instant::now();
        let opened = match create {
            false => Repository::open(&url, &options, Encryption::Off).await,
            true => Repository::create_or_open(&url, &options, Encryption::Off).await,
        };
        let error = opened.err().unwrap();
        assert_eq!(error.class(), Class::Transient, "{error:?}");
        assert!(!format!("{error:?}").contains("hunter2"));
        // The limit of all retries together counts real time, which does not pass here.
        assert!(started.elapsed() < std::time::Duration::from_secs(15 * 60));
    }
    hang.abort();
}
