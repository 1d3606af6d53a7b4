//! A TCP proxy with the faults of real networks: latency, a rate limit, silence, a cut, a half-close.
//!
//! It runs on the test's runtime and ends with its handle. Packet loss is absent: TCP hides it as latency.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, tcp::OwnedReadHalf, tcp::OwnedWriteHalf};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// What the network does to every byte, in both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// Each read waits this long before it goes on.
    pub latency: Duration,
    /// Per direction and connection.
    pub bytes_per_second: Option<u64>,
    /// Connections are accepted and stay open, nothing passes.
    pub blackhole: bool,
    /// The way from the client to the server is closed, the other one stays open.
    pub half_closed: bool,
    /// New connections are closed at once.
    pub refuse: bool,
    /// A connection is cut once so much has come from the server, in the middle of whatever that is.
    pub cut_after: Option<u64>,
    /// New connections go to this port instead.
    pub port: Option<u16>,
    /// Raised by [`Proxy::cut`]: connections of an older age are closed.
    age: u64,
    /// Set by [`Proxy::freeze`]: connections before this one are open and silent.
    frozen_before: u64,
}

pub struct Proxy {
    address: SocketAddr,
    network: Arc<watch::Sender<Network>>,
    opened: Arc<AtomicU64>,
    _tasks: JoinSet<()>,
}

impl Proxy {
    /// In front of `target`, on a port of its own.
    ///
    /// # Errors
    /// When no port can be had.
    pub async fn start(target: (&str, u16)) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let network = Arc::new(watch::Sender::new(Network::default()));
        let mut tasks = JoinSet::new();
        let (target, seen) = ((target.0.to_owned(), target.1), Arc::clone(&network));
        let opened = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&opened);
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let now = *seen.borrow();
                if !now.refuse {
                    let number = counter.fetch_add(1, Ordering::Relaxed);
                    let target = (target.0.clone(), now.port.unwrap_or(target.1));
                    connections.spawn(carry(client, target, seen.subscribe(), number));
                }
            }
        });
        Ok(Self {
            address,
            network,
            opened,
            _tasks: tasks,
        })
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Changes what the network does, for open connections too.
    pub fn set(&self, change: impl FnOnce(&mut Network)) {
        self.network.send_modify(change);
    }

    /// All open connections fall silent for good, as behind a router that forgot them; new ones pass.
    pub fn freeze(&self) {
        let opened = self.opened.load(Ordering::Relaxed);
        self.network
            .send_modify(|network| network.frozen_before = opened);
    }

    /// How many connections there have been.
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    /// Closes all open connections; new ones pass.
    pub fn cut(&self) {
        self.network.send_modify(|network| network.age += 1);
    }
}

async fn carry(
    client: TcpStream,
    target: (String, u16),
    network: watch::Receiver<Network>,
    number: u64,
) {
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let mut until_cut = network.clone();
    let age = until_cut.borrow().age;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let cut = Notify::new();
    let both = async {
        tokio::join!(
            pump(from_client, to_server, network.clone(), number, None),
            pump(from_server, to_client, network.clone(), number, Some(&cut)),
        )
    };
    tokio::select! {
        _ = both => {}
        () = cut.notified() => {}
        _ = until_cut.wait_for(|network| network.age != age) => {}
    }
}

async fn pump(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut network: watch::Receiver<Network>,
    number: u64,
    // The way from the server, which may be cut at any byte.
    cut: Option<&Notify>,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut carried = 0;
    loop {
        let closed = |network: &Network| cut.is_none() && network.half_closed;
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = network.wait_for(closed) => Ok(0),
        };
        let Ok(bytes @ 1..) = read else { break };
        // Bytes that were read wait here while the network is silent.
        let Ok(now) = network
            .wait_for(|network| !network.blackhole && number >= network.frozen_before)
            .await
            .map(|now| *now)
        else {
            break;
        };
        let mut pause = now.latency;
        if let Some(rate) = now.bytes_per_second {
            pause += Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        }
        if !pause.is_zero() {
            sleep(pause).await;
        }
        let limit = now.cut_after.filter(|_| cut.is_some());
        let left = limit.map(|limit| limit.saturating_sub(carried));
        let passed = left.map_or(bytes, |left| {
            bytes.min(usize::try_from(left).unwrap_or(bytes))
        });
        if to.write_all(&buffer[..passed]).await.is_err() {
            break;
        }
        carried += passed as u64;
        if let (true, Some(cut)) = (passed < bytes, cut) {
            cut.notify_one();
            return;
        }
    }
    // The other side sees an end, as it would without us; a failure means that it is gone already.
    let _ = to.shutdown().await;
}
