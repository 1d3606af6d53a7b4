//! The way to a server: name, socket, TLS. Both kinds of connection, SQL and replication, come
//! through here, so both mean the same by a connection string.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::config::{
    ConnectionConfig, Host, HostKind, SslMode, SslNegotiation, TargetSessionAttrs,
};
use crate::error::Error;
use crate::socket::Socket;
use crate::sqlstate::Condition;
use crate::tls::{self, TlsError};

/// Whether this attempt is encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encryption {
    Plain,
    /// If the server offers it.
    IfOffered,
    Required,
}

/// A socket to a server, ready for the startup message.
pub(crate) struct Link {
    pub(crate) stream: Transport,
    pub(crate) host: Host,
    /// What SCRAM can be bound to; `None` without TLS.
    pub(crate) channel_binding: Option<Vec<u8>>,
}

impl Link {
    /// Whether nobody on the way can read along: TLS, or a socket that does not leave the machine.
    pub(crate) fn is_private(&self) -> bool {
        match self.stream {
            Transport::Tcp(_) => false,
            Transport::Unix(_) | Transport::Tls(_) => true,
        }
    }
}

/// What is done with a fresh link: startup and authentication of one kind of connection.
pub(crate) trait Handshake: Sync {
    type Output: Send;

    /// `target` says which kind of server will do; any other is [`Error::WrongSession`].
    fn run(
        &self,
        link: Link,
        target: TargetSessionAttrs,
    ) -> impl Future<Output = Result<Self::Output, Error>> + Send;
}

/// Tries every host in order, and on each every kind of encryption that `sslmode` allows.
///
/// The next host is tried when one cannot be reached or is not ready, never after a refusal: a
/// wrong password is wrong everywhere, and trying it on would lock accounts.
pub(crate) async fn connect<H: Handshake>(
    config: &ConnectionConfig,
    handshake: &H,
) -> Result<H::Output, Error> {
    if config.target == TargetSessionAttrs::PreferStandby {
        match connect_to(config, TargetSessionAttrs::Standby, handshake).await {
            Err(error) if may_change_host(&error) => {}
            result => return result,
        }
        return connect_to(config, TargetSessionAttrs::Any, handshake).await;
    }
    connect_to(config, config.target, handshake).await
}

async fn connect_to<H: Handshake>(
    config: &ConnectionConfig,
    target: TargetSessionAttrs,
    handshake: &H,
) -> Result<H::Output, Error> {
    let mut last = Error::Closed;
    for host in &config.hosts {
        for (attempt, encryption) in attempts(host, config.tls.mode).iter().enumerate() {
            match connect_one(config, host, *encryption, target, handshake).await {
                Ok(output) => return Ok(output),
                Err(error) if attempt == 0 && may_change_encryption(config.tls.mode, &error) => {
                    last = error;
                }
                Err(error) if may_change_host(&error) => {
                    last = error;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
    }
    Err(last)
}

async fn connect_one<H: Handshake>(
    config: &ConnectionConfig,
    host: &Host,
    encryption: Encryption,
    target: TargetSessionAttrs,
    handshake: &H,
) -> Result<H::Output, Error> {
    let work = async {
        let link = open(config, host, encryption).await?;
        handshake.run(link, target).await
    };
    match config.connect_timeout {
        None => work.await,
        Some(limit) => match tokio::time::timeout(limit, work).await {
            Ok(result) => result,
            Err(_) => Err(Error::ConnectTimeout {
                host: host.to_string(),
                seconds: limit.as_secs(),
            }),
        },
    }
}

/// libpq's order (`select_next_encryption_method`). A local socket is never encrypted.
fn attempts(host: &Host, mode: SslMode) -> &'static [Encryption] {
    if host.is_unix() {
        return &[Encryption::Plain];
    }
    match mode {
        SslMode::Disable => &[Encryption::Plain],
        SslMode::Allow => &[Encryption::Plain, Encryption::Required],
        SslMode::Prefer => &[Encryption::IfOffered, Encryption::Plain],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[Encryption::Required],
    }
}

/// `prefer` and `allow` go the other way if TLS fails or `pg_hba.conf` refuses this one.
fn may_change_encryption(mode: SslMode, error: &Error) -> bool {
    let both = matches!(mode, SslMode::Allow | SslMode::Prefer);
    let refused = error.condition() == Condition::Refused && error.sqlstate() == Some("28000");
    both && (refused
        || matches!(
            error,
            Error::Tls {
                source: TlsError::Handshake(_),
                ..
            }
        ))
}

fn may_change_host(error: &Error) -> bool {
    matches!(
        error,
        Error::Unreachable { .. }
            | Error::ConnectTimeout { .. }
            | Error::Broken(_)
            | Error::Closed
            | Error::WrongSession { .. }
    ) || error.condition() == Condition::Restarting
}

async fn open(
    config: &ConnectionConfig,
    host: &Host,
    encryption: Encryption,
) -> Result<Link, Error> {
    let plain = |stream| Link {
        stream,
        host: host.clone(),
        channel_binding: None,
    };
    let (name, socket) = match &host.kind {
        HostKind::Unix(folder) => {
            let path = folder.join(format!(".s.PGSQL.{}", host.port));
            let socket = UnixStream::connect(path)
                .await
                .map_err(|error| unreachable(host, error))?;
            return Ok(plain(Transport::Unix(socket)));
        }
        HostKind::Tcp { name, address } => {
            let socket = match address {
                Some(address) => TcpStream::connect((*address, host.port)).await,
                None => TcpStream::connect((name.as_str(), host.port)).await,
            };
            (name, socket.map_err(|error| unreachable(host, error))?)
        }
    };
    set_socket_options(config, &socket).map_err(|error| unreachable(host, error))?;
    let failed = |source| Error::Tls {
        host: host.to_string(),
        source,
    };
    match offered(config, encryption, socket)
        .await
        .map_err(Error::Broken)?
    {
        (socket, true) => encrypt(config, name, socket)
            .await
            .map(|stream| {
                let channel_binding = stream
                    .get_ref()
                    .1
                    .peer_certificates()
                    .and_then(|chain| tls::tls_server_end_point(chain.first()?));
                Link {
                    stream: Transport::Tls(Box::new(stream)),
                    host: host.clone(),
                    channel_binding,
                }
            })
            .map_err(failed),
        (_, false) if encryption == Encryption::Required => Err(failed(TlsError::NotOffered {
            mode: config.tls.mode.as_str(),
        })),
        (socket, false) => Ok(plain(Transport::Tcp(Socket::Eager(socket)))),
    }
}

fn unreachable(host: &Host, source: io::Error) -> Error {
    Error::Unreachable {
        host: host.to_string(),
        source,
    }
}

fn set_socket_options(config: &ConnectionConfig, socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    if let Some(keepalive) = config.keepalive {
        let keepalive = TcpKeepalive::new()
            .with_time(keepalive.idle)
            .with_interval(keepalive.interval)
            .with_retries(keepalive.retries);
        socket.set_tcp_keepalive(&keepalive)?;
    }
    #[cfg(target_os = "linux")]
    if config.tcp_user_timeout.is_some() {
        socket.set_tcp_user_timeout(config.tcp_user_timeout)?;
    }
    Ok(())
}

/// Asks whether the server does TLS, unless the answer does not matter.
async fn offered(
    config: &ConnectionConfig,
    encryption: Encryption,
    mut socket: TcpStream,
) -> io::Result<(TcpStream, bool)> {
    match (encryption, config.tls.negotiation) {
        (Encryption::Plain, _) => return Ok((socket, false)),
        (_, SslNegotiation::Direct) => return Ok((socket, true)),
        (_, SslNegotiation::Postgres) => {}
    }
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    socket.write_all(&request).await?;
    // One byte and no more: whatever a stranger put behind it in clear must not be taken for part
    // of the encrypted conversation (CVE-2021-23222).
    match socket.read_u8().await? {
        b'S' => Ok((socket, true)),
        _ => Ok((socket, false)),
    }
}

async fn encrypt(
    config: &ConnectionConfig,
    name: &str,
    socket: TcpStream,
) -> Result<TlsStream<Socket>, TlsError> {
    let client = tls::client_config(&config.tls)?;
    let server_name =
        ServerName::try_from(name.to_owned()).map_err(|_| TlsError::ServerName(name.to_owned()))?;
    TlsConnector::from(Arc::new(client))
        .connect(server_name, Socket::Eager(socket))
        .await
        .map_err(TlsError::Handshake)
}

/// Bytes to and from a server.
pub(crate) enum Transport {
    Tcp(Socket),
    Unix(UnixStream),
    Tls(Box<TlsStream<Socket>>),
}

impl Transport {
    /// See [`Socket`]. A local socket gains next to nothing by it, and is left as it is.
    pub(crate) fn make_lazy(&mut self, roundtrip: Duration) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.make_lazy(roundtrip),
            Self::Unix(_) => Ok(()),
            Self::Tls(stream) => stream.get_mut().0.make_lazy(roundtrip),
        }
    }

    /// See [`Socket`].
    pub(crate) fn expect_long(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.expect_long(),
            Self::Unix(_) => Ok(()),
            Self::Tls(stream) => stream.get_mut().0.expect_long(),
        }
    }
}

/// The same call on whichever stream it is.
macro_rules! delegate {
    ($transport:expr, $stream:ident => $call:expr) => {
        match $transport.get_mut() {
            Transport::Tcp($stream) => $call,
            Transport::Unix($stream) => $call,
            Transport::Tls($stream) => $call,
        }
    };
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        delegate!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        delegate!(self, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
