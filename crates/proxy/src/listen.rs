//! Listening sockets, and accepting from them.

use crate::metrics::ProxyMetrics;
use crate::workers::spawn_task;
use atoll_process::Drain;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

const BACKLOG: i32 = 1024;
/// A peer that has vanished without a word is noticed after about two minutes.
const KEEP_ALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(15))
    .with_retries(4);
/// What the kernel takes beyond what is on its way: more would hide from us how fast a peer reads, and
/// cost memory for each slow one.
const UNSENT_BYTES_MAX: u32 = 128 * 1024;

/// One listening socket for each of `count` workers, all on one address; port 0 picks a free one.
///
/// # Errors
/// When the address can't be bound. An address that another process listens on is an error although
/// `SO_REUSEPORT` would allow it to the same user.
pub fn bind_workers(address: SocketAddr, count: usize) -> io::Result<(SocketAddr, Vec<TcpListener>)> {
    if address.port() != 0 {
        drop(bind(address, false)?);
    }
    let first = bind(address, true)?;
    let bound = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..count.max(1) {
        listeners.push(bind(bound, true)?);
    }
    Ok((bound, listeners))
}

/// A listening socket that shares its address with its like.
///
/// # Errors
/// When the address can't be bound.
pub fn bind_reuseport(address: SocketAddr) -> io::Result<TcpListener> {
    bind(address, true)
}

/// A listening socket of its own.
///
/// # Errors
/// When the address can't be bound.
pub fn bind_alone(address: SocketAddr) -> io::Result<TcpListener> {
    bind(address, false)
}

fn bind(address: SocketAddr, share: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    // Connections that are accepted inherit these.
    socket.set_tcp_keepalive(&KEEP_ALIVE)?;
    socket.set_tcp_notsent_lowat(UNSENT_BYTES_MAX)?;
    if share {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// How many connections a listener may have open at once, over all of its workers. Clones share it.
#[derive(Debug, Clone)]
pub struct ConnectionCap {
    open: Arc<AtomicUsize>,
    max: usize,
}

/// One of the connections under a cap.
#[derive(Debug)]
pub struct ConnectionPermit {
    open: Arc<AtomicUsize>,
    metrics: ProxyMetrics,
}

impl ConnectionCap {
    /// At most `max` at once.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self { open: Arc::default(), max }
    }

    /// How many are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn admit(&self, metrics: &ProxyMetrics) -> Option<ConnectionPermit> {
        if self.open.fetch_add(1, Ordering::Relaxed) >= self.max {
            self.open.fetch_sub(1, Ordering::Relaxed);
            metrics.connections_refused.inc();
            return None;
        }
        metrics.connections_opened.inc();
        Some(ConnectionPermit { open: Arc::clone(&self.open), metrics: metrics.clone() })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        self.metrics.connections_closed.inc();
    }
}

/// Accepts until `drain` starts, then what is queued already (closing a socket that shares its
/// address drops its queue), and hands each connection to `on_connection`.
pub async fn accept_loop<F>(
    listener: TcpListener,
    cap: ConnectionCap,
    metrics: ProxyMetrics,
    drain: Drain,
    mut on_connection: F,
) -> io::Result<()>
where
    F: FnMut(TcpStream, SocketAddr, ConnectionPermit),
{
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut take = |stream: TcpStream, peer: SocketAddr| {
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "can't turn off Nagle's algorithm: the peer is gone already");
        }
        // Over the cap the connection is closed at once: waiting would only fill the backlog.
        if let Some(permit) = cap.admit(&metrics) {
            on_connection(stream, peer, permit);
        }
    };
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => take(stream, peer),
                Err(error) => accept_failed(&error, &metrics).await,
            },
            () = drain.draining() => break,
        }
    }
    // Asks the kernel itself: tokio may not have heard yet of connections that are queued.
    let listener = listener.into_std()?;
    loop {
        match listener.accept() {
            Ok((stream, peer)) => {
                stream.set_nonblocking(true)?;
                take(TcpStream::from_std(stream)?, peer);
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(_empty) => return Ok(()),
        }
    }
}

/// [`accept_loop`], each connection served by a task of this worker that `connections` knows until it ends.
pub async fn serve_all<F>(
    listener: TcpListener,
    (name, cap): (&'static str, ConnectionCap),
    metrics: &ProxyMetrics,
    drain: Drain,
    connections: &TaskTracker,
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + 'static,
{
    let on_connection = |stream: TcpStream, peer: SocketAddr, permit: ConnectionPermit| {
        let token = connections.token();
        let served = serve(stream, peer);
        spawn_task(name, metrics, async move {
            // Held until the connection has ended.
            let _held = (permit, token);
            served.await;
        });
    };
    if let Err(error) = accept_loop(listener, cap, metrics.clone(), drain, on_connection).await {
        error!(%error, name, "a listener has failed");
    }
}

/// Out of descriptors or memory: wait for some to be given back rather than spin.
async fn accept_failed(error: &io::Error, metrics: &ProxyMetrics) {
    metrics.accept_errors.inc();
    match error.kind() {
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset => {}
        _ => {
            warn!(%error, "can't accept a connection; raise the limit of open files if this stays");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::cell::RefCell;
    use tokio::io::AsyncReadExt as _;

    #[test]
    fn workers_share_an_address_that_nobody_else_gets() {
        let (address, listeners) = bind_workers("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        assert_eq!(listeners.len(), 3);
        let taken = bind_workers(address, 2).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
        drop(listeners);
        assert_eq!(bind_workers(address, 1).unwrap().0, address);
    }

    #[tokio::test]
    async fn the_cap_holds_and_what_is_queued_at_a_drain_is_taken() {
        let listener = bind_reuseport("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.unwrap());
        }
        let (trigger, drain) = atoll_process::drain::channel();
        trigger.start();
        let (cap, metrics) = (ConnectionCap::new(2), ProxyMetrics::unregistered());
        let taken = RefCell::new(Vec::new());
        let accepting = accept_loop(listener, cap.clone(), metrics.clone(), drain, |stream, _, permit| {
            taken.borrow_mut().push((stream, permit));
        });
        accepting.await.unwrap();
        assert_eq!((taken.borrow().len(), cap.open(), metrics.connections_refused.get()), (2, 2, 1));
        let refused = clients[2].read(&mut [0]).await;
        assert!(matches!(refused, Ok(0) | Err(_)), "closed at once");
        taken.borrow_mut().clear();
        assert_eq!((cap.open(), metrics.connections_closed.get()), (0, 2));
    }
}
