//! An HTTP/1.1 response that the client does not take: it is given up, so that it holds nothing of the other hops, and its connection with
//! it. hyper does not ask for more of a body that has no room to go, so a clock beside it looks.

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

/// The response of a connection that is under way. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Unread(Rc<Shared>);

#[derive(Default)]
struct Shared {
    /// HTTP/1.1 has one at a time.
    response: RefCell<Option<Rc<Watched>>>,
    begun: Notify,
}

struct Watched {
    /// `None` once it was given up.
    body: RefCell<Option<Body>>,
    /// Since when the client has not taken what it was given; `None` while we wait for more of it.
    waits_since: Cell<Option<Instant>>,
    /// Its own patience, where it has one.
    within: Option<Duration>,
}

impl Unread {
    /// Looks after a response from now on.
    pub(crate) fn watch(&self, response: Response<Body>) -> Response<Body> {
        let within = response.extensions().get::<TakeWithin>().map(|within| within.0);
        response.map(|body| {
            if body.is_end_stream() {
                return body;
            }
            let watched = Rc::new(Watched {
                body: RefCell::new(Some(body)),
                waits_since: Cell::new(Some(Instant::now())),
                within,
            });
            *self.0.response.borrow_mut() = Some(Rc::clone(&watched));
            self.0.begun.notify_one();
            Body::boxed(WatchedBody { watched, all: self.clone() })
        })
    }

    /// Resolves when nothing of a response was taken for `patience`, or its own; it is given up then.
    pub(crate) async fn stalled(&self, patience: Duration) {
        loop {
            let watched = self.0.response.borrow().clone();
            match watched {
                // Between responses no clock runs.
                None => self.0.begun.notified().await,
                Some(watched) if watched.has_stalled(patience) => {
                    let body = watched.body.borrow_mut().take();
                    if let Some(body) = body {
                        body.abandon(Side::Client);
                    }
                    return;
                }
                Some(_) => tokio::time::sleep(patience / 4).await,
            }
        }
    }
}

impl Watched {
    fn has_stalled(&self, patience: Duration) -> bool {
        let patience = self.within.unwrap_or(patience);
        self.waits_since.get().is_some_and(|since| since.elapsed() >= patience)
    }
}

struct WatchedBody {
    watched: Rc<Watched>,
    all: Unread,
}

impl Drop for WatchedBody {
    fn drop(&mut self) {
        let mut response = self.all.0.response.borrow_mut();
        response.take_if(|current| Rc::ptr_eq(current, &self.watched));
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
