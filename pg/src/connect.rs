//! SQL sessions: tokio-postgres over our own sockets, TLS and rules, with pinned settings.

use std::sync::Arc;

use lastgood_proto::SystemId;
use tokio_postgres::Client;
use tokio_postgres::config::SslMode as SqlSslMode;
use tokio_util::task::AbortOnDropHandle;

use crate::auth::{Guard, Policy, Ready, Reclaim, Refusal};
use crate::config::{ChannelBinding, ConnectionConfig, Host, TargetSessionAttrs};
use crate::error::{AuthFailure, Error, Operation};
use crate::loan::{self, Loan};
use crate::replication::{as_pooler, supported};
use crate::settings;
use crate::transport::{self, Handshake, Link, Transport};

/// What a session is for. Shown to the server's operator as its application name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    Probe,
    Capture,
    Base,
    Restore,
    Verify,
}

impl Purpose {
    const fn application_name(self) -> &'static str {
        match self {
            Self::Probe => "lastgood probe",
            Self::Capture => "lastgood capture",
            Self::Base => "lastgood base",
            Self::Restore => "lastgood restore",
            Self::Verify => "lastgood verify",
        }
    }
}

/// What tells the kinds of `target_session_attrs` apart.
pub(crate) const TARGET_QUERY: &str = "SELECT pg_catalog.pg_is_in_recovery() AS standby, \
     pg_catalog.current_setting('transaction_read_only') = 'on' AS read_only";

/// An SQL session. Dropping it ends it at once; [`Session::close`] does so in good order.
pub struct Session {
    // Before the task, so that it is dropped first and the task can say goodbye.
    client: Client,
    connection: AbortOnDropHandle<()>,
    reclaim: Reclaim,
    /// As the server announced them.
    parameters: Vec<(&'static str, String)>,
    config: Arc<ConnectionConfig>,
    host: Host,
    server_version: u32,
    server_encoding: String,
}

impl Session {
    /// # Errors
    /// Whatever stands between us and a session, each with its class.
    pub async fn connect(config: &ConnectionConfig, purpose: Purpose) -> Result<Self, Error> {
        let config = Arc::new(config.clone());
        transport::connect(
            &config,
            &Startup {
                config: &config,
                purpose,
            },
        )
        .await
    }

    #[must_use]
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// For transactions.
    pub fn client_mut(&mut self) -> &mut Client {
        &mut self.client
    }

    /// As `server_version_num`: 180006 for 18.6.
    #[must_use]
    pub fn server_version(&self) -> u32 {
        self.server_version
    }

    /// The database's encoding, by PostgreSQL's name for it.
    #[must_use]
    pub fn server_encoding(&self) -> &str {
        &self.server_encoding
    }

    /// The host of the list that was reached.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    #[must_use]
    pub fn config(&self) -> &ConnectionConfig {
        &self.config
    }

    /// The cluster's system identifier. With the database's name it tells whether two connection
    /// strings lead to the same place.
    pub async fn system_id(&self) -> Result<SystemId, Error> {
        let row = self
            .client
            .query_one(
                "SELECT system_identifier::text FROM pg_catalog.pg_control_system()",
                &[],
            )
            .await?;
        row.try_get::<_, &str>(0)?
            .parse()
            .map_err(|_| Error::Protocol("a system identifier that is no number".to_owned()))
    }

    /// Whoever holds this can cancel the session's running query from elsewhere.
    #[must_use]
    pub fn canceller(&self) -> Canceller {
        Canceller {
            token: self.client.cancel_token(),
            config: Arc::new(self.config.pinned_to(&self.host)),
        }
    }

    /// Hands the server process over, with the transaction that is open in it, to be lent to tools.
    ///
    /// # Errors
    /// If the connection is broken.
    pub async fn lend(self) -> Result<Loan, Error> {
        let canceller = self.canceller();
        let server = self.reclaim.from(self.client).await.ok_or(Error::Closed)?;
        Loan::new(server, canceller, self.parameters)
            .await
            .map_err(Error::Broken)
    }

    /// Ends the session in good order.
    pub async fn close(self) {
        let Self {
            client, connection, ..
        } = self;
        drop(client);
        // An error here is one of a connection that ends anyway.
        let _ended = connection.await;
    }
}

/// Cancels the running query of a [`Session`].
pub struct Canceller {
    token: tokio_postgres::CancelToken,
    config: Arc<ConnectionConfig>,
}

impl Canceller {
    /// Asks the server to cancel. Whether it still was in time shows on the session.
    pub async fn cancel(&self) -> Result<(), Error> {
        transport::connect(&self.config, &Cancel { token: &self.token }).await
    }
}

struct Cancel<'a> {
    token: &'a tokio_postgres::CancelToken,
}

impl Handshake for Cancel<'_> {
    type Output = ();

    async fn run(&self, link: Link, _: TargetSessionAttrs) -> Result<(), Error> {
        let guard = Guard::open(link.stream);
        // The token remembers the mode of its session: with TLS it takes the stream as encrypted
        // already, as the session did.
        let ready = Ready { binding: None };
        Ok(self.token.cancel_query_raw(guard, ready).await?)
    }
}

/// Startup and authentication by tokio-postgres.
struct Startup<'a> {
    config: &'a Arc<ConnectionConfig>,
    purpose: Purpose,
}

impl Handshake for Startup<'_> {
    type Output = Session;

    async fn run(&self, link: Link, target: TargetSessionAttrs) -> Result<Session, Error> {
        let host = link.host.clone();
        let mut sql = tokio_postgres::Config::new();
        sql.user(self.config.user.as_str())
            .dbname(self.config.database.as_str())
            .options(settings::options_string(
                self.config.options.as_deref(),
                &[],
            ))
            .application_name(
                self.config
                    .application_name
                    .as_deref()
                    .unwrap_or(self.purpose.application_name()),
            )
            .channel_binding(match self.config.channel_binding {
                ChannelBinding::Disable => tokio_postgres::config::ChannelBinding::Disable,
                ChannelBinding::Prefer => tokio_postgres::config::ChannelBinding::Prefer,
                ChannelBinding::Require => tokio_postgres::config::ChannelBinding::Require,
            });
        if let Some(password) = &self.config.password {
            sql.password(password.expose());
        }
        // TLS is done already. "Direct" means here: no SSLRequest, hand over the stream as it is.
        match &link.stream {
            Transport::Tls(_) => sql
                .ssl_mode(SqlSslMode::Require)
                .ssl_negotiation(tokio_postgres::config::SslNegotiation::Direct),
            Transport::Tcp(_) | Transport::Unix(_) => sql.ssl_mode(SqlSslMode::Disable),
        };
        let policy = Policy::new(self.config, &link);
        let ready = Ready {
            binding: link.channel_binding,
        };
        let (way_back, reclaim) = Reclaim::pair();
        let guard = Guard::new(link.stream, policy, way_back);
        let (client, connection) = sql
            .connect_raw(guard, ready)
            .await
            .map_err(|error| as_pooler(&host, connect_error(&host, error)))?;

        let parameters = loan::PARAMETERS
            .iter()
            .filter_map(|name| Some((*name, connection.parameter(name)?.to_owned())))
            .collect();
        let (server_version, server_encoding) = {
            let parameter = |name: &str| connection.parameter(name).unwrap_or_default();
            let version = supported(&host, parameter("server_version"))?;
            (version, parameter("server_encoding").to_owned())
        };
        let connection = AbortOnDropHandle::new(tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(error = &error as &dyn std::error::Error, "session ended");
            }
        }));
        let session = Session {
            client,
            connection,
            reclaim,
            parameters,
            config: Arc::clone(self.config),
            host,
            server_version,
            server_encoding,
        };
        let in_effect: bool = session
            .client
            .query_one(settings::IN_EFFECT_QUERY, &[])
            .await?
            .try_get(0)?;
        if !in_effect {
            return Err(Error::Pooler {
                host: session.host.to_string(),
                message: settings::NOT_IN_EFFECT.to_owned(),
            });
        }
        let later = settings::later_statements(server_version);
        if !later.is_empty() {
            session.client.batch_execute(&later).await?;
        }
        if target != TargetSessionAttrs::Any {
            let row = session.client.query_one(TARGET_QUERY, &[]).await?;
            check_target(&session.host, target, row.try_get(0)?, row.try_get(1)?)?;
        }
        Ok(session)
    }
}

/// Digs our own refusal out of tokio-postgres' error, and says that it happened at connecting.
fn connect_error(host: &Host, error: tokio_postgres::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        let inner = current
            .downcast_ref::<std::io::Error>()
            .and_then(std::io::Error::get_ref)
            .and_then(|inner| inner.downcast_ref::<Refusal>());
        if let Some(Refusal(reason)) = inner {
            return Error::Authentication {
                host: host.to_string(),
                reason: reason.clone(),
            };
        }
        cause = current.source();
    }
    match Error::from(error) {
        Error::Server { source, .. } => Error::Server {
            during: Operation::Connect,
            source,
        },
        // tokio-postgres tells this kind of error by its text only.
        Error::Sql(error) if error.to_string().starts_with("authentication error") => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            let cause = cause.unwrap_or_default();
            let reason = match cause.contains("did not use channel binding") {
                true => AuthFailure::NoChannelBinding,
                false => AuthFailure::Scram(cause),
            };
            Error::Authentication {
                host: host.to_string(),
                reason,
            }
        }
        other => other,
    }
}

/// Whether a server is of the kind that `target_session_attrs` asks for.
pub(crate) fn check_target(
    host: &Host,
    target: TargetSessionAttrs,
    standby: bool,
    read_only: bool,
) -> Result<(), Error> {
    let fits = match target {
        TargetSessionAttrs::Any | TargetSessionAttrs::PreferStandby => true,
        TargetSessionAttrs::ReadWrite => !standby && !read_only,
        TargetSessionAttrs::ReadOnly => standby || read_only,
        TargetSessionAttrs::Primary => !standby,
        TargetSessionAttrs::Standby => standby,
    };
    match fits {
        true => Ok(()),
        false => Err(Error::WrongSession {
            host: host.to_string(),
            wanted: target.as_str(),
        }),
    }
}
