//! The life of one connection.

use super::check::{Refusal, normalize};
use super::framing::{Findings, Followed};
use super::limits::ServerLimits;
use super::patience::Patient;
use super::unread::{Streams, Unread};
use crate::answer;
use crate::body::{Body, Side};
use crate::exchange::{ConnectionInfo, Exchange, Handler};
use crate::metrics::ProxyMetrics;
use crate::turns::turned;
use crate::workers::panic_text;
use atoll_model::{Hop, Reason};
use atoll_process::Drain;
use futures_util::FutureExt as _;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::metrics::gauge::Gauge;
use std::cell::RefCell;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::panic::AssertUnwindSafe;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::Instant;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::{debug, error};

/// What ALPN, or the lack of it, has said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1 (and 1.0).
    H1,
    /// HTTP/2.
    H2,
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectionEnd {
    /// The peer closed it.
    Closed,
    /// All that was in flight at the start of the drain has finished.
    Drained,
    /// It still had work at the drain's deadline.
    Forced,
    /// Its peer's identity was denied.
    Denied,
    /// The peer took nothing of its responses for too long.
    Stalled,
    /// It broke, or the peer broke the protocol.
    Failed,
}

/// Serves one connection to its end. When `drain` starts, what is in flight is finished and nothing
/// new is taken (`GOAWAY`, `Connection: close`); when it is forced, the connection is dropped.
pub async fn serve_connection<I, H>(
    io: I,
    version: HttpVersion,
    info: Arc<ConnectionInfo>,
    limits: &ServerLimits,
    handler: Rc<H>,
    metrics: &ProxyMetrics,
    drain: Drain,
) -> ConnectionEnd
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
    H: Handler,
{
    let io = Patient::new(io, limits.take_timeout);
    let (io, framing) = match version {
        HttpVersion::H1 => Followed::new(io),
        HttpVersion::H2 => (Followed::not(io), Findings::default()),
    };
    let unread = Unread::default();
    let server = Rc::new(Server {
        info,
        framing,
        unread: unread.clone(),
        limits: limits.clone(),
        handler,
        metrics: metrics.clone(),
    });
    let service = service_fn(move |request| {
        let server = Rc::clone(&server);
        async move { Ok::<_, Infallible>(server.answer(request).await) }
    });
    let driven = async {
        match version {
            HttpVersion::H1 => {
                let io = TokioIo::new(io);
                let connection = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(limits.head_timeout)
                    .max_headers(limits.headers_max)
                    .max_header_size(limits.head_bytes_max)
                    .max_buf_size(64 * 1024)
                    .half_close(false)
                    .serve_connection(io, service);
                let each_turn = |_: &mut Context<'_>| {};
                let begin = |connection: Pin<&mut http1::Connection<_, _>>| connection.graceful_shutdown();
                drive(connection, each_turn, begin, drain, (limits.hop, metrics)).await
            }
            HttpVersion::H2 => {
                let (io, turn) = turned(io);
                let io = TokioIo::new(io);
                let connection = http2::Builder::new(Streams)
                    .timer(TokioTimer::new())
                    .max_concurrent_streams(limits.streams_max)
                    .initial_stream_window_size(limits.stream_window)
                    .initial_connection_window_size(limits.connection_window)
                    .max_frame_size(limits.frame_max)
                    .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
                    .max_send_buf_size(limits.send_buffer_max)
                    .max_pending_accept_reset_streams(limits.pending_resets_max)
                    .max_local_error_reset_streams(limits.local_resets_max)
                    .keep_alive_interval(limits.keep_alive)
                    .keep_alive_timeout(limits.keep_alive / 2)
                    .serve_connection(io, service);
                let each_turn = |context: &mut Context<'_>| turn.flush(context);
                let begin = |connection: Pin<&mut http2::Connection<_, _, _>>| connection.graceful_shutdown();
                drive(connection, each_turn, begin, drain, (limits.hop, metrics)).await
            }
        }
    };
    tokio::select! {
        biased;
        end = driven => end,
        () = unread.all_stalled(limits.take_timeout) => {
            metrics.connections_stalled.inc();
            ConnectionEnd::Stalled
        }
    }
}

/// `each_turn` is called when the connection has nothing more to do just now.
async fn drive<C>(
    connection: C,
    each_turn: impl Fn(&mut Context<'_>),
    begin_shutdown: impl FnOnce(Pin<&mut C>),
    drain: Drain,
    (hop, metrics): (Hop, &ProxyMetrics),
) -> ConnectionEnd
where
    C: Future<Output = Result<(), hyper::Error>>,
{
    let connection = pin!(connection);
    let connection = RefCell::new(connection);
    let turning = || {
        poll_fn(|context| {
            let polled = connection.borrow_mut().as_mut().poll(context);
            each_turn(context);
            polled
        })
    };
    let ended = |outcome: Result<(), hyper::Error>, well| match outcome {
        Ok(()) => well,
        Err(error) => {
            // hyper has answered these heads by itself.
            if error.is_parse() {
                let large = error.is_parse_too_large();
                metrics.failed(hop, if large { Reason::HeadTooLarge } else { Reason::BadRequest });
            }
            debug!(%error, "a connection ended in an error");
            ConnectionEnd::Failed
        }
    };
    tokio::select! {
        // What has arrived already is served, also when the drain began before we first looked.
        biased;
        outcome = turning() => return ended(outcome, ConnectionEnd::Closed),
        () = drain.draining() => {}
    }
    begin_shutdown(connection.borrow_mut().as_mut());
    tokio::select! {
        biased;
        outcome = turning() => ended(outcome, ConnectionEnd::Drained),
        () = drain.forced() => {
            metrics.connections_cut.inc();
            ConnectionEnd::Forced
        }
    }
}

struct Server<H> {
    framing: Findings,
    unread: Unread,
    info: Arc<ConnectionInfo>,
    limits: ServerLimits,
    handler: Rc<H>,
    metrics: ProxyMetrics,
}

/// Counts a request while it is answered, and until its response's body is gone.
struct InFlight(Gauge);

impl InFlight {
    fn new(metrics: &ProxyMetrics) -> Self {
        metrics.in_flight.inc();
        Self(metrics.in_flight.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl<H: Handler> Server<H> {
    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let started = Instant::now();
        let in_flight = InFlight::new(&self.metrics);
        let _waits = self.unread.asked();
        let (mut head, body) = request.into_parts();
        let checked = if self.framing.next() {
            Err(Refusal { reason: Reason::BadRequest, close: true })
        } else {
            normalize(&mut head)
        };
        let body = Body::incoming(body, Side::Client, Some(self.limits.body_idle_timeout));
        let request = Request::from_parts(head, body);
        let exchange = Exchange { request, connection: Arc::clone(&self.info), started };
        let response = match checked {
            Err(refusal) => self.refuse(Some(exchange), refusal),
            Ok(()) => self.handle(exchange).await,
        };
        self.metrics.answered(response.status().as_u16());
        self.metrics.head_seconds.observe(started.elapsed().as_secs_f64());
        self.unread.watch(response.map(|body| body.holding(in_flight)))
    }

    async fn handle(&self, exchange: Exchange) -> Response<Body> {
        match AssertUnwindSafe(self.handler.handle(exchange)).catch_unwind().await {
            Ok(response) => response,
            Err(panic) => {
                self.metrics.panics.inc();
                error!(panic = panic_text(panic.as_ref()), "a request's handler panicked");
                self.refuse(None, Refusal { reason: Reason::Internal, close: false })
            }
        }
    }

    fn refuse(&self, exchange: Option<Exchange>, refusal: Refusal) -> Response<Body> {
        let (hop, reason) = (self.limits.hop, refusal.reason);
        self.metrics.failed(hop, reason);
        let handled = exchange.and_then(|exchange| self.handler.refused(exchange, reason));
        let mut response = match handled {
            Some(response) => response,
            None if self.limits.internal => answer::internal(hop, reason, reason == Reason::Internal),
            None => answer::error_page(hop, reason, &HeaderMap::new(), ""),
        };
        if refusal.close && self.info.tls.as_ref().is_none_or(|tls| tls.alpn.as_deref() != Some(b"h2")) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
