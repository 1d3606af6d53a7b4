//! Every `sslmode`, with the right and the wrong root and host, and the certificates that
//! PostgreSQL's users make by hand.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use lastgood_integration::{Postgres, Stop};
use lastgood_pg::{Error, TlsError};
use lastgood_proto::Class;

use crate::{connect_both, session};

/// A connection string for `host`, whatever it resolves to.
fn url(server: &Postgres, host: &str, parameters: &str) -> String {
    format!(
        "postgres://postgres:throw-away@{host}:{}/postgres?hostaddr=127.0.0.1&{parameters}",
        server.port()
    )
}

async fn works(server: &Postgres, host: &str, parameters: &str) {
    if let Err(error) = connect_both(&url(server, host, parameters)).await {
        panic!("{host} {parameters}: {error:?}");
    }
}

/// Refused by us, for good: trying again does not change a certificate.
async fn refused(server: &Postgres, host: &str, parameters: &str) {
    match connect_both(&url(server, host, parameters)).await {
        Err(error @ Error::Tls { .. }) => assert_eq!(error.class(), Class::NeedsOperator),
        Err(error) => panic!("{host} {parameters}: {error:?}"),
        Ok(()) => panic!("{host} {parameters} works"),
    }
}

async fn is_encrypted(server: &Postgres, parameters: &str) -> bool {
    let session = session(&url(server, "localhost", parameters)).await;
    session
        .client()
        .query_one(
            "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()",
            &[],
        )
        .await
        .expect("pg_stat_ssl")
        .get(0)
}

fn root(path: &Path) -> String {
    format!("sslrootcert={}", path.display())
}

#[tokio::test]
async fn modes_roots_and_hosts() -> Result<()> {
    let server = Postgres::builder(15).tls().start().await?;
    let stranger = Postgres::builder(15).tls().start().await?;
    let (right, wrong) = (root(&server.ca_file()), root(&stranger.ca_file()));

    assert!(!is_encrypted(&server, "sslmode=disable").await);
    assert!(!is_encrypted(&server, "sslmode=allow").await);
    assert!(is_encrypted(&server, "sslmode=prefer").await);
    assert!(is_encrypted(&server, "sslmode=require").await);

    for mode in ["require", "verify-ca", "verify-full"] {
        works(&server, "localhost", &format!("sslmode={mode}&{right}")).await;
        works(&server, "127.0.0.1", &format!("sslmode={mode}&{right}")).await;
        refused(&server, "localhost", &format!("sslmode={mode}&{wrong}")).await;
    }
    works(&server, "other.example", "sslmode=require").await;
    works(
        &server,
        "other.example",
        &format!("sslmode=require&{right}"),
    )
    .await;
    works(
        &server,
        "other.example",
        &format!("sslmode=verify-ca&{right}"),
    )
    .await;
    refused(
        &server,
        "other.example",
        &format!("sslmode=verify-full&{right}"),
    )
    .await;
    // The system does not know our authority.
    refused(&server, "localhost", "sslmode=verify-full").await;
    refused(&server, "localhost", "sslrootcert=system").await;
    // A handshake that fails leaves prefer without TLS, as in libpq.
    assert!(!is_encrypted(&server, &format!("sslmode=prefer&{wrong}")).await);
    // A file that was named and is not there is an error in every mode.
    refused(&server, "localhost", "sslmode=require&sslrootcert=/nowhere").await;
    refused(&server, "localhost", "sslmode=prefer&sslrootcert=/nowhere").await;

    works(
        &server,
        "localhost",
        "sslmode=require&ssl_min_protocol_version=TLSv1.3",
    )
    .await;
    works(
        &server,
        "localhost",
        "sslmode=require&ssl_max_protocol_version=TLSv1.2",
    )
    .await;

    let error = connect_both(&url(
        &server,
        "other.example",
        &format!("sslmode=verify-full&{right}"),
    ))
    .await
    .unwrap_err();
    let mut chain = String::new();
    let mut cause: Option<&dyn std::error::Error> = Some(&error);
    while let Some(current) = cause {
        chain.push_str(&current.to_string());
        cause = current.source();
    }
    assert!(
        chain.contains("not valid for name \"other.example\""),
        "{chain}"
    );
    Ok(())
}

#[tokio::test]
async fn a_server_without_tls() -> Result<()> {
    let server = Postgres::start(15, &[]).await?;
    works(&server, "localhost", "sslmode=prefer").await;
    for mode in ["require", "verify-full"] {
        let error = connect_both(&url(&server, "localhost", &format!("sslmode={mode}")))
            .await
            .unwrap_err();
        assert!(
            matches!(
                &error,
                Error::Tls {
                    source: TlsError::NotOffered { .. },
                    ..
                }
            ),
            "{error:?}"
        );
        assert_eq!(error.class(), Class::NeedsOperator);
    }
    Ok(())
}

#[tokio::test]
async fn tls_at_once_on_17() -> Result<()> {
    let server = Postgres::builder(17).tls().start().await?;
    let right = root(&server.ca_file());
    works(
        &server,
        "localhost",
        &format!("sslmode=verify-full&sslnegotiation=direct&{right}"),
    )
    .await;
    Ok(())
}

/// Puts a certificate of ours into a server and starts it anew; answers `sslrootcert=` for it.
async fn with_certificate(certificate: &str, key: &str) -> Result<(Arc<Postgres>, String)> {
    let server = Arc::new(Postgres::builder(15).tls().start().await?);
    let path = server.data_dir().join("server.crt");
    // Written over, so that the files keep their owner and mode.
    fs::write(&path, certificate)?;
    fs::write(server.data_dir().join("server.key"), key)?;
    let copy = server.socket_dir().join("own.crt");
    fs::write(&copy, certificate)?;
    server.restart(Stop::Fast).await?;
    Ok((server, root(&copy)))
}

/// As `openssl req -x509 -subj /CN=localhost` makes it: an authority by its flags, no alternative
/// names.
#[tokio::test]
async fn a_self_signed_certificate() -> Result<()> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(Vec::new())?;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "localhost");
    let certificate = params.self_signed(&key)?.pem();
    let (server, right) = with_certificate(&certificate, &key.serialize_pem()).await?;
    works(&server, "localhost", "sslmode=require").await;
    works(&server, "localhost", &format!("sslmode=verify-ca&{right}")).await;
    works(
        &server,
        "localhost",
        &format!("sslmode=verify-full&{right}"),
    )
    .await;
    refused(
        &server,
        "other.example",
        &format!("sslmode=verify-full&{right}"),
    )
    .await;
    Ok(())
}

/// `openssl x509 -req` without extensions: X.509 version 1.
#[tokio::test]
async fn a_version_1_certificate() -> Result<()> {
    let (server, right) = with_certificate(
        include_str!("fixtures/v1.crt"),
        include_str!("fixtures/v1.key"),
    )
    .await?;
    for version in ["TLSv1.2", "TLSv1.3"] {
        let bounds =
            format!("ssl_min_protocol_version={version}&ssl_max_protocol_version={version}");
        works(&server, "localhost", &format!("sslmode=require&{bounds}")).await;
    }
    works(
        &server,
        "localhost",
        &format!("sslmode=verify-full&{right}"),
    )
    .await;
    Ok(())
}
