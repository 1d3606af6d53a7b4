//! Segments → changes → the target. Reading, decoding and what is made of a record happen on a thread of
//! their own: net changes are gathered there, or batches for ordered replay are made one ahead of the
//! server that applies the last one.

use std::sync::Arc;
use std::time::Duration;

use lastgood_proto::Lsn;
use lastgood_proto::segment::Record;
use lastgood_store::{SourceStore, failpoint};
use tokio::sync::{mpsc, watch};
use tokio::time::interval;
use tokio_postgres::Client;

use crate::apply::{Applier, Batch, Replayed};
use crate::batch::Batcher;
use crate::catalog::Tables;
use crate::changes::{BaseTables, Changes, Range, Reached};
use crate::net::{Gatherer, Net};
use crate::partial::Partial;
use crate::plan::Plan;
use crate::segments::{Segment, Segments};
use crate::sequences::Samples;
use crate::{Error, catalog};

/// How often what was gathered is reported.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The result of a replay that came to its end.
pub(crate) struct Outcome {
    pub(crate) replayed: Replayed,
    pub(crate) samples: Samples,
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
                false => Flow::Stop,
            }
        };
        let samples = reader.run(|item| match item {
            Item::Segment(encoding) => Ok(send(batcher.segment(encoding))),
            Item::Record(record) => Ok(send(batcher.feed(record)?)),
            Item::End => Ok(send(batcher.finish())),
        })?;
        Ok::<_, Error>((batcher.reached(), samples))
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
    let (reached, samples) = reading.await??;
    source.is_end(reached)?;
    Ok(Outcome {
        replayed: outcome,
        samples,
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
            let samples = reader.run(|item| match item {
                Item::Segment(encoding) => Ok(gatherer.segment(encoding)),
                // Nobody wants it any more.
                Item::Record(_) if sender.is_closed() => Ok(Flow::Stop),
                Item::Record(record) => {
                    let flow = gatherer.feed(record)?;
                    if let Some(replayed) = gatherer.committed() {
                        sender.send_replace(replayed);
                    }
                    Ok(flow)
                }
                Item::End => Ok(Flow::GoOn),
            })?;
            Ok::<_, Error>((gatherer, samples))
        });
        // Looked at now and then: to be woken for each commit costs more than to gather it.
        let mut looks = interval(LOOK_INTERVAL);
        let (gatherer, samples) = loop {
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
        let last = *progress.borrow();
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
                return Ok((net, Some(Outcome { replayed, samples })));
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
        let only = self.plan.partial.as_ref().map(Partial::names);
        Changes::new(range, tables, Arc::clone(&self.base), only)
    }

    fn reader(&self) -> Reader {
        let segments = |planned: &[crate::PlannedSegment]| {
            let keys = planned.iter().map(|planned| (*planned).into());
            Segments::new(self.store.clone(), self.plan.lineage, keys)
        };
        Reader {
            needed: segments(&self.plan.segments),
            following: segments(&self.plan.following),
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
    Stop,
}

/// What a reader comes upon.
enum Item<'a> {
    /// A segment with values in this encoding.
    Segment(&'a str),
    Record(Record),
    /// All needed segments were read.
    End,
}

struct Reader {
    needed: Segments,
    following: Segments,
    unnamed_encoding: &'static str,
    samples: Samples,
}

impl Reader {
    fn run(mut self, mut take: impl FnMut(Item) -> Result<Flow, Error>) -> Result<Samples, Error> {
        // Every needed segment is read to its footer, which vouches for what came before.
        while let Some(mut segment) = self.needed.next()? {
            let encoding = segment.header().encoding.as_deref();
            let encoding = encoding.unwrap_or(self.unnamed_encoding);
            if take(Item::Segment(encoding))? == Flow::Stop {
                return Ok(self.samples);
            }
            while let Some(record) = segment.next()? {
                if let Record::Truncate {
                    rels,
                    restart_identity: true,
                    ..
                } = &record
                {
                    self.samples.restart(rels);
                }
                if let Record::Sequences { lsn, samples } = record {
                    self.samples.see(lsn, samples);
                } else if take(Item::Record(record))? == Flow::Stop {
                    return Ok(self.samples);
                }
            }
            self.samples.read_to(end(&segment));
        }
        if take(Item::End)? == Flow::Stop {
            return Ok(self.samples);
        }
        while !self.samples.found()
            && let Some(mut segment) = self.following.next()?
        {
            while let Some(record) = segment.next()? {
                match record {
                    Record::Sequences { lsn, samples } => self.samples.see(lsn, samples),
                    Record::Truncate {
                        rels,
                        restart_identity: true,
                        ..
                    } => self.samples.restart(&rels),
                    _ => {}
                }
            }
            self.samples.read_to(end(&segment));
        }
        Ok(self.samples)
    }
}

/// Of a segment that was read.
fn end(segment: &Segment) -> Lsn {
    segment.footer().map_or(Lsn::INVALID, |footer| footer.end)
}
