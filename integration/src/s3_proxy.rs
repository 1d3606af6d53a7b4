//! A proxy in front of a real S3 server that does to requests what bad days do: an answer that is lost, a
//! 503, silence, a condition that is ignored, a listing of earlier.
//!
//! One request a connection. What a request meets is decided by the test, request by request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, ensure};
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// What a request meets instead of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// This status; the server does not hear of it.
    Status(u16),
    /// It is done, and the connection closed without an answer.
    NoAnswer,
    /// Nothing, for ever; the server does not hear of it.
    Silence,
    /// Nothing, for ever; the server hears of it at [`S3Proxy::deliver`].
    Late,
    /// It is done without its condition, as by a server that does not know any.
    NoCondition,
    /// The answer that the same request had when it was last let through.
    OldAnswer,
}

/// A request as far as it matters here.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub is_conditional: bool,
}

impl Request {
    pub fn is_listing(&self) -> bool {
        self.method == "GET" && self.target.contains("list-type=2")
    }

    /// Puts, and what large puts consist of.
    pub fn is_write(&self) -> bool {
        matches!(self.method.as_str(), "PUT" | "POST")
    }

    pub fn is_write_of_segment(&self) -> bool {
        self.is_write() && self.target.contains("/segments/")
    }
}

type Decide = Box<dyn FnMut(&Request) -> Option<Fault> + Send>;

struct State {
    decide: Decide,
    /// How often each fault was met.
    met: HashMap<Fault, u64>,
    answers: HashMap<String, Vec<u8>>,
    late: Vec<(Head, Vec<u8>)>,
}

/// The proxy; it ends with its handle.
pub struct S3Proxy {
    address: SocketAddr,
    server: String,
    state: Arc<Mutex<State>>,
    _task: JoinSet<()>,
}

impl S3Proxy {
    /// In front of the S3 server of this run; none if there is none.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start() -> Result<Option<Self>> {
        let Ok(endpoint) = std::env::var("LASTGOOD_TEST_S3_ENDPOINT") else {
            return Ok(None);
        };
        let server = endpoint
            .strip_prefix("http://")
            .context("an endpoint without TLS")?
            .trim_end_matches('/')
            .to_owned();
        let secret = std::env::var("AWS_SECRET_ACCESS_KEY").context("AWS_SECRET_ACCESS_KEY")?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State {
            decide: Box::new(|_| None),
            met: HashMap::new(),
            answers: HashMap::new(),
            late: Vec::new(),
        }));
        let mut task = JoinSet::new();
        let (shared, behind) = (Arc::clone(&state), server.clone());
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let (shared, server, secret) =
                    (Arc::clone(&shared), behind.clone(), secret.clone());
                connections.spawn(async move {
                    // A connection that breaks is what this is about.
                    let _ = carry(client, &server, &secret, &shared).await;
                });
            }
        });
        Ok(Some(Self {
            address,
            server,
            state,
            _task: task,
        }))
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From now on, `decide` says what each request meets.
    pub fn set(&self, decide: impl FnMut(&Request) -> Option<Fault> + Send + 'static) {
        lock(&self.state).decide = Box::new(decide);
    }

    /// From now on all requests pass.
    pub fn mend(&self) {
        self.set(|_| None);
    }

    /// Lets the server have every request that was to be late, and says what it answers.
    ///
    /// # Errors
    /// When it cannot be reached.
    pub async fn deliver(&self) -> Result<Vec<String>> {
        let late = std::mem::take(&mut lock(&self.state).late);
        let mut statuses = Vec::new();
        for (head, body) in late {
            let answer = ask(&self.server, &head, &body).await?;
            let status = String::from_utf8_lossy(&answer);
            statuses.push(status.lines().next().unwrap_or_default().to_owned());
        }
        Ok(statuses)
    }

    /// How many requests have met this fault.
    pub fn met(&self, fault: Fault) -> u64 {
        lock(&self.state).met.get(&fault).copied().unwrap_or(0)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn carry(
    mut client: TcpStream,
    server: &str,
    secret: &str,
    state: &Mutex<State>,
) -> Result<()> {
    let (head, body) = read_request(&mut client).await?;
    let request = Request {
        method: head.method.clone(),
        target: head.target.clone(),
        is_conditional: head.header("if-none-match").is_some(),
    };
    let fault = {
        let mut state = lock(state);
        let fault = (state.decide)(&request);
        if let Some(fault) = fault {
            *state.met.entry(fault).or_default() += 1;
        }
        fault
    };
    let head = match fault {
        Some(fault @ (Fault::Silence | Fault::Late)) => {
            if fault == Fault::Late {
                lock(state).late.push((head, body));
            }
            // Until the client has enough.
            let _ = client.read_to_end(&mut Vec::new()).await;
            return Ok(());
        }
        Some(Fault::Status(status)) => {
            let text = format!(
                "<?xml version=\"1.0\"?><Error><Code>Fault{status}</Code><Message>by the test</Message></Error>"
            );
            let answer = format!(
                "HTTP/1.1 {status} Fault\r\nContent-Type: application/xml\r\nContent-Length: {}\r\n\
                 Connection: close\r\n\r\n{text}",
                text.len()
            );
            client.write_all(answer.as_bytes()).await?;
            return Ok(());
        }
        Some(Fault::NoCondition) => head.without("if-none-match", secret)?,
        Some(Fault::OldAnswer) => {
            let old = lock(state).answers.get(&request.target).cloned();
            if let Some(answer) = old {
                client.write_all(&answer).await?;
                return Ok(());
            }
            head
        }
        Some(Fault::NoAnswer) | None => head,
    };
    let answer = ask(server, &head, &body).await?;
    if fault == Some(Fault::NoAnswer) {
        return Ok(());
    }
    if request.is_listing() {
        let mut state = lock(state);
        state.answers.insert(request.target, answer.clone());
    }
    client.write_all(&answer).await?;
    Ok(())
}

async fn ask(server: &str, head: &Head, body: &[u8]) -> Result<Vec<u8>> {
    let mut upstream = TcpStream::connect(server).await?;
    upstream.write_all(head.text().as_bytes()).await?;
    upstream.write_all(body).await?;
    let mut answer = Vec::new();
    upstream.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The first lines of a request.
struct Head {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
}

async fn read_request(client: &mut TcpStream) -> Result<(Head, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 * 1024];
    let end = loop {
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
        let read = client.read(&mut buffer).await?;
        ensure!(read > 0, "no request");
        bytes.extend_from_slice(&buffer[..read]);
    };
    let mut body = bytes.split_off(end + 4);
    let text = String::from_utf8(bytes)?;
    let mut lines = text.lines();
    let first = lines.next().context("a request line")?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, target) = (
        words.next().context("a method")?,
        words.next().context("a target")?,
    );
    let headers = lines.filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    });
    let head = Head {
        method,
        target,
        headers: headers.collect(),
    };
    let length: usize = head.header("content-length").unwrap_or("0").parse()?;
    while body.len() < length {
        let read = client.read(&mut buffer).await?;
        ensure!(read > 0, "a request that was cut off");
        body.extend_from_slice(&buffer[..read]);
    }
    Ok((head, body))
}

impl Head {
    fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(other, _)| other == name);
        found.map(|(_, value)| value.as_str())
    }

    fn text(&self) -> String {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            if name != "connection" {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        text + "connection: close\r\n\r\n"
    }

    /// Without a header that may have been signed: the signature is made anew.
    fn without(mut self, name: &str, secret: &str) -> Result<Self> {
        self.headers.retain(|(other, _)| other != name);
        let Some(authorization) = self.header("authorization").map(str::to_owned) else {
            return Ok(self);
        };
        let part = |name: &str| -> Result<&str> {
            let (_, rest) = authorization
                .split_once(&format!("{name}="))
                .with_context(|| format!("{name} in {authorization}"))?;
            Ok(rest.split(',').next().unwrap_or(rest).trim())
        };
        let (key, scope) = part("Credential")?.split_once('/').context("a scope")?;
        let signed: Vec<&str> = part("SignedHeaders")?
            .split(';')
            .filter(|signed| *signed != name)
            .collect();
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let mut canonical = format!("{}\n{path}\n{query}\n", self.method);
        for name in &signed {
            canonical.push_str(&format!("{name}:{}\n", self.header(name).unwrap_or("")));
        }
        let content = self.header("x-amz-content-sha256").context("a digest")?;
        canonical.push_str(&format!("\n{}\n{content}", signed.join(";")));
        let time = self.header("x-amz-date").context("a date")?;
        let digest = hex(&Sha256::digest(&canonical));
        let text = format!("AWS4-HMAC-SHA256\n{time}\n{scope}\n{digest}");
        let mut signing = format!("AWS4{secret}").into_bytes();
        for step in scope.split('/') {
            signing = keyed(&signing, step)?;
        }
        let authorization = format!(
            "AWS4-HMAC-SHA256 Credential={key}/{scope}, SignedHeaders={}, Signature={}",
            signed.join(";"),
            hex(&keyed(&signing, &text)?)
        );
        self.headers.retain(|(other, _)| other != "authorization");
        self.headers
            .push(("authorization".to_owned(), authorization));
        Ok(self)
    }
}

fn keyed(key: &[u8], text: &str) -> Result<Vec<u8>> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key)?;
    mac.update(text.as_bytes());
    Ok(mac.finalize().into_bytes().to_vec())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
