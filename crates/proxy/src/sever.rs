//! A transport that can be cut from outside, and that says when it is gone.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

#[derive(Debug, Default)]
struct State {
    severed: bool,
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

#[derive(Debug, Default)]
struct Shared {
    state: RefCell<State>,
    closed: Notify,
}

/// The transport.
#[derive(Debug)]
pub struct Severable<I> {
    io: I,
    shared: Rc<Shared>,
}

/// Cuts the transport. Clones do the same.
#[derive(Debug, Clone)]
pub struct SeverHandle(Rc<Shared>);

/// Wraps `io`.
pub fn severable<I>(io: I) -> (Severable<I>, SeverHandle) {
    let shared = Rc::<Shared>::default();
    (Severable { io, shared: Rc::clone(&shared) }, SeverHandle(shared))
}

impl SeverHandle {
    /// From now on reading and writing fail.
    pub fn sever(&self) {
        let wakers = {
            let mut state = self.0.state.borrow_mut();
            state.severed = true;
            [state.reader.take(), state.writer.take()]
        };
        wakers.into_iter().flatten().for_each(Waker::wake);
    }

    /// Whether the transport has been dropped.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.state.borrow().closed
    }

    /// Resolves once the transport has been dropped. Cancel-safe.
    pub async fn closed(&self) {
        loop {
            let notified = self.0.closed.notified();
            if self.is_closed() {
                return;
            }
            notified.await;
        }
    }
}

impl<I> Drop for Severable<I> {
    fn drop(&mut self) {
        self.shared.state.borrow_mut().closed = true;
        self.shared.closed.notify_waiters();
    }
}

fn cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was cut")
}

impl<I: AsyncRead + Unpin> AsyncRead for Severable<I> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.shared.state.borrow().severed {
            return Poll::Ready(Err(cut()));
        }
        let polled = Pin::new(&mut this.io).poll_read(context, buffer);
        if polled.is_pending() {
            remember(&mut this.shared.state.borrow_mut().reader, context);
        }
        polled
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Severable<I> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.shared.state.borrow().severed {
            return Poll::Ready(Err(cut()));
        }
        let polled = Pin::new(&mut this.io).poll_write(context, bytes);
        if polled.is_pending() {
            remember(&mut this.shared.state.borrow_mut().writer, context);
        }
        polled
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.shared.state.borrow().severed {
            return Poll::Ready(Err(cut()));
        }
        let polled = Pin::new(&mut this.io).poll_flush(context);
        if polled.is_pending() {
            remember(&mut this.shared.state.borrow_mut().writer, context);
        }
        polled
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.shared.state.borrow().severed {
            return Poll::Ready(Err(cut()));
        }
        let polled = Pin::new(&mut this.io).poll_shutdown(context);
        if polled.is_pending() {
            remember(&mut this.shared.state.borrow_mut().writer, context);
        }
        polled
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.shared.state.borrow().severed {
            return Poll::Ready(Err(cut()));
        }
        let polled = Pin::new(&mut this.io).poll_write_vectored(context, slices);
        if polled.is_pending() {
            remember(&mut this.shared.state.borrow_mut().writer, context);
        }
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

fn remember(slot: &mut Option<Waker>, context: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(context.waker()),
        None => *slot = Some(context.waker().clone()),
    }
}
