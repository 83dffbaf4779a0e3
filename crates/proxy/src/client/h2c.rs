//! HTTP/2 in plain text to an instance on loopback, with prior knowledge.

use super::error::{SendError, SendFault, chain};
use super::h2peer::{StreamCount, to_http2};
use super::head::{SendTimeouts, count_upload, within};
use super::slot::LocalExecutor;
use crate::body::{Body, Side};
use crate::metrics::ProxyMetrics;
use crate::workers::spawn_task;
use http::uri::Scheme;
use http::{Request, Response};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::TcpStream;
use tracing::debug;

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
    open: RefCell<Vec<Connection>>,
    /// Requests that find no connection wait for the one that is being made.
    connecting: tokio::sync::Mutex<()>,
}

#[derive(Clone)]
struct Connection {
    sender: SendRequest<Body>,
    streams: Rc<Cell<usize>>,
    streams_max: Rc<Cell<usize>>,
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
        self.0.open.borrow().iter().filter(|open| !open.sender.is_closed()).count()
    }

    /// Sends a request (in the form of [`crate::Exchange`]) and waits for the response's head. The stream is
    /// reset when the future, or the response's body, is dropped.
    ///
    /// # Errors
    /// [`SendError::sent`] says whether the instance may have processed the request.
    pub async fn send(
        &self,
        request: Request<Body>,
        timeouts: SendTimeouts,
    ) -> Result<Response<Body>, SendError> {
        let mut request = to_http2(request, Scheme::HTTP);
        let upload = count_upload(&mut request);
        for _ in 0..SENDS_MAX {
            let mut connection = match self.0.connection().await {
                Ok(connection) => connection,
                Err((fault, detail)) => return Err(SendError::unsent(fault, detail, request)),
            };
            let stream = StreamCount::new(&connection.streams);
            let answer = connection.sender.try_send_request(request);
            let Some(answer) = within(timeouts.head, upload.as_ref(), answer).await else {
                return Err(SendError::sent(SendFault::Timeout, "no response head in time"));
            };
            match answer {
                Ok(response) => {
                    return Ok(response.map(|body| {
                        Body::incoming(body, Side::Upstream, timeouts.body_idle).holding(stream)
                    }));
                }
                // The connection ended before hyper took the request: another may do.
                Err(mut failed) => match failed.take_message() {
                    Some(whole) => request = whole,
                    None => return Err(SendError::from_hyper(failed.error())),
                },
            }
        }
        Err(SendError::unsent(SendFault::Refused, "the instance's connections are closing", request))
    }
}

impl Pool {
    /// The connection with the fewest streams, if it takes another.
    fn free(&self) -> Option<Connection> {
        let mut open = self.open.borrow_mut();
        open.retain(|connection| !connection.sender.is_closed());
        let least = open.iter().min_by_key(|connection| connection.streams.get())?;
        let max = least.streams_max.get().min(self.config.streams_max);
        (least.streams.get() < max).then(|| least.clone())
    }

    async fn connection(&self) -> Result<Connection, (SendFault, String)> {
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
        self.open.borrow_mut().push(connection.clone());
        Ok(connection)
    }

    async fn connect(&self) -> Result<Connection, String> {
        let tcp = TcpStream::connect(self.config.address).await.map_err(|error| error.to_string())?;
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let streams = u32::try_from(self.config.streams_max).unwrap_or(u32::MAX);
        let (sender, connection) = http2::Builder::new(LocalExecutor)
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            // Room for every stream: a few readers that have stopped must not hold up the others.
            .initial_connection_window_size(STREAM_WINDOW.saturating_mul(streams).min((1 << 31) - 1))
            .initial_max_send_streams(self.config.streams_max)
            .max_header_list_size(64 * 1024)
            .max_send_buf_size(64 * 1024)
            .max_local_error_reset_streams(1 << 20)
            .handshake(TokioIo::new(tcp))
            .await
            .map_err(|error| chain(&error))?;
        let streams_max = Rc::new(Cell::new(self.config.streams_max));
        let told = Rc::clone(&streams_max);
        spawn_task("instance connection", &self.metrics, async move {
            let mut connection = pin!(connection);
            let ended = poll_fn(|context| {
                let polled = Pin::as_mut(&mut connection).poll(context);
                told.set(connection.current_max_send_streams().max(1));
                polled
            });
            if let Err(error) = ended.await {
                debug!(error = chain(&error), "a connection to the instance ended");
            }
        });
        Ok(Connection { sender, streams: Rc::default(), streams_max })
    }
}
