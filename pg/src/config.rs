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
mod types;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use lastgood_proto::Class;

pub(crate) use types::{
    AuthMethod, DEFAULT_CONNECT_TIMEOUT, DEFAULT_KEEPALIVE, HostKind, Keepalive, Password,
    RequireAuth, RootCertificates, TlsOptions, TlsVersion,
};
pub use types::{ChannelBinding, Host, SslMode, SslNegotiation, TargetSessionAttrs};

use crate::percent;

/// Where libpq's builds look for the socket when no host is given.
const DEFAULT_SOCKET_FOLDER: &str = "/var/run/postgresql";
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
        Raw::from_pairs(parse::parse(text)?)?.build()
    }
}

/// Parameters as given, before they are checked against each other.
#[derive(Default)]
struct Raw {
    host: Option<String>,
    hostaddr: Option<String>,
    port: Option<String>,
    user: Option<String>,
    database: Option<String>,
    password: Option<Password>,
    mode: Option<SslMode>,
    negotiation: Option<SslNegotiation>,
    roots: Option<RootCertificates>,
    certificate: Option<PathBuf>,
    key: Option<PathBuf>,
    no_server_name_indication: bool,
    version_min: Option<TlsVersion>,
    version_max: Option<TlsVersion>,
    channel_binding: Option<ChannelBinding>,
    require_auth: Option<RequireAuth>,
    application_name: Option<String>,
    fallback_application_name: Option<String>,
    connect_timeout: Option<Option<Duration>>,
    options: Option<String>,
    target: Option<TargetSessionAttrs>,
    keepalives_off: bool,
    keepalives_idle: Option<Duration>,
    keepalives_interval: Option<Duration>,
    keepalives_count: Option<u32>,
    tcp_user_timeout: Option<Duration>,
}

impl Raw {
    /// The last of several values of one parameter counts; an empty one is as good as none.
    fn from_pairs(pairs: Vec<parse::Pair>) -> Result<Self, ConfigError> {
        let mut raw = Self::default();
        for (name, value) in pairs {
            if name == "password" {
                raw.password = (!value.is_empty()).then(|| Password::new(value));
            } else if value.is_empty() {
                known(&name)?;
            } else {
                raw.set(&name, &value)?;
            }
        }
        Ok(raw)
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), ConfigError> {
        let text = || Some(value.to_owned());
        match name {
            "host" => self.host = text(),
            "hostaddr" => self.hostaddr = text(),
            "port" => self.port = text(),
            "user" => self.user = text(),
            "dbname" => self.database = text(),
            "sslmode" => self.mode = Some(SslMode::parse(value)?),
            "sslnegotiation" => self.negotiation = Some(SslNegotiation::parse(value)?),
            "sslrootcert" => {
                self.roots = Some(match value {
                    "system" => RootCertificates::System,
                    path => RootCertificates::File(path.into()),
                });
            }
            "sslcert" => self.certificate = Some(value.into()),
            "sslkey" => self.key = Some(value.into()),
            "sslsni" => self.no_server_name_indication = !flag("sslsni", value)?,
            "ssl_min_protocol_version" => self.version_min = tls_version(value)?,
            "ssl_max_protocol_version" => self.version_max = Some(TlsVersion::parse(value)?),
            "channel_binding" => self.channel_binding = Some(ChannelBinding::parse(value)?),
            "require_auth" => self.require_auth = Some(RequireAuth::parse(value)?),
            "application_name" => self.application_name = text(),
            "fallback_application_name" => self.fallback_application_name = text(),
            "connect_timeout" => self.connect_timeout = Some(connect_timeout(value)?),
            "options" => self.options = text(),
            "target_session_attrs" => self.target = Some(TargetSessionAttrs::parse(value)?),
            "keepalives" => self.keepalives_off = !flag("keepalives", value)?,
            "keepalives_idle" => self.keepalives_idle = seconds("keepalives_idle", value)?,
            "keepalives_interval" => {
                self.keepalives_interval = seconds("keepalives_interval", value)?;
            }
            "keepalives_count" => {
                self.keepalives_count = Some(number("keepalives_count", value)?).filter(|&n| n > 0);
            }
            "tcp_user_timeout" => {
                let millis = u64::from(number("tcp_user_timeout", value)?);
                self.tcp_user_timeout = (millis > 0).then(|| Duration::from_millis(millis));
            }
            _ => return accepted(name, value),
        }
        Ok(())
    }

    fn build(self) -> Result<ConnectionConfig, ConfigError> {
        let hosts = hosts(
            self.host.as_deref(),
            self.hostaddr.as_deref(),
            self.port.as_deref(),
        )?;
        let user = self.user.ok_or(ConfigError::MissingUser)?;
        let roots = self.roots.unwrap_or(RootCertificates::Unspecified);
        let mode = self.mode.unwrap_or(match roots {
            RootCertificates::System => SslMode::VerifyFull,
            _ => SslMode::Prefer,
        });
        let mode_name = mode.as_str();
        match (mode, &roots) {
            (SslMode::VerifyCa, RootCertificates::Unspecified) => {
                return Err(ConfigError::RootsMissing { mode: mode_name });
            }
            (SslMode::VerifyFull | SslMode::Disable, _) => {}
            (_, RootCertificates::System) => {
                return Err(ConfigError::WeakWithSystemRoots { mode: mode_name });
            }
            _ => {}
        }
        let negotiation = self.negotiation.unwrap_or(SslNegotiation::Postgres);
        let weak = matches!(mode, SslMode::Disable | SslMode::Allow | SslMode::Prefer);
        if weak && negotiation == SslNegotiation::Direct {
            return Err(ConfigError::WeakWithDirect);
        }
        if self.certificate.is_some() != self.key.is_some() {
            return Err(ConfigError::HalfAClientCertificate);
        }
        let keepalive = Keepalive {
            idle: self.keepalives_idle.unwrap_or(DEFAULT_KEEPALIVE.idle),
            interval: self
                .keepalives_interval
                .unwrap_or(DEFAULT_KEEPALIVE.interval),
            retries: self.keepalives_count.unwrap_or(DEFAULT_KEEPALIVE.retries),
        };
        Ok(ConnectionConfig {
            hosts,
            database: self.database.unwrap_or_else(|| user.clone()),
            user,
            password: self.password,
            tls: TlsOptions {
                mode,
                negotiation,
                roots,
                certificate: self.certificate,
                key: self.key,
                server_name_indication: !self.no_server_name_indication,
                version_min: self.version_min.unwrap_or(TlsVersion::V1_2),
                version_max: self.version_max.unwrap_or(TlsVersion::V1_3),
            },
            channel_binding: self.channel_binding.unwrap_or(ChannelBinding::Prefer),
            require_auth: self.require_auth,
            application_name: self.application_name.or(self.fallback_application_name),
            connect_timeout: self
                .connect_timeout
                .unwrap_or(Some(DEFAULT_CONNECT_TIMEOUT)),
            options: self.options,
            target: self.target.unwrap_or(TargetSessionAttrs::Any),
            keepalive: (!self.keepalives_off).then_some(keepalive),
            tcp_user_timeout: self.tcp_user_timeout,
        })
    }
}

/// Parameters of libpq's whose wanted value is the only one we can give.
fn accepted(name: &str, value: &str) -> Result<(), ConfigError> {
    const ACCEPTED: &[(&str, &[&str], &str)] = &[
        ("gssencmode", &["disable", "prefer"], "GSSAPI is not spoken"),
        (
            "client_encoding",
            &["auto", "UTF8", "utf8", "UTF-8", "utf-8"],
            "the encoding is UTF8",
        ),
        ("sslcompression", &["0"], "TLS compression is insecure"),
        (
            "sslcertmode",
            &["allow", "disable"],
            "give sslcert, or leave it out",
        ),
        (
            "load_balance_hosts",
            &["disable"],
            "hosts are tried in their order",
        ),
        (
            "min_protocol_version",
            &["3.0"],
            "protocol 3.0 is what is spoken",
        ),
        (
            "max_protocol_version",
            &["3.0", "3.2", "latest"],
            "protocol 3.0 is what is spoken",
        ),
        (
            "replication",
            &["false", "off", "no", "0"],
            "it is set by the program",
        ),
        (
            "passfile",
            &[],
            "give the password in the connection string",
        ),
        (
            "service",
            &[],
            "give host, user and database in the connection string",
        ),
        (
            "servicefile",
            &[],
            "give host, user and database in the connection string",
        ),
        ("sslpassword", &[], "encrypted client keys cannot be read"),
        ("sslcrl", &[], "revocation lists are not checked"),
        ("sslcrldir", &[], "revocation lists are not checked"),
        ("sslkeylogfile", &[], "session keys are not written down"),
        ("requiressl", &[], "use sslmode=require"),
        ("requirepeer", &[], "the owner of a socket is not checked"),
        ("krbsrvname", &[], "GSSAPI is not spoken"),
        ("gsslib", &[], "GSSAPI is not spoken"),
        ("gssdelegation", &["0"], "GSSAPI is not spoken"),
        ("scram_client_key", &[], "give the password"),
        ("scram_server_key", &[], "give the password"),
    ];
    match ACCEPTED.iter().find(|(known, ..)| *known == name) {
        Some((_, values, _)) if values.contains(&value) => Ok(()),
        Some((known, _, reason)) => Err(ConfigError::Unsupported {
            name: known,
            reason,
        }),
        None => Err(unknown(name)),
    }
}

/// An unknown name is shown only if it looks like one: with a quote forgotten, the tail of a
/// password may stand where a name should.
fn unknown(name: &str) -> ConfigError {
    let plain = (1..=32).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_');
    ConfigError::UnknownParameter {
        name: if plain { name } else { "(not shown)" }.to_owned(),
    }
}

/// Whether a parameter with an empty value exists at all.
fn known(name: &str) -> Result<(), ConfigError> {
    match Raw::default().set(name, "0") {
        Err(error @ ConfigError::UnknownParameter { .. }) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn hosts(
    names: Option<&str>,
    addresses: Option<&str>,
    ports: Option<&str>,
) -> Result<Vec<Host>, ConfigError> {
    let split = |list: Option<&str>| -> Vec<String> {
        list.map(|list| list.split(',').map(|item| item.trim().to_owned()).collect())
            .unwrap_or_default()
    };
    let (names, addresses, ports) = (split(names), split(addresses), split(ports));
    let count = names.len().max(addresses.len()).max(1);
    let fits = |list: &[String], one_for_all: bool| {
        list.is_empty() || list.len() == count || (one_for_all && list.len() == 1)
    };
    if !fits(&names, false) || !fits(&addresses, false) || !fits(&ports, true) {
        return Err(ConfigError::HostCount);
    }
    let item = |list: &[String], at: usize| -> Option<String> {
        list.get(at)
            .or(list.first().filter(|_| list.len() == 1))
            .filter(|item| !item.is_empty())
            .cloned()
    };
    (0..count)
        .map(|at| {
            let port = match item(&ports, at) {
                None => DEFAULT_PORT,
                Some(text) => text
                    .parse()
                    .ok()
                    .filter(|&port| port > 0)
                    .ok_or(ConfigError::Port)?,
            };
            let address = item(&addresses, at)
                .map(|text| text.parse::<IpAddr>())
                .transpose()
                .map_err(|_| ConfigError::InvalidValue {
                    name: "hostaddr",
                    expected: "an IP address",
                })?;
            let kind = match (item(&names, at), address) {
                (Some(name), None) if name.starts_with('/') => HostKind::Unix(name.into()),
                (Some(name), address) => HostKind::Tcp {
                    name: host_name(name)?,
                    address,
                },
                (None, Some(address)) => HostKind::Tcp {
                    name: address.to_string(),
                    address: Some(address),
                },
                (None, None) => HostKind::Unix(DEFAULT_SOCKET_FOLDER.into()),
            };
            Ok(Host { kind, port })
        })
        .collect()
}

fn host_name(name: String) -> Result<String, ConfigError> {
    let plain = name
        .chars()
        .all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '%'));
    plain.then_some(name).ok_or(ConfigError::HostName)
}

/// A version below 1.2 is no bound for us: older ones are never spoken.
fn tls_version(value: &str) -> Result<Option<TlsVersion>, ConfigError> {
    match value {
        "TLSv1" | "TLSv1.1" => Ok(Some(TlsVersion::V1_2)),
        value => TlsVersion::parse(value).map(Some),
    }
}

/// libpq: zero and less mean no limit, and one second is taken as two.
fn connect_timeout(value: &str) -> Result<Option<Duration>, ConfigError> {
    let seconds: i32 = value
        .trim()
        .parse()
        .map_err(|_| ConfigError::InvalidValue {
            name: "connect_timeout",
            expected: "a number of seconds",
        })?;
    Ok(u64::try_from(seconds)
        .ok()
        .filter(|&seconds| seconds > 0)
        .map(|seconds| Duration::from_secs(seconds.max(2))))
}

fn seconds(name: &'static str, value: &str) -> Result<Option<Duration>, ConfigError> {
    let seconds = number(name, value)?;
    Ok((seconds > 0).then(|| Duration::from_secs(seconds.into())))
}

fn number(name: &'static str, value: &str) -> Result<u32, ConfigError> {
    value.trim().parse().map_err(|_| ConfigError::InvalidValue {
        name,
        expected: "a number",
    })
}

fn flag(name: &'static str, value: &str) -> Result<bool, ConfigError> {
    match value {
        "1" => Ok(true),
        "0" => Ok(false),
        _ => Err(ConfigError::InvalidValue {
            name,
            expected: "0 or 1",
        }),
    }
}

#[cfg(test)]
mod tests;
