//! Restores as jobs: begun, followed, cancelled; their progress and end kept in the catalog.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lastgood_restore::{Interrupt, Progress};
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::app::Shared;
use crate::catalog::{Ending, ErrorClass, RestoreRow, RestoreStatus, SourceRow};
use crate::clock::now;
use crate::execute::{self, Order, Stopped};
use crate::http::{Code, Problem, ProgressView, ReportView, chain};

/// Progress within a phase is noted at most this often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(500);
/// Restores at the same time: each has sessions, child processes and buffers of its own.
const RESTORES_MAX: usize = 64;
/// Clients that follow restores at the same time.
const FOLLOWERS_MAX: usize = 64;

struct Running {
    cancel: CancellationToken,
    /// Counts what was written to the catalog.
    written: watch::Sender<u64>,
}

pub(crate) struct RestoreJobs {
    running: Mutex<BTreeMap<String, Running>>,
    followers: Arc<Semaphore>,
}

impl Default for RestoreJobs {
    fn default() -> Self {
        Self {
            running: Mutex::default(),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
        }
    }
}

impl RestoreJobs {
    /// Tell a restore to stop; false if it has ended.
    pub(crate) fn cancel(&self, id: &str) -> bool {
        let running = self.lock();
        let found = running.get(id);
        if let Some(job) = found {
            job.cancel.cancel();
        }
        found.is_some()
    }

    /// Told whenever there is more of a restore in the catalog; none if it has ended.
    pub(crate) fn subscribe(&self, id: &str) -> Option<watch::Receiver<u64>> {
        self.lock().get(id).map(|job| job.written.subscribe())
    }

    /// A place for one more client that follows a restore.
    ///
    /// # Errors
    /// There are as many as may be.
    pub(crate) fn follow(&self) -> Result<OwnedSemaphorePermit, Problem> {
        let place = Arc::clone(&self.followers).try_acquire_owned();
        place.map_err(|_| {
            Problem::new(Code::TooManyFollowers).detail(format!(
                "{FOLLOWERS_MAX} clients follow restores already: ask for the restore itself now and then"
            ))
        })
    }

    /// A place for one more restore.
    fn enter(&self, id: &str, running: Running) -> Result<(), Problem> {
        let mut all = self.lock();
        if all.len() >= RESTORES_MAX {
            return Err(Problem::new(Code::TooManyRestores).detail(format!(
                "{RESTORES_MAX} restores are running: wait for one of them, or cancel it"
            )));
        }
        all.insert(id.to_owned(), running);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Note a restore and begin it.
pub(crate) async fn begin(
    app: &Shared,
    source: &SourceRow,
    request: Value,
    plan: Value,
    order: Order,
) -> Result<RestoreRow, Problem> {
    let id = crate::secrets::job_id().map_err(|_| Problem::new(Code::Internal))?;
    let row = RestoreRow {
        id: id.clone(),
        source: source.id,
        source_name: source.name.clone(),
        request,
        plan,
        status: RestoreStatus::Planned,
        phase: None,
        progress: None,
        report: None,
        error: None,
        error_class: None,
        left_behind: None,
        created: now(),
        started: None,
        finished: None,
    };
    let (cancel, written) = (CancellationToken::new(), watch::Sender::new(0));
    let running = Running {
        cancel: cancel.clone(),
        written: written.clone(),
    };
    app.restores.enter(&id, running)?;
    if let Err(error) = app.catalog.insert_restore(row.clone()).await {
        app.restores.lock().remove(&id);
        return Err(error.into());
    }
    let task_app = Arc::clone(app);
    app.tracker.spawn(async move {
        let run = run(Arc::clone(&task_app), id.clone(), order, cancel, written);
        Box::pin(run).await;
        task_app.restores.lock().remove(&id);
    });
    Ok(row)
}

#[tracing::instrument(skip_all, fields(restore = id))]
async fn run(
    app: Shared,
    id: String,
    order: Order,
    cancel: CancellationToken,
    written: watch::Sender<u64>,
) {
    let source = order.plan.source;
    tracing::info!(%source, target = %order.plan.target, "a restore begins");
    let (progress_in, progress) = watch::channel(None);
    let noted = note_progress(Arc::clone(&app), id.clone(), progress, written.clone());
    let work = work(
        Arc::clone(&app),
        id.clone(),
        order,
        cancel,
        progress_in,
        written.clone(),
    );
    let (outcome, ()) = tokio::join!(work, noted);
    let (Ok(ending) | Err(ending)) = outcome;
    match &ending {
        Ending::Succeeded { .. } => tracing::info!("a restore is complete"),
        Ending::Cancelled { left_behind } => {
            tracing::info!(left_behind, "a restore was cancelled");
        }
        Ending::Failed {
            error, left_behind, ..
        } => {
            tracing::warn!(error, left_behind, "a restore failed");
        }
    }
    if let Err(error) = app.catalog.end_restore(id, ending, now()).await {
        let error = &error as &dyn std::error::Error;
        tracing::error!(error, "the end of a restore could not be noted");
    }
    written.send_modify(|count| *count += 1);
}

/// Execute, and say how it ended; dropping `progress` at the end ends who reads it.
async fn work(
    app: Shared,
    id: String,
    order: Order,
    cancel: CancellationToken,
    progress: watch::Sender<Option<Progress>>,
    written: watch::Sender<u64>,
) -> Result<Ending, Ending> {
    app.catalog
        .start_restore(id, now())
        .await
        .map_err(|error| failed(&error))?;
    written.send_modify(|count| *count += 1);
    let store = app
        .repository
        .source(order.plan.source)
        .await
        .map_err(|error| failed(&error))?;
    let tell = move |step| {
        progress.send_replace(Some(step));
    };
    let interrupt = Interrupt {
        cancel,
        shutdown: app.shutdown.clone(),
    };
    match execute::execute(order, store, tell, interrupt).await {
        Ok(report) => serde_json::to_value(ReportView::from(&report))
            .map(|report| Ending::Succeeded { report })
            .map_err(|error| failed(&error)),
        Err(Stopped::Cancelled { left_behind }) if app.shutdown.is_cancelled() => {
            Err(Ending::Failed {
                error: "the service was stopped while this restore ran".to_owned(),
                class: ErrorClass::Transient,
                left_behind,
            })
        }
        Err(Stopped::Cancelled { left_behind }) => Err(Ending::Cancelled { left_behind }),
        Err(Stopped::Failed { error, left_behind }) => Err(Ending::Failed {
            class: error.class().into(),
            error: chain(&error),
            left_behind,
        }),
    }
}

fn failed(error: &dyn std::error::Error) -> Ending {
    Ending::Failed {
        error: chain(error),
        class: ErrorClass::Transient,
        left_behind: None,
    }
}

/// Write the newest progress into the catalog, now and then, until the restore has ended.
async fn note_progress(
    app: Shared,
    id: String,
    mut progress: watch::Receiver<Option<Progress>>,
    written: watch::Sender<u64>,
) {
    loop {
        let ended = progress.changed().await.is_err() || progress.has_changed().is_err();
        let newest = *progress.borrow_and_update();
        if let Some(newest) = newest {
            let phase = newest.phase.as_str().to_owned();
            let noted = match serde_json::to_value(ProgressView::from(newest)) {
                Ok(value) => {
                    app.catalog
                        .restore_progress(id.clone(), phase, value, now())
                        .await
                }
                Err(_) => Ok(()),
            };
            if let Err(error) = noted {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "the progress of a restore could not be noted");
            }
            written.send_modify(|count| *count += 1);
        }
        if ended {
            return;
        }
        // A new phase is told at once, more of the same now and then.
        let phase = newest.map(|step| step.phase);
        let is_new_phase = async {
            // An error is the end, which the next look will find.
            let _ = progress
                .wait_for(|step| step.map(|step| step.phase) != phase)
                .await;
            progress.mark_changed();
        };
        tokio::select! {
            () = is_new_phase => {}
            () = tokio::time::sleep(PROGRESS_INTERVAL) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restores_and_followers_are_bounded() {
        let jobs = RestoreJobs::default();
        let running = || Running {
            cancel: CancellationToken::new(),
            written: watch::Sender::new(0),
        };
        for number in 0..RESTORES_MAX {
            jobs.enter(&number.to_string(), running()).unwrap();
        }
        let refused = jobs.enter("one more", running()).unwrap_err();
        assert_eq!(refused.code(), Code::TooManyRestores);
        jobs.lock().remove("0");
        jobs.enter("one more", running()).unwrap();

        let mut places: Vec<_> = (0..FOLLOWERS_MAX).map(|_| jobs.follow().unwrap()).collect();
        let refused = jobs.follow().unwrap_err();
        assert_eq!(refused.code(), Code::TooManyFollowers);
        places.pop();
        places.push(jobs.follow().unwrap());
    }
}
