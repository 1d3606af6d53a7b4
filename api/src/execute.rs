//! Executing a restore, for the service's jobs and for the command line alike.

use lastgood_pg::ConnectionConfig;
use lastgood_proto::{BaseId, LineageId};
use lastgood_restore::{Error, Interrupt, Into, Options, Plan, Progress, Report};
use lastgood_store::SourceStore;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use utoipa::ToSchema;

/// Parallel jobs unless something else is asked for.
const JOBS: u32 = 4;
pub(crate) const JOBS_MAX: u32 = 64;
/// What merged changes may take of memory unless something else is asked for.
const MEMORY_BYTES: u64 = 1 << 30;

/// How changes are brought in.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Replay {
    /// What they come to, merged into the base's rows while these are loaded
    #[default]
    Merged,
    /// One by one, in commit order, after the base was loaded
    Ordered,
}

/// What a restore is to do.
pub(crate) struct Order {
    pub(crate) plan: Plan,
    pub(crate) connection: ConnectionConfig,
    pub(crate) create_database: Option<String>,
    pub(crate) allow_source: bool,
    pub(crate) jobs: Option<u32>,
    pub(crate) replay: Replay,
    /// For merged changes; what does not fit is replayed in order.
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) resume: bool,
}

/// Why there is no report.
pub(crate) enum Stopped {
    Cancelled {
        left_behind: Option<String>,
    },
    Failed {
        error: Error,
        left_behind: Option<String>,
    },
}

impl Order {
    fn place(&self) -> Into {
        Into {
            connection: self.connection.clone(),
            create_database: self.create_database.clone(),
            allow_source: self.allow_source,
        }
    }
}

/// The base that a restore to be resumed was begun from: a newer one may have been taken since.
pub(crate) async fn begun_from(
    connection: &ConnectionConfig,
    create_database: Option<&str>,
    into_schema: Option<&str>,
) -> Result<Option<(LineageId, BaseId)>, Error> {
    let into = Into {
        connection: connection.clone(),
        create_database: create_database.map(ToOwned::to_owned),
        allow_source: false,
    };
    lastgood_restore::unfinished(&into, into_schema).await
}

/// The roles of the plan's base that are not where it is to go.
pub(crate) async fn missing_roles(
    plan: &Plan,
    store: &SourceStore,
    connection: &ConnectionConfig,
) -> Result<Vec<String>, Error> {
    let into = Into {
        connection: connection.clone(),
        create_database: None,
        allow_source: false,
    };
    lastgood_restore::missing_roles(plan, store, &into).await
}

/// Whether [`execute`] would begin: refused here, no work has been done for nothing.
pub(crate) async fn check(order: &Order, store: &SourceStore) -> Result<(), Error> {
    lastgood_restore::check(&order.plan, store, &order.place(), order.resume).await
}

/// Do what the plan says, telling `progress` how far it is.
///
/// On a thread of its own: the compiler cannot prove the future of a restore to be `Send`
/// (<https://github.com/rust-lang/rust/issues/102211>), and one thread for a restore is no cost.
pub(crate) async fn execute(
    order: Order,
    store: SourceStore,
    progress: impl Fn(Progress) + Send + Sync + 'static,
    interrupt: Interrupt,
) -> Result<Report, Stopped> {
    let into = order.place();
    let Order {
        plan,
        jobs,
        replay,
        memory_bytes,
        resume,
        ..
    } = order;
    let bytes_max = memory_bytes.unwrap_or(MEMORY_BYTES);
    let options = Options {
        jobs: jobs.unwrap_or(JOBS),
        replay: match replay {
            Replay::Merged => lastgood_restore::Replay::Merged {
                bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX),
            },
            Replay::Ordered => lastgood_restore::Replay::Ordered,
        },
        resume,
    };
    let runtime = Handle::current();
    let executing = tokio::task::spawn_blocking(move || {
        let executing =
            lastgood_restore::execute(&plan, &store, into, &options, progress, interrupt);
        runtime.block_on(executing)
    });
    match executing.await {
        Ok(outcome) => outcome.map_err(Stopped::from),
        Err(panic) => Err(Stopped::from(Error::Thread(panic))),
    }
}

impl From<Error> for Stopped {
    fn from(error: Error) -> Self {
        match error {
            Error::Failed {
                left_behind,
                source,
                ..
            } if matches!(*source, Error::Cancelled) => Stopped::Cancelled {
                left_behind: Some(left_behind),
            },
            Error::Cancelled => Stopped::Cancelled { left_behind: None },
            Error::Failed {
                phase,
                left_behind,
                source,
            } => {
                tracing::debug!(phase = phase.as_str(), "the restore failed in this phase");
                Stopped::Failed {
                    error: *source,
                    left_behind: Some(left_behind),
                }
            }
            error => Stopped::Failed {
                error,
                left_behind: None,
            },
        }
    }
}
