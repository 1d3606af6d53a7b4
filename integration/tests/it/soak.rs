//! A service under random faults for as long as one likes, with restores that are compared, and its memory and
//! descriptors watched: `make soak MINUTES=30`. What does not grow in minutes may still grow in days.
//!
//! Two worlds at once: on S3 the service itself is never restarted, so that what it loses adds up; on a folder
//! it is killed, stopped and started.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lastgood_integration::history::{self, History};
use lastgood_integration::vitals::{self, Vitals};
use lastgood_integration::{
    Fault, Postgres, Proxy, S3Proxy, Service, Stop, Storage, TestDatabase, seed, tools, wait,
};
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// As a share of `make test`.
const SHORT: Duration = Duration::from_secs(20);
/// What a restore of more changes than the first one holds for its time.
const SLACK_KIB: u64 = 64 << 10;
/// Moments that are kept to be restored to.
const MOMENTS: usize = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Act {
    Write,
    Restore,
    Base,
    Retention,
    Pause,
    CutNetwork,
    CutFrames,
    StorageAway,
    StopServer,
    CrashServer,
    Kill,
    Restart,
}

use Act::{
    Base, CrashServer, CutFrames, CutNetwork, Kill, Pause, Restart, Restore, Retention, StopServer,
    StorageAway, Write,
};

const EVERYWHERE: [Act; 12] = [
    Write,
    Write,
    Restore,
    Restore,
    Base,
    Base,
    Retention,
    Pause,
    CutNetwork,
    CutFrames,
    StopServer,
    CrashServer,
];

#[tokio::test(flavor = "multi_thread")]
async fn soak() -> Result<()> {
    let seed = seed::choose("soak");
    let minutes = std::env::var("LASTGOOD_SOAK_MINUTES").ok();
    let minutes = minutes.map(|text| text.parse::<f64>()).transpose()?;
    let length = minutes.map_or(SHORT, |minutes| Duration::from_secs_f64(minutes * 60.0));
    let begun = Instant::now();
    let mut worlds = vec![World::new("folder", seed, None, Storage::local()?).await?];
    if let Some(faults) = S3Proxy::start().await? {
        let storage = Storage::s3_by(&faults.endpoint()).context("an S3 server")?;
        worlds.push(World::new("s3", seed, Some(faults), storage).await?);
    } else {
        eprintln!("NOT TESTED on S3: run by tools/with-s3.sh");
    }
    // Memory is compared only once everything has been done that needs most of it.
    for world in &mut worlds {
        world.warm_up().await?;
    }
    let watched: Vec<Watched> = worlds.iter().map(|world| world.watch(begun)).collect();
    let end = Instant::now() + length;
    let lives = worlds.into_iter().map(|world| Box::pin(world.live(end)));
    let lived = futures::future::try_join_all(lives).await;
    let vitals: Vec<Vitals> = watched.iter().map(Watched::vitals).collect();
    keep(seed, &vitals)?;
    lived?;
    vitals.iter().try_for_each(|vitals| vitals.judge(SLACK_KIB))
}

/// Below `target/soak`, for whoever wants to look.
fn keep(seed: u64, vitals: &[Vitals]) -> Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    let folder = target.unwrap_or_else(|| tools::workspace().join("target"));
    let folder = folder.join("soak");
    std::fs::create_dir_all(&folder)?;
    vitals::write_csv(&folder.join(format!("{seed}.csv")), vitals)?;
    let title = format!("lastgood serve, LASTGOOD_SEED={seed}");
    vitals::write_svg(&folder.join(format!("{seed}.svg")), &title, vitals)?;
    eprintln!("{}", folder.join(format!("{seed}.svg")).display());
    Ok(())
}

/// The samples of a service, taken until this is dropped.
struct Watched {
    vitals: Arc<Mutex<Vitals>>,
    /// Ends with it.
    _task: JoinSet<()>,
}

impl Watched {
    fn vitals(&self) -> Vitals {
        let vitals = self.vitals.lock().unwrap_or_else(PoisonError::into_inner);
        vitals.clone()
    }
}

struct World {
    name: &'static str,
    rng: ChaCha8Rng,
    /// In front of storage, if it is S3.
    storage: Option<S3Proxy>,
    network: Proxy,
    service: Arc<Service>,
    history: History,
    acts: Vec<Act>,
    did: BTreeMap<Act, u32>,
    bases: usize,
    /// How many bases there were when each moment of the history was recorded.
    bases_at: Vec<usize>,
    begun: Instant,
}

impl World {
    async fn new(
        name: &'static str,
        seed: u64,
        storage: Option<S3Proxy>,
        place: Storage,
    ) -> Result<Self> {
        let service = Service::start(&place).await?;
        let server = Arc::new(Postgres::start(18, &[]).await?);
        server.create_database(name).await?;
        let database = TestDatabase {
            server: Arc::clone(&server),
            name: name.to_owned(),
        };
        let network = Proxy::start(("127.0.0.1", server.port())).await?;
        let url = database.url_by(network.port());
        let mut settings = history::settings();
        settings["retention"] = json!("2 bases");
        settings["retention_grace_hours"] = json!(0);
        let history = History::start_by(&service, database, &url, settings, seed).await?;
        let mut acts = EVERYWHERE.to_vec();
        match storage {
            Some(_) => acts.extend([StorageAway, StorageAway]),
            None => acts.extend([Kill, Kill, Restart]),
        }
        Ok(Self {
            name,
            rng: seed::rng(seed, name),
            storage,
            network,
            service: Arc::new(service),
            history,
            acts,
            did: BTreeMap::new(),
            bases: 1,
            bases_at: Vec::new(),
            begun: Instant::now(),
        })
    }

    async fn warm_up(&mut self) -> Result<()> {
        self.history.record_loud().await?;
        self.forget();
        self.base().await?;
        self.restore().await
    }

    /// Samples the service's process now and then, in the background.
    fn watch(&self, begun: Instant) -> Watched {
        let vitals = Arc::new(Mutex::new(Vitals {
            name: self.name.to_owned(),
            samples: Vec::new(),
        }));
        let (service, into) = (Arc::clone(&self.service), Arc::clone(&vitals));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut ticks = tokio::time::interval(Duration::from_secs(2));
            loop {
                ticks.tick().await;
                let pid = service.process_id();
                let seconds = begun.elapsed().as_secs_f64();
                if let Some(sample) = pid.and_then(|pid| vitals::sample(seconds, pid)) {
                    let mut vitals = into.lock().unwrap_or_else(PoisonError::into_inner);
                    vitals.samples.push(sample);
                }
            }
        });
        Watched {
            vitals,
            _task: task,
        }
    }

    /// One thing after the other until `end`; then everything must be there.
    async fn live(mut self, end: Instant) -> Result<()> {
        while Instant::now() < end {
            let act = *self.acts.choose(&mut self.rng).context("something to do")?;
            let (name, seconds) = (self.name, self.begun.elapsed().as_secs());
            eprintln!("{seconds:>5} s {name}: {act:?}");
            let done = Box::pin(self.act(act)).await;
            done.with_context(|| format!("{name}: {act:?}\n{}", self.service.log()))?;
            *self.did.entry(act).or_default() += 1;
            self.history.advance().await?;
            match self.rng.random_bool(0.5) {
                true => self.history.record_loud().await?,
                false => self.history.record_quiet(None).await?,
            }
            self.forget();
        }
        let (service, name) = (Arc::clone(&self.service), self.history.name.clone());
        self.well().await?;
        eprintln!(
            "{}: {:?}, {} commits",
            self.name,
            self.did,
            self.history.workload.commits()
        );
        let finished = self.history.finish(&service).await?;
        let window = service
            .get(&format!("/api/v1/sources/{name}/window"))
            .await?;
        ensure!(window["gaps"] == json!([]), "{window:#}");
        finished.thinned(1).check(&service).await
    }

    async fn act(&mut self, act: Act) -> Result<()> {
        let server = Arc::clone(&self.history.database.server);
        match act {
            Write => Ok(()),
            Restore => self.restore().await,
            Base => self.base().await,
            Retention => {
                self.well().await?;
                self.service
                    .post(&self.path("/retention"), json!({}))
                    .await?;
                Ok(())
            }
            Pause => {
                self.well().await?;
                let keep = json!({"slot": "keep"});
                self.service.post(&self.path("/pause"), keep).await?;
                self.history.advance().await?;
                self.service.post(&self.path("/resume"), json!({})).await?;
                Ok(())
            }
            CutNetwork => {
                self.network.cut();
                Ok(())
            }
            CutFrames => {
                let (before, limit) = (self.network.opened(), self.rng.random_range(500..50_000));
                self.network.set(|network| network.cut_after = Some(limit));
                self.network.cut();
                let again = async || Ok((self.network.opened() > before + 1).then_some(()));
                let reconnected = wait::until("another connection", again).await;
                self.network.set(|network| network.cut_after = None);
                reconnected
            }
            StorageAway => {
                let Some(storage) = &self.storage else {
                    return Ok(());
                };
                let before = storage.met(Fault::NoAnswer);
                storage.set(|_| Some(Fault::NoAnswer));
                let felt = async || Ok((storage.met(Fault::NoAnswer) > before + 3).then_some(()));
                let felt = wait::until("storage to be missed", felt).await;
                storage.mend();
                felt
            }
            StopServer => {
                server
                    .stop_within(Stop::Fast, Duration::from_secs(30))
                    .await?;
                server.start_again().await
            }
            CrashServer => {
                server.crash().await?;
                server.start_again().await
            }
            Kill => {
                self.service.kill()?;
                self.history.advance().await?;
                self.service.start_again().await
            }
            Restart => {
                ensure!(self.service.terminate().await?.success());
                self.service.start_again().await
            }
        }
    }

    fn path(&self, rest: &str) -> String {
        format!("/api/v1/sources/{}{rest}", self.history.name)
    }

    /// Streaming, after whatever was done to it. One that waits long after many failures is asked to look.
    async fn well(&self) -> Result<()> {
        self.service
            .request(Method::POST, &self.path("/resume"), Some(&json!({})))
            .await?;
        self.service.wait_protected(&self.history.name).await
    }

    async fn base(&mut self) -> Result<()> {
        let path = self.path("/bases");
        let succeeded = async || {
            self.well().await?;
            let base = self.service.post(&path, json!({})).await?;
            let this = |bases: &Value| {
                let items = bases["items"].as_array().cloned().unwrap_or_default();
                let found = items.into_iter().find(|it| it["id"] == base["id"]);
                found.map_or(Value::Null, |base| base["status"].clone())
            };
            let ended = |bases: &Value| this(bases) != "running";
            let bases =
                wait::until_value("the end of a base", || self.service.get(&path), ended).await?;
            ensure!(this(&bases) == "succeeded", "{bases:#}");
            Ok(Some(()))
        };
        wait::until("a base", succeeded).await?;
        self.bases += 1;
        Ok(())
    }

    async fn restore(&mut self) -> Result<()> {
        self.well().await?;
        let Some(moment) = self.history.moments.choose(&mut self.rng) else {
            return Ok(());
        };
        let (history, service) = (&self.history, &self.service);
        service
            .wait_durable(&history.name, &history.last_lsn)
            .await?;
        service
            .wait_observed(&history.name, &history.last_time)
            .await?;
        let server = &history.database.server;
        let copy = format!("{}_copy", self.name);
        let into = json!({"connection": server.url("postgres"), "create_database": copy});
        service.restore(&history.name, &moment.target, into).await?;
        history::check_restored(server, &copy, moment).await?;
        history::drop_database(server, &copy).await
    }

    /// Moments that retention may have given up, and the oldest of too many.
    fn forget(&mut self) {
        let moments = &mut self.history.moments;
        self.bases_at.resize(moments.len(), self.bases);
        let kept = |bases: &usize| bases + 1 >= self.bases;
        let given_up = self
            .bases_at
            .iter()
            .take_while(|bases| !kept(bases))
            .count();
        let first = given_up.max(moments.len().saturating_sub(MOMENTS));
        moments.drain(..first);
        self.bases_at.drain(..first);
    }
}
