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

#[derive(Default)]
struct Shared {
    responses: RefCell<Vec<Rc<Watched>>>,
    begun: Notify,
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
}

impl Unread {
    /// Looks after a response from now on.
    pub(crate) fn watch(&self, response: Response<Body>) -> Response<Body> {
        let within = response.extensions().get::<TakeWithin>().map(|within| within.0);
        response.map(|body| {
            if body.is_end_stream() {
                return body;
            }
            let mut responses = self.0.responses.borrow_mut();
            let watched = Rc::new(Watched {
                body: RefCell::new(Some(body)),
                waits_since: Cell::new(Some(Instant::now())),
                within,
                place: Cell::new(responses.len()),
            });
            responses.push(Rc::clone(&watched));
            if responses.len() == 1 {
                self.0.begun.notify_one();
            }
            Body::boxed(WatchedBody { watched, all: self.clone() })
        })
    }

    /// Gives up responses of which nothing was taken for `patience`; resolves when all of the
    /// connection's are of that kind.
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

    /// True when there are responses, and all have been given up.
    fn give_up(&self, patience: Duration) -> bool {
        let given_up: Vec<Body> = {
            let responses = self.0.responses.borrow();
            let stalled = |watched: &&Rc<Watched>| {
                let patience = watched.within.unwrap_or(patience);
                watched.waits_since.get().is_some_and(|since| since.elapsed() >= patience)
            };
            responses.iter().filter(stalled).filter_map(|watched| watched.body.borrow_mut().take()).collect()
        };
        // Dropping them may run anything, so nothing is borrowed any more.
        given_up.into_iter().for_each(|body| body.abandon(Side::Client));
        let responses = self.0.responses.borrow();
        !responses.is_empty() && responses.iter().all(|watched| watched.body.borrow().is_none())
    }

    fn forget(&self, watched: &Watched) {
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
