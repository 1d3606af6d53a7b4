//! A source that is not captured: its slots are watched all the same.
//!
//! Whatever keeps a source from being captured, its slot goes on holding WAL back on its disk. So
//! this needs nothing but the server: neither a listing nor `lineage.json`, which may be what is
//! damaged. The end is recorded as far as the repository lets us. A slot that somebody reads from
//! is not ours to judge, nor is one of a source that another service has taken over. Tables that lost their replica identity are taken out of the publication
//! here too: their UPDATEs would fail on the source.

use std::collections::BTreeSet;
use std::time::Duration;

use lastgood_pg::slot::slots_with_prefix;
use lastgood_pg::{Purpose, Session};
use lastgood_proto::manifest::EndReason;
use lastgood_store::SourceStore;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;

use super::{Source, lineage, not_taken_over};
use crate::error::{Error, chain};
use crate::events::{Event, Events};
use crate::publication;
use crate::watch::in_time;

const INTERVAL: Duration = Duration::from_secs(5);

pub(super) async fn run(
    source: &Source,
    store: &SourceStore,
    events: &Events,
    cancel: &CancellationToken,
) {
    if not_taken_over(source, store).await.is_err() {
        return cancel.cancelled().await;
    }
    let budget_bytes = source.settings.wal_budget_bytes;
    let (mut alerted, mut dropped) = (false, None);
    let mut ticks = interval(INTERVAL);
    loop {
        tokio::select! {
            biased;
            () = cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let retained_bytes = match in_time(retained(source)).await {
            Ok(retained) => retained,
            Err(error) => {
                let trouble = format!("the source cannot be watched: {}", chain(&error));
                events.send(Event::Idle {
                    retained_bytes: None,
                    trouble: Some(trouble),
                });
                continue;
            }
        };
        if retained_bytes >= budget_bytes && not_taken_over(source, store).await.is_err() {
            return cancel.cancelled().await;
        }
        let half = retained_bytes >= budget_bytes / 2;
        if half && !alerted {
            events.send(Event::WalBudgetHalf {
                retained_bytes,
                budget_bytes,
            });
        }
        alerted = half;
        if retained_bytes >= budget_bytes {
            let detail = format!(
                "while nothing was captured the slot held back {retained_bytes} bytes of WAL, the \
                 budget is {budget_bytes}"
            );
            tracing::error!(detail, "the slot is dropped");
            let reason = EndReason::BudgetExceeded;
            let ended = lineage::finish(source, store, reason, detail.clone(), events).await;
            dropped = Some(match ended.and_then(|removal| removal.into_result()) {
                Ok(()) => format!("{detail}: it is dropped and the lineage ended"),
                Err(error) => format!("{detail}: it is to be dropped: {}", chain(&error)),
            });
        }
        let trouble = dropped.clone().or_else(|| {
            half.then(|| {
                format!(
                    "the slot holds back {retained_bytes} bytes of WAL, more than half of the \
                     budget of {budget_bytes}"
                )
            })
        });
        events.send(Event::Idle {
            retained_bytes: Some(retained_bytes),
            trouble,
        });
    }
}

/// WAL that the server keeps for slots of ours that nobody reads from.
async fn retained(source: &Source) -> Result<u64, Error> {
    let session = Session::connect(&source.connection, Purpose::Capture).await?;
    let name = publication::name(source.id);
    if let Some(oid) = lastgood_pg::publication::oid(&session, &name).await? {
        let before = BTreeSet::new();
        publication::reconcile(&session, oid, source.id, &source.settings, &before).await?;
    }
    let slots = slots_with_prefix(&session, &format!("lastgood_{}_", source.id)).await?;
    session.close().await;
    let held = slots.iter().filter(|slot| slot.active_pid.is_none());
    Ok(held.map(|slot| slot.retained_bytes).max().unwrap_or(0))
}
