//! Proving who we are: SCRAM-SHA-256 and -PLUS, MD5, and the password in clear only where nobody
//! can read along.
//!
//! What a server may ask for is decided in one place, [`Policy`]. The replication connection
//! consults it directly. tokio-postgres has no such rule, so its sockets are wrapped in [`Guard`],
//! which reads the server's first message along and breaks the connection before a password is
//! sent that must not be.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use bytes::BytesMut;
use lastgood_proto::cursor::Cursor;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{
    ChannelBinding as ScramBinding, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ScramSha256,
};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;
use tokio_postgres::tls::{ChannelBinding as SqlBinding, TlsConnect, TlsStream};
use zeroize::Zeroize;

use crate::config::{AuthMethod, ChannelBinding, ConnectionConfig, RequireAuth};
use crate::error::{AuthFailure, Error, Operation};
use crate::transport::{Link, Transport};
use crate::wire::Wire;

/// Codes of AuthenticationRequest messages (protocol documentation, "Message Formats").
mod code {
    pub(super) const OK: i32 = 0;
    pub(super) const CLEARTEXT: i32 = 3;
    pub(super) const MD5: i32 = 5;
    pub(super) const SASL: i32 = 10;
    pub(super) const SASL_CONTINUE: i32 = 11;
    pub(super) const SASL_FINAL: i32 = 12;
}

/// What the server may ask for on this connection.
#[derive(Clone)]
pub(crate) struct Policy {
    require_auth: Option<RequireAuth>,
    binding_required: bool,
    binding_possible: bool,
    private: bool,
    has_password: bool,
}

impl Policy {
    pub(crate) fn new(config: &ConnectionConfig, link: &Link) -> Self {
        Self {
            require_auth: config.require_auth.clone(),
            binding_required: config.channel_binding == ChannelBinding::Require,
            binding_possible: link.channel_binding.is_some(),
            private: link.is_private(),
            has_password: config.password.is_some(),
        }
    }

    /// Judges the server's first request. Anything that is no request is left to the protocol.
    fn check(&self, request: i32) -> Result<(), AuthFailure> {
        let (method, name) = match request {
            code::OK => (AuthMethod::None, "no authentication"),
            code::CLEARTEXT => (AuthMethod::Password, "the password in clear"),
            code::MD5 => (AuthMethod::Md5, "MD5"),
            code::SASL => (AuthMethod::Scram, "SCRAM"),
            7 | 8 => (AuthMethod::Kerberos, "GSSAPI"),
            9 => (AuthMethod::Kerberos, "SSPI"),
            2 => (AuthMethod::Kerberos, "Kerberos V5"),
            _ => return Err(AuthFailure::MethodUnsupported("an unknown method")),
        };
        if self
            .require_auth
            .as_ref()
            .is_some_and(|list| !list.allows(method))
        {
            return Err(AuthFailure::MethodForbidden(name));
        }
        if method == AuthMethod::Kerberos {
            return Err(AuthFailure::MethodUnsupported(name));
        }
        if self.binding_required && (method != AuthMethod::Scram || !self.binding_possible) {
            return Err(AuthFailure::NoChannelBinding);
        }
        if method == AuthMethod::None {
            return Ok(());
        }
        if !self.has_password {
            return Err(AuthFailure::PasswordMissing);
        }
        match method {
            AuthMethod::Password if !self.private => Err(AuthFailure::CleartextRefused),
            _ => Ok(()),
        }
    }
}

/// Runs the exchange from the startup message's answer to AuthenticationOk.
pub(crate) async fn authenticate(
    wire: &mut Wire,
    config: &ConnectionConfig,
    policy: &Policy,
    binding: Option<Vec<u8>>,
) -> Result<(), Error> {
    let failed = |host: &str, reason| Error::Authentication {
        host: host.to_owned(),
        reason,
    };
    let host = wire.host().to_string();
    let (request, body) = next_request(wire).await?;
    policy
        .check(request)
        .map_err(|reason| failed(&host, reason))?;
    let password = config
        .password
        .as_ref()
        .map_or("", |password| password.expose());
    match request {
        code::OK => return Ok(()),
        code::CLEARTEXT => send_password(wire, password.as_bytes()).await?,
        code::MD5 => {
            let salt: [u8; 4] = body
                .as_ref()
                .try_into()
                .map_err(|_| Error::Protocol("an MD5 salt that is not four bytes".to_owned()))?;
            let hash = md5_hash(config.user.as_bytes(), password.as_bytes(), salt);
            send_password(wire, hash.as_bytes()).await?;
        }
        _ => scram(wire, config, password, &body, binding).await?,
    }
    match next_request(wire).await? {
        (code::OK, _) => Ok(()),
        (other, _) => Err(Error::Protocol(format!(
            "authentication request {other} out of turn"
        ))),
    }
}

async fn next_request(wire: &mut Wire) -> Result<(i32, bytes::Bytes), Error> {
    let (tag, body) = wire.next().await?;
    match tag {
        b'R' => {
            let request = Cursor::new(&body).i32()?;
            Ok((request, body.slice(4..)))
        }
        b'E' => Err(Error::server(Operation::Connect, &body)),
        tag => Err(Error::Protocol(format!(
            "message {:?} during authentication",
            char::from(tag)
        ))),
    }
}

async fn send_password(wire: &mut Wire, password: &[u8]) -> Result<(), Error> {
    let mut message = BytesMut::new();
    frontend::password_message(password, &mut message)
        .map_err(|error| Error::Protocol(error.to_string()))?;
    let sent = wire.send(&message).await;
    message.zeroize_in_place();
    sent
}

async fn scram(
    wire: &mut Wire,
    config: &ConnectionConfig,
    password: &str,
    offer: &[u8],
    binding: Option<Vec<u8>>,
) -> Result<(), Error> {
    let failed = |wire: &Wire, reason| Error::Authentication {
        host: wire.host().to_string(),
        reason,
    };
    let broken =
        |wire: &Wire, error: io::Error| failed(wire, AuthFailure::Scram(error.to_string()));
    let (mut plain, mut plus) = (false, false);
    let mut offer = Cursor::new(offer);
    loop {
        match offer.cstr()? {
            b"" => break,
            name if name == SCRAM_SHA_256.as_bytes() => plain = true,
            name if name == SCRAM_SHA_256_PLUS.as_bytes() => plus = true,
            _ => {}
        }
    }

    let binding = binding.filter(|_| config.channel_binding != ChannelBinding::Disable);
    let (mechanism, header) = match binding {
        Some(data) if plus => (SCRAM_SHA_256_PLUS, ScramBinding::tls_server_end_point(data)),
        _ if config.channel_binding == ChannelBinding::Require => {
            return Err(failed(wire, AuthFailure::NoChannelBinding));
        }
        // We could and the server, it seems, could not: said inside the exchange, so that whoever
        // struck the better mechanism from the list is found out.
        Some(_) if plain => (SCRAM_SHA_256, ScramBinding::unrequested()),
        None if plain => (SCRAM_SHA_256, ScramBinding::unsupported()),
        _ => {
            return Err(failed(
                wire,
                AuthFailure::MethodUnsupported("an unknown SASL mechanism"),
            ));
        }
    };
    let mut exchange = ScramSha256::new(password.as_bytes(), header);

    let mut message = BytesMut::new();
    let encode = |error: io::Error| Error::Protocol(error.to_string());
    frontend::sasl_initial_response(mechanism, exchange.message(), &mut message).map_err(encode)?;
    wire.send(&message).await?;
    match next_request(wire).await? {
        (code::SASL_CONTINUE, body) => {
            exchange
                .update(&body)
                .map_err(|error| broken(wire, error))?;
        }
        _ => return Err(Error::Protocol("SASL did not continue".to_owned())),
    }
    message.clear();
    frontend::sasl_response(exchange.message(), &mut message).map_err(encode)?;
    wire.send(&message).await?;
    match next_request(wire).await? {
        (code::SASL_FINAL, body) => exchange.finish(&body).map_err(|error| broken(wire, error)),
        _ => Err(Error::Protocol("SASL did not finish".to_owned())),
    }
}

/// A buffer that held a password.
trait ZeroizeInPlace {
    fn zeroize_in_place(&mut self);
}

impl ZeroizeInPlace for BytesMut {
    fn zeroize_in_place(&mut self) {
        self.as_mut().zeroize();
    }
}

/// A socket for tokio-postgres that enforces the [`Policy`] on the server's first message, and gives
/// the server back when tokio-postgres is done, if that is wanted.
pub(crate) struct Guard {
    /// Taken when dropped.
    stream: Option<Transport>,
    way_back: Option<WayBack>,
    /// `None`: no password is sent on this connection.
    policy: Option<Policy>,
    /// The first nine bytes: tag, length, and the code if it is an authentication request.
    seen: Vec<u8>,
}

/// Travels through tokio-postgres as the cause of an I/O error.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct Refusal(pub(crate) AuthFailure);

/// How a socket comes back from tokio-postgres, which has no word for that.
pub(crate) struct WayBack {
    /// Set once the session is to outlive its client: then the client's good-bye is not passed on.
    wanted: Arc<AtomicBool>,
    returned: oneshot::Sender<Transport>,
}

/// The other end of a [`WayBack`].
pub(crate) struct Reclaim {
    wanted: Arc<AtomicBool>,
    returned: oneshot::Receiver<Transport>,
}

impl Reclaim {
    pub(crate) fn pair() -> (WayBack, Self) {
        let wanted = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = oneshot::channel();
        let way_back = WayBack {
            wanted: Arc::clone(&wanted),
            returned: sender,
        };
        let returned = receiver;
        (way_back, Self { wanted, returned })
    }

    /// Drops the client and waits for its socket. `None` if the connection broke before.
    pub(crate) async fn from(self, client: tokio_postgres::Client) -> Option<Transport> {
        self.wanted.store(true, Ordering::Release);
        drop(client);
        self.returned.await.ok()
    }
}

impl Guard {
    const WATCHED: usize = 9;
    /// What a client says at last, by itself and after everything else.
    const TERMINATE: &[u8] = &[b'X', 0, 0, 0, 4];

    pub(crate) fn new(stream: Transport, policy: Policy, way_back: WayBack) -> Self {
        Self {
            stream: Some(stream),
            way_back: Some(way_back),
            policy: Some(policy),
            seen: Vec::with_capacity(Self::WATCHED),
        }
    }

    fn stays(&self) -> bool {
        let way_back = self.way_back.as_ref();
        way_back.is_some_and(|way| way.wanted.load(Ordering::Acquire))
    }

    fn stream(&mut self) -> io::Result<Pin<&mut Transport>> {
        let stream = self.stream.as_mut();
        stream
            .map(Pin::new)
            .ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// For a connection that carries a request to cancel and nothing else.
    pub(crate) fn open(stream: Transport) -> Self {
        Self {
            stream: Some(stream),
            way_back: None,
            policy: None,
            seen: Vec::new(),
        }
    }

    fn watch(&mut self, fresh: &[u8]) -> io::Result<()> {
        let wanted = Self::WATCHED.saturating_sub(self.seen.len());
        if wanted == 0 {
            return Ok(());
        }
        self.seen.extend(fresh.iter().take(wanted));
        let mut cursor = Cursor::new(&self.seen);
        match (&self.policy, cursor.u8(), cursor.i32(), cursor.i32()) {
            (Some(policy), Ok(b'R'), Ok(_), Ok(request)) => policy
                .check(request)
                .map_err(|reason| io::Error::other(Refusal(reason))),
            _ => Ok(()),
        }
    }
}

impl AsyncRead for Guard {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        std::task::ready!(this.stream()?.poll_read(cx, buf))?;
        if this.seen.len() < Self::WATCHED {
            this.watch(buf.filled().get(before..).unwrap_or_default())?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Guard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf == Self::TERMINATE && self.stays() {
            return Poll::Ready(Ok(buf.len()));
        }
        self.stream()?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.stays() {
            return Poll::Ready(Ok(()));
        }
        self.stream()?.poll_shutdown(cx)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.stays()
            && let (Some(way), Some(stream)) = (self.way_back.take(), self.stream.take())
        {
            // Nobody waits any more: then it ends here.
            let _unwanted = way.returned.send(stream);
        }
    }
}

/// Hands tokio-postgres a connection that is encrypted already, with what SCRAM binds to.
pub(crate) struct Ready {
    pub(crate) binding: Option<Vec<u8>>,
}

/// The stream that [`Ready`] yields.
pub(crate) struct Bound {
    guard: Guard,
    binding: Option<Vec<u8>>,
}

impl TlsConnect<Guard> for Ready {
    type Stream = Bound;
    type Error = io::Error;
    type Future = std::future::Ready<io::Result<Bound>>;

    fn connect(self, guard: Guard) -> Self::Future {
        std::future::ready(Ok(Bound {
            guard,
            binding: self.binding,
        }))
    }
}

impl TlsStream for Bound {
    fn channel_binding(&self) -> SqlBinding {
        match &self.binding {
            Some(data) => SqlBinding::tls_server_end_point(data.clone()),
            None => SqlBinding::none(),
        }
    }
}

impl AsyncRead for Bound {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.guard).poll_read(cx, buf)
    }
}

impl AsyncWrite for Bound {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.guard).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.guard).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.guard).poll_shutdown(cx)
    }
}
