//! Sending a body on an HTTP/2 stream.

use crate::body::{Body, BodyError};
use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body as HttpBody, Frame};
use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BodyEnd {
    /// All of it is on its way.
    Whole,
    /// The body failed: the stream was reset with its code.
    Failed,
    /// The peer has reset the stream, or its connection is gone.
    PeerGone,
    /// The peer took nothing for so long: the stream was reset.
    Stalled(Duration),
}

/// How long the peer may take nothing.
#[derive(Default)]
pub(crate) struct Patience {
    limit: Cell<Option<Duration>>,
    /// Who waits for the peer.
    waiting: Cell<Option<Waker>>,
}

impl Patience {
    pub(crate) fn new(limit: Option<Duration>) -> Self {
        Self { limit: Cell::new(limit), waiting: Cell::default() }
    }

    /// From now on no longer than this.
    pub(crate) fn set(&self, limit: Duration) {
        self.limit.set(Some(limit));
        if let Some(waiting) = self.waiting.take() {
            waiting.wake();
        }
    }
}

/// Sends `body` to its end. `patience` bounds each wait for the peer to take some of it. What the peer does not take stays here: no more
/// goes to the connection than it has room for.
pub(crate) async fn send_body(
    stream: &mut SendStream<Bytes>,
    body: &mut Body,
    patience: &Patience,
) -> BodyEnd {
    let mut waits = Waits { patience, since: None, timer: None };
    loop {
        let mut data = match poll_fn(|cx| next(stream, body, cx)).await {
            Next::PeerGone => return BodyEnd::PeerGone,
            Next::Frame(None) => return whole(stream.send_data(Bytes::new(), true)),
            Next::Frame(Some(Err(error))) => {
                stream.send_reset(Reason::from(error.reset_code()));
                return BodyEnd::Failed;
            }
            Next::Frame(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => data,
                Err(frame) => match frame.into_trailers() {
                    Ok(trailers) => return whole(stream.send_trailers(trailers)),
                    // Of a kind that HTTP does not have.
                    Err(_) => continue,
                },
            },
        };
        if data.is_empty() && body.is_end_stream() {
            return whole(stream.send_data(data, true));
        }
        while !data.is_empty() {
            stream.reserve_capacity(data.len());
            let room = poll_fn(|cx| {
                let room = waits.room(stream, cx);
                if room.is_pending() {
                    body.gather(cx);
                }
                room
            });
            let part = match room.await {
                Room::Some(room) => data.split_to(room.min(data.len())),
                Room::PeerGone => return BodyEnd::PeerGone,
                Room::Stalled(patience) => {
                    stream.send_reset(Reason::CANCEL);
                    return BodyEnd::Stalled(patience);
                }
            };
            let ends = data.is_empty() && body.is_end_stream();
            if stream.send_data(part, ends).is_err() {
                return BodyEnd::PeerGone;
            }
            if ends {
                return BodyEnd::Whole;
            }
        }
    }
}

fn whole(sent: Result<(), h2::Error>) -> BodyEnd {
    if sent.is_ok() { BodyEnd::Whole } else { BodyEnd::PeerGone }
}

enum Next {
    Frame(Option<Result<Frame<Bytes>, BodyError>>),
    PeerGone,
}

fn next(stream: &mut SendStream<Bytes>, body: &mut Body, context: &mut Context<'_>) -> Poll<Next> {
    if let Poll::Ready(frame) = Pin::new(body).poll_frame(context) {
        return Poll::Ready(Next::Frame(frame));
    }
    // While there is nothing to send, only this tells.
    stream.poll_reset(context).map(|_reset| Next::PeerGone)
}

enum Room {
    /// For so many bytes.
    Some(usize),
    PeerGone,
    Stalled(Duration),
}

/// Waits for the peer to take something.
struct Waits<'p> {
    patience: &'p Patience,
    since: Option<Instant>,
    /// Made at the first wait, and not set again for each: most are short.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Waits<'_> {
    fn room(&mut self, stream: &mut SendStream<Bytes>, context: &mut Context<'_>) -> Poll<Room> {
        loop {
            let room = stream.capacity();
            if room > 0 {
                self.since = None;
                return Poll::Ready(Room::Some(room));
            }
            match stream.poll_capacity(context) {
                Poll::Ready(Some(Ok(_))) => {}
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Room::PeerGone),
                Poll::Pending => break,
            }
        }
        if stream.poll_reset(context).is_ready() {
            return Poll::Ready(Room::PeerGone);
        }
        self.poll_end(context).map(Room::Stalled)
    }

    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<Duration> {
        let Some(patience) = self.patience.limit.get() else {
            self.patience.waiting.set(Some(context.waker().clone()));
            return Poll::Pending;
        };
        let until = *self.since.get_or_insert_with(Instant::now) + patience;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        while timer.as_mut().poll(context).is_ready() {
            if Instant::now() >= until {
                return Poll::Ready(patience);
            }
            timer.as_mut().reset(until);
        }
        Poll::Pending
    }
}
