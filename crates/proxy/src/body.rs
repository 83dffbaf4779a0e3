//! Message bodies: one type for every source, with errors that say who failed.

mod received;

use crate::replay::ReplayBody;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
pub(crate) use received::Stream;
use received::{Received, Source};
use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

/// Whose side of the exchange failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Who sent the request.
    Client,
    /// Who was to answer it.
    Upstream,
    /// This process.
    Local,
}

/// In what way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyFault {
    /// The connection or the stream ended.
    Broken,
    /// Its framing can't be read.
    Malformed,
    /// Nothing of it came in time.
    Timeout,
}

/// Why a body ended before its end.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct BodyError {
    /// Who failed.
    pub side: Side,
    /// In what way.
    pub fault: BodyFault,
    what: &'static str,
    code: u32,
}

impl BodyError {
    /// The HTTP/2 code for "no longer wanted".
    pub const CANCEL: u32 = 8;

    /// An error of `side` that resets a stream with `code` (RFC 9113, section 7).
    #[must_use]
    pub fn new(side: Side, what: &'static str, code: u32) -> Self {
        Self { side, fault: BodyFault::Broken, what, code }
    }

    /// The HTTP/2 code that the stream was, or is to be, reset with.
    #[must_use]
    pub const fn reset_code(&self) -> u32 {
        self.code
    }

    fn from_h2(side: Side, error: &h2::Error) -> Self {
        match error.reason() {
            // Passed on as it is it would seem to say that the body was whole.
            Some(h2::Reason::NO_ERROR) => Self::new(side, "the stream ended before its end", Self::CANCEL),
            Some(code) => Self::new(side, "the stream was reset", u32::from(code)),
            None => Self::new(side, "the connection was lost", Self::CANCEL),
        }
    }

    fn from_hyper(side: Side, error: &hyper::Error) -> Self {
        if is_malformed(error) {
            let malformed = Self::new(side, "the body's framing can't be read", Self::CANCEL);
            return Self { fault: BodyFault::Malformed, ..malformed };
        }
        Self::new(side, "the connection was lost", Self::CANCEL)
    }
}

/// hyper says of chunks that it can't read that they are invalid input or data.
fn is_malformed(error: &hyper::Error) -> bool {
    use std::io::{Error, ErrorKind};
    let mut cause = std::error::Error::source(error);
    while let Some(current) = cause {
        let io = current.downcast_ref::<Error>().map(Error::kind);
        if matches!(io, Some(ErrorKind::InvalidInput | ErrorKind::InvalidData)) {
            return true;
        }
        cause = current.source();
    }
    false
}

/// A message body. Not `Send`: it stays on its worker.
pub struct Body {
    inner: Inner,
    /// Dropped with the body: in-flight counts, permits.
    held: Vec<Box<dyn Any>>,
    count: Option<ByteCount>,
}

enum Inner {
    Empty,
    Full(Option<Bytes>),
    Incoming(Received),
    Replay(ReplayBody),
    Boxed(Pin<Box<dyn HttpBody<Data = Bytes, Error = BodyError>>>),
}

impl Body {
    /// No content.
    #[must_use]
    pub fn empty() -> Self {
        Self::of(Inner::Empty)
    }

    /// Content that is already here.
    #[must_use]
    pub fn full(content: impl Into<Bytes>) -> Self {
        let content = content.into();
        if content.is_empty() { Self::empty() } else { Self::of(Inner::Full(Some(content))) }
    }

    /// Any other source.
    #[must_use]
    pub fn boxed(source: impl HttpBody<Data = Bytes, Error = BodyError> + 'static) -> Self {
        Self::of(Inner::Boxed(Box::pin(source)))
    }

    /// What an HTTP/1.1 connection receives from `side`. `idle_timeout` bounds each wait for a frame.
    pub(crate) fn incoming(body: Incoming, side: Side, idle_timeout: Option<Duration>) -> Self {
        if body.is_end_stream() {
            return Self::empty();
        }
        Self::received(Source::H1(body), side, idle_timeout)
    }

    /// The same of an HTTP/2 stream, with the fields of its head.
    pub(crate) fn of_stream(stream: Stream, side: Side, idle_timeout: Option<Duration>) -> Self {
        Self::received(Source::H2(Box::new(stream)), side, idle_timeout)
    }

    fn received(source: Source, side: Side, idle_timeout: Option<Duration>) -> Self {
        Self::of(Inner::Incoming(Received::new(source, side, idle_timeout)))
    }

    /// Called while there is no room for more of it: what has arrived in small pieces takes little memory then.
    pub(crate) fn gather(&mut self, context: &mut Context<'_>) {
        if let Inner::Incoming(received) = &mut self.inner {
            received.gather(context);
        }
    }

    pub(crate) fn replay(body: ReplayBody) -> Self {
        Self::of(Inner::Replay(body))
    }

    fn of(inner: Inner) -> Self {
        Self { inner, held: Vec::new(), count: None }
    }

    /// Keeps `guard` until the body is dropped, which is when it has been sent, or given up.
    #[must_use]
    pub fn holding(mut self, guard: impl Any) -> Self {
        self.held.push(Box::new(guard));
        self
    }

    /// The same of a guard that is in a box already.
    #[must_use]
    pub fn holding_box(mut self, guard: Box<dyn Any>) -> Self {
        self.held.push(guard);
        self
    }

    /// Drops what is left of it; its reader has failed.
    pub(crate) fn abandon(mut self, side: Side) {
        if let Some(count) = self.count.take() {
            count.0.failed.set(Some(side));
        }
    }

    fn note_end(&self) {
        if let Some(count) = &self.count {
            count.0.ended.set(true);
        }
    }

    /// Counts what passes. A body has one count: a second call returns the first one.
    pub fn counted(&mut self) -> ByteCount {
        let count = self.count.get_or_insert_default().clone();
        count.0.ended.set(count.ended() || self.is_end_stream());
        count
    }
}

impl Default for Body {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.inner {
            Inner::Empty => "empty",
            Inner::Full(_) => "full",
            Inner::Incoming(_) => "incoming",
            Inner::Replay(_) => "replay",
            Inner::Boxed(_) => "boxed",
        };
        f.debug_tuple("Body").field(&kind).finish()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let frame = match &mut this.inner {
            Inner::Empty => None,
            Inner::Full(content) => content.take().map(|content| Ok(Frame::data(content))),
            Inner::Incoming(received) => ready!(received.poll_frame(context)),
            Inner::Replay(replay) => ready!(Pin::new(replay).poll_frame(context)),
            Inner::Boxed(source) => ready!(source.as_mut().poll_frame(context)),
        };
        if let Some(count) = &this.count {
            count.note(frame.as_ref());
            // A body that says so is not asked for its end.
            if matches!(frame, Some(Ok(_))) && (this.is_end_stream() || this.size_hint().exact() == Some(0)) {
                this.note_end();
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::Empty => true,
            Inner::Full(content) => content.is_none(),
            Inner::Incoming(received) => received.source.is_end_stream(),
            Inner::Replay(replay) => replay.is_end_stream(),
            Inner::Boxed(source) => source.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::Empty => SizeHint::with_exact(0),
            Inner::Full(content) => {
                SizeHint::with_exact(content.as_ref().map_or(0, |content| content.len() as u64))
            }
            Inner::Incoming(received) => received.source.size_hint(),
            Inner::Replay(replay) => replay.size_hint(),
            Inner::Boxed(source) => source.size_hint(),
        }
    }
}

/// How much of a body has passed, and how it ended. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct ByteCount(Rc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    bytes: Cell<u64>,
    ended: Cell<bool>,
    failed: Cell<Option<Side>>,
}

impl ByteCount {
    /// Bytes of content so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.bytes.get()
    }

    /// Who broke the body off, if someone did.
    #[must_use]
    pub fn failed(&self) -> Option<Side> {
        self.0.failed.get()
    }

    /// Whether the end was seen.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.0.ended.get()
    }

    fn note(&self, frame: Option<&Result<Frame<Bytes>, BodyError>>) {
        match frame {
            None => self.0.ended.set(true),
            Some(Err(error)) => self.0.failed.set(Some(error.side)),
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    self.0.bytes.set(self.0.bytes.get() + data.len() as u64);
                } else {
                    self.0.ended.set(true);
                }
            }
        }
    }
}
