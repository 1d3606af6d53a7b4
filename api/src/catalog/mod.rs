//! The catalog: SQLite with the settings of this service and an index of what the repository
//! holds.
//!
//! Invariants: the repository is the truth about backups, so losing the catalog loses connection
//! strings only; a change is one transaction; no connection string stands here in clear. Absent:
//! anything a restore needs.

mod bases;
mod points;
mod restores;
mod seal;
mod segments;
mod settings;
mod sources;
mod writers;

use std::fmt::Display;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};

use lastgood_proto::{Class, Lsn, PgTimestamp};
use rusqlite::{Connection, Params, Row, Transaction};

pub(crate) use bases::{BaseCause, BaseRow, BaseStatus, FinishedBase};
pub(crate) use points::PointRow;
pub(crate) use restores::{Ending, ErrorClass, RestoreEventRow, RestoreRow, RestoreStatus};
pub(crate) use seal::Seal;
pub(crate) use segments::SegmentRow;
pub(crate) use sources::{Desired, SourceRow};

/// What the binary knows of the schema, in order; `user_version` counts those applied.
const MIGRATIONS: &[&str] = &[
    include_str!("../../../migrations/0001_catalog.sql"),
    include_str!("../../../migrations/0002_merged.sql"),
    include_str!("../../../migrations/0003_writer.sql"),
    include_str!("../../../migrations/0004_change.sql"),
];

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the catalog cannot be read or written")]
    Sqlite(#[source] rusqlite::Error),
    #[error(
        "the catalog is damaged, or no catalog: stop the service, and `lastgood catalog rebuild` with its \
         --data-dir and --repository makes it anew from the repository"
    )]
    Damaged(#[source] rusqlite::Error),
    #[error("the catalog was written by a newer lastgood (schema {found}, known are {known})")]
    Newer { found: i64, known: usize },
    #[error("the catalog's file cannot be opened")]
    File(#[source] std::io::Error),
    #[error("a source named \"{0}\" exists already")]
    DuplicateName(String),
    #[error("no connection string is known: give it by `lastgood source set NAME --connection …`")]
    NoConnection,
    #[error("a connection string in the catalog does not open with this master key")]
    Sealed,
    #[error("the catalog holds {what} that is not understood: {detail}")]
    Unreadable { what: &'static str, detail: String },
    #[error("the catalog's task ended early")]
    Task,
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
                Error::Damaged(error)
            }
            _ => Error::Sqlite(error),
        }
    }
}

impl Error {
    /// What the error asks for.
    pub(crate) fn class(&self) -> Class {
        match self {
            // Another program that holds the file lets go of it.
            Error::Sqlite(rusqlite::Error::SqliteFailure(cause, _))
                if matches!(
                    cause.code,
                    rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked
                ) =>
            {
                Class::Transient
            }
            Error::Task => Class::Transient,
            Error::Sqlite(_)
            | Error::Damaged(_)
            | Error::NoConnection
            | Error::Newer { .. }
            | Error::File(_)
            | Error::DuplicateName(_)
            | Error::Sealed
            | Error::Unreadable { .. } => Class::NeedsOperator,
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, Error>;

/// A handle to the catalog; cheap to clone.
///
/// One connection behind a lock: SQLite has one writer anyway, and every statement here is short.
#[derive(Clone)]
pub(crate) struct Catalog {
    connection: Arc<Mutex<Connection>>,
}

impl Catalog {
    /// Open, or make, the catalog at `path`.
    ///
    /// # Errors
    /// The file is no catalog, cannot be written, or a newer version wrote it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        // SQLite gives its other files the mode of this one.
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)
            .map_err(Error::File)?;
        Self::prepare(Connection::open(path)?)
    }

    /// That the file as a whole is what SQLite wrote. Reads all of it.
    ///
    /// # Errors
    /// `Damaged`
    pub(crate) fn check(&self) -> Result<()> {
        let connection = self.connection.lock();
        let connection = connection.unwrap_or_else(PoisonError::into_inner);
        let said: String = connection.pragma_query_value(None, "quick_check", |row| row.get(0))?;
        match said.as_str() {
            "ok" => Ok(()),
            _ => Err(Error::Damaged(rusqlite::Error::SqliteFailure(
                rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT),
                Some(said),
            ))),
        }
    }

    #[cfg(test)]
    pub(crate) fn in_memory() -> Self {
        Connection::open_in_memory()
            .map_err(Error::from)
            .and_then(Self::prepare)
            .expect("a catalog in memory opens")
    }

    fn prepare(mut connection: Connection) -> Result<Self> {
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        connection.busy_timeout(std::time::Duration::from_secs(10))?;
        migrate(&mut connection)?;
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
        })
    }

    /// Run `work` in one transaction on a thread that may block.
    async fn transact<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let connection = Arc::clone(&self.connection);
        tokio::task::spawn_blocking(move || {
            // A poisoned lock means a panic inside a transaction, which SQLite rolled back.
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            let transaction = connection.transaction()?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
        .await
        .map_err(|_| Error::Task)?
    }
}

fn migrate(connection: &mut Connection) -> Result<()> {
    let applied: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let todo = usize::try_from(applied)
        .ok()
        .and_then(|applied| MIGRATIONS.get(applied..))
        .ok_or(Error::Newer {
            found: applied,
            known: MIGRATIONS.len(),
        })?;
    for (version, migration) in (applied + 1..).zip(todo) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

/// An LSN as text whose order is the LSN's.
fn lsn_text(lsn: Lsn) -> String {
    format!("{:016x}", lsn.as_u64())
}

fn unreadable(what: &'static str, detail: impl Display) -> Error {
    Error::Unreadable {
        what,
        detail: detail.to_string(),
    }
}

/// A column as what it stands for; null is none.
fn maybe<T: FromStr<Err: Display>>(row: &Row<'_>, name: &'static str) -> Result<Option<T>> {
    let text: Option<String> = row.get(name)?;
    let parsed = text.map(|text| text.parse()).transpose();
    parsed.map_err(|error| unreadable(name, error))
}

fn parsed<T: FromStr<Err: Display>>(row: &Row<'_>, name: &'static str) -> Result<T> {
    maybe(row, name)?.ok_or_else(|| unreadable(name, "null"))
}

fn lsn(row: &Row<'_>, name: &'static str) -> Result<Lsn> {
    let text: String = row.get(name)?;
    let number = u64::from_str_radix(&text, 16);
    number
        .map(Lsn::new)
        .map_err(|error| unreadable(name, error))
}

fn maybe_time(row: &Row<'_>, name: &'static str) -> Result<Option<PgTimestamp>> {
    let micros: Option<i64> = row.get(name)?;
    Ok(micros.map(PgTimestamp::from_unix_micros))
}

fn time(row: &Row<'_>, name: &'static str) -> Result<PgTimestamp> {
    Ok(PgTimestamp::from_unix_micros(row.get(name)?))
}

fn number(row: &Row<'_>, name: &'static str) -> Result<u64> {
    Ok(row.get::<_, i64>(name)?.cast_unsigned())
}

/// Every row of a query, read by `read`.
fn all<T>(
    transaction: &Transaction<'_>,
    sql: &str,
    parameters: impl Params,
    read: fn(&Row<'_>) -> Result<T>,
) -> Result<Vec<T>> {
    let mut statement = transaction.prepare_cached(sql)?;
    statement.query_and_then(parameters, read)?.collect()
}

/// The first row of a query, if there is one.
fn first<T>(
    transaction: &Transaction<'_>,
    sql: &str,
    parameters: impl Params,
    read: fn(&Row<'_>) -> Result<T>,
) -> Result<Option<T>> {
    let mut statement = transaction.prepare_cached(sql)?;
    statement
        .query_and_then(parameters, read)?
        .next()
        .transpose()
}

fn count(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// An enum that is stored as one of a few words.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(crate) enum $name { $($variant),+ }

        impl $name {
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> std::result::Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!("\"{text}\"")),
                }
            }
        }
    };
}
use words;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_migration_applies_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("catalog.db");
        drop(Catalog::open(&path).unwrap());
        drop(Catalog::open(&path).unwrap());
        let connection = Connection::open(&path).unwrap();
        let version: isize = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .unwrap();
        assert_eq!(version.cast_unsigned(), MIGRATIONS.len());
        let mode: String = connection
            .pragma_query_value(None, "journal_mode", |row| row.get(0))
            .unwrap();
        assert_eq!(mode, "wal");
    }

    #[test]
    fn a_newer_catalog_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("catalog.db");
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", 99).unwrap();
        drop(connection);
        assert!(matches!(
            Catalog::open(&path),
            Err(Error::Newer { found: 99, .. })
        ));
    }
}
