//! Who writes a source: the lease in its repository.
//!
//! Whoever wants to write takes the next number of `writers/` by a create-only put, after the
//! source's slots were found free; the greatest number is the writer. A service that finds a number
//! above its own was taken over: it stops, deletes nothing, and takes the source back only when
//! somebody asks it to.
//!
//! Every run of a service writes under a name of its own, and its data folder remembers the last
//! ones: so a restart goes on, and of two services on copies of one data folder only one does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use lastgood_proto::key::{Series, SourceObject};
use lastgood_proto::manifest::{Version1, WriterFile};
use lastgood_proto::{PgTimestamp, SourceId, WriterId};
use lastgood_store::SourceStore;

use crate::error::{Error, chain};

/// Between two looks while a source is captured. Each costs a listing of a few names and one small
/// get; what a service that was taken over can still do until then, the slot keeps it from.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// For people who want to know who it was before.
const KEPT: u32 = 16;
/// The newest may be superseded and cleaned up between a listing and a read.
const LOOKS: u32 = 3;

/// Where a service keeps the names that it has written a source under. What is kept must be durable:
/// a service that forgets them does not know its own writing again.
pub trait Memory: Send + Sync {
    fn recall(&self, source: SourceId) -> BoxFuture<'_, Result<Vec<WriterId>, Error>>;

    /// Replaces what was kept.
    fn keep(&self, source: SourceId, names: Vec<WriterId>) -> BoxFuture<'_, Result<(), Error>>;
}

/// A service's run, as a writer of sources. Cheap to clone.
#[derive(Clone)]
pub struct Writer {
    name: WriterId,
    memory: Arc<dyn Memory>,
    /// What this run has claimed: from then on a run on the same folder is another service, too.
    claimed: Arc<Mutex<BTreeMap<SourceId, u32>>>,
    look_interval: Duration,
}

/// What a look at the newest number says.
enum Standing {
    /// Nobody has written under a lease yet.
    Vacant,
    /// This run's.
    Ours(u32),
    /// That of an earlier run on this data folder.
    Before(u32, WriterId),
    /// Somebody's; this data folder has never written here.
    New(u32),
    Other(u32, WriterFile),
}

impl Writer {
    /// # Errors
    /// If the operating system gives no random bytes.
    pub fn new(memory: Arc<dyn Memory>) -> Result<Self, Error> {
        let mut name = [0; 8];
        getrandom::fill(&mut name)
            .map_err(|error| Error::Unfit(format!("no random bytes to be had: {error}")))?;
        Ok(Self {
            name: WriterId::from_bytes(name),
            memory,
            claimed: Arc::default(),
            look_interval: LOOK_INTERVAL,
        })
    }

    /// With another pause between two looks.
    #[must_use]
    pub fn looking_every(self, look_interval: Duration) -> Self {
        Self {
            look_interval,
            ..self
        }
    }

    /// That nobody has taken the source over from this service: to be asked before anything is
    /// written or deleted.
    ///
    /// # Errors
    /// [`Error::TakenOver`], or that it cannot be told.
    pub async fn check(&self, store: &SourceStore) -> Result<(), Error> {
        match self.look(store).await? {
            Standing::Vacant | Standing::Ours(_) | Standing::Before(..) => Ok(()),
            Standing::New(number) => {
                let file = read(store, number).await?;
                Err(taken_over(number, file))
            }
            Standing::Other(number, file) => Err(taken_over(number, file)),
        }
    }

    /// As [`Writer::check`], for a service that is about to claim: one that has never written here
    /// may, since somebody has just registered the source.
    pub(crate) async fn may_claim(&self, store: &SourceStore, asked: bool) -> Result<(), Error> {
        match self.look(store).await? {
            Standing::Other(number, file) if !asked => Err(taken_over(number, file)),
            _ => Ok(()),
        }
    }

    /// Becomes the writer, unless this run is it already, and says under which number.
    pub(crate) async fn claim(&self, store: &SourceStore, asked: bool) -> Result<u32, Error> {
        let (number, before) = match self.look(store).await? {
            // Perhaps by a put whose answer was lost.
            Standing::Ours(number) => {
                self.claimed().insert(store.id(), number);
                return Ok(number);
            }
            Standing::Vacant => (0, None),
            Standing::Before(number, name) => (number, Some(name)),
            Standing::New(number) => (number, None),
            Standing::Other(number, _) if asked => (number, None),
            Standing::Other(number, file) => return Err(taken_over(number, file)),
        };
        // First, so that a run that ends between the two knows its writing again. The one before
        // stays: the put may fail.
        let names = before.into_iter().chain([self.name]).collect();
        self.memory.keep(store.id(), names).await?;
        let number = number.saturating_add(1);
        let file = WriterFile {
            v: Version1,
            writer: self.name,
            host: host(),
            time: PgTimestamp::from_unix_micros(chrono::Utc::now().timestamp_micros()),
        };
        let object = SourceObject::Numbered(Series::Writers, number);
        match store.put_json(&object, &file).await {
            Ok(_) => {}
            // Somebody was quicker.
            Err(lastgood_store::Error::Conflict { .. }) => {
                let file = read(store, number).await?;
                return Err(taken_over(number, file));
            }
            Err(error) => return Err(error.into()),
        }
        self.claimed().insert(store.id(), number);
        tracing::info!(source = %store.id(), number, writer = %self.name, "writes this source");
        if let Err(error) = store.prune(Series::Writers, KEPT).await {
            let error = chain(&error);
            tracing::warn!(error, "old objects below writers/ are not deleted");
        }
        Ok(number)
    }

    /// Ends when the source was taken over. May be dropped at any time.
    pub(crate) async fn lost(&self, store: &SourceStore) -> Error {
        loop {
            tokio::time::sleep(self.look_interval).await;
            match self.check(store).await {
                Ok(()) => {}
                Err(error @ Error::TakenOver { .. }) => return error,
                // Whoever writes segments notices by itself.
                Err(error) => {
                    let error = chain(&error);
                    tracing::debug!(error, "who writes this source cannot be told");
                }
            }
        }
    }

    fn claimed(&self) -> MutexGuard<'_, BTreeMap<SourceId, u32>> {
        let claimed = self.claimed.lock();
        claimed.unwrap_or_else(PoisonError::into_inner)
    }

    async fn look(&self, store: &SourceStore) -> Result<Standing, Error> {
        for _ in 1..LOOKS {
            match self.look_once(store).await {
                Err(Error::Store(lastgood_store::Error::NotFound { .. })) => {}
                looked => return looked,
            }
        }
        self.look_once(store).await
    }

    async fn look_once(&self, store: &SourceStore) -> Result<Standing, Error> {
        let Some(number) = store.newest(Series::Writers).await? else {
            return Ok(Standing::Vacant);
        };
        // A listing that lags may not have our own number yet.
        let ours = self.claimed().get(&store.id()).copied();
        if let Some(ours) = ours.filter(|ours| *ours > number) {
            return Ok(Standing::Ours(ours));
        }
        let file = read(store, number).await?;
        if file.writer == self.name {
            return Ok(Standing::Ours(number));
        }
        let names = self.memory.recall(store.id()).await?;
        let known = names.contains(&file.writer) && ours.is_none();
        Ok(match known {
            true => Standing::Before(number, file.writer),
            false if names.is_empty() => Standing::New(number),
            false => Standing::Other(number, file),
        })
    }
}

async fn read(store: &SourceStore, number: u32) -> Result<WriterFile, Error> {
    let object = SourceObject::Numbered(Series::Writers, number);
    Ok(store.get_json(&object).await?)
}

fn taken_over(number: u32, file: WriterFile) -> Error {
    Error::TakenOver {
        number,
        host: file.host,
        time: file.time,
    }
}

fn host() -> String {
    let name = rustix::system::uname();
    name.nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use lastgood_store::{Encryption, MasterKey, Repository, StorageOptions};

    use super::*;

    #[derive(Default)]
    struct Folder(Mutex<Vec<WriterId>>);

    impl Memory for Folder {
        fn recall(&self, _: SourceId) -> BoxFuture<'_, Result<Vec<WriterId>, Error>> {
            async { Ok(self.0.lock().unwrap().clone()) }.boxed()
        }

        fn keep(&self, _: SourceId, names: Vec<WriterId>) -> BoxFuture<'_, Result<(), Error>> {
            *self.0.lock().unwrap() = names;
            async { Ok(()) }.boxed()
        }
    }

    async fn store(folder: &tempfile::TempDir) -> SourceStore {
        let url = format!("file://{}", folder.path().display());
        let encryption = Encryption::On(MasterKey::generate().unwrap());
        let options = StorageOptions::default();
        let repository =
            Repository::create_or_open(&url.parse().unwrap(), &options, encryption).await;
        let id = SourceId::from_bytes([1; 8]);
        repository.unwrap().create_source(id).await.unwrap()
    }

    fn writer() -> Writer {
        Writer::new(Arc::new(Folder::default())).unwrap()
    }

    /// Some see nobody and put the same number, some see another and put the next; each number is one
    /// writer's, and the last one is the only one that goes on.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_race_has_one_winner() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        for _ in 0..10 {
            let racers: Vec<Writer> = (0..8).map(|_| writer()).collect();
            let claims = racers.iter().map(|writer| {
                let (writer, store) = (writer.clone(), store.clone());
                tokio::spawn(async move { writer.claim(&store, false).await })
            });
            let mut numbers = Vec::new();
            for claim in futures::future::join_all(claims).await {
                match claim.unwrap() {
                    Ok(number) => numbers.push(number),
                    Err(Error::TakenOver { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            numbers.sort_unstable();
            assert!(numbers.windows(2).all(|two| two[0] < two[1]), "{numbers:?}");
            let newest = store.newest(Series::Writers).await.unwrap();
            assert_eq!(newest, numbers.last().copied());
            let mut winners = 0;
            for racer in &racers {
                winners += usize::from(racer.check(&store).await.is_ok());
            }
            assert_eq!(winners, 1);
        }
    }

    /// A run that ended between what it remembers and what it puts, or right after it.
    #[tokio::test]
    async fn a_run_cut_short_is_no_stranger() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        let kept: Arc<Folder> = Arc::default();
        let run = || Writer::new(Arc::<Folder>::clone(&kept)).unwrap();
        let first = run();
        assert_eq!(first.claim(&store, false).await.unwrap(), 1);
        assert_eq!(first.claim(&store, false).await.unwrap(), 1);
        // Remembered, and never put.
        let unborn = run();
        let names = vec![first.name, unborn.name];
        kept.keep(store.id(), names).await.unwrap();
        let second = run();
        assert_eq!(second.claim(&store, false).await.unwrap(), 2);
        // What came before it is forgotten only once it has put.
        assert_eq!(*kept.0.lock().unwrap(), [first.name, second.name], "names");
        assert_eq!(run().claim(&store, false).await.unwrap(), 3);
        assert!(first.check(&store).await.is_err());
    }

    #[tokio::test]
    async fn old_numbers_go_and_the_number_does_not_go_back() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder).await;
        for number in 1..=KEPT + 5 {
            assert_eq!(writer().claim(&store, false).await.unwrap(), number);
        }
        let left = store.objects().await.unwrap();
        assert_eq!(left.len(), usize::try_from(KEPT).unwrap());
        assert!(
            !left
                .iter()
                .any(|entry| entry.object == SourceObject::Numbered(Series::Writers, 5))
        );
    }
}
