//! What every request handler shares.

use std::path::PathBuf;
use std::sync::Arc;

use lastgood_proto::PgTimestamp;
use lastgood_store::{Fingerprint, Repository, RepositoryUrl};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::{Catalog, Seal, SourceRow};
use crate::http::{Code, Problem};
use crate::jobs::{BaseJobs, RestoreJobs};
use crate::supervisor::Supervisor;

pub(crate) type Shared = Arc<App>;

pub(crate) struct App {
    pub(crate) catalog: Catalog,
    pub(crate) seal: Seal,
    pub(crate) repository: Repository,
    pub(crate) repository_url: RepositoryUrl,
    pub(crate) key: KeyState,
    pub(crate) token_hashes: Vec<[u8; 32]>,
    pub(crate) supervisor: Supervisor,
    pub(crate) bases: BaseJobs,
    pub(crate) restores: RestoreJobs,
    /// Held during a pass of retention or compaction.
    pub(crate) upkeep: tokio::sync::Mutex<()>,
    /// For what is on its way to the repository; only ciphertext.
    pub(crate) spool_dir: PathBuf,
    pub(crate) started: PgTimestamp,
    /// Work that outlives the request that asked for it.
    pub(crate) tracker: TaskTracker,
    /// Cancelled when the service is to end.
    pub(crate) shutdown: CancellationToken,
}

/// The master key, as far as anybody needs to know it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyState {
    /// Encryption is switched off.
    Unencrypted,
    /// Given by the environment, so kept elsewhere.
    Given(Fingerprint),
    /// In a file beside the service.
    File(Fingerprint),
}

/// Name of the catalog's setting that holds the fingerprint an operator confirmed.
const KEY_CONFIRMED: &str = "key_confirmed";

/// What everybody is told until the key is confirmed.
pub(crate) const KEY_WARNING: &str = "the master key lives only beside this service: if its disk is \
     lost, so is everything in the repository. Keep a copy of the key file elsewhere, then run \
     `lastgood key confirm FINGERPRINT` with what `lastgood key show --key-file COPY` prints";

impl App {
    pub(crate) async fn source(&self, id_or_name: &str) -> Result<SourceRow, Problem> {
        self.catalog.source(id_or_name).await?.ok_or_else(|| {
            Problem::new(Code::UnknownSource).detail("no source has this id or name")
        })
    }

    /// Whether an operator has shown that the master key is kept elsewhere, or it need not be.
    pub(crate) async fn is_key_safe(&self) -> Result<bool, crate::catalog::Error> {
        match self.key {
            KeyState::Unencrypted | KeyState::Given(_) => Ok(true),
            KeyState::File(fingerprint) => {
                let confirmed = self.catalog.setting(KEY_CONFIRMED).await?;
                Ok(confirmed.is_some_and(|text| text == fingerprint.to_string()))
            }
        }
    }

    pub(crate) async fn confirm_key(
        &self,
        fingerprint: Fingerprint,
    ) -> Result<(), crate::catalog::Error> {
        self.catalog
            .set_setting(KEY_CONFIRMED, fingerprint.to_string())
            .await
    }

    /// Run `work` to its end even if the client that asked for it goes away.
    pub(crate) async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Problem>> + Send + 'static,
    ) -> Result<T, Problem> {
        if self.shutdown.is_cancelled() {
            return Err(Problem::new(Code::ShuttingDown));
        }
        self.tracker
            .spawn(work)
            .await
            .unwrap_or_else(|_| Err(Problem::new(Code::Internal).detail("the work was cut short")))
    }
}
