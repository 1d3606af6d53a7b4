//! A connection in replication mode, which tokio-postgres does not offer: startup, commands, and
//! the way into [`ReplicationStream`].
//!
//! A snapshot that CREATE_REPLICATION_SLOT exports lives until the next command on the same
//! connection or its end. So the connection that made a slot must idle while others import the
//! snapshot; streaming goes on a second one.

mod rows;
mod startup;
mod stream;

use std::time::{Duration, Instant};

use bytes::BytesMut;
use lastgood_proto::{Lsn, SystemId, TimelineId};
use postgres_protocol::message::frontend;

pub use rows::SimpleRow;
pub(crate) use startup::{as_pooler, supported};
pub use stream::ReplicationStream;

use crate::config::{ConnectionConfig, Host};
use crate::error::{Error, Operation};
use crate::quote;
use crate::transport;
use crate::wire::Wire;
use rows::{column_names, data_row};
use startup::Startup;

/// After this long without an acknowledgement for what was sent, a connection is dead. Keepalives
/// do not notice it while something is unacknowledged, and the kernel alone takes a quarter hour.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a server is asked for nothing else than to measure the way there.
const ROUNDTRIPS_MAX: usize = 5;
/// Where an answer takes longer, there is nothing more to learn.
const FAR: Duration = Duration::from_millis(10);

/// What a walsender is to be told beyond the pinned settings.
#[derive(Debug, Clone)]
pub struct ReplicationOptions {
    /// What names and values are sent in.
    pub client_encoding: String,
    /// Memory on the server for one walsender's decoding; more of it spares the server spilling
    /// to disk.
    pub logical_decoding_work_mem_kb: Option<u32>,
    /// How long the walsender waits for a sign of life from us.
    pub wal_sender_timeout: Option<Duration>,
    /// Shown in `pg_stat_replication`.
    pub application_name: Option<String>,
}

impl Default for ReplicationOptions {
    /// UTF8, and the server's own settings.
    fn default() -> Self {
        Self {
            client_encoding: "UTF8".to_owned(),
            logical_decoding_work_mem_kb: None,
            wal_sender_timeout: None,
            application_name: None,
        }
    }
}

/// The answer to IDENTIFY_SYSTEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemIdentity {
    pub system_id: SystemId,
    pub timeline: TimelineId,
    /// The server's flush position.
    pub flush_lsn: Lsn,
    pub database: String,
}

/// How long a slot is to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SlotKind {
    Permanent,
    /// Dropped by the server when this connection ends.
    Temporary,
}

/// The answer to CREATE_REPLICATION_SLOT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedSlot {
    /// Transactions that commit from here on are in the stream and not in the snapshot.
    pub consistent_point: Lsn,
    /// Good for `SET TRANSACTION SNAPSHOT` and `pg_dump --snapshot`.
    pub snapshot: String,
}

/// A walsender that takes commands.
pub struct ReplicationConnection {
    wire: Wire,
    server_version: u32,
}

impl ReplicationConnection {
    /// # Errors
    /// Whatever stands between us and a walsender, each with its class.
    pub async fn connect(
        config: &ConnectionConfig,
        options: &ReplicationOptions,
    ) -> Result<Self, Error> {
        let mut config = config.clone();
        config.tcp_user_timeout = config.tcp_user_timeout.or(Some(TCP_USER_TIMEOUT));
        transport::connect(
            &config,
            &Startup {
                config: &config,
                options,
            },
        )
        .await
    }

    /// As `server_version_num`: 180006 for 18.6.
    #[must_use]
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// The host of the list that was reached.
    #[must_use]
    pub fn host(&self) -> &Host {
        self.wire.host()
    }

    /// Runs one command or SQL text and returns the rows of its last result. Ends an exported
    /// snapshot. Not cancel-safe: a connection whose query was dropped must be dropped as well.
    pub async fn query(&mut self, text: &str) -> Result<Vec<SimpleRow>, Error> {
        self.query_during(text, Operation::Query).await
    }

    async fn query_during(
        &mut self,
        text: &str,
        during: Operation,
    ) -> Result<Vec<SimpleRow>, Error> {
        self.send_query(text).await?;
        let mut columns: Vec<String> = Vec::new();
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            let (tag, body) = self.wire.next().await?;
            match tag {
                b'T' => {
                    columns = column_names(&body)?;
                    rows.clear();
                }
                b'D' => rows.push(data_row(&columns, &body)?),
                b'E' => {
                    let error = Error::server(during, &body);
                    if is_fatal(&error) {
                        return Err(error);
                    }
                    failure = Some(error);
                }
                b'Z' => return failure.map_or(Ok(rows), Err),
                // Command complete, empty query, notices, changed parameters.
                b'C' | b'I' | b'N' | b'S' | b'A' => {}
                tag => return Err(unexpected(tag, "a query")),
            }
        }
    }

    async fn send_query(&mut self, text: &str) -> Result<(), Error> {
        let mut message = BytesMut::new();
        frontend::query(text, &mut message).map_err(|error| Error::Protocol(error.to_string()))?;
        self.wire.send(&message).await
    }

    /// Which cluster, on which timeline.
    pub async fn identify_system(&mut self) -> Result<SystemIdentity, Error> {
        let rows = self.query("IDENTIFY_SYSTEM").await?;
        let row = rows.first().ok_or_else(|| incomplete("IDENTIFY_SYSTEM"))?;
        let missing = || incomplete("IDENTIFY_SYSTEM");
        Ok(SystemIdentity {
            system_id: parsed(row, "systemid").ok_or_else(missing)?,
            timeline: parsed(row, "timeline").ok_or_else(missing)?,
            flush_lsn: parsed(row, "xlogpos").ok_or_else(missing)?,
            database: row.get("dbname").ok_or_else(missing)?.to_owned(),
        })
    }

    /// Makes a slot for pgoutput and exports its snapshot.
    ///
    /// Waits on the server for every transaction that is writing at this moment, however long it
    /// runs; a caller that gives up must drop the connection. Afterwards the connection has to idle
    /// until every importer of the snapshot has taken it.
    pub async fn create_slot(&mut self, name: &str, kind: SlotKind) -> Result<CreatedSlot, Error> {
        let temporary = match kind {
            SlotKind::Permanent => "",
            SlotKind::Temporary => " TEMPORARY",
        };
        // The spelling that 13 to 18 all know.
        let command = format!(
            "CREATE_REPLICATION_SLOT {}{temporary} LOGICAL pgoutput EXPORT_SNAPSHOT",
            quote::identifier(name)
        );
        let rows = self.query_during(&command, Operation::CreateSlot).await?;
        let row = rows
            .first()
            .ok_or_else(|| incomplete("CREATE_REPLICATION_SLOT"))?;
        let missing = || incomplete("CREATE_REPLICATION_SLOT");
        Ok(CreatedSlot {
            consistent_point: parsed(row, "consistent_point").ok_or_else(missing)?,
            snapshot: row.get("snapshot_name").ok_or_else(missing)?.to_owned(),
        })
    }

    /// Starts to stream. `from` is the end LSN of the last durable transaction; a transaction is
    /// sent if its commit record begins at or after it, and after the slot's confirmed position,
    /// whatever `from` says.
    ///
    /// `server_version` may be zero: then what the server said at startup is used.
    pub async fn start(
        mut self,
        slot: &str,
        from: Lsn,
        publication: &str,
        server_version: u32,
    ) -> Result<ReplicationStream, Error> {
        let version = match server_version {
            0 => self.server_version,
            given => given,
        };
        let command = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} ({})",
            quote::identifier(slot),
            output_options(publication, version)
        );
        let roundtrip = self.roundtrip().await?;
        self.send_query(&command).await?;
        loop {
            let (tag, body) = self.wire.next().await?;
            match tag {
                b'W' => {
                    return ReplicationStream::new(self.wire, roundtrip);
                }
                b'E' => return Err(Error::server(Operation::StartReplication, &body)),
                b'N' | b'S' => {}
                tag => return Err(unexpected(tag, "START_REPLICATION")),
            }
        }
    }

    /// How the stream is read depends on how far away the server is. One answer may have had to wait for
    /// a core, so it asks a few times, as long as that costs nothing.
    async fn roundtrip(&mut self) -> Result<Duration, Error> {
        let mut quickest = Duration::MAX;
        for _ in 0..ROUNDTRIPS_MAX {
            let asked = Instant::now();
            self.identify_system().await?;
            quickest = quickest.min(asked.elapsed());
            if quickest > FAR {
                break;
            }
        }
        Ok(quickest)
    }

    /// Says goodbye. A temporary slot goes with the connection.
    pub async fn close(mut self) -> Result<(), Error> {
        let mut message = BytesMut::new();
        frontend::terminate(&mut message);
        self.wire.queue(&message);
        self.wire.shut_down().await.map_err(Error::Broken)
    }
}

/// The options of pgoutput. Protocol version 1: whole transactions in commit order. A name list is
/// parsed as identifiers, so the name is quoted twice.
fn output_options(publication: &str, server_version: u32) -> String {
    let mut options = format!(
        "proto_version '1', publication_names {}",
        quote::literal(&quote::identifier(publication)).trim_start()
    );
    // 13 refuses what it does not know.
    if server_version >= 140_000 {
        options.push_str(", messages 'true'");
    }
    options
}

fn is_fatal(error: &Error) -> bool {
    error
        .server_error()
        .is_some_and(|server| server.severity != "ERROR")
}

pub(crate) fn unexpected(tag: u8, place: &str) -> Error {
    Error::Protocol(format!(
        "message {:?} in answer to {place}",
        char::from(tag)
    ))
}

fn incomplete(command: &str) -> Error {
    Error::Protocol(format!("the answer to {command} lacks a column"))
}

fn parsed<T: std::str::FromStr>(row: &SimpleRow, column: &str) -> Option<T> {
    row.get(column)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_by_version() {
        assert_eq!(
            output_options("p", 130_023),
            "proto_version '1', publication_names '\"p\"'"
        );
        assert_eq!(
            output_options("it's \"p\"", 180_006),
            "proto_version '1', publication_names '\"it''s \"\"p\"\"\"', messages 'true'"
        );
    }
}
