//! HTTP/2, by h2 itself: hyper's server can't send interim responses, does not tell which streams a client leaves unread, and runs each
//! stream in a task of its own, also where the answer is there at once.

use super::answering::{Answering, InFlight};
use super::serve::ConnectionEnd;
use crate::body::{Body, Side, Stream};
use crate::exchange::Handler;
use crate::headers::ready_for_http2;
use crate::interim::{Back, Interim};
use crate::keep_alive::KeepAlive;
use crate::send_body::{BodyEnd, Patience, send_body};
use crate::server::TakeWithin;
use crate::turns::{TurnEnd, Turned, turned};
use crate::workers::spawn_task;
use atoll_process::Drain;
use atoll_process::clock::unix_ms;
use bytes::Bytes;
use h2::RecvStream;
use h2::server::{Builder, Connection, SendResponse};
use http::header::{CONTENT_LENGTH, DATE, EXPECT, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use std::cell::{Cell, RefCell};
use std::future::{Future as _, poll_fn};
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tracing::debug;

pub(super) async fn serve<I, H>(io: I, answering: Rc<Answering<H>>, drain: Drain) -> ConnectionEnd
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
    H: Handler,
{
    let (limits, metrics) = (answering.limits.clone(), answering.metrics.clone());
    let ended = |outcome: Result<(), h2::Error>, well| match outcome {
        Ok(()) => well,
        Err(error) => {
            debug!(%error, "a connection ended in an error");
            ConnectionEnd::Failed
        }
    };
    let (io, turn) = turned(io);
    let handshake = turn.after_each(builder(&answering).handshake::<_, Bytes>(io));
    let mut connection = match tokio::time::timeout(limits.head_timeout, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return ended(Err(error), ConnectionEnd::Closed),
        Err(_elapsed) => return ConnectionEnd::Failed,
    };
    let keep_alive =
        connection.ping_pong().map(|ping| KeepAlive::new(ping, limits.keep_alive, limits.keep_alive / 2));
    let streams = Rc::new(Streams { answering, takes: Takes::default() });
    let mut driver = Driver { connection, turn, keep_alive, streams: Rc::clone(&streams), closes: false };
    let driven = async {
        tokio::select! {
            // What has arrived already is served, also when the drain began before we first looked.
            biased;
            outcome = poll_fn(|cx| driver.poll(cx)) => return ended(outcome, ConnectionEnd::Closed),
            () = drain.draining() => {}
        }
        driver.connection.graceful_shutdown();
        tokio::select! {
            biased;
            outcome = poll_fn(|cx| driver.poll(cx)) => ended(outcome, ConnectionEnd::Drained),
            () = drain.forced() => {
                metrics.connections_cut.inc();
                ConnectionEnd::Forced
            }
        }
    };
    tokio::select! {
        biased;
        end = driven => end,
        () = streams.takes.all_stalled.notified() => {
            metrics.connections_stalled.inc();
            ConnectionEnd::Stalled
        }
    }
}

fn builder<H>(answering: &Answering<H>) -> Builder {
    let limits = &answering.limits;
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(limits.streams_max)
        .initial_window_size(limits.stream_window)
        .initial_connection_window_size(limits.connection_window)
        .max_frame_size(limits.frame_max)
        .max_header_list_size(u32::try_from(limits.head_bytes_max).unwrap_or(u32::MAX))
        .max_send_buffer_size(limits.send_buffer_max)
        .max_pending_accept_reset_streams(limits.pending_resets_max)
        .max_local_error_reset_streams(Some(limits.local_resets_max));
    builder
}

/// A connection, and what is done at each of its turns.
struct Driver<I, H> {
    connection: Connection<Turned<I>, Bytes>,
    turn: TurnEnd<I>,
    keep_alive: Option<KeepAlive>,
    streams: Rc<Streams<H>>,
    /// It was idle for too long.
    closes: bool,
}

impl<I, H> Driver<I, H>
where
    I: AsyncRead + AsyncWrite + Unpin,
    H: Handler,
{
    /// One turn: all that has arrived is taken, and what was written goes out.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        let polled = self.poll_streams(context);
        self.turn.flush(context);
        polled
    }

    fn poll_streams(&mut self, context: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        if let Some(keep_alive) = &mut self.keep_alive
            && keep_alive.poll(context, || self.turn.heard()).is_ready()
        {
            debug!("a peer does not answer pings");
            self.keep_alive = None;
            self.connection.abrupt_shutdown(h2::Reason::NO_ERROR);
        }
        // Pings are answered, and so looked at, more often than that.
        if !self.closes && self.streams.are_idle() {
            self.closes = true;
            self.connection.graceful_shutdown();
        }
        loop {
            match std::task::ready!(self.connection.poll_accept(context)) {
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(error)),
                Some(Ok((request, respond))) => Rc::clone(&self.streams).begin(request, respond, context),
            }
        }
    }
}

/// What the streams of a connection share.
struct Streams<H> {
    answering: Rc<Answering<H>>,
    takes: Takes,
}

/// What the client takes of what it has asked for.
struct Takes {
    /// Streams that are under way.
    live: Cell<usize>,
    /// When the client last asked for something, or took the whole of something.
    used: Cell<Instant>,
    /// The last stream was given up, and nothing else happened for as long.
    all_stalled: Notify,
}

impl Default for Takes {
    fn default() -> Self {
        Self { live: Cell::new(0), used: Cell::new(Instant::now()), all_stalled: Notify::new() }
    }
}

struct Live<'a>(&'a Takes);

impl<'a> Live<'a> {
    fn new(takes: &'a Takes, now: Instant) -> Self {
        takes.live.set(takes.live.get() + 1);
        takes.used.set(now);
        Self(takes)
    }
}

impl Drop for Live<'_> {
    fn drop(&mut self) {
        self.0.live.set(self.0.live.get().saturating_sub(1));
    }
}

impl<H> Streams<H> {
    /// Whether there has been no stream for too long.
    fn are_idle(&self) -> bool {
        let Takes { live, used, .. } = &self.takes;
        live.get() == 0
            && self.answering.limits.idle_timeout.is_some_and(|longest| used.get().elapsed() > longest)
    }
}

impl<H: Handler> Streams<H> {
    /// Takes a request as far as it comes without waiting; only the rest gets a task of its own.
    fn begin(
        self: Rc<Self>,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        context: &mut Context<'_>,
    ) {
        let mut stream = Box::pin(Rc::clone(&self).serve(request, respond));
        if stream.as_mut().poll(context).is_pending() {
            let streams = Rc::clone(&self);
            spawn_task("stream", &streams.answering.metrics, async move {
                if stream.await {
                    self.takes.used.set(Instant::now());
                }
            });
        }
    }

    /// Tells whether the client took the whole of the response.
    async fn serve(self: Rc<Self>, request: Request<RecvStream>, respond: SendResponse<Bytes>) -> bool {
        let asked = Instant::now();
        let live = Live::new(&self.takes, asked);
        let end = self.answer(request, respond, asked).await;
        drop(live);
        if let Some(BodyEnd::Stalled(patience)) = end {
            self.note_stall(patience);
        }
        end == Some(BodyEnd::Whole)
    }

    fn note_stall(&self, patience: Duration) {
        let Takes { live, used, all_stalled } = &self.takes;
        if live.get() == 0 && used.get().elapsed() >= patience {
            all_stalled.notify_one();
        }
    }

    /// `None` when the client was gone before its response's head.
    async fn answer(
        &self,
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        asked: Instant,
    ) -> Option<BodyEnd> {
        let Answering { limits, metrics, .. } = &*self.answering;
        let _in_flight = InFlight::new(metrics);
        let reply = Rc::new(Reply(RefCell::new(Some(respond))));
        let (head, received) = request.into_parts();
        let mut stream = Stream::new(received, &head.headers);
        let body = if stream.is_end_stream() {
            Body::empty()
        } else {
            if head.headers.contains_key(EXPECT) {
                let reply = Rc::clone(&reply);
                stream.before_waiting(move || reply.go_on());
            }
            Body::of_stream(stream, Side::Client, Some(limits.body_idle_timeout))
        };
        let response = {
            let interim = Interim::by(Rc::<Reply>::clone(&reply));
            let mut answer = pin!(self.answering.answer(head, body, interim, (asked, false)));
            poll_fn(|context| match answer.as_mut().poll(context) {
                Poll::Ready(response) => Poll::Ready(Some(response)),
                Poll::Pending => reply.poll_gone(context).map(|()| None),
            })
            .await
        };
        let respond = reply.0.take();
        let (response, mut respond) = response.zip(respond)?;
        let patience =
            response.extensions().get::<TakeWithin>().map_or(limits.take_timeout, |within| within.0);
        let (head, mut body) = response.into_parts();
        let mut head = Response::from_parts(head, ());
        complete(&mut head, &body);
        let ends = body.is_end_stream();
        let mut stream = match respond.send_response(head, ends) {
            Ok(stream) => stream,
            Err(error) => {
                debug!(%error, "a response could not be sent");
                respond.send_reset(h2::Reason::INTERNAL_ERROR);
                return Some(BodyEnd::PeerGone);
            }
        };
        if ends {
            return Some(BodyEnd::Whole);
        }
        let end = send_body(&mut stream, &mut body, &Patience::new(Some(patience))).await;
        if matches!(end, BodyEnd::PeerGone | BodyEnd::Stalled(_)) {
            body.abandon(Side::Client);
        }
        Some(end)
    }
}

/// Where a stream's responses go, until the final one has begun.
struct Reply(RefCell<Option<SendResponse<Bytes>>>);

impl Reply {
    fn poll_gone(&self, context: &mut Context<'_>) -> Poll<()> {
        match self.0.borrow_mut().as_mut() {
            Some(respond) => respond.poll_reset(context).map(|_reset| ()),
            None => Poll::Ready(()),
        }
    }

    /// The client may send its body.
    fn go_on(&self) {
        let mut interim = Response::new(());
        *interim.status_mut() = StatusCode::CONTINUE;
        self.send(interim);
    }
}

impl Back for Reply {
    fn send(&self, interim: Response<()>) {
        if let Some(respond) = self.0.borrow_mut().as_mut() {
            // Fails when the client is gone, which is noticed elsewhere.
            let _gone = respond.send_informational(interim);
        }
    }
}

/// What every response has, and what HTTP/2 must not have.
fn complete(head: &mut Response<()>, body: &Body) {
    let fields = head.headers_mut();
    ready_for_http2(fields);
    if !fields.contains_key(DATE) {
        fields.insert(DATE, today());
    }
    if !body.is_end_stream()
        && !fields.contains_key(CONTENT_LENGTH)
        && let Some(length) = body.size_hint().exact()
    {
        fields.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// The date, written anew each second.
fn today() -> HeaderValue {
    thread_local! {
        static TODAY: RefCell<(u64, HeaderValue)> = const { RefCell::new((0, HeaderValue::from_static(""))) };
    }
    let second = unix_ms() / 1000;
    TODAY.with_borrow_mut(|(of, text)| {
        if *of != second {
            *of = second;
            let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(second));
            *text = HeaderValue::try_from(date).unwrap_or(HeaderValue::from_static(""));
        }
        text.clone()
    })
}
