//! Whether somebody is in the way of a base, or a base in somebody's.
//!
//! `pg_dump` sets the session's `lock_timeout` back and reads views and sequences, which nobody has
//! locked for it: it would wait for one that is being altered as long as that takes, and hold all
//! tables meanwhile. Whoever alters it may want one of those next. Our own sessions that read tables have
//! a `lock_timeout`, and try again.

use std::collections::HashMap;
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

/// Not `pg_locks`: reading that holds up everybody who locks something. Of other roles' sessions not everybody sees
/// whether they wait.
const WAITS: &str = "SELECT pid, pid = ANY ($1) FROM pg_stat_activity
    WHERE wait_event_type = 'Lock' AND (pid = ANY ($1) OR datname = current_database())";

/// Locks the lock table for a moment: asked for one that waits for longer than that.
const BLOCKED: &str = "SELECT pg_blocking_pids($1) && $2";
/// Looks after which one that still waits is asked for, and again after as many.
const LOOKS: u32 = 2;

/// The server process of a session.
pub(super) async fn pid(session: &Session) -> Result<i32, Error> {
    let row = session
        .client()
        .query_one("SELECT pg_backend_pid()", &[])
        .await
        .map_err(Error::sql("preparing a session"))?;
    Ok(row.get(0))
}

/// Looks at server processes of ours until `main`, that of the tool, waits for a lock, or if the base gives way, until
/// somebody waits for one of any: [`Error::TablesLocked`], or why nothing can be seen any more.
pub(super) async fn until_one_waits(
    client: &Client,
    main: i32,
    hands: &[i32],
    gives_way: bool,
) -> Error {
    let pids = [hands, &[main]].concat();
    let pids = pids.as_slice();
    let mut looks = tokio::time::interval(INTERVAL);
    looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut others: HashMap<i32, u32> = HashMap::new();
    loop {
        looks.tick().await;
        let look = async {
            let rows = client.query(WAITS, &[&pids]).await?;
            if rows.iter().any(|row| row.get::<_, i32>(0) == main) {
                return Ok(true);
            }
            let seen = rows
                .iter()
                .filter(|row| gives_way && !row.get::<_, bool>(1));
            let seen = seen.map(|row| row.get(0));
            let count = |pid| (pid, others.get(&pid).map_or(1, |count| count + 1));
            others = seen.map(count).collect();
            for (pid, count) in &others {
                if count.is_multiple_of(LOOKS) {
                    let blocked = client.query_one(BLOCKED, &[pid, &pids]).await?;
                    if blocked.get(0) {
                        return Ok(true);
                    }
                }
            }
            Ok(false)
        };
        match timeout(PATIENCE, look).await {
            Ok(Ok(true)) => return Error::TablesLocked,
            Ok(Ok(false)) => {}
            Ok(Err(error)) => return Error::sql("looking for locks that a base waits for")(error),
            Err(_) => {
                let seconds = PATIENCE.as_secs();
                return Error::Task(format!("the server has not answered for {seconds} s"));
            }
        }
    }
}
