//! Segments → batches → the target. Reading, decoding and building COPY text happen on a thread of
//! their own, one batch ahead of the server that applies the last one.

use std::collections::HashMap;
use std::sync::Arc;

use lastgood_proto::Oid;
use lastgood_proto::segment::Record;
use lastgood_store::SourceStore;
use tokio::sync::mpsc;
use tokio_postgres::Client;

use crate::apply::{Applier, Batch, Replayed};
use crate::batch::{Batcher, Range, Reached};
use crate::catalog::Tables;
use crate::partial::Partial;
use crate::plan::Plan;
use crate::segments::Segments;
use crate::sequences::Samples;
use crate::{Error, catalog};

/// The result of a replay that came to its end.
pub(crate) struct Outcome {
    pub(crate) replayed: Replayed,
    pub(crate) samples: Samples,
}

/// Replays what the plan keeps, from where `replayed` left off. `report` is told after each commit.
pub(crate) async fn replay(
    plan: &Plan,
    store: &SourceStore,
    client: &Client,
    base: Arc<HashMap<(String, String), Oid>>,
    server_encoding: &str,
    replayed: Replayed,
    report: &(dyn Fn(Replayed) + Sync),
) -> Result<Outcome, Error> {
    let tables = Arc::new(catalog::tables(client).await?);
    let (sender, mut batches) = mpsc::channel(1);
    let reader = Reader::new(plan, store, tables, base, server_encoding, replayed);
    let reading = tokio::task::spawn_blocking(move || reader.run(&sender));
    let mut applier = Applier::new(client, replayed);
    let mut outcome = replayed;
    while let Some(batch) = batches.recv().await {
        let batch: Batch = batch;
        let committed = batch.commit;
        applier.apply(batch).await?;
        if let Some(replayed) = committed {
            outcome = replayed;
            report(replayed);
        }
    }
    let (reached, samples) = reading.await??;
    let wanted = plan.stop.last_kept.as_ref().map(|kept| Reached {
        xid: kept.xid,
        commit_lsn: kept.commit_lsn,
    });
    if reached != wanted {
        return Err(Error::OtherEnd {
            planned: wanted.map(|wanted| wanted.commit_lsn),
            reached: reached.map(|reached| reached.commit_lsn),
        });
    }
    Ok(Outcome {
        replayed: outcome,
        samples,
    })
}

struct Reader {
    needed: Segments,
    following: Segments,
    batcher: Batcher,
    /// Of values in segments that do not say it.
    unnamed_encoding: &'static str,
    samples: Samples,
}

impl Reader {
    fn new(
        plan: &Plan,
        store: &SourceStore,
        tables: Arc<Tables>,
        base: Arc<HashMap<(String, String), Oid>>,
        server_encoding: &str,
        replayed: Replayed,
    ) -> Self {
        let range = Range {
            from: plan.base.consistent_point,
            last_kept: plan.stop.last_kept.as_ref().map(|kept| kept.commit_lsn),
            replayed,
        };
        let only = plan.partial.as_ref().map(Partial::names);
        let segments = |planned: &[crate::PlannedSegment]| {
            let keys = planned.iter().map(|planned| (*planned).into());
            Segments::new(store.clone(), plan.lineage, keys)
        };
        Self {
            needed: segments(&plan.segments),
            following: segments(&plan.following),
            batcher: Batcher::new(range, tables, base, only),
            unnamed_encoding: match server_encoding {
                "SQL_ASCII" => "SQL_ASCII",
                _ => "UTF8",
            },
            samples: Samples::new(plan.stop.sequences_at),
        }
    }

    /// Ends early, without an error, if nobody takes the batches any more.
    fn run(mut self, sender: &mpsc::Sender<Batch>) -> Result<(Option<Reached>, Samples), Error> {
        // Every needed segment is read to its footer, which vouches for what came before.
        while let Some(mut segment) = self.needed.next()? {
            let encoding = segment.header().encoding.as_deref();
            let encoding = encoding.unwrap_or(self.unnamed_encoding);
            if let Some(batch) = self.batcher.segment(encoding)
                && sender.blocking_send(batch).is_err()
            {
                return Ok((None, self.samples));
            }
            while let Some(record) = segment.next()? {
                if let Record::Sequences { lsn, samples } = record {
                    self.samples.see(lsn, samples);
                } else if let Some(batch) = self.batcher.feed(record)?
                    && sender.blocking_send(batch).is_err()
                {
                    return Ok((None, self.samples));
                }
            }
        }
        if let Some(batch) = self.batcher.finish()
            && sender.blocking_send(batch).is_err()
        {
            return Ok((None, self.samples));
        }
        while !self.samples.found()
            && let Some(mut segment) = self.following.next()?
        {
            while let Some(record) = segment.next()? {
                if let Record::Sequences { lsn, samples } = record {
                    self.samples.see(lsn, samples);
                }
            }
        }
        Ok((self.batcher.reached(), self.samples))
    }
}
