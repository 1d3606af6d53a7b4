//! Against real servers: authentication, TLS, the classes of errors, the stream, slots and
//! publications, the client tools.

mod auth;
mod dump;
mod errors;
mod publication;
mod settings;
mod stream;
mod tls;

use lastgood_pg::{ConnectionConfig, Purpose, ReplicationConnection, ReplicationOptions, Session};

pub(crate) fn config(text: &str) -> ConnectionConfig {
    text.parse().expect("a valid connection string")
}

pub(crate) async fn session(text: &str) -> Session {
    Session::connect(&config(text), Purpose::Verify)
        .await
        .expect("a session")
}

pub(crate) async fn replication(text: &str) -> ReplicationConnection {
    ReplicationConnection::connect(&config(text), &ReplicationOptions::default())
        .await
        .expect("a replication connection")
}

/// Both kinds of connection; the error is the same for both or this panics.
pub(crate) async fn connect_both(text: &str) -> Result<(), lastgood_pg::Error> {
    let config = config(text);
    let sql = Session::connect(&config, Purpose::Probe).await;
    let stream = ReplicationConnection::connect(&config, &ReplicationOptions::default()).await;
    match (sql, stream) {
        (Ok(session), Ok(connection)) => {
            let row = session.client().query_one("SELECT 1", &[]).await?;
            assert_eq!(row.get::<_, i32>(0), 1);
            session.close().await;
            connection.close().await
        }
        (Err(sql), Err(stream)) => {
            assert_eq!(sql.condition(), stream.condition(), "{text}");
            // Servers word their refusals by the kind of connection; we do not.
            if sql.sqlstate().is_none() {
                assert_eq!(sql.to_string(), stream.to_string(), "{text}");
            }
            assert_eq!(sql.class(), stream.class(), "{text}");
            Err(stream)
        }
        (Ok(_), Err(error)) => panic!("SQL works and replication does not: {error:?}"),
        (Err(error), Ok(_)) => panic!("replication works and SQL does not: {error:?}"),
    }
}
