//! The check of a server's certificate, at one of libpq's three strengths.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::oid::db::rfc4519::COMMON_NAME;
use x509_cert::der::oid::db::rfc5280::ID_CE_SUBJECT_ALT_NAME;
use x509_cert::der::{Decode, Encode};

use super::{Algorithms, algorithms};

/// Whom to believe.
#[derive(Debug)]
pub(super) enum Trust {
    /// Nothing is checked but that the peer holds the key of the certificate it shows.
    Anyone,
    /// The chain must lead to one of these roots, and the name must be the host's if `name`.
    Roots {
        store: Arc<RootCertStore>,
        /// The roots as they stand in the file: a server certificate may be one of them.
        exact: Vec<CertificateDer<'static>>,
        name: bool,
    },
}

impl Trust {
    pub(super) fn new(roots: Vec<CertificateDer<'static>>, name: bool) -> Result<Self, Error> {
        let mut store = RootCertStore::empty();
        for root in &roots {
            store.add(root.clone())?;
        }
        Ok(Self::Roots {
            store: Arc::new(store),
            exact: roots,
            name,
        })
    }

    /// The system's roots come with a check of the name always. What cannot be parsed among many
    /// is left out, as every TLS library does.
    pub(super) fn system(roots: Vec<CertificateDer<'static>>) -> Self {
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots);
        Self::Roots {
            store: Arc::new(store),
            exact: Vec::new(),
            name: true,
        }
    }
}

#[derive(Debug)]
pub(super) struct Verifier {
    trust: Trust,
    algorithms: Algorithms,
}

impl Verifier {
    pub(super) fn new(trust: Trust, provider: &CryptoProvider) -> Self {
        Self {
            trust,
            algorithms: algorithms(provider),
        }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Trust::Roots { store, exact, name } = &self.trust {
            if exact.iter().any(|root| root == end_entity) {
                check_dates(end_entity, now)?;
            } else {
                verify_server_cert_signed_by_trust_anchor(
                    &ParsedCertificate::try_from(end_entity)?,
                    store,
                    intermediates,
                    now,
                    self.algorithms.all,
                )?;
            }
            if *name {
                check_name(end_entity, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match verify_tls12_signature(message, cert, dss, &self.algorithms) {
            Err(Error::InvalidCertificate(_)) => self.verify_by_bare_key(message, cert, dss),
            result => result,
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match verify_tls13_signature(message, cert, dss, &self.algorithms) {
            Err(Error::InvalidCertificate(_)) => self.verify_by_bare_key(message, cert, dss),
            result => result,
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl Verifier {
    /// The signature of the handshake by a certificate that rustls does not parse (version 1, made
    /// by many an `openssl x509 -req`): the key is taken out and used by itself.
    fn verify_by_bare_key(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let refused = || Error::InvalidCertificate(CertificateError::BadSignature);
        let certificate = parse(certificate)?;
        let key = certificate.tbs_certificate.subject_public_key_info;
        // The provider compares the identifier without its outer SEQUENCE header.
        let algorithm = key.algorithm.to_der().map_err(|_| refused())?;
        let bits = key.subject_public_key.as_bytes().ok_or_else(refused)?;
        self.algorithms
            .mapping
            .iter()
            .filter(|(scheme, _)| *scheme == signed.scheme)
            .flat_map(|(_, candidates)| candidates.iter())
            .filter(|candidate| algorithm.ends_with(&candidate.public_key_alg_id()))
            .find_map(|candidate| {
                candidate
                    .verify_signature(bits, message, signed.signature())
                    .ok()
            })
            .map(|()| HandshakeSignatureValid::assertion())
            .ok_or_else(refused)
    }
}

fn parse(certificate: &CertificateDer<'_>) -> Result<Certificate, Error> {
    Certificate::from_der(certificate)
        .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))
}

/// A certificate that is trusted by itself must still be in force.
fn check_dates(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let validity = parse(certificate)?.tbs_certificate.validity;
    let seconds = now.as_secs();
    if seconds < validity.not_before.to_unix_duration().as_secs() {
        return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
    }
    if seconds > validity.not_after.to_unix_duration().as_secs() {
        return Err(Error::InvalidCertificate(CertificateError::Expired));
    }
    Ok(())
}

/// The subject alternative names, and without any the common name, as libpq does
/// (`pq_verify_peer_name_matches_certificate`).
fn check_name(certificate: &CertificateDer<'_>, wanted: &ServerName<'_>) -> Result<(), Error> {
    let strict = match ParsedCertificate::try_from(certificate) {
        Ok(parsed) => verify_server_name(&parsed, wanted),
        Err(error) => Err(error),
    };
    let Err(refusal) = strict else { return Ok(()) };
    let parsed = parse(certificate)?;
    let has_alternative_names = parsed
        .tbs_certificate
        .extensions
        .iter()
        .flatten()
        .any(|extension| extension.extn_id == ID_CE_SUBJECT_ALT_NAME);
    let matches = !has_alternative_names
        && parsed
            .tbs_certificate
            .subject
            .0
            .iter()
            .flat_map(|names| names.0.iter())
            .filter(|attribute| attribute.oid == COMMON_NAME)
            .any(|attribute| {
                std::str::from_utf8(attribute.value.value())
                    .is_ok_and(|name| name_matches(name, &wanted.to_str()))
            });
    match matches {
        true => Ok(()),
        false => Err(refusal),
    }
}

/// Equal but for case, or `*.` in front of all but the host's first label.
fn name_matches(pattern: &str, host: &str) -> bool {
    match pattern.strip_prefix("*.") {
        Some(parent) => host
            .split_once('.')
            .is_some_and(|(first, rest)| !first.is_empty() && rest.eq_ignore_ascii_case(parent)),
        None => !pattern.is_empty() && pattern.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use super::name_matches;

    #[test]
    fn common_names() {
        assert!(name_matches("Db.Example.org", "db.example.org"));
        assert!(name_matches("*.example.org", "db.example.org"));
        assert!(!name_matches("*.example.org", "a.db.example.org"));
        assert!(!name_matches("*.example.org", "example.org"));
        assert!(!name_matches("*", "db"));
        assert!(!name_matches("", ""));
    }
}
