//! The stages of a restore, one after the other.

use std::time::Instant;

use lastgood_pg::dump::{ArchiveMaker, Section, TocEntry};
use lastgood_pg::{Canceller, PgTools};
use lastgood_proto::Lsn;
use lastgood_proto::manifest::{BaseManifest, SequenceEntry};
use lastgood_proto::segment::SequenceSample;
use lastgood_store::{SourceStore, failpoint};
use tokio_postgres::Client;

use super::phases::empty_tables;
use super::{Options, Replay, major, of_kind};
use crate::apply::{self, Replayed};
use crate::archive::Archives;
use crate::destination::Destination;
use crate::existing::Existing;
use crate::merge::Waiting;
use crate::net::Net;
use crate::plan::{self, Plan};
use crate::progress_table::{self, Stage};
use crate::report::{Phase, PhaseTime, Progress, Report};
use crate::{
    Error, demands, gather, identity, indexes, leftover, locale, ownership, prune, sequences,
    settings,
};

/// Tells of progress and keeps the time of each phase.
pub(super) struct Tracker<'a> {
    pub(super) report: &'a (dyn Fn(Progress) + Send + Sync),
    pub(super) times: Vec<PhaseTime>,
    pub(super) phase: (Phase, Instant),
}

impl Tracker<'_> {
    pub(super) fn enter(&mut self, phase: Phase) {
        let (before, since) = std::mem::replace(&mut self.phase, (phase, Instant::now()));
        self.times.push(PhaseTime::new(before, since.elapsed()));
        self.now(0, 0, None);
    }

    pub(super) fn now(&self, done: u64, total: u64, replayed: Option<Replayed>) {
        (self.report)(Progress {
            phase: self.phase.0,
            done,
            total,
            transactions: replayed.map_or(0, |replayed| replayed.transactions),
            rows: replayed.map_or(0, |replayed| replayed.rows),
            through: replayed.map(|replayed| replayed.through),
        });
    }
}

pub(super) struct Run<'a> {
    pub(super) plan: &'a Plan,
    pub(super) store: &'a SourceStore,
    pub(super) manifest: &'a BaseManifest,
    pub(super) options: &'a Options,
    pub(super) tracker: Tracker<'a>,
    pub(super) notes: Vec<String>,
    /// Where the tables go from the scratch database that is restored into.
    pub(super) existing: Option<&'a Existing>,
    /// Ends what the existing database does for us.
    pub(super) transferring: Option<Canceller>,
}

impl Run<'_> {
    pub(super) async fn all(&mut self, destination: Destination) -> Result<Report, Error> {
        let Destination {
            config,
            session,
            earlier,
            ..
        } = destination;
        let client = session.client();
        if let Some(existing) = self.existing {
            existing.label(client).await?;
        }
        if let Some(source) = &self.manifest.locale {
            self.notes
                .extend(locale::note(source, &session.locale().await?));
        }
        if self.plan.partial.is_none() {
            let settings = settings::statements(&self.manifest.settings, config.database());
            self.notes
                .extend(settings.map(|statement| format!("not kept: {statement}")));
        }
        let tools = PgTools::discover().await;
        let maker = ArchiveMaker(major(&self.manifest.pg_dump_version));
        let tools = PgTools::for_restore(&tools, session.server_version(), maker)?;
        let archives = Archives {
            store: self.store,
            lineage: self.plan.lineage,
            base: self.plan.base.id,
            tools: &tools,
        };
        let head = archives.head().await?;
        let resumed = earlier.is_some();
        let (stage, mut replayed) = self.begin(client, earlier).await?;

        if stage <= Stage::Schema {
            if self.existing.is_none() {
                let roles = ownership::missing(client, &archives, &head).await?;
                if !roles.is_empty() {
                    let roles = roles.join(", ");
                    tracing::warn!(roles, "not there: what they own and may do is not kept");
                }
            }
            self.tracker.enter(Phase::Schema);
            // Large objects belong to no table; their definitions would make empty ones.
            let is_wanted = |entry: &&TocEntry| !matches!(entry.kind(), "BLOB" | "BLOB METADATA");
            let only: Option<Vec<&TocEntry>> = self
                .plan
                .partial
                .as_ref()
                .map(|_| head.entries.iter().filter(is_wanted).collect());
            let notes = archives
                .definitions(&config, &head, Section::PreData, only.as_deref(), 1)
                .await?;
            self.notes.extend(notes);
            if let Some(partial) = &self.plan.partial {
                let indexes = match self.existing {
                    None => Vec::new(),
                    Some(_) => {
                        let script = archives.script_of(&head, &["INDEX", "CONSTRAINT"]).await?;
                        indexes::statements(&script, &partial.names())
                    }
                };
                let extensions = prune::check(client, partial, &indexes).await?;
                if let Some(existing) = self.existing {
                    existing.has_extensions(client, &extensions).await?;
                }
            }
            failpoint!("restore.schema");
            progress_table::enter(client, Stage::Data).await?;
        }
        let mut merged = None;
        if stage <= Stage::Data {
            let altered = self.altered()?;
            let mut net = Net::default();
            if let Replay::Merged { bytes_max } = self.options.replay {
                self.tracker.enter(Phase::Changes);
                (net, merged) = self.gather(client, &head, bytes_max).await?;
                replayed = net.replayed;
            }
            let waiting = Waiting::new(net, altered, head.encoding.clone());
            self.tracker.enter(Phase::Data);
            if stage == Stage::Data {
                empty_tables(client).await?;
            }
            // What is merged is loaded as it is in the end.
            let looser = match merged {
                Some(_) => Vec::new(),
                None => demands::looser(self.manifest),
            };
            demands::relax(client, &looser).await?;
            self.data(client, &config, &archives, &head, waiting)
                .await?;
            progress_table::loaded(client, &replayed).await?;
        }
        // An attempt that merged everything has not made the keys before.
        let (keys, rest) = self.post_data(&head, merged.is_some() || stage >= Stage::Finish);
        if stage <= Stage::Keys && merged.is_none() {
            self.tracker.enter(Phase::Keys);
            let missing = leftover::missing(client, keys).await?;
            let jobs = self.options.jobs;
            let notes =
                archives.definitions(&config, &head, Section::PostData, Some(&missing), jobs);
            self.notes.extend(notes.await?);
            identity::relax(client).await?;
            progress_table::enter(client, Stage::Replay).await?;
        }
        let outcome = match merged {
            Some(outcome) => outcome,
            None => {
                self.tracker.enter(Phase::Replay);
                self.replay(client, replayed).await?
            }
        };
        // Where everything was merged, the rest was read beside the load.
        let mut samples = outcome.reading.end().await?;
        let mut sequences = 0;
        if stage <= Stage::Replay {
            apply::drop_lookup_indexes(client).await?;
            demands::set_back(client).await?;
            identity::set_back(client).await?;
            let unsure;
            let (since, floor) = self.sequences_before().await?;
            samples.floor = floor;
            (sequences, unsure) = sequences::set(client, &samples, self.manifest, since).await?;
            self.notes.extend(unsure);
            progress_table::enter(client, Stage::Finish).await?;
        }
        if stage <= Stage::Finish {
            self.tracker.enter(Phase::Constraints);
            failpoint!("restore.indexes");
            let rest = match stage {
                Stage::Finish => leftover::missing(client, rest).await?,
                _ => rest,
            };
            self.constraints(client, &config, &archives, &head, rest)
                .await?;
            self.tracker.enter(Phase::Finish);
            failpoint!("restore.finish");
        }
        let mut partial = self.plan.partial.clone();
        if let Some(partial) = &mut partial {
            if stage <= Stage::Prune {
                progress_table::enter(client, Stage::Prune).await?;
                prune::prune(client, partial).await?;
            }
            partial.left_out.extend(prune::left_out(client).await?);
        }
        if let Some(existing) = self.existing {
            if stage <= Stage::Prune {
                gather::for_good(client, existing).await?;
            }
            self.transfer(existing, session, &head).await?;
        } else {
            let is_partial = partial.is_some();
            let notes = ownership::apply(client, &archives, &head, is_partial).await?;
            self.notes.extend(notes);
            progress_table::drop(client).await?;
            if !is_partial {
                // Last: from here on a user's own code may run.
                let triggers: Vec<&TocEntry> = of_kind(&head, "EVENT TRIGGER").collect();
                let notes =
                    archives.definitions(&config, &head, Section::PostData, Some(&triggers), 1);
                self.notes.extend(notes.await?);
            }
            session.close().await;
        }
        let database = self.existing.map_or(config.database(), Existing::database);
        let database = database.to_owned();
        let (phase, since) = self.tracker.phase;
        self.tracker
            .times
            .push(PhaseTime::new(phase, since.elapsed()));
        Ok(Report {
            source: self.plan.source,
            lineage: self.plan.lineage,
            base: self.plan.base.id,
            database,
            reached: self.plan.stop.last_kept.clone(),
            not_before: self.plan.stop.not_before,
            transactions: outcome.replayed.transactions,
            rows: outcome.replayed.rows,
            sequences,
            resumed,
            phases: std::mem::take(&mut self.tracker.times),
            notes: std::mem::take(&mut self.notes),
            not_covered: self.plan.not_covered.clone(),
            partial,
        })
    }

    /// What is known of sequences from before the target, for where no sample is, and from when: what the base
    /// has itself is as of when it was taken, which may be later.
    async fn sequences_before(&self) -> Result<(Lsn, Vec<SequenceSample>), Error> {
        let base = &self.plan.base;
        let sample = |entry: &SequenceEntry| {
            Some(SequenceSample {
                schema: entry.schema.clone(),
                name: entry.name.clone(),
                last_value: entry.last_value.clone()?,
                is_called: entry.is_called,
            })
        };
        if base.consistent_point == base.id.consistent_point() {
            let own = self.manifest.sequences.iter().filter_map(sample);
            return Ok((base.consistent_point, own.collect()));
        }
        let loans = plan::lent(self.store, self.plan.lineage, self.manifest, None).await?;
        let lent = loans.iter().flat_map(|loan| &loan.manifest.sequences);
        Ok((Lsn::INVALID, lent.filter_map(sample).collect()))
    }

    /// The stage to go on with, and how far an earlier attempt came.
    async fn begin(
        &self,
        client: &Client,
        earlier: Option<progress_table::State>,
    ) -> Result<(Stage, Replayed), Error> {
        // Which base it is; where it stops may differ, as long as nothing is past it yet.
        let mut plan = format!(
            "{}/{}/{}",
            self.plan.source, self.plan.lineage, self.plan.base.id
        );
        if let Some(partial) = &self.plan.partial {
            plan.push('/');
            plan.push_str(&partial.fingerprint());
        }
        let Some(state) = earlier else {
            progress_table::create(client, &plan).await?;
            let replayed = Replayed {
                through: Lsn::INVALID,
                transactions: 0,
                rows: 0,
            };
            return Ok((Stage::Schema, replayed));
        };
        let refused = |why: String| Err(Error::NotResumable { why });
        if state.plan != plan {
            return refused(format!(
                "it was begun from {}, this plan is from {plan}",
                state.plan
            ));
        }
        if state.stage == Stage::Schema {
            return refused("it was interrupted before its tables were there".to_owned());
        }
        // What is replayed below is part of the base: it belongs to rows that are borrowed.
        let point = self.manifest.consistent_point;
        let stop = self.plan.stop.last_kept.as_ref();
        let stop = stop.map_or(point, |kept| kept.end_lsn);
        let through = state.replayed.through.max(point);
        if stop < through {
            return refused(format!(
                "it has already gone on to {through}, past this target"
            ));
        }
        if state.stage >= Stage::Finish && stop != through {
            return refused(format!(
                "its changes ended at {through}, this target is another"
            ));
        }
        Ok((state.stage, state.replayed))
    }
}
