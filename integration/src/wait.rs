//! Waiting for a state under a deadline. The only place where tests poll.

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep};

/// Long enough for a machine that is busy with other tests; `LASTGOOD_TEST_PATIENCE=seconds` for what takes
/// longer.
fn patience() -> Duration {
    let given = std::env::var("LASTGOOD_TEST_PATIENCE");
    let seconds = given.ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(seconds.unwrap_or(180))
}

/// Asks until the answer is `Ok(Some(..))`. An error does not end the waiting, for a service that
/// restarts refuses connections for a while; the last one is reported at the deadline.
///
/// # Errors
/// When nothing came in time; `what` names what was waited for.
pub async fn until<T, F>(what: &str, mut ask: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    until_within(patience(), what, &mut ask).await
}

/// As [`until`], with another deadline.
///
/// # Errors
/// When nothing came before the deadline.
pub async fn until_within<T, F>(
    deadline: Duration,
    what: &str,
    mut ask: impl FnMut() -> F,
) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let end = Instant::now() + deadline;
    let mut pause = Duration::from_millis(10);
    loop {
        let answer = ask().await;
        if let Ok(Some(found)) = answer {
            return Ok(found);
        }
        if Instant::now() >= end {
            match answer {
                Err(error) => bail!("gave up waiting for {what}: {error:#}"),
                Ok(_) => bail!("gave up waiting for {what} after {deadline:?}"),
            }
        }
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

/// Asks until the value satisfies `enough`; the last value is reported at the deadline.
///
/// # Errors
/// As [`until`].
pub async fn until_value<T, F>(
    what: &str,
    mut ask: impl FnMut() -> F,
    enough: impl Fn(&T) -> bool,
) -> Result<T>
where
    T: Debug,
    F: Future<Output = Result<T>>,
{
    let end = Instant::now() + patience();
    loop {
        let answer = ask().await;
        match answer {
            Ok(value) if enough(&value) => return Ok(value),
            answer if Instant::now() >= end => {
                bail!("gave up waiting for {what}; the last answer was {answer:?}")
            }
            _ => sleep(Duration::from_millis(50)).await,
        }
    }
}
