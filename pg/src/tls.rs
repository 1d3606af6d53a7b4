//! TLS with libpq's meaning of `sslmode`, by rustls.
//!
//! What is checked follows from `sslmode` and `sslrootcert` together, as in libpq's documentation
//! ("SSL Support"): nothing, the chain, or the chain and the host's name. The signature of the
//! handshake is always checked, so a certificate shown is one whose key the peer holds.
//!
//! Where rustls is stricter than what PostgreSQL's users run, we follow libpq: a self-signed
//! server certificate may be its own root, the common name counts if there is no subject
//! alternative name, and an X.509 version 1 certificate will do where nothing is checked.
//! Absent: revocation lists, encrypted keys, TLS before 1.2.

mod binding;
mod verify;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lastgood_proto::Class;
use rustls::ClientConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{RootCertificates, SslMode, SslNegotiation, TlsOptions, TlsVersion};
use verify::{Trust, Verifier};

pub(crate) use binding::tls_server_end_point;

/// Why TLS did not come about.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the server does not offer it and sslmode={mode} demands it")]
    NotOffered { mode: &'static str },
    #[error("the handshake failed")]
    Handshake(#[source] io::Error),
    #[error("\"{0}\" is no name that a certificate can be checked against")]
    ServerName(String),
    #[error("{} could not be read", .0.display())]
    File(PathBuf, #[source] io::Error),
    #[error("{} holds no {what} in PEM form", .path.display())]
    Pem { path: PathBuf, what: &'static str },
    #[error("{} may be read by others; set its mode to 0600", .0.display())]
    KeyExposed(PathBuf),
    #[error("the system has no root certificates")]
    NoSystemRoots,
    #[error("the certificates or versions cannot be used")]
    Settings(#[source] rustls::Error),
}

impl TlsError {
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            // A certificate that is refused stays refused; a connection that breaks may not.
            Self::Handshake(error) if error.kind() != io::ErrorKind::InvalidData => {
                Class::Transient
            }
            Self::Handshake(_)
            | Self::NotOffered { .. }
            | Self::ServerName(_)
            | Self::File(..)
            | Self::Pem { .. }
            | Self::KeyExposed(_)
            | Self::NoSystemRoots
            | Self::Settings(_) => Class::NeedsOperator,
        }
    }
}

/// The client side of one connection. Files are read at each connection, so that a renewed
/// certificate is taken up without a restart.
pub(crate) fn client_config(options: &TlsOptions) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Verifier::new(trust(options)?, &provider);
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions(options))
        .map_err(TlsError::Settings)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let mut config = match (&options.certificate, &options.key) {
        (Some(certificate), Some(key)) => builder
            .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
            .map_err(TlsError::Settings)?,
        _ => builder.with_no_client_auth(),
    };
    config.enable_sni = options.server_name_indication;
    if options.negotiation == SslNegotiation::Direct {
        config.alpn_protocols = vec![b"postgresql".to_vec()];
    }
    Ok(config)
}

fn versions(options: &TlsOptions) -> Vec<&'static rustls::SupportedProtocolVersion> {
    let mut versions = Vec::with_capacity(2);
    if options.version_max == TlsVersion::V1_3 {
        versions.push(&rustls::version::TLS13);
    }
    if options.version_min == TlsVersion::V1_2 {
        versions.push(&rustls::version::TLS12);
    }
    versions
}

/// What a certificate is checked against.
fn trust(options: &TlsOptions) -> Result<Trust, TlsError> {
    let full = options.mode == SslMode::VerifyFull;
    match (&options.roots, full) {
        (RootCertificates::File(path), full) => {
            let roots = certificates(path)?;
            Trust::new(roots, full).map_err(TlsError::Settings)
        }
        (RootCertificates::System, _) | (RootCertificates::Unspecified, true) => {
            let roots = rustls_native_certs::load_native_certs().certs;
            if roots.is_empty() {
                return Err(TlsError::NoSystemRoots);
            }
            Ok(Trust::system(roots))
        }
        (RootCertificates::Unspecified, false) => Ok(Trust::Anyone),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = std::fs::read(path).map_err(|error| TlsError::File(path.to_owned(), error))?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .unwrap_or_default();
    match certificates.is_empty() {
        true => Err(TlsError::Pem {
            path: path.to_owned(),
            what: "certificate",
        }),
        false => Ok(certificates),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let file = |error| TlsError::File(path.to_owned(), error);
    check_private(path, &std::fs::metadata(path).map_err(file)?)?;
    let pem = zeroize::Zeroizing::new(std::fs::read(path).map_err(file)?);
    PrivateKeyDer::from_pem_slice(&pem).map_err(|_| TlsError::Pem {
        path: path.to_owned(),
        what: "unencrypted private key",
    })
}

/// libpq's rule: mode 0600 or less, or 0640 or less if root owns the file.
#[cfg(unix)]
fn check_private(path: &Path, metadata: &std::fs::Metadata) -> Result<(), TlsError> {
    use std::os::unix::fs::MetadataExt;

    let forbidden = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    match metadata.mode() & forbidden {
        0 => Ok(()),
        _ => Err(TlsError::KeyExposed(path.to_owned())),
    }
}

#[cfg(not(unix))]
fn check_private(_: &Path, _: &std::fs::Metadata) -> Result<(), TlsError> {
    Ok(())
}

/// Unused here but for its type: the provider's algorithms, which checks of signatures need.
type Algorithms = rustls::crypto::WebPkiSupportedAlgorithms;

fn algorithms(provider: &CryptoProvider) -> Algorithms {
    provider.signature_verification_algorithms
}
