//! Every way to prove who we are, allowed and refused, for both kinds of connection.

use anyhow::Result;
use lastgood_integration::Postgres;
use lastgood_pg::{AuthFailure, Condition, Error};
use lastgood_proto::Class;

use crate::connect_both;

const HBA: &str = "\
local   all all                       trust
host    all postgres  127.0.0.1/32    trust
host    all scram     127.0.0.1/32    scram-sha-256
host    all md5       127.0.0.1/32    md5
host    all clear     127.0.0.1/32    password
hostssl all cert      127.0.0.1/32    cert
hostnossl all plain   127.0.0.1/32    scram-sha-256
hostssl all tls       127.0.0.1/32    scram-sha-256
";

/// A password that needs quoting in every form.
const PASSWORD: &str = "it's a \\ \"pass\" & wörd%";
const ENCODED: &str = "it%27s%20a%20%5C%20%22pass%22%20%26%20w%C3%B6rd%25";

async fn server(major: u32) -> Result<Postgres> {
    let server = Postgres::builder(major).tls().hba(HBA).start().await?;
    let password = PASSWORD.replace('\'', "''");
    server
        .execute(
            "postgres",
            &format!(
                "SET password_encryption = 'scram-sha-256';
                 CREATE ROLE scram LOGIN REPLICATION PASSWORD '{password}';
                 CREATE ROLE clear LOGIN REPLICATION PASSWORD '{password}';
                 CREATE ROLE plain LOGIN REPLICATION PASSWORD '{password}';
                 CREATE ROLE tls LOGIN REPLICATION PASSWORD '{password}';
                 CREATE ROLE cert LOGIN REPLICATION;
                 SET password_encryption = 'md5';
                 CREATE ROLE md5 LOGIN REPLICATION PASSWORD '{password}';"
            ),
        )
        .await?;
    Ok(server)
}

struct Check<'a> {
    server: &'a Postgres,
}

impl Check<'_> {
    fn url(&self, user: &str, parameters: &str) -> String {
        let port = self.server.port();
        format!("postgres://{user}:{ENCODED}@127.0.0.1:{port}/postgres?{parameters}")
    }

    async fn works(&self, user: &str, parameters: &str) {
        let url = self.url(user, parameters);
        if let Err(error) = connect_both(&url).await {
            panic!("{user} {parameters}: {error} {error:?}");
        }
    }

    async fn fails(&self, user: &str, parameters: &str, expect: AuthFailure) {
        match connect_both(&self.url(user, parameters)).await {
            Err(Error::Authentication { reason, .. }) => {
                assert_eq!(reason, expect, "{user} {parameters}");
            }
            Err(error) => panic!("{user} {parameters}: {error:?}"),
            Ok(()) => panic!("{user} {parameters} works"),
        }
    }

    async fn refused(&self, user: &str, parameters: &str) {
        match connect_both(&self.url(user, parameters)).await {
            Err(error) => {
                assert_eq!(error.condition(), Condition::Refused, "{error:?}");
                assert_eq!(error.class(), Class::NeedsOperator);
            }
            Ok(()) => panic!("{user} {parameters} works"),
        }
    }
}

#[tokio::test]
async fn every_method_on_15() -> Result<()> {
    every_method(15).await
}

#[tokio::test]
async fn every_method_on_18() -> Result<()> {
    every_method(18).await
}

#[tokio::test]
async fn every_method_on_13() -> Result<()> {
    every_method(13).await
}

async fn every_method(major: u32) -> Result<()> {
    let server = server(major).await?;
    let check = Check { server: &server };
    for user in ["scram", "md5"] {
        for mode in ["disable", "prefer", "require"] {
            check.works(user, &format!("sslmode={mode}")).await;
        }
    }

    // The password in clear: only where nobody can read along.
    check.works("clear", "sslmode=require").await;
    check
        .fails("clear", "sslmode=disable", AuthFailure::CleartextRefused)
        .await;

    // pg_hba.conf decides on encryption; prefer and allow find the way.
    check.works("plain", "sslmode=prefer").await;
    check.refused("plain", "sslmode=require").await;
    check.works("tls", "sslmode=allow").await;
    check.refused("tls", "sslmode=disable").await;

    // SCRAM tied to the TLS connection, and where it cannot be.
    check
        .works("scram", "sslmode=require&channel_binding=require")
        .await;
    check
        .works("scram", "sslmode=require&channel_binding=disable")
        .await;
    for (user, parameters) in [
        ("scram", "sslmode=disable&channel_binding=require"),
        ("md5", "sslmode=require&channel_binding=require"),
        ("clear", "sslmode=require&channel_binding=require"),
    ] {
        let error = connect_both(&check.url(user, parameters)).await;
        assert!(
            matches!(error, Err(Error::Authentication { .. })),
            "{user} {parameters}"
        );
    }

    // What may be asked for.
    check
        .works("scram", "sslmode=disable&require_auth=scram-sha-256")
        .await;
    check
        .fails(
            "md5",
            "sslmode=disable&require_auth=scram-sha-256",
            AuthFailure::MethodForbidden("MD5"),
        )
        .await;
    check
        .fails(
            "clear",
            "sslmode=require&require_auth=!password",
            AuthFailure::MethodForbidden("the password in clear"),
        )
        .await;
    check
        .fails(
            "postgres",
            "sslmode=disable&require_auth=scram-sha-256",
            AuthFailure::MethodForbidden("no authentication"),
        )
        .await;
    Ok(())
}

#[tokio::test]
async fn a_client_certificate() -> Result<()> {
    let server = server(15).await?;
    let (certificate, key) = server.client_certificate("cert")?;
    let url = |user: &str| {
        format!(
            "postgres://{user}@127.0.0.1:{}/postgres?sslmode=require&sslcert={}&sslkey={}",
            server.port(),
            certificate.display(),
            key.display()
        )
    };
    connect_both(&url("cert")).await?;
    let port = server.port();
    let without = format!("postgres://cert@127.0.0.1:{port}/postgres?sslmode=require");
    assert_eq!(
        connect_both(&without)
            .await
            .map_err(|error| error.condition()),
        Err(Condition::Refused)
    );

    // A key that others may read is not used.
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    std::fs::set_permissions(&key, open)?;
    let exposed = connect_both(&url("cert")).await.unwrap_err();
    assert_eq!(exposed.class(), Class::NeedsOperator);
    assert!(matches!(exposed, Error::Tls { .. }), "{exposed:?}");
    Ok(())
}

#[tokio::test]
async fn wrong_and_missing_passwords() -> Result<()> {
    let server = server(15).await?;
    let port = server.port();
    for user in ["scram", "md5", "nobody_of_that_name"] {
        let url = format!("postgres://{user}:wrong-SECRET@127.0.0.1:{port}/postgres");
        let error = connect_both(&url).await.unwrap_err();
        assert_eq!(error.condition(), Condition::Refused, "{user}: {error:?}");
        assert_eq!(error.class(), Class::NeedsOperator);
        assert!(!format!("{error} {error:?}").contains("SECRET"));
    }
    let error = connect_both(&format!("postgres://scram@127.0.0.1:{port}/postgres"))
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Authentication { reason, .. } if *reason == AuthFailure::PasswordMissing)
    );
    Ok(())
}

#[tokio::test]
async fn a_local_socket() -> Result<()> {
    let server = server(15).await?;
    connect_both(&format!(
        "host={} port={} user=scram dbname=postgres sslmode=require",
        server.socket_dir().display(),
        server.port()
    ))
    .await?;
    Ok(())
}
