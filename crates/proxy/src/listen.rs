//! Listening sockets, and accepting from them.

use crate::metrics::ProxyMetrics;
use atoll_process::Drain;
use socket2::{Domain, Protocol, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tracing::{debug, warn};

const BACKLOG: i32 = 1024;

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
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    while let std::task::Poll::Ready(accepted) = listener.poll_accept(&mut context) {
        match accepted {
            Ok((stream, peer)) => take(stream, peer),
            Err(_) => break,
        }
    }
    Ok(())
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
