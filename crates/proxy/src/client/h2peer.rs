//! One mesh peer, reached over a few HTTP/2 connections that repair themselves.

use super::connect::MeshConnector;
use super::error::{SendError, SendFault};
use super::head::{SendTimeouts, count_upload};
use super::line::Line;
use super::slot::{Phase, Slot, keep_connected};
use crate::body::Body;
use crate::interim::Interim;
use crate::metrics::ProxyMetrics;
use crate::workers::spawn_task;
use atoll_identity::PeerIdentity;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri, Version, header};
use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// The largest window that HTTP/2 knows.
pub(crate) const CONNECTION_WINDOW_MAX: u32 = (1 << 31) - 1;

/// How a peer is reached.
#[derive(Debug, Clone)]
pub struct H2PeerConfig {
    /// Where.
    pub address: SocketAddr,
    /// How many connections, from this worker.
    pub connections: usize,
    /// For TCP, TLS and HTTP/2 together.
    pub connect_timeout: Duration,
    /// The first wait after a failure; doubled up to `backoff_max`, each time with full jitter.
    pub backoff_min: Duration,
    /// The longest wait after a failure.
    pub backoff_max: Duration,
    /// Connect at once, and again whenever a connection ends; else at the first request.
    pub warm: bool,
    /// What may be unread of one response: what a slow reader costs here, in bytes.
    pub stream_window: u32,
    /// The most streams on one connection, if the peer allows as many.
    pub streams_max: usize,
    /// How often a connection is asked whether it lives, and how long it may take to say so.
    pub keep_alive: Duration,
}

impl H2PeerConfig {
    /// What may be unread of all responses on one connection: room for every stream, because else a
    /// few readers that have stopped would hold up all others on it.
    pub(crate) fn connection_window(&self) -> u32 {
        let streams = u32::try_from(self.streams_max).unwrap_or(u32::MAX);
        self.stream_window.saturating_mul(streams).min(CONNECTION_WINDOW_MAX)
    }

    /// Defaults for a peer in the same region: one connection, made when it is needed.
    #[must_use]
    pub fn near(address: SocketAddr) -> Self {
        Self {
            address,
            connections: 1,
            connect_timeout: Duration::from_secs(1),
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(2),
            warm: false,
            stream_window: 128 * 1024,
            streams_max: 1000,
            keep_alive: Duration::from_secs(5),
        }
    }

    /// Defaults for a tunnel to another site: warm, with windows for a long fat link.
    #[must_use]
    pub fn far(address: SocketAddr) -> Self {
        Self {
            connections: 2,
            connect_timeout: Duration::from_secs(3),
            backoff_max: Duration::from_secs(1),
            warm: true,
            stream_window: 512 * 1024,
            ..Self::near(address)
        }
    }
}

/// Runs beside each connection, from its start; the connection is cut when it returns.
pub type ConnectionHook = Rc<dyn Fn(PeerConnection) -> Pin<Box<dyn Future<Output = ()>>>>;

/// One connection, for a hook.
#[derive(Debug, Clone)]
pub struct PeerConnection {
    /// Which of the peer's connections.
    pub index: usize,
    /// Who is at the other end.
    pub peer: Arc<PeerIdentity>,
    pub(crate) line: Rc<Line>,
}

impl PeerConnection {
    /// Requests in flight on this connection, those of hooks not counted.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.line.streams()
    }

    /// Takes no new requests from now on.
    pub fn retire(&self) {
        self.line.retire();
    }

    /// Sends a request of the hook's own, uncounted and without a timeout.
    ///
    /// # Errors
    /// As [`H2Peer::send`].
    pub async fn send(&self, request: Request<Body>) -> Result<Response<Body>, SendError> {
        let request = to_http2(request, Scheme::HTTPS);
        self.line.exchange(request, None, &Interim::default()).await
    }
}

/// The peer. Clones share its connections, which end with the last clone. Stays on its worker.
#[derive(Clone)]
pub struct H2Peer(Rc<Shared>);

struct Shared {
    inner: Rc<Inner>,
    tasks: Vec<AbortHandle>,
}

pub(crate) struct Inner {
    pub(crate) config: H2PeerConfig,
    pub(crate) connector: MeshConnector,
    pub(crate) metrics: ProxyMetrics,
    pub(crate) hook: Option<ConnectionHook>,
    pub(crate) slots: Vec<Slot>,
    /// No handle is left.
    pub(crate) closing: Cell<bool>,
    /// A slot's phase, or `closing`, has changed.
    pub(crate) changed: Notify,
    /// A request wants a connection.
    pub(crate) wanted: Notify,
}

impl fmt::Debug for H2Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H2Peer")
            .field("address", &self.0.inner.config.address)
            .field("connected", &self.connected())
            .field("in_flight", &self.in_flight())
            .finish()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
        // A connection ends once nobody can ask anything on it.
        self.inner.slots.iter().for_each(Slot::abandon);
        // Streams in flight may end by themselves; hooks end now.
        self.inner.closing.set(true);
        self.inner.changed.notify_waiters();
    }
}

impl H2Peer {
    /// A peer. Must be called on a worker.
    #[must_use]
    pub fn open(config: H2PeerConfig, connector: MeshConnector, metrics: ProxyMetrics) -> Self {
        Self::open_with_hook(config, connector, metrics, None)
    }

    /// A peer with a hook that runs beside each connection.
    #[must_use]
    pub fn open_with_hook(
        config: H2PeerConfig,
        connector: MeshConnector,
        metrics: ProxyMetrics,
        hook: Option<ConnectionHook>,
    ) -> Self {
        let slots = (0..config.connections.max(1)).map(|_| Slot::default()).collect();
        let inner = Rc::new(Inner {
            config,
            connector,
            metrics,
            hook,
            slots,
            closing: Cell::new(false),
            changed: Notify::new(),
            wanted: Notify::new(),
        });
        let tasks = (0..inner.slots.len())
            .map(|index| {
                let task = keep_connected(Rc::clone(&inner), index);
                spawn_task("peer connection", &inner.metrics, task).abort_handle()
            })
            .collect();
        Self(Rc::new(Shared { inner, tasks }))
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.inner.config.address
    }

    /// How many connections take requests.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.0.inner.slots.iter().filter(|slot| slot.is_open()).count()
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.inner.slots.iter().map(Slot::in_flight).sum()
    }

    /// Why the last attempt to connect failed, until one succeeds.
    #[must_use]
    pub fn last_error(&self) -> Option<String> {
        self.0.inner.slots.iter().find_map(Slot::last_error)
    }

    /// Waits for a connection; false when there is none after `within`.
    pub async fn ready(&self, within: Duration) -> bool {
        let connected = async {
            loop {
                let changed = self.0.inner.changed.notified();
                if self.connected() > 0 {
                    return;
                }
                self.0.inner.wanted.notify_waiters();
                changed.await;
            }
        };
        tokio::time::timeout(within, connected).await.is_ok()
    }

    /// Sends a request (in the form of [`crate::Exchange`]) and waits for the response's head; what comes before it is passed to
    /// `interim`. The stream is reset when the future is dropped, or the response's body before its end.
    ///
    /// # Errors
    /// [`SendError::sent`] says whether the peer may have processed the request.
    pub async fn send(
        &self,
        request: Request<Body>,
        timeouts: SendTimeouts,
        interim: &Interim,
    ) -> Result<Response<Body>, SendError> {
        let mut request = to_http2(request, Scheme::HTTPS);
        let upload = count_upload(&mut request);
        for _ in 0..=self.0.inner.slots.len() {
            let line = match self.pick().await {
                Ok(line) => line,
                Err((fault, detail)) => return Err(SendError::unsent(fault, detail, request)),
            };
            match line.send(request, timeouts, upload.as_ref(), interim).await {
                Err(SendError { request: Some(unsent), .. }) => request = *unsent,
                answered => return answered,
            }
        }
        Err(SendError::unsent(SendFault::Refused, "the peer's connections are closing", request))
    }

    /// The open connection with the fewest streams; waits for one that is being made.
    async fn pick(&self) -> Result<Rc<Line>, (SendFault, String)> {
        let inner = &self.0.inner;
        let deadline = Instant::now() + inner.config.connect_timeout;
        loop {
            let changed = inner.changed.notified();
            let open = inner.slots.iter().filter_map(Slot::candidate);
            if let Some(found) = open.min_by_key(|line| line.streams()) {
                if found.streams() < found.streams_max().min(inner.config.streams_max) {
                    return Ok(found);
                }
                return Err((SendFault::Full, "every connection has its most streams".to_owned()));
            }
            let coming =
                |slot: &Slot| matches!(slot.phase(), Phase::Idle | Phase::Connecting) || slot.is_lost();
            if !inner.slots.iter().any(coming) {
                let retired = inner.slots.iter().any(Slot::is_retired);
                let fault = if retired { SendFault::Refused } else { SendFault::Connect };
                let why = if retired { "the peer is shutting down" } else { "no connection" };
                return Err((fault, self.last_error().unwrap_or_else(|| why.to_owned())));
            }
            inner.wanted.notify_waiters();
            if tokio::time::timeout_at(deadline, changed).await.is_err() {
                return Err((SendFault::Connect, "no connection in time".to_owned()));
            }
        }
    }
}

/// From the form of [`crate::Exchange`] to that of HTTP/2: the authority goes into the URI.
pub(super) fn to_http2(request: Request<Body>, scheme: Scheme) -> Request<Body> {
    let (mut head, body) = request.into_parts();
    head.version = Version::HTTP_2;
    let host = head.headers.remove(header::HOST);
    let path = head.uri.path_and_query().cloned();
    let authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    if let Some(authority) = authority {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(scheme);
        parts.authority = Some(authority);
        parts.path_and_query = Some(path.unwrap_or_else(|| PathAndQuery::from_static("/")));
        if let Ok(uri) = Uri::from_parts(parts) {
            head.uri = uri;
        }
    }
    Request::from_parts(head, body)
}
