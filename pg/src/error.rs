//! What can go wrong on the way to a server, classed by what has to be done about it.
//!
//! `Display` is one clause without its cause; causes hang on `source`. No text here ever holds a
//! password: servers do not repeat them, and our own texts are made of names and numbers.

use std::io;

use lastgood_proto::Class;
use lastgood_proto::cursor::{Cursor, DecodeError};

use crate::ConfigError;
use crate::dump::ToolError;
use crate::sqlstate::{self, Condition};
use crate::tls::TlsError;

/// What was being done when the server reported an error. One SQLSTATE means different things in
/// different places: 42704 is a missing slot at START_REPLICATION and a missing publication later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Startup and authentication.
    Connect,
    /// Ordinary SQL.
    Query,
    CreateSlot,
    StartReplication,
    /// After START_REPLICATION was accepted.
    Stream,
}

impl Operation {
    const fn failure(self) -> &'static str {
        match self {
            Self::Connect => "the server refused the connection",
            Self::Query => "the server could not do what it was asked",
            Self::CreateSlot => "the slot could not be made",
            Self::StartReplication => "the stream could not be started",
            Self::Stream => "the stream failed",
        }
    }
}

/// An error that the server reported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server reported {severity} {code}: {message}")]
pub struct ServerError {
    /// Untranslated: ERROR, FATAL or PANIC.
    pub severity: String,
    /// The SQLSTATE.
    pub code: String,
    /// In the server's language.
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
    /// The C function that reported it: never translated, so fit for telling errors apart.
    pub routine: Option<String>,
}

/// See the module's documentation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the connection string is not valid")]
    Config(#[from] ConfigError),
    #[error("could not connect to {host}")]
    Unreachable {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("connecting to {host} took longer than {seconds} s")]
    ConnectTimeout { host: String, seconds: u64 },
    #[error("TLS with {host} failed")]
    Tls {
        host: String,
        #[source]
        source: TlsError,
    },
    #[error("authentication with {host} failed: {reason}")]
    Authentication { host: String, reason: AuthFailure },
    #[error(
        "{host} is a pooler that does not pass on what is needed ({message}); connect to the server itself"
    )]
    Pooler { host: String, message: String },
    #[error("{host} is not what target_session_attrs={wanted} asks for")]
    WrongSession { host: String, wanted: &'static str },
    #[error("{host} runs PostgreSQL {version}; 13 and later are supported")]
    UnsupportedServer { host: String, version: String },
    #[error("{}", during.failure())]
    Server {
        during: Operation,
        #[source]
        source: Box<ServerError>,
    },
    #[error("the connection to the server broke")]
    Broken(#[source] io::Error),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server ended the replication stream")]
    StreamEnded,
    #[error("the server sent something that the protocol does not allow: {0}")]
    Protocol(String),
    #[error("a message of {length} bytes is longer than the {limit} allowed")]
    MessageTooLong { length: u64, limit: u64 },
    #[error("a replication message could not be decoded")]
    Decode(#[from] DecodeError),
    #[error("an SQL connection failed")]
    Sql(#[source] tokio_postgres::Error),
    #[error(transparent)]
    Tool(#[from] ToolError),
}

/// Why no authentication came about; the server's own refusals are [`Error::Server`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuthFailure {
    #[error("the server asks for a password and the connection string has none")]
    PasswordMissing,
    #[error("the server asks for the password in clear and the connection is not encrypted")]
    CleartextRefused,
    #[error("the server asks for {0}, which is not supported")]
    MethodUnsupported(&'static str),
    #[error("the server asks for {0}, which require_auth forbids")]
    MethodForbidden(&'static str),
    #[error("channel_binding=require, and the server or the connection cannot do it")]
    NoChannelBinding,
    #[error("the server could not prove that it knows the password ({0})")]
    Scram(String),
}

impl Error {
    /// From the body of an ErrorResponse.
    pub(crate) fn server(during: Operation, body: &[u8]) -> Self {
        match ServerError::parse(body) {
            Ok(error) => Self::from_server(during, error),
            Err(error) => Self::Decode(error),
        }
    }

    pub(crate) fn from_server(during: Operation, error: ServerError) -> Self {
        Self::Server {
            during,
            source: Box::new(error),
        }
    }

    /// The server's SQLSTATE, if it is the server that reported this.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server { source, .. } => Some(&source.code),
            Self::Sql(error) => error.code().map(tokio_postgres::error::SqlState::code),
            _ => None,
        }
    }

    /// What the server reported, in full.
    #[must_use]
    pub fn server_error(&self) -> Option<&ServerError> {
        match self {
            Self::Server { source, .. } => Some(source),
            _ => None,
        }
    }

    /// What the server's error means for us; [`Condition::Other`] if it did not report one.
    #[must_use]
    pub fn condition(&self) -> Condition {
        match self {
            Self::Server { during, source } => sqlstate::condition(*during, source),
            _ => Condition::Other,
        }
    }

    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable { .. }
            | Self::ConnectTimeout { .. }
            | Self::WrongSession { .. }
            | Self::Broken(_)
            | Self::Closed
            | Self::StreamEnded => Class::Transient,
            Self::Tls { source, .. } => source.class(),
            Self::Config(_)
            | Self::Authentication { .. }
            | Self::Pooler { .. }
            | Self::UnsupportedServer { .. }
            | Self::MessageTooLong { .. } => Class::NeedsOperator,
            Self::Protocol(_) | Self::Decode(_) => Class::Corrupt,
            Self::Server { during, source } => sqlstate::class(*during, source),
            Self::Sql(_) => Class::NeedsOperator,
            Self::Tool(error) => error.class(),
        }
    }
}

impl ServerError {
    /// Takes the body of an ErrorResponse or NoticeResponse apart.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new(body);
        let mut error = Self {
            severity: String::new(),
            code: String::new(),
            message: String::new(),
            detail: None,
            hint: None,
            routine: None,
        };
        loop {
            let field = cursor.u8()?;
            if field == 0 {
                cursor.finish()?;
                return Ok(error);
            }
            // Before authentication the server's encoding is anybody's guess.
            let value = String::from_utf8_lossy(cursor.cstr()?);
            match field {
                b'V' => error.severity = value.into_owned(),
                b'C' => error.code = value.into_owned(),
                b'M' => error.message = value.into_owned(),
                b'D' => error.detail = Some(value.into_owned()),
                b'H' => error.hint = Some(value.into_owned()),
                b'R' => error.routine = Some(value.into_owned()),
                // Position, context, names of objects: a query's text may be among them.
                _ => {}
            }
        }
    }
}

impl From<tokio_postgres::Error> for Error {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(db) = error.as_db_error() {
            return Self::from_server(
                Operation::Query,
                ServerError {
                    severity: db
                        .parsed_severity()
                        .map_or_else(|| db.severity().to_owned(), |severity| severity.to_string()),
                    code: db.code().code().to_owned(),
                    message: db.message().to_owned(),
                    detail: db.detail().map(str::to_owned),
                    hint: db.hint().map(str::to_owned),
                    routine: db.routine().map(str::to_owned),
                },
            );
        }
        if error.is_closed() {
            return Self::Closed;
        }
        let broken = std::error::Error::source(&error)
            .and_then(|cause| cause.downcast_ref::<io::Error>())
            .map(|cause| io::Error::new(cause.kind(), cause.to_string()));
        match broken {
            Some(cause) => Self::Broken(cause),
            None => Self::Sql(error),
        }
    }
}
