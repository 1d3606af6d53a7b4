//! One restore at a time in a database.
//!
//! Two that bring the same changes in would double the rows of tables without a key, and nothing
//! would tell. So the session that lives as long as the restore holds a lock of the database it
//! writes to. The server gives it up when that session ends, whatever became of us, and not before:
//! a statement of a client that is gone may still be running, and may still commit.

use lastgood_pg::Session;
use tokio_postgres::error::SqlState;

use crate::Error;

/// An advisory lock is a number for those who know it: ours is "lastgood".
const KEY: i64 = i64::from_be_bytes(*b"lastgood");

/// Long enough for a session that is ending: of a look before, of an attempt that was cut short.
const PATIENCE: &str = "5s";

/// For as long as the session lives.
///
/// # Errors
/// If another session has it.
pub(crate) async fn take(session: &Session) -> Result<(), Error> {
    let client = session.client();
    let sql = format!(
        "SET lock_timeout = '{PATIENCE}'; SELECT pg_catalog.pg_advisory_lock({KEY}); RESET lock_timeout"
    );
    let Err(error) = client.batch_execute(&sql).await else {
        return Ok(());
    };
    if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) {
        return Err(error.into());
    }
    // The halves of a lock's number stand apart there.
    let holder = client
        .query_opt(
            "SELECT pid FROM pg_catalog.pg_locks
              WHERE locktype = 'advisory' AND granted AND objsubid = 1
                AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
                AND classid::bigint << 32 | objid::bigint = $1",
            &[&KEY],
        )
        .await?;
    Err(Error::AnotherRestore {
        database: session.config().database().to_owned(),
        process: holder.map(|row| row.try_get(0)).transpose()?,
    })
}
