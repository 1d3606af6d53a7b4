//! Connection strings: both of libpq's forms, typed.
//!
//! Invariants: the password leaves this type only towards a server or a child process of ours; no
//! error, `Debug` or [`ConnectionConfig::redacted`] text holds it, nor any part of a text that
//! could not be understood. Nothing is read that the string does not name: no `PG*` variable, no
//! password file, no service file, no `~/.postgresql`.
//!
//! Absent on purpose: GSSAPI, SSPI, service files, encrypted client keys and revocation lists. A
//! parameter that asks for one of them is refused, never ignored.

mod parse;
mod raw;
mod types;

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use lastgood_proto::Class;

pub(crate) use types::{
    AuthMethod, HostKind, Keepalive, Password, RequireAuth, RootCertificates, TlsOptions,
    TlsVersion,
};
pub use types::{ChannelBinding, Host, SslMode, SslNegotiation, TargetSessionAttrs};

use crate::percent;

const DEFAULT_PORT: u16 = 5432;

/// The connection string is not valid. Holds nothing of the string but names of parameters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("a parameter has no \"=\" after its name; a value with blanks needs single quotes")]
    MissingEquals,
    #[error("a single quote is not closed")]
    UnterminatedQuote,
    #[error("a percent sign is not followed by two hexadecimal digits, or the text is not UTF-8")]
    PercentEncoding,
    #[error("there is an \"@\" after the host; percent-encode @, / and : in a password")]
    StrayAt,
    #[error("there is a zero byte")]
    ZeroByte,
    #[error("the port is not a number from 1 to 65535; percent-encode @, / and : in a password")]
    Port,
    #[error(
        "the host has characters that no host name has; percent-encode @, / and : in a password"
    )]
    HostName,
    #[error("the numbers of hosts, addresses and ports do not agree")]
    HostCount,
    #[error("the parameter \"{name}\" is not known")]
    UnknownParameter { name: String },
    #[error("the parameter \"{name}\" is not supported: {reason}")]
    Unsupported {
        name: &'static str,
        reason: &'static str,
    },
    #[error("the parameter \"{name}\" must be {expected}")]
    InvalidValue {
        name: &'static str,
        expected: &'static str,
    },
    #[error("the user is missing")]
    MissingUser,
    #[error("sslmode={mode} needs sslrootcert, the file with the roots to trust")]
    RootsMissing { mode: &'static str },
    #[error("sslmode={mode} is too weak for sslrootcert=system, which needs verify-full")]
    WeakWithSystemRoots { mode: &'static str },
    #[error("sslnegotiation=direct needs sslmode require, verify-ca or verify-full")]
    WeakWithDirect,
    #[error("sslcert and sslkey must be given together")]
    HalfAClientCertificate,
}

impl ConfigError {
    #[must_use]
    pub fn class(&self) -> Class {
        Class::NeedsOperator
    }
}

/// How to reach one database, and as whom.
#[derive(Clone)]
pub struct ConnectionConfig {
    pub(crate) hosts: Vec<Host>,
    pub(crate) user: String,
    pub(crate) database: String,
    pub(crate) password: Option<Password>,
    pub(crate) tls: TlsOptions,
    pub(crate) channel_binding: ChannelBinding,
    pub(crate) require_auth: Option<RequireAuth>,
    pub(crate) application_name: Option<String>,
    /// `None`: as long as it takes.
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) options: Option<String>,
    pub(crate) target: TargetSessionAttrs,
    pub(crate) keepalive: Option<Keepalive>,
    pub(crate) tcp_user_timeout: Option<Duration>,
}

impl ConnectionConfig {
    /// The first host: a name, an address or the folder of a socket.
    #[must_use]
    pub fn host(&self) -> &str {
        self.hosts.first().map_or("", Host::name)
    }

    /// The first host's port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.hosts.first().map_or(DEFAULT_PORT, Host::port)
    }

    /// Every host, in the order in which they are tried.
    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    #[must_use]
    pub fn user(&self) -> &str {
        &self.user
    }

    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    #[must_use]
    pub fn ssl_mode(&self) -> SslMode {
        self.tls.mode
    }

    /// The same server and user, another database.
    #[must_use]
    pub fn with_database(&self, database: &str) -> Self {
        Self {
            database: database.to_owned(),
            ..self.clone()
        }
    }

    /// The same, but only the host that was reached: a snapshot exists on one server, so whoever
    /// imports it must not be led to another one of the list.
    #[must_use]
    pub fn pinned_to(&self, host: &Host) -> Self {
        Self {
            hosts: vec![host.clone()],
            ..self.clone()
        }
    }

    /// A URL without password and options, for logs, answers and errors.
    #[must_use]
    pub fn redacted(&self) -> String {
        let hosts: Vec<String> = self
            .hosts
            .iter()
            .map(|host| match &host.kind {
                HostKind::Tcp { .. } => host.to_string(),
                HostKind::Unix(_) => format!("{}:{}", percent::encode(host.name()), host.port),
            })
            .collect();
        format!(
            "postgresql://{}@{}/{}?sslmode={}",
            percent::encode(&self.user),
            hosts.join(","),
            percent::encode(&self.database),
            self.tls.mode.as_str()
        )
    }
}

impl fmt::Debug for ConnectionConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ConnectionConfig({})", self.redacted())
    }
}

impl FromStr for ConnectionConfig {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        raw::Raw::from_pairs(parse::parse(text)?)?.build()
    }
}

#[cfg(test)]
mod tests;
