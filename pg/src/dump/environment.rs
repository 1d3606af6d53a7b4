//! What a child process is told, and what it is not.

use std::ffi::OsString;
use std::path::Path;

use tokio::process::Command;

use crate::config::{ConnectionConfig, HostKind, RootCertificates, SslMode};
use crate::settings;

/// A file that does not exist, for defaults of libpq's that must not be found.
const NO_FILE: &str = "/nonexistent/lastgood";

/// Where systems keep their roots, for a libpq before 16, which does not know `system`.
const SYSTEM_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Takes away what would redirect the child or change its output.
pub(super) fn clear(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("PG")) {
            command.env_remove(name);
        }
    }
    // Messages are shown to operators and looked into: in one language.
    command.env("LC_MESSAGES", "C").env_remove("LC_ALL");
    command.env_remove("LANGUAGE");
    command
        .env("PGPASSFILE", NO_FILE)
        .env("PGSERVICEFILE", NO_FILE);
}

/// The database as an argument. A bare name with `=` in it would be read as a connection string.
pub(super) fn database_argument(database: &str) -> String {
    let escaped = database.replace('\\', r"\\").replace('\'', r"\'");
    format!("--dbname=dbname='{escaped}'")
}

/// A socket of ours instead of a server. Who is there has proved it already.
pub(super) fn local(command: &mut Command, folder: &Path, port: &str) {
    command
        .env("PGHOST", folder)
        .env("PGPORT", port)
        .env("PGUSER", "lastgood")
        .env("PGSSLMODE", "disable")
        .env("PGGSSENCMODE", "disable")
        .env("PGMAXPROTOCOLVERSION", "3.0");
}

/// The connection string as libpq's variables; the database goes by argument.
pub(super) fn connection(
    config: &ConnectionConfig,
    libpq_major: u32,
) -> Vec<(&'static str, OsString)> {
    let join = |items: Vec<String>| OsString::from(items.join(","));
    let mut variables = vec![
        (
            "PGHOST",
            join(
                config
                    .hosts
                    .iter()
                    .map(|host| host.name().to_owned())
                    .collect(),
            ),
        ),
        (
            "PGPORT",
            join(
                config
                    .hosts
                    .iter()
                    .map(|host| host.port.to_string())
                    .collect(),
            ),
        ),
        ("PGUSER", config.user.clone().into()),
        ("PGSSLMODE", config.tls.mode.as_str().into()),
        ("PGCHANNELBINDING", config.channel_binding.as_str().into()),
        ("PGGSSENCMODE", "disable".into()),
        ("PGTARGETSESSIONATTRS", config.target.as_str().into()),
        (
            "PGOPTIONS",
            settings::options_string(config.options.as_deref(), &[]).into(),
        ),
        (
            "PGAPPNAME",
            config
                .application_name
                .as_deref()
                .unwrap_or("lastgood base")
                .into(),
        ),
        (
            "PGSSLMINPROTOCOLVERSION",
            config.tls.version_min.as_str().into(),
        ),
        (
            "PGSSLMAXPROTOCOLVERSION",
            config.tls.version_max.as_str().into(),
        ),
        ("PGSSLROOTCERT", root_certificates(config, libpq_major)),
        ("PGSSLCRL", NO_FILE.into()),
        ("PGSSLCERT", path_or_none(config.tls.certificate.as_deref())),
        ("PGSSLKEY", path_or_none(config.tls.key.as_deref())),
    ];
    let addresses: Vec<String> = config
        .hosts
        .iter()
        .map(|host| match &host.kind {
            HostKind::Tcp {
                address: Some(address),
                ..
            } => address.to_string(),
            HostKind::Tcp { address: None, .. } | HostKind::Unix(_) => String::new(),
        })
        .collect();
    if addresses.iter().any(|address| !address.is_empty()) {
        variables.push(("PGHOSTADDR", join(addresses)));
    }
    if let Some(password) = &config.password {
        variables.push(("PGPASSWORD", password.expose().into()));
    }
    if let Some(limit) = config.connect_timeout {
        variables.push(("PGCONNECT_TIMEOUT", limit.as_secs().to_string().into()));
    }
    if let Some(list) = &config.require_auth {
        variables.push(("PGREQUIREAUTH", list.text.clone().into()));
    }
    if !config.tls.server_name_indication {
        variables.push(("PGSSLSNI", "0".into()));
    }
    if config.tls.negotiation == crate::config::SslNegotiation::Direct {
        variables.push(("PGSSLNEGOTIATION", "direct".into()));
    }
    variables
}

fn path_or_none(path: Option<&Path>) -> OsString {
    path.map_or(NO_FILE.into(), |path| path.as_os_str().to_owned())
}

fn root_certificates(config: &ConnectionConfig, libpq_major: u32) -> OsString {
    let system = match &config.tls.roots {
        RootCertificates::File(path) => return path.as_os_str().to_owned(),
        RootCertificates::System => true,
        RootCertificates::Unspecified => config.tls.mode == SslMode::VerifyFull,
    };
    if !system {
        return NO_FILE.into();
    }
    if libpq_major >= 16 {
        return "system".into();
    }
    let bundle = SYSTEM_BUNDLES.iter().find(|path| Path::new(path).exists());
    bundle.unwrap_or(&NO_FILE).into()
}
