//! From a socket to a walsender that takes commands.

use bytes::BytesMut;
use lastgood_proto::cursor::Cursor;
use postgres_protocol::message::frontend;

use super::{ReplicationConnection, ReplicationOptions, unexpected};
use crate::auth::{self, Policy};
use crate::config::{ConnectionConfig, Host, TargetSessionAttrs};
use crate::connect::check_target;
use crate::error::{Error, Operation, ServerError};
use crate::settings;
use crate::transport::{Handshake, Link};
use crate::version;
use crate::wire::Wire;

/// Startup and authentication of a replication connection.
pub(super) struct Startup<'a> {
    pub(super) config: &'a ConnectionConfig,
    pub(super) options: &'a ReplicationOptions,
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
        let rows = connection.query(settings::IN_EFFECT_QUERY).await?;
        if rows.first().and_then(|row| row.get("in_effect")) != Some("t") {
            return Err(Error::Pooler {
                host: connection.host().to_string(),
                message: settings::NOT_IN_EFFECT.to_owned(),
            });
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn check(message: &str, code: &str, is_pooler: bool) {
        let config: ConnectionConfig = "user=u host=h".parse().unwrap();
        let error = Error::from_server(
            Operation::Connect,
            ServerError {
                severity: "FATAL".into(),
                code: code.into(),
                message: message.into(),
                detail: None,
                hint: None,
                routine: None,
            },
        );
        let error = as_pooler(&config.hosts[0], error);
        assert_eq!(
            matches!(error, Error::Pooler { .. }),
            is_pooler,
            "{message}"
        );
    }

    #[test]
    fn poolers_are_told_from_servers() {
        check("unsupported startup parameter: replication", "08P01", true);
        check(
            "unsupported startup parameter in options: datestyle",
            "08P01",
            true,
        );
        check("no such user", "28P01", false);
        check(
            "password authentication failed for user \"u\"",
            "28P01",
            false,
        );
    }
}
