//! A connection in replication mode, which tokio-postgres does not offer: startup, commands, and
//! the way into [`ReplicationStream`].
//!
//! A snapshot that CREATE_REPLICATION_SLOT exports lives until the next command on the same
//! connection or its end. So the connection that made a slot must idle while others import the
//! snapshot; streaming goes on a second one.

mod stream;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use lastgood_proto::cursor::Cursor;
use lastgood_proto::{Lsn, SystemId, TimelineId};
use postgres_protocol::message::frontend;

pub use stream::ReplicationStream;

use crate::auth::{self, Policy};
use crate::config::{ConnectionConfig, Host, TargetSessionAttrs};
use crate::connect::check_target;
use crate::error::{Error, Operation, ServerError};
use crate::quote;
use crate::settings;
use crate::transport::{self, Handshake, Link};
use crate::version;
use crate::wire::Wire;

/// After this long without an acknowledgement for what was sent, a connection is dead. Keepalives
/// do not notice it while something is unacknowledged, and the kernel alone takes a quarter hour.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(60);

/// What a walsender is to be told beyond the pinned settings.
#[derive(Debug, Clone)]
pub struct ReplicationOptions {
    /// `UTF8`, or `SQL_ASCII` for a SQL_ASCII database, whose bytes may be anything.
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

/// A row of text values, found by column name: servers add columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimpleRow {
    values: Vec<(String, Option<String>)>,
}

impl SimpleRow {
    /// The value; `None` if it is NULL or there is no such column.
    #[must_use]
    pub fn get(&self, column: &str) -> Option<&str> {
        self.values
            .iter()
            .find(|(name, _)| name == column)
            .and_then(|(_, value)| value.as_deref())
    }

    /// The value in a column by position.
    #[must_use]
    pub fn at(&self, index: usize) -> Option<&str> {
        self.values
            .get(index)
            .and_then(|(_, value)| value.as_deref())
    }
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
        self.send_query(&command).await?;
        loop {
            let (tag, body) = self.wire.next().await?;
            match tag {
                b'W' => {
                    return Ok(ReplicationStream::new(self.wire));
                }
                b'E' => return Err(Error::server(Operation::StartReplication, &body)),
                b'N' | b'S' => {}
                tag => return Err(unexpected(tag, "START_REPLICATION")),
            }
        }
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

/// Startup and authentication of a replication connection.
struct Startup<'a> {
    config: &'a ConnectionConfig,
    options: &'a ReplicationOptions,
}

impl Handshake for Startup<'_> {
    type Output = ReplicationConnection;

    async fn run(
        &self,
        link: Link,
        target: TargetSessionAttrs,
    ) -> Result<ReplicationConnection, Error> {
        let policy = Policy::new(self.config, &link);
        let mut wire = Wire::new(link.stream, link.host);
        let mut message = BytesMut::new();
        let mut extra = Vec::new();
        if let Some(kb) = self.options.logical_decoding_work_mem_kb {
            extra.push(("logical_decoding_work_mem", format!("{kb}kB")));
        }
        if let Some(timeout) = self.options.wal_sender_timeout {
            extra.push(("wal_sender_timeout", format!("{}ms", timeout.as_millis())));
        }
        let options = settings::options_string(self.config.options.as_deref(), &extra);
        let application_name = self
            .options
            .application_name
            .as_deref()
            .or(self.config.application_name.as_deref())
            .unwrap_or("lastgood");
        frontend::startup_message(
            [
                ("user", self.config.user.as_str()),
                ("database", self.config.database.as_str()),
                ("replication", "database"),
                ("application_name", application_name),
                ("client_encoding", self.options.client_encoding.as_str()),
                ("options", options.as_str()),
            ],
            &mut message,
        )
        .map_err(|error| Error::Protocol(error.to_string()))?;
        wire.send(&message).await?;
        auth::authenticate(&mut wire, self.config, &policy, link.channel_binding)
            .await
            .map_err(|error| as_pooler(wire.host(), error))?;
        wire.lift_limit();

        let server_version = ready(&mut wire)
            .await
            .map_err(|error| as_pooler(wire.host(), error))?;
        let mut connection = ReplicationConnection {
            wire,
            server_version,
        };
        let later = settings::later_statements(server_version);
        if !later.is_empty() {
            connection.query(&later).await?;
        }
        if target != TargetSessionAttrs::Any {
            let rows = connection.query(crate::connect::TARGET_QUERY).await?;
            let is = |column| rows.first().and_then(|row| row.get(column)) == Some("t");
            check_target(connection.host(), target, is("standby"), is("read_only"))?;
        }
        Ok(connection)
    }
}

/// Reads from AuthenticationOk to ReadyForQuery; returns the server's version.
async fn ready(wire: &mut Wire) -> Result<u32, Error> {
    let mut text = String::new();
    loop {
        let (tag, body) = wire.next().await?;
        match tag {
            b'S' => {
                let mut cursor = Cursor::new(&body);
                if cursor.cstr()? == b"server_version" {
                    text = String::from_utf8_lossy(cursor.cstr()?).into_owned();
                }
            }
            b'E' => return Err(Error::server(Operation::Connect, &body)),
            // Key for cancelling, notices, a newer protocol offered.
            b'K' | b'N' | b'v' => {}
            b'Z' => break,
            tag => return Err(unexpected(tag, "startup")),
        }
    }
    supported(wire.host(), &text)
}

/// The version as a number, if it is one that we can work with.
pub(crate) fn supported(host: &Host, text: &str) -> Result<u32, Error> {
    version::parse(text)
        .filter(|version| version / 10_000 >= version::OLDEST_MAJOR)
        .ok_or_else(|| Error::UnsupportedServer {
            host: host.to_string(),
            version: text.to_owned(),
        })
}

/// Poolers refuse what they do not pass on with a protocol violation (PgBouncer's "unsupported
/// startup parameter: replication", Neon's "unsupported startup parameter in options").
pub(crate) fn as_pooler(host: &Host, error: Error) -> Error {
    let is_pooler = |server: &ServerError| {
        let message = server.message.to_ascii_lowercase();
        message.contains("unsupported startup parameter")
            || (message.contains("replication") && message.contains("pooler"))
    };
    match error {
        Error::Server {
            during: Operation::Connect,
            source,
        } if is_pooler(&source) => Error::Pooler {
            host: host.to_string(),
            message: source.message,
        },
        other => other,
    }
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

/// RowDescription: only the names matter, every value is text here.
fn column_names(body: &Bytes) -> Result<Vec<String>, Error> {
    let mut cursor = Cursor::new(body);
    (0..cursor.u16()?)
        .map(|_| {
            let name = String::from_utf8_lossy(cursor.cstr()?).into_owned();
            // Table, column, type, length, modifier, format.
            cursor.bytes(4 + 2 + 4 + 2 + 4 + 2)?;
            Ok(name)
        })
        .collect()
}

fn data_row(columns: &[String], body: &Bytes) -> Result<SimpleRow, Error> {
    let mut cursor = Cursor::new(body);
    let count = usize::from(cursor.u16()?);
    if count != columns.len() {
        return Err(Error::Protocol(
            "a row does not fit its description".to_owned(),
        ));
    }
    let values = columns
        .iter()
        .map(|name| {
            let value = match usize::try_from(cursor.i32()?) {
                Ok(length) => Some(String::from_utf8_lossy(cursor.bytes(length)?).into_owned()),
                Err(_) => None,
            };
            Ok((name.clone(), value))
        })
        .collect::<Result<_, Error>>()?;
    cursor.finish()?;
    Ok(SimpleRow { values })
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
