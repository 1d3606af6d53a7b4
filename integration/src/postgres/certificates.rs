//! TLS for a server: an authority, its certificate, and clients'.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::Result;

use super::{Postgres, give_to_server};

impl Postgres {
    /// A certificate authority in `ca.crt`/`ca.key`, and a server certificate signed by it.
    pub(super) fn make_certificates(&self) -> Result<()> {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let (ca, server) = (rcgen::KeyPair::generate()?, rcgen::KeyPair::generate()?);
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "throw-away authority");
        let certificate = params.self_signed(&ca)?;
        let issuer = rcgen::Issuer::new(params, &ca);
        let mut params = rcgen::CertificateParams::new(names)?;
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "localhost");
        let signed = params.signed_by(&server, &issuer)?;
        fs::write(self.ca_file(), certificate.pem())?;
        fs::write(self.folder.join("ca.key"), ca.serialize_pem())?;
        give_to_server(&self.ca_file(), 0o644)?;
        for (name, text, mode) in [
            ("server.crt", signed.pem(), 0o644),
            ("server.key", server.serialize_pem(), 0o600),
        ] {
            let path = self.data_dir().join(name);
            fs::write(&path, text)?;
            give_to_server(&path, mode)?;
        }
        Ok(())
    }

    /// A client certificate for `user`, signed by the server's authority: (certificate file, key file).
    ///
    /// # Errors
    /// When the server was built without TLS.
    pub fn client_certificate(&self, user: &str) -> Result<(PathBuf, PathBuf)> {
        let authority = rcgen::KeyPair::from_pem(&fs::read_to_string(self.folder.join("ca.key"))?)?;
        let mut ca = rcgen::CertificateParams::new(Vec::new())?;
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        ca.distinguished_name
            .push(rcgen::DnType::CommonName, "throw-away authority");
        let issuer = rcgen::Issuer::new(ca, &authority);
        let key = rcgen::KeyPair::generate()?;
        let mut params = rcgen::CertificateParams::new(Vec::new())?;
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, user);
        let certificate = params.signed_by(&key, &issuer)?;
        let paths = (
            self.folder.join(format!("{user}.crt")),
            self.folder.join(format!("{user}.key")),
        );
        fs::write(&paths.0, certificate.pem())?;
        fs::write(&paths.1, key.serialize_pem())?;
        fs::set_permissions(&paths.1, fs::Permissions::from_mode(0o600))?;
        Ok(paths)
    }
}
