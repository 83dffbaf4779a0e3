//! Responses that the client does not take: they are given up, so that they hold nothing of the other
//! hops, and in the end the connection is.
//!
//! HTTP/2 has a window for each stream, so a client can leave one response alone and take another. The
//! HTTP library does not ask for more of a body that has no room to go, so a clock beside it looks.

use super::limits::TakeWithin;
use crate::body::{Body, BodyError, Side};
use bytes::Bytes;
use http::Response;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The responses of one connection that are under way. Clones share them.
#[derive(Clone, Default)]
pub(crate) struct Unread(Rc<Shared>);

struct Shared {
    responses: RefCell<Vec<Rc<Watched>>>,
    begun: Notify,
    /// Requests that wait for their response.
    answering: Cell<usize>,
    /// When the client last asked for something, or took the whole of something.
    used: Cell<Instant>,
}

impl Default for Shared {
    fn default() -> Self {
        Self {
            responses: RefCell::default(),
            begun: Notify::new(),
            answering: Cell::new(0),
            used: Cell::new(Instant::now()),
        }
    }
}

struct Watched {
    /// `None` once it was given up.
    body: RefCell<Option<Body>>,
    /// Since when the client has not taken what it was given; `None` while we wait for more of it.
    waits_since: Cell<Option<Instant>>,
    /// Its own patience, where it has one.
    within: Option<Duration>,
    /// Its place among the responses.
    place: Cell<usize>,
    /// Ends its stream; HTTP/1 has none.
    stream: Option<Rc<Notify>>,
}

/// A request that waits for its response.
pub(crate) struct Answering(Unread);

impl Drop for Answering {
    fn drop(&mut self) {
        let answering = &self.0.0.answering;
        answering.set(answering.get().saturating_sub(1));
    }
}

tokio::task_local! {
    /// Of the stream that a task of [`Streams`] serves.
    static STREAM: Rc<Notify>;
}

/// Runs the streams of HTTP/2 connections on the worker's own thread. One that is given up is dropped, which resets
/// it: of a body that has no room to go, the HTTP library hears no error.
#[derive(Clone, Copy)]
pub(super) struct Streams;

impl<F: Future + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        let given_up = Rc::new(Notify::new());
        // It is some kilobytes, and what is wrapped around it would copy it each time.
        let mut stream = Box::pin(stream);
        let served = STREAM.scope(Rc::clone(&given_up), async move {
            tokio::select! {
                biased;
                _ended = &mut stream => {}
                () = given_up.notified() => {}
            }
        });
        tokio::task::spawn_local(served);
    }
}

impl Unread {
    /// A request has come; it waits until what is returned is dropped.
    pub(crate) fn asked(&self) -> Answering {
        self.0.used.set(Instant::now());
        self.0.answering.set(self.0.answering.get() + 1);
        Answering(self.clone())
    }

    /// Looks after a response from now on; called where its stream is served.
    pub(crate) fn watch(&self, response: Response<Body>) -> Response<Body> {
        let within = response.extensions().get::<TakeWithin>().map(|within| within.0);
        response.map(|body| {
            if body.is_end_stream() {
                self.0.used.set(Instant::now());
                return body;
            }
            let mut responses = self.0.responses.borrow_mut();
            let watched = Rc::new(Watched {
                body: RefCell::new(Some(body)),
                waits_since: Cell::new(Some(Instant::now())),
                within,
                place: Cell::new(responses.len()),
                stream: STREAM.try_with(Rc::clone).ok(),
            });
            responses.push(Rc::clone(&watched));
            if responses.len() == 1 {
                self.0.begun.notify_one();
            }
            Body::boxed(WatchedBody { watched, all: self.clone() })
        })
    }

    /// Gives up responses of which nothing was taken for `patience`; resolves when that is all that has become of
    /// the connection for so long.
    pub(crate) async fn all_stalled(&self, patience: Duration) {
        loop {
            if self.0.responses.borrow().is_empty() {
                // Between responses no clock runs.
                self.0.begun.notified().await;
            }
            tokio::time::sleep(patience / 4).await;
            if self.give_up(patience) {
                return;
            }
        }
    }

    /// True when there are responses, all have been given up, and nothing else was asked for or taken for
    /// `patience`.
    fn give_up(&self, patience: Duration) -> bool {
        let stalled: Vec<Rc<Watched>> = {
            let responses = self.0.responses.borrow();
            responses.iter().filter(|watched| watched.has_stalled(patience)).cloned().collect()
        };
        for watched in &stalled {
            // Dropping it may run anything, so nothing is borrowed any more.
            let body = watched.body.borrow_mut().take();
            if let Some(body) = body {
                body.abandon(Side::Client);
            }
        }
        let responses = self.0.responses.borrow();
        let all = !responses.is_empty() && responses.iter().all(|watched| watched.body.borrow().is_none());
        if all && self.0.answering.get() == 0 && self.0.used.get().elapsed() >= patience {
            return true;
        }
        stalled.iter().filter_map(|watched| watched.stream.as_ref()).for_each(|stream| stream.notify_one());
        false
    }

    fn forget(&self, watched: &Watched) {
        if watched.body.borrow().is_some() {
            self.0.used.set(Instant::now());
        }
        let mut responses = self.0.responses.borrow_mut();
        let place = watched.place.get();
        if place < responses.len() {
            responses.swap_remove(place);
            if let Some(moved) = responses.get(place) {
                moved.place.set(place);
            }
        }
    }
}

impl Watched {
    fn has_stalled(&self, patience: Duration) -> bool {
        let patience = self.within.unwrap_or(patience);
        self.body.borrow().is_some()
            && self.waits_since.get().is_some_and(|since| since.elapsed() >= patience)
    }
}

struct WatchedBody {
    watched: Rc<Watched>,
    all: Unread,
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        self.all.forget(&self.watched);
    }
}

impl HttpBody for WatchedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut body = self.watched.body.borrow_mut();
        let Some(body) = body.as_mut() else {
            let gone = BodyError::new(Side::Client, "the client did not take it in time", BodyError::CANCEL);
            return Poll::Ready(Some(Err(gone)));
        };
        let polled = Pin::new(body).poll_frame(context);
        self.watched.waits_since.set(polled.is_ready().then(Instant::now));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.watched.body.borrow().as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.watched.body.borrow().as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}
