//! The named steps at which a debug build of the service ends, fails or waits when it is told to
//! (`store/src/failpoint.rs`).

use anyhow::Result;

use crate::service::Service;
use crate::wait;

/// The variable of the environment that arms them.
pub const VARIABLE: &str = "LASTGOOD_FAILPOINTS";

/// What the program says when it comes to an armed point.
#[must_use]
pub fn told(point: &str) -> String {
    format!("failpoint {point}: ")
}

/// Starts a service that waits at `point` without end, once it comes there.
///
/// # Errors
/// When it does not get to answer.
pub async fn start_hanging(service: &Service, point: &str) -> Result<()> {
    let never = service.data_dir().join("never");
    let armed = format!("{point}=hang:{}", never.display());
    service.spawn_with(&[(VARIABLE, &armed)])?;
    service.wait_healthy().await
}

/// Waits until it is there.
///
/// # Errors
/// When it does not come there in time.
pub async fn wait_hanging(service: &Service, point: &str) -> Result<()> {
    let told = told(point);
    let hangs = async || Ok(service.log().contains(&told).then_some(()));
    wait::until(point, hangs).await
}
