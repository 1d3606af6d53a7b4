//! Segments → changes → the target. Segments are read and decoded on one thread, and what is made of a
//! record on the next: net changes are gathered there, or batches for ordered replay are made one ahead of
//! the server that applies the last one.

use std::sync::mpsc::{channel, sync_channel};
use std::sync::{Arc, Weak};

use lastgood_proto::Lsn;
use lastgood_proto::segment::IsWanted;
use lastgood_store::{SourceStore, failpoint};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::interval;
use tokio_postgres::Client;

use crate::apply::{Applier, Batch, Replayed};
use crate::batch::Batcher;
use crate::catalog::Tables;
use crate::changes::{BaseTables, Changes, Range, Reached};
use crate::net::{Gatherer, Net};
use crate::plan::Plan;
use crate::relay::{Item, Relay};
use crate::report::LOOK_INTERVAL;
use crate::segments::{Segment, Segments};
use crate::sequences::Samples;
use crate::{Error, catalog};

/// What was read and waits, besides what is being read and taken.
const BATCHES_AHEAD: usize = 1;

/// The result of a replay that came to its end.
pub(crate) struct Outcome {
    pub(crate) replayed: Replayed,
    pub(crate) reading: Reading,
}

/// What a plan's changes are read from, and what they are bound to.
pub(crate) struct Source<'a> {
    pub(crate) plan: &'a Plan,
    pub(crate) store: &'a SourceStore,
    pub(crate) base: Arc<BaseTables>,
    /// Of the source's database: that of values in segments that do not say it.
    pub(crate) server_encoding: &'a str,
}

/// Replays what the plan keeps, from where `replayed` left off. `report` is told after each commit.
pub(crate) async fn replay(
    source: &Source<'_>,
    client: &Client,
    replayed: Replayed,
    report: &(dyn Fn(Replayed) + Sync),
) -> Result<Outcome, Error> {
    source.is_whole()?;
    let tables = Arc::new(catalog::tables(client).await?);
    let (sender, mut batches) = mpsc::channel(1);
    let range = source.range(replayed);
    let mut batcher = Batcher::new(source.changes(range, tables));
    let reader = source.reader();
    let reading = tokio::task::spawn_blocking(move || {
        // Ends early, without an error, if nobody takes the batches any more.
        let send = |batch: Option<Batch>| {
            let is_taken = batch.is_none_or(|batch| sender.blocking_send(batch).is_ok());
            match is_taken {
                true => Flow::GoOn,
                false => Flow::Enough,
            }
        };
        let reading = reader.run(|item| match item {
            Item::Segment(encoding) => Ok(send(batcher.segment(encoding))),
            Item::Record(record, rows) => Ok(send(batcher.feed(record, rows)?)),
            Item::Pause => Ok(Flow::GoOn),
            Item::End => Ok(send(batcher.finish())),
        })?;
        Ok::<_, Error>((batcher.reached(), reading))
    });
    let mut applier = Applier::new(client, replayed);
    let mut outcome = replayed;
    while let Some(batch) = batches.recv().await {
        let committed = batch.commit;
        applier.apply(batch).await?;
        if let Some(replayed) = committed {
            outcome = replayed;
            report(replayed);
            failpoint!("restore.replay");
        }
    }
    let (reached, reading) = reading.await??;
    source.is_end(reached)?;
    Ok(Outcome {
        replayed: outcome,
        reading,
    })
}

/// Gathers the net effect of what the plan keeps, or of as much of it, from its beginning, as fits
/// `bytes_max` of memory. Of all of it, then with the outcome; what is left is to be replayed. `report` is
/// told how far it is now and then.
pub(crate) async fn gather(
    source: &Source<'_>,
    client: &Client,
    encoding: &str,
    bytes_max: usize,
    report: &(dyn Fn(Replayed) + Sync),
) -> Result<(Net, Option<Outcome>), Error> {
    source.is_whole()?;
    let tables = Arc::new(catalog::tables(client).await?);
    let mut range = source.range(Replayed::default());
    let end = range.last_kept;
    loop {
        let changes = source.changes(range, Arc::clone(&tables));
        let stop_after = range.last_kept.filter(|_| range.last_kept != end);
        let mut gatherer = Gatherer::new(changes, encoding.to_owned(), bytes_max, stop_after);
        let reader = source.reader();
        let (sender, mut progress) = watch::channel(Replayed::default());
        let mut gathering = tokio::task::spawn_blocking(move || {
            let reading = reader.run(|item| match item {
                Item::Segment(encoding) => Ok(gatherer.segment(encoding)),
                Item::Record(record, rows) => gatherer.feed(record, rows),
                // Nobody wants it any more.
                Item::Pause if sender.is_closed() => Ok(Flow::Enough),
                Item::Pause => {
                    sender.send_replace(gatherer.replayed());
                    Ok(Flow::GoOn)
                }
                Item::End => Ok(Flow::GoOn),
            })?;
            Ok::<_, Error>((gatherer, reading))
        });
        // Looked at now and then: to be woken for each commit costs more than to gather it.
        let mut looks = interval(LOOK_INTERVAL);
        let (gatherer, reading) = loop {
            tokio::select! {
                gathered = &mut gathering => break gathered??,
                _ = looks.tick() => {
                    // Unless it is done meanwhile.
                    if let Ok(true) = progress.has_changed() {
                        report(*progress.borrow_and_update());
                    }
                }
            }
        };
        let last = gatherer.replayed();
        if last.transactions > 0 {
            report(last);
        }
        match gatherer.halted() {
            // Part of a transaction is in it: once more, up to the one before.
            Some(halted) => match halted.last_whole {
                None => return Ok((Net::default(), None)),
                last => range.last_kept = last,
            },
            None if gatherer.is_complete() => {
                source.is_end(gatherer.reached())?;
                let net = gatherer.finish();
                let replayed = net.replayed;
                return Ok((net, Some(Outcome { replayed, reading })));
            }
            None => return Ok((gatherer.finish(), None)),
        }
    }
}

impl Source<'_> {
    /// What is read must reach the base's own moment, if its rows are from before.
    fn is_whole(&self) -> Result<(), Error> {
        let point = self.plan.base.consistent_point;
        let end = self
            .plan
            .segments
            .last()
            .map_or(Lsn::INVALID, |last| last.end);
        match end < point && !self.base.borrowed.is_empty() {
            true => Err(Error::SegmentsMissing {
                lineage: self.plan.lineage,
                from: end,
                to: point,
            }),
            false => Ok(()),
        }
    }

    fn range(&self, replayed: Replayed) -> Range {
        let last = self.plan.stop.last_kept.as_ref();
        Range {
            from: self.plan.base.consistent_point,
            rows_from: self.base.rows_from,
            last_kept: last.map(|kept| kept.commit_lsn),
            replayed,
        }
    }

    fn changes(&self, range: Range, tables: Arc<Tables>) -> Changes {
        Changes::new(range, tables, Arc::clone(&self.base))
    }

    fn reader(&self) -> Reader {
        let segments = |planned: &[crate::PlannedSegment]| {
            let keys = planned.iter().map(|planned| (*planned).into());
            Segments::new(self.store.clone(), self.plan.lineage, keys)
        };
        let base = Arc::clone(&self.base);
        let is_chosen: IsWanted = Arc::new(move |relation| base.is_chosen(relation));
        Reader {
            needed: segments(&self.plan.segments)
                .only(self.base.only.is_some().then_some(is_chosen)),
            following: segments(&self.plan.following).only(Some(Arc::new(|_| false))),
            unnamed_encoding: match self.server_encoding {
                "SQL_ASCII" => "SQL_ASCII",
                _ => "UTF8",
            },
            samples: Samples::new(self.plan.stop.sequences_at),
        }
    }

    /// What was read must end with the transaction that the plan names.
    fn is_end(&self, reached: Option<Reached>) -> Result<(), Error> {
        let wanted = self.plan.stop.last_kept.as_ref().map(|kept| Reached {
            xid: kept.xid,
            commit_lsn: kept.commit_lsn,
        });
        match reached == wanted {
            true => Ok(()),
            false => Err(Error::OtherEnd {
                planned: wanted.map(|wanted| wanted.commit_lsn),
                reached: reached.map(|reached| reached.commit_lsn),
            }),
        }
    }
}

/// Whether a reader is to read on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flow {
    GoOn,
    /// No change that comes counts.
    Enough,
}

struct Reader {
    needed: Segments,
    following: Segments,
    unnamed_encoding: &'static str,
    samples: Samples,
}

impl Reader {
    /// Reads on a thread of its own, some batches ahead of `take`, which runs on this one until it has enough.
    fn run(self, mut take: impl FnMut(Item<'_>) -> Result<Flow, Error>) -> Result<Reading, Error> {
        let (sender, batches) = sync_channel(BATCHES_AHEAD);
        let (giver, taken) = channel();
        let wanted = Arc::new(());
        let is_wanted = Arc::downgrade(&wanted);
        let runtime = Handle::current();
        let task = runtime.spawn_blocking(move || self.read(Relay::new(sender, taken), &is_wanted));
        let reading = Reading {
            task,
            _wanted: wanted,
        };
        for mut batch in batches {
            if batch.take(&mut take)? == Flow::Enough {
                return Ok(reading);
            }
            // Nobody needs it if all was read.
            let _ = giver.send(batch);
        }
        // It ended before its end, and says why.
        runtime
            .block_on(reading.end())
            .and(Err(Error::UnexpectedRecord))
    }

    fn read(mut self, mut relay: Relay, wanted: &Weak<()>) -> Result<Samples, Error> {
        while let Some(segment) = self.needed.next()? {
            let encoding = segment.header().encoding.as_deref();
            relay.segment(encoding.unwrap_or(self.unnamed_encoding));
            if !self.segment(segment, &mut relay, wanted)? {
                return Ok(self.samples);
            }
        }
        relay.end();
        while !self.samples.found()
            && let Some(segment) = self.following.next()?
            && self.segment(segment, &mut relay, wanted)?
        {}
        Ok(self.samples)
    }

    /// To its footer, which vouches for what came before, as long as somebody wants it.
    fn segment(
        &mut self,
        mut segment: Segment,
        relay: &mut Relay,
        wanted: &Weak<()>,
    ) -> Result<bool, Error> {
        while wanted.strong_count() > 0 {
            let Some(record) = segment.next_into(relay.rows())? else {
                self.samples.read_to(end(&segment));
                // Of rows that nobody wants a batch takes no room, and would not be full for long.
                relay.hand_on();
                return Ok(true);
            };
            self.samples.look(&record);
            relay.record(record);
        }
        Ok(false)
    }
}

/// What is still being read: the rest of the last segment, and where sequences stood. Dropped, it ends.
pub(crate) struct Reading {
    task: JoinHandle<Result<Samples, Error>>,
    _wanted: Arc<()>,
}

impl Reading {
    /// Only then is what was read vouched for.
    pub(crate) async fn end(self) -> Result<Samples, Error> {
        self.task.await?
    }
}

/// Of a segment that was read.
fn end(segment: &Segment) -> Lsn {
    segment.footer().map_or(Lsn::INVALID, |footer| footer.end)
}
