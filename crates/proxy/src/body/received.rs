//! Bodies that connections receive.

use super::{BodyError, BodyFault, Side};
use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use http::header::{CONTENT_LENGTH, HeaderMap};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// A body that is received, with a bound on each wait.
pub(super) struct Received {
    pub(super) source: Source,
    side: Side,
    idle_timeout: Option<Duration>,
    /// Made at the first wait: most small bodies never wait.
    timer: Option<Pin<Box<Sleep>>>,
    armed: bool,
}

pub(super) enum Source {
    H1(Incoming),
    /// In a box, so that bodies are small to move.
    H2(Box<Stream>),
}

impl Source {
    fn poll_frame(
        &mut self,
        side: Side,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::H1(body) => {
                Pin::new(body).poll_frame(context).map_err(|error| BodyError::from_hyper(side, &error))
            }
            Self::H2(stream) => stream.poll_frame(side, context),
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        match self {
            Self::H1(body) => body.is_end_stream(),
            Self::H2(stream) => stream.is_end_stream(),
        }
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        match self {
            Self::H1(body) => body.size_hint(),
            Self::H2(stream) => stream.left.map_or_else(SizeHint::default, SizeHint::with_exact),
        }
    }
}

/// A frame shorter than this is put together with others while they wait, bytes: h2 keeps some 250 bytes beside each, and ends a connection
/// with too many of them.
const SMALL_BYTES: usize = 1024;

/// What is received on an HTTP/2 stream.
pub(crate) struct Stream {
    received: RecvStream,
    /// What has arrived while whoever takes it had no room.
    gathered: Gathered,
    /// What is to come, where the head has said it.
    left: Option<u64>,
    /// There is no more data, at most trailers.
    data_ended: bool,
    /// Called once, before the first wait.
    before_waiting: Option<Box<dyn FnOnce()>>,
    /// Called once its end is there.
    at_end: Option<Box<dyn FnOnce()>>,
}

impl Stream {
    /// `fields` are those of its head.
    pub(crate) fn new(received: RecvStream, fields: &HeaderMap) -> Self {
        let length = fields.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let gathered = Gathered::default();
        Self { received, gathered, left: length, data_ended: false, before_waiting: None, at_end: None }
    }

    /// Nothing follows the head, or what was taken so far.
    pub(crate) fn is_end_stream(&self) -> bool {
        self.gathered.is_empty() && self.received.is_end_stream()
    }

    /// Takes what has arrived out of the connection's hands, but does not let the peer send more for it.
    fn gather(&mut self, context: &mut Context<'_>) {
        while !self.data_ended && self.gathered.failed.is_none() {
            match self.received.poll_data(context) {
                Poll::Ready(Some(Ok(data))) => self.gathered.push(data),
                Poll::Ready(Some(Err(error))) => self.gathered.failed = Some(error),
                Poll::Ready(None) => self.data_ended = true,
                Poll::Pending => return,
            }
        }
    }

    fn hand_on(&mut self, data: Bytes) -> Frame<Bytes> {
        // Whoever takes it keeps it no longer than it takes to hand it on.
        let _gone = self.received.flow_control().release_capacity(data.len());
        self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
        Frame::data(data)
    }

    /// Calls `then` before the first wait for what the peer has yet to send.
    pub(crate) fn before_waiting(&mut self, then: impl FnOnce() + 'static) {
        self.before_waiting = Some(Box::new(then));
    }

    /// Calls `then` when the end is there, and not when it is given up before.
    pub(crate) fn at_end(&mut self, then: impl FnOnce() + 'static) {
        self.at_end = Some(Box::new(then));
    }

    fn poll_frame(
        &mut self,
        side: Side,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let polled = self.poll_received(side, context);
        let over = match &polled {
            Poll::Pending => {
                if let Some(then) = self.before_waiting.take() {
                    then();
                }
                false
            }
            Poll::Ready(None) => true,
            Poll::Ready(Some(_)) => self.is_end_stream(),
        };
        if over && let Some(then) = self.at_end.take() {
            then();
        }
        polled
    }

    fn poll_received(
        &mut self,
        side: Side,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(data) = self.gathered.pop() {
            return Poll::Ready(Some(Ok(self.hand_on(data))));
        }
        if let Some(error) = self.gathered.failed.take() {
            return Poll::Ready(self.ended_by(side, &error));
        }
        if !self.data_ended {
            match ready!(self.received.poll_data(context)) {
                Some(Ok(data)) => return Poll::Ready(Some(Ok(self.hand_on(data)))),
                Some(Err(error)) => return Poll::Ready(self.ended_by(side, &error)),
                None => self.data_ended = true,
            }
        }
        Poll::Ready(match ready!(self.received.poll_trailers(context)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => self.ended_by(side, &error),
        })
    }

    /// A server that has said all it has to say may reset the stream because it does not want the rest of what it is sent (RFC 9113,
    /// section 8.1): that is no failure of what it has said.
    fn ended_by(&self, side: Side, error: &h2::Error) -> Option<Result<Frame<Bytes>, BodyError>> {
        // Without a length only the end of the stream tells, and after that h2 speaks of no reset.
        let is_whole = self.left == Some(0);
        let is_end = side == Side::Upstream && is_whole && error.reason() == Some(h2::Reason::NO_ERROR);
        (!is_end).then(|| Err(BodyError::from_h2(side, error)))
    }
}

/// Data that waits; no more than the stream's window.
#[derive(Default)]
struct Gathered {
    pieces: VecDeque<Bytes>,
    /// Behind those.
    small: BytesMut,
    /// What came last.
    failed: Option<h2::Error>,
}

impl Gathered {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.small.is_empty() && self.failed.is_none()
    }

    fn push(&mut self, data: Bytes) {
        if data.len() < SMALL_BYTES {
            return self.small.extend_from_slice(&data);
        }
        if !self.small.is_empty() {
            self.pieces.push_back(self.small.split().freeze());
        }
        self.pieces.push_back(data);
    }

    fn pop(&mut self) -> Option<Bytes> {
        let small = |small: &mut BytesMut| (!small.is_empty()).then(|| small.split().freeze());
        self.pieces.pop_front().or_else(|| small(&mut self.small))
    }
}

impl Received {
    /// Takes what has arrived together, while there is no room for it.
    pub(super) fn gather(&mut self, context: &mut Context<'_>) {
        // Of HTTP/1.1 nothing more is read than is taken.
        if let Source::H2(stream) = &mut self.source {
            stream.gather(context);
        }
    }

    pub(super) fn new(source: Source, side: Side, idle_timeout: Option<Duration>) -> Self {
        Self { source, side, idle_timeout, timer: None, armed: false }
    }

    pub(super) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Poll::Ready(mut frame) = self.source.poll_frame(self.side, context) {
            self.armed = false;
            if let Some(Ok(frame)) = &mut frame
                && let Some(trailers) = frame.trailers_mut()
            {
                crate::headers::strip_trailers(trailers);
            }
            return Poll::Ready(frame);
        }
        let Some(idle_timeout) = self.idle_timeout else {
            return Poll::Pending;
        };
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle_timeout)));
        if !self.armed {
            timer.as_mut().reset(Instant::now() + idle_timeout);
            self.armed = true;
        }
        ready!(timer.as_mut().poll(context));
        Poll::Ready(Some(Err(BodyError {
            fault: BodyFault::Timeout,
            ..BodyError::new(self.side, "nothing of the body arrived in time", BodyError::CANCEL)
        })))
    }
}
