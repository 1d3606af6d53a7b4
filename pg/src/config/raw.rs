//! Parameters by name, and what they are together.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::types::{DEFAULT_CONNECT_TIMEOUT, DEFAULT_KEEPALIVE};
use super::{
    ChannelBinding, ConfigError, ConnectionConfig, DEFAULT_PORT, Host, HostKind, Keepalive,
    Password, RequireAuth, RootCertificates, SslMode, SslNegotiation, TargetSessionAttrs,
    TlsOptions, TlsVersion, parse,
};

/// Where libpq's builds look for the socket when no host is given.
pub(super) const DEFAULT_SOCKET_FOLDER: &str = "/var/run/postgresql";

/// Parameters as given, before they are checked against each other.
#[derive(Default)]
pub(super) struct Raw {
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
    pub(super) fn from_pairs(pairs: Vec<parse::Pair>) -> Result<Self, ConfigError> {
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

    pub(super) fn build(self) -> Result<ConnectionConfig, ConfigError> {
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
