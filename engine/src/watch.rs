//! The watch over a slot: what it costs the source, whether it still lives, whether every table is
//! captured. One query in a few seconds on a session of its own.
//!
//! It decides nothing but the budget: a lost slot shows on the stream and is judged at the next
//! start, by [`crate::resume`].

use std::collections::BTreeSet;
use std::time::Duration;

use lastgood_pg::slot::{SlotInfo, slot_info};
use lastgood_pg::{Purpose, Session};
use lastgood_proto::manifest::{EndReason, LineageFile};
use lastgood_proto::{Lsn, Oid, PgTimestamp};
use tokio::time::Instant;

use crate::error::{Error, chain};
use crate::events::{Event, Events, SourceState, SourceStatus, Uncovered};
use crate::marks::clock;
use crate::publication;
use crate::shape::{Fingerprints, few};
use crate::source::Source;
use crate::worker::Progress;

const SLOT_INTERVAL: Duration = Duration::from_secs(5);
const TABLES_INTERVAL: Duration = Duration::from_secs(15);

const PATIENCE: Duration = Duration::from_secs(10);

const POSITION: &str = "SELECT pg_current_wal_flush_lsn()::text";

/// What a look said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    Well,
    Degraded(String),
    /// The slot holds back more WAL than it may.
    OverBudget(String),
}

/// See the module's documentation.
pub(crate) struct Watch {
    source: Source,
    file: LineageFile,
    session: Option<Session>,
    seen: Option<Seen>,
    /// Why nothing can be seen.
    blind: Option<String>,
    looked: Option<Instant>,
    /// So many looks in a row have found nobody who reads from the slot.
    deserted: u32,
    compared: Option<Instant>,
    /// What was told of; none before the first look, which is always told.
    uncovered: Option<Vec<Uncovered>>,
    lost_identity: Vec<(String, String)>,
    unmatched: Vec<String>,
    /// What the last look found published.
    published: BTreeSet<Oid>,
    /// The shape that the publication was last compared under.
    shape: Option<Fingerprints>,
    alerted: bool,
}

struct Seen {
    slot: Option<SlotInfo>,
    wal_end: Lsn,
    clock: PgTimestamp,
}

impl Watch {
    pub(crate) fn new(source: &Source, file: &LineageFile) -> Self {
        Self {
            source: source.clone(),
            file: file.clone(),
            session: None,
            seen: None,
            blind: None,
            looked: None,
            deserted: 0,
            compared: None,
            uncovered: None,
            lost_identity: Vec::new(),
            unmatched: Vec::new(),
            published: BTreeSet::new(),
            alerted: false,
            shape: None,
        }
    }

    /// Only once the stream has begun is this certain: nobody else can move the slot any more, and
    /// the stream would silently begin at the slot's position if that were the greater.
    ///
    /// # Errors
    /// [`Error::Gap`] if the server will not send what follows `durable`.
    pub(crate) async fn check_not_ahead(&mut self, durable: Lsn) -> Result<(), Error> {
        let seen = in_time(self.see()).await?;
        let confirmed = seen.slot.and_then(|slot| slot.confirmed_flush_lsn);
        match confirmed {
            Some(confirmed) if confirmed > durable => Err(Error::Gap {
                reason: EndReason::SlotAhead,
                detail: format!("the slot has confirmed {confirmed}, beyond {durable}"),
            }),
            _ => Ok(()),
        }
    }

    /// Looks if it is time, and judges by what was seen last.
    ///
    /// # Errors
    /// [`Error::Gap`] if the publication is not the one the lineage was begun with.
    pub(crate) async fn look(
        &mut self,
        progress: &Progress,
        events: &Events,
    ) -> Result<Verdict, Error> {
        let due = |last: Option<Instant>, interval| last.is_none_or(|at| at.elapsed() >= interval);
        if due(self.looked, SLOT_INTERVAL) {
            self.looked = Some(Instant::now());
            match in_time(self.see()).await {
                Ok(seen) => {
                    self.blind = None;
                    let slot = seen.slot.as_ref();
                    let is_free = slot.is_some_and(|slot| slot.active_pid.is_none());
                    self.deserted = if is_free { self.deserted + 1 } else { 0 };
                    self.seen = Some(seen);
                }
                Err(error) => self.blind = Some(chain(&error)),
            }
        }
        // A change of shape may be the one that makes the source's own UPDATEs fail.
        let changed = progress.shape != self.shape;
        if (changed || due(self.compared, TABLES_INTERVAL)) && self.blind.is_none() {
            self.compared = Some(Instant::now());
            self.shape.clone_from(&progress.shape);
            match in_time(self.compare(events)).await {
                Ok(()) => {}
                Err(gap @ Error::Gap { .. }) => return Err(gap),
                Err(error) => self.blind = Some(chain(&error)),
            }
        }
        Ok(self.judge(progress, events))
    }

    /// While we stream, a walsender of ours holds the slot. Once it is gone, its farewell is on the way; at the
    /// second look it is lost, as behind a router that has forgotten the connection.
    ///
    /// # Errors
    /// [`Error::Deserted`].
    pub(crate) fn check_read(&self) -> Result<(), Error> {
        match self.deserted {
            ..2 => Ok(()),
            2.. => Err(Error::Deserted {
                slot: self.file.slot.clone(),
            }),
        }
    }

    fn judge(&mut self, progress: &Progress, events: &Events) -> Verdict {
        let budget = self.source.settings.wal_budget_bytes;
        let retained = self.retained();
        if retained >= budget {
            return Verdict::OverBudget(format!(
                "the slot held back {retained} bytes of WAL, the budget is {budget}"
            ));
        }
        let half = retained >= budget / 2;
        if half && !self.alerted {
            events.send(Event::WalBudgetHalf {
                retained_bytes: retained,
                budget_bytes: budget,
            });
        }
        self.alerted = half;
        if let Some(trouble) = &progress.trouble {
            return Verdict::Degraded(trouble.clone());
        }
        if let Some(blind) = &self.blind {
            return Verdict::Degraded(format!("the source cannot be watched: {blind}"));
        }
        if let Some(seen) = &self.seen {
            let name = &self.file.slot;
            let why = match &seen.slot {
                Some(slot) if slot.is_lost() => Some(format!(
                    "the server has invalidated slot {name} ({})",
                    slot.invalidation_reason
                        .as_deref()
                        .unwrap_or("the WAL it needs was removed")
                )),
                Some(_) => None,
                None => Some(format!("slot {name} is gone")),
            };
            if let Some(why) = why {
                return Verdict::Degraded(format!(
                    "{why}: what is committed now is missed until a new lineage begins, which resuming \
                     the source does"
                ));
            }
        }
        if half {
            return Verdict::Degraded(format!(
                "the slot holds back {retained} bytes of WAL, more than half of the budget of \
                 {budget}"
            ));
        }
        if let Some((schema, name)) = self.lost_identity.first() {
            return Verdict::Degraded(format!(
                "{schema}.{name} lost its replica identity and is no longer captured; give it a \
                 primary key and take a base"
            ));
        }
        if !self.unmatched.is_empty() {
            return Verdict::Degraded(format!(
                "no table is called {}, as the setting \"include\" has it: what it means is not captured",
                few(&self.unmatched, " or ")
            ));
        }
        Verdict::Well
    }

    /// What to tell of the source.
    pub(crate) fn status(
        &self,
        state: SourceState,
        progress: &Progress,
        verdict: &Verdict,
    ) -> SourceStatus {
        let durable = progress.durable;
        let lag_bytes = self
            .seen
            .as_ref()
            .map_or(0, |seen| seen.wal_end.bytes_since(durable));
        let age = match (&self.seen, progress.observed_through) {
            (Some(seen), Some(observed)) if lag_bytes > 0 => {
                seen.clock.as_micros().saturating_sub(observed.as_micros()) / 1_000_000
            }
            _ => 0,
        };
        SourceStatus {
            state,
            reason: match verdict {
                Verdict::Well => None,
                Verdict::Degraded(reason) | Verdict::OverBudget(reason) => Some(reason.clone()),
            },
            lineage: Some(self.file.id),
            durable_lsn: Some(durable),
            observed_through: progress.observed_through,
            lag_bytes,
            lag_seconds: u64::try_from(age).unwrap_or(0),
            retained_wal_bytes: self.retained(),
        }
    }

    fn retained(&self) -> u64 {
        let slot = self.seen.as_ref().and_then(|seen| seen.slot.as_ref());
        slot.map_or(0, |slot| slot.retained_bytes)
    }

    async fn session(&mut self) -> Result<Session, Error> {
        match self.session.take() {
            Some(session) => Ok(session),
            None => Ok(Session::connect(&self.source.connection, Purpose::Capture).await?),
        }
    }

    async fn see(&mut self) -> Result<Seen, Error> {
        let session = self.session().await?;
        let slot = slot_info(&session, &self.file.slot).await?;
        let client = session.client();
        let doing = Error::sql("reading the WAL position");
        let row = client.query_one(POSITION, &[]).await.map_err(doing)?;
        let text: String = row.get(0);
        let wal_end = text
            .parse()
            .map_err(|_| Error::Stream(format!("\"{text}\" is no LSN")))?;
        let clock = clock(client).await?;
        // Kept only now: a session that failed half-way is closed.
        self.session = Some(session);
        Ok(Seen {
            slot,
            wal_end,
            clock,
        })
    }

    async fn compare(&mut self, events: &Events) -> Result<(), Error> {
        let session = self.session().await?;
        // From 18 on the walsender does not stop at a publication that is gone: it sends nothing.
        let oid = lastgood_pg::publication::oid(&session, &self.file.publication).await?;
        if oid != Some(self.file.publication_oid) {
            return Err(Error::Gap {
                reason: EndReason::PublicationChanged,
                detail: format!("the publication {} was dropped", self.file.publication),
            });
        }
        let coverage = publication::reconcile(
            &session,
            self.file.publication_oid,
            self.source.id,
            &self.source.settings,
            &self.published,
        )
        .await?;
        self.session = Some(session);
        self.published = coverage.members;
        for (schema, name) in &coverage.removed {
            tracing::error!(
                schema,
                name,
                "a table lost its replica identity and was unpublished"
            );
        }
        self.lost_identity.extend(coverage.removed.iter().cloned());
        self.unmatched = coverage.unmatched;
        if self.uncovered.as_ref() != Some(&coverage.uncovered) {
            events.send(Event::Uncovered {
                tables: coverage.uncovered.clone(),
            });
            self.uncovered = Some(coverage.uncovered);
        }
        Ok(())
    }
}

/// A server that does not answer must not keep a stop or a status waiting. The session goes with the
/// query that was given up.
pub(crate) async fn in_time<T>(work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let silent = |_| Err(Error::Task("the server does not answer".to_owned()));
    tokio::time::timeout(PATIENCE, work)
        .await
        .unwrap_or_else(silent)
}
