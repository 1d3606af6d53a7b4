//! A paused source: nothing is read, and the slot is watched.

use std::pin::pin;
use std::time::Duration;

use lastgood_proto::key::SourceObject;
use lastgood_proto::manifest::{EndReason, LineageFile};
use lastgood_store::SourceStore;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::{Source, lineage, not_taken_over};
use crate::error::Error;
use crate::events::{Event, Events, SourceState, SourceStatus};
use crate::resume::durable_end;
use crate::watch::{Verdict, Watch};
use crate::worker::Progress;

const INTERVAL: Duration = Duration::from_secs(5);

pub(super) async fn run(
    source: &Source,
    store: &SourceStore,
    events: &Events,
    cancel: &CancellationToken,
) -> Result<(), Error> {
    source.writer.check(store).await?;
    let listing = store.list().await?;
    let Some(newest) = listing.newest().filter(|lineage| !lineage.ended) else {
        return idle(events, cancel).await;
    };
    let mut lost = pin!(source.writer.lost(store));
    let file: LineageFile = store.get_json(&SourceObject::Lineage(newest.id)).await?;
    let durable = durable_end(newest, &file);
    let progress = Progress {
        durable,
        received: durable,
        shape: None,
        observed_through: newest.observed_through(),
        told: false,
        reshaped: 0,
        trouble: None,
    };
    let mut guard = Watch::new(source, &file);
    let mut ticks = interval(INTERVAL);
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            taken_over = &mut lost => return Err(taken_over),
            _ = ticks.tick() => {
                let verdict = guard.look(&progress, events).await?;
                let status = guard.status(SourceState::Paused, &progress, &verdict);
                events.send(Event::Status(status));
                if let Verdict::OverBudget(detail) = verdict {
                    not_taken_over(source, store).await?;
                    let reason = EndReason::BudgetExceeded;
                    let removal = lineage::finish(source, store, reason, detail, events).await?;
                    removal.into_result()?;
                    return idle(events, cancel).await;
                }
            }
        }
    }
}

/// There is no slot to watch.
async fn idle(events: &Events, cancel: &CancellationToken) -> Result<(), Error> {
    events.send(Event::Status(SourceStatus {
        state: SourceState::Paused,
        ..SourceStatus::starting()
    }));
    cancel.cancelled().await;
    Ok(())
}
