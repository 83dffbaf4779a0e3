//! HTTP/1.1 connections to one address, used again.

use super::error::{SendError, SendFault, chain};
use super::head::{SendTimeouts, count_upload, within};
use crate::body::{Body, Side};
use crate::interim::{INTERIM_MAX, Interim};
use crate::metrics::ProxyMetrics;
use crate::replay::Replay;
use crate::workers::spawn_task;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::ext::on_informational;
use hyper_util::rt::TokioIo;
use std::cell::{Cell, RefCell};
use std::future::{Future as _, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tracing::debug;

/// An attempt to connect to a program on this machine that has got no answer for so long was dropped.
const DIAL_AGAIN: Duration = Duration::from_millis(100);

/// How an address is reached.
#[derive(Debug, Clone)]
pub struct H1Config {
    /// Where.
    pub address: SocketAddr,
    /// The most connections, idle or not.
    pub connections_max: usize,
    /// How long one may be idle. Those that were used last are used again first, so that what was needed for a burst ages.
    pub idle_timeout: Duration,
    /// A connection that was idle for longer is not used for a request that may not be sent twice:
    /// its server may be closing it right now.
    pub trusted_idle: Duration,
    /// For TCP.
    pub connect_timeout: Duration,
}

impl H1Config {
    /// Defaults for an instance beside us.
    #[must_use]
    pub fn local(address: SocketAddr) -> Self {
        Self {
            address,
            connections_max: 1024,
            idle_timeout: Duration::from_secs(30),
            trusted_idle: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
        }
    }
}

/// The connections. Clones share them. Stays on its worker.
#[derive(Debug, Clone)]
pub struct H1Pool(Rc<Pool>);

#[derive(Debug)]
struct Pool {
    config: H1Config,
    metrics: ProxyMetrics,
    /// Used most recently last, so that the surplus ages at the front.
    idle: RefCell<Vec<Idle>>,
    open: Rc<Cell<usize>>,
}

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Body>,
    _open: OpenCount,
}

#[derive(Debug)]
struct OpenCount(Rc<Cell<usize>>);

impl Drop for OpenCount {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl H1Pool {
    /// No connection yet. Must be called on a worker.
    #[must_use]
    pub fn new(config: H1Config, metrics: ProxyMetrics) -> Self {
        let pool = Rc::new(Pool { config, metrics, idle: RefCell::default(), open: Rc::default() });
        let weak = Rc::downgrade(&pool);
        let every = pool.config.idle_timeout / 2;
        spawn_task("idle connections", &pool.metrics, async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(pool) = weak.upgrade() else {
                    return;
                };
                pool.drop_aged();
            }
        });
        Self(pool)
    }

    /// Connections that are open.
    #[must_use]
    pub fn open(&self) -> usize {
        self.0.open.get()
    }

    /// Connections that wait for a request.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.0.idle.borrow().len()
    }

    /// Sends a request (in the form of [`crate::Exchange`]) and waits for the response's head; what comes before it is passed
    /// to `interim`. A kept
    /// connection that turns out to be closed is replaced by a fresh one, once, where that can't
    /// repeat the request or the method is safe.
    ///
    /// # Errors
    /// [`SendError::sent`] says whether the request may have been processed.
    pub async fn send(
        &self,
        mut request: Request<Body>,
        timeouts: SendTimeouts,
        interim: &Interim,
    ) -> Result<Response<Body>, SendError> {
        *request.version_mut() = Version::HTTP_11;
        let safe = is_safe(request.method());
        if let Some(connection) = self.0.take_idle(safe) {
            let spare = safe.then(|| Spare::of(&mut request));
            let error = match self.exchange(connection, request, timeouts, interim).await {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            let again = match (error.request, spare) {
                (Some(unsent), _) => Some(*unsent),
                (None, Some(spare)) if error.fault == SendFault::Reset => spare.take(),
                (None, _) => None,
            };
            let Some(again) = again else {
                return Err(SendError { request: None, ..error });
            };
            self.0.metrics.stale_retries.inc();
            request = again;
        }
        match self.connect().await {
            Ok(connection) => self.exchange(connection, request, timeouts, interim).await,
            Err((fault, detail)) => Err(SendError::unsent(fault, detail, request)),
        }
    }

    async fn connect(&self) -> Result<Connection, (SendFault, String)> {
        let config = &self.0.config;
        if self.0.open.get() >= config.connections_max && !self.0.drop_oldest() {
            return Err((SendFault::Full, "as many connections as there may be".to_owned()));
        }
        self.0.open.set(self.0.open.get() + 1);
        let open = OpenCount(Rc::clone(&self.0.open));
        let failed = |detail: String| {
            self.0.metrics.upstream_connect_errors.inc();
            (SendFault::Connect, detail)
        };
        let tcp = tokio::time::timeout(config.connect_timeout, dial(config.address))
            .await
            .map_err(|_elapsed| failed("no connection in time".to_owned()))?
            .map_err(|error| failed(error.to_string()))?;
        tcp.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
        let (sender, connection) = http1::Builder::new()
            .max_headers(100)
            .max_buf_size(64 * 1024)
            .handshake(TokioIo::new(tcp))
            .await
            .map_err(|error| failed(chain(&error)))?;
        self.0.metrics.upstream_connects.inc();
        spawn_task("instance connection", &self.0.metrics, async move {
            if let Err(error) = connection.await {
                debug!(error = chain(&error), "a connection to the instance ended");
            }
        });
        Ok(Connection { sender, _open: open })
    }

    async fn exchange(
        &self,
        mut connection: Connection,
        mut request: Request<Body>,
        timeouts: SendTimeouts,
        interim: &Interim,
    ) -> Result<Response<Body>, SendError> {
        let upload = count_upload(&mut request);
        let early = interim.is_heard().then(|| Early::of(&mut request));
        let mut answer = pin!(connection.sender.try_send_request(request));
        let answer = poll_fn(|context| {
            if let Some(early) = &early {
                early.pass(interim, context);
            }
            answer.as_mut().poll(context)
        });
        let Some(answer) = within(timeouts.head, upload.as_ref(), answer).await else {
            return Err(SendError::sent(SendFault::Timeout, "no response head in time"));
        };
        let response = answer.map_err(|mut failed| match failed.take_message() {
            Some(request) => SendError::unsent(SendFault::Reset, "the connection had ended", request),
            None => SendError::from_hyper(failed.error()),
        })?;
        if response.status().is_informational() {
            // `101`, which nobody has asked for: what follows is no HTTP.
            return Err(SendError::sent(SendFault::Protocol, "the protocol was changed unasked"));
        }
        let pool = Rc::downgrade(&self.0);
        // Ready again once both bodies have ended; an error when it can't be used again.
        tokio::task::spawn_local(async move {
            if connection.sender.ready().await.is_ok()
                && let Some(pool) = pool.upgrade()
            {
                pool.put_idle(connection);
            }
        });
        Ok(response.map(|body| Body::incoming(body, Side::Upstream, timeouts.body_idle)))
    }
}

impl Pool {
    fn take_idle(&self, safe: bool) -> Option<Connection> {
        let mut idle = self.idle.borrow_mut();
        while let Some(found) = idle.pop() {
            let age = found.since.elapsed();
            if !safe && age > self.config.trusted_idle {
                // The others are older still.
                idle.push(found);
                return None;
            }
            if age <= self.config.idle_timeout && found.connection.sender.is_ready() {
                return Some(found.connection);
            }
        }
        None
    }

    fn put_idle(&self, connection: Connection) {
        self.idle.borrow_mut().push(Idle { connection, since: Instant::now() });
    }

    fn drop_oldest(&self) -> bool {
        let mut idle = self.idle.borrow_mut();
        let some = !idle.is_empty();
        if some {
            idle.remove(0);
        }
        some
    }

    fn drop_aged(&self) {
        self.idle.borrow_mut().retain(|idle| {
            idle.since.elapsed() <= self.config.idle_timeout && !idle.connection.sender.is_closed()
        });
    }
}

/// What comes before a response. hyper tells of it where the connection is driven, which is another task.
#[derive(Default)]
struct Early(Arc<Mutex<Heard>>);

#[derive(Default)]
struct Heard {
    responses: Vec<(StatusCode, HeaderMap)>,
    count: usize,
    /// Whoever waits for the response.
    waker: Option<Waker>,
}

impl Early {
    fn of(request: &mut Request<Body>) -> Self {
        let early = Self::default();
        let heard = Arc::clone(&early.0);
        on_informational(request, move |response| {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            if heard.count == INTERIM_MAX {
                return;
            }
            heard.count += 1;
            heard.responses.push((response.status(), response.headers().clone()));
            if let Some(waker) = heard.waker.take() {
                waker.wake();
            }
        });
        early
    }

    fn pass(&self, interim: &Interim, context: &Context<'_>) {
        let responses = {
            let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            heard.waker = Some(context.waker().clone());
            std::mem::take(&mut heard.responses)
        };
        for (status, fields) in responses {
            interim.pass(status, &fields);
        }
    }
}

/// Connects. Many programs let few connections wait; in a burst the kernel drops what is too many, and asks again only after a
/// second. The program has long made room by then, so that a new attempt comes first.
async fn dial(address: SocketAddr) -> std::io::Result<TcpStream> {
    loop {
        if let Ok(connected) = tokio::time::timeout(DIAL_AGAIN, TcpStream::connect(address)).await {
            return connected;
        }
    }
}

/// What is needed to send a request a second time.
struct Spare {
    head: http::request::Parts,
    body: Replay,
}

impl Spare {
    /// Splits the request's body so that it can be read twice.
    fn of(request: &mut Request<Body>) -> Self {
        let (head, body) = std::mem::take(request).into_parts();
        let body = Replay::new(body);
        let first = body.body().unwrap_or_default();
        *request = Request::from_parts(head.clone(), first);
        Self { head, body }
    }

    fn take(self) -> Option<Request<Body>> {
        let body = self.body.body()?;
        Some(Request::from_parts(self.head, body))
    }
}

fn is_safe(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS)
}
