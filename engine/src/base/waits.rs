//! Whether somebody is in the way of a base.
//!
//! `pg_dump` sets the session's `lock_timeout` back and reads views and sequences, which nobody has
//! locked for it: it would wait for one that is being altered as long as that takes, and hold all
//! tables meanwhile. Whoever alters it may want one of those next.

use std::time::Duration;

use lastgood_pg::Session;
use tokio::time::timeout;
use tokio_postgres::Client;

use crate::error::Error;

/// Well below the server's usual `deadlock_timeout`, so that it is seldom a transaction of the source
/// that is ended.
const INTERVAL: Duration = Duration::from_millis(300);
/// A server that does not answer so simple a question for so long is not there any more: what reads from
/// the other sessions would wait for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// Not `pg_locks`: reading that holds up everybody who locks something.
const WAITS: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity
    WHERE pid = ANY ($1) AND wait_event_type = 'Lock')";

/// The server process of a session.
pub(super) async fn pid(session: &Session) -> Result<i32, Error> {
    let row = session
        .client()
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .map_err(Error::sql("preparing a session"))?;
    Ok(row.get(0))
}

/// Looks at server processes of ours until one waits for a lock: [`Error::TablesLocked`], or why
/// nothing can be seen any more.
pub(super) async fn until_one_waits(client: &Client, pids: &[i32]) -> Error {
    let mut looks = tokio::time::interval(INTERVAL);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        looks.tick().await;
        match timeout(PATIENCE, client.query_one(WAITS, &[&pids])).await {
            Ok(Ok(row)) if row.get(0) => return Error::TablesLocked,
            Ok(Ok(_)) => {}
            Ok(Err(error)) => return Error::sql("looking for locks that a base waits for")(error),
            Err(_) => {
                let seconds = PATIENCE.as_secs();
                return Error::Task(format!("the server has not answered for {seconds} s"));
            }
        }
    }
}
