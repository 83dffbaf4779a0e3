//! HTTP/2 in plain text to an instance on loopback, with prior knowledge.

use super::error::{SendError, SendFault, chain};
use super::h2peer::{CONNECTION_WINDOW_MAX, to_http2};
use super::head::{SendTimeouts, count_upload};
use super::line::{Line, LineConfig};
use crate::body::Body;
use crate::interim::Interim;
use crate::metrics::ProxyMetrics;
use http::uri::Scheme;
use http::{Request, Response};
use std::cell::RefCell;
use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpStream;

/// What may be unread of one response, bytes.
const STREAM_WINDOW: u32 = 128 * 1024;
/// Sends of one request on connections that turn out to be closing.
const SENDS_MAX: usize = 3;

/// How an instance that speaks HTTP/2 is reached.
#[derive(Debug, Clone)]
pub struct H2cConfig {
    /// Where.
    pub address: SocketAddr,
    /// Most connections at once. Another is made when all have as many streams as the instance takes.
    pub connections_max: usize,
    /// Most streams on one connection, if the instance takes as many.
    pub streams_max: usize,
    /// For TCP and HTTP/2 together.
    pub connect_timeout: Duration,
}

impl H2cConfig {
    /// Defaults for an instance on this machine.
    #[must_use]
    pub fn local(address: SocketAddr) -> Self {
        Self { address, connections_max: 8, streams_max: 1000, connect_timeout: Duration::from_secs(1) }
    }
}

/// Connections to one address, made when they are needed. Clones share them. Stays on its worker.
#[derive(Clone)]
pub struct H2cPool(Rc<Pool>);

struct Pool {
    config: H2cConfig,
    metrics: ProxyMetrics,
    open: RefCell<Vec<Rc<Line>>>,
    /// Requests that find no connection wait for the one that is being made.
    connecting: tokio::sync::Mutex<()>,
}

impl fmt::Debug for H2cPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H2cPool")
            .field("address", &self.0.config.address)
            .field("open", &self.open())
            .finish()
    }
}

impl H2cPool {
    /// No connection yet.
    #[must_use]
    pub fn new(config: H2cConfig, metrics: ProxyMetrics) -> Self {
        let (open, connecting) = (RefCell::default(), tokio::sync::Mutex::default());
        Self(Rc::new(Pool { config, metrics, open, connecting }))
    }

    /// Connections that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.0.open.borrow().iter().filter(|line| !line.is_closed()).count()
    }

    /// Sends a request (in the form of [`crate::Exchange`]) and waits for the response's head; what comes before it is passed to
    /// `interim`. The stream is reset when the future is dropped, or the response's body before its end.
    ///
    /// # Errors
    /// [`SendError::sent`] says whether the instance may have processed the request.
    pub async fn send(
        &self,
        request: Request<Body>,
        timeouts: SendTimeouts,
        interim: &Interim,
    ) -> Result<Response<Body>, SendError> {
        let mut request = to_http2(request, Scheme::HTTP);
        let upload = count_upload(&mut request);
        for _ in 0..SENDS_MAX {
            let line = match self.0.connection().await {
                Ok(line) => line,
                Err((fault, detail)) => return Err(SendError::unsent(fault, detail, request)),
            };
            match line.send(request, timeouts, upload.as_ref(), interim).await {
                Err(SendError { request: Some(unsent), .. }) => request = *unsent,
                answered => return answered,
            }
        }
        Err(SendError::unsent(SendFault::Refused, "the instance's connections are closing", request))
    }
}

impl Pool {
    /// The connection with the fewest streams, if it takes another.
    fn free(&self) -> Option<Rc<Line>> {
        let mut open = self.open.borrow_mut();
        open.retain(|line| !line.is_closed());
        let least = open.iter().min_by_key(|line| line.streams())?;
        let max = least.streams_max().min(self.config.streams_max);
        (least.streams() < max).then(|| Rc::clone(least))
    }

    async fn connection(&self) -> Result<Rc<Line>, (SendFault, String)> {
        if let Some(free) = self.free() {
            return Ok(free);
        }
        let _alone = self.connecting.lock().await;
        if let Some(free) = self.free() {
            return Ok(free);
        }
        if self.open.borrow().len() >= self.config.connections_max {
            return Err((SendFault::Full, "every connection has its most streams".to_owned()));
        }
        let made = tokio::time::timeout(self.config.connect_timeout, self.connect()).await;
        let made = made.unwrap_or_else(|_elapsed| Err("no connection in time".to_owned()));
        let connection = made.map_err(|detail| {
            self.metrics.upstream_connect_errors.inc();
            (SendFault::Connect, detail)
        })?;
        self.metrics.upstream_connects.inc();
        self.open.borrow_mut().push(Rc::clone(&connection));
        Ok(connection)
    }

    async fn connect(&self) -> Result<Rc<Line>, String> {
        let tcp = TcpStream::connect(self.config.address).await.map_err(|error| error.to_string())?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let streams = u32::try_from(self.config.streams_max).unwrap_or(u32::MAX);
        let config = LineConfig {
            stream_window: STREAM_WINDOW,
            // Room for every stream: a few readers that have stopped must not hold up the others.
            connection_window: STREAM_WINDOW.saturating_mul(streams).min(CONNECTION_WINDOW_MAX),
            streams_max: self.config.streams_max,
            keep_alive: None,
        };
        Line::open(tcp, config, &self.metrics).await.map_err(|error| chain(&error))
    }
}
