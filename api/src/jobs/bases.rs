//! Bases by request and on schedule: one at a time for each source, beside its capture.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use lastgood_engine::{Event, Events, SourceSettings};
use lastgood_proto::SourceId;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use super::due::{Candidate, due};
use crate::app::Shared;
use crate::catalog::{BaseCause, BaseStatus, Desired, SourceRow};
use crate::clock::now;
use crate::http::{Code, Problem, chain};
use crate::supervisor::note_base;

/// The schedule is looked at this often even if nothing is due: a clock may be set.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
const EVENTS_WAITING_MAX: usize = 256;

#[derive(Default)]
pub(crate) struct BaseJobs {
    running: Mutex<BTreeMap<SourceId, CancellationToken>>,
    /// A schedule or a source has changed.
    changed: Notify,
}

impl BaseJobs {
    pub(crate) fn changed(&self) {
        self.changed.notify_one();
    }

    /// Stop the base of a source, if one runs.
    pub(crate) fn cancel(&self, source: SourceId) {
        if let Some(cancel) = self.lock().get(&source) {
            cancel.cancel();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<SourceId, CancellationToken>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Begin a base; the id of its job.
///
/// # Errors
/// One runs already, or the source is paused.
pub(crate) async fn begin(
    app: &Shared,
    row: SourceRow,
    cause: BaseCause,
) -> Result<String, Problem> {
    if row.desired != Desired::Running {
        return Err(Problem::new(Code::SourcePaused).detail("resume it before taking a base"));
    }
    if !row.is_connected {
        return Err(crate::catalog::Error::NoConnection.into());
    }
    let newest = app.catalog.bases(row.id, None, 1).await?;
    if newest
        .first()
        .is_some_and(|base| base.status == BaseStatus::Running)
    {
        return Err(Problem::new(Code::BaseRunning));
    }
    let id = crate::secrets::job_id().map_err(|_| Problem::new(Code::Internal))?;
    let cancel = app.shutdown.child_token();
    {
        let mut running = app.bases.lock();
        if running.contains_key(&row.id) {
            return Err(Problem::new(Code::BaseRunning));
        }
        running.insert(row.id, cancel.clone());
    }
    let begun = app
        .catalog
        .begin_base(id.clone(), row.id, cause, now())
        .await;
    if let Err(error) = begun {
        app.bases.lock().remove(&row.id);
        return Err(error.into());
    }
    let (task_app, job) = (Arc::clone(app), id.clone());
    app.tracker.spawn(async move {
        let source = row.id;
        let outcome = Box::pin(run(&task_app, &row, &job, cancel)).await;
        task_app.bases.lock().remove(&source);
        task_app.bases.changed();
        if let Err(error) = outcome {
            tracing::warn!(%source, job, error, "a base failed");
            if let Err(error) = task_app.catalog.fail_base(job, error, now()).await {
                let error = &error as &dyn std::error::Error;
                tracing::error!(%source, error, "the end of a base could not be noted");
            }
        }
    });
    Ok(id)
}

async fn run(
    app: &Shared,
    row: &SourceRow,
    job: &str,
    cancel: CancellationToken,
) -> Result<(), String> {
    let text = |error: &dyn std::error::Error| chain(error);
    let source = app
        .supervisor
        .source(row)
        .await
        .map_err(|error| text(&error))?;
    let store = app
        .supervisor
        .store(row.id)
        .await
        .map_err(|error| text(&error))?;
    let (sender, mut receiver) = mpsc::channel(EVENTS_WAITING_MAX);
    let (catalog, id, mut noted) = (app.catalog.clone(), row.id, Some(job.to_owned()));
    let supervisor = app.supervisor.clone();
    let consumer = app.tracker.spawn(async move {
        while let Some(event) = receiver.recv().await {
            supervisor.note_base(id, &event);
            if let Err(error) = note_base(&catalog, id, &mut noted, event).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(source = %id, error, "the catalog missed an event");
            }
        }
    });
    let outcome =
        lastgood_engine::take_base(&source, &store, Events::new(sender), cancel.clone()).await;
    if consumer.await.is_err() {
        tracing::error!(source = %row.id, "the reader of events failed");
    }
    let error = match outcome {
        Ok(_) => return Ok(()),
        Err(_) if cancel.is_cancelled() => "the service ended while it ran".to_owned(),
        Err(error) => text(&error),
    };
    // Perhaps before it began.
    let failed = Event::BaseFailed {
        error: error.clone(),
    };
    app.supervisor.note_base(row.id, &failed);
    Err(error)
}

/// Begin bases when their schedules say so, until the service ends.
pub(crate) async fn keep_schedule(app: Shared) {
    loop {
        let pause = match look(&app).await {
            Ok(pause) => pause,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                tracing::error!(error, "the schedule of bases cannot be read");
                LOOK_AGAIN
            }
        };
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            () = app.bases.changed.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Begin what is due; the time until the next look.
async fn look(app: &Shared) -> Result<Duration, crate::catalog::Error> {
    let rows = app.catalog.sources(None, usize::MAX).await?;
    let mut candidates = Vec::new();
    for row in &rows {
        // Validated when it was stored; what cannot be read is shown by the source itself.
        let settings: Option<SourceSettings> = serde_json::from_value(row.settings.clone()).ok();
        let schedule = settings.and_then(|settings| settings.schedule().ok().flatten());
        let wanted = row.desired == Desired::Running && row.is_connected;
        if let (Some(schedule), true) = (schedule, wanted) {
            let (attempt, _) = app.catalog.last_bases(row.id).await?;
            candidates.push(Candidate {
                source: row.id,
                schedule,
                last: attempt.unwrap_or(row.created),
            });
        }
    }
    let due = due(&candidates, now());
    for row in rows {
        if due.now.contains(&row.id) {
            let source = row.id;
            match begin(app, row, BaseCause::Schedule).await {
                Ok(job) => tracing::info!(%source, job, "a base begins on schedule"),
                Err(problem) => tracing::warn!(%source, ?problem, "a base could not begin"),
            }
        }
    }
    let wait = due.next.map_or(LOOK_AGAIN, |next| {
        let micros = next.as_unix_micros() - now().as_unix_micros();
        Duration::from_micros(u64::try_from(micros).unwrap_or(0))
    });
    Ok(wait.min(LOOK_AGAIN))
}
