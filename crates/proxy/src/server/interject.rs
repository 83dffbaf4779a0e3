//! Interim responses on an HTTP/1.1 connection. hyper's server has no way to send them, so they are written beside it, at the one place where
//! they fit: when it has written all that it had, and the response that they belong to has not begun.

use crate::interim::{Back, Interim};
use http::{Response, Version};
use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// Bytes that wait at a time; what doesn't fit is left out, because nobody depends on it.
const WAITING_BYTES_MAX: usize = 64 * 1024;

/// The transport that hyper is given.
#[derive(Debug)]
pub(super) struct Interjected<I> {
    io: I,
    shared: Rc<Shared>,
}

/// Where interim responses are put. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Interjections(Rc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    waiting: RefCell<Waiting>,
    sent: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    /// Of `bytes`, so many have gone.
    gone: usize,
    /// The request that is being answered.
    request: u64,
    /// Its response has not begun.
    open: bool,
    /// Whoever drives the connection.
    waker: Option<Waker>,
}

/// Wraps a transport.
pub(super) fn interjected<I>(io: I) -> (Interjected<I>, Interjections) {
    let shared = Rc::<Shared>::default();
    (Interjected { io, shared: Rc::clone(&shared) }, Interjections(shared))
}

/// The way back of one request.
struct OfRequest {
    shared: Rc<Shared>,
    request: u64,
}

impl Interjections {
    /// The way back of the request that is handled now.
    pub(super) fn of_next(&self, version: Version) -> Interim {
        // HTTP/1.0 does not know them (RFC 9110, section 15.2).
        if version < Version::HTTP_11 {
            return Interim::default();
        }
        let mut waiting = self.0.waiting.borrow_mut();
        waiting.request += 1;
        waiting.open = true;
        Interim::by(Rc::new(OfRequest { shared: Rc::clone(&self.0), request: waiting.request }))
    }

    /// Resolves when all are sent; from then on the response may begin, and what comes late is left out.
    pub(super) async fn sent(&self) {
        self.0.waiting.borrow_mut().open = false;
        loop {
            let sent = self.0.sent.notified();
            if self.0.waiting.borrow().bytes.is_empty() {
                return;
            }
            sent.await;
        }
    }
}

impl Back for OfRequest {
    fn send(&self, interim: Response<()>) {
        let mut waiting = self.shared.waiting.borrow_mut();
        if !waiting.open || waiting.request != self.request || waiting.bytes.len() > WAITING_BYTES_MAX {
            return;
        }
        write_head(&mut waiting.bytes, &interim);
        if let Some(waker) = waiting.waker.take() {
            waker.wake();
        }
    }
}

fn write_head(bytes: &mut Vec<u8>, interim: &Response<()>) {
    let status = interim.status();
    let reason = status.canonical_reason().unwrap_or("");
    bytes.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
    for (name, value) in interim.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            bytes.extend_from_slice(part);
        }
    }
    bytes.extend_from_slice(b"\r\n");
}

impl<I: AsyncWrite + Unpin> Interjected<I> {
    fn poll_interject(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut waiting = self.shared.waiting.borrow_mut();
        while waiting.gone < waiting.bytes.len() {
            let written = ready!(Pin::new(&mut self.io).poll_write(context, &waiting.bytes[waiting.gone..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            waiting.gone += written;
        }
        waiting.bytes = Vec::new();
        waiting.gone = 0;
        self.shared.sent.notify_waiters();
        Poll::Ready(Ok(()))
    }

    /// What has begun must end before anything else is written.
    fn poll_begun(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let begun = self.shared.waiting.borrow().gone > 0;
        if begun { self.poll_interject(context) } else { Poll::Ready(Ok(())) }
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Interjected<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_read(context, buffer)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Interjected<I> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_begun(context))?;
        Pin::new(&mut this.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_begun(context))?;
        Pin::new(&mut this.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    /// hyper calls this when it has written all that it had.
    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let is_empty = {
            let mut waiting = this.shared.waiting.borrow_mut();
            if !waiting.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker())) {
                waiting.waker = Some(context.waker().clone());
            }
            waiting.bytes.is_empty()
        };
        if !is_empty {
            ready!(this.poll_interject(context))?;
        }
        Pin::new(&mut this.io).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(context)
    }
}
