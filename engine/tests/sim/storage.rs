//! Object storage that is slow, fails, and sometimes stores what it says it did not.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::task::AbortHandle;

#[derive(Debug)]
pub(crate) struct FaultyStore {
    inner: Arc<InMemory>,
    rng: Mutex<ChaCha8Rng>,
    trouble: AtomicBool,
    /// Puts that were begun arrive, also if nobody waits for them any more.
    on_the_way: Mutex<Vec<OnTheWay>>,
}

#[derive(Debug)]
struct OnTheWay {
    task: AbortHandle,
    location: Path,
    payload: PutPayload,
    options: PutOptions,
}

/// After so long the client gives a silent server up.
const SILENCE_MS: u64 = 75_000;

/// What happens to one put.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Stored,
    Refused,
    /// Stored, but the answer is lost.
    Unanswered,
}

impl FaultyStore {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            inner: Arc::default(),
            rng: Mutex::new(ChaCha8Rng::seed_from_u64(seed)),
            trouble: AtomicBool::new(false),
            on_the_way: Mutex::default(),
        }
    }

    /// The process is gone, and what it was sending with it, or that arrives when its successors are at work.
    pub(crate) fn kill(&self) {
        let mut rng = self.rng.lock().expect("nobody panics with it");
        for put in self.on_the_way().drain(..) {
            if put.task.is_finished() {
                continue;
            }
            put.task.abort();
            if rng.random() {
                let delay = Duration::from_millis(rng.random_range(0..10_000));
                let inner = Arc::clone(&self.inner);
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    // It may be there already.
                    let (location, payload) = (put.location, put.payload);
                    let _ = inner.put_opts(&location, payload, put.options).await;
                });
            }
        }
    }

    fn on_the_way(&self) -> MutexGuard<'_, Vec<OnTheWay>> {
        self.on_the_way.lock().expect("nobody panics with it")
    }

    /// Whether puts of segments go wrong.
    pub(crate) fn trouble(&self, on: bool) {
        self.trouble.store(on, Ordering::Relaxed);
    }

    fn fate(&self, path: &Path) -> (Fate, Duration) {
        if !self.trouble.load(Ordering::Relaxed) || !path.as_ref().contains("/segments/") {
            return (Fate::Stored, Duration::ZERO);
        }
        let mut rng = self.rng.lock().expect("nobody panics with it");
        let fate = match rng.random_range(0..10) {
            0 | 1 => Fate::Refused,
            2 => Fate::Unanswered,
            _ => Fate::Stored,
        };
        let delay = match rng.random_range(0..200) {
            0 => SILENCE_MS,
            1..10 => rng.random_range(1000..6000),
            10..50 => rng.random_range(50..800),
            _ => rng.random_range(0..20),
        };
        // A request that was given up may have been done all the same.
        let fate = match (delay, fate) {
            (SILENCE_MS, Fate::Stored) => Fate::Unanswered,
            (_, fate) => fate,
        };
        (fate, Duration::from_millis(delay))
    }

    fn error() -> object_store::Error {
        object_store::Error::Generic {
            store: "faulty",
            source: "simulated".into(),
        }
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        let (fate, delay) = self.fate(location);
        let (inner, location) = (Arc::clone(&self.inner), location.clone());
        let sent = (location.clone(), payload.clone(), opts.clone());
        let put = tokio::spawn(async move {
            tokio::time::sleep(delay / 2).await;
            if fate == Fate::Refused {
                return Err(Self::error());
            }
            let result = inner.put_opts(&location, payload, opts).await;
            tokio::time::sleep(delay / 2).await;
            match fate {
                Fate::Unanswered => Err(Self::error()),
                Fate::Stored | Fate::Refused => result,
            }
        });
        let (location, payload, options) = sent;
        self.on_the_way().push(OnTheWay {
            task: put.abort_handle(),
            location,
            payload,
            options,
        });
        put.await.unwrap_or_else(|_| Err(Self::error()))
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
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
