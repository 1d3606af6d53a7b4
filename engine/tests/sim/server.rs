//! A walsender as the worker sees one: a history that grows at random, sent from where it is asked
//! for, and a confirmed position that never goes back. It checks what it is told against what is
//! stored, and how fast.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use lastgood_engine::worker::Stream;
use lastgood_engine::{Error, Mark, Marks, Running, Shape};
use lastgood_proto::copy_both::ReplicationMessage;
use lastgood_proto::pgoutput::{
    self, Begin, Column, Commit, Insert, LogicalMessage, Message, Origin, Relation,
    ReplicaIdentity, TupleBuf, Value,
};
use lastgood_proto::segment::SequenceSample;
use lastgood_proto::{Lsn, Oid, PgTimestamp, Xid};
use lastgood_store::SourceStore;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::Notify;
use tokio::time::Instant;

pub(crate) const START: Lsn = Lsn::new(0x1000);

/// One thing that stands in the WAL.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Item {
    Transaction {
        xid: u32,
        commit_lsn: Lsn,
        end_lsn: Lsn,
        time: PgTimestamp,
        /// Of one that was replicated, by the clock of the server it came from; the stream has it in
        /// place of `time`.
        elsewhere: Option<PgTimestamp>,
        rows: Vec<(u32, String)>,
    },
    /// Of no transaction; the LSN is its record's end.
    Message { lsn: Lsn },
}

#[derive(Clone)]
pub(crate) struct Server {
    state: Arc<Mutex<State>>,
    kill: Arc<Notify>,
    confirmed: Arc<Notify>,
    store: SourceStore,
}

struct State {
    rng: ChaCha8Rng,
    history: Vec<Item>,
    wal_end: Lsn,
    clock: i64,
    confirmed: Lsn,
    /// All positions that were confirmed; any of them may be the one that is saved.
    confirmations: Vec<Lsn>,
    connected: bool,
    silent: bool,
    steps_left: u64,
    last_confirm: Instant,
    /// A keepalive asked for this position to be confirmed.
    asked: Option<(Instant, Lsn)>,
    /// Never the same again once it has changed.
    shape: String,
    /// Where the shape changed: what commits from there on has the new one.
    shape_changes: Vec<Lsn>,
}

impl Server {
    pub(crate) fn new(seed: u64, store: SourceStore) -> Self {
        let state = State {
            rng: ChaCha8Rng::seed_from_u64(seed),
            history: Vec::new(),
            wal_end: START,
            clock: 1_000_000,
            confirmed: START,
            confirmations: vec![START],
            connected: false,
            silent: false,
            steps_left: u64::MAX,
            last_confirm: Instant::now(),
            asked: None,
            shape: "shape 0".to_owned(),
            shape_changes: Vec::new(),
        };
        Self {
            state: Arc::new(Mutex::new(state)),
            kill: Arc::new(Notify::new()),
            confirmed: Arc::new(Notify::new()),
            store,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panics with it")
    }

    pub(crate) fn kill_after(&self, steps: u64) {
        self.state().steps_left = steps;
    }

    pub(crate) async fn killed(&self) {
        self.kill.notified().await;
    }

    pub(crate) fn reconnectable(&self) {
        let mut state = self.state();
        state.connected = false;
        state.asked = None;
    }

    /// Nothing new happens from now on.
    pub(crate) fn fall_silent(&self) {
        self.state().silent = true;
    }

    pub(crate) async fn all_confirmed(&self) {
        loop {
            let woken = self.confirmed.notified();
            {
                let state = self.state();
                if state.confirmed >= state.wal_end {
                    return;
                }
            }
            woken.await;
        }
    }

    /// What has to be stored: all but transactions of which nothing is published.
    pub(crate) fn history(&self) -> Vec<Item> {
        let state = self.state();
        let stored = state.history.iter().filter(|item| match item {
            Item::Transaction { rows, .. } => !rows.is_empty(),
            Item::Message { .. } => true,
        });
        stored.cloned().collect()
    }

    pub(crate) fn wal_end(&self) -> Lsn {
        self.state().wal_end
    }

    pub(crate) fn shape_changes(&self) -> Vec<Lsn> {
        self.state().shape_changes.clone()
    }

    /// Every commit with a time up to `observed` must lie at or below `end`.
    pub(crate) fn check_observed(&self, observed: PgTimestamp, end: Lsn) {
        for item in &self.state().history {
            if let Item::Transaction { time, end_lsn, .. } = item {
                assert!(
                    *time > observed || *end_lsn <= end,
                    "observed {observed} claims too much"
                );
            }
        }
    }

    /// Where the stream begins if nothing else is asked for.
    pub(crate) fn confirmed(&self) -> Lsn {
        self.state().confirmed
    }

    /// A crash: the slot is as it was saved last, at some confirmation or other.
    pub(crate) fn crash(&self) {
        let mut state = self.state();
        let saved = state.confirmations.len();
        let at = state.rng.random_range(0..saved);
        state.confirmations.truncate(at + 1);
        state.confirmed = state.confirmations[at];
    }

    /// Storage is set back to where the slot had confirmed no more than half of what it has; what
    /// happens from then on is another history, and goes on until it is longer than `past`.
    /// Tells whether the two differ below `past`.
    pub(crate) fn set_back(&self, past: Lsn) -> bool {
        let mut state = self.state();
        let half = state.confirmations.len().div_ceil(2);
        let at = state.rng.random_range(0..half);
        state.confirmations.truncate(at + 1);
        state.confirmed = state.confirmations[at];
        state.wal_end = state.confirmed;
        let confirmed = state.confirmed;
        let (kept, lost): (Vec<Item>, Vec<Item>) =
            state.history.drain(..).partition(|item| match item {
                Item::Transaction { end_lsn, .. } => *end_lsn <= confirmed,
                Item::Message { lsn } => *lsn <= confirmed,
            });
        let begun = kept.len();
        state.history = kept;
        state.clock += 1_000_000_000;
        while state.wal_end <= past {
            state.commit();
        }
        let shown = |item: &Item| match item {
            Item::Transaction {
                rows, commit_lsn, ..
            } => !rows.is_empty() && *commit_lsn < past,
            Item::Message { .. } => false,
        };
        lost.iter().any(shown) || state.history[begun..].iter().any(shown)
    }

    /// Streams from `from`, or from the confirmed position if that is greater.
    pub(crate) fn stream(&self, from: Lsn) -> SimStream {
        let mut state = self.state();
        assert!(!state.connected, "two readers");
        assert!(
            state.confirmed <= from,
            "confirmed {} past {from}",
            state.confirmed
        );
        state.connected = true;
        state.last_confirm = Instant::now();
        SimStream {
            server: self.clone(),
            from,
            next_item: 0,
            queue: VecDeque::new(),
            described: false,
            reply: true,
            wake_at: None,
        }
    }

    pub(crate) fn marks(&self) -> SimMarks {
        SimMarks {
            server: self.clone(),
        }
    }

    /// One more thing has happened; the worker may be killed at it.
    async fn step(&self) {
        let dead = {
            let mut state = self.state();
            state.steps_left = state.steps_left.saturating_sub(1);
            if let Some((at, position)) = state.asked {
                let late = at.elapsed() > Duration::from_millis(2500);
                assert!(
                    !late || state.confirmed >= position,
                    "left a server waiting"
                );
            }
            if !state.silent && state.rng.random_range(0..60) == 0 {
                state.change_shape();
            }
            state.steps_left == 0
        };
        if dead {
            self.kill.notify_one();
            // The other side of the select drops this.
            std::future::pending::<()>().await;
        }
    }
}

impl State {
    fn change_shape(&mut self) {
        let at = self.wal_end;
        self.shape_changes.push(at);
        self.shape = format!("shape {}", self.shape_changes.len());
        // The command itself writes WAL.
        self.advance();
    }

    fn advance(&mut self) -> Lsn {
        let before = self.wal_end;
        let step = 8 * self.rng.random_range(3..500_u64);
        self.wal_end = Lsn::new(before.as_u64() + step);
        self.clock += self.rng.random_range(1..50_000_i64);
        before
    }

    fn commit(&mut self) {
        let rows = match self.rng.random_range(0..30) {
            0 => self.rng.random_range(500..2000),
            1..4 => 0,
            _ => self.rng.random_range(1..20),
        };
        let rows: Vec<_> = (0..rows)
            .map(|_| {
                let relation = self.rng.random_range(1..4);
                (relation, format!("value {}", self.rng.random::<u32>()))
            })
            .collect();
        // The rows may have been written before whatever came last.
        if self.rng.random() {
            self.advance();
        }
        let commit_lsn = self.advance();
        let xid = u32::try_from(self.history.len()).expect("a short history") + 700;
        let end_lsn = self.wal_end;
        let elsewhere = match self.rng.random_range(0..10) {
            0 => Some(self.rng.random_range(0..1_000_000_000_000)),
            _ => None,
        };
        self.history.push(Item::Transaction {
            xid,
            commit_lsn,
            end_lsn,
            time: PgTimestamp::from_micros(self.clock),
            elsewhere: elsewhere.map(PgTimestamp::from_micros),
            rows,
        });
    }

    fn message(&mut self) {
        self.advance();
        self.advance();
        let lsn = self.wal_end;
        self.history.push(Item::Message { lsn });
    }
}

pub(crate) struct SimStream {
    server: Server,
    from: Lsn,
    /// In the server's history.
    next_item: usize,
    queue: VecDeque<ReplicationMessage>,
    described: bool,
    /// A keepalive was asked for.
    reply: bool,
    wake_at: Option<Instant>,
}

impl SimStream {
    /// Puts more into the queue, or says how long nothing comes.
    fn produce(&mut self) -> Option<Duration> {
        let server = self.server.clone();
        let mut state = server.state();
        if let Some(item) = state.history.get(self.next_item).cloned() {
            self.next_item += 1;
            let below = match &item {
                Item::Transaction { commit_lsn, .. } => *commit_lsn < self.from,
                Item::Message { lsn } => *lsn <= self.from,
            };
            if !below {
                encode(&item, state.clock, &mut self.described, &mut self.queue);
            }
            return None;
        }
        if std::mem::take(&mut self.reply) {
            self.queue
                .push_back(keepalive(state.wal_end, state.clock, false));
            return None;
        }
        if state.silent {
            return Some(Duration::from_secs(3600));
        }
        match state.rng.random_range(0..100) {
            0..50 => state.commit(),
            50..55 => state.message(),
            55..65 => {
                state.advance();
                self.queue
                    .push_back(keepalive(state.wal_end, state.clock, false));
            }
            65..67 => {
                self.queue
                    .push_back(keepalive(state.wal_end, state.clock, true));
                let asked = (Instant::now(), state.wal_end);
                state.asked.get_or_insert(asked);
            }
            67..70 => return Some(Duration::from_millis(state.rng.random_range(1000..15_000))),
            _ => return Some(Duration::from_millis(state.rng.random_range(1..200))),
        }
        None
    }
}

impl Stream for SimStream {
    async fn next(&mut self) -> Result<ReplicationMessage, Error> {
        loop {
            // What was decided stays decided if this future is dropped and made anew.
            if let Some(at) = self.wake_at {
                let server = self.server.clone();
                if self.reply && server.state().history.len() == self.next_item {
                    self.wake_at = None;
                    continue;
                }
                tokio::time::sleep_until(at).await;
                self.wake_at = None;
            }
            self.server.step().await;
            if let Some(message) = self.queue.pop_front() {
                return Ok(message);
            }
            if let Some(pause) = self.produce() {
                self.wake_at = Some(Instant::now() + pause);
            }
        }
    }

    fn buffered(&mut self) -> Result<Option<ReplicationMessage>, Error> {
        Ok(self.queue.pop_front())
    }

    async fn confirm(
        &mut self,
        written: Lsn,
        flushed: Lsn,
        reply_requested: bool,
    ) -> Result<(), Error> {
        self.server.step().await;
        assert!(flushed <= written);
        let listing = self.server.store.list().await.expect("a listing");
        let durable = listing
            .lineage(crate::LINEAGE)
            .and_then(lastgood_proto::listing::LineageListing::durable_lsn)
            .unwrap_or(START);
        assert!(
            flushed <= durable,
            "confirmed {flushed}, durable is {durable}"
        );
        self.reply |= reply_requested;
        let mut state = self.server.state();
        assert!(
            state.last_confirm.elapsed() <= Duration::from_millis(1500),
            "silent for too long"
        );
        state.last_confirm = Instant::now();
        if flushed > state.confirmed {
            state.confirmed = flushed;
            state.confirmations.push(flushed);
        }
        if state
            .asked
            .is_some_and(|(_, position)| state.confirmed >= position)
        {
            state.asked = None;
        }
        self.server.confirmed.notify_one();
        Ok(())
    }

    async fn close(self) {
        self.server.state().connected = false;
    }
}

pub(crate) struct SimMarks {
    server: Server,
}

impl Marks for SimMarks {
    async fn take(&mut self, wake: bool, _told: bool) -> Result<Mark, Error> {
        let delay = self.server.state().rng.random_range(0..300);
        tokio::time::sleep(Duration::from_millis(delay)).await;
        self.server.step().await;
        let mut state = self.server.state();
        // A server that asks is shutting down, and takes no query any more.
        if state.asked.is_some() || state.rng.random_range(0..10) == 0 {
            return Err(Error::StreamEnded);
        }
        let mark = Mark {
            lsn: state.wal_end,
            clock: PgTimestamp::from_micros(state.clock),
            until: PgTimestamp::from_micros(state.clock),
            sequences: vec![SequenceSample {
                schema: "public".to_owned(),
                name: "s".to_owned(),
                last_value: state.rng.random_range(0..3).to_string(),
                is_called: true,
            }],
            shape: Shape::named(&state.shape),
            seen_by: state.wal_end,
            seen_at: PgTimestamp::from_micros(state.clock),
            is_whole: true,
            running: Running::default(),
            ddl_trigger: None,
        };
        if wake && !state.silent {
            state.commit();
        }
        Ok(mark)
    }
}

fn keepalive(wal_end: Lsn, clock: i64, reply_requested: bool) -> ReplicationMessage {
    ReplicationMessage::Keepalive {
        wal_end,
        clock: PgTimestamp::from_micros(clock),
        reply_requested,
    }
}

fn encode(item: &Item, clock: i64, described: &mut bool, queue: &mut VecDeque<ReplicationMessage>) {
    let mut push = |message: &Message<'_>, lsn: Lsn| {
        let mut data = Vec::new();
        pgoutput::encode(message, &mut data).expect("a short message");
        queue.push_back(ReplicationMessage::XLogData {
            wal_start: lsn,
            wal_end: lsn,
            clock: PgTimestamp::from_micros(clock),
            data: Bytes::from(data),
        });
    };
    match item {
        Item::Message { lsn } => push(
            &Message::Message(LogicalMessage {
                transactional: false,
                lsn: *lsn,
                prefix: b"test",
                content: b"content",
            }),
            *lsn,
        ),
        Item::Transaction {
            xid,
            commit_lsn,
            end_lsn,
            time,
            elsewhere,
            rows,
        } => {
            let commit_time = elsewhere.unwrap_or(*time);
            let begin = Begin {
                commit_lsn: *commit_lsn,
                commit_time,
                xid: Xid::new(*xid),
            };
            push(&Message::Begin(begin), *commit_lsn);
            if elsewhere.is_some() {
                let origin = Origin {
                    commit_lsn: *commit_lsn,
                    name: b"upstream",
                };
                push(&Message::Origin(origin), *commit_lsn);
            }
            for (relation, value) in rows {
                if !std::mem::replace(described, true) {
                    (1..4).for_each(|oid| push(&Message::Relation(relation_of(oid)), Lsn::INVALID));
                }
                let tuple = TupleBuf::new([Value::Text(value.as_bytes()), Value::Null])
                    .expect("a short row");
                let insert = Insert {
                    relation: Oid::new(*relation),
                    new: tuple.as_tuple(),
                };
                push(&Message::Insert(insert), *commit_lsn);
            }
            let commit = Commit {
                commit_lsn: *commit_lsn,
                end_lsn: *end_lsn,
                commit_time,
            };
            push(&Message::Commit(commit), *commit_lsn);
        }
    }
}

fn relation_of(oid: u32) -> Relation {
    let column = |name: &str, key| Column {
        name: name.to_owned(),
        type_oid: Oid::new(25),
        type_modifier: -1,
        key,
    };
    Relation {
        oid: Oid::new(oid),
        schema: "public".to_owned(),
        table: format!("t{oid}"),
        identity: ReplicaIdentity::Default,
        columns: vec![column("v", true), column("n", false)],
    }
}
