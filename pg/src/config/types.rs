//! The values that parameters of a connection string take, each with its parser.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use super::ConfigError;

/// A password. Wiped on drop; has no `Debug`, no `Display`, no `PartialEq`.
#[derive(Clone)]
pub(crate) struct Password(Zeroizing<String>);

impl Password {
    pub(super) fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// The password itself, for the exchange with a server and nothing else.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub(crate) kind: HostKind,
    pub(crate) port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HostKind {
    /// A name to resolve and to check the certificate against; `address` (hostaddr) replaces the
    /// resolution only.
    Tcp {
        name: String,
        address: Option<IpAddr>,
    },
    /// The folder of a Unix-domain socket.
    Unix(PathBuf),
}

impl Host {
    /// The name, address or socket folder.
    #[must_use]
    pub fn name(&self) -> &str {
        match &self.kind {
            HostKind::Tcp { name, .. } => name,
            HostKind::Unix(folder) => folder.to_str().unwrap_or_default(),
        }
    }

    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    #[must_use]
    pub fn is_unix(&self) -> bool {
        matches!(self.kind, HostKind::Unix(_))
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.name().contains(':') {
            true => write!(f, "[{}]:{}", self.name(), self.port),
            false => write!(f, "{}:{}", self.name(), self.port),
        }
    }
}

/// A closed set of words: formatter and parser from one list.
macro_rules! words {
    ($(#[$doc:meta])* $vis:vis $name:ident, $parameter:literal, $expected:literal, $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            #[must_use]
            $vis const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
                match text {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(ConfigError::InvalidValue { name: $parameter, expected: $expected }),
                }
            }
        }
    };
}

words!(
    /// How much TLS is asked for, with libpq's meaning.
    pub SslMode, "sslmode", "disable, allow, prefer, require, verify-ca or verify-full",
    Disable = "disable",
    /// Without TLS first; with it if the server refuses.
    Allow = "allow",
    /// With TLS first; without if the server or the handshake refuses.
    Prefer = "prefer",
    /// TLS; the certificate is checked only if `sslrootcert` is given, and then as `verify-ca`.
    Require = "require",
    /// TLS, and a certificate that leads to a trusted root.
    VerifyCa = "verify-ca",
    /// TLS, a certificate that leads to a trusted root and names the host.
    VerifyFull = "verify-full",
);

words!(
    /// Whether SCRAM is tied to the TLS connection it runs in.
    pub ChannelBinding, "channel_binding", "disable, prefer or require",
    Disable = "disable",
    Prefer = "prefer",
    Require = "require",
);

words!(
    /// How TLS begins.
    pub SslNegotiation, "sslnegotiation", "postgres or direct",
    /// By an SSLRequest.
    Postgres = "postgres",
    /// By a TLS handshake at once, with ALPN (PostgreSQL 17 and later).
    Direct = "direct",
);

words!(
    /// Which of several servers will do.
    pub TargetSessionAttrs, "target_session_attrs", "any, read-write, read-only, primary, standby or prefer-standby",
    Any = "any",
    ReadWrite = "read-write",
    ReadOnly = "read-only",
    Primary = "primary",
    Standby = "standby",
    PreferStandby = "prefer-standby",
);

words!(
    /// A bound on the TLS version.
    pub(crate) TlsVersion, "ssl_min_protocol_version", "TLSv1.2 or TLSv1.3",
    V1_2 = "TLSv1.2",
    V1_3 = "TLSv1.3",
);

/// Where trusted roots come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RootCertificates {
    /// Nothing was said: no check below `verify-ca`, the system's roots for `verify-full`.
    Unspecified,
    /// `sslrootcert=system`.
    System,
    File(PathBuf),
}

/// How TLS is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TlsOptions {
    pub(crate) mode: SslMode,
    pub(crate) negotiation: SslNegotiation,
    pub(crate) roots: RootCertificates,
    pub(crate) certificate: Option<PathBuf>,
    pub(crate) key: Option<PathBuf>,
    pub(crate) server_name_indication: bool,
    pub(crate) version_min: TlsVersion,
    pub(crate) version_max: TlsVersion,
}

/// A way to prove who one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AuthMethod {
    None,
    Password,
    Md5,
    Scram,
    /// GSSAPI and SSPI, which we do not speak; they may be named in `require_auth` all the same.
    Kerberos,
}

/// `require_auth`: the methods the server may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequireAuth {
    negated: bool,
    methods: Vec<AuthMethod>,
    /// As written, for child processes.
    pub(crate) text: String,
}

impl RequireAuth {
    pub(super) fn parse(text: &str) -> Result<Self, ConfigError> {
        let invalid = || ConfigError::InvalidValue {
            name: "require_auth",
            expected: "a list of password, md5, scram-sha-256, gss, sspi and none, all or none \
                       of them with a leading !",
        };
        let items: Vec<&str> = text.split(',').map(str::trim).collect();
        let negated = items.iter().all(|item| item.starts_with('!'));
        let methods = items
            .iter()
            .map(|item| match item.strip_prefix('!') {
                Some(name) if negated => Ok(name),
                None if !negated => Ok(*item),
                _ => Err(invalid()),
            })
            .map(|name| match name? {
                "none" => Ok(AuthMethod::None),
                "password" => Ok(AuthMethod::Password),
                "md5" => Ok(AuthMethod::Md5),
                "scram-sha-256" => Ok(AuthMethod::Scram),
                "gss" | "sspi" => Ok(AuthMethod::Kerberos),
                _ => Err(invalid()),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            negated,
            methods,
            text: text.to_owned(),
        })
    }

    pub(crate) fn allows(&self, method: AuthMethod) -> bool {
        self.methods.contains(&method) != self.negated
    }
}

/// TCP keepalive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Keepalive {
    pub(crate) idle: Duration,
    pub(crate) interval: Duration,
    pub(crate) retries: u32,
}

/// A peer that vanished is noticed after about a minute, where the kernel's own setting takes
/// more than two hours.
pub(crate) const DEFAULT_KEEPALIVE: Keepalive = Keepalive {
    idle: Duration::from_secs(30),
    interval: Duration::from_secs(10),
    retries: 3,
};

/// libpq waits for ever; a service that tries again does not want to.
pub(crate) const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
