//! One HTTP/2 connection to a peer, by h2 itself: hyper's client passes no interim responses on, and sends each request by way of a
//! channel and a task.

use super::error::{SendError, SendFault};
use super::head::{SendTimeouts, within};
use crate::body::{Body, ByteCount, Side, Stream};
use crate::headers::{PROTOCOL, ready_for_http2};
use crate::interim::{INTERIM_MAX, Interim};
use crate::keep_alive::KeepAlive;
use crate::metrics::ProxyMetrics;
use crate::send_body::{BodyEnd, Patience, send_body};
use crate::server::STREAM_SILENCE_MAX;
use crate::turns::{TurnEnd, Turned, turned};
use crate::workers::spawn_task;
use bytes::Bytes;
use h2::client::{Builder, Connection, ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::header::{CONTENT_LENGTH, HeaderValue};
use http::{Method, Request, Response};
use http_body::Body as _;
use std::cell::{Cell, RefCell};
use std::future::{Future as _, poll_fn};
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tracing::debug;

/// The connection. It ends when nobody has it any more and its streams have ended.
#[derive(Debug)]
pub(crate) struct Line {
    requests: RefCell<SendRequest<Bytes>>,
    streams: Rc<Cell<usize>>,
    streams_max: Cell<usize>,
    retired: Cell<bool>,
    closed: Cell<bool>,
    changed: Notify,
}

/// How a connection is opened.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LineConfig {
    pub(crate) stream_window: u32,
    pub(crate) connection_window: u32,
    /// Streams at once, until the peer has said how many it takes: a burst on a new connection is no overload.
    pub(crate) streams_max: usize,
    /// How often a silent connection is asked whether it lives, and how long it may take to say so.
    pub(crate) keep_alive: Option<Duration>,
}

/// How long a peer that has answered may take nothing of the rest of what it is sent.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(60);

/// What a request gets whose connection has ended before it took it.
const CLOSING: &str = "the connection is closing";

impl Line {
    /// Opens the connection. The task that drives it ends by itself.
    pub(crate) async fn open<I>(
        io: I,
        config: LineConfig,
        metrics: &ProxyMetrics,
    ) -> Result<Rc<Self>, h2::Error>
    where
        I: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        let (io, turn) = turned(io);
        let mut builder = Builder::new();
        builder
            .initial_window_size(config.stream_window)
            .initial_connection_window_size(config.connection_window)
            .initial_max_send_streams(config.streams_max)
            .max_frame_size(64 * 1024)
            .max_header_list_size(64 * 1024)
            .max_send_buffer_size(64 * 1024)
            // Resets of requests that were given up: they must not end what others use.
            .max_local_error_reset_streams(Some(1 << 20))
            .enable_push(false);
        let (requests, mut connection) = turn.after_each(builder.handshake::<_, Bytes>(io)).await?;
        let ping = config.keep_alive.and_then(|every| Some((connection.ping_pong()?, every)));
        let keep_alive = ping.map(|(ping, every)| KeepAlive::new(ping, every, every));
        let line = Rc::new(Self {
            requests: RefCell::new(requests),
            streams: Rc::default(),
            streams_max: Cell::new(config.streams_max),
            retired: Cell::new(false),
            closed: Cell::new(false),
            changed: Notify::new(),
        });
        let driver = Driver { connection, turn, keep_alive, used_by: Rc::downgrade(&line) };
        spawn_task("connection to a peer", metrics, driver.run());
        Ok(line)
    }

    /// Requests in flight, those that are not counted left out.
    pub(crate) fn streams(&self) -> usize {
        self.streams.get()
    }

    /// As many as the peer takes.
    pub(crate) fn streams_max(&self) -> usize {
        self.streams_max.get()
    }

    /// Takes no new requests from now on.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.retired.get()
    }

    /// The peer takes no new requests, or the connection is gone.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Resolves once it is closed.
    pub(crate) async fn closed(&self) {
        loop {
            let changed = self.changed.notified();
            if self.closed.get() {
                return;
            }
            changed.await;
        }
    }

    /// Whether the peer has said that it goes away.
    fn look(&self) {
        let mut unwoken = Context::from_waker(Waker::noop());
        if matches!(self.requests.borrow_mut().poll_ready(&mut unwoken), Poll::Ready(Err(_))) {
            self.close();
        }
    }

    fn close(&self) {
        if !self.closed.replace(true) {
            self.changed.notify_waiters();
        }
    }

    /// Sends a request whose URI has scheme and authority, and waits for the response's head. The stream is reset when the future is
    /// dropped, or the response's body before its end. The error has the request when it never left: another connection may do.
    pub(crate) async fn send(
        &self,
        request: Request<Body>,
        timeouts: SendTimeouts,
        upload: Option<&ByteCount>,
        interim: &Interim,
    ) -> Result<Response<Body>, SendError> {
        let counted = Counted::new(&self.streams);
        let answer = within(timeouts.head, upload, self.exchange(request, timeouts.body_idle, interim)).await;
        let response =
            answer.unwrap_or_else(|| Err(SendError::sent(SendFault::Timeout, "no response head in time")))?;
        Ok(response.map(|body| body.holding(counted)))
    }

    /// The same, uncounted and without a bound on the wait for the head.
    pub(crate) async fn exchange(
        &self,
        request: Request<Body>,
        body_idle: Option<Duration>,
        interim: &Interim,
    ) -> Result<Response<Body>, SendError> {
        let mut requests = self.requests.borrow().clone();
        if poll_fn(|context| requests.poll_ready(context)).await.is_err() {
            self.close();
            return Err(SendError::unsent(SendFault::Refused, CLOSING, request));
        }
        let (mut head, body) = request.into_parts();
        let is_bytes = head.headers.contains_key(PROTOCOL);
        let patience = if is_bytes { STREAM_SILENCE_MAX } else { UPLOAD_PATIENCE };
        complete(&mut head, &body);
        let ends = body.is_end_stream();
        let sent = requests.send_request(Request::from_parts(head, ()), ends);
        let (mut response, stream) = sent.map_err(|error| SendError::of_stream(&error))?;
        drop(requests);
        let upload = if ends { None } else { Some(Upload::begin(stream, body).await) };
        let answered = answer(&mut response, interim).await;
        let response = answered.map_err(|error| {
            let failed = upload.as_ref().is_some_and(Upload::failed);
            if failed { SendError::of_body(&error) } else { SendError::of_stream(&error) }
        })?;
        let (head, received) = response.into_parts();
        let let_go = {
            let streams = Rc::clone(&self.streams);
            move |upload: Upload| upload.let_go(patience, &streams)
        };
        let body = received_body(received, &head.headers, upload.map(|upload| (upload, let_go)), body_idle);
        Ok(Response::from_parts(head, body))
    }
}

/// What drives a connection.
struct Driver<I> {
    connection: Connection<Turned<I>, Bytes>,
    turn: TurnEnd<I>,
    keep_alive: Option<KeepAlive>,
    used_by: Weak<Line>,
}

impl<I: AsyncRead + AsyncWrite + Unpin> Driver<I> {
    async fn run(mut self) {
        if let Err(error) = poll_fn(|context| self.poll(context)).await {
            debug!(%error, "a connection to a peer ended");
        }
    }

    /// One turn: what has arrived is taken, and what was written goes out.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let polled = Pin::new(&mut self.connection).poll(context);
        self.turn.flush(context);
        if let Some(line) = self.used_by.upgrade() {
            line.streams_max.set(self.connection.max_concurrent_send_streams().max(1));
            line.look();
        }
        if let Some(keep_alive) = &mut self.keep_alive
            && keep_alive.poll(context, || self.turn.heard()).is_ready()
        {
            debug!("a peer does not answer pings");
            return Poll::Ready(Ok(()));
        }
        polled
    }
}

impl<I> Drop for Driver<I> {
    /// However it ended: nobody is to wait for an answer on it.
    fn drop(&mut self) {
        if let Some(line) = self.used_by.upgrade() {
            line.close();
        }
    }
}

/// What every request has, and what HTTP/2 must not have.
fn complete(head: &mut http::request::Parts, body: &Body) {
    ready_for_http2(&mut head.headers);
    let length = body.size_hint().exact();
    let says_length =
        |length: u64| length > 0 || matches!(head.method, Method::POST | Method::PUT | Method::PATCH);
    if !head.headers.contains_key(CONTENT_LENGTH)
        && let Some(length) = length.filter(|length| says_length(*length))
    {
        head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// Waits for the head, and passes on what comes before it.
async fn answer(response: &mut ResponseFuture, interim: &Interim) -> Result<Response<RecvStream>, h2::Error> {
    let mut passed = 0;
    poll_fn(|context| {
        while interim.is_heard()
            && passed < INTERIM_MAX
            && let Poll::Ready(Some(Ok(early))) = response.poll_informational(context)
        {
            passed += 1;
            interim.pass(early.status(), early.headers());
        }
        Pin::new(&mut *response).poll(context)
    })
    .await
}

fn received_body(
    received: RecvStream,
    fields: &http::HeaderMap,
    upload: Option<(Upload, impl FnOnce(Upload) + 'static)>,
    idle_timeout: Option<Duration>,
) -> Body {
    let mut stream = Stream::new(received, fields);
    if stream.is_end_stream() {
        if let Some((upload, let_go)) = upload {
            let_go(upload);
        }
        return Body::empty();
    }
    if let Some((upload, let_go)) = upload {
        stream.at_end(|| let_go(upload));
    }
    Body::of_stream(stream, Side::Upstream, idle_timeout)
}

/// A request's body on its way. Dropping it gives it up; the peer may answer before it has all of it, and still want the rest.
struct Upload {
    /// Sends what was not here at once; none once it may go on by itself.
    task: Option<AbortHandle>,
    failed: Rc<Cell<bool>>,
    goes_on: Rc<GoesOn>,
}

/// What bounds an upload whose response has come to its end.
#[derive(Default)]
struct GoesOn {
    patience: Patience,
    counted: Cell<Option<Counted>>,
    ended: Cell<bool>,
}

impl GoesOn {
    fn end(&self) {
        self.ended.set(true);
        drop(self.counted.take());
    }
}

impl Upload {
    /// Sends what is here at once; only the rest needs a task of its own.
    async fn begin(mut stream: SendStream<Bytes>, mut body: Body) -> Self {
        let failed = Rc::<Cell<bool>>::default();
        let goes_on = Rc::<GoesOn>::default();
        let (noted, going) = (Rc::clone(&failed), Rc::clone(&goes_on));
        let mut sending = Box::pin(async move {
            let end = send_body(&mut stream, &mut body, &going.patience).await;
            noted.set(end == BodyEnd::Failed);
            going.end();
        });
        let begun = poll_fn(|context| Poll::Ready(sending.as_mut().poll(context))).await;
        let task = begun.is_pending().then(|| tokio::task::spawn_local(sending).abort_handle());
        Self { task, failed, goes_on }
    }

    /// Whether it was the body that failed.
    fn failed(&self) -> bool {
        self.failed.get()
    }

    /// It goes on by itself: still a stream of the connection, and no longer than the peer takes something of it.
    fn let_go(mut self, patience: Duration, streams: &Rc<Cell<usize>>) {
        self.task = None;
        if !self.goes_on.ended.get() {
            self.goes_on.counted.set(Some(Counted::new(streams)));
            self.goes_on.patience.set(patience);
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

/// Counts one stream while it lives.
struct Counted(Rc<Cell<usize>>);

impl Counted {
    fn new(streams: &Rc<Cell<usize>>) -> Self {
        streams.set(streams.get() + 1);
        Self(Rc::clone(streams))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
